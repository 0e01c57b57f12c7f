"""Results as text for a terminal."""

import io
import json
import os
import shlex
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from vaeaudit.cli.common import line
from vaeaudit.errors import listed
from vaeaudit.layout.section import Section, Table
from vaeaudit.report.comparison import ComparisonEntry
from vaeaudit.report.forms.tables import finding_table, metric_table
from vaeaudit.report.glance import Line, at_a_glance
from vaeaudit.report.model import PlausibilityEntry, Report
from vaeaudit.report.wording import acknowledged, decision, skipped

if TYPE_CHECKING:
    from vaeaudit.model.adapters import InstalledAdapter
    from vaeaudit.model.ranking import Fit
    from vaeaudit.settings.facts import Sourced

_PLAIN_WIDTH = 140  # where there is no terminal whose width would count
_HEIGHT = 24  # lines of a screen of which nothing is known
_MOST_GROUNDS = 3  # of a verdict beside the first
_WORD = 16  # letters from which a column of a table on a terminal may break a word


@dataclass(frozen=True)
class Grid:
    """A table under its title; columns from ``numbers_from`` on hold numbers."""

    table: Table
    title: str
    numbers_from: int | None = None


Part = str | Text | Grid  # a sentence is one line, which a search finds and a terminal wraps


def report_text(report: Report, folder: Path, to_terminal: bool, verbose: bool = False) -> str:
    """What was found, as fits a screen: a line a check, what must be known beside, what decided, where the report lies.

    Before it stands the main table of a single check where there is room for it as well, and with ``verbose`` every
    table and metric, as the report has them.
    """
    screen = _console(io.StringIO(), to_terminal)
    width, height = (screen.width, max(screen.height, _HEIGHT)) if to_terminal else (None, _HEIGHT)
    told = _summary(report, folder, width, height - 1)
    if verbose:
        return _text([*_everything(report), *told], to_terminal)
    shown = _text(told, to_terminal)
    tables = [shown for section in report.check_sections for shown in section.tables[:1]]
    if len(tables) == 1:
        (one,) = tables
        above = _text([Grid(one.table, one.caption, one.numbers_from), ""], to_terminal)
        if (above + shown).count("\n") < height:
            return above + shown
    return shown


def _everything(report: Report) -> list[Part]:
    """Every table and metric of a report."""
    parts: list[Part] = []
    if report.plausibility is not None and report.plausibility.failed:
        parts += [Grid(finding_table(report.plausibility), "Is it the model it claims to be?")]
    for section in report.sections:
        parts += _section(section)
    if report.metrics:
        parts += [Grid(metric_table(report.metrics), "metrics", numbers_from=1), ""]
    return parts


def _summary(report: Report, folder: Path, width: int | None, most: int) -> list[Part]:
    """Of at most ``most`` lines, of which none but the verdict is broken at ``width``."""
    found = at_a_glance(report)
    lines = [list(_glance(one, found, width)) for one in found]
    verdict, others = _verdict(report), _further(report)
    where = f"report: {folder / 'report.md'}"
    ends = [Text(line(verdict), style=_STYLES.get(report.verdict, "")), *(_fitting(line(one), width) for one in others)]
    room = most - sum(map(len, lines)) - len(others) - sum(_height(one, width) for one in (verdict, where))
    while room < 0 and len(lines) > 1:  # a dozen attacks and radii: the first say what to look for
        room += len(lines.pop()) - (len(lines) + 1 == len(found))
    if len(lines) < len(found):
        lines.append([Text(f"and {len(found) - len(lines)} more, in the report")])
    notes = [line(note) for note in _notes(report)]
    if sum(_height(note, width) for note in notes) <= room:
        return [*(part for of in lines for part in of), *notes, *ends, where]
    if len(notes) > max(room, 0):
        kept = max(room - 1, 0)
        notes[kept:] = [f"and {len(notes) - kept} more remarks, in the report"]
    return [*(part for of in lines for part in of), *(_fitting(note, width) for note in notes), *ends, where]


def _further(report: Report) -> list[str]:
    """What else decided than :func:`decision` has told in full."""
    others = [one for one in report.decided if one.why != report.decided[0].why]
    told = [f"  {one.name}: {one.why}" for one in others[:_MOST_GROUNDS]]
    return [*told, *([f"  and {n} more, in the report"] if (n := len(others) - len(told)) else [])]


