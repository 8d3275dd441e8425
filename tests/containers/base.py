"""The images on a machine that reaches no registry of images: `python -m tests.containers.base [IMAGE...]`.

The base is made of Debian's packages, and `make images` runs with what this machine's pip is told: wheels in a folder,
an index, certificate authorities. Needs debootstrap, root or sudo, and a Docker CLI with BuildKit; no Python packages.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
BASE = "tomograph-debian:bookworm"
WHEELS = "tomograph-wheels:local"
CANARY = "canary-5d1c8a90e2f74b63"

# What a container never reads, and Debian's package manager makes again.
LEFT_OUT = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")


def cli() -> str:
    """A Docker CLI that builds with BuildKit: one that has it built in (before 23), or its plug-in.

    Raises ``SystemExit`` when there is none.
    """
    found = [Path(folder, "docker") for folder in os.get_exec_path() if os.access(Path(folder, "docker"), os.X_OK)]
    for docker in map(str, found):
        version = subprocess.run([docker, "--version"], capture_output=True, text=True).stdout
        major = re.search(r"version (\d+)", version)
        builtin = major is not None and int(major[1]) < 23
        if builtin or subprocess.run([docker, "buildx", "version"], capture_output=True).returncode == 0:
            return docker
    sys.exit(f"no Docker CLI with BuildKit among {[str(one) for one in found]}: install docker.io, or docker-buildx")


def make_base(docker: str) -> None:
    """A minimal Debian 12 with its Python, as the image BASE, unless it is there.

    Raises ``subprocess.CalledProcessError`` when debootstrap fails, ``SystemExit`` when it is missing.
    """
    if _labels(docker, BASE) is not None:
        return
    if (debootstrap := shutil.which("debootstrap", path=f"{os.environ['PATH']}:/usr/sbin")) is None:
        sys.exit("debootstrap is missing: apt-get install debootstrap")
    as_root = [] if os.geteuid() == 0 else ["sudo"]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        packages = "--include=ca-certificates,python3,python3-venv"
        try:
            log = _output([*as_root, debootstrap, "--variant=minbase", packages, "bookworm", str(tree)])
            print(log.splitlines()[-1])
            left_out = [f"--exclude=./{name}/*" for name in LEFT_OUT]
            pack = [*as_root, "tar", "-C", str(tree), "--numeric-owner", "--one-file-system", *left_out, "-c", "."]
            _import(docker, pack, BASE)
        finally:
            subprocess.run([*as_root, "rm", "-rf", "--one-file-system", str(tree)], check=True)


def make_wheels(docker: str) -> bool:
    """The wheels in pip's folders as the image WHEELS; False where there are none.

    Raises ``subprocess.CalledProcessError`` when the engine refuses them.
    """
    folders = [Path(folder) for folder in pip_setting("find-links").split() if Path(folder).is_dir()]
    wheels = {wheel.name: wheel for folder in folders for wheel in sorted(folder.glob("*.whl"))}
    if not wheels:
        return False
    facts = [(name, wheel.stat().st_size, wheel.stat().st_mtime_ns) for name, wheel in sorted(wheels.items())]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()
    if (_labels(docker, WHEELS) or {}).get("tomograph.wheels") != digest:
        pack = ["tar", "-c", "--dereference"]
        for name, wheel in wheels.items():
            pack += ["-C", str(wheel.parent.resolve()), name]
        _import(docker, pack, WHEELS, "--change", f"LABEL tomograph.wheels={digest}")
    return True


def arguments(docker: str, folder: Path) -> list[str]:
    """What `make images` is told on this machine; images BASE and WHEELS are made if need be, secrets go to ``folder``.

    Raises ``SystemExit`` for an index with a password in its address, which would stay in the images' history.
    """
    make_base(docker)
    told = [f"DOCKER={docker}", f"BASE={BASE}"]
    if make_wheels(docker):
        told.append(f"WHEELS={WHEELS}")
    if index := pip_setting("index-url"):
        if "@" in index:
            sys.exit("pip's index-url holds a login: put it into the file that NETRC names")
        told.append(f"INDEX_URL={index}")
    given = [f"--secret id={name},src={shlex.quote(str(path))}" for name, path in secrets(folder).items()]
    return [*told, f"ARGS={' '.join(given)}"]


def secrets(folder: Path) -> dict[str, Path]:
    """Files with this machine's logins and certificate authorities. Each holds CANARY, which no image may hold."""
    authorities = pip_setting("cert") or os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")
    given = {"netrc": os.environ.get("NETRC"), "ca.crt": authorities}
    files = {}
    for name, source in given.items():
        text = Path(source).read_text() if source else ""
        if name == "netrc":
            text += f"\nmachine index.invalid login {CANARY} password {CANARY}\n"
        elif text:
            text += f"\n# {CANARY}\n"
        else:
            continue
        files[name] = folder / name
        files[name].touch(mode=0o600)
        files[name].write_text(text)
    return files


def pip_setting(name: str) -> str:
    """A setting of pip, from its environment or its files; empty without one."""
    if (value := os.environ.get(f"PIP_{name.replace('-', '_').upper()}")) is not None:
        return value
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", f"global.{name}"], capture_output=True, text=True
    )
    return asked.stdout.strip() if asked.returncode == 0 else ""


def _labels(docker: str, image: str) -> dict[str, str] | None:
    """Labels of an image, None when there is no such image."""
    asked = subprocess.run([docker, "image", "inspect", image], capture_output=True, text=True)
    return (json.loads(asked.stdout)[0]["Config"].get("Labels") or {}) if asked.returncode == 0 else None


def _import(docker: str, pack: list[str], image: str, *options: str) -> None:
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as packing:
        subprocess.run([docker, "import", *options, "-", image], stdin=packing.stdout, check=True)
    if packing.returncode != 0:
        raise subprocess.CalledProcessError(packing.returncode, pack)


def _output(command: list[str]) -> str:
    """What a command prints; it is shown when the command fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        print(done.stdout)
    done.check_returncode()
    return done.stdout


def main(images: list[str]) -> int:
    """Run `make images`; its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = [f"IMAGES={' '.join(images)}"] if images else []
        command = ["make", "-C", str(REPOSITORY), "images", *arguments(cli(), Path(folder)), *chosen]
        print(shlex.join(command), flush=True)
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
