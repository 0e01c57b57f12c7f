"""Reading arrays by name from .npz, .npy and .safetensors files, and telling images from labels and factors.

No pickle is ever loaded: a pickled array beside the images is left out and told, pickled images are refused.
"""

import math
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from vaeaudit.data.items import Factors, Stored
from vaeaudit.data.labels import misshapen, read_labels
from vaeaudit.data.shapes import shape_text
from vaeaudit.errors import CheckpointError, DataError, TrustError, VaeauditError, clipped, listed, nearest
from vaeaudit.model.checkpoints import sha256_of
from vaeaudit.model.files import PACKED, excess
from vaeaudit.model.stated import first_sentence
from vaeaudit.model.torch_files import check_claims, read_torch

_IMAGE_NAMES = ("imgs", "images", "image", "img", "data", "x", "x_train", "x_val", "x_test")
CONDITIONS = "conditions"  # what a conditional model is given beside the items
LABEL_NAMES = ("labels", "label", "targets", "target", "y")
_SPLIT_LABEL_NAMES = ("y_train", "y_val", "y_test")  # each belongs to its own x_...
_FACTOR_NAMES = ("latents_classes", "latents_values", "latents_names")
_DSPRITES = ("color", "shape", "scale", "orientation", "posX", "posY")  # five columns: without the constant colour
_KINDS = {
    "BOOL": "b",
    "BF16": "f",
    "U": "u",
    "I": "i",
    "F": "f",
    "C": "c",
}  # of safetensors types, or their letter


_COARSE = {"BF16": 2.0**-7, "F8_E4M3": 2.0**-3, "F8_E5M2": 2.0**-2}  # spacing at 1 of what is read as float32
_MOST_HEADER = 10_000  # bytes of the header of a .npy file, NumPy's own limit


@dataclass(frozen=True)
class Array:
    """One array, known by its header until it is loaded; ``kind`` as in ``np.dtype.kind``, "O": pickled.

    ``eps`` as in :class:`vaeaudit.data.items.Stored`.
    """

    file: Path
    shape: tuple[int, ...]
    kind: str
    eps: float | None
    fetch: Callable[[], NDArray[np.generic]]

    def load(self) -> NDArray[np.generic]:
        """Its values; raises :class:`DataError` where the file is damaged."""
        with decoding(self.file, f"{self.file.suffix} file"):
            return self.fetch()


