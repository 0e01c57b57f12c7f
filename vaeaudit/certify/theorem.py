"""From how far the posterior can move to how likely the reconstruction stays: THEOREM (i), (ii), (ii') and (iii).

Whatever the decoder is, moving the mean of N(mu, D^2) by omega in units of D, and its scale by log ratios v, keeps
probability Phi(Phi^-1(p0) - omega) - tau(v) of any set that had p0 (Neyman & Pearson for the shift, the Bhattacharyya
coefficient for the scale). All is in float64, and every result is moved a few units of rounding to the safe side.
"""

import math
from typing import Literal

import torch
from scipy import stats
from torch import Tensor

from vaeaudit.errors import InputError

Sigma = Literal["frozen", "full"]  # whether the noise keeps its scale or moves with the input
# Far above the rounding of the few operations here, far below anything that matters in a margin.
_ROUNDING = 1e-13
_BISECTIONS = 100


def kept(p0: Tensor, omega: Tensor) -> Tensor:
    """Phi(Phi^-1(p0) - omega) of theorem (i): the least probability of a set of probability ``p0`` after the shift.

    ``p0`` in [0, 1) and ``omega`` >= 0 in standard deviations broadcast; float64. Raises :class:`InputError` for
    p0 = 1, which no sample shows: use its Clopper-Pearson lower bound.
    """
    start, omega = _probit(p0), omega.double()
    slack = _ROUNDING * (1 + start.abs().nan_to_num(posinf=0) + omega)
    # Not torch's ndtr, which has no digits in the lower tail.
    tail: Tensor = torch.special.erfc((omega + slack - start) / math.sqrt(2)) / 2
    return tail * (1 - _ROUNDING)


def scale_loss(log_ratio: Tensor) -> Tensor:
    """tau: how much probability a change of scales costs at most, (...,) in [0, 1], float64.

    ``log_ratio`` (..., k) has |log sigma_d - log sigma_0| of each latent, or upper bounds of it. The lesser of
    sqrt(1 - exp(-||v||^2 / 2)) (ii) and 1 - prod(1 - TV_1(v_i)) (ii'), TV_1 the exact total variation distance
    of N(0, 1) and N(0, e^2v).
    """
    v = log_ratio.double().abs()
    apart = -torch.expm1(torch.log1p(-_total_variation(v)).sum(-1))
    return torch.minimum(scale_loss_of_norm(torch.linalg.vector_norm(v, dim=-1)), apart * (1 + _ROUNDING))


def scale_loss_of_norm(norm: Tensor) -> Tensor:
    """tau = sqrt(1 - exp(-||v||^2 / 2)) of theorem (ii), for the norm of all latents' log ratios; float64."""
    return ((1 + _ROUNDING) * torch.sqrt(-torch.expm1(-norm.double().square() / 2))).clamp(max=1)


def excess(p_low: Tensor, m: float, omega: Tensor, log_ratio: Tensor | None) -> tuple[Tensor, Tensor]:
    """How much of what may be lost is lost, and whether more than ``m`` is verified to be kept, (items,) each.

    The first is the log of the shift that the loss amounts to over the shift allowed, Phi^-1(p_low) - Phi^-1(m).
    ``omega`` (items,) is the shift; ``log_ratio`` (items, latents) bounds how log sigma moves, None where it does not.
    """
    start, level = torch.special.ndtri(p_low), torch.special.ndtri(torch.full_like(p_low, m))
    probability, least = kept(p_low, omega), omega
    if log_ratio is not None:
        probability = probability - scale_loss(log_ratio)
        least = omega + torch.linalg.vector_norm(
            log_ratio, dim=-1
        )  # where no probability is left, to tell far from near
    shift = torch.maximum(start - torch.special.ndtri(probability.clamp(min=1e-12)), least)
    return (shift / (start - level)).log(), probability > m


