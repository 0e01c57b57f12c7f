"""Estimates with their confidence: no figure leaves the auditor without interval, n and estimator."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vaeaudit.stats.metric import Metric

Support = tuple[float, float]  # the least and the largest value that a figure can have, infinite where there is none
ANY: Support = (-math.inf, math.inf)
NOT_NEGATIVE: Support = (0.0, math.inf)


@dataclass(frozen=True, eq=False)
class Sample:
    """The values, one an item, float64 (n,), that a figure is the ``q`` quantile of, or the mean where that is None."""

    values: NDArray[np.float64]
    q: float | None


@dataclass(frozen=True)
class Measurement:
    """One figure with what is known of its certainty.

    ``ci`` is None where the sample is too small for an interval at ``level``. ``direction`` tells which way
    is more robust: "higher", "lower" or "none". ``nonfinite`` counts values that were NaN or infinite. ``sample`` is
    there where the figure is a statistic of one value an item, so that those of two models can be paired. Nothing is
    estimated in an ``exact`` figure, which needs no interval; one that ``keeps_infinite`` is an order statistic, in
    which infinite values keep their place, where others leave them out. ``search`` tells what a better search for a
    distortion does to the figure: "lowers" or "raises" it, so that it bounds the true one; "keeps" it, which rests on
    no search though others beside it do; "none" where there is no search, where it may do either, or where the values
    found are not to be trusted.
    """

    value: float | None
    ci: tuple[float, float] | None
    level: float
    n: int
    nonfinite: int
    unit: str
    direction: str
    estimator: str
    exact: bool = False
    keeps_infinite: bool = False
    search: str = "none"
    sample: Sample | None = field(default=None, repr=False, compare=False)


_TAIL = 0.05
_QUANTILES = {"lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75}


def statistics(metric: Metric, values: Sequence[float], level: float = 0.95) -> dict[str, Measurement]:
    """All statistics that a metric has of ``values``, one an item, by what their names end with."""
    return {f"{metric.name}.{name}": statistic(metric, name, values, level) for name in metric.statistics}


def statistic(metric: Metric, name: str, values: Sequence[float], level: float = 0.95) -> Measurement:
    """One statistic of ``values``: the mean, the worst, or a quantile; a median without quartiles says that it is one.

    "tail" is the quantile that 5% are worse than.
    """
    unit, direction = metric.unit, metric.direction
    if name == "mean":
        return mean(values, unit=unit, direction=direction, level=level, support=(metric.least, metric.most))
    if name == "median" and "upper_quartile" not in metric.statistics:
        return median(values, unit=unit, direction=direction, level=level)
    if name == "worst":
        return worst(values, unit=unit, direction=direction, level=level)
    tail = _TAIL if direction == "higher" else 1 - _TAIL
    q = tail if name == "tail" else _QUANTILES[name]
    return quantile(values, q, unit=unit, direction=direction, level=level)


def median(values: Sequence[float], *, unit: str, direction: str, level: float = 0.95) -> Measurement:
    """The 1/2 :func:`quantile`; its interval needs n >= 6 for 95%."""
    middle = quantile(values, 0.5, unit=unit, direction=direction, level=level)
    return replace(middle, estimator="median, order-statistic interval")


def quantile(values: Sequence[float], q: float, *, unit: str, direction: str, level: float = 0.95) -> Measurement:
    """The ``q`` quantile as an order statistic with the distribution-free interval of order statistics.

    The value is x_(ceil(q n)), never an interpolation. The interval is [x_(k), x_(l)] with the largest k for which
    P(Bin(n, q) < k) <= (1 - level)/2 and the least l for which P(Bin(n, q) >= l) <= (1 - level)/2 (David & Nagaraja,
    Order Statistics, 7.1): its coverage is at least ``level`` for every distribution.

    An infinite value is the largest there is, not a missing one: it keeps its place in the order, and only a
    quantile or an end of the interval that falls on one is None. NaN is left out.
    """
    array = np.asarray(values, dtype=np.float64)
    ordered = np.sort(array[~np.isnan(array)])
    n = ordered.size
    tail = (1 - level) / 2
    value, interval = math.nan, (math.nan, math.nan)
    if n:
        k = _largest_below(n, q, tail)
        last = n + 1 - _largest_below(n, 1 - q, tail)
        value = float(ordered[math.ceil(round(q * n, 9)) - 1])
        interval = (float(ordered[k - 1]), float(ordered[last - 1])) if k >= 1 and last <= n else interval
    return Measurement(
        value=value if math.isfinite(value) else None,
        ci=interval if all(map(math.isfinite, interval)) else None,
        level=level,
        n=n,
        nonfinite=int((~np.isfinite(array)).sum()),
        unit=unit,
        direction=direction,
        estimator=f"{q:g} quantile, order-statistic interval",
        keeps_infinite=True,
        sample=Sample(array, q),
    )


def worst(values: Sequence[float], *, unit: str, direction: str, level: float = 0.95) -> Measurement:
    """The worst of these ``values``: a fact about them, in which nothing is estimated.

    Of the population it bounds a quantile: with confidence ``level`` at least the share (1 - level)^(1/n) is no worse
    (Wilks 1941), which the estimator tells. None where the worst is infinite, or a value NaN.
    """
    array = np.asarray(values, dtype=np.float64)
    n, unknown = array.size, bool(np.isnan(array).any()) or not array.size
    value = math.nan if unknown else float(array.min() if direction == "higher" else array.max())
    share = (1 - level) ** (1 / n) if n else 0.0
    return Measurement(
        value=value if math.isfinite(value) else None,
        ci=None,
        level=level,
        n=n,
        nonfinite=int((~np.isfinite(array)).sum()),
        unit=unit,
        direction=direction,
        estimator=f"worst of these {n} items; with {level:.0%} confidence, no worse are {share:.3%} of all such items",
        exact=True,
        keeps_infinite=True,
    )


def _largest_below(n: int, q: float, tail: float) -> int:
    """The largest k for which P(Bin(n, q) < k) <= ``tail``."""
    # ppf gives the smallest j with P(X <= j) >= tail: the largest such k, or where they are equal the one before.
    k = int(stats.binom.ppf(tail, n, q))
    return k + int(stats.binom.cdf(k, n, q) <= tail)


def mean(
    values: Sequence[float], *, unit: str, direction: str, level: float = 0.95, support: Support = ANY
) -> Measurement:
    """Sample mean of the finite values with Student's t interval; exact for normal values, else approximate.

    The interval is :func:`cut` to the mean's ``support``.
    """
    array = np.asarray(values, dtype=np.float64)
    kept = array[np.isfinite(array)]
    n = kept.size
    interval: tuple[float, float] | None = None
    if n >= 2:
        half = float(stats.t.ppf(0.5 + level / 2, n - 1) * kept.std(ddof=1) / math.sqrt(n))
        interval = cut((float(kept.mean()) - half, float(kept.mean()) + half), float(kept.mean()), support)
    return Measurement(
        value=float(kept.mean()) if n else None,
        ci=interval,
        level=level,
        n=n,
        nonfinite=int(array.size - n),
        unit=unit,
        direction=direction,
        estimator="mean, Student t interval over items",
        sample=Sample(array, None),
    )


def cut(interval: tuple[float, float], value: float, support: Support) -> tuple[float, float]:
    """What of an interval lies in the ``support`` of its figure: the true value does, so that none is lost by that.

    An estimate that lies outside by rounding or by chance stays in its interval, which then reaches into the support.
    """
    low, high = min(interval[0], support[1]), max(interval[1], support[0])
    return max(low, min(support[0], value)), min(high, max(support[1], value))


def bootstrap_mean(values: Sequence[float], *, unit: str, direction: str, level: float = 0.95) -> Measurement:
    """Sample mean of the finite values with its BCa bootstrap interval (Efron 1987), for values that may be skewed.

    9,999 resamples, the same for the same number of values, so that the interval repeats to the bit. Means that differ
    from the sample's by rounding are equal to it: of few values a good share of resamples are the sample in another
    order, and the bias correction counts on which side they lie. Values that differ by no more than that have their
    range as interval.
    """
    plain = mean(values, unit=unit, direction=direction, level=level)
    array = np.asarray(values, dtype=np.float64)
    kept = array[np.isfinite(array)]
    interval: tuple[float, float] | None = None
    if kept.size >= 2:
        interval = (float(kept.min()), float(kept.max()))
        scale = np.abs(kept).max() or 1.0
        scaled = kept / scale  # whose squares and cubes neither vanish nor overflow
        value, rounding = scaled.mean(), 16 * np.finfo(scaled.dtype).eps
        if np.ptp(scaled) > 2 * scaled.size * rounding:  # without one of them the mean differs by more than rounding
            generator = np.random.Generator(np.random.Philox(key=0))

            def resampled(sample: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
                found: NDArray[np.float64] = sample.mean(axis)
                return np.where(np.abs(found - value) <= rounding, value, found)

            found = stats.bootstrap((scaled,), resampled, confidence_level=level, random_state=generator)
            interval = (float(scale * found.confidence_interval.low), float(scale * found.confidence_interval.high))
    return replace(plain, ci=interval, estimator="mean, BCa bootstrap interval over items")


def rank_correlation(x: Sequence[float], y: Sequence[float], *, level: float = 0.95) -> Measurement:
    """Spearman's rank correlation of paired values with Fisher's interval (Bonett & Wright 2000), approximate.

    An infinite value ranks above all others; pairs with NaN are left out. None where either side is constant.
    """
    pairs = np.stack([np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)])
    kept = pairs[:, ~np.isnan(pairs).any(0)]
    n = kept.shape[1]
    value, interval = None, None
    if n >= 2 and all(len(np.unique(side)) > 1 for side in kept):
        ranks = stats.rankdata(kept, axis=1)
        value = float(np.corrcoef(ranks[0], ranks[1])[0, 1])
        if n > 3 and abs(value) < 1:
            half = float(stats.norm.ppf(0.5 + level / 2)) * math.sqrt((1 + value**2 / 2) / (n - 3))
            interval = (math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half))
    return Measurement(
        value=value,
        ci=interval,
        level=level,
        n=n,
        nonfinite=int((~np.isfinite(pairs)).any(0).sum()),
        unit="rank correlation",
        direction="none",
        estimator="Spearman's rank correlation, Fisher interval with the variance of Bonett & Wright",
    )


def clopper_pearson(successes: int, n: int, tail: float) -> tuple[float, float]:
    """Lower and upper confidence bound of a probability, each wrong with probability at most ``tail``.

    Exact for every n and probability (Clopper & Pearson 1934); together they cover 1 - 2 ``tail``. Raises ValueError
    unless 0 <= ``successes`` <= ``n`` and ``n`` >= 1.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, but {successes} of {n} came")
    low = float(stats.beta.ppf(tail, successes, n - successes + 1)) if successes else 0.0
    high = float(stats.beta.isf(tail, successes + 1, n - successes)) if successes < n else 1.0
    return low, high


