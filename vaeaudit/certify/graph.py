"""A network as the operations it is made of, sorted into those that a certificate can be carried through.

The graph is what torch.export records of the model's own code, so no list of known architectures is needed: an
operation is affine in what depends on the input, an activation that acts on each element alone, a maximum over
windows, or it has no safe bound here and the network is refused, naming it. A graph is in float64, whatever the
model's precision: its certificates hold for the float64 function.
"""

import io
import logging
import math
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad
from torch.distributions import Distribution
from torch.fx.node import map_aggregate

from vaeaudit.certify.activations import ACTIVATIONS
from vaeaudit.certify.rewriting import CASTS, in_double, name_of, owner, writes
from vaeaudit.errors import UnsupportedError, clipped
from vaeaudit.model.conditions import model_of, one_function
from vaeaudit.model.families import moved_part
from vaeaudit.model.vae import VAE


class Kind(StrEnum):
    """What an operation is, as far as bounds are concerned."""

    CONSTANT = "constant"  # does not depend on the input
    INPUT = "input"
    SIZE = "size"  # depends on how many rows there are, not on their values
    AFFINE = "affine"
    ACTIVATION = "activation"
    MAXIMUM = "maximum"
    FREE = "free"  # moves, but no output that is bounded depends on it
    OUTPUT = "output"


