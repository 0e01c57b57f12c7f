"""Looking at a finished attack with a few rows of the model: values, gradients, and points that cost no search.

:mod:`vaeaudit.attacks.signs` turns these measurements into failure signs. Random points keep to the box: a direction
is lengthened, and what the box cuts off is left to the other elements, until d has the wanted norm or is in a corner;
under a linf cap they are corners of the cap, cut at the box.
"""

import math
from collections.abc import Callable, Sequence

import torch
from scipy import stats as distributions
from torch import Tensor

from vaeaudit.attacks.attacked import Attacked
from vaeaudit.attacks.term import DataTerm
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.box import flat_bounds
from vaeaudit.model.conditions import Encode
from vaeaudit.model.families import gaussian_part, without_gradient
from vaeaudit.model.ranges import Range, intervals
from vaeaudit.model.vae import Chain, DiagonalGaussian, Posterior

# fresh(points, item) -> (b, draws): the data term of each of several draws that no search has seen
DrawTerm = Callable[[Tensor, Tensor], Tensor]

_LOOKED = 4  # problems of an item whose found points are looked at, spread over their norms
_SLOPES = 6  # directions whose slopes are compared with differences: the gradient's and random ones
_FLAT = 1e-4  # an element with a gradient below this share of the largest counts as having none
_STEPS = (1e-3, 1e-4)  # of those differences, as shares of the length of d; kinks spoil long, rounding short ones
_SHORT = tuple(10.0**-power for power in range(5, 14))  # elements of other scales are passed by in longer ones
_ASIDE = 5e-2  # how far beside a point, as a share of the way to the far one, a kink that it may lie on is passed by
_MARGIN = 5e-2  # how far from the edges of the box, as a share of its width, differences are taken
_LEVEL = 0.999  # of the test on fresh noise
_OFF_ZERO = 1e-2  # a little off d = 0, as a share of the length of d
_AGREES = 0.1  # a gradient and differences this near to each other need no other steps
_FAR = 0.1  # how far from x a far point lies without a target: this share of the width, in each element
_ROUNDING = 1e3  # units in the last place by which rounding may change a value
_CLEAR = 0.1  # differences of values are compared where they exceed this share of it
_LENGTHENINGS = 8


