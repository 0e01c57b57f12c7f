"""Results as text for a terminal."""

import io
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from vaeaudit.facts import Sourced
from vaeaudit.registry import InstalledAdapter
from vaeaudit.report.comparison import ComparisonEntry
from vaeaudit.report.model import PlausibilityEntry, Report
from vaeaudit.report.section import Section, Table
from vaeaudit.report.tables import finding_table, metric_table
from vaeaudit.report.wording import visible

_PLAIN_WIDTH = 140  # where there is no terminal whose width would count


def report_text(report: Report, folder: Path, to_terminal: bool) -> str:
    """The tables of the check, the metrics, and where the report lies; of several checks what decides, and medians.

    Tables of all checks would be some hundred lines, between which a failed threshold is not seen.
    """
    parts: list[RenderableType] = []
    if report.plausibility is not None and not report.plausibility.passed:
        parts += [_table(finding_table(report.plausibility), "Is it the model it claims to be?")]
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
        parts += [_table(metric_table(metrics), title, numbers_from=1)]
    parts += [Text(f"partial: {reason}") for reason in report.partial]
    parts += [Text(f"skipped {name}: {reason}") for name, reason in report.skipped.items()]
    parts += [Text(f"warning: {warning}") for warning in report.warnings]
    if report.baseline is not None:
        parts += [Text(f"compared with {report.baseline.old.report}: {report.baseline.summary()}")]
    if report.reproduced is not None:
        parts += [Text(f"reproduced: {report.reproduced.summary()}")]
    parts += [Text(f"verdict: {report.verdict}" + (f" ({report.error})" if report.error else ""))]
    parts += [Text(f"report: {folder / 'report.md'}")]
    return _text(parts, to_terminal)


def comparison_lines(compared: ComparisonEntry, to_terminal: bool) -> str:
    """What became of every metric of two reports, and the verdict."""
    parts = _section(compared.section(), most=1) if compared.tested else []
    if others := compared.of("not tested"):
        parts += [Text(f"{len(others)} other metrics are in --format markdown and json")]
    parts += [Text(f"warning: {warning}") for warning in compared.warnings]
    parts += [Text(f"verdict: {compared.verdict}, {compared.summary()}")]
    return _text(parts, to_terminal)


def _section(section: Section, most: int | None = None) -> list[RenderableType]:
    """At ``most`` so many of its tables, and its remarks."""
    shown = section.tables[:most]
    tables = [_table(one.table, one.caption, numbers_from=one.numbers_from) for one in shown]
    return [*tables, *map(Text, section.remarks), Text()]


def _is_headline(name: str) -> bool:
    """Whether a metric is among the few that tell most: no quartiles, means beside medians, or single units."""
    return not name.endswith(("_quartile", ".mean", ".share")) or name in ("latents.elbo.mean", "latents.kl.mean")


def adapters_text(adapters: Iterable[InstalledAdapter], to_terminal: bool) -> str:
    """One row an adapter, and how to name another."""
    rows = [[adapter.name, adapter.opens, adapter.place, adapter.package] for adapter in adapters]
    table = _table((["adapter", "opens", "code", "package"], rows), "installed adapters")
    return _text([table, Text("your own: --adapter package.module:open, or --adapter file.py:open")], to_terminal)


def settings_text(values: Iterable[Sourced], to_terminal: bool) -> str:
    """One row a setting, those that somebody said first in their section's order."""
    rows = [[value.key, "" if value.value is None else json.dumps(value.value), value.source] for value in values]
    return _text([_table((["setting", "value", "source"], rows), "settings of vaeaudit audit")], to_terminal)


def doctor_text(plausibility: PlausibilityEntry, facts: Iterable[tuple[str, str]], to_terminal: bool) -> str:
    """What was opened, every finding, and the model's losses."""
    rows = [[name, value] for name, value in facts]
    losses = metric_table(plausibility.losses, digits=8)
    verdict = "plausible" if plausibility.passed else "not plausible: audits of it have no verdict"
    parts: list[RenderableType] = [
        _table((["fact", "value"], rows), "What was opened"),
        _table(finding_table(plausibility), f"Is it the model it claims to be? ({plausibility.items} items)"),
        *([_table(losses, "Losses at z = the mean", numbers_from=1)] if plausibility.losses else []),
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
        drawn.add_row(*(Text(visible(cell), style=_STYLES.get(cell, "")) for cell in row))
    return drawn


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
    for part in parts:  # a sentence is one line, which a search finds and a terminal wraps
        console.print(part, soft_wrap=isinstance(part, Text))
    return stream.getvalue()
