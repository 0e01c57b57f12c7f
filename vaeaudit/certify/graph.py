"""A network as the operations it is made of, sorted into those that a certificate can be carried through.

The graph is what torch.export records of the model's own code, so no list of known architectures is needed: an
operation is affine in what depends on the input, an activation that acts on each element alone, a maximum over
windows, or it has no safe bound here and the network is refused, naming it. A graph is in float64, whatever the
model's precision: its certificates hold for the float64 function.
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, fx, nn

from vaeaudit.errors import UnsupportedError
from vaeaudit.vae import VAE, DiagonalGaussian


class Kind(StrEnum):
    """What an operation is, as far as bounds are concerned."""

    CONSTANT = "constant"  # does not depend on the input
    INPUT = "input"
    SIZE = "size"  # depends on how many rows there are, not on their values
    AFFINE = "affine"
    ACTIVATION = "activation"
    MAXIMUM = "maximum"
    OUTPUT = "output"


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
ACTIVATIONS = frozenset(
    {"relu", "leaky_relu", "elu", "tanh", "sigmoid", "softplus", "gelu", "silu", "hardtanh", "clamp"}
)
_OUT_OF_PLACE = ACTIVATIONS | {"add", "sub", "mul", "div"}  # those that networks use in place
_MAXIMA = frozenset({"max_pool2d"})


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


def name_of(node: fx.Node) -> str:
    """The operation without its overload: "conv2d" of ``aten.conv2d.default``, "getitem"."""
    target = node.target
    packet = getattr(target, "overloadpacket", target)
    return str(getattr(packet, "__name__", packet))


def trace_encoder(vae: VAE, like: Tensor) -> Graph:
    """The encoder as x -> (mean, log of the standard deviation), (b, latents) each.

    ``like`` gives the dtype and the device that the model runs in.

    Raises :class:`UnsupportedError` where the posterior is no :class:`DiagonalGaussian`, or an operation has no bound.
    """
    with torch.no_grad():
        posterior = vae.encode(like.new_zeros((1, *vae.input_shape)))
    if not isinstance(posterior, DiagonalGaussian):
        raise UnsupportedError(
            f"a certificate needs a diagonal Gaussian posterior, but this model's is {type(posterior).__name__}; "
            "the empirical margin needs none"
        )

    def heads(x: Tensor) -> tuple[Tensor, Tensor]:
        q = vae.encode(x)
        assert isinstance(q, DiagonalGaussian)
        return q.mean.flatten(1), q.log_stddev.flatten(1)

    return trace(heads, tuple(vae.input_shape), like, "the encoder", of=vae)


def trace_decoder(vae: VAE, like: Tensor) -> Graph:
    """The decoder's mean as z -> (mean,), (b, elements). Raises :class:`UnsupportedError` as :func:`trace_encoder`."""
    with torch.no_grad():
        latent = tuple(vae.encode(like.new_zeros((1, *vae.input_shape))).mean.shape[1:])
    return trace(lambda z: (vae.decode(z).mean.flatten(1),), latent, like, "the decoder", of=vae)


def trace(
    function: Callable[[Tensor], tuple[Tensor, ...]],
    input_shape: tuple[int, ...],
    like: Tensor,
    what: str,
    of: object = None,
) -> Graph:
    """The graph of ``function``, x (b, *input_shape) -> (b, k) each; ``of`` is the module whose weights it uses.

    Raises :class:`UnsupportedError` where it cannot be traced, or holds an operation without a safe bound: ``what``
    names it in the message.
    """
    wrapped = _Function(function, of if isinstance(of, nn.Module) else None)
    example = like.new_zeros((2, *input_shape))
    rows = torch.export.Dim("rows", min=1, max=2**30)
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # torch logs at length what the error below says
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # torch warns and tells of what it does itself
            warnings.simplefilter("ignore", FutureWarning)
            exported = torch.export.export(wrapped, (example,), dynamic_shapes=({0: rows},))
    except Exception as error:  # torch.export has no common class for all that it raises
        raise UnsupportedError(
            f"{what} has no certificate: torch.export cannot trace it ({type(error).__name__}), as where its code "
            "branches on values or treats rows one by one; the empirical margin needs none"
        ) from error
    finally:
        logging.disable(before)
    module = _in_double(exported.module(check_guards=False))
    kinds: dict[fx.Node, Kind] = {}
    for node in module.graph.nodes:
        _out_of_place(node)
        kinds[node] = _kind(node, kinds, what)
    module.recompile()
    return Graph(module, kinds, input_shape)


