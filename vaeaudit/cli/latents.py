"""`vaeaudit latents`: what the latent code holds, unit by unit."""

from typing import Annotated

import typer

from vaeaudit.cli.checking import carry_out
from vaeaudit.cli.command import Asked, Key, takes
from vaeaudit.cli.options import CHECK


@takes(*CHECK)
def command(
    asked: Asked,
    items: Annotated[
        int | None,
        Key("latents.items"),
        typer.Option(metavar="N", help="Items, drawn at random. [default: all of them]"),
    ] = None,
    draws: Annotated[
        int | None,
        Key("latents.draws"),
        typer.Option(
            metavar="N",
            help="Draws of z an item, for the ELBO; 0 leaves it out. [default: 1]",
        ),
    ] = None,
    estimator: Annotated[
        str | None,
        Key("latents.estimator"),
        typer.Option(
            metavar="NAME",
            help="Of q(z): exact, the mixture over all items, or stratified, over minibatches. [default: exact]",
        ),
    ] = None,
    traverse: Annotated[
        int | None,
        Key("latents.traverse"),
        typer.Option(
            metavar="N",
            help="Units, those of largest KL, to traverse in a figure, up to 20. [default: 8]",
        ),
    ] = None,
) -> int:
    """Measure what each unit of the latent code holds.

    ELBO, KL of each unit, active units, and how the units depend on each other.
    """
    return carry_out(["latents"], asked)
