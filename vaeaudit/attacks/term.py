"""The data term of an attack, evaluated on as many points as memory allows, and what a long search tells."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeaudit.model.batches import RowBatches

# data_term(points, item) -> J: points (b, *shape), item (b,) integers -> (b,), differentiable in points, minimised
DataTerm = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Term:
    """A data term on flat points, (b, n) for items of ``shape``, in batches of ``rows``."""

    data_term: DataTerm
    shape: tuple[int, ...]
    rows: RowBatches

    def value(self, points: Tensor, item: Tensor) -> Tensor:
        """J, (b,)."""

        @torch.no_grad()
        def value(part: Tensor, of: Tensor) -> tuple[Tensor]:
            return (self.data_term(part.reshape(-1, *self.shape), of),)

        return self.rows.map(value, points, item)[0] if len(points) else points.new_zeros(0)

    def gradient(self, points: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """J, (b,), and its gradient, (b, n); zero where J does not depend on the points (a detached encoder)."""

        @torch.enable_grad()  # a notebook may stand under no_grad
        def gradient(part: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
            leaf = part.detach().requires_grad_(True)
            value = self.data_term(leaf.reshape(-1, *self.shape), of)
            if not value.requires_grad:
                return value, torch.zeros_like(part)
            (slope,) = torch.autograd.grad(value.sum(), leaf, materialize_grads=True)
            return value.detach(), slope

        if not len(points):  # many models cannot take a batch of no rows
            return points.new_zeros(0), torch.zeros_like(points)
        values, gradients = self.rows.map(gradient, points, item)
        return values, gradients
