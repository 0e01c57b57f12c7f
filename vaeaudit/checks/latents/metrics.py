"""The metrics of the latents check: ``latents.{name}``, of layers and units ``latents.layer{i}.unit{j}.{name}``."""

import re
from collections.abc import Iterator

from vaeaudit.settings.sections import LatentsSettings
from vaeaudit.stats.metric import Metric

ELBO = Metric("elbo", "nats", "none", "evidence lower bound of each item, no H(q(x)) added")
LOG_LIKELIHOOD = Metric("log_likelihood", "nats", "none", "E log p(x|z) of each item, z drawn from its posterior")
KL = Metric(
    "kl", "nats", "none", "KL of the posterior to the prior: of each item, or of a layer or unit over items", least=0.0
)
ACTIVE_UNITS = Metric(
    "active_units",
    "units",
    "none",
    "units whose KL, or whose variance of the mean, exceeds the threshold",
    ("kl", "variance"),
)
MUTUAL_INFORMATION = Metric(
    "mutual_information",
    "nats",
    "none",
    "how much the code tells which item was encoded; moves with the number of items",
    (),
)
TOTAL_CORRELATION = Metric(
    "total_correlation",
    "nats",
    "none",
    "how far the units depend on each other over the data; moves with the number of items",
    (),
)
DIMENSION_WISE_KL = Metric(
    "dimension_wise_kl", "nats", "none", "how far each unit over the data is from its prior, summed", ()
)
METRICS = (ELBO, LOG_LIKELIHOOD, KL, ACTIVE_UNITS, MUTUAL_INFORMATION, TOTAL_CORRELATION, DIMENSION_WISE_KL)


def possible(asked: LatentsSettings) -> Iterator[str]:
    """The names of all metrics that these settings may give, as regular expressions."""
    drawn = (ELBO, LOG_LIKELIHOOD) if asked.draws else ()
    for metric in (KL, *drawn, MUTUAL_INFORMATION, TOTAL_CORRELATION, DIMENSION_WISE_KL):
        yield from (re.escape(f"latents.{name}") for name in metric.names)
    for layer in ("", r"layer\d+\."):
        yield from (rf"latents\.{layer}{re.escape(name)}" for name in ACTIVE_UNITS.names)
        yield rf"latents\.{layer}unit\d+\.{KL.name}\.mean"
    yield rf"latents\.layer\d+\.{KL.name}\.mean"
