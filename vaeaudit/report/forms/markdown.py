"""report.md: the verdict first, then tables and figures, readable by someone who never saw the tool."""

from collections.abc import Iterable, Mapping
from urllib.parse import quote

from tabulate import tabulate

from vaeaudit.layout.section import Section, Table
from vaeaudit.report.comparison import ComparisonEntry
from vaeaudit.report.forms import literal
from vaeaudit.report.forms.tables import doubts, finding_table, metric_table
from vaeaudit.report.glance import LEGEND, at_a_glance
from vaeaudit.report.model import PlausibilityEntry, Report
from vaeaudit.report.reading import lies_beside
from vaeaudit.report.wording import METRIC_NOTES, VERDICTS, Fact, asides, decision, meanings, provenance, sentence


def render(report: Report) -> str:
    """The report as GitHub-flavoured Markdown; figures are links to the files beside it."""
    parts = [
        f"# Audit of {literal.code(report.model.file.path)}",
        f"**{VERDICTS[report.verdict]}**" + (f" {literal.inline(report.error)}." if report.error else ""),
        literal.block(sentence(decision(report))),
        _drawn(*glance) if (glance := glance_table(report)) else "",
        LEGEND if glance else "",
        _items(asides(report)),
        *(part for section in report.sections for part in _section(section, report.files)),
        "## Metrics" if report.metrics else "",
        _table(metric_table(report.metrics)) if report.metrics else "",
        _items(doubts(report.metrics)),
        METRIC_NOTES if report.metrics and report.data else "",
        _list(meanings(report)),
        *_plausibility(report.plausibility),
        "## What was audited",
        _drawn(["", ""], [_fact(fact) for fact in provenance(report)]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def glance_table(report: Report) -> tuple[list[str], list[list[str]]] | None:
    """The report at a glance: headers and rows whose cells are Markdown; None where there is nothing to see."""
    lines = at_a_glance(report)
    if not lines:
        return None
    remarked = any(one.remarks for one in lines)
    rows = [
        [
            literal.code(one.name),
            literal.cell(f"{one.figure} {one.metric.unit}"),
            literal.code(one.picture.text()) if one.picture else "",
            literal.cell(one.means),
            *([literal.cell(one.remarks)] if remarked else []),
        ]
        for one in lines
    ]
    return ["figure", "value and interval", "from 0", "what it means", *(["remarks"] if remarked else [])], rows


def render_comparison(compared: ComparisonEntry) -> str:
    """A comparison of two reports as GitHub-flavoured Markdown."""
    section = compared.section()
    improved = len(compared.of("improved"))
    passed = f"Passed: nothing regressed{f', and {improved} improved' if improved else ''}."
    verdict = {"passed": passed, "failed": "Failed: the later audit is worse."}
    parts = [
        f"# {section.heading}",
        f"**{verdict.get(compared.verdict, 'Inconclusive: there is no ground for a verdict.')}**",
        _items(f"Warning: {warning}." for warning in compared.warnings),
        *_section(section, {})[1:],
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section, files: Mapping[str, str]) -> list[str]:
    parts = [f"## {literal.block(section.heading)}", literal.block(section.asked)]
    for place, shown in enumerate(section.tables):
        parts += [literal.block(shown.caption) if place else "", _table(shown.table), _list(shown.legend)]
    parts += map(literal.block, section.remarks)
    figures = ((files.get(purpose), told) for purpose, told in section.figures.items())
    return parts + [_figure(name, told) for name, told in figures if name]


def _figure(name: str, told: str) -> str:
    """A file beside the report as an image; nothing that lies elsewhere, whatever a report names."""
    if not lies_beside(name):
        return f"The figure {literal.code(name)} is not beside the report."
    return f"![{literal.alt(told)}]({quote(name, safe='', errors='backslashreplace')})"


def _plausibility(entry: PlausibilityEntry | None) -> list[str]:
    if entry is None:
        return []
    return [
        "## Is it the model it claims to be?",
        _table(finding_table(entry)),
        f"Tried on {entry.items} items. Losses at z = the mean, with Student t intervals over items:",
        _table(metric_table(entry.losses, digits=8)),
    ]


def _items(lines: Iterable[str]) -> str:
    return "\n".join(f"- {literal.block(line)}" for line in lines)


def _list(meanings: Mapping[str, str]) -> str:
    return "\n".join(f"- **{literal.inline(name)}**: {literal.inline(told)}" for name, told in meanings.items())


def _fact(fact: Fact) -> list[str]:
    return [
        literal.cell(fact.name),
        ("" if fact.exact is None else literal.code(fact.exact)) + (literal.cell(fact.words) if fact.words else ""),
    ]


def _table(table: Table) -> str:
    headers, rows = table
    return _drawn([literal.cell(name) for name in headers], [[literal.cell(cell) for cell in row] for row in rows])


def _drawn(headers: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
