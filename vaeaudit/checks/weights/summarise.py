"""From norms of weights to metrics."""

import math

from vaeaudit.checks.weights.measure import WeightsResult
from vaeaudit.checks.weights.metrics import CHANGE, L2
from vaeaudit.stats.estimates import Measurement


def summarise_weights(result: WeightsResult, level: float = 0.95) -> dict[str, Measurement]:
    """``weights.{encoder,decoder}.l2`` and, against another model, ``.l2.change`` in percent.

    Nothing is estimated: there is no interval, and ``n`` is how many numbers were counted. Neither way is more robust.
    """
    which = "all tensors" if result.vectors else "tensors of two or more dimensions"
    metrics: dict[str, Measurement] = {}
    for part in result.parts:
        exact = f"square root of the sum of squares over {which}, in float64; exact, so that it has no interval"
        change = "100 (n2 - n1) / n1 of those norms, n1 the other model's; exact, so that it has no interval"
        figures = {L2.name: (part.l2, L2, exact)}
        if part.against is not None:
            value = math.nan if part.change is None else part.change
            figures[f"{L2.name}.{CHANGE.name}"] = (value, CHANGE, f"{change}; {part.why}" if part.why else change)
        for name, (value, metric, estimator) in figures.items():
            metrics[f"weights.{part.name}.{name}"] = Measurement(
                value=value if math.isfinite(value) else None,
                ci=None,
                level=level,
                n=part.numbers,
                nonfinite=0,
                unit=metric.unit,
                direction=metric.direction,
                estimator=estimator,
                exact=True,
            )
    return metrics
