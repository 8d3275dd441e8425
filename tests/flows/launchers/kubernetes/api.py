"""A Kubernetes API server as far as a launcher sees it: real HTTP, bodies of the API's own form, a script for its pods.

``recordings`` holds the objects and states that the routes answer with, in the form of an API server of 1.34. What a
pod does is a list of steps: each is a state that it is in, until a client has seen it; a step with a log lasts until
the log has been read to its end. Every request is kept.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

RECORDINGS = Path(__file__).parent / "recordings"
NAMESPACE = "research"
TOKEN = "a-bearer-token"
STARTED = datetime(2026, 2, 11, 9, 30, 4, tzinfo=UTC)
SEEN_SECONDS = 0.03
ENDS = {
    "admission_error",
    "deadline_exceeded",
    "evicted",
    "exit_1",
    "exit_2",
    "exit_75",
    "killed",
    "node_shutdown",
    "oom_killed",
    "preempted",
    "start_error",
}


def recording(name: str) -> Any:
    return json.loads((RECORDINGS / f"{name}.json").read_text())


@dataclass
class Request:
    """One that the API got."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    text: str

    @property
    def body(self) -> Any:
        return json.loads(self.text)


@dataclass
class Line:
    """A line of a container's log, so many seconds after its start. It is written once ``gate`` is open."""

    after: float
    text: str
    gate: threading.Event | None = None

    @property
    def time(self) -> datetime:
        return STARTED + timedelta(seconds=self.after)

    def encoded(self, timestamps: bool) -> bytes:
        stamp = f"{self.time:%Y-%m-%dT%H:%M:%S}.{self.time.microsecond:06d}042Z "
        return ((stamp if timestamps else "") + self.text + "\n").encode()


@dataclass
class Step:
    """A state of a pod: a recorded status, or None for no pod. ``job`` is the state of its Job, if not the usual one.

    With ``replacement`` it is another pod, that takes the place of a deleted one.

    A log is read by one connection after the other, of which the n-th is cut in the middle of the line after
    ``cuts[n]`` lines. ``log_fault`` is the answer to one who asks for it, instead.
    """

    status: str | None
    log: Sequence[Line] | None = None
    replacement: bool = False
    cuts: Sequence[int] = ()
    log_fault: tuple[int, str] | None = None
    terminating: bool = False
    job: Literal["active", "complete", "failed", "gone", ""] = ""

    @property
    def job_state(self) -> str:
        if self.job:
            return self.job
        ended = {"succeeded": "complete"} | dict.fromkeys(ENDS, "failed")
        return ended.get(self.status or "", "active" if self.status else "")


@dataclass
class Fault:
    """An answer to requests whose "METHOD path?query" matches: a status code with reason and message, or a cut."""

    pattern: str
    times: int
    status: int | None
    reason: str = "InternalError"
    message: str = "etcdserver: request timed out"


@dataclass
class Pod:
    """The pod of a Job, and where its script has got to."""

    steps: Sequence[Step]
    at: int = 0
    version: int = 1000
    written: list[Line] = field(default_factory=list)
    connections: int = 0
    advancing: bool = False

    @property
    def step(self) -> Step:
        return self.steps[self.at]


