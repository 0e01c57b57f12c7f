"""Is a decoder surer than it is right? Its likelihoods against those of the mean image in place of its reconstructions.

Squared errors hardly see it: where logits are multiplied, all pixels are black or white, most of them rightly, and each
that is not costs as many nats as its logit is large. On data of the kind that it was trained on, a model is not far
worse by its own loss than an image that knows none of the items. The image keeps the decoder's standard deviations, so
that one which is too small everywhere is not seen.

Logits that are multiplied by little are told by the factor that would suit the items best: a decoder can multiply its
logits by its last weights, so that training by the likelihood of draws leaves that at 1 for them, whatever the weight
of the KL, and above 1 for the means, which decode into what is nearer. That is of items and by the loss of training: a
model that learnt 50 digits by heart is too sure of others, one trained as a continuous Bernoulli or by L1 of any.
"""

import torch
from torch import Tensor

from vaeaudit.model.vae import BernoulliLogits, BernoulliProbabilities, GaussianLikelihood, Likelihood
from vaeaudit.stats.estimates import clopper_pearson
from vaeaudit.subject.finding import Finding, Verdict

_NAME = "likelihood"
_FAR = 2.0  # times what the mean image lacks to the items themselves; 10 healthy models lacked at most 0.27 of that
_TAIL = 0.0005  # of the sign test
# Factor of the logits: at the means 10 healthy models were likeliest with 1.0 to 1.6, and with less than this for 2% of
# the items at most, on data unseen in training as well; with logits doubled for 14% to 97%, tripled for 59% at least.
_MILD = 0.6
_WHY = (
    "too sure where it is wrong; are logits multiplied, a standard deviation too small, or are data or loss not those "
    "of its training?"
)


def without_items(likelihood: Likelihood, x: Tensor, image: Tensor) -> Tensor:
    """-log p of items ``x`` (b, *shape) in nats were the mean ``image`` (1, *shape), and were it themselves, (b, 2).

    The variance of a Gaussian stays as it is; inf where that is none. NaN of another likelihood.
    """
    found = torch.stack([_with_mean(likelihood, mean, x) for mean in (image.expand_as(x), x)], 1)
    if isinstance(likelihood, GaussianLikelihood):
        found = torch.where(found.isnan(), torch.inf, found)  # compared all the same
    return found


def _with_mean(likelihood: Likelihood, mean: Tensor, x: Tensor) -> Tensor:
    if isinstance(likelihood, BernoulliLogits | BernoulliProbabilities):
        return -BernoulliProbabilities(mean).log_prob(x)
    if isinstance(likelihood, GaussianLikelihood):
        return -GaussianLikelihood(mean, likelihood.log_stddev).log_prob(x)
    return torch.full_like(x.flatten(1)[:, 0], torch.nan)


def steepness(likelihood: Likelihood, x: Tensor) -> Tensor:
    """How -log p of items ``x`` (b, *shape) rises with a factor of the logits, at _MILD, (b,); NaN without logits.

    It is convex in the factor: the best one is less than _MILD where this is above 0. Probabilities have logits, too.
    """
    if isinstance(likelihood, BernoulliLogits):
        logits = likelihood.logits
    elif isinstance(likelihood, BernoulliProbabilities):
        logits = likelihood.probabilities.logit().clamp(-100, 100)  # as its logarithms are
    else:
        return torch.full_like(x.flatten(1)[:, 0], torch.nan)
    return (logits * (torch.sigmoid(_MILD * logits) - x)).flatten(1).sum(1)


def finding(
    nll: Tensor, without: Tensor, error: Tensor, image_error: Tensor, rising: Tensor, scaled: bool = False
) -> Finding:
    """The answer for -log p(x|z) ``nll`` (n,), ``without`` (n, 2) the items, and mean squared errors (n,) of both.

    ``rising`` (n,) is the :func:`steepness` of each item.
    A model whose reconstructions are no nearer than the mean image is told of as that. ``scaled`` is a likelihood whose
    standard deviations the image has, too.
    """
    image, least = without.unbind(1)
    if bool(without.isnan().any()):
        return Finding(_NAME, Verdict.PASS, "not compared with that of the mean image")
    infinite, count = int((~nll.isfinite()).sum()), len(nll)
    if 2 * infinite > count:
        what = "NaN, as of infinite logits or deviations that are NaN," if bool(nll.isnan().any()) else "infinite"
        return Finding(_NAME, Verdict.UNSURE, f"-log p(x|z) is {what} for {infinite} of {count} items")
    nll = torch.where(nll.isnan(), torch.inf, nll)
    place = "in its place, of the same standard deviations," if scaled else "in its place"
    told = f"mean -log p(x|z) {float(nll.mean()):.4g} nats, with the mean image {place} {float(image.mean()):.4g}"
    worse, better = int((nll > image).sum()), int((nll < image).sum())
    lacks, usual = float((nll - least).mean()), float((image - least).mean())
    nearer = float(error.mean()) < float(image_error.mean())
    if not (worse > better and lacks > _FAR * usual and nearer):
        steep = int((rising > 0).sum())
        if not nearer or clopper_pearson(steep, count, _TAIL)[0] <= 0.5:
            return Finding(_NAME, Verdict.PASS, told)
        milder = f"{told}, but {steep} of {count} items are likelier with logits {_MILD} times as large, or less"
        return Finding(_NAME, Verdict.UNSURE, f"{milder}: {_WHY}")
    if clopper_pearson(worse, worse + better, _TAIL)[0] <= 0.5:
        few = f"; worse on {worse} of {count} items, too few to tell from chance: give more"
        return Finding(_NAME, Verdict.PASS, told + few)
    return Finding(
        _NAME,
        Verdict.UNSURE,
        f"{told}, so that it is worse on {worse} of {count} items, though reconstructions are nearer: far {_WHY}",
    )
