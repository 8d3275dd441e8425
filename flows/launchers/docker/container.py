"""The container of a shard, as the body of the Docker API's request to create it (``ContainerCreate``)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.launchers.base import COMMAND, ShardRun
from flows.launchers.settings import ContainerSettings, DockerSettings, Volume, size_in_bytes
from flows.slots import Lease
from tasks.errors import BadInput
from tasks.gpus import PROMISE

CACHE = "/cache"
TEMPORARY = "/tmp"
CACHE_VOLUME = "tomograph-cache"
SECRETS = "/run/secrets/tomograph"
PASSED_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_", "FSSPEC_", "HF_", "TOMOGRAPH_")
KEPT_PREFIXES = ("TOMOGRAPH_LABEL_", "TOMOGRAPH_REPORTS_")
KEPT = frozenset(
    {"TOMOGRAPH_CACHE", "TOMOGRAPH_RUNTIME_DIR", "TOMOGRAPH_DOCKER_NETWORK", "TOMOGRAPH_VLLM_PYTHON"}
    | {"TOMOGRAPH_TORCH_IMAGE", "TOMOGRAPH_VLLM_IMAGE", "TOMOGRAPH_FLOWS_IMAGE"}
)
"""Variables of the flow's own machine, of no use in a container."""
LOG_OPTIONS = {"max-size": "16m", "max-file": "2"}


@dataclass(frozen=True)
class Image:
    """An image that an engine has: its reference, its identity there, and the digest that names it anywhere.

    ``digest`` is the registry's where the image came from one, else the image's own identity.
    """

    reference: str
    identity: str
    digest: str

    def __str__(self) -> str:
        """ "reference@sha256:..." """
        return f"{self.reference.partition('@')[0]}@{self.digest}"


def container_body(
    run: ShardRun,
    lease: Lease,
    image: Image,
    container: ContainerSettings,
    docker: DockerSettings,
    *,
    cdi: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Everything about the container of a shard.

    Its standard input stays open for as long as the flow is attached to it, and the shard ends when it closes.

    Args:
        cdi: name GPUs by the Container Device Interface, as podman wants it.

    Raises:
        BadInput: a volume takes the place of the store or of credentials.
    """
    store = _local_store(run)
    user = _user(store)
    given, files = _passed(environ, docker.variables)
    variables = {
        **given,
        "OMP_NUM_THREADS": str(run.threads),
        "TOMOGRAPH_IMAGE": str(image),
        PROMISE: ",".join(lease.uuids),
    }
    if not lease.uuids:
        variables["NVIDIA_VISIBLE_DEVICES"] = "void"  # an engine whose default runtime is NVIDIA's gives all
    memory = size_in_bytes(container.memory) if container.memory else 0
    mounts = _mounts(container.volumes, _cache_volume(user), store, files)
    host = {
        "NetworkMode": docker.network or environ.get("TOMOGRAPH_DOCKER_NETWORK") or "bridge",
        "ReadonlyRootfs": True,
        "Tmpfs": {} if any(mount["Target"] == TEMPORARY for mount in mounts) else {TEMPORARY: "rw,exec,mode=1777"},
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "ShmSize": size_in_bytes(container.shared_memory),
        "Memory": memory,
        "MemorySwap": memory,  # the same: no swap on top
        "DeviceRequests": _device_requests(lease, cdi),
        "Mounts": mounts,
        "LogConfig": {"Type": "json-file", "Config": LOG_OPTIONS},
    }
    return {
        "Image": image.identity,
        "Entrypoint": list(COMMAND),
        "Cmd": [*run.arguments, "--exit-with-parent"],
        "Env": [f"{name}={value}" for name, value in sorted(variables.items())],
        "Labels": run.labels.as_labels(),
        "User": user,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "OpenStdin": True,
        "StdinOnce": True,
        "HostConfig": host,
    }


def _local_store(run: ShardRun) -> Path | None:
    """The folder that is the store, None for one that a URL names."""
    root = run.store
    return None if "://" in root else Path(root).resolve()


def _user(store: Path | None) -> str:
    """The flow's own user, so that what it may read and write, the shard may; root becomes the image's user.

    Only in a folder of root's does a shard have to be root to write, and then without any capability.
    """
    if os.getuid():
        return f"{os.getuid()}:{os.getgid()}"
    if store is None:
        return ""
    owner = next(path for path in (store, *store.parents) if path.exists()).stat()
    return f"{owner.st_uid}:{owner.st_gid}"


def _cache_volume(user: str) -> str:
    """One for each user: what one has downloaded, another can't complete or replace."""
    return f"{CACHE_VOLUME}-{user.partition(':')[0]}" if user else CACHE_VOLUME


def _passed(environ: Mapping[str, str], more: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Variables that a shard gets, and the files of the host that some of them name: host's path by container's.

    A variable that names a folder of the host is not passed on: it means nothing in a container.
    """
    names = {name for name in environ if name.startswith(PASSED_PREFIXES) and not name.startswith(KEPT_PREFIXES)}
    variables, files = {}, {}
    for name in (names - KEPT) | (set(more) & environ.keys()):
        value = environ[name]
        if value.startswith("/") and os.path.isfile(value):
            variables[name] = f"{SECRETS}/{name}"
            files[variables[name]] = value
        elif not (value.startswith("/") and os.path.isdir(value)):
            variables[name] = value
    return variables, files


def _device_requests(lease: Lease, cdi: bool) -> list[dict[str, Any]]:
    if not lease.uuids:
        return []
    if cdi:
        return [{"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={uuid}" for uuid in lease.uuids]}]
    capabilities = [["gpu", "compute", "utility"]]
    return [{"Driver": "nvidia", "Count": 0, "DeviceIDs": list(lease.uuids), "Capabilities": capabilities}]


def _mounts(volumes: Iterable[str], cache: str, store: Path | None, files: Mapping[str, str]) -> list[dict[str, Any]]:
    given = {volume.path: _mount(volume) for volume in map(Volume.of, volumes)}
    own = {CACHE: {"Type": "volume", "Source": cache, "Target": CACHE, "ReadOnly": False}}
    needed = {} if store is None else {str(store): _bind(str(store), str(store), read_only=False)}
    needed |= {target: _bind(source, target, read_only=True) for target, source in sorted(files.items())}
    if taken := sorted(given.keys() & needed.keys()):
        problem = f"takes {', '.join(taken)}, where a shard finds its store or credentials"
        raise BadInput("execution.container.volumes", list(volumes), problem, "give it another place")
    return list((own | given | needed).values())


def _bind(source: str, target: str, *, read_only: bool) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only}


def _mount(volume: Volume) -> dict[str, Any]:
    """A source with a slash is a folder, as on Docker's command line."""
    if "/" in volume.source or volume.source.startswith((".", "~")):
        return _bind(str(Path(volume.source).expanduser().resolve()), volume.path, read_only=volume.read_only)
    return {"Type": "volume", "Source": volume.source, "Target": volume.path, "ReadOnly": volume.read_only}
