"""One finding and one set of key numbers, to change a little in each test."""

from __future__ import annotations

from tasks.report.patching.data import Estimate, FeatureId, Finding, KeyNumbers, Rate

ESTIMATE = Estimate(effect=0.4, ci_low=0.2, ci_high=0.55, a=Rate(n=30, k=20), b=Rate(n=30, k=8), p=1e-4, q=0.002)
AGAIN = Estimate(effect=0.3, ci_low=0.15, ci_high=0.45, a=Rate(n=60, k=36), b=Rate(n=60, k=18), p=0.001, q=0.001)


def finding(candidate: int = 3, **changes) -> Finding:
    given = {
        "id": FeatureId(candidate=candidate, layer=12, feature=824),
        "prompt": "safe",
        "contrast": "high_vs_low",
        "choice": "bet",
        "label": "",
        "estimate": ESTIMATE,
        "control": None,
        "confirmation": AGAIN,
        "specific": True,
        "status": "confirmed",
        "sentence": "",
    }
    return Finding(**given | changes)


def numbers(**changes) -> KeyNumbers:
    given = {
        "layers": 4,
        "features_searched": 4096,
        "candidates": 48,
        "screen_cells": 970,
        "survivors": 8,
        "tests": 240,
        "trials_discovery": 3040,
        "trials_confirmation": 0,
        "discoveries": 0,
        "confirmed": 0,
        "confirmation_ran": True,
        "invalid_share": 0.07,
    }
    return KeyNumbers(**given | changes)
