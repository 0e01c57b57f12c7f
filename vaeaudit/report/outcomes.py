"""What a report decides, item by item, told the same way to every machine that reads it.

A report of which anything but "passed" is the verdict has at least one outcome that has not passed: nothing measured,
nothing decided and nothing finished must never look like everything in order.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from vaeaudit.layout.section import number, with_interval
from vaeaudit.report.comparison import ComparisonEntry, DifferenceEntry, Result
from vaeaudit.report.gates import CheckEntry, check_table
from vaeaudit.report.model import Report
from vaeaudit.report.wording import VERDICTS

Kind = Literal["error", "interrupted", "failed", "inconclusive", "warns", "waived", "ungated", "passed"]
# From the worst to the best.
KINDS: tuple[Kind, ...] = ("error", "interrupted", "failed", "inconclusive", "warns", "waived", "ungated", "passed")
# Outcomes for which an audit does not end well.
COUNTING: frozenset[Kind] = frozenset({"error", "interrupted", "failed", "inconclusive"})

_KINDS: dict[Result, Kind] = {"regressed": "failed", "cannot tell": "inconclusive"}


@dataclass(frozen=True)
class Outcome:
    """One thing that was decided: ``group`` is a check, "baseline" or "audit"; ``asked`` is what it had to be."""

    group: str
    name: str
    kind: Kind
    why: str
    asked: str = ""


def outcomes(report: Report) -> list[Outcome]:
    """Thresholds, the comparison with an earlier audit, what else decided, then the audit itself where more is said."""
    found = [_of_check(check, row[1]) for check, row in zip(report.checks, check_table(report.checks)[1], strict=True)]
    if report.baseline is not None:
        found += _of_baseline(report.baseline)
    found += _of_plausibility(report)
    found += [
        Outcome(one.name.partition(".")[0], one.name, "inconclusive", one.why)
        for one in report.decided
        if one.kind == "sign"
    ]
    return [*found, *_of_audit(report, {one.kind for one in found})]


def together(found: Iterable[Outcome]) -> list[tuple[Outcome, int]]:
    """The worst first; those of the same kind for the same reason as one, with how many others it stands for."""
    shared: dict[tuple[bool, Kind, str], list[Outcome]] = {}
    for one in sorted(found, key=lambda one: KINDS.index(one.kind)):
        shared.setdefault((one.group == "baseline", one.kind, one.why), []).append(one)
    return [(same[0], len(same) - 1) for same in shared.values()]


def _of_check(check: CheckEntry, asked: str) -> Outcome:
    group = check.id.partition(".")[0]
    if check.verdict == "passed":
        return Outcome(group, check.id, "passed", check.why, asked)
    if check.waived is not None:
        why = f"waived until {check.waived.until}: {check.waived.reason} ({check.verdict}: {check.why})"
        return Outcome(group, check.id, "waived", why, asked)
    if check.severity == "warn":
        return Outcome(group, check.id, "warns", f"only warns: {check.verdict}, {check.why}", asked)
    return Outcome(group, check.id, check.verdict, check.why, asked)


def _of_baseline(compared: ComparisonEntry) -> Iterator[Outcome]:
    if compared.refused:
        yield Outcome("baseline", "baseline", "inconclusive", compared.summary())
    for one in compared.tested:
        kind = _KINDS.get(one.outcome, "passed")
        why = f"cannot tell: {one.why or 'no reason is given'}" if kind == "inconclusive" else _difference(one)
        yield Outcome("baseline", one.metric, kind, why)


def _difference(one: DifferenceEntry) -> str:
    told = f"{one.outcome}: {number(one.old)} before, {number(one.new)} now"
    change = f"new - old = {with_interval(one.difference, one.ci)} {one.unit}".rstrip()
    allowed = f"; {number(one.min_effect)} for the worse is allowed" if one.outcome == "regressed" else ""
    return f"{told}; {change}{allowed}"


def _of_plausibility(report: Report) -> Iterator[Outcome]:
    """The findings on the model that did not pass."""
    for one in report.plausibility.findings if report.plausibility is not None else ():
        if one.verdict == "fail":
            yield Outcome("doctor", one.name, "inconclusive", f"failed: {one.message}")
        elif one.verdict != "pass":
            yield Outcome("doctor", one.name, "warns" if one.acknowledged is None else "waived", one.told)


def _of_audit(report: Report, kinds: set[Kind]) -> Iterator[Outcome]:
    if report.reproduced is not None:
        kind: Kind = "passed" if report.reproduced.agree else "inconclusive"
        kinds = kinds | {kind}
        yield Outcome("audit", "reproduction", kind, report.reproduced.summary())
    meaning = VERDICTS.get(report.verdict, report.verdict).rstrip(".")
    if report.status == "error" or report.verdict == "error":
        yield Outcome("audit", "audit", "error", report.error or meaning)
    elif report.status == "interrupted":
        yield Outcome("audit", "audit", "interrupted", "; ".join(["the audit was interrupted", *report.partial]))
    elif report.verdict == "ungated":
        yield Outcome("audit", "audit", "ungated", meaning)
    elif report.verdict == "passed":
        if not kinds & {"passed", *COUNTING}:  # a document without any case would read as a fault
            yield Outcome("audit", "audit", "passed", meaning)
    elif report.verdict not in kinds:
        kind = "failed" if report.verdict == "failed" else "inconclusive"
        yield Outcome("audit", "audit", kind, "; ".join(_doubts(report)) or meaning)


def _doubts(report: Report) -> list[str]:
    """Why a report that does not tell what decided has no verdict, as far as its figures say."""
    return list(dict.fromkeys(metric.doubt for metric in report.metrics.values() if metric.doubt))
