"""Hierarchical VAEs: DLGM, beta-TCDLGM and Seatbelt-VAE of Willetts et al. (2020), appendix C, and beta-TCVAE as L = 1.

q(z^1|x) and p(x|z) are the networks of Chen et al. (2018), named as in rtqichen/beta-tcvae: for 64x64 images
``encoder.conv1`` to ``conv5``, each with its ``bn``, and ``conv_z``, and ``decoder.conv1`` to ``conv5`` likewise and
``conv_final``; or ``encoder.fc1`` to ``fc3`` and ``decoder.net``. They are followed by

    up.{i}.0, .1, .3, .4, .6     q(z^(i+2)|z^(i+1)): linear, batch normalisation, twice, and linear, from i = 0 on
    down.{i}.0, .1, .3, .4, .6   p(z^(i+1)|z^(i+2)), likewise

with leaky ReLUs after the normalisations. Each gives mean and log of the standard deviation. Widths are read from the
tensors, and by its width a decoder takes z^1 (DLGM) or all layers side by side (Seatbelt-VAE).
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal, Self

import torch
from pydantic import NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor, nn

from vaeaudit import BernoulliLogits, Checkpoint, DiagonalGaussian, GaussianChain, GaussianLikelihood
from vaeaudit.errors import AdapterError, CheckpointError

from .opening import Options, filled, read_options

# The weights check asks: prefixes of the names of tensors.
WEIGHT_PARTS = {"encoder": ("encoder.", "up."), "decoder": ("decoder.", "down.")}
_SIDE = 64
_UNUSED = ("encoder.conv_z.", "prior_params")  # of the upstream class, which fills them and reads neither
Shapes = Mapping[str, tuple[int, ...]]


class HierarchicalOptions(Options):
    """What the tensors cannot tell.

    likelihood: Bernoulli, the decoder's outputs being logits; or Gaussian, its outputs being the mean.
    stddev: standard deviation of the Gaussian likelihood, 1 unless stated.
    layout: of mean and spread in what a network gives, interleaved (as upstream) or in halves.
    spread: whether the second is the log of the standard deviation (as upstream) or the log-variance.
    slope: of the leaky ReLUs below 0.
    """

    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    stddev: PositiveFloat = 1.0
    layout: Literal["interleaved", "halves"] = "interleaved"
    spread: Literal["log_stddev", "logvar"] = "log_stddev"
    slope: NonNegativeFloat = 0.01

    @model_validator(mode="after")
    def _of_one_likelihood(self) -> Self:
        if self.likelihood == "bernoulli":
            self.unit_range()
            if "stddev" in self.model_fields_set:
                raise ValueError("stddev belongs to likelihood 'gaussian', and the likelihood is 'bernoulli'")
        return self


class Hierarchical(nn.Module):
    """A VAE of one stochastic layer or more, of the weights that have these shapes, freshly initialised."""

    def __init__(self, shapes: Shapes, options: HierarchicalOptions) -> None:
        super().__init__()
        self.options = options
        self.range = options.unit_range() if options.likelihood == "bernoulli" else options.range
        convolutional = "encoder.conv1.weight" in shapes
        sizes = (shapes["encoder.conv1.weight"][1], _SIDE, _SIDE) if convolutional else shapes["encoder.fc1.weight"][1:]
        # As many inputs as an image of upstream has are one.
        self.input_shape = options.input_shape or ((1, _SIDE, _SIDE) if sizes == (_SIDE**2,) else sizes)
        if math.prod(self.input_shape) != math.prod(sizes):
            raise AdapterError(
                f"adapter 'hierarchical' was told input_shape {list(self.input_shape)}, but the tensors take "
                f"{list(sizes)}; leave it out or correct it"
            )
        self.encoder, self.decoder = _convolutional(shapes) if convolutional else _connected(shapes)
        links = sum(name.startswith("up.") and name.endswith(".6.weight") for name in shapes)
        self.up, self.down = (
            nn.ModuleList(_link(shapes, f"{way}.{i}", options.slope) for i in range(links)) for way in ("up", "down")
        )
        first = shapes["encoder.conv_z.weight" if convolutional else "encoder.fc3.weight"][0] // 2
        self.widths = [first, *(shapes[f"up.{i}.6.weight"][0] // 2 for i in range(links))]
        taken = shapes["decoder.conv1.weight"][0] if convolutional else shapes["decoder.net.0.weight"][1]
        if taken not in (first, sum(self.widths)):
            raise CheckpointError(
                f"the decoder takes {taken} latents, where {first} of the first layer or {sum(self.widths)} of all "
                "were expected; is it another architecture?"
            )
        self.taken = taken

    @property
    def prior(self) -> DiagonalGaussian:
        """N(0, I) of the top layer, and of as many latents as all layers have; those below it are given by ``down``."""
        return DiagonalGaussian.standard((sum(self.widths),), like=next(self.parameters()))

    def conditional_priors(self, z: Tensor) -> tuple[DiagonalGaussian, ...]:
        """p(z^1|z^2), p(z^2|z^3), ..., and p(z^L), for latents of all layers (rows, all widths)."""
        above = torch.split(z, self.widths, dim=1)[1:]
        given = (self._gaussian(link, of) for link, of in zip(self.down, above, strict=True))
        return *given, DiagonalGaussian.standard((self.widths[-1],), like=z)

    def encode(self, x: Tensor) -> DiagonalGaussian | GaussianChain:
        """q(z^1|x) q(z^2|z^1) ..., (batch, *input_shape) -> (batch, all widths)."""
        first = self._gaussian(self.encoder, x.flatten(1))
        return GaussianChain(first, tuple(partial(self._gaussian, link) for link in self.up)) if self.up else first

    def decode(self, z: Tensor) -> BernoulliLogits | GaussianLikelihood:
        """p(x|z), (batch, all widths) -> (batch, *input_shape)."""
        output = self.decoder(z[:, : self.taken]).flatten(1).unflatten(1, self.input_shape)
        if self.options.likelihood == "bernoulli":
            return BernoulliLogits(output)
        return GaussianLikelihood(output, output.new_full((), math.log(self.options.stddev)))

    def _gaussian(self, network: nn.Module, values: Tensor) -> DiagonalGaussian:
        """What a network gives of rows, (rows, 2 latents), as mean and log of the standard deviation."""
        given = network(values)
        halves = self.options.layout == "halves"
        mean, spread = given.chunk(2, dim=1) if halves else given.unflatten(1, (-1, 2)).unbind(2)
        return DiagonalGaussian(mean, spread if self.options.spread == "log_stddev" else 0.5 * spread)


def open(checkpoint: Checkpoint, config: Mapping[str, object]) -> Hierarchical:
    """Open a hierarchical VAE; ``config`` holds the fields of :class:`HierarchicalOptions`.

    Raises:
        AdapterError: an option is unknown, has a bad value, or contradicts the tensors.
        CheckpointError: tensors are missing, left over or of another shape.
    """
    options = read_options(HierarchicalOptions, config, "hierarchical")
    connected = "encoder.fc1.weight" in checkpoint.tensors
    unused = _UNUSED if connected else _UNUSED[1:]
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(unused)}
    shapes = _Told({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return filled(lambda: Hierarchical(shapes, options), tensors)


class _Told(dict[str, tuple[int, ...]]):
    """Shapes by name, which say in one sentence what is missing."""

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise CheckpointError(
            f"the checkpoint does not fit adapter 'hierarchical' (missing: {name}); is it another architecture?"
        )


def _link(shapes: Shapes, name: str, slope: float) -> nn.Sequential:
    """A multi-layer perceptron of two hidden layers."""
    layers: list[nn.Module] = []
    for place in (0, 3, 6):
        outputs, inputs = shapes[f"{name}.{place}.weight"]
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.LeakyReLU(slope)]
    return nn.Sequential(*layers[:-2])


def _connected(shapes: Shapes) -> tuple[nn.Sequential, nn.Sequential]:
    """Three linear layers with ReLUs between them, and four with tanh."""
    encoder, net = nn.Sequential(), nn.Sequential()
    for place in (1, 2, 3):
        outputs, inputs = shapes[f"encoder.fc{place}.weight"]
        if place > 1:
            encoder.add_module(f"relu{place}", nn.ReLU())
        encoder.add_module(f"fc{place}", nn.Linear(inputs, outputs))
    for place in (0, 2, 4, 6):
        outputs, inputs = shapes[f"decoder.net.{place}.weight"]
        net.extend([nn.Tanh()] * (place > 0) + [nn.Linear(inputs, outputs)])
    decoder = nn.Sequential()
    decoder.add_module("net", net)
    return encoder, decoder


def _convolutional(shapes: Shapes) -> tuple[nn.Sequential, nn.Sequential]:
    """Five convolutions that end in 1x1, each with batch normalisation and a ReLU, and the same backwards."""
    encoder, decoder = nn.Sequential(), nn.Sequential()
    steps = [(4, 2, 1)] * 4 + [(4, 1, 0)]
    encoder.add_module("image", nn.Unflatten(1, (shapes["encoder.conv1.weight"][1], _SIDE, _SIDE)))
    decoder.add_module("image", nn.Unflatten(1, (-1, 1, 1)))
    for place, (down, up) in enumerate(zip(steps, [(1, 1, 0), *steps[::-1]][:5], strict=True), start=1):
        outputs, inputs = shapes[f"encoder.conv{place}.weight"][:2]
        encoder.add_module(f"conv{place}", nn.Conv2d(inputs, outputs, *down))
        encoder.add_module(f"bn{place}", nn.BatchNorm2d(outputs))
        encoder.add_module(f"relu{place}", nn.ReLU())
        inputs, outputs = shapes[f"decoder.conv{place}.weight"][:2]
        decoder.add_module(f"conv{place}", nn.ConvTranspose2d(inputs, outputs, *up))
        decoder.add_module(f"bn{place}", nn.BatchNorm2d(outputs))
        decoder.add_module(f"relu{place}", nn.ReLU())
    outputs, inputs = shapes["encoder.conv_z.weight"][:2]
    encoder.add_module("conv_z", nn.Conv2d(inputs, outputs, 1))
    encoder.add_module("flatten", nn.Flatten())
    inputs, outputs = shapes["decoder.conv_final.weight"][:2]
    decoder.add_module("conv_final", nn.ConvTranspose2d(inputs, outputs, 4, 2, 1))
    return encoder, decoder
