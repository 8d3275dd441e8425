"""The report's content against the tables it was made from."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest

from tasks.outliers.report.data import ModelReport
from tasks.outliers.report.page import model_plots
from tasks.outliers.report.sentences import sweep_lead
from tasks.outliers.spec import VARIANTS
from tests.outliers.report.pages import Report, build
from tests.outliers.report.synthetic import Examination, Planted, Stage, World, examine
from tests.outliers.report.worlds import BROKEN, FAILURE, LARGE, MOE, NEAR, NONE, SMALL, SWEEP, UNCHECKED


def pairs(report: Report) -> list[tuple[ModelReport, Examination]]:
    return list(zip(report.data.models, report.examined, strict=True))


def model(report: Report, world: World) -> ModelReport:
    return report.data.models[SWEEP.index(world)]


def test_planted_dimensions_are_the_systematic_ones(sweep: Report):
    for world in (SMALL, LARGE, UNCHECKED, BROKEN):
        found = {d.dim for d in model(sweep, world).site.systematic("all")}
        assert found == {planted.dim for planted in world.planted}
    assert model(sweep, NONE).site.systematic("all") == []


def test_dimensions_are_the_rows_of_the_table(sweep: Report):
    for found, examined in pairs(sweep):
        table = {(r["site"], r["positions"], r["dim"]): r for r in examined.rows("dimensions")}
        for site in found.sites:
            for variant in VARIANTS:
                shown = {d.dim: d for d in site.dimensions[variant]}
                of_site = {k[2] for k, r in table.items() if k[:2] == (site.site, variant) and r["systematic"]}
                assert {d.dim for d in site.systematic(variant)} == of_site
                for dim, d in shown.items():
                    row = table[site.site, variant, dim]
                    for name in ("layer_share", "position_share", "mean_point_share", "occurrences", "recurrence"):
                        assert getattr(d, name) == row[name]
                    assert [e.value for e in d.examples] == [e["value"] for e in row["examples"]]


def test_strongest_come_first(sweep: Report):
    for found, _ in pairs(sweep):
        sizes = [d.max_magnitude for d in found.site.systematic(found.variant)]
        assert sizes == sorted(sizes, reverse=True)
        shown = found.site.heat.dims[: len(sizes)]
        assert shown == [d.dim for d in found.site.systematic(found.variant)][: len(shown)]
        assert len(shown) == min(len(sizes), 24), "six models: 24 columns each"


def test_heat_map_holds_every_cell_of_the_table(sweep: Report):
    for found, examined in pairs(sweep):
        for site in found.sites:
            cells = {(r["point"], r["dim"]): r for r in examined.rows("dimension_points") if r["site"] == site.site}
            assert bool(cells) == bool(site.heat.dims)
            for variant, suffix in (("all", ""), ("without_first", "_without_first")):
                for point, (sizes, counts) in enumerate(
                    zip(site.heat.magnitude[variant], site.heat.occurrences[variant], strict=True)
                ):
                    for dim, size, n in zip(site.heat.dims, sizes, counts, strict=True):
                        row = cells[point, dim]
                        assert (n or 0) == row[f"occurrences{suffix}"]
                        assert size == (row[f"max_magnitude{suffix}"] if row[f"occurrences{suffix}"] else None)


def test_points_come_in_order_of_depth_with_their_outliers(sweep: Report):
    for found, examined in pairs(sweep):
        for site in found.sites:
            rows = [r for r in examined.rows("points") if r["site"] == site.site]
            assert [p.name for p in site.points] == [r["name"] for r in sorted(rows, key=lambda r: r["point"])]
            assert sum(p.outliers["all"] for p in site.points) == sum(r["outliers"] for r in rows)


def test_massive_activations_are_added_up_by_dimension(sweep: Report):
    found, examined = pairs(sweep)[SWEEP.index(SMALL)]
    groups = defaultdict(list)
    for row in examined.rows("massive"):
        groups[row["site"], row["dim"]].append(row)
    assert {m.dim for m in found.massive} == {17, 40}
    for m in found.massive:
        rows = groups[m.site, m.dim]
        assert m.occurrences == sum(r["occurrences"] for r in rows)
        assert m.at_first_position == m.occurrences, "planted at the first position"
        assert m.max_magnitude == max(r["max_magnitude"] for r in rows)
        assert (m.first_layer, m.points) == (min(r["layer"] for r in rows), len(rows))


def test_experts_are_the_rows_of_the_table(sweep: Report):
    found, examined = pairs(sweep)[SWEEP.index(MOE)]
    rows = {(r["layer"], r["expert"]): r for r in examined.rows("experts")}
    assert len(found.experts) == len(rows) == 11 * 17
    for e in found.experts:
        row = rows[e.layer, e.expert]
        assert (e.kind, e.tokens, e.rate_in, e.rate_out) == (
            row["kind"], row["tokens"], row["outlier_rate_in"], row["outlier_rate_out"],
        )  # fmt: skip
    assert [m.is_moe for m in sweep.data.models] == [world.experts > 0 for world in SWEEP]


def test_functional_check_is_the_table_of_effects(sweep: Report):
    for found, examined in pairs(sweep):
        if examined.ablation is None:
            assert found.ablation is None
            continue
        rows = {r["condition"]: r for r in examined.ablation.tables["effects"].to_pylist()}
        assert {e.condition for e in found.ablation.effects} == set(rows)
        for e in found.ablation.effects:
            row = rows[e.condition]
            assert (e.ratio, e.ratio_low, e.ratio_high) == tuple(
                row[f"perplexity_ratio{end}"] for end in ("", "_low", "_high")
            )
        assert found.ablation.tokens == found.facts.sequences * (found.facts.longest - 1)


def test_each_condition_stands_before_its_control(sweep: Report):
    conditions = [e.condition for e in model(sweep, LARGE).ablation.effects]
    assert conditions == ["none", "systematic", "random_systematic", "largest", "random_largest"]
    assert model(sweep, LARGE).ablation.largest == sorted(d.dim for d in model(sweep, LARGE).site.systematic("all")[:7])


def test_each_model_is_one_row_of_numbers(sweep: Report):
    for found, examined in pairs(sweep):
        row = found.row
        about = examined.summary.json["summary"]
        counts = about["sites"]["norms"]["all"]
        assert (row.model, row.parameters, row.active) == (
            examined.world.name, about["parameters"], about["active_parameters"],
        )  # fmt: skip
        assert (row.systematic, row.per_sequence) == (counts["systematic"], counts["mean_per_sequence"])
        assert (row.mean_layer_share, row.mean_position_share) == (
            counts["mean_layer_share"], counts["mean_position_share"],
        )  # fmt: skip
        largest = max(r["max_magnitude"] for r in examined.rows("points") if r["site"] == "norms")
        assert row.largest_magnitude == largest
        assert row.massive == len({r["dim"] for r in examined.rows("massive")}) == found.massive_dims
    assert model(sweep, SMALL).row.perplexity_ratio > 30 > 1.1 > model(sweep, SMALL).row.random_perplexity_ratio
    assert model(sweep, UNCHECKED).row.perplexity_ratio is None


def test_the_summary_tells_the_report_in_short(sweep: Report):
    summary = sweep.summary
    assert summary.headline == sweep.data.headline
    assert summary.findings == sweep.data.findings
    assert len(summary.findings) == len(summary.table.rows) == len(SWEEP)
    assert summary.table.rows[0]["systematic dimensions"] == "3 of 96"
    assert "active" in summary.table.rows[SWEEP.index(MOE)]["parameters"]
    assert "active" not in summary.table.rows[0]["parameters"]
    assert summary.table.rows[SWEEP.index(UNCHECKED)]["with random ones at zero"] == "–"
    assert [(f.name, f.stage) for f in summary.failures] == [(FAILURE["name"], FAILURE["stage"])]
    assert {c.code for c in summary.cautions} >= {"failures", "not-finite", "threshold-says-little"}
    assert all(c.text.startswith(tuple(w.name for w in SWEEP)) for c in summary.cautions if c.code != "failures")


def test_the_summary_names_the_results_of_each_model(sweep: Report):
    inputs = sweep.shard.manifest.spec.inputs["summary"]
    assert [file.shard for file in sweep.summary.files] == [ref.shard for ref in inputs]
    assert sweep.summary.files[1].path == "model-1/final_analysis_results.json"
    assert {file.output for file in sweep.summary.files} == {"final_analysis_results.json"}


def test_the_variant_without_the_first_position_is_the_headline_when_asked_for(tmp_path):
    criteria = SMALL.criteria.model_copy(update={"first_position": False})
    world = World(name="x", source="x", planted=(Planted(4, 20),), criteria=criteria)
    report = build(tmp_path, [examine(world)])
    [found] = report.data.models
    assert found.variant == "without_first"
    assert found.counts == found.site.counts["without_first"]
    assert found.row.largest_magnitude == max(p.max_magnitude["without_first"] for p in found.site.points)


def test_the_residual_stream_is_the_headline_site_when_it_is_the_only_one(tmp_path, examined: list[Examination]):
    small = examined[SWEEP.index(SMALL)]
    about = small.summary.json["summary"]
    tables = {
        name: table.filter([row["site"] == "residual" for row in table.to_pylist()])
        for name, table in small.summary.tables.items()
    }
    only = Stage(tables, {"summary": about | {"sites": {"residual": about["sites"]["residual"]}}})
    report = build(tmp_path, [replace(small, summary=only, ablation=None)])
    [found] = report.data.models
    assert [site.site for site in found.sites] == ["residual"]
    assert "m0-other" not in report.html


def test_a_list_of_ablations_must_fit_the_models(tmp_path, examined: list[Examination]):
    unchecked = replace(examined[0], ablation=None)
    with pytest.raises(ValueError, match=r"0 ablations for 1 models"):
        build(tmp_path, [unchecked], models=[{"name": "x", "source": "x", "folder": "x", "ablation": True}])


def test_near_misses_are_shown_and_checked(tmp_path):
    report = build(tmp_path, [examine(NEAR)])
    [found] = report.data.models
    largest = found.ablation.effect("largest")
    assert found.counts.systematic == 0
    assert found.row.perplexity_ratio == largest.ratio > 100
    assert found.ablation.main == (largest, found.ablation.effect("random_largest"))
    assert report.data.headline == "None of the 96 dimensions of Near-1B is a systematic outlier."
    text = report.data.lead.replace("\u00a0", " ")
    assert "2 dimensions have outliers, at too few points or positions; nearest is dimension 7, at 20 %" in text
    assert "Setting the 2 largest to zero multiplies perplexity by" in text
    assert sweep_lead(report.data.models) == "", "these are not systematic ones"
    plots = model_plots("m0", found, 20)
    assert [d.dim for d in plots.table][:2] == [7, 30]
    assert [f.id for f in plots.rows] == ["m0-shares", "m0-sign"]
    assert "No dimension is systematic over all sequences together." in report.html


def test_sources_and_settings(sweep: Report):
    assert sweep.data.settings == {"criteria.threshold": "6.0"}
    stages = [source.stage for source in sweep.data.sources]
    assert stages[:3] == [f"{stage} · {SMALL.name}" for stage in ("prepare", "summary", "ablation")]
    assert len(stages) == 3 * len(SWEEP) - 1
