"""Kinds of tasks are found in the rooms and in plug-ins, and what does not fit is refused."""

from __future__ import annotations

import pytest

from tasks import registry
from tasks.errors import BadInput


def test_kinds_of_the_rooms() -> None:
    found = registry.kinds()
    assert {"sae.train", "patching.prepare", "patching.trials", "patching.report"} <= found.keys()
    assert all(name == kind.name for name, kind in found.items())
    assert registry.kind("patching.trials") is found["patching.trials"]


def test_plugins(toy_tasks: None) -> None:
    assert registry.kind("toy.squares").entry == "tests.toy_tasks:squares"
    assert "toy.squares" in registry.kinds()


def test_the_environment_follows_from_the_parameters(toy_tasks: None) -> None:
    assert registry.environment(registry.kind("toy.squares").spec({"n": 3})) == "torch"
    assert registry.environment(registry.kind("toy.where").spec({"environment": "other"})) == "other"


def test_unknown_tasks_are_told_the_known_ones(toy_tasks: None) -> None:
    with pytest.raises(BadInput, match=r"'toy\.cubes'.*no such task.*toy\.squares"):
        registry.kind("toy.cubes")


def test_a_plugin_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOMOGRAPH_PLUGINS", "no_such_package.tasks")
    with pytest.raises(BadInput, match=r"TOMOGRAPH_PLUGINS = 'no_such_package\.tasks'.*No module named"):
        registry.kind("toy.squares")


def test_resolve(toy_tasks: None) -> None:
    spec = registry.kind("toy.squares").spec({"n": 3})
    kind, params = registry.resolve(spec)
    assert kind.name == "toy.squares"
    assert params.n == 3
    newer = spec.model_copy(update={"version": 9})
    with pytest.raises(BadInput, match=r"version = 9.*computes version 1 of toy\.squares"):
        registry.resolve(newer)
    with pytest.raises(BadInput, match=r"params\.m.*no such field"):
        registry.resolve(spec.model_copy(update={"params": {"m": 3}}))
