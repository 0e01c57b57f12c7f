"""The latents check: the ELBO of each item and its parts, the KL of each unit, and the KL of the data set taken apart.

ELBO = E_q(z|x)[log p(x|z)] - KL(q(z|x) || p(z)) <= log p(x), without the constant H(q(x)) that Willetts et al. add.
For a chain of stochastic layers the KL is the sum over layers of E[log q(z^i|z^(i-1)) - log p(z^i|z^(i+1))] over the
whole chain: the KL that their equation 9 prints in its place ignores that z^(i+1) depends on z^i.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeaudit.attacks.term import GoOn, Progress, always
from vaeaudit.batches import RowBatches
from vaeaudit.checks.decomposition import Decomposition, decompose, log_density, require_alike, unit_kl
from vaeaudit.checks.encodings import Encodings, Images, count_of, numbers_of, units_of
from vaeaudit.checks.inputs import box_of, check_items
from vaeaudit.draws import noise_set
from vaeaudit.errors import ConfigError, ContractError, NonFiniteError, UnsupportedError
from vaeaudit.ranges import Range
from vaeaudit.vae import VAE, Chain, DiagonalGaussian, Hierarchical, Posterior

_COLUMNS = 64  # units whose moments over all items are computed at once


@dataclass(frozen=True, eq=False)
class Layer:
    """The units of one stochastic layer, ``number`` from 1; unsorted, as sorting is an index. (units,) float64 each.

    Attributes:
        kl: the mean over items of each unit's KL to its prior, in nats. Continuous units come first. In a chain it is
            E[log q(z_j^i|z^(i-1)) - log p(z_j^i|z^(i+1))].
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
class LatentsResult:
    """What the latents of ``n`` items hold.

    Attributes:
        log_likelihood: mean over draws of log p(x|z) of each item, (n,), in nats; None without draws.
        kl: KL(q(z|x) || p(z)) of each item, (n,), in nats; in a chain the mean over draws of the sum over layers.
        layers: from the first stochastic layer on; one, but for a chain.
        encodings: the posteriors of the top layer, to be passed on; in a chain at the first draw of the layers below.
        decomposition: of the mean KL of the top layer; None where ``interrupted`` came before.
        route: how log p is computed; None without draws.
        draws: of z for each item.
        seed: of all draws.
        warnings: what must be known to read the figures, in sentences.
        interrupted: these are only the first items, or a decomposition at fewer points.
    """

    log_likelihood: Tensor | None
    kl: Tensor
    layers: tuple[Layer, ...]
    encodings: Encodings
    decomposition: Decomposition | None
    route: str | None
    draws: int
    seed: int
    warnings: tuple[str, ...]
    interrupted: bool

    @property
    def n(self) -> int:
        """How many items."""
        return len(self.kl)

    @property
    def elbo(self) -> Tensor | None:
        """The evidence lower bound of each item, (n,), in nats; None without draws."""
        return None if self.log_likelihood is None else self.log_likelihood - self.kl

    @property
    def impossible(self) -> bool:
        """Whether log p of an item is infinite, so that the mean ELBO is as well."""
        return self.log_likelihood is not None and not bool(self.log_likelihood.isfinite().all())


