"""The noise check: how the likelihood of a clean input falls when the encoder sees it through Gaussian noise.

E_eps E_{z ~ q(z|x + eps)} log p(x|z), eps ~ N(0, s^2 I), with s on the data's scale (Willetts et al. 2019, 5.3 and
appendix E; Camuto et al. 2021, appendix E). It is E log p: E p, which the former print and do not plot, is carried by
the rare best draws, and log E p can rank models in reverse. Noise meets the encoder alone: log p is always of the
clean x, so that noisy inputs may leave the range and the likelihood's support.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy import stats as distributions
from torch import Tensor

from vaeaudit.checks.relative import near_zero, share_of
from vaeaudit.errors import ConfigError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.box import bounds
from vaeaudit.model.conditions import under
from vaeaudit.model.ranges import Range
from vaeaudit.model.vae import VAE
from vaeaudit.progress import GoOn, Progress, always, within
from vaeaudit.stats.draws import noise_set
from vaeaudit.subject.encodings import Images, count_of, numbers_of
from vaeaudit.subject.inputs import box_of, check_items, numbered, route_of

Over = Literal["mean", "median"]
SIGMAS = (0.1, 0.25, 0.5, 1.0)
_DRAWS = 10
_SHARE = 0.25  # of the squared deviations of all items, above which one of them may carry a mean
_OUTLYING = 1e-3  # chance that an item of a few counts as one that does, though all are normal
_MOST_NUMBERS = 2**23  # of noise held at once, as long as one item needs no more


@dataclass(frozen=True, eq=False)
class NoiseResult:
    """The likelihoods of I items under noise of S standard deviations ``sigmas``, with D draws an item.

    In nats, in the model's dtype: ``clean`` (D, I) is log p(x|z), z ~ q(z|x); ``log_likelihood`` (S, D, I) is
    log p(x|z*), z* ~ q(z|x + eps). A draw is one eps and one z. Its noise is the same in all sigmas, eps = s eta, and
    its reparameterisation noise the same in ``clean`` as well: differences are paired, and curves over sigma smooth.

    In input units: ``error`` (S, I) is ||rec(x + eps) - x|| and ``length`` (S, I) is ||eps||, after clipping, both of
    the first draw of each item, with the reconstruction at z = the mean; ``clean_error`` (I,) is ||rec(x) - x||.

    ``items`` (I,) number the items and key their draws. ``clip`` is the range that noisy inputs were clamped to, or
    None. ``route`` is how log p is computed: figures of two routes are never compared. ``interrupted``: these are only
    the first items.
    """

    sigmas: tuple[float, ...]
    draws: int
    items: tuple[int, ...]
    clip: Range | None
    route: str
    seed: int
    clean: Tensor
    log_likelihood: Tensor
    clean_error: Tensor
    error: Tensor
    length: Tensor
    interrupted: bool

    @property
    def degradation(self) -> Tensor:
        """log p(x|z) - log p(x|z*) in nats, (S, D, I); below 0 where noise did good."""
        return self.clean - self.log_likelihood

    def relative_degradation(self, by: Over = "mean") -> Tensor:
        """|E [log p(x|z*) - log p(x|z)]| / |E log p(x|z)| of each item, (S, I), with E over its draws.

        float64 on the CPU. E is their mean, or their median: then that of the paired differences, not the difference of
        two medians. Gains count as losses do, and draws alone make it larger than 0. It depends on the constants of
        the likelihood, as the definition of Camuto et al. does. NaN for items whose log p is near 0, of which a share
        tells nothing; infinite where a median falls on a draw that is not finite.
        """
        base = over_draws(self.clean, by)
        share = share_of(over_draws(self.degradation, by, worst=math.inf), base, self.clean_spread)
        unknown = share.isnan() & ~near_zero(base, self.clean_spread)
        return share if by == "mean" else torch.where(unknown, math.inf, share)

    @property
    def clean_spread(self) -> Tensor | None:
        """Monte Carlo standard error of log p(x|z) of each item, (I,), float64 on the CPU; None for one draw."""
        return self.clean.cpu().double().std(0) / math.sqrt(self.draws) if self.draws > 1 else None

    @property
    def signs(self) -> tuple[str | None, ...]:
        """For each sigma why its figures support no verdict, in a sentence; None where they do.

        Off the data, log-variances can explode, and a mean is then carried by single draws. Signs are values that are
        NaN or infinite, and a mean degradation of less than two standard errors over items that a single item carries.
        Less than one would be no sign of heavy tails: the standard error of numbers that are not negative never exceeds
        their mean. Where no item carries it, a mean near 0 is one that little noise does little to, as its interval
        says. All are of means: quantiles keep what is not finite in its place, as the worst.
        """
        return tuple(_sign(sigma, lost, self.items) for sigma, lost in zip(self.sigmas, self.degradation, strict=True))


def over_draws(values: Tensor, by: Over = "mean", *, worst: float = -math.inf) -> Tensor:
    """Each item's mean or lower median over its draws, (..., draws, items) -> (..., items), float64 on the CPU.

    In a median a value that is NaN or infinite counts as ``worst``; a mean has none then.

    Items are independent of each other and the draws of one are not, so that every interval is over such values. The
    median belongs to quantiles over items: where one draw in ten explodes, it does so in most items' means.
    """
    values = values.cpu().double()
    return values.mean(-2) if by == "mean" else torch.where(values.isfinite(), values, worst).median(-2).values


@torch.no_grad()
def noise(
    vae: VAE,
    x: Tensor | Images,
    sigmas: Sequence[float] = SIGMAS,
    *,
    n: int | None = None,
    items: Sequence[int] | None = None,
    draws: int = _DRAWS,
    clip: bool = False,
    data_range: Range | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    go_on: GoOn = always,
) -> NoiseResult:
    """Likelihoods of clean items whose encoder sees them under Gaussian noise, and how far the model denoises.

    Args:
        vae: the model.
        x: the items, (I, *input_shape), or what gives those of given numbers.
        sigmas: standard deviations of the noise, on the scale of the data.
        n: how many items; all of a tensor where None.
        items: their numbers, which key the draws; 0 to n - 1 where None.
        draws: of noise and latents for each item.
        clip: whether x + eps is clamped to the range.
        data_range: [lo, hi] of the clean items; the model's own where None.
        seed: of every random draw.
        batch_size: most rows given to the model at once; by size where None.
        go_on: asked between batches; on False the items done so far are returned.

    Raises:
        ConfigError: no sigma, or one that is negative, not finite or given twice; no draws; no items or no ``n`` for a
            callable; ``clip`` without a range.
        DataError: items that are not the model's, outside the range or the likelihood's support.
    """
    levels = _levels(sigmas)
    of_function = items is not None and not isinstance(x, Tensor)
    numbers = numbers_of(items, count_of(x, len(items or ()) if n is None and of_function else n))
    box = box_of(vae, data_range)
    if draws < 1:
        raise ConfigError(f"noise is averaged over draws: at least one is needed, but {draws} were asked for")
    if clip and box is None:
        raise ConfigError("noisy inputs can be clipped to a known range only, and the model names none; give one")
    first = x[:1] if isinstance(x, Tensor) else x(numbers[:1])
    check_items(vae, first, box, "items")
    of_first = under(vae, slice(1))
    likelihood = of_first.decode(of_first.encode(first).mean)
    rows = RowBatches.automatic(tuple(vae.input_shape), first.device) if batch_size is None else RowBatches(batch_size)

    def of_items(index: Tensor) -> tuple[Tensor, ...]:
        part = x[index] if isinstance(x, Tensor) else x([numbers[i] for i in index.tolist()])
        for limits in (box, likelihood.support):
            check_items(vae, part, limits, "items")
        keys = [numbers[i] for i in index.tolist()]
        done, count = int(index[0]), len(numbers)
        here = within(go_on, done / count, (done + len(part)) / count)

        def tell(left: int, of: int) -> bool:
            here(Progress("noise", count - done, count, 1 - left / of))
            return True  # a part is done or left out as a whole

        within_box = box if clip else None
        values, errors, lengths = _of_part(
            under(vae, index), part, keys, levels, draws, within_box, seed, rows.size, tell
        )
        return values.view(draws, len(part), -1).transpose(0, 1), errors, lengths

    together = max(1, _MOST_NUMBERS // (draws * first[0].numel()))
    values, errors, lengths = rows.within(together).map(
        of_items,
        torch.arange(len(numbers)),  # where Python reads it
        go_on=lambda left, of: go_on(Progress("noise", left, of)),
        kept="noise",
    )
    done = len(values)
    clean, *noisy = values.permute(2, 1, 0).unbind(0)  # (I, D, 1 + S) -> 1 + S of (D, I)
    return NoiseResult(
        sigmas=levels,
        draws=draws,
        items=tuple(numbers[:done]),
        clip=box if clip else None,
        route=route_of(of_first, first),
        seed=seed,
        clean=clean,
        log_likelihood=torch.stack(noisy),
        clean_error=errors[:, 0],
        error=errors[:, 1:].T,
        length=lengths[:, 1:].T,
        interrupted=done < len(numbers),
    )


def _of_part(
    vae: VAE,
    x: Tensor,
    keys: Sequence[int],
    sigmas: Sequence[float],
    draws: int,
    clip: Range | None,
    seed: int,
    size: int,
    tell: Callable[[int, int], bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x|z) without and with noise, (draws * b, 1 + S); of the first draw ||rec - x|| and ||eps||, (b, 1 + S)."""
    q = vae.encode(x)
    edges = bounds(clip, tuple(x.shape[1:]), x)
    input_shape, latent_shape = tuple(x.shape[1:]), q.noise_shape
    eta = noise_set(input_shape, draws=draws, items=keys, seed=seed, check="noise.input", like=x)
    latent = noise_set(latent_shape, draws=draws, items=keys, seed=seed, check="noise.latent", like=x)

    def of_rows(place: Tensor, direction: Tensor, of_latent: Tensor) -> tuple[Tensor, ...]:
        row = (place % len(x)).to(x.device)
        of_place = under(vae, row)
        firsts = torch.arange(int((place < len(x)).sum()), device=x.device)  # the first draw comes first
        clean = x.index_select(0, row)
        values, errors, lengths = [], [], []
        for sigma in (None, *sigmas):
            if sigma is None:
                seen, posterior = clean, q.rows(row)
            else:
                seen = torch.add(clean, direction, alpha=sigma)
                seen = seen if clip is None else seen.clamp(*edges)
                posterior = of_place.encode(seen)
            values.append(of_place.decode(posterior.sample(of_latent)).log_prob(clean))
            target = clean[: len(firsts)]
            lengths.append((seen[: len(firsts)] - target).flatten(1).norm(dim=1))
            if len(firsts):
                errors.append(
                    (under(vae, firsts).decode(posterior.rows(firsts).mean).mean - target).flatten(1).norm(dim=1)
                )
            else:  # many models cannot take a batch of no rows
                errors.append(lengths[-1])
        return torch.stack(values, 1), torch.stack(errors, 1), torch.stack(lengths, 1)

    place = torch.arange(draws * len(x))
    # Batches of its own: where memory runs out here, the items outside stay as they were counted.
    values, errors, lengths = RowBatches(size).map(of_rows, place, eta.flatten(0, 1), latent.flatten(0, 1), go_on=tell)
    return values, errors, lengths


