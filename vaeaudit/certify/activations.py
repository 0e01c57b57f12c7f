"""What is known of each activation: where its slope changes, between what slopes lie, and how fast they change.

All certificates read this one table: the largest slope is the Lipschitz constant, and the rest says how far it can
leave a line on an interval.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

ROUNDING = 1e-9
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # torch's own, of Klambauer et al. 2017


@dataclass(frozen=True, eq=False)
class Kinked:
    """Piecewise linear: the places of its kinks, ascending, and the slopes of the pieces, one more, from the left.

    A slope is a number, or (channels,) where it differs from channel to channel.
    """

    kinks: tuple[float, ...]
    pieces: tuple[float | Tensor, ...]

    @property
    def steepest(self) -> float:
        """The Lipschitz constant."""
        return max(float(torch.as_tensor(slope).abs().max()) for slope in self.pieces)


@dataclass(frozen=True)
class Smooth:
    """Bounds of an activation's derivative, ``least`` to ``most``, and of how fast it changes, ``curvature``.

    At each of ``jumps``, (place, size), the derivative may jump besides. ``slack`` is added to values beyond
    ``threshold``.
    """

    least: float
    most: float
    curvature: float
    jumps: tuple[tuple[float, float], ...] = ()
    slack: float = 0.0
    threshold: float = math.inf

    @property
    def steepest(self) -> float:
        """The Lipschitz constant."""
        return max(abs(self.least), abs(self.most))


# Extremes of the first and the largest of the second derivative, rounded outward; the tests look for larger ones.
_SMOOTH = {
    "tanh": Smooth(0.0, 1.0, 4 / math.sqrt(27) * (1 + ROUNDING)),
    "sigmoid": Smooth(0.0, 0.25, (1 + ROUNDING) / math.sqrt(108)),
    # -softplus(-y), which torch computes without a threshold.
    "log_sigmoid": Smooth(0.0, 1.0, 0.25),
    # y Phi(y): its slope is largest at sqrt 2, Phi(sqrt 2) + sqrt 2 phi(sqrt 2) = 1.12890, and g'(y) + g'(-y) = 1; its
    # curvature phi(y) (2 - y^2) is largest at 0, sqrt(2 / pi) = 0.797885. With tanh in place of Phi: 1.12899, 0.797885.
    "gelu": Smooth(-0.1291, 1.1291, 0.798),
    # y sigmoid(y): 1.09984 at 2.39936, s'(y) + s'(-y) = 1; its curvature is largest at 0, where it is 1/2.
    "silu": Smooth(-0.0999, 1.0999, 0.5),
    # y tanh(softplus(y)): 1.0884982 at 1.490571, -0.1125262 at -2.256376; its curvature 0.6442047 is at -0.087934.
    "mish": Smooth(-0.1126, 1.0885, 0.6443),
    # y / (1 + |y|): slope 1 / (1 + |y|)^2, curvature 2 / (1 + |y|)^3.
    "softsign": Smooth(0.0, 1.0, 2.0),
    # y (y + 3) / 6 between -3 and 3, where its slope (2 y + 3) / 6 goes from -1/2 to 3/2; 0 and y outside.
    "hardswish": Smooth(-0.5, 1.5, (1 + ROUNDING) / 3, ((-3.0, 0.5), (3.0, 0.5))),
}
ACTIVATIONS = frozenset(_SMOOTH) | {
    *("relu", "relu6", "leaky_relu", "prelu", "abs", "hardtanh", "clamp", "clamp_min", "clamp_max"),
    *("elu", "selu", "softplus"),
}


def options_of(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operation by name, with the defaults of its schema."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return dict(node.kwargs)
    names = node.target._schema.arguments
    given = dict(zip((argument.name for argument in names), node.args, strict=False))
    return {argument.name: argument.default_value for argument in names} | given | dict(node.kwargs)


def shape_of(name: str, options: Mapping[str, Any]) -> Kinked | Smooth | None:
    """How the activation ``name`` bends, with the ``options`` of its call; None where there is no safe bound.

    ``options`` are those of :func:`options_of`, with values where nodes of constants were.
    """
    match name:
        case "relu":
            return Kinked((0.0,), (0.0, 1.0))
        case "leaky_relu":
            return Kinked((0.0,), (float(options["negative_slope"]), 1.0))
        case "prelu":
            return Kinked((0.0,), (options["weight"], 1.0))
        case "abs":
            return Kinked((0.0,), (-1.0, 1.0))
        case "relu6":
            return _clamp(0.0, 6.0)
        case "hardtanh":
            return _clamp(options["min_val"], options["max_val"])
        case "clamp" | "clamp_min" | "clamp_max":
            return _clamp(options.get("min"), options.get("max"))
        case "softplus" if options["beta"] > 0 and options["threshold"] >= 20:
            # Beyond its threshold it is computed as the identity, which at 20 is 2.1e-9 off.
            beta = float(options["beta"])
            return Smooth(0.0, 1.0, beta / 4, slack=3e-9 / beta, threshold=float(options["threshold"]) / beta)
        case "selu":
            return _exponential(_SELU_SCALE, _SELU_ALPHA, 1.0)
        case "elu" if options["input_scale"] > 0:
            return _exponential(float(options["scale"]), float(options["alpha"]), float(options["input_scale"]))
    return _SMOOTH.get(name)


def _clamp(low: object, high: object) -> Kinked | None:
    """The identity between two numbers, of which either may be missing."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    kinks = tuple(float(end) for end in (low, high) if isinstance(end, (int, float)))
    pieces = (*((0.0,) if low is not None else ()), 1.0, *((0.0,) if high is not None else ()))
    return Kinked(kinks, pieces)


def _exponential(scale: float, alpha: float, input_scale: float) -> Smooth:
    """scale y above 0, scale alpha (exp(input_scale y) - 1) below, where its slope fades from that at 0.

    The slope below is that at 0, scale alpha input_scale, times a number in (0, 1], and the curvature input_scale times
    as large; at 0 the slope jumps, unless both sides meet, as in ELU of alpha 1 and CELU of any alpha > 0.
    """
    below = scale * alpha * input_scale
    if (alpha, input_scale) != (1.0, 1.0):
        below *= 1 + ROUNDING
    jump = abs(scale - below)
    jumps = ((0.0, jump * (1 + ROUNDING)),) if jump else ()
    return Smooth(min(0.0, scale, below), max(0.0, scale, below), abs(below * input_scale), jumps)
