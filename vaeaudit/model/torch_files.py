"""PyTorch files: what ``torch.load(weights_only=True)`` makes of them, looked at before it reads their tensors."""

import logging
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from vaeaudit.errors import CheckpointError, TrustError, clipped
from vaeaudit.model.files import STORED, excess
from vaeaudit.model.stated import first_sentence


def read_torch(file: Path) -> object:
    """What a PyTorch file holds; tensors of a zip archive are mapped to it, and read where they are used.

    Raises:
        CheckpointError: damaged, no PyTorch file, or one that claims far more than its size.
        TrustError: it holds more than tensors and plain values.
    """
    try:
        with file.open("rb") as stream:
            is_zip = stream.read(4) == b"PK\x03\x04"
            stream.seek(0)
            mapped = is_zip and _is_sound(file)
            # Its argument may be a number, and it then fills so many bytes: the one call that the restricted
            # unpickler allows of which a few bytes can take all memory. No tensor needs it.
            if not is_zip and _names(stream, 5, "bytearray"):  # the pickles before the tensors of an old file
                raise _untrusted(file)
        with warnings.catch_warnings():  # torch warns of old pickle protocols; the outcome says enough
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except (MemoryError, CheckpointError, TrustError):
        raise
    except Exception as error:  # damaged bytes raise nearly anything
        raise _unreadable(file, error) from error


def read_program(file: Path, trust_code: bool) -> "torch.export.ExportedProgram":
    """The program of torch.export that a file holds.

    Raises:
        TrustError: nobody said that its code is trusted.
        CheckpointError: it is none, or none that this torch can load.
    """
    if not trust_code:
        raise TrustError(
            f"{file} is a program of torch.export, and loading it may run code that it brings, so it was not loaded; "
            "commands that audit it load it with --trust-code, where you trust whoever made it"
        )
    from torch import export  # takes long to import

    try:
        with quiet_export(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return export.load(file)
    except MemoryError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{file} is no program that torch {torch.__version__} can load ({first_sentence(error)}); export it again"
        ) from error


@contextmanager
def quiet_export() -> Iterator[None]:
    """Without the warnings and tracebacks that torch logs before it raises."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def check_claims(file: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that come to far more bytes than their file has: expanded ones. None of them is read.

    Raises :class:`CheckpointError`.
    """
    sizes = {
        (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()): tensor.numel() * tensor.element_size()
        for tensor in tensors.values()
        if tensor.layout == torch.strided
    }
    fault = excess(sum(sizes.values()), file.stat().st_size, STORED)
    if fault:
        largest = max(tensors, key=lambda name: tensors[name].numel())
        shape = "x".join(map(str, tensors[largest].shape))
        raise CheckpointError(
            f"the tensors of {file} were expanded ({fault}; {largest} is {shape}), so they were not read; save their "
            "contiguous() copies"
        )


def _is_sound(file: Path) -> bool:
    """Whether a zip archive's tensors can be mapped; it is refused where its members come to far more than it."""
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError):
        return False  # torch says what is wrong with it
    with archive:
        members = archive.infolist()
        fault = excess(sum(info.file_size for info in members), file.stat().st_size, STORED)
        if fault:
            raise CheckpointError(f"{file} was not unpacked ({fault}); save the checkpoint again with torch.save")
        for info in members:
            if info.filename.endswith("data.pkl"):
                with archive.open(info) as stream:
                    if _names(stream, 1, "bytearray"):
                        raise _untrusted(file)
        return all(info.compress_type == zipfile.ZIP_STORED for info in members)


def _names(stream: IO[bytes], pickles: int, name: str) -> bool:
    """Whether one of the first so many pickles names a global called ``name``; nothing is run."""
    try:
        for _ in range(pickles):
            if any(op.name == "GLOBAL" and str(arg).endswith(f" {name}") for op, arg, _ in pickletools.genops(stream)):
                return True
    except Exception:  # damaged bytes raise nearly anything, and torch then says so
        return False
    return False


def _untrusted(file: Path, error: Exception | None = None) -> TrustError:
    """The refusal of a file of more than tensors, with the two lines of Python that convert it."""
    found = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
    loaded, weights = "torch.load(FILE, map_location='cpu', weights_only=False)", "held.state_dict()"
    if "TorchScript" in str(error):
        loaded = "torch.jit.load(FILE, map_location='cpu')"
    elif key := next((key for key in ("state_dict", "model_state_dict") if key in _texts(file)), None):
        weights = f"held['{key}']"
    what = f" ({clipped(found[1])})" if found else ""
    return TrustError(
        f"{file} holds pickled objects other than tensors{what}, and loading them could run code, so "
        "it was not loaded; where you trust it, convert it by two lines of Python: "
        f"held = {loaded.replace('FILE', clipped(repr(file.name)))}; "
        f"torch.save({weights}, {clipped(repr(f'{file.stem}-weights.pt'))})"
    )


def _texts(file: Path) -> set[str]:
    """Texts in the pickle of a PyTorch file, which is not run; as many as can be read."""
    found: set[str] = set()
    with suppress(Exception), ExitStack() as opened:  # damaged bytes raise nearly anything
        stream: IO[bytes] = opened.enter_context(file.open("rb"))
        pickles = 5
        if stream.read(4) == b"PK\x03\x04":
            archive = opened.enter_context(zipfile.ZipFile(file))
            member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            stream, pickles = opened.enter_context(archive.open(member)), 1
        else:
            stream.seek(0)
        for _ in range(pickles):
            found |= {arg for op, arg, _ in pickletools.genops(stream) if "UNICODE" in op.name and isinstance(arg, str)}
    return found


def _unreadable(file: Path, error: Exception) -> CheckpointError | TrustError:
    """Tell a file of more than tensors from one that is damaged, or no checkpoint at all."""
    with file.open("rb") as stream:
        start = stream.read(4)
    known = start == b"PK\x03\x04" or start[:1] == b"\x80"  # a zip archive, or a pickle that begins with its protocol
    # A zip archive reaches the unpickler only if it is whole.
    refused = known and isinstance(error, pickle.UnpicklingError)
    if refused or "TorchScript" in str(error) or _is_old_pickle(file):
        return _untrusted(file, error)
    if not known:
        return CheckpointError(f"{file} is not a PyTorch checkpoint; it may be damaged or only named so")
    return CheckpointError(
        f"{file} is not a whole PyTorch checkpoint ({first_sentence(error)}); it may be truncated or only named so"
    )


def _is_old_pickle(file: Path) -> bool:
    """Whether the file is a pickle of protocol 0 or 1, which has no magic number, that names objects to call."""
    try:
        with file.open("rb") as stream:
            names = {opcode.name for opcode, _, _ in pickletools.genops(stream)}  # reads on to STOP, runs nothing
    except Exception:  # damaged bytes raise nearly anything
        return False
    return bool(names & {"GLOBAL", "INST"})
