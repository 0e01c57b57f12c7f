"""The figures of an audit, as PNG bytes."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from vaeaudit.errors import clipped
from vaeaudit.inert import visible
from vaeaudit.ranges import Range, intervals

Array = NDArray[np.float64]

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


def attack_panel(columns: dict[str, Array], labels: list[str], box: Range | None) -> bytes:
    """One row a pair, each of ``columns`` (pairs, channels, height, width) under its name.

    Images share one scale, the box where there is one, each channel its own where that has one for each. A column
    "distortion" is drawn around zero, each on its own scale, which is written below it: blue lowers a pixel, red raises
    it.
    """
    rows = len(labels)
    images = np.concatenate([column for name, column in columns.items() if name != "distortion"])
    low, width = scale(images, box)
    figure = Figure(figsize=(1.5 * len(columns) + 1.6, 1.62 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for row in range(rows):
        for place, (name, column) in enumerate(columns.items()):
            axis = axes[row, place]
            axis.set_xticks([])
            axis.set_yticks([])
            item = column[row]
            if name == "distortion":
                reach = float(np.abs(item).max())
                signed = item.sum(0) if len(item) == 1 else np.take_along_axis(item, np.abs(item).argmax(0)[None], 0)[0]
                axis.imshow(signed, cmap="RdBu_r", vmin=-(reach or 1), vmax=reach or 1, interpolation="nearest")
                axis.set_xlabel(f"largest {reach:.2g}", fontsize=8)
            else:
                draw_image(axis, (item - low) / width)
            if row == 0:
                axis.set_title(name, fontsize=10)
        axes[row, 0].set_ylabel(labels[row], fontsize=8, rotation=0, ha="right", va="center")
    return to_png(figure)


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


def draw_image(axis: Axes, image: Array) -> None:
    """An image (channels, height, width) of values in [0, 1]; what lies outside is drawn as the nearest."""
    shown = image.clip(0, 1)
    if len(shown) == 1:
        axis.imshow(shown[0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axis.imshow(shown.transpose(1, 2, 0), interpolation="nearest")


def distortion_curves(
    norm: Array, error: Array, chosen: list[int], labels: list[str], start: Array, floor: Array, gap: Array
) -> bytes:
    """||x_t - rec(x*)|| over ||d||, both (pairs, lambdas), one line a pair from its two free ends.

    ``start`` and ``floor`` (pairs,) are the errors at d = 0 and at d = x_t - x, ``gap`` (pairs,) is
    ||x_t - x||. The dot marks the chosen lambda.
    """
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axis = figure.subplots()
    for pair in range(len(norm)):
        x = np.concatenate([[0.0], norm[pair], [gap[pair]]])
        y = np.concatenate([[start[pair]], error[pair], [floor[pair]]])
        order = np.argsort(x, kind="stable")
        colour = f"C{pair % 10}"
        axis.plot(x[order], y[order], "-", color=colour, linewidth=1.3, alpha=0.8, label=labels[pair])
        axis.plot(norm[pair, chosen[pair]], error[pair, chosen[pair]], "o", color=colour, markersize=6)
    axis.set_xlabel("norm of the distortion, ‖d‖")
    axis.set_ylabel("distance of the reconstruction from the target, ‖x_t - rec(x*)‖")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.set_title("Distortion curves: from d = 0 (left) to d = x_t - x (right end); dots: chosen λ", fontsize=10)
    axis.grid(alpha=0.3)
    if len(norm) <= 20:
        axis.legend(fontsize=8, ncols=2)
    return to_png(figure)


def damage_curves(caps: list[float], damage: Array, start: Array, labels: list[str]) -> bytes:
    """Damage (items, caps) over the cap, one line an item from its damage at d = 0, ``start`` (items,)."""
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axis = figure.subplots()
    x = np.concatenate([[0.0], caps])
    order = np.argsort(x, kind="stable")
    for item in range(len(damage)):
        y = np.concatenate([[start[item]], damage[item]])
        axis.plot(x[order], y[order], "o-", color=f"C{item % 10}", linewidth=1.3, alpha=0.8, label=labels[item])
    axis.set_xlabel("cap on the norm of the distortion")
    axis.set_ylabel("damage, E ‖g(z) - ref‖")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.set_title("Damage under each cap, from that of the draws alone at d = 0; one line an item", fontsize=10)
    axis.grid(alpha=0.3)
    if len(damage) <= 20:
        axis.legend(fontsize=8, ncols=2, title="item", title_fontsize=8)
    return to_png(figure)


def margin_panel(
    margins: dict[str, Array], estimate: Array, empirical: Array, censored: Array, largest: Array, r: float, told: str
) -> bytes:
    """Left, ``margins`` (items,) of each kind in ascending order; right, ``empirical`` over ``estimate``, (items,).

    An item that nothing broke is drawn at the ``largest`` norm tried, as a triangle. Both on logarithmic scales.
    ``told`` is a remark on the right.
    """
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.suptitle(f"Margins at r = {r:.6g}", fontsize=11)
    left, right = figure.subplots(1, 2)
    for place, (name, values) in enumerate(margins.items()):
        known = np.sort(values[np.isfinite(values) & (values > 0)])
        if len(known):
            # Items at 0 lie to the left of all that a logarithmic scale shows.
            share = (np.arange(len(known) + 1) + (values == 0).sum()) / np.isfinite(values).sum()
            left.step([known[0], *known], share, where="post", color=f"C{place}", label=name, linewidth=1.5)
    left.set_xscale("log")
    _label_decades(left.xaxis)
    left.set_xlabel("margin, in input units")
    left.set_ylabel("share of items with at most that margin")
    left.set_ylim(0, 1.02)
    left.grid(alpha=0.3)
    if left.lines:  # above, where no curve runs
        left.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    shown = np.where(censored, largest, empirical)
    for mark, chosen in (("o", censored == 0), ("^", censored == 1)):
        drawn = chosen & np.isfinite(shown) & np.isfinite(estimate) & (shown > 0) & (estimate > 0)
        right.plot(estimate[drawn], shown[drawn], mark, color="C0", alpha=0.8, markersize=5)
    ends = [*estimate[np.isfinite(estimate) & (estimate > 0)], *shown[np.isfinite(shown) & (shown > 0)]]
    if ends:
        right.plot([min(ends), max(ends)], [min(ends), max(ends)], "k--", linewidth=1)
        right.set_xscale("log")
        right.set_yscale("log")
        _label_decades(right.xaxis)
        _label_decades(right.yaxis)
    right.set_xlabel("whitened first-order estimate")
    right.set_ylabel("empirical margin (an upper bound)")
    right.set_title(f"below the line first order promises too much\ntriangles: unbroken{told}", fontsize=9)
    right.grid(alpha=0.3)
    return to_png(figure)


def _label_decades(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis, so few that they stand apart; to be asked for once all is drawn."""
    low, high = axis.get_view_interval()
    few = high / low < 1e3
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def fall_curves(lengths: Array, p: Array, margin: Array, labels: list[str], m: float) -> bytes:
    """``p`` over ``lengths``, (items, lengths) both, a line an item; dots mark the empirical ``margin`` (items,)."""
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axis = figure.subplots()
    for item, label in enumerate(labels):
        axis.plot(lengths[item], p[item], "-", color=f"C{item}", linewidth=1.4, label=label)
        axis.plot(margin[item], m, "o", color=f"C{item}", markersize=6)
    axis.axhline(m, color="k", linestyle="--", linewidth=1)
    axis.set_xlabel("norm of the distortion, ‖d‖")
    axis.set_ylabel("probability of staying within r")
    axis.set_xlim(left=0)
    axis.set_ylim(0, 1.02)
    axis.set_title("Along the distortion that broke each item; dots: empirical margins, dashed: m", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, title="item", title_fontsize=8)
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
