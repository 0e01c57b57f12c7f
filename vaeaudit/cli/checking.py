"""Carrying out a check for a command: open, measure, write the report, show the result."""

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vaeaudit.cli.common import Reporter, check_output, complain, deliver
from vaeaudit.config import Resolved
from vaeaudit.errors import VaeauditError

if TYPE_CHECKING:
    from vaeaudit.audit import Audit

Form = Literal["table", "json", "markdown"]


def carry_out(
    checks: Sequence[str],
    resolved: Resolved,
    output_format: Form,
    output: str | None,
    quiet: bool,
    verbose: bool,
) -> int:
    """Run ``checks`` with their settings; the report's exit code."""

    def work(reporter: Reporter) -> "Audit":
        from vaeaudit.audit import audit
        from vaeaudit.subject import prepare

        subject = prepare(resolved.settings)
        reporter.keeping = True
        return audit(subject, resolved, sys.argv, checks, reporter.go_on)

    return show("opening the model and the data", work, resolved, output_format, output, quiet, verbose)


def show(
    doing: str,
    work: Callable[[Reporter], "Audit"],
    resolved: Resolved,
    output_format: Form,
    output: str | None,
    quiet: bool,
    verbose: bool,
) -> int:
    """Do the ``work``, write its report and show it; the report's exit code."""
    from vaeaudit.artifacts import artifacts
    from vaeaudit.cli.render import report_text, stdout_is_terminal
    from vaeaudit.report.markdown import render
    from vaeaudit.report.writer import to_json, write

    folder = Path(resolved.settings.run.out)
    reporter = Reporter(quiet)
    check_output(resolved.settings.run.out, output)
    try:
        with reporter.working(doing):
            done = work(reporter)
            report = write(done.report, artifacts(done), folder)
    except VaeauditError:
        if (folder / "report.json").exists():  # whoever reads it next must not take it for this run's
            reporter.say(f"note: {folder / 'report.json'} is of an earlier run")
        raise
    texts = {
        "table": lambda: report_text(report, folder, output is None and stdout_is_terminal()),
        "json": lambda: to_json(report),
        "markdown": lambda: render(report),
    }
    deliver(texts[output_format](), output)
    if done.fault is not None:
        if verbose:
            complain("".join(traceback.format_exception(done.fault)).rstrip())
        complain(f"error: {report.error}")
    return report.exit_code