class KubernetesApi:
    """The server. ``steps`` is what the pod of every Job does that is created."""

    def __init__(
        self, steps: Sequence[Step] = (), *, runs_shards: bool = False, certificate: Path | None = None
    ) -> None:
        self.steps = steps
        self.runs_shards = runs_shards
        """The container's arguments are run, as a process of this machine."""
        self.certificate = certificate
        """For TLS: its own authority, with its key."""
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.events: list[dict[str, Any]] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, Pod] = {}
        self.other_pods: dict[tuple[str, str], dict[str, Any]] = {}
        self.changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._shards: dict[str, subprocess.Popen[str]] = {}
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that goes away

    @property
    def url(self) -> str:
        return f"http{'s' if self.certificate else ''}://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @contextlib.contextmanager
    def running(self) -> Iterator[KubernetesApi]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()
            for shard in self._shards.values():
                shard.kill()

    def kubeconfig(self, path: Path, namespace: str | None = NAMESPACE) -> Path:
        cluster = {"server": self.url}
        if self.certificate:
            cluster["certificate-authority"] = str(self.certificate)
        context = {"cluster": "here", "user": "me"} | ({"namespace": namespace} if namespace else {})
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": "me", "user": {"token": TOKEN}}],
            "contexts": [{"name": "here", "context": context}],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def fail(self, pattern: str, times: int, status: int | None, reason: str = "", message: str = "") -> None:
        given = {name: value for name, value in (("reason", reason), ("message", message)) if value}
        self.faults.append(Fault(pattern, times, status, **given))

    def asked(self, pattern: str) -> list[Request]:
        """Requests so far whose "METHOD path" matches."""
        return [one for one in self.requests if re.search(pattern, f"{one.method} {one.path}")]

    def created(self) -> dict[str, Any]:
        """The body of the one Job that was created."""
        [request] = self.asked("^POST .*/jobs$")
        return request.body

    def add_job(self, name: str, labels: dict[str, str], annotations: dict[str, str], finished: bool = False) -> None:
        metadata = recording("job")["metadata"]
        metadata |= {"name": name, "namespace": NAMESPACE, "labels": labels, "annotations": annotations}
        self.jobs[name] = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {}}
        self.pods[name] = Pod([Step("succeeded" if finished else "running")])

    # What the cluster does

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        job, own = copy.deepcopy(body), recording("job")
        job["metadata"] |= own["metadata"]
        job["spec"] = own["spec"] | job["spec"]
        job["status"] = own["status"]
        name = job["metadata"]["name"]
        self.jobs[name] = job
        if self.runs_shards:
            self.pods[name] = Pod([Step("pending"), Step("running", log=[])])
            threading.Thread(target=self._run, args=(name, job), daemon=True).start()
        else:
            self.pods[name] = Pod(self.steps)
        return job

    def _run(self, name: str, job: dict[str, Any]) -> None:
        [container] = job["spec"]["template"]["spec"]["containers"]
        environment = {one["name"]: one["value"] for one in container["env"]}
        command = [sys.executable, "-m", "tasks", *container["args"]]
        inherited = {name: os.environ[name] for name in ("PATH", "TOMOGRAPH_PLUGINS")}
        inherited["PYTHONPATH"] = str(Path(__file__).parents[3])
        started = time.monotonic()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=inherited | environment, text=True
        ) as shard:
            self._shards[name] = shard
            assert shard.stdout
            for text in shard.stdout:
                with self.changed:
                    self.pods[name].written.append(Line(time.monotonic() - started, text.rstrip("\n")))
                    self.changed.notify_all()
        code = shard.returncode
        status = {0: "succeeded", 1: "exit_1", 2: "exit_2", 75: "exit_75"}.get(code, "killed")
        with self.changed:
            pod = self.pods[name]
            pod.steps = [*pod.steps, Step(status)]
            self._move(pod)

    def delete(self, name: str) -> None:
        """As propagation in the background does: the Job is gone at once, its pod soon."""
        if name in self._shards:
            self._shards[name].terminate()
        with self.changed:
            del self.jobs[name]
            pod = self.pods[name]
            pod.steps = [
                *pod.steps[: pod.at + 1],
                Step("deleted", terminating=True, job="gone"),
                Step(None, job="gone"),
            ]
            self._move(pod)

    def seen(self, pod: Pod) -> None:
        """A client has seen the state that the pod is in: it goes on, unless its log is to be read first."""
        with self.changed:
            if pod.step.log is None and pod.at + 1 < len(pod.steps) and not pod.advancing:
                pod.advancing = True
                threading.Timer(SEEN_SECONDS, self.advance, [pod, pod.at]).start()

    def advance(self, pod: Pod, came_from: int) -> None:
        with self.changed:
            if pod.at == came_from:
                self._move(pod)

    def _move(self, pod: Pod) -> None:
        if pod.at + 1 < len(pod.steps):
            pod.at += 1
        pod.version += 1
        pod.advancing = False
        self.changed.notify_all()

    def job_object(self, name: str) -> dict[str, Any] | None:
        job = copy.deepcopy(self.jobs.get(name))
        pod = self.pods.get(name)
        if job is None or pod is None or pod.step.job == "gone":
            return None
        if state := pod.step.job_state:
            job["status"] = recording("job_finished")[state]
        return job

    def pod_object(self, name: str) -> dict[str, Any] | None:
        pod, job = self.pods[name], self.jobs.get(name) or {}
        if pod.step.status is None:
            return None
        template = (job.get("spec") or {}).get("template") or {"metadata": {}, "spec": {"containers": [{}]}}
        made = copy.deepcopy(recording("pod"))
        suffix = "q9w8e" if pod.step.replacement else "x7k2p"
        labels = {**template["metadata"].get("labels", {}), "batch.kubernetes.io/job-name": name, "job-name": name}
        made["metadata"] |= {
            "name": f"{name}-{suffix}",
            "uid": f"{made['metadata']['uid'][:-5]}{suffix}",
            "generateName": f"{name}-",
            "namespace": NAMESPACE,
            "resourceVersion": str(pod.version),
            "labels": labels,
            "annotations": template["metadata"].get("annotations", {}),
        }
        made["spec"] |= template["spec"]
        if pod.step.status not in ("pending", "unschedulable", "unschedulable_claim"):
            made["spec"]["nodeName"] = "gpu-node-3"
        if pod.step.terminating:
            made["metadata"] |= {"deletionTimestamp": "2026-02-11T09:31:07Z", "deletionGracePeriodSeconds": 5}
        return {"apiVersion": "v1", "kind": "Pod", **made, "status": recording(f"statuses/{pod.step.status}")}


