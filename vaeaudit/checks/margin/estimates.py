"""First-order estimates of the r-robustness margin, for sigma frozen at x (Camuto et al. 2021, theorem 1).

They drop all higher-order terms of the encoder, so they are estimates and never certified: the true margin may be
smaller. With J = d mu / d x and the gap Phi^-1(p_low) - Phi^-1(m):

    Frobenius  min sigma gap / ||J||_F     (as printed)
    spectral   min sigma gap / ||J||_2
    whitened   gap / ||D^-1 J||_2          (D = diag sigma)

each at least the one above it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vaeaudit.checks.margin.radius import check_probability
from vaeaudit.errors import ContractError, UnsupportedError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.conditions import under
from vaeaudit.model.families import moved_part
from vaeaudit.model.vae import VAE, DiagonalGaussian
from vaeaudit.progress import GoOn, Progress, always
from vaeaudit.stats.draws import noise_set
from vaeaudit.subject.inputs import require_finite

Three = tuple[Tensor, Tensor, Tensor]

# Beyond either, the norms are estimated without forming J: a backward pass for each latent, or J itself, is too much.
_MOST_LATENTS, _MOST_ENTRIES = 512, 2**24
_ENTRIES_TOGETHER = 2**23  # of the Jacobians of several items, held at once
_PROBES = 32  # of the trace outside Lanczos's basis
_STEPS = 32  # of Lanczos's method


@dataclass(frozen=True, eq=False)
class Bars:
    """Lower and upper end for each of three figures, (2, items) each."""

    frobenius: Tensor
    spectral: Tensor
    whitened: Tensor


@dataclass(frozen=True, eq=False)
class JacobianNorms:
    """||J||_F, ||J||_2, ||D^-1 J||_2 and min sigma of each item, (items,) float64.

    ``bars`` holds intervals of ``level`` for each norm of each item; None where the norms are ``exact``.
    """

    frobenius: Tensor
    spectral: Tensor
    whitened: Tensor
    smallest_stddev: Tensor
    exact: bool
    bars: Bars | None
    level: float
    estimator: str

    def first(self, n: int) -> "JacobianNorms":
        """Those of the first ``n`` items."""
        bars = self.bars and Bars(self.bars.frobenius[:, :n], self.bars.spectral[:, :n], self.bars.whitened[:, :n])
        values = (self.frobenius[:n], self.spectral[:n], self.whitened[:n], self.smallest_stddev[:n])
        return JacobianNorms(*values, self.exact, bars, self.level, self.estimator)


@dataclass(frozen=True, eq=False)
class FirstOrder:
    """The estimates of each item in input units, (items,) float64, and what they are made of.

    They are 0 where p_low <= m: not r-robust even unperturbed; infinite where J is 0 and the gap is not. ``bars`` are
    those of the norms carried over, for p_low as it is; None where the norms are exact.
    """

    frobenius: Tensor
    spectral: Tensor
    whitened: Tensor
    p_low: Tensor
    gap: Tensor
    norms: JacobianNorms
    bars: Bars | None
    m: float

    @property
    def robust(self) -> Tensor:
        """Whether p_low > m: r-robust where nothing is perturbed, (items,)."""
        return self.gap > 0


def first_order(norms: JacobianNorms, p_low: Tensor, m: float) -> FirstOrder:
    """The three estimates at the risk level ``m`` from ``p_low`` (items,), a lower bound of P(||Delta(x, 0)|| <= r).

    Raises :class:`ConfigError` unless m lies in (0, 1).
    """
    check_probability("the risk level m", m)
    p_low = p_low.double()
    gap = torch.special.ndtri(p_low) - torch.special.ndtri(torch.full_like(p_low, m))

    def estimates(frobenius: Tensor, spectral: Tensor, whitened: Tensor) -> Three:
        scaled = gap * norms.smallest_stddev
        values = [scaled / frobenius, scaled / spectral, gap / whitened]
        # Where the norms agree to the last bits, the orders still hold in what is printed.
        first, second, third = (torch.where(gap > 0, value, 0.0) for value in values)
        second = torch.maximum(first, second)
        return first, second, torch.maximum(second, third)

    bars = None
    if norms.bars is not None:
        low, high = (
            estimates(norms.bars.frobenius[end], norms.bars.spectral[end], norms.bars.whitened[end]) for end in (1, 0)
        )
        bars = Bars(*(torch.stack(ends) for ends in zip(low, high, strict=True)))
    frobenius, spectral, whitened = estimates(norms.frobenius, norms.spectral, norms.whitened)
    return FirstOrder(frobenius, spectral, whitened, p_low, gap, norms, bars, m)


def jacobian_norms(
    vae: VAE,
    x: Tensor,
    rows: RowBatches,
    *,
    items: Sequence[int],
    seed: int,
    exact: bool | None = None,
    level: float = 0.95,
    go_on: GoOn = always,
) -> JacobianNorms:
    """Norms of the Jacobian of the encoder's mean at ``x`` (items, *input_shape).

    Exact from J J^T (latents x latents) where J is small. Else, or where ``exact`` is False, J is never formed:
    spectral norms come from Lanczos's method, which errs low, by a factor that the theorem of Kuczynski & Wozniakowski
    (1992) bounds with probability ``level`` whatever the spectrum; ||J||_F^2 is the trace of J J^T on Lanczos's basis
    and E ||J^T v||^2 over signs v outside it (Hutchinson 1990; Meyer et al. 2021, Hutch++), with Student's t interval
    over the probes, which is approximate and covers less where all singular values are alike. Probes and starts are
    keyed by ``seed`` and ``items``, the numbers of the rows of ``x``. Where ``go_on`` says no, the rest is left out.

    Raises:
        UnsupportedError: the posterior is no diagonal Gaussian, or its standard deviation is 0.
        NonFiniteError: means, standard deviations or derivatives are NaN or infinite.
        ContractError: the mean is cut off from the input.
    """
    with torch.no_grad():
        latents = _posterior(under(vae, slice(1)), x[:1]).mean[0].numel()
    entries = latents * x[0].numel()
    if exact is None:
        exact = latents <= _MOST_LATENTS and entries <= _MOST_ENTRIES
    together = RowBatches(max(1, min(rows.size, _ENTRIES_TOGETHER // entries)) if exact else rows.size)

    def of_items(index: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            encoder = _Encoder(under(vae, index), x[index], [items[i] for i in index.tolist()])
            if exact:
                return encoder.sigma.amin(1), *_exact(encoder)
            return encoder.sigma.amin(1), *_matrix_free(encoder, seed, level)

    def asked(left: int, of: int) -> bool:
        return go_on(Progress("Jacobians", left, of))

    smallest, *norms = together.map(of_items, torch.arange(len(x), device=x.device), go_on=asked)
    frobenius, spectral, whitened = _ordered(norms[0], norms[1], norms[2], smallest)
    if exact:
        return JacobianNorms(frobenius, spectral, whitened, smallest, True, None, level, "eigenvalues of J J^T")
    low, high = norms[3:]
    missing = 1 - _lanczos_error(latents, level)
    bars = Bars(
        torch.stack([torch.maximum(low, spectral), torch.maximum(high, frobenius)]),
        torch.stack([spectral, spectral / math.sqrt(missing)]),
        torch.stack([whitened, whitened / math.sqrt(missing)]),
    )
    told = f"Hutch++, {_PROBES} probes; Lanczos, {min(_STEPS, latents)} steps"
    return JacobianNorms(frobenius, spectral, whitened, smallest, False, bars, level, told)


def _ordered(frobenius: Tensor, spectral: Tensor, whitened: Tensor, smallest: Tensor) -> Three:
    """The norms with ||J||_F >= ||J||_2 >= min sigma ||D^-1 J||_2, which rounding and estimation may break.

    The smaller ones err low only, so raising the larger ones brings them nearer to the truth.
    """
    spectral = torch.maximum(spectral, smallest * whitened)
    return torch.maximum(frobenius, spectral), spectral, whitened


def _posterior(vae: VAE, x: Tensor) -> DiagonalGaussian:
    q = vae.encode(x)
    part = moved_part(q)
    if part is None:
        raise UnsupportedError(
            f"the first-order estimates need a diagonal Gaussian posterior, but this model's is {type(q).__name__}; "
            "the empirical margin needs none"
        )
    return part


class _Encoder:
    """The mean at b numbered items (b, latents), differentiable in the input, and sigma (b, latents) in float64."""

    def __init__(self, vae: VAE, x: Tensor, items: Sequence[int]) -> None:
        self.items = items
        self.x = x.detach().clone().requires_grad_(True)
        with sdpa_kernel(SDPBackend.MATH):  # faster kernels of attention have no second derivatives
            q = _posterior(vae, self.x)
        self.mean, self.sigma = q.mean.flatten(1), q.stddev.detach().flatten(1).double()
        require_finite("encoder's mean", self.mean.detach(), items)
        require_finite("encoder's standard deviation", self.sigma, items)
        without = int((self.sigma == 0).any(1).sum())
        if without:
            raise UnsupportedError(
                f"the encoder is deterministic (a standard deviation of 0) for {without} of {len(x)} items: "
                "r-robustness degenerates there, as P(||Delta|| <= r) is 0 or 1 in what has no spread, so there is no "
                "estimate through it"
            )
        if not self.mean.requires_grad:
            raise ContractError(
                "the encoder's mean is cut off from its input (detached), so it has no Jacobian; the adapter must keep "
                "encode differentiable"
            )

    def transposed(self, v: Tensor) -> Tensor:
        """J^T v, (b, latents) -> (b, *input_shape)."""
        (product,) = torch.autograd.grad(self.mean, self.x, v.to(self.mean.dtype), retain_graph=True)
        return product

    def times_transposed(self, v: Tensor) -> Tensor:
        """J J^T v, (b, latents) -> (b, latents): J^T w is linear in w, and its derivative along u is J u."""
        w = v.to(self.mean.dtype).detach().requires_grad_(True)
        (product,) = torch.autograd.grad(self.mean, self.x, w, create_graph=True)
        (result,) = torch.autograd.grad(product, w, product.detach(), retain_graph=True)
        require_finite("encoder's derivative", result, self.items)
        return result.to(v.dtype)


def _exact(encoder: _Encoder) -> Three:
    """The three norms, (b,) each, from a backward pass for each latent."""
    b, latents = encoder.mean.shape
    unit = torch.eye(latents, dtype=encoder.mean.dtype, device=encoder.mean.device)
    J = torch.stack([encoder.transposed(row.expand(b, -1)).flatten(1) for row in unit], dim=1).double()
    require_finite("encoder's derivative", J, encoder.items)
    gram = J @ J.mT
    whitened = gram / (encoder.sigma[:, :, None] * encoder.sigma[:, None, :])
    return torch.linalg.vector_norm(J, dim=(1, 2)), _largest(gram), _largest(whitened)


def _matrix_free(encoder: _Encoder, seed: int, level: float) -> tuple[Tensor, ...]:
    """Estimates of the three norms, then the ends of the interval of the first, (b,) each."""
    latents = encoder.mean.shape[1]

    def noise(draws: int, check: str) -> Tensor:
        return noise_set((latents,), draws=draws, items=encoder.items, seed=seed, check=check, like=encoder.sigma)

    start = noise(1, "estimates.start")[0]
    basis, projected = _lanczos(encoder.times_transposed, start)
    spectral = _largest(projected)
    whitened = _largest(_lanczos(lambda v: encoder.times_transposed(v / encoder.sigma) / encoder.sigma, start)[1])

    # The basis holds the large eigenvalues, whose share of the trace it gives exactly; the probes only see the rest.
    within = projected.diagonal(dim1=1, dim2=2).sum(1)
    probes = [_outside(basis, v) for v in noise(_PROBES, "estimates.probes").sign()]
    outside = torch.stack([encoder.transposed(v).double().flatten(1).square().sum(1) for v in probes])
    mean = outside.mean(0)
    half = float(stats.t.ppf(0.5 + level / 2, _PROBES - 1)) * outside.std(0) / math.sqrt(_PROBES)
    frobenius, low, high = (
        (within + rest.clamp(min=0)).clamp(min=0).sqrt() for rest in (mean, mean - half, mean + half)
    )
    require_finite("encoder's derivative", frobenius, encoder.items)
    return frobenius, spectral, whitened, low, high


def _outside(basis: Tensor, v: Tensor) -> Tensor:
    """The part of v (b, k) orthogonal to the rows of ``basis`` (b, steps, k); twice is enough (Parlett 1980)."""
    for _ in range(2):
        v = v - ((basis @ v[:, :, None]).mT @ basis)[:, 0]
    return v


def _lanczos(apply: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, Tensor]:
    """Lanczos's method for a positive semi-definite operator on (b, k), reorthogonalised in full.

    An orthonormal basis (b, steps, k), and the operator projected on it (b, steps, steps).
    """
    b, k = start.shape
    steps = min(_STEPS, k)
    basis, projected = start.new_zeros((b, steps, k)), start.new_zeros((b, steps, steps))
    v = start / torch.linalg.vector_norm(start, dim=1, keepdim=True)
    for step in range(steps):
        basis[:, step] = v
        image = apply(v)
        projected[:, step, step] = (v * image).sum(1)
        rest = _outside(basis, image)
        size = torch.linalg.vector_norm(rest, dim=1)
        # The space is exhausted: zeros from here on add eigenvalues of 0, which are never above the largest.
        size = torch.where(size > 1e-12 * torch.linalg.vector_norm(image, dim=1), size, 0.0)
        v = rest / torch.where(size > 0, size, torch.inf)[:, None]
        if step + 1 < steps:
            projected[:, step, step + 1] = projected[:, step + 1, step] = size
    return basis, projected


def _largest(gram: Tensor) -> Tensor:
    """The square root of the largest eigenvalue of each matrix, (b, k, k) -> (b,)."""
    root: Tensor = torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0).sqrt()
    return root


def _lanczos_error(k: int, level: float) -> float:
    """The share of the largest eigenvalue that is missing at most, with probability ``level``.

    P(missing > e) <= 1.648 sqrt(k) exp(-sqrt(e) (2 steps - 1)) for a start that is uniform in direction and any
    positive semi-definite operator on k dimensions (Kuczynski & Wozniakowski 1992, theorem 4.2).
    """
    if k <= _STEPS:
        return 0.0
    return min(0.999, (math.log(1.648 * math.sqrt(k) / (1 - level)) / (2 * _STEPS - 1)) ** 2)
