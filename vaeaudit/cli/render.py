"""Results as text for a terminal."""

import io
import json
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from vaeaudit.cli.common import line
from vaeaudit.layout.section import Section, Table
from vaeaudit.report.comparison import ComparisonEntry
from vaeaudit.report.forms.tables import finding_table, metric_table
from vaeaudit.report.model import PlausibilityEntry, Report
from vaeaudit.report.wording import acknowledged, decision, skipped

if TYPE_CHECKING:
    from vaeaudit.model.registry import InstalledAdapter
    from vaeaudit.settings.facts import Sourced

_PLAIN_WIDTH = 140  # where there is no terminal whose width would count
_WORD = 16  # letters from which a column of a table on a terminal may break a word


@dataclass(frozen=True)
class Grid:
    """A table under its title; columns from ``numbers_from`` on hold numbers."""

    table: Table
    title: str
    numbers_from: int | None = None


Part = str | Grid  # a sentence is one line, which a search finds and a terminal wraps


def report_text(report: Report, folder: Path, to_terminal: bool) -> str:
    """The tables of the check, the metrics, and where the report lies; of several checks what decides, and medians.

    Tables of all checks would be some hundred lines, between which a failed threshold is not seen.
    """
    parts: list[Part] = []
    if report.plausibility is not None and report.plausibility.failed:
        parts += [Grid(finding_table(report.plausibility), "Is it the model it claims to be?")]
    several = len(report.timings) > 1
    for section in report.policy_sections:
        parts += _section(section, most=1)
    for section in [] if several else report.check_sections:
        parts += _section(section)
    metrics = report.metrics
    if several:
        read = {check.id for check in report.checks}
        metrics = {name: m for name, m in metrics.items() if name in read or _is_headline(name)}
    if metrics:
        title = (
            "metrics" if len(metrics) == len(report.metrics) else f"metrics, {len(metrics)} of {len(report.metrics)}"
        )
        parts += [Grid(metric_table(metrics), title, numbers_from=1)]
    parts += [f"partial: {reason}" for reason in report.partial]
    parts += [f"skipped {name}: {reason}" for name, reason in skipped(report).items()]
    parts += [f"warning: {warning}" for warning in report.warnings]
    if report.baseline is not None:
        parts += [f"compared with {report.baseline.old.report}: {report.baseline.summary()}"]
    if report.reproduced is not None:
        parts += [f"reproduced: {report.reproduced.summary()}"]
    parts += [f"acknowledged {told}" for told in acknowledged(report)]
    parts += [_verdict(report), f"report: {folder / 'report.md'}"]
    return _text(parts, to_terminal)


def report_line(report: Report, folder: Path) -> str:
    """The verdict and where the report lies, for those who want no more."""
    return line(f"{_verdict(report)}; report: {folder / 'report.md'}") + "\n"


def _verdict(report: Report) -> str:
    told = f" ({report.error})" if report.error else f", {decided}" if (decided := decision(report)) else ""
    return f"verdict: {report.verdict}{told}"


def comparison_lines(compared: ComparisonEntry, to_terminal: bool) -> str:
    """What became of every metric of two reports, and the verdict."""
    parts = _section(compared.section(), most=1) if compared.tested else []
    if others := compared.of("not tested"):
        parts += [f"{len(others)} other metrics are in --format markdown and json"]
    parts += [f"warning: {warning}" for warning in compared.warnings]
    return _text(parts, to_terminal) + comparison_line(compared)


def comparison_line(compared: ComparisonEntry) -> str:
    """The verdict and how many metrics it is of."""
    return line(f"verdict: {compared.verdict}, {compared.summary()}") + "\n"


def _section(section: Section, most: int | None = None) -> list[Part]:
    """At ``most`` so many of its tables, and its remarks."""
    shown = section.tables[:most]
    return [*(Grid(one.table, one.caption, one.numbers_from) for one in shown), *section.remarks, ""]


def _is_headline(name: str) -> bool:
    """Whether a metric is among the few that tell most: no quartiles, means beside medians, or single units."""
    return not name.endswith(("_quartile", ".mean", ".share")) or name in ("latents.elbo.mean", "latents.kl.mean")


def adapters_text(adapters: Iterable["InstalledAdapter"], to_terminal: bool) -> str:
    """One row an adapter, and how to name another."""
    rows = [[adapter.name, adapter.opens, adapter.place, adapter.package] for adapter in adapters]
    grid = Grid((["adapter", "opens", "code", "package"], rows), "installed adapters")
    return _text([grid, "your own: --adapter package.module:open, or --adapter file.py:open"], to_terminal)