class _Function(nn.Module):
    """A function as torch.export wants it, with the module that it belongs to."""

    def __init__(self, function: Callable[[Tensor], tuple[Tensor, ...]], of: nn.Module | None) -> None:
        super().__init__()
        self.function, self.of = function, of
        self.train(of.training if of is not None else False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.function(x)


def _in_double(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph on copies of its numbers in float64: those it holds are the model's own."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            value = parameter.detach().double() if parameter.is_floating_point() else parameter.detach()
            setattr(part, name, nn.Parameter(value, requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(name, buffer.double() if buffer.is_floating_point() else buffer)
        for name, value in list(vars(part).items()):  # weights of a model that is no module
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(part, name, value.double())
    return module


def _kind(node: fx.Node, kinds: dict[fx.Node, Kind], what: str) -> Kind:
    """What ``node`` is, given the kinds of all before it."""
    if node.op == "placeholder":
        return Kind.INPUT
    if node.op == "output":
        return Kind.OUTPUT
    name, still = name_of(node), (Kind.CONSTANT, Kind.SIZE)
    if name in _OF_SIZE or (name == "expand_as" and kinds.get(node.all_input_nodes[0]) in still):
        return Kind.SIZE
    moving = [source for source in node.all_input_nodes if kinds[source] not in still]
    if not moving:
        return Kind.SIZE if any(kinds[source] is Kind.SIZE for source in node.all_input_nodes) else Kind.CONSTANT
    # Once for each time that the operation takes it: x * x is not affine.
    taken = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, fx.Node) and value in moving]
    if node.op == "call_function" and not _writes(node):
        if name in ACTIVATIONS and taken == [node.args[0]]:
            return Kind.ACTIVATION
        if name in _MAXIMA:
            return Kind.MAXIMUM
        if name in _AFFINE_JOINTLY and not any(isinstance(value, fx.Node) for value in node.kwargs.values()):
            return Kind.AFFINE
        training = _AFFINE_IN_EVALUATION.get(name)
        if training is not None and len(node.args) > training and node.args[training] is False:
            return Kind.AFFINE
        places = [node.args[place] for place in _AFFINE_IN.get(name, (0,)) if place < len(node.args)]
        rounded = name == "div" and node.kwargs.get("rounding_mode") is not None
        if name in _AFFINE_IN_FIRST and len(taken) == len(moving) == 1 and taken[0] in places and not rounded:
            return Kind.AFFINE
    told = "a change of the dtype" if name == "_assert_tensor_metadata" else f"its operation '{name}'"
    raise UnsupportedError(
        f"{what} has no certificate: there is no safe bound for {told}{_where(node)}; the empirical margin needs none"
    )


def _writes(node: fx.Node) -> bool:
    """Whether the operation changes what it is given, in place: what else sees that does not show in the graph."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _out_of_place(node: fx.Node) -> None:
    """Make an operation in place one that is not, where nobody else sees what it is given."""
    name = name_of(node)
    given = node.args[0] if node.args else None
    if node.op != "call_function" or not _writes(node) or name.removesuffix("_") not in _OUT_OF_PLACE:
        return
    if isinstance(given, fx.Node) and given.op == "call_function" and len(given.users) == 1:
        schema = getattr(given.target, "_schema", None)
        if schema is not None and not any(value.alias_info for value in schema.returns):  # else it is a view
            packet = getattr(torch.ops.aten, name.removesuffix("_"))
            node.target = getattr(packet, str(node.target).rsplit(".", 1)[-1])


def _where(node: fx.Node) -> str:
    """The layer that an operation came from, where torch.export says."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return f" (layer '{paths[-1].removeprefix('of.')}')" if paths else ""
