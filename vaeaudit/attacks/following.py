"""Following each pair of a sweep from larger lambda to ever smaller ones.

From afar a search with small lambda first brings the data term near its floor, at a long distortion, and then crawls.
From a larger lambda the distortion stays short.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaeaudit.attacks.attacked import penalise
from vaeaudit.attacks.term import Squares
from vaeaudit.optim.gauss_newton import LEAST, GaussNewton, whole
from vaeaudit.optim.lbfgsb import Descent, Minima, Stopping
from vaeaudit.progress import Progress

if TYPE_CHECKING:
    from vaeaudit.attacks.search import Search

# Lambda are shares of the top, the least for which d = 0 could be optimal.
_FROM = (1.0, 2.0**-2, 2.0**-4, 2.0**-6)  # from which fronts follow
_SHARE = 0.4  # of the evaluations of all problems that fronts may take besides, one for each pass back, but for looks
_LAMBDA = 41  # so many problems at least: a front goes as far for one lambda as for many
_EACH, _DEEP = 4, 64  # at most a step for each residual and so many evaluations, or for each input and so many
_SHORTEST = 120  # evaluations of a problem below which it is only looked at
_FEW = 200  # below so many steps no front follows
# Pairs are followed by these parts of the steps first, and by all only where the second of these lowered objectives by
# more than this share of themselves, in the mean over pairs: a single pair's gain tells little of what all steps would.
_LOOKS, _WORTHWHILE = (2.0**-5, 2.0**-4), 0.01
_GLANCE = 100  # below so many steps of the second, all are made at once
_SETTLING = 6  # this part of the steps is made at the smallest lambda
_SETTLED = 2.0**10  # times the damping by which kinks are left behind there
_ROUNDS = 20  # steps between two looks at whether any front may still move
ROWS = 4  # most rows of Jacobians that the fronts of a pair hold, for each of its problems
_LEADS = 2.0**-3  # largest from which smaller ones are led
_FAR = 2.0**-9  # at which a distortion shorter than half of the way shows that much can be won by it
_LED, _LAST = 6, 3  # each gets this part of a problem's evaluations, and the smallest lambda so many times as much
_EVERY = 2  # of so many neighbours one is led to


def follow(search: "Search", begins_at: float, ends_at: float) -> None:
    """Follow each pair to the smallest lambda; ``begins_at`` and ``ends_at`` are the shares of the time told.

    By averaged Gauss-Newton steps where the data term is a sum of few enough squares, else by quasi-Newton ones.
    """
    towards = (search.zero_data_term - search.target_data_term) / penalise(search.gap, search.penalty)
    tops = torch.where(search.top.isfinite(), search.top, towards)  # a slope at d = 0 may be infinite
    pairs = (tops.isfinite() & (tops > search.lambdas.min())).nonzero().squeeze(1)
    fronts, steps = _fronts(search) if len(pairs) else (0, 0)
    if not fronts:
        _lead(search, begins_at, ends_at)
        return
    at = begins_at
    for share in (*(_LOOKS if steps * _LOOKS[-1] >= _GLANCE else ()), 1.0):
        before, until = search.objective, at + (ends_at - at) * share
        _walk_down(search, pairs, tops[pairs], fronts, int(steps * share), at, until)
        if search.stopped or (share == _LOOKS[-1] and _gained(search, before, tops) <= _WORTHWHILE):
            break
        at = until
    if search.stopped:
        search.followed.fill_(False)  # not to the end
    else:
        search.begin_history()  # only at the end has a front come to small lambda


def _gained(search: "Search", before: Tensor, tops: Tensor) -> float:
    """By how much of itself an objective fell since it was ``before`` (K,), in the mean over those below the top."""
    fell = torch.where(before > search.objective, 1 - search.objective / before, 0.0)
    return float(fell[search.lam < tops[search.pair]].mean())


def _fronts(search: "Search") -> tuple[int, int]:
    """How many fronts each pair has, and how many steps each makes; no front where these would be too few."""
    most, count = search.effort.stopping.max_evaluations, max(_LAMBDA, len(search.lambdas))
    if most < _SHORTEST or not isinstance(search.term.data_term, Squares):
        return 0, 0
    residuals = search.term.residuals(search.x[:1], search.pair[:1]).shape[1]
    fronts, inputs = min(len(_FROM), ROWS * count // residuals), search.x.shape[1]
    passes = int(_SHARE * most * count)  # back, of as many fronts as there may be
    steps = min(passes // len(_FROM) - residuals, residuals * most // _EACH, inputs * most // _DEEP)
    if not fronts or steps < _FEW:
        return 0, 0
    try:
        search.term.slopes(search.x[:1], search.pair[:1], whole)
    except Exception:  # some models can be passed back through but once; what else is wrong, others tell
        return 0, 0
    return fronts, steps


def _walk_down(
    search: "Search", pairs: Tensor, tops: Tensor, fronts: int, steps: int, begins_at: float, ends_at: float
) -> None:
    """Follow ``pairs`` (A,) with several fronts each, from the best that is known at the lambda where they begin.

    A step is made for all at once, and what it meets serves all lambda of the pair.
    """
    count, least = len(search.lambdas), search.lambdas.min()
    pair = pairs.repeat_interleave(fronts)  # (A F,)
    begin = (tops[:, None] * tops.new_tensor(_FROM[:fronts])).clamp(min=least).flatten().log2()
    end = least.log2()
    nearest = (search.lambdas.log2() - begin[:, None]).abs().argmin(1)
    problem = pair * count + nearest
    start = torch.where((search.norm[problem] > 0)[:, None], search.best[problem], search.off_zero(pair))
    front = GaussNewton(
        lambda points, row, along: search.term.slopes(points, pair[row], along),
        search.x[pair],
        start,
        search.low,
        search.high,
        search.gap[pair],
        squared=search.penalty == "l2sq",
    )
    settling = steps // _SETTLING
    falling = steps - settling
    below = search.lambdas < tops[:, None]  # (A, L)
    place = (pairs[:, None] * count + torch.arange(count, device=pair.device)).flatten()
    made = 0
    for step in range(steps):
        done = begins_at + (ends_at - begins_at) * step / steps
        if not search.asked(Progress("following to smaller lambda", steps - step, steps, done)):
            break
        weight = torch.exp2(torch.lerp(begin, end.expand_as(begin), min(1.0, step / falling)))
        front.advance(weight, LEAST * _SETTLED ** max(0.0, (step - falling) / settling))
        data, norm = (each.reshape(-1, fronts) for each in (front.data, front.norm))
        search.offer(front.points.reshape(len(pairs), fronts, -1), data, norm, pairs)
        made += 1
        if step and step % _ROUNDS == 0 and not front.alive:
            break
    if made:  # each problem below the top is served by what all fronts of its pair cost
        passes = fronts * (front.residuals + made - 1) // below.sum(1, keepdim=True)
        search.evaluations = search.evaluations.index_add(0, place, (below * passes).flatten())
    if not search.stopped:
        search.followed[pairs] = front.moves.reshape(-1, fronts).any(1)


def _lead(search: "Search", begins_at: float, ends_at: float) -> None:
    """Follow each pair's best down to the smallest lambda: each search begins where its neighbour's has come to.

    From afar a search with small lambda first brings the data term near its floor, at a long distortion, and then
    crawls. From a larger lambda it stays short, and the neighbour's curvature is known. Where the distortion must
    be nearly as long as the way to the target, that is soon found without.
    """
    order = search.lambdas.argsort()[::_EVERY].flip(0)  # the smallest comes last
    begins = (search.lambdas[order] > _LEADS * search.top[:, None]).sum(1)  # (P,) where in it a pair does
    far = (search.lambdas.log() - (_FAR * search.top).log()[:, None]).abs().argmin(1, keepdim=True)
    norm = search.norm.reshape(len(search.x), -1).gather(1, far).squeeze(1)
    begins = torch.where(norm < 0.5 * search.gap, begins, len(order))
    steps = range(int(begins.min()), len(order))
    if not steps:
        return
    first = torch.arange(len(search.x), device=search.x.device) * len(search.lambdas)  # problem of each pair
    problem = first.clone()  # (P,) that each pair has come to, which the objective reads anew
    most = -(-search.effort.stopping.max_evaluations // _LED)
    asked = search.effort.stopping
    stopping = Stopping(asked.ftol, asked.patience, most * (len(steps) + _LAST))
    descent = Descent(
        search.objective_of(problem),
        search.x,
        search.low,
        search.high,
        stopping,
        begin=first[:0],
        unit=search.unit,
    )
    taken = torch.zeros_like(first)
    for step in steps:
        problem.copy_(first + order[step])
        pair = (begins <= step).nonzero().squeeze(1)
        of = problem[pair]
        start = torch.where((search.norm[of] > 0)[:, None], search.best[of], search.off_zero(pair))
        led = begins[pair] < step
        descent.move(pair, torch.where(led[:, None], descent.minima().x[pair], start), torch.where(led, pair, -1))
        for _ in range(most * _LAST if step == steps[-1] else most):
            done = begins_at + (ends_at - begins_at) * (step - steps[0]) / len(steps)
            told = Progress("following to smaller lambda", steps[-1] + 1 - step, len(steps), done)
            if not descent.running or not search.asked(told):
                break
            descent.advance(1)
        found = descent.minima()
        search.harvest(Minima(*(each[pair] for each in (found.x, found.value, found.status, taken))), of)
        search.evaluations = search.evaluations.index_add(0, problem, found.evaluations - taken)
        search.history.append((search.evaluations, search.objective))
        taken = found.evaluations.clone()
        if search.stopped:
            break
