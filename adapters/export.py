"""Any VAE as two programs of torch.export, encoder.pt2 and decoder.pt2, whose code is not needed; with --trust-code.

The encoder takes a batch of inputs and gives mean and log-variance, as two tensors or as halves of one along the first
axis of an item; the decoder takes latents and gives what the likelihood is made of. Both are exported with
``dynamic_shapes=({0: torch.export.Dim("batch")},)``, for batches of any size. What they mean is said by options, or by
the object "vaeaudit" of a config.json beside them.
"""

import copy
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import PositiveFloat, model_validator
from torch import Tensor, nn

from vaeaudit import BernoulliLogits, BernoulliProbabilities, Checkpoint, DiagonalGaussian, GaussianLikelihood, Point
from vaeaudit.errors import AdapterError, ContractError

from .opening import Options, read_options

# The weights check asks: prefixes of the names of tensors, and below which file is whose.
WEIGHT_PARTS = {"encoder": ("encoder.",), "decoder": ("decoder.",)}


class ExportOptions(Options):
    """What programs do not say.

    spread: what the encoder gives beside the mean: the log-variance, the log of the standard deviation, or nothing.
    likelihood: what the decoder gives: logits or probabilities of a Bernoulli, or the mean of a Gaussian.
    stddev: standard deviation of the Gaussian likelihood, 1 unless stated.
    """

    spread: Literal["logvar", "log_stddev", "none"] = "logvar"
    likelihood: Literal["bernoulli", "probabilities", "gaussian"] = "bernoulli"
    stddev: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _of_one_likelihood(self) -> Self:
        if self.likelihood != "gaussian":
            self.unit_range()
            if "stddev" in self.model_fields_set:
                raise ValueError(f"stddev belongs to likelihood 'gaussian', and the likelihood is '{self.likelihood}'")
        return self


class Export(nn.Module):
    """A pair of programs."""

    def __init__(self, encoder: Any, decoder: Any, options: ExportOptions) -> None:
        super().__init__()
        shapes = [_taken("encoder", encoder), _taken("decoder", decoder)]
        self.input_shape, self.latent = shapes
        if options.input_shape not in (None, self.input_shape):
            raise AdapterError(
                f"adapter 'export' was told input_shape {list(options.input_shape or ())}, but the encoder takes "
                f"{list(self.input_shape)}; leave it out or correct it"
            )
        self.options = options
        self.range = options.range if options.likelihood == "gaussian" else options.unit_range()
        # Guards would refuse another precision than that of the export.
        self.encoder, self.decoder = encoder.module(check_guards=False), decoder.module(check_guards=False)
        self.train(False)

    def train(self, mode: bool = False) -> Self:
        """Programs are what they were exported as; they know no other mode and refuse to be asked for one."""
        del mode
        for module in self.modules():
            module.training = False
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Export":
        other = type(self).__new__(type(self))
        with warnings.catch_warnings():  # of what torch itself calls that is deprecated
            warnings.simplefilter("ignore")
            other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other

    @property
    def prior(self) -> DiagonalGaussian | Point:
        """N(0, I), or none beside a deterministic encoder; one row."""
        weight = next((p for p in self.parameters() if p.is_floating_point()), torch.zeros(()))
        standard = DiagonalGaussian.standard(self.latent, like=weight)
        return Point(standard.mean) if self.options.spread == "none" else standard

    def encode(self, x: Tensor) -> DiagonalGaussian | Point:
        """q(z|x), (batch, *input_shape) -> (batch, *latent)."""
        given = self.encoder(x)
        if not isinstance(given, Tensor | tuple | list):
            raise ContractError(f"the encoder's program gives a {type(given).__name__}, where tensors were expected")
        if isinstance(given, Tensor):
            given = (given,) if self.options.spread == "none" else given.chunk(2, 1)
        elif self.options.spread == "none":
            given = given[:1]
        if len(given) != (expected := 1 + (self.options.spread != "none")):
            raise ContractError(
                f"the encoder's program gives {len(given)} tensors, where {expected} were expected: mean and "
                "spread, or the mean alone with --option spread=none"
            )
        if self.options.spread == "none":
            return Point(given[0])
        mean, spread = given
        return DiagonalGaussian(mean, 0.5 * spread if self.options.spread == "logvar" else spread)

    def decode(self, z: Tensor) -> BernoulliLogits | BernoulliProbabilities | GaussianLikelihood:
        """p(x|z), (batch, *latent) -> (batch, *input_shape)."""
        given = self.decoder(z)
        output = given if isinstance(given, Tensor) else given[0]
        if math.prod(output.shape[1:]) != math.prod(self.input_shape):
            raise ContractError(
                f"the decoder's program gives {list(output.shape[1:])} an item, where {list(self.input_shape)} was "
                "expected"
            )
        output = output.flatten(1).unflatten(1, self.input_shape)
        if self.options.likelihood == "gaussian":
            return GaussianLikelihood(output, output.new_full((), math.log(self.options.stddev)))
        return BernoulliLogits(output) if self.options.likelihood == "bernoulli" else BernoulliProbabilities(output)


def files(path: Path) -> Mapping[str, str]:
    """The files of the pair of which ``path`` is one, by part."""
    del path
    return {"encoder": "encoder.pt2", "decoder": "decoder.pt2"}


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether it is a program called encoder.pt2."""
    return checkpoint.program is not None and checkpoint.path.name == "encoder.pt2"


def open(checkpoint: Checkpoint, config: Mapping[str, object]) -> Export:
    """Open encoder.pt2 and the decoder.pt2 beside it; ``config`` holds the fields of :class:`ExportOptions`.

    Raises:
        AdapterError: an option is unknown or bad, the file is no program, or one takes no batches of any size.
        CheckpointError: the decoder is missing or cannot be loaded.
    """
    options = read_options(ExportOptions, config, "export")
    if not recognises(checkpoint):
        raise AdapterError(f"{checkpoint.path} is no encoder.pt2, which adapter 'export' opens; name that of the pair")
    return Export(checkpoint.program, checkpoint.beside("decoder.pt2").program, options)


def _taken(what: str, program: Any) -> tuple[int, ...]:
    """The shape of one item of the batches that a program takes; raises :class:`AdapterError` where they are none."""
    names = program.graph_signature.user_inputs
    shapes = [tuple(node.meta["val"].shape) for node in program.graph.nodes if node.name in names]
    if len(shapes) != 1 or len(shapes[0]) < 2:
        raise AdapterError(f"the {what}'s program takes {len(shapes)} inputs, where one, a batch, was expected")
    rows, *sizes = shapes[0]
    if isinstance(rows, int) or not all(isinstance(size, int) for size in sizes):
        told = "x".join(map(str, shapes[0]))
        raise AdapterError(
            f"the {what}'s program takes inputs of {told}, where any number of items of one size was expected; export "
            'it with dynamic_shapes=({0: torch.export.Dim("batch")},)'
        )
    return tuple(sizes)
