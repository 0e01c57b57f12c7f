"""How unlike another posterior an adversarial posterior is: the data term of the latent attacks.

The adversarial posterior comes first and the target second (Willetts et al., section 4, prints q(z|x) where
the target's is meant). Each function takes posteriors of as many rows and the noise set of
:func:`sample_distance`, (draws, batch, *noise_shape), and returns (batch,): zero at a perfect match.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vaeaudit.model.vae import Chain, DiagonalGaussian, Posterior

Similarity = Callable[[Posterior, Posterior, Tensor], Tensor]

_NEAR = 0.1  # difference of log standard deviations below which the exponential's series is taken


def kl(q: Posterior, target: Posterior, _noise: Tensor) -> Tensor:
    """KL(q || target) in nats: Tabacof et al. 2016; Willetts et al. eq. 13."""
    return q.kl(target)


def reverse_kl(q: Posterior, target: Posterior, _noise: Tensor) -> Tensor:
    """KL(target || q) in nats."""
    return target.kl(q)


def symmetric_kl(q: Posterior, target: Posterior, _noise: Tensor) -> Tensor:
    """KL(q || target) + KL(target || q) in nats: the sum, not its half (Kullback & Leibler 1951)."""
    return q.kl(target) + target.kl(q)


def mean_distance(q: Posterior, target: Posterior, _noise: Tensor) -> Tensor:
    """Euclidean distance of the means: Kos et al. 2018."""
    # vector_norm has gradient 0 at 0, where the square root of a sum of squares would give NaN.
    distance: Tensor = torch.linalg.vector_norm((q.mean - target.mean).flatten(1), dim=1)
    return distance


def sample_distance(q: Posterior, target: Posterior, noise: Tensor) -> Tensor:
    """Mean Euclidean distance of draws: Kos et al. 2018.

    Both draw with the same noise, so a perfect match gives 0; independent noise has a floor above it.
    """
    gap = q.sample(noise) - target.sample(noise)
    distances: Tensor = torch.linalg.vector_norm(gap.flatten(2), dim=2)
    return distances.mean(0)


def wasserstein(q: Posterior, target: Posterior, _noise: Tensor) -> Tensor:
    """2-Wasserstein distance."""
    return q.wasserstein2(target)


SIMILARITIES: dict[str, Similarity] = {
    "kl": kl,
    "reverse-kl": reverse_kl,
    "symmetric-kl": symmetric_kl,
    "mean": mean_distance,
    "sample": sample_distance,
    "wasserstein": wasserstein,
}

# Those that draw from the posteriors; the others leave their noise set alone.
DRAWING = frozenset({"sample"})
# Those that compare a chain layer by layer: of each layer, given the draws of the one below.
LAYERWISE = frozenset({"kl", "reverse-kl", "symmetric-kl"})


def kl_residuals(q: DiagonalGaussian, target: DiagonalGaussian) -> Tensor:
    """(batch, 2 * latents) of which half the sum of squares is KL(q || target), differentiable at a match too.

    Of each latent there is one of the means, (m - n) / t, and one of the deviations, sign(u) sqrt(exp(2u) - 1 - 2u)
    with u = log(s / t).
    """
    u = (q.log_stddev - target.log_stddev).flatten(1)
    means = ((q.mean - target.mean) * torch.exp(-target.log_stddev)).flatten(1)
    return torch.cat([means, _deviations(u)], 1)


def _deviations(u: Tensor) -> Tensor:
    """sign(u) sqrt(exp(2u) - 1 - 2u), to the first order.

    It is the line through the value with the slope that is known, (exp(2u) - 1) over it: passing back through the
    series would cost more than through many an encoder.
    """
    fixed = u.detach()
    w = 2 * fixed
    one = series = torch.ones_like(w)
    for power in range(12, 2, -1):  # (exp(w) - 1 - w) / (w^2 / 2) = 1 + w/3 (1 + w/4 (1 + w/5 ...))
        series = torch.addcmul(one, w, series, value=1 / power)
    near, grown = fixed.abs() < _NEAR, torch.expm1(w)
    over = torch.where(near, series, (grown - w) / (0.5 * w.square()))
    root = (2 * over).sqrt()
    rising = torch.where(near, torch.addcmul(2 * one, w, over), grown / fixed)  # (exp(w) - 1) / u, 0 / 0 at a match
    return torch.addcmul(fixed * root, rising / root, u - fixed)


def reverse_kl_residuals(q: DiagonalGaussian, target: DiagonalGaussian) -> Tensor:
    """The same of KL(target || q)."""
    return kl_residuals(target, q)


def symmetric_kl_residuals(q: DiagonalGaussian, target: DiagonalGaussian) -> Tensor:
    """The same of their sum, (batch, 4 * latents)."""
    return torch.cat([kl_residuals(q, target), kl_residuals(target, q)], 1)


# What a search of least squares can use, between Gaussians whose KL has no other form.
RESIDUALS = {"kl": kl_residuals, "reverse-kl": reverse_kl_residuals, "symmetric-kl": symmetric_kl_residuals}


def layer_terms(q: Chain, target: Chain, noise: Tensor, similarity: str = "kl") -> Tensor:
    """The similarity of each layer of two chains run with ``noise`` (draws, batch, *noise_shape), (layers, batch).

    The first is exact; those above are means over the draws. The noise couples the chains, so that all terms are 0 at
    a perfect match, where independent noise would leave a floor, and each bounds the marginal KL of its layer from
    above (KL is jointly convex). ``similarity`` is one of :data:`LAYERWISE`.
    """
    return coupled_terms(q.conditionals(noise), target.conditionals(noise), noise, similarity)


def coupled_terms(q: Sequence[Posterior], target: Sequence[Posterior], noise: Tensor, similarity: str) -> Tensor:
    """:func:`layer_terms` from the layers' conditionals, for a target whose conditionals are already known."""
    measure, batch = SIMILARITIES[similarity], noise.shape[1]
    terms = [measure(of_q, of_target, noise) for of_q, of_target in zip(q, target, strict=True)]
    return torch.stack([term.reshape(-1, batch).mean(0) for term in terms])
