"""Safe upper bounds of a network's Lipschitz constant in L2, from its input to each output.

All operations between two activations are one affine map wherever its Gram matrix is small enough to be built, and
its norm is then exact; otherwise the norms of single operations are multiplied, each an upper bound: the symbol of a
convolution on a torus that holds all of its zero padding, the Schur test for the rest. Power iteration is never used:
it comes from below.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from vaeaudit.certify.activations import options_of, shape_of
from vaeaudit.certify.graph import Graph, Kind
from vaeaudit.certify.norms import CHUNK, ROUNDING, joint_norm, spectral_norm, symbol_norm
from vaeaudit.certify.rewriting import name_of
from vaeaudit.errors import UnsupportedError

_LARGEST_GRAM = 1024  # rows: a second on one core, 8 MiB

_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
_TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
_CONVOLVE = _CONVOLUTIONS | _TRANSPOSED | {"convolution"}
# The same elements in another order.
_ISOMETRIES = frozenset(
    {
        *("view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze"),
        *("unsqueeze", "clone", "contiguous", "alias", "identity", "neg", "pixel_shuffle"),
        *("dropout", "dropout1d", "dropout2d", "feature_dropout"),
    }
)
# Several values that together have each element once, and one of them.
_PARTS = frozenset({"unbind", "split", "split_with_sizes", "chunk"})
_ALIASES = _PARTS | {"getitem", "select", "slice", "narrow", "expand"}
_JOINS = frozenset({"cat", "stack"})
_SUMS = frozenset({"add", "sub", "rsub"})
# With |c| for each constant c, the entries of their matrices have one sign and are at least as large as with c.
_OF_ONE_SIGN = frozenset(
    {
        *_CONVOLVE,
        *_JOINS,
        *_SUMS,
        *("linear", "mm", "matmul", "avg_pool2d", "adaptive_avg_pool2d", "mul", "div", "mean", "sum", "expand"),
        *("select", "slice", "narrow", "constant_pad_nd", "pad", "upsample_nearest2d", "index_select"),
        "batch_norm",
    }
)


class LipschitzBounds:
    """The bounds of one graph, each computed when first asked for and kept."""

    def __init__(self, graph: Graph) -> None:
        self._kinds, self._outputs = graph.kinds, graph.outputs
        self._place = {node: place for place, node in enumerate(graph.module.graph.nodes)}
        for node in graph.module.graph.nodes:
            if graph.kinds[node] is Kind.FREE:
                continue
            _refuse_if_it_overwrites(node)
        weights = next(iter(graph.module.state_dict().values()), torch.empty(0))
        interpreter = fx.Interpreter(graph.module, garbage_collect_values=False)
        with torch.no_grad():
            interpreter.run(torch.zeros((1, *graph.input_shape), dtype=torch.float64, device=weights.device))
        # Those of a single row: all that a value holds belongs to one item, whichever axis the rows have.
        self._values = interpreter.env
        self._bounds: dict[fx.Node, float] = {}

    def of_output(self, output: int, scale: Tensor | None = None) -> Tensor:
        """An upper bound of ||f(x) - f(y)|| / ||x - y|| for output number ``output`` of the graph, float64.

        A scalar; or (items,) where ``scale`` (items, k) multiplies the elements of the output for each item, as D0^-1
        does in the whitened mean: it is absorbed in the last affine map of the network.

        Raises :class:`UnsupportedError` naming the operation that has no such bound.
        """
        node = self._outputs[output]
        _refuse_unless_it_is_what_it_seems(node)
        like: Tensor = self._values[node]
        # In the order of the graph, so that no recursion goes back further than to the activations before.
        for earlier in self._in_order(self._before(node)):
            _refuse_unless_it_is_what_it_seems(earlier)
            if self._kinds[earlier] is not Kind.AFFINE:
                self._bound(earlier)
        if scale is None:
            return like.new_tensor(self._bound(node))
        scale = scale.to(like).abs()
        if self._kinds[node] in (Kind.CONSTANT, Kind.SIZE):
            return torch.zeros_like(scale[:, 0])
        tail = self._stretch(node, scale)
        return scale.amax(1) * self._bound(node) if tail is None else tail

    def _moving(self, node: fx.Node) -> list[fx.Node]:
        return [source for source in node.all_input_nodes if self._kinds[source] not in (Kind.CONSTANT, Kind.SIZE)]

    def _in_order(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        return sorted(nodes, key=self._place.__getitem__)

    def _before(self, node: fx.Node, stop_at_sources: bool = False) -> set[fx.Node]:
        """What depends on the input and what ``node`` depends on; back to the first that is not affine, or to x."""
        found: set[fx.Node] = set()
        waiting = [node]
        while waiting:
            for source in set(self._moving(waiting.pop())) - found:
                found.add(source)
                if not stop_at_sources or self._kinds[source] is Kind.AFFINE:
                    waiting.append(source)
        return found

    def _bound(self, node: fx.Node) -> float:
        """From the input to ``node``; of a tuple, to all of its elements together."""
        if node not in self._bounds:
            self._bounds[node] = self._computed(node)
        return self._bounds[node]

    def _computed(self, node: fx.Node) -> float:
        kind, moving, name = self._kinds[node], self._moving(node), name_of(node)
        if kind in (Kind.CONSTANT, Kind.SIZE):
            return 0.0
        if kind is Kind.INPUT:
            return 1.0
        if kind is Kind.ACTIVATION:
            return self._slope(node) * self._bound(moving[0])
        if kind is Kind.MAXIMUM:
            return _overlap(node) * self._bound(moving[0])
        if name in _ISOMETRIES or name in _PARTS:
            return self._bound(moving[0])
        whole = self._stretch(node)
        if whole is not None:
            return float(whole)
        if name == "getitem":
            return self._bound(moving[0])
        parts = [self._norm(node, source) * self._bound(source) for source in moving]
        if name == "batch_norm" and name_of(moving[0]) in _CONVOLVE:
            (source,), options = self._moving(moving[0]), options_of(node)
            weight, variance = self._values.get(options["weight"]), self._values[options["running_var"]]
            factors = (1.0 if weight is None else weight) / torch.sqrt(variance + options["eps"])
            parts = [min(parts[0], self._convolution(moving[0], factors) * self._bound(source))]
        return math.hypot(*parts) if name in _JOINS else sum(parts)

    def _slope(self, node: fx.Node) -> float:
        """The largest slope of an activation."""
        options = options_of(node)
        shape = shape_of(name_of(node), {name: self._values.get(value, value) for name, value in options.items()})
        if shape is None:
            raise _unsupported(node)
        return shape.steepest

    def _stretch(self, node: fx.Node, scale: Tensor | None = None) -> Tensor | None:
        """The bound by way of the whole affine map that ends in ``node``; None where its Gram matrix is too large.

        Of the map [A_1, ..., A_s] from several sources of bounds L_i, the lesser of sum a_i and
        sqrt(sum a_i^2) ||[A_1 / ||A_1||, ...]|| where a_i = L_i ||A_i||: the first is met where they point the same
        way, the second where they do not meet, as in a concatenation.
        """
        inner: list[fx.Node] = []
        sources = [node]
        if self._kinds[node] is Kind.AFFINE:
            behind = self._in_order(self._before(node, stop_at_sources=True))
            inner = [*(n for n in behind if self._kinds[n] is Kind.AFFINE), node]
            sources = [n for n in behind if self._kinds[n] is not Kind.AFFINE]
        rows, columns = self._values[node].numel(), self._values[sources[0]].numel()
        of_columns = scale is None and len(sources) == 1 and columns < rows
        if (columns if of_columns else rows) > _LARGEST_GRAM:
            return None
        grams = [self._gram(inner, node, source, of_columns) for source in sources]
        bounds = [self._bound(source) for source in sources]
        if scale is None:
            return joint_norm(grams, bounds)
        per_item = torch.split(scale, max(1, CHUNK // rows**2))
        return torch.cat([joint_norm([s[:, :, None] * G * s[:, None] for G in grams], bounds) for s in per_item])

    def _gram(self, inner: list[fx.Node], node: fx.Node, source: fx.Node, of_columns: bool) -> Tensor:
        """A A^T of the linear part A of ``source`` -> ``node`` by way of the operations ``inner``; or A^T A."""
        out, x, transposed, v = self._linear_part(inner, node, source)
        rows = torch.eye(x.numel() if of_columns else out.numel(), dtype=out.dtype, device=out.device)
        parts = []
        for part in torch.split(rows, max(1, CHUNK // (4 * max(x.numel(), out.numel())))):
            if of_columns:
                half = _batched(transposed, v, part.reshape(-1, *x.shape))
                part = _batched(out, x, half)
            else:
                half = _batched(out, x, part.reshape(-1, *out.shape))
                part = _batched(transposed, v, half)
            parts.append(part.flatten(1))
        return torch.cat(parts)

    def _linear_part(
        self, inner: Iterable[fx.Node], node: fx.Node, source: fx.Node, majorant: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """out = A x + b, x, A^T v and v: differentiated in x and in v they give A^T and A.

        With ``majorant`` the constants are replaced by their absolute values.
        """
        x = self._values[source].detach().clone().requires_grad_()
        found: dict[fx.Node, Any] = {source: x}

        def value(argument: fx.Node) -> Any:
            if argument in found:
                return found[argument]
            known = self._values[argument]
            constant = majorant and self._kinds[argument] in (Kind.CONSTANT, Kind.SIZE)
            return known.abs() if constant and isinstance(known, Tensor) and known.is_floating_point() else known

        with torch.enable_grad():
            for current in inner:
                # In place, on a copy: a leaf cannot be written to, and the values are still needed.
                given = (lambda argument: value(argument).clone()) if _in_place(current) else value
                args, kwargs = fx.map_arg((current.args, current.kwargs), given)
                assert callable(current.target)
                found[current] = current.target(*args, **kwargs)
            # A view, so that out is not x itself where there is nothing in between.
            out = found[node]
            out = out.view_as(out)
            v = torch.zeros_like(out).requires_grad_()
            (transposed,) = torch.autograd.grad(out, x, v, create_graph=True)
        return out, x, transposed, v

    def _norm(self, node: fx.Node, source: fx.Node) -> float:
        """Of a single operation, in one of its arguments."""
        name = name_of(node)
        if name not in _OF_ONE_SIGN:
            raise _unsupported(node)
        if name == "linear":
            weight = self._values[options_of(node)["weight"]]
            return float(spectral_norm(weight))
        # Schur: ||A||^2 <= the largest row sum of |A| times the largest column sum.
        out, x, transposed, v = self._linear_part([node], node, source, majorant=True)
        (columns,) = torch.autograd.grad(out, x, torch.ones_like(out), retain_graph=True)
        (rows,) = torch.autograd.grad(transposed, v, torch.ones_like(x))
        schur = (1 + ROUNDING) * math.sqrt(float(columns.abs().max()) * float(rows.abs().max()))
        return min(schur, self._convolution(node)) if name in _CONVOLVE else schur

    def _convolution(self, node: fx.Node, factors: Tensor | None = None) -> float:
        """Of a convolution, its channels multiplied by ``factors`` afterwards."""
        options = options_of(node)
        transposed = bool(options.get("transposed", name_of(node) in _TRANSPOSED))
        weight = self._values[options["weight"]]
        dimensions, groups = weight.ndim - 2, options["groups"]
        if factors is not None:
            channels = factors.reshape(groups, *((1, -1) if transposed else (-1, 1)), *[1] * dimensions)
            weight = (weight.unflatten(0, (groups, -1)) * channels).flatten(0, 1)
        # A transposed convolution is the adjoint of the one from its output to its input that has the same weight.
        (source,) = self._moving(node)
        size = self._values[node if transposed else source].shape[-dimensions:]
        return symbol_norm(
            weight, size, _each(options["stride"], dimensions), _each(options["dilation"], dimensions), groups
        )


def _batched(of: Tensor, at: Tensor, directions: Tensor) -> Tensor:
    """The gradient of ``of`` in ``at`` along each of ``directions`` (rows, *of.shape): (rows, *at.shape)."""
    (rows,) = torch.autograd.grad(of, at, directions, retain_graph=True, is_grads_batched=True)
    return rows


def _each(value: Any, dimensions: int) -> list[int]:
    """One number for each dimension: given as such, as one for all, or in a list of one."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values


