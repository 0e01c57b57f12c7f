"""Putting an audit on disk: every file whole or not at all, report.json last."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from vaeaudit.errors import OutputError
from vaeaudit.report.markdown import render
from vaeaudit.report.model import Report


def check_writable(folder: Path) -> None:
    """Make the folder and try to write there, before hours are spent on what could not be kept.

    Raises :class:`OutputError`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"the report cannot be written to {folder}: {error.strerror}; name another folder with --out"
        ) from error


def write(report: Report, files: Mapping[str, tuple[str, bytes]], folder: Path) -> Report:
    """Write ``files`` (purpose -> name, content), then report.md and report.json; return the report as written.

    Raises :class:`OutputError` if the disk refuses; no file is left half-written.
    """
    named = {purpose: name for purpose, (name, _) in files.items()} | {"markdown": "report.md"}
    report = report.model_copy(update={"files": named})
    for name, content in files.values():
        write_file(folder / name, content)
    write_file(folder / "report.md", render(report).encode())
    write_file(folder / "report.json", to_json(report).encode())
    return report


def to_json(report: Report) -> str:
    """Strict JSON: no NaN, no Infinity."""
    return json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole: into a neighbour first, which then takes its place. Raises :class:`OutputError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not path.is_file():  # /dev/stdout and its like cannot be replaced
            path.write_bytes(content)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; name another place") from error
    finally:
        temporary.unlink(missing_ok=True)
