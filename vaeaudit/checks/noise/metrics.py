"""The metrics of the noise check: ``noise.s{sigma}.{name}.{statistic}``, of the clean inputs at s = 0."""

import re
from collections.abc import Iterator

from vaeaudit.settings.sections import NoiseSettings
from vaeaudit.stats.metric import QUARTILES, Metric

_ALL = ("mean", *QUARTILES)

LOG_LIKELIHOOD = Metric(
    "log_likelihood", "nats", "higher", "log p(x|z) of the clean input, the encoder seeing it under the noise", _ALL
)
DEGRADATION = Metric("degradation", "nats", "lower", "how much of it the noise costs", _ALL)
RELATIVE = Metric(
    "relative_degradation",
    "share",
    "lower",
    "its absolute value, gains counted as losses, as a share of |log p(x|z)| where that is not near 0",
    _ALL,
    least=0.0,
)
ERROR = Metric("denoising_error", "input units", "lower", "||rec(x + eps) - x||", least=0.0)
LENGTH = Metric("noise_norm", "input units", "none", "||eps||", least=0.0)
METRICS = (LOG_LIKELIHOOD, DEGRADATION, RELATIVE, ERROR, LENGTH)
CLEAN = (LOG_LIKELIHOOD, ERROR)  # those that need no noise


def beginning(sigma: float) -> str:
    """What the names begin with of all metrics under noise of one standard deviation."""
    return f"noise.s{sigma:.6g}"


def possible(asked: NoiseSettings) -> Iterator[str]:
    """The names of all metrics that these settings may give, as regular expressions."""
    for sigma, metrics in [(0.0, CLEAN), *((sigma, METRICS) for sigma in asked.sigmas)]:
        yield from (re.escape(f"{beginning(sigma)}.{name}") for metric in metrics for name in metric.names)
