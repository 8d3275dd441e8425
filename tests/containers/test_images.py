"""What is in the images, and what is not: seen from inside a container, and layer by layer."""

from __future__ import annotations

import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.launchers.images import version
from images import sizes
from tasks.artifacts.catalog import store_spec
from tasks.artifacts.store import Store
from tasks.registry import kind
from tests.containers import base
from tests.containers.engine import PLUGINS, need_image
from tests.containers.images import ALL, FLOWS, LOCKS, PINS, TORCH, VLLM, Image
from tests.shard_process import result_bytes
from tests.shard_process import run as run_here

every_image = pytest.mark.parametrize("image", ALL, ids=str)
with_tasks = pytest.mark.parametrize("image", [TORCH, VLLM], ids=str)

# What modules of tasks may lack, each in the image that is not made for them.
ELSEWHERE = {TORCH: {"triton", "vllm"}, VLLM: {"triton"}}


@every_image
def test_a_container_has_no_rights(image: Image) -> None:
    assert image.attributes["Config"]["User"] == "10001"
    found = image.ask("rights", read_only=False)
    assert (found["user"], found["groups"]) == (10001, [10001])
    assert (found["capabilities"], found["new_privileges"]) == ([0, 0, 0], ["1"])
    assert found["writable"] == []


def test_the_image_of_flows_holds_orchestration_alone() -> None:
    for package, least in {"flows": 25, "prefect_kubernetes": 5}.items():
        found = FLOWS.ask("modules", package)
        assert found["imported"] >= least
        assert found["lacking"] == {}
    assert FLOWS.ask("present", "docker", "kubernetes", "s3fs") == ["docker", "kubernetes", "s3fs"]
    assert FLOWS.ask("present", "torch", "transformers", "vllm", "numba") == []
    assert "usage: python -m flows" in FLOWS.run("python", "-m", "flows", "--help")


@with_tasks
def test_the_images_of_tasks_hold_computation_alone(image: Image) -> None:
    found = image.ask("modules", "tasks")
    assert found["imported"] > 100
    assert set(found["lacking"].values()) <= ELSEWHERE[image]
    assert image.ask("present", "prefect", "flows", "docker") == []


def test_vllms_engine_finds_its_libraries() -> None:
    """Which of its kernels' libraries is loaded depends on the processor's instructions."""
    program = """
import torch
from vllm import LLM
from vllm.platforms import current_platform
current_platform.import_kernels()
print(LLM.__name__, hasattr(torch.ops._C, "rms_norm"), hasattr(torch.ops._C, "no_such_kernel"))
"""
    assert VLLM.run("python", "-c", program).splitlines()[-1] == "LLM True False"


