"""Statistics of paired samples: how much a figure differs between two models that saw the same items."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vaeaudit.stats.estimates import Sample

Array = NDArray[np.float64]

# Of a figure's own size: the most that another batch size, machine, or way to write the same weights changes of one
# that no search found.
ROUNDING = 1e-4
_RESAMPLES = 1999  # of the bootstrap
_EXACT, _EXACT_TIED = 50, 1000  # most differences of an exact test; ties make the normal distribution err for longer
_AT_ONCE = 4_000_000  # values resampled together, which bounds memory


@dataclass(frozen=True, eq=False)
class Difference:
    """New minus old figure, its interval (None where it has none), of ``n`` items, and two one-sided p-values.

    ``moved`` of the items differ at all, and they alone tell the test something.
    ``p_higher`` is the chance of differences as high as these where neither model is higher, ``p_lower`` likewise.
    ``each`` is new minus old value of every item and ``sizes`` how large these are, (n,) both.
    """

    value: float
    ci: tuple[float, float] | None
    n: int
    moved: int
    p_higher: float
    p_lower: float
    each: Array
    sizes: Array


def difference(old: Sample, new: Sample, level: float, rounding: float = 0.0) -> Difference | None:
    """The difference between paired samples; None where it is not finite.

    Values of an item that differ by at most ``rounding``, as a share of their size, are taken as equal. Their size is
    that of the larger, or of the median item where that is larger still: what is a difference of large numbers, as a
    loss under little noise, rounds as these do.

    Of a mean it is the mean of the items' differences, of a median their median (that of two middle ones in between, so
    that neither sample is favoured), and of another quantile the difference of both quantiles. The interval is BCa
    (Efron 1987) over items, of quantiles without acceleration (BC); for means of few skewed differences it covers less
    than its level (0.82 at n = 6, 0.90 at n = 20, of 0.95). The p-values are those of Wilcoxon's signed-rank test
    (1945) of the items' differences: where both models are the same, they are as likely to have either sign, whatever
    their distribution. Raises ValueError unless both hold equally many values of the same statistic.
    """
    if old.values.shape != new.values.shape or old.q != new.q:
        raise ValueError(f"{old.values.shape} values cannot be paired with {new.values.shape}")
    # Two infinite values may differ: nothing broke the item in either model, as far as was tried.
    there = ~(np.isnan(old.values) | np.isnan(new.values) | (np.isinf(old.values) & np.isinf(new.values)))
    if old.q is None:
        there &= np.isfinite(old.values) & np.isfinite(new.values)
    both = np.stack([old.values[there], new.values[there]])
    n = both.shape[1]
    if n == 0:
        return None
    sizes = _sizes(both)
    with np.errstate(invalid="ignore"):  # two infinite values of opposite sign
        both[1] = np.where(np.isfinite(sizes) & (np.abs(both[1] - both[0]) <= rounding * sizes), both[0], both[1])
    each = _each(both)
    value = float(_statistic(both, old.q))
    if not math.isfinite(value):
        return None
    p_higher, p_lower = signed_rank_p(each, "greater"), signed_rank_p(each, "less")
    moved = int(np.count_nonzero(each))
    return Difference(value, _bca(both, old.q, value, level), n, moved, p_higher, p_lower, each, sizes)


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's (1979) adjusted p-values: rejecting those <= alpha has any false rejection with chance alpha at most."""
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)) if len(p) else p
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def least_p(n: int) -> float:
    """The smallest one-sided p-value that ``n`` pairs can give which all differ in one direction."""
    return 0.5**n


