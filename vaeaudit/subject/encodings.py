"""The posteriors of all items, encoded once and kept small, for checks that look at the whole data set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vaeaudit.errors import ConfigError, NonFiniteError, UnsupportedError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.conditions import under
from vaeaudit.model.vae import VAE, Chain, DiagonalGaussian, Discrete, Joint, Posterior
from vaeaudit.progress import GoOn, Progress, always
from vaeaudit.stats.draws import noise_set
from vaeaudit.subject.inputs import check_items

# The items of these numbers as the model takes them, (len, *input_shape); ``Subject.images`` is one.
Images = Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True, eq=False)
class Encodings:
    """q(z|x) of ``n`` items, by unit, in the model's dtype and on its device.

    Continuous units come first: N(mean, exp(log_stddev)^2), both (n, units); multi-dimensional latents are flattened.
    Each entry of ``log_probabilities``, (n, classes), is a categorical latent: one unit, whatever its classes.
    ``layer``, counted from 1, of ``layers`` is what they belong to. Above the first layer they are q(z^i|z^(i-1)) at
    one draw of z^(i-1) an item: averages over items are unbiased for those over q(z^(i-1)|x) as well.
    ``interrupted``: these are only the first items.
    """

    mean: Tensor
    log_stddev: Tensor
    log_probabilities: tuple[Tensor, ...]
    layer: int = 1
    layers: int = 1
    interrupted: bool = False

    @property
    def n(self) -> int:
        """How many items."""
        return len(self.mean)

    @property
    def units(self) -> int:
        """How many units, continuous and categorical."""
        return self.mean.shape[1] + len(self.log_probabilities)

    def rows(self, index: Tensor) -> "Encodings":
        """Those of some of the items."""
        log_probabilities = tuple(values[index] for values in self.log_probabilities)
        return replace(
            self, mean=self.mean[index], log_stddev=self.log_stddev[index], log_probabilities=log_probabilities
        )


def units_of(posterior: Posterior) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Means and log standard deviations (batch, units), and log probabilities (batch, classes) of each categorical.

    The parts of a joint posterior in their order. Raises :class:`UnsupportedError` for other families, and for a chain,
    whose layers come one at a time.
    """
    if isinstance(posterior, DiagonalGaussian):
        return posterior.mean.flatten(1), posterior.log_stddev.flatten(1), ()
    if isinstance(posterior, Discrete):
        none = posterior.log_probabilities.new_empty(len(posterior.log_probabilities), 0)
        return none, none, (posterior.log_probabilities,)
    if isinstance(posterior, Joint):
        means, log_stddevs, categoricals = zip(*map(units_of, posterior.parts), strict=True)
        return torch.cat(means, 1), torch.cat(log_stddevs, 1), tuple(c for part in categoricals for c in part)
    raise UnsupportedError(
        f"the units of a posterior of type {type(posterior).__name__} are not known; diagonal Gaussians have them, "
        "categorical ones (vaeaudit.model.vae.Discrete), and joint ones made of these (vaeaudit.model.vae.Joint)"
    )


@torch.no_grad()
def encodings(
    vae: VAE,
    x: Tensor | Images,
    *,
    n: int | None = None,
    items: Sequence[int] | None = None,
    layer: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    go_on: GoOn = always,
) -> Encodings:
    """Encode ``n`` items, some at a time.

    Args:
        vae: the model.
        x: the items, (n, *input_shape), or what gives those of any numbers out of ``items``.
        n: how many; all of a tensor where None.
        items: their numbers, by which draws are keyed; 0 to n - 1 where None.
        layer: of a chain, counted from 1; the top one where None.
        seed: of the draws, keyed by the item's number, with which a chain is run up to that layer.
        batch_size: most rows given to the model at once; by size where None.
        go_on: asked between batches; on False the items encoded so far are returned.

    Raises:
        ConfigError: no ``n`` for a callable, more items than there are, none at all, a layer that is not there.
        DataError: items that are not the model's.
        UnsupportedError: a posterior whose units are not known.
        NonFiniteError: a mean, standard deviation or probability that is NaN or infinite.
    """
    count = count_of(x, n)
    named = numbers_of(items, count)
    first = x[:1] if isinstance(x, Tensor) else x(named[:1])
    check_items(vae, first, None, "items")
    top = under(vae, slice(1)).encode(first)
    layers = top.layers if isinstance(top, Chain) else 1
    layer = layers if layer is None else layer
    if not 1 <= layer <= layers:
        raise ConfigError(f"the model has the stochastic layers 1 to {layers}, but layer {layer} was asked for")

    def encode(index: Tensor) -> tuple[Tensor, ...]:
        numbers = [named[place] for place in index.tolist()]
        part = x[index[0] : index[-1] + 1] if isinstance(x, Tensor) else x(numbers)
        check_items(vae, part, None, "items")
        posterior = under(vae, index).encode(part)
        if isinstance(posterior, Chain):
            shape = posterior.noise_shape
            noise = noise_set(shape, draws=1, items=numbers, seed=seed, check="encodings", like=posterior.mean)
            posterior = posterior.conditionals(noise)[layer - 1]
        mean, log_stddev, log_probabilities = units_of(posterior)
        _require_finite(numbers, mean, log_stddev, log_probabilities)
        return mean, log_stddev, *log_probabilities

    rows = RowBatches.automatic(tuple(vae.input_shape), first.device) if batch_size is None else RowBatches(batch_size)
    mean, log_stddev, *log_probabilities = rows.map(
        encode,
        torch.arange(count),
        go_on=lambda left, whole: go_on(Progress("encoding", left, whole)),
        kept="encodings",
    )
    return Encodings(mean, log_stddev, tuple(log_probabilities), layer, layers, len(mean) < count)


def numbers_of(items: Sequence[int] | None, count: int) -> list[int]:
    """The numbers of ``count`` items, from 0 on unless ``items`` names them; else raises :class:`ConfigError`."""
    if items is not None and len(items) != count:
        raise ConfigError(f"{len(items)} numbers were given for {count} items; give one each")
    return list(range(count) if items is None else items)


def count_of(x: Tensor | Images, n: int | None, *, least: int = 1) -> int:
    """How many items are asked for, all of a tensor where ``n`` is None; else raises :class:`ConfigError`."""
    if n is None and not isinstance(x, Tensor):
        raise ConfigError("items that are given by a function must be counted; give n, how many there are")
    count = len(x) if isinstance(x, Tensor) and n is None else int(n or 0)
    if count < least or (isinstance(x, Tensor) and count > len(x)):
        there = f" of the {len(x)} that are there" if isinstance(x, Tensor) else ""
        few = "one item is" if least == 1 else f"{least} items are"
        raise ConfigError(f"at least {few} needed, but {count}{there} were asked for; give more")
    return count


def _require_finite(
    numbers: Sequence[int], mean: Tensor, log_stddev: Tensor, log_probabilities: tuple[Tensor, ...]
) -> None:
    """Raise :class:`NonFiniteError` for what cannot be averaged; a class of probability 0 can be."""
    good = mean.isfinite().all(1) & log_stddev.isfinite().all(1)
    for values in log_probabilities:
        good &= ~values.isnan().any(1) & (values <= 1e-3).all(1)
    if not bool(good.all()):
        bad = [number for number, fine in zip(numbers, good.tolist(), strict=True) if not fine]
        raise NonFiniteError(
            f"the encoder gave NaN, infinite or impossible values for item {bad[0]} ({len(bad)} of the {len(numbers)} "
            "encoded together); leave such items out or repair the model"
        )
