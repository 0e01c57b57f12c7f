"""Figures of several models that were trained alike, with intervals over trainings and items together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

_RESAMPLES = 999


@dataclass(frozen=True)
class Levelled:
    """A figure, its interval (None where nothing says how sure it is), and of how many seeds and items it is.

    ``seeds`` of a change is the lesser number of its two sides. ``items`` is 0 where the models have one number each.
    """

    value: float
    ci: tuple[float, float] | None
    seeds: int
    items: int


def levelled(
    groups: Sequence[Array], q: float | None = None, level: float = 0.95, ends: Sequence[Array | None] = ()
) -> Levelled:
    """The figure of one group of models, or by how much that of the second differs from that of the first.

    A group is (seeds, items), the same items for every model of all groups, or (seeds,) where a model has one number.
    The figure of a model is the mean over its items, or their ``q`` quantile; that of a group the mean over its models.

    Trainings and items vary both, at two levels. As all models see the same items, an item that is hard is so for all:
    resampling items for each model apart would let their differences cancel, and give intervals that are too short. So
    each level is resampled with the other as it is, items for all models of both groups at once (means have a closed
    form for what that gives), and the two variances, each unbiased by n / (n - 1), are added; what an item does with
    one model alone counts in both, a little too much.

    With so few seeds percentiles of resamples could not reach the level, whatever it is: three lie all on one side of
    the true mean in one case of four. The interval is therefore Student's, with Satterthwaite's (1946) degrees of
    freedom. Of a single training it is over items alone; a change that has a single training on either side has none,
    since another training might change it by nobody knows how much. NaN counts as a missing item, for all models.

    ``ends`` of a group of one number a model are (seeds, 2), the intervals at 95% over its own items that each number
    came with, or None. They need not lie evenly about it, so that how far each end is out is added to that of the
    trainings as squares, by the side that it is on (Zou & Donner 2008), scaled to ``level`` as of a normal variable;
    the mean over models counts as if one item misled all of them alike.
    """
    values = [np.asarray(group, dtype=np.float64) for group in groups]
    signs = [1.0] if len(values) == 1 else [-1.0, 1.0]
    seeds, items = min(len(group) for group in values), 0
    if values[0].ndim == 2:
        there = ~np.isnan(np.concatenate(values)).any(0)
        values, items = [group[:, there] for group in values], int(there.sum())
    each = [of_items(group, q) if group.ndim == 2 else group for group in values]  # (seeds,) each
    with np.errstate(invalid="ignore"):  # infinite figures less others: there is none then
        value = float(sum(sign * one.mean() for sign, one in zip(signs, each, strict=True)))
    if not math.isfinite(value):
        return Levelled(math.nan, None, seeds, items)
    if len(values) > 1 and seeds == 1:
        return Levelled(value, None, seeds, items)
    parts = [(one.var(ddof=1) / len(one), len(one) - 1) for one in each if len(one) > 1]
    if items > 1:
        parts.append((_variance_over_items(values, signs, q), items - 1))
    stated = [_out(end, one, sign) for end, one, sign in zip(ends, each, signs, strict=False) if end is not None]
    variance = sum(part for part, _ in parts)
    if not (parts or stated) or not math.isfinite(variance):
        return Levelled(value, None, seeds, items)
    half = 0.0
    if variance > 0:
        freedom = 1 / sum((part / variance) ** 2 / count for part, count in parts)  # their squares may be too large
        half = float(stats.t.ppf(0.5 + level / 2, freedom)) * math.sqrt(variance)
    scale = float(stats.norm.ppf(0.5 + level / 2) / stats.norm.ppf(0.975))
    below, above = (math.hypot(half, *(scale * one[side] for one in stated)) for side in (0, 1))
    return Levelled(value, (value - below, value + above), seeds, items)


def _out(ends: Array, figures: Array, sign: float) -> tuple[float, float]:
    """How far the ends are below and above the figures, on average; the other way round of what is subtracted."""
    out = np.maximum([figures - ends[:, 0], ends[:, 1] - figures], 0).mean(1)
    return (out[0], out[1]) if sign > 0 else (out[1], out[0])


def of_items(values: Array, q: float | None) -> Array:
    """The mean, or the quantile as an order statistic, over the last axis."""
    if values.shape[-1] == 0:
        return np.full(values.shape[:-1], math.nan)
    if q is None:
        with np.errstate(invalid="ignore"):  # infinite ones of both signs have no mean
            return np.asarray(values.mean(-1))
    return np.sort(values, -1)[..., math.ceil(round(q * values.shape[-1], 9)) - 1]


def _variance_over_items(groups: Sequence[Array], signs: Sequence[float], q: float | None) -> float:
    """That of the figure when items are drawn anew; of means exact, else by the bootstrap, of the same resamples."""
    n = groups[0].shape[1]
    if q is None:
        return float(sum(s * g.mean(0) for s, g in zip(signs, groups, strict=True)).var(ddof=1) / n)
    drawn = np.random.Generator(np.random.Philox(key=0)).integers(n, size=(_RESAMPLES, n))
    with np.errstate(invalid="ignore"):  # infinite values, as of items that nothing broke
        each = [np.mean([of_items(model[drawn], q) for model in group], 0) for group in groups]
        return float(np.var(sum(s * one for s, one in zip(signs, each, strict=True))) * n / (n - 1))