def global_margin(p_low: Tensor, m: float, lipschitz: Tensor, log_lipschitz: Tensor | None = None) -> Tensor:
    """A lower bound of R, (items,) in units of the input, float64; 0 where ``p_low`` <= ``m``.

    ``p_low`` (items,) are lower bounds of p0, ``lipschitz`` those of D0^-1 mu, (items,). With sigma frozen R is at
    least [Phi^-1(p_low) - Phi^-1(m)] / L_w (i). Where sigma moves, ``log_lipschitz`` is the constant of log sigma
    (one for all, or (items,)), and R is the largest radius that bisection could verify in (ii). Infinite only where
    the constants are 0.

    Raises :class:`InputError` for p_low = 1.
    """
    p_low, lipschitz = p_low.double(), lipschitz.double()
    start, level = _probit(p_low), _probit(p_low.new_tensor(m))
    gap = start - level - _ROUNDING * (1 + start.abs() + level.abs())
    held = (p_low > m) & (gap > 0)
    frozen = torch.where(held, gap / lipschitz * (1 - _ROUNDING), 0.0)
    if log_lipschitz is None:
        return frozen.nan_to_num(nan=0.0, posinf=math.inf)
    spread = log_lipschitz.double().expand_as(frozen)
    # Where the scale alone costs all that there is to lose.
    spent = torch.sqrt(-2 * torch.log1p(-(p_low - m).clamp(min=0).square())) / spread
    free = held & (lipschitz == 0) & (spread == 0)
    low, high = torch.zeros_like(frozen), torch.fmin(frozen, spent).nan_to_num(nan=0.0, posinf=0.0)
    tried = high
    for _ in range(_BISECTIONS):
        holds = held & (kept(p_low, lipschitz * tried) - scale_loss_of_norm(spread * tried) > m * (1 + _ROUNDING))
        low, high = torch.where(holds, tried, low), torch.where(holds, high, tried)
        tried = (low + high) / 2
    return torch.where(free, math.inf, low * (1 - _ROUNDING))


def pathwise_margin(distances: Tensor, growth: Tensor, r: float | Tensor, m: float, alpha: float) -> Tensor:
    """A lower bound of R that holds with confidence 1 - ``alpha``, (items,), float64 (iii).

    ``distances`` T (draws, items) are ||g(z) - y0|| at the clean input on fresh draws, and T + rho W bounds them within
    rho, with W = Lip(g) (Lip(mu) + ||c * eta||) the ``growth``: (draws, items), or whatever broadcasts to it. So each
    draw stays within ``r`` up to (r - T) / W, and R is at least the (1 - m)-quantile of that, whose lower bound is
    the order statistic k, the largest with P(Bin(n, 1 - m) < k) <= alpha. 0 where it is negative, or n too small for
    any k. A draw without a finite distance is one that never stays.
    """
    T = distances.double()
    n = len(T)
    W = torch.as_tensor(growth, dtype=T.dtype, device=T.device)
    # Where W is 0 a draw stays for ever or never; where 0/0 leaves that open, or a distance is NaN, never.
    reach = ((r - T) / W).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    k = int(stats.binom.ppf(alpha, n, 1 - m)) if n else 0
    k += int(k < n and stats.binom.cdf(k, n, 1 - m) <= alpha)
    if k < 1:
        return torch.zeros_like(reach.sum(0))
    return (reach.sort(dim=0).values[k - 1] * (1 - _ROUNDING)).clamp(min=0)


def _probit(p: Tensor) -> Tensor:
    """Phi^-1. Raises :class:`InputError` unless p < 1."""
    if not bool((p < 1).all()):
        raise InputError(
            f"a certificate needs lower bounds of the probability, below 1, but {float(p.max())} was given: "
            "use the Clopper-Pearson lower bound"
        )
    probit: Tensor = torch.special.ndtri(p.double())
    return probit


def _total_variation(u: Tensor) -> Tensor:
    """TV(N(0, 1), N(0, e^2u)) for u >= 0: 2 [Phi(x) - Phi(x e^-u)] where the two densities cross, rounded up."""
    # TV is 1 in float64 long before u = 300, and both quotients below are 1 at the least u.
    u = torch.where(u.isnan(), u, u.clamp(1e-300, 300))
    x, y = torch.sqrt(2 * u / -torch.expm1(-2 * u)), torch.sqrt(2 * u / torch.expm1(2 * u))
    apart = torch.erf(x / math.sqrt(2)) - torch.erf(y / math.sqrt(2))
    # Near 0 the difference cancels: the midpoint rule, whose error is of the order u^4 of the value.
    middle = (x + y) / 2
    near = -torch.expm1(-u) * x * torch.exp(-middle.square() / 2) * math.sqrt(2 / math.pi)
    return (torch.where(u < 1e-3, near, apart) * (1 + 10 * _ROUNDING)).clamp(max=1)
