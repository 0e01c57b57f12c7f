"""The metrics of a check: its figures over pairs or items, by name."""

from dataclasses import replace

from vaeaudit import stats
from vaeaudit.checks.attack import AttackResult
from vaeaudit.checks.capped import CappedResult
from vaeaudit.checks.margin import MarginResult
from vaeaudit.likeness import ms_ssim
from vaeaudit.stats import Measurement


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
        f"{prefix}.{name}.median": stats.median(values.tolist(), unit=of, direction=direction)
        for name, (values, of, direction) in summaries.items()
    }
    metrics[f"{prefix}.delta.mean"] = stats.mean(result.delta.tolist(), unit=unit, direction="higher")
    return metrics


def summarise_capped(result: CappedResult) -> dict[str, Measurement]:
    """The metrics of a capped attack, over its items, by name: ``attack.{mode}.{norm}{cap}.{figure}``.

    ``damage`` is in input units, lower is more robust; ``degradation`` is log p(x|z) - log p(x|z*) in nats, and
    ``relative_degradation`` its share of |log p(x|z)| (Camuto et al.), which depends on the likelihood's constants.
    """
    metrics: dict[str, Measurement] = {}
    for place, cap in enumerate(result.found.caps.tolist()):
        name = f"attack.{result.mode}.{result.found.norm}-{cap:.4g}"
        lost = result.nll[:, place] - result.zero_nll
        columns = {
            "damage": (result.damage[:, place], "input units"),
            "degradation": (lost, "nats"),
            "relative_degradation": (lost.abs() / result.zero_nll.abs(), "share"),
        }
        for figure, (values, unit) in columns.items():
            metrics[f"{name}.{figure}.median"] = stats.median(values.tolist(), unit=unit, direction="lower")
        metrics[f"{name}.damage.mean"] = stats.mean(
            result.damage[:, place].tolist(), unit="input units", direction="lower"
        )
    return metrics


def summarise_likeness(result: CappedResult, data_range: tuple[float, float]) -> dict[str, Measurement]:
    """MS-SSIM of inputs with adversarial inputs, and of their reconstructions (Kuzina et al. 2022), for each cap.

    An attack that is not seen leaves the first near 1; one that changes nothing leaves the second there. Raises what
    :func:`vaeaudit.likeness.ms_ssim` does.
    """
    metrics: dict[str, Measurement] = {}
    for place, cap in enumerate(result.found.caps.tolist()):
        sides = {
            "input": (result.source, result.found.adversarial[:, place], "none"),
            "reconstruction": (result.source_reconstruction, result.reconstruction[:, place], "higher"),
        }
        for side, (clean, attacked, direction) in sides.items():
            likeness = ms_ssim(clean, attacked, data_range)
            measured = stats.median(likeness.value.tolist(), unit="share", direction=direction)
            name = f"attack.{result.mode}.{result.found.norm}-{cap:.4g}.ms_ssim_{side}.median"
            metrics[name] = replace(measured, estimator=f"{likeness.estimator}; {measured.estimator}")
    return metrics


def summarise_margin(result: MarginResult) -> dict[str, Measurement]:
    """The metrics of the margins, over items, by name: ``margin.r{r}.{quantity}.{statistic}``.

    Medians and quartiles of the certified margin, of the pathwise one where there is any, of the three estimates and of
    the empirical margin, in which an item that nothing broke keeps its place at the top; the certified margin's mean,
    E R's lower bound; and the shares of items that are certified at all, that nothing broke, and that are not r-robust
    even unperturbed.
    """
    metrics = {
        "margin.min_r.median": stats.median(
            result.min_radius.estimate.tolist(), unit="output units", direction="lower", level=result.level
        )
    }
    for at in result.at:
        name, unit = f"margin.r{at.r:.6g}", "input units"
        columns = {
            "frobenius": at.estimates.frobenius,
            "spectral": at.estimates.spectral,
            "whitened": at.estimates.whitened,
        }
        shares = {"not_robust_unperturbed": (~at.estimates.robust, "lower")}
        if at.certified is not None:
            paths = {"pathwise": at.certified.pathwise} if at.certified.pathwise.isfinite().any() else {}
            columns = {"certified": at.certified.radius, **paths, **columns}
            shares["certified"] = (at.certified.radius > 0, "higher")
            certified = at.certified.radius.tolist()
            metrics[f"{name}.certified.mean"] = stats.mean(certified, unit=unit, direction="higher", level=result.level)
        if at.empirical is not None:
            columns["empirical"] = at.empirical.margin
            shares["censored"] = (at.empirical.censored, "higher")
        for figure, values in columns.items():
            for part, q in (("lower_quartile", 0.25), ("median", 0.5), ("upper_quartile", 0.75)):
                metrics[f"{name}.{figure}.{part}"] = stats.quantile(
                    values.tolist(), q, unit=unit, direction="higher", level=result.level
                )
        for figure, (there, direction) in shares.items():
            metrics[f"{name}.{figure}.share"] = stats.proportion(
                int(there.sum()), len(there), unit="share of items", direction=direction, level=result.level
            )
    return metrics