@torch.no_grad()
def latents(
    vae: VAE,
    x: Tensor | Images,
    *,
    n: int | None = None,
    items: Sequence[int] | None = None,
    draws: int = 1,
    estimator: str = "exact",
    points: int | None = None,
    batch: int | None = None,
    data_range: Range | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    go_on: GoOn = always,
) -> LatentsResult:
    """ELBO, KL by unit and layer, and mutual information + total correlation + dimension-wise KL.

    Args:
        vae: the model; a chain must be :class:`vaeaudit.vae.Hierarchical`.
        x: the items, (n, *input_shape), or what gives those of any numbers out of ``items``; each is asked for once.
        n: how many; all of a tensor where None.
        items: their numbers, by which draws are keyed; 0 to n - 1 where None.
        draws: of z for each item, keyed by its number; 0 leaves the decoder, and with it the ELBO, out.
        estimator: of q(z), "exact" or "stratified"; see :func:`vaeaudit.checks.decomposition.decompose`.
        points: at how many draws of z the mixture is evaluated; by size where None.
        batch: items of a minibatch, for "stratified".
        data_range: range of the items; the model's own where None.
        seed: of every random draw.
        batch_size: most rows given to the model at once; by size where None.
        go_on: asked between batches; on False what is done so far is returned.

    Raises:
        ConfigError: no ``n`` for a callable, fewer than two items, more than there are, fewer than no draws, or what
            :func:`decompose` refuses.
        DataError: items that are not the model's, or outside its range.
        UnsupportedError: posteriors whose units are not known, or a chain without the priors of its layers.
        ContractError: a prior of other units than the posterior.
        NonFiniteError: an encoder or a decoder that gives NaN.
    """
    count = count_of(x, n, least=2)
    box = box_of(vae, data_range)
    if draws < 0:
        raise ConfigError(f"a number of draws is 0 or more, but {draws} were asked for")
    named = numbers_of(items, count)
    first = x[:1] if isinstance(x, Tensor) else x(named[:1])
    check_items(vae, first, box, "items")
    posterior = vae.encode(first)
    chain = _hierarchy(vae, posterior) if isinstance(posterior, Chain) else None
    prior = Encodings(*units_of(vae.prior)) if chain is None else chain.prior

    needed = draws if chain is None else max(draws, 1)  # what a chain's KL is has no closed form

    def of_items(index: Tensor) -> tuple[Tensor, ...]:
        numbers = [named[place] for place in index.tolist()]
        part = x[index[0] : index[-1] + 1] if isinstance(x, Tensor) else x(numbers)
        check_items(vae, part, box, "items")
        q = vae.encode(part)
        noise = part.new_zeros(0)
        if needed:
            noise = noise_set(q.noise_shape, draws=needed, items=numbers, seed=seed, check="latents", like=q.mean)
        log_likelihood = part.new_zeros(len(part))
        for eta in noise[:draws]:
            log_likelihood += vae.decode(q.sample(eta)).log_prob(part) / draws
        if chain is not None and isinstance(q, Chain):
            found = _of_chain(chain, q, noise)
        else:
            mean, log_stddev, log_probabilities = units_of(q)
            kl = unit_kl(Encodings(mean, log_stddev, log_probabilities), prior).sum(1)
            found = (kl, mean, log_stddev, *log_probabilities)
        _require_numbers(numbers, log_likelihood, found[0], *found[1:3])
        return log_likelihood, *found

    rows = RowBatches.automatic(tuple(vae.input_shape), first.device) if batch_size is None else RowBatches(batch_size)
    log_likelihood, kl, mean, log_stddev, *rest = rows.map(
        of_items,
        torch.arange(count),
        go_on=lambda left, whole: go_on(Progress("encoding and decoding", left, whole)),
    )
    interrupted = len(kl) < count
    if chain is not None:
        top = Encodings(mean, log_stddev, (), len(chain.widths), len(chain.widths), interrupted)
        layers = tuple(_layers_of_chain(rest, needed))
    else:
        top = Encodings(mean, log_stddev, tuple(rest), interrupted=interrupted)
        layers = (_layer(top, prior, kl),)
    parts: Decomposition | None = None

    def watch(progress: Progress) -> bool:
        nonlocal interrupted
        interrupted = not go_on(progress)
        return not interrupted

    if not interrupted:
        parts = decompose(top, prior, estimator=estimator, points=points, batch=batch, seed=seed, go_on=watch)
    route = vae.decode(posterior.mean).route if draws else None
    likelihood = log_likelihood if draws else None
    warnings = (*_impossible(named, log_likelihood), *_warnings(parts))
    return LatentsResult(likelihood, kl, layers, top, parts, route, draws, seed, warnings, interrupted)


@dataclass(frozen=True, eq=False)
class _Hierarchy:
    """The model of a chain, the widths of its layers, and p(z^L)."""

    vae: Hierarchical
    widths: tuple[int, ...]
    prior: Encodings


def _of_chain(chain: _Hierarchy, q: Chain, noise: Tensor) -> tuple[Tensor, ...]:
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


