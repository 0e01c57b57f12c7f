"""The reconstruction check: how like their inputs the reconstructions are, at z = the mean and at draws of z.

Peak signal-to-noise ratio and structural similarity are those of pictures: PSNR = 10 log10(1 / MSE) with values in
units of the range (of each channel where it has its own), SSIM as Wang et al. 2004 define it, MS-SSIM as Wang et al.
2003, both as :mod:`vaeaudit.checks.likeness` says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeaudit.checks.compared import Compared
from vaeaudit.checks.reconstruction.distances import Embedded
from vaeaudit.checks.reconstruction.metrics import LOG_LIKELIHOOD, LPIPS, OF_ITEMS
from vaeaudit.checks.reconstruction.networks import Network
from vaeaudit.errors import ConfigError, UnsupportedError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.conditions import under
from vaeaudit.model.ranges import Range
from vaeaudit.model.vae import VAE, Likelihood
from vaeaudit.progress import GoOn, Progress, always
from vaeaudit.stats.draws import noise_set
from vaeaudit.subject.encodings import Images, count_of, numbers_of
from vaeaudit.subject.inputs import box_of, check_items, require_finite, route_of


@dataclass(frozen=True, eq=False)
class Features:
    """The errors of vectors by feature, float64 (features,): in units of each feature's ``stddev`` over the items.

    ``mean_square`` is the mean over items of the squared error, ``error`` its standard error; both in squared input
    units.
    """

    mean_square: Tensor
    error: Tensor
    stddev: Tensor


@dataclass(frozen=True, eq=False)
class ReconstructionResult:
    """How like their inputs the reconstructions of I items are.

    ``at_mean`` and ``at_draws`` give (I,) for each metric's name, the latter the mean over an item's ``draws``, empty
    without any; float64 on the CPU. ``bias`` (I, channels) is the mean of rec(x) - x by channel at the mean, None but
    for colour pictures; ``features`` are there of vectors alone. ``scales`` are those of MS-SSIM. ``left_out`` tells
    why metrics are not there, by name. ``route`` is how log p is computed. ``interrupted``: these are only the first
    items. ``perceptual`` and ``network`` are those by which LPIPS was computed, and the ``embedded`` features of inputs
    and of reconstructions at z = the mean.
    """

    items: tuple[int, ...]
    draws: int
    at_mean: Mapping[str, Tensor]
    at_draws: Mapping[str, Tensor]
    bias: Tensor | None
    features: Features | None
    perceptual: Network | None
    network: Network | None
    embedded: Embedded | None
    scales: int | None
    left_out: Mapping[str, str]
    route: str
    seed: int
    interrupted: bool


@torch.no_grad()
def reconstruction(
    vae: VAE,
    x: Tensor | Images,
    *,
    n: int | None = None,
    items: Sequence[int] | None = None,
    draws: int = 1,
    picture: tuple[int, ...] | None = None,
    data_range: Range | None = None,
    perceptual: Network | None = None,
    network: Network | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    go_on: GoOn = always,
) -> ReconstructionResult:
    """Compare items with their reconstructions, at z = the mean and at keyed draws of z.

    Args:
        vae: the model.
        x: the items, (I, *input_shape), or what gives those of given numbers.
        n: how many items; all of a tensor where None.
        items: their numbers, which key the draws; 0 to n - 1 where None.
        draws: of z for each item; 0 for the mean alone.
        picture: the shape in which an item is an image, (H, W), (C, H, W) or (H, W, C); the model's where None.
        data_range: [lo, hi] of the items; the model's own where None.
        perceptual: of two images, whose distance is LPIPS.
        network: of one image, whose features give FID and KID.
        seed: of every random draw.
        batch_size: most rows given to the model at once; by size where None.
        go_on: asked between batches; on False the items done so far are returned.

    Raises:
        ConfigError: fewer than no draws; no items or no ``n`` for a callable.
        UnsupportedError: a network that takes images of other colours, or none of a range that is not known.
        DataError: items that are not the model's, outside the range or the likelihood's support.
        NonFiniteError: reconstructions that are NaN or infinite.
    """
    of_function = items is not None and not isinstance(x, Tensor)
    numbers = numbers_of(items, count_of(x, len(items or ()) if n is None and of_function else n))
    box, shape = box_of(vae, data_range), tuple(vae.input_shape)
    if draws < 0:
        raise ConfigError(f"an item has no fewer than 0 draws of z, but {draws} were asked for")
    first = x[:1] if isinstance(x, Tensor) else x(numbers[:1])
    check_items(vae, first, box, "items")
    of_first = under(vae, slice(1))
    likelihood = of_first.decode(of_first.encode(first).mean)
    compared = Compared.of(shape, picture, box, first)
    if (perceptual or network) and compared.low is None:
        raise UnsupportedError(f"LPIPS, FID and KID are of images in a known range: {compared.left_out['psnr']}")
    names = [
        metric.name
        for metric in OF_ITEMS
        if metric.name not in compared.left_out and (metric is not LPIPS or perceptual)
    ]
    embedded = None if network is None else Embedded()
    vectors = compared.picture is None and len(shape) == 1
    rows = RowBatches.automatic(shape, first.device) if batch_size is None else RowBatches(batch_size)

    def figures(part: Tensor, p: Likelihood, made: Tensor) -> Tensor:
        found = compared.figures(part, made) | {LOG_LIKELIHOOD.name: p.log_prob(part)}
        if perceptual is not None:
            found[LPIPS.name] = (
                perceptual(compared.pictured(part), compared.pictured(made)).reshape(len(part), -1).mean(1)
            )
        return torch.stack([found[name].double() for name in names], 1)

    def of_items(index: Tensor) -> tuple[Tensor, ...]:
        keys = [numbers[place] for place in index.tolist()]
        part = x[index[0] : index[-1] + 1] if isinstance(x, Tensor) else x(keys)
        check_items(vae, part, box, "items")
        if likelihood.support != box:
            check_items(vae, part, likelihood.support, "items")
        of_part = under(vae, index)
        q = of_part.encode(part)
        p = of_part.decode(q.mean)
        made = p.mean.to(part)  # a decoder may give another precision than it is given
        require_finite("reconstruction", made, keys)
        at_mean = figures(part, p, made)
        at_draws = torch.zeros_like(at_mean)
        if draws:
            noise = noise_set(q.noise_shape, draws=draws, items=keys, seed=seed, check="reconstruction", like=q.mean)
            for eta in noise:
                p_z = of_part.decode(q.sample(eta))
                drawn = p_z.mean.to(part)
                require_finite("reconstruction from a draw of z", drawn, keys)
                at_draws += figures(part, p_z, drawn) / draws
        if network is not None and embedded is not None:
            embedded.add(network(compared.pictured(part)), network(compared.pictured(made)))
        sums = _sums(part, made, first[0]) if vectors else torch.zeros(1)
        return at_mean.cpu(), at_draws.cpu(), compared.bias(made - part), sums

    at_mean, at_draws, bias, sums = rows.map(
        of_items,
        torch.arange(len(numbers)),
        go_on=lambda left, of: go_on(Progress("reconstructing", left, of)),
        kept="" if embedded else "reconstruction",  # sums of features, for FID, are not kept by part
    )
    done = len(at_mean)
    by_name = [dict(zip(names, found.T, strict=True)) for found in (at_mean, at_draws)]
    return ReconstructionResult(
        items=tuple(numbers[:done]),
        draws=draws,
        at_mean=by_name[0],
        at_draws=by_name[1] if draws else {},
        bias=bias if bias.shape[1] > 1 else None,
        features=_features(sums.sum(0), done) if vectors else None,
        perceptual=perceptual,
        network=network,
        embedded=embedded,
        scales=compared.scales,
        left_out=compared.left_out,
        route=route_of(of_first, first),
        seed=seed,
        interrupted=done < len(numbers),
    )


def _sums(x: Tensor, reconstructed: Tensor, start: Tensor) -> Tensor:
    """Sums over items by which errors by feature need no memory by item, (1, 4, F).

    Values are summed around those of an item, ``start``, lest their squares cancel.
    """
    squares = (reconstructed.double() - x.double()).square().cpu()
    x = x.double().cpu() - start.double().cpu()
    return torch.stack([of.sum(0) for of in (x, x.square(), squares, squares.square())])[None]


def _features(sums: Tensor, n: int) -> Features:
    """Errors by feature from their sums (4, F) over ``n`` items."""
    mean, square, error, fourth = sums / n
    lost = n / max(1, n - 1)
    return Features(
        error,
        ((fourth - error.square()).clamp(min=0) * lost / n).sqrt(),
        (square - mean.square()).clamp(min=0).sqrt(),
    )
