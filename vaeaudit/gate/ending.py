"""How an audit ends: the one place where what became of it turns into a status, a verdict and an exit code."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from vaeaudit.errors import VaeauditError
from vaeaudit.gate.policy import Outcome, waived
from vaeaudit.report.model import DecisionEntry, Report

EXIT_CODES = {"passed": 0, "ungated": 0, "failed": 1, "inconclusive": 5}
INTERRUPTED = 130


@dataclass(frozen=True)
class Ending:
    """The status, the verdict and the exit code of an audit."""

    status: Literal["complete", "interrupted", "error"]
    verdict: str
    exit_code: int


def ending(
    outcomes: Iterable[Outcome] = (),
    *,
    fault: BaseException | None = None,
    interrupted: bool = False,
    plausible: bool = True,
    signs: bool = False,
    doubts: bool = False,
) -> Ending:
    """How an audit ends that ``fault`` ended, or that was interrupted, or else by the ``outcomes`` that count.

    ``signs`` are doubts of whole attacks, radii or checks: with one, or of a model that is not ``plausible``, what
    would have passed is inconclusive, whatever was read. Without outcomes ``doubts`` of single figures are enough.
    """
    if fault is not None:
        return Ending(
            "error", "error", fault.exit_code if isinstance(fault, VaeauditError) else VaeauditError.exit_code
        )
    if interrupted:
        return Ending("interrupted", "inconclusive", INTERRUPTED)
    found, signs = set(outcomes), signs or not plausible
    if "failed" in found:
        verdict = "failed"
    elif "inconclusive" in found or signs:
        verdict = "inconclusive"
    else:
        verdict = "passed" if found else "inconclusive" if doubts else "ungated"
    return Ending("complete", verdict, EXIT_CODES[verdict])


def exit_code(code: int, exit_zero: bool) -> int:
    """The exit code where ``exit_zero`` turns that of a failure, and no other, into 0."""
    return 0 if exit_zero and code == EXIT_CODES["failed"] else code


def concluded(report: Report, signs: Mapping[str, str], doubts: Mapping[str, str]) -> Report:
    """The report with the verdict that its thresholds, comparison, findings and reproduction come to, and its grounds.

    ``signs`` and ``doubts`` are those of its records. An audit that did not complete keeps its verdict.
    """
    if report.status == "complete":
        outcomes: list[Outcome] = [check.verdict for check in report.checks if check.counts]
        compared, warnings = report.baseline, list(report.warnings)
        if compared is not None and (compared.tested or compared.refused):
            outcomes.append(compared.verdict)
        elif compared is not None:
            warnings.append(f"the comparison does not count: {compared.summary()}")
        if report.reproduced is not None and not report.reproduced.agree:
            outcomes.append("inconclusive")
            warnings.append(report.reproduced.summary())
        for name, why in {**signs, **doubts}.items():
            if (reason := waived(name, report.checks)) is not None:
                told = f"it does not count, since the thresholds that read it are waived ({reason})"
                warnings.append(f"{name}: {why}; {told}")
        counted = [{n: why for n, why in of.items() if waived(n, report.checks) is None} for of in (signs, doubts)]
        end = ending(
            outcomes,
            plausible=report.plausibility is None or not report.plausibility.failed,
            signs=bool(counted[0]),
            doubts=bool(counted[1]),
        )
        if counted[0] and set(outcomes) == {"passed"}:
            listed = "; ".join(f"{name}: {why}" for name, why in counted[0].items())
            warnings.append(f"no audit with a failure sign passes: {listed}")
        update = {"verdict": end.verdict, "exit_code": end.exit_code, "warnings": warnings}
        report = report.model_copy(update=update)
    return report.model_copy(update={"decided": _grounds(report, signs, doubts)})


def _grounds(report: Report, signs: Mapping[str, str], doubts: Mapping[str, str]) -> list[DecisionEntry]:
    """What the verdict of a report rests on."""
    verdict, gates = report.verdict, [check for check in report.checks if check.counts]
    compared, told = report.baseline, list[DecisionEntry]()
    if verdict == "passed":
        if gates:
            told.append(DecisionEntry(kind="threshold", name="thresholds", why=f"all {len(gates)} that count are met"))
        if compared is not None and compared.tested:
            told.append(DecisionEntry(kind="comparison", name="comparison", why=compared.summary()))
    if verdict not in ("failed", "inconclusive"):
        return told
    if report.plausibility is not None and report.plausibility.failed:  # nothing was measured: all else follows
        failed = report.plausibility.failed
        return [DecisionEntry(kind="plausibility", name=one.name, why=f"failed: {one.message}") for one in failed]
    if report.status == "interrupted":
        return [DecisionEntry(kind="interruption", name="interruption", why="the audit did not complete")]
    told += [DecisionEntry(kind="threshold", name=one.id, why=one.why) for one in gates if one.verdict == verdict]
    if compared is not None and verdict == "inconclusive" and compared.refused:
        told.append(DecisionEntry(kind="comparison", name="comparison", why=compared.summary()))
    for one in compared.of("regressed" if verdict == "failed" else "cannot tell") if compared is not None else ():
        why = one.why or "it regressed"
        told.append(DecisionEntry(kind="comparison", name=one.metric, why=f"compared with the baseline, {why}"))
    if report.reproduced is not None and verdict == "inconclusive" and not report.reproduced.agree:
        told.append(DecisionEntry(kind="reproduction", name="reproduction", why=report.reproduced.summary()))
    known = " ".join(one.why for one in told)
    # A policy asks of single figures what it asks.
    unasked = {} if gates or (compared is not None and (compared.tested or compared.refused)) else doubts
    for name, why in {**signs, **unasked}.items() if verdict == "inconclusive" else ():
        if why not in known and waived(name, report.checks) is None:
            told.append(DecisionEntry(kind="sign", name=name, why=why))
    return told
