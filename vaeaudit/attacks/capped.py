"""Attacks under a norm cap: the least data term over ||d||_p <= cap with x + d in the box, for items and caps at once.

First-order steps with momentum over the exact intersection of ball and box, which has a closed form: both the
projection and the longest point along a direction are clip(t v), and t is found in a few rounds. Damage has many
local maxima under a small cap and fewer under a large one, so every chain starts in a larger ball that
shrinks while the chain moves (a homotopy in the cap, as Croce & Hein 2021, "Mind the box", section 3.2, do for L1).
The best chain, perhaps one that another cap found, is then followed, and further where it still gains at its limit.
"""

from dataclasses import replace

import torch
from torch import Tensor

from vaeaudit.attacks.attacked import Capped, joined
from vaeaudit.attacks.ball import NORMS, exceeds, furthest, length, norm_of, settle
from vaeaudit.attacks.left import FURTHER, unfinished
from vaeaudit.attacks.term import DataTerm, Term
from vaeaudit.errors import ConfigError, NonFiniteError, VaeauditError, nearest
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.box import flat_bounds
from vaeaudit.model.ranges import Range
from vaeaudit.optim.lbfgsb import Descent, Status, Stopping
from vaeaudit.progress import GoOn, Progress, always

# Radius of the ball in which a chain starts, as a multiple of the cap: measured; a cube grows faster than a ball.
_WIDE = {"l2": 2.0, "linf": 1.3}
_SHRUNK = 0.65  # share of exploring after which the ball has shrunk to the cap
_EXPLORED = 0.5  # of the time, as measured, has gone when what was explored is followed
_EXPLORING = 0.8  # share of the evaluations spent on exploring chains
_CHAIN = 27  # evaluations that an exploring chain needs at least
_MOMENTUM = 0.75
_FEWEST = 10  # evaluations below which there is no search worth the name
_STEPS = (1.0, 0.1)  # length of a chain's first and last step, as shares of the radius
_OUTSIDE = 1e-2  # how far outside the sphere following starts, as a share of the cap
_VECTORS = 12  # vectors of n elements that one chain holds at a time
_MEMORY = 2**33  # bytes that the chains of a group of items may take


