"""Putting an audit on disk: every file whole or not at all, report.json last."""

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from vaeaudit.errors import OutputError
from vaeaudit.report import attestation
from vaeaudit.report.forms.markdown import render
from vaeaudit.report.model import Report


def check_writable(folder: Path, option: str) -> None:
    """Try to write in a folder, making it for the trial if need be; ``option`` is what named it.

    Raises :class:`OutputError`.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for place in made:  # what fails later must not leave empty folders behind
            place.rmdir()
    except OSError as error:
        raise OutputError(
            f"nothing can be written to {folder}: {error.strerror}; name another place with {option}"
        ) from error


def write(report: Report, files: Mapping[str, tuple[str, Iterable[bytes]]], folder: Path) -> Report:
    """Write ``files`` (purpose -> name, content in pieces), then report.md and report.json; the report as written.

    Raises :class:`OutputError` if the disk refuses; no file is left half-written.
    """
    named = {purpose: name for purpose, (name, _) in files.items()} | {"markdown": "report.md"}
    hashes = {purpose: write_file(folder / name, content) for purpose, (name, content) in files.items()}
    report = report.model_copy(update={"files": named, "files_sha256": hashes})
    write_file(folder / "report.md", render(report).encode(errors="backslashreplace"))
    write_json(report, folder)
    return report


def write_json(report: Report, folder: Path) -> None:
    """Write report.json, and beside it the statement of what was decided, if anything was; else no earlier one stays.

    Raises :class:`OutputError`.
    """
    content = to_json(report).encode()
    write_file(folder / "report.json", content)
    found = attestation.statement(report, hashlib.sha256(content).hexdigest())
    if found is not None:
        write_file(folder / attestation.FILE, dumps(found).encode())
    else:
        (folder / attestation.FILE).unlink(missing_ok=True)


def to_json(report: Report) -> str:
    """Strict JSON: no NaN, no Infinity."""
    return dumps(report.model_dump(mode="json"))


def dumps(value: object) -> str:
    """Strict JSON for a file or stdout; in ASCII, which every reader and every locale takes.

    No log takes a text in it for a command: those begin lines, where only ours stand, or with ##, which is escaped.
    """
    return json.dumps(value, indent=2, allow_nan=False).replace("##", "#\\u0023") + "\n"


def write_file(path: Path, content: bytes | Iterable[bytes]) -> str:
    """Write a file whole: as a neighbour, which then takes its place; its SHA-256. Raises :class:`OutputError`."""
    pieces = [content] if isinstance(content, bytes) else content
    sha256 = hashlib.sha256()
    try:
        if path.exists() and not path.is_file():  # /dev/stdout and its like cannot be replaced
            _write(path, pieces, sha256)
            return sha256.hexdigest()
        target = path.resolve()  # a link stays a link
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}")
        try:
            _write(temporary, pieces, sha256)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; name another place") from error
    return sha256.hexdigest()


def _write(path: Path, pieces: Iterable[bytes], sha256: "hashlib._Hash") -> None:
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            sha256.update(piece)
