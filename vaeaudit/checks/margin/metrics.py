"""The metrics of margins: figures over items, by name."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace

from vaeaudit.checks.margin.measure import MarginAt, MarginResult
from vaeaudit.settings.sections import MarginSettings
from vaeaudit.stats import estimates
from vaeaudit.stats.estimates import Measurement
from vaeaudit.stats.metric import ANY_NUMBER, QUARTILES

_UNIT = "input units"
_SEARCHED = (
    "median",
    "censored.share",
    *(f"empirical.{statistic}" for statistic in ("mean", "lower_quartile", "median", "upper_quartile")),
)


def summarise_margin(result: MarginResult) -> dict[str, Measurement]:
    """The metrics of the margins, over items, by name: ``margin.r{r}.{quantity}.{statistic}``.

    Medians and quartiles of the certified margin, of the pathwise one where there is any, of the three estimates and of
    the empirical margin, in which an item that nothing broke keeps its place at the top; the means of the first and the
    last, between which E R lies; how the empirical margin goes with the whitened estimate; and the shares of items that
    are certified at all, that nothing broke, and that are not r-robust even unperturbed. ``margin.r{r}.median`` is
    that of R itself, as far as it is known. What is refused is not 0: an item without a certificate is left out of
    the certified figures, of which there are none where no item has one. A better search breaks an item sooner, or at
    all: it lowers empirical margins and the share that nothing broke; not so where a certified one exceeds them, so
    that one of both is wrong.
    """
    metrics = {
        "margin.min_r.median": estimates.median(
            result.min_radius.estimate.tolist(), unit="output units", direction="lower", level=result.level
        )
    }
    for at in result.at:
        of_radius = _bounds(at, result.level) | _columns(at, result.level) | _shares(at, result.level)
        for name in _SEARCHED if not bool(at.crossed.any()) else ():
            if name in of_radius:
                of_radius[name] = replace(of_radius[name], search="lowers")
        metrics |= {f"margin.r{at.r:.6g}.{name}": value for name, value in of_radius.items()}
    return metrics


def _bounds(at: MarginAt, level: float) -> dict[str, Measurement]:
    """What lies between both bounds, R's median and mean, and how well first order foretells the upper one."""
    metrics = {}
    certified = [] if at.certified is None else at.certified.radius.tolist()
    known = not all(map(math.isnan, certified))
    if known:
        metrics["certified.mean"] = estimates.bootstrap_mean(certified, unit=_UNIT, direction="higher", level=level)
    if at.empirical is None:
        return metrics
    empirical = at.empirical.margin.tolist()
    if not bool(at.empirical.censored.any()):
        metrics["empirical.mean"] = estimates.bootstrap_mean(empirical, unit=_UNIT, direction="higher", level=level)
    metrics["correlation"] = estimates.rank_correlation(at.estimates.whitened.tolist(), empirical, level=level)
    if at.certified is not None:
        high = estimates.median(empirical, unit=_UNIT, direction="higher", level=level)
        # R is at least 0, whatever was refused.
        low = estimates.median(certified, unit=_UNIT, direction="higher", level=level).ci if known else (0.0, 0.0)
        metrics["median"] = Measurement(
            value=high.value,
            ci=None if low is None or high.ci is None else (low[0], high.ci[1]),
            level=level,
            n=high.n,
            nonfinite=high.nonfinite,
            unit=_UNIT,
            direction="higher",
            estimator="median of the empirical margin, an upper bound; the interval goes from "
            + ("the lower end of the certified margin's median" if known else "0, as nothing was certified,")
            + " to the upper end of the empirical one's",
            keeps_infinite=True,
            sample=high.sample,
        )
    return metrics


def _columns(at: MarginAt, level: float) -> dict[str, Measurement]:
    columns = {
        "frobenius": at.estimates.frobenius,
        "spectral": at.estimates.spectral,
        "whitened": at.estimates.whitened,
    }
    if at.certified is not None:
        bounds = {"certified": at.certified.radius, "pathwise": at.certified.pathwise}
        columns = {name: values for name, values in bounds.items() if not values.isnan().all()} | columns
    if at.empirical is not None:
        columns["empirical"] = at.empirical.margin
    return {
        f"{name}.{part}": estimates.quantile(values.tolist(), q, unit=_UNIT, direction="higher", level=level)
        for name, values in columns.items()
        for part, q in (("lower_quartile", 0.25), ("median", 0.5), ("upper_quartile", 0.75))
    }


def _shares(at: MarginAt, level: float) -> dict[str, Measurement]:
    shares = {"not_robust_unperturbed": (~at.estimates.robust, "lower")}
    if at.certified is not None and not at.certified.radius.isnan().all():
        radius = at.certified.radius
        shares["certified"] = (radius[~radius.isnan()] > 0, "higher")
    if at.empirical is not None:
        shares["censored"] = (at.empirical.censored, "higher")
    return {
        f"{name}.share": estimates.proportion(
            int(there.sum()), len(there), unit="share of items", direction=direction, level=level
        )
        for name, (there, direction) in shares.items()
    }


def possible(asked: MarginSettings) -> Iterator[str]:
    """The names of all metrics that these settings may give, as regular expressions."""
    figures = {"frobenius", "spectral", "whitened", *asked.parts} | (
        {"pathwise"} if "certified" in asked.parts else set()
    )
    names = [f"{figure}.{part}" for figure in sorted(figures) for part in QUARTILES]
    names += [f"{part}.mean" for part in asked.parts]
    names += ["not_robust_unperturbed.share"]
    if "certified" in asked.parts:
        names.append("certified.share")
    if "empirical" in asked.parts:
        names += ["censored.share", "correlation"]
    if len(asked.parts) == 2:
        names.append("median")
    yield re.escape("margin.min_r.median")
    for r in asked.r:
        radius = ANY_NUMBER if isinstance(r, str) else re.escape(f"{r:.6g}")
        yield from (rf"margin\.r{radius}\.{re.escape(name)}" for name in names)
