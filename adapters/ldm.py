"""Autoencoders of latent diffusion models in one file: Stable Diffusion checkpoints, and what ComfyUI takes as a VAE.

Tensors are named as in CompVis/latent-diffusion, alone or under ``first_stage_model.`` or ``vae.`` of a whole model, of
which nothing else is read. Channels, depth and layers are read from the tensors. Which family it is, and by what its
users scale latents, only the rest of a whole model tells: SD 1, SD 2 and SDXL are of one shape, SD3 and FLUX.1 are.
"""

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import PositiveInt
from torch import Tensor

from vaeaudit import Checkpoint
from vaeaudit.errors import AdapterError, CheckpointError, listed

from .convolutional import ConvolutionalOptions
from .diffusers import Diffusers, opened
from .opening import read_options
from .scaling import of_family

_WHERE = ("", "first_stage_model.", "vae.")
# The weights check asks: prefixes of the names of tensors. All else of a whole model is neither.
WEIGHT_PARTS = {
    "encoder": [f"{where}{name}" for where in _WHERE for name in ("encoder.", "quant_conv.")],
    "decoder": [f"{where}{name}" for where in _WHERE for name in ("decoder.", "post_quant_conv.")],
    "neither": [""],
}
_SIGN = "encoder.down.0.block.0.conv1.weight"
_RENAMED = (
    (r"\.(down|up)\.(\d+)\.block\.(\d+)\.", r".\1_blocks.\2.resnets.\3."),
    (r"\.(down|up)\.(\d+)\.(down|up)sample\.", r".\1_blocks.\2.\3samplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"(attentions\.0\.)norm\.", r"\1group_norm."),
    (r"(attentions\.0\.)([qkv])\.", r"\1to_\2."),
    (r"(attentions\.0\.)proj_out\.", r"\1to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
)


class LDMOptions(ConvolutionalOptions):
    """What tensors cannot tell: family, for the scaling of its latents, and groups of the group normalisations."""

    family: Literal["sd", "sdxl", "sd3", "flux"] | None = None
    norm_num_groups: PositiveInt = 32


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether there are tensors of such an autoencoder, and no config.json that says more."""
    return "_class_name" not in checkpoint.config and bool(_places(checkpoint))


def open(checkpoint: Checkpoint, config: Mapping[str, object]) -> Diffusers:
    """Open the autoencoder of one file; ``config`` holds the fields of :class:`LDMOptions`.

    Raises:
        AdapterError: an option is wrong, or the library diffusers is missing.
        CheckpointError: there is no such autoencoder, or there are two, or tensors are missing or left over.
    """
    options = read_options(LDMOptions, config, "ldm")
    places = _places(checkpoint)
    if len(places) != 1:
        came = f"under {' and under '.join(repr(place.rstrip('.')) for place in places)}" if places else f"no {_SIGN}"
        how = f"name one, as in {checkpoint.path.name}#{places[-1].rstrip('.')}" if places else "is it another family?"
        raise CheckpointError(
            f"{checkpoint.path} holds {len(places) or 'no'} autoencoders of this kind ({came}); {how}"
        )
    tensors = (checkpoint.part(places[0][:-1]) if places[0] else checkpoint).tensors
    vae = opened(*_described(tensors, options), _as_diffusers(tensors), options)
    if "bn.running_mean" not in tensors:
        vae.latent_scale, notes = of_family(tensors, checkpoint.tensors, options.family)
        vae.notes += notes
    return vae


def _places(checkpoint: Checkpoint) -> list[str]:
    return [where for where in _WHERE if f"{where}{_SIGN}" in checkpoint.tensors]


def _described(tensors: Mapping[str, Tensor], options: LDMOptions) -> tuple[str, dict[str, object]]:
    """The class and the config that the library has for tensors of these shapes."""
    needed = [_SIGN, "encoder.conv_in.weight", "decoder.conv_in.weight", "decoder.conv_out.weight"]
    missing = [name for name in needed if name not in tensors or tensors[name].ndim != 4]
    if missing:
        raise CheckpointError(f"an autoencoder of images lacks 4-dimensional tensors ({listed(missing)})")
    if "quantize.embedding.weight" in tensors:
        raise CheckpointError("the autoencoder has a codebook; convert it to a VQModel of diffusers, which is read")
    levels = _numbers(tensors, r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight")
    widths = [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in levels]
    if uneven := [width for width in widths if width % options.norm_num_groups]:
        raise AdapterError(
            f"{uneven[0]} channels cannot be normalised in {options.norm_num_groups} groups; say in how many with "
            "--option norm_num_groups=N"
        )
    described = {
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "block_out_channels": widths,
        "layers_per_block": len(_numbers(tensors, r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight")),
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "norm_num_groups": options.norm_num_groups,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in tensors,
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
        "sample_size": 256,
    }
    return ("AutoencoderKLFlux2" if "bn.running_mean" in tensors else "AutoencoderKL"), described


def _numbers(tensors: Mapping[str, Tensor], name: str) -> list[int]:
    """0, 1, ... as far as names of this form go without a gap."""
    found = {int(match[1]) for one in tensors if (match := re.fullmatch(name, one))}
    return [number for place, number in enumerate(sorted(found)) if number == place]


def _as_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the library's names: decoders number their levels from the image, and the library to it."""
    top = max(_numbers(tensors, r"decoder\.up\.(\d+)\.block\.0\.conv1\.weight"), default=0)
    renamed = {}
    for name, tensor in tensors.items():
        new = re.sub(r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up.{top - int(m[1])}.", name)
        for old, called in _RENAMED:
            new = re.sub(old, called, new)
        linear = "attentions.0.to_" in new and tensor.ndim == 4  # a convolution of 1x1 there, a matrix here
        renamed[new] = tensor.flatten(1) if linear else tensor
    return renamed
