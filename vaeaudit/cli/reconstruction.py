"""`vaeaudit reconstruction`: how like their inputs the reconstructions are."""

from typing import Annotated

from vaeaudit.cli.checking import carry_out
from vaeaudit.cli.command import Asked, Setting, takes
from vaeaudit.cli.options import CHECK


@takes(*CHECK)
def command(
    asked: Asked,
    items: Annotated[int | None, Setting("reconstruction.items", "N", "Items, drawn at random. [default: all]")] = None,
    draws: Annotated[
        int | None,
        Setting("reconstruction.draws", "N", "Draws of z an item, beside its mean; 0 for none. [default: 1]"),
    ] = None,
    by: Annotated[
        list[str] | None,
        Setting(
            "reconstruction.by",
            "NAME",
            "Groups of items: label, or a factor of the data; repeatable. [default: all of them]",
        ),
    ] = None,
    shown: Annotated[
        int | None, Setting("reconstruction.shown", "N", "Worst items that are drawn. [default: 8]")
    ] = None,
    perceptual: Annotated[
        str | None,
        Setting(
            "reconstruction.perceptual",
            "FILE",
            "Network of two images, written by torch.export.save: its distance is LPIPS.",
        ),
    ] = None,
    features: Annotated[
        str | None,
        Setting("reconstruction.features", "FILE", "Network of one image, likewise: FID and KID of its features."),
    ] = None,
    trust_networks: Annotated[
        bool | None,
        Setting(
            "reconstruction.trust_networks", None, "Read these files, which may run code from them.", "--trust-networks"
        ),
    ] = None,
) -> int:
    """Measure how like their inputs the reconstructions are.

    PSNR, SSIM, errors, colour bias and log-likelihood, at z = the mean and at draws of z; the worst items and groups.
    """
    return carry_out(["reconstruction"], asked)
