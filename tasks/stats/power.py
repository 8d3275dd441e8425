"""What a number of trials can detect."""

from __future__ import annotations

import math

from scipy import optimize, stats


def detectable_difference(n: int, alpha: float, power: float = 0.8) -> float | None:
    """The difference of two rates around 1/2 that Fisher's one-sided test at `alpha` finds with probability `power`.

    `n` trials for each rate. The sample size for a difference d, n0 = (z_alpha sqrt(1/2) + z_power sqrt(1/2 - d^2/2))^2
    / d^2, corrected for Fisher's test, n = n0/4 (1 + sqrt(1 + 4 / (n0 d)))^2 (Casagrande, Pike and Smith 1978,
    Biometrics 34:483), solved for d. Rates near 0 or 1 need fewer trials. None if so few trials detect nothing.
    """
    z_alpha, z_power = stats.norm.isf(alpha), stats.norm.ppf(power)

    def missing(d: float) -> float:
        n0 = ((z_alpha * math.sqrt(0.5) + z_power * math.sqrt(0.5 - d * d / 2)) / d) ** 2
        return n0 / 4 * (1 + math.sqrt(1 + 4 / (n0 * d))) ** 2 - n

    return float(optimize.brentq(missing, 1e-4, 1.0)) if n >= 1 and missing(1.0) <= 0 < missing(1e-4) else None
