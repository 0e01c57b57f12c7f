"""Running a model with some of its elementary operations replaced: another activation, another order of flattening.

Works on operations, not on modules, so that an activation called as a function is replaced like one that is a layer.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ReLU": F.relu,
    "tanh": torch.tanh,
    "ELU": F.elu,
    "GELU": F.gelu,
    "SiLU": F.silu,
    "softplus": F.softplus,
    "leaky ReLU": F.leaky_relu,
    "leaky ReLU of slope 0.2": lambda x: F.leaky_relu(x, 0.2),
    "sigmoid": torch.sigmoid,
    "SELU": F.selu,
}
_OPERATIONS = {
    "relu": "ReLU",
    "tanh": "tanh",
    "elu": "ELU",
    "gelu": "GELU",
    "silu": "SiLU",
    "softplus": "softplus",
    "leaky_relu": "leaky ReLU",
    "sigmoid": "sigmoid",
}
Replace = Callable[[str, tuple[Any, ...], int], Tensor | None]
_VIEWS = ("view", "_unsafe_view", "alias", "detach", "clone", "permute", "transpose")  # of what is there already


@dataclass(frozen=True)
class Called:
    """The activations that a call ran through, in order, and whether the last one ends it."""

    activations: tuple[str, ...]
    at_end: bool


@dataclass(frozen=True)
class Substitution:
    """Operations to replace in "encode", in "decode" or in both: what each part's ``replace`` says.

    It takes the operation's name, its arguments and the number of activations before it, and gives another result,
    or None where the operation stays.
    """

    name: str
    advice: str
    replace: Mapping[str, Replace]


class _Replacing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, replace: Replace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.replace = replace
        self.activations: list[str] = []
        self.at_end = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard against it imports for seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        full = func.overloadpacket.__name__
        operation = full if full.startswith("_") else full.rstrip("_")
        result = self.replace(operation, args, len(self.activations))
        kind = _OPERATIONS.get(operation)
        if kind is not None:
            self.activations.append(kind)
            self.at_end = True
        elif operation not in _VIEWS and args and isinstance(args[0], Tensor) and args[0].ndim > 1:
            self.at_end = False
        if result is None:
            return func(*args, **(kwargs or {}))
        return args[0].copy_(result) if full != operation else result  # relu_ writes where it read


def called(function: Callable[..., Any], *arguments: Any, replace: Replace | None = None) -> tuple[Any, Called]:
    """``function(*arguments)`` with operations replaced, and the activations that it called."""
    mode = _Replacing(replace or (lambda *_: None))
    with mode:
        result = function(*arguments)
    return result, Called(tuple(mode.activations), mode.at_end)


def substitutions(encode: Called, decode: Called, *, throughout: bool) -> Iterator[Substitution]:
    """Other activations for those that the model has, and orders of flattening: throughout, or in one part only."""
    both = ("encode", "decode")
    seen = {"encode": _inner(encode), "decode": _inner(decode)}
    kept = len(decode.activations) - 1 if decode.at_end else None
    for parts in [both] if throughout else [("encode",), ("decode",)]:
        inside = "" if throughout else f" in {parts[0]} alone"
        for source in dict.fromkeys(name for part in parts for name in seen[part]):
            for target in ACTIVATIONS:
                if target != source:
                    yield Substitution(
                        f"{target} for {source} as activation{inside}",
                        "see the adapter's activation (--option activation=NAME where it has one)",
                        {part: _activation(source, target, kept if part == "decode" else None) for part in parts},
                    )
        for first, order, back in (("last", (0, 2, 3, 1), (0, 3, 1, 2)), ("first", (0, 3, 1, 2), (0, 2, 3, 1))):
            yield Substitution(
                f"feature maps flattened with channels {first}{inside}",
                "see the order of axes between convolutions and linear layers, where frameworks differ",
                dict.fromkeys(parts, _flattened(order, back)),
            )
    if throughout and decode.at_end:
        yield Substitution(
            f"one {decode.activations[-1]} fewer after the decoder", "see what ends decode", {"decode": _without(kept)}
        )


def _inner(seen: Called) -> list[str]:
    """The activations between layers: a sigmoid or tanh at the end is the output's."""
    return list(seen.activations[: -1 if seen.at_end else None])


def _activation(source: str, target: str, kept: int | None) -> Replace:
    def replace(operation: str, args: tuple[Any, ...], before: int) -> Tensor | None:
        if _OPERATIONS.get(operation) != source or before == kept:
            return None
        return ACTIVATIONS[target](args[0])

    return replace


def _without(place: int | None) -> Replace:
    def replace(operation: str, args: tuple[Any, ...], before: int) -> Tensor | None:
        return args[0].clone() if operation in _OPERATIONS and before == place else None

    return replace


def _flattened(order: tuple[int, ...], back: tuple[int, ...]) -> Replace:
    """Between (n, C, H, W) and (n, C H W): as if the axes stood in another ``order`` when they became one."""

    def replace(operation: str, args: tuple[Any, ...], _: int) -> Tensor | None:
        if operation not in ("view", "_unsafe_view"):
            return None
        values: Tensor = args[0]
        shape = tuple(args[1])
        if values.ndim == 4 and len(shape) == 2 and math.prod(values.shape[2:]) > 1:
            return values.permute(order).reshape(shape)
        if values.ndim == 2 and len(shape) == 4 and len(values) == shape[0]:
            return values.reshape([shape[axis] for axis in order]).permute(back).contiguous()
        return None

    return replace
