"""The figures of the attack check, as PNG bytes."""

import numpy as np
from matplotlib.figure import Figure

from vaeaudit.layout.figures import Array, to_png


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
