"""Traversals: what the decoder makes of one unit moved while all others stay (Willetts et al. 2020, appendix F)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeaudit.errors import ConfigError, UnsupportedError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.vae import VAE, Chain, DiagonalGaussian, Discrete, Hierarchical, Joint, Posterior
from vaeaudit.subject.encodings import Encodings, units_of
from vaeaudit.subject.inputs import check_items

_REACH = 3.0  # standard deviations of the prior, or of a normal distribution whose quantiles are taken
_HALVINGS = 40  # of the bracket of a quantile: to 1e-12 of its width
_TOGETHER = 2**20  # components times values evaluated at once


@dataclass(frozen=True, eq=False)
class Traversal:
    """Reconstructions along ``units``.

    Attributes:
        units: numbers of the units, as in :class:`vaeaudit.subject.encodings.Encodings`; in a chain those of all
            layers, one after another.
        values: what each unit was set to, (units, steps); the number of the class of a categorical unit.
        images: the decoder's mean, (units, steps, *shape), in input units.
        span: what the values are, in words.
        classes: of the categorical units; 0 for continuous ones.
    """

    units: tuple[int, ...]
    values: Tensor
    images: Tensor
    span: str
    classes: int = 0


@torch.no_grad()
def traverse(
    vae: VAE,
    units: Sequence[int],
    *,
    item: Tensor | None = None,
    encoded: Encodings | None = None,
    steps: int = 9,
    batch_size: int | None = None,
) -> Traversal:
    """Decode the mean of an item, or of the prior, with one unit after another moved.

    A continuous unit takes the quantiles of the aggregate posterior at the levels Phi(-3), ..., Phi(3) where
    ``encoded`` is given, so that it stays where the decoder was trained; else the prior's mean -3, ..., +3 of its
    standard deviations, in a chain those of p(z^i|z^(i+1)) at the start. A categorical unit takes its classes in turn.

    Args:
        vae: the model; a chain must be :class:`vaeaudit.model.vae.Hierarchical`.
        units: numbers of the units, all continuous or all categorical with equally many classes.
        item: where to start, (*input_shape); the prior's mean where None.
        encoded: the posteriors of a data set; not of a chain, of which they are one layer.
        steps: values of each continuous unit.
        batch_size: most rows given to the decoder at once; by size where None.

    Raises:
        ConfigError: no unit, one that is not there, units that cannot stand in one figure, fewer than two steps.
        DataError: an item that is not the model's.
        UnsupportedError: a posterior whose units are not known; a chain's aggregate posterior.
    """
    if item is None:
        start = vae.prior
    else:
        check_items(vae, item[None], None, "items")
        start = vae.encode(item[None])
    origin = start.mean  # (1, *latent)
    places = _places(start)
    missing = [unit for unit in units if not 0 <= unit < len(places)]
    if missing or not units:
        came = f"unit {missing[0]} was asked for" if missing else "none was asked for"
        raise ConfigError(f"the model's units are numbered 0 to {len(places) - 1}, but {came}")
    if encoded is not None and isinstance(start, Chain):
        raise UnsupportedError(
            "the aggregate posterior of one layer is not that of all layers of a chain; leave the encodings out to "
            "traverse the priors"
        )
    if encoded is not None and encoded.units != len(places):
        raise ConfigError(
            f"the encodings have {encoded.units} units, but the model has {len(places)}; give those of this model"
        )
    chosen = [places[unit] for unit in units]
    classes = {len(place) for place in chosen}
    if len(classes) > 1:
        raise ConfigError(
            "units traversed together must all be continuous, or categorical with as many classes, but their "
            f"dimensions are {sorted(classes)}; traverse them apart"
        )
    if (width := classes.pop()) > 1:
        values = torch.arange(width, device=origin.device).expand(len(chosen), -1)
        span, moves = "each class in turn", torch.eye(width, dtype=origin.dtype, device=origin.device)
        moves = moves.expand(len(chosen), -1, -1)
    else:
        if steps < 2:
            raise ConfigError(f"a traversal has at least two steps, but {steps} were asked for")
        reach = torch.linspace(-_REACH, _REACH, steps, dtype=torch.float64, device=origin.device)
        if encoded is None:
            mean, stddev = (column[list(units)][:, None] for column in _prior_units(vae, origin))
            values, span = mean + stddev * reach, f"-{_REACH:g} to {_REACH:g} standard deviations of the prior"
        else:
            values = aggregate_quantiles(encoded, units, torch.special.ndtr(reach))
            span = f"quantiles of the aggregate posterior of {encoded.n} items, Phi(-{_REACH:g}) to Phi({_REACH:g})"
        moves = values.to(origin)[..., None]
    z = origin.flatten(1).expand(len(chosen), moves.shape[1], -1).clone()
    for row, place in enumerate(chosen):
        z[row][:, place] = moves[row]
    rows = RowBatches.automatic(tuple(vae.input_shape), z.device) if batch_size is None else RowBatches(batch_size)

    def decoded(part: Tensor) -> tuple[Tensor]:
        return (vae.decode(part.reshape(-1, *origin.shape[1:])).mean,)

    (images,) = rows.map(decoded, z.flatten(0, 1))
    images = images.reshape(*z.shape[:2], *images.shape[1:])
    return Traversal(tuple(units), values, images, span, width if width > 1 else 0)


@torch.no_grad()
def aggregate_quantiles(encoded: Encodings, units: Sequence[int], levels: Tensor) -> Tensor:
    """Quantiles of q(z_j) = 1/N sum_n q(z_j|x_n) of continuous ``units`` at ``levels`` (steps,), (units, steps).

    The mixture's distribution function is bisected between the least and the largest of the components' own quantiles,
    to 1e-12 of their distance, in float64.
    """
    found = []
    for unit in units:
        mean, stddev = encoded.mean[:, unit].double(), encoded.log_stddev[:, unit].double().exp()
        own = torch.special.ndtri(levels)
        low, high = own.new_full(own.shape, torch.inf), own.new_full(own.shape, -torch.inf)
        some = max(1, _TOGETHER // len(own))
        parts = list(zip(torch.split(mean, some), torch.split(stddev, some), strict=True))
        for m, s in parts:
            of_components = m[:, None] + s[:, None] * own
            low, high = torch.minimum(low, of_components.amin(0)), torch.maximum(high, of_components.amax(0))
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            below = torch.stack([torch.special.ndtr((middle - m[:, None]) / s[:, None]).sum(0) for m, s in parts])
            left = below.sum(0) < levels * len(mean)
            low, high = torch.where(left, middle, low), torch.where(left, high, middle)
        found.append(0.5 * (low + high))
    return torch.stack(found)


def _places(q: Posterior) -> list[Tensor]:
    """Where each unit lies in the flattened latents, in the order of Encodings: continuous units first."""
    mean = q.mean[0]
    numbers = torch.arange(mean.numel(), device=mean.device).reshape(mean.shape)
    if isinstance(q, Chain):
        return list(numbers[:, None])
    parts = list(_parts(q, numbers))
    continuous = [place for part, of in parts if isinstance(part, DiagonalGaussian) for place in of.reshape(-1, 1)]
    return continuous + [of.flatten() for part, of in parts if not isinstance(part, DiagonalGaussian)]


def _parts(q: Posterior, numbers: Tensor) -> Iterator[tuple[Posterior, Tensor]]:
    """The Gaussian and categorical parts of a posterior, each with the ``numbers`` (*latent) of its latents."""
    if isinstance(q, Joint):  # its parts lie one after another along the last axis
        widths = [part.mean.shape[-1] for part in q.parts]
        for part, of in zip(q.parts, torch.split(numbers, widths, dim=-1), strict=True):
            yield from _parts(part, of)
        return
    if not isinstance(q, DiagonalGaussian | Discrete):
        units_of(q)  # which says what is not known
    yield q, numbers


def _prior_units(vae: VAE, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each continuous unit under the prior, (units,) float64."""
    layers: tuple[Posterior, ...]
    if isinstance(vae, Hierarchical):
        layers = vae.conditional_priors(origin)
    elif isinstance(vae.prior, Chain):
        raise UnsupportedError(
            "the prior of a chain's layers is not known; give the model the method conditional_priors of "
            "vaeaudit.model.vae.Hierarchical"
        )
    else:
        layers = (vae.prior,)
    means, log_stddevs, _ = zip(*map(units_of, layers), strict=True)
    return torch.cat(means, 1)[0].double(), torch.cat(log_stddevs, 1)[0].double().exp()
