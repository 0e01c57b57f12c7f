"""The metrics of the mutual information gap, by name."""

from collections.abc import Iterator

from vaeaudit.checks.mig.measure import MigResult
from vaeaudit.settings.sections import MigSettings
from vaeaudit.stats.estimates import Measurement

_ANY = r"[^.]+(\.[^.]+)*"  # a factor's name
_CODES = {
    "chen": "mixtures over all items, one-dimensional quadrature",
    "hist20": "histogram of the mean, 20 bins",
}


def summarise_mig(result: MigResult) -> dict[str, Measurement]:
    """``mig.{estimator}``, the gap, and ``mig.{estimator}.{factor}``, that of each factor, as shares of its entropy.

    Neither way is more robust. Without value and interval where the check was stopped.
    """
    layer = f", layer {result.layer} of {result.layers}, one draw an item below" if result.layers > 1 else ""
    metrics: dict[str, Measurement] = {}
    for gaps in result.by:
        columns = [(f"mig.{gaps.estimator}", gaps.value, gaps.ci)]
        for name, value, (low, high) in zip(result.names, gaps.gaps.tolist(), gaps.gap_ci.tolist(), strict=True):
            columns.append((f"mig.{gaps.estimator}.{name}", value, (low, high)))
        for name, value, interval in columns:
            metrics[name] = Measurement(
                value=None if result.interrupted else value,
                ci=None if result.interrupted else interval,
                level=result.level,
                n=result.n,
                nonfinite=0,
                unit="share",
                direction="none",
                estimator=f"{gaps.estimator} ({_CODES[gaps.estimator]}{layer}); plug-in: mutual informations "
                "of n items lie too high, compare at equal n; basic multiplier-bootstrap interval over items",
            )
    return metrics


def possible(_: MigSettings) -> Iterator[str]:
    """The names of all metrics that these settings may give, as regular expressions."""
    yield from (rf"mig\.{estimator}{factor}" for estimator in _CODES for factor in ("", rf"\.{_ANY}"))
