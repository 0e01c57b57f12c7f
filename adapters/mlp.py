"""Fully connected VAEs with Gaussian latents: the networks of Camuto et al. (2021), appendix F.

There the encoder's mean and log-variance are multi-layer perceptrons that share their first layer, and the
decoder is another. Tensors are named as torch.nn.Sequential names them, (out, in) weights and (out,) biases:

    encoder.shared.{i}.weight, .bias     one layer or more, each followed by the activation
    encoder.mean.{i}, encoder.logvar.{i} the activation between layers, none after the last
    decoder.{i}                          two layers or more, likewise

``i`` are the indices of the linear layers, whatever lies between them: 0, 2, 4 and 0, 1, 2 both load. Depth,
widths and the number of latents are read from the tensors; what tensors cannot tell are the options.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor, nn

from vaeaudit import BernoulliLogits, Checkpoint, DiagonalGaussian, GaussianLikelihood
from vaeaudit.errors import AdapterError, CheckpointError, MisfitError, listed

from .opening import Options, filled, read_options

PARTS = ("encoder.shared", "encoder.mean", "encoder.logvar", "decoder")
# The weights check asks: prefixes of the names of tensors.
WEIGHT_PARTS = {"encoder": ("encoder.",), "decoder": ("decoder.",)}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
}
# Sizes of the weights of a chain of linear layers, (out, in), by index.
Layers = Mapping[int, tuple[int, int]]
_NAME = re.compile(rf"({'|'.join(map(re.escape, PARTS))})\.(0|[1-9]\d*)\.(?:weight|bias)")


class MLPOptions(Options):
    """What the tensors of a fully connected VAE cannot tell.

    activation: between layers, with torch's default parameters.
    likelihood: Bernoulli, the decoder's outputs being logits; or Gaussian, its outputs being the mean.
    stddev: standard deviation of the Gaussian likelihood, 1 unless stated.
    sigmoid: the mean of the Gaussian likelihood passes through a sigmoid.
    sigma_offset: tau of Camuto et al. (fig. 7): the posterior's standard deviation is exp(logvar / 2) + tau.
    input_shape: shape of one input; flat unless stated.
    range: [0, 1] for a Bernoulli likelihood, none for a Gaussian, unless stated.
    """

    activation: Literal["relu", "tanh", "elu", "gelu", "softplus", "leaky_relu", "silu", "sigmoid"] = "relu"
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    stddev: PositiveFloat = 1.0
    sigmoid: bool = False
    sigma_offset: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _of_one_likelihood(self) -> Self:
        if self.likelihood == "bernoulli":
            if foreign := sorted({"stddev", "sigmoid"} & self.model_fields_set):
                raise ValueError(f"{foreign[0]} belongs to likelihood 'gaussian', and the likelihood is 'bernoulli'")
            self.unit_range()
        return self


class MLP(nn.Module):
    """A fully connected VAE of the given layers, freshly initialised: ready for :func:`open` or for training."""

    def __init__(self, layers: Mapping[str, Layers], options: MLPOptions) -> None:
        super().__init__()
        first, last = next(iter(layers["encoder.shared"].values())), [*layers["encoder.mean"].values()][-1]
        self.options = options
        self.latents = last[0]
        self.input_shape: tuple[int, ...] = options.input_shape or (first[1],)
        if math.prod(self.input_shape) != first[1]:
            raise AdapterError(
                f"adapter 'mlp' was told input_shape {list(self.input_shape)}, but the tensors take "
                f"{first[1]} values an input; leave it out or correct it"
            )
        self.range = options.unit_range() if options.likelihood == "bernoulli" else options.range
        shared, mean, logvar, decoder = (_sequential(layers[part], options.activation) for part in PARTS)
        shared.add_module(f"{options.activation}_last", ACTIVATIONS[options.activation]())
        self.encoder = nn.ModuleDict({"shared": shared, "mean": mean, "logvar": logvar})
        self.decoder = decoder

    @property
    def prior(self) -> DiagonalGaussian:
        """N(0, I), one row."""
        return DiagonalGaussian.standard((self.latents,), like=next(self.parameters()))

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """q(z|x), (batch, *input_shape) -> (batch, latents)."""
        shared = self.encoder["shared"](x.flatten(1))  # (batch, *input_shape) -> (batch, inputs) -> (batch, width)
        log_stddev = 0.5 * self.encoder["logvar"](shared)
        if self.options.sigma_offset > 0:  # log(exp(log_stddev) + tau), which does not overflow
            log_stddev = torch.logaddexp(log_stddev, log_stddev.new_full((), math.log(self.options.sigma_offset)))
        return DiagonalGaussian(self.encoder["mean"](shared), log_stddev)

    def decode(self, z: Tensor) -> BernoulliLogits | GaussianLikelihood:
        """p(x|z), (batch, latents) -> (batch, *input_shape)."""
        output = self.decoder(z).unflatten(1, self.input_shape)  # (batch, inputs) -> (batch, *input_shape)
        if self.options.likelihood == "bernoulli":
            return BernoulliLogits(output)
        mean = torch.sigmoid(output) if self.options.sigmoid else output
        return GaussianLikelihood(mean, mean.new_full((), math.log(self.options.stddev)))


def open(checkpoint: Checkpoint, config: Mapping[str, object]) -> MLP:
    """Open a fully connected VAE; ``config`` holds the fields of :class:`MLPOptions`.

    Raises:
        AdapterError: an option is unknown, has a bad value, or contradicts the tensors.
        CheckpointError: tensors are missing, left over, or do not follow on one another.
    """
    options = read_options(MLPOptions, config, "mlp")
    layers = _layers(checkpoint.tensors)
    return filled(lambda: MLP(layers, options), checkpoint.tensors)


def _sequential(layers: Layers, activation: str) -> nn.Sequential:
    """Linear layers under their own indices, with the activation between them."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (outputs, inputs) in layers.items():
        if modules:
            modules[f"{activation}_before_{index}"] = ACTIVATIONS[activation]()
        modules[str(index)] = nn.Linear(inputs, outputs)
    return nn.Sequential(modules)


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, Layers]:
    """Sizes of the linear layers of each part, in order, once names and sizes are known to fit together."""
    found = [match for name in tensors if (match := _NAME.fullmatch(name))]
    indices = {part: sorted({int(match[2]) for match in found if match[1] == part}) for part in PARTS}
    expected = [f"{part}.{i}.{kind}" for part in PARTS for i in indices[part] or [0] for kind in ("weight", "bias")]
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if not _NAME.fullmatch(name)]
    told = "; ".join(f"{w}: {listed(n)}" for w, n in (("missing", missing), ("not expected", extra)) if n)
    if not told and len(indices["decoder"]) < 2:
        told = f"decoder.{indices['decoder'][0]} is the decoder's only layer, expected a hidden layer before it"
    if told:
        message = f"the checkpoint does not fit adapter 'mlp' ({told}); is it another architecture?"
        raise MisfitError(message, expected, tensors.keys())
    return _in_chain({part: {i: _size(tensors, f"{part}.{i}.weight") for i in indices[part]} for part in PARTS})


