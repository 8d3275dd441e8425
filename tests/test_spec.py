"""Specs: equal work has equal hashes, different work has different ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator

from tasks.errors import BadInput
from tasks.spec import InputRef, TaskKind, TaskSpec

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
)
params = st.dictionaries(text, values, max_size=5)


class Inner(BaseModel):
    layers: list[int] = [1, 2]


class Params(BaseModel):
    trials: int = Field(gt=0)
    temperature: float = 0.7
    mode: Literal["a", "b"] = "a"
    inner: Inner = Inner()

    @field_validator("mode")
    @classmethod
    def _mode_needs_trials(cls, mode: str, info: Any) -> str:
        if mode == "b" and info.data.get("trials", 0) < 2:
            raise ValueError("mode 'b' needs two trials")
        return mode


KIND = TaskKind("test.kind", 3, Params, "nowhere:unused")


def spec(params: dict[str, Any], **changes: Any) -> TaskSpec:
    return TaskSpec(task="t", version=1, params=params, **changes)


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(one) for key, one in reversed(value.items())}
    return [reordered(one) for one in value] if isinstance(value, list) else value


@given(params)
def test_the_order_of_keys_does_not_matter(params: dict[str, Any]) -> None:
    assert spec(params).hash == spec(reordered(params)).hash


@given(params)
def test_a_spec_survives_json(params: dict[str, Any]) -> None:
    one = spec(params, inputs={"x": InputRef(shard="s", digest="d"), "y": [InputRef(shard="s", digest="e")]})
    for text in (one.model_dump_json(), json.dumps(one.model_dump(mode="json"), indent=2)):
        back = TaskSpec.model_validate_json(text)
        assert back == one
        assert back.hash == one.hash


def test_what_counts_and_what_does_not() -> None:
    ref = InputRef(shard="shards/a/1", digest="d1")
    base = spec({"x": 1}, inputs={"a": ref, "b": [ref, ref]}, seed=5)
    moved = ref.model_copy(update={"shard": "elsewhere"})
    assert spec({"x": 1}, inputs={"a": moved, "b": [ref, moved]}, seed=5).hash == base.hash
    changed = ref.model_copy(update={"digest": "d2"})
    others = [
        spec({"x": 2}, inputs=base.inputs, seed=5),
        spec({"x": 1}, inputs=base.inputs, seed=6),
        spec({"x": 1}, inputs=base.inputs | {"a": changed}, seed=5),
        spec({"x": 1}, inputs=base.inputs | {"b": [ref, changed]}, seed=5),
        spec({"x": 1}, inputs={"a": ref, "b": ref}, seed=5),
        spec({"x": 1}, inputs={"b": ref, "c": [ref, ref]}, seed=5),
        base.model_copy(update={"task": "other"}),
        base.model_copy(update={"version": 2}),
    ]
    assert len({base.hash, *(one.hash for one in others)}) == 1 + len(others)


def test_the_hash_is_stable() -> None:
    """It names folders of finished work: if this fails, all of it would be computed anew."""
    ref = InputRef(shard="shards/a/1", digest="d1")
    one = TaskSpec(task="a.b", version=1, params={"x": 0.1, "ü": [1, None, True]}, inputs={"i": [ref]}, seed=7)
    assert one.path == "shards/a.b/" + one.hash
    assert one.hash == "d244cbb52444b40deffc2ff862d6ed28"


def test_defaults_are_written_out() -> None:
    one = KIND.spec({"trials": 3})
    assert one.params == {"trials": 3, "temperature": 0.7, "mode": "a", "inner": {"layers": [1, 2]}}
    assert one == KIND.spec(Params(trials=3)) == KIND.spec({"trials": 3, "temperature": 0.7, "inner": Inner()})
    assert (one.task, one.version, one.seed, one.inputs) == ("test.kind", 3, 0, {})
    refs = (InputRef(shard="s", digest="d"),)
    assert KIND.spec({"trials": 3}, {"a": refs[0], "b": refs}).inputs == {"a": refs[0], "b": list(refs)}


@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        ({}, "params.trials", r"params\.trials = None: is missing; give it a value"),
        ({"trials": 0}, "params.trials", r"params\.trials = 0: can't be used; input should be greater than 0"),
        ({"trials": 1, "trails": 2}, "params.trails", r"no such field; remove it or correct its name"),
        ({"trials": 1, "inner": {"layer": 2}}, "params.inner.layer", "no such field"),
        ({"trials": 1, "inner": {"layers": [1, "x"]}}, "params.inner.layers.1", "'x'.*valid integer"),
        ({"trials": 1, "mode": "b"}, "params.mode", "can't be used; mode 'b' needs two trials"),
        ({"trials": 0, "temperature": "hot"}, "params.trials", "and 1 more such errors"),
        ({"trials": 1, "temperature": float("inf")}, "params", "use finite numbers"),
    ],
)
def test_bad_params(given: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        KIND.spec(given)
    assert caught.value.field == field


def test_long_values_are_cut_in_messages() -> None:
    assert len(str(BadInput("field", "x" * 10_000, "is long", "shorten it"))) < 300


def test_nothing_heavy_is_imported() -> None:
    """The flows import these; they must start at once."""
    program = (
        "import sys, tasks.spec, tasks.registry, tasks.artifacts.catalog; tasks.registry.kinds(); "
        "print(sorted({'torch', 'transformers', 'pyarrow', 'numpy', 'pandas', 's3fs', 'prefect'} & set(sys.modules)))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOMOGRAPH_PLUGINS"}
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root, env=environment
    )
    assert done.stdout.strip() == "[]"
