"""A certified margin from bounds that hold around each input, where global constants certify next to nothing.

How far the posterior can move within ||d|| <= rho comes from linear bound propagation (:mod:`.propagation`); THEOREM
(i) and (ii) turn that into a probability kept, and the margin is the largest radius at which more than the risk level
was verified to be kept. Inside the region where the encoder is linear its Jacobian is exact.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeaudit.certify.activations import ROUNDING
from vaeaudit.certify.graph import Graph, require_rows
from vaeaudit.certify.maximum import without_maxima
from vaeaudit.certify.norms import spectral_norm
from vaeaudit.certify.propagation import Ball, Interval, first_norms, norm, propagate
from vaeaudit.certify.theorem import Sigma, excess, kept, scale_loss

_START = 0.03  # of the first-order estimate: where the search begins; larger radii cost more to bound
_EVALUATIONS = 24
_TOLERANCE = 0.02  # of the radius


@dataclass(frozen=True, eq=False)
class LocalMargin:
    """Lower bounds of the margin R in units of the input, (items,) each, float64.

    ``propagated`` is the largest radius verified by linear bound propagation. ``linear`` is the linear region's
    certificate: the lesser of ``region``, the radius within which every piecewise linear activation stays on its piece
    (0 where there is a smooth one), and of the radius that the Jacobian allows.
    """

    propagated: Tensor
    linear: Tensor
    region: Tensor

    @property
    def radius(self) -> Tensor:
        """The best of both: they rest on the same event p_low <= p0, which is paid for once."""
        return torch.maximum(self.propagated, self.linear)

    @property
    def won(self) -> list[str]:
        """Which certificate gave the radius of each item: "linear region", "propagation", or "none" where it is 0."""
        return [
            "none" if best == 0 else "linear region" if linear == best else "propagation"
            for best, linear in zip(self.radius.tolist(), self.linear.tolist(), strict=True)
        ]


@torch.enable_grad()
def local_margin(
    graph: Graph,
    x: Tensor,
    p_low: Tensor,
    m: float = 0.5,
    sigma: Sigma = "frozen",
    items_at_once: int = 4,
    norms: dict[str, Tensor] | None = None,
    go_on: Callable[[], bool] = lambda: True,
    verified: Tensor | None = None,
) -> LocalMargin:
    """The certified margins of ``x`` (items, *input_shape) for an encoder traced by :func:`trace_encoder`.

    ``p_low`` (items,) are lower bounds of p0 = P(||Delta(x, 0)|| <= r); where p_low <= ``m`` the margin is 0. ``sigma``
    says whether the noise keeps its scale ("frozen") or moves with the input ("full"). ``items_at_once`` bounds the
    memory; results depend on it by rounding only. ``norms`` are the graph's :func:`first_norms`, if they are known.
    ``go_on`` is asked between balls; on False the radii verified until then are returned. ``verified`` (items,) are
    radii that another certificate has: it is only asked whether propagation verifies more, and 0 where it does not.

    Raises :class:`UnsupportedError` for an operation without linear bounds, or on something else than rows of items,
    and :class:`InputError` for p_low >= 1.
    """
    require_rows(graph)
    x, p_low = x.double(), p_low.to(device=x.device, dtype=torch.float64)
    graph = without_maxima(graph)
    norms = first_norms(graph, x[:1]) if norms is None else norms
    verified = torch.zeros_like(p_low) if verified is None else verified.to(p_low)
    parts = [
        _Search(graph, rows, p, m, sigma, norms, before).run(go_on)
        for rows, p, before in zip(*(torch.split(each, items_at_once) for each in (x, p_low, verified)), strict=True)
    ]
    return LocalMargin(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("propagated", "linear", "region"))
    )


def displacement(ball: Ball, sigma: Sigma = "full") -> tuple[Tensor, Tensor]:
    """How far the posterior can move within the ball of an encoder: omega and the moves of log sigma.

    omega (b,) bounds ||D0^-1 (mu(x0 + d) - mu(x0))||_2, and the second, (b, latents), bounds each
    |log sigma(x0 + d) - log sigma(x0)|; it is 0 where ``sigma`` is "frozen". omega is the least of two bounds: the norm
    of the bounds along each axis, and that of the functions midway between the lower and the upper ones plus half of
    what lies between them.
    """
    mean, log_stddev = ball.outputs
    stddev = log_stddev.detach().exp()
    axes = torch.diag_embed(torch.ones_like(stddev)).transpose(0, 1)  # (latents, b, latents)
    lower, minus_upper = ball.bounds(mean, axes / stddev), ball.bounds(mean, -axes / stddev)
    farthest = -torch.minimum(lower.least(ball.rho), minus_upper.least(ball.rho))
    apart = -lower.slope - minus_upper.slope
    middle = (lower.slope - minus_upper.slope) / 2
    offset = (lower.offset - minus_upper.offset) / 2
    half = (ball.rho * norm(apart) - minus_upper.offset - lower.offset) / 2
    midway = ball.rho * spectral_norm(middle.transpose(0, 1)) + norm(offset.T) + norm(half.T)
    omega = torch.minimum(norm(farthest.T), midway)
    if sigma == "frozen":
        return omega * (1 + ROUNDING), torch.zeros_like(stddev)
    moves = -torch.minimum(
        ball.bounds(log_stddev, axes).least(ball.rho), ball.bounds(log_stddev, -axes).least(ball.rho)
    )
    return omega * (1 + ROUNDING), moves.T.clamp(min=0) * (1 + ROUNDING)


class _Search:
    """The largest radius of each of b items at which the risk level is verified to be kept."""

    def __init__(
        self,
        graph: Graph,
        x: Tensor,
        p_low: Tensor,
        m: float,
        sigma: Sigma,
        norms: dict[str, Tensor],
        verified: Tensor,
    ) -> None:
        self.graph, self.x, self.p_low, self.m, self.sigma, self.norms = graph, x, p_low, m, sigma, norms
        self.holding = kept(p_low, torch.zeros_like(p_low)) > m
        self.gap = torch.special.ndtri(p_low) - torch.special.ndtri(torch.full_like(p_low, m))
        # The largest radius verified and the least that was not, and the excess of each.
        self.verified, self.low, self.high = verified, verified.clone(), torch.full_like(p_low, math.inf)
        self.low_excess, self.high_excess = torch.zeros_like(p_low), torch.zeros_like(p_low)
        self.known: dict[str, Interval] = {}  # of the balls of radius high

    def run(self, go_on: Callable[[], bool]) -> LocalMargin:
        jacobian, log_rows = self._first_order()
        estimate = self.gap / jacobian
        tried = torch.where(estimate.isfinite(), _START * estimate, 1.0)
        tried = torch.where(self.low > 0, self.low * (1 + _TOLERANCE), tried)
        for _ in range(_EVALUATIONS):
            open_ = (self.holding & (self.high > self.low * (1 + _TOLERANCE))).nonzero()[:, 0]
            if not len(open_):
                break
            if not go_on():
                return LocalMargin(self._propagated(), torch.zeros_like(self.low), torch.zeros_like(self.low))
            self._evaluate(open_, tried[open_])
            tried = self._next()
        limit = torch.where(self.high.isfinite(), self.high, torch.maximum(self.low, tried))
        region = propagate(self.graph, self.x, limit, self.norms, self.known, linear=True).rho
        return LocalMargin(self._propagated(), self._within(region, jacobian, log_rows), region)

    def _propagated(self) -> Tensor:
        return torch.where(self.low > self.verified, self.low, 0.0)

    def _within(self, region: Tensor, jacobian: Tensor, log_rows: Tensor) -> Tensor:
        """The largest radius within the linear region at which the level is kept, by bisection."""
        low, high, tried = torch.zeros_like(region), region, region
        for _ in range(60):
            probability = kept(self.p_low, jacobian * tried)
            if self.sigma == "full":
                probability = probability - scale_loss(log_rows * tried.unsqueeze(1))
            holds = self.holding & (probability > self.m)
            low, high = torch.where(holds, tried, low), torch.where(holds, high, tried)
            tried = (low + high) / 2
        return low

    def _evaluate(self, rows: Tensor, rho: Tensor) -> None:
        known = {name: (below[rows], above[rows]) for name, (below, above) in self.known.items()}
        ball = propagate(self.graph, self.x[rows], rho, self.norms, known)
        excess, holds = self._excess(ball, rows)
        passed, failed = rows[holds], rows[~holds]
        self.low[passed], self.low_excess[passed] = rho[holds], excess[holds]
        self.high[failed], self.high_excess[failed] = rho[~holds], excess[~holds]
        for name, found in ball.intervals.items():
            if name not in self.known:
                shape = (len(self.x), *found[0].shape[1:])
                self.known[name] = (found[0].new_full(shape, math.inf), found[0].new_full(shape, math.inf))
            for kept_, new in zip(self.known[name], found, strict=True):
                kept_[failed] = new[~holds]

    def _excess(self, ball: Ball, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The log of the shift that the loss amounts to over the shift allowed, and where the level is verified."""
        omega, moves = displacement(ball, self.sigma)
        found, holds = excess(self.p_low[rows], self.m, omega, moves if self.sigma == "full" else None)
        return found.clamp(-20, 6), holds

    def _next(self) -> Tensor:
        """Radii at which to look next: where the excess would be 0 if it were linear in log rho."""
        upward = self.low * torch.exp(-0.7 * self.low_excess).clamp(1.05, 2)
        downward = self.high * torch.exp(-self.high_excess / 3).clamp(0.5, 0.95)
        a, b = self.low.clamp(min=1e-300).log(), self.high.log()
        share = self.low_excess / (self.low_excess - self.high_excess)
        root = a + (b - a) * share.nan_to_num(0.5).clamp(0, 1)
        # The excess is not quite linear: far from the root, halfway to the middle is safer.
        root = torch.where(b - a > 0.2, (root + (a + b) / 2) / 2, root)
        # A little beyond the root on the side of the farther end, so that both ends close in.
        root = root + torch.where(b - root > root - a, _TOLERANCE / 3, -_TOLERANCE / 3)
        inner = torch.clamp(root, a + 0.05 * (b - a), b - 0.05 * (b - a)).exp()
        return torch.where(self.high.isinf(), upward, torch.where(self.low == 0, downward, inner))

    def _first_order(self) -> tuple[Tensor, Tensor]:
        """||D0^-1 J||_2 of the mean, (b,), and the norms of the gradients of log sigma, (b, latents); 0 if frozen."""
        x = self.x.clone().requires_grad_()
        outputs = self.graph.module(x)
        axes = torch.diag_embed(torch.ones_like(outputs[1])).detach().transpose(0, 1)
        mean, log_stddev = (
            torch.autograd.grad(
                output, x, axes, is_grads_batched=True, retain_graph=True, allow_unused=True, materialize_grads=True
            )[0]
            .flatten(2)
            .transpose(0, 1)
            if output.requires_grad and (bounded or self.sigma == "full")
            else torch.zeros(*output.shape, self.x[0].numel(), dtype=output.dtype, device=output.device)
            for output, bounded in zip(outputs, (True, False), strict=True)
        )
        return spectral_norm(mean / outputs[1].detach().exp().unsqueeze(-1)), norm(log_stddev)
