"""The metrics of the reconstruction check: ``reconstruction.{name}.{statistic}``, of draws ``reconstruction.draws...``.

Statistics are over items. "tail" is the quantile that 5% of all items are worse than, "worst" the worst of these items.
Of groups there are the means of the worst, ``group_worst``, and the gap between worst and best, ``group_gap``.
"""

import re
from collections.abc import Iterator

from vaeaudit.settings.sections import ReconstructionSettings
from vaeaudit.stats.metric import QUARTILES, Metric

_ALL = ("mean", *QUARTILES, "tail", "worst")
_FEW = ("mean", "median", "tail", "worst")
_SIGNED = ("mean", "median")

PSNR = Metric("psnr", "dB", "higher", "peak signal-to-noise ratio, 10 log10((hi - lo)^2 / MSE)", _ALL)
SSIM = Metric("ssim", "share", "higher", "structural similarity of input and reconstruction", _ALL, most=1.0)
MS_SSIM = Metric("ms_ssim", "share", "higher", "the same over several scales", _FEW, most=1.0)
MSE = Metric("mse", "squared input units", "lower", "mean over an item's values of (rec(x) - x)^2", _ALL, least=0.0)
MEAN_ERROR = Metric("mean_error", "input units", "lower", "mean over an item's values of |rec(x) - x|", _FEW, least=0.0)
LARGEST = Metric("largest_error", "input units", "lower", "largest |rec(x) - x| of an item", _FEW, least=0.0)
OFF = Metric(
    "share_off", "share", "lower", "values of an item that are off by more than 1/255 of the range", _FEW, 0.0, 1.0
)
LOG_LIKELIHOOD = Metric("log_likelihood", "nats", "higher", "log p(x|z)", _ALL)
LPIPS = Metric(
    "lpips", "distance", "lower", "distance of input and reconstruction under the network of --perceptual", _ALL
)
FID = Metric("fid", "squared distance of features", "lower", "Frechet distance of features, of so many items", ())
KID = Metric("kid", "squared distance of features", "lower", "kernel distance of features, without bias", ())
BRIGHTNESS = Metric("brightness", "input units", "none", "mean over an item's values of rec(x) - x, signed", _SIGNED)
BIAS = Metric("bias", "input units", "none", "mean over the positions of a channel of rec(x) - x, signed", _SIGNED)
SCALED = Metric(
    "scaled_error.feature_worst",
    "standard deviations",
    "lower",
    "root mean square error of the worst feature, in units of its standard deviation over items",
    (),
)
OF_ITEMS = (PSNR, SSIM, MS_SSIM, LPIPS, MSE, MEAN_ERROR, LARGEST, OFF, LOG_LIKELIHOOD, BRIGHTNESS)
GROUPED = (PSNR, SSIM, MSE)
METRICS = (*OF_ITEMS, FID, KID, BIAS, SCALED)
DRAWS = "draws."


def possible(asked: ReconstructionSettings) -> Iterator[str]:
    """The names of all metrics that these settings may give, as regular expressions."""
    for of in ("", DRAWS) if asked.draws else ("",):
        there = [metric for metric in OF_ITEMS if metric is not LPIPS or asked.perceptual]
        yield from (re.escape(f"reconstruction.{of}{name}") for metric in there for name in metric.names)
    if asked.features:
        yield from (r"reconstruction\.fid\.n\d+", r"reconstruction\.kid")
    yield from (rf"reconstruction\.bias\.channel\d+\.{statistic}" for statistic in BIAS.statistics)
    yield from (rf"reconstruction\.{metric.name}\.group_(worst|gap)" for metric in GROUPED)
    yield re.escape(f"reconstruction.{SCALED.name}")
