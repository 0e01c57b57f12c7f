"""What the autoencoders of latent diffusion models share: inputs of many sizes, and a decoder without a likelihood."""

import copy
from typing import Any

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from vaeaudit import DiagonalGaussian, GaussianLikelihood, LatentScale, Point, Posterior
from vaeaudit.errors import AdapterError, clipped

from .opening import Options


class ConvolutionalOptions(Options):
    """Facts that no file states; stddev: of the Gaussian likelihood, 1 unless stated."""

    stddev: PositiveFloat = 1.0


class Convolutional(nn.Module):
    """A VAE of a module ``model``, which takes inputs of any size that its strides divide.

    ``axes`` are the numbers of axes that an input may have; the first are its channels.
    """

    model: Any
    axes: tuple[int, ...] = (3,)
    latent_scale: LatentScale | None = None

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...], options: ConvolutionalOptions) -> None:
        super().__init__()
        self.model, self.options = model, options
        self.channels, asked = input_shape[0], options.input_shape or input_shape
        if asked[0] != self.channels or len(asked) not in self.axes:
            raise AdapterError(
                f"input_shape {list(asked)} was asked for, but the model takes {self.channels} channels and "
                f"{' or '.join(str(axes - 1) for axes in self.axes)} sizes; leave it out or correct it"
            )
        self.notes: tuple[str, ...] = ()
        if "stddev" not in options.model_fields_set:
            said = "the files state no likelihood, so it is a Gaussian of standard deviation 1; --option stddev=S"
            self.notes = (f"{said} gives another",)
        self._set_size(asked)

    def _set_size(self, shape: tuple[int, ...]) -> None:
        self.input_shape = shape
        self.latent, self.deterministic = self._latent(shape)

    @property
    def prior(self) -> DiagonalGaussian | Point:
        """N(0, I), or none beside a deterministic encoder; one row."""
        standard = DiagonalGaussian.standard(self.latent, like=next(self.parameters()))
        return Point(standard.mean) if self.deterministic else standard

    def encode(self, x: Tensor) -> Posterior:
        """q(z|x), (batch, channels, *sizes) -> (batch, latent channels, *smaller sizes)."""
        raise NotImplementedError

    def decoded(self, z: Tensor) -> Tensor:
        """E[x|z], (batch, *latent) -> (batch, channels, *sizes)."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> GaussianLikelihood:
        """p(x|z), likewise."""
        mean = self.decoded(z)
        return GaussianLikelihood(mean, mean.new_tensor(self.options.stddev).log())

    def forward(self, x: Tensor) -> tuple[Posterior, Tensor]:
        """The posterior and its reconstruction."""
        q = self.encode(x)
        return q, self.decoded(q.mean)

    def resized(self, shape: tuple[int, ...]) -> "Convolutional | None":
        """The same model for inputs of another shape; see :class:`vaeaudit.model.vae.Resizable`."""
        if self.options.input_shape is not None or len(shape) not in self.axes or shape[0] != self.channels:
            return None
        other = copy.copy(self)
        other._set_size(shape)
        return other

    @torch.no_grad()
    def _latent(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], bool]:
        """The shape of an input's latents, and whether they have no spread: found from shapes, without computing."""
        name, sizes = type(self.model).__name__, "x".join(map(str, shape))
        tensors = {name: t.to("meta") for name, t in (*self.named_parameters(), *self.named_buffers())}
        try:
            x = torch.empty((1, *shape), device="meta", dtype=next(self.parameters()).dtype)
            q, mean = torch.func.functional_call(self, tensors, x)
        except Exception as error:
            reason = clipped(" ".join(str(error).split()))
            raise AdapterError(f"{name} takes no inputs of {sizes} ({reason}); give data of another size") from error
        if mean.shape != x.shape:
            back = "x".join(map(str, mean.shape[1:]))
            raise AdapterError(
                f"{name} gives {back} back for inputs of {sizes}; crop or resize the data to such a size"
            )
        return tuple(q.mean.shape[1:]), isinstance(q, Point)
