"""Training objectives of the papers, one function each: what is minimised, in nats an item, the mean over a batch.

``model`` is a VAE of :mod:`vaeaudit.model.vae`, ``x`` a batch (n, *input_shape), ``noise`` standard normal, (n,
*noise_shape) of the posterior. Everything is estimated with that one draw of z an item, but for a KL that has a closed
form. ``items`` is the size N of the training data. W is Willetts et al. (2019), S is Sootla (2018).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vaeaudit import VAE, DiagonalGaussian, GaussianChain, Posterior

Discriminator = Callable[[Tensor], Tensor]  # z (n, latents) -> logits of "from q(z)" and "from its marginals", (n, 2)


def vae(model: VAE, x: Tensor, noise: Tensor) -> Tensor:
    """-ELBO (Kingma & Welling 2014)."""
    return beta_vae(model, x, noise, beta=1.0)


def beta_vae(model: VAE, x: Tensor, noise: Tensor, *, beta: float) -> Tensor:
    """-log p(x|z) + beta KL(q(z|x) || p(z)) (Higgins et al. 2017; S 2.11)."""
    q = model.encode(x)
    return _distortion(model, x, q.sample(noise)) + beta * q.kl(model.prior).mean()


def controlled_capacity_vae(model: VAE, x: Tensor, noise: Tensor, *, gamma: float, capacity: float) -> Tensor:
    """-log p(x|z) + gamma |KL - C| (Burgess et al. 2018; S 2.13), the KL being the mean of the batch."""
    q = model.encode(x)
    return _distortion(model, x, q.sample(noise)) + gamma * (q.kl(model.prior).mean() - capacity).abs()


def joint_vae(
    model: VAE, x: Tensor, noise: Tensor, *, gamma: float, capacity: float, categorical_capacity: float
) -> Tensor:
    """-log p(x|z, c) + gamma (|KL_z - C_z| + |KL_c - C_c|) (Dupont 2018; S 2.14)."""
    q = model.encode(x)
    kl_z, *kl_c = (part.kl(of).mean() for part, of in zip(q.parts, model.prior.parts, strict=True))
    off = (kl_z - capacity).abs() + (torch.stack(kl_c).sum() - categorical_capacity).abs()
    return _distortion(model, x, q.sample(noise)) + gamma * off


def beta_tcvae(model: VAE, x: Tensor, noise: Tensor, *, beta: float, items: int, sampling: str = "weighted") -> Tensor:
    """-log p(x|z) + I(z; x) + beta TC + dimension-wise KL (Chen et al. 2018; W 4).

    The three terms sum to log q(z|x) - log p(z) where beta is 1, so that only TC needs log q(z).
    """
    return _hierarchical(model, x, noise, beta, items, sampling, 0.0)


def factor_vae(model: VAE, x: Tensor, noise: Tensor, *, gamma: float, discriminator: Discriminator) -> Tensor:
    """-ELBO + gamma TC, estimated by the density ratio that a discriminator of z knows (Kim & Mnih 2018)."""
    q = model.encode(x)
    z = q.sample(noise)
    joint, marginal = discriminator(z).unbind(1)
    return _distortion(model, x, z) + q.kl(model.prior).mean() + gamma * (joint - marginal).mean()


def discriminator_loss(discriminator: Discriminator, z: Tensor, other: Tensor, orders: Tensor) -> Tensor:
    """Cross-entropy of telling draws ``z`` of q(z) from ``other`` ones, (n, latents), shuffled in each latent.

    ``orders`` (n, latents) names the row that each latent is taken from.
    """
    logits = discriminator(torch.cat([z.detach(), other.detach().gather(0, orders)]))
    return F.cross_entropy(logits, torch.arange(2, device=z.device).repeat_interleave(len(z)))


def dlgm(model: VAE, x: Tensor, noise: Tensor) -> Tensor:
    """-log p(x|z) + sum over layers of log q(z^i|z^(i-1)) - log p(z^i|z^(i+1)) (Rezende et al. 2014; W 5)."""
    return _hierarchical(model, x, noise, 1.0, len(x), "weighted", 0.0)


def beta_tcdlgm(
    model: VAE, x: Tensor, noise: Tensor, *, beta: float, items: int, sampling: str = "weighted", free_bits: float = 0.0
) -> Tensor:
    """That of a DLGM, with the total correlation of the top layer weighted by beta (W 11)."""
    return _hierarchical(model, x, noise, beta, items, sampling, free_bits)


def seatbelt_vae(
    model: VAE, x: Tensor, noise: Tensor, *, beta: float, items: int, sampling: str = "weighted", free_bits: float = 0.0
) -> Tensor:
    """The same of a model whose likelihood is given all layers (W 9 and 10).

    Free bits (Kingma et al. 2016) in nats a layer, W naming no group: below them the KL of a layer costs nothing.
    """
    return _hierarchical(model, x, noise, beta, items, sampling, free_bits)


def total_correlation(q: DiagonalGaussian, z: Tensor, items: int, sampling: str) -> Tensor:
    """Estimate of KL(q(z) || prod_j q(z_j)) from a minibatch: z (n, latents), row i drawn from row i of ``q``.

    "weighted" is W B.7; "stratified" counts the row that z was drawn from by 1/N and the others by (N-1)/(N(n-1)).
    """
    n = len(z)
    gaps = (z.unsqueeze(1) - q.mean) * torch.exp(-q.log_stddev)  # (draws, rows of q, latents)
    log_q = -0.5 * gaps.square() - q.log_stddev - 0.5 * math.log(2 * math.pi)
    weights = torch.full((n, n), 1 / (n * items), dtype=z.dtype, device=z.device)
    if sampling == "stratified":
        weights.fill_((items - 1) / (items * max(1, n - 1))).fill_diagonal_(1 / items)
    log_weights = weights.log()
    joint = (log_q.sum(2) + log_weights).logsumexp(1)
    marginals = (log_q + log_weights.unsqueeze(2)).logsumexp(1).sum(1)
    return (joint - marginals).mean()


def _distortion(model: VAE, x: Tensor, z: Tensor) -> Tensor:
    return -model.decode(z).log_prob(x).mean()


def _hierarchical(
    model: VAE, x: Tensor, noise: Tensor, beta: float, items: int, sampling: str, free_bits: float
) -> Tensor:
    chain = list(_run(model.encode(x), noise))
    z = torch.cat([draw for _, draw in chain], 1)
    priors = model.conditional_priors(z) if len(chain) > 1 else (model.prior,)
    loss = _distortion(model, x, z)
    for (q, draw), p in zip(chain, priors, strict=True):
        kl = (q.log_prob(draw) - p.log_prob(draw)).mean()
        loss = loss + (kl.clamp(min=free_bits) if free_bits else kl)
    return loss if beta == 1 else loss + (beta - 1) * total_correlation(*chain[-1], items, sampling)


def _run(q: Posterior, noise: Tensor) -> "list[tuple[DiagonalGaussian, Tensor]]":
    """q(z^i|z^(i-1)) of every layer, from the first up, and the draw from it."""
    first, upper = (q.first, q.upper) if isinstance(q, GaussianChain) else (q, ())
    assert isinstance(first, DiagonalGaussian)
    found = [(first, first.sample(noise[:, : first.mean.shape[1]]))]
    used = first.mean.shape[1]
    for layer in upper:
        given = layer(found[-1][1])
        width = given.mean.shape[1]
        found.append((given, given.sample(noise[:, used : used + width])))
        used += width
    return found
