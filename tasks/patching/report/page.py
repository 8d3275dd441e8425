"""The content of a patching study's report as its page."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from tasks.patching.report.data import FamilyNumbers, Finding, ReportData, WordRow
from tasks.patching.report.figures.agreement import agreement_figure
from tasks.patching.report.figures.doses import dose_figure
from tasks.patching.report.figures.effects import by_strength, effect_figure
from tasks.patching.report.figures.estimates import span
from tasks.patching.report.figures.layers import layer_figures
from tasks.patching.report.figures.outcomes import describe_cell, outcome_figure
from tasks.patching.scenario import INVALID
from tasks.patching.spec import FAMILIES
from tasks.report import numbers as fmt
from tasks.report import shell
from tasks.report.figures import Figure, series
from tasks.report.records import RunFacts

TOP_FINDINGS = 3
EFFECT_FEATURES = 24
AGREEMENT_FEATURES = 60
EFFECT_ROWS = 300
WORDS = 12
WORD_GROUPS = 16

SECTIONS = (
    ("finding", "Finding"),
    ("numbers", "Key numbers"),
    ("effects", "Effects"),
    ("doses", "Dose response"),
    ("agreement", "Exact and sampled"),
    ("layers", "Layers"),
    ("words", "Words"),
    ("examples", "Responses"),
    ("outcomes", "Without an edit"),
    ("setup", "What was run"),
    ("reading", "How to read this"),
)


def render(data: ReportData, run: RunFacts) -> str:
    """The page; `run` is the only part that may differ between equal studies."""
    figures = build_figures(data)
    return shell.render(
        "patching",
        title=data.title,
        sections=SECTIONS,
        figures=figures["all"],
        run=run,
        data=data,
        plots=figures,
        top=[(f, strip_rows(f)) for f in data.strongest[:TOP_FINDINGS]],
        tiles=tiles(data),
        choices=_present(data, {r.choice for r in data.effects}),
        dose_choices=_present(data, {c.choice for c in data.doses}),
        agreement_choices=_present(data, {r.choice for r in data.effects if r.exact is not None}),
        default=default_choice(data),
        level=fmt.level(data.setup.alpha),
        colours={choice: series(i) for i, choice in enumerate(data.setup.choices)},
        effect_rows=sorted(data.effects, key=lambda r: -abs(r.estimate.effect))[:EFFECT_ROWS],
        sae_quality=any(layer.variance_explained is not None for layer in data.layers),
        words=word_groups(data.words),
        describe_cell=describe_cell,
        first_line=first_line,
        invalid=INVALID,
        facts=facts(data),
    )


def build_figures(data: ReportData) -> dict[str, Any]:
    """All figures by section, and under "all" as one list."""
    setup, default = data.setup, default_choice(data)
    order = by_strength(data.effects)
    shown = set(order[:EFFECT_FEATURES])
    rows = [r for r in data.effects if r.id in shown]
    effects = [
        effect_figure(f"effects-{i}", rows, prompt.name, setup, default)
        for i, prompt in enumerate(setup.prompts)
        if any(r.prompt == prompt.name for r in rows)
    ]
    doses = _dose_figures(data, default)
    compared = set(order[:AGREEMENT_FEATURES])
    pairs = [r for r in data.effects if r.id in compared and r.exact is not None]
    agreement = agreement_figure("agreement-plot", pairs, setup, default) if pairs else None
    layers = layer_figures(data.candidates, setup) if data.candidates else []
    plain = [cell for cell in data.outcomes if cell.arm in ("baseline", "reconstruction")]
    outcomes = outcome_figure("outcomes-plot", plain, setup) if plain else None
    single = [figure for figure in (agreement, outcomes) if figure is not None]
    return {
        "effects": effects,
        "effects_shown": len(shown),
        "effects_left_out": data.numbers.survivors - len(shown),
        "doses": doses,
        "agreement": agreement,
        "agreement_shown": len(compared),
        "layers": layers,
        "outcomes": outcomes,
        "all": [*effects, *doses, *layers, *single],
    }


def _dose_figures(data: ReportData, default: str) -> list[Figure]:
    """One figure per feature and prompt, all with the same y axis."""
    highest = max((p for c in data.doses for p in (*c.feature, *c.random, c.baseline) if p is not None), default=1.0)
    groups = groupby(data.doses, key=lambda curve: (curve.id, curve.prompt))
    return [
        dose_figure(f"dose-{i}", list(group), default, min(1.02, 1.1 * highest)) for i, (_, group) in enumerate(groups)
    ]


def tiles(data: ReportData) -> list[tuple[str, str]]:
    """The key numbers: (value, what it counts)."""
    n = data.numbers
    held_out = f", {fmt.count(n.trials_confirmation)} more on held-out seeds" if n.trials_confirmation else ""
    families = [(name, getattr(n, name)) for name in FAMILIES]
    return [
        (fmt.count(n.features_searched), f"SAE features searched in {fmt.some(n.layers, 'layer', 'layers')}"),
        (fmt.count(n.candidates), f"candidates screened exactly in {fmt.count(n.screen_cells)} cells"),
        (fmt.count(n.survivors), "features kept and sampled"),
        (fmt.count(n.trials_discovery), f"sampled answers{held_out}"),
        *((fmt.count(f.tests), f"{name} tests: {_found(f, n.confirmation_ran)}") for name, f in families),
        (fmt.percent(n.invalid_share, 1), "of answers invalid"),
    ]


def _found(family: FamilyNumbers, confirmation_ran: bool) -> str:
    found = fmt.some(family.discoveries, "discovery", "discoveries")
    return found + (f", {fmt.count(family.confirmed)} confirmed" if family.discoveries and confirmation_ran else "")


def strip_rows(finding: Finding) -> list[dict[str, Any]]:
    """Positions (in per cent of the width) of a finding's intervals on one common scale."""
    named = (
        ("estimate", "feature", finding.estimate),
        ("control", "random direction", finding.control),
        ("confirmation", "held-out seeds", finding.confirmation),
    )
    rows = [(kind, label, e) for kind, label, e in named if e is not None]
    low, high = span([e for _, _, e in rows])

    def at(effect: float) -> float:
        return round(100 * (100 * effect - low) / (high - low), 3)

    return [
        {
            "kind": kind,
            "label": label,
            "estimate": e,
            "zero": at(0.0),
            "at": at(e.effect),
            "left": at(e.ci_low),
            "width": round(at(e.ci_high) - at(e.ci_low), 3),
        }
        for kind, label, e in rows
    ]


