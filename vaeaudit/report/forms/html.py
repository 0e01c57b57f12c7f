"""One self-contained page: the verdict first, then everything that the report holds, figures within.

The page needs no script, no network and no font that is not there; its policy forbids them all. What comes from file
names and reasons is escaped by Jinja2.
"""

import base64
import hashlib
import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import PurePath

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from vaeaudit.layout.entry import MetricEntry
from vaeaudit.layout.inert import visible
from vaeaudit.layout.section import Section, Shown, Table
from vaeaudit.report.forms.tables import doubts, finding_table, metric_table
from vaeaudit.report.glance import LEGEND, at_a_glance
from vaeaudit.report.model import PlausibilityEntry, Report
from vaeaudit.report.outcomes import COUNTING, Outcome, outcomes, together
from vaeaudit.report.reading import PNG
from vaeaudit.report.wording import METRIC_NOTES, VERDICTS, asides, meanings, provenance

_MOST_ROWS = 20  # of a table of items that is open from the start
_MOST_METRICS = 40  # of metrics, likewise
_MOST_REASONS = 5  # beside the verdict
_MOST_REMARKS = 4  # of a section that are open from the start
_TITLE = 60  # characters of a caption that may stand for a closed table
_LONG = 26  # characters of a cell that may be broken into lines
_WIDE = 900  # pixels from which a figure has several panels
_NAME = 12  # characters of a first cell that a small screen may break, though not too often
# How words that judge are marked.
_MARKS = {
    **dict.fromkeys(("passed", "pass", "improved"), "good"),
    **dict.fromkeys(("failed", "fail", "regressed"), "bad"),
    **dict.fromkeys(("inconclusive", "unsure", "cannot tell"), "unsure"),
}
_NUMBER = re.compile(r"[<>≤≥]?\s?[-+]?\[?[-+]?\d|(n/a|exact|n too small|-)?$")


@dataclass(frozen=True)
class Cell:
    """What a cell of a table holds, and the classes that style it."""

    text: str
    classes: str


@dataclass(frozen=True)
class Grid:
    """A table as it is laid out; ``title`` stands for it where it is closed."""

    caption: str
    headers: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    legend: Mapping[str, str]
    title: str = ""
    most: int = _MOST_ROWS

    @property
    def long(self) -> bool:
        """Whether it stays closed until it is asked for."""
        return len(self.rows) > self.most


@dataclass(frozen=True)
class Figure:
    """A picture within the page; ``told`` is what it shows."""

    source: str
    told: str
    width: int
    height: int

    @property
    def wide(self) -> bool:
        """Whether a small screen must show it larger than itself."""
        return self.width > _WIDE


@dataclass(frozen=True)
class Reason:
    """Why the verdict is what it is; ``name`` is "" where it is of the audit itself, ``others`` share the reason."""

    name: str
    others: int
    word: str
    why: str


@dataclass(frozen=True)
class Part:
    """A section of the page."""

    anchor: str
    section: Section
    grids: Sequence[Grid]
    figures: Sequence[Figure]
    absent: Sequence[str]

    @property
    def talkative(self) -> bool:
        """Whether the remarks stay closed until they are asked for."""
        return len(self.section.remarks) > _MOST_REMARKS


def render(report: Report, figures: Mapping[str, bytes]) -> str:
    """The report as a page of HTML; ``figures`` are the PNG files beside it, by purpose."""
    word, _, meaning = VERDICTS.get(report.verdict, report.verdict).partition(": ")
    said = (report.error, f"{word}: {meaning}".rstrip("."))
    against = (one for one in outcomes(report) if one.kind in COUNTING and one.why not in said)
    reasons = [_reason(one, others) for one, others in together(against)]
    plausibility = report.plausibility
    return _template().render(
        report=report,
        model=PurePath(report.model.file.path).name or report.model.file.path,
        data=None if report.data is None else PurePath(report.data.source).name,
        word=word,
        meaning=f"{meaning[:1].upper()}{meaning[1:]}",
        reasons=reasons[:_MOST_REASONS],
        more=max(0, len(reasons) - _MOST_REASONS),
        glance=at_a_glance(report),
        glance_legend=LEGEND,
        asides=asides(report),
        parts=[_part(n, section, report, figures) for n, section in enumerate(report.sections, 1)],
        metrics=list(_metrics(report.metrics)),
        doubts=doubts(report.metrics),
        notes=METRIC_NOTES if report.metrics and report.data else "",
        meanings=meanings(report),
        plausibility=None if plausibility is None else _tried(plausibility),
        provenance=provenance(report),
        given=_settings(report, given=True),
        defaults=_settings(report, given=False),
    )


