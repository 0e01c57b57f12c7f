"""Two batches of items held against each other: errors, and as pictures where they are some, PSNR and SSIM."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeaudit.checks.likeness import UNIT, ms_ssim
from vaeaudit.data.items import picture_of
from vaeaudit.errors import UnsupportedError
from vaeaudit.model.box import bounds
from vaeaudit.model.ranges import Range, bounded, span_text

STEPS = 255  # of 8-bit images: the range divided by it is what a value may be off
_ROUNDING = 1e-4  # share of a step by which rounding may exceed it
IN_RANGE = ("psnr", "ssim", "ms_ssim", "share_off")  # which need a range
OF_PICTURES = (*IN_RANGE, "brightness", "bias")  # which make no sense of other items


@dataclass(frozen=True, eq=False)
class Compared:
    """What of two batches of items is compared: as pictures where they are some, in units of their range if known."""

    picture: tuple[int, ...] | None
    low: Tensor | None
    width: Tensor
    unit: bool  # whether the width is 1, or not known
    zero: bool  # whether the range begins at 0
    scales: int | None
    left_out: Mapping[str, str]

    @classmethod
    def of(cls, shape: tuple[int, ...], picture: tuple[int, ...] | None, box: Range | None, like: Tensor) -> "Compared":
        """For items of ``shape``, such as ``like``, in the range ``box``."""
        picture = picture or picture_of(shape)
        left_out: dict[str, str] = {}
        if picture is None:
            sizes = "x".join(map(str, shape))
            why = f"items of {sizes} are no images of one or three channels, of which alone it tells something"
            left_out |= dict.fromkeys(OF_PICTURES, why)
        elif box is None or not bounded(box):
            known = "no range of the model is known" if box is None else f"the range {span_text(box)} has an open end"
            why = f"it is in units of the range, but {known}; give --range LO HI"
            left_out |= dict.fromkeys(IN_RANGE, why)
        low, width, scales = None, like.new_ones(()), None
        if not left_out and box is not None:
            low, high = bounds(box, shape, like)
            width = high - low
            pictures = pictures_of((like - low) / width, picture or shape)
            try:
                scales = ms_ssim(pictures, pictures, UNIT).scales
            except UnsupportedError as error:
                left_out |= dict.fromkeys(("ssim", "ms_ssim"), str(error))
        zero = low is not None and not bool(low.any())
        return cls(picture, low, width, bool((width == 1).all()), zero, scales, left_out)

    def scaled(self, gap: Tensor) -> Tensor:
        """Differences of items, (b, *shape), in units of the range where it is known, (b, values)."""
        return (gap if self.unit else gap / self.width).flatten(1)

    def figures(self, x: Tensor, made: Tensor) -> dict[str, Tensor]:
        """All figures of each item by name, (b,)."""
        gap = made - x
        flat = gap.flatten(1)
        size = flat.abs()
        found = {
            "mse": flat.square().mean(1),
            "mean_error": size.mean(1),
            "largest_error": size.amax(1),
            "brightness": flat.mean(1),
        }
        if self.unit:
            found |= self.in_range(size, found["mse"])
        else:
            size = self.scaled(gap).abs()
            found |= self.in_range(size, size.square().mean(1))
        return found | self.likeness(x, made)

    def in_range(self, size: Tensor, mean_square: Tensor) -> dict[str, Tensor]:
        """psnr and share_off, which need the range, of sizes of :meth:`scaled` differences and their mean square."""
        if self.low is None:
            return {}
        off = (size > (1 + _ROUNDING) / STEPS).to(size).mean(1)
        return {"psnr": -10 * mean_square.double().log10(), "share_off": off}

    def likeness(self, x: Tensor, made: Tensor) -> dict[str, Tensor]:
        """ssim and ms_ssim of pictures that are large enough."""
        if self.scales is None:
            return {}
        found = ms_ssim(self.pictured(x), self.pictured(made), UNIT)
        return {"ssim": found.ssim, "ms_ssim": found.value}

    def pictured(self, x: Tensor) -> Tensor:
        """Items as images (b, channels, height, width), whose range becomes [0, 1]; they must be some, of a range."""
        assert self.picture is not None
        assert self.low is not None
        return pictures_of(x if self.unit and self.zero else (x - self.low) / self.width, self.picture)

    def bias(self, gap: Tensor) -> Tensor:
        """Mean of differences by channel, signed, (b, channels), float64 on the CPU; none of what are no pictures."""
        if self.picture is None:
            return torch.zeros(len(gap), 0, dtype=torch.float64)
        return pictures_of(gap, self.picture).flatten(2).mean(2).double().cpu()


def pictures_of(x: Tensor, picture: tuple[int, ...]) -> Tensor:
    """Items whose numbers are those of an image of this shape, row-major, as (b, channels, height, width)."""
    images = x.reshape(len(x), *picture)
    if len(picture) == 2:
        return images[:, None]
    return images if picture[0] in (1, 3) else images.movedim(-1, 1)
