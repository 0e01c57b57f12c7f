"""Products of sparse matrices in float64, factorisations, and what these are off by."""

import math

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

INVERSE = 32.0  # > the norm of the inverse of what is factored here: 1 / sqrt(_LEAST)
_LEAST = 1e-3  # eigenvalue of B
_LOWERED = 1e-9
_UNIT = 2.0**-53
_DENSE = 0.1  # of the elements of a matrix: from there on what is sparse costs more


class NotShownError(Exception):
    """The multipliers at hand bound nothing on this ball: not that there is no bound."""


def gamma(terms: int) -> float:
    """What a sum of so many products is off by, as a share of the sum of their sizes."""
    return terms * _UNIT / (1 - terms * _UNIT)


def squares(matrix: sparse.csr_matrix) -> Tensor:
    """The squared norms of the rows."""
    return torch.from_numpy(np.asarray(matrix.multiply(matrix).sum(1)).ravel())


def product(left: sparse.csr_matrix, right: sparse.csr_matrix) -> Tensor:
    """Dense, and by way of dense matrices where both are all but that themselves, as of linear layers."""
    if is_dense(left) and is_dense(right):
        return dense(left) @ dense(right)
    return dense(left @ right)


def composed(left: sparse.csr_matrix, right: sparse.csr_matrix) -> sparse.csr_matrix:
    """The same, sparse."""
    if not (is_dense(left) and is_dense(right)):
        return sparse.csr_matrix(left @ right)
    whole = product(left, right).numpy()
    rows, columns = whole.shape
    # Not by way of its zeros, which to look for takes longer than to multiply.
    inner = np.tile(np.arange(columns), rows), np.arange(0, rows * columns + 1, columns)
    return sparse.csr_matrix((whole.ravel(), *inner), whole.shape)


def is_dense(matrix: sparse.csr_matrix) -> bool:
    """Whether what a matrix has of zeros does not pay to be left out."""
    return bool(matrix.nnz > _DENSE * math.prod(matrix.shape))


def dense(matrix: sparse.csr_matrix) -> Tensor:
    """The same matrix, dense."""
    return torch.from_numpy(matrix.toarray())


def gram_of(T: sparse.csr_matrix) -> Tensor:
    """T T', and above it in the order of positive semidefinite matrices by what it may be rounded by."""
    G = product(T, T.T.tocsr())
    return raised((G + G.T) / 2, 2 * T.shape[0] * gamma(T.shape[1]) * squares(T))


def raised(matrix: Tensor, by: Tensor) -> Tensor:
    """The matrix with ``by`` added to its diagonal, in place."""
    diagonal = matrix.diagonal()
    diagonal += by
    return matrix


def from_right(L: Tensor, rows: Tensor) -> Tensor:
    """``rows`` L'^-1, which is faster than the same from the left."""
    found: Tensor = torch.linalg.solve_triangular(L.T, rows, upper=True, left=False)
    return found


def factor(norm: Tensor, terms: int) -> Tensor:
    """L of B = I - ``norm``, a sum of so many ``terms``, lowered by what rounding may add.

    Raises :class:`NotShownError` where B is not known to be positive definite, with no eigenvalue near 0. The latter is
    not asked in float32, in which nothing is shown.
    """
    size = len(norm)
    B = -norm
    diagonal = B.diagonal()
    diagonal += 1 - max(_LOWERED, 4 * size * gamma(size + terms))
    L: Tensor
    L, failed = torch.linalg.cholesky_ex(B)
    if B.dtype == torch.float64 and not bool(failed):
        diagonal -= _LEAST
        _, failed = torch.linalg.cholesky_ex(B)
    if bool(failed):
        raise NotShownError
    return L
