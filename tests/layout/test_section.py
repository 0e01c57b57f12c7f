"""What every table says of a figure's interval, and of why there is none."""

import pytest

from vaeaudit.layout.entry import MetricEntry
from vaeaudit.layout.section import interval
from vaeaudit.report.forms.tables import metric_table


def figure(value: float | None = 9.0, ci: tuple[float, float] | None = None, **more: object) -> MetricEntry:
    facts = {"level": 0.95, "n": 20, "nonfinite": 0, "unit": "nats", "direction": "higher", "estimator": "median"}
    return MetricEntry.model_validate({"value": value, "ci": ci, **facts, **more})


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (figure(None), "n/a"),
        (figure(9, (0.123456, 10)), "[0.1235, 10]"),
        (figure(9, exact=True), "exact"),
        (figure(9, n=3), "n too small"),
        (figure(9, n=20, nonfinite=6, keeps_infinite=True), "an end is infinite"),
        (figure(9, n=3, nonfinite=6), "n too small"),
    ],
)
def test_an_interval_is_shown_or_why_there_is_none(metric: MetricEntry, told: str) -> None:
    assert interval(metric) == told


@pytest.mark.parametrize(
    ("levels", "header", "cells"),
    [
        ((0.95, 0.95), "95% interval", ["[1, 2]", "[1, 2]"]),
        ((0.999, 0.999), "99.9% interval", ["[1, 2]", "[1, 2]"]),
        ((0.9, 0.95), "interval", ["[1, 2] at 90%", "[1, 2] at 95%"]),
    ],
)
def test_the_level_of_every_interval_is_told(levels: tuple[float, ...], header: str, cells: list[str]) -> None:
    headers, rows = metric_table({f"m{n}": figure(1.5, (1, 2), level=level) for n, level in enumerate(levels)})
    assert headers[2] == header
    assert [row[2] for row in rows] == cells
    no_interval = metric_table({"m": figure(9, exact=True)})
    assert no_interval[0][2] == "interval"
    assert no_interval[1][0][2] == "exact"
