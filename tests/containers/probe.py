"""Looks at the container that it runs in and prints what it finds, as JSON: `probe.py QUESTION [ARGUMENT...]`."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import pkgutil
import re
import struct
import sys
from pathlib import Path

FOR_ALL = ("/cache", "/dev", "/proc", "/run/lock", "/sys", "/tmp", "/var/tmp")
SITE_PACKAGES = "/opt/venv/lib/python3.11/site-packages"


def rights() -> dict[str, object]:
    """Who runs here, with which capabilities, and what it may write beside what is everybody's."""
    status = Path("/proc/self/status").read_text()
    folders = [folder for folder, _, _ in os.walk("/") if not folder.startswith(FOR_ALL)]
    return {
        "user": os.getuid(),
        "groups": sorted({os.getgid(), *os.getgroups()}),
        "capabilities": [int(mask, 16) for mask in re.findall(r"Cap(?:Prm|Eff|Bnd):\s*(\w+)", status)],
        "new_privileges": re.findall(r"NoNewPrivs:\s*(\d)", status),
        "writable": [folder for folder in folders if os.access(folder, os.W_OK)],
    }


def modules(package: str) -> dict[str, object]:
    """How many modules of a package can be imported, and which others they lack."""
    found = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    imported, lacking = 0, {}
    for name in [module.name for module in found if not module.name.endswith("__main__")]:
        try:
            importlib.import_module(name)
            imported += 1
        except ModuleNotFoundError as error:
            lacking[name] = error.name
    return {"imported": imported, "lacking": lacking}


def present(*names: str) -> list[str]:
    """Which of these modules are here."""
    return [name for name in names if importlib.util.find_spec(name) is not None]


def versions() -> dict[str, str]:
    """Installed packages."""
    return {_canonical(one.metadata["Name"]): one.version for one in importlib.metadata.distributions()}


def unmet() -> dict[str, list[str]]:
    """Requirements of installed packages, with the extras that they ask of each other, that nothing here meets."""
    from packaging.requirements import Requirement

    here = {_canonical(one.metadata["Name"]): one for one in importlib.metadata.distributions()}
    extras: dict[str, set[str]] = {name: {""} for name in here}
    missing, wrong = set(), set()
    waiting = list(here)
    while waiting:
        name = waiting.pop()
        for requirement in map(Requirement, here[name].requires or []):
            marker, other = requirement.marker, _canonical(requirement.name)
            if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras[name]):
                continue
            if other not in here:
                missing.add(other)
                continue
            if not requirement.specifier.contains(here[other].version, prereleases=True):
                wrong.add(f"{name} wants {requirement}, and {here[other].version} is here")
            if not requirement.extras <= extras[other]:
                extras[other] |= requirement.extras
                waiting.append(other)
    return {"missing": sorted(missing), "wrong": sorted(wrong)}


def bytecode() -> dict[str, object]:
    """How many sources Python would find compiled, and which it would compile at each start."""
    compiled, stale = 0, []
    for source in (file for root in (SITE_PACKAGES, "/app") for file in Path(root).rglob("*.py")):
        stat, cached = source.stat(), Path(importlib.util.cache_from_source(str(source)))
        header = importlib.util.MAGIC_NUMBER + struct.pack("<LLL", 0, int(stat.st_mtime), stat.st_size)
        if cached.exists() and cached.read_bytes()[: len(header)] == header:
            compiled += 1
        elif _is_of_this_python(source):
            stale.append(str(source))
    return {"compiled": compiled, "stale": stale}


def _is_of_this_python(source: Path) -> bool:
    try:
        compile(source.read_bytes(), source, "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    questions = {one.__name__: one for one in (rights, modules, present, versions, unmet, bytecode)}
    print(json.dumps(questions[sys.argv[1]](*sys.argv[2:])))
