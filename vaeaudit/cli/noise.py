"""`vaeaudit noise`: how the likelihood of clean inputs falls when the encoder sees them under noise."""

from typing import Annotated

import typer

from vaeaudit.cli import options
from vaeaudit.cli.checking import Delivery, carry_out
from vaeaudit.cli.common import SHARED_KEYS, settings_of

_KEYS = SHARED_KEYS | {
    "out": "run.out",
    "sigma": "noise.sigmas",
    "items": "noise.items",
    "draws": "noise.draws",
    "clip": "noise.clip",
}


def command(
    context: typer.Context,
    model: options.Model = None,
    sigma: Annotated[
        list[float] | None,
        typer.Option(
            metavar="S",
            help="Standard deviation of the noise, on the scale of the model's inputs; repeatable. "
            "[default: 0.1, 0.25, 0.5 and 1]",
        ),
    ] = None,
    items: Annotated[
        int | None,
        typer.Option(metavar="N", help="Most items, drawn at random. [default: 1000]", envvar="VAEAUDIT_ITEMS"),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(metavar="N", help="Draws of noise and latents an item. [default: 10]", envvar="VAEAUDIT_DRAWS"),
    ] = None,
    clip: Annotated[
        bool | None,
        typer.Option(
            "--clip/--no-clip",
            help="Whether noisy inputs are clipped to the data's range. [default: no-clip]",
            show_default=False,
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
    """Measure how log p(x|z) of clean inputs falls where the encoder sees them under Gaussian noise."""
    resolved = settings_of(context, _KEYS, config, isolated, option)
    return carry_out(["noise"], resolved, resume, Delivery(output_format, output, quiet, verbose))
