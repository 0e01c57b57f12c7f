"""Products of the rows of a matrix over some of its columns, kept while both change little."""

import torch
from torch import Tensor

from vaeaudit.optim.far import far

_AFRESH = 20  # products after which they are computed afresh, since rounding adds up
_MANY = 8  # and where more than this part of the columns has changed
_WIDE = 16  # rows of a matrix below which that is as fast anyway


class Gram:
    """M D M^T of each ``matrix`` M (B, k, n), where the diagonal D picks columns.

    Computed anew it takes k^2 n operations. What changed since is mostly one direction of M, and few of the columns.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, (rows, k, n) = matrix, matrix.shape
        self._columns = matrix.new_zeros(rows, n)  # those picked last
        self._product = matrix.new_zeros(rows, k, k)
        self._asked, self._kept = 0, k >= _WIDE and not far(matrix)

    def correct(self, along: Tensor, change: Tensor) -> None:
        """Add the outer product of ``along`` (B, 1, k) and ``change`` (B, 1, n) to the matrix."""
        if self._kept:
            picked = change * self._columns[:, None]
            across = torch.bmm(picked, self.matrix.mT).add_(torch.bmm(picked, change.mT) * along, alpha=0.5)
            self._product.baddbmm_(along.mT, across).baddbmm_(across.mT, along)
        self.matrix.baddbmm_(along.mT, change)

    def over(self, columns: Tensor) -> Tensor:
        """The product over ``columns`` (B, n), 1 for one that is picked and else 0, (B, k, k)."""
        self._asked += 1
        if not self._kept or self._asked % _AFRESH == 1:
            self._columns, self._product = columns, torch.bmm(self.matrix * columns[:, None], self.matrix.mT)
            return self._product
        change = columns - self._columns
        count = change.count_nonzero(1)
        many = count > columns.shape[1] // _MANY
        few = int(torch.where(many, 0, count).max())
        if few:
            _, place = change.abs().topk(few, dim=1, sorted=False)
            picked = self.matrix.gather(2, place[:, None].expand(-1, self.matrix.shape[1], -1))
            self._product.baddbmm_(picked * change.gather(1, place)[:, None], picked.mT)
        whole = many.nonzero().squeeze(1)
        if len(whole):
            rows = self.matrix[whole]
            self._product[whole] = torch.bmm(rows * columns[whole, None], rows.mT)
        self._columns = columns
        return self._product
