"""The metrics of the noise check, by name."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from vaeaudit.checks.noise.measure import NoiseResult, over_draws
from vaeaudit.settings.sections import NoiseSettings
from vaeaudit.stats import estimates
from vaeaudit.stats.estimates import Measurement
from vaeaudit.stats.metric import QUARTILES

_QUANTILES = {"lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75}


def summarise_noise(result: NoiseResult, level: float = 0.95) -> dict[str, Measurement]:
    """The metrics of noise, over items, by name: ``noise.s{sigma}.{figure}.{statistic}``.

    ``log_likelihood`` (also at s = 0), ``degradation`` in nats and ``relative_degradation``, the absolute value of an
    item's degradation as a share of its |log p(x|z)|: the mean over items of means over draws, and quantiles over items
    of medians over draws, which heavy tails do not carry off. In quantiles what is NaN or infinite keeps its place as
    the worst; means leave it out. Relative degradation counts gains as losses; its direction is "lower" all the same: a
    model that noise changes less. ``denoising_error``,
    ||rec(x + eps) - x||, beside ``noise_norm``, ||eps||, of one draw an item.
    """
    clean, noisy, lost = result.clean, result.log_likelihood, result.degradation
    metrics = _over_both(result, "noise.s0.log_likelihood", clean, "nats", "higher", level)
    metrics |= _lengths("noise.s0.denoising_error", result.clean_error, "lower", level, "")
    relative, typical = result.relative_degradation(), result.relative_degradation("median")
    for place, sigma in enumerate(result.sigmas):
        name = f"noise.s{sigma:.6g}"
        metrics |= _over_both(result, f"{name}.log_likelihood", noisy[place], "nats", "higher", level)
        metrics |= _over_both(result, f"{name}.degradation", lost[place], "nats", "lower", level)
        metrics |= _over_items(
            result,
            f"{name}.relative_degradation",
            relative[place],
            typical[place],
            "share",
            "lower",
            level,
            support=estimates.NOT_NEGATIVE,
        )
        metrics |= _lengths(f"{name}.denoising_error", result.error[place], "lower", level)
        metrics |= _lengths(f"{name}.noise_norm", result.length[place], "none", level)
    return metrics


def _over_both(
    result: NoiseResult, name: str, values: Tensor, unit: str, direction: str, level: float
) -> dict[str, Measurement]:
    """Statistics of ``values`` (D, I)."""
    worst = math.inf if direction == "lower" else -math.inf
    medians = over_draws(values, "median", worst=worst)
    return _over_items(result, name, over_draws(values), medians, unit, direction, level)


def _over_items(
    result: NoiseResult,
    name: str,
    means: Tensor,
    medians: Tensor,
    unit: str,
    direction: str,
    level: float,
    support: estimates.Support = estimates.ANY,
) -> dict[str, Measurement]:
    """Mean of ``means`` (I,) and quantiles of ``medians`` (I,), each item's over its draws."""
    mean = estimates.mean(means.tolist(), unit=unit, direction=direction, level=level, support=support)
    of = "{}; of each item's {} over " + f"{result.draws} draw{'s' * (result.draws > 1)}"
    metrics = {f"{name}.mean": replace(mean, estimator=of.format(mean.estimator, "mean"))}
    for statistic, q in _QUANTILES.items():
        measured = estimates.quantile(medians.tolist(), q, unit=unit, direction=direction, level=level)
        metrics[f"{name}.{statistic}"] = replace(measured, estimator=of.format(measured.estimator, "median"))
    return metrics


def _lengths(
    name: str, values: Tensor, direction: str, level: float, of: str = "; one draw an item"
) -> dict[str, Measurement]:
    """Mean and median of ``values`` (I,), one for each item; one that is not finite is the largest there is."""
    of_items = values.cpu().double().nan_to_num(math.inf, math.inf, math.inf).tolist()
    unit = "input units"
    both = {
        f"{name}.mean": estimates.mean(
            of_items, unit=unit, direction=direction, level=level, support=estimates.NOT_NEGATIVE
        ),
        f"{name}.median": estimates.median(of_items, unit=unit, direction=direction, level=level),
    }
    return {key: replace(value, estimator=f"{value.estimator}{of}") for key, value in both.items()}


def possible(asked: NoiseSettings) -> Iterator[str]:
    """The names of all metrics that these settings may give, as regular expressions."""
    levels: dict[str, tuple[str, ...]] = {"0": ("log_likelihood",)}
    levels |= {f"{sigma:.6g}": ("log_likelihood", "degradation", "relative_degradation") for sigma in asked.sigmas}
    for sigma, figures in levels.items():
        names = [f"{figure}.{part}" for figure in figures for part in ("mean", *QUARTILES)]
        names += [
            f"{length}.{part}"
            for length in ("denoising_error", "noise_norm")[: len(figures)]
            for part in ("mean", "median")
        ]
        yield from (re.escape(f"noise.s{sigma}.{name}") for name in names)
