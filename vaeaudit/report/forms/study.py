"""A study as a page of Markdown, and a figure of each metric."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.figure import Figure
from tabulate import tabulate

from vaeaudit.layout.figures import label, to_png
from vaeaudit.report.forms import literal
from vaeaudit.report.study import Curve, Point
from vaeaudit.stats.levels import Levelled

_LONGEST = 120  # characters of a file's name that a metric gives; most systems take 255 bytes
NOTE = (
    "Figures are means over trainings (seeds), in brackets with their interval over trainings and items together; "
    "`change` is the difference from the first row of the system, on the same items, with the number of "
    "seeds where that row has fewer. An interval of one training tells nothing of another, and a change from or to one "
    "training has none. Models `in doubt` have a figure that supports no verdict, as their reports say. Of so many "
    "intervals some miss: at 95%, one in twenty."
)


def files(metrics: Iterable[str]) -> dict[str, str]:
    """A file's name for the picture of each metric: a metric of a table may be called anything, a file may not."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(metrics):
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".-")[:_LONGEST] or "metric"
        taken, number = {file.lower() for file in found.values()}, 1
        while (file := f"{plain}{'' if number == 1 else f'-{number}'}.png").lower() in taken:
            number += 1
        found[name] = file
    return found


def page(curves: Sequence[Curve], against: str, version: str, pictures: Mapping[str, str]) -> str:
    """The study as GitHub-flavoured Markdown, with the ``pictures`` of metrics, by their names of files."""
    parts = [f"# Study against {literal.inline(against)}", f"{NOTE} Audited by {literal.inline(version)}."]
    for metric in dict.fromkeys(curve.metric for curve in curves):
        of_metric = [curve for curve in curves if curve.metric == metric]
        doubted = any(point.doubted for curve in of_metric for point in curve.points)
        rows = [
            [
                literal.cell(curve.system),
                literal.cell(point.at),
                shown(point.figure),
                _changed(point),
                f"{point.figure.seeds} x {point.figure.items}" if point.figure.items else str(point.figure.seeds),
            ]
            + ([f"{point.doubted} of {point.figure.seeds}" if point.doubted else ""] if doubted else [])
            for curve in of_metric
            for point in curve.points
        ]
        headers = ["system", literal.cell(against), "figure", "change", "seeds x items", *["in doubt"] * doubted]
        parts.append(f"## {literal.code(metric)}")
        if metric in pictures:
            parts.append(f"![{literal.alt(f'{metric} against {against}')}]({pictures[metric]})")
        parts.append(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    return "\n\n".join(parts) + "\n"


def _changed(point: Point) -> str:
    change = point.change
    if change is None:
        return ""
    if change.seeds == 1:
        return f"{shown(change)} (1 seed: no interval)"
    return shown(change) + (f" ({change.seeds} seeds)" if change.seeds < point.figure.seeds else "")


def shown(figure: Levelled) -> str:
    """A figure with its interval; none where one of its models has none."""
    if math.isnan(figure.value):
        return "none"
    if figure.ci is None:
        return f"{figure.value:.3g}"
    return f"{figure.value:.3g} [{figure.ci[0]:.3g}, {figure.ci[1]:.3g}]"


def picture(curves: Sequence[Curve], against: str) -> bytes:
    """The curves of one metric with their intervals, as the bytes of a PNG file; values of the setting stand evenly."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    places = {at: place for place, at in enumerate(dict.fromkeys(p.at for curve in curves for p in curve.points))}
    for number, curve in enumerate(curves):
        shift = 0.06 * (number - (len(curves) - 1) / 2)
        x = [places[point.at] + shift for point in curve.points]
        axis.plot(x, [point.figure.value for point in curve.points], "o-", markersize=4, label=label(curve.system))
        for left, point in zip(x, curve.points, strict=True):
            if point.figure.ci is not None:
                axis.vlines(left, *point.figure.ci, color=f"C{number % 10}", linewidth=1.2)
    axis.set_xticks([*places.values()], [label(at) for at in places])
    axis.set_xlabel(label(against))
    axis.set_title(label(curves[0].metric), fontsize=10)
    axis.grid(alpha=0.3)
    if any(curve.system for curve in curves):
        axis.legend(fontsize=8)
    return to_png(figure)
