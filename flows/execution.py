"""Where and how shards run: the parameters of a flow that are no part of what it asks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flows.launchers.base import Launcher
from flows.launchers.settings import ContainerSettings, DockerSettings, KubernetesSettings
from tasks.places.location import Location
from tasks.spec import LARGEST_BATCH

StoreLocation = Annotated[Location, Field(min_length=1)]
"""A folder or a URL. An empty one would be the folder in which a worker happens to run."""


class Execution(BaseModel):
    """Where and how the work runs. `device` may change the last digits of numbers, and in a patching study the engine
    that `auto` comes to; `threads` and `batch_size` may change last bits. Nothing else here changes a result."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    launcher: Literal["process", "docker", "kubernetes"] = Field(
        "process",
        description="What runs a shard: `process` is a subprocess on this machine, `docker` a container of the "
        "engine on this machine, `kubernetes` a job in a cluster.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="`auto` takes the GPUs if this machine has any, else the CPU. In a patching study whose "
        "`trials.engine` is `auto` too, this decides the engine. Devices round differently: a shard that goes on on "
        "another one starts over.",
    )
    slots: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Places for shards: GPUs, of which a shard takes one or as many as its model asks for, or shares "
        "of the CPU. Empty: every GPU, or one place for every two cores; in Kubernetes, eight jobs at a time.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads of each shard. Empty: the cores, shared evenly by the slots. May change last bits.",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        le=LARGEST_BATCH,
        description="Sequences in one forward pass. Empty: what suits the device; "
        "it is halved by itself when memory runs out. May change last bits.",
    )
    retries: int = Field(
        3,
        ge=0,
        le=20,
        description="Further attempts at a shard that was killed or met a passing fault. "
        "Bad input and bugs are never retried.",
    )
    timeout_minutes: float | None = Field(
        None,
        gt=0,
        le=525_600,
        description="An attempt at a shard that takes longer is stopped; the next one goes on from its last chunk. "
        "Empty: no limit.",
    )
    container: ContainerSettings = Field(
        ContainerSettings(), description="The containers of the launchers `docker` and `kubernetes`."
    )
    docker: DockerSettings = Field(DockerSettings(), description="Of the launcher `docker` only.")
    kubernetes: KubernetesSettings = Field(KubernetesSettings(), description="Of the launcher `kubernetes` only.")

    def make_launcher(self) -> Launcher[Any]:
        """The launcher that was chosen. Clients are imported for the one that needs them.

        Raises:
            BadInput: the machine it needs can't be reached.
        """
        if self.launcher == "docker":
            from flows.launchers.docker.launcher import DockerLauncher

            return DockerLauncher(self.container, self.docker)
        if self.launcher == "kubernetes":
            from flows.launchers.kubernetes.launcher import KubernetesLauncher

            return KubernetesLauncher(self.container, self.kubernetes, self.timeout_minutes)
        from flows.launchers.process import ProcessLauncher

        return ProcessLauncher()
