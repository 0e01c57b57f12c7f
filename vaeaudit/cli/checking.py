"""Carrying out a check for a command: open, measure, write the report, show the result."""

import sys
import traceback
from pathlib import Path
from typing import Literal

from vaeaudit.cli.common import Reporter, check_output, complain, deliver
from vaeaudit.config import Resolved


def carry_out(
    check: Literal["attack", "margin"],
    resolved: Resolved,
    output_format: Literal["table", "json", "markdown"],
    output: str | None,
    quiet: bool,
    verbose: bool,
) -> int:
    """Run ``check`` with its settings; the report's exit code."""
    from vaeaudit.artifacts import artifacts
    from vaeaudit.audit import run_attack, run_margin
    from vaeaudit.cli.render import report_text, stdout_is_terminal
    from vaeaudit.report.markdown import render
    from vaeaudit.report.writer import to_json, write
    from vaeaudit.subject import prepare

    run = {"attack": run_attack, "margin": run_margin}[check]
    folder = Path(resolved.settings.run.out)
    reporter = Reporter(quiet)
    check_output(resolved.settings.run.out, output)
    with reporter.working("opening the model and the data"):
        subject = prepare(resolved.settings)
        reporter.keeping = True
        audit = run(subject, resolved, sys.argv, reporter.go_on)
        report = write(audit.report, artifacts(audit), folder)
    texts = {
        "table": lambda: report_text(report, folder, output is None and stdout_is_terminal()),
        "json": lambda: to_json(report),
        "markdown": lambda: render(report),
    }
    deliver(texts[output_format](), output)
    if audit.fault is not None:
        if verbose:
            complain("".join(traceback.format_exception(audit.fault)).rstrip())
        complain(f"error: {report.error}")
    return report.exit_code
