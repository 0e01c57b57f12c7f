"""The figures of the latents check, as PNG bytes."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from vaeaudit.layout.figures import Array, draw_row, scale, to_png
from vaeaudit.model.ranges import Range

_LABELLED = 64  # most bars with a label of their own
_LINEAR = 100.0  # largest ratio of bars for which a linear scale shows all of them


@dataclass(frozen=True, eq=False)
class Bars:
    """The KL of one layer's units in nats, with the half-widths of their intervals, (units,) each."""

    title: str
    kl: Array
    half: Array


def kl_bars(layers: list[Bars], threshold: float) -> bytes:
    """Bars in descending order, a panel a layer; the dashed line is the threshold of an active unit."""
    most = max(len(layer.kl) for layer in layers)
    figure = Figure(figsize=(min(14.0, max(6.0, 2.0 + 0.24 * most)), 3.9 * len(layers)), layout="constrained")
    for axis, layer in zip(figure.subplots(len(layers), 1, squeeze=False)[:, 0], layers, strict=True):
        order = np.argsort(-layer.kl, kind="stable")
        kl, half, place = layer.kl[order], layer.half[order], np.arange(len(order))
        above = kl > threshold
        positive = kl[kl > 0]
        floor = min(float(positive.min()), threshold) / 3 if len(positive) else threshold / 3
        logarithmic = bool(len(positive)) and float(positive.max()) > _LINEAR * float(positive.min())
        for chosen, colour, label in ((above, "C0", "active"), (~above, "0.65", "not active")):
            if chosen.any():
                axis.bar(place[chosen], kl[chosen], width=0.8, color=colour, label=label)
        title, missing = layer.title, int((kl <= 0).sum()) if logarithmic else 0
        if len(order) <= _LABELLED:
            title += ", with intervals"
            low = np.minimum(half, kl - floor).clip(0) if logarithmic else half
            axis.errorbar(place, kl, yerr=[low, half], fmt="none", ecolor="black", elinewidth=1, capsize=2)
            axis.set_xticks(place, [str(unit) for unit in order], fontsize=8, rotation=90 if len(order) > 24 else 0)
            axis.set_xlabel("unit, in descending order of its KL")
        else:
            axis.set_xlabel("rank of the unit")
        axis.axhline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold, {threshold:g} nats")
        if logarithmic:
            axis.set_yscale("log")
            axis.set_ylim(bottom=floor)
        axis.set_xlim(-0.7, len(order) - 0.3)
        axis.set_ylabel("mean KL to the prior, nats")
        axis.set_title(title + (f"; {missing} at or below 0 not drawn" if missing else ""), fontsize=10, pad=24)
        axis.grid(alpha=0.3, axis="y")
        axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return to_png(figure)


def traversal_panel(images: Array, values: Array, labels: list[str], box: Range | None, title: str) -> bytes:
    """One row a unit: ``images`` (units, steps, channels, height, width), and below them ``values`` (units, steps)."""
    rows, steps = values.shape
    low, width = scale(images, box)
    figure = Figure(figsize=(1.05 * steps + 1.3, 1.22 * rows + 0.6), layout="compressed")
    for row, axis in enumerate(figure.subplots(rows, 1, squeeze=False)[:, 0]):
        draw_row(axis, (images[row] - low) / width, labels[row], [f"{value:.3g}" for value in values[row]])
    figure.suptitle(title, fontsize=9)
    return to_png(figure)
