"""Seeds that follow from what they are for, never from call order, batch size or shard layout."""

from __future__ import annotations

import hashlib
import json

from tasks.patching.spec import Arm, Phase


def derive_seed(*parts: str | int) -> int:
    """63-bit integer from the SHA-256 of the parts' JSON array, so ("a", "bc") and ("ab", "c") differ."""
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "big") >> 1


def trial_seed(run_seed: int, phase: Phase, prompt: str, condition: str, arm: Arm, feature: str, trial: int) -> int:
    """Seed of one generation.

    `feature`: key of the edited feature, such as "L26-1069"; of a layer, "L26", for arm `reconstruction`; empty
    for arm `baseline`. Phases have different seeds, so a confirmation never sees a discovery's random numbers, and
    so have conditions: cells are independent samples, as the tests of two proportions assume.
    """
    return derive_seed("trial", run_seed, phase, prompt, condition, arm, feature, trial)