def _height(text: str, width: int | None) -> int:
    """How many lines a text takes."""
    return 1 if width is None else max(1, -(-cell_len(line(text)) // width))


def _fitting(text: str, width: int | None, style: str = "") -> Text:
    """A text that came through :func:`line`, cut at the width."""
    shown = Text(text, style=style)
    if width is not None:
        shown.truncate(width, overflow="ellipsis")
    return shown


def _glance(one: Line, among: Sequence[Line], width: int | None) -> Iterator[Text]:
    """The line of a check, broken between its parts where it must be; what speaks against it is below it."""
    label, figure = (max(cell_len(text(each)) for each in among) for text in (_label, lambda each: each.figure))
    parts = [_label(one).ljust(label), one.figure.ljust(figure), line(one.means)]
    shown = ""
    for part in parts:
        if shown and width is not None and cell_len(f"{shown}  {part.rstrip()}") > width:
            yield Text(shown.rstrip())
            shown = f"  {part}"
        else:
            shown += f"  {part}" if shown else part
    unit = "" if one.metric.unit == "share" else f" ({line(one.metric.unit)})"
    yield Text(shown.rstrip() + (unit if width is None or cell_len(shown + unit) <= width else ""))
    if one.sign:
        yield _fitting(f"  ! {line(one.sign)}", width, "yellow")
    if one.against:
        yield _fitting(f"  {one.against}", width, "bold red" if one.against.endswith("regressed") else "")


def _label(one: Line) -> str:
    return line(one.name.removesuffix(".median").removesuffix(".mean"))


def _notes(report: Report) -> list[str]:
    """What a reader must know beside the figures, the gravest first."""
    return [
        *(f"partial: {reason}" for reason in report.partial),
        *([f"compared with {report.baseline.old.report}: {report.baseline.summary()}"] if report.baseline else []),
        *([f"reproduced: {report.reproduced.summary()}"] if report.reproduced else []),
        *(f"warning: {warning}" for warning in report.warnings),
        *(f"skipped {name}: {reason}" for name, reason in skipped(report).items()),
        *(f"acknowledged {told}" for told in acknowledged(report)),
    ]


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


def adapters_text(adapters: Iterable["InstalledAdapter"], to_terminal: bool) -> str:
    """One row an adapter, and how to name another."""
    rows = [[adapter.name, adapter.opens, adapter.place, adapter.package] for adapter in adapters]
    grid = Grid((["adapter", "opens", "code", "package"], rows), "installed adapters")
    return _text([grid, "your own: --adapter package.module:open, or --adapter file.py:open"], to_terminal)


def fits_text(model: str, fits: Sequence["Fit"], code: str | None, to_terminal: bool) -> str:
    """One row an adapter, and what to do next; where none opens the model, comments above the code of a first one."""
    if code is None:
        rows = [[fit.name, f"{fit.share:.0%}", fit.why or "opens it"] for fit in fits]
        one = shlex.join(["vaeaudit", "doctor", model, "--adapter", fits[0].name, "--data"])
        grid = Grid((["adapter", "names that fit", "what came of it"], rows), f"adapters for {model}")
        return _text([grid, f"whether it is the right one, its data tell: {one} DATA"], to_terminal)
    nearest = [f"{fit.name}, {fit.share:.0%} of names" for fit in fits if fit.share > 0] or ["no name fits any"]
    return "\n".join(
        [
            f"# {line(f'No installed adapter opens {model} (nearest: {listed(nearest, 2)}): a first one of its own.')}",
            '# What tensors cannot tell is marked "?". Try it: vaeaudit doctor MODEL --adapter FILE.py:open --data D',
            code,
        ]
    )


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


def _console(stream: io.StringIO, to_terminal: bool) -> Console:
    colour = to_terminal and not os.environ.get("NO_COLOR")
    return Console(
        file=stream,
        width=None if to_terminal else _PLAIN_WIDTH,
        force_terminal=colour,
        no_color=not colour,
        highlight=False,
    )


def _text(parts: Iterable[Part], to_terminal: bool) -> str:
    stream = io.StringIO()
    console = _console(stream, to_terminal)
    for part in parts:
        if not isinstance(part, Grid):
            console.print(Text(line(part)) if isinstance(part, str) else part, soft_wrap=True)
            continue
        console.print(Text(line(part.title), style="bold"), soft_wrap=True)
        drawn = _drawn(part, console.width if to_terminal else None)
        if drawn is not None:
            console.print(drawn)
        else:
            console.print(*_records(part, console.width), sep="\n", soft_wrap=True)
    return stream.getvalue()
