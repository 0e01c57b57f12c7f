"""The metrics of the margin check: ``margin.r{r}.{name}.{statistic}``, and ``margin.min_r.median``."""

import re
from collections.abc import Iterator
from dataclasses import replace

from vaeaudit.settings.sections import MarginSettings
from vaeaudit.stats.metric import ANY_NUMBER, QUARTILES, Metric

_INPUT = "input units"

MIN_R = Metric("min_r", "output units", "lower", "least r for which an item is r-robust unperturbed", ("median",))
CERTIFIED = Metric(
    "certified",
    _INPUT,
    "higher",
    "lower bound of the margin; its share is that of items certified at all, its mean a bound of E R",
    (*QUARTILES, "mean"),
)
BOXED = Metric(
    "certified.boxed",
    _INPUT,
    "higher",
    "lower bound of the margin where x + d stays in the data's range: the pair of the empirical one in that range",
    QUARTILES,
)
CERTIFIED_AT_ALL = replace(CERTIFIED, unit="share of items", statistics=("share",))
PATHWISE = Metric(
    "pathwise", _INPUT, "higher", "another lower bound of the margin, from how far each draw stays within r", QUARTILES
)
FROBENIUS = Metric(
    "frobenius",
    _INPUT,
    "higher",
    "min sigma (Phi^-1(p) - Phi^-1(m)) / ||J||_F, theorem 1 as printed: an estimate",
    QUARTILES,
)
SPECTRAL = Metric("spectral", _INPUT, "higher", "the same with ||J||_2", QUARTILES)
WHITENED = Metric(
    "whitened", _INPUT, "higher", "(Phi^-1(p) - Phi^-1(m)) / ||D^-1 J||_2, the sharpest of the three", QUARTILES
)
EMPIRICAL = Metric("empirical", _INPUT, "higher", "upper bound of the margin", (*QUARTILES, "mean"))
MEDIAN = Metric(
    "median",
    _INPUT,
    "higher",
    "straight after r: that of R itself, as far as it is known: the empirical median, and an interval from the "
    "certified median's lower end, in the box where there is one, to the empirical one's upper end; elsewhere that of "
    "the figure before it",
    (),
)
CORRELATION = Metric(
    "correlation", "rank correlation", "none", "rank correlation of the empirical margin with the whitened estimate", ()
)
NOT_ROBUST = Metric(
    "not_robust_unperturbed",
    "share of items",
    "lower",
    "items whose own draws do not show that they stay within r",
    ("share",),
)
CENSORED = Metric("censored", "share of items", "higher", "items that nothing broke", ("share",))
METRICS = (
    *(MIN_R, CERTIFIED, BOXED, CERTIFIED_AT_ALL, PATHWISE, FROBENIUS, SPECTRAL, WHITENED, EMPIRICAL),
    *(MEDIAN, CORRELATION, NOT_ROBUST, CENSORED),
)


def beginning(r: float) -> str:
    """What the names begin with of all metrics at one radius."""
    return f"margin.r{r:.6g}"


def possible(asked: MarginSettings) -> Iterator[str]:
    """The names of all metrics that these settings may give, as regular expressions."""
    metrics = [FROBENIUS, SPECTRAL, WHITENED, NOT_ROBUST]
    if "certified" in asked.parts:
        metrics += [CERTIFIED, BOXED, CERTIFIED_AT_ALL, PATHWISE]
    if "empirical" in asked.parts:
        metrics += [EMPIRICAL, CENSORED, CORRELATION]
    if len(asked.parts) == 2:
        metrics.append(MEDIAN)
    yield from (re.escape(f"margin.{name}") for name in MIN_R.names)
    for r in asked.r:
        radius = rf"margin\.r{ANY_NUMBER}" if isinstance(r, str) else re.escape(beginning(r))
        yield from (rf"{radius}\.{re.escape(name)}" for metric in metrics for name in metric.names)
