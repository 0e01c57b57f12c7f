"""What a GitHub workflow shows: annotations beside the run, and the page of the step's summary.

Names of files and reasons come from outside: nothing in them may become a workflow command, HTML, a link, or the end
of a table's cell.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote

from vaeaudit.errors import clipped
from vaeaudit.layout.inert import one_line, visible
from vaeaudit.layout.section import Section, Table, with_interval
from vaeaudit.layout.section import number as shown
from vaeaudit.report.forms import literal
from vaeaudit.report.forms.markdown import glance_table
from vaeaudit.report.forms.tables import doubts, metric_table
from vaeaudit.report.gates import check_table, gates_section
from vaeaudit.report.glance import LEGEND
from vaeaudit.report.model import Report
from vaeaudit.report.outcomes import KINDS, Kind, outcomes, together
from vaeaudit.report.reading import lies_beside
from vaeaudit.report.wording import NOT_ASKED, VERDICTS, decision, sentence, skipped

_MOST_ANNOTATIONS = 10  # GitHub shows no more of a step
_MOST_BYTES = 1_000_000  # GitHub drops a summary above 1 MiB, which other commands of the step write to as well
_MOST_OF_COMMENT = 60_000  # GitHub refuses a comment above 65,536 characters
_MOST_PICTURES = 4
MARK = "<!-- vaeaudit -->"  # of a comment: the next one takes its place
_MOST_CHARACTERS = 2_000  # of one message
_CUT = "_Cut here, since GitHub shows no more: the whole report lies in report.md and report.json._"

_LEVELS = ("error", "warning", "notice")
_SHOWN: dict[Kind, tuple[str, str]] = {
    "error": ("error", "could not complete"),
    "interrupted": ("error", "was interrupted"),
    "failed": ("error", "failed"),
    "inconclusive": ("error", "is inconclusive"),
    "warns": ("warning", "only warns"),
    "waived": ("notice", "is waived"),
    "ungated": ("notice", "is ungated"),
}


class _Annotation(NamedTuple):
    level: str
    title: str
    message: str


def annotations(report: Report) -> str:
    """Workflow commands, the worst first; at most ten, of which the last tells how many more there are."""
    found = sorted(_annotations(report), key=lambda one: _LEVELS.index(one.level))
    if len(found) > _MOST_ANNOTATIONS:
        shown, rest = found[: _MOST_ANNOTATIONS - 1], found[_MOST_ANNOTATIONS - 1 :]
        counted = ", ".join(
            f"{n} more of level {level}" for level in _LEVELS if (n := sum(one.level == level for one in rest))
        )
        found = [*shown, _Annotation(rest[0].level, "vaeaudit: more", f"{counted}; see the summary or the report")]
    return "".join(_command(one) for one in found)


def _annotations(report: Report) -> Iterator[_Annotation]:
    told = outcomes(report)
    for outcome, others in together(one for one in told if one.kind != "passed"):
        level, word = _SHOWN[outcome.kind]
        name = "the audit" if outcome.name == "audit" else outcome.name
        asked = f"must be {outcome.asked}: " if outcome.asked and not others else ""
        yield _Annotation(level, f"vaeaudit: {name} {word}{_and(others)}", asked + outcome.why)
    # Thresholds that only warn, unsure findings and figures that were not found again are among the warnings as well.
    known = {f"{check.id}: {check.why}; it only warns" for check in report.checks}
    known |= {one.why for one in told if one.name == "reproduction"}
    known |= set(report.plausibility.warnings if report.plausibility is not None else ())
    for warning in report.warnings:
        if warning not in known:
            yield _Annotation("warning", "vaeaudit: warning", warning)
    for reason in report.partial:
        yield _Annotation("notice", "vaeaudit: partial", reason)
    for name, reason in report.skipped.items():
        if reason != NOT_ASKED:
            yield _Annotation("notice", f"vaeaudit: skipped {name}", reason)


def _and(others: int) -> str:
    return f", and so {others} more" if others else ""


def _command(annotation: _Annotation) -> str:
    title = _escaped(one_line(annotation.title, 200)).replace(":", "%3A").replace(",", "%2C")
    return f"::{annotation.level} title={title}::{_escaped(clipped(visible(annotation.message), _MOST_CHARACTERS))}\n"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def summary(report: Report) -> str:
    """The verdict, the thresholds and what regressed, then warnings and metrics, as Markdown for the step's summary."""
    first = [*_verdict(report), *_thresholds(report)]
    rest = [*_compared(report), *_asides(report)]
    rest += _metrics(report)
    rest += [
        "",
        f"Model SHA-256 {literal.code(report.model.file.sha256)}; "
        f"{literal.inline(f'{report.tool}, {report.created}')}.",
    ]
    return _cut([*first, *rest])


def comment(report: Report, link: str | None = None) -> str:
    """What a pull request is told: verdict, what changed, thresholds that are not met, the worst pictures, the rest.

    It begins with a mark by which a later one takes its place. Pictures are shown where ``link``, the address of the
    report's folder, is given.
    """
    lines = [MARK, *_verdict(report), *_changed(report), *_missed(report), *_pictures(report, link), *_asides(report)]
    return _cut([*lines, *_metrics(report)], _MOST_OF_COMMENT)


