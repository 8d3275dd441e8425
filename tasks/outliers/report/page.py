"""The content of a report on systematic outliers as its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.outliers.report.ablation import in_words
from tasks.outliers.report.data import Dimension, ModelReport, OutliersData, Site
from tasks.outliers.report.facts import model_facts, model_tiles, plain, sign, sweep_tiles
from tasks.outliers.report.figures.ablation import ablation_figures
from tasks.outliers.report.figures.common import VARIANT_NAMES
from tasks.outliers.report.figures.dimensions import (
    recurrence_figure,
    recurrence_rows_figure,
    shares_figure,
    sign_figure,
)
from tasks.outliers.report.figures.experts import SHOWN_NAMES, experts_figure, paths_figure
from tasks.outliers.report.figures.heat import heat_figure
from tasks.outliers.report.figures.plane import AGAINST_NAMES, CRITERION_NAMES, plane_figure, scale_figure
from tasks.outliers.report.figures.points import points_figure
from tasks.outliers.report.figures.sizes import PHASE_CHANGE, SIZE_NAMES, size_figures
from tasks.outliers.report.sentences import nearest_massive, place
from tasks.report import numbers as fmt
from tasks.report import shell
from tasks.report.figures import Figure
from tasks.report.records import RunFacts

ROWS = 24
FEW = 12
TABLE_ROWS = 240
SITE_TITLES = {"norms": "What enters attention and FFN", "residual": "The residual stream"}


@dataclass(frozen=True)
class SitePlots:
    """Figures of one site; None where there is nothing to show."""

    heat: Figure | None
    points: Figure | None
    plane: Figure | None
    scale: Figure | None


@dataclass(frozen=True)
class ModelPlots:
    """Figures of one model, and the dimensions that its table and small figures show."""

    id: str
    sites: list[SitePlots]
    rows: list[Figure]
    recurrence: Figure | None
    ablation: list[Figure]
    experts: list[Figure]
    rows_shown: int
    rows_of: int
    table: list[Dimension]

    def all(self) -> list[Figure]:
        single = [f for s in self.sites for f in (s.heat, s.points, s.plane, s.scale)]
        return [f for f in (*single, *self.rows, self.recurrence, *self.ablation, *self.experts) if f is not None]


def render(data: OutliersData, run: RunFacts) -> str:
    """The page; `run` is the only part that may differ between equal runs."""
    table_rows = max(20, TABLE_ROWS // max(len(data.models), 1))
    models = [(m, model_plots(f"m{i}", m, table_rows)) for i, m in enumerate(data.models)]
    sweep = len(data.models) != 1 or bool(data.failures)
    sizes = size_figures("size", data.models) if sum(m.row.parameters is not None for m in data.models) > 1 else []
    return shell.render(
        "outliers",
        title=data.title,
        sections=sections(data, sweep),
        figures=[*sizes, *(figure for _, plots in models for figure in plots.all())],
        run=run,
        data=data,
        models=models,
        sweep=sweep,
        sizes=sizes,
        tiles=sweep_tiles(data) if sweep else model_tiles(data.models[0]),
        model_tiles=model_tiles,
        model_facts=model_facts,
        variants=VARIANT_NAMES,
        size_names=SIZE_NAMES,
        against_names=AGAINST_NAMES,
        criterion_names=CRITERION_NAMES,
        expert_names=SHOWN_NAMES,
        phase_change=fmt.scaled(PHASE_CHANGE),
        site_titles=SITE_TITLES,
        in_words=in_words,
        place=place,
        nearest_massive=nearest_massive,
        sign=sign,
        plain=plain,
        any_size_differs=any(m.row.parameters != m.row.active for m in data.models),
    )


def sections(data: OutliersData, sweep: bool) -> list[tuple[str, str]]:
    """Anchors and names of the navigation: of a sweep the models, of a single model its parts."""
    if sweep:
        parts = [("models", "Models compared"), *((f"m{i}", m.name) for i, m in enumerate(data.models))]
    else:
        has = data.models[0]
        parts = [
            ("m0-where", "Where they are"),
            ("m0-dimensions", "The dimensions"),
            ("m0-scale", "Against the scale"),
            ("m0-functional", "Functional check"),
            ("m0-massive", "Massive activations"),
            *([("m0-experts", "Experts")] if has.is_moe else []),
            *([("m0-other", SITE_TITLES[has.sites[1].site])] if len(has.sites) > 1 else []),
        ]
    return [
        ("finding", "Finding"),
        ("numbers", "Key numbers"),
        *parts,
        ("setup", "What was run"),
        ("reading", "How to read this"),
    ]


def model_plots(id: str, model: ModelReport, table_rows: int) -> ModelPlots:
    """All figures of one model; their ids begin with `id`."""
    dims = worth_a_row(model.site.dimensions[model.variant])
    recurring = [d for d in model.site.dimensions[model.variant] if d.systematic or d.sequences]
    rows, sequences = [d for d in dims if d.occurrences][:ROWS], model.facts.sequences
    return ModelPlots(
        id=id,
        sites=[site_plots(f"{id}-{site.site}", site, model) for site in model.sites],
        rows=[
            shares_figure(f"{id}-shares", rows, model.criteria.position_share),
            sign_figure(f"{id}-sign", rows),
            *([recurrence_rows_figure(f"{id}-recurrence-rows", rows, sequences)] if recurring else []),
        ]
        if rows
        else [],
        rows_shown=len(rows),
        rows_of=len(dims),
        recurrence=recurrence_figure(f"{id}-recurrence", recurring, sequences) if len(recurring) > len(rows) else None,
        ablation=_ablation(id, model),
        experts=[experts_figure(f"{id}-load", model.experts), paths_figure(f"{id}-paths", model.experts)]
        if model.experts
        else [],
        table=dims[:table_rows],
    )


def worth_a_row(dims: Sequence[Dimension]) -> list[Dimension]:
    """All systematic dimensions, then those that are so against the rms, then the largest others up to a dozen."""
    found = [d for d in dims if d.systematic]
    relative = [d for d in dims if not d.systematic and d.relative_systematic]
    found += sorted(relative, key=lambda d: (-d.max_magnitude, -(d.max_over_rms or 0.0), d.dim))
    return found + [d for d in dims if not d.systematic and not d.relative_systematic][: max(0, FEW - len(found))]


def _ablation(id: str, model: ModelReport) -> list[Figure]:
    checked = model.ablation
    return ablation_figures(f"{id}-ablation", checked) if checked and len(checked.effects) > 1 else []


def site_plots(id: str, site: Site, model: ModelReport) -> SitePlots:
    default, criteria = model.variant, model.criteria
    some = any(site.with_outliers.values())
    return SitePlots(
        heat=heat_figure(f"{id}-heat", site, criteria.threshold, default) if site.heat.dims else None,
        points=points_figure(f"{id}-points", site, default) if some else None,
        plane=plane_figure(f"{id}-plane", site, criteria, default) if some else None,
        scale=scale_figure(f"{id}-ratio", site, criteria, default) if some else None,
    )