def _layers_of_chain(found: list[Tensor], draws: int) -> Iterator[Layer]:
    """The layers from what :func:`_of_chain` gave of all items."""
    for number, (terms, means, spread) in enumerate(zip(found[::3], found[1::3], found[2::3], strict=True), start=1):
        kl, kl_error = _mean(terms.double())
        of_drawing = spread.double() / draws if number > 1 else 0.0  # the mean over draws still varies with them
        variance, variance_error = _variance(means.double(), of_drawing)
        yield Layer(number, kl, kl_error, variance, variance_error, terms.sum(1))


def _layer(encoded: Encodings, prior: Encodings, item_kl: Tensor) -> Layer:
    """The only layer of a model that is no chain."""
    columns: list[tuple[Tensor, ...]] = []
    for first in range(0, encoded.mean.shape[1], _COLUMNS):
        some = slice(first, first + _COLUMNS)
        mean = encoded.mean[:, some].double()
        of_prior = Encodings(prior.mean[:, some].double(), prior.log_stddev[:, some].double(), ())
        kl = unit_kl(Encodings(mean, encoded.log_stddev[:, some].double(), ()), of_prior)
        columns.append((*_mean(kl), *_variance(mean)))
    for log_q, log_p in zip(encoded.log_probabilities, prior.log_probabilities, strict=True):
        none = log_q.new_empty(len(log_q), 0).double()
        kl = unit_kl(Encodings(none, none, (log_q.double(),)), Encodings(none[:1], none[:1], (log_p.double(),)))
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


def _hierarchy(vae: VAE, q: Chain) -> _Hierarchy:
    if not isinstance(vae, Hierarchical):
        raise UnsupportedError(
            "the KL of a chain of stochastic layers needs p(z^i|z^(i+1)) of each layer, which this model lacks; "
            "give it the method conditional_priors of vaeaudit.vae.Hierarchical"
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
    return _Hierarchy(vae, tuple(layer.mean.shape[1] for layer in units), _gaussian(priors[-1], len(priors) - 1))


def _gaussian(layer: Posterior, number: int) -> Encodings:
    if not isinstance(layer, DiagonalGaussian):
        raise UnsupportedError(
            f"the layers of a chain must be diagonal Gaussians here, but layer {number + 1} is given by a "
            f"{type(layer).__name__}"
        )
    return Encodings(layer.mean, layer.log_stddev, ())


def _require_numbers(numbers: list[int], log_likelihood: Tensor, kl: Tensor, mean: Tensor, log_stddev: Tensor) -> None:
    """Raise :class:`NonFiniteError` for what cannot be averaged."""
    good = {
        "encoder": mean.isfinite().all(1) & log_stddev.isfinite().all(1) & kl.isfinite(),
        "decoder": ~log_likelihood.isnan(),
    }
    for what, fine in good.items():
        if not bool(fine.all()):
            item = numbers[int((~fine).nonzero()[0])]
            raise NonFiniteError(
                f"the {what} gave NaN, or infinite values or KL, for item {item} ({int((~fine).sum())} of the "
                f"{len(numbers)} taken together); leave such items out or repair the model"
            )


def _impossible(numbers: Sequence[int], log_likelihood: Tensor) -> Iterator[str]:
    bad = log_likelihood.isinf().nonzero().squeeze(1).tolist()
    if bad:
        yield (
            f"log p(x|z) is infinite for {len(bad)} of {len(log_likelihood)} items, the first of them item "
            f"{numbers[bad[0]]}, and so is the mean ELBO, which therefore has no value; the metrics "
            "'latents.elbo.mean' and 'latents.log_likelihood.mean' are of the other items alone; read the medians, or "
            "give the model a likelihood that every item can have"
        )


def _warnings(parts: Decomposition | None) -> tuple[str, ...]:
    warnings: list[str] = []
    if parts is not None and parts.saturated:
        warnings.append(
            f"the mutual information, {parts.mutual_information.value:.3g} nats, is near log N = "
            f"{math.log(parts.n):.3g}, the most that {parts.n} items can have: it tells their number and not the "
            "model, and the total correlation moves with it; compare at equal N only"
        )
    if parts is not None and parts.biased:
        warnings.append(
            "minibatch stratified sampling is biased: log q(z) is too small, so that the mutual information is too "
            "large, the dimension-wise KL too small, and the total correlation off either way; both can be negative; "
            "intervals do not cover the bias"
        )
    return tuple(warnings)
