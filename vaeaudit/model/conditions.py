"""Conditional models: q(z|x, c) and p(x|z, c), bound to the conditions of the items that they are given.

A check sees the VAE that a conditional model is given c. What belongs to an item stays under that item's condition: its
reconstruction, its distortions and, in an attack, its target.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from vaeaudit.errors import ContractError, UnsupportedError
from vaeaudit.model.ranges import Range
from vaeaudit.model.vae import VAE, Likelihood, Posterior

V = TypeVar("V", bound=VAE)
Encode = Callable[[Tensor, Tensor], Posterior]  # points (b, *input_shape) of items (b,) -> the posterior of b rows


@runtime_checkable
class Conditional(Protocol):
    """A VAE of which encoder and decoder take a condition beside x and z; p(z) is the same under all conditions.

    A model may have a method ``condition(x, c)`` as well, which gives the condition of clean items ``x`` (batch,
    *input_shape) from what the data hold of it, where that is not all: the size of a library is a sum over x.
    """

    @property
    def condition_shape(self) -> tuple[int, ...]:
        """Shape of what the data hold for one item, such as () of a label; (0,) where they need hold nothing."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """As of a :class:`vaeaudit.VAE`."""
        ...

    @property
    def range(self) -> Range | None:
        """As of a :class:`vaeaudit.VAE`."""
        ...

    @property
    def prior(self) -> Posterior:
        """p(z), one row."""
        ...

    def encode(self, x: Tensor, c: Tensor) -> Posterior:
        """q(z|x, c) for x (batch, *input_shape) and c (batch, *condition_shape): int64 of labels, else floats."""
        ...

    def decode(self, z: Tensor, c: Tensor) -> Likelihood:
        """p(x|z, c) for z (batch, *latent)."""
        ...


class Conditioned:
    """The VAE that a conditional ``model`` is for items of ``conditions`` (items, ...), a row for each, in order.

    It takes a row for each item, or several draws of all items one after another. :func:`at` gives the VAE
    of some of them.
    """

    def __init__(self, model: Conditional, conditions: Tensor) -> None:
        self.model, self.conditions = model, conditions
        self.input_shape, self.range = tuple(model.input_shape), model.range
        for name in ("classify", "latent_scale"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))

    @property
    def prior(self) -> Posterior:
        """p(z), one row."""
        return self.model.prior

    def encode(self, x: Tensor) -> Posterior:
        """q(z|x, c), for a row of x for each condition, or several times as many."""
        return self.model.encode(x, self._of(x))

    def decode(self, z: Tensor) -> Likelihood:
        """p(x|z, c), likewise."""
        return self.model.decode(z, self._of(z))

    def of_items(self, items: Tensor | slice) -> "Conditioned":
        """The VAE for rows that belong to these items."""
        return Conditioned(self.model, self.conditions[items])

    def _of(self, rows: Tensor) -> Tensor:
        """The condition of each row; raises :class:`ContractError` where nothing says whose they are."""
        items, shape = len(self.conditions), self.conditions.shape[1:]
        if items == 1:
            return self.conditions.expand(rows.shape[0], *shape)  # no len(), which torch.export takes for a constant
        if items == 0 or len(rows) % items:
            raise ContractError(
                f"a conditional model bound to the conditions of {items} items was given {len(rows)} rows, and nothing "
                "says whose they are"
            )
        return self.conditions.expand(len(rows) // items, items, *shape).flatten(0, 1)


def under(vae: V, items: Tensor | slice) -> V:
    """The model for rows that belong to the items named by ``items``, their places; itself where that is no matter.

    What is bound to items, in an order, has a method ``of_items``, which gives it for some of them.
    """
    of_items = getattr(vae, "of_items", None)  # a search asks all the time, and a protocol takes ten times as long
    found: V = vae if of_items is None else of_items(items)
    return found


def encoder(vae: VAE) -> Encode:
    """``encode`` for points of any items."""
    return lambda points, item: under(vae, item).encode(points)


def one_function(vae: VAE) -> VAE:
    """The model as one function of x: itself, or that of the one condition to which it is bound.

    Raises :class:`UnsupportedError` where it is bound to several.
    """
    if not isinstance(vae, Conditioned):
        return vae
    if bool((vae.conditions != vae.conditions[:1]).any()):
        raise UnsupportedError(
            "a certificate is of one function, and a conditional model is another under each condition; give data of "
            "one condition"
        )
    return under(vae, slice(1))


def conditioned_as(vae: VAE, other: Any, dtype: torch.dtype) -> VAE:
    """Another conditional model under the conditions to which ``vae`` is bound, floats in ``dtype``; else as it is."""
    if not (isinstance(vae, Conditioned) and isinstance(other, Conditional)):
        found: VAE = other
        return found
    return Conditioned(other, vae.conditions.to(dtype) if vae.conditions.is_floating_point() else vae.conditions)


def model_of(vae: VAE) -> object:
    """What an adapter returned: of a conditional model that is bound, the model itself."""
    return vae.model if isinstance(vae, Conditioned) else vae


def conditions_of(model: Conditional, x: Tensor, held: Tensor | None) -> Tensor:
    """The conditions of clean items ``x`` from what data hold of them, (items, *condition_shape).

    Raises :class:`ContractError` where the model gives something else than a row for each.
    """
    wanted = tuple(model.condition_shape)
    given = x.new_zeros(len(x), *wanted) if held is None else held
    made = model.condition(x, given) if hasattr(model, "condition") else given
    if not isinstance(made, torch.Tensor) or made.shape[:1] != x.shape[:1]:
        raise ContractError(f"condition(x, c) must give a row for each of {len(x)} items; see docs/adapters.md")
    return made