def _sign(sigma: float, degradation: Tensor, items: Sequence[int]) -> str | None:
    """What makes the mean of ``degradation`` (D, I) unclear."""
    bad = (~degradation.isfinite()).T.nonzero().tolist()  # by item, then by draw
    if bad:
        named = numbered([items[place] for place in dict.fromkeys(place for place, _ in bad)])
        return (
            f"with noise of {sigma:g}, {len(bad)} of {degradation.numel()} log-likelihoods are NaN or infinite: of "
            f"{named} (the first in its draw {bad[0][1] + 1} of {len(degradation)}); quantiles count them as the "
            "worst, and the means are in doubt"
        )
    if sigma == 0:
        return None
    of_items = over_draws(degradation)
    n, mean = len(of_items), float(of_items.mean())
    said = f"with noise of {sigma:g}, the mean degradation of {mean:.3g} nats"
    if n < 2:
        return f"{said} is of one item, so that nothing tells how far others lie from it; take more items"
    squares = (of_items - mean).square()
    error = math.sqrt(float(squares.sum()) / (n - 1) / n)
    share, first = (float(value) for value in (squares / squares.sum()).max(0))
    if 2 * error <= abs(mean) or not share > _carried(n):
        return None
    return (
        f"{said} is less than twice its standard error over {n} items, {error:.3g}, of whose square item "
        f"{items[int(first)]} alone makes {share:.0%}; read the median, or take more items"
    )


def _carried(n: int) -> float:
    """The share of the squared deviations of ``n`` items above which the largest of them carries their mean.

    A quarter: a mean of many numbers that are not negative, of less than two standard errors, always has one beyond it.
    Of few items more, since one of them always has a large share: what normal numbers exceed with a probability of
    less than 0.001 (Grubbs' test for one outlier).
    """
    if n < 3:
        return 1.0
    t = float(distributions.t.isf(_OUTLYING / (2 * n), n - 2))
    return max(_SHARE, (n - 1) / n * t**2 / (n - 2 + t**2))


def _levels(sigmas: Sequence[float]) -> tuple[float, ...]:
    levels = tuple(abs(s) if s == 0 else float(s) for s in sigmas)  # abs: -0.0 has another name
    if not levels or not all(0 <= s < math.inf for s in levels):
        raise ConfigError(f"the noise needs standard deviations that are finite and not negative, but {levels} came")
    if len({f"{s:.6g}" for s in levels}) < len(levels):
        raise ConfigError(f"sigmas must differ in their first six digits, which name them, but {levels} were given")
    return levels
