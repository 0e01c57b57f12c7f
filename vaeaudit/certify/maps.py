"""The matrices of affine maps, read off by following elements back: many at once where they depend on different inputs.

Of a convolution a row has a few inputs alone. Which these are at a place is seen from all channels of the place
together, with random weights, which cancel nowhere but by chance of 2^-53; rows of places that share none are then
followed back as one, and told apart by where they arrive.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import norm
from torch import Tensor

_TOGETHER = 2**21  # elements of the values that rows are followed back through at once


def pulled_back(value: Tensor, of: tuple[Tensor, ...], functions: Tensor) -> tuple[Tensor, ...]:
    """The gradients of each of the ``functions`` (s, *value.shape), <functions, value>, with respect to ``of``."""

    def gradient(function: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(value, of, function, retain_graph=True, allow_unused=True, materialize_grads=True)

    # Not is_grads_batched, whose older vmap takes convolutions one by one.
    return torch.vmap(gradient)(functions)


def rows(value: Tensor, leaves: Sequence[Tensor], most: float) -> sparse.csr_matrix | None:
    """The matrix (elements, columns) of ``value`` (1, *shape), affine in the ``leaves`` side by side; float64.

    None where more than ``most`` elements would have to be followed back.
    """
    size, columns = value.numel(), sum(leaf.numel() for leaf in leaves)
    if not value.requires_grad:
        return sparse.csr_matrix((size, columns))
    back = _Back(value, tuple(leaves), columns)
    shared = _by_place(back, most)
    if shared is not None or size * columns > most:
        return shared
    whole: sparse.csr_matrix = sparse.vstack(list(back.of(sparse.identity(size, format="csr"))), format="csr")
    return whole


def row_norms(value: Tensor, leaf: Tensor) -> Tensor:
    """The Euclidean norms of the rows of that matrix, (elements,)."""
    back = _Back(value, (leaf,), leaf.numel())
    shared = _by_place(back, math.inf)
    parts = back.of(sparse.identity(value.numel(), format="csr")) if shared is None else [shared]
    return torch.cat([torch.from_numpy(np.asarray(norm(part, axis=1))) for part in parts]).to(value.device)


class _Back:
    """Follows functions of ``value`` back to the ``leaves``, which have so many ``columns``."""

    def __init__(self, value: Tensor, leaves: tuple[Tensor, ...], columns: int) -> None:
        self.value, self.leaves, self.columns = value, leaves, columns

    def of(self, functions: sparse.csr_matrix) -> Iterator[sparse.csr_matrix]:
        """(functions, columns), in parts."""
        count = max(1, _TOGETHER // max(self.value.numel(), self.columns))
        for first in range(0, functions.shape[0], count):
            chosen = torch.from_numpy(functions[first : first + count].toarray()).to(self.value)
            gradients = pulled_back(self.value, self.leaves, chosen.view(-1, *self.value.shape))
            yield sparse.csr_matrix(torch.cat([part.flatten(1) for part in gradients], dim=1).cpu().numpy())


def _by_place(back: _Back, most: float) -> sparse.csr_matrix | None:
    """The matrix of rows by channel and place; None where that is no saving, or takes more than ``most`` elements."""
    places = math.prod(back.value.shape[2:])
    channels = back.value.numel() // max(1, places)
    if min(channels, places) < 2 or places * back.columns > most:
        return None
    weights = np.random.default_rng(0).uniform(0.5, 1.0, channels)  # no draw of the audit: any will do
    together = back.of(sparse.kron(weights, sparse.identity(places), format="csr"))
    inputs = sparse.vstack(list(together), format="csr")
    inputs.data[:] = 1.0
    colours = _apart(sparse.csr_matrix(inputs @ inputs.T))
    count = 1 + int(colours.max())
    if places + count * channels > places * channels / 2 or count * channels * back.columns > most:
        return None
    of_colour = sparse.csr_matrix((np.ones(places), (colours, np.arange(places))), (count, places))
    parts = back.of(sparse.kron(sparse.identity(channels), of_colour, format="csr"))
    found = sparse.vstack(list(parts), format="coo")
    # Whose a column is among the places of a colour: there is one at most.
    entries = inputs.tocoo()
    owner = np.full((count, back.columns), -1)
    owner[colours[entries.row], entries.col] = entries.row
    place = owner[found.row % count, found.col]
    known = place >= 0
    at = (found.row // count * places + place)[known], found.col[known]
    return sparse.csr_matrix((found.data[known], at), (channels * places, back.columns))


def _apart(touching: sparse.csr_matrix) -> np.ndarray:
    """A colour for each place, so that none of one colour are ``touching`` (places, places)."""
    colours = np.full(touching.shape[0], -1)
    for place in range(len(colours)):
        taken = set(colours[touching.indices[touching.indptr[place] : touching.indptr[place + 1]]])
        colours[place] = next(colour for colour in range(len(colours)) if colour not in taken)
    return colours
