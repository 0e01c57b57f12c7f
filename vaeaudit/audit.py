"""An audit from settings to report: the checks, in order, with what went wrong told apart from what was found.

Nothing here prints or writes files; the command line renders what this returns.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeaudit.attacks.term import GoOn
from vaeaudit.checks.attack import AttackResult, attack, draw_pairs
from vaeaudit.checks.plausibility import Verdict
from vaeaudit.config import Resolved
from vaeaudit.record import write_down
from vaeaudit.report.model import Report
from vaeaudit.subject import Subject


@dataclass(frozen=True, eq=False)
class Audit:
    """A report with the tensors it speaks of, pairs of item numbers included; ``fault`` is what ended it early."""

    report: Report
    pairs: tuple[tuple[int, int], ...]
    attacks: tuple[AttackResult, ...]
    fault: BaseException | None


def run_attack(subject: Subject, resolved: Resolved, argv: Sequence[str], go_on: GoOn) -> Audit:
    """The attack check in every mode that the settings name, and its report.

    An error in a check ends the audit with verdict "error" and what was measured before it.
    """
    started = time.monotonic()
    settings = subject.settings
    attacks: list[AttackResult] = []
    skipped: dict[str, str] = {}
    fault: BaseException | None = None
    pairs: list[tuple[int, int]] = []
    failed = [f.name for f in subject.plausibility.findings if f.verdict is Verdict.FAIL]
    if failed:
        reason = f"the model did not pass: {', '.join(failed)}"
        skipped = {f"attack.{mode}": reason for mode in settings.attack.modes}
    else:
        pairs = _pairs(subject)
        x, x_t = (
            subject.data.batch([pair[k] for pair in pairs], dtype=subject.dtype, device=subject.device) for k in (0, 1)
        )
        try:
            attacks.extend(_attack(subject, mode, x, x_t, pairs, go_on) for mode in settings.attack.modes)
        except (Exception, SystemExit) as error:  # the adapter is the user's code: it must not read as a finding
            fault = error
    seconds = time.monotonic() - started
    report = write_down(subject, resolved, argv, pairs, attacks, skipped, fault, seconds)
    return Audit(report, tuple(pairs), tuple(attacks), fault)


def _attack(
    subject: Subject, mode: str, x: Tensor, x_t: Tensor, pairs: list[tuple[int, int]], go_on: GoOn
) -> AttackResult:
    chosen = subject.settings.attack
    size = subject.settings.run.batch_size
    return attack(
        subject.model.vae,
        x,
        x_t,
        mode,
        lambdas=chosen.lambdas,
        similarity=chosen.similarity,
        penalty=chosen.penalty,
        data_range=subject.data.range,
        seed=subject.settings.run.seed,
        max_evaluations=chosen.max_evaluations,
        batch_size=size if isinstance(size, int) else None,
        items=[source for source, _ in pairs],
        go_on=go_on,
    )


def _pairs(subject: Subject) -> list[tuple[int, int]]:
    def same(source: int, target: int) -> bool:
        images = subject.data.batch([source, target])
        return torch.equal(images[0], images[1])

    return draw_pairs(subject.settings.attack.pairs, subject.n, same, seed=subject.settings.run.seed)
