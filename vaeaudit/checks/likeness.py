"""How alike two images look: structural similarity (Wang et al. 2004) and its multi-scale form (Wang et al. 2003)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vaeaudit.errors import DataError, UnsupportedError
from vaeaudit.model.box import bounds
from vaeaudit.model.ranges import Range, bounded, span_text

UNIT = (0.0, 1.0)
WINDOW = 11  # pixels a side of the Gaussian window, of each scale
_STDDEV = 1.5
_LUMINANCE, _CONTRAST = 0.01**2, 0.03**2  # constants of the two factors, for values from 0 to 1
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # from the finest scale to the coarsest


@dataclass(frozen=True, eq=False)
class Likeness:
    """MS-SSIM of each pair of images, (b,), 1 for equal ones, and the number of ``scales`` that it rests on.

    Figures of different scales are different figures: never compare them. ``ssim`` (b,) is that of the images' own
    scale, from -1 to 1.
    """

    value: Tensor
    scales: int
    ssim: Tensor

    @property
    def estimator(self) -> str:
        """Its name, with the scales."""
        return f"MS-SSIM, {self.scales} of {len(_WEIGHTS)} scales"


@torch.no_grad()
def ms_ssim(a: Tensor, b: Tensor, data_range: Range) -> Likeness:
    """Structural similarity of images (b, channels, height, width), of one and of several scales.

    Five scales need 161 pixels a side; of smaller images those are used that a window of 11 pixels fits into (of
    28 x 28 and 32 x 32: two), with their weights scaled to the sum of all five. The window stays inside the image, as
    in scikit-image with ``gaussian_weights=True, use_sample_covariance=False``, and colour images are averaged over
    channels within each scale. A scale of negative similarity counts as 0 in MS-SSIM, since its power would be
    complex. The constants are those for values from 0 on, so images are moved from their range, of each channel where
    it has its own, to [0, 1]: the same images in [-1, 1] and in [0, 1] give the same.

    Raises:
        DataError: shapes that differ or are not of images, no floating-point type, or a range without a finite width.
        UnsupportedError: images of fewer than 11 pixels a side.
    """
    if a.shape != b.shape or a.ndim != 4 or a.dtype != b.dtype or not a.is_floating_point():
        raise DataError(
            "MS-SSIM compares two batches of images (batch, channels, height, width) of one floating-point type, "
            f"but {tuple(a.shape)} of {a.dtype} and {tuple(b.shape)} of {b.dtype} came"
        )
    if not bounded(data_range):
        raise DataError(
            f"MS-SSIM needs a range of the images with finite ends lo < hi, but {span_text(data_range)} came; "
            "compare their distances"
        )
    low, high = bounds(data_range, tuple(a.shape[1:]), a)
    sides = [min(a.shape[2:])]
    while len(sides) < len(_WEIGHTS) and (half := -(-sides[-1] // 2)) >= WINDOW:
        sides.append(half)
    if sides[0] < WINDOW:
        raise UnsupportedError(
            f"SSIM needs images of at least {WINDOW} pixels a side, the window's size, but these are "
            f"{a.shape[2]} x {a.shape[3]}; compare their distances"
        )
    weights = _WEIGHTS[: len(sides)]
    *finer, coarsest = (weight * sum(_WEIGHTS) / sum(weights) for weight in weights)
    if data_range != UNIT:
        a, b = (a - low) / (high - low), (b - low) / (high - low)
    gap = a - b
    ssim, contrast = first = _similarity(a, gap)
    value = torch.ones_like(ssim)
    for weight in finer:
        value = value * contrast.clamp(min=0) ** weight
        # An odd side's last row or column is averaged with itself, as in the authors' program.
        a, gap = (functional.avg_pool2d(image, 2, ceil_mode=True) for image in (a, gap))
        ssim, contrast = _similarity(a, gap)
    return Likeness(value * ssim.clamp(min=0) ** coarsest, len(sides), first[0])


def _similarity(a: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM of a and a - gap, and its factor of contrast and structure: means over channels and positions, (b,) each.

    Both factors are written as 1 less what the difference takes from them: 1 to the bit for equal images, and of images
    nearly equal the deviation keeps its digits.
    """
    middle = a.mean((-2, -1), keepdim=True)
    a = a - middle  # so that variances, differences of squares, keep their digits
    b = a - gap
    mean, shift, squares, gaps = _windowed(torch.stack([a, gap, (a * a).addcmul_(b, b), gap * gap]))
    of_b = mean - shift
    # In place from here on: what a pass over memory costs is most of what there is to compute.
    squares.addcmul_(mean, mean, value=-1).addcmul_(of_b, of_b, value=-1)  # both variances
    mean, of_b = mean.add_(middle), of_b.add_(middle)
    means = mean.mul_(mean).addcmul_(of_b, of_b)
    shift = shift.mul_(shift)
    contrast = gaps.sub_(shift).div_(squares.add_(_CONTRAST)).neg_().add_(1)
    luminance = shift.div_(means.add_(_LUMINANCE)).neg_().add_(1)
    return luminance.mul_(contrast).flatten(1).mean(1), contrast.flatten(1).mean(1)


def _windowed(images: Tensor) -> Tensor:
    """Means under the window at all its places within each image, (..., h, w) -> (..., h - 10, w - 10).

    The window is a product of two bells, and each is applied as a banded matrix: on images of up to some hundred pixels
    a side this is several times as fast as a convolution.
    """
    rows, columns = (_bells(side, images) for side in images.shape[-2:])
    return rows @ (images @ columns.T)


def _bells(side: int, like: Tensor) -> Tensor:
    """The bell at each of its places along a side, (side - 10, side)."""
    offset = torch.arange(side) - torch.arange(side - WINDOW + 1)[:, None]
    inside = (offset >= 0) & (offset < WINDOW)
    bell = torch.where(inside, torch.exp(-0.5 * ((offset.double() - WINDOW // 2) / _STDDEV).square()), 0)
    return (bell / bell.sum(1, keepdim=True)).to(like)
