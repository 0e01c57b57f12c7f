"""What an adapter must provide: the contract of a VAE, its posteriors and its likelihoods.

Every check works through these few types, so a new family of models needs an adapter and nothing else.
All values are in nats. A batch has one row per item; ``*latent`` and ``*shape`` are the shapes of one item.

How other families fit: a categorical (Concrete) or a joint posterior is a class with the methods of
:class:`Posterior`; so is a deterministic encoder, whose ``kl`` raises :class:`UnsupportedError`; a chain of
stochastic layers is a posterior whose ``sample`` runs the chain and whose ``kl`` is that of its first layer. What only
some families have is in protocols of their own: the layers of a :class:`Chain`, the parts of a :class:`Recombinable`,
the probabilities of a :class:`Discrete` latent, the factors of a :class:`Joint` posterior, the layers' priors of a
:class:`Hierarchical` model.
"""

import math
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from vaeaudit.errors import ContractError, UnsupportedError
from vaeaudit.model.ranges import Range


@runtime_checkable
class Posterior(Protocol):
    """A distribution over latents for each row of a batch; the prior is one with a single row."""

    @property
    def mean(self) -> Tensor:
        """The latents that stand for "z = the mean", (batch, *latent)."""
        ...

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the standard normal noise that one draw of one item takes.

        A family that needs other noise transforms it (a uniform is ``Phi(noise)``), so that all draws are
        keyed in one way.
        """
        ...

    def sample(self, noise: Tensor) -> Tensor:
        """Latents for the given noise, (..., batch, *noise_shape) -> (..., batch, *latent); differentiable."""
        ...

    def kl(self, other: Self) -> Tensor:
        """KL(self || other) of each row, (batch,); ``other`` has as many rows, or one."""
        ...

    def wasserstein2(self, other: Self) -> Tensor:
        """2-Wasserstein distance of each row, (batch,)."""
        ...

    def rows(self, index: Tensor) -> Self:
        """The rows named by ``index`` (integers), repeated or left out as it says."""
        ...


@runtime_checkable
class Recombinable(Posterior, Protocol):
    """A posterior with a mean and a spread around it, each of which can be taken from another of its family."""

    def with_mean_of(self, other: Self) -> Self:
        """The spread of ``self`` around the mean of ``other``, which has as many rows."""
        ...


@runtime_checkable
class Chain(Posterior, Protocol):
    """q(z^1|x) q(z^2|z^1) ...: a posterior of several stochastic layers.

    As a posterior it is that of all layers, one after another along the last axis; its ``kl`` is that of the first
    layer alone, which has a closed form.
    """

    @property
    def layers(self) -> int:
        """How many stochastic layers there are."""
        ...

    def conditionals(self, noise: Tensor) -> tuple[Posterior, ...]:
        """q(z^i|z^(i-1)) of each layer where the chain is run with ``noise`` (draws, batch, *noise_shape).

        The first is q(z^1|x), (batch,) rows; those above have draws * batch rows, all items of a draw together. Two
        chains run with the same noise are coupled: where their first layers match, so do all.
        """
        ...


@runtime_checkable
class Discrete(Posterior, Protocol):
    """A posterior over the classes of one categorical latent, exact or relaxed (Concrete)."""

    @property
    def log_probabilities(self) -> Tensor:
        """log q(c|x) of the classes themselves, not of a relaxation, (batch, classes); -inf for what cannot be."""
        ...


@runtime_checkable
class Joint(Posterior, Protocol):
    """A posterior of independent parts, as of continuous and categorical latents side by side."""

    @property
    def parts(self) -> tuple[Posterior, ...]:
        """The parts, of which it is the product; its latents are theirs, one after another along the last axis."""
        ...


@runtime_checkable
class Likelihood(Protocol):
    """p(x|z) of each row."""

    @property
    def mean(self) -> Tensor:
        """E[x|z], (batch, *shape): what is called the reconstruction."""
        ...

    @property
    def route(self) -> str:
        """How log p is computed, in words; figures of different routes are never compared."""
        ...

    @property
    def support(self) -> tuple[float, float] | None:
        """[lo, hi] in which x and its mean must lie, None for all reals."""
        ...

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x|z) of each row in nats, summed over the item's elements, (batch,)."""
        ...


