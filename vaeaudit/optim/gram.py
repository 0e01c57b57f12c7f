"""Products of the rows of a matrix over some of its columns, kept while both change little."""

import torch
from torch import Tensor

from vaeaudit.optim.far import far

_AFRESH = 20  # products after which they are computed afresh, since rounding adds up
_MANY = 8  # and where more than this part of the columns has changed


class Gram:
    """M D M^T of each ``matrix`` M (B, k, n), where the diagonal D picks columns.

    Computed anew it takes k^2 n operations. What changed is mostly one direction of M, and few of the columns.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, (rows, k, n) = matrix, matrix.shape
        self._columns = matrix.new_zeros(rows, n, dtype=torch.bool)  # those picked last
        self._product = matrix.new_zeros(rows, k, k)
        self._asked = 0

    def correct(self, along: Tensor, change: Tensor) -> None:
        """Add the outer product of ``along`` (B, 1, k) and ``change`` (B, 1, n) to the matrix."""
        picked = change * self._columns[:, None]
        across = torch.bmm(picked, self.matrix.mT).add_(torch.bmm(picked, change.mT) * along, alpha=0.5)  # (B, 1, k)
        self._product.baddbmm_(along.mT, across).baddbmm_(across.mT, along)
        self.matrix.baddbmm_(along.mT, change)

    def over(self, columns: Tensor) -> Tensor:
        """The product over ``columns`` (B, n), a truth value each, (B, k, k)."""
        change = columns.to(self.matrix.dtype) - self._columns.to(self.matrix.dtype)
        count = change.count_nonzero(1)
        many = count > columns.shape[1] // _MANY
        if far(columns) or self._asked % _AFRESH == 0:
            many = torch.ones_like(many)
        self._columns, self._asked = columns, self._asked + 1
        whole = many.nonzero().squeeze(1)
        few = int(torch.where(many, 0, count).max())
        if few:
            sign, place = change.abs().topk(few, dim=1, sorted=False)
            sign = change.gather(1, place)
            picked = self.matrix.gather(2, place[:, None].expand(-1, self.matrix.shape[1], -1))
            self._product.baddbmm_(picked * sign[:, None], picked.mT)
        if len(whole):
            rows = self.matrix[whole]
            self._product[whole] = torch.bmm(rows * columns[whole, None], rows.mT)
        return self._product
