"""`vaeaudit latents`: what the latent code holds, unit by unit."""

from typing import Annotated

import typer

from vaeaudit.cli import options
from vaeaudit.cli.checking import Delivery, carry_out
from vaeaudit.cli.common import SHARED_KEYS, settings_of

_KEYS = SHARED_KEYS | {
    "out": "run.out",
    "items": "latents.items",
    "draws": "latents.draws",
    "estimator": "latents.estimator",
    "traverse": "latents.traverse",
}


def command(
    context: typer.Context,
    model: options.Model = None,
    items: Annotated[
        int | None,
        typer.Option(metavar="N", help="Items, drawn at random. [default: all of them]", envvar="VAEAUDIT_ITEMS"),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Draws of z an item, for the ELBO; 0 leaves it out. [default: 1]",
            envvar="VAEAUDIT_DRAWS",
        ),
    ] = None,
    estimator: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of q(z): exact, the mixture over all items, or stratified, over minibatches. [default: exact]",
            envvar="VAEAUDIT_ESTIMATOR",
        ),
    ] = None,
    traverse: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Units, those of largest KL, to traverse in a figure, up to 20. [default: 8]",
            envvar="VAEAUDIT_TRAVERSE",
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
    config: options.Config = None,
    isolated: options.Isolated = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Measure ELBO, KL of each unit, active units and how the units depend on each other."""
    resolved = settings_of(context, _KEYS, config, isolated, option)
    return carry_out(["latents"], resolved, resume, Delivery(output_format, output, quiet, verbose))
