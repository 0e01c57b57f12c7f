"""Steps of falling length with momentum, in a box, for a batch of independent problems.

The network behind the objective has kinks, and a search that asks for a decrease at every step settles at those that
it meets first. These steps are Adam's (Kingma & Ba 2015): every variable moves by about the step asked for, whatever
its slope, and the step falls to nothing as half a cosine (Loshchilov & Hutter 2017). So a walk crosses kinks, and ends
near a minimum but not in it: it leaves that to a quasi-Newton search.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vaeaudit.optim.lbfgsb import Minima, Objective, Status

_MOMENTUM, _SQUARES = 0.9, 0.99  # decay of the means of slopes and of their squares


def walk(
    objective: Objective,
    start: Tensor,
    lower: Tensor,
    upper: Tensor,
    step: Tensor,
    rounds: int,
    go_on: Callable[[int], bool],
) -> Minima:
    """The best of the points that ``rounds`` evaluations of each row of ``start`` (B, n) meet.

    The bounds are (1, n), ``step`` (B,) is what each variable moves at first. ``go_on`` is asked before each round with
    how many were made, and ends the walk on False. Values are infinite where none was finite.
    """
    x, problem = start.clamp(lower, upper), torch.arange(len(start), device=start.device)
    best, value = x.clone(), start.new_full((len(start),), torch.inf)
    slope, square = torch.zeros_like(x), torch.zeros_like(x)
    taken = 0
    while taken < rounds and go_on(taken):
        f, g = objective(x, problem)
        finite = f.isfinite() & g.isfinite().all(1)
        better = finite & (f < value)
        value = torch.where(better, f, value)
        best = torch.where(better[:, None], x, best)
        g = torch.where(finite[:, None], g, 0.0)
        falling = 0.5 * (1 + math.cos(math.pi * taken / rounds))
        taken += 1
        slope.lerp_(g, 1 - _MOMENTUM)
        square.lerp_(g.square(), 1 - _SQUARES)
        size = (square / (1 - _SQUARES**taken)).sqrt_()
        way = torch.where(size > 0, slope / size, 0.0).div_(1 - _MOMENTUM**taken)
        x = torch.addcmul(x, way, step[:, None], value=-falling).clamp_(lower, upper)
    return Minima(best, value, torch.full_like(problem, int(Status.LIMIT)), torch.full_like(problem, taken))
