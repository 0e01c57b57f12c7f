"""Two lines around an activation on an interval, and where an activation is one line already.

A smooth one lies within its curvature of its tangent; a piecewise linear one within what its ends and kinks show of any
line, so that the chord and the longer piece are the lines of CROWN. Offsets are widened for rounding.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from vaeaudit.certify.activations import ROUNDING, Kinked, Smooth
from vaeaudit.certify.rewriting import name_of
from vaeaudit.errors import UnsupportedError

_SLACK = 1e-14  # of the values that an offset is the difference of


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


def lines(
    activation: Callable[[Tensor], Tensor], shape: Kinked | Smooth, y: Tensor, below: Tensor, above: Tensor
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
        # From the tangent it parts by the integral of how far its slope has changed: steadily, and by the jumps passed.
        off = shape.curvature / 2 * far.square()
        for place, size in shape.jumps:
            off = off + size * (far - (y - place).abs()).clamp(min=0)
        off = torch.minimum(off, steepest * far)
        off = off * (1 + ROUNDING) + _SLACK * (value.abs() + far)
        off = off + shape.slack * (y + far > shape.threshold)
        return value, derivative, -off, derivative, off
    crossed = bent(y, below, above, shape.kinks)
    below, above = torch.where(crossed, below, 0.0), torch.where(crossed, above, 0.0)
    low, high = y - below, y + above
    ends = activation(low), activation(high)
    chord = torch.where(crossed, (ends[1] - ends[0]) / (high - low), derivative)
    slopes = (chord, chord)
    if len(shape.kinks) == 1:  # convex or concave: the other line is the longer piece, which passes the less area by
        (kink,) = shape.kinks
        left, right = (by_channel(slope, y) for slope in shape.pieces)
        outer = torch.where(crossed, torch.where(high - kink > kink - low, right, left), derivative)
        concave = left > right
        slopes = torch.where(concave, chord, outer), torch.where(concave, outer, chord)
    points = [low, high, *(torch.clamp(torch.full_like(y, kink), low, high) for kink in shape.kinks)]
    slack = torch.where(crossed, _SLACK * (y.abs() + below + above + value.abs()), 0.0)
    # Both are linear between these points, so that the difference has its extremes there.
    lower, upper = (torch.stack([activation(p) - value - slope * (p - y) for p in points]) for slope in slopes)
    lower_offset = torch.where(crossed, lower.amin(0).clamp(max=0) - slack, 0.0)
    upper_offset = torch.where(crossed, upper.amax(0).clamp(min=0) + slack, 0.0)
    return value, slopes[0], lower_offset, slopes[1], upper_offset


def by_channel(slope: float | Tensor, y: Tensor) -> Tensor:
    """The slope of one piece for the elements of ``y`` (b, channels, ...), to be broadcast."""
    return torch.as_tensor(slope, dtype=y.dtype, device=y.device).view(-1, *(1,) * max(0, y.dim() - 2))


def unsupported(n: fx.Node) -> UnsupportedError:
    """What to raise for an operation without linear bounds."""
    return UnsupportedError(
        f"there is no local certificate: the operation '{name_of(n)}' has no linear bounds here; "
        "the global certificate, the first-order estimates and the empirical margin need none"
    )
