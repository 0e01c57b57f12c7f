"""The figures of the noise check, as PNG bytes."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.ndimage import gaussian_filter1d

from vaeaudit.layout.figures import Array, to_png

_BINS = 400
_SMOOTH = 5  # bins: the standard deviation of the smoothing, 1.25% of the axis
_TAIL = 0.01  # of each curve's values that may lie off the axis on each side
_MANY = 1000.0  # above which such an axis names powers of ten alone
_SPACE = 0.04  # of the axis, left at each end
_WIDE = 20.0  # ratio of the axis' ends above which it is logarithmic


def likelihood_histograms(values: Mapping[str, Array]) -> bytes:
    """Smoothed histograms of log p(x|z), one curve for each of ``values``, (draws * items,) each.

    The axis leaves out the outer 1% on each side of every curve that would not fit, and the legend says how many. It
    is logarithmic in -log p where log p is negative and spans more than a factor of 20.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axis = figure.subplots()
    known = {name: of[np.isfinite(of)] for name, of in values.items()}
    ends = [np.quantile(of, (_TAIL, 1 - _TAIL), method="inverted_cdf") for of in known.values() if of.size]
    low, high = (min(end[0] for end in ends), max(end[1] for end in ends)) if ends else (0.0, 1.0)
    logarithmic = high < 0 and low / high > _WIDE
    first, last = (-np.log(-low), -np.log(-high)) if logarithmic else (low, high)
    space = _SPACE * (last - first) or 0.5
    steps = np.linspace(first - space, last + space, _BINS + 1)
    edges = -np.exp(-steps) if logarithmic else steps
    places = (edges[1:] + edges[:-1]) / 2
    for (name, of), colour in zip(values.items(), _colours(len(values)), strict=True):
        counts, _ = np.histogram(known[name], edges)
        share = gaussian_filter1d(counts / of.size, _SMOOTH)
        off = 1 - counts.sum() / of.size
        label = f"{name} ({off:.1%} left out)" if off > 0 else name
        axis.plot(-places if logarithmic else places, share, color=colour, linewidth=1.6, label=label)
        axis.fill_between(-places if logarithmic else places, share, color=colour, alpha=0.12)
    if logarithmic:
        axis.set_xscale("log")
        axis.invert_xaxis()
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if low / high < _MANY else (1,)))
        axis.xaxis.set_major_formatter(lambda place, _: f"{-place:,.4g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    scale = " (logarithmic)" if logarithmic else ""
    axis.set_xlabel(f"log p(x|z) of the clean input, in nats{scale}: worse to the left")
    axis.set_ylabel(f"share of draws in each of {_BINS} bins, smoothed")
    axis.set_ylim(bottom=0)
    axis.set_title(
        "Log-likelihood of clean inputs that the encoder sees under noise of standard deviation s", fontsize=10
    )
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return to_png(figure)


def noise_curves(sigmas: Sequence[float], likelihood: Mapping[str, Array], error: Array, length: Array) -> bytes:
    """Left, log p over the noise; right, ||rec(x + eps) - x|| beside ||eps||, both (sigmas, items).

    ``likelihood`` gives "mean", "lower_quartile", "median" and "upper_quartile", each (sigmas, 3): value and interval.
    The left axis holds quartiles and medians; means that lie off it are told.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    order = np.argsort(sigmas, kind="stable")
    x = np.asarray(sigmas)[order]
    mean, lower, median, upper = (
        likelihood[name][order] for name in ("mean", "lower_quartile", "median", "upper_quartile")
    )
    left.fill_between(x, lower[:, 0], upper[:, 0], color="C0", alpha=0.15, label="middle half of the items")
    left.plot(x, median[:, 0], "o-", color="C0", label="median over items")
    held = [*lower[:, 0], *median[:, 0], *upper[:, 0]]
    _limit(left, [*held, *_near(mean, held)])
    low, high = left.get_ylim()
    drawn = (mean[:, 0] >= low) & (mean[:, 0] <= high)
    bars = np.abs(mean[drawn, 1:] - mean[drawn, :1]).T  # NaN, which draws no bar, where there is no interval
    left.errorbar(x[drawn], mean[drawn, 0], bars, fmt="s--", color="C1", capsize=4, label="mean, 95% interval")
    left.set_ylim(low, high)
    off = [f"s = {s:g}: {m:.3g}" for s, m in zip(x[~drawn], mean[~drawn, 0], strict=True)]
    left.set_title(f"mean off the axis at {'; '.join(off)}" if off else "", fontsize=8)
    left.set_ylabel("log p(x|z) of the clean input, in nats")
    for values, name, colour in ((error[order], "‖rec(x + ε) - x‖", "C2"), (length[order], "‖ε‖", "k")):
        middle = np.array([_quantiles(of) for of in values])
        right.fill_between(x, middle[:, 0], middle[:, 2], color=colour, alpha=0.15)
        right.plot(x, middle[:, 1], "o-" if colour != "k" else "o--", color=colour, label=name)
    right.set_ylim(bottom=0)
    right.set_ylabel("in input units: median and middle half of the items")
    right.set_title("the model denoises where its error is below the noise's norm", fontsize=9)
    for axis in (left, right):
        axis.set_xlabel("standard deviation of the noise, s (0: clean)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return to_png(figure)


def _colours(count: int) -> list[tuple[float, ...]]:
    """From dark to light: the order of the noise."""
    return [tuple(colormaps["viridis"](place)) for place in np.linspace(0, 0.88, count)]


def _near(mean: Array, held: Sequence[float]) -> list[float]:
    """The means and their intervals, (sigmas, 3), that would no more than double the axis that ``held`` need."""
    known = [value for value in held if np.isfinite(value)]
    if not known:
        return []
    reach = max(known) - min(known)
    rows = mean[np.isfinite(mean).all(1)]
    fits = (rows[:, 1] >= min(known) - reach) & (rows[:, 2] <= max(known) + reach)
    return [float(value) for value in rows[fits].ravel()]


def _limit(axis: Axes, values: Sequence[float]) -> None:
    known = [value for value in values if np.isfinite(value)]
    if known and max(known) > min(known):
        space = 0.05 * (max(known) - min(known))
        axis.set_ylim(min(known) - space, max(known) + space)


def _quantiles(values: Array) -> Array:
    known = values[np.isfinite(values)]
    return np.quantile(known, (0.25, 0.5, 0.75), method="inverted_cdf") if known.size else np.full(3, np.nan)
