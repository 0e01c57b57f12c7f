"""What an array says about the classes of items."""

import numpy as np
from numpy.typing import NDArray

from vaeaudit.data.shapes import shape_text
from vaeaudit.errors import listed

_WANTED = "one whole number or text for each item was expected"
_MOST = 2.0**53  # up to which float64 holds every whole number


def misshapen(shape: tuple[int, ...]) -> str | None:
    """Why an array of that shape holds no labels; None for (n,) and (n, 1)."""
    if shape and shape[1:] in ((), (1,)):
        return None
    return f"an array of shape {shape_text(shape)}, where {_WANTED}"


def read_labels(array: NDArray[np.generic]) -> tuple[NDArray[np.int64] | None, str | None]:
    """Labels (n,) from an array (n,) or (n, 1) of whole numbers, in any type, or of texts, numbered in their order.

    With them comes what was made of the array, in words; without them, what it holds instead; None for integers.
    """
    if fault := misshapen(array.shape):
        return None, fault
    flat = array.reshape(-1)
    if flat.dtype.kind in "biu":
        return flat.astype(np.int64), None
    if flat.dtype.kind in "SU":
        names, numbers = np.unique(flat, return_inverse=True)
        texts = [n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in names.tolist()]
        told = listed([f"{number} = {name}" for number, name in enumerate(texts)])
        return numbers.astype(np.int64), f"labels are texts, numbered in their order ({told})"
    if flat.dtype.kind == "f":
        exact = flat.astype(np.float64)
        odd = int((~((exact == np.round(exact)) & (np.abs(exact) <= _MOST))).sum())  # NaN is none
        if not odd:
            return flat.astype(np.int64), f"labels are whole numbers stored as {flat.dtype.name}"
        return None, f"{flat.dtype.name}, {odd} of {flat.size} of them not whole numbers, where {_WANTED}"
    return None, f"of type {flat.dtype.name}, where {_WANTED}"
