"""Is a decoder surer than it is right? Its likelihoods against those of the mean image in place of its reconstructions.

Squared errors hardly see it: where logits are multiplied, all pixels are black or white, most of them rightly, and each
that is not costs as many nats as its logit is large. On data of the kind that it was trained on, a model is not far
worse by its own loss than an image that knows none of the items. The image keeps the decoder's standard deviations, so
that one which is too small everywhere is not seen.
"""

import torch
from torch import Tensor

from vaeaudit.model.vae import BernoulliLogits, BernoulliProbabilities, GaussianLikelihood, Likelihood
from vaeaudit.stats.estimates import clopper_pearson
from vaeaudit.subject.finding import Finding, Verdict

_NAME = "likelihood"
_FAR = 2.0  # times what the mean image lacks to the items themselves; 10 healthy models lacked at most 0.27 of that
_TAIL = 0.0005  # of the sign test


def without_items(likelihood: Likelihood, x: Tensor, image: Tensor) -> Tensor:
    """-log p of items ``x`` (b, *shape) in nats were the mean ``image`` (1, *shape), and were it themselves, (b, 2).

    The variance of a Gaussian stays as it is. NaN of another likelihood.
    """
    return torch.stack([_with_mean(likelihood, mean, x) for mean in (image.expand_as(x), x)], 1)


def _with_mean(likelihood: Likelihood, mean: Tensor, x: Tensor) -> Tensor:
    if isinstance(likelihood, BernoulliLogits | BernoulliProbabilities):
        return -BernoulliProbabilities(mean).log_prob(x)
    if isinstance(likelihood, GaussianLikelihood):
        return -GaussianLikelihood(mean, likelihood.log_stddev).log_prob(x)
    return torch.full_like(x.flatten(1)[:, 0], torch.nan)


def finding(nll: Tensor, without: Tensor, error: Tensor, image_error: Tensor, scaled: bool = False) -> Finding:
    """The answer for -log p(x|z) ``nll`` (n,), ``without`` (n, 2) the items, and mean squared errors (n,) of both.

    A model whose reconstructions are no nearer than the mean image is told of as that. ``scaled`` is a likelihood whose
    standard deviations the image has, too.
    """
    image, least = without.unbind(1)
    if bool(without.isnan().any() or nll.isnan().any()):
        return Finding(_NAME, Verdict.PASS, "not compared with that of the mean image")
    infinite, count = int((~nll.isfinite()).sum()), len(nll)
    if 2 * infinite > count:
        return Finding(_NAME, Verdict.UNSURE, f"-log p(x|z) is infinite for {infinite} of {count} items")
    place = "in its place, of the same standard deviations," if scaled else "in its place"
    told = f"mean -log p(x|z) {float(nll.mean()):.4g} nats, with the mean image {place} {float(image.mean()):.4g}"
    worse, better = int((nll > image).sum()), int((nll < image).sum())
    lacks, usual = float((nll - least).mean()), float((image - least).mean())
    if not (worse > better and lacks > _FAR * usual and float(error.mean()) < float(image_error.mean())):
        return Finding(_NAME, Verdict.PASS, told)
    if clopper_pearson(worse, worse + better, _TAIL)[0] <= 0.5:
        few = f"; worse on {worse} of {count} items, too few to tell from chance: give more"
        return Finding(_NAME, Verdict.PASS, told + few)
    return Finding(
        _NAME,
        Verdict.UNSURE,
        f"{told}, so that it is worse on {worse} of {count} items, though reconstructions are nearer: far too sure "
        "where it is wrong; are logits multiplied, a standard deviation too small, or are these no data of its kind?",
    )
