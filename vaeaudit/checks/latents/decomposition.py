"""The KL of a data set taken apart into mutual information, total correlation and dimension-wise KL.

E_n KL(q(z|x_n) || p(z)) = I(n; z) + KL(q(z) || prod_j q(z_j)) + sum_j KL(q(z_j) || p(z_j)), where q(z) is the mixture
of the posteriors of all N items (Chen et al. 2018, eq. 2). All three depend on N: the mutual information is at most
log N.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vaeaudit.errors import ConfigError, ContractError, NonFiniteError, nearest
from vaeaudit.progress import GoOn, Progress, always
from vaeaudit.stats.draws import noise_set, uniform
from vaeaudit.subject.encodings import Encodings

ESTIMATORS = ("exact", "stratified")
_PAIRS = 3 * 10**8  # densities of one unit of one item that are evaluated by default: a few seconds on a CPU
_LEAST, _ENOUGH = 256, 4096  # points by default: at least so many, and no more of a small data set
_BATCH = 1024  # items of a stratified minibatch by default
_SATURATED = 0.9  # mutual information above this share of log N tells N rather than the model
_ROUNDING = 1e-12  # spread of a control, relative to its size, that is rounding alone
_TOGETHER = 8  # points evaluated at once: with fewer a call costs more than its work, with more the cache is left


@dataclass(frozen=True, eq=False)
class Estimate:
    """A mean over draws in nats, its standard error, and the error's degrees of freedom (NaN and 0 where unknown)."""

    value: float
    standard_error: float
    freedom: int


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The parts of the mean KL of ``n`` items, estimated at ``points`` draws z ~ q(z|x).

    ``kl`` is the closed form, in nats. ``units`` are the terms of the dimension-wise KL, (units,) float64 in the order
    of :class:`vaeaudit.subject.encodings.Encodings`, and ``units_error`` their standard errors. With the estimator
    "exact" the parts sum to ``kl`` but for rounding; ``estimator`` tells it in words, and ``biased`` whether log q(z)
    is too small on average, as with minibatches.
    """

    kl: float
    mutual_information: Estimate
    total_correlation: Estimate
    dimension_wise: Estimate
    units: Tensor
    units_error: Tensor
    n: int
    points: int
    estimator: str
    biased: bool

    @property
    def saturated(self) -> bool:
        """Whether the mutual information is near log N, its largest value whatever the model."""
        return self.mutual_information.value >= _SATURATED * math.log(self.n)


def unit_kl(encoded: Encodings, prior: Encodings) -> Tensor:
    """KL(q(z_j|x) || p(z_j)) of each unit in nats, (n, units); ``prior`` has one row."""
    require_alike(encoded, prior)
    u = 2 * (encoded.log_stddev - prior.log_stddev)
    standardised = (encoded.mean - prior.mean) * torch.exp(-prior.log_stddev)
    columns = [0.5 * (torch.expm1(u) - u + standardised.square())]
    for log_q, log_p in zip(encoded.log_probabilities, prior.log_probabilities, strict=True):
        terms = torch.where(log_q > -torch.inf, log_q.exp() * (log_q - log_p), 0.0)
        columns.append(terms.sum(1, keepdim=True))
    return torch.cat(columns, 1)


def require_alike(encoded: Encodings, prior: Encodings) -> None:
    """Raise :class:`ContractError` unless the prior has the units of the posteriors."""
    came, expected = (
        (u.mean.shape[1], tuple(values.shape[1] for values in u.log_probabilities)) for u in (prior, encoded)
    )
    if came != expected:
        raise ContractError(
            f"the prior has {came[0]} continuous units and categorical ones of {list(came[1])} classes, where the "
            f"posterior has {expected[0]} and {list(expected[1])}; correct the adapter"
        )


def log_density(encoded: Encodings, z: Tensor, classes: Tensor) -> Tensor:
    """log q(z_j|x) of each row's own z, (rows, units); rows of ``encoded`` as many, or one.

    ``z`` is (rows, continuous units), ``classes`` (rows, categorical units) integers.
    """
    standardised = (z - encoded.mean) * torch.exp(-encoded.log_stddev)
    columns = [-0.5 * standardised.square() - encoded.log_stddev - 0.5 * math.log(2 * math.pi)]
    for log_q, chosen in zip(encoded.log_probabilities, classes.T, strict=True):
        columns.append(log_q.expand(len(chosen), -1).gather(1, chosen[:, None]))
    return torch.cat(columns, 1)


def log_mixture(
    batch: Encodings, z: Tensor, classes: Tensor, own: Tensor, *, n: int | None = None, go_on: GoOn = always
) -> tuple[Tensor, Tensor]:
    """log q(z), (points,), and log q(z_j), (points, units), where q mixes the posteriors of ``n`` items.

    Args:
        batch: posteriors of some of the items, (b, ...), drawn without replacement; of all where ``n`` is None.
        z: the points, (points, continuous units).
        classes: their categorical units, (points, categorical units) integers.
        own: the row of ``batch`` that each point was drawn from, (points,).
        n: how many items there are; with n > b this is minibatch stratified sampling (Chen et al. 2018, appendix C.2):
            the own posterior has weight 1/n and each other one (n - 1)/(n (b - 1)).
        go_on: asked between points; on False only the points so far are returned.
    """
    size = len(batch.mean)
    n = size if n is None else n
    of_own = log_density(batch.rows(own), z, classes)
    joint, units = _log_sums(batch, z, classes, of_own, go_on)
    # log(w_other (sum - 1) + w_own), the sum being relative to the own density and so at least 1.
    w_other = -math.log(size) if size == n else math.log((n - 1) / (n * (size - 1)))
    w_gap = 0.0 if size == n else (size - 1) / (n - 1) - 1  # w_own / w_other - 1
    joint, units = (sums + w_other + torch.log1p(w_gap * torch.exp(-sums)) for sums in (joint, units))
    of_own = of_own[: len(joint)]
    return of_own.sum(1) + joint, of_own + units


def _log_sums(batch: Encodings, z: Tensor, classes: Tensor, own: Tensor, go_on: GoOn) -> tuple[Tensor, Tensor]:
    """log sum_n q(z|x_n)/q(z|x_own), (points,), and of each unit, (points, units), in blocks of points and items.

    ``own`` are the logarithms of the denominators by unit. They keep the unit's sums in range without a search for the
    largest term, which the sums over all units, far smaller and far fewer, do need.
    """
    size, units = len(batch.mean), own.shape[1]
    elements = 2**16 if z.device.type == "cpu" else 2**24
    items = max(128, elements // (_TOGETHER * units))
    # (units, 1, items): the items last, where the arithmetic is vectorised.
    mean, precision = (t.T.contiguous()[:, None] for t in (batch.mean, torch.exp(-batch.log_stddev)))
    constant = (-batch.log_stddev - 0.5 * math.log(2 * math.pi)).T.contiguous()[:, None]
    tables = [values.T.contiguous() for values in batch.log_probabilities]
    joints, sums = [], []
    for start in range(0, len(z), _TOGETHER):
        points = slice(start, start + _TOGETHER)
        if not go_on(Progress("taking the KL apart", len(z) - start, len(z))):
            break
        at, shift = z[points].T[:, :, None], own[points].T[:, :, None]
        continuous = len(at)
        joint: Tensor | None = None
        total = own.new_zeros(units, at.shape[1] if continuous else len(own[points]))
        for first in range(0, size, items):
            part = slice(first, first + items)
            standardised = (at - mean[..., part]).mul_(precision[..., part])
            log_ratio = torch.addcmul(
                constant[..., part] - shift[:continuous], standardised, standardised, value=-0.5
            )  # (units, points, items)
            if tables:
                chosen = torch.stack([t[c, part] for t, c in zip(tables, classes[points].T, strict=True)])
                log_ratio = torch.cat([log_ratio, chosen - shift[continuous:]])
            of_block = log_ratio.sum(0).logsumexp(1)
            joint = of_block if joint is None else torch.logaddexp(joint, of_block)
            total += log_ratio.exp_().sum(2)
        assert joint is not None  # there is at least one item
        joints.append(joint)
        sums.append(total.log().T)
    if not joints:
        return own.new_zeros(0), own.new_zeros(0, units)
    return torch.cat(joints), torch.cat(sums)


@torch.no_grad()
def decompose(
    encoded: Encodings,
    prior: Encodings,
    *,
    estimator: str = "exact",
    points: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    go_on: GoOn = always,
) -> Decomposition | None:
    """Mutual information, total correlation and dimension-wise KL; None where ``go_on`` ended it before two values.

    All arithmetic is in float64. "exact" evaluates the mixture of all N posteriors at a keyed subset of points, one
    draw of each item in a keyed order (and further rounds of draws beyond N points). The exact means of log q(z|x) and
    log p(z) are known, so both serve as control variates: the errors shrink, and the parts sum to the closed form of
    the KL. The standard errors take the items as drawn with replacement, which they are not: they err on the wide side.
    "stratified" evaluates, at all points of keyed minibatches, the minibatch's own items with the weights of
    :func:`log_mixture`; its standard errors are over minibatches. By Jensen's inequality it is biased: log q(z) is too
    small.

    Args:
        encoded: the posteriors of all N items.
        prior: p(z), with one row.
        estimator: "exact" or "stratified".
        points: how many draws of z; by the number of items and units where None, so that it takes a few seconds.
        batch: items of a minibatch, for "stratified"; 1024, or all of fewer items, where None.
        seed: of the keyed order and draws.
        go_on: asked every few points.

    Raises:
        ConfigError: fewer than two items, an unknown estimator, too few points, a minibatch of fewer than two items or
            more than there are.
        ContractError: a prior of other units.
        NonFiniteError: an infinite KL.
    """
    if estimator not in ESTIMATORS:
        raise ConfigError(
            f"there is no estimator '{estimator}'{nearest(estimator, ESTIMATORS)}; there are {', '.join(ESTIMATORS)}"
        )
    n, units = encoded.n, encoded.units
    if n < 2:
        raise ConfigError("a KL is taken apart over a data set of at least two items, but one came; give more")
    size = n if estimator == "exact" else min(n, _BATCH) if batch is None else batch
    if not 2 <= size <= n:
        raise ConfigError(f"a minibatch needs at least 2 and at most all {n} items, but {size} were asked for")
    if points is None:
        most = max(n, _ENOUGH) if estimator == "exact" else n
        points = min(max(_LEAST, 2 * size if size < n else 0, _PAIRS // (size * units)), most)
    least = 8 if estimator == "exact" else size
    if points < least:
        raise ConfigError(f"at least {least} points are needed to take a KL apart, but {points} were asked for")
    require_alike(encoded, prior)
    encoded, prior = _double(encoded), _double(prior)
    kl = _mean_kl(encoded, prior)
    if not math.isfinite(kl):
        raise NonFiniteError(f"the mean KL to the prior is {kl}, which has no parts; leave out items of infinite KL")
    order = uniform(n, seed=seed, check="latents.order", item=0).argsort(kind="stable").tolist()
    if estimator == "exact":
        return _exact(encoded, prior, kl, order, points, seed, go_on)
    return _stratified(encoded, prior, kl, order, size, min(points, n) // size, seed, go_on)


def _exact(
    encoded: Encodings, prior: Encodings, kl: float, order: Sequence[int], points: int, seed: int, go_on: GoOn
) -> Decomposition | None:
    chosen = order[:points]
    own, z, classes = _drawn(encoded, chosen, -(-points // len(chosen)), seed)
    own, z, classes = own[:points], z[:points], classes[:points]
    log_q, log_units = log_mixture(encoded, z, classes, own, go_on=go_on)
    done = len(log_q)
    if done < 8:
        return None
    conditional = log_density(encoded.rows(own[:done]), z[:done], classes[:done])
    log_p = log_density(prior, z[:done], classes[:done])
    values = _parts(log_q, log_units, conditional, log_p)
    controls = torch.stack([conditional.sum(1), log_p.sum(1)], 1)
    entropy = (encoded.log_stddev + 0.5 * math.log(2 * math.pi * math.e)).sum(1).mean()
    for log_probabilities in encoded.log_probabilities:
        entropy = entropy - torch.special.xlogy(log_probabilities.exp(), log_probabilities.exp()).sum(1).mean()
    means, errors = _controlled(values, controls, torch.stack([-entropy, -entropy - kl]))
    words = f"mixture of all {encoded.n} posteriors at {done} draws, controlled by log q(z|x) and log p(z), Student t "
    words += "interval over draws of z"
    return _decomposition(kl, means, errors, done - 3, encoded.n, done, words, False)


def _stratified(
    encoded: Encodings,
    prior: Encodings,
    kl: float,
    order: Sequence[int],
    size: int,
    batches: int,
    seed: int,
    go_on: GoOn,
) -> Decomposition | None:
    found = []
    for k in range(batches):
        items = order[k * size : (k + 1) * size]
        own, z, classes = _drawn(encoded, items, 1, seed)
        batch = encoded.rows(own)
        log_q, log_units = log_mixture(batch, z, classes, torch.arange(size, device=z.device), n=encoded.n, go_on=go_on)
        if len(log_q) < size:
            break
        found.append(_parts(log_q, log_units, log_density(batch, z, classes), log_density(prior, z, classes)).mean(0))
    if not found:
        return None
    values, freedom = torch.stack(found), len(found) - 1
    errors = values.std(0) / math.sqrt(len(found)) if freedom else torch.full_like(values[0], torch.nan)
    words = f"minibatch stratified sampling of {encoded.n} posteriors, {len(found)} minibatches of {size}, Student t "
    words += "interval over minibatches"
    done = len(found) * size
    return _decomposition(kl, values.mean(0), errors, freedom, encoded.n, done, words, size < encoded.n)


def _parts(log_q: Tensor, log_units: Tensor, conditional: Tensor, log_p: Tensor) -> Tensor:
    """Mutual information, total correlation, dimension-wise KL and its units at each point, (points, 3 + units)."""
    dimension_wise = log_units - log_p
    three = [conditional.sum(1) - log_q, log_q - log_units.sum(1), dimension_wise.sum(1)]
    return torch.cat([torch.stack(three, 1), dimension_wise], 1)


def _controlled(values: Tensor, controls: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard errors, (values,) each, by regression on controls whose means are known.

    ``values`` is (points, values), ``controls`` (points, c), ``known`` (c,). A sum of values that is a combination of
    the controls has that combination's known mean, without error.
    """
    centred = controls - controls.mean(0)
    constant = centred.abs().amax(0) <= _ROUNDING * controls.abs().amax(0)
    centred = torch.where(constant, 0.0, centred)  # else what rounding left would be inverted
    slopes = torch.linalg.pinv(centred) @ values  # (c, values); controls may be collinear
    means = values.mean(0) + (known - controls.mean(0)) @ slopes
    residuals = values - values.mean(0) - centred @ slopes
    points, freedom = len(values), len(values) - 1 - controls.shape[1]
    return means, (residuals.square().sum(0) / freedom / points).sqrt()


