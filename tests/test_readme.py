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

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
YAML_BLOCKS = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


def test_the_scenario_of_the_readme_is_the_one_that_is_shipped():
    [block] = YAML_BLOCKS
    shipped = ROOT / "docs" / "trust" / "trust.yaml"
    assert block == shipped.read_text()
    assert len(contrast_prompts(load_scenario(str(shipped)).contrast, 100, seed=0)) == 48


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
