"""The units of a posterior's layers: their KL and variance, of one layer with a closed form or of a chain by draws."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeaudit.checks.latents.decomposition import log_density, require_alike, unit_kl
from vaeaudit.errors import ContractError, UnsupportedError
from vaeaudit.model.vae import VAE, Chain, DiagonalGaussian, Hierarchical, Posterior
from vaeaudit.subject.encodings import Encodings

_COLUMNS = 64  # units whose moments over all items are computed at once


@dataclass(frozen=True, eq=False)
class Layer:
    """The units of one stochastic layer, ``number`` from 1; unsorted, as sorting is an index. (units,) float64 each.

    Attributes:
        kl: the mean over items of each unit's KL to its prior, in nats. Continuous units come first. In a chain it is
            E[log q(z_j^i|z^(i-1)) - log p(z_j^i|z^(i+1))]. NaN where the prior is no product over known units.
        kl_error: its standard error over items.
        mean_variance: Var_x(E_q(z_j|x)[z_j]), the activity of Burda et al. 2016, in squared latent units. NaN for
            categorical units, and above a chain's first layer where there are fewer than two draws: they tell how much
            of the variance is that of drawing the layer below.
        mean_variance_error: its standard error over items.
        item_kl: the layer's share of the KL of each item, (n,), in the model's dtype.
    """

    number: int
    kl: Tensor
    kl_error: Tensor
    mean_variance: Tensor
    mean_variance_error: Tensor
    item_kl: Tensor


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """The model of a chain, the widths of its layers, and p(z^L)."""

    vae: Hierarchical
    widths: tuple[int, ...]
    prior: Encodings


def of_chain(chain: Hierarchy, q: Chain, noise: Tensor) -> tuple[Tensor, ...]:
    """The KL of each item, (b,), the top layer at the first draw, and three columns of each layer, (b, units).

    These are the mean over draws of its terms, that of its conditional means, and their variance over draws.
    """
    terms: list[list[Tensor]] = [[] for _ in chain.widths]
    means: list[list[Tensor]] = [[] for _ in chain.widths]
    top: tuple[Tensor, Tensor] | None = None
    for eta in noise:
        z = q.sample(eta)
        of_layers = zip(
            q.conditionals(eta[None]),
            chain.vae.conditional_priors(z),
            torch.split(z, list(chain.widths), dim=1),
            strict=True,
        )
        for number, (posterior, prior, of_layer) in enumerate(of_layers):
            up, down = _gaussian(posterior, number), _gaussian(prior, number)
            if number < len(chain.widths) - 1:
                none = torch.empty(len(z), 0, dtype=torch.long, device=z.device)
                term = log_density(up, of_layer, none) - log_density(down, of_layer, none)
            else:  # nothing above depends on z^L, so its expectation has a closed form
                term = unit_kl(up, down)
                top = top or (up.mean, up.log_stddev)
            terms[number].append(term)
            means[number].append(up.mean)
    assert top is not None  # there is at least one draw
    found = []
    for of_terms, of_means in zip(terms, means, strict=True):
        stacked = torch.stack(of_means)
        spread = stacked.var(0) if len(stacked) > 1 else torch.full_like(stacked[0], torch.nan)
        found += [torch.stack(of_terms).mean(0), stacked.mean(0), spread]
    kl = torch.stack([term.sum(1) for term in found[::3]]).sum(0)
    return kl, *top, *found


def layers_of_chain(found: list[Tensor], draws: int) -> Iterator[Layer]:
    """The layers from what :func:`of_chain` gave of all items."""
    for number, (terms, means, spread) in enumerate(zip(found[::3], found[1::3], found[2::3], strict=True), start=1):
        kl, kl_error = _mean(terms.double())
        of_drawing = spread.double() / draws if number > 1 else 0.0  # the mean over draws still varies with them
        variance, variance_error = _variance(means.double(), of_drawing)
        yield Layer(number, kl, kl_error, variance, variance_error, terms.sum(1))


def only_layer(encoded: Encodings, prior: Encodings | None, item_kl: Tensor) -> Layer:
    """The only layer of a model that is no chain."""
    columns: list[tuple[Tensor, ...]] = []
    for first in range(0, encoded.mean.shape[1], _COLUMNS):
        some = slice(first, first + _COLUMNS)
        mean = encoded.mean[:, some].double()
        kl = torch.full_like(mean, torch.nan)
        if prior is not None:
            of_prior = Encodings(prior.mean[:, some].double(), prior.log_stddev[:, some].double(), ())
            kl = unit_kl(Encodings(mean, encoded.log_stddev[:, some].double(), ()), of_prior)
        columns.append((*_mean(kl), *_variance(mean)))
    for place, log_q in enumerate(encoded.log_probabilities):
        kl = log_q.new_full((len(log_q), 1), torch.nan).double()
        if prior is not None:
            none, log_p = log_q.new_empty(len(log_q), 0).double(), prior.log_probabilities[place].double()
            kl = unit_kl(Encodings(none, none, (log_q.double(),)), Encodings(none[:1], none[:1], (log_p,)))
        unknown = kl.new_full((1,), torch.nan)
        columns.append((*_mean(kl), unknown, unknown))
    kl, kl_error, variance, variance_error = (torch.cat(column) for column in zip(*columns, strict=True))
    return Layer(1, kl, kl_error, variance, variance_error, item_kl)


def _mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """Means over rows and their standard errors."""
    return values.mean(0), values.std(0) / math.sqrt(len(values))


def _variance(values: Tensor, less: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Variances over rows, ``less`` that of each row itself, and their standard errors, as for large samples."""
    n = len(values)
    squares = (values - values.mean(0)).square() * (n / (n - 1)) - less
    return squares.mean(0), squares.std(0) / math.sqrt(n)


def hierarchy(vae: VAE, q: Chain) -> Hierarchy:
    """The layers of a model whose posterior is ``q``; raises what :func:`vaeaudit.latents` does for other models."""
    if not isinstance(vae, Hierarchical):
        raise UnsupportedError(
            "the KL of a chain of stochastic layers needs p(z^i|z^(i+1)) of each layer, which this model lacks; "
            "give it the method conditional_priors of vaeaudit.model.vae.Hierarchical"
        )
    eta = torch.zeros(1, 1, *q.noise_shape, dtype=q.mean.dtype, device=q.mean.device)
    posteriors, priors = q.conditionals(eta), vae.conditional_priors(q.sample(eta[0]))
    if len(posteriors) != len(priors):
        raise ContractError(
            f"the model has {len(posteriors)} stochastic layers, but conditional_priors gave {len(priors)}; "
            "correct its adapter"
        )
    units = [_gaussian(up, number) for number, up in enumerate(posteriors)]
    for number, down in enumerate(priors):
        require_alike(units[number], _gaussian(down, number))
    return Hierarchy(vae, tuple(layer.mean.shape[1] for layer in units), _gaussian(priors[-1], len(priors) - 1))


def _gaussian(layer: Posterior, number: int) -> Encodings:
    if not isinstance(layer, DiagonalGaussian):
        raise UnsupportedError(
            f"the layers of a chain must be diagonal Gaussians here, but layer {number + 1} is given by a "
            f"{type(layer).__name__}"
        )
    return Encodings(layer.mean, layer.log_stddev, ())
