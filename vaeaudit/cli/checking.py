"""Carrying out checks for a command: open, measure, write the report, show the result."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vaeaudit.cli.common import Reporter, check_output, complain, deliver, trace
from vaeaudit.cli.options import Form
from vaeaudit.errors import ConfigError, VaeauditError

if TYPE_CHECKING:
    from vaeaudit.audit.run import Audit
    from vaeaudit.report.model import Report
    from vaeaudit.settings.config import Resolved


@dataclass(frozen=True)
class Delivery:
    """How a command shows its result: in which form, to which file (stdout where None), and what it says besides."""

    form: Form
    output: str | None
    quiet: bool
    verbose: bool
    exit_zero: bool = False


def carry_out(checks: Sequence[str], resolved: "Resolved", resume: bool, delivery: Delivery) -> int:
    """Run ``checks`` with their settings and no policy; the report's exit code."""
    from vaeaudit.settings.config import measuring

    resolved = measuring(resolved, checks)

    def work(reporter: Reporter) -> "Audit":
        from vaeaudit.audit.run import audit, journal_of
        from vaeaudit.subject.opened import prepare

        subject = prepare(resolved.settings)
        reporter.keep()
        return audit(subject, resolved, sys.argv, checks, reporter.go_on, journal_of(subject, resume))

    return show("opening the model and the data", work, resolved, delivery)


def show(doing: str, work: Callable[[Reporter], "Audit"], resolved: "Resolved", delivery: Delivery) -> int:
    """Do the ``work``, write its report and show it; the report's exit code."""
    from vaeaudit.cli.forms import text_of
    from vaeaudit.gate.ending import exit_code
    from vaeaudit.report.writer import write_json

    folder = Path(resolved.settings.run.out)
    report = written(doing, work, folder, delivery)
    try:
        told = text_of(report, folder, delivery.form, delivery.output, delivery.quiet, delivery.verbose)
        deliver(told, delivery.output)
    except VaeauditError as error:  # the report must not claim another exit code than there is
        write_json(report.model_copy(update={"exit_code": error.exit_code}), folder)
        raise
    if report.error is not None:
        complain(f"error: {report.error}")
    return exit_code(report.exit_code, delivery.exit_zero)


def written(doing: str, work: Callable[[Reporter], "Audit"], folder: Path, delivery: Delivery) -> "Report":
    """Do the ``work`` and write its report with the files beside it; the report as written."""
    from vaeaudit.audit.artifacts import artifacts
    from vaeaudit.audit.journal import Journal
    from vaeaudit.report.writer import write

    if int(os.environ.get("WORLD_SIZE") or 1) > 1:  # torchrun: each process would write the same report
        raise ConfigError("the items of an audit cannot be shared out among processes yet; run one process")
    reporter = Reporter(delivery.quiet)
    check_output(str(folder), delivery.output)
    try:
        with reporter.working(doing):
            done = work(reporter)
            report = write(done.report, artifacts(done), folder)
    except VaeauditError:
        if (folder / "report.json").exists():  # whoever reads it next must not take it for this run's
            reporter.say(f"note: {folder / 'report.json'} is of an earlier run")
        raise
    if report.status == "complete":
        Journal.remove(folder)
    if done.fault is not None and delivery.verbose:
        trace(done.fault)
    return report
