"""What a check is given: tensors that fit the model, told apart from those that do not in one sentence."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vaeaudit.errors import ConfigError, ContractError, DataError, NonFiniteError, UnsupportedError, listed
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.box import bounds
from vaeaudit.model.conditions import model_of, under
from vaeaudit.model.families import moved_part
from vaeaudit.model.ranges import Range, intervals, range_for, span_text
from vaeaudit.model.vae import VAE, Chain, DiagonalGaussian, Joint, Posterior, Recombinable
from vaeaudit.stats.draws import noise_set

_MOST_BYTES = 2**34  # of the distortions of one attack


def box_of(vae: VAE, data_range: object = None) -> Range | None:
    """The range that inputs keep to: ``data_range``, else the model's own; None where there is neither.

    Raises :class:`ConfigError`, or :class:`ContractError` for the model's, where it is none or has intervals for
    another number of channels or features than the model takes.
    """
    own = data_range is None
    span = vae.range if own else data_range
    try:
        return None if span is None else range_for(span, tuple(vae.input_shape))
    except ValueError as error:
        kind, whose = (ContractError, "the model's range") if own else (ConfigError, "the range")
        raise kind(f"{whose} is {error}; correct it") from None


@torch.no_grad()
def route_of(vae: VAE, x: Tensor) -> str:
    """How log p(x|z) is computed, told from latents that differ: those of ``x`` (one item or more) and the prior's."""
    mean = vae.encode(x).mean
    return vae.decode(torch.cat([mean, vae.prior.mean.to(x).expand_as(mean)])).route


def check_items(vae: VAE, x: Tensor, box: Range | None, what: str) -> None:
    """Raise :class:`DataError` unless ``x``, called ``what``, are items of the model, at least one, in the box."""
    shape = tuple(vae.input_shape)
    if tuple(x.shape[1:]) != shape or len(x) == 0 or not x.is_floating_point():
        raise DataError(
            f"{what} must be floating-point numbers ({what}, {', '.join(map(str, shape))}), at least one, but are "
            f"{tuple(x.shape)} of {x.dtype}"
        )
    model = model_of(vae)
    weight = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if weight is not None and (weight.dtype, weight.device) != (x.dtype, x.device):
        raise DataError(
            f"{what} are {x.dtype} on {x.device}, but the model is {weight.dtype} on {weight.device}; convert one"
        )
    low, high = bounds(box, shape, x)
    outside = ~((x >= low) & (x <= high))
    if bool(outside.any()):
        of = outside.nonzero()[0, 1:].tolist()[0] if len(intervals(box)) > 1 else None
        where, seen = ("", x) if of is None else (f" of channel or feature {of}", x[:, of])
        span = f"[{float(seen.min()):.4g}, {float(seen.max()):.4g}]"
        allowed = span_text(intervals(box)[of or 0])
        raise DataError(f"the {what} must lie in the range {allowed} but span {span}{where}; rescale them")


def check_pairs(vae: VAE, x: Tensor, x_t: Tensor, box: Range | None) -> None:
    """Raise :class:`DataError` unless ``x`` and ``x_t`` are pairs of different items of the model, in the box."""
    shape = tuple(vae.input_shape)
    if tuple(x.shape[1:]) != shape or x.shape != x_t.shape:
        raise DataError(
            f"sources and targets must both be (pairs, {', '.join(map(str, shape))}), "
            f"but are {tuple(x.shape)} and {tuple(x_t.shape)}"
        )
    if not x.is_floating_point() or x.dtype != x_t.dtype or x.device != x_t.device:
        raise DataError(
            f"sources and targets must be of one floating-point type on one device, but are {x.dtype} on {x.device} "
            f"and {x_t.dtype} on {x_t.device}"
        )
    if len(x) == 0:
        raise DataError("an attack needs at least one pair of a source and a target, but none was given")
    check_items(vae, x, box, "sources")
    check_items(vae, x_t, box, "targets")
    equal = (x == x_t).flatten(1).all(1)
    if equal.any():
        which = equal.nonzero().squeeze(1).tolist()
        raise DataError(f"source and target are the same image in pair {which[0]}; there is nothing to attack")


def check_size(x: Tensor, problems: int, what: str) -> None:
    """Raise :class:`ConfigError` where results of ``problems`` for each row of ``x`` could be held by no machine."""
    size = problems * x.numel() * x.element_size()
    if size > _MOST_BYTES:
        raise ConfigError(
            f"{problems:,} {what} for each of {len(x):,} inputs would make {size / 2**30:,.0f} GiB of distortions, and "
            f"{_MOST_BYTES / 2**30:.0f} GiB are the most; ask for fewer of either"
        )


