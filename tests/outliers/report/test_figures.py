"""Figures are valid plotly specifications that hold every number they should."""

from __future__ import annotations

import math

import plotly.graph_objects as go
import pytest

from tasks.outliers.report.figures.common import VARIANT_NAMES, log_ticks, tick_text
from tasks.outliers.report.figures.dimensions import BARS, recurrence_figure
from tasks.outliers.report.figures.experts import paths_figure
from tasks.outliers.report.figures.heat import heat_figure
from tasks.outliers.report.figures.plane import scale_figure
from tasks.outliers.report.figures.sizes import SIZE_NAMES, size_figures
from tasks.outliers.report.page import model_plots
from tests.outliers.report.pages import Report
from tests.outliers.report.worlds import MOE, NONE, SMALL, SWEEP


def traces(figure, **meta):
    return [t for t in figure.data if t.get("meta", {}) == meta]


@pytest.fixture(scope="session")
def plots(sweep: Report):
    return {m.name: model_plots(f"m{i}", m, 20) for i, m in enumerate(sweep.data.models)}


def test_every_figure_is_valid(sweep: Report, plots):
    figures = [f for p in plots.values() for f in p.all()] + size_figures("size", sweep.data.models)
    for figure in figures:
        go.Figure(figure.data, figure.layout)
        assert figure.alt
        assert figure.heading
    assert len({f.id for f in figures}) == len(figures) > 50
    assert plots[NONE.name].all() == []


def test_exactly_one_option_of_each_key_is_visible_at_first(plots):
    for figure in (f for p in plots.values() for f in p.all()):
        for t in figure.data:
            if t.get("visible", True):
                assert t.get("meta", {}).get("positions", VARIANT_NAMES["all"]) == VARIANT_NAMES["all"]


def test_heat_map_is_log_of_magnitude_with_its_numbers_beside(sweep: Report, plots):
    site = sweep.data.models[SWEEP.index(SMALL)].site
    figure = plots[SMALL.name].sites[0].heat
    for variant, name in VARIANT_NAMES.items():
        [t] = traces(figure, positions=name)
        assert t["x"] == [str(dim) for dim in site.heat.dims]
        assert t["y"] == [p.name for p in site.points]
        for line, z, more in zip(site.heat.magnitude[variant], t["z"], t["customdata"], strict=True):
            for size, value, data in zip(line, z, more, strict=True):
                assert (size is None) == (value is None) == (data is None)
                if size:
                    assert 10**value == pytest.approx(size, rel=0.02)
                    assert data[0] == pytest.approx(size, rel=5e-3)


def test_heat_map_of_few_columns_is_narrow(sweep: Report, plots):
    assert plots[SMALL.name].sites[0].heat.width < 400
    assert plots[MOE.name].sites[0].heat.width is None
    none = sweep.data.models[SWEEP.index(SMALL)].site
    heat_figure("x", none, 6.0, "without_first")


def test_plane_holds_every_dimension_of_both_variants(sweep: Report, plots):
    for m in sweep.data.models:
        for site, drawn in zip(m.sites, plots[m.name].sites, strict=True):
            for variant, name in VARIANT_NAMES.items():
                dims = {d.dim: d for d in site.dimensions[variant] if d.occurrences}
                shown = traces(drawn.plane, positions=name, criterion="by magnitude") if drawn.plane else []
                points = [(c[0], x, y) for t in shown for x, y, c in zip(t["x"], t["y"], t["customdata"], strict=True)]
                assert sorted(dim for dim, _, _ in points) == sorted(dims)
                for dim, x, y in points:
                    assert x == pytest.approx(dims[dim].layer_share, abs=1e-3)
                    assert y == pytest.approx(dims[dim].position_share, abs=1e-3)


def test_plane_against_the_rms(sweep: Report, plots):
    site = sweep.data.models[SWEEP.index(SMALL)].site
    shown = traces(plots[SMALL.name].sites[0].plane, positions=VARIANT_NAMES["all"], criterion="against the rms")
    assert not any(t["visible"] for t in shown)
    found = {c[0] for t in shown if t["name"] == "systematic" for c in t["customdata"]}
    assert found == {d.dim for d in site.dimensions["all"] if d.relative_systematic}


def test_dimensions_below_the_threshold_stand_left_of_it(sweep: Report):
    found = sweep.data.models[SWEEP.index(SMALL)]
    [first, *rest] = found.site.dimensions["all"]
    below = first.model_copy(update={"systematic": False, "occurrences": 0, "max_magnitude": 3.2})
    site = found.site.model_copy(update={"dimensions": {"all": [below, *rest], "without_first": rest}})
    figure = scale_figure("x", site, found.criteria, "all")
    [t] = [
        t
        for t in traces(figure, positions=VARIANT_NAMES["all"], against="median")
        if t["name"] == "systematic against the rms"
    ]
    at = [c[0] for c in t["customdata"]].index(first.dim)
    assert t["x"][at] == t["customdata"][at][1] == 3.2
    assert 10 ** figure.layout["xaxis"]["range"][0] < 3.2


def test_scale_figure_has_both_measures(sweep: Report, plots):
    figure = plots[SMALL.name].sites[0].scale
    site = sweep.data.models[SWEEP.index(SMALL)].site
    for measure, name in (("root mean square", "max_over_rms"), ("median", "max_over_median")):
        [t] = [t for t in traces(figure, positions=VARIANT_NAMES["all"], against=measure) if t["name"] == "systematic"]
        assert t["y"] == pytest.approx([getattr(d, name) for d in site.systematic("all")], rel=0.01)
        assert t["visible"] == (measure == "root mean square")


