"""Tiny autoencoders of latent diffusion models as madebyollin/taesd saves them: encoder and decoder in two files.

Either file is named, as ``taesd_encoder.pth`` and ``taesd_decoder.pth``; tensors are those of torch.nn.Sequential.
Inputs lie in [0, 1]. A convolution without bias halves the sides in the encoder, and follows a doubling in the decoder;
the decoder takes 3 tanh(z / 3). Blocks and channels are read from the tensors.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vaeaudit import Checkpoint, Point
from vaeaudit.errors import AdapterError, CheckpointError, listed

from .convolutional import Convolutional, ConvolutionalOptions
from .opening import channels_last, filled, read_options

# The weights check asks: prefixes of the names of tensors, and below which file is whose.
WEIGHT_PARTS = {"encoder": ("encoder.",), "decoder": ("decoder.",), "neither": ()}
_PARTS = ("encoder", "decoder")


class Block(nn.Module):
    """Three convolutions beside a connection around them, behind a 1x1 bottleneck of a width of its own or none."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
        super().__init__()
        outer, inner, *_ = shapes[f"{name}.conv.0.weight"]
        convolutions = [_conv(shapes, f"{name}.conv.{k}") for k in (0, 2, 4)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])
        self.skip = _conv(shapes, f"{name}.skip") if f"{name}.skip.weight" in shapes else nn.Identity()
        self.pool: nn.Module | None = None
        if f"{name}.pool.0.weight" in shapes:
            wide = shapes[f"{name}.pool.0.weight"][0]
            ends = (nn.Conv2d(inner, wide, 1, bias=False), nn.Conv2d(wide, outer, 1, bias=False))
            self.pool = nn.Sequential(ends[0], nn.GroupNorm(4, wide), nn.ReLU(), ends[1])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, H, W) -> (batch, channels, H, W)."""
        x = x if self.pool is None else x + self.pool(x)
        return torch.relu(self.conv(x) + self.skip(x))


class Bounded(nn.Module):
    """What keeps a decoder's latents within -3 and 3."""

    def forward(self, z: Tensor) -> Tensor:
        """3 tanh(z / 3)."""
        return 3 * torch.tanh(z / 3)


class TAESD(Convolutional):
    """A tiny autoencoder: no spread, no KL."""

    def __init__(self, model: nn.ModuleDict, options: ConvolutionalOptions) -> None:
        self.range = options.range or (0.0, 1.0)
        channels = next(model["encoder"].parameters()).shape[1]
        super().__init__(model, (channels, 256, 256), options)

    def encode(self, x: Tensor) -> Point:
        """The latents of (batch, channels, H, W), (batch, latent channels, H / 8, W / 8)."""
        return Point(self.model["encoder"](x))

    def decoded(self, z: Tensor) -> Tensor:
        """The image of latents, likewise."""
        image: Tensor = self.model["decoder"](z)
        return image


def files(path: Path) -> Mapping[str, str]:
    """The files of the pair of which ``path`` is one, by part; none where it holds both parts itself."""
    half = _half(path)
    return {part: path.name.replace(half, part) for part in _PARTS} if half is not None else {}


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the file is half of a pair, by its name and those of its tensors, and the other half lies beside it."""
    names = files(checkpoint.path).values()
    known = bool({"1.weight", "1.conv.0.weight"} & checkpoint.tensors.keys())
    return known and bool(names) and all(checkpoint.path.with_name(name).is_file() for name in names)


def open(checkpoint: Checkpoint, config: Mapping[str, object]) -> TAESD:
    """Open a pair of files by either; ``config`` holds the fields of :class:`ConvolutionalOptions`.

    Raises:
        AdapterError: an option is wrong, or the file is not called as one of a pair.
        CheckpointError: the other file is missing, or tensors are missing, left over or of another shape.
    """
    options = read_options(ConvolutionalOptions, config, "taesd")
    tensors = {part: _of_part(checkpoint, part) for part in _PARTS}
    if not all(tensors.values()):
        raise AdapterError(
            f"{checkpoint.path.name} should be called as one of a pair, with encoder or decoder in its name, as in "
            "taesd_encoder.pth; rename it"
        )
    named = {f"{part}.{name}": tensor for part, those in tensors.items() for name, tensor in those.items()}
    model = channels_last(filled(lambda: _built(tensors), named)).eval()
    last = [one for one in model["encoder"].modules() if isinstance(one, nn.Conv2d)][-1].out_channels
    first = next(one for one in model["decoder"].modules() if isinstance(one, nn.Conv2d)).in_channels
    if last != first:
        raise CheckpointError(
            f"the encoder of {checkpoint.path.name} gives {last} channels of latents and the decoder takes {first}, so "
            "that they are no pair; put the two of one model together"
        )
    return TAESD(model, options)


def _of_part(checkpoint: Checkpoint, part: str) -> dict[str, Tensor]:
    """The tensors of one part: of its own file, or of one that holds both, as it is converted to."""
    both = {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith(_PARTS)}
    if both:
        return {name.removeprefix(f"{part}."): both[name] for name in both if name.startswith(part)}
    name = files(checkpoint.path).get(part)
    if name is None:
        return {}
    return dict(checkpoint.tensors if name == checkpoint.path.name else checkpoint.beside(name).tensors)


def _half(path: Path) -> str | None:
    return next((part for part in _PARTS if part in path.name), None)


def _built(tensors: Mapping[str, Mapping[str, Tensor]]) -> nn.ModuleDict:
    try:
        return nn.ModuleDict({part: _sequential(tensors[part], part) for part in tensors})
    except (KeyError, ValueError) as error:  # a tensor of a block is missing, or of sizes that no layer has
        raise CheckpointError(f"the pair's tensors are not those of a tiny autoencoder: {error.args[0]}") from error


def _sequential(tensors: Mapping[str, Tensor], part: str) -> nn.Sequential:
    """The layers whose tensors these are, at their own places, with what has none between them."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    places = sorted({name.partition(".")[0] for name in shapes}, key=lambda name: (len(name), name))
    strange = [name for name in shapes if not name.partition(".")[0].isdigit()]
    weights = [shapes.get(f"{at}.weight", shapes.get(f"{at}.conv.0.weight", ())) for at in places]
    if strange or len(weights) < 2 or any(len(shape) != 4 for shape in weights):
        raise CheckpointError(f"the {part}'s tensors are not those of a tiny autoencoder: {listed(strange or places)}")
    layers = nn.Sequential()
    if part == "decoder":
        layers.add_module("bounded", Bounded())
    for at in places:
        plain = f"{at}.weight" in shapes
        changes = plain and f"{at}.bias" not in shapes
        if part == "decoder" and changes:
            layers.add_module(f"up{at}", nn.Upsample(scale_factor=2))
        stride = 2 if part == "encoder" and changes else 1
        layers.add_module(at, _conv(shapes, at, stride) if plain else Block(shapes, at))
        if part == "decoder" and at == places[0]:
            layers.add_module("relu", nn.ReLU())
    return layers


def _conv(shapes: Mapping[str, tuple[int, ...]], name: str, stride: int = 1) -> nn.Conv2d:
    outer, inner, size, _ = shapes[f"{name}.weight"]
    return nn.Conv2d(inner, outer, size, stride, padding=size // 2, bias=f"{name}.bias" in shapes)
