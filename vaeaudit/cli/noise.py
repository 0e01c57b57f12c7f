"""`vaeaudit noise`: how the likelihood of clean inputs falls when the encoder sees them under noise."""

from typing import Annotated

import typer

from vaeaudit.cli.checking import carry_out
from vaeaudit.cli.command import Asked, Key, takes
from vaeaudit.cli.options import CHECK


@takes(*CHECK)
def command(
    asked: Asked,
    sigma: Annotated[
        list[float] | None,
        Key("noise.sigmas"),
        typer.Option(
            metavar="S",
            help="Standard deviation of the noise, on the scale of the model's inputs; repeatable. "
            "[default: 0.1, 0.25, 0.5 and 1]",
        ),
    ] = None,
    items: Annotated[
        int | None,
        Key("noise.items"),
        typer.Option(metavar="N", help="Most items, drawn at random. [default: 1000]"),
    ] = None,
    draws: Annotated[
        int | None,
        Key("noise.draws"),
        typer.Option(metavar="N", help="Draws of noise and latents an item. [default: 10]"),
    ] = None,
    clip: Annotated[
        bool | None,
        Key("noise.clip"),
        typer.Option(
            "--clip/--no-clip",
            help="Whether noisy inputs are clipped to the data's range. [default: no-clip]",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Measure how noise on the inputs lowers the likelihood.

    The likelihood is log p(x|z) of clean inputs x, where the encoder sees them under Gaussian noise.
    """
    return carry_out(["noise"], asked)