def capped(
    data_term: DataTerm,
    x: Tensor,
    box: Range | None,
    caps: Tensor,
    *,
    norm: str = "l2",
    directions: Tensor,
    max_evaluations: int = 505,
    rows: RowBatches,
    go_on: GoOn = always,
) -> Capped:
    """Minimise data_term(x + d) over ||d|| <= cap with x + d in ``box``, for items (I, *shape) and ``caps`` (C,).

    Args:
        data_term: what is minimised; the negative of a damage.
        x: the items, inside the box; their dtype and device are used throughout.
        box: the range of x + d, None for all reals.
        caps: in the units of x, in any order.
        norm: "l2" or "linf".
        directions: (R, I, *shape), where the chains start: each is lengthened to the cap. Keyed noise of
            :func:`vaeaudit.stats.draws.noise_set`, or what :mod:`vaeaudit.attacks.directions` makes of it, which is
            stronger; more than one per 27 evaluations are left out.
        max_evaluations: rows of the model for one item and one cap, forward and backward together counted as one;
            four times as many where it still gains at that limit.
        rows: bounds how many rows the model is given at once.
        go_on: asked before each round; on False the search ends with the best it has.

    Raises:
        ConfigError: a cap that is not positive and finite, an unknown norm, no direction, too few evaluations.
        NonFiniteError: the data term is NaN or infinite at d = 0.
    """
    _check(caps, x.dtype, norm, directions, max_evaluations)
    caps = caps.to(x.device, torch.float64)
    of_item = len(directions) * len(caps) * x[0].numel() * x.element_size() * _VECTORS
    size = max(1, _MEMORY // of_item)
    parts = []
    for first in range(0, len(x), size):
        group = slice(first, first + size)
        term = Term(data_term, tuple(x.shape[1:]), rows, first)
        search = _Search(term, x[group].flatten(1), box, caps, norm, max_evaluations, go_on)
        parts.append(search.run(directions[:, group].flatten(2)))
    found = joined(parts)
    shape = (len(x), len(caps), *x.shape[1:])
    return replace(found, distortion=found.distortion.reshape(shape), adversarial=found.adversarial.reshape(shape))


class _Search:
    """The problems of a group of items; problem k is item k // C, cap k % C."""

    def __init__(
        self,
        term: Term,
        x: Tensor,
        box: Range | None,
        caps: Tensor,
        norm: str,
        max_evaluations: int,
        go_on: GoOn,
    ) -> None:
        self.term, self.x, self.caps, self.norm = term, x, caps, norm
        self.max_evaluations, self.go_on = max_evaluations, go_on
        self.edges = self.low, self.high = flat_bounds(box, term.shape, x)  # (1, n) each
        self.item = torch.arange(len(x), device=x.device).repeat_interleave(len(caps))  # (K,)
        self.cap = caps.to(x).repeat(len(x))  # (K,)
        self.evaluations = torch.ones_like(self.item)  # (K,)
        self.stopped = False
        # The best of each problem (K,), its d (K, n), how its chain ended, and what that gained of late.
        self.data_term, self.distortion = torch.full_like(self.cap, torch.inf), torch.zeros_like(x[self.item])
        self.status = torch.full_like(self.item, int(Status.STOPPED))
        self.recent = torch.full_like(self.cap, torch.inf)
        self.further = torch.zeros_like(self.item, dtype=torch.bool)

    def run(self, directions: Tensor) -> Capped:
        """Explore from ``directions`` (R, I, n), follow the best, and hand it out."""
        zero = self.term.value(self.x, torch.arange(len(self.x), device=self.x.device))
        if not bool(zero.isfinite().all()):
            item = int((~zero.isfinite()).nonzero()[0, 0])
            raise NonFiniteError(
                f"the data term of item {item} is {float(zero[item])} before any distortion, so there is nothing to "
                "compare an attack with; run doctor on the model and look at its data"
            )
        budget = self.max_evaluations - len(self.caps) - 1  # the rest: d = 0, the other caps' best, and the result
        chains = max(1, min(len(directions), round(_EXPLORING * budget / _CHAIN)))
        rounds = max(1, int(_EXPLORING * budget) // chains)
        self.data_term, self.distortion = self._exchange(*self._explore(directions[:chains], rounds))
        followed = budget - rounds * chains
        self._follow(torch.arange(len(self.item), device=self.x.device), followed, 0, "following")
        for times in FURTHER:
            problem = unfinished(self._standing(zero)).flatten().nonzero().squeeze(1)
            if self.stopped or not len(problem):
                break
            self.further[problem] = True
            self._follow(problem, times * self.max_evaluations, followed, "searching on")
            followed += times * self.max_evaluations
        return self._result(zero)

    def _explore(self, directions: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
        """The least value (K,) that chains from ``directions`` (R, I, n) see within the cap, and its d (K, n)."""
        chains, count = len(directions), len(self.item)
        item, cap = self.item.repeat(chains), self.cap.repeat(chains)
        x = self.x[item]
        low, high = self.low - x, self.high - x
        wide = _WIDE[self.norm]
        before = d = self._furthest(directions[:, self.item].flatten(0, 1), low, high, wide * cap)
        best, best_d = torch.full_like(cap, torch.inf), self._furthest(d, low, high, cap, most=1.0)
        for done in range(rounds):
            if not self._go_on("exploring, rounds", rounds - done, rounds, _EXPLORED * done / rounds):
                break
            share = done / rounds
            radius = cap * (1 + (wide - 1) * max(0.0, 1 - share / _SHRUNK))
            d = self._furthest(d, low, high, radius, most=1.0)
            value, gradient = self.term.gradient((x + d).clamp(self.low, self.high), item)
            self.evaluations += chains
            if share >= _SHRUNK:
                better = value < best  # NaN is never better
                best, best_d = torch.where(better, value, best), torch.where(better[:, None], d, best_d)
            step = _STEPS[0] * (_STEPS[1] / _STEPS[0]) ** share * radius
            before, d = d, d - step[:, None] * self._steepest(gradient, d, low, high) + _MOMENTUM * (d - before)
        best, which = best.reshape(chains, count).min(0)
        return best, best_d.reshape(chains, count, d.shape[1])[which, torch.arange(count, device=d.device)]

    def _follow(self, problem: Tensor, most: int, followed: int, stage: str) -> None:
        """Descend from the best of the problems (b,) by L-BFGS, with ``most`` evaluations after ``followed``.

        The variable is v in the box, and d = v min(1, cap / ||v||): all of ball and box, with no other constraint. A
        start on the sphere is put a little outside, where the gradient has no radial part to spoil the curvature.
        """
        if not self._go_on(stage, len(problem), len(problem), _EXPLORED):
            self.status[problem] = int(Status.STOPPED)
            return
        item, cap, start = self.item[problem], self.cap[problem], self.distortion[problem]
        x = self.x[item]
        low, high = self.low - x, self.high - x
        size = cap * (x.shape[1] ** 0.5 if self.norm == "linf" else 1.0)  # of the ball, in L2
        if self.norm == "linf":  # the ball is a box
            low, high = torch.maximum(low, -cap[:, None]), torch.minimum(high, cap[:, None])
            cap = torch.full_like(cap, torch.inf)
        v = torch.where((norm_of(start, "l2") > (1 - _OUTSIDE) * cap)[:, None], (1 + _OUTSIDE) * start, start)

        def objective(v: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
            size = norm_of(v, "l2")
            scale = (cap[k] / size).clamp(max=1)[:, None]
            value, gradient = self.term.gradient((x[k] + scale * v).clamp(self.low, self.high), item[k])
            radial = (v * gradient).sum(1, keepdim=True) / size.square()[:, None]
            return value, torch.where(scale < 1, scale * (gradient - radial * v), gradient)

        descent = Descent(objective, v, low, high, Stopping.for_dtype(x.dtype, most), unit=size)
        half = descent.minima().value.clone()
        for done in range(1, most):
            share = min(1.0, _EXPLORED + (1 - _EXPLORED) * (followed + done) / self.max_evaluations)
            if not descent.running or not self._go_on(stage, descent.running, len(problem), share):
                break
            descent.advance(1)
            # What it had after half of the time that it is followed in all.
            half = descent.minima().value.clone() if 2 * (followed + done) < followed + most else half
        found = descent.minima()
        self.evaluations[problem] += found.evaluations
        before = self.data_term[problem]
        value = torch.where(found.value < before, found.value, before)
        scale = (cap / norm_of(found.x, "l2")).clamp(max=1)[:, None]
        self.distortion[problem] = torch.where((found.value < before)[:, None], scale * found.x, start)
        self.data_term[problem] = value
        finite, stopped = value.isfinite(), found.status == int(Status.STOPPED)
        self.recent[problem] = torch.where(finite, torch.minimum(before, half) - value, torch.inf)
        self.status[problem] = torch.where(finite | stopped, found.status, int(Status.NONFINITE))

    def _go_on(self, stage: str, left: int, whole: int, share: float) -> bool:
        self.stopped = self.stopped or not self.go_on(Progress(stage, left, whole, share))
        return not self.stopped

    def _steepest(self, gradient: Tensor, d: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The direction of norm 1 in which the value rises most, among those elements that the box lets move."""
        held = ((d <= low) & (gradient > 0)) | ((d >= high) & (gradient < 0)) | ~gradient.isfinite()
        slope = torch.where(held, 0.0, gradient)
        if self.norm == "linf":
            return slope.sign()
        slope = slope / slope.abs().amax(1, keepdim=True)  # first, because squares of small gradients underflow
        steepest: Tensor = (slope / torch.linalg.vector_norm(slope, dim=1, keepdim=True)).nan_to_num(0.0)
        return steepest

    def _furthest(self, v: Tensor, low: Tensor, high: Tensor, radius: Tensor, most: float = torch.inf) -> Tensor:
        return furthest(v, low, high, radius, self.norm, most)

    def _exchange(self, value: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """The best of each problem's d (K, n) and of those of the item's other caps, brought to its own."""
        x, own = self.x[self.item], d.reshape(len(self.x), len(self.caps), -1)
        for shift in range(1, len(self.caps) if not self.stopped else 0):
            other = self._furthest(own.roll(shift, 1).flatten(0, 1), self.low - x, self.high - x, self.cap)
            offer = self.term.value((x + other).clamp(self.low, self.high), self.item)
            self.evaluations += 1
            better = offer < value
            value, d = torch.where(better, offer, value), torch.where(better[:, None], other, d)
        return value, d

    def _standing(self, zero: Tensor) -> Capped:
        """The search as it stands; ``zero`` (I,) is the data term at d = 0."""
        table = (len(self.x), len(self.caps))
        d = self.distortion.reshape(*table, -1)
        return Capped(
            caps=self.caps,
            norm_name=self.norm,
            distortion=d,
            adversarial=self.x[:, None] + d,
            data_term=self.data_term.reshape(table),
            norm=length(self.x[:, None], d, self.norm),
            zero_data_term=zero,
            status=self.status.reshape(table),
            evaluations=self.evaluations.reshape(table),
            further=self.further.reshape(table),
            recent=self.recent.reshape(table),
            interrupted=self.stopped,
        )

    def _result(self, zero: Tensor) -> Capped:
        """The best of each problem's d, those of the item's smaller caps and d = 0, as they are handed out."""
        table = (len(self.x), len(self.caps))
        d = settle(self.x[self.item], self.distortion, self.edges, self.caps.repeat(len(self.x)), self.norm)
        value = self.term.value(self.x[self.item] + d, self.item)
        self.evaluations += 1
        gains = value < zero[self.item]  # NaN does not
        value = torch.where(gains, value, zero[self.item]).reshape(table)
        d = torch.where(gains[:, None], d, 0.0).reshape(*table, -1)
        order = self.caps.argsort()
        value, which = value[:, order].cummin(1)
        rank = order.argsort()
        value, which = value[:, rank], order[which[:, rank]]
        d = d[torch.arange(len(d), device=d.device)[:, None], which]
        self.data_term, self.distortion = value.flatten(), d.flatten(0, 1)
        found = self._standing(zero)
        self._verify(found)
        return found

    def _verify(self, found: Capped) -> None:
        """Check what is handed out, whatever the search did."""
        d, caps = found.distortion.flatten(0, 1), self.caps.repeat(len(self.x))
        sound = bool(
            not exceeds(self.x[self.item], d, self.edges, caps, self.norm)
            and found.data_term.isfinite().all()
            and (found.data_term <= found.zero_data_term[:, None]).all()
        )
        if not sound:
            raise VaeauditError(
                "the result of the attack under a cap leaves the box or the cap or is worse than d = 0: "
                "this is a fault of vaeaudit; please report it"
            )


def _check(caps: Tensor, dtype: torch.dtype, norm: str, directions: Tensor, max_evaluations: int) -> None:
    if norm not in NORMS:
        raise ConfigError(f"there is no norm '{norm}' for a cap{nearest(norm, NORMS)}; there are {', '.join(NORMS)}")
    seen = caps.to(dtype)
    if not caps.numel() or not bool((seen.isfinite() & (seen > 0)).all()):
        precision = str(dtype).removeprefix("torch.")
        raise ConfigError(f"caps must be positive and finite in {precision}, at least one, but {caps.tolist()} came")
    if not len(directions):
        raise ConfigError("an attack under a cap needs a direction to start in, but none was given; draw at least one")
    fewest = len(caps) + _FEWEST
    if max_evaluations < fewest:
        raise ConfigError(
            f"{len(caps)} caps need at least {fewest} evaluations each, but {max_evaluations} were allowed; allow more"
        )
