"""`vaeaudit margin`: how far an input may move before its reconstruction leaves radius r."""

from typing import Annotated

import typer

from vaeaudit.cli import options
from vaeaudit.cli.checking import Delivery, carry_out
from vaeaudit.cli.common import SHARED_KEYS, settings_of
from vaeaudit.errors import ConfigError, clipped

_KEYS = SHARED_KEYS | {
    "out": "run.out",
    "r": "margin.r",
    "items": "margin.items",
    "m": "margin.m",
    "sigma": "margin.sigma",
    "level": "margin.level",
    "family_wise": "margin.family_wise",
    "draws": "margin.draws",
    "box": "margin.boxed",
    "part": "margin.parts",
}


def command(
    context: typer.Context,
    model: options.Model = None,
    r: Annotated[
        list[str] | None,
        typer.Option(
            metavar="R|auto",
            help="Radius in output units that the reconstruction must stay within; repeatable. [default: auto, twice "
            "the median of the least that could hold]",
        ),
    ] = None,
    items: Annotated[
        int | None,
        typer.Option(metavar="N", help="Items, drawn at random. [default: 20]", envvar="VAEAUDIT_ITEMS"),
    ] = None,
    m: Annotated[
        float | None,
        typer.Option(
            metavar="P", help="More than this probability must stay within r. [default: 0.5]", envvar="VAEAUDIT_M"
        ),
    ] = None,
    sigma: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Whether the posterior's noise is frozen at the input or follows it in full. [default: frozen]",
            envvar="VAEAUDIT_SIGMA",
        ),
    ] = None,
    level: Annotated[
        float | None,
        typer.Option(metavar="P", help="Confidence of each bound. [default: 0.95]", envvar="VAEAUDIT_LEVEL"),
    ] = None,
    family_wise: Annotated[
        bool | None,
        typer.Option(
            "--family-wise", help="That confidence for all bounds of all items and radii together.", show_default=False
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(metavar="N", help="Draws of the posterior an item. [default: 1000]", envvar="VAEAUDIT_DRAWS"),
    ] = None,
    box: Annotated[
        bool | None,
        typer.Option(
            "--box/--no-box",
            help="Whether the empirical margin stays within the data's range. [default: box]",
            show_default=False,
        ),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Bound to compute, certified or empirical; repeatable. [default: both]"),
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
    """Bound how far each item may move and stay within r: certified from below, attacked from above."""
    if r:
        context.params["r"] = [_radius(text) for text in r]
    resolved = settings_of(context, _KEYS, config, isolated, option)
    return carry_out(["margin"], resolved, resume, Delivery(output_format, output, quiet, verbose))


def _radius(text: str) -> float | str:
    """A number, or "auto"."""
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--r takes a radius in output units, or auto, but '{clipped(text)}' came") from None