def test_rows_of_the_small_figures_are_the_same(plots):
    shares, sign, recurrence = plots[MOE.name].rows
    assert shares.layout["yaxis"] == sign.layout["yaxis"] == recurrence.layout["yaxis"]
    assert shares.layout["height"] == sign.layout["height"] == recurrence.layout["height"]
    negative, positive = sign.data
    totals = [p - n for n, p in zip(negative["x"], positive["x"], strict=True)]
    assert totals == pytest.approx([1.0] * len(totals), abs=2e-3)


def test_recurrence_of_many_dimensions_is_a_histogram(sweep: Report):
    [first, *_] = sweep.data.models[0].site.systematic("all")
    dims = [first.model_copy(update={"dim": i, "sequences": i % 3}) for i in range(BARS + 1)]
    [bars] = recurrence_figure("x", dims, 4).data
    assert bars["x"] == [0, 1, 2, 3, 4]
    assert bars["y"] == [21, 20, 20, 0, 0]


def test_functional_check_has_estimates_and_intervals(sweep: Report, plots):
    checked = sweep.data.models[SWEEP.index(SMALL)].ablation
    perplexity, top1 = plots[SMALL.name].ablation
    marks = [t for t in perplexity.data if "marker" in t]
    effects = [e for e in checked.effects if e.condition != "none"]
    for mark, e in zip(marks, effects, strict=True):
        assert mark["x"][0] == pytest.approx(e.ratio, rel=1e-3)
        assert mark["x"][0] + mark["error_x"]["array"][0] == pytest.approx(e.ratio_high, rel=1e-3)
        assert mark["x"][0] - mark["error_x"]["arrayminus"][0] == pytest.approx(e.ratio_low, rel=1e-3)
    low, high = top1.layout["xaxis"]["range"]
    assert low < 100 * min(e.top1_low for e in effects)
    assert high > 0


def test_experts_are_coloured_by_the_ratio_to_the_expected_share(sweep: Report, plots):
    found = sweep.data.models[SWEEP.index(MOE)]
    load, paths = plots[MOE.name].experts
    t = load.data[0]
    cells = {(e.layer, e.expert): e for e in found.experts if e.kind == "routed"}
    for layer, line in zip(t["y"], t["z"], strict=True):
        for expert, z in zip(t["x"], line, strict=True):
            e = cells[layer, expert]
            expected = -3 if not e.share else max(-3, min(3, math.log2(e.share / e.expected_share)))
            assert z == pytest.approx(expected, abs=0.051)
    shared = next(p for p in paths.data if p["name"] == "out of the shared experts")
    by_layer = {e.layer: e for e in found.experts if e.kind == "shared"}
    assert shared["y"] == pytest.approx([by_layer[layer].rate_out for layer in shared["x"]], rel=0.01)


def test_what_enters_the_experts_is_left_out_where_it_was_not_watched(sweep: Report):
    found = sweep.data.models[SWEEP.index(MOE)].experts
    unknown = [e.model_copy(update={"rate_in": None, "with_outlier_in": None}) for e in found]
    assert "into both" in {trace["name"] for trace in paths_figure("paths", found).data}
    assert {t["name"] for t in paths_figure("paths", unknown).data} == {
        "out of the routed experts",
        "out of the shared experts",
    }


def test_models_over_their_size(sweep: Report):
    dimensions, layers, _ = size_figures("size", sweep.data.models)
    for size, name in enumerate(SIZE_NAMES):
        shown = traces(layers, size=name)
        assert sorted(n for t in shown for n in t["text"]) == ["1", "2", "3", "4", "5", "6"]
        moe = next(t for t in shown if t["marker"]["symbol"] == "square")
        assert moe["x"] == [pytest.approx(MOE.active if size else MOE.parameters, rel=1e-3)]
    [zero] = [
        y for t in traces(dimensions, size=SIZE_NAMES[0]) for y, n in zip(t["y"], t["text"], strict=True) if n == "5"
    ]
    axis = dimensions.layout["yaxis"]
    assert axis["ticktext"][axis["tickvals"].index(pytest.approx(zero, rel=1e-3))] == "0"
    assert layers.layout["shapes"], "from 135 M to 47 B the phase change lies inside"


def test_names_are_text_not_markup(sweep: Report):
    for figure in size_figures("size", sweep.data.models):
        for t in figure.data:
            assert not any("<img" in text or "<script" in text for text in t["hovertext"])


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.9, 1200, [1, 10, 100, 1000]),
        (5, 50, [5, 10, 20, 50]),
        (18, 39, [20, 25, 30, 35]),
        (6.0, 6.0, [6.0]),
        (0, 1, []),
    ],
)
def test_log_ticks(low, high, ticks):
    assert log_ticks(low, high) == pytest.approx(ticks)


def test_log_ticks_are_never_crowded():
    for high in (1.05, 2, 30, 1e4, 1e9):
        assert 3 <= len(log_ticks(1, high)) <= 11
    assert [tick_text(x) for x in (0.01, 30, 2000, 6.7e9)] == ["0.01", "30", "2,000", "6.7\u00a0B"]
