"""What a metric is, whatever its value: what its name ends with, its unit, which way is more robust, what it means."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

QUARTILES = ("lower_quartile", "median", "upper_quartile")
ANY_NUMBER = r"\d[\d.e+-]*"  # in the name of a metric that is known only once the model or the data are open
ANY_NAME = r"[^.]+(\.[^.]+)*"  # likewise, a name in the data


@dataclass(frozen=True)
class Metric:
    """What a check measures of each item, or of all, and which ``statistics`` of it there are.

    Names of its metrics end with ``name`` and a statistic: "mean", "median", with it "lower_quartile" and
    "upper_quartile", "tail", "worst", "share"; or with ``name`` alone, where it has none. Values lie from ``least`` to
    ``most``. A report prints the ``meaning``, a table the ``unit`` and the ``direction`` that is more robust.
    """

    name: str
    unit: str
    direction: Literal["higher", "lower", "none"]
    meaning: str
    statistics: tuple[str, ...] = ("mean", "median")
    least: float = float("-inf")
    most: float = float("inf")

    @property
    def names(self) -> tuple[str, ...]:
        """What the names of its metrics end with."""
        return tuple(f"{self.name}.{statistic}" for statistic in self.statistics) or (self.name,)


def meanings(metrics: Iterable[Metric]) -> dict[str, str]:
    """What each means, by its name."""
    return {metric.name: metric.meaning for metric in metrics}
