"""From the figures of items to metrics, of all items and of groups of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats as distributions

from vaeaudit.checks.reconstruction.distances import Embedded
from vaeaudit.checks.reconstruction.measure import Features, ReconstructionResult
from vaeaudit.checks.reconstruction.metrics import BIAS, DRAWS, FID, GROUPED, KID, LPIPS, MS_SSIM, OF_ITEMS, SCALED
from vaeaudit.checks.record import number
from vaeaudit.stats import estimates
from vaeaudit.stats.estimates import Measurement
from vaeaudit.stats.metric import Metric

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GroupMeans:
    """Means of a metric over the items of each group of one grouping, with simultaneous intervals.

    All (groups,): ``names``, ``n``, ``mean``, and ``ci`` (groups, 2), which together cover all means with the level.
    ``nonfinite`` values were left out of the means.
    """

    by: str
    names: tuple[str, ...]
    n: NDArray[np.int64]
    mean: Values
    ci: Values
    nonfinite: int


def summarise_reconstruction(
    result: ReconstructionResult, groups: Mapping[str, Sequence[GroupMeans]] | None = None, level: float = 0.95
) -> dict[str, Measurement]:
    """The metrics of reconstructions, over items, by name; with :func:`group_means`, those of groups too."""
    metrics: dict[str, Measurement] = {}
    for of, values in (("", result.at_mean), (DRAWS, result.at_draws)):
        told = "" if not of else f"; of each item's mean over {result.draws} draw{'s' * (result.draws > 1)}"
        for metric in OF_ITEMS:
            if metric.name not in values:
                continue
            how = f"; {result.scales} of 5 scales{told}" if metric is MS_SSIM else told
            if metric is LPIPS and result.perceptual is not None:
                how = f"; {result.perceptual.told}{told}"
            found = estimates.statistics(metric, values[metric.name].tolist(), level)
            metrics |= {
                f"reconstruction.{of}{name}": replace(one, estimator=f"{one.estimator}{how}")
                for name, one in found.items()
            }
    for channel, of_channel in enumerate(() if result.bias is None else result.bias.T):
        found = estimates.statistics(BIAS, of_channel.tolist(), level)
        metrics |= {
            f"reconstruction.bias.channel{channel}.{name.rpartition('.')[2]}": one for name, one in found.items()
        }
    if result.embedded is not None and result.network is not None:
        metrics |= _of_features(result.embedded, result.network.told, level)
    if result.features is not None:
        metrics[f"reconstruction.{SCALED.name}"] = _worst_feature(result.features, len(result.items), level)
    for metric in GROUPED:
        if of_metric := (groups or {}).get(metric.name):
            worst, gap = _of_groups(of_metric, metric.unit, metric.direction, level)
            metrics[f"reconstruction.{metric.name}.group_worst"] = worst
            metrics[f"reconstruction.{metric.name}.group_gap"] = gap
    return metrics


def _of_features(embedded: Embedded, network: str, level: float) -> dict[str, Measurement]:
    """FID, which knows no interval and is another figure for another n, and KID with its interval."""
    value, error, n = embedded.kid()
    half = float(distributions.norm.isf((1 - level) / 2)) * error
    fid = Measurement(
        number(embedded.frechet()),
        None,
        level,
        embedded.n,
        0,
        FID.unit,
        FID.direction,
        f"biased, of n = {embedded.n}; {network}",
    )
    ci = (value - half, value + half) if math.isfinite(half) else None
    how = f"U-statistic over pairs of items, normal interval of its jackknife standard error; {network}"
    kid = Measurement(number(value), ci, level, n, 0, KID.unit, KID.direction, how)
    return {f"reconstruction.{FID.name}.n{embedded.n}": fid, f"reconstruction.{KID.name}": kid}


def group_means(
    metric: Metric, values: Values, groups: Mapping[str, NDArray[np.int64]], level: float = 0.95
) -> list[GroupMeans]:
    """Means of a metric's ``values`` (I,) over the items of each group of two or more; ``groups`` give that of an item.

    Student intervals, each at 1 - (1 - level) / G for the G groups of all groupings (Bonferroni): all of them hold
    together with the level. Values that are infinite are left out.
    """
    kept = {by: [group for group in np.unique(of) if (of == group).sum() > 1] for by, of in groups.items()}
    count = sum(map(len, kept.values()))
    found = []
    for by, of in groups.items():
        if len(kept[by]) < 2:
            continue
        parts = [values[of == group] for group in kept[by]]
        single = [estimates.statistic(metric, "mean", part.tolist(), level=1 - (1 - level) / count) for part in parts]
        ends = [one.ci or (-math.inf, math.inf) for one in single]
        found.append(
            GroupMeans(
                by,
                tuple(str(group) for group in kept[by]),
                np.array([len(part) for part in parts]),
                np.array([math.nan if one.value is None else one.value for one in single]),
                np.array(ends),
                sum(one.nonfinite for one in single),
            )
        )
    return found


def _of_groups(
    groups: Sequence[GroupMeans], unit: str, direction: str, level: float
) -> tuple[Measurement, Measurement]:
    """The mean of the worst group, and the largest gap between two groups of one grouping.

    Where all intervals cover, so do that of the worst, from the worst end of all to the worst other end, and that of
    the gap, from the ends that are nearest to each other to those that are farthest.
    """
    sign = 1.0 if direction == "higher" else -1.0
    means, ends = zip(*((sign * of.mean, np.sort(sign * of.ci, 1)) for of in groups), strict=True)
    every, low, high = np.concatenate(means), *np.concatenate(ends).T
    n, count = max(int(of.n.sum()) for of in groups), len(every)
    how = f"Student t intervals of the {count} groups at once (Bonferroni)"
    worst = np.sort(sign * np.array([low.min(), high.min()]))
    gaps = [
        (
            np.nanmax(mean) - np.nanmin(mean),
            max(0.0, end[:, 0].max() - end[:, 1].min()),
            end[:, 1].max() - end[:, 0].min(),
        )
        for mean, end in zip(means, ends, strict=True)
    ]
    gap, least, most = (float(max(of)) for of in zip(*gaps, strict=True))
    whole = Measurement(
        value=float(sign * np.nanmin(every)),
        ci=(float(worst[0]), float(worst[1])) if np.isfinite(worst).all() else None,
        level=level,
        n=n,
        nonfinite=max(of.nonfinite for of in groups),
        unit=unit,
        direction=direction,
        estimator=f"mean of the worst group, {how}",
    )
    told = f"mean of the best group less that of the worst, {how}"
    apart = (least, most) if math.isfinite(most) else None
    return whole, replace(whole, value=gap, ci=apart, direction="lower", estimator=told)


def scaled_errors(features: Features, n: int, level: float = 0.95) -> tuple[Values, Values]:
    """Root mean square error of each feature in its standard deviations, (features,), and intervals (features, 2).

    NaN for a feature that does not vary. The intervals, Student's of the mean square error, hold at once (Bonferroni);
    standard deviations are those of these items.
    """
    scale = features.stddev.numpy()
    varies = scale > 0
    half = distributions.t.isf((1 - level) / 2 / max(1, varies.sum()), max(1, n - 1)) * features.error.numpy()
    square = features.mean_square.numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(varies, np.sqrt(square) / scale, np.nan)
        ends = np.stack([np.sqrt(np.maximum(square - half, 0)), np.sqrt(square + half)], 1) / scale[:, None]
    return value, np.where(varies[:, None], ends, np.nan)


def _worst_feature(features: Features, n: int, level: float) -> Measurement:
    value, ends = scaled_errors(features, n, level)
    known = bool(np.isfinite(value).any())
    return Measurement(
        value=float(np.nanmax(value)) if known else None,
        ci=(float(np.nanmax(ends[:, 0])), float(np.nanmax(ends[:, 1]))) if known and n > 1 else None,
        level=level,
        n=n,
        nonfinite=0,
        unit=SCALED.unit,
        direction=SCALED.direction,
        estimator="worst feature, Student t intervals of all features' mean square errors at once (Bonferroni)",
    )
