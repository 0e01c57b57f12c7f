"""Two lines around an activation on an interval, and where an activation is one line already.

A smooth one lies within its curvature of its tangent; a piecewise linear one within what its ends and kinks show of any
line, so that the chord and the longer piece are the lines of CROWN. Offsets are widened for rounding.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from vaeaudit.certify.graph import name_of
from vaeaudit.errors import UnsupportedError

ROUNDING = 1e-9
_SLACK = 1e-14  # of the values that an offset is the difference of


@dataclass(frozen=True)
class Smooth:
    """Bounds of an activation's derivative and of how fast it changes; ``slack`` is added beyond ``threshold``."""

    least: float
    most: float
    curvature: float
    slack: float = 0.0
    threshold: float = math.inf


_SMOOTH = {
    "tanh": Smooth(0.0, 1.0, 4 / math.sqrt(27) * (1 + ROUNDING)),
    "sigmoid": Smooth(0.0, 0.25, (1 + ROUNDING) / math.sqrt(108)),
    # Beyond its threshold of 20 it is computed as the identity, which is 2.1e-9 off.
    "softplus": Smooth(0.0, 1.0, 0.25, 3e-9, 20.0),
    "elu": Smooth(0.0, 1.0, 1.0),
    "gelu": Smooth(-0.13, 1.13, 0.798),
    "silu": Smooth(-0.1, 1.1, 0.5),
}


def bent(y: Tensor, below: Tensor, above: Tensor, kinks: Sequence[float] | None) -> Tensor:
    """Where the activation is not known to be linear from ``y`` - ``below`` to ``y`` + ``above``; NaN is not known."""
    moves = ~(below + above <= 0)
    if kinks is None:
        return moves
    crossed = torch.zeros_like(moves)
    for kink in kinks:
        crossed |= ~((y - below > kink) | (kink > y + above))
    return moves & crossed


def nearest(y: Tensor, kinks: Sequence[float] | None) -> Tensor:
    """The kink nearest to each of ``y``; infinitely far where there is none."""
    places = y.new_tensor([math.inf, *(kinks or ())])
    return places[(y.unsqueeze(-1) - places).abs().argmin(-1)]


def shape_of(n: fx.Node, arguments: Sequence[object], keywords: Mapping[str, object]) -> list[float] | Smooth:
    """Where a piecewise linear activation has its kinks, or how a smooth one can bend."""
    name = name_of(n)
    numbers = [*arguments, *keywords.values()]
    if any(isinstance(value, Tensor) for value in numbers):
        raise unsupported(n)
    values = [float(value) for value in numbers if isinstance(value, (int, float))]
    match name:
        case "relu" | "leaky_relu":
            return [0.0]
        case "hardtanh" if len(values) in (0, 2):
            return values or [-1.0, 1.0]
        case "clamp":
            return values
        case _ if name in _SMOOTH and not numbers:
            return _SMOOTH[name]
        case "softplus" if values[0] > 0 and values[1:] in ([], [20.0]):
            return Smooth(0.0, 1.0, values[0] / 4, 3e-9 / values[0], 20 / values[0])
        case "elu" | "gelu" if all(value in (1, "none") for value in numbers):
            return _SMOOTH[name]
    raise unsupported(n)


def lines(
    activation: Callable[[Tensor], Tensor], shape: list[float] | Smooth, y: Tensor, below: Tensor, above: Tensor
) -> tuple[Tensor, ...]:
    """Its values, and two lines around an activation: slopes, and their values at ``y`` less the activation's.

    Returns value, lower slope, lower offset, upper slope, upper offset, each like ``y``.
    """
    with torch.enable_grad():
        at = y.clone().requires_grad_()
        value = activation(at)
        (derivative,) = torch.autograd.grad(value.sum(), at)
    value = value.detach()
    if isinstance(shape, Smooth):
        far = torch.maximum(below, above)
        steepest = torch.maximum(derivative - shape.least, shape.most - derivative)
        off = torch.minimum(shape.curvature / 2 * far.square(), steepest * far)
        off = off * (1 + ROUNDING) + _SLACK * (value.abs() + far)
        off = off + shape.slack * (y + far > shape.threshold)
        return value, derivative, -off, derivative, off
    crossed = bent(y, below, above, shape)
    below, above = torch.where(crossed, below, 0.0), torch.where(crossed, above, 0.0)
    low, high = y - below, y + above
    ends = activation(low), activation(high)
    chord = torch.where(crossed, (ends[1] - ends[0]) / (high - low), derivative)
    outer = chord
    if len(shape) == 1:  # convex or concave: the other line is the longer piece, which passes the less area by
        beyond = activation(y.new_tensor([shape[0] - 1, shape[0], shape[0] + 1]))
        left, right = beyond[1] - beyond[0], beyond[2] - beyond[1]
        outer = torch.where(crossed, torch.where(high - shape[0] > shape[0] - low, right, left), derivative)
    concave = len(shape) == 1 and bool(left > right)
    slopes = (chord, outer) if concave else (outer, chord)
    points = [low, high, *(torch.clamp(torch.full_like(y, kink), low, high) for kink in shape)]
    slack = torch.where(crossed, _SLACK * (y.abs() + below + above + value.abs()), 0.0)
    # Both are linear between these points, so that the difference has its extremes there.
    lower, upper = (torch.stack([activation(p) - value - slope * (p - y) for p in points]) for slope in slopes)
    lower_offset = torch.where(crossed, lower.amin(0).clamp(max=0) - slack, 0.0)
    upper_offset = torch.where(crossed, upper.amax(0).clamp(min=0) + slack, 0.0)
    return value, slopes[0], lower_offset, slopes[1], upper_offset


def unsupported(n: fx.Node) -> UnsupportedError:
    """What to raise for an operation without linear bounds."""
    return UnsupportedError(
        f"there is no local certificate: the operation '{name_of(n)}' has no linear bounds here; "
        "the global certificate, the first-order estimates and the empirical margin need none"
    )
