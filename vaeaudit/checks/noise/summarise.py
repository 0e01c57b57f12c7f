"""From the likelihoods under noise to metrics."""

import math
from dataclasses import replace

from torch import Tensor

from vaeaudit.checks.noise.measure import NoiseResult, over_draws
from vaeaudit.checks.noise.metrics import DEGRADATION, ERROR, LENGTH, LOG_LIKELIHOOD, RELATIVE, beginning
from vaeaudit.stats import estimates
from vaeaudit.stats.estimates import Measurement
from vaeaudit.stats.metric import Metric


def summarise_noise(result: NoiseResult, level: float = 0.95) -> dict[str, Measurement]:
    """The metrics of noise, over items, by name.

    Of likelihoods the mean over items of means over draws, and quantiles over items of medians over draws, which heavy
    tails do not carry off. In quantiles what is NaN or infinite keeps its place as the worst; means leave it out.
    Relative degradation counts gains as losses; its direction is "lower" all the same: a model that noise changes less.
    """
    metrics = _over_draws(result, 0.0, LOG_LIKELIHOOD, result.clean, level)
    metrics |= _of_one_draw(0.0, ERROR, result.clean_error, level, "")
    relative, typical = result.relative_degradation(), result.relative_degradation("median")
    for place, sigma in enumerate(result.sigmas):
        metrics |= _over_draws(result, sigma, LOG_LIKELIHOOD, result.log_likelihood[place], level)
        metrics |= _over_draws(result, sigma, DEGRADATION, result.degradation[place], level)
        metrics |= _over_items(result, sigma, RELATIVE, relative[place], typical[place], level)
        metrics |= _of_one_draw(sigma, ERROR, result.error[place], level)
        metrics |= _of_one_draw(sigma, LENGTH, result.length[place], level)
    return metrics


def _over_draws(
    result: NoiseResult, sigma: float, metric: Metric, values: Tensor, level: float
) -> dict[str, Measurement]:
    """Statistics of ``values`` (D, I)."""
    worst = math.inf if metric.direction == "lower" else -math.inf
    medians = over_draws(values, "median", worst=worst)
    return _over_items(result, sigma, metric, over_draws(values), medians, level)


def _over_items(
    result: NoiseResult, sigma: float, metric: Metric, means: Tensor, medians: Tensor, level: float
) -> dict[str, Measurement]:
    """Mean of ``means`` (I,) and quantiles of ``medians`` (I,), each item's over its draws."""
    of = f"over {result.draws} draw{'s' * (result.draws > 1)}"
    found = {}
    for statistic in metric.statistics:
        values, told = (means, "mean") if statistic == "mean" else (medians, "median")
        measured = estimates.statistic(metric, statistic, values.tolist(), level)
        name = f"{beginning(sigma)}.{metric.name}.{statistic}"
        found[name] = replace(measured, estimator=f"{measured.estimator}; of each item's {told} {of}")
    return found


def _of_one_draw(
    sigma: float, metric: Metric, values: Tensor, level: float, of: str = "; one draw an item"
) -> dict[str, Measurement]:
    """Statistics of ``values`` (I,), one for each item; one that is not finite is the largest there is."""
    of_items = values.cpu().double().nan_to_num(math.inf, math.inf, math.inf).tolist()
    return {
        f"{beginning(sigma)}.{name}": replace(value, estimator=f"{value.estimator}{of}")
        for name, value in estimates.statistics(metric, of_items, level).items()
    }
