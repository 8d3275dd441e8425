import subprocess
import sys

import pytest
from pydantic import ValidationError

from tasks import registry
from tasks.patching import spec
from tasks.patching.load import load_scenario
from tasks.patching.spec import (
    KINDS,
    ConfirmSettings,
    ScreenSettings,
    StudySettings,
    TrialSettings,
    VerdictParams,
    VerdictSettings,
)
from tasks.sae.spec import SaeSource


def test_defaults_are_a_whole_study():
    study = StudySettings()
    assert study.trials.mode == "keep_error"
    assert StudySettings.model_validate_json(study.model_dump_json()) == study
    load_scenario(study.scenario.source)


def test_every_field_of_the_form_is_described():
    for name, model in vars(spec).items():
        if name.endswith("Settings") and isinstance(model, type) and name != "StudySettings":
            assert model.__doc__
            missing = [field for field, info in model.model_fields.items() if not info.description]
            assert not missing, (name, missing)


@pytest.mark.parametrize("field", ["trials_per_cell", "baseline_trials"])
def test_greedy_repeats_are_refused_with_a_remedy(field):
    counts = {"trials_per_cell": 1, "baseline_trials": 1}
    TrialSettings(temperature=0, **counts)
    with pytest.raises(ValidationError, match=f"{field}=30 with temperature=0.*or {field}=1"):
        TrialSettings(temperature=0, **(counts | {field: 30}))


def test_greedy_studies_cannot_be_confirmed():
    greedy = TrialSettings(temperature=0, trials_per_cell=1, baseline_trials=1)
    with pytest.raises(ValidationError, match="held-out seeds confirm nothing"):
        StudySettings(trials=greedy)
    StudySettings(trials=greedy, confirm=ConfirmSettings(enabled=False))


@pytest.mark.parametrize("doses", [[0.0, 0.5], [1.0, 2.0], [0.0, 1.0, 1.0], [0.0]])
def test_doses_include_both_means_once(doses):
    with pytest.raises(ValidationError, match="doses"):
        ScreenSettings(doses=doses)


@pytest.mark.parametrize(
    "wrong",
    [{"trials": {"temperature": -1}}, {"trials": {"top_p": 0}}, {"seed": -1}, {"verdict": {"alpha": 1}}, {"colour": 1}],
)
def test_values_out_of_bounds(wrong):
    with pytest.raises(ValidationError):
        StudySettings.model_validate(wrong)


def test_every_kind_is_registered_with_an_entry_in_this_room():
    for kind in KINDS:
        assert registry.kind(kind.name) is kind
        assert kind.entry.startswith("tasks.patching.")


def test_specs_follow_from_parameters_and_scenario_content():
    def hash_of(scenario, **changes):
        params = {"model": {}, "saes": SaeSource().model_dump(), "scenario": scenario.model_dump(), **changes}
        return spec.PREPARE.spec({"prompts_per_group": 5, "max_new_tokens": 5} | params).hash

    scenario = load_scenario("slot_machine")
    again = scenario.model_validate_json(scenario.model_dump_json())
    assert hash_of(scenario) == hash_of(again)
    renamed = scenario.model_copy(update={"stop": ["\n\n"]})
    assert len({hash_of(scenario), hash_of(renamed), hash_of(scenario, prompts_per_group=6)}) == 3


def test_parameters_survive_the_spec():
    params = VerdictParams(
        prompts=["a"],
        choices=["b"],
        low="l",
        high="h",
        mode="keep_error",
        temperature=0.7,
        max_confirmed_features=3,
        settings=VerdictSettings(),
    )
    assert spec.VERDICT.validate(spec.VERDICT.spec(params).params) == params


def test_the_spec_is_light():
    code = (
        "import sys, tasks.patching.spec, tasks.patching.load;"
        "print(sorted({'torch', 'transformers', 'scipy', 'statsmodels', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
