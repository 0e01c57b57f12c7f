"""What figures of several checks are made of, and how they become PNG bytes."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from vaeaudit.errors import clipped
from vaeaudit.layout.inert import visible
from vaeaudit.model.ranges import Range, intervals

Array = NDArray[np.float64]

_STEP = 1.08  # from the left edge of one image of a row to that of the next, in widths of an image
PANEL_ROWS = 20  # most pairs that a panel shows; a figure of hundreds can neither be drawn nor read


def as_images(values: Array, shape: tuple[int, ...], lead: int = 1) -> Array:
    """Items whose numbers are those of an image of this ``shape``, row-major, as (..., channels, height, width).

    ``shape`` is (H, W), (C, H, W) or (H, W, C) with one or three channels; ``lead`` says how many axes of ``values``
    come before an item's own.
    """
    images = values.reshape(*values.shape[:lead], *shape)
    if len(shape) == 2:
        return np.expand_dims(images, lead)
    return images if shape[0] in (1, 3) else np.moveaxis(images, -1, lead)


def scale(images: Array, box: Range | None) -> tuple[Array, Array]:
    """What is drawn as 0, and how much above it as 1, (1 or channels, 1, 1): the box, and ``images`` where it is open.

    So images that were normalised by channel are drawn in the colours that they had before. Of a box that has one
    interval for each pixel of a flat input, the images share the hull.
    """
    low, high = np.array(intervals(box)).T.reshape(2, -1, 1, 1)
    if low.shape[0] not in (1, images.shape[-3]):
        low, high = low.min(0, keepdims=True), high.max(0, keepdims=True)
    low = np.where(np.isfinite(low), low, images.min())
    width = np.where(np.isfinite(high), high, images.max()) - low
    return low, np.where(width > 0, width, 1.0)


def draw_row(axis: Axes, images: Sequence[Array], label: str, below: Sequence[str], above: Sequence[str] = ()) -> None:
    """Images (channels, height, width) of values in [0, 1] side by side, what lies outside drawn as the nearest.

    All of a row share one pair of axes, since those cost far more to draw than an image does.
    """
    height = images[0].shape[1] / images[0].shape[2]
    lefts = [_STEP * place for place in range(len(images))]
    for left, image in zip(lefts, images, strict=True):
        pixels = image.clip(0, 1).transpose(1, 2, 0)
        where = (left, left + 1, 0, height)
        grey = pixels.shape[2] == 1
        axis.imshow(pixels, "gray" if grey else None, vmin=0, vmax=1, interpolation="nearest", extent=where)
        axis.add_patch(Rectangle((left, 0), 1, height, fill=False, edgecolor="0.4", linewidth=0.8))
    axis.set_xlim(-0.02, lefts[-1] + 1.02)
    axis.set_ylim(-0.02, height + 0.02)
    axis.set_frame_on(False)
    axis.set_yticks([])
    axis.text(-0.08, height / 2, label, fontsize=8, ha="right", va="center")
    axis.set_xticks([left + 0.5 for left in lefts], below, fontsize=7)
    axis.tick_params(length=0, pad=2)
    for left, name in zip(lefts, above, strict=False):
        axis.text(left + 0.5, height + 0.06, name, fontsize=10, ha="center", va="bottom")


def item_panel(
    columns: Mapping[str, Array], labels: Sequence[str], box: Range | None, signed: str = "distortion"
) -> bytes:
    """One row an item, each of ``columns`` (items, channels, height, width) under its name.

    Images share one scale, the box where there is one, each channel its own where that has one for each. The column
    named ``signed`` is drawn around zero, each image on its own scale, which is written below it: blue where it is
    below, red above.
    """
    rows = len(labels)
    images = np.concatenate([column for name, column in columns.items() if name != signed])
    low, width = scale(images, box)
    figure = Figure(figsize=(1.5 * len(columns) + 1.6, 1.62 * rows + 0.5), layout="compressed")
    for row, axis in enumerate(figure.subplots(rows, 1, squeeze=False)[:, 0]):
        drawn, below = [], []
        for name, column in columns.items():
            item = column[row]
            if name == signed:
                reach = float(np.abs(item).max())
                gaps = item.sum(0) if len(item) == 1 else np.take_along_axis(item, np.abs(item).argmax(0)[None], 0)[0]
                colours = colormaps["RdBu_r"]((gaps / (reach or 1) + 1) / 2)
                drawn.append(colours[:, :, :3].transpose(2, 0, 1))
                below.append(f"largest {reach:.2g}")
            else:
                drawn.append((item - low) / width)
                below.append("")
        draw_row(axis, drawn, labels[row], below, [] if row else [*columns])
    return to_png(figure)


def label(text: str) -> str:
    """A name from outside as a figure shows it: to the letter, of which none is mathematics or a colour, and cut."""
    return clipped(visible(text), 60).replace("$", r"\$")


def to_png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    # No date or version in the file: the same audit gives the same bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
