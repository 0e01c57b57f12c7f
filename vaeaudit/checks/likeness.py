"""How alike two images look: the multi-scale structural similarity that untargeted attacks report (Kuzina et al.)."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from vaeaudit.errors import ConfigError, DataError, UnsupportedError
from vaeaudit.model.box import bounds
from vaeaudit.model.ranges import Range, span_text

_WINDOW, _STDDEV = 11, 1.5  # of the Gaussian window, in pixels of each scale
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # from the finest scale to the coarsest


@dataclass(frozen=True, eq=False)
class Likeness:
    """MS-SSIM of each pair of images, (b,), 1 for equal ones, and the number of ``scales`` that it rests on.

    Figures of different scales are different figures: never compare them.
    """

    value: Tensor
    scales: int

    @property
    def estimator(self) -> str:
        """Its name, with the scales."""
        return f"MS-SSIM, {self.scales} of {len(_WEIGHTS)} scales"


def ms_ssim(a: Tensor, b: Tensor, data_range: Range) -> Likeness:
    """Multi-scale structural similarity (Wang, Simoncelli & Bovik 2003) of images (b, channels, height, width).

    Its five scales need 161 pixels a side; of smaller images those are used that a window of 11 pixels fits into (of
    28 x 28 and 32 x 32: two), with their weights scaled to the sum of all five. The window stays inside the image, and
    colour images are averaged over channels within each scale. A scale of negative similarity counts as 0, since its
    power would be complex. The constants are those for values from 0 on, so images are moved from their range, of each
    channel where it has its own, to [0, 1]: the same images in [-1, 1] and in [0, 1] give the same.

    Raises:
        DataError: shapes that differ or are not of images, no floating-point type, or a range without a finite width.
        UnsupportedError: images of fewer than 11 pixels a side.
        ConfigError: torchmetrics is not installed.
    """
    if a.shape != b.shape or a.ndim != 4 or a.dtype != b.dtype or not a.is_floating_point():
        raise DataError(
            "MS-SSIM compares two batches of images (batch, channels, height, width) of one floating-point type, "
            f"but {tuple(a.shape)} of {a.dtype} and {tuple(b.shape)} of {b.dtype} came"
        )
    low, high = bounds(data_range, tuple(a.shape[1:]), a)
    if not bool((low < high).all() and (high - low).isfinite().all()):
        raise DataError(
            f"MS-SSIM needs a range of the images with finite ends lo < hi, but {span_text(data_range)} came; "
            "compare their distances"
        )
    sides = [min(a.shape[2:])]
    while len(sides) < len(_WEIGHTS) and (half := -(-sides[-1] // 2)) >= _WINDOW:
        sides.append(half)
    if sides[0] < _WINDOW:
        raise UnsupportedError(
            f"MS-SSIM needs images of at least {_WINDOW} pixels a side, but these are "
            f"{a.shape[2]} x {a.shape[3]}; compare their distances"
        )
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ConfigError(
            "MS-SSIM is computed by torchmetrics, which is not installed; install it with: "
            "pip install 'vaeaudit[images]'"
        ) from error
    ssim = partial(
        structural_similarity_index_measure,
        data_range=1.0,
        sigma=_STDDEV,
        kernel_size=_WINDOW,
        reduction="none",
    )
    weights = _WEIGHTS[: len(sides)]
    *finer, coarsest = (weight * sum(_WEIGHTS) / sum(weights) for weight in weights)
    a, b = (a - low) / (high - low), (b - low) / (high - low)
    value = torch.ones(len(a), dtype=a.dtype, device=a.device)
    for weight in finer:
        # torchmetrics pads the images and leaves the border out of the contrast term...
        _, contrast = ssim(a, b, return_contrast_sensitivity=True)
        value = value * contrast.clamp(min=0) ** weight
        # An odd side's last row or column is averaged with itself, as in the authors' program.
        a, b = (functional.avg_pool2d(image, 2, ceil_mode=True) for image in (a, b))
    # ...but not out of the mean similarity, so it is left out here.
    _, similarity = ssim(a, b, return_full_image=True)
    border = _WINDOW // 2
    inside = similarity[..., border:-border, border:-border].flatten(1).mean(1)
    return Likeness(value * inside.clamp(min=0) ** coarsest, len(sides))
