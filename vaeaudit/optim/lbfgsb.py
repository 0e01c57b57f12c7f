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

import torch
from torch import Tensor

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
    lower: Tensor  # (a, n)
    upper: Tensor
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
    evaluations: Tensor  # (a,)
    status: Tensor  # (a,) -1 while running

    def rows(self, keep: Tensor) -> "_Running":
        return replace(self, **{field.name: getattr(self, field.name)[keep] for field in fields(self)})


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
    """Minimise ``objective`` for each row of ``start`` (B, n) within [lower, upper] (B, n; may be infinite).

    ``go_on`` is asked before each round with the number of problems running; on False all that run end as
    STOPPED with the best point they have. Values never rise: each returned value is at most the start's.
    """
    count = start.shape[0]
    x = start.clamp(lower, upper)
    best = Minima(
        x.clone(),
        torch.full((count,), torch.inf, dtype=x.dtype, device=x.device),
        torch.full((count,), int(Status.STOPPED), device=x.device),
        torch.zeros(count, dtype=torch.long, device=x.device),
    )
    if count == 0 or not go_on(count):
        return best
    run = _begin(objective, x, lower, upper, memory)
    run.status[(run.status < 0) & (run.evaluations >= stopping.max_evaluations)] = int(Status.LIMIT)
    while run.problem.numel():
        done = run.status >= 0
        # Dropping rows copies the history, so it waits until an eighth of the batch has finished.
        if done.any() and int(done.sum()) * 8 >= done.numel():
            _record(best, run, done)
            run = run.rows(~done)
            continue
        if not go_on(int((~done).sum())):
            run.status[~done] = int(Status.STOPPED)
            break
        _round(objective, run, (~done).nonzero().squeeze(1), stopping)
    _record(best, run, torch.ones_like(run.status, dtype=torch.bool))
    return best


def _record(best: Minima, run: _Running, done: Tensor) -> None:
    problem = run.problem[done]
    best.x[problem] = run.x[done]
    best.value[problem] = run.f[done]
    best.status[problem] = run.status[done]
    best.evaluations[problem] = run.evaluations[done]


def _begin(objective: Objective, x: Tensor, lower: Tensor, upper: Tensor, memory: int) -> _Running:
    count, n = x.shape
    problem = torch.arange(count, device=x.device)
    f, g = objective(x, problem)
    zeros = torch.zeros(count, dtype=torch.long, device=x.device)
    run = _Running(
        problem=problem,
        lower=lower,
        upper=upper,
        x=x,
        f=f.clone(),  # the state is written in place, and these may be views of the objective's own
        g=g.clone(),
        anchor_x=x.clone(),
        anchor_g=g.clone(),
        direction=torch.zeros_like(x),
        step=torch.ones_like(f),
        backtracks=zeros.clone(),
        history=x.new_zeros((count, 2, memory, n)),
        newest=zeros.clone() + memory - 1,
        pairs=zeros.clone(),
        calm=zeros.clone(),
        evaluations=zeros + 1,
        status=zeros - 1,
    )
    finite = f.isfinite() & g.isfinite().all(1)
    run.status[~finite] = int(Status.NONFINITE)
    _aim(run, finite.nonzero().squeeze(1), patience=1)
    return run


def _round(objective: Objective, run: _Running, live: Tensor, stopping: Stopping) -> None:
    """Evaluate one trial point of each live problem and advance its search."""
    x, f, g = run.x[live], run.f[live], run.g[live]
    trial = x + run.step[live, None] * run.direction[live]
    trial = trial.clamp(run.lower[live], run.upper[live])
    f_trial, g_trial = objective(trial, run.problem[live])
    run.evaluations[live] += 1

    moved = trial - x
    foreseen = (g * moved).sum(1)  # first-order change along the bent path
    # Rounding of f hides small decreases; Hager & Zhang (2005) accept within that error.
    rounding = 4 * torch.finfo(f.dtype).eps * f.abs()
    finite = f_trial.isfinite() & g_trial.isfinite().all(1)
    accepted = finite & (f_trial <= f + _ARMIJO * foreseen + rounding) & (f_trial <= f)

    # Accepted: move there. If the slope along the direction is still steep, go on along it with twice the step.
    won = live[accepted]
    gain = (f - f_trial)[accepted]
    run.x[won], run.f[won], run.g[won] = trial[accepted], f_trial[accepted], g_trial[accepted]
    slope = (g_trial * moved).sum(1)[accepted]
    too_short = (slope < _CURVATURE * foreseen[accepted]) & (gain > stopping.ftol * f_trial[accepted].abs())
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
    _aim(run, torch.cat([ended, again]), stopping.patience)
    over = (run.evaluations >= stopping.max_evaluations) & (run.status < 0)
    run.status[over] = int(Status.LIMIT)


def _remember(run: _Running, rows: Tensor) -> None:
    """Add the move since the anchor to the history, where its curvature is positive."""
    s = run.x[rows] - run.anchor_x[rows]
    y = run.g[rows] - run.anchor_g[rows]
    useful = (s * y).sum(1) > torch.finfo(s.dtype).eps * (y * y).sum(1)
    rows, s, y = rows[useful], s[useful], y[useful]
    memory = run.history.shape[2]
    run.newest[rows] = (run.newest[rows] + 1) % memory
    run.history[rows, 0, run.newest[rows]] = s
    run.history[rows, 1, run.newest[rows]] = y
    run.pairs[rows] = (run.pairs[rows] + 1).clamp(max=memory)


