"""The figure of the mutual information gap, as PNG bytes."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vaeaudit.layout.figures import Array, label, to_png

_UNITS = 64  # most rows that can be read


def information_panel(shares: dict[str, Array], factors: list[str]) -> bytes:
    """For each estimator what units know of factors, (units, factors), as shares of the factors' entropies.

    Of more than 64 units those that know most of any factor, by the first estimator.
    """
    first = next(iter(shares.values()))
    units = np.sort(np.argsort(-first.max(1), kind="stable")[:_UNITS])
    width = 1.4 + max(3.2, 0.8 * len(factors))
    height = 1.5 + 0.24 * len(units)
    figure = Figure(figsize=(width * len(shares) + 0.8, max(3.2, height)), layout="constrained")
    axes = figure.subplots(1, len(shares), squeeze=False)[0]
    for axis, (estimator, values) in zip(axes, shares.items(), strict=True):
        shown = values[units]
        image = axis.imshow(shown, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        for (row, column), value in np.ndenumerate(shown):
            colour = "black" if value > 0.6 else "white"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        for column, row in enumerate(shown.argmax(0)):
            axis.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="tab:red", linewidth=2, clip_on=False)
            )
        axis.set_xticks(
            range(len(factors)), list(map(label, factors)), rotation=35, ha="right", rotation_mode="anchor", fontsize=8
        )
        axis.set_yticks(range(len(units)), [str(unit) for unit in units], fontsize=8)
        axis.set_title(f"by {estimator}", fontsize=10)
        axis.set_ylabel("unit" if len(units) == len(first) else f"unit ({len(units)} of {len(first)})")
    figure.colorbar(image, ax=axes[-1], label="mutual information / entropy of the factor")
    return to_png(figure)