def word_groups(words: list[WordRow]) -> list[dict[str, Any]]:
    """Words by feature and contrast in the order given, the strongest of each direction."""
    groups: dict[Any, list[WordRow]] = {}
    for word in words:
        groups.setdefault((word.id, word.contrast), []).append(word)
    result = []
    for (id, contrast), rows in list(groups.items())[:WORD_GROUPS]:
        adds = [row for row in rows if row.direction == "adds"]
        removes = [row for row in rows if row.direction == "removes"]
        result.append(
            {
                "id": id,
                "contrast": contrast,
                "adds": adds[:WORDS],
                "removes": removes[:WORDS],
                "more_adds": max(0, len(adds) - WORDS),
                "more_removes": max(0, len(removes) - WORDS),
            }
        )
    return result


def first_line(text: str) -> tuple[str, str, str]:
    """A response as (blank beginning, first line with text, the rest): the parser reads the decision there."""
    rest = text.lstrip()
    line = rest.split("\n", 1)[0]
    return text[: len(text) - len(rest)], line, rest[len(line) :]


def facts(data: ReportData) -> list[tuple[str, str]]:
    """What was run, as (name, value)."""
    setup = data.setup
    rows = [
        ("Model", f"{setup.model} ({setup.model_type}, {setup.n_layers} layers, width {setup.d_model})"),
        ("Model fingerprint", setup.model_fingerprint),
        ("SAEs", setup.sae),
        ("Unit of activations", setup.sae_convention.replace("_", " ")),
        *((f"SAE of layer {sae.layer}", sae.fingerprint) for sae in setup.saes),
        ("Scenario", setup.scenario),
        ("Groups", f"low “{setup.low}”, high “{setup.high}”"),
        ("Choices", ", ".join(setup.choices)),
        ("Run seed", str(setup.seed)),
    ]
    return [(name, value) for name, value in rows if value]


def default_choice(data: ReportData) -> str:
    """The choice that figures show first: that of the strongest finding, or the scenario's first."""
    return data.strongest[0].choice if data.strongest else data.setup.choices[0]


def _present(data: ReportData, found: set[str]) -> list[str]:
    return [choice for choice in data.setup.choices if choice in found]