def proportion(successes: int, n: int, *, unit: str, direction: str, level: float = 0.95) -> Measurement:
    """Share of successes with the Clopper-Pearson interval; without trials there is neither value nor interval."""
    return Measurement(
        value=successes / n if n else None,
        ci=clopper_pearson(successes, n, (1 - level) / 2) if n else None,
        level=level,
        n=n,
        nonfinite=0,
        unit=unit,
        direction=direction,
        estimator="proportion, Clopper-Pearson interval",
    )


def mean_proportion(
    successes: Sequence[int], n: Sequence[int], *, unit: str, direction: str, level: float = 0.95
) -> Measurement:
    """Unweighted mean of the proportions of several groups; None where a group is empty or there is no group.

    With as many trials in each group that mean is the proportion of all, and the interval is Clopper-Pearson's, which
    groups of unequal probability make wider than needed, since their variance is below the binomial's. Otherwise it is
    Hoeffding's (1963, theorem 2) for the weighted sum: value +- sqrt(log(2 / (1 - level)) / 2 * sum of squared
    weights), cut to [0, 1]; it holds whatever the probabilities.
    """
    total = sum(n)
    if n and min(n) == max(n) > 0:
        pooled = proportion(sum(successes), total, unit=unit, direction=direction, level=level)
        return replace(pooled, estimator="unweighted mean of proportions, Clopper-Pearson interval")
    value, interval = None, None
    if n and min(n) > 0:
        value = float(np.mean(np.divide(successes, n)))
        squared_weights = sum(1 / count for count in n) / len(n) ** 2
        half = math.sqrt(math.log(2 / (1 - level)) / 2 * squared_weights)
        interval = (max(0.0, value - half), min(1.0, value + half))
    return Measurement(
        value=value,
        ci=interval,
        level=level,
        n=total,
        nonfinite=0,
        unit=unit,
        direction=direction,
        estimator="unweighted mean of proportions, Hoeffding interval",
    )
