"""What sums and products in float64 are off by."""

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

_UNIT = 2.0**-53


def gamma(terms: int) -> float:
    """What a sum of so many products is off by, as a share of the sum of their sizes."""
    return terms * _UNIT / (1 - terms * _UNIT)


def squares(matrix: sparse.csr_matrix) -> Tensor:
    """The squared norms of the rows."""
    return torch.from_numpy(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
