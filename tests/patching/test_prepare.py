"""What `patching.prepare` refuses before a weight is loaded: prompts that do not fit the model's context."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import patching_plan as plan
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.errors import BadInput
from tasks.patching.load import parse_scenario
from tasks.patching.spec import StudySettings
from tasks.runner import run_shard
from tests.models.tiny import save_tiny_model

SCENARIO = """
name: trial
prompts: {{only: {{text: {text!r}}}}}
choices: {{one: {{first_tokens: ["1"]}}, two: {{first_tokens: ["2"]}}}}
parser: {{rules: {{one: {{pattern: "1", choice: one}}, two: {{pattern: "2", choice: two}}}}}}
contrast:
  low: {{name: low, prompts: [short, {low!r}]}}
  high: {{name: high, prompts: [brief, terse]}}
frame: {{chat: {{system: {system!r}}}, answer_prefix: "1 or 2? "}}
"""
EMOJI = "🎰"
"""A character, and with a byte-level vocabulary that does not know it 4 tokens."""
POSITIONS = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), max_position_embeddings=POSITIONS)


def prepare(
    model: Path, store: Store, text: str = "x", low: str = "long", system: str = "", max_new_tokens: int = 8
) -> dict:
    settings = StudySettings.model_validate(
        {
            "model": {"source": str(model)},
            "saes": {"kind": "train", "layers": [1]},
            "trials": {"max_new_tokens": max_new_tokens},
        }
    )
    scenario = parse_scenario(SCENARIO.format(text=text, low=low, system=system), "trial.yaml")
    spec = plan.prepare(settings, scenario, run_shard(store, plan.identify(settings)))
    return Shard(store, run_shard(store, spec).spec.path).json("study")


def test_a_prompt_fits_with_its_frame_and_answer_to_the_last_token(model: Path, store: Store) -> None:
    tokens = len(prepare(model, store)["prompts"]["only"]["tokens"])
    room = POSITIONS - tokens
    prepare(model, store, max_new_tokens=room)
    message = rf"scenario\.prompts\.only = .*{tokens} tokens in its frame.*up to {room + 1} more.*of at most {room}$"
    with pytest.raises(BadInput, match=message):
        prepare(model, store, max_new_tokens=room + 1)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"text": EMOJI * 30}, "scenario.prompts.only"),
        ({"low": EMOJI * 30}, "scenario.contrast, group low"),
        ({"system": EMOJI * 30}, "scenario.prompts.only"),
        ({"text": "a b " * 200}, "scenario.prompts.only"),
    ],
)
def test_lengths_are_counted_in_tokens_of_the_framed_prompt(
    model: Path, store: Store, given: dict[str, str], field: str
) -> None:
    with pytest.raises(BadInput, match=r"tokens in its frame") as refused:
        prepare(model, store, **given)
    assert refused.value.field == field


def test_group_prompts_have_no_answer_to_make_room_for(model: Path, store: Store) -> None:
    short = len(prepare(model, store)["prompts"]["only"]["tokens"])
    prepare(model, store, low="x" + EMOJI * ((POSITIONS - short) // 4), max_new_tokens=POSITIONS - short)
