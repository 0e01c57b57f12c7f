"""The metrics of the equivalence check: ``equivalence.{variant}.{side}.{figure}.{statistic}``, statistics over items.

Sides are the encoder, the decoder on the reference's latents, and end to end. "tail" is the quantile that 5% of all
items are worse than, "worst" the worst of these. ``equivalence.scale`` is what two draws of z do to the same items.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from vaeaudit.model.variant import Variant
from vaeaudit.settings.sections import EquivalenceSettings, GateSettings
from vaeaudit.stats.metric import Metric

_ALL = ("median", "tail", "worst")

KL = Metric("encoder.kl", "nats", "lower", "KL of the reference's posterior to the variant's", _ALL)
KL_BACK = Metric("encoder.kl_back", "nats", "lower", "KL of the variant's posterior to the reference's", _ALL)
SHIFT = Metric(
    "encoder.mean_shift",
    "standard deviations",
    "lower",
    "largest shift of a latent's mean, in units of its standard deviation under the reference",
    _ALL,
)
SPREAD = Metric("encoder.log_stddev", "log ratio", "lower", "largest |log sigma - log sigma| of a latent", _ALL)
LARGEST = Metric("largest_difference", "range", "lower", "largest difference of a value", _ALL)
MEAN = Metric("mean_difference", "range", "lower", "mean over values of their difference", _ALL)
OFF = Metric("share_off", "share", "lower", "values that differ by more than 1/255 of the range", _ALL)
PSNR = Metric("psnr", "dB", "higher", "peak signal-to-noise ratio of the variant's output to the reference's", _ALL)
SSIM = Metric("ssim", "share", "higher", "structural similarity of the variant's output to the reference's", _ALL)
NONFINITE = Metric("nonfinite", "items", "lower", "items of which the variant gives NaN or infinity", ())
CONTROL = Metric("control", "range", "lower", "largest difference where the reference is run again", ())

OF_ENCODER = (KL, KL_BACK, SHIFT, SPREAD)
OF_OUTPUT = (LARGEST, MEAN, OFF, PSNR, SSIM)
DECODER, END, SCALE = "decoder", "end", "scale"
AGAINST = "against"  # the name of the other model among the variants


def of_side(side: str, metric: Metric) -> Metric:
    """The metric of one side."""
    return replace(metric, name=f"{side}.{metric.name}")


OF_SIDES = {
    metric.name: metric
    for metric in (*OF_ENCODER, *(of_side(side, metric) for side in (DECODER, END) for metric in OF_OUTPUT))
}
OF_VARIANT = (*OF_SIDES.values(), NONFINITE)
OF_SCALE = tuple(replace(of_side(SCALE, metric), statistics=("median",)) for metric in (SHIFT, *OF_OUTPUT))
METRICS = (*OF_ENCODER, *OF_OUTPUT, NONFINITE, CONTROL)


def named(asked: EquivalenceSettings) -> list[str]:
    """The names of what is compared with the reference."""
    return [*([AGAINST] if asked.against else []), *(Variant.parse(text).name for text in asked.variants)]


def possible(asked: EquivalenceSettings) -> Iterator[str]:
    """The names of all metrics that these settings may give, as regular expressions."""
    for variant in named(asked):
        yield from (re.escape(f"equivalence.{variant}.{name}") for metric in OF_VARIANT for name in metric.names)
    yield from (re.escape(f"equivalence.{name}") for metric in (*OF_SCALE, CONTROL) for name in metric.names)


def thresholds(asked: EquivalenceSettings) -> dict[str, GateSettings]:
    """What a variant must keep to, by metric: the worst item and the median one, and all finite."""
    found: dict[str, GateSettings] = {}
    for variant in named(asked):
        for side in (DECODER, END):
            name = f"equivalence.{variant}.{side}.{LARGEST.name}"
            found[f"{name}.worst"] = GateSettings(max=asked.tolerance)
            found[f"{name}.median"] = GateSettings(max=asked.tolerance / 2, bound="value")
        found[f"equivalence.{variant}.{NONFINITE.name}"] = GateSettings(max=0)
    return found
