"""Likelihoods beside Bernoulli and Gaussian: heavy tails, counts, and levels such as those of bytes.

Spreads are given as logarithms and broadcast against the mean as that of a Gaussian does: one number, (batch, 1) for
one of each item, or one of each element. All have log p at any x in their support, so that attacks have a gradient;
where x only takes some values, such as whole numbers, that is what the formula says between them.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from vaeaudit.model.vae import aligned


def _summed(elements: Tensor) -> Tensor:
    return elements.flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class LaplaceLikelihood:
    """Laplace(mean, b = exp(log_scale)) for each element: what an L1 loss stands for."""

    mean: Tensor
    log_scale: Tensor
    support = None
    route = "Laplace"

    def log_prob(self, x: Tensor) -> Tensor:
        """Sum of -|x - mean| / b - log 2b, (batch,)."""
        log_scale = aligned(self.log_scale, self.mean)
        return _summed(-(x - self.mean).abs() * torch.exp(-log_scale) - log_scale - math.log(2))


@dataclass(frozen=True, eq=False)
class StudentTLikelihood:
    """Student's t of ``df`` degrees of freedom, at ``mean`` and of scale s = exp(log_scale), for each element.

    Its mean is no expectation where ``df`` is at most 1: it is the median.
    """

    mean: Tensor
    log_scale: Tensor
    df: float
    support = None

    @property
    def route(self) -> str:
        """With its degrees of freedom."""
        return f"Student t of {self.df:g} degrees of freedom"

    def log_prob(self, x: Tensor) -> Tensor:
        """Sum of log G((df + 1)/2) - log G(df/2) - 1/2 log(pi df) - log s - (df + 1)/2 log(1 + u^2 / df), (batch,).

        u is (x - mean) / s.
        """
        log_scale = aligned(self.log_scale, self.mean)
        constant = math.lgamma((self.df + 1) / 2) - math.lgamma(self.df / 2) - 0.5 * math.log(math.pi * self.df)
        squares = ((x - self.mean) * torch.exp(-log_scale)).square()
        return _summed(constant - log_scale - (self.df + 1) / 2 * torch.log1p(squares / self.df))


@dataclass(frozen=True, eq=False)
class NegativeBinomialLikelihood:
    """Counts of mean m = exp(log_mean) and variance m + m^2 / r, r = exp(log_r), as of scVI (Lopez et al. 2018)."""

    log_mean: Tensor
    log_r: Tensor
    support = (0.0, math.inf)
    route = "negative binomial"

    @property
    def mean(self) -> Tensor:
        """Expected counts, (batch, *shape)."""
        return self.log_mean.exp()

    def log_prob(self, x: Tensor) -> Tensor:
        """Sum of log G(x + r) - log G(r) - log G(x + 1) + r log(r / (r + m)) + x log(m / (r + m)), (batch,)."""
        return _summed(self.elements(x))

    def elements(self, x: Tensor) -> Tensor:
        """log p of each element, (batch, *shape)."""
        log_r = aligned(self.log_r, self.log_mean)
        r, log_total = log_r.exp(), torch.logaddexp(log_r, self.log_mean)
        ways = torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1)
        return ways + r * (log_r - log_total) + x * (self.log_mean - log_total)


@dataclass(frozen=True, eq=False)
class ZeroInflatedLikelihood:
    """Counts that are 0 with probability w = sigmoid(logits), and else drawn from ``counts``; (batch, *shape).

    An x below 1e-8 counts as 0, at which log p jumps: no gradient tells of that.
    """

    counts: NegativeBinomialLikelihood
    logits: Tensor
    support = (0.0, math.inf)
    route = "zero-inflated negative binomial"

    @property
    def mean(self) -> Tensor:
        """(1 - w) times the mean of the counts, (batch, *shape)."""
        return torch.sigmoid(-self.logits) * self.counts.mean

    def log_prob(self, x: Tensor) -> Tensor:
        """Sum of log(w + (1 - w) p(0)) where x is 0, and of log(1 - w) + log p(x) elsewhere, (batch,)."""
        other = F.logsigmoid(-self.logits) + self.counts.elements(x)
        return _summed(torch.where(x < 1e-8, torch.logaddexp(F.logsigmoid(self.logits), other), other))


@dataclass(frozen=True, eq=False)
class CategoricalLikelihood:
    """One of as many levels as the last axis of ``logits`` (batch, *shape, levels) has, evenly from low to high.

    Of 256 levels of bytes, for instance. Between two levels log p is interpolated.
    """

    logits: Tensor
    low: float = 0.0
    high: float = 1.0

    @property
    def support(self) -> tuple[float, float]:
        """The first and the last level."""
        return (self.low, self.high)

    @property
    def route(self) -> str:
        """With the number of levels."""
        return f"categorical of {self.logits.shape[-1]} levels"

    @cached_property
    def mean(self) -> Tensor:
        """The sum of levels times their probabilities, (batch, *shape)."""
        levels = torch.linspace(self.low, self.high, self.logits.shape[-1]).to(self.logits)
        return (self.logits.softmax(-1) * levels).sum(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Sum of log p of the level that x is, (batch,)."""
        last = self.logits.shape[-1] - 1
        place = ((x - self.low) / (self.high - self.low) * last).clamp(0, last)
        below = place.detach().floor().clamp(max=last - 1)
        both = torch.stack([below, below + 1], -1).long()
        low, high = self.logits.log_softmax(-1).gather(-1, both).unbind(-1)
        return _summed(torch.lerp(low, high, place - below))


@dataclass(frozen=True, eq=False)
class LogisticMixtureLikelihood:
    """A mixture of logistic distributions in as many bins as there are levels from low to high (Salimans et al. 2017).

    ``logits``, ``means`` and ``log_scales`` are (batch, *shape, parts). The first and the last bin take what lies
    beyond. Elements are independent given z: of PixelCNN++, whose colours depend on one another, it is the first.
    """

    logits: Tensor
    means: Tensor
    log_scales: Tensor
    low: float = 0.0
    high: float = 1.0
    levels: int = 256

    @property
    def support(self) -> tuple[float, float]:
        """The first and the last level."""
        return (self.low, self.high)

    @property
    def route(self) -> str:
        """With the numbers of parts and levels."""
        return f"mixture of {self.logits.shape[-1]} logistics in {self.levels} bins"

    @cached_property
    def mean(self) -> Tensor:
        """Of the mixture kept in [low, high], (batch, *shape): within half a bin of that of the levels.

        Of one part low + s [softplus((mean - low) / s) - softplus((mean - high) / s)], the integral of P(x > t).
        """
        s = self.log_scales.exp()
        over = F.softplus((self.means - self.low) / s) - F.softplus((self.means - self.high) / s)
        return (self.logits.softmax(-1) * (self.low + s * over)).sum(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Sum of the log of the mixture's mass in the bin around x, (batch,).

        Of one part sigmoid(a) - sigmoid(b) at its upper and lower edge, as sigmoid(a) sigmoid(-b) (1 - exp(b - a)).
        """
        half = (self.high - self.low) / (self.levels - 1) / 2
        rates = torch.exp(-self.log_scales)
        centred = x.unsqueeze(-1) - self.means
        upper, lower = F.logsigmoid((centred + half) * rates), F.logsigmoid(-(centred - half) * rates)
        inner = upper + lower + torch.log(-torch.expm1(-2 * half * rates))
        first, last = (x < self.low + half).unsqueeze(-1), (x > self.high - half).unsqueeze(-1)
        of_parts = torch.where(first, upper, torch.where(last, lower, inner))
        return _summed(torch.logsumexp(self.logits.log_softmax(-1) + of_parts, -1))
