"""The metrics of the weights check: ``weights.{encoder,decoder}.{name}``."""

import re
from collections.abc import Iterator

from vaeaudit.settings.sections import WeightsSettings
from vaeaudit.stats.metric import Metric

L2 = Metric("l2", "weight units", "none", "L2 norm of the weights", ())
CHANGE = Metric("change", "%", "none", "by how many percent that is larger than the other model's", ())
METRICS = (L2, CHANGE)


def possible(asked: WeightsSettings) -> Iterator[str]:
    """The names of all metrics that these settings may give, as regular expressions."""
    for part in ("encoder", "decoder"):
        yield re.escape(f"weights.{part}.{L2.name}")
        if asked.against is not None:
            yield re.escape(f"weights.{part}.{L2.name}.{CHANGE.name}")
