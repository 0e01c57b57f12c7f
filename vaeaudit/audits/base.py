"""What every check adds to a report and to the files beside it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor

from vaeaudit.stats import Measurement

Row = dict[str, object]


@dataclass(frozen=True)
class Drawing:
    """A figure beside the report: the name of its file, and what draws it as PNG bytes."""

    name: str
    draw: Callable[[], bytes]


@dataclass(frozen=True, eq=False)
class Record:
    """What a check found, in the report's words.

    ``entries`` go under the named fields of the report, ``rows`` into items.json, ``tensors`` into
    adversarial.safetensors with what ``about`` says of them, and ``drawings`` by what they show. ``unsure`` tells
    that something was found with which no figure supports a verdict.
    """

    entries: Mapping[str, Sequence[BaseModel]] = field(default_factory=dict)
    metrics: Mapping[str, Measurement] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    interrupted: bool = False
    unsure: bool = False
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    about: Row = field(default_factory=dict)
    drawings: Mapping[str, Drawing] = field(default_factory=dict)


def number(value: Tensor | float) -> float | None:
    """A finite number, or None: JSON knows no others."""
    plain = float(value)
    return plain if np.isfinite(plain) else None


def array(values: Tensor) -> NDArray[np.float64]:
    """For a figure."""
    plain: NDArray[np.float64] = values.detach().double().cpu().numpy()
    return plain
