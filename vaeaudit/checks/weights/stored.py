"""Weights read from files piece by piece, and which of them an adapter calls encoder and decoder.

No model is built: a safetensors file of any size is read through its header. PyTorch files are read whole, as
:func:`vaeaudit.model.checkpoints.read_checkpoint` reads them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vaeaudit.checks.weights.measure import NEITHER, PARTS
from vaeaudit.errors import AdapterError, CheckpointError, ConfigError, clipped
from vaeaudit.model.adapters import Adapter, adapter_of, find_adapter, said_beside
from vaeaudit.model.blocks import Weight, matrix_shape
from vaeaudit.model.checkpoints import check_finite, open_checkpoint, sha256_of
from vaeaudit.model.files import named_part
from vaeaudit.model.stated import find_checkpoint, not_whole, ties
from vaeaudit.model.weight_sets import refuse_twins, renamed, under
from vaeaudit.settings.sections import Settings

# NumPy knows no bfloat16: its bits are read as integers.
_TYPES: Mapping[str, tuple[str, torch.dtype]] = {
    "F64": ("<f8", torch.float64),
    "F32": ("<f4", torch.float32),
    "F16": ("<f2", torch.float16),
    "BF16": ("<i2", torch.bfloat16),
    "I64": ("<i8", torch.int64),
    "I32": ("<i4", torch.int32),
    "I16": ("<i2", torch.int16),
    "I8": ("i1", torch.int8),
    "U8": ("u1", torch.uint8),
    "BOOL": ("?", torch.bool),
}


@dataclass(frozen=True, eq=False)
class StoredModel:
    """The weights of a file, which prefixes of names are whose, and the adapter that told it, if one did.

    ``source`` is the file, with the key in it that holds them, FILE#KEY, if it holds more. ``prefix`` is what a wrapper
    had put before names and was taken off.
    """

    source: str
    sha256: str
    weights: Mapping[str, Weight]
    prefix: str
    adapter: Adapter | None
    parts: Mapping[str, Sequence[str]]
    settings: Settings


def open_weights(settings: Settings) -> StoredModel:
    """The weights of the model that the settings name, by the adapter that they name or the file itself does.

    Raises:
        ConfigError: no model is named.
        AdapterError: there is no such adapter, or what it says of the weights is no mapping of prefixes.
        CheckpointError, TrustError, NonFiniteError: see :func:`held_weights`.
    """
    if settings.model.path is None:
        raise ConfigError(
            "no model is named; give one, as in `vaeaudit weights vae.safetensors`, "
            "or set [model] path in vaeaudit.toml"
        )
    file = find_checkpoint(Path(settings.model.path))
    name = settings.model.adapter
    adapter = (
        find_adapter(name)
        if name is not None
        else adapter_of(open_checkpoint(settings.model.path, settings.model.trust_code))
    )
    parts = dict(PARTS if adapter is None else weight_parts(adapter)) | dict(settings.weights.parts)
    source, sha256, held = stored_weights(settings.model.path, settings.model.trust_code, adapter)
    prefix, weights = fitting(file, held, parts)
    if "" in parts.get(NEITHER, ()):  # whatever else the file holds is not the model's, and is not read
        own = tuple(start for starts in parts.values() for start in starts if start)
        weights = {name: weight for name, weight in weights.items() if name.startswith(own)}
    return StoredModel(source, sha256, weights, prefix, adapter, parts, settings)


def fitting(
    file: Path, weights: dict[str, Weight], parts: Mapping[str, Sequence[str]]
) -> tuple[str, dict[str, Weight]]:
    """The weights by the names that ``parts`` know: as they are, or without what a wrapper put before them.

    Raises :class:`CheckpointError` where they are several sets of equal names and shapes instead.
    """
    known = tuple(prefix for prefixes in parts.values() for prefix in prefixes)
    for prefix, named in (("", weights), *renamed(weights)):
        if all(name.startswith(known) for name in named):
            return prefix, named
    refuse_twins(file, weights)
    return "", weights  # the check says which names fit no part


def stored_weights(path: str | Path, trust_code: bool, adapter: Adapter | None) -> tuple[str, str, dict[str, Weight]]:
    """Where the weights of a model lie, the SHA-256 of that, and its tensors: see :func:`held_weights`.

    Of a model in several files, which its adapter's ``files`` names by the part that each is of, all are read. Their
    tensors are named by the part, "encoder.0.weight", and the hash is that of their "HASH  NAME" lines.
    """
    file = find_checkpoint(Path(path))
    files = _files(file, adapter)
    if not files:
        source, held = held_weights(path, trust_code)
        return source, sha256_of(file), held
    read = {part: held_weights(one, trust_code)[1] for part, one in files.items()}
    held = {f"{part}.{name}": weight for part, those in read.items() for name, weight in those.items()}
    return str(file), stored_sha256(file, adapter), held


def stored_sha256(file: Path, adapter: Adapter | None) -> str:
    """The SHA-256 of a model's file, as :func:`stored_weights` gives it; OSError where one of several is missing."""
    files = _files(file, adapter)
    if not files:
        return sha256_of(file)
    first = [file, *(one for one in files.values() if one != file)]
    lines = "".join(f"{sha256_of(one)}  {one.name}\n" for one in first)
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def _files(file: Path, adapter: Adapter | None) -> dict[str, Path]:
    """The files of a model in several, by the part that each is of."""
    named = {} if adapter is None else said_beside(adapter, "files", lambda _: {})(file)
    return {part: file.with_name(Path(name).name) for part, name in named.items()}


