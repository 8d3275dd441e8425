"""What a report is called, and the address by which a browser opens it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

URL = "TOMOGRAPH_REPORTS_URL"
FOLDER = "TOMOGRAPH_REPORTS_FOLDER"


def slug(text: str) -> str:
    """ "SmolLM2 slot_machine" -> "smollm2-slot-machine": safe in paths, URLs and artifact keys."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@dataclass(frozen=True)
class Published:
    """A web server for the reports of a local store: ``folder`` is what ``url`` shows."""

    url: str
    folder: Path

    def as_environment(self) -> dict[str, str]:
        return {URL: self.url, FOLDER: str(self.folder.resolve())}


def published(environ: Mapping[str, str] = os.environ) -> Published | None:
    """The web server that this process was told of."""
    if environ.get(URL) and environ.get(FOLDER):
        return Published(environ[URL], Path(environ[FOLDER]))
    return None


def browsable(report: str) -> str | None:
    """The address by which a browser opens a report; None for one in an object store."""
    return None if "://" in report else link_to(Path(report), published())


def link_to(report: Path, server: Published | None) -> str:
    """Address of a local report: over http where a server shows it, else as a file."""
    if server and report.resolve().is_relative_to(server.folder):
        return f"{server.url}/{quote(report.resolve().relative_to(server.folder).as_posix())}"
    return report.resolve().as_uri()
