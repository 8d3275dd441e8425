"""Settings of the launchers that run shards in containers: parameters of a flow that don't change its results."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tasks.errors import shown

LARGEST_SIZE = 2**60
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def size_in_bytes(text: str) -> int:
    """ "16GiB", "16G" and "17179869184" are the same size: units are powers of 1024.

    Raises:
        ValueError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = float(match[1]) * _UNITS[match[2].upper()] if match else 0
    if not 1 <= size <= LARGEST_SIZE:
        raise ValueError(f"{shown(text)} is no size; write 16GiB or 512MiB")
    return int(size)


def _size(text: str) -> str:
    size_in_bytes(text)
    return text


def _volumes(texts: list[str]) -> list[str]:
    paths = [Volume.of(text).path for text in texts]
    if twice := sorted({path for path in paths if paths.count(path) > 1}):
        raise ValueError(f"there are several volumes at {', '.join(twice)}; give each a place of its own")
    return texts


class Volume(BaseModel):
    """A folder of the host, or a named volume or claim, and where a container sees it."""

    source: str
    path: str
    read_only: bool

    @classmethod
    def of(cls, text: str) -> Volume:
        """ "models:/models:ro" or "/srv/models:/models".

        Raises:
            ValueError: the text says no such thing.
        """
        source, _, rest = text.partition(":")
        path, _, mode = rest.partition(":")
        if not source or not path.startswith("/") or mode not in ("", "ro", "rw"):
            raise ValueError(f"{text!r} is no volume; write SOURCE:/path/in/container, with :ro where it is only read")
        return cls(source=source, path=str(PurePosixPath(path)), read_only=mode == "ro")


Size = Annotated[str, AfterValidator(_size)]


class ContainerSettings(BaseModel):
    """What a shard's container is made of, on Docker and on Kubernetes."""

    model_config = ConfigDict(extra="forbid")

    images: dict[str, str] = Field(
        {},
        description="Image of each environment (`torch`, `vllm`). One that is not named here is the variable "
        "TOMOGRAPH_TORCH_IMAGE (TOMOGRAPH_VLLM_IMAGE) of the flow, else what `make images` made. "
        "Kubernetes needs references with a digest: registry/name@sha256:...",
    )
    memory: Size | None = Field(None, description="Memory limit of a shard, such as 64GiB. Empty: none.")
    shared_memory: Size = Field(
        "2GiB", description="Size of /dev/shm, through which processes of a shard share tensors."
    )
    volumes: Annotated[list[str], AfterValidator(_volumes)] = Field(
        [],
        description="Folders that shards see, each as SOURCE:/path[:ro]. SOURCE is a folder of the host or a named "
        "volume, in Kubernetes a claim. A volume at /cache replaces the default place of downloaded models.",
    )


class DockerSettings(BaseModel):
    """What only the docker launcher asks for. The engine is that of DOCKER_HOST, else this machine's."""

    model_config = ConfigDict(extra="forbid")

    network: str | None = Field(
        None,
        description="Network of the containers; `host` reaches a store on this machine. "
        "Empty: that of the flow's variable TOMOGRAPH_DOCKER_NETWORK, else `bridge`.",
    )
    variables: list[str] = Field(
        [],
        description="Names of environment variables of the flow that shards get too. Those of object stores and of "
        "Hugging Face (AWS_, AZURE_, GOOGLE_, FSSPEC_, HF_, TOMOGRAPH_) always are. Values are never recorded.",
    )


class KubernetesSettings(BaseModel):
    """What only the kubernetes launcher asks for. The cluster is the flow's own, else that of the kubeconfig."""

    model_config = ConfigDict(extra="forbid")

    namespace: str | None = Field(None, description="Namespace of the jobs. Empty: the flow's own, else `default`.")
    secrets: list[str] = Field(
        ["tomograph-credentials"],
        description="Secrets whose keys become environment variables of a shard: credentials of the store, HF_TOKEN.",
    )
    service_account: str | None = Field(None, description="Service account of the shards' pods.")
    cpu: str | None = Field(None, description="CPUs that a shard asks for, such as 8. Empty: as many as its threads.")
    gpu_resource: str = Field("nvidia.com/gpu", description="Name of the GPU in the cluster.")
    node_selector: dict[str, str] = Field({}, description="Labels of the nodes that shards may run on.")
    tolerations: list[dict[str, str]] = Field([], description="Taints of nodes that shards put up with.")
