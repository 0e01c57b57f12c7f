"""The mutual information gap: whether each known factor is held by one unit of the latent code alone.

MIG = mean over the factors that vary of (I_(1) - I_(2)) / H(v_k), the two largest mutual informations of a unit with
that factor (Chen et al. 2018, eq. 6). It needs the name of its estimator: "chen" takes q(z_j) and q(z_j|v_k) as the
exact mixtures over all items and those with that value, "hist20" the histogram of the posterior mean in 20 bins.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeaudit.checks.mig.information import Membership, categorical_shares, code_shares, gaussian_shares, resolved
from vaeaudit.errors import ConfigError, DataError, UnsupportedError, listed, nearest
from vaeaudit.model.vae import VAE
from vaeaudit.progress import GoOn, Progress, always
from vaeaudit.stats.draws import noise_set
from vaeaudit.subject.encodings import Encodings, Images, encodings

ESTIMATORS = ("chen", "hist20")
_BINS = 20
_DRAWS = 2000  # of the bootstrap
_RIVALS = 16  # units, those with most information about a factor, that can come first or second in a draw
_TOLERATED, _NEGLIGIBLE = 0.5, 1e-3  # bias that no interval knows: as a share of its half width, and of the entropy
_APART = 0.95  # share of log n at which a unit tells nearly all items apart


@dataclass(frozen=True, eq=False)
class Gaps:
    """The gaps by one estimator, all float64 and NaN where the check was stopped.

    ``information`` (units, K): I(z_j; v_k) in nats; ``gaps`` (K,): the lead of the unit with most of it over the
    second, as a share of H(v_k), with intervals ``gap_ci`` (K, 2); ``value`` their mean, the MIG, with ``ci``.
    ``excess`` (K,): by how much the second's information lies too high for few items, as a share of H(v_k), roughly
    (Miller-Madow): the gap lies too low by about that, and its interval does not know it.
    """

    estimator: str
    information: Tensor
    gaps: Tensor
    gap_ci: Tensor
    value: float
    ci: tuple[float, float]
    excess: Tensor


@dataclass(frozen=True, eq=False)
class MigResult:
    """The MIG of ``n`` items over the K factors ``names`` that vary; ``constant`` are those left out.

    ``entropy`` (K,): H(v_k) in nats. ``units``: continuous ones, then ``categorical`` ones. ``identified`` (units,):
    I(z_j; x) of the n items in nats, at most log n, by ``chen`` (NaN without it): where it is near that, every item has
    a place of its own, and the unit seems to know any factor. ``warnings`` name such units, and the factors of whose
    gaps the intervals mislead. ``complete``: the items are all combinations of the factors' classes, each once; where
    these are all there can be, the figures are exact and no others would have come. Intervals are at ``level``.
    """

    names: tuple[str, ...]
    constant: tuple[str, ...]
    entropy: Tensor
    n: int
    units: int
    categorical: int
    layer: int
    layers: int
    by: tuple[Gaps, ...]
    identified: Tensor
    complete: bool
    warnings: tuple[str, ...]
    level: float
    seed: int
    interrupted: bool


def mig(
    vae: VAE,
    x: Tensor | Images,
    factors: Tensor | NDArray[np.int64],
    *,
    names: Sequence[str] | None = None,
    estimators: Sequence[str] = ESTIMATORS,
    layer: int | None = None,
    level: float = 0.95,
    items: Sequence[int] | None = None,
    encoded: Encodings | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    go_on: GoOn = always,
) -> MigResult:
    """The mutual information gap of known factors.

    Mutual informations are those of these n items, not estimates for all there could be: for a few items of many they
    lie too high, the more so the smaller sigma (or the fuller the bins), and MIGs compare at equal n only. The interval
    says what other items would have given. Its draws move all mutual informations and entropies together along their
    influence functions, with normal multipliers (Gaussian multiplier bootstrap of the linear term), and find first and
    second anew; the interval is the basic one, which also mends the bias that choosing the largest has. It does not
    know the bias of the mutual informations themselves, about (bins - 1)(classes - 1)/(2n) nats: that hardly moves a
    first unit that knows all there is, but lifts the second, so that gaps lie too low. Where this excess is above half
    of an interval's half width, a warning names the factor.

    Args:
        vae: the model.
        x: the items, (n, *input_shape), or what gives those of any numbers out of ``items``.
        factors: the class of each item in each factor, (n, factors), integers.
        names: of the factors; "factor 1", ... where None.
        estimators: of "chen" and "hist20", those that are wanted.
        layer: of a chain, counted from 1; the top one where None. Lower ones are run once an item.
        level: confidence of the intervals.
        items: the numbers of the items, by which draws are keyed; 0 to n - 1 where None.
        encoded: what :func:`vaeaudit.subject.encodings.encodings` gave for these items; encoded here where None.
        seed: of every random draw.
        batch_size: most rows given to the model at once; by size where None.
        go_on: asked regularly; on False there is no gap, and the result says so.

    Raises:
        ConfigError: an unknown estimator, a level below 0.5 or not below 1, a layer that is not there.
        DataError: factors that are no integers, not as many as the items, all constant, or with hardly two items a
            class; items that are not the model's.
        UnsupportedError: fewer than two units, or a posterior whose units are not known.
        NonFiniteError: encodings that are NaN or infinite.
    """
    _check(estimators, level)
    table = _table(factors)
    every = tuple(names) if names is not None else tuple(f"factor {k + 1}" for k in range(table.shape[1]))
    if len(every) != table.shape[1]:
        raise DataError(f"{table.shape[1]} factors came with {len(every)} names; give one each")
    twice = [name for name in every if every.count(name) > 1]
    if twice:
        raise DataError(f"{len(twice)} factors are named '{twice[0]}', by which metrics are told apart; rename one")
    if isinstance(x, Tensor) and len(x) != len(table):
        raise DataError(f"{len(x)} items came with the factors of {len(table)}; give one row of factors for each item")
    classes, kept = _varying(table, every)
    if encoded is None:
        encoded = encodings(
            vae, x, n=len(table), items=items, layer=layer, seed=seed, batch_size=batch_size, go_on=go_on
        )
    if encoded.n != len(table) and not encoded.interrupted:
        raise DataError(f"{encoded.n} encodings came with the factors of {len(table)} items; give those of the same")
    if encoded.units < 2:
        raise UnsupportedError(
            "the mutual information gap compares units, at least two, but the latent code has only one; "
            "its mutual information with each factor is no gap"
        )
    code = _Code(encoded)
    members = Membership.of(torch.from_numpy(classes).to(code.device))
    watch, by = _Watch(go_on, encoded.units * len(estimators), encoded.interrupted), []
    identified = torch.full((encoded.units,), torch.nan, dtype=torch.float64, device=code.device)
    for name in estimators:
        shares = [code.shares(name, unit, members) for unit in range(encoded.units) if watch.goes_on()]
        if watch.stopped:
            by.append(_stopped(name, encoded.units, len(kept)))
            continue
        told = torch.stack([of_unit[:, 0].mean() for of_unit in shares])
        told -= code.noise_entropy() if name == "chen" else 0.0
        by.append(_gaps(name, shares, told, members, level, seed))
        if name == "chen":
            identified = told
    complete = _complete(classes)
    return MigResult(
        names=tuple(every[k] for k in kept),
        constant=tuple(name for k, name in enumerate(every) if k not in kept),
        entropy=members.surprise.mean(0),
        n=len(table),
        units=encoded.units,
        categorical=len(encoded.log_probabilities),
        layer=encoded.layer,
        layers=encoded.layers,
        by=tuple(by),
        identified=identified,
        complete=complete,
        warnings=(
            *_alone(identified, len(table)),
            *(() if complete else _misleading(by, [every[k] for k in kept], len(table))),
        ),
        level=level,
        seed=seed,
        interrupted=watch.stopped,
    )


def _alone(identified: Tensor, n: int) -> Iterator[str]:
    most = float(np.log(n))
    for unit, value in enumerate(identified.tolist()):
        if value >= _APART * most:
            yield (
                f"unit {unit} by itself tells nearly all of the {n} items apart ({value:.2f} of at most "
                f"{most:.2f} nats), so that it seems to know every factor: the gaps by 'chen' say little; see 'hist20'"
            )


def _misleading(by: Sequence[Gaps], names: Sequence[str], n: int) -> Iterator[str]:
    """One for each estimator with intervals that are narrow beside what they do not know."""
    for gaps in by:
        ends = torch.cat([gaps.gap_ci, gaps.gap_ci.new_tensor([gaps.ci])])
        excess = torch.cat([gaps.excess, gaps.excess.mean(0, keepdim=True)])
        half = (ends[:, 1] - ends[:, 0]) / 2
        bad = ((excess > _TOLERATED * half) & (excess > _NEGLIGIBLE)).nonzero().squeeze(1).tolist()
        if bad:
            told = listed(f"{[*names, 'the mean'][k]} ({excess[k]:.2g} beside ±{half[k]:.2g})" for k in bad)
            yield (
                f"{n} items are few for the intervals by '{gaps.estimator}' of {told}: the second unit's mutual "
                "information lies too high by about the first figure, as a share of the factor's entropy, and the gap "
                "too LOW by about as much, which the interval does not cover; take more items, or read these gaps as "
                "those of these items alone"
            )


def _complete(classes: NDArray[np.int64]) -> bool:
    """Whether the items are all combinations of classes, each once."""
    return len(classes) == len(np.unique(classes, axis=0)) == int(np.prod(classes.max(0) + 1))


class _Watch:
    """Asks before each of ``steps`` but the first whether to go on, and remembers the first no."""

    def __init__(self, go_on: GoOn, steps: int, stopped: bool) -> None:
        self._go_on, self._steps, self._done, self.stopped = go_on, steps, 0, stopped

    def goes_on(self) -> bool:
        progress = Progress("mutual informations", self._steps - self._done, self._steps)
        self.stopped = self.stopped or (self._done > 0 and not self._go_on(progress))
        self._done += 1
        return not self.stopped


class _Code:
    """The units of encodings in float64, each with its shares of information by either estimator."""

    def __init__(self, encoded: Encodings) -> None:
        self.device = encoded.mean.device
        self._encoded, self._continuous = encoded, encoded.mean.shape[1]

    def shares(self, estimator: str, unit: int, members: Membership) -> Tensor:
        """(n, 1 + K): see :mod:`vaeaudit.checks.mig.information`."""
        if unit >= self._continuous:
            log_probabilities = self._exact(self._encoded.log_probabilities[unit - self._continuous])
            if estimator == "chen":
                return categorical_shares(log_probabilities, members)
            return code_shares(log_probabilities.argmax(1), members)  # the most probable class is what the mean is
        mean = self._exact(self._encoded.mean[:, unit])
        if estimator == "chen":
            return gaussian_shares(mean, self._exact(self._encoded.log_stddev[:, unit]), members)
        edges = torch.from_numpy(np.histogram_bin_edges(mean.cpu().numpy(), _BINS)[:-1]).to(mean.device)
        return code_shares(torch.bucketize(mean, edges, right=True) - 1, members)

    def noise_entropy(self) -> Tensor:
        """E H(q(z_j|x)), (units,)."""
        units = zip(self._exact(self._encoded.mean.T), self._exact(self._encoded.log_stddev.T), strict=True)
        of_gaussian = [resolved(*unit).log().mean() + 0.5 * np.log(2 * np.pi * np.e) for unit in units]
        exact = [self._exact(log) for log in self._encoded.log_probabilities]
        of_classes = [torch.special.entr(log.exp()).sum(1).mean() for log in exact]
        return torch.stack([*of_gaussian, *of_classes])

    def _exact(self, values: Tensor) -> Tensor:
        return values.to(self.device).double().contiguous()


def _gaps(estimator: str, shares: Sequence[Tensor], told: Tensor, members: Membership, level: float, seed: int) -> Gaps:
    """From the shares (n, 1 + K) of each unit, and what it tells of the items, (units,) in nats."""
    information = torch.stack([of_unit[:, 1:].mean(0) for of_unit in shares]).clamp(min=0)  # below by rounding only
    entropy = members.surprise.mean(0)
    rivals = information.topk(min(_RIVALS, len(information)), 0).indices  # (rivals, K), the first one first
    picked = [torch.stack([shares[j][:, 1 + k] for k, j in enumerate(row)], 1) for row in rivals.tolist()]
    influence = torch.stack([*picked, members.surprise], 1)  # (n, rivals + 1, K)
    n, *shape = influence.shape
    centred = (influence - influence.mean(0)).flatten(1)
    variances, axes = torch.linalg.eigh(centred.T @ centred / n**2)
    normals = noise_set((len(variances),), draws=_DRAWS, items=[0], seed=seed, check="mig.bootstrap", like=axes)[:, 0]
    moves = (normals * variances.clamp(min=0).sqrt() @ axes.T).unflatten(1, shape)
    drawn = _relative(information.gather(0, rivals) + moves[:, :-1], entropy + moves[:, -1])
    gaps = _relative(information.gather(0, rivals), entropy)
    intervals = _basic(torch.cat([gaps, gaps.mean(0, keepdim=True)]), torch.cat([drawn, drawn.mean(1, True)], 1), level)
    low, high = intervals[-1].tolist()
    # exp(told): as many equal bins would tell as much of the items.
    classes = members.own.amax(0).diff()
    excess = torch.expm1(told[rivals[1]]) * (classes - 1) / (2 * n) / entropy
    return Gaps(estimator, information, gaps, intervals[:-1], float(gaps.mean()), (low, high), excess)


def _relative(information: Tensor, entropy: Tensor) -> Tensor:
    """Lead of the first over the second as a share of the entropy: (..., units, K), (..., K) -> (..., K)."""
    first, second = information.topk(2, dim=-2).values.unbind(-2)
    return (first - second) / entropy


def _basic(value: Tensor, drawn: Tensor, level: float) -> Tensor:
    """2 value - quantiles of ``drawn`` (draws, m), inside [0, 1] and around ``value`` (m,): (m, 2)."""
    tails = torch.tensor([0.5 + level / 2, 0.5 - level / 2], dtype=drawn.dtype, device=drawn.device)
    ends = (2 * value - drawn.quantile(tails, dim=0)).clamp(0, 1)
    return torch.stack([torch.minimum(ends[0], value), torch.maximum(ends[1], value)], 1)


def _stopped(estimator: str, units: int, factors: int) -> Gaps:
    def nothing(*shape: int) -> Tensor:
        return torch.full(shape, torch.nan, dtype=torch.float64)

    unknown, ends = nothing(factors), (np.nan, np.nan)
    return Gaps(estimator, nothing(units, factors), unknown, nothing(factors, 2), np.nan, ends, unknown)


def _table(factors: Tensor | NDArray[np.int64]) -> NDArray[np.int64]:
    table = factors.cpu().numpy() if isinstance(factors, Tensor) else np.asarray(factors)
    if table.ndim != 2 or 0 in table.shape or table.dtype.kind not in "biu":
        raise DataError(
            f"factors must be integers, the class of each item in each factor (items, factors), but are "
            f"{table.dtype} of shape {table.shape}; number their classes"
        )
    return table.astype(np.int64)


def _varying(table: NDArray[np.int64], names: Sequence[str]) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Classes from 0 without gaps of the factors that vary, and which these are."""
    found = [np.unique(column, return_inverse=True) for column in table.T]
    kept = tuple(k for k, (values, _) in enumerate(found) if len(values) > 1)
    if not kept:
        raise DataError(
            f"none of the factors {listed(names)} varies over the {len(table)} items, so that there is nothing to "
            "know about them; give items that differ in one"
        )
    for k in kept:
        values = len(found[k][0])
        if 2 * values > len(table):
            raise DataError(
                f"factor {names[k]} has {values} classes for {len(table)} items, too few of each to say what a unit "
                "knows about it, which takes two at least on average; give more items, put values into classes, or "
                "leave it out"
            )
    return np.stack([found[k][1] for k in kept], 1), kept


def _check(estimators: Sequence[str], level: float) -> None:
    for name in estimators:
        if name not in ESTIMATORS:
            raise ConfigError(f"there is no estimator '{name}'{nearest(name, ESTIMATORS)}; there are chen and hist20")
    if not estimators:
        raise ConfigError("no estimator of the mutual information gap is named; give chen, hist20 or both")
    if not 0.5 <= level < 1:
        raise ConfigError(f"the level of confidence must lie from 0.5 up to 1, but {level:g} was given")
