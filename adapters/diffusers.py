"""Autoencoders of the library diffusers, from a folder with their config.json or their file beside it.

``_class_name`` in config.json names the class, which the library builds from the rest of it; weights are read as those
of any other checkpoint, and nothing is downloaded. What a config does not say stands in :data:`KINDS`. Inputs lie in
[-1, 1]. Tiling, slicing and encoding frame by frame are off: they are approximations, of which an audit would find its
own figures. The posteriors' own divergences are not used: that of audio lacks the factor 1/2 and has the sign of a
logarithm wrong, and that of the others adds up three axes alone, which is too few for video.
"""

import copy
import importlib
import inspect
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from vaeaudit import Checkpoint, DiagonalGaussian, GaussianLikelihood, Point
from vaeaudit.errors import AdapterError, clipped, listed, nearest

from .opening import Options, filled, read_options

# The weights check asks: prefixes of the names of tensors.
WEIGHT_PARTS = {
    "encoder": ("encoder.", "quant_conv."),
    "decoder": ("decoder.", "post_quant_conv."),
    "neither": ("quantize.", "bn.", "latents_"),
}


@dataclass(frozen=True)
class Kind:
    """What is not in the config of a class.

    posterior: a Gaussian with log-variance in [-30, 20], one with standard deviation softplus(s) + 0.0001, or a point.
    axes: after the channels; an image is a video of one frame where the class takes these.
    default: sizes of these axes where neither the config, nor an option, nor the data tell.
    """

    posterior: Literal["gaussian", "softplus", "point"] = "gaussian"
    axes: Literal["image", "video", "audio"] = "image"
    default: tuple[int, ...] = (256, 256)


_VIDEO = Kind(axes="video", default=(17, 256, 256))
KINDS = {
    "AutoencoderKL": Kind(),
    "AutoencoderKLFlux2": Kind(),
    "AsymmetricAutoencoderKL": Kind(),
    "AutoencoderTiny": Kind("point"),
    "AutoencoderDC": Kind("point"),
    "VQModel": Kind("point"),
    "AutoencoderOobleck": Kind("softplus", "audio", (2**16,)),
    "AutoencoderKLWan": _VIDEO,
    "AutoencoderKLQwenImage": Kind(axes="video"),
    "AutoencoderKLLTXVideo": _VIDEO,
    "AutoencoderKLHunyuanVideo": _VIDEO,
    "AutoencoderKLCogVideoX": _VIDEO,
    "AutoencoderKLCosmos": Kind("point", "video", (17, 256, 256)),  # whose "KL" is a name: the posterior is identity
}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class DiffusersOptions(Options):
    """What config.json does not say; stddev: of the Gaussian likelihood, 1 unless stated."""

    stddev: PositiveFloat = 1.0


