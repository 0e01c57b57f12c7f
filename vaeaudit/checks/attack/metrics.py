"""The metrics of a check: its figures over pairs or items, by name.

What a search found is a point that it evaluated, so that a better search can only lower the objective that it
minimises, or raise the damage that it maximises: of each pair, and so of their mean and of every quantile. What is read
beside the objective, or at the chosen lambda, may move either way.
"""

from dataclasses import replace

from vaeaudit.attacks.signs import Sign, Signs
from vaeaudit.checks.attack.capped import CappedResult
from vaeaudit.checks.attack.measure import AttackResult
from vaeaudit.checks.likeness import ms_ssim
from vaeaudit.checks.relative import share_of
from vaeaudit.model.ranges import Range
from vaeaudit.stats import estimates
from vaeaudit.stats.estimates import Measurement

# Signs that the values themselves are amiss: not finite, other when computed again, or fitted to the search's noise.
_DISTRUSTED = (Sign.NOT_FINITE, Sign.NOT_REPEATABLE, Sign.ABOVE_ZERO)


def summarise(result: AttackResult) -> dict[str, Measurement]:
    """The metrics of an attack, over its pairs, by name.

    Higher is more robust for ``delta`` and ``curve_area``. The others are read at the chosen lambda, where a longer
    d and a smaller data term stand for each other, so that neither way is more robust.
    """
    unit = result.unit
    chosen = result.at_chosen
    summaries = {
        "delta": (result.delta, unit, "higher"),
        "curve_area": (result.curve_area, "share", "higher"),
        "data_term": (chosen(result.sweep.data_term), unit, "none"),
        "distortion": (chosen(result.sweep.norm), "input units", "none"),
        "target_nll": (chosen(result.target_nll), "nats", "none"),
        "target_error": (chosen(result.target_error), "input units", "none"),
    }
    prefix = f"attack.{result.mode}"
    metrics = {
        f"{prefix}.{name}.median": estimates.median(values.tolist(), unit=of, direction=direction)
        for name, (values, of, direction) in summaries.items()
    }
    support = (
        estimates.NOT_NEGATIVE if result.objective.row.floor == 0 else estimates.ANY
    )  # penalties are never negative
    metrics[f"{prefix}.delta.mean"] = estimates.mean(
        result.delta.tolist(), unit=unit, direction="higher", support=support
    )
    if _trusted(result.signs):
        for name in (f"{prefix}.delta.median", f"{prefix}.delta.mean"):
            metrics[name] = replace(metrics[name], search=result.objective.row.search)
    return metrics


def _trusted(signs: Signs) -> bool:
    """Whether every pair's values are what its points give, however weak the search."""
    return not any(sign in _DISTRUSTED for item in range(signs.measured.shape[1]) for sign in signs.of(item))


def summarise_capped(result: CappedResult) -> dict[str, Measurement]:
    """The metrics of a capped attack, over its items, by name: ``attack.{mode}.{norm}{cap}.{figure}``.

    ``damage`` is in input units, lower is more robust; ``degradation`` is log p(x|z) - log p(x|z*) in nats, and
    ``relative_degradation`` its share of |log p(x|z)| (Camuto et al.), which depends on the likelihood's constants
    and leaves out items whose log p is near 0.
    """
    metrics: dict[str, Measurement] = {}
    for place, cap in enumerate(result.capped.caps.tolist()):
        name = f"attack.{result.mode}.{result.capped.norm_name}-{cap:.4g}"
        lost = result.nll[:, place] - result.zero_nll
        columns = {
            "damage": (result.damage[:, place], "input units"),
            "degradation": (lost, "nats"),
            "relative_degradation": (share_of(lost, result.zero_nll), "share"),
        }
        for figure, (values, unit) in columns.items():
            metrics[f"{name}.{figure}.median"] = estimates.median(values.tolist(), unit=unit, direction="lower")
        metrics[f"{name}.damage.mean"] = estimates.mean(
            result.damage[:, place].tolist(), unit="input units", direction="lower", support=estimates.NOT_NEGATIVE
        )
        if _trusted(result.signs):
            for key in (f"{name}.damage.median", f"{name}.damage.mean"):
                metrics[key] = replace(metrics[key], search=result.objective.row.search)
    return metrics


def summarise_likeness(result: CappedResult, data_range: Range) -> dict[str, Measurement]:
    """MS-SSIM of inputs with adversarial inputs, and of their reconstructions (Kuzina et al. 2022), for each cap.

    An attack that is not seen leaves the first near 1; one that changes nothing leaves the second there. Raises what
    :func:`vaeaudit.checks.likeness.ms_ssim` does.
    """
    metrics: dict[str, Measurement] = {}
    for place, cap in enumerate(result.capped.caps.tolist()):
        sides = {
            "input": (result.source, result.capped.adversarial[:, place], "none"),
            "reconstruction": (result.source_reconstruction, result.reconstruction[:, place], "higher"),
        }
        for side, (clean, attacked, direction) in sides.items():
            likeness = ms_ssim(clean, attacked, data_range)
            measured = estimates.median(likeness.value.tolist(), unit="share", direction=direction)
            name = f"attack.{result.mode}.{result.capped.norm_name}-{cap:.4g}.ms_ssim_{side}.median"
            metrics[name] = replace(measured, estimator=f"{likeness.estimator}; {measured.estimator}")
    return metrics
