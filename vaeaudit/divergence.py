"""KL(q(z|x) || p(z)): in closed form where posterior and prior have one, else estimated from draws of q(z|x)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from vaeaudit.errors import UnsupportedError
from vaeaudit.vae import Posterior


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
    """q.kl(prior), (batch,); None where there is no closed form.

    The posterior says so by :class:`UnsupportedError`; one that reads from another type of prior what that does not
    have has none either.
    """
    try:
        return q.kl(prior)
    except UnsupportedError:
        return None
    except (AttributeError, TypeError):
        if isinstance(prior, type(q)):
            raise  # a fault of its own
        return None


def to_prior(q: Posterior, prior: Posterior, draw: Callable[[], Tensor]) -> Divergence:
    """KL(q || prior) of each row: its closed form, else the mean of log q(z) - log p(z) over draws z of q.

    ``draw`` gives these, (draws, batch, *latent), and is called only where they are needed. Differentiable.

    Raises :class:`UnsupportedError` where there is neither a closed form nor a density.
    """
    exact = closed_form(q, prior)
    if exact is not None:
        return Divergence(exact, None)
    for what, density in (("posterior", q), ("prior", prior)):
        if not isinstance(density, Density):
            raise UnsupportedError(
                f"the KL of this model's posterior, {type(q).__name__}, to its prior, {type(prior).__name__}, has no "
                f"closed form, and the {what} has no log_prob(z) from which it could be estimated; give it one: see "
                "docs/adapters.md#a-prior-without-a-closed-form-kl"
            )
    assert isinstance(q, Density)
    assert isinstance(prior, Density)
    z = draw()
    own = torch.stack([q.log_prob(one) for one in z])  # (draws, batch)
    terms = own - prior.log_prob(z.flatten(0, 1)).reshape(own.shape)
    error = terms.std(0) / math.sqrt(len(z)) if len(z) > 1 else torch.full_like(own[0], torch.nan)
    return Divergence(terms.mean(0), error)
