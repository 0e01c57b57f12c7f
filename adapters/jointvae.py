"""Convolutional VAEs with continuous and categorical latents: JointVAE of Dupont (2018).

Tensors are named as in the models trained by Schlumberger/joint-vae. Images are 32x32, or 64x64 where the checkpoint
has one convolution more on either side; the likelihood is Bernoulli, from the logits before the last sigmoid. Channels,
widths, latents and classes are read from the tensors. The decoder takes the continuous latents, then the categorical
ones: their probabilities for z = the mean, and Concrete draws at ``temperature`` elsewhere. Upstream's own evaluation
takes the likeliest class instead, which has no gradient and is no draw.
"""

import re
from collections.abc import Mapping
from typing import Self

from pydantic import PositiveFloat, model_validator
from torch import Tensor, nn

from vaeaudit import BernoulliLogits, Checkpoint, Concrete, DiagonalGaussian, Product
from vaeaudit.errors import AdapterError, MisfitError

from .opening import Options, channels_last, filled, read_options

# The weights check asks: prefixes of the names of tensors.
WEIGHT_PARTS = {"encoder": ("img_to_", "features_to_hidden.", "fc_"), "decoder": ("latent_to_", "features_to_img.")}


class JointVAEOptions(Options):
    """What the tensors cannot tell; temperature: of the Concrete draws, 0.67 as in training unless stated."""

    temperature: PositiveFloat = 0.67

    @model_validator(mode="after")
    def _bernoulli(self) -> Self:
        self.unit_range()
        return self


class JointVAE(nn.Module):
    """JointVAE of the layers whose weights have these shapes, freshly initialised."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], options: JointVAEOptions) -> None:
        super().__init__()
        down, up = (_shapes(shapes, part) for part in ("img_to_features", "features_to_img"))
        size = 4 * 2 ** len(down)  # every convolution halves it, down to 4x4
        self.input_shape = (down[0][1], size, size)
        self.range, self.temperature = options.unit_range(), options.temperature
        (hidden,), lines = _shapes(shapes, "features_to_hidden"), _shapes(shapes, "latent_to_features")
        alphas, latents = _shapes(shapes, "fc_alphas"), shapes["fc_mean.weight"][0]
        self.img_to_features = _with_relu(*(nn.Conv2d(i, o, 4, stride=2, padding=1) for o, i, _, _ in down))
        self.features_to_hidden = _with_relu(nn.Linear(hidden[1], hidden[0]))
        self.fc_mean, self.fc_log_var = nn.Linear(hidden[0], latents), nn.Linear(hidden[0], latents)
        self.classes = [classes for classes, _ in alphas]
        self.fc_alphas = nn.ModuleList(nn.Linear(hidden[0], classes) for classes in self.classes)
        self.latent_to_features = _with_relu(*(nn.Linear(i, o) for o, i in lines))
        self.features_to_img = _with_relu(*(nn.ConvTranspose2d(i, o, 4, stride=2, padding=1) for i, o, *_ in up))[:-1]
        self.bottom = (up[0][0], 4, 4)

    @property
    def prior(self) -> Product:
        """N(0, I) and, for each categorical latent, equal probabilities; one row."""
        like = self.fc_mean.weight
        categorical = (Concrete(like.new_zeros(1, classes), self.temperature) for classes in self.classes)
        return Product((DiagonalGaussian.standard((self.fc_mean.out_features,), like), *categorical))

    def encode(self, x: Tensor) -> Product:
        """q(z|x), (batch, channels, size, size) -> (batch, latents + classes)."""
        hidden = self.features_to_hidden(self.img_to_features(x).flatten(1))  # (batch, 64, 4, 4) -> (batch, 1024)
        gaussian = DiagonalGaussian(self.fc_mean(hidden), 0.5 * self.fc_log_var(hidden))
        return Product((gaussian, *(Concrete(head(hidden), self.temperature) for head in self.fc_alphas)))

    def decode(self, z: Tensor) -> BernoulliLogits:
        """p(x|z), (batch, latents + classes) -> (batch, channels, size, size)."""
        features = self.latent_to_features(z).unflatten(1, self.bottom)  # (batch, 1024) -> (batch, 64, 4, 4)
        return BernoulliLogits(self.features_to_img(features))


def open(checkpoint: Checkpoint, config: Mapping[str, object]) -> JointVAE:
    """Open a JointVAE; ``config`` holds the fields of :class:`JointVAEOptions`.

    Raises:
        AdapterError: an option is unknown, has a bad value, or contradicts the tensors.
        CheckpointError: tensors are missing, left over or of another shape.
    """
    options = read_options(JointVAEOptions, config, "jointvae")
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    vae = channels_last(filled(lambda: JointVAE(_complete(shapes), options), checkpoint.tensors))
    if options.input_shape not in (None, vae.input_shape):
        raise AdapterError(
            f"adapter 'jointvae' was told input_shape {list(options.input_shape or ())}, but the tensors take "
            f"{list(vae.input_shape)}; leave it out or correct it"
        )
    return vae


def _complete(shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
    """Return ``shapes`` if they hold weights of every part, of as many dimensions as its layers have."""
    wanted = {"img_to_features.0": 4, "features_to_hidden.0": 2, "fc_mean": 2, "fc_alphas.0": 2}
    wanted |= {"latent_to_features.0": 2, "features_to_img.0": 4}
    for name, axes in wanted.items():
        if len(shapes.get(f"{name}.weight", ())) != axes:
            came = "missing" if f"{name}.weight" not in shapes else f"of shape {shapes[f'{name}.weight']}"
            raise MisfitError(
                f"the checkpoint does not fit adapter 'jointvae' ({came}: {name}.weight, where {axes} dimensions were "
                "expected); is it another architecture?",
                [f"{part}.weight" for part, axes in wanted.items() if len(shapes.get(f"{part}.weight", ())) == axes],
                shapes.keys(),
            )
    return shapes


def _shapes(shapes: Mapping[str, tuple[int, ...]], part: str) -> list[tuple[int, ...]]:
    """Shapes of the weights of ``part`` in the order of their numbers."""
    found = {int(match[1]): shapes[name] for name in shapes if (match := re.fullmatch(rf"{part}\.(\d+)\.weight", name))}
    return [found[number] for number in sorted(found)]


def _with_relu(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))
