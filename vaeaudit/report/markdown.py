"""report.md: the verdict first, then tables and figures, readable by someone who never saw the tool."""

import shlex
from collections.abc import Mapping

from tabulate import tabulate

from vaeaudit.report.model import PlausibilityEntry, Report
from vaeaudit.report.section import Section, Table
from vaeaudit.report.tables import finding_table, metric_table

_VERDICTS = {
    "ungated": "Ungated: measured, with no policy to pass or fail.",
    "inconclusive": "Inconclusive: the figures below support no verdict.",
    "error": "Error: the audit could not complete.",
}

_METRIC_NOTES = (
    "One value a pair or item. Medians and quartiles are order statistics; a small sample gives them no interval."
)


def render(report: Report) -> str:
    """The report as GitHub-flavoured Markdown; figures are links to the files beside it."""
    parts = [
        f"# Audit of `{report.model.file.path}`",
        f"**{_VERDICTS[report.verdict]}**" + (f" {report.error}." if report.error else ""),
        "\n".join(f"- {line}" for line in _asides(report)),
        *(part for section in report.sections for part in _section(report, section)),
        "## Metrics" if report.metrics else "",
        _table(metric_table(report.metrics)) if report.metrics else "",
        _METRIC_NOTES if report.metrics and report.data else "",
        _meanings(report),
        *_plausibility(report.plausibility),
        "## What was audited",
        _table((["", ""], _provenance(report))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _asides(report: Report) -> list[str]:
    return [
        *(f"Partial: {reason}." for reason in report.partial),
        *(f"Skipped {name}: {reason}." for name, reason in report.skipped.items()),
        *(f"Warning: {warning}." for warning in report.warnings),
    ]


def _meanings(report: Report) -> str:
    """What the metrics of this report mean, a line each."""
    names = [f".{name}." for name in report.metrics]
    meanings = {part: meaning for section in report.sections for part, meaning in section.meanings.items()}
    return _list({part: meaning for part, meaning in meanings.items() if any(f".{part}." in name for name in names)})


def _section(report: Report, section: Section) -> list[str]:
    parts = [f"## {section.heading}", section.asked]
    for place, shown in enumerate(section.tables):
        parts += [shown.caption if place else "", _table(shown.table), _list(shown.legend)]
    parts += section.remarks
    figures = ((report.files.get(purpose), told) for purpose, told in section.figures.items())
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


def _provenance(report: Report) -> list[list[str]]:
    model, data, environment = report.model, report.data, report.environment
    rows = [["model", f"`{model.file.path}`"], ["model SHA-256", f"`{model.file.sha256}`"]]
    if model.adapter is not None:
        rows.append(["adapter", f"{model.adapter.name} ({model.adapter.source})"])
    if model.likelihood is not None:
        rows.append(["likelihood", model.likelihood])
    if data is not None:
        rows += [
            ["data", f"`{data.source}`, {data.n} items"],
            ["data SHA-256", f"`{data.sha256}`"],
            ["stored as", data.stored],
            *([["left out of the data", "; ".join(data.skipped)]] if data.skipped else []),
            ["range", f"[{data.range[0]:g}, {data.range[1]:g}]" if data.range else "none"],
        ]
    return [
        *rows,
        ["seed", str(environment.seed)],
        ["ran on", f"{environment.device}, threads: {environment.threads}, {environment.dtype}"],
        ["with", f"{report.tool}, torch {environment.torch}, Python {environment.python}"],
        ["at", report.created],
        ["took", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.timings.items())],
        ["command", f"`{shlex.join(report.argv)}`"],
        ["configuration SHA-256", f"`{report.configuration_sha256}`"],
    ]


def _table(table: Table) -> str:
    headers, rows = table
    escaped = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    return tabulate(escaped, headers=headers, tablefmt="github", disable_numparse=True)
