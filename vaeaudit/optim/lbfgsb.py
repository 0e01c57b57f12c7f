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

from vaeaudit.optim.bounds import room
from vaeaudit.optim.far import far
from vaeaudit.optim.history import inv_hessian_product, remember

# objective(x, problem) -> (values, gradients): x (b, n), problem (b,) integers -> (b,), (b, n). Both arguments are the
# descent's own: what is kept of them must be copied.
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_ARMIJO = 1e-4  # sufficient decrease, Nocedal & Wright eq. 3.6a
_CURVATURE = 0.9  # a slope still below this share of the first one says the step is too short, eq. 3.6b
_MAX_BACKTRACKS = 25
_GENTLE = 0.01  # change foreseen over a unit, below which a first step shrinks with it
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
    unit: Tensor  # (a,) length of an ordinary step
    direction: Tensor  # (a, n)
    step: Tensor  # (a,)
    backtracks: Tensor  # (a,) in the current search
    history: Tensor  # (a, 2, memory, n): differences of iterates, of gradients
    newest: Tensor  # (a,) place of the newest pair
    pairs: Tensor  # (a,) how many places hold a pair
    calm: Tensor  # (a,) iterations in a row with no worthwhile gain
    taken: Tensor  # (a,) evaluations
    status: Tensor  # (a,) -1 while running

    def rows(self, keep: Tensor) -> Self:
        return self._each(lambda tensor: tensor[keep])

    def without(self, gone: Tensor) -> Self:
        """The rows that are not ``gone`` (a,), in another order: the last take the places of those that leave.

        So as many rows are copied as leave, and no more.
        """
        stay = (~gone).nonzero().squeeze(1)
        count = stay.numel()
        hole, last = gone[:count].nonzero().squeeze(1), stay[stay >= count]
        return self._each(lambda tensor: tensor.index_copy_(0, hole, tensor.index_select(0, last))[:count])

    def beside(self, other: Self) -> Self:
        both = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return replace(self, **{name: torch.cat(parts) for name, parts in both.items()})

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{field.name: change(getattr(self, field.name)) for field in fields(self)})


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
    """Minimise ``objective`` for each row of ``start`` (B, n) within [lower, upper], which may be infinite.

    The bounds are both (B, n) or both (1, n). ``go_on`` is asked before each round with the number of problems running;
    on False all that run end as STOPPED with the best point they have. Values never rise: each returned value is at
    most the start's.
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
    (all where None); the others wait to be moved. ``unit`` (B,) is the length of an ordinary step, 1 where None: none
    without a history is longer.
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
        unit: Tensor | None = None,
    ) -> None:
        self._objective, self._lower, self._upper = objective, lower, upper
        self._stopping, self._memory = stopping, memory
        count = len(start)
        self._unit = torch.ones_like(start[:, 0]) if unit is None else unit
        self._best = Minima(
            start.clone(),
            start.new_full((count,), torch.inf),
            torch.full((count,), int(Status.STOPPED), device=start.device),
            torch.zeros(count, dtype=torch.long, device=start.device),
        )
        self._seen: tuple[int, int] | None = None
        begin = torch.arange(count, device=start.device) if begin is None else begin
        self._run = self._begin(begin, start[begin])

    @property
    def running(self) -> int:
        """How many problems have not ended."""
        return len(self._run.problem) - self._look()[0]

    @property
    def left(self) -> int:
        """How many evaluations the problems that have not ended may still take."""
        return self._look()[1]

    def _look(self) -> tuple[int, int]:
        """How many problems have just ended, and what the others may still take: read back once a round."""
        if self._seen is None:
            running = self._run.status < 0
            left = (self._stopping.max_evaluations - self._run.taken) * running
            ended, evaluations = torch.stack([(~running).sum(), left.sum()]).tolist()
            self._seen = ended, evaluations
        return self._seen

    def advance(self, rounds: int) -> None:
        """Evaluate a trial point of each running problem, ``rounds`` times or until none is left."""
        for _ in range(rounds):
            ended, left = self._look()
            if ended:
                self._record()
                self._run, self._seen = self._run.without(self._run.status >= 0), (0, left)
            if not self._run.problem.numel():
                return
            self._round()
            self._seen = None

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
        self._aim(fresh, (at >= 0) & (fresh.status < 0))
        self._run, self._seen = self._run.rows(~torch.isin(self._run.problem, problem)).beside(fresh), None

    def end(self, chosen: Tensor, status: Status) -> None:
        """Let those of the ``chosen`` problems (B,) that run do so no further, and end with ``status``."""
        self._run.status.masked_fill_(chosen[self._run.problem] & (self._run.status < 0), int(status))
        self._seen = None

    def minima(self) -> Minima:
        """What each problem has reached until now, not a copy; a problem still running or waiting is STOPPED."""
        self._record()
        return self._best

    def _record(self) -> None:
        run, best = self._run, self._best
        best.x[run.problem], best.value[run.problem], best.evaluations[run.problem] = run.x, run.f, run.taken
        best.status[run.problem] = torch.where(run.status >= 0, run.status, int(Status.STOPPED))

    def _bounds(self, problem: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the named problems, (b, n), or (1, n) where all share them."""
        one = len(self._lower) == 1
        return (self._lower, self._upper) if one else (self._lower[problem], self._upper[problem])

    def _begin(self, problem: Tensor, start: Tensor) -> _Running:
        x = start.clamp(*self._bounds(problem))
        f, g = self._objective(x, problem)
        zeros = torch.zeros_like(problem)
        run = _Running(
            problem=problem.clone(),
            x=x,
            f=f.clone(),  # the state is written in place, and these may be views of the objective's own
            g=g.clone(),
            unit=self._unit[problem],
            direction=torch.zeros_like(x),
            step=torch.ones_like(f),
            backtracks=zeros.clone(),
            history=x.new_zeros((len(x), 2, self._memory, x.shape[1])),
            newest=zeros + self._memory - 1,
            pairs=zeros.clone(),
            calm=zeros.clone(),
            taken=self._best.evaluations[problem] + 1,
            status=zeros - 1,
        )
        finite = f.isfinite() & g.isfinite().all(1)
        run.status[~finite] = int(Status.NONFINITE)
        self._aim(run, finite)
        self._limit(run)
        return run

    def _limit(self, run: _Running) -> None:
        over = (run.taken >= self._stopping.max_evaluations) & (run.status < 0)
        run.status.masked_fill_(over, int(Status.LIMIT))

    def _round(self) -> None:
        """Evaluate one trial point of each problem and advance its search.

        All rows are computed alike and the unwanted results left out: as most are alike, copying some costs more.
        """
        run, stopping = self._run, self._stopping
        x, f, g = run.x, run.f, run.g
        trial = torch.addcmul(x, run.step[:, None], run.direction).clamp_(*self._bounds(run.problem))
        f_trial, g_trial = self._objective(trial, run.problem)
        run.taken += 1

        moved = trial - x
        foreseen = torch.linalg.vecdot(g, moved)  # first-order change along the bent path
        # Not finite where an element of g_trial is not: inf * 0 is NaN.
        slope = torch.linalg.vecdot(g_trial, moved)
        # Rounding of f hides small decreases; Hager & Zhang (2005) accept within that error.
        size = f.abs()
        enough = torch.add(f, foreseen, alpha=_ARMIJO).add_(size, alpha=4 * torch.finfo(f.dtype).eps)
        accepted = (f_trial + slope).isfinite() & (f_trial <= torch.minimum(enough, f))

        # Accepted: move there. If the slope along the direction is still steep, go on along it with twice the step.
        fall = f_trial - f
        run.f = torch.where(accepted, f_trial, f)
        run.g = torch.where(accepted[:, None], g_trial, g)
        if far(x):
            run.x = torch.where(accepted[:, None], trial, x)
        else:
            lost = (~accepted).nonzero().squeeze(1)
            run.x = trial.index_copy(0, lost, x.index_select(0, lost)) if lost.numel() else trial
        worthwhile = accepted & (fall < -stopping.ftol * run.f.abs())
        too_short = worthwhile & (slope < _CURVATURE * foreseen)
        ended = accepted & ~too_short

        # Rejected: shorten by the minimiser of the quadratic through f, its slope and f_trial.
        shrink = (foreseen / (foreseen - fall)).mul_(0.5).nan_to_num_(0.1, 0.1, 0.1).clamp_(0.1, 0.5)
        run.step = run.step * shrink.masked_fill_(too_short, 2.0)
        run.backtracks = (run.backtracks + 1).masked_fill_(accepted, 0)

        # A search that failed starts again from steepest descent, once; without a history it has stalled.
        failed = run.backtracks >= _MAX_BACKTRACKS
        again = failed & (run.pairs > 0)
        run.status.masked_fill_(failed & ~again, int(Status.STALLED))
        run.pairs.masked_fill_(again, 0)

        run.calm.add_(ended).masked_fill_(ended & worthwhile, 0)
        run.status.masked_fill_(ended & (run.calm > stopping.patience), int(Status.CONVERGED))
        run.newest, run.pairs = remember(run.history, run.newest, run.pairs, moved, run.g - g, ended)
        self._aim(run, ended | again)
        self._limit(run)

    def _aim(self, run: _Running, chosen: Tensor) -> None:
        """Compute the next direction and first step of the ``chosen`` rows (a,); end those with no descent left."""
        x, (lower, upper) = run.x, self._bounds(run.problem)
        # 1 for a free variable, 0 for one at a bound that it is pushed against, which is held.
        free = room(x, run.g, lower, upper).sign_().abs_()
        last = chosen & (run.calm >= self._stopping.patience)
        rows = torch.arange(len(x), device=x.device) if far(x) else last.nonzero().squeeze(1)
        if rows.numel():
            home, near = self._near(run, rows)
            home, near = torch.where(last[rows, None], home, 0.0), near & last[rows, None]
            free[rows] *= ~near
        g = run.g * free
        direction = inv_hessian_product(g, free, run.history, run.newest, run.pairs).neg_()
        slope = torch.linalg.vecdot(direction, g)
        norm = torch.linalg.vector_norm(g, dim=1)
        still = norm == 0
        # Without a usable history: steepest descent with a step of its unit, shorter where the slope is gentle.
        steepest = (run.pairs == 0) | ~(((slope < 0) | still) & (slope.abs() < torch.inf))
        if far(x) or steepest.any():
            scale = run.unit.square() / (norm * run.unit).clamp(min=_GENTLE)
            direction = torch.where(steepest[:, None], -scale[:, None] * g, direction)
        if rows.numel():
            direction[rows] += home
            still[rows] &= (home == 0).all(1)
        run.direction = torch.where(chosen[:, None], direction, run.direction)
        run.pairs.masked_fill_(chosen & steepest, 0)
        run.step.masked_fill_(chosen, 1.0)
        run.backtracks.masked_fill_(chosen, 0)
        run.status.masked_fill_(chosen & still, int(Status.CONVERGED))

    def _near(self, run: _Running, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The way to the bound of the variables near it and pushed towards it, and which they are, (b, n).

        A variable just short of a bound can cut the step of all others to nothing. So before a problem is called
        converged, these are held as well, and go to their bound by themselves.
        """
        x, g, unit = run.x[rows], run.g[rows], run.unit[rows, None]
        lower, upper = self._bounds(run.problem[rows])
        width = torch.where((upper - lower).isfinite(), upper - lower, unit)
        length = torch.linalg.vector_norm((x - unit.square() * g).clamp(lower, upper) - x, dim=1)
        near = torch.minimum(_NEAR * width, length[:, None])
        to_lower, to_upper = (x - lower <= near) & (g > 0), (upper - x <= near) & (g < 0)
        home = torch.where(to_lower, lower - x, torch.where(to_upper, upper - x, 0.0))
        return home, to_lower | to_upper
