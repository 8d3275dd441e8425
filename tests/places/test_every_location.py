"""Every parameter of every flow and command that takes a location refuses credentials, and nothing repeats them.

Parameters are found by walking the flows' own schemas and the commands' own parsers. Any that takes free text must
be of the type ``Location`` or be named here as something else: a new one can't be forgotten.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

import flows.__main__ as flows_command
from flows.__main__ import FLOWS
from flows.cli import BadParameters, parse
from flows.deployments import flow_of
from tasks.errors import BadInput
from tasks.patching.load import load_scenario
from tasks.places.arguments import Parser, location
from tasks.places.credentials import CREDENTIALS
from tests.places.spellings import SECRET, SPELLINGS

REPOSITORY = Path(__file__).parents[2]
FEW = (SPELLINGS[1], SPELLINGS[-3], SPELLINGS[-2])

NO_LOCATIONS = {
    "model.revision",
    "saes.revision",
    "models.[].revision",
    "models.[].name",
    "text.column",
    "execution.container.images.{}",
    "execution.container.memory",
    "execution.container.shared_memory",
    "execution.container.volumes.[]",
    "execution.docker.network",
    "execution.docker.variables.[]",
    "execution.kubernetes.namespace",
    "execution.kubernetes.secrets.[]",
    "execution.kubernetes.service_account",
    "execution.kubernetes.cpu",
    "execution.kubernetes.gpu_resource",
    "execution.kubernetes.node_selector.{}",
    "execution.kubernetes.tolerations.[].{}",
}
"""Parameters of flows that take free text which names no place that is opened."""

NO_LOCATION_ARGUMENTS = {"--pool", "--name", "--image", "--secret", "--device", "--config", "--revision"}


def schema_of(flow: str) -> dict[str, Any]:
    return parameter_schema(flow_of(f"flows/{flow}.py:{flow}")).model_dump(exclude_unset=True)


def texts(schema: dict[str, Any], definitions: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Dotted path and schema of every parameter that takes any text; [] is an item, {} a value of a mapping."""
    if "$ref" in schema:
        yield from texts(definitions[schema["$ref"].rpartition("/")[2]], definitions, path)
    for option in schema.get("anyOf", []) + schema.get("allOf", []):
        yield from texts(option, definitions, path)
    if schema.get("type") == "string" and not schema.keys() & {"enum", "const"}:
        yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from texts(field, definitions, f"{path}.{name}".strip("."))
    if "items" in schema:
        yield from texts(schema["items"], definitions, f"{path}.[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from texts(schema["additionalProperties"], definitions, f"{path}.{{}}")


def texts_of(flow: str) -> dict[str, dict[str, Any]]:
    schema = schema_of(flow)
    return dict(texts(schema, schema["definitions"]))


def is_location(schema: dict[str, Any]) -> bool:
    return schema.get("not") == {"pattern": CREDENTIALS}


LOCATIONS = [(flow, path) for flow in FLOWS for path, schema in texts_of(flow).items() if is_location(schema)]


def nested(path: str, value: Any) -> Any:
    """ "a.[].b" as {"a": [{"b": value}]}"""
    for part in reversed(path.split(".")):
        value = [value] if part == "[]" else {"3": value} if part == "{}" else {part: value}
    return value


def test_every_text_is_a_location_or_known_to_be_none() -> None:
    others = {path for flow in FLOWS for path, schema in texts_of(flow).items() if not is_location(schema)}
    assert others == NO_LOCATIONS
    assert {path for _, path in LOCATIONS} >= {
        "store",
        "model.source",
        "model.adapter",
        "models.[].source",
        "saes.location",
        "saes.layer_locations.{}",
        "scenario.source",
        "text.location",
    }


@pytest.mark.parametrize(("flow", "path"), LOCATIONS)
def test_a_flow_refuses_credentials_before_there_is_a_run(flow: str, path: str, tmp_path: Path) -> None:
    given = nested(path, FEW[len(path) % len(FEW)])
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(given))
    with pytest.raises((BadParameters, BadInput), match="can't carry credentials") as refused:
        parse(flow_of(f"flows/{flow}.py:{flow}"), ["--config", str(file)], "flows")
    assert SECRET not in str(refused.value)
    assert validate(given, schema_of(flow)), "a Prefect server refuses them too"


def values(parser: argparse.ArgumentParser) -> Iterator[tuple[list[str], argparse.Action]]:
    """Command and action of every argument that takes free text."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from (([name, *command], one) for command, one in values(inner))
        elif action.nargs != 0 and action.choices is None and action.type in (None, Path, location):
            yield [], action


def parsers() -> Iterator[argparse.ArgumentParser]:
    """Of every ``python -m`` command."""
    for room in ("tasks", "flows"):
        for path in sorted((REPOSITORY / room).rglob("__main__.py")):
            module = path.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", ".")
            parser = importlib.import_module(module)._parser()
            assert isinstance(parser, Parser), f"{module}: another parser repeats what was typed"
            yield parser


def test_every_argument_is_a_location_or_known_to_be_none() -> None:
    unknown = [
        (command, action)
        for parser in parsers()
        for command, action in values(parser)
        if action.type is not location and not NO_LOCATION_ARGUMENTS & set(action.option_strings)
    ]
    assert unknown == []


def test_commands_refuse_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    tried = 0
    for parser in parsers():
        for command, action in values(parser):
            if action.type is not location:
                continue
            for spelling in FEW:
                given = [action.option_strings[0], spelling] if action.option_strings else [spelling, spelling]
                with pytest.raises(SystemExit) as ended:
                    parser.parse_args([*command, *given])
                assert ended.value.code == 2
                said = capsys.readouterr()
                assert "can't carry credentials" in said.err
                assert SECRET not in said.err + said.out
                tried += 1
    assert tried >= 20


def test_what_is_mistyped_is_not_repeated_either(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["deploy", "--stroe", SPELLINGS[0]], ["deploy", "--secret", f"NAME={SECRET}/x"]):
        code: object = 2
        with contextlib.suppress(SystemExit):
            code = flows_command.main(arguments)
        assert code in (1, 2)
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_files_that_a_scenario_names(spelling: str, tmp_path: Path) -> None:
    groups = {"low": {"name": "low", "file": spelling}, "high": {"name": "high", "prompts": ["a"]}}
    scenario = tmp_path / "mine.yaml"
    scenario.write_text(yaml.safe_dump({"extends": "slot_machine", "contrast": groups}))
    with pytest.raises(BadInput, match="can't carry credentials") as refused:
        load_scenario(str(scenario))
    assert SECRET not in str(refused.value)


def test_only_one_place_opens_locations() -> None:
    opens = re.compile(r"url_to_fs|fsspec\.(open|filesystem|get_filesystem_class|get_mapper)\b|open_files\(")
    found = [
        str(path.relative_to(REPOSITORY))
        for room in ("tasks", "flows")
        for path in (REPOSITORY / room).rglob("*.py")
        if opens.search(path.read_text())
    ]
    assert found == ["tasks/places/opening.py"]
