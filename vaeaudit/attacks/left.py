"""What a longer search could still gain, and where it is worth searching on."""

import torch
from torch import Tensor

from vaeaudit.attacks.attacked import Attacked, Sweep
from vaeaudit.attacks.probes import rounding
from vaeaudit.optim.lbfgsb import Status

ENOUGH = 0.02  # share of a figure that may be left to gain
FALLS = 0.05  # share of an objective by which it still fell: from here on a long search mostly ends 10% lower
FURTHER = (1, 2)  # how long is searched on where more is left, as multiples of the first evaluations
MOST = 1 + sum(FURTHER)


def left_share(found: Attacked, lowest: Tensor) -> Tensor:
    """What is left to gain of each problem, as a share of the figure that it would change, (P, K).

    Under a cap that figure is the problem's own gain. In a sweep it is the span of the item, from d = 0 to ``lowest``
    (P,), the lowest data term seen; and the mean objective above its floor, which all problems with something left
    share. What rounding can explain counts as none.
    """
    left, zero = left_to_gain(found), found.zero_data_term[:, None]
    if not isinstance(found, Sweep):
        share = left / (zero - found.data_term)
    else:
        share = left / (zero - lowest[:, None])
        if found.floor is not None:
            total = (found.objective - found.floor).mean(1, keepdim=True)
            share = torch.maximum(share, left.mean(1, keepdim=True) / total)
    none = left <= rounding(torch.stack([found.zero_data_term, lowest]), 0)[:, None]
    return torch.where(none, 0.0, share)


def unfinished(found: Attacked) -> Tensor:
    """Which problems ran to their limit, or got stuck, with more than ENOUGH left to gain, (P, K)."""
    value = torch.where(found.data_term.isfinite(), found.data_term, torch.inf)
    lowest = torch.minimum(value.amin(1), found.zero_data_term)
    return _ran(found) & ~(left_share(found, lowest) <= ENOUGH)


def still_falling(found: Sweep) -> Tensor:
    """How far the objective of each lambda was still falling when its search was cut off, as a share of it, (P, K).

    That is what is left to gain (see :func:`left_to_gain`) over the objective above its floor, there or, in pairs that
    no front has followed, at any larger lambda: solutions with smaller lambda go on from those with larger ones then,
    and settle too soon where these are not done. 0 where the data term has no floor, and where lambda lie more than a
    factor of 2 apart: what is left is then bounded too loosely by neighbours to tell.
    """
    apart = found.lambdas.log2().sort().values.diff()
    if found.floor is None or not len(apart) or float(apart.max()) > 1.01:
        return torch.zeros_like(found.data_term)
    left = torch.where(_ran(found), left_to_gain(found), 0.0)
    share = torch.where(left > 0, left / (found.objective - found.floor), 0.0)
    order = found.lambdas.argsort(descending=True)
    with_larger = share[:, order].cummax(1).values[:, order.argsort()]
    return torch.where(found.followed[:, None], share, with_larger)


def left_to_gain(found: Attacked) -> Tensor:
    """How far a longer search could lower each problem's objective, (P, K); infinite where nothing tells.

    Zero where it has converged. The optimum over d of J + lambda pen is concave in lambda and does not fall: it lies
    above the chord of converged neighbours, of which the floor at lambda = 0 counts as one. A search that ran on, or
    stuck, is moreover taken to gain from as many evaluations again no more than it gained from the last half of them
    (see :class:`Attacked`): true of any that nears its limit as fast as 1/evaluations.
    """
    objective = found.objective
    settled = found.status == int(Status.CONVERGED)
    bound = torch.full_like(objective, -torch.inf)
    if isinstance(found, Sweep):
        lowest = -torch.inf if found.floor is None else found.floor
        order = found.lambdas.argsort()
        bound[:, order] = _chords(objective[:, order], settled[:, order], found.lambdas[order], lowest)
    left = objective - bound
    left = torch.where(_ran(found), torch.minimum(left, found.recent), left)
    return torch.where(settled, 0.0, left.clamp(min=0))


def _ran(found: Attacked) -> Tensor:
    """Which problems ended before they had settled, (P, K)."""
    return torch.isin(found.status, found.status.new_tensor([Status.LIMIT, Status.STALLED, Status.SLOWED]))


def _chords(objective: Tensor, settled: Tensor, lambdas: Tensor, lowest: float) -> Tensor:
    """Lower bound of each optimum from its settled neighbours, (P, K) for rising lambda (K,)."""
    count = len(lambdas)
    values = torch.cat([torch.full_like(objective[:, :1], lowest), objective], 1)  # place 0 is lambda = 0
    at = torch.cat([torch.zeros_like(lambdas[:1]), lambdas]).expand_as(values)
    sure = torch.cat([torch.ones_like(settled[:, :1]), settled], 1)
    place = torch.arange(count + 1, device=objective.device).expand_as(values)
    below = torch.where(sure, place, 0).cummax(1).values
    above = torch.where(sure, place, count + 1).flip(1).cummin(1).values.flip(1)
    above = torch.where(above > count, below, above)  # none: the optimum does not fall in lambda
    width = at.gather(1, above) - at.gather(1, below)
    weight = torch.where(width > 0, (at - at.gather(1, below)) / width, 0.0)
    start, end = values.gather(1, below), values.gather(1, above)
    chord = torch.where(weight > 0, start + weight * (end - start), start)
    return torch.where(start.isfinite(), chord, lowest)[:, 1:]
