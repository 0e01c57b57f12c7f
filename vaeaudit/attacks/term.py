"""The data term of an attack, evaluated on as many points as memory allows, and what a long search tells."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from vaeaudit.errors import UnsupportedError
from vaeaudit.model.batches import RowBatches
from vaeaudit.optim.gauss_newton import Along

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
            return (as_precise(self.data_term(part.reshape(-1, *self.shape), of + self.first), part),)

        return self.rows.map(value, points, item)[0] if len(points) else points.new_zeros(0)

    def gradient(self, points: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """J, (b,), and its gradient, (b, n); zero where J does not depend on the points (a detached encoder)."""

        @torch.enable_grad()  # a notebook may stand under no_grad
        def gradient(part: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
            leaf = part.detach().requires_grad_(True)
            value = as_precise(self.data_term(leaf.reshape(-1, *self.shape), of + self.first), part)
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

    def slopes(self, points: Tensor, item: Tensor, along: Along) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`residuals`, the directions ``along`` them (b, s, k), and their slopes, (b, s, n).

        Slopes are directions times the residuals' Jacobian; each takes one pass back through the model. ``along`` is
        given residuals and the places of their points.
        """
        residuals = cast(Squares, self.data_term).residuals

        @torch.enable_grad()
        def slopes(part: Tensor, of: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            leaf = part.detach().requires_grad_(True)
            each = residuals(leaf.reshape(-1, *self.shape), of + self.first)
            directions = along(each.detach(), row)
            found = part.new_zeros((len(part), directions.shape[1], part.shape[1]))
            last = directions.shape[1] - 1
            for place, direction in enumerate(directions.unbind(1) if each.requires_grad else ()):
                (slope,) = torch.autograd.grad(each, leaf, direction, retain_graph=place < last, materialize_grads=True)
                found[:, place] = slope
            return each.detach(), directions, found

        each, directions, found = self.rows.map(slopes, points, item, torch.arange(len(points), device=points.device))
        return each, directions, found


def as_precise(value: Tensor, points: Tensor) -> Tensor:
    """The value, of the precision in which points are searched; else raises :class:`UnsupportedError`."""
    if value.dtype != points.dtype:
        given, asked = (str(of.dtype).removeprefix("torch.") for of in (value, points))
        advice = ", or try --dtype float64" if given == "float64" else ""
        raise UnsupportedError(
            f"a search needs posteriors and likelihoods in the precision of the input, {asked}, but the model gives "
            f"{given}; convert them in its adapter{advice}"
        )
    return value
