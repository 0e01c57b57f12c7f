"""Limited-memory BFGS with bounds, for a batch of independent problems.

Each problem has its own iterate, history, step and stopping test; one round evaluates the trial points of all
problems that still run, together, and finished problems leave the batch. The method is a projected
quasi-Newton method: variables at a bound that the gradient pushes outward are held (Bertsekas 1982, "Projected
Newton methods", eq. 32), the L-BFGS direction (Nocedal & Wright, section 7.2) is taken in the remaining
ones, and the step is searched along the path bent at the bounds.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Self

import torch
from torch import Tensor

from vaeaudit.optim.history import inv_hessian_product

# objective(x, problem) -> (values, gradients): x (b, n), problem (b,) integers -> (b,), (b, n)
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_ARMIJO = 1e-4  # sufficient decrease, Nocedal & Wright eq. 3.6a
_CURVATURE = 0.9  # a slope still below this share of the first one says the step is too short, eq. 3.6b
_MAX_BACKTRACKS = 25
_NEAR = 1e-2  # epsilon of Bertsekas eq. 32, as a share of the bounds' distance where that is finite


class Status(IntEnum):
    """How a problem ended."""

    CONVERGED = 0
    STALLED = 1
    LIMIT = 2
    STOPPED = 3
    NONFINITE = 4

    @property
    def message(self) -> str:
        """The status in words."""
        return {
            Status.CONVERGED: "settled (no gain above the tolerance)",
            Status.STALLED: "stuck (no decrease found)",
            Status.LIMIT: "evaluation limit reached",
            Status.STOPPED: "interrupted",
            Status.NONFINITE: "objective not finite at the start",
        }[self]


@dataclass(frozen=True)
class Stopping:
    """A problem has converged after ``patience`` iterations in a row that each gain at most ``ftol`` * |f|.

    One more iteration, which holds the variables near their bounds too, must gain no more than that. Relative to
    |f| itself: with small lambda the whole objective is small, and a test against max(|f|, 1) stops before the
    norm has been reduced. ``max_evaluations`` is per problem.
    """

    ftol: float
    patience: int = 3
    max_evaluations: int = 500

    @classmethod
    def for_dtype(cls, dtype: torch.dtype, max_evaluations: int = 500) -> "Stopping":
        """Tolerance for a precision: 1e-10 in float64, 1e-6 in float32."""
        return cls(ftol=1e-10 if dtype == torch.float64 else 1e-6, max_evaluations=max_evaluations)


@dataclass(frozen=True, eq=False)
class Minima:
    """Best point of each problem (B, n), its value (B,), how it ended (B,) and what it cost (B,)."""

    x: Tensor
    value: Tensor
    status: Tensor
    evaluations: Tensor


@dataclass(eq=False)
class _Running:
    """State of the problems still running; every tensor has one row each."""

    problem: Tensor  # (a,) number of the problem in the whole batch
    x: Tensor  # (a, n) current iterate
    f: Tensor  # (a,)
    g: Tensor  # (a, n)
    anchor_x: Tensor  # (a, n) where the current direction was computed
    anchor_g: Tensor
    direction: Tensor  # (a, n)
    step: Tensor  # (a,)
    backtracks: Tensor  # (a,) in the current search
    history: Tensor  # (a, 2, memory, n): differences of iterates, of gradients
    newest: Tensor  # (a,) place of the newest pair
    pairs: Tensor  # (a,) how many places hold a pair
    calm: Tensor  # (a,) iterations in a row with no worthwhile gain
    status: Tensor  # (a,) -1 while running

    def rows(self, keep: Tensor) -> Self:
        return replace(self, **{field.name: getattr(self, field.name)[keep] for field in fields(self)})

    def beside(self, other: Self) -> Self:
        both = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return replace(self, **{name: torch.cat(parts) for name, parts in both.items()})


def minimise(
    objective: Objective,
    start: Tensor,
    lower: Tensor,
    upper: Tensor,
    stopping: Stopping,
    *,
    memory: int = 5,
    go_on: Callable[[int], bool] = lambda _: True,
) -> Minima:
    """Minimise ``objective`` for each row of ``start`` (B, n) within [lower, upper] (B or 1, n; may be infinite).

    ``go_on`` is asked before each round with the number of problems running; on False all that run end as
    STOPPED with the best point they have. Values never rise: each returned value is at most the start's.
    """
    if not len(start) or not go_on(len(start)):
        return Minima(
            start.clamp(lower, upper),
            start.new_full((len(start),), torch.inf),
            torch.full((len(start),), int(Status.STOPPED), device=start.device),
            torch.zeros(len(start), dtype=torch.long, device=start.device),
        )
    descent = Descent(objective, start, lower, upper, stopping, memory)
    while descent.running and go_on(descent.running):
        descent.advance(1)
    return descent.minima()


class Descent:
    """A minimisation that can be looked at, and moved, while it runs.

    ``start``, ``lower`` and ``upper`` as for :func:`minimise`. :meth:`advance` makes rounds, :meth:`move` puts
    problems somewhere else, and :meth:`minima` gives what has been reached. Only the problems ``begin`` start at once
    (all where None); the others wait to be moved.
    """

    def __init__(
        self,
        objective: Objective,
        start: Tensor,
        lower: Tensor,
        upper: Tensor,
        stopping: Stopping,
        memory: int = 5,
        begin: Tensor | None = None,
    ) -> None:
        self._objective, self._lower, self._upper = objective, lower, upper
        self._stopping, self._memory = stopping, memory
        count = len(start)
        self._best = Minima(
            start.clone(),
            start.new_full((count,), torch.inf),
            torch.full((count,), int(Status.STOPPED), device=start.device),
            torch.zeros(count, dtype=torch.long, device=start.device),
        )
        begin = torch.arange(count, device=start.device) if begin is None else begin
        self._run = self._begin(begin, start[begin])

    @property
    def running(self) -> int:
        """How many problems have not ended."""
        return int((self._run.status < 0).sum())

    def advance(self, rounds: int) -> None:
        """Evaluate a trial point of each running problem, ``rounds`` times or until none is left."""
        for _ in range(rounds):
            done = self._run.status >= 0
            # Dropping rows copies the history, so it waits until an eighth of the batch has finished.
            if done.any() and int(done.sum()) * 8 >= done.numel():
                self._record()
                self._run = self._run.rows(~done)
                done = self._run.status >= 0
            if done.all():
                return
            self._round((~done).nonzero().squeeze(1))

    def move(self, problem: Tensor, x: Tensor, like: Tensor) -> None:
        """Put problems (b,) at ``x`` (b, n) and let them run, with the history of the problems ``like`` (b,).

        Problems that differ little share their curvature; -1, or a problem that has ended, gives no history.
        """
        self._record()
        fresh = self._begin(problem, x)
        place = torch.full_like(self._best.evaluations, -1)
        alive = (self._run.status < 0).nonzero().squeeze(1)
        place[self._run.problem[alive]] = alive
        at = torch.where(like >= 0, place[like.clamp(min=0)], -1)
        known = (at >= 0).nonzero().squeeze(1)
        for name in ("history", "newest", "pairs"):
            getattr(fresh, name)[known] = getattr(self._run, name)[at[known]]
        self._aim(fresh, known[fresh.status[known] < 0])
        self._run = self._run.rows(~torch.isin(self._run.problem, problem)).beside(fresh)

    def minima(self) -> Minima:
        """What each problem has reached; a problem still running is STOPPED."""
        self._record()
        return self._best

    def _record(self) -> None:
        run, best = self._run, self._best
        best.x[run.problem], best.value[run.problem] = run.x, run.f
        best.status[run.problem] = torch.where(run.status >= 0, run.status, int(Status.STOPPED))

    def _bounds(self, problem: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the named problems, (b, n), or (1, n) where all share them."""
        one = len(self._lower) == 1
        return (self._lower, self._upper) if one else (self._lower[problem], self._upper[problem])

    def _begin(self, problem: Tensor, start: Tensor) -> _Running:
        x = start.clamp(*self._bounds(problem))
        f, g = self._objective(x, problem)
        self._best.evaluations[problem] += 1
        zeros = torch.zeros_like(problem)
        run = _Running(
            problem=problem,
            x=x,
            f=f.clone(),  # the state is written in place, and these may be views of the objective's own
            g=g.clone(),
            anchor_x=x.clone(),
            anchor_g=g.clone(),
            direction=torch.zeros_like(x),
            step=torch.ones_like(f),
            backtracks=zeros.clone(),
            history=x.new_zeros((len(x), 2, self._memory, x.shape[1])),
            newest=zeros + self._memory - 1,
            pairs=zeros.clone(),
            calm=zeros.clone(),
            status=zeros - 1,
        )
        finite = f.isfinite() & g.isfinite().all(1)
        run.status[~finite] = int(Status.NONFINITE)
        self._aim(run, finite.nonzero().squeeze(1), patience=1)
        self._limit(run)
        return run

    def _limit(self, run: _Running) -> None:
        over = (self._best.evaluations[run.problem] >= self._stopping.max_evaluations) & (run.status < 0)
        run.status[over] = int(Status.LIMIT)

    def _round(self, live: Tensor) -> None:
        """Evaluate one trial point of each live problem and advance its search."""
        run, stopping = self._run, self._stopping
        whole = live.numel() == run.problem.numel()  # the usual case: no copies of the long vectors then
        problem = run.problem[live]
        x, g, direction = (v if whole else v.index_select(0, live) for v in (run.x, run.g, run.direction))
        f, step = run.f[live], run.step[live]
        trial = torch.addcmul(x, step[:, None], direction).clamp(*self._bounds(problem))
        f_trial, g_trial = self._objective(trial, problem)
        self._best.evaluations[problem] += 1

        moved = trial - x
        foreseen = (g * moved).sum(1)  # first-order change along the bent path
        slope = (g_trial * moved).sum(1)  # not finite where an element of g_trial is not: inf * 0 is NaN
        # Rounding of f hides small decreases; Hager & Zhang (2005) accept within that error.
        rounding = 4 * torch.finfo(f.dtype).eps * f.abs()
        finite = f_trial.isfinite() & slope.isfinite()
        accepted = finite & (f_trial <= f + _ARMIJO * foreseen + rounding) & (f_trial <= f)

        # Accepted: move there. If the slope along the direction is still steep, go on along it with twice the step.
        place = accepted.nonzero().squeeze(1)
        won = live[place]
        gain = (f - f_trial)[place]
        run.x.index_copy_(0, won, trial.index_select(0, place))
        run.g.index_copy_(0, won, g_trial.index_select(0, place))
        run.f[won] = f_trial[place]
        too_short = (slope < _CURVATURE * foreseen)[place] & (gain > stopping.ftol * f_trial[place].abs())
        run.step[won[too_short]] *= 2
        run.backtracks[won[too_short]] = 0

        # Rejected: shorten by the minimiser of the quadratic through f, its slope and f_trial.
        lost = live[~accepted]
        curvature = (f_trial - f - foreseen)[~accepted]
        shrink = -foreseen[~accepted] / (2 * curvature)
        shrink = torch.where(shrink.isfinite(), shrink, 0.1).clamp(0.1, 0.5)
        run.step[lost] *= shrink
        run.backtracks[lost] += 1

        # A search that failed starts again from steepest descent, once; without a history it has stalled.
        failed = lost[run.backtracks[lost] >= _MAX_BACKTRACKS]
        run.status[failed[run.pairs[failed] == 0]] = int(Status.STALLED)
        again = failed[run.pairs[failed] > 0]
        run.pairs[again] = 0

        ended = won[~too_short]
        idle = gain[~too_short] <= stopping.ftol * run.f[ended].abs()
        run.calm[ended] = torch.where(idle, run.calm[ended] + 1, 0)
        run.status[ended[run.calm[ended] > stopping.patience]] = int(Status.CONVERGED)
        _remember(run, ended)
        self._aim(run, torch.cat([ended, again]))
        self._limit(run)

    def _aim(self, run: _Running, rows: Tensor, patience: int | None = None) -> None:
        """Compute the next direction and first step of the named rows; end those with no descent left."""
        if rows.numel() == 0:
            return
        x, g = run.x.index_select(0, rows), run.g.index_select(0, rows)
        lower, upper = self._bounds(run.problem[rows])
        run.anchor_x.index_copy_(0, rows, x)
        run.anchor_g.index_copy_(0, rows, g)
        free = ~torch.where(g > 0, x <= lower, x >= upper)  # a variable at a bound that it is pushed against is held
        home = None
        # A variable just short of a bound can cut the step of all others to nothing. So before a problem is called
        # converged, variables nearer than ``near`` that the gradient pushes outward are held as well, and go to their
        # bound by themselves.
        last = run.calm[rows] >= (self._stopping.patience if patience is None else patience)
        if last.any():
            width = torch.where((upper - lower).isfinite(), upper - lower, 1.0)
            length = torch.linalg.vector_norm((x - g).clamp(lower, upper) - x, dim=1)
            near = torch.where(last[:, None], torch.minimum(_NEAR * width, length[:, None]), 0.0)
            to_lower, to_upper = (x - lower <= near) & (g > 0), (upper - x <= near) & (g < 0)
            free = free & ~(to_lower | to_upper)
            home = torch.where(to_lower, lower - x, torch.where(to_upper, upper - x, 0.0))
        mask = free.to(g.dtype)
        g = g * mask
        history = run.history.index_select(0, rows).mul_(mask[:, None, None])
        direction = inv_hessian_product(g, history, run.newest[rows], run.pairs[rows]).neg_()
        slope = (direction * g).sum(1)
        norm = torch.linalg.vector_norm(g, dim=1)
        # Without a usable history: steepest descent with a step of length at most 1.
        steepest = (run.pairs[rows] == 0) | ((slope >= 0) & (norm > 0)) | ~slope.isfinite()
        if steepest.any():
            direction = torch.where(steepest[:, None], -g / norm.clamp(min=1.0)[:, None], direction)
        still = norm == 0
        if home is not None:
            direction = direction + home
            still &= (home == 0).all(1)
        run.direction.index_copy_(0, rows, direction)
        run.pairs[rows[steepest]] = 0
        run.step[rows] = 1.0
        run.backtracks[rows] = 0
        run.status[rows[still]] = int(Status.CONVERGED)


def _remember(run: _Running, rows: Tensor) -> None:
    """Add the move since the anchor to the history, where its curvature is positive."""
    s = run.x.index_select(0, rows) - run.anchor_x.index_select(0, rows)
    y = run.g.index_select(0, rows) - run.anchor_g.index_select(0, rows)
    useful = ((s * y).sum(1) > torch.finfo(s.dtype).eps * (y * y).sum(1)).nonzero().squeeze(1)
    rows, memory = rows[useful], run.history.shape[2]
    run.newest[rows] = (run.newest[rows] + 1) % memory
    places = run.history.flatten(0, 2)  # (a 2 m, n), the same storage
    place = 2 * memory * rows + run.newest[rows]
    places.index_copy_(0, place, s.index_select(0, useful))
    places.index_copy_(0, place + memory, y.index_select(0, useful))
    run.pairs[rows] = (run.pairs[rows] + 1).clamp(max=memory)
