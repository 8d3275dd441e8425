"""Scenario files with one thing wrong: each is refused by its field, before a model is looked at."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.patching.group_prompts import contrast_prompts
from tasks.patching.load import load_scenario, parse_scenario
from tests.bad_input.refusing import refused

TRUST: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "patching" / "trust.yaml").read_text())
TRUST["contrast"]["high"] = {"name": "trusting", "prompts": ["one", "two"]}

CHANGES = [
    (("name",), "Bad Name", "scenario.name"),
    (("name",), 5, "scenario.name"),
    (("name",), "x" * 300_000, "scenario.name"),
    (("colour",), "red", "scenario.colour"),
    (("prompts",), {}, "scenario.prompts"),
    (("prompts",), [1], "scenario.prompts.0"),
    (("prompts",), "text", "scenario.prompts"),
    (("prompts", "stranger"), 5, "scenario.prompts"),
    (("prompts", "stranger"), [1], "scenario.prompts"),
    (("prompts", "stranger"), "", "scenario.prompts.0.text"),
    (("prompts", "stranger"), {"text": "a", "fields": {"n": float("nan")}}, "scenario.prompts.0.fields.n"),
    (("prompts", "stranger"), {"text": "a", "fields": {"n": "many"}}, "scenario.prompts.0.fields.n"),
    (("prompts", "stranger"), {"text": {"a": "b"}}, "scenario.prompts.0.text"),
    (("prompts", 5), "text", "scenario.prompts.2.name"),
    (("choices",), None, "scenario.choices"),
    (("choices", "trust"), None, "scenario.choices.0.first_tokens"),
    (("choices", "trust"), {"first_tokens": []}, "scenario.choices.0.first_tokens"),
    (("choices", "trust"), {"first_tokens": "A"}, "scenario.choices.0.first_tokens"),
    (("choices", "trust"), {"first_tokens": [1]}, "scenario.choices.0.first_tokens.0"),
    (("choices", "invalid"), {"first_tokens": ["C"]}, "scenario"),
    (("choices", "other"), {"first_tokens": ["C"]}, "scenario"),
    (("parser",), 5, "scenario.parser"),
    (("parser", "rules"), [], "scenario.parser.rules"),
    (("parser", "rules", "both"), 7, "scenario.parser.rules"),
    (("parser", "rules", "both", "pattern"), "A(", "scenario.parser.rules.0.pattern"),
    (("parser", "rules", "both", "pattern"), 5, "scenario.parser.rules.0.pattern"),
    (("parser", "rules", "both", "pattern"), "(a|aa)+$", "scenario.parser.rules.0.pattern"),
    (("parser", "rules", "both", "pattern"), "a{1000000000}", "scenario.parser.rules.0.pattern"),
    (("parser", "rules", "both", "pattern"), "(" * 3000, "scenario.parser.rules.0.pattern"),
    (("parser", "rules", "both", "pattern"), "a" * 300_000, "scenario.parser.rules.0.pattern"),
    (("parser", "rules", "both", "choice"), "nobody", "scenario"),
    (("parser", "rules", "both", "amount"), {"min": 1}, "scenario.parser.rules.0"),
    (("parser", "rules", "both", "amount"), {"min": float("inf")}, "scenario.parser.rules.0.amount.min.0.float"),
    (("parser", "lead"), "[", "scenario.parser.lead"),
    (("parser", "restart"), "text", "scenario.parser.restart"),
    (("parser", "restart"), ["*"], "scenario.parser.restart.0"),
    (("frame",), "raw", "scenario.frame"),
    (("frame", "answer_prefix"), 5, "scenario.frame.answer_prefix"),
    (("frame", "chat"), True, "scenario.frame.chat"),
    (("frame", "chat"), {"system": 5}, "scenario.frame.chat.system"),
    (("frame", "chat"), {"system": ["a"]}, "scenario.frame.chat.system"),
    (("frame", "chat"), {"tools": []}, "scenario.frame.chat.tools"),
    (("stop",), "\n\n", "scenario.stop"),
    (("stop",), [5], "scenario.stop.0"),
    (("extends",), "nothing", "scenario.extends"),
    (("extends",), ["slot_machine"], "scenario.extends"),
    (("contrast",), [], "scenario.contrast"),
    (("contrast", "low"), "text", "scenario.contrast.low"),
    (("contrast", "low", "template"), "{who.__class__}", "scenario.contrast.low.template"),
    (("contrast", "low", "template"), "{who:>9999999999}", "scenario.contrast.low.template"),
    (("contrast", "low", "template"), "{who!r}", "scenario.contrast.low.template"),
    (("contrast", "low", "template"), "{0}", "scenario.contrast.low.template"),
    (("contrast", "low", "template"), "{who", "scenario.contrast.low.template"),
    (("contrast", "low", "rows"), [{"who": []}], "scenario.contrast.low.rows.0.who.str"),
    (("contrast", "low", "rows"), "rows", "scenario.contrast.low.rows"),
    (("contrast", "low", "prompts"), ["a"], "scenario.contrast.low"),
    (("contrast", "high", "name"), "wary", "scenario.contrast"),
    (("contrast", "high", "prompts"), [5], "scenario.contrast.high.prompts.0"),
    (("contrast", "high", "generator"), "slot_machine", "scenario.contrast.high"),
]
TEXTS = [
    ("a: [", "scenario"),
    ("", "scenario"),
    ("- a", "scenario"),
    ("[" * 100_000, "scenario"),
    ("name: a\nname: b", "scenario"),
    ("name: " + "1" * 5000, "scenario"),
    ("\x00", "scenario"),
    ("name: !!binary x", "scenario"),
]
GROUPS = [
    ({"name": "low", "prompts": ["one"]}, "scenario.contrast.low"),
    ({"name": "low", "prompts": ["one", "one"]}, "scenario.contrast.low"),
    ({"name": "low", "template": "{whom}", "rows": [{"who": "a"}, {"who": "b"}]}, "scenario.contrast.low.rows"),
    ({"name": "low", "template": "{n:d}", "rows": [{"n": "a"}, {"n": "b"}]}, "scenario.contrast.low.rows"),
    ({"name": "low", "generator": "roulette"}, "scenario.contrast.low.generator"),
    ({"name": "low", "generator": "slot_machine", "params": {"colour": "red"}}, "scenario.contrast.low.params"),
]
FILES = [
    (b"{oops}\n", "scenario.contrast.low.file"),
    (b"\xff\xfe\n", "scenario.contrast.low.file"),
    (b'{"txt": "misspelt"}\n', "scenario.contrast.low.file"),
    (b"[" * 100_000, "scenario.contrast.low.file"),
    (b"[NaN]\n", "scenario.contrast.low.file"),
    (b"1" * 5000, "scenario.contrast.low.file"),
    (b'{"text": "a", "text": "b"}\n', "scenario.contrast.low.file"),
]


def changed(path: tuple[Any, ...], value: Any) -> str:
    content = copy.deepcopy(TRUST)
    inside = content
    for name in path[:-1]:
        inside = inside[name]
    inside[path[-1]] = value
    return yaml.safe_dump(content, sort_keys=False)


def test_the_scenario_is_fine_as_it_is() -> None:
    assert parse_scenario(yaml.safe_dump(TRUST, sort_keys=False), "mine.yaml").name == "trust"


@pytest.mark.parametrize(("path", "value", "field"), CHANGES, ids=[f"{n}-{row[2]}" for n, row in enumerate(CHANGES)])
def test_fields(path: tuple[Any, ...], value: Any, field: str) -> None:
    text = changed(path, value)
    refused(lambda: parse_scenario(text, "mine.yaml"), field)


@pytest.mark.parametrize(("text", "field"), TEXTS, ids=range(len(TEXTS)))
def test_documents(text: str, field: str) -> None:
    refused(lambda: parse_scenario(text, "mine.yaml"), field)


@pytest.mark.parametrize(("group", "field"), GROUPS, ids=range(len(GROUPS)))
def test_groups(group: dict[str, Any], field: str) -> None:
    text = changed(("contrast", "low"), group)
    refused(lambda: contrast_prompts(parse_scenario(text, "mine.yaml").contrast, 5, seed=0), field)


@pytest.mark.parametrize(("content", "field"), FILES, ids=range(len(FILES)))
def test_files_of_groups(tmp_path: Path, content: bytes, field: str) -> None:
    (tmp_path / "mine.yaml").write_text(changed(("contrast", "low"), {"name": "low", "file": "low.jsonl"}))
    (tmp_path / "low.jsonl").write_bytes(content)
    refused(lambda: load_scenario(str(tmp_path / "mine.yaml")), field)


@pytest.mark.parametrize(
    "source", ["slotmachine", "/nowhere/mine.yaml", "nofs://x/mine.yaml", "\0.yaml", "/dev/null/a.yaml"]
)
def test_sources(source: str) -> None:
    refused(lambda: load_scenario(source), "scenario")
