"""What a path leads to, asked before it is opened; and the limits to what a file may unpack to.

Reading a pipe or a device waits for whoever writes to it, perhaps for ever, so only regular files are opened. A few
bytes can claim terabytes, so what a header claims is held against the file's own size before anything is read.
"""

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path

from pydantic import JsonValue, TypeAdapter

from vaeaudit.errors import clipped

_JSON: TypeAdapter[object] = TypeAdapter(JsonValue)

_HOLDS_PARTS = re.compile(r"(.*?\.(?:npz|safetensors|ckpt|pth?|h5ad|h5|hdf5|parquet))#(.*)", re.DOTALL | re.IGNORECASE)
_POINTER = b"version https://git-lfs.github.com/spec/"
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
FREE = 2**28  # bytes (256 MiB) that anything may unpack to, however small its file
PACKED = 500  # times its size that a compressed file of data may unpack to: dSprites, 115 times, is far below
STORED = 8  # times its size that the tensors of a checkpoint, which is not compressed, may come to


def obstacle(path: Path) -> str | None:
    """Why ``path`` must not be opened, in one sentence; None for a regular file, a folder, or what is not there."""
    try:
        if path.is_symlink() and not path.exists():
            return f"{path} is a link to {clipped(str(path.readlink()))}, where there is nothing; link it anew"
        mode = path.stat().st_mode
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), None)
        if kind is not None:
            return f"{path} is {kind}, where a regular file was expected; write its content to a file and name that"
        if stat.S_ISREG(mode) and is_pointer(path):
            return f"{path} is a Git LFS pointer, which only stands for a file that was not fetched; run `git lfs pull`"
    except (OSError, ValueError):  # whoever opens it says why it cannot be; ValueError: a name with a NUL
        pass
    return None


def is_pointer(file: Path) -> bool:
    """Whether a regular file is a Git LFS pointer. Raises OSError."""
    with file.open("rb") as stream:
        return stream.read(len(_POINTER)) == _POINTER


def named_part(path: str | Path) -> tuple[Path, str | None]:
    """The file, and the part of it that "FILE#PART" names; None where it names none, or a file is called so."""
    whole = Path(path)
    file, part = split_part(str(path))
    return (whole, None) if part is None or whole.exists() else (Path(file), part)


def split_part(text: str) -> tuple[str, str | None]:
    """What stands before and after the # of "FILE#PART", None where there is none; a part may hold a slash.

    The # is the first behind the ending of a file that can hold several parts, or else in the name itself.
    """
    found = _HOLDS_PARTS.match(text) or re.match(r"(.*[^/])#([^/]*)$", text, re.DOTALL)
    return (found[1], found[2]) if found else (text, None)


def excess(claimed: int, size: int, times: int) -> str | None:
    """What is wrong with ``claimed`` bytes out of a file of ``size``, in words; None within the limits above."""
    if claimed <= max(FREE, times * size):
        return None
    return f"it claims {amount(claimed)} out of {amount(size)}, more than {times} times as much and {amount(FREE)}"


def amount(size: int) -> str:
    """Bytes as people write them: "28 bytes", "3.1 GB"."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"


def strict_json(text: str) -> object:
    """Parse JSON without NaN and Infinity, and not nested so deeply that it could not be shown. Raises ValueError."""

    def refuse(constant: str) -> object:
        raise ValueError(f"{constant} is not JSON")

    try:
        value: object = json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return _JSON.validate_python(value)
