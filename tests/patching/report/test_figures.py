"""Figures are valid plotly specifications that hold every number they should."""

from __future__ import annotations

import math

import plotly.graph_objects as go
import pytest

from tasks.patching.report.data import CandidatePoint, EffectRow, FeatureId
from tasks.patching.report.figures.effects import by_strength, effect_figure
from tasks.patching.report.figures.estimates import span, tick_step
from tasks.patching.report.figures.layers import spread
from tasks.patching.report.page import build_figures
from tests.patching.report.pages import Report


def traces(figure, **properties):
    return [t for t in figure.data if all(t.get(k) == v for k, v in properties.items())]


def test_every_figure_is_valid(report: Report, null_report: Report, empty_report: Report):
    for each in (report, null_report, empty_report):
        for figure in build_figures(each.data)["all"]:
            go.Figure(figure.data, figure.layout)
            assert figure.alt
            assert figure.heading


def test_effects_hold_estimate_interval_control_and_confirmation(report: Report):
    figure = build_figures(report.data)["effects"][0]
    rows = [r for r in report.data.effects if (r.prompt, r.choice) == ("safe", "bet")]
    shown = traces(figure, meta={"choice": "bet"})
    assert sum(len(t["x"]) for t in shown) == 2 * len(rows) + sum(r.confirmation is not None for r in rows)
    [discoveries] = [t for t in shown if t["name"] == "feature, discovery"]
    row = next(r for r in rows if r.status)
    at = [row.id.name in text for text in discoveries["text"]].index(True)
    assert discoveries["x"][at] == pytest.approx(100 * row.estimate.effect)
    assert discoveries["x"][at] + discoveries["error_x"]["array"][at] == pytest.approx(100 * row.estimate.ci_high)
    assert discoveries["x"][at] - discoveries["error_x"]["arrayminus"][at] == pytest.approx(100 * row.estimate.ci_low)


def test_prompts_share_order_and_range(report: Report):
    first, second = (f.layout for f in build_figures(report.data)["effects"])
    assert first["xaxis"]["range"] == second["xaxis"]["range"]
    assert first["yaxis"]["ticktext"] == second["yaxis"]["ticktext"]
    assert first["yaxis"]["ticktext"][0] == by_strength(report.data.effects)[0].name


def test_only_the_strongest_findings_choice_is_visible_at_first(report: Report):
    for figure in build_figures(report.data)["all"]:
        visible = {t["meta"]["choice"] for t in figure.data if "meta" in t and t["visible"]}
        assert visible <= {report.data.strongest[0].choice}


def test_shares_without_an_edit_add_up(report: Report):
    figure = build_figures(report.data)["outcomes"]
    totals = [sum(shares) for shares in zip(*(t["x"] for t in figure.data), strict=True)]
    assert totals == pytest.approx([1.0] * len(totals))
    assert figure.data[-1]["marker"]["pattern"]["shape"] == "/", "invalid is told apart without colour"


def test_names_are_text_not_markup(report: Report):
    evil = "<b>x</b><a href='javascript:1'>"
    rows: list[EffectRow] = [r.model_copy(update={"prompt": evil}) for r in report.data.effects]
    figure = effect_figure("x", rows, evil, report.data.setup, "bet")
    texts = [text for trace in figure.data for text in trace["text"]]
    assert texts
    assert not any("<b>" in text or "<a" in text for text in texts)
    assert all("&lt;b&gt;x&lt;/b&gt;" in text for text in texts)


def test_span_holds_all_intervals_and_zero(report: Report):
    estimates = [r.estimate for r in report.data.effects]
    low, high = span(estimates)
    assert low < min(0, *(100 * e.ci_low for e in estimates))
    assert high > max(0, *(100 * e.ci_high for e in estimates))
    assert span([]) == [-2.0, 2.0]


@pytest.mark.parametrize("length", [0.5, 4, 33, 120, 199, 204])
def test_tick_step_gives_a_few_round_ticks(length):
    assert math.floor(length / tick_step(length)) <= 10


def test_candidates_of_a_layer_stand_side_by_side():
    def point(layer: int, feature: int) -> CandidatePoint:
        id = FeatureId(candidate=feature, layer=layer, feature=feature)
        return CandidatePoint(
            id=id, d=1, q=0.1, value_low=0, value_high=1, exact=None, exact_control=None, stage="candidate"
        )

    x = spread([point(6, 1), point(6, 2), point(6, 3), point(10, 9)])
    positions = [x[point(6, feature).id] for feature in (1, 2, 3)]
    assert positions == sorted(positions)
    assert positions[1] == 6
    assert max(abs(p - 6) for p in positions) < 2
    assert x[point(10, 9).id] == 10
