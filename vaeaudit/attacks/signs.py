"""Failure signs: what tells a weak attack from a robust model.

An attack is a lower bound on harm. A model whose gradients are masked, or a search that ended early, looks robust
without being so (Athalye et al. 2018, "Obfuscated gradients give a false sense of security"; Carlini et al. 2019,
"On evaluating adversarial robustness", section 5). Each sign is a measurement of each item that no working attack on
a sound model exceeds; where one does, the item's figures support no verdict of robustness.

Most are shares of the item's *span*: the data term at d = 0 less the lowest seen anywhere. The span has the units of
the data term, so that the signs do not depend on its constants: a data term may be any real number.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import isfinite

import torch
from torch import Tensor

from vaeaudit.attacks.attacked import Attacked, Sweep
from vaeaudit.attacks.left import ENOUGH, FALLS, MOST, left_share, still_falling
from vaeaudit.attacks.probes import DrawTerm, Probes
from vaeaudit.attacks.term import DataTerm
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.conditions import Encode
from vaeaudit.model.ranges import Range
from vaeaudit.optim.lbfgsb import Status

DIRECTIONS = 6  # random directions of an item, each tried both ways
_LONGER = "raise --max-evaluations"
_UNINTERRUPTED = "let it end, as it was interrupted"


class Sign(StrEnum):
    """What can be wrong with an attack on one item, in words for a table's cell."""

    NOT_CONVERGED = "not converged"
    FALLING = "still falling"
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


# The largest measurement that is no sign; what was measured; and what to do about it.
_SAYS: dict[Sign, tuple[float, str, str]] = {
    Sign.NOT_CONVERGED: (
        ENOUGH,
        f"when its search ended, of up to {MOST} times its evaluations, a longer one could still lower its figures by "
        "{:.2g} of their scale",
        "{effort}",
    ),
    Sign.FALLING: (
        FALLS,
        "the objective at the lambda shown still fell by {:.2g} of itself when its search was cut off: a longer one "
        "would lower it by more than a tenth",
        "{effort}",
    ),
    Sign.NOT_FINITE: (
        0.0,
        "{:.2g} of its values and gradient elements are NaN or infinite",
        "let doctor name them, or try --dtype float64",
    ),
    Sign.ZERO_GRADIENT: (
        0.1,
        "the elements without a gradient, moved to the target or as far, change the data term by {:.2g} of its span",
        "look for a saturated, rounded or detached part of the encoder and attack the model without it",
    ),
    Sign.WRONG_GRADIENT: (
        0.4,
        "the gradient and finite differences are {:.2g} of the larger apart",
        "look for a detached or rounded part of the encoder, or try --dtype float64",
    ),
    Sign.CLAMPED: (
        0.0,
        "{:.2g} of its log-variances lie exactly at one edge, where a clamp has no gradient",
        "attack the model without the clamp, or with a wider one; if it is meant, say so in [doctor.acknowledge]",
    ),
    Sign.RANDOM: (
        0.01,
        "it missed {:.2g} of the gain of a point of its norm that costs no search",
        "{effort}; where that does not help, its gradient misleads",
    ),
    Sign.ABOVE_ZERO: (
        0.01,
        "the objective lies {:.2g} of the data term's span above that of d = 0",
        "{effort}, or see whether another --seed tells the same",
    ),
    Sign.NOT_REPEATABLE: (
        1e-3,
        "the same point gives values {:.2g} of the larger apart",
        "turn dropout or sampling off in the model as it is opened",
    ),
}
# Signs that the values themselves are amiss: not finite, other when computed again, or fitted to the search's noise.
_DISTRUSTED = (Sign.NOT_FINITE, Sign.NOT_REPEATABLE, Sign.ABOVE_ZERO)
_NOT_MEASURED = {
    Sign.NOT_CONVERGED: ("the search ended early, and nothing tells how far a longer one would go; {effort}"),
    Sign.ZERO_GRADIENT: (
        "the data term is the same everywhere: the model does not see its input; look for what cuts it off"
    ),
}


