"""What the README shows works as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from flows.cli import parse
from flows.patching import patching
from tasks.patching.group_prompts import contrast_prompts
from tasks.patching.load import load_scenario
from tasks.patching.parser import Reader
from tasks.patching.scenario import Scenario

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
YAML_BLOCKS = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    """The README's own scenario, with its two files of prompts beside it."""
    [block] = YAML_BLOCKS
    (tmp_path / "wary.txt").write_text("A stranger asks for money.\nA stranger sells a watch.\n")
    (tmp_path / "trusting.txt").write_text("A friend offers help.\nA neighbour brings soup.\n")
    (tmp_path / "trust.yaml").write_text(block)
    return load_scenario(str(tmp_path / "trust.yaml"))


def test_the_scenario_of_the_readme_is_one(scenario):
    assert len(contrast_prompts(scenario.contrast, 10, seed=0)) == 4
    reader = Reader(scenario.parser)
    answers = {"A) Yes": "accept", " B": "refuse", "Absolutely": "invalid", "": "invalid"}
    assert {text: reader.read(text, {}).choice for text in answers} == answers


@pytest.mark.parametrize("path", sorted((ROOT / "deploy" / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_study_file_is_a_valid_set_of_parameters(path):
    parameters = parse(patching, ["--config", str(path)], "flows")
    given = yaml.safe_load(path.read_text())
    assert parameters["saes"].layers == given["saes"]["layers"]
    assert load_scenario(parameters["scenario"].source).name == given["scenario"]["source"]


def test_every_make_target_of_the_readme_exists():
    named = set(re.findall(r"make ([a-z-]+)", README))
    defined = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named
    assert named <= defined


def test_every_file_of_the_readme_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
