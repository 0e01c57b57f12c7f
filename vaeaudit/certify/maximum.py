"""Maxima over windows written as what linear bounds can be carried through: affine operations and relu.

max(a, b) = a + relu(b - a), pair by pair and one axis after the other, so that windows that overlap share the maxima of
their rows. Each window has its elements once: one taken twice would be compared with itself, and lose by that.
"""

from collections.abc import Sequence

import torch
from torch import fx
from torch.fx.node import Argument, Target

from vaeaudit.certify.graph import Graph, Kind
from vaeaudit.certify.lines import unsupported
from vaeaudit.certify.lipschitz import windows_of

_ATEN = torch.ops.aten


def without_maxima(graph: Graph) -> Graph:
    """The function of ``graph`` without operations of :attr:`Kind.MAXIMUM`; ``graph`` itself where there are none.

    The values are the same up to a few units of rounding, and weights are shared. A node whose name is found in both
    graphs has the same value in both.

    Raises :class:`UnsupportedError` for a window without elements, in the padding alone.
    """
    if next(graph.of(Kind.MAXIMUM), None) is None:
        return graph
    written = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.module.graph.nodes:
        copies[node] = written.node_copy(node, copies.__getitem__)
    written.set_codegen(graph.module.graph._codegen)
    module = fx.GraphModule(graph.module, written)
    rewritten = Graph(module, {copies[node]: kind for node, kind in graph.kinds.items()}, graph.input_shape)
    maxima = list(rewritten.of(Kind.MAXIMUM))
    for node in maxima:
        with written.inserting_before(node):
            larger = _Pool(rewritten, node).written()
        larger.meta["val"] = node.meta["val"]  # for the size of another maximum after this one
        node.replace_all_uses_with(larger)
    for node in maxima:  # at the end, so that none of their names is given to another
        written.erase_node(node)
        del rewritten.kinds[node]
    module.recompile()
    return rewritten


class _Pool:
    """One maximum over windows, written anew before the node it replaces."""

    def __init__(self, graph: Graph, node: fx.Node) -> None:
        self.graph, self.node = graph, node

    def written(self) -> fx.Node:
        """The last of the new nodes."""
        (source,), over = self.node.all_input_nodes, windows_of(self.node)
        axes = len(over.kernel)
        sizes, outputs = (node.meta["val"].shape[-axes:] for node in (source, self.node))
        last, windows = source, []
        for axis in range(axes):
            starts = (place * over.stride[axis] - over.padding[axis] for place in range(outputs[axis]))
            step, reach = over.dilation[axis], over.kernel[axis] * over.dilation[axis]
            found = [range(start, start + reach, step) for start in starts]
            windows.append([[place for place in window if 0 <= place < sizes[axis]] for window in found])
            if not all(windows[axis]):
                raise unsupported(self.node)
            # Rows and columns between windows are not to be compared at all.
            used = sorted({place for window in windows[axis] for place in window})
            last = self._taken(last, axis - axes, used, sizes[axis])
            windows[axis] = [[used.index(place) for place in window] for window in windows[axis]]
        for axis in reversed(range(axes)):
            last = self._maxima(last, axis - axes, windows[axis])
        return last

    def _maxima(self, x: fx.Node, axis: int, windows: list[list[int]]) -> fx.Node:
        """The maximum of each window of places along an axis, in order."""
        size = 1 + max(place for window in windows for place in window)
        while any(len(window) > 1 for window in windows):
            halved = [[tuple(window[i : i + 2]) for i in range(0, len(window), 2)] for window in windows]
            found = dict.fromkeys(part for parts in halved for part in parts)
            pairs, singles = ([part for part in found if len(part) == n] for n in (2, 1))
            a, b = (self._taken(x, axis, [pair[side] for pair in pairs], size) for side in (0, 1))
            rise = self._call(_ATEN.relu.default, self._call(_ATEN.sub.Tensor, b, a), kind=Kind.ACTIVATION)
            larger = self._call(_ATEN.add.Tensor, a, rise)
            if singles:
                others = self._taken(x, axis, [single for (single,) in singles], size)
                larger = self._call(_ATEN.cat.default, [larger, others], axis)
            place = {part: at for at, part in enumerate([*pairs, *singles])}
            x, size, windows = larger, len(place), [[place[part] for part in parts] for parts in halved]
        return self._taken(x, axis, [window[0] for window in windows], size)

    def _taken(self, x: fx.Node, axis: int, places: Sequence[int], size: int) -> fx.Node:
        if list(places) == list(range(size)):
            return x
        module = self.graph.module
        name = f"{self.node.name}_places_{len(self.graph.kinds)}"
        module.register_buffer(name, torch.tensor(places, device=self.node.meta["val"].device))
        index = module.graph.get_attr(name)
        self.graph.kinds[index] = Kind.CONSTANT
        return self._call(_ATEN.index_select.default, x, axis, index)

    def _call(self, target: Target, *args: Argument, kind: Kind = Kind.AFFINE) -> fx.Node:
        node = self.graph.module.graph.create_node("call_function", target, args)
        self.graph.kinds[node] = kind
        return node
