"""Carrying out a check for a command: open, measure, write the report, show the result."""

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vaeaudit.cli.common import Reporter, check_output, complain, deliver
from vaeaudit.config import Resolved


def carry_out(
    checks: Sequence[str],
    resolved: Resolved,
    output_format: Literal["table", "json", "markdown"],
    output: str | None,
    quiet: bool,
    verbose: bool,
) -> int:
    """Run ``checks`` with their settings; the report's exit code."""
    from vaeaudit.artifacts import artifacts
    from vaeaudit.audit import audit
    from vaeaudit.cli.render import report_text, stdout_is_terminal
    from vaeaudit.report.markdown import render
    from vaeaudit.report.writer import to_json, write
    from vaeaudit.subject import prepare

    folder = Path(resolved.settings.run.out)
    reporter = Reporter(quiet)
    check_output(resolved.settings.run.out, output)
    with reporter.working("opening the model and the data"):
        subject = prepare(resolved.settings)
        reporter.keeping = True
        done = audit(subject, resolved, sys.argv, checks, reporter.go_on)
        report = write(done.report, artifacts(done), folder)
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
