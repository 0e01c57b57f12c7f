"""How far a reconstruction moves by sampling alone: the least radius that holds it, and P(||Delta(x, 0)|| <= r).

Delta(x, 0) = g(mu(x) + sigma(x) eta) - g(mu(x)), the centre deterministic (Camuto et al. 2021, definition 1). The
distances are drawn once for each item; the radius (their algorithm 1) and the probability are read off their order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from vaeaudit.errors import ConfigError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.conditions import under
from vaeaudit.model.vae import VAE
from vaeaudit.progress import GoOn, Progress, always
from vaeaudit.stats.draws import noise_set
from vaeaudit.subject.inputs import require_finite

_MOST_NUMBERS = 2**22  # of noise held at once, as long as one item needs no more
_MOST_ROWS = 2**16  # drawn between two questions whether to go on


@dataclass(frozen=True, eq=False)
class MinRadius:
    """The least r for which an item is r-robust unperturbed, in output units: (items,) each, and how it is known.

    ``upper`` is the distance at place ``place`` of n in ascending order: at least the true value with confidence
    1 - ``alpha`` for each item, infinite where n is too small for any.
    """

    estimate: Tensor
    upper: Tensor
    place: int | None
    n: int
    m: float
    alpha: float
    estimator = "order statistic of the distances, distribution-free confidence value"


@dataclass(frozen=True, eq=False)
class Kept:
    """P(||Delta(x, 0)|| <= r) of each item: ``hits`` of n draws, the share ``p0``, and ``p_low``, (items,) float64.

    ``p_low`` is at most the true probability with confidence 1 - ``alpha`` for each item (Clopper-Pearson, one-sided).
    """

    hits: Tensor
    p0: Tensor
    p_low: Tensor
    n: int
    alpha: float
    estimator = "share of draws, one-sided Clopper-Pearson bound"


@torch.no_grad()
def distances(vae: VAE, x: Tensor, noise: Tensor, rows: RowBatches, items: Sequence[int] | None = None) -> Tensor:
    """||g(z) - g(mu(x))||_2 with z drawn from q(z|x), (draws, items), in output units.

    ``x`` is (items, *input_shape), ``noise`` is (draws, items, *noise_shape). Works for any posterior.

    Raises :class:`NonFiniteError` where a distance is NaN; ``items`` number the rows, from 0 on where None.
    """
    draws = len(noise)

    def of_items(index: Tensor) -> tuple[Tensor]:
        of_part = under(vae, index)
        q = of_part.encode(x[index])
        centre = of_part.decode(q.mean).mean.flatten(1)
        item = torch.arange(len(index), device=x.device).repeat(draws)

        def of_rows(row: Tensor, eta: Tensor) -> tuple[Tensor]:
            moved = under(of_part, row).decode(q.rows(row).sample(eta)).mean.flatten(1)
            # index_select, as centre[row] takes ten times as long on a CPU.
            return (torch.linalg.vector_norm(moved - centre.index_select(0, row), dim=1),)

        # Batches of its own: where memory runs out here, the items outside stay as they were counted.
        (found,) = RowBatches(rows.size).map(of_rows, item, noise[:, index].flatten(0, 1))
        return (found.view(draws, -1).T,)

    (found,) = rows.map(of_items, torch.arange(len(x), device=x.device))
    infinite = torch.where(found.isinf(), 0.0, found)  # as far away as can be, but somewhere
    require_finite("reconstruction of a draw", infinite, range(len(x)) if items is None else items)
    return found.T


def draw_distances(
    vae: VAE,
    x: Tensor,
    rows: RowBatches,
    *,
    draws: int,
    items: Sequence[int],
    seed: int,
    check: str,
    go_on: GoOn = always,
) -> Tensor:
    """:func:`distances` with noise keyed by (seed, check, item), of which a bounded amount is held at a time.

    ``items`` are the numbers of the rows of ``x``. Where ``go_on`` says no, those not yet drawn are left out.
    """
    with torch.no_grad():
        shape = under(vae, slice(1)).encode(x[:1]).noise_shape
    together = max(1, min(_MOST_NUMBERS // (draws * torch.Size(shape).numel()), _MOST_ROWS // draws))
    found: list[Tensor] = []
    for first in range(0, len(x), together):
        if found and not go_on(Progress("drawing", len(x) - first, len(x))):
            break
        part = slice(first, first + together)
        noise = noise_set(shape, draws=draws, items=items[part], seed=seed, check=check, like=x)
        found.append(distances(under(vae, part), x[part], noise, rows, items[part]))
    return torch.cat(found, dim=1)


def min_radius(distances: Tensor, m: float, alpha: float) -> MinRadius:
    """Algorithm 1 of Camuto et al., corrected: the m-quantile of ``distances`` (draws, items).

    The estimate is d_(ceil(m n)); the upper confidence value is d_(k) with k = min{k: P(Bin(n, m) <= k - 1) >=
    1 - alpha}, which is exact for every distribution. As printed the step is 0, and distances drawn anew at each step
    are biased low.

    Raises :class:`ConfigError` unless m and alpha lie in (0, 1) and there are draws.
    """
    check_probability("the risk level m", m)
    n = _draws(distances, alpha)
    ordered = distances.sort(dim=0).values
    # Rounded first: 0.07 * 100 is above 7 as floats go.
    estimate = ordered[max(1, math.ceil(round(m * n, 9))) - 1]
    k = int(stats.binom.ppf(1 - alpha, n, m)) + 1
    upper = ordered[k - 1] if k <= n else torch.full_like(estimate, torch.inf)
    return MinRadius(estimate, upper, k if k <= n else None, n, m, alpha)


def kept(distances: Tensor, r: float | Tensor, alpha: float) -> Kept:
    """How often ``distances`` (draws, items) are at most ``r``, one radius or (items,), in output units.

    p_low = Beta^-1(alpha; k, n - k + 1), 0 without hits (Clopper & Pearson 1934; THEOREM, confidence).

    Raises :class:`ConfigError` unless r > 0, alpha lies in (0, 1) and there are draws.
    """
    n = _draws(distances, alpha)
    if not bool((torch.as_tensor(r) > 0).all()):
        raise ConfigError(f"the radius r must be above 0, but {r} was given")
    hits = (distances <= r).sum(0)
    k = hits.cpu().numpy()
    low = torch.from_numpy(stats.beta.ppf(alpha, k.clip(min=1), n - k.clip(min=1) + 1)).to(distances.device)
    return Kept(hits, hits.double() / n, torch.where(hits > 0, low, 0.0), n, alpha)


def check_probability(what: str, value: float) -> None:
    """Raises :class:`ConfigError` unless ``value`` lies strictly between 0 and 1."""
    if not 0 < value < 1:
        raise ConfigError(f"{what} must lie strictly between 0 and 1, but {value:g} was given")


def _draws(distances: Tensor, alpha: float) -> int:
    check_probability("the error probability alpha", alpha)
    if not len(distances):
        raise ConfigError("at least one draw is needed, but none was given")
    return len(distances)