def settings_text(values: Iterable["Sourced"], to_terminal: bool) -> str:
    """One row a setting, those that somebody said first in their section's order."""
    rows = [[value.key, "" if value.value is None else json.dumps(value.value), value.source] for value in values]
    return _text([Grid((["setting", "value", "source"], rows), "settings of vaeaudit audit")], to_terminal)


def doctor_text(plausibility: PlausibilityEntry, facts: Iterable[tuple[str, str]], to_terminal: bool) -> str:
    """What was opened, every finding, and the model's losses."""
    rows = [[name, value] for name, value in facts]
    losses = metric_table(plausibility.losses, digits=8)
    parts: list[Part] = [
        Grid((["fact", "value"], rows), "What was opened"),
        Grid(finding_table(plausibility), f"Is it the model it claims to be? ({plausibility.items} items)"),
        *([Grid(losses, "Losses at z = the mean", numbers_from=1)] if plausibility.losses else []),
        *(f"warning: {warning}" for warning in plausibility.warnings),
    ]
    return _text(parts, to_terminal) + doctor_line(plausibility)


def doctor_line(plausibility: PlausibilityEntry) -> str:
    """Whether the model was found plausible, and what speaks against it."""
    failed = ", ".join(finding.name for finding in plausibility.failed)
    verdict = f"not plausible, since it failed {failed}: audits of it have no verdict" if failed else "plausible"
    return line(f"verdict: {verdict}") + "\n"


def stdout_is_terminal() -> bool:
    """Whether a result on stdout is read by a person at a terminal."""
    return sys.stdout.isatty()


def _drawn(grid: Grid, width: int | None) -> RenderableType | None:
    """A table, at most ``width`` wide; None where words, or 16 letters of one, do not fit beside each other."""
    headers, rows = grid.table
    drawn = RichTable(box=box.HEAVY_HEAD if _has_lines() else box.ASCII)
    least = 1
    for place, header in enumerate(headers):
        right = grid.numbers_from is not None and place >= grid.numbers_from
        words = (word for cell in (header, *(row[place] for row in rows)) for word in line(cell).split())
        longest = min(_WORD, max(map(cell_len, words), default=0))
        least += longest + 3
        drawn.add_column(
            Text(line(header)),
            justify="right" if right else "left",
            overflow="fold",
            min_width=None if width is None else longest,
        )
    for row in rows:
        drawn.add_row(*(_cell(cell) for cell in row))
    return drawn if width is None or least <= width else None


def _records(grid: Grid, width: int) -> Iterator[Text]:
    """A table where there is no room for one: each row's first cell, and below it the others by their headers.

    Lines end between words alone: what a name holds never begins one.
    """
    headers, rows = grid.table
    for row in rows:
        yield Text(line(row[0]), style="bold")
        told = "; ".join(f"{header}: {cell}" for header, cell in zip(headers[1:], row[1:], strict=True) if cell)
        wrapped = textwrap.wrap(line(told), max(1, width - 2), break_long_words=False, break_on_hyphens=False)
        yield from (Text(f"  {one}") for one in wrapped)


def _cell(text: str) -> Text:
    return Text(line(text), style=_STYLES.get(text, ""))


def _has_lines() -> bool:
    """Whether stdout can show the lines of a table."""
    try:
        "┃━".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


_STYLES = {
    "pass": "green",
    "unsure": "yellow",
    "fail": "bold red",
    "passed": "green",
    "inconclusive": "yellow",
    "failed": "bold red",
    "improved": "green",
    "cannot tell": "yellow",
    "regressed": "bold red",
}


def _text(parts: Iterable[Part], to_terminal: bool) -> str:
    stream = io.StringIO()
    colour = to_terminal and not os.environ.get("NO_COLOR")
    console = Console(
        file=stream,
        width=None if to_terminal else _PLAIN_WIDTH,
        force_terminal=colour,
        no_color=not colour,
        highlight=False,
    )
    for part in parts:
        if isinstance(part, str):
            console.print(Text(line(part)), soft_wrap=True)
            continue
        console.print(Text(line(part.title), style="bold"), soft_wrap=True)
        drawn = _drawn(part, console.width if to_terminal else None)
        if drawn is not None:
            console.print(drawn)
        else:
            console.print(*_records(part, console.width), sep="\n", soft_wrap=True)
    return stream.getvalue()
