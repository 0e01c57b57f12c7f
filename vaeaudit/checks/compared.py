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
        return cls(picture, low, width, scales, left_out)

    def gap(self, x: Tensor, made: Tensor) -> Tensor:
        """made - x in units of the range where it is known, (b, values)."""
        gap = made - x
        return (gap if self.low is None or bool((self.width == 1).all()) else gap / self.width).flatten(1)

    def figures(self, x: Tensor, made: Tensor) -> dict[str, Tensor]:
        """All figures of each item by name, (b,)."""
        gap = (made - x).flatten(1)
        size = gap.abs()
        found = {
            "mse": gap.square().mean(1),
            "mean_error": size.mean(1),
            "largest_error": size.amax(1),
            "brightness": gap.mean(1),
        }
        return found | self.in_range(self.gap(x, made)) | self.likeness(x, made)

    def in_range(self, gap: Tensor) -> dict[str, Tensor]:
        """The figures of a :meth:`gap` that need the range: psnr and share_off."""
        if self.low is None:
            return {}
        off = (gap.abs() > (1 + _ROUNDING) / STEPS).to(gap).mean(1)
        return {"psnr": -10 * gap.square().mean(1).double().log10(), "share_off": off}

    def likeness(self, x: Tensor, made: Tensor) -> dict[str, Tensor]:
        """ssim and ms_ssim of pictures that are large enough."""
        if self.scales is None:
            return {}
        found = ms_ssim(self._unit(x), self._unit(made), UNIT)
        return {"ssim": found.ssim, "ms_ssim": found.value}

    def _unit(self, x: Tensor) -> Tensor:
        assert self.picture is not None
        assert self.low is not None
        plain = bool((self.low == 0).all() and (self.width == 1).all())
        return pictures_of(x if plain else (x - self.low) / self.width, self.picture)

    def bias(self, x: Tensor, made: Tensor) -> Tensor:
        """Mean of made - x by channel, signed, (b, channels), float64 on the CPU; none of what are no pictures."""
        if self.picture is None:
            return torch.zeros(len(x), 0, dtype=torch.float64)
        return pictures_of(made - x, self.picture).flatten(2).mean(2).double().cpu()


def pictures_of(x: Tensor, picture: tuple[int, ...]) -> Tensor:
    """Items whose numbers are those of an image of this shape, row-major, as (b, channels, height, width)."""
    images = x.reshape(len(x), *picture)
    if len(picture) == 2:
        return images[:, None]
    return images if picture[0] in (1, 3) else images.movedim(-1, 1)
