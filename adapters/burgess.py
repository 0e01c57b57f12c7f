"""Convolutional VAEs of Burgess et al. (2018), "Understanding disentangling in beta-VAE".

Tensors are named as in the models trained by YannDubs/disentangling-vae. Images are 32x32, or 64x64 where the
checkpoint has ``encoder.conv_64`` and ``decoder.convT_64``; the likelihood is Bernoulli, from the logits before
the last sigmoid. Channels and latents are read from the tensors. ``mu_logvar_gen`` gives means and log-variances
INTERLEAVED: mean, log-variance of latent 0, mean, log-variance of latent 1, and so on.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Self

from pydantic import model_validator
from torch import Tensor, nn

from vaeaudit import BernoulliLogits, Checkpoint, DiagonalGaussian
from vaeaudit.errors import AdapterError

from .opening import Options, channels_last, filled, read_options

CHANNELS, HIDDEN = 32, 256
BOTTOM = (CHANNELS, 4, 4)  # what the convolutions end in, for either image size
# The weights check asks: prefixes of the names of tensors.
WEIGHT_PARTS = {"encoder": ("encoder.",), "decoder": ("decoder.",)}


class BurgessOptions(Options):
    """Nothing to choose: ``input_shape`` and ``range`` are stated facts that must agree with the tensors."""

    @model_validator(mode="after")
    def _bernoulli(self) -> Self:
        self.unit_range()
        return self


class Burgess(nn.Module):
    """The VAE of Burgess et al. for images (channels, size, size), freshly initialised."""

    def __init__(self, channels: int, size: int, latents: int, options: BurgessOptions) -> None:
        super().__init__()
        self.input_shape = (channels, size, size)
        self.range = options.unit_range()
        self.latents = latents
        down, up = ["conv1", "conv2", "conv3"], ["convT1", "convT2", "convT3"]
        if size == 64:
            down, up = [*down, "conv_64"], ["convT_64", *up]
        convolutions = {name: _halving(channels if name == "conv1" else CHANNELS) for name in down}
        features = CHANNELS * BOTTOM[1] * BOTTOM[2]
        self.encoder = _with_relu(
            **convolutions,
            flatten=nn.Flatten(),  # (batch, 32, 4, 4) -> (batch, 512)
            lin1=nn.Linear(features, HIDDEN),
            lin2=nn.Linear(HIDDEN, HIDDEN),
            mu_logvar_gen=nn.Linear(HIDDEN, 2 * latents),
        )
        transposed = {name: _doubling(channels if name == "convT3" else CHANNELS) for name in up}
        self.decoder = _with_relu(
            lin1=nn.Linear(latents, HIDDEN),
            lin2=nn.Linear(HIDDEN, HIDDEN),
            lin3=nn.Linear(HIDDEN, features),
            unflatten=nn.Unflatten(1, BOTTOM),  # (batch, 512) -> (batch, 32, 4, 4)
            **transposed,
        )

    @property
    def prior(self) -> DiagonalGaussian:
        """N(0, I), one row."""
        return DiagonalGaussian.standard((self.latents,), like=next(self.parameters()))

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """q(z|x), (batch, channels, size, size) -> (batch, latents)."""
        pairs = self.encoder(x).unflatten(1, (self.latents, 2))  # (batch, 2 latents) -> (batch, latents, 2)
        mean, logvar = pairs.unbind(-1)
        return DiagonalGaussian(mean, 0.5 * logvar)

    def decode(self, z: Tensor) -> BernoulliLogits:
        """p(x|z), (batch, latents) -> (batch, channels, size, size)."""
        return BernoulliLogits(self.decoder(z))


def open(checkpoint: Checkpoint, config: Mapping[str, object]) -> Burgess:
    """Open a VAE of Burgess et al.; ``config`` may state ``input_shape`` and ``range``.

    Raises:
        AdapterError: an option is unknown, or contradicts the tensors.
        CheckpointError: tensors are missing, left over or of another shape.
    """
    options = read_options(BurgessOptions, config, "burgess")
    tensors = checkpoint.tensors
    channels = _dimension(tensors, "encoder.conv1.weight", 1, otherwise=1)
    latents = _dimension(tensors, "encoder.mu_logvar_gen.weight", 0, otherwise=20) // 2
    size = 64 if "encoder.conv_64.weight" in tensors else 32
    vae = channels_last(filled(lambda: Burgess(channels, size, latents, options), tensors))
    if options.input_shape not in (None, vae.input_shape):
        raise AdapterError(
            f"adapter 'burgess' was told input_shape {list(options.input_shape or ())}, but the tensors take "
            f"{list(vae.input_shape)}; leave it out or correct it"
        )
    return vae


def _halving(channels: int) -> nn.Module:
    return nn.Conv2d(channels, CHANNELS, kernel_size=4, stride=2, padding=1)


def _doubling(channels: int) -> nn.Module:
    return nn.ConvTranspose2d(CHANNELS, channels, kernel_size=4, stride=2, padding=1)


def _with_relu(**layers: nn.Module) -> nn.Sequential:
    """The layers in order under their names, with a ReLU after each that has weights but the last."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in layers.items():
        modules[name] = layer
        if any(True for _ in layer.parameters()):
            modules[f"relu_after_{name}"] = nn.ReLU()
    modules.popitem()
    return nn.Sequential(modules)


def _dimension(tensors: Mapping[str, Tensor], name: str, axis: int, otherwise: int) -> int:
    """One size of a tensor; ``otherwise`` where it is missing, which loading then reports."""
    tensor = tensors.get(name)
    return tensor.shape[axis] if tensor is not None and tensor.ndim > axis else otherwise