class Probes:
    """Measurements of one attack on P items of n elements, M of the problems of each looked at; each is (P,)."""

    def __init__(
        self,
        data_term: DataTerm,
        x: Tensor,
        x_t: Tensor | None,
        found: Attacked,
        directions: Tensor,
        box: Range | None,
        norm: str,
        rows: RowBatches,
    ) -> None:
        self.data_term, self.found, self.norm, self.rows = data_term, found, norm, rows
        self.shape = tuple(x.shape[1:])
        self.low, self.high = flat_bounds(box, self.shape, x)  # (1, n) each
        self.x, self.random = x.flatten(1), directions.flatten(2)  # (P, n), (R, P, n)
        items, n = self.x.shape
        self.item = torch.arange(items, device=x.device)

        # Problems looked at: spread over the norms found, largest first.
        problems = found.radius.shape[1]
        moved = (found.radius > 0).sum(1, keepdim=True)
        spread = torch.linspace(0, 1, min(_LOOKED, problems), dtype=x.dtype, device=x.device)
        rank = ((moved - 1).clamp(min=0) * spread).round().long()
        self.looked = found.radius.argsort(dim=1, descending=True, stable=True).gather(1, rank)  # (P, M)
        self.radius = found.radius.gather(1, self.looked)
        chosen = found.adversarial.flatten(2)[self.item[:, None], self.looked]
        self.points = torch.cat([self.x[:, None], chosen], 1)  # (P, 1 + M, n), the first is d = 0

        # A point far from x, and a length of d that matters: the largest found, or that of the far point.
        width = [high - low if high - low < torch.inf else 1.0 for low, high in intervals(box)]
        away = torch.full_like(self.x[:, 0], _FAR * math.hypot(*width) * (n / len(width)) ** 0.5)
        self.far = self._step(self.x, self.random[0], away, "l2") if x_t is None else x_t.flatten(1)
        length = found.radius.amax(1) * (n**0.5 if norm == "linf" else 1)
        self.length = torch.where(length > 0, length, _length(self.far - self.x))
        # Between the two, off the edges of the box, the gradient is compared with differences.
        middle = (self.x + self.far) / 2
        inner = [(low + _MARGIN * w, high - _MARGIN * w) for (low, high), w in zip(intervals(box), width, strict=True)]
        self.inner = flat_bounds(tuple(inner), self.shape, x)
        self.middle = middle.clamp(*self.inner)
        free = [low == -torch.inf and high == torch.inf for low, high in intervals(box)]
        most = [torch.inf if none else _MARGIN * w for none, w in zip(free, width, strict=True)]
        self.margin = flat_bounds(tuple((-edge, edge) for edge in most), self.shape, x)[1]  # (1, n)

        self.once, self.again = (self._on_grid(self._looked_at, 1 + spread.numel()) for _ in range(2))  # (P, 1 + M)
        # A little off d = 0, because an untargeted data term has no gradient at it; and where random elements moved.
        # Where elements may have scales of their own, the target tells them.
        near = self.random[-1] if box or x_t is None else self.far - self.x
        ways = ((near, _OFF_ZERO), (self.random[-1], 1))
        off = [self._step(self.x, way, share * self.length, "l2") for way, share in ways]
        slopes = self._gradient(torch.cat([self.points, torch.stack([*off, self.middle], 1)], 1))  # (P, 1 + M + 3, n)
        finite = slopes.isfinite()
        if not box:  # without a box a random point may lie where no input does
            finite[:, -2] = True
        self.finite = finite.flatten(1)
        self.slopes = slopes.nan_to_num(0, 0, 0)
        self.value, self.size = self._unsearched()  # (P, T)
        self.zero = self.once[:, 0]
        at_far = self._on_grid(lambda item, _: self.far[item], 1)
        seen = torch.cat([found.data_term, self.once, self.value, at_far], 1)
        self.lowest = torch.where(seen.isfinite(), seen, torch.inf).amin(1)
        self.span = self.zero - self.lowest
        self.rounding = rounding(torch.stack([self.zero, self.lowest]), 0)

    def share(self, amount: Tensor) -> Tensor:
        """``amount`` (P,) as a share of the span; what rounding can explain counts as none."""
        return torch.where(amount <= self.rounding, 0.0, amount / self.span)

    def not_finite(self) -> Tensor:
        """Share of the values and gradient elements that are NaN or infinite."""
        finite = torch.cat([self.found.data_term.isfinite(), self.once.isfinite(), self.finite], 1)
        return (~finite).to(self.x.dtype).mean(1)

    def zero_gradient(self) -> Tensor:
        """What moving the elements without a gradient to the far point, or as far away from it, changes.

        Or how high points lie that have no gradient at all.

        An element has one if it has at any of the points: units that are off at one input are on at another. It is
        small where it is beside the largest, and where its product with the way to the far point is: in kilometres a
        slope is a thousand times that in metres. A background that is off at all of them, and that the way to the far
        point leaves as it is, hides nothing.
        """
        slope, way = self.slopes.abs(), (self.far - self.x).abs()[:, None]
        small = [each <= _FLAT * each.amax(2, keepdim=True) for each in (slope, slope * way)]
        unseen = (small[0] & (small[1] | (way == 0))).all(1)
        beyond = (2 * self.x - self.far).clamp(self.low, self.high)
        moved = torch.stack([torch.where(unseen, end, self.x) for end in (self.far, beyond)], 1)
        change = (self._on_grid(lambda item, which: moved[item, which], 2) - self.zero[:, None]).abs().amax(1)
        # None at all: to first order the whole length of d changes the value by less than it can resolve.
        foreseen = _length(self.slopes) * self.length[:, None]
        value = torch.cat([self.once, self.zero[:, None]], 1)
        flat = foreseen[:, : value.shape[1]] <= torch.finfo(value.dtype).eps * value.abs()
        stuck = torch.where(flat[:, :-1], self.once - self.lowest[:, None], 0.0)
        stuck[:, 0] *= flat[:, -1]  # a little off d = 0 as well
        constant = (self.span <= self.rounding) & (change <= self.rounding)
        return torch.where(constant, torch.nan, self.share(torch.maximum(change, stuck.amax(1))))

    def wrong_gradient(self) -> Tensor:
        """Products of the gradient, with itself and with random directions, against central differences.

        Without a box the elements may have units of their own, whose scales no length of d tells: then shorter and
        shorter steps are tried, as long as their differences are clear of rounding. Whole numbers may lie on a kink of
        the encoder exactly, where no gradient agrees with differences both ways: then a point beside it tells, if what
        disagreed can be told there.
        """
        error = self._error(self.middle, self.slopes[:, -1])
        if bool((error > _AGREES).any()):
            way = self.far - self.x
            aside = torch.where(way == 0, self.length[:, None] * way.shape[1] ** -0.5, way) * _ASIDE
            beside = (self.middle + torch.where(self.random[0] < 0, -aside, aside)).clamp(*self.inner)
            there = self._error(beside, self._gradient(beside[:, None])[:, 0].nan_to_num(0, 0, 0))
            tells = ~(there.isnan() & ~error.isnan()).any(0)
            error = torch.where(tells & (_larger(there) < _larger(error)), there, error)
        return _larger(error)

    def _error(self, points: Tensor, slope: Tensor) -> Tensor:
        """The errors (2, P) of the gradients ``slope`` at ``points``, (P, n) each; NaN where no difference is clear."""
        error = self._difference(_STEPS, points, slope)
        if bool((self.high - self.low).isinf().any()) and bool((error > _AGREES).any()):
            error = torch.fmin(error, self._difference(_STEPS + _SHORT, points, slope))
        return error

    def _difference(self, steps: Sequence[float], points: Tensor, slope: Tensor) -> Tensor:
        """The errors (2, P) of the two groups of directions, each of its best step; NaN where none is clear."""
        along = torch.cat([slope[None], self.random[: _SLOPES - 1]])  # (S, P, n)
        along = along * _inverse(_length(along))[:, :, None]
        shares = torch.tensor(steps, dtype=along.dtype, device=along.device)
        step = torch.minimum(shares[:, None, None] * self.length, (self.margin / along.abs()).amin(2))  # (H, S, P)
        foreseen = (2 * step * (along * slope).sum(2)).permute(2, 0, 1)  # (P, H, S)
        ends = torch.tensor([1.0, -1.0], dtype=along.dtype, device=along.device)

        def beside(item: Tensor, size: Tensor, way: Tensor, end: Tensor) -> Tensor:
            return points[item] + (ends[end] * step[size, way, item])[:, None] * along[way, item]

        value = self._on_grid(beside, *step.shape[:2], 2)  # (P, H, S, 2)
        rise = value[..., 0] - value[..., 1]
        told = []
        for ways in (slice(0, 1), slice(1, None)):  # the gradient's own, which would drown the random ones, and those
            seen, said = rise[..., ways], foreseen[..., ways]
            scale = torch.maximum(_length(seen), _length(said))  # (P, H)
            clear = scale > _CLEAR * rounding(value.flatten(2), 2)
            error = _length(seen - said) / scale
            clear &= error.isfinite()  # what overflows at a long step may not at a short one
            error = torch.where(clear, error, torch.inf).amin(1)
            told.append(torch.where(clear.any(1), error, torch.nan))
        return torch.stack(told)

    def clamped(self, encode: Encode) -> Tensor:
        """Share of log-variances at the item's least or greatest, where that is the edge of a clamp.

        It is one where two units have exactly that value at one point, or where x and the far point both have it, and
        have no gradient there: sums with an offset tie by rounding. A log-variance that never changes counts where
        others do; where none ever changes, the model has them constant.
        """

        def run(part: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
            parts = _gaussians(encode(part.reshape(-1, *self.shape), item))
            none = part[:, :0]
            return (
                torch.cat([none, *(q.mean.flatten(1) for q in parts)], 1),
                torch.cat([none, *(q.log_stddev.flatten(1) for q in parts)], 1),
            )

        @torch.enable_grad()
        def still(part: Tensor, item: Tensor, chosen: Tensor) -> tuple[Tensor]:
            leaf = part.detach().requires_grad_(True)
            return (without_gradient(run(leaf, item)[1], chosen, leaf),)

        points = torch.stack([self.x, self.far, self.points[:, 1]], 1)  # (P, 3, n)
        rows, item = points.flatten(0, 1), self.item.repeat_interleave(points.shape[1])
        means, every = (each.reshape(*points.shape[:2], -1) for each in self.rows.map(torch.no_grad()(run), rows, item))
        idle = ((means == means[:1, :1]) & (every == every[:1, :1])).all(0).all(0)  # collapsed, not clamped
        # Units that share one scale tie by design: what is the same everywhere counts once.
        distinct: Tensor = torch.unique(every[:, :, ~idle].flatten(0, 1), dim=1)
        values = distinct.reshape(*points.shape[:2], -1)
        if not values.numel() or bool((values == values[:1, :1]).all()):
            return torch.zeros_like(self.zero)
        shares = []
        for edge in (values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)):
            at = values == edge
            if bool(_tied(at).any()):
                pinned = self.rows.map(still, rows, item, ((every == edge) & ~idle).flatten(0, 1))[0]
                at = at & pinned.reshape(*points.shape[:2], 1)
            shares.append(torch.where(_tied(at), at.to(values.dtype).mean((1, 2)), 0.0))
        return torch.maximum(*shares)

    def random_search(self) -> Tensor:
        """Share that each problem missed of the gain of the best point within its radius that costs no search."""
        radius = self.found.radius  # (P, K)
        within = self.size[:, None, :] <= (1 + _FLAT) * radius[:, :, None]
        value = torch.where(within & self.value[:, None, :].isfinite(), self.value[:, None, :], torch.inf).amin(2)
        gain, missed = self.zero[:, None] - value, self.found.data_term - value
        beaten = (missed > self.rounding[:, None]) & (gain > self.rounding[:, None])
        return torch.where(beaten, missed / gain, 0.0).amax(1)

    def above_zero(self, fresh: DrawTerm | None) -> Tensor:
        """Excess over d = 0 as handed out, as computed again, and on fresh draws beyond their standard error."""
        penalty = self.found.penalty_term.gather(1, self.looked)
        excess = [
            self.found.data_term + self.found.penalty_term - self.found.zero_data_term[:, None],
            self.once[:, 1:] + penalty - self.zero[:, None],
        ]
        if fresh is not None:
            draws = self._on_grid(self._looked_at, self.points.shape[1], term=fresh)  # (P, 1 + M, D)
            more = draws[:, 1:] - draws[:, :1] + penalty[:, :, None]
            count = more.shape[2]
            quantile = float(distributions.t.ppf(_LEVEL, count - 1))
            excess.append(more.mean(2) - quantile * more.std(2) / count**0.5)
        return self.share(torch.cat(excess, 1).amax(1))

    def change(self) -> Tensor:
        """Change of the values at d = 0 and at found points when they are computed again."""
        handed = torch.cat([self.found.zero_data_term[:, None], self.found.data_term.gather(1, self.looked)], 1)
        change = torch.maximum((self.once - self.again).abs(), (self.once - handed).abs())
        scale = torch.maximum(self.once.abs().amax(1), handed.abs().amax(1)).clamp(min=torch.finfo(change.dtype).tiny)
        return change.amax(1) / scale

    def _looked_at(self, item: Tensor, which: Tensor) -> Tensor:
        return self.points[item, which]

    def _unsearched(self) -> tuple[Tensor, Tensor]:
        """Data term and norm (P, T) of points that cost no search, at the radii of the problems looked at.

        They lie along the random directions both ways, the descent at d = 0, and towards the far point.
        """
        free = torch.stack([-self.slopes[:, 0], self.far - self.x])
        ways = torch.cat([self.random, -self.random, free])  # (W, P, n)

        def point(item: Tensor, way: Tensor, which: Tensor) -> Tensor:
            return self._step(self.x[item], ways[way, item], self.radius[item, which], self.norm)

        def norm(points: Tensor, item: Tensor) -> Tensor:
            d = points.flatten(1) - self.x[item]
            return d.abs().amax(1) if self.norm == "linf" else _length(d)

        sizes = (len(ways), self.looked.shape[1])
        return self._on_grid(point, *sizes).flatten(1), self._on_grid(point, *sizes, term=norm).flatten(1)

    def _step(self, x: Tensor, direction: Tensor, radius: Tensor, norm: str) -> Tensor:
        """x + d in the box, d as near ``radius`` (b,) along ``direction`` (b, n) as it allows, and no longer."""
        if norm == "linf":
            return (x + radius[:, None] * direction.sign()).clamp(self.low, self.high)
        point, scale = x, radius * _inverse(_length(direction))
        for _ in range(_LENGTHENINGS):  # what the box cuts off goes to the others; the norm rises and stays below
            point = (x + scale[:, None] * direction).clamp(self.low, self.high)
            scale = scale * radius * _inverse(_length(point - x))
        return point

    def _on_grid(self, point: Callable[..., Tensor], *sizes: int, term: DataTerm | None = None) -> Tensor:
        """``term`` of point(item, i, j, ...), (P, *sizes, ...); points are made as they are needed."""
        index = torch.cartesian_prod(self.item, *(torch.arange(size, device=self.item.device) for size in sizes))
        of = term or self.data_term

        @torch.no_grad()
        def run(part: Tensor) -> tuple[Tensor]:
            item, *which = part.unbind(1)
            return (of(point(item, *which).reshape(-1, *self.shape), item),)

        value = self.rows.map(run, index)[0]
        return value.reshape(len(self.item), *sizes, *value.shape[1:])

    def _gradient(self, points: Tensor) -> Tensor:
        """Gradient of the data term at ``points`` (P, G, n); 0 where the model is cut off from its input."""

        @torch.enable_grad()  # a notebook may stand under no_grad
        def run(part: Tensor, item: Tensor) -> tuple[Tensor]:
            leaf = part.detach().requires_grad_(True)
            value = self.data_term(leaf.reshape(-1, *self.shape), item)
            if not value.requires_grad:
                return (torch.zeros_like(part),)
            return (torch.autograd.grad(value.sum(), leaf, allow_unused=True, materialize_grads=True)[0],)

        every = self.item.repeat_interleave(points.shape[1])
        return self.rows.map(run, points.flatten(0, 1), every)[0].reshape(points.shape)


