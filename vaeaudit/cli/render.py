"""Results as text for a terminal."""

import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from vaeaudit.report.model import PlausibilityEntry, Report
from vaeaudit.report.section import Table
from vaeaudit.report.tables import finding_table, metric_table

_PLAIN_WIDTH = 140  # where there is no terminal whose width would count


def report_text(report: Report, folder: Path, to_terminal: bool) -> str:
    """The tables of every check, the metrics, and where the report lies."""
    parts: list[RenderableType] = []
    if report.plausibility is not None and not report.plausibility.passed:
        parts += [_table(finding_table(report.plausibility), "Is it the model it claims to be?")]
    for section in report.sections:
        for shown in section.tables:
            parts += [_table(shown.table, shown.caption, numbers_from=shown.numbers_from)]
        parts += [*map(Text, section.remarks), Text()]
    if report.metrics:
        parts += [_table(metric_table(report.metrics), "metrics", numbers_from=1)]
    parts += [Text(f"partial: {reason}") for reason in report.partial]
    parts += [Text(f"skipped {name}: {reason}") for name, reason in report.skipped.items()]
    parts += [Text(f"warning: {warning}") for warning in report.warnings]
    parts += [Text(f"verdict: {report.verdict}" + (f" ({report.error})" if report.error else ""))]
    parts += [Text(f"report: {folder / 'report.md'}")]
    return _text(parts, to_terminal)


def doctor_text(plausibility: PlausibilityEntry, facts: Iterable[tuple[str, str]], to_terminal: bool) -> str:
    """What was opened, every finding, and the model's losses."""
    rows = [[name, value] for name, value in facts]
    losses = metric_table(plausibility.losses, digits=8)
    verdict = "plausible" if plausibility.passed else "not plausible: audits of it have no verdict"
    parts: list[RenderableType] = [
        _table((["fact", "value"], rows), "What was opened"),
        _table(finding_table(plausibility), f"Is it the model it claims to be? ({plausibility.items} items)"),
        _table(losses, "Losses at z = the mean", numbers_from=1),
        Text(f"verdict: {verdict}"),
    ]
    return _text(parts, to_terminal)


def stdout_is_terminal() -> bool:
    """Whether a result on stdout is read by a person at a terminal."""
    return sys.stdout.isatty()


def _table(table: Table, title: str, numbers_from: int | None = None) -> RichTable:
    headers, rows = table
    drawn = RichTable(
        title=title, title_justify="left", title_style="bold", box=box.HEAVY_HEAD if _has_lines() else box.ASCII
    )
    for place, header in enumerate(headers):
        right = numbers_from is not None and place >= numbers_from
        drawn.add_column(header, justify="right" if right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    return drawn


def _has_lines() -> bool:
    """Whether stdout can show the lines of a table."""
    try:
        "┃━".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


_STYLES = {"pass": "green", "unsure": "yellow", "fail": "bold red"}


def _text(parts: Iterable[RenderableType], to_terminal: bool) -> str:
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
        console.print(part)
    return stream.getvalue()
