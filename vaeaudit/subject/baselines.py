"""Are reconstructions better than an image that knows none of the items? Asked so that no single item decides.

Three tests, each wrong with probability 0.001. Student's t compares the mean squared error with that of the mean image;
no constant passes, as none has a smaller one. The sign test counts the items that come out better than the mean image,
the median image and the mean reconstruction, each of them, which heavy tails do not carry off; most items must gain
something by it, and a third test must show that items are nearer to their own reconstructions than to those of others,
which no constant is.
"""

import math
from collections.abc import Sequence

import torch
from scipy import stats as distributions
from torch import Tensor

from vaeaudit.model.ranges import Range, widths
from vaeaudit.stats.estimates import clopper_pearson
from vaeaudit.subject.finding import Finding, Verdict
from vaeaudit.subject.inputs import numbered

_LEVEL = 0.999  # of each test: a sound model must not fail one by chance
_TAIL = (1 - _LEVEL) / 2
_ENOUGH = 100  # items on which any model that is good for something shows it
_LEAST = 20  # items from which on a sum over a random permutation counts as normal, and equal ones as no chance
_PRODUCTS = 2**31  # most multiplications that comparing items with the reconstructions of others may take
_OUTLYING = 10  # times the median error, and at least this part of the sum of all: an item to be named
_LITTLE = 0.02  # of the mean image's error: what most items must gain, as maps that were never trained gain less
_SLIGHT = 0.1  # of the mean gain: what most items may lose to it
_UNLIKE = 1e3  # how far the scales of a vector's elements may differ before they are told
_ADVICE = "wrong layout of mean and log-variance, activation, range or resizing, or a collapsed model?"


def unlike_scales(x: Tensor, data_range: Range | None) -> tuple[float, float] | None:
    """The least and the largest spread, max - min over items, of elements of ``x`` that vary.

    None where they are alike, where one bounded interval holds all of them, or where the items are too few to tell.
    """
    one_interval = len(set(spans := widths(data_range))) == 1 and math.isfinite(spans[0])
    if one_interval or len(x) < _LEAST:
        return None
    spread = x.amax(0) - x.amin(0)
    spread = spread[spread > 0]
    if not spread.numel() or bool(spread.max() <= _UNLIKE * spread.min()):
        return None
    return float(spread.min()), float(spread.max())


