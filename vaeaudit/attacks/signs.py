"""Failure signs: what tells a weak attack from a robust model.

An attack is a lower bound on harm. A model whose gradients are masked, or a search that ended early, looks robust
without being so (Athalye et al. 2018, "Obfuscated gradients give a false sense of security"; Carlini et al. 2019,
"On evaluating adversarial robustness", section 5). Each sign is a measurement of each item that no working attack on
a sound model exceeds; where one does, the item's figures support no verdict of robustness.

Most are shares of the item's *span*: the data term at d = 0 less the lowest seen anywhere. The span has the units of
the data term, so that the signs do not depend on its constants: a data term may be any real number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite

import torch
from torch import Tensor

from vaeaudit.attacks.probes import DrawTerm, Found, Probes
from vaeaudit.attacks.term import DataTerm
from vaeaudit.batches import RowBatches
from vaeaudit.optim.lbfgsb import Status
from vaeaudit.ranges import Range
from vaeaudit.vae import Posterior

DIRECTIONS = 6  # random directions of an item, each tried both ways


class Sign(StrEnum):
    """What can be wrong with an attack on one item, in words for a table's cell."""

    NOT_CONVERGED = "not converged"
    NOT_FINITE = "not finite"
    ZERO_GRADIENT = "zero gradient"
    WRONG_GRADIENT = "wrong gradient"
    CLAMPED = "clamped log-variance"
    RANDOM = "worse than random"
    ABOVE_ZERO = "above d = 0"
    NOT_REPEATABLE = "not repeatable"

    @property
    def limit(self) -> float:
        """The largest measurement that is no sign."""
        return _SAYS[self][0]


_SAYS: dict[Sign, tuple[float, str]] = {
    Sign.NOT_CONVERGED: (0.02, "a longer search could still lower its figures by {:.2g} of their scale"),
    Sign.NOT_FINITE: (0.0, "{:.2g} of its values and gradient elements are NaN or infinite"),
    Sign.ZERO_GRADIENT: (
        0.1,
        "where the gradient is zero, the data term still changes by {:.2g} of its span; "
        "is a part of the encoder saturated, rounded or detached?",
    ),
    Sign.WRONG_GRADIENT: (
        0.4,
        "the gradient and finite differences are {:.2g} of the larger apart; "
        "is a part of the encoder detached or rounded?",
    ),
    Sign.CLAMPED: (0.0, "{:.2g} of its log-variances lie exactly at one edge, where a clamp has no gradient"),
    Sign.RANDOM: (0.01, "it missed {:.2g} of the gain of a point of its norm that costs no search"),
    Sign.ABOVE_ZERO: (0.01, "the objective lies {:.2g} of the data term's span above that of d = 0"),
    Sign.NOT_REPEATABLE: (1e-3, "the same point gives values {:.2g} of the larger apart; is dropout or sampling on?"),
}
_NOT_MEASURED = {
    Sign.NOT_CONVERGED: "the search ended early, and nothing tells how far a longer one would go",
    Sign.ZERO_GRADIENT: "the data term is the same everywhere: the model does not see its input",
}


@dataclass(frozen=True, eq=False)
class Signs:
    """Measurements of P items, (len(Sign), P) in the order of :class:`Sign`, each with its limit there.

    What they measure, in that order: the fall of the objective that a longer search could bring (see
    :func:`left_to_gain`); the share of values and gradients that are not finite; the change of the data term by moving
    elements without a gradient; the relative error of the gradient against central differences; the share of
    log-variances at a clamp's edge; the share missed of the gain of the best point that costs no search; the excess
    of the objective over that of d = 0; the change of a value when it is computed again. NaN counts as a sign.
    """

    measured: Tensor

    @property
    def fired(self) -> Tensor:
        """Which signs each item shows, (len(Sign), P)."""
        limits = torch.tensor([sign.limit for sign in Sign], dtype=self.measured.dtype, device=self.measured.device)
        return ~(self.measured <= limits[:, None])

    @property
    def any(self) -> Tensor:
        """Whether an item shows a sign, (P,): its verdict is inconclusive, never passed."""
        return self.fired.any(0)

    def of(self, item: int) -> tuple[Sign, ...]:
        """The signs of one item."""
        return tuple(sign for sign, fired in zip(Sign, self.fired[:, item].tolist(), strict=True) if fired)

    def message(self, sign: Sign, item: int) -> str:
        """A sentence on what was measured of one item."""
        value = float(self.measured[list(Sign).index(sign), item])
        return _SAYS[sign][1].format(value) if isfinite(value) else _NOT_MEASURED.get(sign, f"measured as {value}")


