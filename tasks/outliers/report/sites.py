"""What was found at each site: points in order of depth, dimensions strongest first, and their heat map."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.artifacts.shard import Shard
from tasks.outliers.report.data import Counts, Dimension, Example, HeatMap, Point, Site
from tasks.outliers.spec import SITES, VARIANTS, Variant
from tasks.outliers.tables import DIMENSION_POINTS, DIMENSIONS, POINTS, SEQUENCES
from tasks.report.tables import Row, rows


@dataclass(frozen=True)
class Limits:
    """How much of each model a page holds, so that a sweep's page stays small enough to send."""

    heat_dims: int
    other_dims: int

    @classmethod
    def of(cls, models: int) -> Limits:
        """For a page of so many models: 60 columns of a heat map up to two models, fewer with more."""
        shown = max(models, 1)
        return cls(heat_dims=max(16, min(60, 144 // shown)), other_dims=max(60, min(400, 1200 // shown)))


def sites(summary: Shard, about: Mapping[str, Any], limits: Limits) -> list[Site]:
    """All watched sites, the headline site first."""
    by_site: dict[str, dict[str, list[Row]]] = {
        table.name: _by_site(rows(table.read(summary))) for table in (POINTS, DIMENSIONS, DIMENSION_POINTS, SEQUENCES)
    }
    headline: Variant = about["headline"]
    return [
        _site(site, {name: found.get(site, []) for name, found in by_site.items()}, about, headline, limits)
        for site in sorted(about["sites"], key=SITES.index)
    ]


def _by_site(found: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in found:
        groups[row["site"]].append(row)
    return groups


def _site(
    site: str, tables: Mapping[str, list[Row]], about: Mapping[str, Any], headline: Variant, limits: Limits
) -> Site:
    points = sorted(tables["points"], key=lambda r: r["point"])
    names = {r["point"]: r["name"] for r in points}
    found = {v: [_dimension(r, names) for r in tables["dimensions"] if r["positions"] == v] for v in VARIANTS}
    ranked = {v: sorted(found[v], key=_strength) for v in VARIANTS}
    tokens = sum(r["tokens"] for r in tables["sequences"])
    detailed = {r["dim"] for r in tables["dimension_points"]}
    columns = [d.dim for d in ranked[headline] if d.dim in detailed and d.occurrences]
    return Site(
        site=site,
        points=[_point(r) for r in points],
        tokens={"all": tokens, "without_first": tokens - len(tables["sequences"])},
        counts={v: Counts(**{name: about["sites"][site][v][name] for name in Counts.model_fields}) for v in VARIANTS},
        dimensions={v: _strongest(ranked[v], limits.other_dims) for v in VARIANTS},
        with_outliers={v: sum(d.occurrences > 0 for d in found[v]) for v in VARIANTS},
        heat=heat_map(columns, [r["point"] for r in points], tables["dimension_points"], limits.heat_dims),
        nan=sum(r["nan"] for r in points),
        inf=sum(r["inf"] for r in points),
    )


def _strength(d: Dimension) -> tuple[bool, float, int]:
    return (not d.systematic, -d.max_magnitude, d.dim)


def _strongest(ranked: Sequence[Dimension], others: int) -> list[Dimension]:
    """All systematic dimensions and so many others, first those that are so in a sequence or against the rms."""
    rest = [d for d in ranked if not d.systematic]
    rest = sorted(rest, key=lambda d: not (d.sequences or d.relative_systematic))[:others]
    return [*(d for d in ranked if d.systematic), *sorted(rest, key=_strength)]


def heat_map(dims: Sequence[int], points: Sequence[int], cells: Iterable[Row], at_most: int) -> HeatMap:
    """Rows are `points`, columns the first `at_most` of `dims`."""
    shown = list(dims[:at_most])
    column = {dim: i for i, dim in enumerate(shown)}
    line = {point: i for i, point in enumerate(points)}
    magnitude: dict[Variant, list[list[float | None]]] = {v: [[None] * len(shown) for _ in points] for v in VARIANTS}
    occurrences: dict[Variant, list[list[int | None]]] = {v: [[None] * len(shown) for _ in points] for v in VARIANTS}
    for cell in cells:
        if cell["dim"] not in column:
            continue
        at = line[cell["point"]], column[cell["dim"]]
        for variant, suffix in (("all", ""), ("without_first", "_without_first")):
            if n := cell[f"occurrences{suffix}"]:
                occurrences[variant][at[0]][at[1]] = n
                magnitude[variant][at[0]][at[1]] = cell[f"max_magnitude{suffix}"]
    return HeatMap(dims=shown, left_out=len(dims) - len(shown), magnitude=magnitude, occurrences=occurrences)


def _point(r: Row) -> Point:
    return Point(
        name=r["name"],
        layer=r["layer"],
        kind=r["kind"],
        values=r["values"],
        outliers={"all": r["outliers"], "without_first": r["outliers_without_first"]},
        max_magnitude={"all": r["max_magnitude"], "without_first": r["max_magnitude_without_first"]},
    )


def _dimension(r: Row, names: Mapping[int, str]) -> Dimension:
    plain = set(Dimension.model_fields) - {"examples"}
    examples = [
        Example(value=e["value"], point=names[e["point"]], sequence=e["sequence"], position=e["position"])
        for e in r["examples"]
    ]
    return Dimension(examples=examples, **{name: r[name] for name in plain})