@every_image
def test_a_shard_leaves_the_bytes_that_it_leaves_here(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOMOGRAPH_PLUGINS", "tests.toy_tasks")
    spec = kind("toy.squares").spec({"n": 10, "chunk_size": 4}, seed=3)
    here, there = (Store(tmp_path / name) for name in ("here", "there"))
    assert run_here(store_spec(here, spec)).code == 0

    url = store_spec(there, spec)
    for path in [tmp_path / "there", *(tmp_path / "there").rglob("*")]:
        path.chmod(0o777)
    source, plugins, _ = PLUGINS[0].split(":")
    image.run(
        *("python", "-m", "tasks", "run", url),
        folders={tmp_path / "there": str(tmp_path / "there"), Path(source): plugins},
        environment={"TOMOGRAPH_PLUGINS": "tests.toy_tasks"},
    )
    assert result_bytes(there, spec) == result_bytes(here, spec)


@every_image
def test_labels_say_what_it_is_and_what_it_was_built_from(image: Image) -> None:
    labels = image.attributes["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == version()
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels["org.opencontainers.image.revision"])
    assert labels["org.opencontainers.image.title"].startswith("tomograph ")
    assert labels.get("tomograph.variant") == (None if image is FLOWS else "cpu")


@every_image
def test_installed_is_what_the_lock_says(image: Image) -> None:
    assert image.ask("versions") == PINS[image.lock]


@every_image
def test_every_installed_package_has_what_it_asks_for(image: Image) -> None:
    found = image.ask("unmet")
    assert set(found["missing"]) <= set(LOCKS[image.lock].without)
    assert found["wrong"] == []


@every_image
def test_nothing_is_compiled_at_run_time(image: Image) -> None:
    found = image.ask("bytecode")
    assert found["compiled"] > 2000
    assert found["stale"] == []


def test_torch_lies_in_layers_that_its_two_images_share() -> None:
    assert _alike(FLOWS, TORCH) >= 2
    shared = _alike(TORCH, VLLM)
    torch, vllm = (sizes.layers(base.cli(), image.tag) for image in (TORCH, VLLM))
    assert sum(size for name, size in torch.items() if name in vllm) > 1_200_000_000
    assert shared > _alike(FLOWS, TORCH)
    assert len(TORCH.layers) - shared <= 4, "torch's own packages, pyproject.toml, tasks, and their bytecode"


def test_only_what_is_read_is_copied_from_a_checkout() -> None:
    folders = {"deploy/pools", "deploy/studies", "deploy/sweeps", "flows", "tasks"}
    files = FLOWS.run("find", ".", "-type", "f", "-not", "-path", "*/__pycache__/*").split()
    kept = {"/".join(Path(name).parts[: 2 if name.startswith("./deploy") else 1]) for name in files}
    assert kept == folders | {"prefect.yaml", "pyproject.toml"}
    for image in (TORCH, VLLM):
        assert set(image.run("ls", "-A").split()) == {"pyproject.toml", "tasks"}


@pytest.mark.slow
def test_no_layer_holds_a_secret(tmp_path: Path) -> None:
    for image in ALL:
        need_image(image.tag)
    given = base.secrets(tmp_path)
    told = [base.CANARY.encode(), *_own_authorities(given.get("ca.crt"))]
    assert [image.name for image in ALL for secret in told if secret in _history(image)] == []
    seen = 0
    for name, content in _files([image.tag for image in ALL]):
        seen += 1
        assert [secret[:80] for secret in told if secret in content] == [], name
        assert not re.search(r"(^|/)(netrc|\.netrc|pip\.conf|uv\.toml|\.env|run/secrets/.+)$", name), name
    assert seen > 20_000


def _alike(one: Image, other: Image) -> int:
    """How many layers two images have in common, from the base up."""
    pairs = zip(one.layers, other.layers, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one.layers), len(other.layers)))


def _history(image: Image) -> bytes:
    return repr([need_image(image.tag).api.history(image.tag), image.attributes]).encode()


def _files(tags: list[str]) -> Iterator[tuple[str, bytes]]:
    """Every regular file of up to 4 MB in every layer of some images, also one that a later layer removes."""
    with (
        subprocess.Popen([base.cli(), "save", *tags], stdout=subprocess.PIPE) as saving,
        tarfile.open(fileobj=saving.stdout, mode="r|") as archive,
    ):
        for member in archive:
            blob = archive.extractfile(member) if member.isfile() else None
            if blob is None:
                continue
            if member.size > 65536 or member.name.endswith("layer.tar"):
                with tarfile.open(fileobj=blob, mode="r|*") as layer:
                    for file in layer:
                        if file.isfile() and file.size <= 4_000_000:
                            yield file.name, layer.extractfile(file).read()
            else:
                yield member.name, blob.read()


def _own_authorities(bundle: Path | None) -> list[bytes]:
    """Certificates of a bundle that no package of Debian and Python brings."""
    import certifi

    def certificates(text: str) -> set[str]:
        return set(re.findall(r"-----BEGIN CERTIFICATE-----\n(.{64}\n.{64}\n)", text, re.DOTALL))

    if bundle is None:
        return []
    public = VLLM.run("sh", "-c", "cat /usr/share/ca-certificates/*/*.crt") + Path(certifi.where()).read_text()
    return [text.encode() for text in certificates(bundle.read_text()) - certificates(public)]
