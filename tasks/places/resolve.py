"""From what a user wrote to the place that it means: an existing folder, a Hugging Face id, or a URL."""

from __future__ import annotations

import re
from pathlib import Path

from tasks.errors import BadInput
from tasks.places.folder import Folder
from tasks.places.hub import HubRepository
from tasks.places.location import refuse_credentials
from tasks.places.opening import LOCAL, local_path, open_location, scheme_of
from tasks.places.patient_file import persistently
from tasks.places.patterns import split_pattern
from tasks.places.place import Place
from tasks.places.url import NOTHING_THERE, UrlFolder

_NAME = r"[A-Za-z0-9][\w.-]*"
_ID = re.compile(rf"{_NAME}(/{_NAME})?")
_ID_AND_FOLDER = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:/(?P<folder>.+))?")


def place_of(name: str, field: str, revision: str | None = None) -> Place:
    """The place that a name means, taken literally; nothing behind a URL is looked at.

    revision: of a Hugging Face id. Raises BadInput, of `field`, for a name that cannot be any of the kinds.
    """
    if scheme_of(name) not in LOCAL:
        return UrlFolder(name.rstrip("/"), field)
    path = Path(local_path(name))
    if path.is_dir():
        return _folder(path, field)
    if _ID.fullmatch(name) and not name.startswith("file:"):
        return HubRepository(name, field, revision)
    raise BadInput(
        field,
        name,
        "is neither an existing folder nor a Hugging Face id (organization/name) nor a URL",
        "check the path",
    )


def place_of_file(name: str, field: str) -> tuple[Place, str]:
    """The place that a file lies in, and the file's name there. Raises BadInput when it is not on this machine."""
    if scheme_of(name) not in LOCAL:
        location = name.rstrip("/")
        return UrlFolder(location, field, names_file=True), location.rpartition("/")[2]
    path = Path(local_path(name))
    if not path.is_file():
        raise BadInput(field, name, "there is no such file", "check the path")
    path = path.resolve()
    return Folder(str(path), field, path.parent), path.name


def place_and_pattern(location: str, field: str, revision: str | None = None) -> tuple[Place, str]:
    """The place, and the folders below it that the rest of the location means, perhaps by wildcards; "" for itself.

    A Hugging Face id may have folders behind it. Raises BadInput, of `field`, for a location that means no place.
    """
    refuse_credentials(location, field)
    location = location.rstrip("/")
    fs, path = open_location(location, field)
    if scheme_of(location) not in LOCAL:
        root, pattern = persistently(lambda: split_pattern(fs, location), location, field, *NOTHING_THERE)
        return UrlFolder(root, field, keeps_path=True), pattern
    root, pattern = split_pattern(fs, path)
    if Path(root).is_dir():
        return _folder(Path(root), field), pattern
    match = None if location.startswith(("/", ".", "~", "file://")) else _ID_AND_FOLDER.fullmatch(location)
    if match is None:
        raise BadInput(field, location, "is neither an existing folder nor organization/name nor a URL", "check it")
    return HubRepository(match["repo"], field, revision), match["folder"] or ""


def _folder(path: Path, field: str) -> Folder:
    path = path.resolve()
    return Folder(str(path), field, path)
