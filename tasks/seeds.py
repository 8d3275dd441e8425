"""Seeds that follow from what they are for, never from call order, batch size or shard layout."""

from __future__ import annotations

import hashlib
import json


def derive_seed(*parts: str | int) -> int:
    """63-bit integer from the SHA-256 of the parts' JSON array, so ("a", "bc") and ("ab", "c") differ."""
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "big") >> 1
