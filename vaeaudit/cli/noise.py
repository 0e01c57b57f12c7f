"""`vaeaudit noise`: how the likelihood of clean inputs falls when the encoder sees them under noise."""

from typing import Annotated

from vaeaudit.cli.checking import carry_out
from vaeaudit.cli.command import Asked, Setting, takes
from vaeaudit.cli.options import CHECK


@takes(*CHECK)
def command(
    asked: Asked,
    sigma: Annotated[
        list[float] | None,
        Setting(
            "noise.sigmas",
            "S",
            "Standard deviation of the noise, on the scale of the model's inputs; repeatable. [default: 0.1, "
            "0.25, 0.5 and 1]",
        ),
    ] = None,
    items: Annotated[int | None, Setting("noise.items", "N", "Most items, drawn at random. [default: 1000]")] = None,
    draws: Annotated[
        int | None, Setting("noise.draws", "N", "Draws of noise and latents an item. [default: 10]")
    ] = None,
    clip: Annotated[
        bool | None,
        Setting(
            "noise.clip",
            None,
            "Whether noisy inputs are clipped to the data's range. [default: no-clip]",
            "--clip/--no-clip",
        ),
    ] = None,
) -> int:
    """Measure how noise on the inputs lowers the likelihood.

    The likelihood is log p(x|z) of clean inputs x, where the encoder sees them under Gaussian noise.
    """
    return carry_out(["noise"], asked)
