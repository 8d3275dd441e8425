"""The stage that tries a scenario before anything expensive: what it measures, and what it refuses."""

from __future__ import annotations

import pytest
import yaml

from flows import patching_plan
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.errors import BadInput
from tasks.patching.choices import other_frames
from tasks.patching.load import load_scenario
from tasks.patching.spec import ScenarioRef, StudySettings
from tasks.patching.tryout import Tryout
from tasks.runner import run_shard
from tasks.text.spec import Chat, Frame
from tests.patching.planted import PlantedStudy, plant


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> PlantedStudy:
    return plant(tmp_path_factory.mktemp("planted"))


def tried(
    store: Store, planted: PlantedStudy, least: float = 0.02, temperature: float = 1.0, **changes
) -> list[Tryout]:
    """The stage on the planted study, with some keys of its scenario changed."""
    file = planted.scenario.with_name("changed.yaml")
    file.write_text(yaml.safe_dump(yaml.safe_load(planted.scenario.read_text()) | changes, sort_keys=False))
    sampled_once = {"trials_per_cell": 1, "baseline_trials": 1} if temperature == 0 else {}
    settings = StudySettings.model_validate(
        planted.settings(
            scenario={"source": str(file), "min_choice_mass": least},
            trials={"max_new_tokens": 3, "temperature": temperature, **sampled_once},
            confirm={"enabled": False},
        )
    ).with_engine("torch")
    scenario = load_scenario(str(file))
    identity = run_shard(store, patching_plan.identify(settings))
    prepared = run_shard(store, patching_plan.prepare(settings, scenario, identity))
    study = patching_plan.Plan(settings, scenario, Shard(store, prepared.spec.path).json("study"))
    spec = study.choices()
    run_shard(store, spec)
    return [Tryout.model_validate(one) for one in Shard(store, spec.path).json("tryouts")]


def test_choices_without_mass_are_refused_with_the_spelling_that_has_it(planted, store):
    """The model says 1 or 2, the scenario lists x and 2; its parser reads 1 as well."""
    rules = {"says_one": {"choice": "one", "pattern": "[1x]"}, "says_two": {"choice": "two", "pattern": "[2y]"}}
    one_missing = {
        "choices": {"one": {"first_tokens": ["x"]}, "two": {"first_tokens": ["y"]}},
        "parser": {"lead": "", "rules": rules},
    }
    with pytest.raises(BadInput, match=r"at least 2 % is wanted; most probable are '[12]'") as refused:
        tried(store, planted, **one_missing)
    assert refused.value.field == "scenario.choices"
    assert "on prompt 'calm'" in refused.value.problem
    assert "list '1' among the first_tokens of 'one'" in refused.value.remedy
    assert "list '2' among the first_tokens of 'two'" in refused.value.remedy
    assert "set scenario.min_choice_mass to 0" in refused.value.remedy
    let_through = tried(store, planted, least=0, **one_missing)
    assert all(tryout.total_mass < 0.02 for tryout in let_through)
    assert {token.read_as for token in let_through[0].next[:2]} == {"one", "two"}


def test_answers_that_the_parser_reads_none_of_are_refused(planted, store):
    """The first token alone is read, and any that follows it spoils that."""
    rules = {"says_one": {"choice": "one", "pattern": "1$"}, "says_two": {"choice": "two", "pattern": "2$"}}
    with pytest.raises(BadInput, match="first of 32 sampled answers to prompt 'calm'") as refused:
        tried(store, planted, parser={"lead": "", "rules": rules})
    assert refused.value.field == "scenario.parser"
    assert len(refused.value.value) == 5
    let_through = tried(store, planted, least=0, parser={"lead": "", "rules": rules})
    assert [tryout.read for tryout in let_through] == [0, 0]


def test_a_greedy_study_is_measured_at_temperature_one_and_answers_once(planted, store):
    greedy, sampled = tried(store, planted, temperature=0.0), tried(store, planted)
    assert [tryout.mass for tryout in greedy] == [tryout.mass for tryout in sampled]
    assert [len(tryout.answers) for tryout in greedy] == [1, 1]


def test_a_frame_is_compared_with_those_without_trailing_space_and_with_and_without_chat():
    spaced, bare = Frame(answer_prefix="\nAnswer: "), Frame(answer_prefix="\nAnswer:")
    chat = [Frame(answer_prefix="Answer:", chat=Chat()), Frame(answer_prefix="Answer: ", chat=Chat())]
    assert other_frames(spaced, has_chat=True) == [bare, *chat]
    assert other_frames(spaced, has_chat=False) == [bare]
    assert other_frames(chat[0], has_chat=True) == [bare]


def test_letting_a_scenario_through_changes_no_other_shard(planted):
    settings = StudySettings.model_validate(planted.settings()).with_engine("torch")
    scenario = load_scenario(str(planted.scenario))
    prepared = {
        "model_fingerprint": "f",
        "sae_fingerprints": {},
        "choices": [{"name": "one", "tokens": [1]}, {"name": "two", "tokens": [2]}],
        "contrast_prompts": 4,
    }
    free = settings.model_copy(update={"scenario": ScenarioRef(source=str(planted.scenario), min_choice_mass=0)})
    first, second = (patching_plan.Plan(one, scenario, prepared) for one in (settings, free))
    assert first.choices().hash != second.choices().hash
    assert [spec.hash for spec in first.activations()] == [spec.hash for spec in second.activations()]