def signs_of(
    data_term: DataTerm,
    encode: Callable[[Tensor], Posterior] | None,
    x: Tensor,
    x_t: Tensor | None,
    found: Found,
    directions: Tensor,
    *,
    box: Range | None,
    norm: str,
    rows: RowBatches,
    fresh: DrawTerm | None = None,
) -> Signs:
    """Look for every sign in an attack on ``x`` (P, *shape); ``x_t`` are its targets, where it has any.

    ``encode`` gives the posterior of points (b, *shape), None where they are no inputs. ``directions`` (R, P, *shape),
    R >= 2, is standard normal noise keyed by item; ``norm`` is "l2" or "linf", of the radius. ``fresh`` is for data
    terms that depend on draws. With R = DIRECTIONS it costs about a hundred rows of the model an item, of which 8 with
    their gradient; draws that the data term decodes multiply that.
    """
    look = Probes(data_term, x, x_t, found, directions, box, norm, rows)
    measured = {
        Sign.NOT_CONVERGED: _not_converged(found, look),
        Sign.NOT_FINITE: look.not_finite(),
        Sign.ZERO_GRADIENT: look.zero_gradient(),
        Sign.WRONG_GRADIENT: look.wrong_gradient(),
        Sign.CLAMPED: look.clamped(encode) if encode else torch.zeros_like(found.zero_value),
        Sign.RANDOM: look.random_search(),
        Sign.ABOVE_ZERO: look.above_zero(fresh),
        Sign.NOT_REPEATABLE: look.change(),
    }
    return Signs(torch.stack([measured[sign] for sign in Sign]))


def _not_converged(found: Found, look: Probes) -> Tensor:
    """Of each item the largest fall left as a share of the span; and of the mean objective above its floor, (P,)."""
    left = left_to_gain(found)
    share = look.share(left.amax(1))
    if found.floor is None:
        return share
    total = (found.value + found.penalty - found.floor).mean(1)
    return torch.maximum(share, torch.where(left.mean(1) > 0, left.mean(1) / total, 0.0))


def left_to_gain(found: Found) -> Tensor:
    """How far a longer search could lower each problem's objective, (P, K); infinite where nothing tells.

    Zero where it has converged. The optimum over d of J + lambda pen is concave in lambda and does not fall: it lies
    above the chord of converged neighbours, of which the floor at lambda = 0 counts as one. A search that ran on, or
    stuck, is moreover taken to gain from as many evaluations again no more than it gained from the last half of them:
    true of any that nears its limit as fast as 1/evaluations.
    """
    objective = found.value + found.penalty
    settled = found.status == int(Status.CONVERGED)
    lowest = -torch.inf if found.floor is None else found.floor
    bound = torch.full_like(objective, lowest)
    if found.lambdas is not None:
        order = found.lambdas.argsort()
        bound[:, order] = _chords(objective[:, order], settled[:, order], found.lambdas[order], lowest)
    left = objective - bound
    if found.recent is not None:
        ran = (found.status == int(Status.LIMIT)) | (found.status == int(Status.STALLED))
        left = torch.where(ran, torch.minimum(left, found.recent), left)
    return torch.where(settled, 0.0, left.clamp(min=0))


def _chords(objective: Tensor, settled: Tensor, lambdas: Tensor, lowest: float) -> Tensor:
    """Lower bound of each optimum from its settled neighbours, (P, K) for rising lambda (K,)."""
    count = len(lambdas)
    values = torch.cat([torch.full_like(objective[:, :1], lowest), objective], 1)  # place 0 is lambda = 0
    at = torch.cat([torch.zeros_like(lambdas[:1]), lambdas]).expand_as(values)
    sure = torch.cat([torch.ones_like(settled[:, :1]), settled], 1)
    place = torch.arange(count + 1, device=objective.device).expand_as(values)
    below = torch.where(sure, place, 0).cummax(1).values
    above = torch.where(sure, place, count + 1).flip(1).cummin(1).values.flip(1)
    above = torch.where(above > count, below, above)  # none: the optimum does not fall in lambda
    width = at.gather(1, above) - at.gather(1, below)
    weight = torch.where(width > 0, (at - at.gather(1, below)) / width, 0.0)
    start, end = values.gather(1, below), values.gather(1, above)
    chord = torch.where(weight > 0, start + weight * (end - start), start)
    return torch.where(start.isfinite(), chord, lowest)[:, 1:]