def _decomposition(
    kl: float, means: Tensor, errors: Tensor, freedom: int, n: int, points: int, words: str, biased: bool
) -> Decomposition:
    mutual, correlation, dimension_wise = (
        Estimate(value, error, freedom) for value, error in zip(means[:3].tolist(), errors[:3].tolist(), strict=True)
    )
    return Decomposition(kl, mutual, correlation, dimension_wise, means[3:], errors[3:], n, points, words, biased)


def _drawn(encoded: Encodings, items: Sequence[int], draws: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (draws * items,), z and classes (draws * items, units), drawn from the posteriors of ``items``."""
    continuous, categorical = encoded.mean.shape[1], len(encoded.log_probabilities)
    shape = (continuous + categorical,)
    noise = noise_set(shape, draws=draws, items=items, seed=seed, check="latents.points", like=encoded.mean)
    noise = noise.flatten(0, 1)
    own = torch.tensor(items, device=noise.device).repeat(draws)
    of_own = encoded.rows(own)
    z = of_own.mean + of_own.log_stddev.exp() * noise[:, :continuous]
    classes = own.new_empty(len(own), categorical)
    for k, log_probabilities in enumerate(of_own.log_probabilities):
        below = log_probabilities.exp().cumsum(1)
        level = torch.special.ndtr(noise[:, continuous + k, None]) * below[:, -1:]
        classes[:, k] = (below <= level).sum(1).clamp(max=below.shape[1] - 1)
    return own, z, classes


def _mean_kl(encoded: Encodings, prior: Encodings) -> float:
    parts = [unit_kl(encoded.rows(index), prior).sum(1) for index in torch.split(torch.arange(encoded.n), 2**12)]
    return float(torch.cat(parts).mean())


def _double(encoded: Encodings) -> Encodings:
    mean, log_stddev, *log_probabilities = (
        values.double() for values in (encoded.mean, encoded.log_stddev, *encoded.log_probabilities)
    )
    return replace(encoded, mean=mean, log_stddev=log_stddev, log_probabilities=tuple(log_probabilities))