@dataclass(frozen=True)
class Windows:
    """Those of a maximum, one number for each of the axes that it goes over, the last of the value."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]


def windows_of(node: fx.Node) -> Windows:
    """The windows of a node of :attr:`Kind.MAXIMUM`."""
    options, axes = options_of(node), int(name_of(node)[-2])  # max_pool2d
    kernel, padding, dilation = (_each(options[name], axes) for name in ("kernel_size", "padding", "dilation"))
    return Windows(kernel, _each(options["stride"] or kernel, axes), padding, dilation)


def _overlap(node: fx.Node) -> float:
    """Of a maximum over windows: the root of the number of windows that an element can lie in."""
    found = windows_of(node)
    each = zip(found.kernel, found.stride, found.dilation, strict=True)
    return math.sqrt(math.prod(math.ceil(k * math.gcd(s, d) / s) for k, s, d in each))


def _refuse_unless_it_is_what_it_seems(node: fx.Node) -> None:
    """Refuse x * x, rounding, and what is cut off from its gradient."""
    sources: list[fx.Node] = []

    def collect(argument: fx.Node) -> fx.Node:
        sources.append(argument)
        return argument

    fx.map_arg((node.args, node.kwargs), collect)
    twice = len(sources) > len(set(sources)) and name_of(node) not in _SUMS | _JOINS
    if twice or node.kwargs.get("rounding_mode") is not None or name_of(node) == "detach":
        raise _unsupported(node)


def _refuse_if_it_overwrites(node: fx.Node) -> None:
    """Refuse to write into a value that others use, perhaps by way of another view: the graph does not show it."""
    if _in_place(node):
        written = node.all_input_nodes[0]
        while len(written.users) == 1 and name_of(written) in _ISOMETRIES | _ALIASES:
            written = written.all_input_nodes[0]
        if len(written.users) > 1:
            raise _unsupported(node)


def _in_place(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _unsupported(node: fx.Node) -> UnsupportedError:
    return UnsupportedError(
        f"there is no safe global Lipschitz bound for the operation '{name_of(node)}' as it is used here; "
        "the first-order estimates and the empirical margin need none"
    )
