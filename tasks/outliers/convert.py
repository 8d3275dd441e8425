"""``python -m tasks.outliers convert``: a result file of the old layout becomes one of the new layout."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Mapping
from typing import Any

from tasks.artifacts.store import Store
from tasks.errors import BadInput
from tasks.json_stream.source import open_source
from tasks.outliers.old.read import read
from tasks.outliers.old.renew import Said, renew
from tasks.outliers.old.tally import Shares
from tasks.outliers.results_layout import to_json

OLD, NEW = "OLD", "NEW"
"""What the arguments are called."""


def convert(location: str, shares: Shares, say: Callable[[str], None]) -> tuple[dict[str, Any], Said]:
    """Read whatever can be read of a file of the old layout: the document in the new one, and what has to be said.

    Args:
        location: a local path or any URL that fsspec speaks; may be compressed by gzip.
        shares: criteria, which the old layout does not record.
        say: is told now and then how far the work is.

    Raises:
        BadInput: there is no such file, or no result of the old layout in it.
        TransientError: a fault of the store did not pass.
    """
    with open_source(location, OLD, say) as source:
        documents = read(source, shares)
    document = max(documents, key=lambda d: d.rank)
    if document.format is not None:
        raise BadInput(OLD, location, "is in the new layout already", "convert files of the old layout only")
    if not document.is_result:
        lost = documents[0].lost
        problem = f" ({lost[0].problem} at byte {lost[0].start})" if lost else ""
        remedy = "give a final_analysis_results.json of the old layout"
        raise BadInput(OLD, location, f"holds no result that can be read{problem}", remedy)
    return renew(document, [other for other in documents if other is not document], source, shares)


def check_target(old: str, new: str, *, force: bool) -> None:
    """Refuse a place that the new file can't be written to, before the old one is read.

    Raises:
        BadInput: it is the old file, or there is a file already and `force` is off.
    """
    if new == old or ("://" not in old + new and os.path.realpath(new) == os.path.realpath(old)):
        raise BadInput(NEW, new, "is the old file", "choose another name")
    store, name = _store(new)
    if not force and store.exists(name):
        raise BadInput(NEW, new, "is there already", "choose another name, or give --force to replace it")


def write(document: Mapping[str, Any], new: str) -> int:
    """Write a document to a local path or a URL, whole or not at all; return its bytes.

    Raises:
        BadInput: the place can't be written to.
    """
    store, name = _store(new)
    data = to_json(document)
    try:
        store.write_bytes(name, data)
    except BadInput as error:
        raise BadInput(NEW, new, error.problem, error.remedy) from error
    return len(data)


def default_target(old: str) -> str:
    """Beside the old file: ``x.json`` and ``x.json.gz`` become ``x.converted.json``."""
    return re.sub(r"(\.json)?(\.gz)?$", "", old, count=1) + ".converted.json"


def _store(location: str) -> tuple[Store, str]:
    folder, name = posixpath.split(location)
    if not name:
        raise BadInput(NEW, location, "names no file", "give the path of a file to write")
    try:
        return Store(folder or "."), name
    except BadInput as error:
        raise BadInput(NEW, location, error.problem, error.remedy) from error