def _gaussians(q: Posterior) -> list[DiagonalGaussian]:
    """The Gaussian latents of a posterior: its own, those of each layer of a chain run without noise, or none."""
    layers: tuple[Posterior, ...] = (q,)
    if isinstance(q, Chain):
        layers = q.conditionals(torch.zeros((1, len(q.mean), *q.noise_shape), dtype=q.mean.dtype, device=q.mean.device))
    return [part for layer in layers if (part := gaussian_part(layer))]


def _tied(at: Tensor) -> Tensor:
    """Whether units of an item, (P, 3, units), are at one value together, or at x and at the far point."""
    return (at.sum(2) > 1).any(1) | (at[:, 0].any(1) & at[:, 1].any(1))


def _length(d: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(d, dim=-1)
    return length


def _larger(errors: Tensor) -> Tensor:
    """The larger (P,) of errors (2, P), of which NaN tells nothing."""
    return errors.nan_to_num(0).amax(0)


def _inverse(length: Tensor) -> Tensor:
    """1 / length, 0 for a length of 0."""
    return torch.where(length > 0, 1 / length, 0.0)


def rounding(values: Tensor, dim: int) -> Tensor:
    """A difference of values that rounding alone may explain."""
    return _ROUNDING * torch.finfo(values.dtype).eps * values.abs().amax(dim)
