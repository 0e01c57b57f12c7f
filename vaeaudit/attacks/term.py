"""The data term of an attack, evaluated on as many points as memory allows, and what a long search tells."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from vaeaudit.model.batches import RowBatches

# data_term(points, item) -> J: points (b, *shape), item (b,) integers -> (b,), differentiable in points, minimised
DataTerm = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Squares:
    """A data term that is half the sum of squares of ``residuals``, (points, item) -> (b, k)."""

    data_term: DataTerm
    residuals: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, points: Tensor, item: Tensor) -> Tensor:
        """The data term, (b,)."""
        return self.data_term(points, item)


@dataclass(frozen=True, eq=False)
class Term:
    """A data term on flat points, (b, n) for items of ``shape``, in batches of ``rows``.

    ``first`` is the item that is called 0.
    """

    data_term: DataTerm
    shape: tuple[int, ...]
    rows: RowBatches
    first: int = 0

    def value(self, points: Tensor, item: Tensor) -> Tensor:
        """J, (b,)."""

        @torch.no_grad()
        def value(part: Tensor, of: Tensor) -> tuple[Tensor]:
            return (self.data_term(part.reshape(-1, *self.shape), of + self.first),)

        return self.rows.map(value, points, item)[0] if len(points) else points.new_zeros(0)

    def gradient(self, points: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """J, (b,), and its gradient, (b, n); zero where J does not depend on the points (a detached encoder)."""

        @torch.enable_grad()  # a notebook may stand under no_grad
        def gradient(part: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
            leaf = part.detach().requires_grad_(True)
            value = self.data_term(leaf.reshape(-1, *self.shape), of + self.first)
            if not value.requires_grad:
                return value, torch.zeros_like(part)
            (slope,) = torch.autograd.grad(value.sum(), leaf, materialize_grads=True)
            return value.detach(), slope

        if not len(points):  # many models cannot take a batch of no rows
            return points.new_zeros(0), torch.zeros_like(points)
        values, gradients = self.rows.map(gradient, points, item)
        return values, gradients

    @torch.no_grad()
    def residuals(self, points: Tensor, item: Tensor) -> Tensor:
        """Residuals (b, k) of which J is half the sum of squares, of as few points as one batch takes.

        Only where the data term is one of :class:`Squares`.
        """
        return cast(Squares, self.data_term).residuals(points.reshape(-1, *self.shape), item + self.first)

    def jacobian(self, points: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`residuals`, and their Jacobian (b, k, n). A row of it takes one pass back through the model."""
        residuals = cast(Squares, self.data_term).residuals

        @torch.enable_grad()
        def jacobian(part: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
            leaf = part.detach().requires_grad_(True)
            each = residuals(leaf.reshape(-1, *self.shape), of + self.first)
            slopes = part.new_zeros((*each.shape, part.shape[1]))
            for place in range(each.shape[1] if each.requires_grad else 0):
                total = each[:, place].sum()
                (slope,) = torch.autograd.grad(total, leaf, retain_graph=True, materialize_grads=True)
                slopes[:, place] = slope
            return each.detach(), slopes

        found, slopes = self.rows.map(jacobian, points, item)
        return found, slopes
