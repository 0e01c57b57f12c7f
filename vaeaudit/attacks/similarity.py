"""How unlike the target's posterior an adversarial posterior is: the data term of the latent attack.

The adversarial posterior comes first and the target second (Willetts et al., section 4, prints q(z|x) where
the target's is meant). Each function takes posteriors of as many rows and the noise set of
:func:`sample_distance`, (draws, batch, *noise_shape), and returns (batch,): zero at a perfect match.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vaeaudit.vae import Posterior

Similarity = Callable[[Posterior, Posterior, Tensor], Tensor]


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
