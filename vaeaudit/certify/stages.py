"""A network as a chain of affine maps, each with activations on some of what it gives: what ellipsoids go through.

Every stage takes the state s to T s + b and applies one activation of the graph to its last rows; the first ones are
handed on for what takes them later, as in a skip. So whatever the graph's branches, a state follows from the one before
it alone. The maps do not depend on the input: they are read off the graph once, as sparse matrices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, fx

from vaeaudit.certify.graph import Graph, Kind
from vaeaudit.certify.maps import rows
from vaeaudit.certify.matrices import dense, gram_of, is_dense, squares
from vaeaudit.certify.rewriting import name_of
from vaeaudit.certify.room import Functions
from vaeaudit.errors import UnsupportedError

WIDEST = 4096  # rows of a block: more takes minutes
_MOST = 2**26  # elements of values that the rows of a map are followed back through


@dataclass(frozen=True, eq=False)
class Map:
    """T (rows, columns of the state before), float64."""

    matrix: sparse.csr_matrix

    @cached_property
    def whole(self) -> Tensor | None:
        """The same matrix, dense, where it is all but that itself."""
        return dense(self.matrix) if is_dense(self.matrix) else None

    def rows(self, chosen: Tensor | None) -> sparse.csr_matrix:
        """Some of its rows; all where none are chosen."""
        return self.matrix if chosen is None else self.matrix[chosen.numpy()]

    def part(self, rows: Tensor | None, columns: Tensor) -> Tensor:
        """Some of its rows, all where none are chosen, in some columns; dense."""
        if self.whole is None:
            return dense(self.rows(rows)[:, columns.numpy()])
        return (self.whole if rows is None else self.whole[rows])[:, columns]

    def used(self, chosen: Tensor) -> Tensor:
        """Which columns the ``chosen`` (rows,) of its rows depend on, (columns,)."""
        if self.whole is not None:
            return (self.whole[chosen] != 0).any(0)
        found = np.zeros(self.matrix.shape[1], dtype=bool)
        found[self.matrix[chosen.numpy()].indices] = True
        return torch.from_numpy(found)


@dataclass(frozen=True, eq=False)
class Stage(Map):
    """A map whose first ``passed`` rows are handed on; ``node`` acts on the rest."""

    passed: int
    node: fx.Node


@dataclass(frozen=True, eq=False)
class Stages:
    """The chain, and the linear parts of the graph's outputs in the last state, (k, columns) each."""

    chain: tuple[Stage, ...]
    outputs: tuple[Tensor, ...]
    inputs: int

    @cached_property
    def gram(self) -> Tensor | None:
        """T T' of the first stage, at least; None where it has more rows than there are inputs."""
        narrow = self.chain and self.chain[0].matrix.shape[0] <= min(self.inputs, WIDEST)
        return gram_of(self.chain[0].matrix) if narrow else None

    @cached_property
    def first(self) -> Functions:
        """What the first stage's activations are given."""
        return Functions(self.chain[0].matrix[self.chain[0].passed :])

    @cached_property
    def second(self) -> tuple[sparse.csr_matrix, Tensor]:
        """|T| of what the second stage's activations are given, and the norms of its rows."""
        acting = self.chain[1].matrix[self.chain[1].passed :]
        return abs(acting), squares(acting).sqrt()


@torch.enable_grad()
def stages(graph: Graph, like: Tensor) -> Stages:
    """The chain of ``graph``; ``like`` (1, *input_shape), any one input.

    Raises :class:`UnsupportedError` for a network too wide.
    """
    cut = _Cut(graph)
    cut.run(like.detach().double())
    bending = [node for node in graph.of(Kind.ACTIVATION) if node in cut.taken]
    values = [*(cut.taken[node] for node in bending), *(cut.env[node] for node in graph.outputs)]
    leaves = list(cut.leaves.items())
    sources = [_sources(value, [leaf for _, leaf in leaves]) for value in values]
    sizes = [leaf.numel() for _, leaf in leaves]
    state, chain = [0], []  # leaf 0 is the input, leaf k + 1 the activation k
    for place, node in enumerate(bending):
        later = set().union(*sources[place + 1 :])
        passed = [leaf for leaf in state if leaf in later]
        blocks = [_identity(leaf, state, sizes) for leaf in passed]
        blocks.append(_rows(values[place], [leaves[leaf][1] for leaf in state], name_of(node)))
        chain.append(Stage(sparse.vstack(blocks, format="csr"), sum(sizes[leaf] for leaf in passed), node))
        state = [*passed, place + 1]
    ends = [leaves[leaf][1] for leaf in state]
    outputs = tuple(torch.from_numpy(_rows(value, ends, "output").toarray()) for value in values[len(bending) :])
    return Stages(tuple(chain), outputs, sizes[0])


class _Cut(fx.Interpreter):
    """Runs the graph on one row, and begins anew after each activation."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module, garbage_collect_values=False)
        self.kinds = graph.kinds
        self.leaves: dict[fx.Node, Tensor] = {}  # the input, and what activations give
        self.taken: dict[fx.Node, Tensor] = {}  # what activations are given

    def run_node(self, n: fx.Node) -> Any:
        if self.kinds[n] is Kind.FREE:
            with torch.no_grad():
                return super().run_node(n)
        result = super().run_node(n)
        if self.kinds[n] in (Kind.INPUT, Kind.ACTIVATION):
            if self.kinds[n] is Kind.ACTIVATION:
                self.taken[n] = cast(Tensor, self.fetch_args_kwargs_from_env(n)[0][0])
            result = self.leaves[n] = result.detach().clone().requires_grad_()
            result = result.view_as(result)  # no leaf itself, which could not be written to
        return result


def _sources(value: Tensor, leaves: Sequence[Tensor]) -> set[int]:
    """Which of the ``leaves`` a value depends on."""
    if not value.requires_grad:
        return set()
    found = torch.autograd.grad(value.sum(), leaves, retain_graph=True, allow_unused=True)
    return {place for place, gradient in enumerate(found) if gradient is not None}


def _rows(value: Tensor, leaves: Sequence[Tensor], what: str) -> sparse.csr_matrix:
    """The matrix of ``value`` in the ``leaves`` side by side."""
    found = rows(value, leaves, _MOST)
    if found is None:
        raise UnsupportedError(
            f"there is no sector certificate: a map to the {value.numel()} inputs of '{what}' from "
            f"{sum(leaf.numel() for leaf in leaves)} values is more than is read off; the other certificates, "
            "estimates and the empirical margin need none"
        )
    return found


def _identity(leaf: int, state: Sequence[int], sizes: Sequence[int]) -> sparse.csr_matrix:
    before = sum(sizes[other] for other in state[: state.index(leaf)])
    columns = before + np.arange(sizes[leaf])
    shape = (sizes[leaf], sum(sizes[other] for other in state))
    return sparse.csr_matrix((np.ones(sizes[leaf]), (np.arange(sizes[leaf]), columns)), shape=shape)
