"""`vaeaudit mig`: whether each known factor of the data is held by one unit of the code alone."""

from typing import Annotated

import typer

from vaeaudit.cli import options
from vaeaudit.cli.checking import Delivery, carry_out
from vaeaudit.cli.common import SHARED_KEYS, settings_of

_KEYS = SHARED_KEYS | {"out": "run.out", "items": "mig.items"}


def command(
    context: typer.Context,
    model: options.Model = None,
    items: Annotated[
        int | None,
        typer.Option(metavar="N", help="Items, drawn at random. [default: all of them]", envvar="VAEAUDIT_ITEMS"),
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
    config: options.Config = None,
    isolated: options.Isolated = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Measure the mutual information gap of the factors that the data name, by both estimators."""
    resolved = settings_of(context, _KEYS, config, isolated, option)
    return carry_out(["mig"], resolved, resume, Delivery(output_format, output, quiet, verbose))
