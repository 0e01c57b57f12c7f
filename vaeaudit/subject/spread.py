"""Whether a posterior's spread is what training left: the weight of the KL that each latent's spread agrees with.

Training minimises E[-log p(x|z)] + beta KL(q(z|x) || p(z)). At its end the derivative with respect to the log of each
latent's standard deviation s is zero: d E[-log p] / d log s = beta E[1 - s^2] for a standard normal prior. So every
latent tells a beta, and those of a trained model agree, whatever beta was, and whatever fixed factor the likelihood
lacks. Where a log-variance is read as the log of a standard deviation, s^2 stands for s, and they scatter.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vaeaudit.model.vae import VAE

_USED = 0.2  # least E[1 - s^2] of a latent that the model uses: one that repeats the prior tells nothing
_LATENTS = 4  # fewest used latents that can be said to agree


def scatter(vae: VAE, x: Tensor, noise: Tensor, read: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> float:
    """Standard deviation of log beta over the latents used, with mean and log standard deviation as ``read`` says.

    From items ``x`` (n, *input_shape) and ``noise`` (draws, n, latents), each draw with its mirror image. Infinite
    where fewer than four latents are used, or one of them tells no positive beta.
    """
    with torch.no_grad():
        posterior = vae.encode(x)
        mean, log_stddev = read(posterior.mean, posterior.log_stddev)  # type: ignore[attr-defined]
        shrunk = (1 - (2 * log_stddev).exp()).mean(0)
    if log_stddev.ndim != 2 or not bool(log_stddev.isfinite().all()):
        return float("inf")
    slope = torch.zeros_like(shrunk)
    for draw in torch.cat([noise, -noise]):
        step = log_stddev.exp() * draw
        z = (mean + step).requires_grad_(True)
        with torch.enable_grad():
            loss = -vae.decode(z).log_prob(x).sum()
        (gradient,) = torch.autograd.grad(loss, z)
        slope += (gradient * step).sum(0)
    used = shrunk > _USED
    beta = slope[used] / shrunk[used]
    if int(used.sum()) < _LATENTS or not bool((beta > 0).all()):
        return float("inf")
    return float(beta.log().std())