def _reason(one: Outcome, others: int) -> Reason:
    """A comparison has words of its own for how it ended."""
    return Reason("" if one.name == "audit" else one.name, others, "" if one.group == "baseline" else one.kind, one.why)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("vaeaudit.report", "forms"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {"breakable": _breakable, "sha256": _sha256}
    return environment.get_template("report.html.j2")


def _part(number: int, section: Section, report: Report, figures: Mapping[str, bytes]) -> Part:
    drawn, absent = [], []
    for purpose, told in section.figures.items():
        figure = _figure(figures[purpose], told) if purpose in figures else None
        if figure is not None:
            drawn.append(figure)
        elif purpose in report.files:
            absent.append(report.files[purpose])
    decides = number <= (1 if report.checks else 0) + (0 if report.baseline is None else 1)
    grids = [_shown(shown, section, first=place == 0) for place, shown in enumerate(section.tables)]
    if decides and grids:
        grids[0] = replace(grids[0], most=_MOST_METRICS)
    return Part(f"section-{number}", section, grids, drawn, absent)


def _figure(content: bytes, told: str) -> Figure | None:
    """A PNG as a data URI with its size, which keeps the page from jumping while it loads."""
    if not content.startswith(PNG) or len(content) < 24:
        return None
    width, height = struct.unpack(">II", content[16:24])
    return Figure(f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}", told, width, height)


def _shown(shown: Shown, section: Section, first: bool) -> Grid:
    """The caption of a section's first table, where it is open, says what heading and first sentence have said."""
    grid = _grid(shown.caption, shown.table, shown.numbers_from, shown.legend)
    title = grid.caption if len(grid.caption) <= _TITLE else section.heading
    return replace(grid, title=title, caption="" if first else grid.caption)


def _grid(caption: str, table: Table, numbers_from: int | None = None, legend: Mapping[str, str] | None = None) -> Grid:
    headers, rows = table
    numeric = [
        numbers_from is not None
        and place >= numbers_from
        and any(row[place] for row in rows)
        and all(_NUMBER.match(row[place]) for row in rows)
        for place in range(len(headers))
    ]
    caption = f"{caption[:1].upper()}{caption[1:]}" if caption[1:2].isalpha() else caption
    first = [place == 0 for place in range(len(headers))]
    return Grid(
        caption,
        [Cell(header, _classes("", number)) for header, number in zip(headers, numeric, strict=True)],
        [[Cell(text, _classes(text, *of)) for text, *of in zip(row, numeric, first, strict=True)] for row in rows],
        legend or {},
        caption,
    )


def _classes(text: str, number: bool, first: bool = False) -> str:
    mark = _MARKS.get(text, "")
    long = "long" if len(text) > _LONG and not number else ""
    name = "name" if first and len(text) > _NAME else ""
    return " ".join(filter(None, ("number" if number else "", name, long, mark and f"mark {mark}")))


def _metrics(metrics: Mapping[str, MetricEntry]) -> Iterable[Grid]:
    """A table a check."""
    for check in dict.fromkeys(name.partition(".")[0] for name in metrics):
        of_check = {name: metric for name, metric in metrics.items() if name.partition(".")[0] == check}
        yield replace(_grid(f"metrics of {check}", metric_table(of_check), 1), most=_MOST_METRICS)


def _tried(plausibility: PlausibilityEntry) -> list[Grid]:
    return [
        _grid(f"tried on {plausibility.items} items", finding_table(plausibility)),
        _grid(
            "losses at z = the mean, with Student t intervals over items",
            metric_table(plausibility.losses, digits=8),
            1,
        ),
    ]


def _settings(report: Report, *, given: bool) -> Grid:
    """Settings that somebody gave, with who did, or those left at their defaults."""
    rows = []
    for section, values in report.configuration.items():
        for key, value in (values if isinstance(values, dict) else {"": values}).items():
            name = f"{section}.{key}".rstrip(".")
            source = report.configuration_sources.get(name)
            if (source is not None) == given:
                rows.append([name, json.dumps(value, ensure_ascii=False), *([source] if source is not None else [])])
    return _grid(
        "settings that were given" if given else "settings left at their defaults",
        (["setting", "value", "given by"] if given else ["setting", "value"], rows),
    )


def _breakable(text: str) -> Markup:
    """Text that may be broken into lines within long names, though not within numbers."""
    return Markup(re.sub(r"(?<=[^\W\d])([./_\\]+)(?=\w)", r"\1<wbr>", str(escape(visible(text)))))


def _sha256(text: str) -> str:
    """The hash by which a content security policy lets a style sheet in."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
