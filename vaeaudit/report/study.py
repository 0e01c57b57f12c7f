"""A study: one figure of many models against one of their settings."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from vaeaudit.errors import ConfigError, clipped, listed, nearest
from vaeaudit.report.results import AUDIT, Figure
from vaeaudit.stats.levels import Array, Levelled, levelled


@dataclass(frozen=True)
class Point:
    """The models of one system that have ``at`` in common: their figure, and how far it is from that at the first.

    ``change`` is None at the first. ``doubted`` of the models have a figure that supports no verdict.
    """

    at: str
    figure: Levelled
    change: Levelled | None
    doubted: int


@dataclass(frozen=True)
class Curve:
    """A metric of one system, told by the settings in which its systems differ, against a setting: points in order."""

    metric: str
    system: str
    points: tuple[Point, ...]


def models(figures: Iterable[Figure]) -> int:
    """How many models the figures are of; which audit of a model a figure is from tells no models apart."""
    named = (({k: v for k, v in one.settings.items() if v and k != AUDIT}, one.seed) for one in figures)
    return len({(frozenset(settings.items()), seed) for settings, seed in named})


def curves(figures: Sequence[Figure], against: str, metrics: Sequence[str] = (), level: float = 0.95) -> list[Curve]:
    """Every metric, or those of ``metrics``, of every system against one setting.

    Systems are told apart by their other settings. Systems with only one value of ``against`` are curves of one point.
    No figure stands there twice. Raises :class:`ConfigError` for a setting or a metric that no figure has.
    """
    settings = list(dict.fromkeys(name for figure in figures for name in figure.settings))
    if against not in settings:
        raise ConfigError(
            f"the results have no setting '{clipped(against)}'{nearest(against, settings)}; they have "
            f"{listed(settings)}"
        )
    there = list(dict.fromkeys(figure.metric for figure in figures))
    for name in metrics:
        if name not in there:
            raise ConfigError(
                f"the results have no metric '{clipped(name)}'{nearest(name, there)}; they have {listed(there)}"
            )
    varied = [name for name in settings if name != against and len({f.settings.get(name, "") for f in figures}) > 1]
    of_metric: dict[str, list[Figure]] = {name: [] for name in metrics or there}
    for figure in figures:
        if figure.metric in of_metric:
            of_metric[figure.metric].append(figure)
    return [curve for name, rows in of_metric.items() for curve in _curves(name, rows, varied, against, level)]


def _curves(
    metric: str, figures: Sequence[Figure], varied: Sequence[str], against: str, level: float
) -> Iterator[Curve]:
    """Those of one metric, told apart by the ``varied`` settings in which its own figures differ, and by ``system``."""
    others = [name for name in varied if name == "system" or len({f.settings.get(name, "") for f in figures}) > 1]

    def system(figure: Figure) -> str:
        values = [(name, figure.settings.get(name, "")) for name in others]
        return ", ".join(value if name == "system" else f"{name} {value}" for name, value in values if value)

    for name, rows in groupby(sorted(figures, key=system), system):
        yield Curve(metric, name, _points(list(rows), against, level))


def _points(figures: Sequence[Figure], against: str, level: float) -> tuple[Point, ...]:
    values = sorted({figure.settings.get(against, "") for figure in figures}, key=_order)
    rows = [[figure for figure in figures if figure.settings.get(against, "") == at] for at in values]
    samples, ends = [_sample(of_row) for of_row in rows], [_ends(of_row) for of_row in rows]
    q = next((figure.q for figure in figures if figure.item is None), None)
    points = []
    for place, (at, sample) in enumerate(zip(values, samples, strict=True)):
        alike = place > 0 and sample.shape[1:] == samples[0].shape[1:]
        own = [end if sample.ndim == 1 else None for end in (ends[0], ends[place])]
        change = levelled([samples[0], sample], q, level, own) if alike else None
        doubted = sum(bool(figure.doubt) for figure in rows[place])
        points.append(Point(at, levelled([sample], q, level, own[1:]), change, doubted))
    return tuple(points)


def _sample(figures: Iterable[Figure]) -> Array:
    """(seeds, items) where every model has the same items, else (seeds,) of the figures themselves."""
    whole: dict[str, float] = {}
    items: dict[str, dict[int, float]] = {}
    for figure in figures:
        of_seed = items.setdefault(figure.seed, {})
        if figure.item is None:
            whole[figure.seed] = figure.value
        else:
            of_seed[figure.item] = figure.value
    named = {frozenset(values) for values in items.values()}
    if len(named) == 1 and (common := sorted(next(iter(named)))):
        return np.array([[values[item] for item in common] for values in items.values()])
    return np.array([*whole.values()], dtype=np.float64)


def _ends(figures: Iterable[Figure]) -> Array | None:
    """(seeds, 2), the intervals that the figures themselves came with; None where one has none."""
    ends = [(one.low, one.high) for one in figures if one.item is None]
    known = [(low, high) for low, high in ends if low is not None and high is not None]
    return np.array(known) if known and len(known) == len(ends) else None


def _order(text: str) -> tuple[int, float, str]:
    """Numbers by size, then texts."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
