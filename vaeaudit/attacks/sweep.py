"""The lambda sweep: data term + lambda * pen(d) for every pair and every lambda, as one batched problem."""

import torch
from torch import Tensor

from vaeaudit.attacks.attacked import Sweep, joined, penalise
from vaeaudit.attacks.ball import settle
from vaeaudit.attacks.following import ROWS
from vaeaudit.attacks.left import FURTHER, unfinished
from vaeaudit.attacks.search import Effort, Search, together
from vaeaudit.attacks.term import DataTerm, Term
from vaeaudit.errors import VaeauditError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.box import bounds
from vaeaudit.model.ranges import Range
from vaeaudit.progress import GoOn, always, within

_MEMORY = 2**33  # bytes that the state of the problems searched together may take
# That state, in vectors of the size of an input for each problem: of its search, and of five copies of Jacobians.
_VECTORS = 40 + 5 * ROWS


def geometric_lambdas(count: int) -> tuple[float, ...]:
    """``count`` values from 2^-20 to 2^20, geometric (Willetts et al. section 5.2: 50 of them)."""
    if count == 1:
        return (1.0,)
    return tuple(2.0 ** (-20 + 40 * i / (count - 1)) for i in range(count))


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
    fits into memory. Between lambda more than a factor of 2 apart, and above them, others are searched and not told,
    from 30 evaluations a problem on; what they cost counts at the nearest. Where a figure of a pair could still fall
    at the limit of ``effort``, its problems there are searched on, to four times the evaluations at most.
    """
    shape = tuple(x.shape[1:])
    of_pair = together(lambdas.tolist(), effort) * x[0].numel() * x.element_size() * _VECTORS
    size = max(1, _MEMORY // of_pair)
    parts = []
    for first in range(0, len(x), size):
        group = slice(first, first + size)
        term = Term(data_term, shape, rows, first)
        of_all = within(go_on, first / len(x), min(1.0, (first + size) / len(x)))
        search = Search(term, x[group].flatten(1), x_t[group].flatten(1), box, lambdas, penalty, floor, effort, of_all)
        search.run()
        found = _result(search, len(lambdas), shape, floor)
        for times in FURTHER:
            pair, place = unfinished(found).nonzero(as_tuple=True)
            if search.stopped or not len(pair):
                break
            search.run_on(pair * len(search.lambdas) + place, times * effort.stopping.max_evaluations)
            found = _result(search, len(lambdas), shape, floor)
        _verify(found, box)
        parts.append(found)
    return parts[0] if len(parts) == 1 else joined(parts)


def _result(search: Search, asked: int, shape: tuple[int, ...], floor: float | None) -> Sweep:
    """The best of all candidates for the lambda asked for, each evaluated once more as what is handed out."""
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
    table = data[:, None, :] + lambdas[:asked, None] * penalise(norm, search.penalty)[:, None, :]
    which = table.min(2).indices  # (P, A)
    row = torch.arange(pairs, device=x.device)[:, None]
    # What a rung cost, beside d = 0, is told at the nearest lambda.
    nearest = (lambdas[asked:, None].log() - lambdas[:asked].log()).abs().min(1).indices
    taken = search.evaluations.reshape(pairs, count)
    return Sweep(
        lambdas=lambdas[:asked],
        penalty=search.penalty,
        distortion=d[row, which].reshape(pairs, asked, *shape),
        adversarial=point[row, which].reshape(pairs, asked, *shape),
        data_term=data[row, which],
        norm=norm[row, which],
        status=search.status.reshape(pairs, count)[:, :asked],
        evaluations=taken[:, :asked].index_add(1, nearest, taken[:, asked:] - 1),
        further=search.further.reshape(pairs, count)[:, :asked],
        recent=search.recent.reshape(pairs, count)[:, :asked],
        followed=search.followed,
        zero_data_term=data[:, -2],
        interrupted=search.stopped,
        floor=floor,
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
