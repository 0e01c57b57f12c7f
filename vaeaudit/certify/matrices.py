"""Products of sparse matrices in float64, and what sums and products are off by."""

import math

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

_UNIT = 2.0**-53
_DENSE = 0.1  # of the elements of a matrix: from there on what is sparse costs more


def gamma(terms: int) -> float:
    """What a sum of so many products is off by, as a share of the sum of their sizes."""
    return terms * _UNIT / (1 - terms * _UNIT)


def squares(matrix: sparse.csr_matrix) -> Tensor:
    """The squared norms of the rows."""
    return torch.from_numpy(np.asarray(matrix.multiply(matrix).sum(1)).ravel())


def product(left: sparse.csr_matrix, right: sparse.csr_matrix) -> Tensor:
    """Dense, and by way of dense matrices where both are all but that themselves, as of linear layers."""
    if min(part.nnz / max(1, math.prod(part.shape)) for part in (left, right)) > _DENSE:
        return dense(left) @ dense(right)
    return dense(left @ right)


def dense(matrix: sparse.csr_matrix) -> Tensor:
    """The same matrix, dense."""
    return torch.from_numpy(matrix.toarray())
