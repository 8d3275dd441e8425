"""Scenarios from YAML, with the files they name read in, so that what is loaded says everything."""

from __future__ import annotations

import posixpath
from importlib import resources
from typing import Any

from pydantic import ValidationError

from tasks.documents import parse_json, parse_yaml
from tasks.errors import BadInput
from tasks.patching.scenario import Group, Scenario
from tasks.places.opening import open_location


def builtin_scenarios() -> list[str]:
    folder = resources.files("tasks.patching") / "scenarios"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_scenario(source: str) -> Scenario:
    """A built-in scenario by name, or one from the path or URL of a YAML file. BadInput says what is wrong where."""
    if source in builtin_scenarios():
        return parse_scenario(_builtin_text(source), source)
    if not source.endswith((".yaml", ".yml")):
        raise BadInput(
            "scenario", source, "no such scenario", f"name one of {builtin_scenarios()}, or a .yaml file or URL"
        )
    scenario = parse_scenario(_read("scenario", source), source)
    contrast = scenario.contrast
    resolved = {side: _read_in(side, getattr(contrast, side), source) for side in ("low", "high")}
    return scenario.model_copy(update={"contrast": contrast.model_copy(update=resolved)})


def parse_scenario(text: str, source: str) -> Scenario:
    """A scenario from YAML text; `source` is for messages.

    With `extends: NAME`, every key that the text leaves out is that of the built-in scenario.
    """
    try:
        return Scenario.model_validate(_extended(parse_yaml(text, "scenario", source), source))
    except ValidationError as error:
        raise BadInput.from_validation(error, "scenario", f"; this is in {source}") from error


def _builtin_text(name: str) -> str:
    return (resources.files("tasks.patching") / "scenarios" / f"{name}.yaml").read_text(encoding="utf-8")


def _extended(content: Any, source: str) -> Any:
    if not isinstance(content, dict) or "extends" not in content:
        return content
    base = content["extends"]
    if base not in builtin_scenarios() or base == source:
        raise BadInput("scenario.extends", base, "not another built-in scenario", f"name one of {builtin_scenarios()}")
    own = {key: value for key, value in content.items() if key != "extends"}
    return {**_extended(parse_yaml(_builtin_text(base), "scenario.extends", base), base), **own}


def _read(field: str, url: str) -> str:
    try:
        fs, path = open_location(url, field)
        return fs.cat_file(path).decode()
    except BadInput:
        raise
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise BadInput(field, url, f"cannot be read ({error})", "check path, access and encoding (UTF-8)") from error


def _read_in(side: str, group: Group, scenario_source: str) -> Group:
    """The group with its file's prompts, or rows of its template, in place of the file."""
    if group.file is None:
        return group
    field = f"scenario.contrast.{side}.file"
    url = group.file if "://" in group.file else posixpath.join(posixpath.dirname(scenario_source), group.file)
    # not splitlines(), which cuts a text at rarer signs too, such as U+2028
    lines = {n: line for n, line in enumerate(_read(field, url).split("\n"), 1) if line.strip()}
    is_json = url.endswith(".jsonl")
    items = [parse_json(line, field, f"{url}, line {n}") if is_json else line for n, line in lines.items()]
    content: dict[str, Any] = {"rows": items}
    if group.template is None:
        content = {"prompts": [item["text"] if isinstance(item, dict) and "text" in item else item for item in items]}
    try:
        return Group.model_validate({"name": group.name, "template": group.template, **content})
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(
            field,
            url,
            f"item {'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}",
            "each line: a text, an object with 'text', or with a template an object of its fields",
        ) from error
