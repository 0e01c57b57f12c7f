"""One input of a network in stages: what its activations do there, which of them matter, and the multipliers so far."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, fx

from vaeaudit.certify.activations import Kinked, Smooth, options_of, shape_of
from vaeaudit.certify.graph import Graph, Kind
from vaeaudit.certify.lines import unsupported
from vaeaudit.certify.matrices import INVERSE, composed, factor, from_right, gamma, raised, squares
from vaeaudit.certify.rewriting import name_of
from vaeaudit.certify.room import Functions, Room
from vaeaudit.certify.sector import derivative_of, sector
from vaeaudit.certify.stages import WIDEST, Map, Stages

_PAIRED = 0.5  # of the pairs' weights, which are best for a linear network: all of them leave errors too little room


Multipliers = list[Tensor | None]


@dataclass(frozen=True, eq=False)
class Bend:
    """An activation at an item: what it computes, how it bends, and its input ``at`` (1, *shape)."""

    activation: Callable[[Tensor], Tensor]
    shape: Kinked | Smooth
    at: Tensor

    @cached_property
    def derivative(self) -> Tensor:
        """Its slope there, like ``at``."""
        return derivative_of(self.activation, self.at)


class Item:
    """One input of a network in :class:`Stages`: its activations there, and which of them matter.

    ``outputs`` (k, columns) are the functions of the last state that are bounded; ``bends`` has one activation for each
    stage, ``influence`` how much each of its neurons moves the outputs to first order.
    """

    def __init__(self, graph: Graph, chain: Stages, x: Tensor, outputs: Callable[[Sequence[Tensor]], Tensor]) -> None:
        run = _Values(graph)
        with torch.no_grad():
            values = run.run(x.double())
        self.stages = chain
        self.bends = [run.bends[stage.node] for stage in chain.chain]
        self.outputs = outputs([value.cpu() for value in values])
        self.last = Map(sparse.csr_matrix(self.outputs.numpy()))
        self.influence: list[Tensor] = []
        self.slopes: list[Tensor] = []  # at the item
        rows = self.outputs
        for stage, bend in zip(reversed(chain.chain), reversed(self.bends), strict=True):
            acting = rows[:, stage.passed :]
            self.influence.append(torch.linalg.vector_norm(acting, dim=0))
            nowhere = torch.zeros_like(bend.at)
            slope, _ = sector(bend.shape, bend.at, bend.derivative, nowhere, nowhere)
            self.slopes.append(slope.flatten().cpu())
            back = torch.cat([rows[:, : stage.passed], acting * self.slopes[-1]], dim=1)
            rows = torch.from_numpy(stage.matrix.T @ back.T.numpy()).T
        self.influence.reverse()
        self.slopes.reverse()
        self.first_order = rows  # (k, inputs): the Jacobian
        # T T' of the first stage where it is narrow, with the weights of pairs in between where they have any.
        self.gram = chain.gram
        # Where inputs are kept in a box: the room that it leaves, N of pairs at a bound, and which inputs these are of.
        self.room: Room | None = None
        self.pairs: Tensor | None = None
        self.paired = torch.zeros(0, dtype=torch.int64)
        self.dtype = torch.float64  # of matrices; no bound rests on what is found in another
        self.forget()

    def forget(self) -> None:
        """Begins without multipliers."""
        # Over the usual ones, stage by stage, NaN where a neuron has never bent; and those before they were moved.
        self.multipliers: Multipliers = [None] * len(self.bends)
        # How many neurons bent, and how many inputs mattered, where multipliers were last improved.
        self.bent, self.inputs = 0, 0
        self.pace = 1.0  # of the steps of multipliers
        self.keep()

    def keep(self) -> None:
        """Remembers the multipliers as those that last bounded something."""
        self.shown = [None if found is None else found.clone() for found in self.multipliers]

    def retreat(self) -> None:
        """Takes the multipliers back to those that last bounded something."""
        self.multipliers = [None if found is None else found.clone() for found in self.shown]

    def enter(self, room: Room) -> None:
        """From now on inputs are kept in a box."""
        self.room = room
        one_way = self.first_order.any(0) & (room.inward != 0)
        moving, rest = one_way.nonzero()[:, 0], self.first_order[:, ~one_way]
        if len(moving) <= WIDEST:
            pairs = room.of_inputs(moving).pairs(self.first_order[:, moving], rest)
            self.pairs, self.paired = None if pairs is None else _PAIRED * pairs, moving
        if self.pairs is not None and self.gram is not None:
            self.gram = self._gram_with(self.pairs)
        self.pace = 1.0
        self.keep()

    def _gram_with(self, pairs: Tensor) -> Tensor:
        """T (I - N)^-1 T' of the first stage, at least."""
        first = self.stages.chain[0]
        T, others = first.part(None, self.paired), np.setdiff1d(np.arange(self.stages.inputs), self.paired)
        X, terms = from_right(factor(pairs, 1), T), len(pairs)
        Z = torch.cat([X, first.part(None, torch.from_numpy(others))], dim=1)
        G = Z @ Z.T
        solved = INVERSE * math.sqrt(terms) * gamma(terms)
        off = solved * X.square().sum(1) + gamma(Z.shape[1] + 2) * Z.square().sum(1)
        return raised((G + G.T) / 2, 2 * len(G) * off)

    def pairs_of(self, inputs: Tensor) -> Tensor:
        """N of some inputs, (inputs, inputs): those of a part are as good as all."""
        assert self.pairs is not None
        if torch.equal(inputs, self.paired):
            return self.pairs
        at = torch.full((self.stages.inputs,), -1)
        at[self.paired] = torch.arange(len(self.paired))
        known = (at[inputs] >= 0).nonzero()[:, 0]
        N = torch.zeros((len(inputs), len(inputs)), dtype=self.pairs.dtype)
        N[known[:, None], known] = self.pairs[at[inputs[known]][:, None], at[inputs[known]]]
        return N

    @cached_property
    def second(self) -> Functions:
        """The Jacobian at the item of what the second stage's activations are given."""
        first, second = self.stages.chain[:2]
        slopes = torch.cat([self.slopes[0].new_ones(first.passed), self.slopes[0]])
        return Functions(
            composed(second.matrix[second.passed :], sparse.csr_matrix(sparse.diags(slopes.numpy()) @ first.matrix))
        )

    @cached_property
    def first_size(self) -> float:
        """No less than the Frobenius norm of the first map times its slopes at the item."""
        steepest = max(1.0, float(self.slopes[0].abs().max()))
        return steepest * float(squares(self.stages.chain[0].matrix).sum().sqrt())


class _Values(fx.Interpreter):
    """Runs the graph on one row, and keeps what its activations are given."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module)
        self.kinds, self.bends = graph.kinds, dict[fx.Node, Bend]()

    def run_node(self, n: fx.Node) -> Any:
        if self.kinds[n] is Kind.ACTIVATION:
            arguments, keywords = self.fetch_args_kwargs_from_env(n)
            shape = shape_of(name_of(n), {name: self.env.get(value, value) for name, value in options_of(n).items()})
            if shape is None:
                raise unsupported(n)
            activation = partial(_applied, cast(Callable[..., Tensor], n.target), arguments[1:], keywords)
            self.bends[n] = Bend(activation, shape, cast(Tensor, arguments[0]))
        return super().run_node(n)


def _applied(target: Callable[..., Tensor], rest: Sequence[Any], keywords: dict[str, Any], y: Tensor) -> Tensor:
    return target(y, *rest, **keywords)