def signed_rank_p(each: Array, side: Literal["greater", "less"]) -> float:
    """One-sided p-value of Wilcoxon's signed-rank test of differences (n,), zeros left out as Wilcoxon does.

    Exact up to 50 differences, and up to 1,000 where some are tied; beyond, by the normal distribution.
    """
    each = each[each != 0] if side == "greater" else -each[each != 0]
    n = len(each)
    if n == 0:
        return 1.0
    tied = len(np.unique(np.abs(each))) < n
    if n > (_EXACT_TIED if tied else _EXACT):
        return float(stats.wilcoxon(each, alternative="greater", method="approx", axis=None).pvalue)
    ranks = np.round(2 * stats.rankdata(np.abs(each))).astype(np.int64)  # doubled, so that those of ties are whole
    ranks //= np.gcd.reduce(ranks)
    # The chance of every sum of the ranks of positive differences, were both signs as likely.
    chances = np.zeros(int(ranks.sum()) + 1)
    chances[0], top = 1.0, 0
    for rank in ranks.tolist():
        chances[rank : top + rank + 1] += chances[: top + 1].copy()
        top += rank
        chances[: top + 1] /= 2
    return float(chances[int(ranks[each > 0].sum()) :].sum())


def _sizes(both: Array) -> Array:
    """How large the values of each item are (2, n), (n,), and no less than those of the median item."""
    sizes: Array = np.maximum(np.abs(both).max(0), np.median(np.abs(both)))
    return sizes


def _each(both: Array) -> Array:
    """New minus old value of every item, (2, ..., n) -> (..., n); 0 where two quantiles are the same infinity."""
    with np.errstate(invalid="ignore"):
        return np.where(both[0] == both[1], 0.0, both[1] - both[0])


def _statistic(both: Array, q: float | None) -> Array:
    """The difference of items (2, ..., n), (...)."""
    found: Array
    if q is None:
        found = _each(both).mean(-1)
    elif q == 0.5:
        with np.errstate(invalid="ignore"):  # two middle ones of opposite infinity
            found = np.median(_each(both), axis=-1)
    else:
        place = _place(both.shape[-1], q)
        found = _each(np.partition(both, place, axis=-1)[..., [place]])[..., 0]
    return found


def _place(n: int, q: float) -> int:
    """Where the ``q`` quantile of n values stands in order, from 0: x_(ceil(q n))."""
    return max(math.ceil(round(q * n, 9)) - 1, 0)


def _bca(both: Array, q: float | None, value: float, level: float) -> tuple[float, float] | None:
    n = both.shape[1]
    if (both[0] == both[1]).all():
        return (0.0, 0.0)
    if n < 2:
        return None
    found = _resampled(both, q)
    if not np.isfinite(found).all():
        return None
    # Of few items many resamples are these in another order, whose mean rounds to either side of theirs.
    rounding = 16 * np.finfo(found.dtype).eps * np.abs(_each(both)).max() if q is None else 0.0
    apart = np.where(np.abs(found - value) <= rounding, 0.0, found - value)
    below = (np.sum(apart < 0) + np.sum(apart == 0) / 2) / len(found)
    if not 0 < below < 1:
        return None
    z0 = stats.norm.ppf(below)
    tails = z0 + stats.norm.ppf([0.5 - level / 2, 0.5 + level / 2])
    shares = stats.norm.cdf(z0 + tails / (1 - _acceleration(both, q) * tails))
    low, high = np.quantile(found, shares)
    return float(low), float(high)


def _resampled(both: Array, q: float | None) -> Array:
    """The difference of every resample of the items."""
    n = both.shape[1]
    found = np.empty(_RESAMPLES)
    step = max(1, _AT_ONCE // n)
    for start in range(0, _RESAMPLES, step):
        chosen = _indices(n, start, min(step, _RESAMPLES - start))
        found[start : start + step] = _statistic(both[:, chosen], q)
    return found


@lru_cache(maxsize=4)
def _indices(n: int, start: int, count: int) -> NDArray[np.int64]:
    """Resampled items, the same for the same numbers, so that intervals repeat to the bit."""
    return np.random.Generator(np.random.Philox(key=[n, start])).integers(n, size=(count, n))


def _acceleration(both: Array, q: float | None) -> float:
    """Efron's a of a mean, from the mean without each item; 0 for quantiles, whose jackknife tells nothing (BC)."""
    if q is not None:
        return 0.0
    spread = _each(both) - _each(both).mean()
    if not spread.any():
        return 0.0
    # Without item i the mean moves by -spread_i / (n - 1): Efron's formula has the opposite sign of that cubed.
    return float((spread**3).sum() / (6 * (spread**2).sum() ** 1.5))
