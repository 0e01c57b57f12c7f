"""How items of a stored shape become the inputs of a model."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vaeaudit.errors import DataError

RESIZE = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


@dataclass(frozen=True)
class Layout:
    """How a stored row becomes an input: axes moved, reshaped (row-major), resized with a filter."""

    shape: tuple[int, ...]
    channels_last: bool = False
    frames_first: bool = False
    filter: str | None = None
    told: tuple[str, ...] = ()

    def arrange(self, rows: NDArray[np.generic]) -> NDArray[np.generic]:
        """(b, *stored) -> (b, *shape)."""
        moved = np.moveaxis(rows, -1, 1) if self.channels_last else rows  # (b, ..., H, W, C) -> (b, C, ..., H, W)
        moved = np.swapaxes(moved, 1, 2) if self.frames_first else moved  # (b, T, C, H, W) -> (b, C, T, H, W)
        return moved.reshape(len(rows), *self.shape)


def layout_of(source: str, item: tuple[int, ...], want: tuple[int, ...], resize: str | None) -> Layout:
    """Decide how items of a source become ``want``; the first rule that fits holds.

    Raises :class:`DataError` where none does.
    """
    as_asked = () if resize is None else (f"not resized since the size agrees ({resize} was asked for)",)
    last_first = (item[-1], *item[:-1])
    if item == want:
        return Layout(want, told=as_asked)
    if (1, *item) == want:
        return Layout(want, told=(f"read as {shape_text(want)}", *as_asked))
    if len(item) in (3, 4) and last_first == want:
        return Layout(want, channels_last=True, told=("channels moved first", *as_asked))
    if len(item) == 4 and (item[1], item[0], *item[2:]) == want:
        return Layout(want, frames_first=True, told=("channels moved before frames", *as_asked))
    if math.prod(item) == math.prod(want) and 1 in (len(item), len(want)):
        verb = "read" if len(item) == 1 else "flattened"
        return Layout(want, told=(f"{verb} as {shape_text(want)} (row-major)", *as_asked))
    # Images of another size: (h, w) for (1, H, W) or (H, W); (C, h, w) or (h, w, C) for (C, H, W).
    channels, size = want[:-2], want[-2:]
    is_image = len(want) in (2, 3) and len(item) in (2, 3)
    plain = is_image and (item[:-2] == channels or (len(item) == 2 and channels == (1,)))
    moved = is_image and not plain and len(item) == 3 and last_first[:1] == channels
    came = last_first[1:] if moved else item[-2:]
    if resize is not None and (plain or moved):
        told = ("channels moved first",) * moved + (f"resized to {shape_text(size)} with {resize}",)
        return Layout((*channels, *came), channels_last=moved, filter=resize, told=told)
    hint = "; --resize bilinear resizes them" if plain or moved else "; give data of that shape"
    raise DataError(f"{source}: items are {shape_text(item)} but the model takes {shape_text(want)}{hint}")


def resized(
    rows: NDArray[np.generic], shape: tuple[int, ...], name: str, *, as_bytes: bool
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """(b, *channels, h, w) -> (b, *shape), each plane by Pillow: 8-bit mode L, or 32-bit float mode F."""
    planes = rows.reshape(-1, *rows.shape[-2:]).astype(np.uint8 if as_bytes else np.float32)
    out = np.empty((len(planes), *shape[-2:]), planes.dtype)
    height, width = shape[-2:]
    for plane, image in zip(out, planes, strict=True):
        plane[:] = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling[name.upper()]))
    return out.reshape(len(rows), *shape)


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as people write it: 3x32x32, or "scalar"."""
    return "x".join(map(str, shape)) or "scalar"