@runtime_checkable
class VAE(Protocol):
    """A trained VAE: what an adapter's ``open`` returns.

    ``encode`` and ``decode`` are deterministic, differentiable, and treat the rows of a batch apart.
    A ``torch.nn.Module`` that has these attributes keeps the contract; so does any other object.
    """

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, for instance (1, 28, 28) or (2000,)."""
        ...

    @property
    def range(self) -> Range | None:
        """(lo, hi) in which the model's inputs lie, or one such pair for each channel or feature; see :mod:`ranges`.

        None where the model has no such range.
        """
        ...

    @property
    def prior(self) -> Posterior:
        """p(z), one row."""
        ...

    def encode(self, x: Tensor) -> Posterior:
        """q(z|x) for x of shape (batch, *input_shape)."""
        ...

    def decode(self, z: Tensor) -> Likelihood:
        """p(x|z) for z of shape (batch, *latent)."""
        ...


@dataclass(frozen=True)
class LatentScale:
    """How those who train on a VAE's latents bring them to mean 0 and standard deviation 1: (z - shift) * scale.

    One number for all latents, or one for each channel; ``said`` tells where it is stated. Posteriors are those before
    it. A model may have it as ``latent_scale``, None where nothing is stated, and is then asked whether it fits.
    """

    shift: tuple[float, ...]
    scale: tuple[float, ...]
    said: str


@runtime_checkable
class Resizable(VAE, Protocol):
    """A VAE that takes inputs of several shapes, as convolutions alone do."""

    def resized(self, shape: tuple[int, ...]) -> "VAE | None":
        """The same model, of the same weights, for inputs of ``shape``; None where these are no inputs of its kind.

        Raises :class:`InputError` for such inputs of a size that it cannot take.
        """
        ...


@runtime_checkable
class Hierarchical(VAE, Protocol):
    """A VAE whose posterior is a :class:`Chain` and whose prior is p(z^L) p(z^(L-1)|z^L) ... p(z^1|z^2)."""

    def conditional_priors(self, z: Tensor) -> tuple[Posterior, ...]:
        """p(z^i|z^(i+1)) of each layer from the first on, and p(z^L), for latents of all layers, (rows, *latent).

        Each has a row for each of ``z``; the last may have one.
        """
        ...


@dataclass(frozen=True, eq=False)
class DiagonalGaussian:
    """N(mean, diag(exp(log_stddev))^2), both (batch, *latent).

    The logarithm of the standard deviation is kept, not the standard deviation: it is what networks give,
    and the KL computed from it neither overflows nor cancels.
    """

    mean: Tensor
    log_stddev: Tensor

    @classmethod
    def standard(cls, latent: tuple[int, ...], like: Tensor) -> Self:
        """N(0, I) with one row, in the dtype and on the device of ``like``."""
        zeros = torch.zeros((1, *latent), dtype=like.dtype, device=like.device)
        return cls(zeros, zeros)

    @property
    def stddev(self) -> Tensor:
        """Standard deviations, (batch, *latent)."""
        return self.log_stddev.exp()

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """One standard normal per latent."""
        return tuple(self.mean.shape[1:])

    def sample(self, noise: Tensor) -> Tensor:
        """mean + stddev * noise, (..., batch, *latent)."""
        return self.mean + self.stddev * noise

    def kl(self, other: Self) -> Tensor:
        """KL(self || other), (batch,): sum of 1/2 [s^2/t^2 - 1 - log(s^2/t^2) + (m - n)^2/t^2].

        The variance part is written expm1(u) - u with u = log(s^2/t^2), which stays accurate near a perfect
        match, where the attack ends. Raises :class:`UnsupportedError` for another family.
        """
        self._require_alike(other, "KL")
        u = 2 * (self.log_stddev - other.log_stddev)
        standardised = (self.mean - other.mean) * torch.exp(-other.log_stddev)
        return 0.5 * (torch.expm1(u) - u + standardised.square()).flatten(1).sum(1)

    def wasserstein2(self, other: Self) -> Tensor:
        """sqrt(||m - n||^2 + ||s - t||^2), (batch,); raises :class:`UnsupportedError` for another family."""
        self._require_alike(other, "2-Wasserstein distance")
        gap = torch.cat([(self.mean - other.mean).flatten(1), (self.stddev - other.stddev).flatten(1)], dim=1)
        distance: Tensor = torch.linalg.vector_norm(gap, dim=1)
        return distance

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(z; mean, stddev^2) of each row, summed over latents, (rows,), for ``z`` (rows, *latent)."""
        standardised = (z - self.mean) * torch.exp(-self.log_stddev)
        elements = -0.5 * standardised.square() - self.log_stddev - 0.5 * math.log(2 * math.pi)
        return elements.flatten(1).sum(1)

    def _require_alike(self, other: object, what: str) -> None:
        if not isinstance(other, DiagonalGaussian):
            raise UnsupportedError(
                f"the {what} of a {type(self).__name__} and a {type(other).__name__} has no closed form here; "
                "a posterior that has one computes it in its own method"
            )

    def rows(self, index: Tensor) -> Self:
        """The rows named by ``index``."""
        return type(self)(self.mean[index], self.log_stddev[index])

    def with_mean_of(self, other: Self) -> Self:
        """N(other's mean, own standard deviation)."""
        return type(self)(other.mean, self.log_stddev)


