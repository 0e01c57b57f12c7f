"""From figures to outcomes: thresholds, waivers, and what counts.

A threshold that reads a whole interval passes where all of it lies on the right side, fails where all of it lies on the
wrong side, and is inconclusive in between: then more items would tell, and neither red nor green would be earned.

A figure in doubt is inconclusive, unless it is on the wrong side already and a better search could only move it on.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from typing import Literal

from vaeaudit.checks.registry import checks
from vaeaudit.errors import nearest
from vaeaudit.layout.entry import MetricEntry, belongs
from vaeaudit.layout.section import number
from vaeaudit.report.gates import CheckEntry, WaiverEntry
from vaeaudit.settings.sections import GateSettings, Settings

Outcome = Literal["passed", "failed", "inconclusive"]


def enabled(settings: Settings) -> tuple[tuple[str, ...], frozenset[str]]:
    """The checks of an audit, in the order in which they are carried out, and which of them nobody asked for by name.

    Those that [run] checks names; else those whose section stands in the configuration or that a threshold or the
    baseline reads; else all, of which those that the model or the data cannot answer are left out.
    """
    read = {
        name.partition(".")[0] for name in (*settings.checks, *settings.baseline.metrics, *settings.baseline.min_effect)
    }
    every = tuple(checks())
    named = settings.run.checks or [check for check in every if check in settings.model_fields_set or check in read]
    if not named:
        return every, frozenset(every)
    return tuple(check for check in every if check in named), frozenset()


def brought(names: Iterable[str], section: Callable[[str], object]) -> dict[str, GateSettings]:
    """The thresholds that checks of these ``names`` bring themselves, of the ``section`` of each, by metric."""
    rows = [checks()[name] for name in names]
    found: list[Mapping[str, GateSettings]] = [
        row.load(row.thresholds)(section(row.name)) for row in rows if row.thresholds
    ]
    return {name: gate for of_check in found for name, gate in of_check.items()}


def evaluate(
    gates: Mapping[str, GateSettings], metrics: Mapping[str, MetricEntry], skipped: Mapping[str, str], today: date
) -> list[CheckEntry]:
    """Hold every metric that a gate names against its threshold; a gate whose metric is not there is inconclusive."""
    return [_evaluated(name, gate, metrics, skipped, today) for name, gate in gates.items()]


def waived(beginning: str, checks: Iterable[CheckEntry]) -> str | None:
    """Why a doubt of the figures that ``beginning`` names does not count: all that would count of them is waived."""
    read = [check for check in checks if belongs(check.id, beginning)]
    if any(check.counts for check in read):
        return None
    return "; ".join(dict.fromkeys(check.waived.reason for check in read if check.waived is not None)) or None


def remarks(checks: Sequence[CheckEntry], gates: Mapping[str, GateSettings], today: date) -> list[str]:
    """What a reader must hear of thresholds that do not count, or no longer do not."""
    told = [
        f"{check.id}: {check.why}; it only warns"
        for check in checks
        if check.severity == "warn" and check.waived is None and check.verdict != "passed"
    ]
    for name, gate in gates.items():
        if gate.waive is not None and gate.waive.until < today:
            told.append(f"the waiver of {name} ({gate.waive.reason}) ended on {gate.waive.until}: it counts again")
    return told


def _evaluated(
    name: str, gate: GateSettings, metrics: Mapping[str, MetricEntry], skipped: Mapping[str, str], today: date
) -> CheckEntry:
    metric = metrics.get(name)
    outcome: Outcome = "inconclusive"
    observed: float | None = None
    if metric is None:
        why = next(
            (f"not measured: {reason}" for what, reason in skipped.items() if belongs(name, what)),
            f"there is no such figure{nearest(name, metrics)}",
        )
    elif (fault := _no_ground(metric, gate)) is not None:
        why, observed = fault, metric.value
    elif metric.doubt is not None:
        outcome, observed, why = _lost(metric, gate) or (outcome, metric.value, metric.doubt)
    else:
        outcome, observed, why = _held(metric, gate)
    waived = None
    if gate.waive is not None and today <= gate.waive.until:
        waived = WaiverEntry(until=gate.waive.until.isoformat(), reason=gate.waive.reason)
    return CheckEntry(
        id=name,
        bound=gate.bound,
        min=gate.min,
        max=gate.max,
        observed=observed,
        verdict=outcome,
        severity=gate.severity,
        waived=waived,
        why=why,
    )


def _no_ground(metric: MetricEntry, gate: GateSettings) -> str | None:
    """Why a metric can be held against no threshold, whatever is doubted of it, if it cannot."""
    if metric.value is None:
        return metric.doubt or "the figure is not a finite number"
    if metric.left_out is not None:
        return metric.doubt or metric.left_out
    if metric.ci is None and gate.bound != "value" and not metric.exact:
        if metric.doubt is not None:
            return metric.doubt
        if metric.endless:
            return f"an end of its interval is infinite: {metric.nonfinite} of {metric.n} values are"
        return f"it has no interval, since {metric.n} values are too few for one"
    return None


def _held(metric: MetricEntry, gate: GateSettings) -> tuple[Outcome, float, str]:
    """The outcome of a figure that can be held against the threshold, the number that decided, and why in words."""
    low, high = _read(metric, gate)
    found: list[tuple[Outcome, float, str]] = []
    if gate.min is not None:
        found.append(_side(low, high, gate.min, gate.bound, above=True))
    if gate.max is not None:
        found.append(_side(high, low, gate.max, gate.bound, above=False))
    order = ("failed", "inconclusive", "passed")
    return min(found, key=lambda one: order.index(one[0]))


def _lost(metric: MetricEntry, gate: GateSettings) -> tuple[Outcome, float, str] | None:
    """The outcome of a figure in doubt whose threshold no better search could save; None where one might.

    A better search moves order statistics, the ends of their intervals among them, one way only. The interval of a mean
    may narrow or widen as its values move, so that the mean itself must lie on the wrong side as well.
    """
    low, high = _read(metric, gate)
    if metric.search == "keeps":
        found = _held(metric, gate)
        return (*found[:2], f"{found[2]}, which rests on no search") if found[0] == "failed" else None
    above = metric.search == "lowers"
    threshold = gate.min if above else gate.max
    if metric.search == "none" or threshold is None or metric.value is None:
        return None
    near, far = (low, high) if above else (high, low)
    outcome, observed, why = _side(near, far, threshold, gate.bound, above=above)
    wrong = metric.value < threshold if above else metric.value > threshold
    if outcome != "failed" or not (wrong or metric.keeps_infinite):
        return None
    return outcome, observed, f"{why}, and a better search only {metric.search} it (in doubt: {metric.doubt})"


def _read(metric: MetricEntry, gate: GateSettings) -> tuple[float, float]:
    """Both ends of what a threshold reads: the interval, or twice the one number that it names."""
    assert metric.value is not None
    low, high = metric.ci or (metric.value, metric.value)
    if gate.bound != "interval":
        low = high = {"ci_lower": low, "ci_upper": high, "value": metric.value}[gate.bound]
    return low, high


def _side(near: float, far: float, threshold: float, bound: str, *, above: bool) -> tuple[Outcome, float, str]:
    """One threshold: ``near`` is the end of the interval that lies nearer to the wrong side of it."""

    def right(end: float) -> bool:
        return end >= threshold if above else end <= threshold

    end, other = ("lower", "upper") if above else ("upper", "lower")
    wrong, at_worst = ("below", "at least") if above else ("above", "at most")
    said = {"ci_lower": "the lower end ", "ci_upper": "the upper end ", "value": "the value "}.get(bound)
    if said is None and near == far:  # an exact figure
        said = "the value "
    if right(near):
        return "passed", near, f"{said or f'the {end} end '}{number(near)} is {at_worst} {threshold:g}"
    if not right(far):
        return "failed", far, f"{said or f'even the {other} end '}{number(far)} is {wrong} {threshold:g}"
    why = f"the {end} end {number(near)} is {wrong} {threshold:g} and the {other} end {number(far)} is not"
    return "inconclusive", near, f"{why}; more items may tell"
