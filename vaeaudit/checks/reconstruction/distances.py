"""How far the features of reconstructions, as a whole, are from those of their inputs: FID and KID.

FID is the squared Frechet distance of two normal distributions with the means and covariances of the features (Heusel
et al. 2017). It is biased upwards by an amount that depends on n, so that figures of other n are never compared. KID is
the squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018), estimated without bias.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

MOST = 5000  # items of KID, whose kernel has an entry for each pair of them
_ROWS = 512  # of the kernel at once


@dataclass(eq=False)
class Embedded:
    """Features of inputs and of their reconstructions, in that order: sums over all items, and those of the first."""

    n: int = 0
    sums: list[Tensor] = field(default_factory=list)
    products: list[Tensor] = field(default_factory=list)
    start: Tensor | None = None
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, x: Tensor, made: Tensor) -> None:
        """Features of so many further items, (b, d) each."""
        pair = tuple(of.flatten(1).double().cpu() for of in (x, made))
        if self.start is None:  # around which values are summed, lest their squares cancel
            self.start = pair[0].mean(0)
            d = len(self.start)
            self.sums, self.products = ([torch.zeros(*shape).double() for _ in pair] for shape in ((d,), (d, d)))
        for place, of in enumerate(pair):
            centred = of - self.start
            self.sums[place] += centred.sum(0)
            self.products[place] += centred.T @ centred
        room = max(0, MOST - self.n)
        if room:
            self.kept.append((pair[0][:room], pair[1][:room]))
        self.n += len(pair[0])

    def frechet(self) -> float:
        """FID of all items."""
        means = [of / self.n for of in self.sums]
        covariances = [
            (product / self.n - torch.outer(mean, mean)) * (self.n / (self.n - 1))
            for product, mean in zip(self.products, means, strict=True)
        ]
        return frechet(means[0], covariances[0], means[1], covariances[1])

    def kid(self) -> tuple[float, float, int]:
        """KID of the first items, its standard error, and how many they are."""
        x, made = (torch.cat(of) for of in zip(*self.kept, strict=True))
        return *kid(x, made), len(x)


def frechet(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """The squared Frechet distance of two normal distributions, of means (d,) and covariances (d, d) in float64.

    ||m - n||^2 + tr(S) + tr(T) - 2 tr((S^1/2 T S^1/2)^1/2) (Dowson and Landau 1982), by eigenvalues of symmetric
    matrices, which stay real where covariances are singular.
    """
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    both = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp(min=0).sqrt().sum()
    traces = covariance.trace() + other_covariance.trace()
    return max(0.0, float((mean - other_mean).square().sum() + traces - 2 * both))


def kid(x: Tensor, made: Tensor) -> tuple[float, float]:
    """The squared maximum mean discrepancy of paired rows (n, d), and its jackknife standard error.

    The U-statistic over pairs of items (Gretton et al. 2012, lemma 6): no item is held against its own reconstruction,
    so that it is unbiased though the two depend on each other, and may be negative. The error is NaN of fewer than
    three items.
    """
    n = len(x)
    sums = torch.zeros(n, dtype=x.dtype)
    for first in range(0, n, _ROWS):
        a, b = x[first : first + _ROWS], made[first : first + _ROWS]
        pairs = _kernel(a, x) + _kernel(b, made) - _kernel(a, made) - _kernel(b, x)
        pairs[torch.arange(len(a)), torch.arange(first, first + len(a))] = 0
        sums[first : first + _ROWS] = pairs.sum(1)
    total = sums.sum()
    value = float(total / (n * (n - 1)))
    if n < 3:
        return value, math.nan
    without = (total - 2 * sums) / ((n - 1) * (n - 2))
    return value, float(((without - without.mean()).square().sum() * (n - 1) / n).sqrt())


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3
