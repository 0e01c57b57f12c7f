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


def derivative_of(activation: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """The slope of ``activation`` at ``z``, like ``z``."""
    with torch.enable_grad():
        at = z.detach().clone().requires_grad_()
        (derivative,) = torch.autograd.grad(activation(at).sum(), at)
    return derivative


def sector(
    shape: Kinked | Smooth, z: Tensor, derivative: Tensor, below: Tensor, above: Tensor
) -> tuple[Tensor, Tensor]:
    """Slope and share of an activation at ``z`` for inputs from z - ``below`` to z + ``above``, each like ``z``.

    ``derivative`` is :func:`derivative_of` it there. The share is 0 where the activation is one line. Both can be
    differentiated in ``below`` and ``above``.
    """
    if isinstance(shape, Smooth):
        return derivative, _smooth(shape, derivative, z, torch.maximum(below, above))
    crossed = bent(z, below, above, shape.kinks)
    below, above = torch.where(crossed, below, 1.0), torch.where(crossed, above, 1.0)
    # On one piece the secant to a point rises or falls all along, so that ends and kinks show the extremes. All are
    # told as ways from z, which near a kink are exact: z + u would be rounded by more than a short way u may bear.
    steps = [-below, above, *(torch.clamp(kink - z, -below, above) for kink in shape.kinks)]
    secants = _secants(shape, z, torch.stack(steps), derivative)
    least, most = secants.amin(0), secants.amax(0)
    share = (most - least) / 2 * (1 + ROUNDING) + _ALONE * shape.steepest
    return torch.where(crossed, (least + most) / 2, derivative), torch.where(crossed, share, 0.0)


def _secants(shape: Kinked, z: Tensor, steps: Tensor, derivative: Tensor) -> Tensor:
    """The slopes from ``z`` to z + ``steps`` (steps, *z.shape), as means of those of the pieces between.

    So there is no cancellation.
    """
    low, high = steps.clamp(max=0), steps.clamp(min=0)
    kinks = [kink - z for kink in shape.kinks]
    rise = torch.zeros_like(steps)
    for slope, left, right in zip(shape.pieces, [None, *kinks], [*kinks, None], strict=True):
        ends = low if left is None else torch.maximum(low, left), high if right is None else torch.minimum(high, right)
        rise = rise + by_channel(slope, z) * (ends[1] - ends[0]).clamp(min=0)
    apart = steps != 0
    return torch.where(apart, rise / torch.where(apart, steps.abs(), 1.0), derivative)


def _smooth(shape: Smooth, derivative: Tensor, z: Tensor, far: Tensor) -> Tensor:
    """How far the secants within ``far`` can be from the derivative: as the curvature allows, or the slopes."""
    share = shape.curvature / 2 * far
    for place, size in shape.jumps:
        share = share + size * (1 - (z - place).abs() / far.clamp(min=1e-300)).clamp(min=0)
    share = torch.minimum(share, torch.maximum(derivative - shape.least, shape.most - derivative))
    share = share * (1 + ROUNDING) + 3 * ROUNDING * shape.steepest
    # Beyond its threshold it is computed otherwise: a step, which is a share of no way less than that to it.
    threshold = (z - shape.threshold).abs()
    share = share + torch.where(far * (1 + ROUNDING) >= threshold, shape.slack / threshold, 0.0)
    return torch.where(far == 0, 0.0, share)  # what cannot move has no error, nor is a multiplier found for it