class Baseline:
    """Items ``x`` (n, *shape) with numbers ``items``, and the error of their mean image.

    The mean of these very items: no constant image does better on them, so a collapsed model never passes. Were each
    item left out of its own mean, the mean image itself would seem to beat the mean image. To be worse, though, a model
    must be worse than the mean of the other items, which is no more than it could know.

    Where the elements have no common range and their scales are far apart, errors are taken in units of each
    element's standard deviation, as otherwise the largest alone would decide.
    """

    def __init__(self, x: Tensor, items: Sequence[int], data_range: Range | None) -> None:
        self.x, self.items = x, list(items)
        self.mean = x.mean(0, keepdim=True)
        unlike = unlike_scales(x, data_range) is not None
        self.weight = _inverse_variances(x, self.mean) if unlike else None
        self.rounding = torch.finfo(x.dtype).eps ** 0.5
        self.raw, self.error = self.errors(self.mean.expand_as(x), x)
        self.median_error = self.errors(x.median(0, keepdim=True).values.expand_as(x), x)[1]
        width = x[0].numel()
        most = max(_LEAST, int((_PRODUCTS / width) ** 0.5))
        self.compared = torch.linspace(0, len(x) - 1, min(most, len(x)), device=x.device).round().long()

    def errors(self, reconstruction: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error of each item, (b,): in squared input units, and in those of the tests."""
        square = (reconstruction - x).square().flatten(1)
        raw = square.mean(1)
        return raw, raw if self.weight is None else (square * self.weight).mean(1)

    def finding(
        self, name: str, raw: Tensor, error: Tensor, reconstruction: Tensor, *, unseen: Verdict = Verdict.FAIL
    ) -> Finding:
        """The answer for reconstructions with errors ``raw`` and ``error`` (n,) as :meth:`errors` gives them.

        ``reconstruction`` is that of the items ``compared``; ``unseen`` the verdict where enough items show no gain.
        """
        n, bad = len(error), (~error.isfinite()).nonzero().squeeze(1).tolist()
        error = torch.where(error.isfinite(), error, torch.inf)
        gain = _signs(error, self.error, self.rounding)
        told = (
            f"mean squared error {float(raw.mean()):.4g}, of the mean image {float(self.raw.mean()):.4g}; "
            f"nearer than it on {gain[0]} of {n} items{self._outlying(error)}"
        )
        if self.weight is not None:
            told += "; counted in units of each element's standard deviation, as their scales are far apart"
        if bad:
            told += f"; not finite for {numbered([self.items[place] for place in bad])}"
        left_out = (n / (n - 1)) ** 2  # (x_i - mean of the others) / (x_i - mean of all), squared
        fewer = _signs(error, left_out * self.error, self.rounding)
        own = self.errors(reconstruction.mean(0, keepdim=True).expand_as(self.x), self.x)[1]
        constants = (self.error, self.median_error, torch.where(own.isfinite(), own, torch.inf))
        signs = [_bounds(*_signs(error, constant, self.rounding))[0] for constant in constants]
        most = 2 * int((error < (1 - _LITTLE) * self.error).sum()) > n
        better = (self._mean_gain(error, 1.0) > 0, min(signs) > 0.5 and most)
        worse = self._mean_gain(error, left_out) < 0 or _bounds(*fewer)[1] < 0.5
        depends = better[0] or self._depends(reconstruction)
        if worse and not (any(better) and depends):
            return Finding(name, Verdict.FAIL, f"{told}: worse; {_ADVICE}")
        slight = better[0] and float((error - self.error).median()) <= _SLIGHT * float((self.error - error).mean())
        if worse and not slight:
            but = "in the mean, but worse on most items" if better[0] else "on most items, but worse in the mean"
            return Finding(name, Verdict.UNSURE, f"{told}: better {but}; {_ADVICE}")
        if any(better) and depends:
            return Finding(name, Verdict.UNSURE if bad else Verdict.PASS, told)
        if n < _ENOUGH and not self._same(reconstruction):
            return Finding(name, Verdict.UNSURE, f"{told}: not better beyond chance on {n} items; give more; {_ADVICE}")
        if not depends:
            return Finding(name, unseen, f"{told}: no nearer to its own item than to others; {_ADVICE}")
        verdict = Verdict.UNSURE if fewer[0] > fewer[1] else unseen
        how = "hardly better" if min(signs) > 0.5 else f"not better beyond chance on {n} items"
        return Finding(name, verdict, f"{told}: {how}; {_ADVICE}")

    def _mean_gain(self, error: Tensor, factor: float) -> float:
        """The end nearest to 0 of Student's interval of the mean gain over ``factor`` times the baseline; 0 within."""
        gain = (factor * self.error - error).double()
        half = float(distributions.t.ppf(1 - _TAIL, len(gain) - 1)) * float(gain.std()) / math.sqrt(len(gain))
        centre = float(gain.mean())
        if centre - half > self.rounding * float(self.error.mean()):
            return centre - half
        return centre + half if centre + half < 0 else 0.0

    def _depends(self, reconstruction: Tensor) -> bool:
        """Whether items are nearer to their own reconstructions than to those of others.

        Each item ranks all reconstructions by their error for it. Were they dealt out at random, the sum of the ranks
        that items give to their own would have Hoeffding's mean and variance (1951, A combinatorial central limit
        theorem); that some reconstructions are near to everything takes no part in them.
        """
        m = len(self.compared)
        if m < _LEAST:
            return False
        weight = 1.0 if self.weight is None else self.weight.sqrt()
        x, rec = ((each - self.mean).flatten(1) * weight for each in (self.x[self.compared], reconstruction))
        error = x.square().sum(1)[:, None] + rec.square().sum(1) - 2 * x @ rec.T  # [i, j]: of item i against rec. j
        error = torch.where(error.isfinite(), error, torch.inf).double().cpu()
        flat = error.amax(1) - error.amin(1) <= self.rounding * error.median(1).values  # rounding alone
        rank = torch.from_numpy(distributions.rankdata(error.numpy(), axis=1))
        rank = torch.where(flat[:, None], (m + 1) / 2, rank)
        apart = rank - rank.mean(1, keepdim=True) - rank.mean(0) + rank.mean()
        deviation = float((apart.square().sum() / (m - 1)).sqrt())
        return float(apart.trace()) < -float(distributions.norm.ppf(1 - _TAIL)) * deviation

    def _same(self, reconstruction: Tensor) -> bool:
        """Whether so many items that they tell come out alike but for rounding, where they differ themselves."""
        spread = self.errors(reconstruction.mean(0, keepdim=True).expand_as(reconstruction), reconstruction)[1]
        return len(self.x) >= _LEAST and bool(spread.amax() <= self.rounding**2 * self.error.median())

    def _outlying(self, error: Tensor) -> str:
        """Items whose errors make up most of the mean, with their share of the median."""
        finite = error[error.isfinite()]
        if not len(finite):
            return ""
        median, total = finite.median(), finite.sum()
        far = (error.isfinite() & (error > _OUTLYING * median) & (_OUTLYING * error > total)).nonzero().squeeze(1)
        if not len(far) or not bool(median > 0):
            return ""
        times = float(error[far].max() / median)
        of = "error" if len(far) == 1 else "errors up to"
        return f" ({numbered([self.items[place] for place in far.tolist()])}: {of} {times:.3g} times the median)"


def _signs(error: Tensor, baseline: Tensor, rounding: float) -> tuple[int, int]:
    """On how many items the error is smaller, and on how many larger, than the baseline's."""
    gain, tie = baseline - error, rounding * baseline
    return int((gain > tie).sum()), int((gain < -tie).sum())


def _bounds(better: int, worse: int) -> tuple[float, float]:
    return clopper_pearson(better, better + worse, _TAIL) if better + worse else (0.0, 1.0)


def _inverse_variances(x: Tensor, mean: Tensor) -> Tensor:
    """1 / variance of each element, (size,); an element that never varies counts in units of what it is."""
    deviation, value = (x - mean).flatten(1).square().mean(0).sqrt(), mean.flatten().abs()
    usual = deviation[deviation > 0].median()
    scale = torch.where(deviation > 0, deviation, torch.where(value > 0, value, usual))
    return 1 / scale.square()
