"""One finding and one set of key numbers, to change a little in each test."""

from __future__ import annotations

from tasks.patching.report.data import Beyond, Estimate, FamilyNumbers, FeatureId, Finding, KeyNumbers, Rate, Screened

ESTIMATE = Estimate(effect=0.4, ci_low=0.2, ci_high=0.55, a=Rate(n=30, k=20), b=Rate(n=30, k=8), p=1e-4, q=0.002)
AGAIN = Estimate(effect=0.3, ci_low=0.15, ci_high=0.45, a=Rate(n=60, k=36), b=Rate(n=60, k=18), p=0.001, q=0.001)


def finding(candidate: int = 3, **changes) -> Finding:
    given = {
        "id": FeatureId(candidate=candidate, layer=12, feature=824),
        "prompt": "safe",
        "contrast": "high_vs_low",
        "choice": "bet",
        "family": "primary",
        "predicted": 0.38,
        "label": "",
        "estimate": ESTIMATE,
        "control": None,
        "beyond": Beyond(effect=0.35, ci_low=0.1, ci_high=0.6, q=0.01),
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
        "primary": FamilyNumbers(tests=8, discoveries=0, confirmed=0),
        "secondary": FamilyNumbers(tests=136, discoveries=0, confirmed=0),
        "trials_discovery": 3040,
        "trials_confirmation": 0,
        "confirmation_ran": True,
        "invalid_share": 0.07,
    }
    return KeyNumbers(**given | changes)


def screened(**changes) -> Screened:
    given = {
        "candidates": 48,
        "min_effect": 0.08,
        "id": FeatureId(candidate=3, layer=14, feature=123),
        "effect": 0.021,
        "prompt": "safe",
        "choice": "bet",
    }
    return Screened(**given | changes)
