"""Items for a model: what a file stores, shaped and scaled to what the model takes, one batch at a time.

The stored numbers stay as they are (dSprites is 46,080 x 64 x 64 bytes) and become floats batch by batch. The
range they are stored in is read from their type and values: bool and integers that are all 0 or 1 lie in [0, 1],
other uint8 in [0, 255]; it is mapped linearly onto the model's range, of each channel or feature where they have their
own. Floats are taken as they are, and so are integers where the model's range has an infinite end: they are counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeaudit.data.shapes import RESIZE, Layout, layout_of, resized, shape_text
from vaeaudit.errors import DataError, clipped, listed, nearest
from vaeaudit.model.ranges import Range, bounded, intervals, range_for, simplest, span_text

_ROUNDING = 4  # spacings of numbers by which floats may leave the range


@dataclass(frozen=True, eq=False)
class Factors:
    """Known generative factors: ``classes`` (n, k) counted from 0; ``values`` (n, k) in the factors' own units."""

    names: tuple[str, ...]
    classes: NDArray[np.int64]
    values: NDArray[np.float64] | None


@dataclass(frozen=True, eq=False)
class Stored:
    """What a source holds, untouched: ``values`` (n, ...) in the stored type, ``labels`` (n,) int64.

    ``skipped`` tells in sentences what was left out, ``told`` what was made of it in reading. ``top`` is what integers
    count up to where their type does not tell, as of 16-bit images. ``eps`` is the spacing of
    numbers at 1 in the type that the source stores, where ``values`` have a finer one. ``conditions`` (n, ...) are what
    a conditional model is given beside the items. ``label_names`` are the texts that labels only number, if they do.

    Raises :class:`DataError` if there are no items, or if labels or factors are not as many as the items.
    """

    values: NDArray[np.generic]
    labels: NDArray[np.int64] | None
    factors: Factors | None
    source: str
    sha256: str
    skipped: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    eps: float | None = None
    top: int | None = None
    conditions: NDArray[np.generic] | None = None
    label_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.values.ndim < 2:
            raise DataError(
                f"{self.source} holds an array of shape {shape_text(self.values.shape)}, where items (n, ...) "
                "were expected; store one row per item"
            )
        if self.values.size == 0:
            raise DataError(
                f"{self.source} holds no items (shape {shape_text(self.values.shape)}), where at least one was "
                "expected; was it written to the end?"
            )
        parts: list[tuple[str, NDArray[np.generic] | None]] = [("labels", self.labels), ("conditions", self.conditions)]
        if self.factors is not None:
            parts += [("factor classes", self.factors.classes), ("factor values", self.factors.values)]
        for what, array in parts:
            if array is not None and len(array) != len(self.values):
                raise DataError(
                    f"{self.source} holds {len(self.values)} items but {len(array)} {what}, where one for each "
                    "item was expected; store both in the same order"
                )


