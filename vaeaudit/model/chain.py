"""A posterior of several Gaussian layers, each given the one below: q(z^1|x) q(z^2|z^1) ..."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from vaeaudit.errors import ContractError, UnsupportedError
from vaeaudit.model.vae import DiagonalGaussian

# z^(i-1) (n, width) -> q(z^i|z^(i-1)) of n rows, (n, another width); it treats the rows apart
Layer = Callable[[Tensor], DiagonalGaussian]


@dataclass(frozen=True, eq=False)
class GaussianChain:
    """q(z^1|x) q(z^2|z^1) ...: a :class:`vaeaudit.model.vae.Chain` of diagonal Gaussians.

    ``first`` is q(z^1|x), (batch, width); ``upper`` are the layers above, from the second on. The decoder is given the
    latents of all layers, one after another along the last axis; one that reads z^1 alone takes the first columns.

    Raises :class:`ContractError` if a layer is not flat, that is (rows, width).
    """

    first: DiagonalGaussian
    upper: tuple[Layer, ...]

    def __post_init__(self) -> None:
        _require_flat(self.first, 1)

    @property
    def layers(self) -> int:
        """One and those above it."""
        return 1 + len(self.upper)

    @property
    def mean(self) -> Tensor:
        """Mean propagation, (batch, all widths): each layer's mean given the mean of the one below.

        That of the first layer is its exact mean; those above are so only where the layers are linear.
        """
        means = [self.first.mean]
        for layer in self.upper:
            means.append(layer(means[-1]).mean)
        return torch.cat(means, dim=-1)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """One standard normal per latent of any layer."""
        return tuple(self.mean.shape[1:])

    def sample(self, noise: Tensor) -> Tensor:
        """Latents of all layers, (..., batch, all widths): the chain run with the given noise."""
        return torch.cat([z for _, z in self._run(noise)], dim=-1)

    def conditionals(self, noise: Tensor) -> tuple[DiagonalGaussian, ...]:
        """q(z^i|z^(i-1)) of each layer; see :meth:`vaeaudit.model.vae.Chain.conditionals`."""
        return tuple(q for q, _ in self._run(noise))

    def kl(self, other: Self) -> Tensor:
        """KL of the first layers, (batch,).

        It is also the KL of the two chains over all their layers: those above are the same functions in both, so that
        only z^1 tells them apart. Raises :class:`UnsupportedError` for what is no chain.
        """
        if not isinstance(other, GaussianChain):
            raise UnsupportedError(
                f"the KL of a chain of stochastic layers and a {type(other).__name__} has no closed form; "
                "see docs/adapters.md#several-stochastic-layers"
            )
        return self.first.kl(other.first)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z^1|x) q(z^2|z^1) ... of each row, (rows,), for the latents of all layers ``z`` (rows, all widths)."""
        q, below, used = self.first, z[:, : self.first.mean.shape[1]], self.first.mean.shape[1]
        total = q.log_prob(below)
        for layer in self.upper:
            q = layer(below)
            below = z[:, used : used + q.mean.shape[1]]
            total = total + q.log_prob(below)
            used += q.mean.shape[1]
        return total

    def wasserstein2(self, _other: Self) -> Tensor:
        """Raises :class:`UnsupportedError`: a chain's has no closed form, and its first layer's would misname it."""
        raise UnsupportedError(
            "the 2-Wasserstein distance of a chain of stochastic layers has no closed form; "
            "use the similarity 'kl', 'mean' or 'sample'"
        )

    def rows(self, index: Tensor) -> Self:
        """The rows named by ``index``."""
        return type(self)(self.first.rows(index), self.upper)

    def with_mean_of(self, other: Self) -> Self:
        """The first layer's mean of ``other`` with its own deviation; the layers above are the same functions."""
        return type(self)(self.first.with_mean_of(other.first), self.upper)

    def _run(self, noise: Tensor) -> Iterator[tuple[DiagonalGaussian, Tensor]]:
        """q(z^i|z^(i-1)), one row for each row of z^(i-1), and z^i (..., batch, width), from the first layer up."""
        q, z = self.first, self.first.sample(noise[..., : self.first.mean.shape[1]])
        yield q, z
        used = z.shape[-1]
        for number, layer in enumerate(self.upper, start=2):
            q = layer(z.flatten(0, -2))
            _require_flat(q, number)
            width = q.mean.shape[1]
            of_layer = noise[..., used : used + width]
            z = q.sample(of_layer.flatten(0, -2)).reshape(of_layer.shape)
            yield q, z
            used += width


def _require_flat(q: DiagonalGaussian, number: int) -> None:
    if q.mean.ndim != 2:
        raise ContractError(
            f"layer {number} of a chain must be (rows, width), because the layers are put one after another, "
            f"but its mean is {tuple(q.mean.shape)}; flatten it"
        )
