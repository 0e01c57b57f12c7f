"""From the differences of items to metrics."""

from dataclasses import replace

from vaeaudit.checks.equivalence.measure import EquivalenceResult
from vaeaudit.checks.equivalence.metrics import CONTROL, NONFINITE, OF_SCALE, OF_SIDES, SCALE
from vaeaudit.stats import estimates
from vaeaudit.stats.estimates import Measurement


def summarise_equivalence(result: EquivalenceResult) -> dict[str, Measurement]:
    """The metrics of all variants, over items, by name."""
    units = "" if result.ranged else "; in input units"
    metrics: dict[str, Measurement] = {}
    for variant, of in result.variants.items():
        for name, metric in OF_SIDES.items():
            if name in of.values:
                for key, one in estimates.statistics(metric, of.values[name].tolist()).items():
                    metrics[f"equivalence.{variant}.{key}"] = _told(one, units if one.unit == "range" else "")
        metrics[f"equivalence.{variant}.{NONFINITE.name}"] = _fact(float(of.nonfinite.sum()), NONFINITE.unit, result)
    for metric in OF_SCALE:
        if (name := metric.name.removeprefix(f"{SCALE}.")) in result.scale:
            for key, one in estimates.statistics(metric, result.scale[name].tolist()).items():
                metrics[f"equivalence.{key}"] = _told(one, f"; between two draws of z{units}")
    metrics[f"equivalence.{CONTROL.name}"] = _fact(result.control, CONTROL.unit, result)
    return metrics


def _told(measurement: Measurement, more: str) -> Measurement:
    return replace(measurement, estimator=f"{measurement.estimator}{more}")


def _fact(value: float, unit: str, result: EquivalenceResult) -> Measurement:
    return Measurement(value, None, 0.95, len(result.items), 0, unit, "lower", "of these items", exact=True)