@dataclass(frozen=True, eq=False)
class BernoulliLogits:
    """Bernoulli for each element, from logits (batch, *shape). The exact route: nothing is clamped."""

    logits: Tensor
    route = "Bernoulli from logits"
    support = (0.0, 1.0)

    @property
    def mean(self) -> Tensor:
        """Probabilities, (batch, *shape)."""
        return torch.sigmoid(self.logits)

    def log_prob(self, x: Tensor) -> Tensor:
        """Sum of x log p + (1 - x) log(1 - p), (batch,); x in [0, 1]."""
        return (
            -F.binary_cross_entropy_with_logits(self.logits, x.expand_as(self.logits), reduction="none")
            .flatten(1)
            .sum(1)
        )


@dataclass(frozen=True, eq=False)
class BernoulliProbabilities:
    """Bernoulli for each element, from probabilities (batch, *shape), for models that give nothing else.

    Logarithms are clamped at -100 as torch does, so values differ from :class:`BernoulliLogits` where the
    decoder is sure and wrong.
    """

    probabilities: Tensor
    route = "Bernoulli from probabilities, log clamped at -100"
    support = (0.0, 1.0)

    @property
    def mean(self) -> Tensor:
        """Probabilities, (batch, *shape)."""
        return self.probabilities

    def log_prob(self, x: Tensor) -> Tensor:
        """Sum of x log p + (1 - x) log(1 - p) with each log at least -100, (batch,); x in [0, 1].

        A row with a NaN has log p = NaN. Raises :class:`ContractError` if the decoder's numbers are no probabilities.
        """
        p = self.probabilities
        known = (p >= 0) & (p <= 1)
        whole = bool(known.all())
        if not whole:
            strange = p.detach()[~known & ~p.isnan()]
            if strange.numel():
                came = f"{float(strange.min()):.4g} to {float(strange.max()):.4g}"
                raise ContractError(
                    f"the decoder's probabilities must lie in [0, 1], but {came} came outside; a missing sigmoid?"
                )
            p = torch.where(known, p, 0.5)  # torch refuses NaN here
        log_p = -F.binary_cross_entropy(p, x.expand_as(p), reduction="none").flatten(1).sum(1)
        return log_p if whole else log_p.where(known.flatten(1).all(1), torch.nan)


@dataclass(frozen=True, eq=False)
class GaussianLikelihood:
    """N(mean, exp(log_stddev)^2) for each element.

    ``mean`` is (batch, *shape); ``log_stddev`` broadcasts against it: one number for a constant of the model, (batch,
    1) for one of each item, (batch, *shape) for one of each element.
    """

    mean: Tensor
    log_stddev: Tensor
    support = None

    @property
    def route(self) -> str:
        """Fixed variance where all rows have the same, so that it does not depend on z, and else learned."""
        spread = aligned(self.log_stddev, self.mean)
        return f"Gaussian, {'fixed' if len(spread) < 2 or bool((spread == spread[:1]).all()) else 'learned'} variance"

    def log_prob(self, x: Tensor) -> Tensor:
        """Sum of -1/2 ((x - mean)/s)^2 - log s - 1/2 log 2 pi, (batch,)."""
        log_stddev = aligned(self.log_stddev, self.mean)
        standardised = (x - self.mean) * torch.exp(-log_stddev)
        elements = -0.5 * standardised.square() - log_stddev - 0.5 * math.log(2 * math.pi)
        return elements.flatten(1).sum(1)


def aligned(spread: Tensor, mean: Tensor) -> Tensor:
    """A spread with as many axes as the mean: aligned with its last ones, (batch, 1) with the first."""
    of_items = tuple(spread.shape) == (len(mean), 1)  # as a head of one unit gives them
    ones = (1,) * (mean.ndim - spread.ndim)
    return spread.reshape(spread.shape[:1] * of_items + ones + spread.shape[of_items:])


def reconstruct(vae: VAE, x: Tensor) -> Tensor:
    """rec(x): the decoder's mean at z = the posterior mean, (batch, *shape)."""
    return vae.decode(vae.encode(x).mean).mean
