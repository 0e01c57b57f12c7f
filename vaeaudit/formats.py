"""Reading the sources that hold items: archives of arrays, MNIST idx(.gz) files, folders of images.

Values are kept as the source stores them; :mod:`vaeaudit.data` fits them to a model.
"""

import gzip
import hashlib
import math
import re
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vaeaudit.archives import decoding, read_npy, read_npz, read_safetensors
from vaeaudit.checkpoints import sha256_of
from vaeaudit.data import Stored, shape_text
from vaeaudit.errors import DataError, nearest

SUFFIXES = (".npz", ".npy", ".safetensors", ".idx", ".idx.gz")
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
READABLE = "a .npz, .npy, .safetensors or MNIST idx(.gz) file, or a folder of images"

_IDX = re.compile(r"[.-]idx\d?(-\w+)?(\.gz)?$")
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read(source: str | Path) -> Stored:
    """Read a file or a folder of images; "file.npz#name" names the array of a file that holds several.

    Raises:
        DataError: missing, of an unknown kind, damaged, empty, or not clear about which array holds the images.
        TrustError: the images are pickled.
    """
    path, images = Path(source), None
    if "#" in path.name and not path.exists():
        path, images = path.with_name(path.name.partition("#")[0]), path.name.partition("#")[2]
    try:
        if not path.exists():
            raise _missing(str(source), path)
        if path.suffix.lower() in (".npz", ".safetensors"):
            return (read_npz if path.suffix.lower() == ".npz" else read_safetensors)(path, images)
        if images is not None:
            raise DataError(f"{path} holds one array, so '#{images}' names nothing in it; leave it out")
        if path.is_dir():
            return read_folder(path)
        if _IDX.search(path.name):
            return read_idx(path)
        if path.suffix.lower() == ".npy":
            return read_npy(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error
    told = f"ends in {path.suffix}{nearest(path.suffix, SUFFIXES)}" if path.suffix else "has no ending"
    raise DataError(f"the name of {path} {told}, where {READABLE} was expected; convert or rename it")


def _missing(source: str, path: Path) -> DataError:
    if re.match(r"[A-Za-z][A-Za-z0-9+]+:", source):  # two letters or more: not the drive of a Windows path
        return DataError(f"{source} names a source of a kind that is not supported yet; give {READABLE}")
    here = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return DataError(f"there are no data at {path}{nearest(path.name, here)}; give {READABLE}")


def read_idx(file: Path) -> Stored:
    """Read the images of an idx file, with the labels of the file that lies beside it as MNIST has it.

    With labels, the hash is that of the "HASH  NAME" lines of both files, as sha256sum prints them.
    """
    values = _idx_array(file)
    if values.ndim < 2:
        raise DataError(f"{file} holds one number for each item, as labels do, where images were expected; give those")
    labels_file = _idx_labels(file)
    labels = None if labels_file is None else _idx_array(labels_file)
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise DataError(
            f"{labels_file} must hold one integer for each item, being the labels of {file.name}; remove it"
        )
    sha256 = sha256_of(file)
    if labels_file is not None:  # pairs are chosen by labels: other labels are other data
        lines = f"{sha256}  {file.name}\n{sha256_of(labels_file)}  {labels_file.name}\n"
        sha256 = hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()
    return Stored(values, None if labels is None else labels.astype(np.int64), None, str(file), sha256)


def _idx_labels(file: Path) -> Path | None:
    """train-labels-idx1-ubyte[.gz] for train-images-idx3-ubyte[.gz], where it lies beside it."""
    if "images" not in file.name:
        return None
    plain = re.sub(r"idx\d", "idx1", file.name.replace("images", "labels")).removesuffix(".gz")
    return next((f for f in (file.with_name(plain), file.with_name(plain + ".gz")) if f.is_file()), None)


def _idx_array(file: Path) -> NDArray[np.generic]:
    with decoding(file, "idx file"):
        content = file.read_bytes()
        if file.name.endswith(".gz"):
            content = gzip.decompress(content)
        zeros, code, ndim = struct.unpack_from(">HBB", content)
        if zeros or code not in _IDX_TYPES or not ndim:
            raise ValueError(f"the magic number is {content[:4].hex()} and not 00000803 as for MNIST images")
        shape = struct.unpack_from(f">{ndim}I", content, 4)
        start, dtype = 4 + 4 * ndim, np.dtype(_IDX_TYPES[code])
        promised = start + math.prod(shape) * dtype.itemsize
        if promised != len(content):
            raise ValueError(f"the header promises {promised} bytes and {len(content)} came")
        return np.frombuffer(content, dtype, offset=start).reshape(shape)


def read_folder(folder: Path) -> Stored:
    """Images below a folder in the order of their relative names, (n, H, W) or (n, H, W, 3) uint8.

    8-bit grayscale and RGB as stored, 1-bit as 0 and 255; no EXIF rotation, no colour management. Hidden files are
    passed over. The sub-folders directly below, in the order of their names, are the labels 0, 1, ...
    """
    files = sorted((f.relative_to(folder).as_posix(), f) for f in folder.rglob("*") if f.is_file())
    seen = [(name, f) for name, f in files if not any(part.startswith(".") for part in name.split("/"))]
    images = [(name, f) for name, f in seen if f.suffix.lower() in IMAGE_SUFFIXES]
    others = [name for name, f in seen if f.suffix.lower() not in IMAGE_SUFFIXES]
    if not images:
        held = f"it holds {others[0]}" if others else "it is empty"
        raise DataError(f"the folder {folder} holds no images ({', '.join(IMAGE_SUFFIXES)}), {held}; give {READABLE}")
    lines = hashlib.sha256()  # over "HASH  NAME" lines, as sha256sum prints them
    values = np.empty(0, np.uint8)
    for index, (name, file) in enumerate(images):
        content = file.read_bytes()
        lines.update(f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode(errors="surrogateescape"))
        pixels = _pixels(file, content)
        if index == 0:
            values = np.empty((len(images), *pixels.shape), np.uint8)
        if pixels.shape != values.shape[1:]:
            raise DataError(
                f"{file} is {shape_text(pixels.shape)} where {images[0][0]} is {shape_text(values.shape[1:])}, "
                "and all images must have one size and mode; convert them first"
            )
        values[index] = pixels
    skipped = [f"{others[0]}{f' and {len(others) - 1} more' if others[1:] else ''}: not images"] if others else []
    nested = [name.split("/")[0] for name, _ in images if "/" in name]
    labels = None
    if len(nested) == len(images):
        labels = np.unique(nested, return_inverse=True)[1].astype(np.int64)
    elif nested:
        skipped.append("sub-folders: not taken as labels, since some images lie in none")
    return Stored(values, labels, None, str(folder), lines.hexdigest(), tuple(skipped))


def _pixels(file: Path, content: bytes) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3); whatever would need a choice (palette, alpha, 16 bits, frames) is refused."""
    with decoding(file, "image"), Image.open(BytesIO(content)) as image:
        fault = ""
        if image.mode not in {"1", "L", "RGB"}:
            fault = f"mode {image.mode}"
        elif "transparency" in image.info:
            fault = f"mode {image.mode} with transparency"
        elif ";16" in str(image.tile):  # Pillow would drop the lower bits of 16-bit RGB without a word
            fault = "16 bits a channel"
        elif getattr(image, "n_frames", 1) > 1:
            fault = "several frames"
        if fault:
            raise DataError(
                f"{file} is an image with {fault}, where 8-bit grayscale or RGB was expected; convert it as the "
                "model's training data were converted"
            )
        return np.asarray(image.convert("L") if image.mode == "1" else image, dtype=np.uint8)
