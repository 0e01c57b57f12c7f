"""An append-only file of what a process has finished: killed at any moment, it loses the entry that it was writing.

An entry is its length (8 bytes, little-endian), the BLAKE2b of its content (16 bytes), and its content, a safetensors
file whose metadata name it. Reading ends at the first entry that is cut short or damaged, and writing goes on there.
"""

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vaeaudit.errors import OutputError

SUFFIX = ".log"
_DIGEST = 16
_HEAD = 8 + _DIGEST


@dataclass(frozen=True)
class Entry:
    """Where an entry lies, and what its metadata say."""

    file: Path
    start: int
    length: int
    metadata: Mapping[str, str]

    def tensors(self) -> dict[str, Tensor] | None:
        """What it holds; None where it can no longer be read."""
        with suppress(OSError, SafetensorError), self.file.open("rb") as file:
            file.seek(self.start)
            return load(file.read(self.length))
        return None


def entries(path: Path, start: int = 0) -> Iterator[Entry]:
    """The whole entries of a file from the byte ``start`` on; none of one that is not there."""
    if not path.is_file():  # a pipe would be waited for
        return
    with (
        suppress(OSError, ValueError),  # an empty file cannot be mapped
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        while len(content) - start > _HEAD:
            length = int.from_bytes(content[start : start + 8], "little")
            begin = start + _HEAD
            digest = content[start + 8 : begin]
            if begin + length > len(content):
                return
            payload = content[begin : begin + length]
            if hashlib.blake2b(payload, digest_size=_DIGEST).digest() != digest:
                return
            try:
                metadata = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])["__metadata__"]
            except (ValueError, KeyError, TypeError, RecursionError):
                return
            if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
                return
            yield Entry(path, begin, length, metadata)
            start = begin + length


class Log:
    """The file that this process writes, alone: a lock beside it ends with the process, however that ends.

    Raises :class:`OutputError` where it cannot be written, or another process writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(path)
            self.end = 0
            for entry in entries(path):
                self.end = entry.start + entry.length
            self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
            self._file.truncate(self.end)
        except OSError as error:
            raise _unwritable(path, error) from error

    def append(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Entry:
        """Write an entry, whole or not at all."""
        content = save(dict(tensors), dict(metadata))
        try:
            self._file.seek(self.end)
            self._file.write(len(content).to_bytes(8, "little"))
            self._file.write(hashlib.blake2b(content, digest_size=_DIGEST).digest())
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            raise _unwritable(self.path, error) from error
        entry = Entry(self.path, self.end + _HEAD, len(content), metadata)
        self.end = entry.start + entry.length
        return entry

    def close(self) -> None:
        """Let others write it."""
        try:
            with suppress(OSError):  # what a full disk did not take was told when it was written
                self._file.close()
        finally:
            self._lock.release()

    @staticmethod
    def remove(path: Path) -> None:
        """Remove the file, unless a process is writing it. Raises ``OSError`` where it cannot be removed."""
        if not path.is_file():
            return
        lock = FileLock(path.with_suffix(".lock"), blocking=False)
        with suppress(Timeout), lock:
            path.unlink()
            path.with_suffix(".lock").unlink(missing_ok=True)


def check_free(path: Path) -> None:
    """Raise :class:`OutputError` where another process writes the file ``path``, or it cannot be asked."""
    if path.is_file():
        _locked(path).release()


def _locked(path: Path) -> FileLock:
    """The lock beside a file, taken."""
    lock = FileLock(path.with_suffix(".lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"another process of vaeaudit works in {path.parent.parent} ({_who(path)}); wait for it, or name another "
            "folder with --out"
        ) from error
    except OSError as error:
        raise _unwritable(path, error) from error
    return lock


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path} cannot be written: {error.strerror}; name another place with --out")


def _who(path: Path) -> str:
    """Who said last that it writes this file."""
    told = [entry.metadata["opened"] for entry in entries(path) if "opened" in entry.metadata]
    return told[-1] if told else "it has just begun"
