"""Autoencoders of the library diffusers, from a folder with their config.json or their file beside it.

``_class_name`` in config.json names the class, which the library builds from the rest of it; weights are read as those
of any other checkpoint, and nothing is downloaded. What a config does not say stands in :data:`KINDS`. Inputs lie in
[-1, 1]. Tiling, slicing and coding some frames at a time are off: they are approximations. The posteriors' own
divergences are not used: that of audio lacks the factor 1/2 and has the sign of a logarithm wrong, and that of the
others adds up three axes alone, which is too few for video. How latent diffusion scales latents is told and checked,
and never applied.
"""

import importlib
import inspect
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from vaeaudit import Checkpoint, DiagonalGaussian, Point
from vaeaudit.errors import AdapterError, clipped, listed, nearest

from .convolutional import Convolutional, ConvolutionalOptions
from .opening import filled, read_options
from .scaling import stated

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
    axes: numbers of an input's axes; an image is a video of one frame where the class takes videos.
    sizes: of the axes after the channels, where neither the config, nor an option, nor the data tell.
    clamped: whether the decoder's output is, to [-1, 1].
    """

    posterior: Literal["gaussian", "softplus", "point"] = "gaussian"
    axes: tuple[int, ...] = (3,)
    sizes: tuple[int, ...] = (256, 256)
    clamped: bool = False


_VIDEO = Kind(axes=(4, 3), sizes=(17, 256, 256))
KINDS = {
    "AutoencoderKL": Kind(),
    "AutoencoderKLFlux2": Kind(),
    "AsymmetricAutoencoderKL": Kind(),
    "AutoencoderTiny": Kind("point"),
    "AutoencoderDC": Kind("point"),
    "VQModel": Kind("point"),
    "AutoencoderOobleck": Kind("softplus", (2,), (2**16,)),
    "AutoencoderKLWan": replace(_VIDEO, clamped=True),
    "AutoencoderKLQwenImage": Kind(axes=(3, 4), clamped=True),
    "AutoencoderKLLTXVideo": _VIDEO,
    "AutoencoderKLHunyuanVideo": _VIDEO,
    "AutoencoderKLCogVideoX": _VIDEO,
    "AutoencoderKLCosmos": replace(_VIDEO, posterior="point"),  # whose "KL" is a name
}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Diffusers(Convolutional):
    """An autoencoder of the library."""

    def __init__(self, model: Any, kind: Kind, options: ConvolutionalOptions) -> None:
        self.kind, self.axes, self.range = kind, kind.axes, options.range or (-1.0, 1.0)
        for switch in ("use_tiling", "use_slicing", "use_framewise_encoding", "use_framewise_decoding"):
            if hasattr(model, switch):
                setattr(model, switch, False)
        config = model.config
        self.with_step = {"temb"} if config.get("timestep_conditioning") else set()
        channels = next(config[name] for name in ("in_channels", "audio_channels", "input_channels") if name in config)
        size = config.get("sample_size") or kind.sizes
        super().__init__(model, (channels, *(size if isinstance(size, list | tuple) else (size, size))), options)
        self.latent_scale = stated(model)
        if kind.clamped:
            self.notes += ("the decoder's output is clamped to [-1, 1], and has no gradient where it is",)
        if self.with_step:
            self.notes += ("the decoder is given the time step 0, as the library's pipelines do unless told otherwise",)

    def encode(self, x: Tensor) -> DiagonalGaussian | Point:
        """q(z|x), (batch, channels, *sizes) -> (batch, latent channels, *smaller sizes)."""
        frames = x.unsqueeze(2) if self._is_still else x  # (batch, C, H, W) -> (batch, C, 1, H, W)
        (q,) = self.model.encode(frames, return_dict=False)
        if self.kind.posterior == "point":
            return Point(q if isinstance(q, Tensor) else q.mode())
        return DiagonalGaussian(q.mean, q.std.log() if self.kind.posterior == "softplus" else 0.5 * q.logvar)

    def decoded(self, z: Tensor) -> Tensor:
        """E[x|z], (batch, *latent) -> (batch, channels, *sizes)."""
        mean: Tensor = self.model.decode(
            z, **{name: z.new_zeros(len(z)) for name in self.with_step}, return_dict=False
        )[0]
        return mean.squeeze(2) if self._is_still else mean

    @property
    def _is_still(self) -> bool:
        return 4 in self.axes and len(self.input_shape) == 3


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether config.json beside the file names one of the library's classes that are known here."""
    name = checkpoint.config.get("_class_name")
    return isinstance(name, str) and name in KINDS


