"""From the latents of the items to metrics."""

import math
from dataclasses import replace

from scipy import stats as distributions
from torch import Tensor

from vaeaudit.checks.latents.decomposition import Estimate
from vaeaudit.checks.latents.layers import Layer
from vaeaudit.checks.latents.measure import LatentsResult
from vaeaudit.checks.latents.metrics import (
    ACTIVE_UNITS,
    DIMENSION_WISE_KL,
    ELBO,
    KL,
    LOG_LIKELIHOOD,
    MUTUAL_INFORMATION,
    TOTAL_CORRELATION,
)
from vaeaudit.stats import estimates
from vaeaudit.stats.estimates import Measurement

ACTIVE = 0.01  # the threshold of both criteria: nats, and squared latent units
_NAMED = 64  # most units of a layer that have metrics of their own


def summarise_latents(
    result: LatentsResult, *, threshold: float = ACTIVE, level: float = 0.95
) -> dict[str, Measurement]:
    """The metrics of the latents over items, by name; no direction is more robust.

    Units are active whose mean KL, or whose variance of the mean (Burda et al. 2016), exceeds ``threshold``. Units have
    metrics of their own in layers of at most 64. In a chain the units' metrics begin with ``latents.layer{i}.``,
    ``latents.layer{i}.kl.mean`` is that layer's share, and the parts of the KL are of the top layer. Without units of
    the prior there are neither metrics of their KL nor of these parts.
    """
    metrics: dict[str, Measurement] = {}
    for metric, values in ((ELBO, result.elbo), (LOG_LIKELIHOOD, result.log_likelihood), (KL, result.kl)):
        found = {} if values is None else estimates.statistics(metric, values.tolist(), level)
        estimator = "" if metric is LOG_LIKELIHOOD or result.kl_estimator is None else f"; {result.kl_estimator}"
        metrics |= {
            f"latents.{name}": replace(one, estimator=f"{one.estimator}{estimator}") for name, one in found.items()
        }
    for layer in result.layers:
        prefix, support = "latents", support_of(layer, result)
        if len(result.layers) > 1:
            prefix = f"latents.layer{layer.number}"
            share = replace(KL, least=support[0])
            metrics[f"{prefix}.kl.mean"] = estimates.statistic(share, "mean", layer.item_kl.tolist(), level)
        metrics |= _units(prefix, layer, result.n, threshold, level, support)
    if (parts := result.decomposition) is not None:
        for metric, estimate, support in (
            (MUTUAL_INFORMATION, parts.mutual_information, (0.0, math.log(parts.n))),
            (TOTAL_CORRELATION, parts.total_correlation, estimates.NOT_NEGATIVE),
            (DIMENSION_WISE_KL, parts.dimension_wise, estimates.NOT_NEGATIVE),
        ):
            metrics[f"latents.{metric.name}"] = replace(
                estimated(estimate, parts.n, level, support), estimator=f"{parts.estimator}; n counts items"
            )
    return metrics


def support_of(layer: Layer, result: LatentsResult) -> estimates.Support:
    """What the terms of a layer can be, which below a chain's top are no KL: as layers above depend on it, negative."""
    return estimates.NOT_NEGATIVE if layer is result.layers[-1] else estimates.ANY


def _units(
    prefix: str, layer: Layer, n: int, threshold: float, level: float, support: estimates.Support
) -> dict[str, Measurement]:
    metrics: dict[str, Measurement] = {}
    known = not bool(layer.kl.isnan().all())
    if known and len(layer.kl) <= _NAMED:
        for unit, (value, error) in enumerate(zip(layer.kl.tolist(), layer.kl_error.tolist(), strict=True)):
            metrics[f"{prefix}.unit{unit}.kl.mean"] = estimated(Estimate(value, error, n - 1), n, level, support)
    criteria = {
        "kl": (layer.kl, layer.kl_error, f"units of mean KL > {threshold:g} nats"),
        "variance": (
            layer.mean_variance,
            layer.mean_variance_error,
            f"continuous units whose posterior mean has variance > {threshold:g} (Burda et al. 2016)",
        ),
    }
    if not known:
        del criteria["kl"]
    for name, (values, errors, words) in criteria.items():
        metrics[f"{prefix}.{ACTIVE_UNITS.name}.{name}"] = _active(values, errors, words, n, threshold, level)
    return metrics


def _active(values: Tensor, errors: Tensor, words: str, n: int, threshold: float, level: float) -> Measurement:
    """How many exceed the threshold, between those that surely do and those that may; all together at ``level``."""
    known = ~values.isnan()
    values, errors = values[known], errors[known]
    half = errors * float(distributions.t.ppf(1 - (1 - level) / (2 * max(len(values), 1)), n - 1))
    surely, maybe = int((values - half > threshold).sum()), int((values + half > threshold).sum())
    return Measurement(
        value=float((values > threshold).sum()) if len(values) else None,
        ci=(float(surely), float(maybe)) if len(values) else None,
        level=level,
        n=n,
        nonfinite=0,
        unit=ACTIVE_UNITS.unit,
        direction=ACTIVE_UNITS.direction,
        estimator=f"{words}, of {len(values)}; simultaneous t intervals over items (Bonferroni)",
    )


def estimated(estimate: Estimate, n: int, level: float, support: estimates.Support) -> Measurement:
    """A mean in nats over ``n`` items with its Student t interval, where there are degrees of freedom for one.

    What the figure can be is its ``support``.
    """
    known = estimate.freedom > 0 and math.isfinite(estimate.standard_error)
    half = float(distributions.t.ppf(0.5 + level / 2, estimate.freedom)) * estimate.standard_error if known else 0.0
    finite = math.isfinite(estimate.value)
    return Measurement(
        value=estimate.value if finite else None,
        ci=estimates.cut((estimate.value - half, estimate.value + half), estimate.value, support)
        if known and finite
        else None,
        level=level,
        n=n,
        nonfinite=int(not finite),
        unit=KL.unit,
        direction=KL.direction,
        estimator="mean, Student t interval over items",
    )
