"""Which figures an audit with given settings can give, so that a misspelt threshold is told before hours are spent."""

import re
from collections.abc import Iterator

from vaeaudit.attacks.modes import MODES
from vaeaudit.errors import ConfigError, clipped, nearest
from vaeaudit.gate.policy import CHECK_NAMES
from vaeaudit.settings.sections import (
    AttackSettings,
    LatentsSettings,
    MarginSettings,
    NoiseSettings,
    Settings,
    WeightsSettings,
)

_QUARTILES = ("lower_quartile", "median", "upper_quartile")
_ANY_NUMBER = r"\d[\d.e+-]*"  # of what is known only once the model or the data are open
_ANY = r"[^.]+(\.[^.]+)*"


def check_names(settings: Settings) -> None:
    """Raise :class:`ConfigError` for a threshold, or a metric to compare, that these settings cannot give."""
    patterns = list(possible(settings))
    plain = [pattern.replace("\\", "") for pattern in patterns if not re.search(r"[(\[]|\\d", pattern)]
    spoken = [(name, f'[checks."{name}"]') for name in settings.checks]
    spoken += [(name, f"baseline.min_effect.{name}") for name in settings.baseline.min_effect]
    spoken += [(name, "baseline.metrics") for name in settings.baseline.metrics]
    for name, where in spoken:
        check = name.partition(".")[0]
        if check not in CHECK_NAMES:
            raise ConfigError(
                f"{where}: there is no check '{clipped(check)}'{nearest(check, CHECK_NAMES)}; the name of a figure "
                f"begins with {', '.join(CHECK_NAMES[:-1])} or {CHECK_NAMES[-1]}"
            )
        if not any(re.fullmatch(pattern, name) for pattern in patterns):
            raise ConfigError(
                f"{where}: an audit with these settings gives no such figure{nearest(name, plain)}; a "
                "report of it lists those that it gives"
            )


def possible(settings: Settings) -> Iterator[str]:
    """The names of all figures that these settings may give, as regular expressions."""
    yield from _attack(settings.attack)
    yield from _margin(settings.margin)
    yield from _noise(settings.noise)
    yield from _latents(settings.latents)
    yield from (rf"mig\.{estimator}{factor}" for estimator in ("chen", "hist20") for factor in ("", rf"\.{_ANY}"))
    yield from _weights(settings.weights)


def _attack(asked: AttackSettings) -> Iterator[str]:
    for mode in asked.modes:
        if MODES[mode].swept:
            figures = ["delta.mean"]
            figures += [
                f"{name}.median"
                for name in ("delta", "curve_area", "data_term", "distortion", "target_nll", "target_error")
            ]
            if asked.pairing == "label":
                figures += [f"success.{name}" for name in ("target", "ignore_target", "classifier_accuracy")]
            if asked.vary is not None:
                figures += [f"success.{name}" for name in ("factor", "factor_at_source", "factor_at_target")]
                figures.append("progress.median")
            yield from (re.escape(f"attack.{mode}.{figure}") for figure in figures)
            continue
        figures = ["damage.mean", *(f"{name}.median" for name in ("damage", "degradation", "relative_degradation"))]
        if MODES[mode].likeness:
            figures += ["ms_ssim_input.median", "ms_ssim_reconstruction.median"]
        usual = ["0.5", "1", "2"] if asked.norm == "l2" else [_ANY_NUMBER]
        caps = [re.escape(f"{cap:.4g}") for cap in asked.caps] or usual
        yield from (rf"attack\.{mode}\.{asked.norm}-{cap}\.{re.escape(name)}" for cap in caps for name in figures)


def _margin(asked: MarginSettings) -> Iterator[str]:
    figures = {"frobenius", "spectral", "whitened", *asked.parts} | (
        {"pathwise"} if "certified" in asked.parts else set()
    )
    names = [f"{figure}.{part}" for figure in sorted(figures) for part in _QUARTILES]
    names += [f"{part}.mean" for part in asked.parts]
    names += ["not_robust_unperturbed.share"]
    if "certified" in asked.parts:
        names.append("certified.share")
    if "empirical" in asked.parts:
        names += ["censored.share", "correlation"]
    if len(asked.parts) == 2:
        names.append("median")
    yield re.escape("margin.min_r.median")
    for r in asked.r:
        radius = _ANY_NUMBER if isinstance(r, str) else re.escape(f"{r:.6g}")
        yield from (rf"margin\.r{radius}\.{re.escape(name)}" for name in names)


def _noise(asked: NoiseSettings) -> Iterator[str]:
    levels: dict[str, tuple[str, ...]] = {"0": ("log_likelihood",)}
    levels |= {f"{sigma:.6g}": ("log_likelihood", "degradation", "relative_degradation") for sigma in asked.sigmas}
    for sigma, figures in levels.items():
        names = [f"{figure}.{part}" for figure in figures for part in ("mean", *_QUARTILES)]
        names += [
            f"{length}.{part}"
            for length in ("denoising_error", "noise_norm")[: len(figures)]
            for part in ("mean", "median")
        ]
        yield from (re.escape(f"noise.s{sigma}.{name}") for name in names)


def _latents(asked: LatentsSettings) -> Iterator[str]:
    whole = ["kl", *(["elbo", "log_likelihood"] if asked.draws else [])]
    names = [f"{figure}.{part}" for figure in whole for part in ("mean", "median")]
    names += ["mutual_information", "total_correlation", "dimension_wise_kl"]
    yield from (re.escape(f"latents.{name}") for name in names)
    for layer in ("", r"layer\d+\."):
        yield rf"latents\.{layer}active_units\.(kl|variance)"
        yield rf"latents\.{layer}unit\d+\.kl\.mean"
    yield r"latents\.layer\d+\.kl\.mean"


def _weights(asked: WeightsSettings) -> Iterator[str]:
    for part in ("encoder", "decoder"):
        yield rf"weights\.{part}\.l2"
        if asked.against is not None:
            yield rf"weights\.{part}\.l2\.change"
