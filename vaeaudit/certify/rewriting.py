"""A traced graph written anew as the same function of fewer kinds of operations, and in float64.

What does not depend on the input is computed once, as the model computes it; changes of precision that round no more
than the model does are left out; what a network does in place is done on a copy, where nobody else sees it; and what
people write by hand is put as the activation that it is.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument

from vaeaudit.certify.activations import ACTIVATIONS, options_of

_ATEN = torch.ops.aten
CASTS = frozenset({"to", "_to_copy", "type_as"})
_OF_A_DTYPE = frozenset({"sum", "mean"})  # that may be told in what precision to add up
_OUT_OF_PLACE = ACTIVATIONS | {"celu", "hardsigmoid", "add", "sub", "mul", "div"}  # those that networks use in place


def name_of(node: fx.Node) -> str:
    """The operation without its overload: "conv2d" of ``aten.conv2d.default``, "getitem"."""
    target = node.target
    packet = getattr(target, "overloadpacket", target)
    return str(getattr(packet, "__name__", packet))


def writes(node: fx.Node) -> bool:
    """Whether the operation changes what it is given, in place: what else sees that does not show in the graph."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def owner(node: fx.Node) -> fx.Node:
    """The node whose numbers ``node`` is, or may be, a view of."""
    while node.op == "call_function" and node.all_input_nodes:
        schema = getattr(node.target, "_schema", None)  # none of getitem, nor of what holds a graph of its own
        if schema is not None and not any(value.alias_info for value in schema.returns):
            break
        node = node.all_input_nodes[0]
    return node


