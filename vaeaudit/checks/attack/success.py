"""Whether an attack succeeded: by the nearest image of a factor grid, or by the class of the reconstruction.

Both are read at one distortion for each pair, such as that of the chosen lambda: over all lambda the search is free
to end at the target itself, and success would say nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeaudit.checks.attack.classifier import Classifier, Images, Judge, classes_of
from vaeaudit.checks.attack.metrics import ACCURACY, AT_SOURCE, AT_TARGET, FACTOR, IGNORE_TARGET, PROGRESS, TARGET
from vaeaudit.errors import DataError, NonFiniteError
from vaeaudit.model.batches import RowBatches
from vaeaudit.stats import estimates
from vaeaudit.stats.estimates import Measurement

_MOST_NUMBERS = 2**22  # of grid images, and of distances, held at once
_MOST_ROWS = 1024


@dataclass(frozen=True, eq=False)
class FactorSuccess:
    """Success and progress of P pairs that differ in one factor; ``...`` is whatever stands behind P, such as lambda.

    ``success`` (P, ...): the image of the grid nearest to rec(x*) has the target's value of the factor and the other
    factors of the source. ``progress`` (P, ...): 1 - ||rec(x*) - x_t|| / ||rec(x) - x_t||, 0 where the attack changes
    nothing, 1 where it reaches the target, negative where it leads away; NaN where rec(x) is x_t already.
    ``nearest`` (P, ...): item number of that nearest image, for identical images one of them.
    ``at_source`` and ``at_target`` (P,): success of rec(x), where the attack starts, and of rec(x_t), what a
    perfect match of posteriors reaches.
    """

    success: Tensor
    progress: Tensor
    nearest: Tensor
    at_source: Tensor
    at_target: Tensor

    @property
    def fault(self) -> str | None:
        """Why the success rate is inconclusive; None where it is not."""
        if bool(self.at_target.any()):
            return None
        return (
            f"the reconstruction of none of the {len(self.at_target)} targets has the target as its nearest image, so "
            "that even a perfect attack would not count as a success"
        )


def factor_success(
    reconstruction: Tensor,
    source_reconstruction: Tensor,
    target_reconstruction: Tensor,
    target: Tensor,
    targets: Sequence[int],
    images: Images,
    classes: NDArray[np.int64],
) -> FactorSuccess:
    """Success and progress of attacks on a single factor (Willetts et al., H.1).

    Source and target differ in one factor, so that the target's value of it with the source's other factors are the
    target's factors. The nearest image is searched for by L2 distance among all items, in blocks. Identical images
    (orientations 0 and 2 pi, symmetric shapes) are equally near: one of the right factors among them is enough.

    Args:
        reconstruction: rec(x*), (P, ..., *shape).
        source_reconstruction: rec(x), (P, *shape).
        target_reconstruction: rec(x_t), (P, *shape).
        target: x_t, (P, *shape).
        targets: item numbers of the targets, P of them.
        images: items by their numbers, (len, *shape).
        classes: factors of all items, (n, factors).

    Raises:
        DataError: the shapes do not agree.
        NonFiniteError: a reconstruction is NaN or infinite.
    """
    pairs, shape = len(target), tuple(target.shape[1:])
    between = tuple(reconstruction.shape[1 : reconstruction.ndim - len(shape)])
    expected = (pairs, *between, *shape)
    apart = {tuple(source_reconstruction.shape), tuple(target_reconstruction.shape)} != {tuple(target.shape)}
    if tuple(reconstruction.shape) != expected or apart or len(targets) != pairs:
        raise DataError(
            f"reconstructions must be (P, ..., *shape) for P targets {tuple(target.shape)} with their numbers, but are "
            f"{tuple(reconstruction.shape)}, {tuple(source_reconstruction.shape)} and "
            f"{tuple(target_reconstruction.shape)}, with {len(targets)} numbers"
        )
    x_t, start, match, found = (
        _precise(x) for x in (target, source_reconstruction, target_reconstruction, reconstruction)
    )
    repeated = int(np.prod(between, dtype=np.int64))
    points = torch.cat([found.reshape(-1, *shape), start, match])
    numbers = np.concatenate([np.repeat(np.asarray(targets), repeated), targets, targets])
    hit, nearest = _nearest(points, numbers, images, classes)
    success, at_source, at_target = hit[: pairs * repeated], hit[pairs * repeated : -pairs], hit[-pairs:]
    flat = found.reshape(pairs, repeated, -1)
    left = torch.linalg.vector_norm(flat - x_t.reshape(pairs, 1, -1), dim=2)
    whole = torch.linalg.vector_norm((start - x_t).flatten(1), dim=1, keepdim=True)
    progress = torch.where(whole > 0, 1 - left / whole, torch.nan)
    device = reconstruction.device
    return FactorSuccess(
        success=success.reshape(pairs, *between).to(device),
        progress=progress.reshape(pairs, *between).to(reconstruction),
        nearest=nearest[: pairs * repeated].reshape(pairs, *between).to(device),
        at_source=at_source.to(device),
        at_target=at_target.to(device),
    )


def _precise(x: Tensor) -> Tensor:
    """In float64, so that rounding decides between no two images."""
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError("a reconstruction is NaN or infinite, so no image is nearest; see what doctor says of it")
    return x.double()


def _nearest(
    points: Tensor, targets: NDArray[np.int64], images: Images, classes: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Whether an image with the factors of the row's target is as near as any, (rows,), and the nearest, (rows,)."""
    _, kinds = np.unique(classes, axis=0, return_inverse=True)  # equal where all factors are equal
    kind = torch.from_numpy(kinds).to(points.device)
    wanted = kind[torch.from_numpy(targets).to(points.device)]
    size = max(1, min(_MOST_NUMBERS // max(1, points[0].numel()), _MOST_NUMBERS // _MOST_ROWS))

    def grid(items: Sequence[int]) -> Tensor:
        return images(items).to(points).flatten(1)

    def search(rows: Tensor, wants: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.flatten(1)
        least = torch.full((2, len(rows)), torch.inf, dtype=rows.dtype, device=rows.device)
        which = torch.zeros((2, len(rows)), dtype=torch.int64, device=rows.device)
        for first in range(0, len(kind), size):
            block = grid(range(first, min(first + size, len(kind))))
            # ||row - image||^2 without ||row||^2, which is the same for all images.
            distance = block.square().sum(1) - 2 * rows @ block.T
            right = wants[:, None] == kind[first : first + size]
            for k, candidates in enumerate((distance, torch.where(right, distance, torch.inf))):
                value, at = candidates.min(1)
                which[k] = torch.where(value < least[k], at + first, which[k])
                least[k] = torch.minimum(value, least[k])
        # Once more element by element: so identical images give identical distances, whatever the matrix product did.
        nearest, right_one = (torch.linalg.vector_norm(rows - grid(items.tolist()), dim=1) for items in which)
        return right_one <= nearest, torch.where(right_one <= nearest, which[1], which[0])

    hit, nearest = RowBatches(_MOST_ROWS).map(search, points, wanted)
    return hit, nearest


@dataclass(frozen=True, eq=False)
class ClassTable:
    """Counts of attacks by class of source (row) and target (column), (K, K) each, and their rates.

    ``attacked``: all pairs; ``valid``: those whose clean reconstruction has the source's class; ``left``: valid ones
    whose adversarial reconstruction has another; ``reached``: valid ones where it has the target's.
    """

    classes: tuple[int, ...]
    attacked: NDArray[np.int64]
    valid: NDArray[np.int64]
    left: NDArray[np.int64]
    reached: NDArray[np.int64]

    @property
    def ignore_target(self) -> tuple[Measurement, ...]:
        """Share of valid attacks that left the source's class, for each source class; see :meth:`target`."""
        return self._per_source(self.left)

    @property
    def target(self) -> tuple[Measurement, ...]:
        """Share of valid attacks that reached the target's class, for each source class.

        The unweighted mean over the other classes (Kos et al. 2018; Sootla), None where one has no valid attack.
        """
        return self._per_source(self.reached)

    def rates(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """``counts`` as shares of the valid attacks, (K, K); NaN where there are none."""
        shares: NDArray[np.float64] = np.full(counts.shape, np.nan)
        np.divide(counts, self.valid, out=shares, where=self.valid > 0)
        return shares

    def _per_source(self, counts: NDArray[np.int64]) -> tuple[Measurement, ...]:
        return tuple(
            estimates.mean_proportion(
                np.delete(k, i).tolist(), np.delete(n, i).tolist(), unit=TARGET.unit, direction=TARGET.direction
            )
            for i, (k, n) in enumerate(zip(counts, self.valid, strict=True))
        )


@dataclass(frozen=True, eq=False)
class ClassSuccess:
    """Classes of P pairs, (P,) integers each.

    ``source`` and ``target`` are labels, ``clean`` and ``adversarial`` the classes of rec(x) and rec(x*).
    """

    source: Tensor
    target: Tensor
    clean: Tensor
    adversarial: Tensor

    @property
    def valid(self) -> Tensor:
        """Where rec(x) has the source's class, (P,); a target of that class too is no target, and left out."""
        return (self.clean == self.source) & (self.target != self.source)

    @property
    def left(self) -> Tensor:
        """Valid pairs whose rec(x*) is no longer of the source's class, (P,)."""
        return self.valid & (self.adversarial != self.source)

    @property
    def reached(self) -> Tensor:
        """Valid pairs whose rec(x*) is of the target's class, (P,)."""
        return self.valid & (self.adversarial == self.target)

    @property
    def ignore_target_rate(self) -> Measurement:
        """AS_ignore-target over the valid pairs, None where there are none."""
        return self._rate(self.left)

    @property
    def target_rate(self) -> Measurement:
        """AS_target over the valid pairs, never above :attr:`ignore_target_rate`; None where there are none."""
        return self._rate(self.reached)

    @property
    def table(self) -> ClassTable:
        """Counts by class of source and target."""
        source, target = self.source.cpu().numpy(), self.target.cpu().numpy()
        classes, index = np.unique(np.stack([source, target]), return_inverse=True)
        rows, columns = index.reshape(2, -1)

        def count(which: Tensor) -> NDArray[np.int64]:
            counts = np.zeros((len(classes), len(classes)), np.int64)
            np.add.at(counts, (rows, columns), which.cpu().numpy().astype(np.int64))
            return counts

        every = torch.ones_like(self.valid)
        counted = (count(which) for which in (every, self.valid, self.left, self.reached))
        return ClassTable(tuple(classes.tolist()), *counted)

    def _rate(self, which: Tensor) -> Measurement:
        return estimates.proportion(
            int(which.sum()), int(self.valid.sum()), unit=TARGET.unit, direction=TARGET.direction
        )


def class_success(
    classifier: Classifier,
    reconstruction: Tensor,
    source_reconstruction: Tensor,
    source: Sequence[int] | NDArray[np.int64],
    target: Sequence[int] | NDArray[np.int64],
    *,
    batch_size: int | None = None,
) -> ClassSuccess:
    """Classes before and after the attack (Kos et al. 2018; Sootla).

    Args:
        classifier: what names the class of a reconstruction.
        reconstruction: rec(x*), (P, *shape).
        source_reconstruction: rec(x), (P, *shape).
        source: labels of the sources, P of them.
        target: labels of the targets, P of them.
        batch_size: most rows that the classifier is given at once; chosen by size where None.

    Raises:
        DataError: not one label for each reconstruction.
        ContractError: the classifier gives something else than :class:`Classifier` says.
        NonFiniteError: a reconstruction or a score is NaN or infinite.
    """
    counts = {len(reconstruction), len(source_reconstruction), len(source), len(target)}
    if len(counts) > 1 or reconstruction.shape != source_reconstruction.shape:
        raise DataError(
            f"each pair needs two reconstructions and two labels, but {tuple(reconstruction.shape)} and "
            f"{tuple(source_reconstruction.shape)} came with {len(source)} and {len(target)} labels"
        )
    device = reconstruction.device
    source_labels, target_labels = (torch.as_tensor(np.asarray(k), device=device).long() for k in (source, target))
    clean, adversarial = (
        classes_of(classifier, x, batch_size=batch_size).to(device) for x in (source_reconstruction, reconstruction)
    )
    return ClassSuccess(source_labels, target_labels, clean, adversarial)


def summarise_classes(success: ClassSuccess, judge: Judge, *, prefix: str) -> dict[str, Measurement]:
    """``{prefix}.success.target``, ``.ignore_target`` and ``.classifier_accuracy``, with ``prefix`` as "attack.latent".

    The rates have no value without a valid pair, and where the judge is at fault (:attr:`Judge.fault`).
    """
    rates = {TARGET.name: success.target_rate, IGNORE_TARGET.name: success.ignore_target_rate}
    metrics = {f"{prefix}.{name}": _unless(judge.fault, rate) for name, rate in rates.items()}
    return {**metrics, f"{prefix}.{ACCURACY.name}": judge.accuracy}


def summarise_factor(success: FactorSuccess, *, prefix: str) -> dict[str, Measurement]:
    """``{prefix}.success.factor`` and ``{prefix}.progress.median``, for one distortion of each pair: (P,) values.

    Beside them ``.success.factor_at_source`` and ``.success.factor_at_target``, the same criterion at rec(x) and
    rec(x_t): what the rate is without an attack, and with a perfect one. The rate has no value where the latter is 0.
    Raises :class:`DataError` for several distortions of a pair.
    """
    if success.success.ndim != 1:
        raise DataError(
            f"one distortion of each pair can be summarised, but {tuple(success.success.shape)} came; choose one lambda"
        )

    hits = {FACTOR: success.success, AT_SOURCE: success.at_source, AT_TARGET: success.at_target}
    rates = {
        metric.name: estimates.proportion(int(of.sum()), len(of), unit=metric.unit, direction=metric.direction)
        for metric, of in hits.items()
    }
    rates[FACTOR.name] = _unless(success.fault, rates[FACTOR.name])
    rates |= estimates.statistics(PROGRESS, success.progress.tolist())
    return {f"{prefix}.{name}": value for name, value in rates.items()}


def _unless(fault: str | None, measured: Measurement) -> Measurement:
    """``measured``, or without value where there is a fault."""
    if fault is None:
        return measured
    return replace(measured, value=None, ci=None, estimator=f"{measured.estimator}; inconclusive: {fault}")
