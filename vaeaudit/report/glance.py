"""A report at a glance: of each of its sections the figure that tells most, and what to think of it.

A page begins with it, and the terminal's output ends with it.
"""

import math
from dataclasses import dataclass

from vaeaudit.layout.entry import MetricEntry
from vaeaudit.layout.section import number, with_interval
from vaeaudit.report.model import Report

LEGEND = (
    "Each picture reaches from 0 to the number that is farthest from it: ● is the figure, ├─┤ its interval, ┃ a "
    "threshold, ○ the figure of the earlier audit."
)
_CELLS = 20  # of a picture in text


@dataclass(frozen=True)
class Picture:
    """Where the figure, the ends of its interval, thresholds and the figure before lie, each from 0 (left) to 1."""

    value: float
    ci: tuple[float, float] | None
    zero: float
    thresholds: tuple[float, ...]
    before: float | None

    def text(self) -> str:
        """A line of characters, as ``├──●─┤``."""
        cells = ["·"] * _CELLS
        if self.ci is not None:
            low, high = map(_cell, self.ci)
            cells[low : high + 1] = ["─"] * (high - low + 1)
            cells[low], cells[high] = "├", "┤"
        cells[_cell(self.zero)] = "0"
        for at in self.thresholds:
            cells[_cell(at)] = "┃"
        if self.before is not None:
            cells[_cell(self.before)] = "○"
        cells[_cell(self.value)] = "●"
        return "".join(cells)


@dataclass(frozen=True)
class Line:
    """The headline of one section: its metric by ``name``, what that means, and what speaks against it.

    ``sign`` tells why the figure supports no verdict and ``against`` how it compares with an earlier audit; "" where
    there is nothing to tell.
    """

    name: str
    metric: MetricEntry
    means: str
    sign: str
    against: str
    thresholds: tuple[float, ...]
    picture: Picture | None

    @property
    def figure(self) -> str:
        """The value with its interval."""
        return with_interval(self.metric.value, self.metric.ci)

    @property
    def told(self) -> str:
        """The picture in words."""
        ci, thresholds = self.metric.ci, (f"threshold {number(at)}" for at in self.thresholds)
        ends = [f"interval from {number(ci[0], 3)} to {number(ci[1], 3)}"] if ci else []
        return ", ".join(filter(None, (number(self.metric.value, 3), *ends, *thresholds, self.against)))

    @property
    def remarks(self) -> str:
        """What speaks against the figure, and how it compares, in words."""
        return "; ".join(filter(None, (self.sign and f"in doubt: {self.sign}", self.against)))


def at_a_glance(report: Report) -> list[Line]:
    """A line for each section of the checks that has a headline, in order."""
    lines = []
    for section in report.check_sections:
        name = next((name for name in section.headlines if name in report.metrics), None)
        if name is not None:
            lines.append(_line(report, name, section.headlines[name]))
    return lines


def _line(report: Report, name: str, means: str) -> Line:
    metric, against, before = report.metrics[name], "", None
    for one in report.baseline.differences if report.baseline is not None else ():
        if one.metric == name and one.old is not None:
            before = one.old
            against = f"{number(before, 3)} before" + ("" if one.outcome == "not tested" else f": {one.outcome}")
    asked = [bound for check in report.checks if check.id == name for bound in (check.min, check.max)]
    thresholds = tuple(bound for bound in asked if bound is not None)
    return Line(name, metric, means, metric.doubt or "", against, thresholds, picture(metric, thresholds, before))


def picture(metric: MetricEntry, thresholds: tuple[float, ...], before: float | None) -> Picture | None:
    """None where there is no figure, or nothing to see beside it."""
    if metric.value is None or (metric.ci is None and not thresholds and before is None):
        return None
    others = [*(metric.ci or ()), *thresholds, *([] if before is None else [before])]
    low, high = min(0.0, metric.value, *others), max(0.0, metric.value, *others)
    if not 0 < high - low < math.inf:
        return None

    def place(value: float) -> float:
        at: float = (value - low) / (high - low)
        return at

    return Picture(
        place(metric.value),
        None if metric.ci is None else (place(metric.ci[0]), place(metric.ci[1])),
        place(0.0),
        tuple(map(place, thresholds)),
        None if before is None else place(before),
    )


def _cell(at: float) -> int:
    return round(at * (_CELLS - 1))
