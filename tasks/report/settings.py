"""The settings that a study was asked for, as its report shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"trials": {"top_p": 1}} -> {"trials.top_p": "1"}; what is empty is left out."""
    shown: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            shown |= flat(value, f"{prefix}{name}.")
        elif value not in (None, []):
            shown[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return shown
