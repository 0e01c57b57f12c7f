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

from vaeaudit.attacks.margin import SIGMAS, Empirical
from vaeaudit.attacks.within import kept_along
from vaeaudit.certify.theorem import Sigma
from vaeaudit.checks.margin.certified import EFFORTS, Certified, Effort
from vaeaudit.checks.margin.deterministic import Deterministic
from vaeaudit.checks.margin.deterministic import estimates as of_point
from vaeaudit.checks.margin.estimates import FirstOrder, JacobianNorms, first_order
from vaeaudit.checks.margin.groups import Asked, Group, packed, size_of, unpacked, within_all
from vaeaudit.checks.margin.radius import Kept, MinRadius, check_probability, draw_distances, min_radius
from vaeaudit.checks.margin.varying import Varying
from vaeaudit.errors import ConfigError, DataError, UnsupportedError, nearest
from vaeaudit.model.batches import RowBatches, Stopped
from vaeaudit.model.box import largest_norm
from vaeaudit.model.conditions import under
from vaeaudit.model.ranges import Range
from vaeaudit.model.vae import VAE, Chain, Joint
from vaeaudit.progress import GoOn, Watch, always
from vaeaudit.subject.inputs import box_of, check_items, without_spread

PARTS = ("certified", "empirical")
_DRAWS = 1000
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
        go_on: asked regularly; on False what is left is not done, and the result says so: it is of the groups of items
            that are finished, or of what there is of the first, of which not even the draws of all may be taken.

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
    together, used = size_of(rows.most), box if boxed else None
    most = largest_norm(vae, x, used)
    asked = Asked(radii, m, sigma, used, level, draws, parts, effort, seed, most)
    deterministic, joint, chain, alpha = without_spread(vae, x, rows, items=keys), False, False, 0.0
    measured: Varying | Deterministic
    if deterministic:
        draws, measured = 0, Deterministic(vae, x, rows, keys, asked)
    else:
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
        measured = Varying(vae, x, rows, keys, asked, alpha)
    # Processes that chose radii by themselves may differ by rounding, and then measure different things.
    name = f"margin at r = {', '.join(map(repr, radii))}"
    group, interrupted = _of_groups(measured, len(x), together, name, go_on)
    norms, n = group.norms, len(group.least.estimate)
    x, keys, vae = x[:n], keys[:n], under(vae, slice(n))
    at = []
    for radius, found in zip(radii, group.at, strict=True):
        estimates = of_point(norms, radius) if deterministic else first_order(norms, found.kept.p_low, m)
        fall = None
        if found.empirical is not None and not deterministic:
            fall = _fall(vae, x, found.empirical, radius, sigma, used, seed, keys, rows)
        at.append(MarginAt(radius, found.kept, estimates, found.certified, found.empirical, fall))
    how = {"deterministic": deterministic, "joint": joint, "chain": chain}
    every, least = tuple(at), group.least
    return MarginResult(m, sigma, used, level, alpha, family_wise, draws, seed, least, norms, every, interrupted, **how)


def _of_groups(
    measured: Varying | Deterministic, count: int, together: int, name: str, go_on: GoOn
) -> tuple[Group, bool]:
    """What is measured of ``count`` items, group by group, kept under ``name``, and whether it was stopped.

    Then it is of the groups that are finished, or of what there is of the first.
    """
    begun: list[Group] = []
    stopped: list[int] = []

    def of_items(index: Tensor) -> tuple[Tensor, ...]:
        first = int(index[0])
        watch = Watch(within_all(go_on, first, len(index), count))
        group = measured.of_items(slice(first, first + len(index)), watch)
        if watch.stopped:
            stopped.append(first)
            begun.append(group)
            raise Stopped
        return packed(group)

    columns = RowBatches(together).map(of_items, torch.arange(count), kept=name)
    return unpacked(columns) if columns else begun[0], bool(stopped)


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

        def least(index: Tensor) -> tuple[Tensor]:
            part, keys = slice(int(index[0]), int(index[-1]) + 1), [items[place] for place in index.tolist()]
            of_part, some = under(vae, part), x[part]
            drawn = draw_distances(of_part, some, rows, draws=_DRAWS, items=keys, seed=seed, check="margin.auto")
            return (min_radius(drawn, m, 0.5).estimate,)

        # Every process needs it before it can begin.
        (found,) = RowBatches(rows.size).map(least, torch.arange(len(x)), kept="radius", shared=False)
        radius = times * float(found.median())
    if not 0 < radius < float("inf"):
        raise ConfigError(
            "the reconstructions do not vary over draws of the posterior, as in a deterministic encoder, so no radius "
            "can be chosen from them; give one, as in --r 4"
        )
    return float(f"{radius:.4g}")  # as it is printed


def _fall(
    vae: VAE,
    x: Tensor,
    found: Empirical,
    r: float,
    sigma: Sigma,
    box: Range | None,
    seed: int,
    keys: Sequence[int],
    rows: RowBatches,
) -> Fall:
    """How the first items that broke left ``r``, along what broke them."""
    place = ((found.margin > 0) & found.margin.isfinite()).nonzero().squeeze(1)[:_SHOWN]
    shares = torch.linspace(0, 2, _LENGTHS, dtype=x.dtype, device=x.device)
    lengths = found.margin[place, None].to(x) * shares
    if not len(place):
        return Fall(place, lengths, lengths)
    vae, ray, shown = under(vae, place), found.distortion[place], [keys[k] for k in place.tolist()]
    p = kept_along(vae, x[place], ray, r, lengths, sigma=sigma, box=box, seed=seed, keys=shown, rows=rows)
    return Fall(place, lengths, p)


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
