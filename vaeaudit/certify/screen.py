"""Which neurons of a wide first layer matter on a ball, told from bounds that cost next to nothing.

What the second layer is given changes by J d, J its Jacobian at the item, and by what the first layer's activations
deviate from their slopes there, at most |T| deviations. Most second neurons are shown by that to be constant; they are
given no ellipsoid, and no first neuron that feeds these alone has to be followed. In a convolution J is as sparse as
its receptive fields are small.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vaeaudit.certify.activations import ROUNDING
from vaeaudit.certify.item import Item
from vaeaudit.certify.matrices import gamma
from vaeaudit.certify.room import Functions
from vaeaudit.certify.sector import sector


@dataclass(frozen=True, eq=False)
class Screen:
    """How far the second layer's activations are moved below and above, and ``rows`` of its stage not surely constant.

    ``matters`` (rows,) says which of the first stage's rows these depend on.
    """

    sides: tuple[Tensor, Tensor]
    rows: Tensor
    matters: Tensor


def linear(item: Item, place: int, functions: Functions, rho: float, added: Tensor) -> tuple[Tensor, Tensor]:
    """How far activations of a stage are moved below and above by at most ``added`` (neurons,) and their ``functions``.

    Those are of the input; what is told is rounded up.
    """
    told = (rho * functions.sizes + added) * (1 + ROUNDING)
    if item.room is None:
        return told, told
    # Where the ball alone bends nothing, the box has nothing to tell.
    bent = (sector_of(item, place, (told, told))[1] != 0).nonzero()[:, 0]
    sides = told.clone(), told.clone()
    for side, found in zip(sides, item.room.farthest(functions.matrix[bent.numpy()], rho), strict=True):
        side[bent] = (found + added[bent]) * (1 + ROUNDING)
    return sides


def screened(item: Item, rho: float, slope: Tensor, share: Tensor, reach: Tensor) -> Screen | None:
    """What the sectors of the first layer and the ``reach`` (neurons,) they are of show; None without a second."""
    if len(item.bends) < 2:
        return None
    first, second = item.stages.chain[:2]
    away = (slope - item.slopes[0]).abs() + share
    deviation = torch.cat([away.new_zeros(first.passed), torch.where(away > 0, away * reach, 0.0)])
    acting, lengths = item.stages.second
    # J is off by less than this in norm: its elements are sums of products, of all of T and of the first map.
    off = gamma(acting.shape[1] + 2) * item.first_size * lengths
    sides = linear(item, 1, item.second, rho, torch.from_numpy(acting @ deviation.numpy()) + rho * off)
    slope, share = sector_of(item, 1, sides)
    alive = torch.cat([torch.ones(second.passed, dtype=torch.bool), ~((slope == 0) & (share == 0))])
    rows = alive.nonzero()[:, 0]
    return Screen(sides, rows, second.used(alive))


def sector_of(item: Item, place: int, sides: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Slope and share of each activation of a stage, (neurons,), where they are moved so far below and above."""
    bend = item.bends[place]
    below, above = (side.view(bend.at.shape).to(bend.at.device) for side in sides)
    slope, share = sector(bend.shape, bend.at, bend.derivative, below, above)
    return slope.flatten().cpu(), share.flatten().cpu()
