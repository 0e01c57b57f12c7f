"""`vaeaudit equivalence`: whether another form of a model gives the same."""

from typing import Annotated

from vaeaudit.cli.checking import carry_out
from vaeaudit.cli.command import Asked, Setting, takes
from vaeaudit.cli.options import CHECK, ExitZero, table_of


@takes(*CHECK, ExitZero)
def command(
    asked: Asked,
    variant: Annotated[
        list[str] | None,
        Setting(
            "equivalence.variants",
            "KEY=VALUE",
            "Another form of the model: dtype=bfloat16, autocast=bfloat16, compile=true, channels-last=true, "
            "tiling=true, slicing=true, or some of them joined by +; repeatable.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        Setting("equivalence.against", "OTHER", "Checkpoint that should give the same, as one that was converted."),
    ] = None,
    against_adapter: Annotated[
        str | None, Setting("equivalence.adapter", "NAME", "How to open it. [default: as the model]")
    ] = None,
    against_option: Annotated[
        list[str] | None,
        Setting("equivalence.options", "NAME=VALUE", "Option of its adapter; repeatable.", read=table_of),
    ] = None,
    against_dtype: Annotated[
        str | None, Setting("equivalence.dtype", "NAME", "Its precision. [default: the model's]")
    ] = None,
    tolerance: Annotated[
        float | None,
        Setting(
            "equivalence.tolerance",
            "SHARE",
            "Largest difference of a value of the worst item that still counts as the same, as a share of the range. "
            "[default: 0.00392157, that is 1/255]",
        ),
    ] = None,
    items: Annotated[
        int | None, Setting("equivalence.items", "N", "Most items, drawn at random. [default: 500]")
    ] = None,
    draws: Annotated[
        int | None, Setting("equivalence.draws", "N", "Draws of z an item, beside its mean. [default: 2]")
    ] = None,
    shown: Annotated[int | None, Setting("equivalence.shown", "N", "Worst items that are drawn. [default: 4]")] = None,
) -> int:
    """Tell whether another form of the model gives the same.

    Encoders, decoders and both together on the same items, latents and noise; passed where no item differs visibly.
    """
    return carry_out(["equivalence"], asked)
