"""Seeds of single generations."""

from __future__ import annotations

from tasks.patching.spec import Arm, Phase
from tasks.seeds import derive_seed


def trial_seed(run_seed: int, phase: Phase, prompt: str, condition: str, arm: Arm, feature: str, trial: int) -> int:
    """Seed of one generation.

    `feature`: key of the edited feature, such as "L26-1069"; of a layer, "L26", for arm `reconstruction`; empty
    for arm `baseline`. Phases have different seeds, so a confirmation never sees a discovery's random numbers, and
    so have conditions: cells are independent samples, as the tests of two proportions assume.
    """
    return derive_seed("trial", run_seed, phase, prompt, condition, arm, feature, trial)
