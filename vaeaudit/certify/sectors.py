"""The sector certificate: a margin from ellipsoids, whose multipliers and radius are found together.

Where linear propagation adds the errors of all bent neurons in absolute value, though no input reaches them together,
ellipsoids (:mod:`.ellipsoids`) maximise them jointly. What they show rests on the same event p_low <= p0 as linear
propagation, so that the better of both is a certificate.

Of a wide network radii and multipliers are looked for in float32, in which nothing is shown; the radius found is then
verified from scratch, in float64 and with the rounding of :mod:`.ellipsoids`, by the multipliers found, which may be
any. Nothing of float32 but these and the weights of pairs (:mod:`.room`), of which the signs alone count, enters a
claim.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vaeaudit.certify.activations import ROUNDING
from vaeaudit.certify.climb import Climb
from vaeaudit.certify.ellipsoids import Ellipsoid, TooFarError
from vaeaudit.certify.graph import Graph, require_rows
from vaeaudit.certify.item import Item, Multipliers
from vaeaudit.certify.matrices import NotShownError
from vaeaudit.certify.maximum import without_maxima
from vaeaudit.certify.room import Box, Room
from vaeaudit.certify.stages import stages
from vaeaudit.certify.theorem import Sigma, excess

# Of the first-order estimate where searches begin, those of small networks where they began nearer in vain.
_START, _NEARER = 0.05, 0.3
_BOXED = 1.05  # of the radius without a box, where there is one
_EVALUATIONS = 14  # balls at most; three times as many of a network of no more neurons than are _CHEAP
_CHEAP = 2000  # of more, radii are looked for in float32
_NEAR = 15.0  # how sharply the largest eigenvalue stands out among those that are lowered
_LOST = 3.0  # excess of a ball beyond which one that was verified is gone back to
# By what the steps of multipliers are shortened after a ball missed, or led astray, and lengthened after one that held.
_SLOWER, _ASTRAY, _FASTER = 0.8, 0.5, 1.2


class Sectors:
    """The certificate of one encoder, traced by :func:`.graph.trace_encoder`.

    Raises :class:`UnsupportedError` for an operation without a sector, on something else than rows of items, or for a
    network too wide. ``like`` (1, *input_shape) is any one input.
    """

    def __init__(self, graph: Graph, like: Tensor) -> None:
        require_rows(graph)
        self.graph = without_maxima(graph)
        self.stages = stages(self.graph, like)

    def margin(
        self, x: Tensor, p_low: Tensor, m: float, sigma: Sigma, go_on: Callable[[], bool] = lambda: True
    ) -> Tensor:
        """Lower bounds of R of ``x`` (items, *input_shape) in units of the input, (items,) float64; 0 for none.

        All else as in :func:`.local.local_margin`; ``go_on`` is asked between balls.
        """
        return self.margins(x, p_low, m, sigma, None, go_on)[0]

    def margins(
        self,
        x: Tensor,
        p_low: Tensor,
        m: float,
        sigma: Sigma,
        box: Box | None,
        go_on: Callable[[], bool] = lambda: True,
    ) -> tuple[Tensor, Tensor]:
        """:meth:`margin`, and as much for distortions that keep x + d within ``box``: never less."""
        found = [
            _Search(self, row, p, m, sigma).run(box, go_on) if float(p) > m else (0.0, 0.0)
            for row, p in zip(torch.split(x.double(), 1), p_low.double().cpu(), strict=True)
        ]
        free, boxed = torch.tensor(found, dtype=torch.float64, device=x.device).view(-1, 2).T
        return free, boxed


class _Search:
    """The largest radius of one item at which the risk level was verified to be kept."""

    def __init__(self, of: Sectors, x: Tensor, p_low: Tensor, m: float, sigma: Sigma) -> None:
        self.x, self.p_low, self.m, self.full = x, p_low, m, sigma == "full"
        mean, log_stddev = of.stages.outputs
        self.latents = len(mean)

        def outputs(values: Sequence[Tensor]) -> Tensor:
            whitened = mean / values[1].exp().T
            return torch.cat([whitened, log_stddev]) if self.full else whitened

        self.item = Item(of.graph, of.stages, x, outputs)
        self.wide = sum(bend.at.numel() for bend in self.item.bends) > _CHEAP
        self.found: list[tuple[float, Multipliers]] = []  # radii at which the level seemed to be kept, and by which

    def run(self, box: Box | None, go_on: Callable[[], bool]) -> tuple[float, float]:
        """The radius, 0 where none was verified; and that of distortions within the box, where there is one."""
        level = self.p_low.new_tensor(self.m)
        gap = float(torch.special.ndtri(self.p_low) - torch.special.ndtri(level))
        if not bool(self.item.first_order.isfinite().all()):
            return 0.0, 0.0
        steepest = float(torch.linalg.matrix_norm(self.item.first_order[: self.latents], 2))
        estimate = gap / steepest if steepest > 0 else math.inf
        if not (0 < estimate < math.inf):
            return 0.0, 0.0
        free = self._reach(0.0, estimate, go_on)
        if box is None or not go_on():
            return free, free
        self.item.enter(Room.of(self.x, box))
        return free, self._reach(free, estimate, go_on)

    def _reach(self, best: float, estimate: float, go_on: Callable[[], bool]) -> float:
        """The largest radius verified, at least ``best``, which is 0 or has been verified."""
        self._retreat()
        if self.wide:
            self.item.dtype = torch.float32
            self._grow(best, _BOXED * best or _START * estimate, estimate, go_on)
            self.item.dtype = torch.float64
            while self.found and self.found[-1][0] > best:
                if self._holds(*self.found[-1]):
                    return self.found[-1][0]
                self.found.pop()
                if not go_on():
                    self.found.clear()
                    return best
            if self.found:
                return best
        for start in (_START,) if self.wide else (_NEARER, _START):
            if not best:
                self.item.forget()
            best = self._grow(best, _BOXED * best or start * estimate, estimate, go_on)
            if best:
                break
        return best

    def _holds(self, radius: float, multipliers: Multipliers) -> bool:
        """Whether the level is verified to be kept within a radius, by these multipliers."""
        self.item.multipliers = multipliers
        try:
            return bool(self._measured(Ellipsoid(self.item, radius))[2])
        except NotShownError:
            return False

    def _grow(self, best: float, first: float, estimate: float, go_on: Callable[[], bool]) -> float:
        """The largest radius found to keep the level, at least ``best``."""
        climb = Climb(best, first, estimate, self.wide)
        for _ in range(_EVALUATIONS if self.wide else 3 * _EVALUATIONS):
            if climb.over or not go_on():
                break
            try:
                excess_, holds, gain = self._look(climb.tried, _LOST if climb.best else math.inf)
            except NotShownError as error:
                self._retreat()
                climb.not_shown(isinstance(error, TooFarError))
                continue
            if holds and climb.tried > climb.best:
                self.found.append((climb.tried, self.item.shown))
            climb.shown(excess_, holds, gain)
            self._set_pace(climb, holds)
        if climb.settled and self.item.dtype == torch.float32:
            self.found.append((climb.tried, self.item.multipliers))  # where it would have gone, and a little less
        return climb.best

    def _set_pace(self, climb: Climb, holds: bool) -> None:
        """How fast multipliers move from here."""
        if climb.missed:
            self.item.pace *= _SLOWER
        if climb.astray:  # by steps too long
            self._retreat()
            self.item.pace *= _ASTRAY
        elif holds:
            self.item.pace = min(1.0, _FASTER * self.item.pace)

    def _retreat(self) -> None:
        """Takes multipliers back to those of the best radius, or where none holds yet, that last bounded something."""
        if self.found:
            self.item.shown = self.found[-1][1]
        self.item.retreat()

    def _look(self, rho: float, lost: float = math.inf) -> tuple[float, bool, float]:
        """The excess of the ball of radius ``rho`` and whether the level is kept there; improves the multipliers.

        Raises :class:`TooFarError` where it is above ``lost``, too: multipliers are not led there.
        """
        ellipsoid = Ellipsoid(self.item, rho)
        with torch.enable_grad():
            block, found, holds = self._measured(ellipsoid)
            (gradient,) = torch.autograd.grad(found, block)
        if float(found.detach()) > lost:
            raise TooFarError
        gain = ellipsoid.improve(gradient.nan_to_num())
        return float(found.detach()), bool(holds), gain

    def _measured(self, ellipsoid: Ellipsoid) -> tuple[Tensor, Tensor, Tensor]:
        """The block of the outputs, the excess of the ball differentiated by it, and whether that holds."""
        rho, block = ellipsoid.rho, ellipsoid.block.requires_grad_()
        values = torch.linalg.eigvalsh(block[: self.latents, : self.latents])
        # Differentiated as all near the largest, since what lowers one alone raises the next.
        near = values @ torch.softmax(_NEAR * values.detach() / values[-1].detach().clamp(min=1e-300), 0)
        omega = rho * (1 + ROUNDING) * (values[-1].detach() + (near - near.detach())).sqrt()
        moves = rho * (1 + ROUNDING) * block.diagonal()[self.latents :].sqrt() if self.full else None
        return block, *excess(self.p_low, self.m, omega, moves)