def in_double(module: fx.GraphModule, like: Tensor) -> fx.GraphModule:
    """The same function in float64, on copies of its numbers; ``like`` has the dtype that the model runs in."""
    _fold_constants(module)
    _leave_out_casts(module, like.dtype)
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            value = parameter.detach().double() if parameter.is_floating_point() else parameter.detach()
            setattr(part, name, nn.Parameter(value, requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(name, buffer.double() if buffer.is_floating_point() else buffer)
        for name, value in list(vars(part).items()):  # weights of a model that is no module
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(part, name, value.double())
    for node in list(module.graph.nodes):
        _write_out_of_place(node)
        _write_plainly(node)
    module.recompile()
    return module


def _fold_constants(module: fx.GraphModule) -> None:
    """Replace what is computed from no input by its value, in the model's own precision.

    Chance is left in the graph: it is not one value.
    """
    graph = module.graph
    constant: set[fx.Node] = set()
    for node in graph.nodes:
        tags = getattr(node.target, "tags", ())
        if node.op == "get_attr" or (
            node.op == "call_function"
            and torch.Tag.nondeterministic_seeded not in tags
            and all(source in constant for source in node.all_input_nodes)
        ):
            constant.add(node)
    computed = [node for node in graph.nodes if node in constant and node.op == "call_function"]
    if not computed:
        return
    values = _Constants(module, constant).values()
    for number, node in enumerate(computed):
        value = values.get(node)
        if isinstance(value, Tensor) and not set(node.users) <= constant:
            name = f"folded_{number}"
            module.register_buffer(name, value)
            with graph.inserting_before(node):
                found = graph.get_attr(name)
            found.meta = dict(node.meta)
            node.replace_all_uses_with(found, delete_user_cb=lambda user: user not in constant)
    for node in reversed(computed):
        if not node.users:
            graph.erase_node(node)


class _Constants(fx.Interpreter):
    """Computes the nodes that depend on no input, on copies of what the model holds."""

    def __init__(self, module: fx.GraphModule, constant: set[fx.Node]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._constant = [node for node in module.graph.nodes if node in constant]

    def values(self) -> dict[fx.Node, Any]:
        with torch.no_grad():
            for node in self._constant:
                value = self.run_node(node)
                copied = node.op == "get_attr" and isinstance(value, Tensor)
                self.env[node] = value.detach().clone() if copied else value
        return {node: value.detach() if isinstance(value, Tensor) else value for node, value in self.env.items()}


def _leave_out_casts(module: fx.GraphModule, own: torch.dtype) -> None:
    """Take out what does nothing to the function in float64: casts to no less than the model's own precision.

    Sums that are told to be of such a precision are told float64.
    """
    graph = module.graph
    for node in list(graph.nodes):
        name = name_of(node) if node.op == "call_function" else ""
        if name == "_assert_tensor_metadata":  # holds for the precision that was traced
            graph.erase_node(node)
        elif name in _OF_A_DTYPE and isinstance(given := node.kwargs.get("dtype"), torch.dtype):
            if _as_fine_as(given, own):
                node.kwargs = {**node.kwargs, "dtype": torch.float64}
        elif name in CASTS and isinstance(node.args[0], fx.Node):
            given, found = (of.meta.get("val") for of in (node.args[0], node))
            if not isinstance(found, Tensor) or not _as_fine_as(found.dtype, own):
                continue
            if isinstance(given, Tensor) and _as_fine_as(given.dtype, own):
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
            else:
                node.target, node.args, node.kwargs = _ATEN.to.dtype, (node.args[0], torch.float64), {}


def _as_fine_as(dtype: torch.dtype, own: torch.dtype) -> bool:
    return dtype.is_floating_point and torch.finfo(dtype).eps <= torch.finfo(own).eps


def _write_out_of_place(node: fx.Node) -> None:
    """Make an operation in place one that is not, where nobody else sees what it is given."""
    name = name_of(node)
    given = node.args[0] if node.args else None
    if node.op != "call_function" or not writes(node) or name.removesuffix("_") not in _OUT_OF_PLACE:
        return
    if isinstance(given, fx.Node) and given.op == "call_function" and len(given.users) == 1 and owner(given) is given:
        packet = getattr(_ATEN, name.removesuffix("_"))
        node.target = getattr(packet, str(node.target).rsplit(".", 1)[-1])


def _write_plainly(node: fx.Node) -> None:
    """Put h sigmoid(h) as silu(h), h / (1 + |h|) as softsign(h), maxima and minima of two as what they are made of.

    And celu and hardsigmoid as the elu and the hardtanh that they are, since torch differentiates the former in single
    precision, in which no tangent is one; and each of several values broadcast together as itself, where that does
    nothing to it.
    """
    if node.op != "call_function":
        return
    name, given = name_of(node), [value for value in node.args if isinstance(value, fx.Node)]
    if name in ("maximum", "minimum", "max", "min") and len(given) == 2:
        _put(node, _larger(node, *given, upward=name.startswith("max")))
    elif name == "celu" and (alpha := float(options_of(node)["alpha"])) > 0:
        node.target, node.args, node.kwargs = _ATEN.elu.default, (node.args[0], alpha, 1.0, 1 / alpha), {}
    elif name == "hardsigmoid":
        inner = _call(node, _ATEN.hardtanh.default, _call(node, _ATEN.add.Tensor, node.args[0], 3.0), 0.0, 6.0)
        _put(node, _call(node, _ATEN.div.Tensor, inner, 6.0))
    elif name == "clamp" and "Tensor" in str(node.target):
        options = options_of(node)
        found = options["self"]
        for end in ("min", "max"):
            if options[end] is not None:
                found = _larger(node, found, options[end], upward=end == "min")
        _put(node, found)
    elif name == "getitem" and name_of(given[0]) == "broadcast_tensors":
        (together,), place = given[0].args, node.args[1]
        alone = together[place]  # type: ignore[index]
        if isinstance(alone, fx.Node) and alone.meta["val"].shape == node.meta["val"].shape:
            _put(node, alone)
    elif name == "mul" and len(given) == 2:
        for h, gate in (given, given[::-1]):
            if name_of(gate) == "sigmoid" and gate.args == (h,):
                node.target, node.args = _ATEN.silu.default, (h,)
                break
    elif name == "div" and len(given) == 2 and not node.kwargs and _is_one_more_than_size_of(given[1], given[0]):
        node.target, node.args = torch.nn.functional.softsign, (given[0],)


def _is_one_more_than_size_of(node: fx.Node, h: fx.Node) -> bool:
    """Whether ``node`` is 1 + |h|."""
    sides = sorted(node.args, key=lambda value: isinstance(value, fx.Node))
    if name_of(node) != "add" or node.kwargs or len(sides) != 2 or sides[0] != 1:
        return False
    return isinstance(sides[1], fx.Node) and name_of(sides[1]) == "abs" and sides[1].args == (h,)


def _larger(instead: fx.Node, a: fx.Node, b: fx.Node, *, upward: bool) -> fx.Node:
    """max(a, b) = b + relu(a - b), or without ``upward`` min(a, b) = b - relu(b - a), in new nodes before another."""
    if b.op != "get_attr":
        a, b = b, a  # what never moves stands alone, so that a single side is bent
    apart = _call(instead, _ATEN.sub.Tensor, *((a, b) if upward else (b, a)))
    beyond = _call(instead, _ATEN.relu.default, apart)
    return _call(instead, _ATEN.add.Tensor if upward else _ATEN.sub.Tensor, b, beyond)


def _call(instead: fx.Node, target: Callable[..., Any], *args: Argument) -> fx.Node:
    with instead.graph.inserting_before(instead):
        new = instead.graph.create_node("call_function", target, args)
    new.meta = dict(instead.meta)
    return new


def _put(node: fx.Node, found: fx.Node) -> None:
    node.replace_all_uses_with(found)
    node.graph.erase_node(node)
