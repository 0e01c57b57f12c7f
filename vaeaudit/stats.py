"""Estimates with their confidence: no figure leaves the auditor without interval, n and estimator."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Measurement:
    """One figure with what is known of its certainty.

    ``ci`` is None where the sample is too small for an interval at ``level``. ``direction`` tells which way
    is more robust: "higher", "lower" or "none". ``nonfinite`` counts values that were NaN or infinite.
    """

    value: float | None
    ci: tuple[float, float] | None
    level: float
    n: int
    nonfinite: int
    unit: str
    direction: str
    estimator: str


def median(values: Sequence[float], *, unit: str, direction: str, level: float = 0.95) -> Measurement:
    """Median as an order statistic with the distribution-free interval of order statistics.

    The value is x_(ceil(n/2)), never an interpolation. The interval is [x_(k), x_(n+1-k)] with the largest k
    for which P(Bin(n, 1/2) < k) <= (1 - level)/2 (David & Nagaraja, Order Statistics, 7.1): its coverage is
    at least ``level`` for every distribution. It needs n >= 6 for 95%.

    An infinite value is the largest there is, not a missing one: it keeps its place in the order, and only a
    median or an end of the interval that falls on one is None. NaN is left out.
    """
    array = np.asarray(values, dtype=np.float64)
    ordered = np.sort(array[~np.isnan(array)])
    n = ordered.size
    # ppf gives the smallest j with P(X <= j) >= tail: the largest such k, or where they are equal the one before.
    tail = (1 - level) / 2
    k = int(stats.binom.ppf(tail, n, 0.5)) if n else 0
    k += int(n > 0 and stats.binom.cdf(k, n, 0.5) <= tail)
    value = float(ordered[math.ceil(n / 2) - 1]) if n else math.nan
    interval = (float(ordered[k - 1]), float(ordered[n - k])) if k >= 1 else (math.nan, math.nan)
    return Measurement(
        value=value if math.isfinite(value) else None,
        ci=interval if all(map(math.isfinite, interval)) else None,
        level=level,
        n=n,
        nonfinite=int((~np.isfinite(array)).sum()),
        unit=unit,
        direction=direction,
        estimator="median, order-statistic interval",
    )


def mean(values: Sequence[float], *, unit: str, direction: str, level: float = 0.95) -> Measurement:
    """Sample mean of the finite values with Student's t interval; exact for normal values, else approximate."""
    array = np.asarray(values, dtype=np.float64)
    kept = array[np.isfinite(array)]
    n = kept.size
    interval: tuple[float, float] | None = None
    if n >= 2:
        half = float(stats.t.ppf(0.5 + level / 2, n - 1) * kept.std(ddof=1) / math.sqrt(n))
        interval = (float(kept.mean()) - half, float(kept.mean()) + half)
    return Measurement(
        value=float(kept.mean()) if n else None,
        ci=interval,
        level=level,
        n=n,
        nonfinite=int(array.size - n),
        unit=unit,
        direction=direction,
        estimator="mean, Student t interval over items",
    )
