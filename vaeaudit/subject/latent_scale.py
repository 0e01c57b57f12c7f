"""Do the latents lie where those who use them expect them to? Measured on data, against what the model states.

Latent diffusion trains on (z - shift) * scale, which has mean 0 and standard deviation 1 over the latents of its data.
Latents far from that are on the wrong side of a normalisation, or of weights that are not those that were trained.
"""

import math

import torch
from torch import Tensor

from vaeaudit.model.families import gaussian_part
from vaeaudit.model.vae import LatentScale, Posterior
from vaeaudit.subject.finding import Finding, Verdict

_FAR = (
    2.5  # times the standard deviation that is stated, or a part of it, which other data than those of training reach
)
_SHIFTED = 1.0  # stated standard deviations by which the mean may be off
_NOISE = 0.5  # of the variance: a posterior that keeps a picture is far narrower than its latents scatter


def moments(posterior: Posterior) -> Tensor:
    """Of each item's latents, by channel: mean, mean square, and mean variance of draws, (batch, 3, channels)."""
    z = posterior.mean.unsqueeze(-1).flatten(2)  # (batch, channels, places)
    spread = gaussian_part(posterior)
    variance = torch.zeros_like(z) if spread is None else (2 * spread.log_stddev).exp().reshape(z.shape)
    return torch.stack([z.mean(2), z.square().mean(2), variance.mean(2)], 1)


def finding(found: Tensor, stated: LatentScale | None) -> Finding:
    """What is measured, from the :func:`moments` of all items, and whether it is what is stated."""
    mean, square, noise = found.double().mean(0)  # (channels,) each
    at, deviation, share = _overall(mean, square, noise)
    seen = f"mean {at:.3g} and standard deviation {deviation:.3g}, of whose square {share:.2%} is noise"
    if stated is None:
        return Finding("latent scale", Verdict.PASS, f"{seen}; no file says how they are scaled")
    shift, scale = (torch.tensor(numbers).to(mean) for numbers in (stated.shift, stated.scale))
    at, normal, _ = _overall(
        (mean - shift) * scale, (square - 2 * shift * mean + shift.square()) * scale.square(), noise * scale.square()
    )
    told = f"{seen}; by {stated.said} mean {at:.3g} and standard deviation {normal:.3g}, where 0 and 1 are expected"
    if 1 / _FAR <= normal <= _FAR and abs(at) <= _SHIFTED and share <= _NOISE:
        return Finding("latent scale", Verdict.PASS, told)
    if share > _NOISE:
        why = "most of it is noise, as of weights that were drawn at random"
    elif 1 / _FAR <= deviation <= _FAR:
        why = "they lie near 0 and 1 as they are: on the other side of the normalisation?"
    else:
        why = "random or damaged weights, those of another model, or data unlike those of training?"
    return Finding("latent scale", Verdict.UNSURE, f"{told}: {why}")


def _overall(mean: Tensor, square: Tensor, noise: Tensor) -> tuple[float, float, float]:
    """Mean, standard deviation of draws, and the noise's share of its square, over all channels."""
    at = float(mean.mean())
    variance = max(float((square + noise).mean()) - at**2, 0.0)
    return at, math.sqrt(variance), float(noise.mean()) / variance if variance else 0.0