@dataclass(frozen=True, eq=False)
class Signs:
    """Measurements of P items, (len(Sign), P) in the order of :class:`Sign`, each with its limit there.

    What they measure, in that order: the fall of a figure that a longer search could bring, as a share of it (see
    :func:`vaeaudit.attacks.left.left_share`); the share by which the objective shown still fell (see
    :func:`vaeaudit.attacks.left.still_falling`); the share of values and gradients that are not finite; the change of
    the data term by moving the elements without a gradient to the target, or to a far point where there is none; the
    relative error of the gradient against central differences; the share of log-variances at a clamp's edge; the share
    missed of the gain of the best point that costs no search; the excess of the objective over that of d = 0; the
    change of a value when it is computed again. NaN counts as a sign. ``effort`` says what makes the search stronger,
    but of items that are ``cut_off`` (P,): an interruption ended their search.
    """

    measured: Tensor
    cut_off: Tensor
    effort: str = _LONGER

    @property
    def fired(self) -> Tensor:
        """Which signs each item shows, (len(Sign), P)."""
        limits = torch.tensor([sign.limit for sign in Sign], dtype=self.measured.dtype, device=self.measured.device)
        return ~(self.measured <= limits[:, None])

    @property
    def any(self) -> Tensor:
        """Whether an item shows a sign, (P,): its verdict is inconclusive, never passed."""
        return self.fired.any(0)

    @property
    def trusted(self) -> bool:
        """Whether all values are what their points give, however weak the search."""
        return not bool(self.fired[[list(Sign).index(sign) for sign in _DISTRUSTED]].any())

    def of(self, item: int) -> tuple[Sign, ...]:
        """The signs of one item."""
        return tuple(sign for sign, fired in zip(Sign, self.fired[:, item].tolist(), strict=True) if fired)

    def message(self, sign: Sign, item: int) -> str:
        """A sentence on what was measured of one item, and what to do about it."""
        value = float(self.measured[list(Sign).index(sign), item])
        _, measured, remedy = _SAYS[sign]
        told = f"{measured.format(value) if isfinite(value) else f'measured as {value}'}; {remedy}"
        effort = _UNINTERRUPTED if self.cut_off[item] else self.effort
        return (told if isfinite(value) else _NOT_MEASURED.get(sign, told)).replace("{effort}", effort)


def signs_of(
    data_term: DataTerm,
    encode: Encode | None,
    x: Tensor,
    x_t: Tensor | None,
    found: Attacked,
    directions: Tensor,
    *,
    box: Range | None,
    norm: str,
    rows: RowBatches,
    fresh: DrawTerm | None = None,
) -> Signs:
    """Look for every sign in an attack on ``x`` (P, *shape); ``x_t`` are its targets, where it has any.

    ``encode`` gives the posterior of points of items, None where they are no inputs. ``directions`` (R, P, *shape),
    R >= 2, is standard normal noise keyed by item; ``norm`` is "l2" or "linf", of the radius. ``fresh`` is for data
    terms that depend on draws. With R = DIRECTIONS it costs about a hundred rows of the model an item, of which 8 with
    their gradient, and some dozens more where that disagrees; draws that the data term decodes multiply that.
    """
    look = Probes(data_term, x, x_t, found, directions, box, norm, rows)
    measured = {
        Sign.NOT_CONVERGED: left_share(found, look.lowest).amax(1),
        Sign.FALLING: _at_chosen(found),
        Sign.NOT_FINITE: look.not_finite(),
        Sign.ZERO_GRADIENT: look.zero_gradient(),
        Sign.WRONG_GRADIENT: look.wrong_gradient(),
        Sign.CLAMPED: look.clamped(encode) if encode else torch.zeros_like(found.zero_data_term),
        Sign.RANDOM: look.random_search(),
        Sign.ABOVE_ZERO: look.above_zero(fresh),
        Sign.NOT_REPEATABLE: look.change(),
    }
    cut_off = (found.status == int(Status.STOPPED)).any(1)
    return Signs(torch.stack([measured[sign] for sign in Sign]), cut_off)


def _at_chosen(found: Attacked) -> Tensor:
    """How far each item's objective still fell at the lambda from which its figures are read, (P,); 0 under caps."""
    if not isinstance(found, Sweep):
        return torch.zeros_like(found.zero_data_term)
    return still_falling(found).gather(1, found.chosen[:, None]).squeeze(1)
