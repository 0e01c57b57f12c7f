"""Carrying out checks for a command: open, measure, write the report, show the result."""

import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from vaeaudit.cli.command import Asked
from vaeaudit.cli.common import Reporter, check_output, complain, deliver, trace
from vaeaudit.errors import ConfigError, UnfinishedError, VaeauditError

if TYPE_CHECKING:
    from vaeaudit.audit.run import Audit
    from vaeaudit.audit.shards import Shard
    from vaeaudit.report.model import Report
    from vaeaudit.settings.config import Resolved


def carry_out(checks: Sequence[str], asked: Asked) -> int:
    """Run ``checks`` with the settings that were asked for, and no policy but their own; the report's exit code."""
    from vaeaudit.settings.config import measuring, model_and_data

    resolved = measuring(asked.settings(), checks)
    model_and_data(resolved.settings)  # told at once, where opening them would load torch before

    def work(reporter: Reporter) -> "Audit":
        from vaeaudit.audit.release import Terms, judged
        from vaeaudit.audit.run import audit, journal_of
        from vaeaudit.subject.opened import prepare

        subject = prepare(resolved.settings)
        reporter.keep()
        journal = journal_of(subject, asked.resume)
        done = audit(subject, resolved, sys.argv, checks, reporter.go_on, journal, held=reporter.held)
        return judged(done, resolved.settings, Terms(), datetime.now(UTC).date())

    return show("opening the model and the data", work, resolved, asked)


def show(
    doing: str, work: Callable[[Reporter], "Audit"], resolved: "Resolved", asked: Asked, shard: "Shard | None" = None
) -> int:
    """Do the ``work``, write its report and show it; the report's exit code.

    A ``shard`` of an audit whose others are not all done ends well, with a remark, and writes no report.
    """
    from vaeaudit.cli.forms import text_of
    from vaeaudit.gate.ending import exit_code
    from vaeaudit.report.writer import write_json

    folder = Path(resolved.settings.run.out)
    shared = shard is not None and shard.of > 1
    try:
        report = written(doing, work, folder, asked, shared)
    except UnfinishedError as error:
        if shard is None or not shard.number:
            raise
        complain(f"note: shard {shard} is done; {error}")
        return 0
    try:
        told = text_of(report, folder, asked.form, asked.output, asked.quiet, asked.verbose)
        deliver(told, asked.output)
    except VaeauditError as error:  # the report must not claim another exit code than there is
        write_json(report.model_copy(update={"exit_code": error.exit_code}), folder)
        raise
    if report.error is not None:
        complain(f"error: {report.error}")
    return exit_code(report.exit_code, asked.exit_zero)


def written(
    doing: str, work: Callable[[Reporter], "Audit"], folder: Path, asked: Asked, shared: bool = False
) -> "Report":
    """Do the ``work`` and write its report with the files beside it; the report as written.

    The journal of an audit that several processes share stays, since others may still be reading it.
    """
    from vaeaudit.audit.artifacts import artifacts
    from vaeaudit.audit.journal import Journal, check_unshared
    from vaeaudit.audit.shards import launched
    from vaeaudit.report.writer import write

    if not (shared or asked.shard) and launched(os.environ).source == "RANK":  # each would write the same report
        raise ConfigError("of the commands that measure, audit alone is shared out among processes; run one process")
    if not shared:
        check_unshared(folder)
    reporter = Reporter(asked.quiet)
    check_output(str(folder), asked.output)
    try:
        with reporter.working(doing), reporter.held:  # or a process could write over the report of the next
            done = work(reporter)
            report = write(done.report, artifacts(done), folder)
    except VaeauditError:
        if (folder / "report.json").exists():  # whoever reads it next must not take it for this run's
            reporter.say(f"note: {folder / 'report.json'} is of an earlier run")
        raise
    if report.status == "complete" and not shared:
        Journal.remove(folder)
    if done.fault is not None and asked.verbose:
        trace(done.fault)
    return report
