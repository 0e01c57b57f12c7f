"""The noise check from settings to record: randomly drawn items under every noise."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vaeaudit.checks.noise.entry import CURVES, HISTOGRAMS, NoiseEntry, NoiseLevelEntry
from vaeaudit.checks.noise.figures import likelihood_histograms, noise_curves
from vaeaudit.checks.noise.measure import NoiseResult, noise, over_draws
from vaeaudit.checks.noise.metrics import DEGRADATION, LOG_LIKELIHOOD, RELATIVE, beginning
from vaeaudit.checks.noise.summarise import summarise_noise
from vaeaudit.checks.record import Columns, Drawing, Record, Work, array, measured, metric_entry
from vaeaudit.checks.relative import remark
from vaeaudit.layout.entry import MetricEntry
from vaeaudit.layout.figures import Array
from vaeaudit.progress import GoOn, within
from vaeaudit.stats.estimates import Measurement
from vaeaudit.subject.inputs import not_finite, numbered
from vaeaudit.subject.opened import Subject

Metrics = Mapping[str, Measurement]

_RELATIVE = ("relative degradation under noise", "degradation")


def works(subject: Subject) -> dict[str, Work]:
    """What there is to do, in one piece."""
    return {"noise": partial(run, subject)}


def cost(subject: Subject, _: str) -> float:
    """About how many rows the model is given, forward and back."""
    asked = subject.settings.noise
    return min(asked.items, subject.n) * asked.draws * (1 + len(asked.sigmas))


def run(subject: Subject, go_on: GoOn) -> Record:
    """The likelihoods of the items under noise of every standard deviation that the settings name."""
    chosen = subject.settings.noise
    items, how = subject.drawn(chosen.items, "noise.items")
    result = noise(
        subject.vae(items),
        subject.images,
        chosen.sigmas,
        draws=chosen.draws,
        clip=chosen.clip,
        **subject.given(items),
        go_on=within(go_on, 0.0, measured(cost(subject, "noise"))),
    )
    metrics = summarise_noise(result)
    return Record(
        [_entry(result, metrics, how)],
        metrics,
        (*filter(None, result.signs), *remark(over_draws(result.clean), result.clean_spread, *_RELATIVE)),
        interrupted=result.interrupted,
        doubts=_doubts(result),
        rows={"noise": _rows(result)},
        drawings=_drawings(result, metrics),
    )


def _doubts(result: NoiseResult) -> dict[str, str]:
    """Which metrics a sign puts in doubt: heavy tails, NaN and infinity carry off means and not quantiles."""
    found: dict[str, str] = {}
    errors = [result.clean_error, *result.error.unbind(0)]
    for (sigma, noisy, values, sign), error in zip(_levels(result), errors, strict=True):
        name = beginning(sigma)
        if sign:
            found |= {f"{name}.{metric.name}.mean": sign for metric in (LOG_LIKELIHOOD, DEGRADATION, RELATIVE)}
        if not noisy:
            found |= _left_out(f"{name}.log_likelihood.mean", values.T, result.items)
        found |= _left_out(f"{name}.denoising_error.mean", error, result.items)
    return found


def _left_out(name: str, values: Tensor, items: Sequence[int]) -> dict[str, str]:
    """The doubt about a mean that leaves out items whose ``values`` (I, ...) are not finite."""
    wrong = not_finite(values)
    if not wrong:
        return {}
    told = numbered([items[place] for place in wrong])
    return {name: f"it leaves out {told}, {len(wrong)} of {len(values)}, where the model gives NaN or infinity"}


def _entry(result: NoiseResult, metrics: Metrics, how: str) -> NoiseEntry:
    return NoiseEntry(
        n=len(result.items),
        chosen=how,
        draws=result.draws,
        clip=result.clip,
        route=result.route,
        levels=[
            NoiseLevelEntry(
                sigma=sigma,
                log_likelihood_mean=_metric(metrics, sigma, "log_likelihood.mean"),
                log_likelihood_median=_metric(metrics, sigma, "log_likelihood.median"),
                degradation_mean=_metric(metrics, sigma, "degradation.mean") if noisy else None,
                degradation_median=_metric(metrics, sigma, "degradation.median") if noisy else None,
                relative_degradation_median=_metric(metrics, sigma, "relative_degradation.median") if noisy else None,
                denoising_error_median=_metric(metrics, sigma, "denoising_error.median"),
                noise_norm_median=_metric(metrics, sigma, "noise_norm.median") if noisy else None,
                nonfinite=int((~values.isfinite()).sum()),
                sign=sign,
            )
            for sigma, noisy, values, sign in _levels(result)
        ],
    )


def _levels(result: NoiseResult) -> list[tuple[float, bool, Tensor, str | None]]:
    """The standard deviation, whether noise was added, log p (D, I) and the failure sign, the clean items first."""
    noisy = zip(result.sigmas, result.log_likelihood.unbind(0), result.signs, strict=True)
    return [(0.0, False, result.clean, None), *((sigma, True, values, sign) for sigma, values, sign in noisy)]


def _metric(metrics: Metrics, sigma: float, name: str) -> MetricEntry:
    return metric_entry(metrics[f"{beginning(sigma)}.{name}"])


def _rows(result: NoiseResult) -> Columns:
    """One row an item and standard deviation."""
    errors = [result.clean_error, *result.error.unbind(0)]
    lengths = [result.clean_error.new_zeros(len(result.items)), *result.length.unbind(0)]
    levels, n = _levels(result), len(result.items)
    columns = {
        "log_likelihood_mean": [over_draws(values) for _, _, values, _ in levels],
        "log_likelihood_median": [over_draws(values, "median") for _, _, values, _ in levels],
        "denoising_error": errors,
        "noise_norm": lengths,
    }
    ids = {"item": np.tile(result.items, len(levels)), "sigma": np.repeat([level[0] for level in levels], n)}
    return Columns(ids | {name: array(torch.cat(of)) for name, of in columns.items()})


def _drawings(result: NoiseResult, metrics: Metrics) -> dict[str, Drawing]:
    levels = _levels(result)
    values = {f"s = {sigma:g}" if noisy else "clean": array(of).ravel() for sigma, noisy, of, _ in levels}
    sigmas = [sigma for sigma, *_ in levels]
    likelihood: dict[str, Array] = {}
    for name in ("mean", "lower_quartile", "median", "upper_quartile"):
        found = [metrics[f"{beginning(sigma)}.log_likelihood.{name}"] for sigma in sigmas]
        ends = [(m.value, *(m.ci or (None, None))) for m in found]
        likelihood[name] = np.array(ends, dtype=np.float64)  # None becomes NaN
    error = array(torch.stack([result.clean_error, *result.error.unbind(0)]))
    length = array(torch.stack([torch.zeros_like(result.clean_error), *result.length.unbind(0)]))
    return {
        HISTOGRAMS: Drawing("noise-histograms.png", partial(likelihood_histograms, values)),
        CURVES: Drawing("noise-curves.png", partial(noise_curves, sigmas, likelihood, error, length)),
    }
