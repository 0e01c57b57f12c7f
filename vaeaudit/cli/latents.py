"""`vaeaudit latents`: what the latent code holds, unit by unit."""

from typing import Annotated

from vaeaudit.cli.checking import carry_out
from vaeaudit.cli.command import Asked, Setting, takes
from vaeaudit.cli.options import CHECK


@takes(*CHECK)
def command(
    asked: Asked,
    items: Annotated[
        int | None, Setting("latents.items", "N", "Items, drawn at random. [default: all of them]")
    ] = None,
    draws: Annotated[
        int | None, Setting("latents.draws", "N", "Draws of z an item, for the ELBO; 0 leaves it out. [default: 1]")
    ] = None,
    estimator: Annotated[
        str | None,
        Setting(
            "latents.estimator",
            "NAME",
            "Of q(z): exact, the mixture over all items, or stratified, over minibatches. [default: exact]",
        ),
    ] = None,
    traverse: Annotated[
        int | None,
        Setting("latents.traverse", "N", "Units, those of largest KL, to traverse in a figure, up to 20. [default: 8]"),
    ] = None,
) -> int:
    """Measure what each unit of the latent code holds.

    ELBO, KL of each unit, active units, and how the units depend on each other.
    """
    return carry_out(["latents"], asked)
