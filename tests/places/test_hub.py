"""Hub names, in fresh processes: huggingface_hub reads its environment when it is imported."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tests.models.conftest import ROOT

pytestmark = pytest.mark.slow

OLD, NEW = "1" * 40, "2" * 40


def lay_out(hub_cache: Path, repo: str, commit: str, folder: Path, ref: str = "main") -> None:
    """Put `folder` into a hub cache as the hub client does: blobs, a snapshot of links to them, and a ref."""
    root = hub_cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / ref).write_text(commit)
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir(exist_ok=True)
    for file in folder.iterdir():
        blob = root / "blobs" / f"{commit[:4]}-{file.name}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)


@pytest.fixture
def offline(tmp_path, tiny_folder):
    """Environment of a user without network whose cache holds two commits of org/tiny."""
    old = shutil.copytree(tiny_folder, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps(config | {"architectures": ["Old"]}))
    lay_out(tmp_path / "hf/hub", "org/tiny", OLD, old, ref="v1")
    lay_out(tmp_path / "hf/hub", "org/tiny", NEW, tiny_folder)
    return {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}


def test_fingerprint_and_description_follow_the_revision(run_python, offline):
    out = run_python(
        """
from tasks.models.describe import describe
from tasks.models.fingerprint import fingerprint
from tasks.models.spec import ModelRef
for revision in (None, "main", "v1", "1" * 40):
    ref = ModelRef(source="org/tiny", revision=revision)
    print(fingerprint(ref), describe(ref).architecture)
""",
        **offline,
    )
    new, old = f"hub-{NEW} LlamaForCausalLM", f"hub-{OLD} Old"
    assert out.splitlines() == [new, new, old, old]


def test_loads_offline_and_equals_the_folder(run_python, offline, tiny_folder):
    out = run_python(
        f"""
import torch
from tasks.models.load import load
from tasks.models.spec import ModelRef
ids = torch.tensor([[1, 20, 30, 40]])
hub = load(ModelRef(source="org/tiny"), expected_fingerprint="hub-{NEW}")
folder = load(ModelRef(source={str(tiny_folder)!r}))
print(torch.equal(hub.model(ids).logits, folder.model(ids).logits))
print(hub.tokenizer("Bet $10").input_ids == folder.tokenizer("Bet $10").input_ids)
""",
        **offline,
    )
    assert out.splitlines() == ["True", "True"]


REPORT_ERROR = """
from tasks.errors import BadInput, TransientError
from tasks.models.fingerprint import fingerprint
from tasks.models.spec import ModelRef
try:
    print(fingerprint(ModelRef(**{ref!r})))
except (BadInput, TransientError) as error:
    print(type(error).__name__, getattr(error, "field", ""), error)
"""


def test_what_is_not_in_the_cache_is_refused_offline(run_python, offline):
    for ref in ({"source": "org/other"}, {"source": "org/tiny", "revision": "v9"}):
        out = run_python(REPORT_ERROR.format(ref=ref), **offline)
        assert out.startswith("BadInput model.source")
        assert "HF_HUB_OFFLINE" in out


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does: files of org/tiny, and errors for repositories that a user cannot have."""

    folder: ClassVar[Path]
    broken: ClassVar[set[str]] = set()
    errors: ClassVar = {
        "gated": (403, "GatedRepo"),
        "private": (401, "RepoNotFound"),
        "absent": (404, "RepoNotFound"),
        "norevision": (404, "RevisionNotFound"),
        "noconfig": (404, "EntryNotFound"),
    }

    def do_GET(self):
        path = self.path.split("?")[0].split("/")
        if path[1:4] == ["api", "models", "org"]:  # /api/models/org/tiny/tree/COMMIT
            tree = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in self.folder.iterdir()
            ]
            return self.answer(200, body=json.dumps(tree).encode())
        repo, name = path[2] if len(path) > 2 else "", path[-1]
        file = self.folder / name
        if repo in self.errors:
            return self.answer(*self.errors[repo])
        if name in self.broken:
            return self.answer(503)
        if repo != "tiny" or not file.is_file():
            return self.answer(404, "EntryNotFound")
        return self.answer(200, body=file.read_bytes())

    do_HEAD = do_GET

    def answer(self, status: int, code: str = "", body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", NEW)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub_server(tiny_folder):
    Hub.folder = tiny_folder
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


LOAD_TWICE_CUT_OFF_ONCE = """
import time
time.sleep = lambda seconds: None  # instead of the hub client's own waits
import torch
from tasks.errors import TransientError
from tasks.models.load import load
from tasks.models.spec import ModelRef
try:
    load(ModelRef(source="org/tiny"))
except TransientError:
    print("again")
print("unbreak", flush=True)
input()
hub, folder = load(ModelRef(source="org/tiny")), load(ModelRef(source={folder!r}))
ids = torch.tensor([[1, 20, 30]])
print(torch.equal(hub.model(ids).logits, folder.model(ids).logits))
"""


def test_loads_online_and_a_lost_connection_is_worth_a_retry(hub_server, tiny_folder, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(Hub, "broken", {"model.safetensors"})
    env = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub_server, "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", LOAD_TWICE_CUT_OFF_ONCE.format(folder=str(tiny_folder))],
        env=os.environ | env,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        first = [process.stdout.readline().strip() for _ in range(2)]
        Hub.broken = set()
        out, err = process.communicate("\n", timeout=120)
    assert first == ["again", "unbreak"], err
    assert out.strip() == "True", err


@pytest.mark.parametrize(
    ("repo", "start", "remedy"),
    [
        ("gated", "BadInput model.source", "accept its conditions at http"),
        ("private", "BadInput model.source", "hf auth login"),
        ("absent", "BadInput model.source", "check the spelling"),
        ("norevision", "BadInput model.revision", "existing branch, tag or commit"),
        ("noconfig", "BadInput model.source", "hf://ORG/NAME/FILE.gguf"),
    ],
)
def test_answers_of_the_hub(run_python, hub_server, tmp_path, repo, start, remedy):
    ref = {"source": f"org/{repo}", "revision": "v1"}
    out = run_python(REPORT_ERROR.format(ref=ref), HF_HOME=str(tmp_path), HF_ENDPOINT=hub_server, HF_HUB_OFFLINE="0")
    assert out.startswith(start)
    assert remedy in out


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("http://127.0.0.1:9", "connection refused"),
        ("http://no-such-host.invalid", "the server's name can't be resolved"),
    ],
)
def test_a_hub_that_is_not_there_is_not_waited_for_again(run_python, tmp_path, endpoint, why):
    """Its client waits 24 s by itself."""
    at_once = "import time; time.sleep = lambda seconds: None\n"  # instead of the hub client's own waits
    out = run_python(
        at_once + REPORT_ERROR.format(ref={"source": "org/any"}),
        HF_HOME=str(tmp_path),
        HF_ENDPOINT=endpoint,
        HF_HUB_OFFLINE="0",
    )
    assert out.startswith("BadInput model.source")
    assert f"the hub at {endpoint} can't be reached: {why}" in out
    assert "HF_HUB_OFFLINE=1" in out