def make_certificate(path: Path) -> Path:
    """A certificate of this machine that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(here, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(certificate.public_bytes(Encoding.PEM) + private)
    return path


def _handler(api: KubernetesApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self.answer("GET")

        def do_POST(self) -> None:
            self.answer("POST")

        def do_DELETE(self) -> None:
            self.answer("DELETE")

        def log_message(self, *_: object) -> None:
            """The requests are kept."""

        def answer(self, method: str) -> None:
            url = urlsplit(self.path)
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            self.query = dict(parse_qsl(url.query))
            headers = {name.lower(): value for name, value in self.headers.items()}
            api.requests.append(Request(method, url.path, self.query, headers, text))
            for fault in api.faults:
                if fault.times and re.search(fault.pattern, f"{method} {self.path}"):
                    fault.times -= 1
                    return self.fault(fault)
            if self.headers.get("Authorization", "").lower() != f"bearer {TOKEN}":  # the client writes both
                return self.status(401, "Unauthorized", "Unauthorized")
            for verb, pattern, route in self.routes:
                if verb == method and (match := re.fullmatch(pattern, url.path)):
                    try:
                        return route(self, *match.groups(), *([json.loads(text)] if method == "POST" else []))
                    except ConnectionError:  # the client has gone, or is to believe that we have
                        self.close_connection = True
                        return None
            return self.status(404, "NotFound", "the server could not find the requested resource")

        def create_job(self, namespace: str, body: dict[str, Any]) -> None:
            name = body["metadata"]["name"]
            if namespace != NAMESPACE:
                return self.status(404, "NotFound", f'namespaces "{namespace}" not found')
            if name in api.jobs:
                return self.status(409, "AlreadyExists", f'jobs.batch "{name}" already exists')
            return self.json(api.create(body), 201)

        def list_jobs(self, namespace: str) -> None:
            found = [job for name in list(api.jobs) if (job := api.job_object(name)) and namespace == NAMESPACE]
            self.list("batch/v1", "JobList", [job for job in found if self.selected(job)])

        def read_job(self, _: str, name: str) -> None:
            job = api.job_object(name)
            pod = api.pods.get(name)
            self.json(job) if job else self.status(404, "NotFound", f'jobs.batch "{name}" not found')
            if pod:
                api.seen(pod)

        def delete_job(self, _: str, name: str) -> None:
            if name not in api.jobs:
                return self.status(404, "NotFound", f'jobs.batch "{name}" not found')
            api.delete(name)
            return self.json({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})

        def list_pods(self, _: str) -> None:
            name = self.query["labelSelector"].removeprefix("job-name=")
            pod = api.pods[name]
            if self.query.get("watch") == "true":
                return self.watch(name, pod)
            found = api.pod_object(name)
            self.list("v1", "PodList", [found] if found else [], pod.version)
            if found or pod.step.job == "gone":
                api.seen(pod)
            return None

        def watch(self, name: str, pod: Pod) -> None:
            since, deadline = int(self.query["resourceVersion"]), time.monotonic() + int(self.query["timeoutSeconds"])
            self.begin("application/json")
            with api.changed:
                api.changed.wait_for(lambda: pod.version > since, deadline - time.monotonic())
                event = {"type": "MODIFIED", "object": api.pod_object(name) or {}} if pod.version > since else None
            if event:
                self.chunk(json.dumps(event).encode() + b"\n")
            self.chunk(b"")

        def read_pod(self, namespace: str, name: str) -> None:
            pod = api.other_pods.get((namespace, name))
            self.json(pod) if pod else self.status(404, "NotFound", f'pods "{name}" not found')

        def read_log(self, _: str, name: str) -> None:
            assert self.query["container"] == "shard"
            assert self.query["follow"] == "true"
            pod = api.pods[name.removesuffix("-x7k2p")]
            if pod.step.log_fault:
                code, message = pod.step.log_fault
                return self.status(code, "BadRequest" if code == 400 else "InternalError", message)
            stamps = self.query.get("timestamps") == "true"
            since = datetime.fromisoformat(self.query.get("sinceTime", "1970-01-01T00:00:00Z"))
            live = pod.step if pod.step.log is not None else None
            number, pod.connections = pod.connections, pod.connections + 1
            cut = live.cuts[number] if live and number < len(live.cuts) else None
            sent = 0
            self.begin("text/plain")
            for line in self.lines(pod, live):
                if line.time < since:
                    continue
                if cut == sent:
                    self.chunk(line.encoded(stamps)[:40])
                    self.close_connection = True
                    return None  # the connection is closed without the last chunk
                self.chunk(line.encoded(stamps))
                sent += 1
            self.chunk(b"")
            return None

        def lines(self, pod: Pod, live: Step | None) -> Iterator[Line]:
            """What was written, then what is being written until the container ends."""
            done, at = 0, pod.at
            while True:
                with api.changed:
                    if live and not api.runs_shards and len(pod.written) == done and done < len(live.log or ()):
                        line = (live.log or ())[done]
                        if line.gate is None or line.gate.is_set():
                            pod.written.append(line)
                    fresh = pod.written[done:]
                    ended = pod.at != at or live is None
                    if not fresh and not ended:
                        if not api.runs_shards and done == len(live.log or ()):
                            api._move(pod)
                            return
                        api.changed.wait(0.02)
                yield from fresh
                done += len(fresh)
                if ended and not fresh:
                    return

        def list_events(self, _: str) -> None:
            self.list("v1", "EventList", api.events)

        def selected(self, found: dict[str, Any]) -> bool:
            wanted = (term.split("=") for term in self.query["labelSelector"].split(","))
            return all(found["metadata"]["labels"].get(name) == value for name, value in wanted)

        def list(self, version: str, kind: str, items: list[dict[str, Any]], at: int = 482990) -> None:
            self.json({"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": str(at)}, "items": items})

        def fault(self, fault: Fault) -> None:
            if fault.status is None:
                self.close_connection = True
                return None
            if fault.status == 200:  # something in front of the API answers for it
                return self.send("text/html", fault.message.encode(), 200)
            return self.status(fault.status, fault.reason, fault.message)

        def status(self, code: int, reason: str, message: str) -> None:
            body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
            self.json(body | {"reason": reason, "code": code}, code)

        def json(self, body: dict[str, Any], code: int = 200) -> None:
            self.send("application/json", json.dumps(body).encode(), code)

        def send(self, content_type: str, data: bytes, code: int) -> None:
            self.send_response(code)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def begin(self, content_type: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()

        def chunk(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

        routes = (
            ("POST", r"/apis/batch/v1/namespaces/([^/]+)/jobs", create_job),
            ("GET", r"/apis/batch/v1/namespaces/([^/]+)/jobs", list_jobs),
            ("GET", r"/apis/batch/v1/namespaces/([^/]+)/jobs/([^/]+)", read_job),
            ("DELETE", r"/apis/batch/v1/namespaces/([^/]+)/jobs/([^/]+)", delete_job),
            ("GET", r"/api/v1/namespaces/([^/]+)/pods", list_pods),
            ("GET", r"/api/v1/namespaces/([^/]+)/pods/([^/]+)", read_pod),
            ("GET", r"/api/v1/namespaces/([^/]+)/pods/([^/]+)/log", read_log),
            ("GET", r"/api/v1/namespaces/([^/]+)/events", list_events),
        )

    return Handler
