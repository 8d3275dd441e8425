"""The Kubernetes manifests as kubectl renders them, and their parts."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

REPOSITORY = Path(__file__).parents[2]
MANIFESTS = REPOSITORY / "deploy" / "kubernetes"
SENTINEL = "a-value-that-is-secret"
"""The value of every credential."""
OVERLAYS = ["base", *sorted(f"overlays/{path.parent.name}" for path in MANIFESTS.glob("overlays/*/kustomization.yaml"))]
CLUSTER_WIDE = {"Namespace"}


def kubectl() -> str | None:
    """Path of the program that ``KUBECTL`` names, else that of this machine."""
    return os.environ.get("KUBECTL") or shutil.which("kubectl")


def with_credentials(folder: Path) -> Path:
    """A copy of the manifests in which the examples' files are filled in, as a user does it."""
    tree = folder / "kubernetes"
    shutil.copytree(MANIFESTS, tree, ignore=shutil.ignore_patterns("*.env"))
    for example in tree.rglob("*.env.example"):
        lines = example.read_text().splitlines()
        filled = [f"{line}{SENTINEL}" if line.endswith("=") else line for line in lines]
        example.with_suffix("").write_text("\n".join(filled) + "\n")
    return tree


def rendered(program: str, folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    done = subprocess.run([program, "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def named(objects: Sequence[Object], kind: str) -> dict[str, Object]:
    return {one["metadata"]["name"]: one for one in objects if one["kind"] == kind}


def templates(objects: Sequence[Object]) -> dict[str, Object]:
    """The pod templates, by "kind/name" of what has them."""
    found = [one for one in objects if one["kind"] in ("Deployment", "StatefulSet", "Job", "DaemonSet", "CronJob")]
    return {f"{one['kind']}/{one['metadata']['name']}": one["spec"]["template"] for one in found}


def containers(pod: Object) -> list[Object]:
    """Every container of a pod's spec."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def scalars(tree: Any) -> Iterator[str]:
    """All texts in an object."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield str(key)
            yield from scalars(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from scalars(value)
    else:
        yield str(tree)