def _aim(run: _Running, rows: Tensor, patience: int) -> None:
    """Compute the next direction and first step of the named rows; end those with no descent left."""
    if rows.numel() == 0:
        return
    x, g, lower, upper = run.x[rows], run.g[rows], run.lower[rows], run.upper[rows]
    # A variable just short of a bound can cut the step of all others to nothing. So before a problem is called
    # converged, variables nearer than ``near`` that the gradient pushes outward are held as well, and go to their
    # bound by themselves.
    way = torch.linalg.vector_norm((x - g).clamp(lower, upper) - x, dim=1)
    width = torch.where((upper - lower).isfinite(), upper - lower, 1.0)
    last = run.calm[rows] >= patience
    near = torch.where(last[:, None], torch.minimum(_NEAR * width, way[:, None]), 0.0)
    to_lower, to_upper = (x - lower <= near) & (g > 0), (upper - x <= near) & (g < 0)
    free = ~(to_lower | to_upper)
    home = torch.where(to_lower, lower - x, torch.where(to_upper, upper - x, 0.0))
    g = g * free
    direction = -inv_hessian_product(g, run.history.index_select(0, rows), free, run.newest[rows], run.pairs[rows])
    slope = (direction * g).sum(1)
    norm = torch.linalg.vector_norm(g, dim=1)
    # Without a usable history: steepest descent with a step of length at most 1.
    steepest = (run.pairs[rows] == 0) | ((slope >= 0) & (norm > 0)) | ~slope.isfinite()
    scaled = -g / norm.clamp(min=1.0)[:, None]
    run.direction[rows] = torch.where(steepest[:, None], scaled, direction) + home
    run.pairs[rows[steepest]] = 0
    run.anchor_x[rows], run.anchor_g[rows] = x, run.g[rows]
    run.step[rows] = 1.0
    run.backtracks[rows] = 0
    run.status[rows[(norm == 0) & (home == 0).all(1)]] = int(Status.CONVERGED)


def inv_hessian_product(g: Tensor, history: Tensor, free: Tensor, newest: Tensor, pairs: Tensor) -> Tensor:
    """H g in the free variables, (a, n), by the compact form of L-BFGS (Byrd, Nocedal & Schnabel 1994, eq. 3.1).

    ``history`` (a, 2, m, n) holds s and y; ``free`` (a, n) masks both, because a held variable left in a pair
    spoils the curvature of the others. The long vectors are touched twice only; the rest is m x m.
    """
    count, _, m, n = history.shape
    w = (history * free[:, None, None]).reshape(count, 2 * m, n)
    gram = w @ w.transpose(1, 2)  # (a, 2m, 2m)
    wg = (g[:, None] @ w.transpose(1, 2)).squeeze(1)  # (a, 2m); six times faster than w @ g here

    # From storage to the order of time, oldest first.
    place = (newest[:, None] + 1 + torch.arange(m, device=g.device)) % m  # (a, m)
    both = torch.cat([place, place + m], dim=1)  # (a, 2m)
    gram = gram.gather(1, both[:, :, None].expand_as(gram)).gather(2, both[:, None, :].expand_as(gram))
    wg = wg.gather(1, both)
    curvature = gram[:, :m, m:].diagonal(dim1=1, dim2=2)  # (a, m): s.y
    y_square = gram[:, m:, m:].diagonal(dim1=1, dim2=2)
    present = torch.arange(m, device=g.device) >= m - pairs[:, None]
    usable = present & (curvature > torch.finfo(g.dtype).eps * y_square)
    # gamma = s.y / y.y of the newest usable pair, Nocedal & Wright eq. 7.20
    last = torch.where(usable, torch.arange(m, device=g.device), -1).argmax(1, keepdim=True)
    gamma = torch.where(usable.any(1), (curvature / y_square).gather(1, last).squeeze(1), 1.0)[:, None]

    # Pairs that are not usable become empty: a unit diagonal in R and zeros elsewhere.
    together = usable[:, :, None] & usable[:, None, :]
    r = torch.where(together, gram[:, :m, m:].triu(), torch.diag_embed((~usable).to(g.dtype)))
    yy = torch.where(together, gram[:, m:, m:], 0.0)
    sg, yg = torch.where(usable, wg[:, :m], 0.0), torch.where(usable, wg[:, m:], 0.0)
    u = torch.linalg.solve_triangular(r, sg[:, :, None], upper=True)  # R^-1 S'g, (a, m, 1)
    right = torch.where(usable, curvature, 0.0)[:, :, None] * u + gamma[:, :, None] * (yy @ u - yg[:, :, None])
    on_s = torch.linalg.solve_triangular(r.transpose(1, 2), right, upper=False).squeeze(2)
    on_y = -gamma * u.squeeze(2)

    coefficients = torch.empty_like(wg).scatter_(1, both, torch.cat([on_s, on_y], dim=1))  # back to storage
    return gamma * g + (coefficients[:, None] @ w).squeeze(1)
