"""Tables that every report has, whatever was checked."""

from vaeaudit.layout.entry import MetricEntry
from vaeaudit.layout.section import Table, interval, number
from vaeaudit.report.model import PlausibilityEntry


def metric_table(metrics: dict[str, MetricEntry], digits: int = 4) -> Table:
    """One row a metric, with its interval and, where it is one of robustness, which way is more robust.

    The names of figures that support no verdict are marked !.
    """
    directed = any(m.direction != "none" for m in metrics.values())
    levels = {m.level for m in metrics.values() if m.ci}
    rows = [
        [
            name + (" !" if m.doubt else ""),
            number(m.value, digits),
            interval(m, digits) + (f" at {100 * m.level:.4g}%" if m.ci and len(levels) > 1 else ""),
            m.unit,
            *([m.direction.replace("none", "")] if directed else []),
            str(m.n) + (f" ({m.nonfinite} not finite)" if m.nonfinite else ""),
        ]
        for name, m in metrics.items()
    ]
    level = f"{100 * levels.pop():.4g}% interval" if len(levels) == 1 else "interval"
    return ["metric", "value", level, "unit", *(["more robust"] if directed else []), "n"], rows


def finding_table(plausibility: PlausibilityEntry) -> Table:
    """One row a finding."""
    return ["question", "answer", "seen"], [[f.name, f.verdict, f.told] for f in plausibility.findings]


def doubts(metrics: dict[str, MetricEntry]) -> list[str]:
    """What the marks of :func:`metric_table` mean, a sentence for each reason, with the number of its figures."""
    reasons: dict[str, int] = {}
    for metric in metrics.values():
        if metric.doubt:
            reasons[metric.doubt] = reasons.get(metric.doubt, 0) + 1
    return [
        f"{n} figure{'' if n == 1 else 's'} marked ! support{'s' if n == 1 else ''} no verdict: {reason}."
        for reason, n in reasons.items()
    ]
