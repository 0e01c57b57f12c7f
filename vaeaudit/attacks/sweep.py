"""The lambda sweep: data term + lambda * pen(d) for every pair and every lambda, as one batched problem."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vaeaudit.attacks.ball import settle
from vaeaudit.attacks.left import FURTHER, unfinished
from vaeaudit.attacks.probes import Found
from vaeaudit.attacks.search import Effort, Search, penalise
from vaeaudit.attacks.term import DataTerm, Term
from vaeaudit.errors import VaeauditError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.box import bounds
from vaeaudit.model.ranges import Range
from vaeaudit.progress import GoOn, always, within

PENALTIES = ("l2", "l2sq")
_MEMORY = 2**33  # bytes that the state of the problems searched together may take
_VECTORS = 40  # that state, in vectors of the size of an input for each problem


@dataclass(frozen=True, eq=False)
class Sweep:
    """Best distortion of each pair (P) and lambda (L).

    ``distortion`` and ``adversarial`` are (P, L, *shape), and ``adversarial`` is x + d to the bit, inside the
    box. ``data_term``, ``norm`` (||d||_2), ``objective``, ``status`` (:class:`Status`), ``evaluations``,
    ``further``, whether it was searched on, because it could still fall at its first limit, and ``recent``, what the
    objective has gained since half of the evaluations, infinite if cut off early, are (P, L).
    ``zero_data_term`` (P,) is the data term at d = 0. ``interrupted`` tells that it was told to stop.
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
    further: Tensor
    recent: Tensor
    zero_data_term: Tensor
    interrupted: bool

    @property
    def penalty_term(self) -> Tensor:
        """lambda pen(d), (P, L)."""
        return self.lambdas * penalise(self.norm, self.penalty)

    def judged(self, floor: float | None) -> Found:
        """The sweep as it is judged; ``floor`` is a lower bound of the data term, None where there is none."""
        return Found(
            adversarial=self.adversarial,
            value=self.data_term,
            penalty=self.penalty_term,
            radius=self.norm,
            status=self.status,
            zero_value=self.zero_data_term,
            lambdas=self.lambdas,
            recent=self.recent,
            floor=floor,
        )

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


def sweep(
    data_term: DataTerm,
    x: Tensor,
    x_t: Tensor,
    box: Range | None,
    lambdas: Tensor,
    *,
    penalty: str = "l2",
    floor: float | None = 0.0,
    effort: Effort,
    rows: RowBatches,
    go_on: GoOn = always,
) -> Sweep:
    """Minimise J(x + d) + lambda pen(d) over d with x + d in ``box``, for pairs (P, *shape) and lambda (L,).

    ``x`` and ``x_t`` lie in the box. ``floor`` is a lower bound of the data term J: 0 for the similarities, None where
    there is none. ``rows`` bounds how many rows the model is given at once; pairs are searched in groups whose state
    fits into memory. Where a figure of a pair could still fall at the limit of ``effort``, its problems there are
    searched on, to four times the evaluations at most.
    """
    shape = tuple(x.shape[1:])
    starts = max(1, effort.starts // 2)  # each explores a third of the usual lambda
    of_pair = starts * len(lambdas) * x[0].numel() * x.element_size() * _VECTORS
    size = max(1, _MEMORY // of_pair)
    parts = []
    for first in range(0, len(x), size):

        def of_group(points: Tensor, pair: Tensor, first: int = first) -> Tensor:
            return data_term(points, pair + first)

        group = slice(first, first + size)
        term = Term(of_group, shape, rows)
        of_all = within(go_on, first / len(x), min(1.0, (first + size) / len(x)))
        search = Search(term, x[group].flatten(1), x_t[group].flatten(1), box, lambdas, penalty, floor, effort, of_all)
        search.run()
        found = _result(search, shape)
        for times in FURTHER:
            problem = unfinished(found.judged(floor)).flatten().nonzero().squeeze(1)
            if search.stopped or not len(problem):
                break
            search.run_on(problem, times * effort.stopping.max_evaluations)
            found = _result(search, shape)
        _verify(found, box)
        parts.append(found)
    return parts[0] if len(parts) == 1 else _join(parts)


def _result(search: Search, shape: tuple[int, ...]) -> Sweep:
    """The best of all candidates, each evaluated once more as the distortion that is handed out."""
    x, lambdas = search.x, search.lambdas
    pairs, count = len(x), len(lambdas)
    ends = torch.stack([x, search.x_t], 1)
    point = torch.cat([search.best.reshape(pairs, count, -1), ends], 1)  # (P, L + 2, n)
    d = settle(x[:, None], point - x[:, None], (search.low, search.high))
    point = x[:, None] + d
    every = torch.arange(pairs, device=x.device).repeat_interleave(count + 2)
    data = search.term.value(point.flatten(0, 1), every).reshape(pairs, -1)
    data = torch.where(data.isfinite(), data, torch.inf)  # x_t may have none; d = 0 always has
    norm = torch.linalg.vector_norm(d, dim=2)
    table = data[:, None, :] + lambdas[:, None] * penalise(norm, search.penalty)[:, None, :]
    objective, which = table.min(2)  # (P, L)
    row = torch.arange(pairs, device=x.device)[:, None]
    return Sweep(
        lambdas=lambdas,
        penalty=search.penalty,
        distortion=d[row, which].reshape(pairs, count, *shape),
        adversarial=point[row, which].reshape(pairs, count, *shape),
        data_term=data[row, which],
        norm=norm[row, which],
        objective=objective,
        status=search.status.reshape(pairs, count),
        evaluations=search.evaluations.reshape(pairs, count),
        further=search.further.reshape(pairs, count),
        recent=search.recent.reshape(pairs, count),
        zero_data_term=data[:, -2],
        interrupted=search.stopped,
    )


def _join(parts: list[Sweep]) -> Sweep:
    """The sweeps of groups of pairs as one."""
    apart = ("lambdas", "penalty", "interrupted")
    joined = {f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Sweep) if f.name not in apart}
    return Sweep(
        lambdas=parts[0].lambdas, penalty=parts[0].penalty, interrupted=any(p.interrupted for p in parts), **joined
    )


def _verify(found: Sweep, box: Range | None) -> None:
    """Check what is handed out, whatever the search did."""
    low, high = bounds(box, tuple(found.adversarial.shape[2:]), found.adversarial)
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
