import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.tiny import save_tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder of the product's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TOMOGRAPH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny Llama with its tokenizer, as a folder; not to be changed."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def run_python(cache):
    """Run Python code in a fresh process with the given environment; returns what it printed."""

    def run(code: str, **env: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | env | {"TOMOGRAPH_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
