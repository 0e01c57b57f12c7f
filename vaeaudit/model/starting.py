"""A first adapter for a network that nobody describes: what names and shapes of tensors tell, all else marked "?".

Linear layers, convolutions and batch normalisation are put in the one order in which each takes what the one before it
gives: an encoder, two heads (or one of twice the width), and a decoder, every layer in its place.
"""

import keyword
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from vaeaudit.model.weight_sets import Shaped, unwrapped

_MOST_STEPS = 20_000  # of the search for the order
_WIDTH = 100
_TAKEN = {*dir(nn.Module), *keyword.kwlist, "input_shape", "range", "prior", "encode", "decode", "training"}
_VARIANCE = re.compile(r"var|std|sigma|scale|_lv$|lv\b|22$", re.IGNORECASE)
_DECODES, _ENCODES = re.compile(r"dec|gener|deconv|up", re.IGNORECASE), re.compile(r"enc|down", re.IGNORECASE)


@dataclass(frozen=True)
class _Layer:
    """A layer by the name of its tensors: what it takes and gives, in features or channels."""

    name: str
    kind: str  # of torch.nn
    inputs: int
    outputs: int
    kernel: int = 1
    bias: bool = True


@dataclass(frozen=True)
class _Chain:
    """The layers in order; ``square`` is the side of the map that becomes a vector in the encoder, and back."""

    encoder: tuple[_Layer, ...]
    heads: tuple[_Layer, ...]
    decoder: tuple[_Layer, ...]


def starting_adapter(tensors: Mapping[str, Shaped]) -> str:
    """Python code of an adapter; where the order of layers is not told by their sizes, with methods to be written."""
    named = [("", dict(tensors)), *unwrapped(tensors)][-1][1]
    layers, strange = _layers(named)
    chain = None if strange else next(map(_settled, _chains(layers)), None)
    declared = [*chain.encoder, *chain.heads, *chain.decoder] if chain else layers
    lines = ["from torch import nn", "", "import vaeaudit", "", "", "class Model(nn.Module):"]
    lines += [*_inputs(chain), "", "    def __init__(self):", "        super().__init__()"]
    lines += [*_declarations(declared, chain), *(f"        # ? no layer known here: {name!r}" for name in strange)]
    lines += ["", *(_methods(chain) if chain else _MISSING)]
    plain = all(layer.name == _attribute(layer.name) for layer in layers)
    taken = "checkpoint.tensors" if plain else "tensors"
    lines += ["", "", "def open(checkpoint, config):", "    vae = Model()"]
    if not plain:
        head = "layer_" * any(_attribute(layer.name).startswith("layer_") for layer in layers)
        name = f'{f"{head!r} + " if head else ""}name.replace(".", "_", name.count(".") - 1)'
        lines += [f"    tensors = {{{name}: tensor for name, tensor in checkpoint.tensors.items()}}"]
    return "\n".join([*lines, f"    vaeaudit.load_state(vae, {taken})", "    return vae", ""])


_MISSING = [
    "    @property",
    "    def prior(self):",
    "        return vaeaudit.DiagonalGaussian.standard((LATENTS,), like=next(self.parameters()))  # ? how many",
    "",
    "    def encode(self, x):",
    "        raise NotImplementedError  # ? return vaeaudit.DiagonalGaussian(mean, logvar / 2)",
    "",
    "    def decode(self, z):",
    "        raise NotImplementedError  # ? return vaeaudit.BernoulliLogits(logits)",
]


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which names are sorted as people count: layer2 before layer10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _layers(tensors: Mapping[str, Shaped]) -> tuple[list[_Layer], list[str]]:
    """The layers in the order of their names, and the names of tensors that belong to none that is known."""
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        groups.setdefault(layer, {})[kind] = tuple(tensor.shape)
    layers: list[_Layer] = []
    strange: list[str] = []
    for name in sorted(groups, key=_natural):
        shapes = groups[name]
        shape, bias = shapes.get("weight", ()), shapes.get("bias")
        of_norm = {"running_mean", "running_var"} <= shapes.keys()
        if of_norm and len(shape) == 1 and bias == shape:
            layers.append(_Layer(name, "BatchNorm2d", shape[0], shape[0]))
        elif shapes.keys() - {"weight", "bias"} or not name:
            strange += [f"{name}.{kind}".lstrip(".") for kind in shapes]
        elif len(shape) == 2:
            layers.append(_Layer(name, "Linear", shape[1], shape[0], bias=bias is not None))
        elif len(shape) == 4 and shape[2] == shape[3]:
            told = bias is not None and shape[0] != shape[1]
            turned = bias == (shape[1],) if told else bool(_DECODES.search(name))
            inputs, outputs = shape[:2] if turned else shape[1::-1]
            kind = "ConvTranspose2d" if turned else "Conv2d"
            layers.append(_Layer(name, kind, inputs, outputs, shape[2], bias is not None))
        else:
            strange += [f"{name}.{kind}" for kind in shapes]
    return layers, strange


