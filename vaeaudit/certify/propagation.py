"""Linear bounds of a network on a ball around each input: CROWN (Zhang et al. 2018, arXiv:1811.00866), backward.

On ||d||_2 <= rho each activation lies between two lines in its input, whose interval is known from the layers before.
A function c of the outputs is then bounded by following its gradient back with the line that its sign asks for in
place of the derivative: c(x0 + d) >= c(x0) + a + A d >= c(x0) + a - rho ||A||. Autograd does all that is affine, so a
convolution stays a convolution and biases need no care. All in float64, with norms and offsets widened for rounding.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from vaeaudit.certify.activations import ROUNDING, Kinked, options_of, shape_of
from vaeaudit.certify.graph import Graph, Kind
from vaeaudit.certify.lines import bent, lines, nearest, unsupported
from vaeaudit.certify.maps import pulled_back, row_norms
from vaeaudit.certify.rewriting import name_of

_ELEMENTS = 2**19  # of the widest layer in one backward pass: memory is bounded, and a CPU's caches are used

Interval = tuple[Tensor, Tensor]  # how far below and above its value at x0 an activation's input can lie, both >= 0

# Operations that move elements about, or average them: the same on how far these reach.
_RESHAPING = {"view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"}
_TURNING = {"permute", "transpose", "t", "clone", "contiguous", "alias"}
_PICKING = {"select", "slice", "index_select", "unbind", "split", "split_with_sizes", "chunk", "getitem"}
_STRUCTURAL = frozenset(_RESHAPING | _TURNING | _PICKING | {"avg_pool2d", "adaptive_avg_pool2d"})
_WEIGHTED = frozenset({"linear", "conv1d", "conv2d", "conv3d"})


@dataclass(frozen=True, eq=False)
class LinearBound:
    """For each of s functions of b items: c(x0 + d) - c(x0) >= ``offset`` + ``slope`` . d on the ball.

    ``slope`` (s, b, inputs), ``offset`` (s, b) <= 0.
    """

    slope: Tensor
    offset: Tensor

    def least(self, rho: Tensor) -> Tensor:
        """A lower bound of c(x0 + d) - c(x0) over the ball of radius ``rho`` (b,): (s, b)."""
        return self.offset - rho * norm(self.slope)


def norm(rows: Tensor) -> Tensor:
    """Euclidean norms over the last dimension, rounded up."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return lengths * (1 + ROUNDING)


@dataclass(frozen=True, eq=False)
class Ball:
    """The network on the balls ||x - x0|| <= ``rho`` (b,) of b items: see :func:`propagate`.

    ``outputs`` are the network's, (b, *shape) each, of which :meth:`bounds` takes any function; ``intervals`` are those
    of its activations' inputs, by name. ``x`` (b, *input_shape) and ``offset`` (b,) are what outputs are differentiated
    by: the "gradient" of the offset is the sum of what the lines lie apart from the activations at x0.
    """

    x: Tensor
    rho: Tensor
    offset: Tensor
    outputs: tuple[Tensor, ...]
    intervals: dict[str, Interval]

    def bounds(self, value: Tensor, functions: Tensor) -> LinearBound:
        """Lower bounds of <functions, value>: ``functions`` (s, b, *shape), ``value`` (b, *shape) of this ball."""
        return _bounds(value, functions, self.x, self.offset)


@torch.enable_grad()
def propagate(
    graph: Graph,
    x: Tensor,
    rho: Tensor,
    norms: dict[str, Tensor],
    known: dict[str, Interval] | None = None,
    linear: bool = False,
) -> Ball:
    """Carry the balls ||x - x0|| <= ``rho`` of b items through the network.

    ``x`` (b, *input_shape) and ``rho`` (b,) in float64; ``norms`` is :func:`first_norms` of the graph. ``known`` has
    the ``intervals`` of the same items on balls at least as large: a piece that they show to be linear is not bounded
    again. Each layer costs one backward pass of the neurons that may be bent, twice once something before is bent.
    With ``linear`` the balls shrink to where every activation stays on its linear piece; ``rho`` ends as those radii.

    Raises :class:`UnsupportedError` for an operation that has no linear bounds here.
    """
    relaxing = _Relaxing(graph, x.detach().double().requires_grad_(), rho, norms, known or {}, linear)
    outputs = cast(tuple[Tensor, ...], relaxing.run(relaxing.x))
    return Ball(relaxing.x, relaxing.rho, relaxing.offset, outputs, relaxing.intervals)


def _bounds(value: Tensor, functions: Tensor, x: Tensor, offset: Tensor) -> LinearBound:
    if not value.requires_grad:
        zero = value.new_zeros(len(functions), len(value))
        return LinearBound(zero.unsqueeze(-1).expand(-1, -1, x[0].numel()), zero)
    slope, apart = pulled_back(value, (x, offset), functions)
    return LinearBound(slope.flatten(2), apart * (1 + ROUNDING))


