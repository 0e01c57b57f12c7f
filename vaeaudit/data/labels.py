"""What an array says about the classes of items."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vaeaudit.data.shapes import shape_text
from vaeaudit.errors import listed

_WANTED = "one whole number or text for each item was expected"
_MOST = 2.0**53  # up to which float64 holds every whole number
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")  # an int64 holds them all


def misshapen(shape: tuple[int, ...]) -> str | None:
    """Why an array of that shape holds no labels; None for (n,) and (n, 1)."""
    if shape and shape[1:] in ((), (1,)):
        return None
    return f"an array of shape {shape_text(shape)}, where {_WANTED}"


def numbered(texts: Sequence[str] | NDArray[np.generic]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Texts as numbers in their order, and the text that each number stands for."""
    names, numbers = np.unique(texts, return_inverse=True)
    told = (name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names.tolist())
    return numbers.astype(np.int64), tuple(told)


def read_labels(
    array: NDArray[np.generic],
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None, str | None]:
    """Labels (n,) from an array (n,) or (n, 1) of whole numbers, in any type, or of texts, numbered in their order.

    With them come these texts, None of numbers, and what was made of the array, in words, None for integers; without
    labels, what it holds instead.
    """
    if fault := misshapen(array.shape):
        return None, None, fault
    flat = array.reshape(-1)
    if flat.dtype.kind in "biu":
        return flat.astype(np.int64), None, None
    if flat.dtype.kind in "SU":
        numbers, names = numbered(flat)
        told = listed([f"{number} = {name}" for number, name in enumerate(names)])
        return numbers, names, f"labels are texts, numbered in their order ({told})"
    if flat.dtype.kind == "f":
        exact = flat.astype(np.float64)
        odd = int((~((exact == np.round(exact)) & (np.abs(exact) <= _MOST))).sum())  # NaN is none
        if not odd:
            return flat.astype(np.int64), None, f"labels are whole numbers stored as {flat.dtype.name}"
        return None, None, f"{flat.dtype.name}, {odd} of {flat.size} of them not whole numbers, where {_WANTED}"
    return None, None, f"of type {flat.dtype.name}, where {_WANTED}"


def whole_numbers(labels: NDArray[np.int64], names: tuple[str, ...]) -> NDArray[np.int64] | None:
    """The whole numbers that the texts of ``labels`` are, by :func:`numbered`; None where one is something else."""
    if not all(_WHOLE.fullmatch(name) for name in names):
        return None
    return np.array([int(name) for name in names], np.int64)[labels]
