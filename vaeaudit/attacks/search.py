"""The search of a lambda sweep: all problems of all pairs at once, learning from each other.

The problems of one pair share all but their lambda. A distortion found for one is a candidate for all others at no
cost (the table J_i + lambda_j pen(d_i)), and two candidates need no search at all: d = 0, which is optimal for large
lambda, and d = x_t - x, which reaches the target's own posterior. The search first looks from several points, for
the lambda at which the way to the target is weighed against its length: with a larger one d = 0 is optimal, and with
a much smaller one a search from afar crawls. The largest of these are walked to as well, over kinks at which a search
settles, and from there each pair is followed to ever smaller lambda. Then all problems are refined from the best
candidate of their pair, and every few rounds those that another's distortion serves better move there.

That needs neighbours: a lambda searched alone ends in whatever minimum lies on its way. So where those asked for lie
far apart, rungs between them are searched as well, and above the largest. What is told is of those asked for alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vaeaudit.attacks.attacked import penalise
from vaeaudit.attacks.exploring import explore, explored_at_most
from vaeaudit.attacks.following import follow
from vaeaudit.attacks.rungs import rungs
from vaeaudit.attacks.term import Term
from vaeaudit.errors import NonFiniteError
from vaeaudit.model.box import flat_bounds
from vaeaudit.model.ranges import Range
from vaeaudit.optim.lbfgsb import Descent, Minima, Objective, Status, Stopping
from vaeaudit.progress import GoOn, Progress

_OFF_ZERO = 1e-2  # length of the first step off d = 0, as a share of ||x_t - x||
_STEP = 0.1  # length of an ordinary step of a search, likewise
_ROUNDS = 50  # rounds between two exchanges
_TELLING = 100  # evaluations from which on a search's last gains tell of those to come
# Shares of the time at which walks begin, and following, and at whose end problems are explored, and refined.
_WALKS_AT, _LEADS_AT, _EXPLORES, _REFINES = 0.08, 0.1, 0.6, 0.95
_SLOW = 1e-3  # relative gain from one exchange to the next below which a problem ends, where that is asked
_WORTHWHILE = 1e-3  # relative gain for which a problem moves to another's distortion


@dataclass(frozen=True)
class Effort:
    """How long is searched: when a problem has settled, and from how many points the search begins."""

    stopping: Stopping
    starts: int = 8


class Search:
    """The problems of a sweep and the best that is known of each; problem k is pair k // L, lambda k % L.

    ``x`` and ``x_t`` are (P, n), ``asked`` (A,); ``lambdas`` (L,) holds these and, after them, the rungs between.
    ``floor`` is a lower bound of the data term, None where there is none.
    """

    def __init__(
        self,
        term: Term,
        x: Tensor,
        x_t: Tensor,
        box: Range | None,
        asked: Tensor,
        penalty: str,
        floor: float | None,
        effort: Effort,
        go_on: GoOn,
    ) -> None:
        self.term, self.x, self.x_t, self.penalty = term, x, x_t, penalty
        self.effort, self.go_on, self.stopped = effort, go_on, False
        self.low, self.high = low, high = flat_bounds(box, term.shape, x)  # (1, n) each
        every = torch.arange(len(x), device=x.device)
        self.gap = torch.linalg.vector_norm(x_t - x, dim=1)  # (P,)
        self.unit = _STEP * self.gap  # length of an ordinary step
        # The two candidates that need no search: d = 0 and d = x_t - x.
        self.zero_data_term, gradient = term.gradient(x, every)
        _check_finite(self.zero_data_term)
        self.target_data_term = term.value(x_t, every)
        self.target_data_term = torch.where(
            self.target_data_term.isfinite(), self.target_data_term, torch.inf
        )  # then no candidate
        self.floor = (
            torch.minimum(self.zero_data_term, self.target_data_term)
            if floor is None
            else torch.full_like(x[:, 0], floor)
        )
        self.rising = floor is None  # the lowest data term known is the floor until a lower one is found
        blocked = ((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0))
        self.descent = torch.where(blocked, 0.0, -gradient)  # (P, n) feasible descent at d = 0
        self.steepness = torch.linalg.vector_norm(self.descent, dim=1)  # (P,)
        towards = (self.zero_data_term - self.target_data_term) / self.gap
        # The lambda (P,) above which d = 0 is optimal, so far as these two slopes tell.
        self.top = torch.maximum(self.steepness, towards) / (1 if penalty == "l2" else self.gap)
        between = asked.new_tensor(rungs(asked.tolist(), effort.stopping.max_evaluations))
        self.lambdas = torch.cat([asked, between[between < self.top.max()]])
        self.pair = every.repeat_interleave(len(self.lambdas))  # (K,), K = P L
        self.lam = self.lambdas.repeat(len(x))  # (K,)
        # d = 0 is stationary where, with `l2`, the feasible gradient of the data term is no longer than lambda.
        self.stationary = self.steepness[self.pair] <= (self.lam if penalty == "l2" else 0)
        # Every problem starts with d = 0.
        self.best = x[self.pair].clone()  # (K, n) best adversarial input
        self.data_term = self.zero_data_term[self.pair]  # (K,) its data term
        self.norm = torch.zeros_like(self.data_term)  # (K,) its ||d||_2
        self.status = torch.where(self.stationary, int(Status.CONVERGED), int(Status.STOPPED))
        self.evaluations = torch.ones_like(self.pair)
        self.further = torch.zeros_like(self.stationary)  # whether it was searched on
        self._searched = _REFINES  # share of the time told when that began last
        self.followed = torch.zeros_like(every, dtype=torch.bool)  # (P,) whether fronts have followed the pair
        self.history: list[tuple[Tensor, Tensor]] = []  # evaluations and objective after each exchange
        self.before_history = torch.zeros_like(self.evaluations)  # (K,) evaluations before it begins

    def run(self) -> None:
        """Explore, then refine."""
        explore(self, _WALKS_AT, _LEADS_AT)
        self._adopt()
        follow(self, _LEADS_AT, _EXPLORES)
        self._adopt()
        begin = (self.norm > 0) | ~self.stationary
        rounds = self.effort.stopping.max_evaluations
        brief = self.followed[self.pair]  # what fronts have met lies near
        self._refine(begin.nonzero().squeeze(1), rounds, "refining", _EXPLORES, _REFINES, brief)

    def run_on(self, problem: Tensor, most: int) -> None:
        """Search the problems (b,) on from the best that is known, with ``most`` further evaluations of each."""
        self.further[problem] = True
        at, self._searched = self._searched, (1 + self._searched) / 2  # how often that is asked for is not known here
        self._refine(problem, most, "searching on", at, self._searched, torch.zeros_like(self.further))

    @property
    def objective(self) -> Tensor:
        """Best objective of each problem, (K,)."""
        return torch.addcmul(self.data_term, self.lam, penalise(self.norm, self.penalty))

    @property
    def recent(self) -> Tensor:
        """What the objective has gained since half of a problem's evaluations, (K,); infinite if cut off after few.

        Of those since :meth:`begin_history`, where that was called.
        """
        final, before = self.objective, torch.full_like(self.data_term, torch.inf)
        since = self.evaluations - self.before_history
        for evaluations, objective in self.history:
            before = torch.where(2 * (evaluations - self.before_history) <= since, objective, before)
        zero = self.zero_data_term[self.pair]
        gained = (torch.minimum(before, zero) - final).clamp(min=0)
        cut_off = (self.status == int(Status.LIMIT)) | (self.status == int(Status.STOPPED))
        gained = torch.where(cut_off & (since < _TELLING), torch.inf, gained)
        # Stuck is where no step along the gradient, however short, lowers the value: more of them would not either.
        return torch.where(self.status == int(Status.STALLED), 0.0, gained)

    def begin_history(self) -> None:
        """Forget what was gained so far, which tells nothing of what refining will gain."""
        self.before_history, self.history = self.evaluations, [(self.evaluations, self.objective)]

    def candidates(self) -> tuple[Tensor, Tensor]:
        """Data term and ||d||_2 of each pair's candidates, (P, L + 2): its problems' best, d = 0, d = x_t - x."""
        shape = (len(self.x), len(self.lambdas))
        data = torch.stack([self.zero_data_term, self.target_data_term], 1)
        norm = torch.stack([torch.zeros_like(self.gap), self.gap], 1)
        return torch.cat([self.data_term.reshape(shape), data], 1), torch.cat([self.norm.reshape(shape), norm], 1)

    def _refine(self, begin: Tensor, most: int, stage: str, begun_at: float, ends_at: float, brief: Tensor) -> None:
        """Search the problems ``begin`` (b,) from the best known; any moves to better ones as they are found.

        Those that are ``brief`` (K,) end where they gain little from one exchange to the next, and all of them after
        ``most`` rounds: the last few would take as many rounds again, at a thousandth of the objective.
        What is left is told in evaluations of those that run, and never rises, though a problem that has settled runs
        again where another's distortion serves it.
        """
        problem = torch.arange(len(self.lam), device=self.lam.device)
        start = torch.where((self.norm > 0)[:, None], self.best, self.off_zero(self.pair))
        search = self.descent_of(problem, start, most, begin)
        used = self.evaluations
        left = most * len(begin)
        begun = torch.zeros_like(self.stationary)
        begun[begin] = True
        rounds = 0
        while not self.stopped:
            before = self.objective
            for _ in range(_ROUNDS):
                running = search.left
                left = min(left, running)
                # Most problems settle long before their limit, and the last few take their time.
                share = begun_at + (ends_at - begun_at) * (1 - math.sqrt(left / max(1, most * len(begin))))
                told = Progress(f"{stage}, evaluations", left, most * len(begin), share)
                if not running or not self.asked(told):
                    break
                search.advance(1)
            self.harvest(search.minima(), problem)
            rounds += _ROUNDS
            slow = before - self.objective <= _SLOW * self._excess(self.objective)
            if not self.stopped:
                search.end(brief & slow, Status.SLOWED)
                if rounds >= most:
                    search.end(brief, Status.LIMIT)
            found = search.minima()
            self.evaluations = used + found.evaluations
            self.history.append((self.evaluations, self.objective))
            worthwhile, source = self._adopt()
            over = (found.evaluations >= most) | (brief & (rounds >= most))
            moving = worthwhile & ~over & (self.norm > 0)
            begun |= moving
            self.status = torch.where(begun, found.status, self.status)
            # What came from another lambda and is not searched for its own has not settled.
            self.status[worthwhile & over] = int(Status.LIMIT)
            rows = moving.nonzero().squeeze(1)
            if self.stopped or not (search.running or rows.numel()):
                break
            if rows.numel():
                search.move(rows, self.best[rows], source[rows])
        # The search can be stuck at x_t itself: it settles where it started, far from the best.
        bound = self.target_data_term[self.pair] + self.lam * penalise(self.gap, self.penalty)[self.pair]
        saved = self._excess(bound) - self._excess(self.objective)
        stuck = (
            bound.isfinite()
            & (self.norm > 0)
            & (saved <= _WORTHWHILE * self._excess(bound))
            & torch.isin(self.status, self.status.new_tensor([Status.CONVERGED, Status.SLOWED]))
        )
        self.status[stuck] = int(Status.STALLED)

    def _excess(self, objective: Tensor) -> Tensor:
        """How far an objective (K,) lies above the floor of its pair's data term: the scale of relative gains."""
        above: Tensor = objective - self.floor[self.pair]
        return above

    def _adopt(self) -> tuple[Tensor, Tensor]:
        """Give each problem the best candidate of its pair.

        Returns whether that gained enough to search from it, (K,), and the problem it came from, (K,), -1 for none.
        """
        data, norm = self.candidates()
        count = data.shape[1] - 2
        table = data[:, None, :] + self.lambdas[:, None] * penalise(norm, self.penalty)[:, None, :]
        offer, which = table.flatten(0, 1).min(1)  # (K,) over the candidates of the pair
        before = self.objective
        if self.rising:
            self.floor = data.min(1).values
        worthwhile = before - offer > _WORTHWHILE * self._excess(before)
        source = torch.where(which < count, self.pair * count + which, -1)
        better = (offer < before).nonzero().squeeze(1)
        pair, place = self.pair[better], which[better]
        free = torch.where((place == count)[:, None], self.x[pair], self.x_t[pair])
        own = source[better].clamp(min=0)
        self.best[better] = torch.where((place < count)[:, None], self.best[own], free)
        self.data_term[better], self.norm[better] = data[pair, place], norm[pair, place]
        return worthwhile, source

    def off_zero(self, pair: Tensor) -> Tensor:
        """A small step off d = 0, along the feasible descent or, where that is flat, towards the target."""
        steep = self.steepness[pair][:, None]
        way = torch.where(steep > 0, self.descent[pair] / steep, (self.x_t - self.x)[pair] / self.gap[pair][:, None])
        point: Tensor = self.x[pair] + _OFF_ZERO * self.gap[pair][:, None] * way
        return point

    def objective_of(self, problem: Tensor) -> Objective:
        """What the named problems minimise, with its gradient."""

        def objective(points: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            k = problem[row]
            pair, lam = self.pair[k], self.lam[k]
            data, gradient = self.term.gradient(points, pair)
            d = points - self.x.index_select(0, pair)
            norm = torch.linalg.vector_norm(d, dim=1)
            # `l2` has no gradient at d = 0; what is left out there is 0, not NaN.
            slope = torch.where(norm > 0, 1 / norm, 0.0) if self.penalty == "l2" else 2.0
            return data + lam * penalise(norm, self.penalty), torch.addcmul(gradient, (lam * slope)[:, None], d)

        return objective

    def descent_of(self, problem: Tensor, start: Tensor, most: int, begin: Tensor | None) -> Descent:
        """A minimisation of the named problems, with at most ``most`` evaluations of each."""
        asked = self.effort.stopping
        stopping = Stopping(asked.ftol, asked.patience, most)
        unit = self.unit[self.pair[problem]]
        return Descent(self.objective_of(problem), start, self.low, self.high, stopping, begin=begin, unit=unit)

    def asked(self, progress: Progress) -> bool:
        """Whether to go on, which is told where the search is."""
        self.stopped = self.stopped or not self.go_on(progress)
        return not self.stopped

    def offer(self, points: Tensor, data: Tensor, norm: Tensor, pair: Tensor) -> None:
        """Keep what serves a problem best: points (A, F, n) of ``pair`` (A,), with data term and ||d||, (A, F)."""
        table = torch.addcmul(data[:, :, None], self.lambdas, penalise(norm, self.penalty)[:, :, None])  # (A, F, L)
        value, which = table.nan_to_num_(torch.inf, torch.inf, torch.inf).min(1)  # (A, L)
        known = self.objective.reshape(len(self.x), -1)[pair]
        row, place = (value < known).nonzero(as_tuple=True)
        if not len(row):
            return
        problem, front = pair[row] * len(self.lambdas) + place, which[row, place]
        self.best[problem] = points[row, front]
        self.data_term[problem], self.norm[problem] = data[row, front], norm[row, front]

    def harvest(self, found: Minima, problem: Tensor) -> None:
        """Keep what is better than the best known; ``problem`` (b,) names the problem of each row found."""
        # Where one start of a problem is not finite, what its others found still counts.
        known = torch.where(found.value.isfinite(), found.value, torch.inf)
        value = torch.full_like(self.data_term, torch.inf).scatter_reduce(0, problem, known, "amin")
        wins = (known == value[problem]) & (known < self.objective[problem])
        rows = wins.nonzero().squeeze(1)
        if rows.numel():
            k = problem[rows]
            # The data term is computed anew: taking the penalty off the value would cancel with large lambda.
            data = self.term.value(found.x[rows], self.pair[k])
            norm = torch.linalg.vector_norm(found.x[rows] - self.x[self.pair[k]], dim=1)
            self.best[k], self.data_term[k], self.norm[k] = found.x[rows], data, norm


def together(lambdas: Sequence[float], effort: Effort) -> int:
    """Most problems of one pair that are searched at once, whatever its top lambda."""
    every = np.sort([*lambdas, *rungs(lambdas, effort.stopping.max_evaluations)])
    return max(len(every), explored_at_most(every, effort.starts))


def _check_finite(data: Tensor) -> None:
    """Refuse a data term (P,) that is not finite at d = 0, where nothing has happened yet."""
    wrong = data[~data.isfinite()]
    if len(wrong):
        raise NonFiniteError(
            f"the data term of {len(wrong)} of {len(data)} pairs is not finite ({float(wrong[0])}) before any "
            "distortion; doctor tells whether the model's outputs are finite on these data"
        )
