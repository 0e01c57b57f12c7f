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

from vaeaudit.checks.latents.decomposition import Decomposition, decompose, unit_kl
from vaeaudit.checks.latents.layers import Layer, hierarchy, layers_of_chain, of_chain, only_layer
from vaeaudit.errors import ConfigError, NonFiniteError, UnsupportedError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.conditions import under
from vaeaudit.model.divergence import to_prior
from vaeaudit.model.ranges import Range
from vaeaudit.model.vae import VAE, Chain, Posterior
from vaeaudit.progress import GoOn, Progress, always, within
from vaeaudit.stats.draws import noise_set
from vaeaudit.subject.encodings import Encodings, Images, count_of, numbers_of, units_of
from vaeaudit.subject.inputs import box_of, check_items, route_of

_FEWEST = 2  # items, of which there is a spread
_ENCODED = 0.85  # of the time, as measured, goes to the model, the rest to taking the KL apart
_KL_DRAWS = 64  # of z for each item, at least, where a KL without a closed form is estimated: no decoder is run


@dataclass(frozen=True, eq=False)
class LatentsResult:
    """What the latents of ``n`` items hold.

    Attributes:
        log_likelihood: mean over draws of log p(x|z) of each item, (n,), in nats; None without draws.
        kl: KL(q(z|x) || p(z)) of each item, (n,), in nats; in a chain the mean over draws of the sum over layers. None
            where it can neither be computed nor estimated, for the reason ``without_kl``.
        kl_error: standard error of each item's KL over draws, (n,); None where it is exact, and for a chain.
        kl_draws: how many draws of each item the KL is estimated from; 0 where it is exact.
        layers: from the first stochastic layer on; one, but for a chain.
        encodings: the posteriors of the top layer; in a chain at the first draw of the layers below.
        decomposition: of the mean KL of the top layer; None where ``interrupted`` came before, or without units of the
            prior.
        route: how log p is computed; None without draws.
        draws: of z for each item.
        seed: of all draws.
        warnings: what must be known to read the figures, in sentences.
        interrupted: these are only the first items, or a decomposition at fewer points.
    """

    log_likelihood: Tensor | None
    kl: Tensor | None
    without_kl: str
    kl_error: Tensor | None
    kl_draws: int
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
        return self.encodings.n

    @property
    def elbo(self) -> Tensor | None:
        """The evidence lower bound of each item, (n,), in nats; None without draws or KL."""
        return None if self.log_likelihood is None or self.kl is None else self.log_likelihood - self.kl

    @property
    def factorised(self) -> bool:
        """Whether the prior is a product over units that are known, so that each has a KL of its own."""
        return not bool(self.layers[0].kl.isnan().all())

    @property
    def kl_estimator(self) -> str | None:
        """How the KL was estimated, with the Monte Carlo standard error of its mean; None where it is exact."""
        if self.kl_error is None:
            return None
        error = float(self.kl_error.double().square().sum().sqrt()) / self.n
        return (
            f"KL by log q(z|x) - log p(z) at {self.kl_draws} draws of each item, as it has no closed form; Monte Carlo "
            f"standard error of its mean {error:.2g} nats"
        )

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
        vae: the model; a chain must be :class:`vaeaudit.model.vae.Hierarchical`.
        x: the items, (n, *input_shape), or what gives those of any numbers out of ``items``; each is asked for once.
        n: how many; all of a tensor where None.
        items: their numbers, by which draws are keyed; 0 to n - 1 where None.
        draws: of z for each item, keyed by its number; 0 leaves the decoder, and with it the ELBO, out.
        estimator: of q(z), "exact" or "stratified"; see :func:`vaeaudit.checks.latents.decomposition.decompose`.
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
    count = count_of(x, n, least=_FEWEST)
    box = box_of(vae, data_range)
    if draws < 0:
        raise ConfigError(f"a number of draws is 0 or more, but {draws} were asked for")
    named = numbers_of(items, count)
    first = x[:1] if isinstance(x, Tensor) else x(named[:1])
    check_items(vae, first, box, "items")
    of_first = under(vae, slice(1))
    posterior = of_first.encode(first)
    chain = hierarchy(vae, posterior) if isinstance(posterior, Chain) else None
    prior = _units_of_prior(vae.prior) if chain is None else chain.prior
    without_kl, exact = "", chain is not None
    if chain is None:
        try:
            exact = to_prior(posterior, vae.prior, lambda: posterior.mean[None]).error is None
        except UnsupportedError as error:
            without_kl = str(error)
    kl_draws = 0 if exact or without_kl else max(draws, _KL_DRAWS)
    needed = max(draws, kl_draws) if chain is None else max(draws, 1)  # what a chain's KL is has no closed form

    def of_items(index: Tensor) -> tuple[Tensor, ...]:
        numbers = [named[place] for place in index.tolist()]
        part = x[index[0] : index[-1] + 1] if isinstance(x, Tensor) else x(numbers)
        check_items(vae, part, box, "items")
        of_part = under(vae, index)
        q = of_part.encode(part)
        noise = part.new_zeros(0)
        if needed:
            noise = noise_set(q.noise_shape, draws=needed, items=numbers, seed=seed, check="latents", like=q.mean)
        log_likelihood = part.new_zeros(len(part))
        for eta in noise[:draws]:
            log_likelihood += of_part.decode(q.sample(eta)).log_prob(part) / draws
        kl_error = part.new_zeros(len(part))
        if chain is not None and isinstance(q, Chain):
            found = of_chain(chain, q, noise)
        else:
            mean, log_stddev, log_probabilities = units_of(q)
            kl = kl_error
            if prior is not None:
                kl = unit_kl(Encodings(mean, log_stddev, log_probabilities), prior).sum(1)
            elif not without_kl:
                found_kl = to_prior(q, vae.prior, lambda: q.sample(noise))
                kl, kl_error = found_kl.value, kl_error if found_kl.error is None else found_kl.error
            found = (kl, mean, log_stddev, *log_probabilities)
        _require_numbers(numbers, log_likelihood, found[0], *found[1:3])
        return log_likelihood, kl_error, *found

    rows = RowBatches.automatic(tuple(vae.input_shape), first.device) if batch_size is None else RowBatches(batch_size)
    encoding, taking = within(go_on, 0.0, _ENCODED), within(go_on, _ENCODED, 1.0)
    log_likelihood, kl_error, kl, mean, log_stddev, *rest = rows.map(
        of_items,
        torch.arange(count),
        go_on=lambda left, whole: encoding(Progress("encoding and decoding", left, whole)) or whole - left < _FEWEST,
        kept="latents",
    )
    interrupted = len(kl) < count
    if chain is not None:
        top = Encodings(mean, log_stddev, (), len(chain.widths), len(chain.widths), interrupted)
        layers = tuple(layers_of_chain(rest, needed))
    else:
        top = Encodings(mean, log_stddev, tuple(rest), interrupted=interrupted)
        layers = (only_layer(top, prior, kl),)
    parts: Decomposition | None = None

    def watch(progress: Progress) -> bool:
        nonlocal interrupted
        interrupted = not taking(progress)
        return not interrupted

    if not interrupted and prior is not None:
        parts = decompose(top, prior, estimator=estimator, points=points, batch=batch, seed=seed, go_on=watch)
    route = route_of(of_first, first) if draws else None
    likelihood = log_likelihood if draws else None
    warnings = (*_impossible(named, log_likelihood), *_warnings(parts))
    return LatentsResult(
        likelihood,
        None if without_kl else kl,
        without_kl,
        None if exact or without_kl else kl_error,
        kl_draws,
        layers,
        top,
        parts,
        route,
        draws,
        seed,
        warnings,
        interrupted,
    )


def _units_of_prior(prior: Posterior) -> Encodings | None:
    """The prior by unit; None where it is no product over units that are known, as a mixture is none."""
    try:
        return Encodings(*units_of(prior))
    except UnsupportedError:
        return None


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
