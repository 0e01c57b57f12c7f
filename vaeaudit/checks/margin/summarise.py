"""From margins to metrics, over items."""

import math
from dataclasses import replace

from vaeaudit.checks.margin.measure import MarginAt, MarginResult
from vaeaudit.checks.margin.metrics import (
    BOXED,
    CENSORED,
    CERTIFIED,
    CERTIFIED_AT_ALL,
    CORRELATION,
    EMPIRICAL,
    FROBENIUS,
    MEDIAN,
    MIN_R,
    NOT_ROBUST,
    PATHWISE,
    SPECTRAL,
    WHITENED,
    beginning,
)
from vaeaudit.stats import estimates
from vaeaudit.stats.estimates import Measurement
from vaeaudit.stats.metric import QUARTILES

_SEARCHED = (MEDIAN.name, *CENSORED.names, *EMPIRICAL.names)  # what a better search can only lower
_CERTAIN = (
    *CERTIFIED.names,
    *BOXED.names,
    *CERTIFIED_AT_ALL.names,
    *PATHWISE.names,
    *NOT_ROBUST.names,
)  # and what rests on none


def summarise_margin(result: MarginResult) -> dict[str, Measurement]:
    """The metrics of the margins, over items, by name.

    In quantiles of the empirical margin an item that nothing broke keeps its place at the top. Between the means of the
    certified and the empirical margin lies E R. What is refused is not 0: an item without a certificate is left out of
    the certified figures, of which there are none where no item has one. A better search breaks an item sooner, or at
    all: it lowers empirical margins and the share that nothing broke, unless their values are not to be trusted, and
    keeps what was certified; not so where a certified margin exceeds the empirical one, so that one of both is wrong.
    """
    metrics = {
        f"margin.{name}": value
        for name, value in estimates.statistics(MIN_R, result.min_radius.estimate.tolist(), result.level).items()
    }
    for at in result.at:
        of_radius = _bounds(at, result.level) | _columns(at, result.level) | _shares(at, result.level)
        wrong = bool(at.crossed.any())
        for name, measured in of_radius.items() if not wrong else ():
            if name in _CERTAIN:
                of_radius[name] = replace(measured, search="keeps")
            elif name in _SEARCHED and (at.empirical is None or at.empirical.signs.trusted):
                of_radius[name] = replace(measured, search="lowers")
        metrics |= {f"{beginning(at.r)}.{name}": value for name, value in of_radius.items()}
    return metrics


def _bounds(at: MarginAt, level: float) -> dict[str, Measurement]:
    """What lies between both bounds, R's median and mean, and how well first order foretells the upper one."""
    metrics = {}
    unit, direction = MEDIAN.unit, MEDIAN.direction  # as of both bounds
    certified = [] if at.certified is None else at.certified.radius.tolist()
    known = not all(map(math.isnan, certified))
    if known:
        metrics[f"{CERTIFIED.name}.mean"] = estimates.bootstrap_mean(
            certified, unit=unit, direction=direction, level=level
        )
    if at.empirical is None:
        return metrics
    empirical = at.empirical.margin.tolist()
    if not bool(at.empirical.censored.any()):
        metrics[f"{EMPIRICAL.name}.mean"] = estimates.bootstrap_mean(
            empirical, unit=unit, direction=direction, level=level
        )
    metrics[CORRELATION.name] = estimates.rank_correlation(at.estimates.whitened.tolist(), empirical, level=level)
    if at.certified is not None:
        high = estimates.median(empirical, unit=unit, direction=direction, level=level)
        # R is at least 0, whatever was refused.
        boxed = at.certified.boxed.tolist()  # NaN without a box; else of the same distortions as the empirical one
        certified = certified if all(map(math.isnan, boxed)) else boxed
        low = estimates.median(certified, unit=unit, direction=direction, level=level).ci if known else (0.0, 0.0)
        metrics[MEDIAN.name] = Measurement(
            value=high.value,
            ci=None if low is None or high.ci is None else (low[0], high.ci[1]),
            level=level,
            n=high.n,
            nonfinite=high.nonfinite,
            unit=unit,
            direction=direction,
            estimator="median of the empirical margin, an upper bound; the interval goes from "
            + ("the lower end of the certified margin's median" if known else "0, as nothing was certified,")
            + " to the upper end of the empirical one's",
            keeps_infinite=True,
            sample=high.sample,
        )
    return metrics


def _columns(at: MarginAt, level: float) -> dict[str, Measurement]:
    columns = {FROBENIUS: at.estimates.frobenius, SPECTRAL: at.estimates.spectral, WHITENED: at.estimates.whitened}
    if at.certified is not None:
        bounds = {CERTIFIED: at.certified.radius, BOXED: at.certified.boxed, PATHWISE: at.certified.pathwise}
        columns = {metric: values for metric, values in bounds.items() if not values.isnan().all()} | columns
    if at.empirical is not None:
        columns[EMPIRICAL] = at.empirical.margin
    return {
        f"{metric.name}.{part}": estimates.statistic(metric, part, values.tolist(), level)
        for metric, values in columns.items()
        for part in QUARTILES
    }


def _shares(at: MarginAt, level: float) -> dict[str, Measurement]:
    shares = {NOT_ROBUST: ~at.estimates.robust}
    if at.certified is not None and not at.certified.radius.isnan().all():
        radius = at.certified.radius
        shares[CERTIFIED_AT_ALL] = radius[~radius.isnan()] > 0
    if at.empirical is not None:
        shares[CENSORED] = at.empirical.censored
    return {
        name: estimates.proportion(
            int(there.sum()), len(there), unit=metric.unit, direction=metric.direction, level=level
        )
        for metric, there in shares.items()
        for name in metric.names
    }
