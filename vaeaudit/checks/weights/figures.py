"""The figure of the norms of weights, as PNG bytes."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from vaeaudit.layout.figures import label, to_png


def norm_bars(names: Sequence[str], parts: Sequence[str], l2: Sequence[float], others: Sequence[float | None]) -> bytes:
    """A bar for the L2 norm of each tensor, coloured by its part; a mark where the other model's lies."""
    figure = Figure(figsize=(8, 1.3 + 0.28 * len(names)), layout="constrained")
    axis = figure.subplots()
    for place, part in enumerate(dict.fromkeys(parts)):
        rows = [row for row, of in enumerate(parts) if of == part]
        axis.barh(rows, [l2[row] for row in rows], color=f"C{place}", label=part)
    marked = [(other, row) for row, other in enumerate(others) if other is not None]
    if marked:
        axis.plot(*zip(*marked, strict=True), "k|", markersize=13, markeredgewidth=2, label="the other model")
    axis.set_yticks(range(len(names)), list(map(label, names)), fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("L2 norm")
    axis.set_title("How large the weights of each tensor are", fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.legend(fontsize=8)
    return to_png(figure)
