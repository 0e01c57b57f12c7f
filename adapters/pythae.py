"""VAEs of pythae (Chadebec et al. 2022) with its own networks: a folder of model.pt and model_config.json.

Its default networks have one hidden layer of 512 ReLUs on either side, and a sigmoid at the end, whose logits are taken
where the reconstruction loss is cross-entropy. Squared error stands for a Gaussian of unit variance. Encoders and
decoders of one's own are pickles of code (encoder.pkl, decoder.pkl), which are not loaded.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal, Self, get_args

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from vaeaudit import BernoulliLogits, Checkpoint, DiagonalGaussian, GaussianLikelihood, Mixture, Point
from vaeaudit.errors import AdapterError, TrustError, clipped, listed

from .opening import Options, Shape, filled, read_options

# The weights check asks: prefixes of the names of tensors.
WEIGHT_PARTS = {"encoder": ("encoder.",), "decoder": ("decoder.",), "neither": ("discriminator.", "pseudo_inputs.")}
# Of model_config.json; these differ in how they are trained, the last three in the prior or in having no posterior.
Model = Literal[
    "VAE", "BetaVAE", "DisentangledBetaVAE", "BetaTCVAE", "FactorVAE", "INFOVAE_MMD", "VAMP", "AE", "RAE_L2"
]
POINTS = ("AE", "RAE_L2")  # deterministic encoders


class PythaeOptions(Options):
    """What model_config.json says, or whoever has none, as of a file that was converted."""

    model: Model
    input_shape: Shape
    latents: PositiveInt
    reconstruction_loss: Literal["mse", "bce"] = "mse"

    @model_validator(mode="after")
    def _ends_in_a_sigmoid(self) -> Self:
        self.unit_range()
        return self


class Pythae(nn.Module):
    """A VAE of pythae, freshly initialised, with ``parts`` pseudo-inputs where its prior is made of them."""

    def __init__(self, options: PythaeOptions, hidden: tuple[int, int], parts: int) -> None:
        super().__init__()
        self.options, self.input_shape, self.range = options, options.input_shape, options.unit_range()
        self.facts = options.model_dump(mode="json", exclude_defaults=True)
        pixels, latents = math.prod(self.input_shape), options.latents
        self.encoder = nn.ModuleDict({"layers": _layers(pixels, hidden[0]), "embedding": nn.Linear(hidden[0], latents)})
        if options.model not in POINTS:
            self.encoder["log_var"] = nn.Linear(hidden[0], latents)
        self.decoder = nn.ModuleDict({"layers": _layers(latents, hidden[1], pixels)})
        if options.model == "VAMP":
            self.parts = parts
            self.pseudo_inputs = nn.Sequential(nn.Linear(parts, pixels), nn.Hardtanh(0.0, 1.0))

    @property
    def prior(self) -> DiagonalGaussian | Mixture | Point:
        """N(0, I); of VAMP the posteriors of its pseudo-inputs; of an autoencoder none."""
        standard = DiagonalGaussian.standard((self.options.latents,), like=next(self.parameters()))
        if self.options.model == "VAMP":
            one_hot = torch.eye(self.parts).to(standard.mean)
            parts = self.encode(self.pseudo_inputs(one_hot))
            assert isinstance(parts, DiagonalGaussian)
            return Mixture(parts)
        return Point(standard.mean) if self.options.model in POINTS else standard

    def encode(self, x: Tensor) -> DiagonalGaussian | Point:
        """q(z|x), (batch, *input_shape) -> (batch, latents)."""
        hidden = self.encoder["layers"](x.flatten(1))  # (batch, *input_shape) -> (batch, 512)
        mean = self.encoder["embedding"](hidden)
        return (
            Point(mean)
            if self.options.model in POINTS
            else DiagonalGaussian(mean, 0.5 * self.encoder["log_var"](hidden))
        )

    def decode(self, z: Tensor) -> BernoulliLogits | GaussianLikelihood:
        """p(x|z), (batch, latents) -> (batch, *input_shape)."""
        logits = self.decoder["layers"](z).unflatten(1, self.input_shape)  # (batch, inputs) -> (batch, *input_shape)
        if self.options.reconstruction_loss == "bce":
            return BernoulliLogits(logits)
        return GaussianLikelihood(torch.sigmoid(logits), logits.new_zeros(()))


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether a model_config.json of pythae lies beside."""
    said = checkpoint.json("model_config.json")
    return {"name", "input_dim", "latent_dim", "uses_default_encoder"} <= said.keys()


def open(checkpoint: Checkpoint, config: Mapping[str, object]) -> Pythae:
    """Open a VAE of pythae; ``config`` holds fields of :class:`PythaeOptions`, over what model_config.json says.

    Raises:
        TrustError: its encoder or decoder is a pickle.
        AdapterError: another model of pythae, or an option is missing, unknown or bad.
        CheckpointError: tensors are missing, left over or of another shape.
    """
    options = read_options(PythaeOptions, {**_said(checkpoint), **config}, "pythae")
    trained = "discriminator." if options.model == "FactorVAE" else ()
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(trained)}

    def size(name: str, axis: int) -> int:
        return tensors[name].shape[axis] if name in tensors and tensors[name].ndim == 2 else 1

    if (pixels := size("encoder.layers.0.0.weight", 1)) not in (1, math.prod(options.input_shape)):
        raise AdapterError(
            f"adapter 'pythae' was told input_shape {list(options.input_shape)}, but the tensors take {pixels} values "
            "an input; correct it"
        )
    hidden = size("encoder.layers.0.0.weight", 0), size("decoder.layers.0.0.weight", 0)
    return filled(lambda: Pythae(options, hidden, size("pseudo_inputs.0.weight", 1)), tensors)


def _said(checkpoint: Checkpoint) -> dict[str, object]:
    """The options that model_config.json gives."""
    said = checkpoint.json("model_config.json")
    for part in ("encoder", "decoder"):
        if said.get(f"uses_default_{part}") is False:
            raise TrustError(
                f"the {part} beside {checkpoint.path} is a pickle of code ({part}.pkl), and loading it would run that, "
                f"so it was not loaded; write an adapter, of which vaeaudit adapters --for MODEL prints a first one"
            )
    name = str(said.get("name", "")).removesuffix("Config").removesuffix("_")
    if said and name not in get_args(Model):
        raise AdapterError(
            f"{checkpoint.path} is a {clipped(name) or 'model without a name'} of pythae, where "
            f"{listed(get_args(Model), 9)} can be opened; write an adapter for it"
        )
    given = {"model": name, "input_shape": said.get("input_dim"), "latents": said.get("latent_dim")}
    given["reconstruction_loss"] = said.get("reconstruction_loss", "mse")
    return given if said else {}


def _layers(*widths: int) -> nn.Sequential:
    """Linear layers between these widths as pythae nests them, with a ReLU after the first."""
    linear = [nn.Sequential(nn.Linear(inputs, outputs)) for inputs, outputs in pairwise(widths)]
    linear[0].append(nn.ReLU())
    return nn.Sequential(*linear)
