"""Posteriors beside the diagonal Gaussian: point, full covariance, relaxed categorical, several kinds, mixture."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from vaeaudit.errors import ContractError, UnsupportedError
from vaeaudit.model.chain import GaussianChain
from vaeaudit.model.vae import DiagonalGaussian, Joint, Posterior, Recombinable


@dataclass(frozen=True, eq=False)
class Point:
    """What a deterministic encoder gives, ``mean`` (batch, *latent); as a prior it stands for none."""

    mean: Tensor

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """A draw takes no noise."""
        return (0,)

    def sample(self, noise: Tensor) -> Tensor:
        """The mean, whatever the noise (..., batch, 0): (..., batch, *latent)."""
        return self.mean.expand(*noise.shape[:-2], *self.mean.shape)

    def kl(self, _other: Self) -> Tensor:
        """Raises :class:`UnsupportedError`: between points there is none."""
        raise UnsupportedError("a deterministic encoder has no KL")

    def wasserstein2(self, other: Self) -> Tensor:
        """The distance of the two points, (batch,)."""
        distance: Tensor = torch.linalg.vector_norm((self.mean - other.mean).flatten(1), dim=1)
        return distance

    def rows(self, index: Tensor) -> Self:
        """The rows named by ``index``."""
        return type(self)(self.mean[index])


@dataclass(frozen=True, eq=False)
class FullGaussian:
    """N(mean, L L'), ``mean`` (batch, latents) and L = ``cholesky`` (batch, latents, latents), lower triangular.

    The factor is kept, with a diagonal above 0, as networks give it: the covariance itself is never formed.
    """

    mean: Tensor
    cholesky: Tensor

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """One standard normal per latent."""
        return tuple(self.mean.shape[1:])

    def sample(self, noise: Tensor) -> Tensor:
        """mean + L noise, (..., batch, latents)."""
        return self.mean + (self.cholesky @ noise.unsqueeze(-1)).squeeze(-1)

    def kl(self, other: Posterior) -> Tensor:
        """KL(self || other), (batch,), to one of full or of diagonal covariance.

        With M = L_other^-1 L it is 1/2 [sum over i of (M_ii^2 - 1 - log M_ii^2), + sum of squares below the diagonal,
        + |L_other^-1 (m - n)|^2], where the first is written expm1(u) - u, which stays accurate near a match. Raises
        :class:`UnsupportedError` for another family.
        """
        n, factor = _factored(other, "KL")
        between = torch.linalg.solve_triangular(factor, self.cholesky, upper=False)
        gap = torch.linalg.solve_triangular(factor, (self.mean - n).unsqueeze(-1), upper=False)
        u = 2 * between.diagonal(dim1=1, dim2=2).log()
        below = between.tril(-1).square().flatten(1).sum(1)
        kl: Tensor = 0.5 * ((torch.expm1(u) - u).sum(1) + below + gap.square().flatten(1).sum(1))
        return kl

    def wasserstein2(self, other: Posterior) -> Tensor:
        """sqrt(|m - n|^2 + min over orthogonal Q of |L Q - K|_F^2), (batch,), for the factors L and K.

        As Dowson & Landau (1982) have it, but near a match no two traces cancel; the least is where Q turns K' L into a
        symmetric matrix (Schonemann 1966). Raises :class:`UnsupportedError` for another family.
        """
        n, factor = _factored(other, "2-Wasserstein distance")
        with torch.no_grad():  # at the least, what moves Q changes nothing
            left, _, right = torch.linalg.svd(factor.mT @ self.cholesky)
            turned = (left @ right).mT
        gap = torch.cat([(self.mean - n).unsqueeze(1), self.cholesky @ turned - factor], 1)
        distance: Tensor = torch.linalg.vector_norm(gap.flatten(1), dim=1)
        return distance

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(z; mean, L L') of each row, (rows,), for ``z`` (rows, latents)."""
        white = torch.linalg.solve_triangular(self.cholesky, (z - self.mean).unsqueeze(-1), upper=False).squeeze(-1)
        log_volume = self.cholesky.diagonal(dim1=1, dim2=2).log().sum(1)
        log_prob: Tensor = -0.5 * white.square().sum(1) - log_volume - 0.5 * math.log(2 * math.pi) * z.shape[1]
        return log_prob

    def rows(self, index: Tensor) -> Self:
        """The rows named by ``index``."""
        return type(self)(self.mean[index], self.cholesky[index])

    def with_mean_of(self, other: Self) -> Self:
        """The own covariance around the mean of ``other``."""
        return type(self)(other.mean, self.cholesky)


def _factored(p: Posterior, what: str) -> tuple[Tensor, Tensor]:
    """Mean and Cholesky factor of a Gaussian; raises :class:`UnsupportedError` for another family."""
    if isinstance(p, FullGaussian):
        return p.mean, p.cholesky
    if isinstance(p, DiagonalGaussian) and p.mean.ndim == 2:
        return p.mean, torch.diag_embed(p.stddev)
    raise UnsupportedError(f"the {what} of a FullGaussian and a {type(p).__name__} has no closed form here")


@dataclass(frozen=True, eq=False)
class Concrete:
    """A categorical latent relaxed at ``temperature`` (Maddison et al. 2017), from ``logits`` (batch, classes).

    Draws are those of the relaxation; KL and probabilities are those of the categorical itself (Sootla 2018, eq. 2.10),
    as the densities of two relaxations have no KL in closed form.
    """

    logits: Tensor
    temperature: float

    @cached_property
    def log_probabilities(self) -> Tensor:
        """log q(c|x), (batch, classes)."""
        return self.logits.log_softmax(1)

    @property
    def mean(self) -> Tensor:
        """The probabilities, (batch, classes)."""
        return self.log_probabilities.exp()

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """One standard normal for each class."""
        return tuple(self.logits.shape[1:])

    def sample(self, noise: Tensor) -> Tensor:
        """softmax((logits + Gumbel noise) / temperature), (..., batch, classes)."""
        gumbel = -torch.log(-torch.special.log_ndtr(noise))  # -log(-log u) of the uniform level u = Phi(noise)
        return ((self.logits + gumbel) / self.temperature).softmax(-1)

    def kl(self, other: Self) -> Tensor:
        """Sum over classes of q (log q - log p), (batch,)."""
        return (self.mean * (self.log_probabilities - other.log_probabilities)).sum(1)

    def wasserstein2(self, _other: Self) -> Tensor:
        """Raises :class:`UnsupportedError`: classes have no distance."""
        raise UnsupportedError("a categorical latent has no 2-Wasserstein distance, as classes have none")

    def rows(self, index: Tensor) -> Self:
        """The rows named by ``index``."""
        return type(self)(self.logits[index], self.temperature)


@dataclass(frozen=True, eq=False)
class Product:
    """Independent ``parts``, each flat (batch, width), whose latents stand one after another: a ``Joint`` posterior.

    Raises :class:`ContractError` where a part is not flat.
    """

    parts: tuple[Posterior, ...]

    def __post_init__(self) -> None:
        for number, part in enumerate(self.parts, start=1):
            if part.mean.ndim != 2:
                raise ContractError(
                    f"part {number} of a product must be (rows, width), because the parts are put one after another, "
                    f"but its mean is {tuple(part.mean.shape)}; flatten it"
                )

    @property
    def mean(self) -> Tensor:
        """Those of the parts, (batch, all widths)."""
        return torch.cat([part.mean for part in self.parts], dim=1)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """That of all parts together."""
        return (sum(part.noise_shape[0] for part in self.parts),)

    def sample(self, noise: Tensor) -> Tensor:
        """Draws of the parts, (..., batch, all widths)."""
        of_parts = torch.split(noise, [part.noise_shape[0] for part in self.parts], dim=-1)
        return torch.cat([part.sample(eta) for part, eta in zip(self.parts, of_parts, strict=True)], dim=-1)

    def kl(self, other: Self) -> Tensor:
        """The sum over parts, (batch,)."""
        return torch.stack([part.kl(of) for part, of in zip(self.parts, other.parts, strict=True)]).sum(0)

    def wasserstein2(self, other: Self) -> Tensor:
        """The root of the sum of the parts' squares, (batch,); raises :class:`UnsupportedError` where one has none."""
        each = [part.wasserstein2(of) for part, of in zip(self.parts, other.parts, strict=True)]
        distance: Tensor = torch.linalg.vector_norm(torch.stack(each), dim=0)
        return distance

    def rows(self, index: Tensor) -> Self:
        """The rows named by ``index``."""
        return type(self)(tuple(part.rows(index) for part in self.parts))

    def with_mean_of(self, other: Self) -> Self:
        """The means of ``other`` with all else of ``self``: its deviations, and every part that has none, whole."""
        return type(self)(
            tuple(
                part.with_mean_of(of) if isinstance(part, Recombinable) and isinstance(of, Recombinable) else part
                for part, of in zip(self.parts, other.parts, strict=True)
            )
        )


@dataclass(frozen=True, eq=False)
class Mixture:
    """Equal parts of diagonal Gaussians, a row of ``components`` each, as one distribution, such as a VampPrior.

    Of one row. A KL to it has no closed form and is estimated from its density.
    """

    components: DiagonalGaussian

    @property
    def mean(self) -> Tensor:
        """That of the components' means, (1, *latent)."""
        return self.components.mean.mean(0, keepdim=True)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """One standard normal for each latent, and one that chooses the component."""
        return (self.mean[0].numel() + 1,)

    def sample(self, noise: Tensor) -> Tensor:
        """Draws, (..., 1, *latent), for noise (..., 1, latents + 1)."""
        parts = len(self.components.mean)
        chosen = (torch.special.ndtr(noise[..., -1]) * parts).long().clamp(max=parts - 1)
        mean, stddev = self.components.mean[chosen], self.components.stddev[chosen]
        return mean + stddev * noise[..., :-1].reshape(mean.shape)

    def log_prob(self, z: Tensor) -> Tensor:
        """log of the mean of the components' densities, (rows,), for ``z`` (rows, *latent)."""
        mean, log_stddev = self.components.mean.unsqueeze(1), self.components.log_stddev.unsqueeze(1)
        standardised = (z - mean) * torch.exp(-log_stddev)  # (parts, rows, *latent)
        elements = -0.5 * standardised.square() - log_stddev - 0.5 * math.log(2 * math.pi)
        return elements.flatten(2).sum(2).logsumexp(0) - math.log(len(mean))

    def kl(self, _other: Posterior) -> Tensor:
        """Raises :class:`UnsupportedError`: it has no closed form."""
        raise UnsupportedError("a mixture has no closed-form KL")

    def wasserstein2(self, _other: Posterior) -> Tensor:
        """Raises :class:`UnsupportedError`: it has no closed form."""
        raise UnsupportedError("a mixture has no closed-form 2-Wasserstein distance")

    def rows(self, _index: Tensor) -> Self:
        """Itself: the one row stands for any."""
        return self


def gaussian_part(q: Posterior) -> DiagonalGaussian | None:
    """The Gaussian latents of a posterior: itself, or those of its parts side by side; None where it has none."""
    if isinstance(q, DiagonalGaussian):
        return q
    found = [part for part in q.parts if isinstance(part, DiagonalGaussian)] if isinstance(q, Joint) else []
    if not found:
        return None
    means, log_stddevs = zip(*((part.mean.flatten(1), part.log_stddev.flatten(1)) for part in found), strict=True)
    return DiagonalGaussian(torch.cat(means, 1), torch.cat(log_stddevs, 1))


def moved_part(q: Posterior) -> DiagonalGaussian | None:
    """The Gaussian latents that the input itself moves, of which theorem (i) of margins speaks; None where it has none.

    Of a chain q(z^1|x): what is above follows from z^1 and noise of its own, whatever the input, so that the success
    set is one of z^1 and that noise.
    """
    return q.first if isinstance(q, GaussianChain) else gaussian_part(q)


def without_gradient(values: Tensor, chosen: Tensor, points: Tensor) -> Tensor:
    """Rows (b,) in which no ``chosen`` (b, k) of ``values`` (b, k) has a gradient with respect to ``points`` (b, ...).

    What tells a clamp: values that tie by rounding, such as exp(s) + tau where exp(s) is far below tau, have a small
    one.
    """
    told = torch.where(chosen, values, 0.0).sum()
    if not told.requires_grad:
        return torch.ones_like(chosen[:, 0])
    (slope,) = torch.autograd.grad(told, points, allow_unused=True, materialize_grads=True)
    return (slope.flatten(1) == 0).all(1)
