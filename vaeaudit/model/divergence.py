"""KL(q(z|x) || p(z)): in closed form where posterior and prior have one, else estimated from draws of q(z|x)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from vaeaudit.errors import UnsupportedError, clipped
from vaeaudit.model.vae import Chain, Hierarchical, Posterior


@runtime_checkable
class Density(Protocol):
    """A posterior, or a prior, whose density is known: what a KL without a closed form is estimated from."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z) of each row in nats, (rows,), for ``z`` (rows, *latent); a prior's one row is that of all."""
        ...


@dataclass(frozen=True, eq=False)
class Divergence:
    """A KL of each row in nats, (batch,), and its Monte Carlo standard error: None where it is exact."""

    value: Tensor
    error: Tensor | None


def closed_form(q: Posterior, prior: Posterior) -> Tensor | None:
    """q.kl(prior), (batch,); None where there is no closed form."""
    exact = _asked(q, prior)
    return exact if isinstance(exact, Tensor) else None


def _asked(q: Posterior, prior: Posterior) -> Tensor | str:
    """q.kl(prior), or why there is none.

    The posterior says so by :class:`UnsupportedError`; one that reads from another type of prior what that does not
    have has none either.
    """
    try:
        return q.kl(prior)
    except UnsupportedError as error:
        return str(error)
    except (AttributeError, TypeError):
        if isinstance(prior, type(q)):
            raise  # a fault of its own
        return f"it is not known between {type(q).__name__} and {type(prior).__name__}"


def to_prior(q: Posterior, prior: Posterior, draw: Callable[[], Tensor]) -> Divergence:
    """KL(q || prior) of each row: its closed form, else the mean of log q(z) - log p(z) over draws z of q.

    ``draw`` gives these, (draws, batch, *latent), and is called only where they are needed. Differentiable.

    Raises :class:`UnsupportedError` where there is neither a closed form nor a density.
    """
    exact = _asked(q, prior)
    if isinstance(exact, Tensor):
        return Divergence(exact, None)
    for what, density in (("posterior", q), ("prior", prior)):
        if not isinstance(density, Density):
            raise UnsupportedError(
                f"the KL to the prior has no closed form ({clipped(exact)}), and the {what} has no log_prob(z) from "
                "which it could be estimated; give it one: see docs/adapters.md#a-prior-without-a-closed-form-kl"
            )
    assert isinstance(q, Density)
    assert isinstance(prior, Density)
    z = draw()
    own = torch.stack([q.log_prob(one) for one in z])  # (draws, batch)
    terms = own - prior.log_prob(z.flatten(0, 1)).reshape(own.shape)
    error = terms.std(0) / math.sqrt(len(z)) if len(z) > 1 else torch.full_like(own[0], torch.nan)
    return Divergence(terms.mean(0), error)


def layers_to_prior(q: Chain, vae: Hierarchical, noise: Tensor) -> Tensor:
    """log q(z) - log p(z) over all layers of a chain at the draw of ``noise`` (batch, *noise_shape), (batch,).

    Raises :class:`UnsupportedError` for layers without a density.
    """
    z = q.sample(noise)
    above, below = q.conditionals(noise[None]), vae.conditional_priors(z)
    terms = torch.zeros_like(z[:, 0])
    parts = torch.split(z, [layer.mean.shape[1] for layer in above], dim=1)
    for of_posterior, of_prior, part in zip(above, below, parts, strict=True):
        if not (isinstance(of_posterior, Density) and isinstance(of_prior, Density)):
            raise UnsupportedError("a layer of the chain, or its prior, has no log_prob(z); give it one")
        terms = terms + of_posterior.log_prob(part) - of_prior.log_prob(part)
    return terms