def open(checkpoint: Checkpoint, config: Mapping[str, object]) -> Diffusers:
    """Open what config.json describes; ``config`` holds the fields of :class:`ConvolutionalOptions`.

    Raises:
        AdapterError: there is no such config.json, the library is missing, or an option is wrong.
        CheckpointError: tensors are missing, left over or of another shape.
    """
    options = read_options(ConvolutionalOptions, config, "diffusers")
    said = checkpoint.json("config.json")
    name = str(said.get("_class_name"))
    if name not in KINDS:
        if "_class_name" not in said:
            raise AdapterError(
                f"no config.json beside {checkpoint.path} names a class, which adapter 'diffusers' reads there; keep "
                "the file in its folder"
            )
        raise AdapterError(
            f"the config.json beside {checkpoint.path} names the class '{clipped(name)}'{nearest(name, KINDS)}, where "
            f"one that adapter 'diffusers' knows was expected: {listed(KINDS, 20)}"
        )
    old = rf"(\.attentions\.\d+\.)({'|'.join(_OLD_ATTENTION)})\."  # names of attention's layers in files of 2022
    tensors = {
        re.sub(old, lambda m: f"{m[1]}{_OLD_ATTENTION[m[2]]}.", name): tensor
        for name, tensor in checkpoint.tensors.items()
    }
    return opened(name, said, tensors, options)


def opened(
    name: str, said: Mapping[str, object], tensors: Mapping[str, Tensor], options: ConvolutionalOptions
) -> Diffusers:
    """The model of a class that a config describes, with these tensors."""
    made_by = _imported(name)  # first, since what a module computes on import must not be computed without values
    _check_depth(said, len(tensors))
    return Diffusers(filled(lambda: _built(made_by, said), tensors).eval(), KINDS[name], options)


def _check_depth(said: Mapping[str, object], tensors: int) -> None:
    """Raises :class:`AdapterError` for more layers than tensors, before they are built one by one."""
    for key, value in said.items():
        values = value if isinstance(value, list) and not key.startswith("latents_") else [value]
        layers = [one for one in values if isinstance(one, int)] if re.search("layers|num_.*blocks", key) else []
        if (deepest := max(len(values), *layers, 0)) > tensors:
            raise AdapterError(f"config.json tells of {deepest:,} layers ({key}), but there are {tensors} tensors")


def _imported(name: str) -> Any:
    """A class of the library; raises :class:`AdapterError`."""
    try:
        return getattr(importlib.import_module("diffusers"), name)
    except (ImportError, AttributeError) as error:
        raise AdapterError(
            f"{name} is a class of the library diffusers, which is not installed or too old; "
            "pip install 'vaeaudit[diffusers]'"
        ) from error


def _built(made_by: Any, said: Mapping[str, object]) -> nn.Module:
    """The library's module of a class, freshly initialised; raises :class:`AdapterError`."""
    known, name = set(inspect.signature(made_by.__init__).parameters) - {"self"}, made_by.__name__
    try:
        with warnings.catch_warnings():  # of what the library itself calls that is deprecated
            warnings.simplefilter("ignore")
            model: nn.Module = made_by.from_config({key: value for key, value in said.items() if key in known})
    except Exception as error:
        reason = clipped(" ".join(str(error).split()), 200)
        raise AdapterError(f"config.json describes no whole {name} ({reason}); take the one of its release") from error
    noise = said.get("decoder_inject_noise")
    if isinstance(noise, list) and any(noise):
        raise AdapterError(f"this {name} adds random noise within its decoder, so that no figure of it would repeat")
    return model