@dataclass(frozen=True, eq=False)
class Data:
    """Items fitted to a model.

    ``range`` is what every batch lies in, None where the model names none and floats are stored.
    ``stored`` tells in words what was stored and how it was mapped; ``labels`` (n,) int64, ``label_names`` and
    ``factors`` as read.
    ``layout`` and ``top`` say how rows become inputs: see :func:`fit`.
    """

    values: NDArray[np.generic]
    input_shape: tuple[int, ...]
    range: Range | None
    labels: NDArray[np.int64] | None
    factors: Factors | None
    source: str
    sha256: str
    stored: str
    skipped: tuple[str, ...]
    warnings: tuple[str, ...]
    layout: Layout
    top: int | None
    conditions: NDArray[np.generic] | None
    label_names: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.values)

    def some(self, items: NDArray[np.int64] | slice) -> "Data":
        """These items alone, numbered anew from 0; nothing is copied for a slice."""
        factors = self.factors
        if factors is not None:
            values = None if factors.values is None else factors.values[items]
            factors = Factors(factors.names, factors.classes[items], values)
        labels = None if self.labels is None else self.labels[items]
        conditions = None if self.conditions is None else self.conditions[items]
        return replace(self, values=self.values[items], labels=labels, factors=factors, conditions=conditions)

    @property
    def picture_shape(self) -> tuple[int, ...] | None:
        """The shape in which an input is an image: (H, W), (C, H, W) or (H, W, C) with one or three channels.

        That which the model takes, or that in which the items are stored; None where both are rows of numbers, of
        which nothing says how they lie.
        """
        for shape in (self.input_shape, self.values.shape[1:]):
            if math.prod(shape) == math.prod(self.input_shape) and picture_of(shape):
                return shape
        return None

    def batch(
        self,
        indices: Sequence[int] | NDArray[np.integer],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """The items named by ``indices``, (len(indices), *input_shape), inside ``range``.

        As computed in float64 and rounded once to ``dtype``. Raises IndexError outside 0..len - 1.
        """
        index = np.asarray(indices)
        if index.size == 0:
            index = np.empty(0, np.int64)
        elif index.dtype.kind not in "iu":  # a mask would otherwise be read as items 0 and 1
            raise IndexError(f"items are named by integers but {index.dtype} came")
        elif index.min() < 0 or index.max() >= len(self):
            raise IndexError(
                f"items are numbered 0 to {len(self) - 1} but {index.min()} to {index.max()} were asked for"
            )
        run = index.size > 0 and bool((np.diff(index) == 1).all())
        chosen = self.values[index[0] : index[-1] + 1] if run else self.values[index]  # a run needs no copy
        rows = self.layout.arrange(chosen)  # (b, *input_shape), or (b, *other, h, w) before resizing
        if self.layout.filter is not None:
            rows = resized(rows, self.input_shape, self.layout.filter, as_bytes=self.top == 255)
        x = self._scaled(rows, np.float32 if dtype == torch.float32 else np.float64)
        return torch.from_numpy(x).to(device, dtype)

    def _scaled(self, rows: NDArray[np.generic], wanted: type[np.float32 | np.float64]) -> NDArray[np.generic]:
        """A copy of ``rows`` mapped onto ``range``; of ``wanted`` type only where that rounds no more than once."""
        if self.top is not None and self.range is not None:
            lo, hi = _ends(self.range, rows.ndim - 1)
            look_up = (
                rows.dtype.kind in "biu" and lo.size == 1 and self.top < 256
            )  # few values are stored, and many times each
            lo, hi = (lo.ravel(), hi.ravel()) if look_up else (lo, hi)
            stored = np.arange(self.top + 1) if look_up else rows.astype(np.float64)
            x = (lo * (self.top - stored) + hi * stored) / self.top  # one rounding where lo and hi are integers
            x = np.where(stored == self.top, hi, np.where(stored == 0, lo, x))
            x = np.clip(x, lo, hi)  # bicubic and lanczos overshoot
            return x.astype(wanted)[rows.astype(np.uint8, copy=False)] if look_up else x
        # Rounding keeps the order, so that clipping after it, to the rounded range, is clipping before it.
        x = rows.astype(wanted if rows.dtype.itemsize <= 4 else np.float64)
        with np.errstate(over="ignore"):
            lo, hi = (ends.astype(x.dtype) for ends in _ends(self.range, rows.ndim - 1))
        return np.clip(x, lo, hi, out=x)


def picture_of(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape where it is (H, W), (C, H, W) or (H, W, C), of some rows and columns and one or three channels."""
    if len(shape) == 3:
        channels, sides = (shape[0], shape[1:]) if shape[0] in (1, 3) else (shape[2], shape[:2])
        return shape if channels in (1, 3) and min(sides) > 1 else None
    return shape if len(shape) == 2 and min(shape) > 1 else None


def fit(
    stored: Stored,
    *,
    input_shape: tuple[int, ...],
    data_range: Range | None,
    resize: str | None = None,
    unit: bool = False,
) -> Data:
    """Fit what was read to a model that takes ``input_shape`` in ``data_range`` (None: unknown).

    Shapes: as they are; (H, W) for (1, H, W); channels last for (C, H, W); rows of as many numbers for any shape,
    and any shape for rows, row-major. ``resize`` names one of :data:`RESIZE`, done by Pillow: on the 8-bit image
    for uint8, on 32-bit floats (0/1 integers as 0 and 1) for the rest, channel by channel, clipped to the range.

    ``unit``: floats lie in [0, 1] and are mapped onto the range as bytes are, which normalises them.

    With ``data_range`` None, 0/1 integers are taken as they are, in [0, 1], with a warning; other integers are an
    error, since nothing says what 255 stands for. With an infinite end they are taken as they are, of any type: counts.

    Raises :class:`DataError` if the values, the shape or the name of the filter do not fit.
    """
    if data_range is not None:
        try:
            data_range = simplest(range_for(data_range, input_shape))
        except ValueError as error:
            raise DataError(f"the range is {error}; give --range LO HI, or [data] range") from None
    if resize is not None and resize not in RESIZE:
        raise DataError(
            f"resize must be one of {', '.join(RESIZE)}, but '{clipped(resize)}' came{nearest(resize, RESIZE)}; "
            "name one of them or leave it out"
        )
    as_counts = data_range is not None and not bounded(data_range)
    top, low, high = _stored_range(stored, as_counts)
    layout = layout_of(stored.source, stored.values.shape[1:], input_shape, resize)
    if unit and stored.values.dtype.kind == "f":
        _require_unit(stored, low, high)
        top = 1
    warned: list[str] = []
    mapped = "taken as they are"
    if top is None:
        mapped += _check_values(stored, low, high, data_range, layout)
    elif data_range is not None:
        same = data_range == (0, top)
        mapped = f"{mapped} in" if same else f"mapped from {span_text((0.0, float(top)))} to"
        mapped += f" {span_text(data_range, 9)}"
    elif top == 1:
        data_range, mapped = (0.0, 1.0), f"{mapped} in [0, 1]"
        warned.append(
            "the model names no range and the values are all 0 or 1, so they were taken as [0, 1]; "
            "give --range if the model takes another"
        )
    else:
        raise DataError(
            f"{stored.source} holds {stored.values.dtype} values {low:.0f}..{high:.0f}, but no range of the model is "
            "known to map them to; give --range LO HI"
        )
    if top == 255 and high < 128:
        warned.append(
            f"the uint8 values reach only {high:.0f} of 255; if they are on a shorter scale, store them as floats "
            "in the model's range"
        )
    text = f"{stored.values.dtype.name} {shape_text(stored.values.shape[1:])}, values {low:.6g}..{high:.6g}"
    return Data(
        values=stored.values,
        input_shape=input_shape,
        range=data_range,
        labels=stored.labels,
        factors=stored.factors,
        source=stored.source,
        sha256=stored.sha256,
        stored=", ".join([text, mapped, *layout.told, *stored.told]),
        skipped=stored.skipped,
        warnings=tuple(warned),
        layout=layout,
        top=top,
        conditions=stored.conditions,
        label_names=stored.label_names,
    )


def _stored_range(stored: Stored, as_counts: bool) -> tuple[int | None, float, float]:
    """(top, min, max): integers lie in [0, top]; ``top`` is None for floats and counts. One pass over the values."""
    values = stored.values
    if values.dtype.kind not in "biuf":
        raise DataError(
            f"{stored.source} holds values of type {values.dtype}, where bool, uint8 or floats were expected; "
            "store real numbers"
        )
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" or as_counts:
        return None, float(low), float(high)
    if low >= 0 and high <= 1 and stored.top is None:
        return 1, float(low), float(high)
    if stored.top is not None:
        return stored.top, float(low), float(high)
    if values.dtype == np.uint8:
        return 255, float(low), float(high)
    raise DataError(
        f"{stored.source} holds {values.dtype.name} values {low}..{high}, and integers other than uint8 are taken "
        "only when all are 0 or 1; store them as uint8 or as floats in the model's range, or give --range 0 inf if "
        "they are counts"
    )


def _require_unit(stored: Stored, low: float, high: float) -> None:
    """Raise :class:`DataError` where floats that are to be normalised do not lie in [0, 1]."""
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"{stored.source}: data lie in {span_text((low, high), 9)} where values in [0, 1], or bytes, were expected "
            "to be normalised; leave --normalize out if they are, and give --range"
        )


def _check_values(stored: Stored, low: float, high: float, data_range: Range | None, layout: Layout) -> str:
    """What is done to values, taken as they are, so that they lie in the range, in words: "" where they do.

    Raises :class:`DataError` for those that are not finite, or outside of the range by more than rounding.
    """
    if not (math.isfinite(low) and math.isfinite(high)):  # NaN and infinities show in the minimum or the maximum
        bad = sum(int((~np.isfinite(np.asarray(row, np.float64))).sum()) for row in stored.values)
        raise DataError(
            f"{stored.source} holds {bad} NaN or infinite value{'s' * (bad > 1)} of {stored.values.size}, where "
            "finite numbers were expected; leave those items out or repair them"
        )
    if data_range is None:
        return ""
    allowed = intervals(data_range)
    seen = [(low, high)] if len(allowed) == 1 else _by_channel(stored.values, layout)
    kind = stored.values.dtype if stored.values.dtype.kind == "f" else np.float64
    told: list[str] = []
    for number, (interval, (low, high)) in enumerate(zip(allowed, seen, strict=True)):
        with np.errstate(over="ignore"):
            lo, hi = np.asarray(interval).astype(kind)  # so that float32 0.1 is not above 0.1
        if not (low < lo or high > hi):
            continue
        where = "" if len(allowed) == 1 else f" of channel or feature {number}"
        came, expected = span_text((low, high), 9), span_text(interval, 9)
        if _outside(low, high, interval, stored):
            raise DataError(
                f"{stored.source}: data{where} lie in {came} but the model takes {expected}; "
                "map them as training did (bytes stored as uint8 are mapped), or give --range if the model takes these"
            )
        told.append(f"{where} from {came} to {expected}")
    return f" but for rounding: clipped{listed(told)}" if told else ""


def _outside(low: float, high: float, interval: tuple[float, float], stored: Stored) -> bool:
    """Whether values leave an interval by more than rounding: 4 times the spacing of numbers at its larger end.

    That of the stored type; of float32 for float64, since what was computed in float32 is often stored so. Integers
    are not rounded.
    """
    if stored.values.dtype.kind != "f":
        return True
    kind = np.float16 if stored.values.dtype.itemsize == 2 else np.float32
    eps = float(np.finfo(kind).eps) if stored.eps is None else stored.eps
    allowed = _ROUNDING * eps * max((abs(end) for end in interval if math.isfinite(end)), default=0.0)
    return low < interval[0] - allowed or high > interval[1] + allowed


def _by_channel(values: NDArray[np.generic], layout: Layout) -> list[tuple[float, float]]:
    """Least and greatest value of each channel or feature of the items as they are arranged, a thousand at a time."""
    least = np.full(layout.shape[0], np.inf)
    greatest = -least
    for first in range(0, len(values), 1000):
        rows = layout.arrange(values[first : first + 1000]).reshape(-1, layout.shape[0], *layout.shape[1:])
        others = (0, *range(2, rows.ndim))
        least = np.minimum(least, rows.min(others))
        greatest = np.maximum(greatest, rows.max(others))
    return list(zip(least.tolist(), greatest.tolist(), strict=True))


def _ends(data_range: Range | None, axes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest values, (1 or channels, 1, ...) for items of so many axes."""
    low, high = np.asarray(intervals(data_range), np.float64).T.reshape(2, -1, *[1] * (axes - 1))
    return low, high
