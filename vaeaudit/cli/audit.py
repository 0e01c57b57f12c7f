"""`vaeaudit audit`: every check that the configuration enables, then its policy: one verdict."""

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from vaeaudit.cli import options
from vaeaudit.cli.checking import Delivery, show
from vaeaudit.cli.common import AUDIT_KEYS, Reporter, settings_again, settings_of

if TYPE_CHECKING:
    from vaeaudit.audit.run import Audit

_KEYS = AUDIT_KEYS


def command(
    context: typer.Context,
    model: options.Model = None,
    check: options.Check = None,
    baseline: options.Baseline = None,
    again: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="REPORT",
            help="Do the audit of this report again, with its settings, and say whether the figures agree.",
        ),
    ] = None,
    adapter: options.Adapter = None,
    option: options.AdapterOption = None,
    data: options.Data = None,
    data_range: options.Range = None,
    resize: options.Resize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    seed: options.Seed = None,
    batch_size: options.BatchSize = None,
    limit: options.Limit = None,
    sample: options.Sample = None,
    out: options.Out = None,
    resume: options.Resume = False,
    output_format: options.Format = "table",
    output: options.Output = None,
    exit_zero: options.ExitZero = False,
    config: options.Config = None,
    isolated: options.Isolated = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Carry out every check that the configuration enables, hold the figures against its thresholds, give a verdict."""
    earlier = None
    if again is None:
        resolved = settings_of(context, _KEYS, config, isolated, option)
    else:
        resolved, earlier = settings_again(context, _KEYS, option, again)

    def work(reporter: Reporter) -> "Audit":
        from vaeaudit.audit.release import release_audit

        def ready() -> None:
            reporter.keep()

        today = datetime.now(UTC).date()
        return release_audit(resolved, sys.argv, today, resume, reporter.go_on, ready, again, earlier)

    delivery = Delivery(output_format, output, quiet, verbose, exit_zero)
    return show("opening the model and the data", work, resolved, delivery)
