"""Each caution appears when its cause is there, and not otherwise."""

from __future__ import annotations

import pytest

from tasks.outliers.report.cautions import of_model, of_sweep
from tasks.outliers.report.data import Ablation, Effect, ModelReport
from tests.outliers.report.pages import Report
from tests.outliers.report.worlds import BROKEN, LARGE, MOE, NONE, SMALL, SWEEP, UNCHECKED


@pytest.fixture
def sound(sweep: Report) -> ModelReport:
    """A model without any caution: the small one, with as many outliers at each point as at all together."""
    small = sweep.data.models[0]
    dims = [d.model_copy(update={"mean_point_share": d.position_share}) for d in small.site.dimensions["all"]]
    site = small.site.model_copy(update={"dimensions": {"all": dims, "without_first": dims}})
    return small.model_copy(update={"sites": [site, *small.sites[1:]]})


def codes(model: ModelReport, warnings: tuple[str, ...] = ()) -> list[str]:
    return [c.code for c in of_model(model, warnings)]


def with_facts(model: ModelReport, **changes) -> ModelReport:
    return model.model_copy(update={"facts": model.facts.model_copy(update=changes)})


def with_site(model: ModelReport, **changes) -> ModelReport:
    return model.model_copy(update={"sites": [model.site.model_copy(update=changes), *model.sites[1:]]})


def test_a_sound_model_has_none(sound):
    assert codes(sound) == []


def test_not_a_number(sound):
    assert codes(with_site(sound, nan=3)) == ["not-finite"]
    assert codes(with_site(sound, inf=1)) == ["not-finite"]


def test_sequences(sound):
    assert codes(with_facts(sound, sequences=4)) == ["fewer-sequences", "few-sequences"]
    assert codes(with_facts(sound, asked_sequences=9)) == ["fewer-sequences"]
    assert codes(with_facts(sound, asked_sequences=9), ("The text gives 8",)) == ["run"], "said once"
    assert codes(with_facts(sound, bos=False)) == ["no-bos"]


def test_a_threshold_that_half_of_the_dimensions_pass(sound):
    counts = {
        v: c.model_copy(update={"systematic": 50, "relative_systematic": 2}) for v, c in sound.site.counts.items()
    }
    [found] = of_model(with_site(sound, counts=counts), [])
    assert found.code == "threshold-says-little"
    assert "52" in found.text
    assert "2 of 96 are systematic" in found.text


def test_union_over_points(sound):
    def dims(share: float) -> dict:
        every = [d.model_copy(update={"mean_point_share": share}) for d in sound.site.dimensions["all"]]
        return {"all": every, "without_first": every}

    [found] = of_model(with_site(sound, dimensions=dims(0.05)), [])
    assert "3 of 3 systematic dimensions reach 6" in found.text
    [found] = of_model(with_site(sound, dimensions=dims(0.3)), [])
    assert (found.code, "The union says little" in found.text) == ("union-saturates", True)
    assert codes(with_site(sound, dimensions=dims(0.9))) == []
    assert codes(with_site(sound, dimensions=dims(0.05), points=sound.site.points[:8])) == [], "few points"


def test_first_position(sound):
    counts = sound.site.counts
    mostly = {"all": counts["all"].model_copy(update={"occurrences": 3 * counts["all"].occurrences})}
    assert codes(with_site(sound, counts=counts | mostly)) == ["first-position"]
    lost = [d.model_copy(update={"systematic": d.dim != 17}) for d in sound.site.dimensions["all"]]
    [found] = of_model(with_site(sound, dimensions=sound.site.dimensions | {"without_first": lost}), [])
    assert found.code == "without-first"
    assert "only with it: 17" in found.text


def test_functional_check(sound):
    assert codes(sound.model_copy(update={"ablation": None})) == ["no-ablation"]
    [none, systematic, random] = sound.ablation.effects

    def checked(*effects: Effect) -> ModelReport:
        return sound.model_copy(update={"ablation": Ablation(sequences=8, tokens=300, effects=effects, largest=[])})

    wide = systematic.model_copy(update={"ratio_low": 10.0, "ratio_high": 90.0})
    [found] = of_model(checked(none, wide, random), [])
    assert found.code == "wide-intervals"
    assert "all 3 systematic dimensions" in found.text
    hurting = random.model_copy(update={"ratio": 1.5, "ratio_low": 1.4, "ratio_high": 1.6})
    assert codes(checked(none, systematic, hurting)) == ["random-hurts"]


def test_warnings_come_before_notes(sound):
    found = of_model(with_facts(with_site(sound, nan=1), bos=False), ["said by the run"])
    assert [c.code for c in found] == ["not-finite", "no-bos", "run"]


def test_of_the_synthetic_models(sweep: Report):
    found = {w.name: {c.code for c in m.cautions} for w, m in zip(SWEEP, sweep.data.models, strict=True)}
    assert "threshold-says-little" in found[MOE.name]
    assert "not-finite" in found[BROKEN.name]
    assert found[UNCHECKED.name] >= {"run", "few-sequences", "no-ablation"}
    assert "fewer-sequences" not in found[UNCHECKED.name]
    assert "no-bos" in found[LARGE.name]
    assert found[NONE.name] == {"few-sequences"}
    assert found[SMALL.name] == {"union-saturates"}


def test_of_a_sweep(sweep: Report):
    models = sweep.data.models[:2]
    assert of_sweep(models, []) == []
    assert [c.code for c in of_sweep(models, sweep.data.failures)] == ["failures"]
    checked = sweep.data.failures[0].model_copy(update={"name": models[0].name, "stage": "ablation"})
    assert [c.code for c in of_sweep(models, [checked])] == ["unfinished"]
    other = with_facts(models[1], dtype="float32")
    assert [c.code for c in of_sweep([models[0], other], [])] == ["precision-differs"]
    residual = models[1].model_copy(update={"sites": models[1].sites[1:]})
    assert [c.code for c in of_sweep([models[0], residual], [])] == ["sites-differ"]
