"""The images as the tests look at them, each with its lock, in containers without any right that they do not need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker.types import Mount

from images import lock
from tests.containers.engine import FLOWS_IMAGE, REPOSITORY, TORCH_IMAGE, VLLM_IMAGE, need_image

FOLDER = REPOSITORY / "images"


LOCKS = {one.name: one for one in lock.ALL}
PINS = {one.name: lock.pins(one.path) for one in lock.ALL}


@dataclass(frozen=True)
class Image:
    """One of the images that `make images` builds for a CPU."""

    name: str
    tag: str
    lock: str

    def __str__(self) -> str:
        return self.name

    @property
    def attributes(self) -> dict[str, Any]:
        return need_image(self.tag).images.get(self.tag).attrs

    @property
    def layers(self) -> list[str]:
        return self.attributes["RootFS"]["Layers"]

    def run(
        self, *command: str, folders: Mapping[Path, str] | None = None, read_only: bool = True, **options: Any
    ) -> str:
        """Standard output of a command in a container that can write to /tmp, /cache and ``folders`` alone.

        Raises ``docker.errors.ContainerError``, with the command's standard error, when it fails.
        """
        output = need_image(self.tag).containers.run(
            self.tag,
            list(command[1:]),
            entrypoint=[command[0]],
            mounts=[Mount(target, str(source), type="bind") for source, target in (folders or {}).items()],
            read_only=read_only,
            tmpfs={"/tmp": "mode=1777", "/cache": "mode=1777"},
            network_mode="none",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            remove=True,
            **options,
        )
        return output.decode()

    def ask(self, question: str, *arguments: str, **options: Any) -> Any:
        """What `tests/containers/probe.py` finds in a container."""
        probe = {Path(__file__).with_name("probe.py"): "/tmp/probe.py"}
        return json.loads(self.run("python", "/tmp/probe.py", question, *arguments, folders=probe, **options))


FLOWS = Image("flows", FLOWS_IMAGE, "flows")
TORCH = Image("torch", TORCH_IMAGE, "torch-cpu")
VLLM = Image("vllm", VLLM_IMAGE, "vllm-cpu")
ALL = (FLOWS, TORCH, VLLM)
