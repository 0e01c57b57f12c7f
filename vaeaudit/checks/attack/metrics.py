"""The metrics of the attack check: ``attack.{mode}.{name}.{statistic}``, ``attack.{mode}.{norm}-{cap}.{name}...``."""

import re
from collections.abc import Iterator

from vaeaudit.attacks.modes import MODES
from vaeaudit.settings.sections import AttackSettings
from vaeaudit.stats.metric import ANY_NUMBER, Metric

_MEDIAN = ("median",)

# Of attacks over all lambda; where posteriors are compared by another similarity than a KL, in its unit.
DELTA = Metric(
    "delta",
    "nats",
    "higher",
    "objective, data + λ pen(d), averaged over all λ; in nats it also grows as posteriors narrow",
)
DATA_TERM = Metric("data_term", "nats", "none", "the data term at the λ shown for the pair", _MEDIAN)
DISTORTION = Metric("distortion", "input units", "none", "‖d‖ there", _MEDIAN)
TARGET_NLL = Metric("target_nll", "nats", "none", "-log p(x_t|z) there", _MEDIAN)
TARGET_ERROR = Metric("target_error", "input units", "none", "‖x_t - rec(x*)‖ there", _MEDIAN)
CURVE_AREA = Metric(
    "curve_area",
    "share",
    "higher",
    "area under the distortion curve between its ends d = 0 and d = x_t - x, as a share: 0 where any touch turns the "
    "model, near 1 where it yields only to the target itself",
    _MEDIAN,
)
FIRST_KL = Metric(
    "first_kl",
    "nats",
    "none",
    "KL(q(z¹|x*) ‖ q(z¹|x_t)) there, of the first layer of a chain alone",
    _MEDIAN,
    least=0.0,
)
SWEPT = (DELTA, CURVE_AREA, DATA_TERM, DISTORTION, TARGET_NLL, TARGET_ERROR, FIRST_KL)

# Whether such an attack succeeded, where pairs were chosen by classes,
TARGET = Metric(
    "success.target",
    "share",
    "lower",
    "of the pairs whose rec(x) has the source's class, the share whose rec(x*) has the target's",
    (),
)
IGNORE_TARGET = Metric(
    "success.ignore_target", "share", "lower", "share of those whose rec(x*) has any other class than the source's", ()
)
ACCURACY = Metric(
    "success.classifier_accuracy",
    "share",
    "none",
    "share of held-out reconstructions that the classifier names rightly",
    (),
)
# or to differ in one factor.
FACTOR = Metric(
    "success.factor",
    "share",
    "lower",
    "share of pairs where the image of the data nearest to rec(x*) has the target's value of the varied factor and the "
    "source's of all others",
    (),
)
AT_SOURCE = Metric("success.factor_at_source", "share", "none", "the same at rec(x), without an attack", ())
AT_TARGET = Metric("success.factor_at_target", "share", "none", "the same at rec(x_t), after a perfect one", ())
PROGRESS = Metric(
    "progress",
    "share",
    "lower",
    "1 - ‖rec(x*) - x_t‖ / ‖rec(x) - x_t‖: 0 where nothing changes, 1 at the target",
    _MEDIAN,
)
BY_CLASS = (TARGET, IGNORE_TARGET, ACCURACY)
BY_FACTOR = (FACTOR, AT_SOURCE, AT_TARGET, PROGRESS)

# Of attacks under a cap.
DAMAGE = Metric(
    "damage",
    "input units",
    "lower",
    "E ‖g(z) - ref‖ under the named cap, over draws that no search has seen",
    least=0.0,
)
DEGRADATION = Metric("degradation", "nats", "lower", "log p(x|z) - log p(x|z*) there, in nats", _MEDIAN)
RELATIVE = Metric(
    "relative_degradation",
    "share",
    "lower",
    "the same as a share of |log p(x|z)|, which depends on the likelihood's constants",
    _MEDIAN,
)
MS_SSIM_INPUT = Metric(
    "ms_ssim_input",
    "share",
    "none",
    "multi-scale structural similarity of x and x*: 1 where the attack cannot be seen",
    _MEDIAN,
)
MS_SSIM_RECONSTRUCTION = Metric(
    "ms_ssim_reconstruction",
    "share",
    "higher",
    "that of rec(x) and rec(x*): 1 where the attack changes nothing",
    _MEDIAN,
)
CAPPED = (DAMAGE, DEGRADATION, RELATIVE)
LIKENESS = (MS_SSIM_INPUT, MS_SSIM_RECONSTRUCTION)

METRICS = (*SWEPT, *BY_CLASS, *BY_FACTOR, *CAPPED, *LIKENESS)


def under(mode: str, norm: str, cap: str) -> str:
    """What the names begin with of all metrics of an attack under one cap."""
    return f"attack.{mode}.{norm}-{cap}"


def possible(asked: AttackSettings) -> Iterator[str]:
    """The names of all metrics that these settings may give, as regular expressions."""
    by = (BY_CLASS if asked.pairing == "label" else ()) + (BY_FACTOR if asked.vary is not None else ())
    usual = ["0.5", "1", "2"] if asked.norm == "l2" else [ANY_NUMBER]
    caps = [re.escape(f"{cap:.4g}") for cap in asked.caps] or usual
    for mode in asked.modes:
        if MODES[mode].swept:
            yield from (re.escape(f"attack.{mode}.{name}") for metric in SWEPT + by for name in metric.names)
            continue
        metrics = CAPPED + (LIKENESS if MODES[mode].likeness else ())
        yield from (
            rf"{under(re.escape(mode), asked.norm, cap)}\.{re.escape(name)}"
            for cap in caps
            for metric in metrics
            for name in metric.names
        )
