"""report.md: the verdict first, then tables and figures, readable by someone who never saw the tool."""

import shlex

from tabulate import tabulate

from vaeaudit.report.model import AttackEntry, CappedEntry, ClassTableEntry, MarginEntry, Report
from vaeaudit.report.tables import (
    CAPPED_LEGEND,
    LEGEND,
    MARGIN_LEGEND,
    MARGIN_METRICS,
    METRICS,
    Table,
    asked,
    attack_table,
    capped_table,
    class_table,
    ends,
    finding_table,
    margin_table,
    maximised,
    metric_table,
    minimised,
)

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
        "## Metrics" if report.metrics else "",
        _table(metric_table(report.metrics)) if report.metrics else "",
        _METRIC_NOTES if report.metrics else "",
        _meanings(report),
        *(part for attack in report.attacks for part in _attack(report, attack)),
        *(part for capped in report.capped for part in _capped(report, capped)),
        *(part for margins in report.margins for part in _margins(report, margins)),
        "## Is it the model it claims to be?",
        _table(finding_table(report.plausibility)),
        f"Tried on {report.plausibility.items} items. Losses at z = the mean, with Student t intervals over items:",
        _table(metric_table(report.plausibility.losses, digits=8)),
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
    names = [name.split(".", 2)[2] for name in report.metrics if name.startswith("attack.")]
    told = [f"- **{part}**: {meaning}" for part, meaning in METRICS.items() if _names(part, names)]
    of_margins = [name for name in report.metrics if name.startswith("margin.")]
    told += [
        f"- **{part}**: {meaning}"
        for part, meaning in MARGIN_METRICS.items()
        if any(f".{part}." in name for name in of_margins)
    ]
    return "\n".join(told)


def _names(part: str, names: list[str]) -> bool:
    return any(f".{name}".removesuffix(".median").removesuffix(".mean").endswith(f".{part}") for name in names)


def _attack(report: Report, attack: AttackEntry) -> list[str]:
    box = f"x + d in [{attack.box[0]:g}, {attack.box[1]:g}]" if attack.box else "no box"
    panel, curve = (report.files.get(f"{attack.mode} {name}") for name in ("panel", "curve"))
    return [
        f"## Attack: {attack.mode}",
        f"Minimises {minimised(attack)} over d with {box}; pairs: {len(attack.pairs)}, {attack.chosen}; values of λ: "
        f"{len(attack.lambdas)}, from {attack.lambdas[0]:.3g} to {attack.lambdas[-1]:.3g}; the data term is in "
        f"{attack.unit}. Here x is the source, x_t the target, x* = x + d the adversarial input, and rec the decoder's "
        "mean at z = the posterior's mean. An attack is a lower bound on harm: a stronger one may do more.",
        _table(attack_table(attack)),
        "\n".join(f"- **{name}**: {meaning}" for name, meaning in LEGEND.items()),
        f"{ends(attack)}.",
        *(_classes(attack.classes) if attack.classes else ()),
        "![Attack panel of the first pairs: input, reconstruction, adversarial, distortion, its reconstruction, "
        f"target]({panel})"
        if panel
        else "",
        f"![Distortion curves: distance to the target over the norm of the distortion]({curve})" if curve else "",
    ]


def _capped(report: Report, attack: CappedEntry) -> list[str]:
    box = f"x + d in [{attack.box[0]:g}, {attack.box[1]:g}]" if attack.box else "no box"
    norm = "‖d‖₂" if attack.norm == "l2" else "‖d‖∞"
    panel, curve = (report.files.get(f"{attack.mode} {name}") for name in ("panel", "curve"))
    return [
        f"## Attack under a cap: {attack.mode}",
        f"Maximises {maximised(attack)}, over d with {norm} at most the cap and {box}; items: {len(attack.items)}, "
        f"{attack.evaluations:,} evaluations of the first attack. Damage is in input units. An attack is a lower bound "
        "on harm: a stronger one may do more.",
        _table(capped_table(attack)),
        "\n".join(f"- **{name}**: {meaning}" for name, meaning in CAPPED_LEGEND.items()),
        f"![Panel of the first items under the largest cap]({panel})" if panel else "",
        f"![Damage over the cap]({curve})" if curve else "",
    ]


def _margins(report: Report, margins: MarginEntry) -> list[str]:
    panel, falls = (report.files.get(f"{name} at r = {margins.r:.6g}") for name in ("margins", "falls"))
    return [
        f"## Margins at r = {margins.r:.6g}",
        "How far an item may move before its reconstruction leaves the ball of radius r around g(mu(x)) with "
        f"probability 1 - m or more: {asked(margins)}. The margin R lies between the certified and the empirical one.",
        _table(margin_table(margins)),
        "\n".join(f"- **{name}**: {meaning}" for name, meaning in MARGIN_LEGEND.items()),
        "![Left: the margins of all items, each kind in ascending order. Right: the empirical margin over the whitened "
        f"estimate, and the line where they are equal]({panel})"
        if panel
        else "",
        f"![Probability of staying within r along the distortion that broke each item]({falls})" if falls else "",
    ]


def _classes(classes: ClassTableEntry) -> list[str]:
    return [
        f"Classes by {classes.classifier}; reached, left / valid: of the attacks whose clean reconstruction has the "
        "source's class, how many end in the target's class, and in any other than the source's.",
        _table(class_table(classes)),
    ]


def _provenance(report: Report) -> list[list[str]]:
    model, data, environment = report.model, report.data, report.environment
    return [
        ["model", f"`{model.file.path}`"],
        ["model SHA-256", f"`{model.file.sha256}`"],
        ["adapter", f"{model.adapter.name} ({model.adapter.source})"],
        ["likelihood", model.likelihood],
        ["data", f"`{data.source}`, {data.n} items"],
        ["data SHA-256", f"`{data.sha256}`"],
        ["stored as", data.stored],
        *([["left out of the data", "; ".join(data.skipped)]] if data.skipped else []),
        ["range", f"[{data.range[0]:g}, {data.range[1]:g}]" if data.range else "none"],
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
