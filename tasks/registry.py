"""Where the kinds of shards are found: in each room's ``spec.py`` and in the user's own modules.

A room ``tasks/<room>`` declares ``KINDS`` in its ``spec.py`` and names them ``<room>.<kind>``. The environment
variable ``TOMOGRAPH_PLUGINS`` adds modules with ``KINDS`` of their own: ``my_package.tasks,other.module``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
from collections.abc import Iterator

from pydantic import BaseModel

import tasks
from tasks.errors import BadInput
from tasks.spec import TaskKind, TaskSpec

PLUGINS_VARIABLE = "TOMOGRAPH_PLUGINS"


def kind(name: str) -> TaskKind:
    """The kind of this name.

    Raises:
        BadInput: there is none, or a plug-in can't be imported.
    """
    for module in (*_rooms(name.partition(".")[0]), *_plugins()):
        for found in _kinds_of(module):
            if found.name == name:
                return found
    known = ", ".join(sorted(kinds())) or "none"
    raise BadInput(
        "task", name, "there is no such task", f"use one of: {known}; or name its module in {PLUGINS_VARIABLE}"
    )


def kinds() -> dict[str, TaskKind]:
    """All kinds by name."""
    modules = [*_rooms(), *_plugins()]
    return {found.name: found for module in reversed(modules) for found in _kinds_of(module)}


def resolve(spec: TaskSpec) -> tuple[TaskKind, BaseModel]:
    """The kind of a spec and its validated parameters.

    Raises:
        BadInput: unknown task, a version other than the code's, or parameters that don't fit.
    """
    found = kind(spec.task)
    if spec.version != found.version:
        raise BadInput(
            "version",
            spec.version,
            f"this code computes version {found.version} of {spec.task}",
            "run the flow again with the same release of the code on both sides",
        )
    return found, found.validate(spec.params)


def environment(spec: TaskSpec) -> str:
    """Name of the environment that a shard runs in. Raises like `resolve`."""
    found, params = resolve(spec)
    return found.environment(params)


def _rooms(only: str | None = None) -> Iterator[str]:
    for room in pkgutil.iter_modules(tasks.__path__):
        module = f"tasks.{room.name}.spec"
        if room.ispkg and only in (None, room.name) and importlib.util.find_spec(module):
            yield module


def _plugins() -> list[str]:
    return [name.strip() for name in os.environ.get(PLUGINS_VARIABLE, "").split(",") if name.strip()]


def _kinds_of(module: str) -> tuple[TaskKind, ...]:
    try:
        return getattr(importlib.import_module(module), "KINDS", ())
    except ModuleNotFoundError as error:
        if module.startswith("tasks."):
            raise
        raise BadInput(PLUGINS_VARIABLE, module, str(error), "name importable modules, separated by commas") from error
