"""Tensors that are read a part at a time, as matrices (shape[0], the rest)."""

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_NUMBERS = 2**20  # read at a time
# Rows and columns of a matrix, as they are stored.
Block = Callable[[slice, slice], Tensor]


@dataclass(frozen=True, eq=False)
class Weight:
    """One tensor, read a part at a time: ``block(rows, columns)`` of it as a matrix (shape[0], -1), in ``dtype``.

    Both are slices with a start and a stop inside the matrix. A tensor of fewer than two dimensions is a matrix of one
    row. ``place`` is equal for tensors that share memory.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    place: Hashable
    block: Block

    @classmethod
    def of(cls, tensor: Tensor) -> "Weight":
        """A tensor that is in memory."""
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        matrix = tensor.detach().reshape(matrix_shape(tuple(tensor.shape)))
        return cls(tuple(tensor.shape), tensor.dtype, place, lambda rows, columns: matrix[rows, columns])


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(shape[0], the rest); one row for fewer than two dimensions."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def row_blocks(shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Parts of a matrix, whole rows where they are not too long, in the order in which it is stored."""
    rows, columns = shape
    width = min(columns, MOST_NUMBERS)
    height = max(1, MOST_NUMBERS // max(1, width))
    for top in range(0, rows, height):
        for left in range(0, columns, max(1, width)):
            yield slice(top, min(top + height, rows)), slice(left, min(left + width, columns))
