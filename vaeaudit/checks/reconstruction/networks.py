"""Networks by which images are judged as people would: of distances such as LPIPS, and of features, for FID and KID.

Each is a file that :func:`torch.export.save` wrote, of a program that takes one batch of images, or two. Nothing is
downloaded: published figures rest on networks, weights and resizing that differ, so that the user names the file, and
its hash stands beside every figure.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from vaeaudit.errors import ConfigError, NonFiniteError, TrustError, UnsupportedError, clipped, told
from vaeaudit.model.checkpoints import sha256_of
from vaeaudit.model.torch_files import quiet_export

_WRITTEN = "a file that torch.export.save wrote"


@dataclass(frozen=True, eq=False)
class Network:
    """A program of one batch of images (b, channels, *size) in [0, 1], or of two of them.

    ``size`` is (height, width), to which images are resized. ``sha256`` is that of the file at ``path``.
    """

    program: Callable[..., Tensor]
    channels: int
    size: tuple[int, int]
    path: str
    sha256: str

    @property
    def told(self) -> str:
        """What a figure rests on, the same wherever the file lies."""
        return f"network {self.sha256[:12]} at {self.size[0]}x{self.size[1]}"

    @torch.no_grad()
    def __call__(self, *images: Tensor) -> Tensor:
        """What it gives of images (b, channels, h, w) in [0, 1], (b, ...), float32; grey ones may be taken as coloured.

        Raises:
            UnsupportedError: images of other colours than it takes; the program raised, or gave something else.
            NonFiniteError: it gave NaN or infinity.
        """
        given = self.program(*(self._fitted(one) for one in images))
        if not isinstance(given, Tensor) or given.shape[:1] != images[0].shape[:1] or not given.numel():
            raise UnsupportedError(f"the network {self.path} gives no tensor with a row for each image")
        if not bool(given.isfinite().all()):
            raise NonFiniteError(f"the network {self.path} gives NaN or infinity")
        return given.float()

    def _fitted(self, images: Tensor) -> Tensor:
        """Clamped to [0, 1], as files of images are, and of the program's size and colours."""
        if images.shape[1] != self.channels and (images.shape[1], self.channels) != (1, 3):  # grey ones are repeated
            raise UnsupportedError(
                f"the network {self.path} takes images of {self.channels} channels, but these have {images.shape[1]}"
            )
        images = images.float().clamp(0, 1).expand(-1, self.channels, -1, -1)
        if images.shape[2:] != self.size:
            images = functional.interpolate(images, self.size, mode="bilinear", antialias=True)
        return images.contiguous()


def open_network(path: str, images: int, trusted: bool, device: torch.device) -> Network:
    """The network of a file, which must take so many batches of ``images``.

    Raises:
        ConfigError: no such file, or one of something else.
        TrustError: it is not ``trusted``: reading it may run code.
    """
    file = Path(path)
    if not file.is_file() or not zipfile.is_zipfile(file):
        what = "is none" if file.exists() else "is not there"
        raise ConfigError(f"a network is {_WRITTEN}, but {clipped(path)} {what}")
    if not trusted:
        raise TrustError(
            f"reading the network {clipped(path)} may run code from it, so that it was not read; where you trust it, "
            "add --trust-networks"
        )
    try:
        with quiet_export(), file.open("rb") as stream:
            program = torch.export.load(stream)
    except Exception as error:  # damaged, or an archive of something else
        raise ConfigError(
            f"a network is {_WRITTEN}, but {clipped(path)} cannot be read as one: {told(error)}"
        ) from error
    inputs = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.name in inputs]
    shapes = [tuple(node.meta["val"].shape) for node in nodes]
    takes = ["x".join(str(size) if isinstance(size, int) else "any" for size in shape) for shape in shapes]
    batch, *rest = shapes[0] if shapes else (0,)
    if len(set(takes)) != 1 or len(takes) != images or len(rest) != 3 or isinstance(batch, int):
        raise ConfigError(
            f"the network {clipped(path)} takes {' and '.join(takes) or 'nothing'}, where {images} "
            f"batch{'es' * (images > 1)} of images (batch, channels, height, width) of any batch size were expected; "
            "export it with dynamic_shapes that name the first axis"
        )
    if not all(node.users for node in nodes):
        raise ConfigError(
            f"the network {clipped(path)} does not look at all {images} images; where it was exported with one tensor "
            "given twice, export it with two"
        )
    if not all(isinstance(size, int) for size in rest):
        raise ConfigError(
            f"the network {clipped(path)} takes images of any size, but what size they are resized to is part of the "
            "figure; export it for one height and width"
        )
    channels, height, width = rest
    return Network(program.module().to(device), channels, (height, width), path, sha256_of(file))
