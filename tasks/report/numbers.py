"""Numbers as text: a true minus, percentage points, powers of ten, no line breaks inside. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def magnitude(x: float | None) -> str:
    """A size that may be anything from 0.01 to a million, with three figures: '6.25', '41.3', '2,550', '1.5 × 10⁷'."""
    if _missing(x):
        return MISSING
    if x == 0:
        return "0"
    rounded = float(f"{x:.3g}")
    size = abs(rounded)
    if size >= 1e6 or size < 1e-3:
        mantissa, exponent = f"{x:.1e}".split("e")
        text = f"{mantissa}{NBSP}×{NBSP}10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    elif size >= 100:
        text = f"{rounded:,.0f}"
    else:
        text = f"{rounded:.{2 if size < 10 else 1}f}" if size >= 0.01 else f"{rounded:g}"
    return text.replace("-", "−")


def ratio(x: float | None) -> str:
    """A factor: '41.6', '1.30', and with a digit more near 1, '1.004'."""
    return f"{x:.3f}" if x is not None and 0.9 < x < 1.1 else magnitude(x)


def mean(x: float | None) -> str:
    """A mean of counts: '3', '2.8', '1,035.4'."""
    return MISSING if _missing(x) else f"{x:,.1f}".removesuffix(".0").replace("-", "−")


def ratios(low: float | None, high: float | None) -> str:
    """(29.6, 55) -> '29.6 to 55.0', two factors."""
    return MISSING if _missing(low) or _missing(high) else f"{ratio(low)}{NBSP}to{NBSP}{ratio(high)}"


def scaled(n: float | None) -> str:
    """A large number in the words of the field: 134515008 -> '135 M', 6.7e9 -> '6.7 B'."""
    if _missing(n):
        return MISSING
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if float(f"{n:.3g}") >= size:
            return f"{n / size:.3g}{NBSP}{unit}"
    return f"{n:.3g}"


def listed(names: Sequence[str], at_most: int = 6) -> str:
    """'a, b, c and 4 more'."""
    rest = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {rest} more" if rest > 0 else "")


def some(n: int, one: str, many: str) -> str:
    """'no dimensions', '1 dimension', '1,200 dimensions'."""
    return f"{count(n) if n else 'no'} {one if n == 1 else many}"