def _size(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    if tensors[name].ndim != 2:
        raise CheckpointError(
            f"{name} is not the matrix of a linear layer (expected out x in, came {tuple(tensors[name].shape)}); "
            "adapter 'mlp' knows no normalisation and no convolution"
        )
    outputs, inputs = tensors[name].shape
    return outputs, inputs


def _in_chain(layers: dict[str, Layers]) -> dict[str, Layers]:
    """Return ``layers`` if each takes what the one before it gives."""
    ends = {part: (next(iter(sizes.values()))[1], [*sizes.values()][-1][0]) for part, sizes in layers.items()}
    inputs, features = ends["encoder.shared"]
    latents = ends["encoder.mean"][1]
    outer = {
        "encoder.shared": (inputs, features),
        "encoder.mean": (features, latents),
        "encoder.logvar": (features, latents),
        "decoder": (latents, inputs),
    }
    for part, sizes in layers.items():
        width, final = outer[part]
        for index, came in sizes.items():
            expected = (final if index == max(sizes) else came[0], width)
            if came != expected:
                sizes_told = f"expected {expected[0]}x{expected[1]}, came {came[0]}x{came[1]}"
                raise CheckpointError(
                    f"{part}.{index}.weight does not fit the layers around it ({sizes_told}); "
                    "is it another architecture?"
                )
            width = came[0]
    return layers
