"""What the kubernetes launcher asks a cluster for, as the rights that the cluster checks."""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes import client

from flows.launchers.kubernetes.cluster import Cluster

Right = tuple[str, str, str]
"""API group, resource and verb."""

NAMESPACE = "tomograph"
CALLS: dict[str, Callable[[Cluster], Any]] = {
    "create_job": lambda cluster: cluster.create_job({"metadata": {"name": "a"}}),
    "delete_job": lambda cluster: cluster.delete_job("a", 5),
    "job": lambda cluster: cluster.job("a"),
    "jobs": lambda cluster: cluster.jobs("a=b"),
    "pod": lambda cluster: cluster.pod("a", NAMESPACE),
    "pods_of": lambda cluster: cluster.pods_of("a"),
    "await_change": lambda cluster: cluster.await_change("a", "1", 1),
    "warnings": lambda cluster: cluster.warnings("uid"),
    "log": lambda cluster: cluster.log("a", "shard", None),
}
LOCAL = {"connect", "until", "host"}
"""Of its methods, those that ask the cluster for nothing."""


def calls_of_the_launcher() -> set[Right]:
    """The right that each call of ``Cluster`` needs, seen on the wire."""
    public = {name for name, _ in inspect.getmembers(Cluster) if not name.startswith("_")}
    assert public == CALLS.keys() | LOCAL
    with _api() as (address, seen):
        configuration = client.Configuration(host=address)
        cluster = Cluster(client.ApiClient(configuration), NAMESPACE, None)
        for call in CALLS.values():
            before = len(seen)
            call(cluster)
            assert len(seen) == before + 1
    return set(seen)


@contextmanager
def _api() -> Iterator[tuple[str, list[Right]]]:
    """A server that grants everything and says nothing."""
    seen: list[Right] = []

    class Api(BaseHTTPRequestHandler):
        def answer(self) -> None:
            seen.append(_right(self.command, self.path))
            body = json.dumps({"items": [], "metadata": {"resourceVersion": "1"}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


def _right(method: str, target: str) -> Right:
    """ "GET /api/v1/namespaces/n/pods/p/log" needs ("", "pods/log", "get")."""
    url = urlsplit(target)
    parts = url.path.strip("/").split("/")
    group = "" if parts[0] == "api" else parts[1]
    _, _, resource, *rest = parts[2 if parts[0] == "api" else 3 :]
    name, *subresource = rest or [""]
    if method == "GET":
        verb = "get" if name else "watch" if "watch" in parse_qs(url.query) else "list"
    else:
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]
    return group, "/".join([resource, *subresource]), verb
