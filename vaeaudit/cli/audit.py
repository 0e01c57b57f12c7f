"""`vaeaudit audit`: every check that the configuration enables, then its policy: one verdict."""

import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from vaeaudit.cli.checking import show
from vaeaudit.cli.command import Asked, takes
from vaeaudit.cli.common import Reporter, complain
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
    Shared,
    Verbose,
)
from vaeaudit.cli.policy import Policy
from vaeaudit.errors import ConfigError

if TYPE_CHECKING:
    from vaeaudit.audit.run import Audit
    from vaeaudit.audit.shards import Shard


@takes(Model, OnData, Policy, Out, Resume, Shared, Formed, Output, ExitZero, Quiet, Verbose, Configured)
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
    from vaeaudit.checks.registry import checks
    from vaeaudit.gate.policy import enabled
    from vaeaudit.settings.config import model_and_data

    earlier = None
    if again is None:
        resolved = asked.settings()
    else:
        resolved, earlier = asked.settings_of(again)
    shard = shard_of(asked)
    if shard.of > 1 and again is not None:
        raise ConfigError("--from does the audit of a report again in one process; leave --shard out, or --from")
    names, _ = enabled(resolved.settings)
    if not all(checks()[name].of_file for name in names):
        model_and_data(resolved.settings)  # told at once, where opening them would load torch before

    def work(reporter: Reporter) -> "Audit":
        from vaeaudit.audit.release import release_audit

        def ready() -> None:
            reporter.keep()

        today = datetime.now(UTC).date()
        on, held = reporter.go_on, reporter.held
        return release_audit(resolved, sys.argv, today, asked.resume, on, ready, again, earlier, shard, held)

    return show("opening the model and the data", work, resolved, asked, shard)


def shard_of(asked: Asked) -> "Shard":
    """Which share of the audit this process does; told where a launcher says so."""
    from vaeaudit.audit.shards import launched, parse

    shard = launched(os.environ) if asked.shard is None else parse(asked.shard)
    if shard.of > 1 and not asked.quiet:
        complain(f"note: this is shard {shard}, as {shard.source} says")
    return shard
