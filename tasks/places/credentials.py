"""How credentials in a location are told, and how any value is shown without them. Imports nothing.

They belong into the environment: what a location says is shown, stored in specs and sent to Prefect's server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_COLON, _AT = "(?::|%3[Aa])", "(?:@|%40)"
_SECRET_NAME = "sig|token|key|secret|pass|pwd|cred|auth|amz|goog|sas|code"

CREDENTIALS = "|".join(
    [
        # user:password@, where the password may hold any character, a slash too; host:port/ is none
        rf"^[^/@:]*{_COLON}(?!:|//).*{_AT}",
        rf"://[^/@:\[]*{_COLON}(?!\d{{1,5}}(?:[/?#]|$)|:[A-Za-z][\w+.-]*:).*{_AT}",
        # a bucket has no colon (but for an ARN), and no user
        rf"[sS]3[aA]?://(?!arn:)[^/]*{_COLON}(?!:)",
        rf"(?:[sS]3[aA]?|gs|gcs|https?)://[^/]*{_AT}",
        # parameters, of signed URLs above all
        rf"://.*[?&#;](?i:[^=&#]*(?:{_SECRET_NAME})[^=&#]*)=[^&#]",
        r"://.*[?&#;](?!versionId=)[^=&#/]+=[^&#/]{20}",
        "hf_[A-Za-z0-9]{20}",
    ]
)
"""Matches a location that carries any. Also part of the forms' JSON schemas, by which a server refuses parameters."""

LONGEST = 4096
"""Characters of a location that are looked at where a message repeats it."""

_FOUND = re.compile(CREDENTIALS, re.DOTALL)
_SCHEME = re.compile(r"(?:[A-Za-z][\w+.-]*::)*[A-Za-z][\w+.-]*://")
_WORD = re.compile(r"[^\s'\"<>()]+")


def carries_credentials(location: str) -> bool:
    return _FOUND.search(location) is not None


def shown(location: str) -> str:
    """A location as a message may repeat it: "s3://...@bucket/x" for "s3://key:secret@bucket/x"."""
    if not carries_credentials(location):
        return location
    scheme = match[0] if (match := _SCHEME.match(location)) else ""
    rest = location[len(scheme) :]
    if len(re.findall(_AT, rest)) == 1 and not re.search("[?#;]", rest):
        return f"{scheme}...@{re.split(_AT, rest)[1]}"
    if not re.search(_AT, rest) and not re.search(_COLON, rest.partition("/")[0]):
        return f"{scheme}{re.split('[?#;]', rest)[0]}?..."
    return f"{scheme}..."


def hidden(value: Any) -> Any:
    """Any value of a parameter, or text with URLs in it, without the credentials in it."""
    if isinstance(value, str):
        is_location = _SCHEME.match(value) or not re.search(r"\s", value)
        return shown(value[:LONGEST]) if is_location else _WORD.sub(lambda word: shown(word[0]), value)
    if isinstance(value, Mapping):
        return {hidden(key): hidden(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(one) for one in value]
    return value
