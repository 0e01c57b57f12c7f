"""From mutual information gaps to metrics."""

from vaeaudit.checks.mig.measure import MigResult
from vaeaudit.checks.mig.metrics import METRICS
from vaeaudit.stats.estimates import Measurement

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
        metric = next(one for one in METRICS if one.name == gaps.estimator)
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
                unit=metric.unit,
                direction=metric.direction,
                estimator=f"{gaps.estimator} ({_CODES[gaps.estimator]}{layer}); plug-in: mutual informations "
                "of n items lie too high, compare at equal n; basic multiplier-bootstrap interval over items",
            )
    return metrics
