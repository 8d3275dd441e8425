"""Command line of a flow: the same parameters as its form, taken from its signature.

``--model.source X`` sets a nested field, ``--config study.yaml`` reads a file of parameters, and flags win over
the file. Parsing and types are pydantic's.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from tasks.documents import MOST_BYTES, parse_json, parse_yaml
from tasks.errors import EXIT_BAD_INPUT, BadInput
from tasks.places.arguments import Parser

CONFIG = "config"
MOST_COMPLAINTS = 10


class BadParameters(ValueError):
    """Parameters that the flow would refuse, one line for each."""

    exit_status = EXIT_BAD_INPUT


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
    parser = Parser(
        prog=program,
        usage=f"{program} [--{CONFIG} FILE] [--NAME VALUE | --GROUP.NAME VALUE ...]",
        description=inspect.cleandoc(flow.description or "").partition("Args:")[0].strip(),
        allow_abbrev=False,
    )
    parser.add_argument(f"--{CONFIG}", metavar="FILE", help="YAML file of parameters; flags win over it")
    source = CliSettingsSource(_flags(flow), root_parser=parser)
    options = vars(parser.parse_args(arguments))
    config = options.pop(CONFIG)
    given = _given(source, options)
    chosen = _Fields({name: p.default for name, p in _signature(flow).items() if p.default is not p.empty})
    for layer in (_read(Path(config)) if config else {}, given):
        chosen = _overlay(chosen, layer)
    return _validated(flow, chosen)


def _given(source: CliSettingsSource[Any], options: dict[str, Any]) -> dict[str, Any]:
    """What the flags say. Groups, lists and mappings are JSON, which pydantic-settings takes apart."""
    for name, texts in options.items():
        for text in texts if isinstance(texts, list) else [texts]:
            if isinstance(text, str) and text[:1] in ("{", "["):
                _check_json(name, text)
    try:
        return source(parsed_args=options)()
    except (SettingsError, RecursionError):
        for name, value in options.items():
            try:
                source(parsed_args={name: value})()
            except (SettingsError, RecursionError) as error:
                given = value[0] if isinstance(value, list) and len(value) == 1 else value
                group = any(other.startswith(f"{name}.") for other in options)
                remedy = f"set a field by --{name}.FIELD, or write JSON" if group else "write JSON, or a,b for a list"
                raise BadInput(name, given, "can't be read as JSON, or as plain values", remedy) from error
        raise


def _check_json(name: str, text: str) -> None:
    """Refuse what JSON readers silently accept: keys given twice, NaN."""
    try:
        json.loads(text)
    except ValueError:
        return  # perhaps a list of plain values
    except RecursionError:
        pass
    parse_json(text, name, text)


def _signature(flow: Flow[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(flow.fn, eval_str=True).parameters)


@cache
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


@cache
def _flags(flow: Flow[..., Any]) -> type[BaseSettings]:
    return create_model(flow.name, __base__=_Flags, **_fields(flow))


@cache
def _model(flow: Flow[..., Any]) -> type[BaseModel]:
    return create_model(flow.name, __config__=ConfigDict(extra="forbid"), **_fields(flow))


def _read(path: Path) -> dict[str, Any]:
    field = f"--{CONFIG}"
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        problem = str(getattr(error, "strerror", None) or error)
        raise BadInput(field, str(path), problem, "give the path of a YAML file") from error
    content = parse_yaml(data, field, str(path))
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise BadInput(field, str(path), "holds no parameters", "write `name: value` lines")
    return content


def _overlay(base: Any, changes: Any) -> Any:
    """``base`` with ``changes`` in it, field by field where ``base`` is a model."""
    if isinstance(base, BaseModel):
        base = _Fields({name: getattr(base, name) for name in type(base).model_fields})
    if isinstance(base, _Fields) and isinstance(changes, dict):
        return _Fields(base | {name: _overlay(base.get(name), value) for name, value in changes.items()})
    return changes


def _validated(flow: Flow[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    model = _model(flow)
    try:
        parameters = model.model_validate(values)
    except ValidationError as error:
        complaints = error.errors(include_url=False)
        lines = [str(BadInput.from_complaint(complaint)) for complaint in complaints[:MOST_COMPLAINTS]]
        if len(complaints) > len(lines):
            lines.append(f"and {len(complaints) - len(lines):,} more such errors")
        raise BadParameters("\n".join(lines)) from error
    return {name: getattr(parameters, name) for name in model.model_fields}
