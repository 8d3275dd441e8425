"""The verdict on one test, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks.patching.scenario import INVALID

Row = dict[str, Any]


def label(row: Row, low: str, high: str) -> str:
    """Which value moves which behaviour in which direction, on which prompt, against what, and how sure."""
    side, _, against = row["contrast"].partition("_vs_")
    value = {"high": high, "low": low}[side]
    other = {
        "low": f"value {low}",
        "baseline": "no edit",
        "reconstruction": "the SAE's reconstruction without an edit",
    }[against]
    behaviour = "invalid answers" if row["choice"] == INVALID else row["choice"]
    verb = "raises" if row["effect"] > 0 else "lowers" if row["effect"] < 0 else "does not change"
    said = "" if row["predicted"] is None else f", where the screen predicted {100 * row['predicted']:+.0f}"
    return (
        f"{_name(row)}: value {value} {verb} {behaviour} on prompt {row['prompt']}: "
        f"{row['rate_a']:.0%} ({row['k_a']}/{row['n_a']}) vs {row['rate_b']:.0%} ({row['k_b']}/{row['n_b']}) with "
        f"{other}; {_points(row)}, q = {row['q']:.2g} in the {row['family']} family{said}"
    )


def label_of_control(control: Row, specific: bool | None) -> str:
    """How the effect compares with that of the random direction."""
    if specific is None:
        return "not compared with a random direction"
    beyond = f"{100 * control['beyond']:+.0f} points [{100 * control['beyond_ci_low']:+.0f}, "
    beyond += f"{100 * control['beyond_ci_high']:+.0f}], q = {control['q']:.2g}"
    if specific:
        return f"larger than the effect of a random direction ({beyond})"
    return f"not shown to be larger than the effect of a random direction ({beyond})"


def contradictions(primary: Sequence[Row]) -> list[Row]:
    """An alarm if sampled effects go against the direction that the screen predicted, beyond chance.

    `primary`: the tests of the primary family. Beyond chance: the interval lies on the other side of zero.
    """
    against = [r for r in primary if r["direction"] * r["ci_high" if r["direction"] > 0 else "ci_low"] < 0]
    if not against:
        return []
    said = "; ".join(
        f"{_name(r)} in {r['choice']} on prompt {r['prompt']}, predicted {100 * r['predicted']:+.0f}, {_points(r)}"
        for r in against
    )
    return [
        {
            "code": "contradicts_screen",
            "tests": len(against),
            "text": f"Sampled effects go against the exact effect on the first token: {said}. There the first token "
            "does not decide the answer; such an effect is no discovery of the primary family.",
        }
    ]


def _name(row: Row) -> str:
    return f"L{row['layer']}/{row['feature']}"


def _points(row: Row) -> str:
    return f"{100 * row['effect']:+.0f} points [{100 * row['ci_low']:+.0f}, {100 * row['ci_high']:+.0f}]"