def _follows(before: _Layer | None, after: _Layer) -> bool:
    """Whether a layer takes what the one before it gives; a map becomes a vector, or a vector a map, by its square."""
    if before is None:
        return after.kind != "BatchNorm2d"
    given, taken = before.outputs, after.inputs
    if (before.kind == "Linear") == (after.kind == "Linear") or after.kind == "BatchNorm2d":
        return given == taken
    if before.kind == "BatchNorm2d" and given == taken:
        return True
    large, small = max(given, taken), min(given, taken)
    return large % small == 0 and math.isqrt(large // small) ** 2 == large // small


def _chains(layers: Sequence[_Layer]) -> Iterator[_Chain]:
    """The orders that use every layer, those that keep the order of names first."""
    steps = iter(range(_MOST_STEPS))
    split = any(_DECODES.search(layer.name) for layer in layers)

    def paths(used: tuple[_Layer, ...], last: _Layer | None, decoder: bool) -> Iterator[tuple[_Layer, ...]]:
        """``used``, and everything that may follow it."""
        if next(steps, None) is None:
            return
        place = layers.index(used[-1]) if used else -1
        wrong = _ENCODES if decoder else _DECODES
        for layer in (*layers[place + 1 :], *layers[: place + 1]):
            if layer not in used and _follows(last, layer) and not (split and wrong.search(layer.name)):
                yield from paths((*used, layer), layer, decoder)
        yield used

    for encoder in paths((), None, False):
        last = encoder[-1] if encoder else None
        free = [layer for layer in layers if layer not in encoder and layer.kind == "Linear" and _follows(last, layer)]
        for heads in _heads(free):
            latents = heads[0].outputs * len(heads) // 2
            rest = [layer for layer in layers if layer not in (*encoder, *heads)]
            for first in rest:
                if first.inputs == latents and first.kind == "Linear":
                    for decoder in paths((*encoder, *heads, first), first, True):
                        if len(decoder) == len(layers) and decoder[-1].outputs == (encoder or heads)[0].inputs:
                            yield _Chain(encoder, heads, decoder[len(encoder) + len(heads) :])


def _heads(free: Sequence[_Layer]) -> Iterator[tuple[_Layer, ...]]:
    """Mean and log-variance, by their names where these tell, and then one layer of both."""
    for place, one in enumerate(free):
        for other in free[place + 1 :]:
            if (one.inputs, one.outputs) == (other.inputs, other.outputs):
                turned = _VARIANCE.search(one.name) and not _VARIANCE.search(other.name)
                yield (other, one) if turned else (one, other)
    yield from ((one,) for one in free if one.outputs % 2 == 0)


def _attribute(name: str) -> str:
    plain = re.sub(r"\W", "_", name)  # a name comes from a file, and becomes code
    return plain if plain.isidentifier() and plain not in _TAKEN else f"layer_{plain}"


def _side(chain: _Chain) -> int:
    """The side of the encoder's last map."""
    channels = [layer.outputs for layer in chain.encoder if layer.kind.startswith("Conv")][-1]
    flat = next(layer for layer in (*chain.encoder, *chain.heads) if layer.kind == "Linear")
    return math.isqrt(flat.inputs // channels)


def _settled(chain: _Chain) -> _Chain:
    """The chain with as many of the decoder's square kernels transposed as bring back the input's side."""
    maps = [layer for layer in chain.encoder if layer.kind == "Conv2d" and layer.kernel > 1]
    first = next((layer for layer in chain.decoder if layer.kind != "Linear"), None)
    if not maps or first is None:
        return chain
    flat = chain.decoder[chain.decoder.index(first) - 1].outputs
    doublings = math.log2(_side(chain) * 2 ** len(maps) / max(1, math.isqrt(flat // first.inputs)))
    left = doublings - sum(layer.kind == "ConvTranspose2d" for layer in chain.decoder)
    decoder = list(chain.decoder)
    for place, layer in enumerate(decoder):
        if left > 0 and layer.kind == "Conv2d" and layer.inputs == layer.outputs and layer.kernel > 1:
            decoder[place] = replace(layer, kind="ConvTranspose2d")
            left -= 1
    return replace(chain, decoder=tuple(decoder))


def _inputs(chain: _Chain | None) -> list[str]:
    if chain is None:
        return ["    input_shape, range = (1, 28, 28), (0.0, 1.0)  # ? the shape of one input, and the range of all"]
    first = (*chain.encoder, *chain.heads)[0]
    if first.kind == "Linear":
        return [f"    input_shape, range = ({first.inputs},), (0.0, 1.0)  # ? or as (1, 28, 28); the range of inputs"]
    side = _side(chain) * 2 ** sum(layer.kind == "Conv2d" and layer.kernel > 1 for layer in chain.encoder)
    return [f"    input_shape, range = ({first.inputs}, {side}, {side}), (0.0, 1.0)  # ? by the strides below"]


def _declarations(layers: Sequence[_Layer], chain: _Chain | None) -> Iterator[str]:
    """Assignments of a few layers each, lines not too long."""
    names: list[str] = []
    made: list[str] = []
    mapped = chain is not None and any(layer.kind == "Conv2d" for layer in chain.encoder)
    for layer in layers:
        name, text = f"self.{_attribute(layer.name)}", _made(layer, chain, mapped)
        if names and len(", ".join([*names, name, *made, text])) > _WIDTH:
            yield f"        {', '.join(names)} = {', '.join(made)}"
            names, made = [], []
        names.append(name)
        made.append(text)
    if names:
        yield f"        {', '.join(names)} = {', '.join(made)}"


def _made(layer: _Layer, chain: _Chain | None, mapped: bool) -> str:
    bias = "" if layer.bias else ", bias=False"
    if layer.kind == "BatchNorm2d":
        return f"nn.{layer.kind if mapped or chain is None else 'BatchNorm1d'}({layer.inputs})"
    if layer.kind == "Linear":
        return f"nn.Linear({layer.inputs}, {layer.outputs}{bias})"
    kernel, padding = layer.kernel, (layer.kernel - 1) // 2
    halves = kernel > 1 and not (chain is not None and layer in chain.decoder and layer.kind == "Conv2d")
    steps = f", {kernel}, {2 if halves else 1}, {padding}"
    odd = ", 1" * (layer.kind == "ConvTranspose2d" and halves and kernel % 2)
    return f"nn.{layer.kind}({layer.inputs}, {layer.outputs}{steps}{odd}{bias})"


def _methods(chain: _Chain) -> Iterator[str]:
    latents, first = chain.decoder[0].inputs, _attribute(chain.decoder[0].name)
    yield f"    prior = property(lambda self: vaeaudit.DiagonalGaussian.standard(({latents},), self.{first}.weight))"
    yield ""
    yield "    def encode(self, x):"
    mapped = any(layer.kind == "Conv2d" for layer in chain.encoder)
    yield from _applied("x", chain.encoder, not mapped)
    x = "x.flatten(1)" if not chain.encoder or chain.encoder[-1].kind != "Linear" else "x"
    heads = [f"self.{_attribute(layer.name)}({x})" for layer in chain.heads]
    if len(heads) == 1:
        yield f"        mean, logvar = {heads[0]}.chunk(2, dim=1)  # ? in halves, the mean first"
        heads = ["mean", "logvar"]
    yield f"        return vaeaudit.DiagonalGaussian({heads[0]}, {heads[1]} / 2)"
    yield ""
    yield "    def decode(self, z):"
    *before, last = chain.decoder
    yield from _applied("z", before, False)
    taken = _unflattened("z", before[-1], last) if before else "z"
    output = f"self.{_attribute(last.name)}({taken})" + ".unflatten(1, self.input_shape)" * (last.kind == "Linear")
    yield f"        return vaeaudit.BernoulliLogits({output})  # ? or another likelihood"


def _applied(x: str, layers: Sequence[_Layer], flatten: bool) -> Iterator[str]:
    """A line a layer; an activation follows each, or the normalisation behind it."""
    for place, layer in enumerate(layers):
        taken = f"{x}.flatten(1)" if flatten and not place else x
        if place:
            taken = _unflattened(x, layers[place - 1], layer)
        normalised = place + 1 < len(layers) and layers[place + 1].kind == "BatchNorm2d"
        activation = "" if normalised else ".relu()"
        remark = (
            "  # ? the activation" if activation and not any(n.kind != "BatchNorm2d" for n in layers[:place]) else ""
        )
        yield f"        {x} = self.{_attribute(layer.name)}({taken}){activation}{remark}"


def _unflattened(x: str, before: _Layer, after: _Layer) -> str:
    """What the layer is given: a vector of a map, a map of a vector, or what there is."""
    if before.outputs == after.inputs:
        return x
    if after.kind == "Linear":
        return f"{x}.flatten(1)"
    side = math.isqrt(before.outputs // after.inputs)
    return f"{x}.unflatten(1, ({after.inputs}, {side}, {side}))"
