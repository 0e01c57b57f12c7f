"""report.md: the verdict first, then tables and figures, readable by someone who never saw the tool."""

from collections.abc import Mapping

from tabulate import tabulate

from vaeaudit.report.comparison import ComparisonEntry
from vaeaudit.report.model import PlausibilityEntry, Report
from vaeaudit.report.section import Section, Table
from vaeaudit.report.tables import doubts, finding_table, metric_table
from vaeaudit.report.wording import (
    METRIC_NOTES,
    VERDICTS,
    Fact,
    asides,
    decision,
    meanings,
    provenance,
    sentence,
    visible,
)


def render(report: Report) -> str:
    """The report as GitHub-flavoured Markdown; figures are links to the files beside it."""
    parts = [
        f"# Audit of `{report.model.file.path}`",
        f"**{VERDICTS[report.verdict]}**" + (f" {report.error}." if report.error else ""),
        sentence(decision(report)),
        "\n".join(f"- {line}" for line in asides(report)),
        *(part for section in report.sections for part in _section(section, report.files)),
        "## Metrics" if report.metrics else "",
        _table(metric_table(report.metrics)) if report.metrics else "",
        "\n".join(f"- {doubt}" for doubt in doubts(report.metrics)),
        METRIC_NOTES if report.metrics and report.data else "",
        _list(meanings(report)),
        *_plausibility(report.plausibility),
        "## What was audited",
        _table((["", ""], [_fact(fact) for fact in provenance(report)])),
    ]
    return visible("\n\n".join(part for part in parts if part)) + "\n"


def render_comparison(compared: ComparisonEntry) -> str:
    """A comparison of two reports as GitHub-flavoured Markdown."""
    section = compared.section()
    improved = len(compared.of("improved"))
    passed = f"Passed: nothing regressed{f', and {improved} improved' if improved else ''}."
    verdict = {"passed": passed, "failed": "Failed: the later audit is worse."}
    parts = [
        f"# {section.heading}",
        f"**{verdict.get(compared.verdict, 'Inconclusive: there is no ground for a verdict.')}**",
        "\n".join(f"- Warning: {warning}." for warning in compared.warnings),
        *_section(section, {})[1:],
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section, files: Mapping[str, str]) -> list[str]:
    parts = [f"## {section.heading}", section.asked]
    for place, shown in enumerate(section.tables):
        parts += [shown.caption if place else "", _table(shown.table), _list(shown.legend)]
    parts += section.remarks
    figures = ((files.get(purpose), told) for purpose, told in section.figures.items())
    return parts + [f"![{told}]({name})" for name, told in figures if name]


def _plausibility(entry: PlausibilityEntry | None) -> list[str]:
    if entry is None:
        return []
    return [
        "## Is it the model it claims to be?",
        _table(finding_table(entry)),
        f"Tried on {entry.items} items. Losses at z = the mean, with Student t intervals over items:",
        _table(metric_table(entry.losses, digits=8)),
    ]


def _list(meanings: Mapping[str, str]) -> str:
    return "\n".join(f"- **{name}**: {meaning}" for name, meaning in meanings.items())


def _fact(fact: Fact) -> list[str]:
    return [fact.name, ("" if fact.exact is None else f"`{fact.exact}`") + fact.words]


def _table(table: Table) -> str:
    headers, rows = table
    escaped = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    return tabulate(escaped, headers=headers, tablefmt="github", disable_numparse=True)