@contextmanager
def decoding(file: Path, what: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into one :class:`DataError`.

    Decoders of untrusted bytes raise nearly anything; keep little but their calls inside.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy on headers of Python 2, Pillow on odd tags: both read on exactly
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (VaeauditError, MemoryError, PermissionError):
        raise
    except Exception as error:
        reason = first_sentence(error)
        raise DataError(f"{file} is not a whole {what} ({reason}); it may be truncated or only named so") from error


def read_npz(file: Path, images: str | None = None) -> Stored:
    """Read the images, labels and factors of a .npz archive; ``images`` names the array where it is not clear."""
    _refuse_pickle(file)
    arrays: dict[str, Array] = {}
    skipped: list[str] = []
    with decoding(file, ".npz file"):
        archive = zipfile.ZipFile(file)
    with archive:
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                skipped.append(f"{clipped(info.filename)}: not an array")
                continue
            with decoding(file, ".npz file"), archive.open(info) as stream:
                shape, kind = _npy_header(stream, info.file_size)
            fetch = partial(_npz_member, file, archive, info)
            name = info.filename.removesuffix(".npy")
            if name in arrays:
                raise DataError(
                    f"{file} holds two arrays named '{clipped(name)}', where one was expected; write it anew with the "
                    "one that is meant"
                )
            arrays[name] = Array(file, shape, kind, None, fetch)
        return select(file, arrays, skipped, images)


def _npz_member(file: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[np.generic]:
    if fault := excess(info.file_size, file.stat().st_size, PACKED):
        raise DataError(
            f"{file}: {clipped(info.filename)} was not unpacked ({fault}); if it really holds that much, store it "
            "with np.savez, which does not compress"
        )
    with archive.open(info) as stream:
        array: NDArray[np.generic] = npy.read_array(stream, allow_pickle=False)
    return array


def read_torch_data(file: Path, images: str | None = None) -> Stored:
    """Read a tensor, two (items and labels), or a dictionary of tensors from a PyTorch file, by ``weights_only``."""
    try:
        content = read_torch(file)
    except CheckpointError as error:
        raise DataError(str(error).replace("checkpoint", "file of tensors")) from error
    except TrustError as error:
        raise TrustError(
            f"{file} holds pickled objects other than tensors, and loading them could run code, so they were not "
            "loaded; where you trust it, convert it: "
            f"held = torch.load({clipped(file.name)!r}, weights_only=False); "
            "torch.save(torch.stack([item[0] for item in held]), 'items.pt')"
        ) from error
    if isinstance(content, Tensor):
        content = {"images": content}
    if isinstance(content, list | tuple) and len(content) == 2:
        content = dict(zip(("images", "labels"), content, strict=True))  # as torchvision's MNIST keeps them
    if not isinstance(content, dict):
        raise DataError(
            f"{file} holds a {type(content).__name__}, where a tensor, a pair of items and labels, or a dictionary of "
            "tensors was expected; save one with torch.save"
        )
    held = {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    skipped = [
        f"{clipped(str(name))}: not a tensor" for name, value in content.items() if not isinstance(value, Tensor)
    ]
    try:
        check_claims(file, held)
    except CheckpointError as error:
        raise DataError(str(error)) from error
    arrays = {name: _of_tensor(file, tensor) for name, tensor in held.items() if tensor.layout == torch.strided}
    return select(file, arrays, skipped, images)


def _of_tensor(file: Path, tensor: Tensor) -> Array:
    stored_type = str(tensor.dtype).removeprefix("torch.")
    kind = "b" if tensor.dtype == torch.bool else "f" if tensor.is_floating_point() else stored_type[0]
    eps = 2.0**-7 if tensor.dtype == torch.bfloat16 else None
    return Array(file, tuple(tensor.shape), kind, eps, partial(tensor_values, lambda _: tensor, ""))


def read_npy(file: Path) -> Stored:
    """Read the one array of a .npy file."""
    _refuse_pickle(file)
    with decoding(file, ".npy file"), file.open("rb") as stream:
        _, kind = _npy_header(stream, file.stat().st_size)
        if kind == "O":
            raise _pickled(file, "object array")
        stream.seek(0)
        values: NDArray[np.generic] = npy.read_array(stream, allow_pickle=False)
    return Stored(values, None, None, str(file), sha256_of(file))


def _npy_header(stream: IO[bytes], size: int) -> tuple[tuple[int, ...], str]:
    """Shape and kind ("O" for anything pickled) from a .npy header; ``size`` in bytes with the header."""
    version = npy.read_magic(stream)
    if version not in {(1, 0), (2, 0)}:
        raise ValueError(f"version {version} of the format")
    width = 2 if version == (1, 0) else 4
    length = stream.read(width)
    if int.from_bytes(length, "little") > _MOST_HEADER:
        raise ValueError(f"its header claims {int.from_bytes(length, 'little')} bytes")
    header = BytesIO(length + stream.read(int.from_bytes(length, "little")))
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(header)
    if dtype.hasobject:
        return shape, "O"
    promised = npy.MAGIC_LEN + header.tell() + math.prod(shape) * dtype.itemsize
    if promised != size:
        raise ValueError(f"the header promises {promised} bytes and {size} came")
    return shape, dtype.kind


def read_safetensors(file: Path, images: str | None = None) -> Stored:
    """Read the images, labels and factors of a .safetensors file, as :func:`read_npz`; metadata are ignored."""
    with decoding(file, ".safetensors file"):
        opened = safe_open(file, framework="pt", device="cpu")
    with opened as handle:
        arrays = {}
        names = handle.keys()
        for name in names:
            header = handle.get_slice(name)
            stored_type = header.get_dtype()
            kind = _KINDS.get(stored_type) or _KINDS.get(stored_type[0], "V")
            eps = _COARSE.get(stored_type)
            fetch = partial(tensor_values, handle.get_tensor, name)
            arrays[name] = Array(file, tuple(header.get_shape()), kind, eps, fetch)
        return select(file, arrays, [], images)


def tensor_values(get_tensor: Callable[[str], Tensor], name: str) -> NDArray[np.generic]:
    """A copy of a tensor as an array, in float32 where NumPy has not its type."""
    tensor = get_tensor(name)
    if str(tensor.dtype).startswith(("torch.bfloat16", "torch.float8")):  # NumPy has neither; float32 holds both
        tensor = tensor.float()
    array: NDArray[np.generic] = tensor.numpy().copy()  # the tensor may be mapped to the file, which may change
    return array


def select(
    file: Path,
    arrays: Mapping[str, Array],
    skipped: list[str],
    wanted: str | None,
    sha256: str | None = None,
    part: str | None = None,
) -> Stored:
    """Find images, labels and factors by name; the rest goes to ``skipped``.

    ``wanted`` names the images, and ``part`` what of the source is meant, where that is more; ``sha256`` is that of the
    file if it is None.
    """
    images = _image_name(file, arrays) if wanted is None else _named(file, arrays, wanted)
    labels_name = _label_name(images, arrays)
    labels, names, told = None, None, None
    if labels_name is not None and arrays[labels_name].kind != "O":
        array = arrays[labels_name]
        told = misshapen(array.shape)
        labels, names, told = (None, None, told) if told else read_labels(array.load())
        if labels is None:
            skipped.append(f"{clipped(labels_name)}: no labels but {told}")
    factors, conditions = _factors(file, arrays), None
    if CONDITIONS in arrays and arrays[CONDITIONS].kind in "biuf" and images != CONDITIONS:
        conditions = arrays[CONDITIONS].load()
    taken = {CONDITIONS} if conditions is not None else set()
    for name, array in arrays.items():
        if array.kind == "O":
            skipped.append(f"{clipped(name)}: pickled objects are not loaded")
        elif name not in {*taken, images, labels_name} and (name not in _FACTOR_NAMES or factors is None):
            skipped.append(f"{clipped(name)}: not taken as images, labels or factors")
    meant = part or wanted
    source = str(file) if meant is None else f"{file}#{meant}"
    values = arrays[images].load()
    made = () if labels is None or told is None else (told,)
    digest = sha256 or sha256_of(file)
    eps = arrays[images].eps
    return Stored(
        values, labels, factors, source, digest, tuple(skipped), made, eps, conditions=conditions, label_names=names
    )


def _named(file: Path, arrays: Mapping[str, Array], name: str) -> str:
    if name not in arrays:
        held = listed(arrays) or "nothing"
        raise DataError(f"{file} holds no array '{clipped(name)}'{nearest(name, arrays)}; it holds {held}")
    if arrays[name].kind == "O":
        raise _pickled(file, clipped(name))
    return name


def _image_name(file: Path, arrays: Mapping[str, Array]) -> str:
    """The only array named as images are; with none so named, the only one that could be images."""
    named = [n for n, a in arrays.items() if n.lower() in _IMAGE_NAMES and (len(a.shape) > 1 or a.kind == "O")]
    other = {CONDITIONS, *LABEL_NAMES, *_SPLIT_LABEL_NAMES, *_FACTOR_NAMES}
    could = [n for n, a in arrays.items() if n.lower() not in other and len(a.shape) > 1 and a.kind in "biufc"]
    found = named or could
    if len(found) > 1:
        raise DataError(
            f"{file} holds several arrays that could be the images ({listed(found)}), where one was expected; "
            f"name the one to audit, as in {file.name}#{clipped(found[0])}"
        )
    pickled = [n for n, a in arrays.items() if a.kind == "O" and n in (found or arrays)]
    if pickled:
        raise _pickled(file, listed(pickled))
    if not found:
        held = listed(f"{clipped(n, 60)} of shape {shape_text(a.shape)}" for n, a in arrays.items()) or "nothing"
        raise DataError(f"{file} holds no array of items (n, ...), only {held}; store one named 'images'")
    return found[0]


def _label_name(images: str, arrays: Mapping[str, Array]) -> str | None:
    """y_test for x_test; otherwise the first usual name that is there."""
    by_name = {name.lower(): name for name in arrays}
    paired = "y" + images.lower().removeprefix("x")
    return next((by_name[name] for name in (paired, *LABEL_NAMES) if name in by_name), None)


def _factors(file: Path, arrays: Mapping[str, Array]) -> Factors | None:
    """The factors of the dSprites layout; None without a readable ``latents_classes``."""
    if "latents_classes" not in arrays or arrays["latents_classes"].kind == "O":
        return None
    classes = arrays["latents_classes"].load()
    if classes.ndim != 2 or classes.dtype.kind not in "biu":
        raise DataError(
            f"{file}: latents_classes must be integers of shape (n, factors) but is {classes.dtype} of shape "
            f"{shape_text(classes.shape)}; count the values of each factor from 0"
        )
    values = None
    if "latents_values" in arrays and arrays["latents_values"].kind in "biuf":
        values = arrays["latents_values"].load().astype(np.float64)
        if values.shape[1:] != classes.shape[1:]:
            raise DataError(
                f"{file}: latents_values of shape {shape_text(values.shape)} must have the columns of "
                f"latents_classes, {shape_text(classes.shape)}; store both from the same table"
            )
    columns = classes.shape[1]
    names = {5: _DSPRITES[1:], 6: _DSPRITES}.get(columns, tuple(f"factor{i}" for i in range(columns)))
    if "latents_names" in arrays and arrays["latents_names"].kind in "SU":
        given = arrays["latents_names"].load().reshape(-1).tolist()
        names = tuple(n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in given)
    if len(names) != columns:
        raise DataError(f"{file}: latents_names holds {len(names)} names for {columns} factors; give one for each")
    return Factors(names, classes.astype(np.int64), values)


def _refuse_pickle(file: Path) -> None:
    with file.open("rb") as stream:
        start = stream.read(1)
    if start == b"\x80":  # PROTO, which begins every pickle since protocol 2 and none of our formats
        raise _pickled(file, "the whole file")


def _pickled(file: Path, what: str) -> TrustError:
    return TrustError(
        f"{file} holds its images as pickled objects ({what}), and loading them could run code, so they were not "
        "loaded; convert them where you trust the file: np.savez('images.npz', images=np.stack(list(images)))"
    )