def _changed(report: Report) -> list[str]:
    """Before and after of what regressed, improved or cannot be told; how many did not move."""
    compared = report.baseline
    if compared is None:
        return []
    moved = compared.of("regressed", "cannot tell", "improved")
    rows = [
        [one.metric, shown(one.old), shown(one.new), with_interval(one.difference, one.ci), one.unit, one.outcome]
        for one in moved
    ]
    table = _table((["metric", "before", "after", "change", "unit", "outcome"], rows)) if rows else []
    return ["", "### What changed", "", literal.block(f"{compared.summary()}."), *([""] if table else []), *table]


def _missed(report: Report) -> list[str]:
    """The thresholds that are not met; how many are."""
    if not report.checks:
        return []
    missed = [check for check in report.checks if check.verdict != "passed"]
    met = f"{len(report.checks) - len(missed)} of {len(report.checks)} thresholds are met."
    return ["", "### Thresholds", "", met, *(["", *_table(check_table(missed))] if missed else [])]


def _pictures(report: Report, link: str | None) -> list[str]:
    """The figures of the worst items."""
    worst = {what: file for what, file in report.files.items() if re.search("worst|largest|panel", what)}
    if not worst or link is None:
        return []
    address = link.rstrip("/")
    return [
        "",
        "### Worst items",
        *(
            line
            for what, file in [*worst.items()][:_MOST_PICTURES]
            if lies_beside(file)
            for line in ("", f"![{literal.alt(what)}]({address}/{quote(file, safe='', errors='backslashreplace')})")
        ),
    ]


def _verdict(report: Report) -> list[str]:
    error = f" {literal.inline(report.error)}." if report.error else ""
    meaning = VERDICTS.get(report.verdict, report.verdict)
    told = [one for one in outcomes(report) if one.group == "audit" and one.why not in (meaning[:-1], report.error)]
    data = f", {report.data.n} items of {literal.code(report.data.source)}" if report.data is not None else ""
    return [
        f"## Audit of {literal.code(report.model.file.path)}",
        "",
        f"**{literal.inline(meaning)}**{error}",
        *(["", literal.block(sentence(decided))] if (decided := decision(report)) else []),
        *(f"- {literal.block(f'{one.name}: {one.why}')}" for one in told),
        "",
        f"{literal.block(report.model.adapter.name if report.model.adapter else 'weights alone')}{data}",
        *(["", *_drawn(*glance), "", LEGEND] if (glance := glance_table(report)) else []),
    ]


def _thresholds(report: Report) -> list[str]:
    if not report.checks:
        return []
    section = gates_section(report.checks)
    kinds = [KINDS.index(one.kind) for one in outcomes(report)[: len(report.checks)]]
    headers, rows = check_table(report.checks)
    worst_first = [row for _, row in sorted(zip(kinds, rows, strict=True), key=lambda pair: pair[0])]
    return ["", f"### {section.heading}", "", literal.block(section.asked), "", *_table((headers, worst_first))]


def _compared(report: Report) -> list[str]:
    if report.baseline is None:
        return []
    section: Section = report.baseline.section()
    lines = ["", f"### {section.heading}", "", literal.block(section.asked)]
    if report.baseline.tested:
        headers, rows = section.tables[0].table
        order = ("regressed", "cannot tell")
        ranked = sorted(rows, key=lambda row: order.index(row[-1]) if row[-1] in order else len(order))
        lines += ["", *_table((headers, ranked))]
    unsure = together(one for one in outcomes(report) if one.group == "baseline" and one.kind == "inconclusive")
    told = [
        f"- {literal.block(f'{one.name}{_and(others)}: {one.why}')}" for one, others in unsure if one.name != "baseline"
    ]
    return [*lines, *(["", *told] if told else [])]


def _asides(report: Report) -> list[str]:
    groups = {
        "Warnings": [f"- {literal.block(warning)}" for warning in report.warnings],
        "What is missing": [
            *(f"- Partial: {literal.inline(reason)}" for reason in report.partial),
            *(
                f"- Skipped {literal.inline(name)}: {literal.inline(reason)}"
                for name, reason in skipped(report).items()
            ),
        ],
    }
    return [line for heading, lines in groups.items() if lines for line in ("", f"### {heading}", "", *lines)]


def _metrics(report: Report) -> list[str]:
    if not report.metrics:
        return []
    remarks = [f"- {literal.block(doubt)}" for doubt in doubts(report.metrics)]
    return [
        "",
        f"<details><summary>Metrics ({len(report.metrics)})</summary>",
        "",
        *_table(metric_table(report.metrics)),
        *(["", *remarks] if remarks else []),
        "",
        "</details>",
    ]


def _table(table: Table) -> list[str]:
    headers, rows = table
    return _drawn(headers, [[literal.cell(cell) for cell in row] for row in rows])


def _drawn(headers: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (headers, ["---"] * len(headers), *rows)]


def _cut(lines: Sequence[str], most: int = _MOST_BYTES) -> str:
    """As many whole lines as ``most`` bytes hold, from the first; a part that was open is closed."""
    whole = "\n".join(lines) + "\n"
    if len(whole.encode()) <= most:
        return whole
    left = most - len(f"\n\n</details>\n\n{_CUT}\n".encode())
    kept = list(_within(lines, left))
    is_open = sum(line.startswith("<details>") for line in kept) > kept.count("</details>")
    return "\n".join([*kept, *(["", "</details>"] if is_open else []), "", _CUT]) + "\n"


def _within(lines: Iterable[str], left: int) -> Iterator[str]:
    for line in lines:
        left -= len(line.encode()) + 1
        if left < 0:
            return
        yield line
