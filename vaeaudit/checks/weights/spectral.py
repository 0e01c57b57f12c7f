"""Norms of matrices that need not lie in memory: the Frobenius norm and the 2-norm, in float64."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from vaeaudit.model import blocks
from vaeaudit.model.blocks import Block, row_blocks
from vaeaudit.stats.draws import uniform

_GRAM = 2048  # the larger of two sides whose Gram matrix is formed
_HELD = 2**25  # numbers of a larger matrix that is kept in float64, and not read again for each product
_LONGEST = blocks.MOST_NUMBERS  # columns of one whose products are formed from whole rows
_TOLERANCE = 1e-8
_SAFE = 1e-100, 1e100  # sums of squares whose parts neither overflow nor vanish: all of float32 lie between
GRAM = "largest eigenvalue of the Gram matrix, exact up to rounding in float64"
LANCZOS = f"Lanczos (ARPACK) on A'A to {_TOLERANCE:g} in float64, a value from below"


@dataclass(frozen=True)
class Measured:
    """What is known of a matrix: ``l2``, its Frobenius norm; ``spectral``, its 2-norm, by ``method``; None without one.

    ``bad`` of ``numbers`` numbers are NaN or infinite; then there is no norm either.
    """

    l2: float
    spectral: float | None
    method: str
    bad: int
    numbers: int


def measured_norms(shape: tuple[int, int], block: Block, spectral: bool) -> Measured:
    """Norms of the matrix of which ``block`` gives the parts, at most 2^20 numbers at a time.

    The 2-norm comes from the Gram matrix of the smaller side in one pass; where that side has more than 2,048 rows,
    from Lanczos iterations, each of which is a pass over a matrix of more than 2^25 numbers. A matrix whose squares
    float64 cannot hold is scaled by a power of two first, which takes two passes more.
    """
    rows, columns = shape
    side, numbers = min(shape), rows * columns
    by_gram = spectral and side <= _GRAM
    tall = columns <= rows
    wide_blocks = ((slice(0, rows), part) for part in _spans(columns, max(1, blocks.MOST_NUMBERS // max(1, rows))))
    parts = wide_blocks if by_gram and not tall else row_blocks(shape)
    gram = torch.zeros((side, side), dtype=torch.float64) if by_gram else None
    squares, bad = 0.0, 0
    for part in parts:
        values = _double(block(*part))
        squares += (of_part := float(torch.dot(values.flatten(), values.flatten())))
        if not math.isfinite(of_part):
            bad += int((~values.isfinite()).sum())
        if gram is not None:
            gram += values.T @ values if tall else values @ values.T
    if numbers and not bad and not _SAFE[0] < squares < _SAFE[1]:
        largest = max(float(_double(block(*part)).abs().max()) for part in row_blocks(shape))
        if largest:
            scale = 2.0 ** (math.frexp(largest)[1] - 1)
            found = measured_norms(shape, lambda *part: _double(block(*part)) / scale, spectral)
            of_matrix = None if found.spectral is None else scale * found.spectral
            return replace(found, l2=scale * found.l2, spectral=of_matrix)
    l2 = math.sqrt(squares)
    if bad or not spectral:
        return Measured(l2, None, "", bad, numbers)
    if not numbers or not l2:
        return Measured(l2, 0.0, GRAM, bad, numbers)
    if gram is not None:
        return Measured(l2, math.sqrt(float(torch.linalg.eigvalsh(gram)[-1])), GRAM, bad, numbers)
    if columns > _LONGEST:
        return Measured(l2, None, f"none: {rows:,} x {columns:,} is too large", bad, numbers)
    return Measured(l2, *_lanczos(shape, block), bad, numbers)


def _lanczos(shape: tuple[int, int], block: Block) -> tuple[float | None, str]:
    """The 2-norm of a matrix with many rows and columns, and how it was found."""
    rows, columns = shape
    held = _double(block(slice(0, rows), slice(0, columns))) if rows * columns <= _HELD else None

    def product(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        v = torch.from_numpy(np.ascontiguousarray(vector).reshape(columns))
        if held is not None:
            return (held.T @ (held @ v)).numpy()
        total = torch.zeros(columns, dtype=torch.float64)
        for part in row_blocks(shape):
            values = _double(block(*part))
            total += values.T @ (values @ v)
        return total.numpy()

    start = uniform(columns, seed=0, check="weights.spectral", item=0) - 0.5
    operator = LinearOperator((columns, columns), matvec=product, dtype=np.float64)
    try:
        (largest,) = eigsh(operator, k=1, which="LA", v0=start, tol=_TOLERANCE, return_eigenvectors=False)
    except ArpackNoConvergence:
        return None, f"none: {LANCZOS} did not converge"
    return math.sqrt(max(0.0, float(largest))), LANCZOS


def _spans(total: int, width: int) -> Iterator[slice]:
    return (slice(first, min(first + width, total)) for first in range(0, total, width))


def _double(values: Tensor) -> Tensor:
    return values.to("cpu", torch.float64)
