"""Numbers as text: a true minus, percentage points, powers of ten, no line breaks inside. Pure functions."""

from __future__ import annotations

import math

MISSING = "–"
NBSP = "\u00a0"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _missing(x: float | None) -> bool:
    return x is None or not math.isfinite(x)


def count(n: int | None) -> str:
    """1234567 -> '1,234,567'."""
    return MISSING if n is None else f"{n:,}"


def percent(share: float | None, digits: int = 0) -> str:
    """0.125 -> '12 %' (half to even, as Python rounds), with `digits` decimals."""
    return MISSING if _missing(share) else f"{100 * share:.{digits}f}{NBSP}%"


def points(effect: float | None, signed: bool = True) -> str:
    """A difference of two shares in percentage points: -0.25 -> '−25.0', or its size alone."""
    if _missing(effect):
        return MISSING
    if not signed:
        return f"{abs(100 * effect):.1f}"
    text = f"{100 * effect:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def interval(low: float | None, high: float | None) -> str:
    """(-0.05, 0.1) -> '−5.0 to +10.0', in percentage points."""
    return MISSING if _missing(low) or _missing(high) else f"{points(low)}{NBSP}to{NBSP}{points(high)}"


def level(alpha: float) -> str:
    """0.05 -> '95 %': the level of the intervals of a study."""
    return f"{100 * (1 - alpha):g}{NBSP}%"


def decimal(x: float | None, digits: int = 3) -> str:
    """A plain number with `digits` significant figures and a true minus."""
    if _missing(x):
        return MISSING
    return f"{x:.{digits}g}".replace("-", "−")


def probability(p: float | None) -> str:
    """p- and q-values: '0.031', '0.0042', '3.1 × 10⁻⁶', and '0' only where it is exactly zero."""
    if _missing(p):
        return MISSING
    if p == 0:
        return "0"
    if p >= 0.001:
        return f"{p:.2g}" if p < 0.995 else "1"
    mantissa, exponent = f"{p:.1e}".split("e")
    return f"{mantissa}{NBSP}×{NBSP}10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def equals(symbol: str, p: float | None) -> str:
    """'q = 0.031'."""
    return f"{symbol}{NBSP}={NBSP}{probability(p)}"


def of(k: int, n: int) -> str:
    """'26 of 30'."""
    return f"{count(k)} of {count(n)}"