def without_spread(vae: VAE, x: Tensor, rows: RowBatches, *, items: Sequence[int]) -> bool:
    """Whether the encoder is deterministic: no draw of any item of ``x`` differs from its posterior's mean.

    ``items`` number the rows of ``x``.

    Raises:
        UnsupportedError: the posterior varies and is no diagonal Gaussian, or only some of its deviations are 0.
        DataError: standard deviations are NaN or infinite.
    """
    with torch.no_grad():
        first = under(vae, slice(1)).encode(x[:1])
        gaussian = isinstance(first, Recombinable) and _as_it_says(first)
    kind, shape = type(first).__name__, tuple(first.noise_shape)
    number = torch.arange(len(x), device=x.device)

    @torch.no_grad()
    def spread(index: Tensor) -> tuple[Tensor]:
        q: Posterior = under(vae, index).encode(x[index])
        if gaussian and (part := moved_part(q)):
            return (part.log_stddev.exp().flatten(1),)
        noise = noise_set(shape, draws=2, items=index.tolist(), seed=0, check="spread", like=x)
        return ((q.sample(noise) - q.mean).abs().amax(0).flatten(1),)

    (found,) = rows.map(spread, number)
    bad = not_finite(found)
    if gaussian and bad:
        raise DataError(
            f"the posterior's standard deviation is NaN or infinite for {len(bad)} of {len(x)} items, the first of "
            f"them item {items[bad[0]]}: they have no margin; leave them out, check the data's range and the "
            "checkpoint, or try --dtype float64"
        )
    if not bool(found.any()) and not (gaussian and isinstance(first, Joint | Chain)):  # the rest of which may vary
        return True
    if not gaussian:
        raise UnsupportedError(
            "margins are defined for a diagonal Gaussian posterior with draws mean + stddev * noise, for a "
            "vaeaudit.Product with such a part, a vaeaudit.GaussianChain, or one that does not vary, but this model's "
            f"is {kind}, which does vary; `vaeaudit attack` takes any posterior"
        )
    without = int((found == 0).any(1).sum())
    if without:
        raise UnsupportedError(
            f"the posterior has a standard deviation of 0 for {without} of {len(x)} items, so that r-robustness "
            "degenerates there, and not for all items and latents, as in a deterministic encoder, whose margin would "
            "be taken; ask for these items and the others apart"
        )
    return False


def _as_it_says(q: Posterior) -> bool:
    """Whether a draw of every Gaussian part is what its fields say; False where there is none.

    A family of its own may scale its noise, as by a temperature.
    """
    given = q.parts if isinstance(q, Joint) else (moved_part(q),)
    parts = [part for part in given if isinstance(part, DiagonalGaussian)]
    return bool(parts) and all(map(_draws_as_it_says, parts))


def _draws_as_it_says(q: DiagonalGaussian) -> bool:
    noise = torch.linspace(-2, 2, q.mean.numel(), dtype=q.mean.dtype, device=q.mean.device).reshape(q.mean.shape)
    if tuple(q.noise_shape) != tuple(q.mean.shape[1:]):
        return False
    return torch.allclose(q.sample(noise), q.mean + q.log_stddev.exp() * noise, equal_nan=True)


def numbered(items: Sequence[int]) -> str:
    """Tell "item 137", or "items 3, 137 and 12 more"."""
    return f"item{'s' * (len(items) > 1)} {listed(map(str, items))}"


def not_finite(values: Tensor) -> list[int]:
    """The places of rows of ``values``, (n, ...), that hold NaN or infinity."""
    if bool(values.sum().isfinite()):  # then all are, and one pass has told it
        return []
    places: list[int] = (~values.reshape(len(values), -1).isfinite().all(1)).nonzero().squeeze(1).tolist()
    return places


def require_finite(what: str, values: Tensor, items: Sequence[int]) -> None:
    """Raise :class:`NonFiniteError` that names the items for which ``what``, (n, ...), is NaN or infinite."""
    bad = not_finite(values)
    if bad:
        raise NonFiniteError(
            f"the {what} is NaN or infinite for {len(bad)} of {len(values)} items, "
            f"{numbered([items[place] for place in bad])}; leave such items out, check the data's range and the "
            "checkpoint, or try --dtype float64"
        )


def require_finite_outputs(vae: VAE, x: Tensor, rows: RowBatches, items: Sequence[int], of: str = "") -> None:
    """:func:`require_finite` of the posterior mean of ``x`` and of its reconstruction, ``of`` what in words."""

    @torch.no_grad()
    def run(part: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        of_part = under(vae, item)
        mean = of_part.encode(part).mean
        finite = of_part.decode(mean).mean.isfinite().flatten(1).all(1)
        return mean.flatten(1), torch.where(finite, 0.0, torch.nan)

    latents, reconstruction = rows.map(run, x, torch.arange(len(x), device=x.device))
    require_finite(f"posterior mean{of}", latents, items)
    require_finite(f"decoder mean{of}", reconstruction, items)
