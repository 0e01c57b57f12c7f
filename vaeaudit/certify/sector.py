"""The sector of an activation: the line that it stays nearest to, and how far it leaves it, as a share of the way.

sigma(z + u) - sigma(z) = slope u + epsilon with |epsilon| <= share |u| for every u within reach. That says what all
secants from z have in common, and nothing about where an activation is as a whole: errors that vanish with u can be
maximised together, where offsets are added up.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vaeaudit.certify.activations import ROUNDING, Kinked, Smooth
from vaeaudit.certify.lines import bent, by_channel

_ALONE = 1e-12  # of the steepest slope: above what secants are rounded by


def sector(
    activation: Callable[[Tensor], Tensor], shape: Kinked | Smooth, z: Tensor, below: Tensor, above: Tensor
) -> tuple[Tensor, Tensor]:
    """Slope and share of ``activation`` at ``z`` for inputs from z - ``below`` to z + ``above``, each like ``z``.

    The share is 0 where the activation is one line. Both can be differentiated in ``below`` and ``above``.
    """
    with torch.enable_grad():
        at = z.detach().clone().requires_grad_()
        (derivative,) = torch.autograd.grad(activation(at).sum(), at)
    if isinstance(shape, Smooth):
        return derivative, _smooth(shape, derivative, z, torch.maximum(below, above))
    crossed = bent(z, below, above, shape.kinks)
    low, high = z - torch.where(crossed, below, 1.0), z + torch.where(crossed, above, 1.0)
    # On one piece the secant to a point rises or falls all along, so that ends and kinks show the extremes.
    points = [low, high, *(torch.clamp(torch.full_like(z, kink), low, high) for kink in shape.kinks)]
    secants = [_secant(shape, z, point, derivative) for point in points]
    least, most = torch.stack(secants).amin(0), torch.stack(secants).amax(0)
    share = (most - least) / 2 * (1 + ROUNDING) + _ALONE * shape.steepest
    return torch.where(crossed, (least + most) / 2, derivative), torch.where(crossed, share, 0.0)


def _secant(shape: Kinked, z: Tensor, point: Tensor, derivative: Tensor) -> Tensor:
    """The slope from ``z`` to ``point``, as the mean of those of the pieces between: without cancellation."""
    low, high = torch.minimum(z, point), torch.maximum(z, point)
    length = high - low
    apart = length > 0
    rise = torch.zeros_like(z)
    left: float = -torch.inf
    for place, slope in enumerate(shape.pieces):
        right = shape.kinks[place] if place < len(shape.kinks) else torch.inf
        rise = rise + by_channel(slope, z) * (high.clamp(max=right) - low.clamp(min=left)).clamp(min=0)
        left = right
    return torch.where(apart, rise / torch.where(apart, length, 1.0), derivative)


def _smooth(shape: Smooth, derivative: Tensor, z: Tensor, far: Tensor) -> Tensor:
    """How far the secants within ``far`` can be from the derivative: as the curvature allows, or the slopes."""
    share = shape.curvature / 2 * far
    for place, size in shape.jumps:
        share = share + size * (1 - (z - place).abs() / far.clamp(min=1e-300)).clamp(min=0)
    share = torch.minimum(share, torch.maximum(derivative - shape.least, shape.most - derivative))
    share = share * (1 + ROUNDING) + 3 * ROUNDING * shape.steepest
    # Beyond its threshold it is computed otherwise: a step, which is a share of no way less than that to it.
    threshold = (z - shape.threshold).abs()
    return share + torch.where(far * (1 + ROUNDING) >= threshold, shape.slack / threshold, 0.0)
