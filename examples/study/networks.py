"""The networks of a row, of random weights: those of the adapter that will open them once they are trained."""

import math
from itertools import pairwise

import torch
from table import Row
from torch import nn
from vaeaudit_adapters.burgess import Burgess, BurgessOptions
from vaeaudit_adapters.hierarchical import Hierarchical, HierarchicalOptions
from vaeaudit_adapters.jointvae import JointVAE, JointVAEOptions
from vaeaudit_adapters.mlp import MLP, MLPOptions

# Of layers and of the networks between them; of depth L the last L (W C.1), the hidden ones a quarter as wide.
WIDTHS, HIDDEN = (96, 48, 24, 12, 6), (256, 128, 64, 32, 16)
CLASSES = 10


def untrained(row: Row, shape: tuple[int, ...]) -> tuple[nn.Module, dict[str, object]]:
    """A model for inputs of ``shape`` (channels, height, width), and the options by which its adapter opens it."""
    pixels, width = math.prod(shape), row.width
    torch.manual_seed(row.seed)
    if row.adapter == "mlp":  # C appendix F
        options: dict[str, object] = {"input_shape": list(shape)} | ({"sigma_offset": row.tau} if row.tau else {})
        head = {0: (width, width), 2: (row.latents, width)}
        layers = {
            "encoder.shared": {0: (width, pixels)},
            "encoder.mean": head,
            "encoder.logvar": head,
            "decoder": {0: (width, row.latents), 2: (width, width), 4: (pixels, width)},
        }
        return MLP(layers, MLPOptions.model_validate(options)), options
    if row.adapter == "burgess":
        return Burgess(shape[0], shape[1], row.latents, BurgessOptions()), {}
    if row.adapter == "jointvae":
        return JointVAE(_joint(row, shape), JointVAEOptions()), {}
    options = {"input_shape": list(shape)}
    return Hierarchical(_hierarchical(row, pixels), HierarchicalOptions.model_validate(options)), options


def _hierarchical(row: Row, pixels: int) -> dict[str, tuple[int, ...]]:
    widths = WIDTHS[-row.depth :] if row.depth > 1 else (row.latents,)
    taken = sum(widths) if row.objective == "seatbelt_vae" else widths[0]
    sizes = {f"encoder.fc{i}": size for i, size in enumerate(_chain(pixels, row.width, row.width, 2 * widths[0]), 1)}
    decoder = _chain(taken, row.width, row.width, row.width, pixels)
    sizes |= {f"decoder.net.{2 * i}": size for i, size in enumerate(decoder)}
    for i, (below, above) in enumerate(pairwise(widths)):
        hidden = HIDDEN[-row.depth + i]
        for way, ends in (("up", (below, 2 * above)), ("down", (above, 2 * below))):
            link = _chain(ends[0], hidden, hidden, ends[1])
            sizes |= {f"{way}.{i}.{3 * place}": size for place, size in enumerate(link)}
    return {f"{name}.weight": size for name, size in sizes.items()}


def _joint(row: Row, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Those of Dupont (2018) for 32x32 and 64x64 images."""
    channels, size = shape[0], shape[1]
    down = [channels, 32, *([32] if size == 64 else []), 64, 64]
    up = [64, *([64] if size == 64 else []), 32, 32, channels]
    shapes: dict[str, tuple[int, ...]] = {
        f"img_to_features.{2 * i}.weight": (o, n, 4, 4) for i, (n, o) in enumerate(pairwise(down))
    }
    shapes |= {"features_to_hidden.0.weight": (256, 1024), "fc_mean.weight": (row.latents, 256)}
    shapes |= {"fc_alphas.0.weight": (CLASSES, 256), "latent_to_features.2.weight": (1024, 256)}
    shapes["latent_to_features.0.weight"] = (256, row.latents + CLASSES)
    return shapes | {f"features_to_img.{2 * i}.weight": (n, o, 4, 4) for i, (n, o) in enumerate(pairwise(up))}


def _chain(*widths: int) -> list[tuple[int, int]]:
    """Sizes (out, in) of linear layers through these widths."""
    return [(outputs, inputs) for inputs, outputs in pairwise(widths)]
