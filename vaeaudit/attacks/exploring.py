"""Where the search of a sweep begins: short searches from a few points, and a walk from the target.

With large lambda the solution is short and lies on kinks, where a search settles at the first that it meets: mostly a
walk ends lower, on single problems a search does.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeaudit.optim.walk import walk
from vaeaudit.progress import Progress

if TYPE_CHECKING:
    from vaeaudit.attacks.search import Search

_EXPLORED = 2.0**-13  # least lambda that is explored, as a share of the least for which d = 0 could be optimal
_THINNED = 3  # of so many neighbours one is explored
_EXPLORING = 12  # exploring takes this part of a problem's evaluations, from each start
_WALKED = 2.0**-6  # least lambda that is walked to, as a share like _EXPLORED
_WALKING = 4  # a walk takes this part
_STRIDE = 0.2  # of a walk at first, as a share of ||x_t - x|| spread over all elements


def explore(search: "Search", walks_at: float, ends_at: float) -> None:
    """Search from a small step off d = 0, and halfway to the target and further points; then walk from the target.

    ``walks_at`` and ``ends_at`` are the shares of the time told, at which walks begin and end.
    """
    below = search.lam < search.top[search.pair]
    explored = (below & (search.lam >= _EXPLORED * search.top[search.pair])).reshape(len(search.x), -1)
    explored &= search.lambdas.argsort().argsort() % _THINNED == 0
    # Where the lambda asked for leave that range out, the largest below it.
    nearest = torch.where(below, search.lam, -torch.inf).reshape(explored.shape)
    largest = (nearest == nearest.max(1, keepdim=True).values) & nearest.isfinite()
    problem = torch.where(explored.any(1, keepdim=True), explored, largest).flatten().nonzero().squeeze(1)
    if not len(problem):
        return
    _explore_from(search, problem, search.effort.starts, walks_at)
    _walk(search, problem[search.lam[problem] >= _WALKED * search.top[search.pair[problem]]], walks_at, ends_at)


def explored_at_most(lambdas: NDArray[np.float64], starts: int) -> int:
    """How many searches explore one pair at once, whatever its top lambda, of rising ``lambdas``."""
    within = np.searchsorted(lambdas, lambdas / _EXPLORED, side="right") - np.arange(len(lambdas))
    return starts * math.ceil(int(within.max()) / _THINNED)


def _explore_from(search: "Search", problem: Tensor, starts: int, ends_at: float) -> None:
    """Search the problems (b,) from each of the points."""
    pair, most = search.pair[problem], -(-search.effort.stopping.max_evaluations // _EXPLORING)
    x, x_t = search.x[pair], search.x_t[pair]
    points = [torch.lerp(x, x_t, _between(start)) if start else search.off_zero(pair) for start in range(starts)]
    several = problem.repeat(len(points))
    descent = search.descent_of(several, torch.cat(points), most, None)
    before, turn = search.evaluations, 0
    stage = f"exploring from {starts} point{'s' if starts > 1 else ''}"
    for rounds in (most // 2, most):  # halfway is remembered, for what is gained later
        for _ in range(rounds):
            done = ends_at * turn / most
            if not descent.running or not search.asked(Progress(stage, descent.running, len(several), done)):
                break
            descent.advance(1)
            turn += 1
        search.harvest(descent.minima(), several)
        search.evaluations = before.index_add(0, several, descent.minima().evaluations)
        search.history.append((search.evaluations, search.objective))


def _walk(search: "Search", problem: Tensor, begins_at: float, ends_at: float) -> None:
    """Walk from the target with the problems (b,)."""
    if not len(problem):
        return
    pair, most = search.pair[problem], -(-search.effort.stopping.max_evaluations // _WALKING)

    def go_on(taken: int) -> bool:
        done = begins_at + (ends_at - begins_at) * taken / most
        return search.asked(Progress("walking from the target", len(problem), len(problem), done))

    step = _STRIDE * search.gap[pair] / search.x.shape[1] ** 0.5
    found = walk(search.objective_of(problem), search.x_t[pair], search.low, search.high, step, most, go_on)
    search.harvest(found, problem)
    search.evaluations = search.evaluations.index_add(0, problem, found.evaluations)
    search.history.append((search.evaluations, search.objective))


def _between(number: int) -> float:
    """The ``number``-th point of the van der Corput sequence: 1/2, 1/4, 3/4, 1/8, ..."""
    return sum(2.0**~place for place, bit in enumerate(f"{number:b}"[::-1]) if bit == "1")
