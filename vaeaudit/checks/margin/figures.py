"""The figures of the margin check, as PNG bytes."""

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vaeaudit.layout.figures import Array, to_png


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