def read_weights(path: str | Path) -> dict[str, Weight]:
    """The tensors that :func:`held_weights` finds."""
    return held_weights(path)[1]


def held_weights(path: str | Path, trust_code: bool = False) -> tuple[str, dict[str, Weight]]:
    """The tensors of a .safetensors or PyTorch file, or of a folder that holds exactly one, in the file's order.

    With them comes where they lie: the file, or FILE#KEY. Names that a safetensors file notes as those of a stored
    tensor too come last. Of such a file, only the header is read now, and parts of tensors where they are asked for.

    Raises:
        CheckpointError: missing, truncated, or not a file of dense real numbers.
        TrustError, NonFiniteError: as :func:`vaeaudit.model.checkpoints.read_checkpoint` does, of PyTorch files.
    """
    file, key = find_checkpoint(Path(path)), named_part(path)[1]
    if file.suffix.lower() != ".safetensors":
        checkpoint = open_checkpoint(path, trust_code)
        check_finite(checkpoint)
        return checkpoint.source, {name: Weight.of(tensor) for name, tensor in checkpoint.tensors.items()}
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:  # checks that header and length agree
            names = handle.offset_keys()
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError) as error:
        raise not_whole(file, error) from error
    if not names:
        raise CheckpointError(f"{file} holds no tensors, where a model's weights were expected; export it again")
    stored = {name: _weight(file, name, header[name], 8 + length) for name in names}
    stored |= {name: stored[kept] for name, kept in ties(stored, header.get("__metadata__") or {}).items()}
    return (str(file), stored) if key is None else (f"{file}#{key}", under(file, stored, key))


def _weight(file: Path, name: str, entry: Mapping[str, object], base: int) -> Weight:
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    assert isinstance(kind, str) and isinstance(shape, list) and isinstance(offsets, list)  # safe_open has seen to it
    if kind not in _TYPES:
        raise CheckpointError(
            f"{file}: {name} is a tensor of another kind ({kind}), where real numbers of 16 bits or more were "
            "expected; export the model in float32"
        )
    stored, dtype = _TYPES[kind]
    width = matrix_shape(tuple(shape))[1]
    start = base + int(offsets[0])

    def block(rows: slice, columns: slice) -> Tensor:
        values = np.empty((rows.stop - rows.start, columns.stop - columns.start), stored)
        # Whole rows lie behind one another. Not mapped into memory, where the system would keep far more than is read.
        pieces = [values] if values.shape[1] == width else list(values)
        with file.open("rb") as stream:
            for row, piece in enumerate(pieces, rows.start):
                stream.seek(start + values.itemsize * (row * width + columns.start))
                read = np.fromfile(stream, stored, piece.size)
                if read.size != piece.size:
                    raise CheckpointError(f"{file} ended within {name} while it was read; is it still being written?")
                piece[...] = read.reshape(piece.shape)
        return torch.from_numpy(values).view(dtype)

    return Weight(tuple(shape), dtype, (file, start), block)


def weight_parts(adapter: Adapter) -> Mapping[str, Sequence[str]]:
    """What an adapter says of the names of tensors: the mapping ``WEIGHT_PARTS`` beside its ``open``, or the usual one.

    ``WEIGHT_PARTS = {"encoder": ("encoder.", "quant_conv."), "decoder": ("decoder.",), "neither": ("loss.",)}`` gives
    prefixes of names, of which the longest that fits decides; "neither" may be left out.

    Raises :class:`AdapterError` where it is something else.
    """
    said: object = said_beside(adapter, "WEIGHT_PARTS", PARTS)
    if isinstance(said, Mapping) and set(said) - {NEITHER} == set(PARTS):
        parts = {part: prefixes for part, prefixes in said.items() if _is_prefixes(prefixes)}
        if len(parts) == len(said):
            return parts
    raise AdapterError(
        f"WEIGHT_PARTS of adapter '{clipped(adapter.name)}' is {clipped(repr(said), 300)}, where prefixes of tensor "
        'names were expected, such as {"encoder": ("encoder.",), "decoder": ("decoder.",)}, with "neither" beside them '
        "where needed"
    )


def _is_prefixes(value: object) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(prefix, str) for prefix in value)
