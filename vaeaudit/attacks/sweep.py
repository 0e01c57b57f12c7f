"""The lambda sweep: data term + lambda * pen(d) for every pair and every lambda, as one batched problem.

The problems of one pair share more than their model. A distortion found for one lambda is a candidate for all
others at no cost (the table J_i + lambda_j pen(d_i)), and two candidates need no search at all: d = 0, which
is optimal for large lambda, and d = x_t - x, which reaches the target's own posterior. The sweep searches from
both ends and from between them, lets each problem take the best candidate of its pair, refines, and repeats while
that helps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeaudit.batches import RowBatches
from vaeaudit.errors import ContractError, VaeauditError
from vaeaudit.optim.lbfgsb import Status, Stopping, minimise

# data_term(x_adv, pair) -> J: x_adv (b, *shape), pair (b,) integers -> (b,), differentiable in x_adv
DataTerm = Callable[[Tensor, Tensor], Tensor]
PENALTIES = ("l2", "l2sq")

_OFF_ZERO = 1e-2  # length of the first step off d = 0, as a share of ||x_t - x||
_REACHABLE = 4.0  # d = x_t - x is a start where it costs at most this many times the best known
_WORTHWHILE = 1e-3  # relative gain by which another lambda's distortion restarts a problem
_MAX_EXCHANGES = 8


@dataclass(frozen=True)
class Progress:
    """How far a sweep is: ``stage`` in words, problems still running and in all."""

    stage: str
    running: int
    problems: int


# Asked regularly; returning False ends the sweep with the best that it has.
GoOn = Callable[[Progress], bool]


def always(_: Progress) -> bool:
    """Go on, whatever the progress."""
    return True


@dataclass(frozen=True, eq=False)
class Sweep:
    """Best distortion of each pair (P) and lambda (L).

    ``distortion`` and ``adversarial`` are (P, L, *shape), and ``adversarial`` is x + d to the bit, inside the
    box. ``data_term``, ``norm`` (||d||_2), ``objective``, ``status`` (:class:`Status`) and ``evaluations`` are
    (P, L). ``zero_data_term`` (P,) is the data term at d = 0. ``interrupted`` tells that it was told to stop.
    """

    lambdas: Tensor
    penalty: str
    distortion: Tensor
    adversarial: Tensor
    data_term: Tensor
    norm: Tensor
    objective: Tensor
    status: Tensor
    evaluations: Tensor
    zero_data_term: Tensor
    interrupted: bool

    @property
    def penalty_term(self) -> Tensor:
        """lambda pen(d), (P, L)."""
        return self.lambdas * penalise(self.norm, self.penalty)

    @property
    def chosen(self) -> Tensor:
        """Index of the lambda to show for each pair, (P,); see :func:`just_better_than_mean`."""
        return just_better_than_mean(self.data_term)


def geometric_lambdas(count: int) -> tuple[float, ...]:
    """``count`` values from 2^-20 to 2^20, geometric (Willetts et al. section 5.2: 50 of them)."""
    if count == 1:
        return (1.0,)
    return tuple(2.0 ** (-20 + 40 * i / (count - 1)) for i in range(count))


def just_better_than_mean(data_term: Tensor) -> Tensor:
    """Index of the largest data term below the mean over lambda, (P, L) -> (P,).

    Gondim-Ribeiro et al. 2018 show the attack "just better than the mean"; penalised objectives are not
    comparable across lambda, so the data term alone is meant. Where all are equal, the first is taken.
    """
    below = data_term < data_term.mean(1, keepdim=True)
    return torch.where(below, data_term, -torch.inf).argmax(1)


def penalise(norm: Tensor, penalty: str) -> Tensor:
    """pen(d) of ||d||_2: itself (`l2`) or its square (`l2sq`)."""
    return norm if penalty == "l2" else norm.square()


def sweep(
    data_term: DataTerm,
    x: Tensor,
    x_t: Tensor,
    box: tuple[float, float] | None,
    lambdas: Tensor,
    *,
    penalty: str = "l2",
    stopping: Stopping,
    rows: RowBatches,
    go_on: GoOn = always,
) -> Sweep:
    """Minimise J(x + d) + lambda pen(d) over d with x + d in ``box``, for pairs (P, *shape) and lambda (L,).

    ``x`` and ``x_t`` lie in the box. ``rows`` bounds how many rows the model is given at once.
    """
    search = _Search(data_term, x, x_t, box, lambdas, penalty, stopping, rows, go_on)
    search.from_zero()
    search.from_target()
    search.from_between()
    while search.exchange():
        pass
    return search.result()


class _Search:
    """The problems of a sweep and the best that is known of each; problem k is pair k // L, lambda k % L."""

    def __init__(
        self,
        data_term: DataTerm,
        x: Tensor,
        x_t: Tensor,
        box: tuple[float, float] | None,
        lambdas: Tensor,
        penalty: str,
        stopping: Stopping,
        rows: RowBatches,
        go_on: GoOn,
    ) -> None:
        self.data_term, self.penalty, self.stopping = data_term, penalty, stopping
        self.rows, self.go_on = rows, go_on
        self.shape, self.lambdas = tuple(x.shape[1:]), lambdas
        self.low, self.high = box if box else (-torch.inf, torch.inf)
        self.stopped = False
        self.exchanges = 0
        pairs, count = len(x), len(lambdas)
        self.pair = torch.arange(pairs, device=x.device).repeat_interleave(count)  # (K,), K = P L
        self.lam = lambdas.repeat(pairs)  # (K,)
        every = torch.arange(pairs, device=x.device)
        # The two candidates that need no search: d = 0 and d = x_t - x.
        self.x, self.x_t = x.flatten(1), x_t.flatten(1)  # (P, n)
        self.zero_data, gradient = self._gradient(self.x, every)
        blocked = ((self.x <= self.low) & (gradient > 0)) | ((self.x >= self.high) & (gradient < 0))
        self.descent = torch.where(blocked, 0.0, -gradient)  # (P, n) feasible descent at d = 0
        self.target_data = self._value(self.x_t, every)
        # Every problem starts with d = 0.
        self.best = self.x[self.pair].clone()  # (K, n) best adversarial input
        self.data = self.zero_data[self.pair]  # (K,) its data term
        self.norm = torch.zeros_like(self.data)  # (K,) its ||d||_2
        self.status = torch.full_like(self.pair, int(Status.STOPPED))
        self.evaluations = torch.ones_like(self.pair)

    def from_zero(self) -> None:
        """Search from a small step off d = 0; done where d = 0 is stationary.

        With `l2` that is where the feasible gradient of the data term is no longer than lambda.
        """
        steepness = torch.linalg.vector_norm(self.descent, dim=1)[self.pair]  # (K,)
        stationary = steepness <= (self.lam if self.penalty == "l2" else 0)
        self.status[stationary] = int(Status.CONVERGED)
        rows = (~stationary).nonzero().squeeze(1)
        reach = _OFF_ZERO * torch.linalg.vector_norm(self.x_t - self.x, dim=1)[self.pair[rows]]
        step = (reach / steepness[rows])[:, None] * self.descent[self.pair[rows]]
        self._search("from the source", rows, self.x[self.pair[rows]] + step)

    def from_target(self) -> None:
        """Search from d = x_t - x, where the data term is least and the norm is yet to be reduced."""
        gap = penalise(torch.linalg.vector_norm(self.x_t - self.x, dim=1), self.penalty)
        bound = self.target_data[self.pair] + self.lam * gap[self.pair]
        rows = (bound <= _REACHABLE * self.objective).nonzero().squeeze(1)
        self._search("from the target", rows, self.x_t[self.pair[rows]])
        # With small lambda the search can be stuck at x_t itself: it settles where it started, far from the best.
        stuck = (self.norm > 0) & (self.objective >= (1 - _WORTHWHILE) * bound) & (self.status != int(Status.STOPPED))
        self.status[stuck] = int(Status.STALLED)

    def from_between(self) -> None:
        """Search from halfway between source and target, which often lies in another valley than both ends."""
        rows = torch.arange(self.lam.numel(), device=self.lam.device)
        middle = (self.x + self.x_t) / 2
        self._search("from between", rows, middle[self.pair])

    def exchange(self) -> bool:
        """Give each problem the best candidate of its pair; search again where that helps. False when done."""
        data, norm, point = self._candidates()
        table = data[:, None, :] + self.lambdas[:, None] * penalise(norm, self.penalty)[:, None, :]
        offer, which = table.flatten(0, 1).min(1)  # (K,) over the candidates of the pair
        before = self.objective
        better = offer < before
        rows = better.nonzero().squeeze(1)
        self._take(rows, point[self.pair[rows], which[rows]])
        self.exchanges += 1
        again = (offer < before - _WORTHWHILE * before.abs()) | (self.status == int(Status.LIMIT))
        again &= self.norm > 0  # d = 0 was searched from in from_zero
        if self.stopped or not again.any():
            return False
        if self.exchanges > _MAX_EXCHANGES:
            self.status[again] = int(Status.LIMIT)  # what they took from another lambda was not searched for theirs
            return False
        rows = again.nonzero().squeeze(1)
        self._search(f"exchange {self.exchanges}", rows, self.best[rows])
        return not self.stopped

    def result(self) -> Sweep:
        """The best of all candidates, each evaluated once more as the distortion that is handed out."""
        _, _, point = self._candidates()
        pairs, places = point.shape[:2]
        d = _inside(self.x[:, None], point, self.low, self.high)  # (P, L + 2, n)
        point = self.x[:, None] + d
        every = torch.arange(pairs, device=d.device).repeat_interleave(places)
        data = self._value(point.flatten(0, 1), every).reshape(pairs, places)
        norm = torch.linalg.vector_norm(d, dim=2)
        table = data[:, None, :] + self.lambdas[:, None] * penalise(norm, self.penalty)[:, None, :]
        objective, which = table.min(2)  # (P, L)
        row = torch.arange(pairs, device=d.device)[:, None]
        count = len(self.lambdas)
        found = Sweep(
            lambdas=self.lambdas,
            penalty=self.penalty,
            distortion=d[row, which].reshape(pairs, count, *self.shape),
            adversarial=point[row, which].reshape(pairs, count, *self.shape),
            data_term=data[row, which],
            norm=norm[row, which],
            objective=objective,
            status=self.status.reshape(pairs, count),
            evaluations=self.evaluations.reshape(pairs, count),
            zero_data_term=data[:, -2],
            interrupted=self.stopped,
        )
        _verify(found, self.low, self.high)
        return found

    @property
    def objective(self) -> Tensor:
        """Best objective of each problem, (K,)."""
        return self.data + self.lam * penalise(self.norm, self.penalty)

    def _candidates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Data term, ||d||_2 and x + d of each pair's candidates: its problems' best, then d = 0, d = x_t - x.

        Shapes (P, L + 2), (P, L + 2), (P, L + 2, n).
        """
        shape = (len(self.x), len(self.lambdas))
        gap = torch.linalg.vector_norm(self.x_t - self.x, dim=1)
        free_data = torch.stack([self.zero_data, self.target_data], 1)
        free_norm = torch.stack([torch.zeros_like(gap), gap], 1)
        free_point = torch.stack([self.x, self.x_t], 1)
        return (
            torch.cat([self.data.reshape(shape), free_data], 1),
            torch.cat([self.norm.reshape(shape), free_norm], 1),
            torch.cat([self.best.reshape(*shape, -1), free_point], 1),
        )

    def _search(self, stage: str, rows: Tensor, start: Tensor) -> None:
        """Minimise the named problems from ``start`` (len(rows), n) and keep what is better."""
        if self.stopped or not rows.numel():
            return

        def objective(points: Tensor, problem: Tensor) -> tuple[Tensor, Tensor]:
            k = rows[problem]
            data, gradient = self._gradient(points, self.pair[k])
            d = points - self.x[self.pair[k]]
            norm = torch.linalg.vector_norm(d, dim=1)
            # `l2` has no gradient at d = 0; what is left out there is 0, not NaN.
            slope = torch.where(norm > 0, 1 / norm, 0.0) if self.penalty == "l2" else 2.0
            pull = (self.lam[k] * slope)[:, None] * d
            return data + self.lam[k] * penalise(norm, self.penalty), gradient + pull

        def go_on(running: int) -> bool:
            self.stopped = not self.go_on(Progress(stage, running, self.lam.numel()))
            return not self.stopped

        low, high = torch.full_like(start, self.low), torch.full_like(start, self.high)
        found = minimise(objective, start, low, high, self.stopping, go_on=go_on)
        self.evaluations[rows] += found.evaluations
        better = found.value < self.objective[rows]
        self._take(rows[better], found.x[better])
        # A first search that finds nothing below d = 0 has ended all the same; STOPPED means interrupted.
        ended = better | (self.status[rows] == int(Status.STOPPED))
        self.status[rows[ended]] = found.status[ended]

    def _take(self, rows: Tensor, points: Tensor) -> None:
        if rows.numel():
            self.best[rows] = points
            self.data[rows] = self._value(points, self.pair[rows])
            self.norm[rows] = torch.linalg.vector_norm(points - self.x[self.pair[rows]], dim=1)

    def _value(self, points: Tensor, pair: Tensor) -> Tensor:
        """Data term (b,) of ``points`` (b, n)."""

        @torch.no_grad()
        def value(part: Tensor, of: Tensor) -> tuple[Tensor]:
            return (self.data_term(part.reshape(-1, *self.shape), of),)

        return self.rows.map(value, points, pair)[0]

    def _gradient(self, points: Tensor, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Data term (b,) of ``points`` (b, n) and its gradient (b, n)."""

        @torch.enable_grad()  # a notebook may stand under no_grad
        def gradient(part: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
            leaf = part.detach().requires_grad_(True)
            value = self.data_term(leaf.reshape(-1, *self.shape), of)
            slope = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] if value.requires_grad else None
            if slope is None:
                raise ContractError(
                    "the encoder is cut off from its input (detached), so no attack can follow its gradient; "
                    "run doctor on the model"
                )
            return value.detach(), slope

        values, gradients = self.rows.map(gradient, points, pair)
        return values, gradients


def _inside(x: Tensor, point: Tensor, low: float, high: float) -> Tensor:
    """d with x + d = ``point`` up to rounding, and x + d inside [low, high] to the bit."""
    d = point.clamp(low, high) - x
    zero = torch.zeros_like(d)
    while True:
        outside = (x + d < low) | (x + d > high)  # rounding of x + (point - x) can step over the edge
        if not outside.any():
            return d
        d = torch.where(outside, torch.nextafter(d, zero), d)


def _verify(found: Sweep, low: float, high: float) -> None:
    """Check what is handed out, whatever the search did."""
    zero = found.zero_data_term[:, None]
    sound = bool(
        found.objective.isfinite().all()
        and ((found.adversarial >= low) & (found.adversarial <= high)).all()
        and (found.objective <= zero).all()
    )
    if not sound:
        raise VaeauditError(
            "the sweep's result is not finite, leaves the box or is worse than d = 0: "
            "this is a fault of vaeaudit or of a model whose outputs are not deterministic; run doctor on it"
        )