# torch gives these no types.
_make_dual = cast(Callable[..., Any], forward_ad.make_dual)
_unpack_dual = cast(Callable[..., Any], forward_ad.unpack_dual)
_STILL = (Kind.CONSTANT, Kind.SIZE)
_LEAST = 1e-146  # size of a weight: the sums of squares of larger ones are as precise as others
# Affine in one argument, the place given (first where none is), if all others are constant.
_AFFINE_IN = {"addmm": (1,), "mul": (0, 1), "matmul": (0,), "rsub": (0, 1)}
_AFFINE_IN_FIRST = frozenset(
    {
        *("linear", "addmm", "mm", "matmul", "conv1d", "conv2d", "conv3d", "convolution"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "avg_pool2d", "adaptive_avg_pool2d"),
        *("mul", "div", "neg", "mean", "sum", "clone", "contiguous", "alias", "identity"),
        *("view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze"),
        *(
            "unsqueeze",
            "expand",
            "expand_as",
            "select",
            "slice",
            "unbind",
            "split",
            "split_with_sizes",
            "chunk",
            "narrow",
        ),
        *("constant_pad_nd", "pad", "upsample_nearest2d", "pixel_shuffle", "index_select", "getitem"),
    }
)
_AFFINE_JOINTLY = frozenset({"add", "sub", "rsub", "cat", "stack"})
_OF_SIZE = frozenset({"sym_size", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"})
# Affine as long as they do not train; the place of the argument that says so.
_AFFINE_IN_EVALUATION = {"batch_norm": 5, "dropout": 2, "dropout1d": 2, "dropout2d": 2, "feature_dropout": 2}
_MAXIMA = frozenset({"max_pool1d", "max_pool2d", "max_pool3d"})


@dataclass(frozen=True, eq=False)
class Graph:
    """A network x (b, *input_shape) -> outputs, (b, k) each, and what each of its operations is.

    ``module`` runs it in float64; ``kinds`` has every node of ``module.graph``.
    """

    module: fx.GraphModule
    kinds: dict[fx.Node, Kind]
    input_shape: tuple[int, ...]

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        """The nodes whose values are the outputs, in order."""
        (node,) = (n for n in self.module.graph.nodes if n.op == "output")
        outputs = node.args[0]
        assert isinstance(outputs, (tuple, list))
        return tuple(output for output in outputs if isinstance(output, fx.Node))

    def of(self, *kinds: Kind) -> Iterator[fx.Node]:
        """The nodes of these kinds, in the order in which they are run."""
        return (node for node in self.module.graph.nodes if self.kinds[node] in kinds)


def by_rows(node: fx.Node) -> bool:
    """Whether the first dimension of its value is that of the rows: not where they were folded or transposed away."""
    (rows,) = (n.meta["val"].shape[0] for n in node.graph.nodes if n.op == "placeholder")
    first = node.meta["val"].shape[:1]
    # As symbols: a size that merely equals the number of rows at hand is another size.
    return bool(first) and str(first[0]) == str(rows)


def require_rows(graph: Graph) -> None:
    """Raises :class:`UnsupportedError` where something bends that is not one row for each item."""
    for node in graph.of(Kind.ACTIVATION, Kind.MAXIMUM):
        if not by_rows(node):
            raise UnsupportedError(
                f"there is no local certificate: '{name_of(node)}' acts where items are folded into rows, or stand in "
                "another dimension than the first; the other certificates, estimates and the empirical margin need none"
            )


def trace_encoder(vae: VAE, like: Tensor, sigma: str = "full") -> Graph:
    """The encoder as x -> (mean, log of the standard deviation), (b, latents) each; those of what the input moves.

    ``like`` gives the dtype and the device that the model runs in. With ``sigma`` "frozen" the mean alone is bounded.

    Raises :class:`UnsupportedError` where the posterior has no Gaussian part, or an operation has no bound.
    """
    vae = one_function(vae)
    with torch.no_grad():
        posterior = vae.encode(like.new_zeros((1, *vae.input_shape)))
    if moved_part(posterior) is None:
        raise UnsupportedError(
            f"a certificate needs a diagonal Gaussian posterior, but this model's is {type(posterior).__name__}; "
            "the empirical margin needs none"
        )

    def heads(x: Tensor) -> tuple[Tensor, Tensor]:
        q = moved_part(vae.encode(x))
        assert q is not None
        return q.mean.flatten(1), q.log_stddev.flatten(1)

    bounded, spare = (1, "") if sigma == "frozen" else (2, "sigma = frozen, which bounds the mean alone, ")
    return trace(heads, tuple(vae.input_shape), like, "the encoder", of=model_of(vae), bounded=bounded, spare=spare)


def trace_decoder(vae: VAE, like: Tensor) -> Graph:
    """The decoder's mean as z -> (mean,), (b, elements). Raises :class:`UnsupportedError` as :func:`trace_encoder`."""
    vae = one_function(vae)
    with torch.no_grad():
        latent = tuple(vae.encode(like.new_zeros((1, *vae.input_shape))).mean.shape[1:])
    return trace(lambda z: (vae.decode(z).mean.flatten(1),), latent, like, "the decoder", of=model_of(vae))


def trace(
    function: Callable[[Tensor], tuple[Tensor, ...]],
    input_shape: tuple[int, ...],
    like: Tensor,
    what: str,
    of: object = None,
    bounded: int | None = None,
    spare: str = "",
) -> Graph:
    """The graph of ``function``, x (b, *input_shape) -> (b, k) each; ``of`` is the module whose weights it uses.

    Only the first ``bounded`` outputs are to be bounded, all where None: what the others alone depend on may be any
    operation, :attr:`Kind.FREE`. ``spare`` names what would not need an operation that the first output does without.

    Raises :class:`UnsupportedError` where it cannot be traced, where the graph gives other values than ``function``, or
    where it holds an operation without a safe bound: ``what`` names it in the message.
    """
    wrapped = _Function(function, of if isinstance(of, nn.Module) else None)
    example = like.new_zeros((2, *input_shape))
    rows = torch.export.Dim("rows", min=1, max=2**30)
    before, validated = logging.root.manager.disable, Distribution._validate_args
    logging.disable(logging.CRITICAL)  # torch logs at length what the error below says
    # Its distributions branch on values to check their parameters, and on nothing else.
    Distribution.set_default_validate_args(False)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # torch warns and tells of what it does itself
            warnings.simplefilter("ignore")
            exported = torch.export.export(wrapped, (example,), dynamic_shapes=({0: rows},))
            module = in_double(exported.module(check_guards=False), like)
            differs = _differs(wrapped, module, like, input_shape)
    except Exception as error:  # torch has no common class for all that it raises here
        raise UnsupportedError(
            f"{what} has no certificate: torch.export cannot trace it ({reason(error)}), as where its code "
            "branches on values or treats rows one by one; the empirical margin needs none"
        ) from error
    finally:
        logging.disable(before)
        Distribution.set_default_validate_args(validated)
    if differs:
        raise UnsupportedError(f"{what} has no certificate: {differs}; the empirical margin needs none")
    kinds: dict[fx.Node, Kind] = {}
    graph = Graph(module, kinds, input_shape)
    first, bound_ = (_behind(graph.outputs[:most]) for most in (1, bounded))
    for node in module.graph.nodes:
        if node not in bound_ and _harmless(node, bound_):
            still = all(kinds[source] in _STILL for source in node.all_input_nodes)
            kinds[node] = Kind.CONSTANT if still else Kind.FREE
        else:
            kinds[node] = _kind(node, kinds, what, spare if node not in first and _harmless(node, first) else "")
    _require_double(graph, what, like)
    _require_size(graph, what, like)
    return graph


@torch.no_grad()
def _require_double(graph: Graph, what: str, like: Tensor) -> None:
    """Refuse what is not in float64 after all, as a sum of another dtype: it would be rounded, as no bound knows."""
    run = fx.Interpreter(graph.module, garbage_collect_values=False)
    run.run(torch.zeros((2, *graph.input_shape), dtype=torch.float64, device=like.device))
    for node in graph.of(Kind.AFFINE, Kind.ACTIVATION, Kind.MAXIMUM):
        if any(part.dtype != torch.float64 for part in _tensors(run.env[node])):
            raise _refusal(node, "a change of the dtype", what)


@torch.no_grad()
def _require_size(graph: Graph, what: str, like: Tensor) -> None:
    """Refuse weights and products of weights too small for float64: in norms, sums of squares, they would count as 0.

    All of the graph is in float64: torch makes no tangent of integers.
    """
    with forward_ad.dual_level(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own, at the first tangent
        x = torch.zeros((2, *graph.input_shape), dtype=torch.float64, device=like.device)
        run = _Slopes(graph)
        run.run(_make_dual(x, torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)))
        for node in graph.of(Kind.AFFINE):
            slopes = [_unpack_dual(part).tangent for part in _tensors(run.env[node])]
            sources = (source for source in node.all_input_nodes if graph.kinds[source] is Kind.CONSTANT)
            weights = [w for w in map(run.env.get, sources) if isinstance(w, Tensor) and w.ndim > 1]
            if any(_too_small(each) for each in (*weights, *slopes)):
                told = f"weights or products of weights below {_LEAST:.0e}, whose squares underflow"
                raise _refusal(node, told, what)


def _tensors(value: Any) -> list[Tensor]:
    """Those that a node gave, of which there may be several."""
    return [part for part in (value if isinstance(value, (tuple, list)) else (value,)) if isinstance(part, Tensor)]


def _too_small(of: Tensor | None) -> bool:
    return of is not None and bool(((of != 0) & (of.abs() < _LEAST)).any())


class _Slopes(fx.Interpreter):
    """Runs a graph with a tangent that activations hand on as it comes, and maxima by its own: what weights make."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module, garbage_collect_values=False)
        self.kinds = graph.kinds

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Without the tangent where none is asked for: not every operation can take one."""
        arguments, keywords = super().fetch_args_kwargs_from_env(n)
        if self.kinds[n] not in (Kind.FREE, Kind.ACTIVATION, Kind.MAXIMUM):
            return arguments, keywords
        return map_aggregate(arguments, _primal), {k: _primal(v) for k, v in keywords.items()}

    def run_node(self, n: fx.Node) -> Any:
        if self.kinds[n] not in (Kind.ACTIVATION, Kind.MAXIMUM):
            return super().run_node(n)
        (given, *rest), keywords = super().fetch_args_kwargs_from_env(n)
        slope = _unpack_dual(given).tangent
        if slope is None:  # nothing of the input comes here after all
            return super().run_node(n)
        if self.kinds[n] is Kind.MAXIMUM:
            slope = cast(Callable[..., Tensor], n.target)(slope, *rest, **keywords)
        return _make_dual(super().run_node(n), slope)


def _primal(value: Any) -> Any:
    return _unpack_dual(value).primal if isinstance(value, Tensor) else value


def reason(error: BaseException) -> str:
    """The first line of what an error says, short enough to stand in a sentence."""
    first, *_ = [*str(error).strip().splitlines(), ""]
    told = first.partition("For more information")[0].rstrip(" .!")
    name = type(error).__name__
    return clipped(f"{name}: {told}" if told else name, 160)


@torch.no_grad()
def _differs(function: nn.Module, module: nn.Module, like: Tensor, input_shape: tuple[int, ...]) -> str:
    """How the graph's values, in float64, differ from the function's, if more than rounding explains; else "".

    For one row and for three, at random places: a graph is what one call did, and chance, a branch for a single row,
    or one for export itself would be another function.
    """
    generator = torch.Generator().manual_seed(0)
    eps = torch.finfo(like.dtype).eps
    worst, overflows, exact = 0.0, False, like.dtype == torch.float64
    for count in (1, 3):
        x = torch.rand((count, *input_shape), generator=generator).to(like)
        for ours, its in zip(module(x.double()), function(x), strict=True):
            finite = its.isfinite()
            same = ours.shape == its.shape and torch.equal(finite, ours.isfinite())
            if not same and (exact or ours.shape != its.shape or not ours[finite].isfinite().all()):
                worst = math.inf
                continue
            overflows = overflows or not same
            gap, size = ((value[finite].abs().amax() if finite.any() else 0.0) for value in (ours - its, its))
            if gap > math.sqrt(eps) * size + 100 * eps:
                worst = max(worst, float(gap))
    if worst:
        apart = f"traced by torch.export it gives other values, {worst:.2g} apart"
        return f"{apart}, as where its code draws numbers or tells one row from many"
    precision = str(like.dtype).removeprefix("torch.")
    return f"values that are finite in float64 overflow {precision}; try --dtype float64" if overflows else ""


def _harmless(node: fx.Node, bound_: Collection[fx.Node]) -> bool:
    """Whether a node outside of ``bound_`` surely changes nothing in it."""
    if node.op != "call_function" or isinstance(node.target, torch._ops.HigherOrderOperator):
        return False
    written = owner(node)
    return not writes(node) or (written.op == "call_function" and written not in bound_)


def _behind(outputs: Collection[fx.Node]) -> set[fx.Node]:
    """The outputs and all that they depend on."""
    found, waiting = set(outputs), list(outputs)
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    return found


class _Function(nn.Module):
    """A function as torch.export wants it, with the module that it belongs to."""

    def __init__(self, function: Callable[[Tensor], tuple[Tensor, ...]], of: nn.Module | None) -> None:
        super().__init__()
        self.function, self.of = function, of
        self.training = of.training if of is not None else False  # not train(), which would change all of its layers

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.function(x)


def _kind(node: fx.Node, kinds: dict[fx.Node, Kind], what: str, spare: str) -> Kind:
    """What ``node`` is, given the kinds of all before it; ``spare`` names what would not need it."""
    if node.op == "placeholder":
        return Kind.INPUT
    if node.op == "output":
        return Kind.OUTPUT
    name = name_of(node)
    if name in _OF_SIZE or (name == "expand_as" and kinds.get(node.all_input_nodes[0]) in _STILL):
        return Kind.SIZE
    moving = [source for source in node.all_input_nodes if kinds[source] not in _STILL]
    if not moving and torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return Kind.SIZE if any(kinds[source] is Kind.SIZE for source in node.all_input_nodes) else Kind.CONSTANT
    # Once for each time that the operation takes it: x * x is not affine.
    taken = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, fx.Node) and value in moving]
    if moving and node.op == "call_function" and not writes(node):
        if name in ACTIVATIONS and taken == [node.args[0]]:
            return Kind.ACTIVATION
        if name in _MAXIMA:
            return Kind.MAXIMUM
        if name in _AFFINE_JOINTLY and not any(isinstance(value, fx.Node) for value in node.kwargs.values()):
            return Kind.AFFINE
        training = _AFFINE_IN_EVALUATION.get(name, len(node.args))
        if len(node.args) > training and node.args[training] is False and taken == [node.args[0]]:
            return Kind.AFFINE
        places = [node.args[place] for place in _AFFINE_IN.get(name, (0,)) if place < len(node.args)]
        rounded = name == "div" and node.kwargs.get("rounding_mode") is not None
        if name in _AFFINE_IN_FIRST and len(taken) == len(moving) == 1 and taken[0] in places and not rounded:
            return Kind.AFFINE
    raise _refusal(node, "a change of the dtype" if name in CASTS else f"its operation '{clipped(name)}'", what, spare)


def _refusal(node: fx.Node, told: str, what: str, spare: str = "") -> UnsupportedError:
    return UnsupportedError(
        f"{what} has no certificate: there is no safe bound for {told}{_where(node)}; {spare}"
        f"{'and ' if spare else ''}the empirical margin need{'' if spare else 's'} none"
    )


def _where(node: fx.Node) -> str:
    """The layer that an operation came from, where torch.export says."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return f" (layer '{clipped(paths[-1].removeprefix('of.'))}')" if paths else ""
