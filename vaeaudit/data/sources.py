"""Reading the sources that hold items, by what a name ends in or a folder holds; MNIST idx(.gz) files here.

Values are kept as the source stores them; :mod:`vaeaudit.data` fits them to a model.
"""

import gzip
import hashlib
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaeaudit.data.archives import decoding, read_npy, read_npz, read_safetensors, read_torch_data
from vaeaudit.data.audio import clips_in, read_clips
from vaeaudit.data.hdf import read_h5, read_h5ad
from vaeaudit.data.image_folders import SUFFIXES as IMAGE_SUFFIXES
from vaeaudit.data.image_folders import read_folder
from vaeaudit.data.items import Stored
from vaeaudit.data.labels import read_labels
from vaeaudit.data.tables import is_dataset, read_csv, read_dataset, read_parquet
from vaeaudit.errors import DataError, clipped, nearest
from vaeaudit.model.checkpoints import sha256_of
from vaeaudit.model.files import PACKED, excess, named_part, obstacle

# Readers of files that may hold several arrays, one of which "#name" means.
_NAMED: dict[str, Callable[[Path, str | None], Stored]] = {
    ".npz": read_npz,
    ".safetensors": read_safetensors,
    **dict.fromkeys((".pt", ".pth"), read_torch_data),
    **dict.fromkeys((".h5", ".hdf5"), read_h5),
    ".h5ad": read_h5ad,
    ".parquet": read_parquet,
}
_PLAIN: dict[str, Callable[[Path], Stored]] = {".npy": read_npy, **dict.fromkeys((".csv", ".tsv"), read_csv)}
SUFFIXES = (*_NAMED, *_PLAIN, ".idx", ".idx.gz")
READABLE = (
    "a .npz, .npy, .safetensors, .pt, .csv, .parquet, .h5, .h5ad or MNIST idx(.gz) file, a data set of Hugging Face on "
    "disk, or a folder of images or WAV clips"
)

_PICKLED = (
    "is a pickle, which is not read as data, since loading one can run code; convert it where you trust it: "
    "np.savez('images.npz', images=np.asarray(np.load('FILE', allow_pickle=True)))"
)
_ONE_IMAGE = "is one image, where a folder of them was expected; give the folder"
_CONVERSIONS = {
    **dict.fromkeys((".pkl", ".pickle", ".p"), _PICKLED),
    ".wav": "is one clip, where a folder of them was expected; give the folder",
    **dict.fromkeys(IMAGE_SUFFIXES, _ONE_IMAGE),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".rar", ".7z"), "is an archive; unpack it and give the folder of images"),
}

_IDX = re.compile(r"[.-]idx\d?(-\w+)?(\.gz)?$")
_PIECE = 2**20  # bytes that are unpacked together
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read(source: str | Path) -> Stored:
    """Read a file or a folder of images; "file.npz#name" names the array of a file that holds several.

    Raises:
        DataError: missing, of an unknown kind, damaged, empty, or not clear about which array holds the images.
        TrustError: the images are pickled.
    """
    path, images = named_part(source)
    if fault := obstacle(path):
        raise DataError(fault)
    try:
        if not path.exists():
            raise _missing(str(source), path)
        suffix = path.suffix.lower()
        if suffix in _NAMED and path.is_file():
            return _NAMED[suffix](path, images)
        if path.is_dir() and is_dataset(path):
            return read_dataset(path, images)
        if images is not None:
            raise DataError(f"{path} holds one array, so '#{images}' names nothing in it; leave it out")
        if path.is_dir():
            clips = clips_in(path)
            return read_clips(path, clips) if clips else read_folder(path, READABLE)
        if _IDX.search(path.name):
            return read_idx(path)
        if suffix in _PLAIN:
            return _PLAIN[suffix](path)
    except OSError as error:
        place = clipped(str(error.filename or path))  # of a folder, the file in it
        raise DataError(
            f"{place} cannot be read ({error.strerror or error}); check its name and permissions"
        ) from error
    if suffix in _CONVERSIONS:
        raise DataError(f"{path} {_CONVERSIONS[suffix].replace('FILE', path.name)}")
    near = nearest(suffix, SUFFIXES, cutoff=0.7)  # .pt and .pkl are no slips of .npz
    told = f"ends in {clipped(path.suffix)}{near}" if suffix else "has no ending"
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
    numbers, _, told = (None, None, None) if labels is None else read_labels(labels)
    if labels is not None and numbers is None:
        raise DataError(f"{labels_file}, as the labels of {file.name}, is {told}; remove it")
    sha256 = sha256_of(file)
    if labels_file is not None:  # pairs are chosen by labels: other labels are other data
        lines = f"{sha256}  {file.name}\n{sha256_of(labels_file)}  {labels_file.name}\n"
        sha256 = hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()
    return Stored(values, numbers, None, str(file), sha256, told=() if told is None else (told,))


def _idx_labels(file: Path) -> Path | None:
    """train-labels-idx1-ubyte[.gz] for train-images-idx3-ubyte[.gz], where it lies beside it."""
    if "images" not in file.name:
        return None
    plain = re.sub(r"idx\d", "idx1", file.name.replace("images", "labels")).removesuffix(".gz")
    return next((f for f in (file.with_name(plain), file.with_name(plain + ".gz")) if f.is_file()), None)


def _idx_array(file: Path) -> NDArray[np.generic]:
    size = file.stat().st_size
    packed = file.name.endswith(".gz")
    with decoding(file, "idx file"), gzip.open(file) if packed else file.open("rb") as stream:
        start = stream.read(4)
        zeros, code, ndim = struct.unpack(">HBB", start)
        if zeros or code not in _IDX_TYPES or not ndim:
            raise ValueError(f"the magic number is {start.hex()} and not 00000803 as for MNIST images")
        shape = struct.unpack(f">{ndim}I", stream.read(4 * ndim))
        dtype = np.dtype(_IDX_TYPES[code])
        promised = math.prod(shape) * dtype.itemsize
        header = 4 + 4 * ndim
        if packed and (fault := excess(promised, size, PACKED)):
            raise DataError(f"{file} was not unpacked ({fault}); if it really holds that much, unpack it first")
        if not packed and header + promised != size:
            raise ValueError(f"the header promises {header + promised} bytes and {size} came")
        content = bytearray()
        while len(content) <= promised and (piece := stream.read(min(_PIECE, promised + 1 - len(content)))):
            content += piece  # no more than came, nor than was promised
        if len(content) != promised:
            more = "more" if len(content) > promised else f"{header + len(content)}"
            raise ValueError(f"the header promises {header + promised} bytes and {more} came")
        return np.frombuffer(content, dtype).reshape(shape)