class Diffusers(nn.Module):
    """An autoencoder of the library, for inputs of one shape."""

    def __init__(self, model: Any, kind: Kind, options: DiffusersOptions) -> None:
        super().__init__()
        self.model, self.kind, self.options = model, kind, options
        self.range = options.range or (-1.0, 1.0)
        for switch in ("use_tiling", "use_slicing", "use_framewise_encoding", "use_framewise_decoding"):
            if hasattr(model, switch):
                setattr(model, switch, False)
        config = model.config
        self.channels = int(config.get("in_channels") or config.get("audio_channels") or config.get("input_channels"))
        size = config.get("sample_size") or kind.default
        sizes = tuple(size) if isinstance(size, list | tuple) else (size, size)
        self.input_shape: tuple[int, ...] = options.input_shape or (self.channels, *sizes)
        self.latent = self._latent(self.input_shape)

    @property
    def prior(self) -> DiagonalGaussian | Point:
        """N(0, I), or none of a deterministic encoder; one row."""
        standard = DiagonalGaussian.standard(self.latent, like=next(self.parameters()))
        return Point(standard.mean) if self.kind.posterior == "point" else standard

    def encode(self, x: Tensor) -> DiagonalGaussian | Point:
        """q(z|x), (batch, channels, *sizes) -> (batch, latent channels, *smaller sizes)."""
        frames = x.unsqueeze(2) if self._is_still else x  # (batch, C, H, W) -> (batch, C, 1, H, W)
        (q,) = self.model.encode(frames, return_dict=False)
        if self.kind.posterior == "point":
            return Point(q if isinstance(q, Tensor) else q.mode())
        return DiagonalGaussian(q.mean, q.std.log() if self.kind.posterior == "softplus" else 0.5 * q.logvar)

    def decode(self, z: Tensor) -> GaussianLikelihood:
        """p(x|z), (batch, *latent) -> (batch, channels, *sizes)."""
        given = {"temb": z.new_zeros(len(z))} if self.model.config.get("timestep_conditioning") else {}
        mean = self.model.decode(z, **given, return_dict=False)[0]
        mean = mean.squeeze(2) if self._is_still else mean
        return GaussianLikelihood(mean, mean.new_tensor(self.options.stddev).log())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and reconstruction."""
        z = self.encode(x).mean
        return z, self.decode(z).mean

    def resized(self, shape: tuple[int, ...]) -> "Diffusers | None":
        """The same model for inputs of another shape; see :class:`vaeaudit.model.vae.Resizable`."""
        axes = {"image": (3,), "video": (3, 4), "audio": (2,)}[self.kind.axes]
        if self.options.input_shape is not None or len(shape) not in axes or shape[0] != self.channels:
            return None
        other = copy.copy(self)
        other.input_shape = shape
        other.latent = other._latent(shape)
        return other

    @property
    def _is_still(self) -> bool:
        return self.kind.axes == "video" and len(self.input_shape) == 3

    @torch.no_grad()
    def _latent(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the latents of an input, found without computing them; raises :class:`AdapterError`."""
        name, sizes = type(self.model).__name__, "x".join(map(str, shape))
        tensors = {name: t.to("meta") for name, t in (*self.named_parameters(), *self.named_buffers())}
        x = torch.empty((1, *shape), device="meta", dtype=next(self.parameters()).dtype)
        try:
            z, mean = torch.func.functional_call(self, tensors, x)
        except Exception as error:
            reason = clipped(" ".join(str(error).split()))
            raise AdapterError(
                f"{name} does not take inputs of {sizes} ({reason}); give data of another size"
            ) from error
        if mean.shape != x.shape:
            back = "x".join(map(str, mean.shape[1:]))
            raise AdapterError(
                f"{name} gives {back} back for inputs of {sizes}; crop or resize the data to such a size"
            )
        return tuple(z.shape[1:])


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether config.json beside the file names one of the library's classes that are known here."""
    return checkpoint.config.get("_class_name") in KINDS


def open(checkpoint: Checkpoint, config: Mapping[str, object]) -> Diffusers:
    """Open what config.json describes; ``config`` holds the fields of :class:`DiffusersOptions`.

    Raises:
        AdapterError: there is no such config.json, the library is missing, or an option is wrong.
        CheckpointError: tensors are missing, left over or of another shape.
    """
    options = read_options(DiffusersOptions, config, "diffusers")
    said = checkpoint.config
    name = str(said.get("_class_name"))
    if name not in KINDS:
        came = f"names the class '{clipped(name)}'{nearest(name, KINDS)}" if "_class_name" in said else "names no class"
        raise AdapterError(
            f"the config.json beside {checkpoint.path} {came}, where one that adapter 'diffusers' knows was expected: "
            f"{listed(KINDS, 20)}"
        )
    model = filled(lambda: _built(name, said), _named_anew(checkpoint.tensors))
    return Diffusers(model.eval(), KINDS[name], options)


def _built(name: str, said: Mapping[str, object]) -> nn.Module:
    """The library's module of a class, freshly initialised; raises :class:`AdapterError`."""
    try:
        made_by = getattr(importlib.import_module("diffusers"), name)
    except (ImportError, AttributeError) as error:
        raise AdapterError(
            f"{name} is a class of the library diffusers, which is not installed or too old; "
            "pip install 'vaeaudit[diffusers]'"
        ) from error
    known = set(inspect.signature(made_by.__init__).parameters) - {"self"}
    try:
        with warnings.catch_warnings():  # of what the library itself calls that is deprecated
            warnings.simplefilter("ignore")
            model: nn.Module = made_by.from_config({key: value for key, value in said.items() if key in known})
    except Exception as error:
        reason = clipped(" ".join(str(error).split()), 200)
        raise AdapterError(
            f"config.json does not describe a whole {name} ({reason}); take the one of its release"
        ) from error
    return model


def _named_anew(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the attention's layers called as they are today; files of 2022 call them query, key, value."""
    old = rf"(\.attentions\.\d+\.)({'|'.join(_OLD_ATTENTION)})\."
    return {re.sub(old, lambda m: f"{m[1]}{_OLD_ATTENTION[m[2]]}.", name): tensor for name, tensor in tensors.items()}