@torch.enable_grad()
def first_norms(graph: Graph, like: Tensor) -> dict[str, Tensor]:
    """||dy / dx|| of the inputs y of those activations that no other comes before, (neurons,) by the activation's name.

    They are affine in x, so that the norms hold everywhere. ``like`` (1, *input_shape), any one input.
    """
    first = _First(graph)
    first.run(like.detach().double().requires_grad_())
    return first.norms


class _First(fx.Interpreter):
    """Runs the graph on one row for :func:`first_norms`."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module)
        self.kinds = graph.kinds
        self.norms: dict[str, Tensor] = {}
        self.x: Tensor | None = None
        self.later: set[fx.Node] = set()  # what an activation comes before

    def run_node(self, n: fx.Node) -> Any:
        if any(
            source in self.later or self.kinds[source] in (Kind.ACTIVATION, Kind.MAXIMUM)
            for source in n.all_input_nodes
        ):
            self.later.add(n)
        elif self.kinds[n] is Kind.ACTIVATION:
            y = cast(Tensor, self.fetch_args_kwargs_from_env(n)[0][0])
            self.norms[n.name] = row_norms(y, cast(Tensor, self.x)) * (1 + ROUNDING)
        result = super().run_node(n)
        if self.kinds[n] is Kind.INPUT:
            self.x = result
        return result


class _Relaxing(fx.Interpreter):
    """Runs the graph with each activation replaced by one whose backward pass follows its lines."""

    def __init__(
        self,
        graph: Graph,
        x: Tensor,
        rho: Tensor,
        norms: dict[str, Tensor],
        known: dict[str, Interval],
        linear: bool,
    ) -> None:
        super().__init__(graph.module)
        self.kinds, self.x, self.rho, self.norms, self.known, self.linear = graph.kinds, x, rho, norms, known, linear
        self.offset = torch.zeros_like(rho, requires_grad=True)
        self.intervals: dict[str, Interval] = {}
        self.bent = torch.zeros_like(rho)  # how many neurons of each item are not known to stay on a linear piece
        self.widest = x[0].numel()
        self.reach: dict[fx.Node, Any] = {}  # how far each element can move within the ball

    def run_node(self, n: fx.Node) -> Any:
        kind = self.kinds[n]
        if kind is Kind.MAXIMUM:
            raise unsupported(n)
        if kind is Kind.FREE:
            with torch.no_grad():
                return super().run_node(n)
        arguments, keywords = self.fetch_args_kwargs_from_env(n)
        if kind is not Kind.ACTIVATION:
            value = super().run_node(n)
            if kind is Kind.INPUT:
                self.reach[n] = (value.detach() * 0 + 1) * self.rho.view(-1, *(1,) * (value.dim() - 1))
            elif kind is Kind.AFFINE:
                with torch.no_grad():
                    self.reach[n] = self._affine_reach(n, value, arguments, keywords)
            return value
        y = cast(Tensor, arguments[0])
        target = cast(Callable[..., Tensor], n.target)
        shape = shape_of(name_of(n), {name: self.env.get(value, value) for name, value in options_of(n).items()})
        if shape is None:
            raise unsupported(n)
        reach = self.reach[cast(fx.Node, n.args[0])]
        below, above = self.interval(n.name, y, reach, shape.kinks if isinstance(shape, Kinked) else None)
        value, *two = lines(lambda at: target(at, *arguments[1:], **keywords), shape, y.detach(), below, above)
        steepest = torch.maximum(two[0].abs(), two[2].abs())
        off = torch.maximum(-two[1], two[3])
        far = torch.where(steepest == 0, 0.0, torch.maximum(below, above))
        self.reach[n] = (steepest * far + off) * (1 + ROUNDING)
        relaxed = cast(Callable[..., Tensor], _Relaxed.apply)
        return relaxed(y, self.offset, value, *two)

    def interval(self, name: str, y: Tensor, reach: Tensor, kinks: Sequence[float] | None) -> Interval:
        """How far the input ``y`` (b, *shape) of the activation ``name`` can move, at most ``reach``."""
        self.widest = max(self.widest, y[0].numel())
        reach = reach.nan_to_num(nan=math.inf, posinf=math.inf)  # 0 times infinity is nothing known
        value = y.detach().flatten(1)
        if name in self.norms:
            below = self.rho.unsqueeze(1) * self.norms[name]
            found = below, below
        else:
            below, above = (torch.minimum(reach, side).flatten(1) for side in self.known.get(name, (reach, reach)))
            found = self._propagated(y, kinks, below, above)
        if self.linear:
            found = self._shrunk(value, *found, kinks)
        self.bent = self.bent + bent(value, *found, kinks).sum(1)
        self.intervals[name] = found[0].view_as(y), found[1].view_as(y)
        return self.intervals[name]

    def _propagated(self, y: Tensor, kinks: Sequence[float] | None, below: Tensor, above: Tensor) -> Interval:
        value, below, above = y.detach().flatten(1), below.clone(), above.clone()
        if not bool(self.rho.any()):
            return torch.zeros_like(value), torch.zeros_like(value)
        # The side with the nearer kink says whether there is anything to bound on the other.
        kink = nearest(value, kinks)
        towards = torch.where(kink > value, 1.0, -1.0).to(value)
        for direction in (towards, -towards):
            open_ = bent(value, below, above, kinks)
            # Items have different numbers of open neurons: the rest of a row is filled with others.
            count = int(open_.sum(1).max()) if open_.numel() else 0
            if not count:
                continue
            order = open_.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]  # (b, count)
            for chosen in torch.split(order, max(1, self._elements() // (len(y) * self.widest)), dim=1):
                sign = direction.gather(1, chosen)
                function = torch.zeros(chosen.shape[1], *value.shape, dtype=y.dtype, device=y.device)
                function.scatter_(2, chosen.T.unsqueeze(-1), -sign.T.unsqueeze(-1))
                bound = _bounds(y, function.view(-1, *y.shape), self.x, self.offset)
                reach = -bound.least(self.rho).T.nan_to_num(nan=-math.inf)
                straight = self.bent == 0  # where nothing before is bent, the other side is the same line
                for side, here in ((below, sign < 0), (above, sign > 0)):
                    old = side.gather(1, chosen)
                    side.scatter_(1, chosen, torch.where(here | straight.unsqueeze(1), torch.minimum(old, reach), old))
            if kinks is not None and not bool(self.bent.any()):
                break
        return below, above

    def _elements(self) -> int:
        return _ELEMENTS if self.rho.device.type == "cpu" else 64 * _ELEMENTS

    def _shrunk(self, value: Tensor, below: Tensor, above: Tensor, kinks: Sequence[float] | None) -> Interval:
        """The intervals of the largest ball within this one on which all these activations stay linear."""
        far, gap = torch.maximum(below, above), (nearest(value, kinks) - value).abs()
        share = torch.where(far > gap, gap / far, 1.0)
        share = torch.where(bent(value, below, above, kinks), share, 1.0)
        share = share.amin(1) if kinks is not None else torch.zeros_like(self.rho)
        self.rho = self.rho * share * (1 - ROUNDING)
        return below * share.unsqueeze(1) * (1 - ROUNDING), above * share.unsqueeze(1) * (1 - ROUNDING)

    def _affine_reach(self, n: fx.Node, value: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """A crude bound of how far each element of an affine operation moves: the same on absolute weights.

        It only spares propagation where it shows that a piece is linear; infinite where the operation has none here.
        """
        name, target = name_of(n), cast(Callable[..., Any], n.target)
        rest = arguments[1:]
        moving = [source for source in n.args if isinstance(source, fx.Node) and source in self.reach]  # h + h: twice
        reaches = [self.reach[source] for source in moving]
        if name in _STRUCTURAL:
            return target(reaches[0], *rest, **keywords)
        if name in _WEIGHTED:
            return target(reaches[0], rest[0].abs(), None, *rest[2:], **keywords) * (1 + ROUNDING)
        if name == "mul" and len(moving) == 1:
            other = [a for a, source in zip(arguments, n.args, strict=True) if source is not moving[0]]
            return reaches[0] * abs(other[0]) * (1 + ROUNDING)
        if name in ("add", "sub") and not keywords:
            return sum(reaches, torch.zeros_like(value)) * (1 + ROUNDING)
        parts = [torch.full_like(part, math.inf) for part in ([value] if isinstance(value, Tensor) else value)]
        return parts[0] if isinstance(value, Tensor) else parts


class _Relaxed(torch.autograd.Function):
    """An activation whose gradient takes, for a coefficient A, the lower line where A >= 0 and the upper elsewhere."""

    @staticmethod
    def forward(ctx: Any, _y: Tensor, _offset: Tensor, value: Tensor, *two: Tensor) -> Tensor:
        lower_slope, lower_offset, upper_slope, upper_offset = (line.flatten(1) for line in two)
        apart = (lower_slope != upper_slope) | (lower_offset != 0) | (upper_offset != 0)
        where = apart.any(0).nonzero()[:, 0]  # few of a large layer: the rest needs the slope alone
        slopes_apart, offsets_apart = lower_slope - upper_slope, lower_offset - upper_offset
        ctx.save_for_backward(two[2], where, slopes_apart[:, where], offsets_apart[:, where], upper_offset[:, where])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, A: Tensor) -> tuple[Tensor | None, ...]:
        slope, where, slopes_apart, offsets_apart, upper_offset = ctx.saved_tensors
        here = A.flatten(1).index_select(1, where)
        up = here.clamp(min=0)
        offset = (here * upper_offset + up * offsets_apart).sum(1)
        through = (A * slope).flatten(1).index_add(1, where, up * slopes_apart)
        return through.reshape(A.shape), offset, *(None,) * 5
