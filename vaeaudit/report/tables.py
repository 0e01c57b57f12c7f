"""Tables that every report has, whatever was checked."""

from vaeaudit.report.entry import MetricEntry
from vaeaudit.report.model import PlausibilityEntry
from vaeaudit.report.section import Table, interval, number


def metric_table(metrics: dict[str, MetricEntry], digits: int = 4) -> Table:
    """One row a metric, with its interval and, where it is one of robustness, which way is more robust."""
    directed = any(m.direction != "none" for m in metrics.values())
    rows = [
        [
            name,
            number(m.value, digits),
            interval(m, digits),
            m.unit,
            *([m.direction.replace("none", "")] if directed else []),
            str(m.n) + (f" ({m.nonfinite} not finite)" if m.nonfinite else ""),
        ]
        for name, m in metrics.items()
    ]
    level = next((f"{m.level:.0%} interval" for m in metrics.values()), "interval")
    return ["metric", "value", level, "unit", *(["more robust"] if directed else []), "n"], rows


def finding_table(plausibility: PlausibilityEntry) -> Table:
    """One row a finding."""
    return ["question", "answer", "seen"], [[f.name, f.verdict, f.message] for f in plausibility.findings]
