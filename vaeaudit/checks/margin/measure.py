"""The margin check: how far an item may move before its reconstruction leaves radius r, as bounds that hold.

R(x) = sup{rho: P(||g(z_d) - g(mu(x))|| <= r) > m for all ||d|| < rho} (Camuto et al. 2021, definition 1) lies between
a certified and an empirical margin, each with its confidence; first-order estimates stand beside them and are
bounded by neither.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeaudit.attacks.margin import SIGMAS, Empirical, empirical_margin
from vaeaudit.attacks.within import kept_along
from vaeaudit.certify.graph import trace_encoder
from vaeaudit.certify.theorem import Sigma, pathwise_margin
from vaeaudit.checks.margin.certified import EFFORTS, Certificates, Certified, Effort
from vaeaudit.checks.margin.deterministic import Deterministic
from vaeaudit.checks.margin.estimates import FirstOrder, JacobianNorms, first_order, jacobian_norms
from vaeaudit.checks.margin.radius import Kept, MinRadius, check_probability, draw_distances, kept, min_radius
from vaeaudit.errors import ConfigError, DataError, UnsupportedError, nearest
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.conditions import under
from vaeaudit.model.ranges import Range
from vaeaudit.model.vae import VAE, Chain, Joint
from vaeaudit.progress import GoOn, Progress, always, within
from vaeaudit.subject.inputs import box_of, check_items, without_spread

PARTS = ("certified", "empirical")
_DRAWS = 1000
# Shares of the time, as measured, when the slopes are known, when all is drawn, and of a radius its certificates.
_SLOPES, _DREW = 0.02, 0.08
_CERTIFIED = {"fast": 0.1, "thorough": 0.2, "boxed": 0.5}  # of what is left
_DRAWN = "margin"  # what the draws are keyed by
_SHOWN, _LENGTHS = 6, 13  # items whose fall is shown, and at how many lengths


@dataclass(frozen=True, eq=False)
class Fall:
    """P(||g(z_d) - g(mu(x))|| <= r), (b, T), at ``lengths`` (b, T) along the distortions that broke ``place`` (b,)."""

    place: Tensor
    lengths: Tensor
    p: Tensor


@dataclass(frozen=True, eq=False)
class MarginAt:
    """The margins at one radius ``r``; ``certified`` and ``empirical`` are None where they were not asked for.

    ``fall`` shows how the first items that broke left r; None where none was searched for or the encoder is
    deterministic.
    """

    r: float
    kept: Kept
    estimates: FirstOrder
    certified: Certified | None
    empirical: Empirical | None
    fall: Fall | None

    @property
    def crossed(self) -> Tensor:
        """Which items have a certified margin of any kind above their empirical one, (items,)."""
        if self.certified is None or self.empirical is None:
            return torch.zeros_like(self.kept.hits, dtype=torch.bool)
        certified = torch.fmax(self.certified.boxed, torch.fmax(self.certified.radius, self.certified.pathwise))
        return certified > self.empirical.margin


@dataclass(frozen=True, eq=False)
class MarginResult:
    """The margins of items (I, *input_shape), one entry of ``at`` for each radius.

    Every bound holds with probability 1 - ``alpha``. Where ``family_wise`` that is (1 - ``level``) over the number of
    all bounds, and they hold together with probability ``level``: for each item one of min r, and for each item and
    radius those that rest on p_low, the pathwise and the empirical one. ``min_radius`` is the least r for which an item
    is r-robust unperturbed. ``sigma`` is "frozen" or "full".

    Where the encoder is ``deterministic`` R is inf{||d||: ||g(mu(x + d)) - g(mu(x))|| > r}: P is 0 or 1, so that m,
    sigma and draws play no part (``draws`` and ``min_radius`` are 0), every bound is sure (``alpha`` is 0), and
    ``norms`` and estimates are those of the map g o mu.

    Where the posterior is ``joint``, R is that of its Gaussian part: what else there is, such as categorical latents,
    is drawn as at x wherever the input moves to. Theorem (i) asks nothing of what does not move. Where it is a
    ``chain``, the input moves q(z^1|x), and the layers above are drawn given z^1: its bounds hold as they stand, for
    the success set of z^1 and the noise of these layers.
    """

    m: float
    sigma: str
    box: Range | None
    level: float
    alpha: float
    family_wise: bool
    draws: int
    seed: int
    min_radius: MinRadius
    norms: JacobianNorms
    at: tuple[MarginAt, ...]
    interrupted: bool
    deterministic: bool = False
    joint: bool = False
    chain: bool = False

    @property
    def n(self) -> int:
        """How many items these are of."""
        return len(self.min_radius.estimate)


def margin(
    vae: VAE,
    x: Tensor,
    r: float | Sequence[float],
    *,
    m: float = 0.5,
    sigma: Sigma = "frozen",
    data_range: Range | None = None,
    boxed: bool = True,
    level: float = 0.95,
    family_wise: bool = False,
    draws: int = _DRAWS,
    parts: Sequence[str] = PARTS,
    effort: Effort = "thorough",
    seed: int = 0,
    batch_size: int | None = None,
    items: Sequence[int] | None = None,
    go_on: GoOn = always,
) -> MarginResult:
    """Certified, estimated and empirical margins of each item; for a deterministic encoder as the result says.

    Args:
        vae: the model; the decoder's mean is what must stay within r.
        x: the items, (I, *input_shape), in the model's dtype and on its device.
        r: one radius or several, in output units; a radius read off a result spoils the confidence of another with
            the same seed.
        m: the risk level: more than this probability must stay within r.
        sigma: "frozen" (sigma at x; theorem 1) or "full" (sigma at x + d; algorithm 2): two different quantities.
        data_range: [lo, hi] of x + d; the model's own where None.
        boxed: whether the empirical margin keeps x + d in that range; the certified one holds with and without, and
            one of the two makes use of it.
        level: confidence of each bound.
        family_wise: whether the level is that of all bounds of all items and radii together (Bonferroni).
        draws: of the posterior for each item, on which min r and p0 rest.
        parts: of "certified" and "empirical", those that are wanted.
        effort: of certificates: "fast", "thorough", which certifies more, or "boxed", which also certifies what stays
            within the range.
        seed: of every random draw.
        batch_size: most rows given to the model at once; by size where None.
        items: numbers that key the draws of each item; 0, 1, ... where None.
        go_on: asked regularly; on False what is left is not done, and the result says so: it is of the first items
            only where not even the draws of all were taken.

    Raises:
        ConfigError: r not positive and finite, m or level outside (0, 1), an unknown sigma, part or effort, no draws.
        DataError: items that are not the model's, outside the range, or of a standard deviation that is not finite.
        UnsupportedError: the posterior varies and has no diagonal Gaussian part, or has a standard deviation of 0 in
            places; or it is joint and sigma is "full".
        NonFiniteError: means, derivatives or reconstructions are NaN or infinite.
    """
    radii = _radii(r, x.dtype)
    box = box_of(vae, data_range)
    _check(m, sigma, level, parts, draws, effort)
    check_items(vae, x, box, "items")
    keys = list(range(len(x))) if items is None else list(items)
    if len(keys) != len(x):
        raise DataError(f"each of the {len(x)} items needs a number, but {len(keys)} came; give one each")
    rows = RowBatches.automatic(tuple(vae.input_shape), x.device) if batch_size is None else RowBatches(batch_size)
    watch, used = _Watch(go_on), box if boxed else None
    if without_spread(vae, x, rows, items=keys):
        alone = Deterministic(vae, x, rows, items=keys, seed=seed, level=level)
        return _deterministic(alone, radii, m, sigma, used, level, family_wise, parts, effort, seed, watch)
    with torch.no_grad():
        posterior = under(vae, slice(1)).encode(x[:1])
        joint, chain = isinstance(posterior, Joint), isinstance(posterior, Chain)
    if joint and sigma == "full":
        raise UnsupportedError(
            "with sigma = full all of a joint posterior moves, its categorical latents too, of which there is no "
            "margin; take sigma = frozen, which lets the Gaussian means move and draws all else as at x"
        )
    bounds = len(x) * (1 + len(radii) * (1 + len(set(parts))))
    alpha = (1 - level) / (bounds if family_wise else 1)
    _check_draws(draws, m, alpha)
    norms = jacobian_norms(vae, x, rows, items=keys, seed=seed, level=level, go_on=within(watch, 0.0, _SLOPES))
    x, keys, vae = x[: len(norms.spectral)], keys[: len(norms.spectral)], under(vae, slice(len(norms.spectral)))
    drawing = within(watch, _SLOPES, _DREW)
    distances = draw_distances(vae, x, rows, draws=draws, items=keys, seed=seed, check=_DRAWN, go_on=drawing)
    n = distances.shape[1]
    x, keys, norms, vae = x[:n], keys[:n], norms.first(n), under(vae, slice(n))
    certificates = growth = None
    if "certified" in parts:
        certificates = Certificates(lambda: trace_encoder(vae, x, sigma), x, sigma, effort, box=used)
        growth = certificates.growth(vae, draws=draws, items=keys, seed=seed, check=_DRAWN)
    at = []
    for number, radius in enumerate(radii):
        asked = within(watch, *(_DREW + (1 - _DREW) * done / len(radii) for done in (number, number + 1)))
        split = _CERTIFIED[effort] if "empirical" in parts else 1.0
        held = kept(distances, radius, alpha)
        estimates = first_order(norms, held.p_low, m)
        paths = None if growth is None else pathwise_margin(distances, growth, radius, m, alpha)
        certified = None if certificates is None else certificates.of(held.p_low, m, within(asked, 0.0, split), paths)
        empirical = None
        if "empirical" in parts and not watch.stopped:
            empirical = empirical_margin(
                vae,
                x,
                radius,
                m=m,
                sigma=sigma,
                box=used,
                alpha=alpha,
                seed=seed,
                items=keys,
                rows=rows,
                go_on=within(asked, split if certified else 0.0, 1.0),
            )
        fall = None
        if empirical is not None:
            place = ((empirical.margin > 0) & empirical.margin.isfinite()).nonzero().squeeze(1)[:_SHOWN]
            chosen = [keys[k] for k in place.tolist()]
            fall = Fall(
                place, *_fall(under(vae, place), x[place], empirical, place, radius, sigma, used, seed, chosen, rows)
            )
        at.append(MarginAt(radius, held, estimates, certified, empirical, fall))
    of_all = min_radius(distances, m, alpha)
    every, stopped = tuple(at), watch.stopped
    return MarginResult(
        m, sigma, used, level, alpha, family_wise, draws, seed, of_all, norms, every, stopped, joint=joint, chain=chain
    )


def usual_radius(
    vae: VAE, x: Tensor, times: float, *, m: float = 0.5, seed: int = 0, items: Sequence[int], batch_size: int | None
) -> float:
    """``times`` the median over items of the estimated min r, from draws of its own, to four digits.

    A radius chosen from the draws that judge it would spoil their confidence. Raises :class:`ConfigError` where it
    would be 0, as for a deterministic encoder, and what :func:`margin` raises for a posterior that it cannot take.
    """
    rows = RowBatches.automatic(tuple(vae.input_shape), x.device) if batch_size is None else RowBatches(batch_size)
    radius = 0.0
    if not without_spread(vae, x, rows, items=items):
        distances = draw_distances(vae, x, rows, draws=_DRAWS, items=items, seed=seed, check="margin.auto")
        radius = times * float(min_radius(distances, m, 0.5).estimate.median())
    if not 0 < radius < float("inf"):
        raise ConfigError(
            "the reconstructions do not vary over draws of the posterior, as in a deterministic encoder, so no radius "
            "can be chosen from them; give one, as in --r 4"
        )
    return float(f"{radius:.4g}")  # as it is printed


def _deterministic(
    alone: Deterministic,
    radii: tuple[float, ...],
    m: float,
    sigma: Sigma,
    box: Range | None,
    level: float,
    family_wise: bool,
    parts: Sequence[str],
    effort: Effort,
    seed: int,
    watch: "_Watch",
) -> MarginResult:
    """The margins where nothing varies: every item is kept for certain, by a radius of 0."""
    one, none = torch.ones_like(alone.norms.spectral), torch.zeros_like(alone.norms.spectral)
    at = []
    for radius in radii:
        certified = alone.certified(radius, effort, box, watch) if "certified" in parts else None
        empirical = alone.empirical(radius, box, watch) if "empirical" in parts and not watch.stopped else None
        held = Kept(none.long(), one, one, 0, 0.0)
        at.append(MarginAt(radius, held, alone.estimates(radius), certified, empirical, None))
    least = MinRadius(none, none, None, 0, m, 0.0)
    norms, stopped = alone.norms, watch.stopped
    return MarginResult(m, sigma, box, level, 0.0, family_wise, 0, seed, least, norms, tuple(at), stopped, True)


def _fall(
    vae: VAE,
    x: Tensor,
    found: Empirical,
    place: Tensor,
    r: float,
    sigma: Sigma,
    box: Range | None,
    seed: int,
    keys: Sequence[int],
    rows: RowBatches,
) -> tuple[Tensor, Tensor]:
    """Lengths and probabilities (b, T) along what broke the items ``place`` (b,), whose inputs are ``x``."""
    shares = torch.linspace(0, 2, _LENGTHS, dtype=x.dtype, device=x.device)
    lengths = found.margin[place, None].to(x) * shares
    if not len(place):
        return lengths, lengths
    ray = found.distortion[place]
    return lengths, kept_along(vae, x, ray, r, lengths, sigma=sigma, box=box, seed=seed, keys=keys, rows=rows)


class _Watch:
    """Asks whether to go on, and remembers the first no."""

    def __init__(self, go_on: GoOn) -> None:
        self._go_on, self.stopped = go_on, False

    def __call__(self, progress: Progress) -> bool:
        self.stopped = self.stopped or not self._go_on(progress)
        return not self.stopped


def _radii(r: float | Sequence[float], dtype: torch.dtype) -> tuple[float, ...]:
    radii = tuple(dict.fromkeys(float(radius) for radius in (r if isinstance(r, Sequence) else (r,))))
    seen = torch.tensor(radii, dtype=dtype)
    if not radii or not bool(((seen > 0) & seen.isfinite()).all()):
        precision = str(dtype).removeprefix("torch.")
        raise ConfigError(f"a radius r must be positive and finite in {precision}, but {list(radii)} was given")
    if len({f"{radius:.6g}" for radius in radii}) < len(radii):
        raise ConfigError(f"radii must differ in their first six digits, which name them, but {list(radii)} were given")
    return radii


def _check(m: float, sigma: str, level: float, parts: Sequence[str], draws: int, effort: str) -> None:
    check_probability("the risk level m", m)
    check_probability("the level of confidence", level)
    if not 0.5 <= level <= 1 - 1e-9:
        raise ConfigError(f"the level of confidence must lie between 0.5 and 1 - 1e-9, but {level:g} was given")
    if draws < 1:
        raise ConfigError(f"margins rest on draws of the posterior: at least one is needed, but {draws} were asked for")
    named = (("sigma", sigma, SIGMAS), ("effort", effort, EFFORTS), *(("part", part, PARTS) for part in parts))
    for what, name, known in named:
        if name not in known:
            raise ConfigError(f"there is no {what} '{name}'{nearest(name, known)}; there are {', '.join(known)}")


def _check_draws(draws: int, m: float, alpha: float) -> None:
    """Raises :class:`ConfigError` where even draws that all stay within r would show no item to be r-robust."""
    if alpha ** (1 / draws) <= m:
        needed = math.floor(math.log(alpha) / math.log(m)) + 1
        raise ConfigError(
            f"{draws} draws can show a probability of {alpha ** (1 / draws):.4g} at most at this confidence, which is "
            f"not above the risk level m = {m:g}; take {needed} draws or more"
        )
