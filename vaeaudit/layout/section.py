"""A part of a report as it is shown, the same for the terminal and for Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vaeaudit.layout.entry import MetricEntry

Headers = list[str]
Table = tuple[Headers, list[list[str]]]  # headers, rows


@dataclass(frozen=True)
class Shown:
    """A table under its ``caption``, and what its columns mean; those from ``numbers_from`` on hold numbers."""

    caption: str
    table: Table
    legend: Mapping[str, str] = field(default_factory=dict)
    numbers_from: int = 1


@dataclass(frozen=True)
class Section:
    """What a check shows: a heading, what was asked and how to read the answer, tables, remarks, figures.

    ``figures`` are the purposes of files beside the report, each with a description for those who cannot see it.
    ``meanings`` say what the metrics of this check mean, by the part of their name between check and statistic.
    ``headlines`` are the metrics that tell most of this section, each with what it means in about six words: the first
    that was measured stands for the section at a glance.
    """

    heading: str
    asked: str
    tables: Sequence[Shown]
    remarks: Sequence[str] = ()
    figures: Mapping[str, str] = field(default_factory=dict)
    meanings: Mapping[str, str] = field(default_factory=dict)
    headlines: Mapping[str, str] = field(default_factory=dict)


def number(value: float | None, digits: int = 4) -> str:
    """So many significant digits; "n/a" for what is not a finite number."""
    return "n/a" if value is None else f"{value:.{digits}g}"


def interval(metric: MetricEntry, digits: int = 4) -> str:
    """The interval as "[low, high]", or why there is none: no figure, an exact one, an end infinite, n too small."""
    if metric.value is None:
        return "n/a"
    if metric.ci is None:
        return "exact" if metric.exact else "an end is infinite" if metric.endless else "n too small"
    return "[{}, {}]".format(*(number(end, digits) for end in metric.ci))


def with_interval(value: float | None, ci: tuple[float, float] | None, digits: int = 3) -> str:
    """A value with its interval, where it has one, as "value [low, high]"."""
    return number(value, digits) + (f" [{number(ci[0], digits)}, {number(ci[1], digits)}]" if ci else "")
