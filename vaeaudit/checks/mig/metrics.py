"""The metrics of the mig check: ``mig.{estimator}``, and ``mig.{estimator}.{factor}`` of each factor."""

import re
from collections.abc import Iterator

from vaeaudit.settings.sections import MigSettings
from vaeaudit.stats.metric import ANY_NAME, Metric

CHEN = Metric(
    "chen",
    "share",
    "none",
    "mutual information gap by the mixtures over all items: of all factors (the mean), and of each",
    (),
)
HIST20 = Metric("hist20", "share", "none", "the same by the histogram of the posterior's mean, in 20 bins", ())
METRICS = (CHEN, HIST20)


def possible(_: MigSettings) -> Iterator[str]:
    """The names of all metrics that these settings may give, as regular expressions."""
    yield from (rf"mig\.{re.escape(metric.name)}{factor}" for metric in METRICS for factor in ("", rf"\.{ANY_NAME}"))
