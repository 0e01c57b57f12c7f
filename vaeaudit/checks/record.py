"""What every check adds to a report and to the files beside it."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vaeaudit.data.items import Data
from vaeaudit.data.shapes import shape_text
from vaeaudit.layout.entry import Entry, MetricEntry, belongs
from vaeaudit.progress import GoOn
from vaeaudit.stats.estimates import Measurement

Row = dict[str, object]
_FIGURES = 5_000.0  # rows of a model that take as long as the figures of a check


@dataclass(frozen=True, eq=False)
class Columns:
    """Rows kept as one column a name, each made when it is asked for: as objects they take ten times the memory."""

    columns: Mapping[str, NDArray[Any]]

    def __iter__(self) -> Iterator[Row]:
        for places in zip(*self.columns.values(), strict=True):
            yield {name: _plain(value) for name, value in zip(self.columns, places, strict=True)}


def _plain(value: np.generic) -> object:
    plain = value.item()
    return number(plain) if isinstance(plain, float) else plain


@dataclass(frozen=True)
class Drawing:
    """A figure beside the report: the name of its file, and what draws it as PNG bytes."""

    name: str
    draw: Callable[[], bytes]


@dataclass(frozen=True, eq=False)
class Record:
    """What a check found, in the report's words.

    ``entries`` go into the report, under the field that lists those of their class; ``rows`` into items.json,
    ``tensors`` into adversarial.safetensors with what ``about`` says of them, and ``drawings`` by what they show.
    ``signs`` and ``doubts`` tell in a sentence why metrics support no verdict: signs those of the whole check, or of an
    attack, a radius or another part of it, by how their names begin; doubts single ones, by name.
    """

    entries: Sequence[Entry] = ()
    metrics: Mapping[str, Measurement] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    interrupted: bool = False
    signs: Mapping[str, str] = field(default_factory=dict)
    doubts: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, Iterable[Row]] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    about: Row = field(default_factory=dict)
    drawings: Mapping[str, Drawing] = field(default_factory=dict)

    def doubt(self, name: str) -> str | None:
        """Why the metric ``name`` supports no verdict; None where it does."""
        return next((why for part, why in self.signs.items() if belongs(name, part)), self.doubts.get(name))


Work = Callable[[GoOn], Record]  # a piece of a check


to_json_line = json.JSONEncoder(allow_nan=False).encode


def measured(rows: float) -> float:
    """The share of a check's time, as measured, that it takes to give the model so many rows; then come its figures."""
    return rows / (rows + _FIGURES)


def without_pictures(check: str, data: Data) -> dict[str, str]:
    """Why nothing is drawn of the items, as a part of the ``check`` that is skipped; empty where they are images."""
    if data.picture_shape is not None:
        return {}
    stored, taken = shape_text(data.values.shape[1:]), shape_text(data.input_shape)
    return {
        f"{check}.pictures": f"items of shape {stored}, for a model that takes {taken}, are no images of one or three "
        "channels; data stored in the shape of images, as (n, height, width), are drawn"
    }


def metric_entry(measurement: Measurement, doubt: str | None = None) -> MetricEntry:
    """The report's form of a measurement; values that are not there are a ``doubt`` of their own."""
    sample = measurement.sample
    missing = 0 if sample is None else int(np.isnan(sample.values).sum())
    if doubt is None and missing:
        doubt = f"{missing} of its {measurement.n + missing} values are not there (NaN)"
    plain = {field.name: getattr(measurement, field.name) for field in fields(measurement) if field.name != "sample"}
    if missing:  # which may be anything, whatever a better search does to the others
        plain["search"] = "none"
    return MetricEntry(**plain, doubt=doubt)


def number(value: Tensor | float) -> float | None:
    """A finite number, or None: JSON knows no others."""
    plain = float(value)
    return plain if np.isfinite(plain) else None


def array(values: Tensor) -> NDArray[np.float64]:
    """For a figure."""
    plain: NDArray[np.float64] = values.detach().double().cpu().numpy()
    return plain
