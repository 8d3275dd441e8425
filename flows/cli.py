"""Command line of a flow: the same parameters as its form, taken from its signature.

``--model.source X`` sets a nested field, ``--config study.yaml`` reads a file of parameters, and flags win over
the file. Parsing and types are pydantic's.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from prefect import Flow
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

from tasks.errors import BadInput

CONFIG = "config"


class BadParameters(ValueError):
    """Parameters that the flow would refuse, one line for each."""


class _Flags(BaseSettings):
    model_config = SettingsConfigDict(cli_avoid_json=True, cli_hide_none_type=True, cli_implicit_flags=True)


class _Fields(dict[str, Any]):
    """A model taken apart: changes are merged into it. Any other mapping is a value, replaced as a whole."""


def parse(flow: Flow[..., Any], arguments: Sequence[str], program: str) -> dict[str, Any]:
    """Parameters of ``flow``, validated, from command line arguments.

    Raises:
        BadInput: the file of ``--config`` can't be used.
        BadParameters: naming each field, its value and what is wrong with it.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} [--{CONFIG} FILE] [--NAME VALUE | --GROUP.NAME VALUE ...]",
        description=inspect.cleandoc(flow.description or "").partition("Args:")[0].strip(),
        allow_abbrev=False,
    )
    parser.add_argument(f"--{CONFIG}", metavar="FILE", help="YAML file of parameters; flags win over it")
    source = CliSettingsSource(_flags(flow), root_parser=parser)
    options = vars(parser.parse_args(arguments))
    config = options.pop(CONFIG)
    given = source(parsed_args=options)()
    chosen = _Fields({name: p.default for name, p in _signature(flow).items() if p.default is not p.empty})
    for layer in (_read(Path(config)) if config else {}, given):
        chosen = _overlay(chosen, layer)
    return _validated(flow, chosen)


def _signature(flow: Flow[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(flow.fn, eval_str=True).parameters)


def _fields(flow: Flow[..., Any]) -> dict[str, Any]:
    """The flow's parameters as fields of a pydantic model."""
    described = parameter_schema(flow).properties
    return {
        name: (
            parameter.annotation,
            Field(
                ... if parameter.default is parameter.empty else parameter.default,
                description=described[name].get("description"),
            ),
        )
        for name, parameter in _signature(flow).items()
    }


def _flags(flow: Flow[..., Any]) -> type[BaseSettings]:
    return create_model(flow.name, __base__=_Flags, **_fields(flow))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise BadInput(f"--{CONFIG}", str(path), str(error.strerror), "give the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise BadInput(f"--{CONFIG}", str(path), f"this is no YAML: {error}", "correct the file") from error
    if not isinstance(content, dict):
        raise BadInput(f"--{CONFIG}", str(path), "holds no parameters", "write `name: value` lines")
    return content


def _overlay(base: Any, changes: Any) -> Any:
    """``base`` with ``changes`` in it, field by field where ``base`` is a model."""
    if isinstance(base, BaseModel):
        base = _Fields({name: getattr(base, name) for name in type(base).model_fields})
    if isinstance(base, _Fields) and isinstance(changes, dict):
        return _Fields(base | {name: _overlay(base.get(name), value) for name, value in changes.items()})
    return changes


def _validated(flow: Flow[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    model = create_model(flow.name, __config__=ConfigDict(extra="forbid"), **_fields(flow))
    try:
        parameters = model.model_validate(values)
    except ValidationError as error:
        raise BadParameters("\n".join(map(_line, error.errors()))) from error
    return {name: getattr(parameters, name) for name in model.model_fields}


def _line(problem: Any) -> str:
    """ "trials.trials_per_cell = '0': Input should be greater than or equal to 1" """
    field = ".".join(map(str, problem["loc"]))
    value = "" if isinstance(problem["input"], dict | BaseModel) else f" = {problem['input']!r}"
    return f"{field}{value}: {problem['msg'].removeprefix('Value error, ')}"
