"""`vaeaudit audit`: every check that the configuration enables, then its policy: one verdict."""

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from vaeaudit.cli.checking import show
from vaeaudit.cli.command import Asked, takes
from vaeaudit.cli.common import Reporter
from vaeaudit.cli.options import (
    Configured,
    ExitZero,
    Formed,
    Model,
    OnData,
    Out,
    Output,
    Quiet,
    Resume,
    Verbose,
)
from vaeaudit.cli.policy import Policy

if TYPE_CHECKING:
    from vaeaudit.audit.run import Audit


@takes(Model, OnData, Policy, Out, Resume, Formed, Output, ExitZero, Quiet, Verbose, Configured)
def command(
    asked: Asked,
    again: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="REPORT",
            help="Do the audit of this report again, with its settings, and say whether the figures agree.",
        ),
    ] = None,
) -> int:
    """Carry out the checks and give one verdict.

    Which checks, and the thresholds that decide, stand in the configuration.
    """
    earlier = None
    if again is None:
        resolved = asked.settings()
    else:
        resolved, earlier = asked.settings_of(again)

    def work(reporter: Reporter) -> "Audit":
        from vaeaudit.audit.release import release_audit

        def ready() -> None:
            reporter.keep()

        today = datetime.now(UTC).date()
        return release_audit(resolved, sys.argv, today, asked.resume, reporter.go_on, ready, again, earlier)

    return show("opening the model and the data", work, resolved, asked)
