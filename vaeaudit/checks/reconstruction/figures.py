"""The figure of the reconstruction check, as PNG bytes."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from vaeaudit.layout.figures import Array, to_png

_BINS = 60


def histograms(panels: Mapping[str, Mapping[str, Array]], lower_is_worse: Mapping[str, bool]) -> bytes:
    """A panel for each name of ``panels``, in which each of its values, (items,), is a histogram.

    Dashed lines are medians; the dotted line is what 5% of the first values are worse than.
    """
    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained")
    for axis, (name, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        known = {of: found[np.isfinite(found)] for of, found in values.items()}
        ends = [end for found in known.values() if found.size for end in (found.min(), found.max())]
        low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
        space = 0.5 * (high <= low)
        edges = np.linspace(low - space, high + space, _BINS + 1)
        for place, (of, found) in enumerate(known.items()):
            left = len(values[of]) - found.size
            label = of + (f" ({left} not finite)" if left else "")
            axis.hist(found, edges, color=f"C{place}", alpha=0.25)
            axis.hist(found, edges, color=f"C{place}", histtype="step", label=label)
            if found.size:
                axis.axvline(np.quantile(found, 0.5, method="inverted_cdf"), color=f"C{place}", linestyle="--")
        first = next(iter(known.values()))
        if first.size:
            tail = 0.05 if lower_is_worse[name] else 0.95
            axis.axvline(np.quantile(first, tail, method="inverted_cdf"), color="C0", linestyle=":")
        worse = "left" if lower_is_worse[name] else "right"
        axis.set_xlabel(f"{name}: worse to the {worse}")
        axis.set_ylabel("items")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return to_png(figure)
