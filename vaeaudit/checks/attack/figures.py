"""The figures of the attack check, as PNG bytes."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from vaeaudit.layout.figures import Array, draw_row, scale, to_png
from vaeaudit.model.ranges import Range


def attack_panel(columns: dict[str, Array], labels: list[str], box: Range | None) -> bytes:
    """One row a pair, each of ``columns`` (pairs, channels, height, width) under its name.

    Images share one scale, the box where there is one, each channel its own where that has one for each. A column
    "distortion" is drawn around zero, each on its own scale, which is written below it: blue lowers a pixel, red raises
    it.
    """
    rows = len(labels)
    images = np.concatenate([column for name, column in columns.items() if name != "distortion"])
    low, width = scale(images, box)
    figure = Figure(figsize=(1.5 * len(columns) + 1.6, 1.62 * rows + 0.5), layout="compressed")
    for row, axis in enumerate(figure.subplots(rows, 1, squeeze=False)[:, 0]):
        drawn, below = [], []
        for name, column in columns.items():
            item = column[row]
            if name == "distortion":
                reach = float(np.abs(item).max())
                signed = item.sum(0) if len(item) == 1 else np.take_along_axis(item, np.abs(item).argmax(0)[None], 0)[0]
                colours = colormaps["RdBu_r"]((signed / (reach or 1) + 1) / 2)
                drawn.append(colours[:, :, :3].transpose(2, 0, 1))
                below.append(f"largest {reach:.2g}")
            else:
                drawn.append((item - low) / width)
                below.append("")
        draw_row(axis, drawn, labels[row], below, [] if row else [*columns])
    return to_png(figure)


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
