"""From attacks to metrics, over pairs or items.

What a search found is a point that it evaluated, so that a better search can only lower the objective that it
minimises, or raise the damage that it maximises: of each pair, and so of their mean and of every quantile. What is read
beside the objective, or at the chosen lambda, may move either way.
"""

import math
from dataclasses import replace

from vaeaudit.checks.attack.capped import CappedResult
from vaeaudit.checks.attack.measure import AttackResult
from vaeaudit.checks.attack.metrics import (
    CURVE_AREA,
    DAMAGE,
    DATA_TERM,
    DEGRADATION,
    DELTA,
    DISTORTION,
    FIRST_KL,
    MS_SSIM_INPUT,
    MS_SSIM_RECONSTRUCTION,
    RELATIVE,
    TARGET_ERROR,
    TARGET_NLL,
    under,
)
from vaeaudit.checks.likeness import ms_ssim
from vaeaudit.checks.relative import share_of
from vaeaudit.model.ranges import Range
from vaeaudit.stats import estimates
from vaeaudit.stats.estimates import Measurement


def summarise(result: AttackResult) -> dict[str, Measurement]:
    """The metrics of an attack, over its pairs, by name.

    Higher is more robust for ``delta`` and ``curve_area``. The others are read at the chosen lambda, where a longer
    d and a smaller data term stand for each other, so that neither way is more robust.
    """
    chosen, floor = result.at_chosen, result.objective.row.floor
    least = -math.inf if floor is None else floor  # penalties are never negative
    columns = {
        replace(DELTA, unit=result.unit, least=least): result.delta,
        CURVE_AREA: result.curve_area,
        replace(DATA_TERM, unit=result.unit): chosen(result.sweep.data_term),
        DISTORTION: chosen(result.sweep.norm),
        TARGET_NLL: chosen(result.target_nll),
        TARGET_ERROR: chosen(result.target_error),
    }
    if result.first_kl is not None:
        columns[FIRST_KL] = chosen(result.first_kl)
    metrics = {
        f"attack.{result.mode}.{name}": measured
        for metric, values in columns.items()
        for name, measured in estimates.statistics(metric, values.tolist()).items()
    }
    if result.signs.trusted:
        for name in (f"attack.{result.mode}.{name}" for name in DELTA.names):
            metrics[name] = replace(metrics[name], search=result.objective.row.search)
    return metrics


def summarise_capped(result: CappedResult) -> dict[str, Measurement]:
    """The metrics of a capped attack, over its items, by name: ``attack.{mode}.{norm}{cap}.{figure}``.

    ``damage`` is in input units, lower is more robust; ``degradation`` is log p(x|z) - log p(x|z*) in nats, and
    ``relative_degradation`` its share of |log p(x|z)| (Camuto et al.), which depends on the likelihood's constants
    and leaves out items whose log p is near 0.
    """
    metrics: dict[str, Measurement] = {}
    for place, cap in enumerate(result.capped.caps.tolist()):
        name = under(result.mode, result.capped.norm_name, f"{cap:.4g}")
        lost = result.nll[:, place] - result.zero_nll
        columns = {DAMAGE: result.damage[:, place], DEGRADATION: lost, RELATIVE: share_of(lost, result.zero_nll)}
        for metric, values in columns.items():
            found = estimates.statistics(metric, values.tolist())
            if metric is DAMAGE and result.signs.trusted:
                found = {key: replace(value, search=result.objective.row.search) for key, value in found.items()}
            metrics |= {f"{name}.{key}": value for key, value in found.items()}
    return metrics


def summarise_likeness(result: CappedResult, data_range: Range) -> dict[str, Measurement]:
    """MS-SSIM of inputs with adversarial inputs, and of their reconstructions (Kuzina et al. 2022), for each cap.

    An attack that is not seen leaves the first near 1; one that changes nothing leaves the second there. Raises what
    :func:`vaeaudit.checks.likeness.ms_ssim` does.
    """
    metrics: dict[str, Measurement] = {}
    for place, cap in enumerate(result.capped.caps.tolist()):
        sides = {
            MS_SSIM_INPUT: (result.source, result.capped.adversarial[:, place]),
            MS_SSIM_RECONSTRUCTION: (result.source_reconstruction, result.reconstruction[:, place]),
        }
        for metric, (clean, attacked) in sides.items():
            likeness = ms_ssim(clean, attacked, data_range)
            for name, measured in estimates.statistics(metric, likeness.value.tolist()).items():
                told = replace(measured, estimator=f"{likeness.estimator}; {measured.estimator}")
                metrics[f"{under(result.mode, result.capped.norm_name, f'{cap:.4g}')}.{name}"] = told
    return metrics
