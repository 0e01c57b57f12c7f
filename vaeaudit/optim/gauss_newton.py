"""Gauss-Newton with an averaged Jacobian: half a sum of squares with a length, followed along a falling weight.

The networks behind the residuals have kinks everywhere. A model of them built at a point, of gradients or of the
Jacobian there, says nothing beyond the next kink, and a search that asks for a decrease at every step settles there.
Averaged over the points that were passed of late, the Jacobian tells what the residuals do at the scale of a step. So
a step minimises

    1/2 ||r + A (d' - d)||^2 + mu/2 ||d'||^2 + rho mu/2 ||d' - d||^2

in the box, where A is that average, mu the pull of the penalty and rho the damping (Levenberg 1944, Marquardt 1963),
and is taken though the objective may rise a little: only where it more than doubles does the point stay, what was seen
counted, with more damping. Towards the end the damping grows, steps shrink below the kinks, and the residuals vanish.
Where they cannot vanish in the box and the weight is tiny, the multipliers of a step need not settle: it is then some
step within reach, and no minimum of the model.

A whole Jacobian takes a pass back for each residual. After the first, A is corrected along a single direction u of the
residuals, a pass back, by (1 - kept) u (u^T J - u^T A): in turn along the multipliers, since d lies along A^T times
these, and along what the last step's model missed. With nothing kept that is an adjoint Broyden update (Schlenkrich,
Griewank and Walther 2010, "On the local convergence of adjoint Broyden methods"). Many such steps end lower than few
with whole Jacobians. A row whose first is not finite begins with none, and gathers it direction by direction.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vaeaudit.optim.gram import Gram

# Directions (b, s, k) in which residuals (b, k) of some rows (b,) are looked at.
Along = Callable[[Tensor, Tensor], Tensor]
# linearised(points, row, along) -> the residuals (b, k) of points (b, n), the directions that ``along`` gives for them,
# and these times the residuals' Jacobian, (b, s, n).
Linearised = Callable[[Tensor, Tensor, Along], tuple[Tensor, Tensor, Tensor]]

_KEPT = 0.7  # of the average, along the direction of a step
_WORSE = 2.0  # times the objective, beyond which a step is taken back
_GROWS, _SHRINKS = 2.0, 0.9  # the damping, after a step that was taken back or not
LEAST, _MOST = 0.3, 2.0**20  # damping
_STUCK = 30  # steps taken back one after another, after which a row is given up
_TRUST = 0.5  # longest step, as a share of ||d||
_SHORT = 0.05  # least ||d|| for that, as a share of the unit
_TURNS = 2  # Newton steps for the multipliers of one step, from those of the last
_FEW = 32  # another only where more than this part of the inputs came to a bound or left it by the one before
_TINY = 1e-4  # least ||d|| that the pull of `l2` is divided by, likewise


class GaussNewton:
    """Rows (B, n) that are moved together, each around an ``origin`` of its own, within bounds (1, n).

    ``unit`` (B,) is what lengths are measured by, and ``squared`` whether the penalty is ||d||^2 instead of ||d||. The
    first step is made from ``start`` (B, n).
    """

    def __init__(
        self,
        linearised: Linearised,
        origin: Tensor,
        start: Tensor,
        lower: Tensor,
        upper: Tensor,
        unit: Tensor,
        *,
        squared: bool,
    ) -> None:
        self._linearised, self._origin, self._squared = linearised, origin, squared
        self._short, self._tiny = _SHORT * unit, _TINY * unit  # (B,)
        self._row = torch.arange(len(start), device=start.device)
        self._bounds, self._lower, self._upper = (lower, upper), lower - origin, upper - origin
        self.points = start  # (B, n) where the residuals were evaluated last
        self.data = start.new_full((len(start),), torch.inf)  # (B,) half the sum of squares there
        self.norm = torch.linalg.vector_norm(start - origin, dim=1)  # (B,) its distance from the origin
        self._next = self._base = start - origin  # (B, n) what is evaluated next; from where steps are made
        self._base_data, self._length = self.data, self.norm  # of the base
        self._residuals = self._multipliers = start.new_zeros(0)
        self._gram = Gram(start.new_zeros(len(start), 0, start.shape[1]))  # holds the average
        self._stayed = torch.zeros_like(self._row)  # steps taken back one after another
        self._damping = torch.full_like(self.data, LEAST)
        self._along_multipliers = False  # in which direction the average is corrected

    @property
    def _average(self) -> Tensor:
        """The averaged Jacobian, (B, k, n)."""
        return self._gram.matrix

    @property
    def residuals(self) -> int:
        """How many there are, once the first were evaluated."""
        return self._average.shape[1]

    @property
    def moves(self) -> Tensor:
        """Which rows have seen a Jacobian that is not zero, (B,)."""
        return self._average.square().sum((1, 2)) > 0

    @property
    def alive(self) -> bool:
        """Whether any row may still move: not all of its last steps were taken back."""
        return bool((self.moves & (self._stayed < _STUCK)).any())

    def advance(self, weight: Tensor, least: float = LEAST) -> None:
        """Evaluate where the last step led to and make the next, for the penalty's ``weight`` (B,).

        ``least`` is the least damping.
        """
        d = self._next
        self.points = (self._origin + d).clamp(*self._bounds)
        begun = self._average.numel() > 0
        self._along_multipliers = not self._along_multipliers
        residuals, along, slopes = self._linearised(self.points, self._row, self._direction if begun else whole)
        self.data = 0.5 * residuals.square().sum(1)
        self.norm = torch.linalg.vector_norm(self.points - self._origin, dim=1)
        gone = ~((self.data + slopes.sum((1, 2))).abs() < torch.inf)  # not finite
        if begun:
            change = torch.baddbmm(slopes, along, self._average, beta=1 - _KEPT, alpha=_KEPT - 1)
            self._gram.correct(along, change.masked_fill_(gone[:, None, None], 0.0))
        else:
            self._gram = Gram(slopes.masked_fill(gone[:, None, None], 0.0))
            self._residuals = self._multipliers = torch.zeros_like(residuals)
        before = torch.addcmul(self._base_data, weight, self._penalty(self._length))
        now = torch.addcmul(self.data, weight, self._penalty(self.norm))
        stays = ~(now <= _WORSE * before) | gone
        self._base_data = torch.where(stays, self._base_data, self.data)
        self._length = torch.where(stays, self._length, self.norm)
        each = stays[:, None]
        self._base = torch.where(each, self._base, d)
        self._residuals = torch.where(each, self._residuals, residuals)
        self._stayed = (self._stayed + 1) * stays
        self._damping = torch.where(stays, self._damping * _GROWS, self._damping * _SHRINKS).clamp_(least, _MOST)
        self._next = self._step(weight)

    def _direction(self, residuals: Tensor, row: Tensor) -> Tensor:
        """Of the multipliers at every other step, else of what the model missed in the residuals (b, k), (b, 1, k)."""
        rows = slice(None) if len(row) == len(self._row) else row  # no copy of all
        multipliers = _unit(self._multipliers[rows])
        if self._along_multipliers:
            return multipliers[:, None]
        way = (self._next - self._base)[rows]
        missed = residuals - self._residuals[rows] - _along(way, self._average[rows].mT)
        return _unit(missed - (missed * multipliers).sum(1, keepdim=True) * multipliers)[:, None]

    def _penalty(self, norm: Tensor) -> Tensor:
        return norm.square() if self._squared else norm

    def _step(self, weight: Tensor) -> Tensor:
        """Where the model is least, no further from the base than is trusted, (B, n).

        With multipliers nu = (r + A (d' - d)) / -mu the model's minimum is the clamped (rho d + A^T nu) / (1 + rho),
        and nu solves k equations, piecewise linear in it (a semismooth Newton method).
        """
        base, average = self._base, self._average
        pull = (2 * weight if self._squared else weight / torch.maximum(self._length, self._tiny))[:, None]
        share = 1 / (1 + self._damping[:, None])
        held = torch.addcmul(base, share, base, value=-1)[:, None]

        def distortion(multipliers: Tensor) -> Tensor:
            return torch.baddbmm(held, (share * multipliers)[:, None], average).squeeze(1)

        free, side = distortion(self._multipliers), torch.full_like(base, torch.nan)  # unlike any, itself too
        for _ in range(_TURNS):
            d = free.clamp(self._lower, self._upper)
            last, side = side, (free - d).sign_()  # -1 and 1 beyond the bounds, 0 within
            turns = (side != last).sum(1) > side.shape[1] // _FEW
            if not turns.any():
                break
            left = _along(base - d, average.mT) - torch.addcmul(self._residuals, pull, self._multipliers)
            gram = self._gram.over(1 - side.abs()) * share[:, :, None]
            diagonal = gram.diagonal(dim1=1, dim2=2)
            # In float32 rounding alone would make it indefinite where residuals depend on each other.
            rounding = self.residuals * torch.finfo(base.dtype).eps
            diagonal.add_(torch.add(pull, diagonal.amax(1, keepdim=True), alpha=rounding))
            factor, failed = torch.linalg.cholesky_ex(gram)
            change = torch.cholesky_solve(left[:, :, None], factor).squeeze(2)
            usable = turns & (failed == 0) & (change.sum(1).abs() < torch.inf)
            self._multipliers = torch.where(usable[:, None], self._multipliers + change, self._multipliers)
            free = distortion(self._multipliers)
        way = free.clamp(self._lower, self._upper) - base
        most, length = _TRUST * torch.maximum(self._length, self._short), torch.linalg.vector_norm(way, dim=1)
        shorter = (most / length.clamp(min=torch.finfo(base.dtype).tiny)).clamp(max=1)
        step = torch.addcmul(base, shorter[:, None], way)
        return torch.where((length < torch.inf)[:, None], step, base)


def _along(vectors: Tensor, matrices: Tensor) -> Tensor:
    """Rows (b, k) times (b, k, n), (b, n): in this order ten times faster than with columns."""
    product: Tensor = torch.bmm(vectors[:, None], matrices).squeeze(1)
    return product


def whole(residuals: Tensor, _row: Tensor) -> Tensor:
    """Each residual of (b, k) by itself: in these directions the slopes are the whole Jacobian, (b, k, k)."""
    count = residuals.shape[1]
    return torch.eye(count, dtype=residuals.dtype, device=residuals.device).expand(len(residuals), count, count)


def _unit(vectors: Tensor) -> Tensor:
    """Rows of length 1, of zeros where one has no length or is not finite."""
    unit: Tensor = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return unit.nan_to_num_(0.0, 0.0, 0.0)
