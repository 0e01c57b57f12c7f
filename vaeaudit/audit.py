"""An audit from settings to report: the checks, in order, with what went wrong told apart from what was found.

Nothing here prints or writes files; the command line renders what this returns.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from vaeaudit.attacks.term import GoOn
from vaeaudit.audits import attack, latents, margin, mig, noise, weights
from vaeaudit.audits.base import Record
from vaeaudit.checks.plausibility import Verdict
from vaeaudit.config import Resolved
from vaeaudit.errors import InputError
from vaeaudit.record import Audited, file_alone, whole, write_down
from vaeaudit.report.model import Report
from vaeaudit.subject import Subject
from vaeaudit.weight_files import StoredModel

# Each gives a record of whatever it has finished, before it goes on.
CHECKS: dict[str, Callable[[Subject, GoOn], Iterator[Record]]] = {
    "attack": attack.run,
    "margin": margin.run,
    "noise": noise.run,
    "latents": latents.run,  # before mig, which takes its encodings
    "mig": mig.run,
}


@dataclass(frozen=True, eq=False)
class Audit:
    """A report with the records that it was written from; ``fault`` is what ended it early."""

    report: Report
    records: tuple[Record, ...]
    fault: BaseException | None


def audit(subject: Subject, resolved: Resolved, argv: Sequence[str], checks: Sequence[str], go_on: GoOn) -> Audit:
    """Carry out the named ``checks``, in order, and write their report.

    An error in a check ends the audit with verdict "error" and what was found before it. After an interruption the
    checks that are left are not begun. A model that is not plausible gets none. What the user asked wrongly is raised
    as long as nothing was found.
    """
    failed = [finding.name for finding in subject.plausibility.findings if finding.verdict is Verdict.FAIL]
    skipped = {check: f"the model did not pass: {', '.join(failed)}" for check in checks if failed}
    works = {check: partial(CHECKS[check], subject) for check in checks if not failed}
    return _carried_out(works, whole(subject), resolved, argv, skipped, go_on)


def weigh(stored: StoredModel, resolved: Resolved, argv: Sequence[str], go_on: GoOn) -> Audit:
    """Carry out the weights check alone, which needs no data and runs no model, and write its report."""
    works = {"weights": partial(weights.run, stored)}
    return _carried_out(works, file_alone(stored, resolved.settings.run.seed), resolved, argv, {}, go_on)


def _carried_out(
    works: Mapping[str, Callable[[GoOn], Iterator[Record]]],
    audited: Audited,
    resolved: Resolved,
    argv: Sequence[str],
    skipped: dict[str, str],
    go_on: GoOn,
) -> Audit:
    records: list[Record] = []
    seconds = dict.fromkeys([*skipped, *works], 0.0)
    fault: BaseException | None = None
    for check, work in works.items():
        started = time.monotonic()
        if fault is None and not any(record.interrupted for record in records):
            try:
                records.extend(work(go_on))  # what came before an error stays
            except InputError as error:
                if not records:
                    raise
                fault = error
            except (Exception, SystemExit) as error:  # the adapter is the user's code: it must not read as a finding
                fault = error
        seconds[check] = time.monotonic() - started
    return Audit(write_down(audited, resolved, argv, records, skipped, fault, seconds), tuple(records), fault)
