"""Reading reports that were written before, and the figures beside them: damage and strangers are told apart."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from pydantic import JsonValue, ValidationError
from pydantic_core import ErrorDetails

from vaeaudit.checks.registry import checks
from vaeaudit.errors import InputError, clipped, listed, nearest
from vaeaudit.model.files import obstacle
from vaeaudit.report.model import SCHEMA_VERSION, Report
from vaeaudit.report.wording import VERDICTS

PNG = b"\x89PNG\r\n\x1a\n"

_NAME = "report.json"
_STATUSES = ("complete", "interrupted", "error")
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})", re.ASCII)


class ReportError(InputError):
    """There is no report, or it cannot be read as one."""


class SchemaError(ReportError):
    """A report whose schema has another major version."""


def read_report(path: str | Path) -> tuple[Report, Path]:
    """The report at ``path``, which may be the folder that holds its report.json, and its folder.

    Fields that this version does not know are left out where a newer minor version of the schema wrote them.

    Raises:
        SchemaError: another major version of the schema.
        ReportError: missing, unreadable, damaged, or no report.
    """
    file = Path(path)
    try:
        file = _found(file)
        text = _decoded(file.read_bytes(), file)
    except OSError as error:
        raise ReportError(
            f"{file} cannot be read ({error.strerror or error}); check its name and permissions"
        ) from error
    content = _parsed(text, file)
    if not isinstance(content, dict):
        raise _stranger(file, f"it holds {_kind(content)}, where an object was expected")
    newer = _newer(content, file)
    return _validated(content, newer, file), file.parent


def figures_of(report: Report, folder: Path) -> dict[str, bytes]:
    """PNG files beside the report in ``folder``, by purpose.

    Left out is what is missing, leads out of the folder, is no PNG, or is not the file that the report was written
    with.
    """
    found: dict[str, bytes] = {}
    for purpose, name in report.files.items():
        content = _figure(folder, name) if name.lower().endswith(".png") else None
        hashed = report.files_sha256.get(purpose)
        if content is not None and hashed in (None, hashlib.sha256(content).hexdigest()):
            found[purpose] = content
    return found


def lies_beside(name: str) -> bool:
    """Whether a report may name a file so: it leads out of no folder."""
    return PurePath(name).name == name and "\\" not in name and name != ".."


def _figure(folder: Path, name: str) -> bytes | None:
    if not lies_beside(name):
        return None
    try:
        file = (folder / name).resolve()
        if file.parent != folder.resolve() or not file.is_file():
            return None
        content = file.read_bytes()
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return None
    return content if content.startswith(PNG) else None


def _found(file: Path) -> Path:
    """The file of the report, which is there."""
    if file.is_dir():
        if not (file / _NAME).exists():
            inside = sorted(one.parent.name for one in file.glob(f"*/{_NAME}"))
            hint = f"; there is one in {file / inside[0]}" if inside else ""
            raise ReportError(f"{file} is a folder without {_NAME}, which an audit writes last{hint}")
        return file / _NAME
    if fault := obstacle(file):
        raise ReportError(fault)
    if not file.exists():
        if not file.parent.is_dir():
            raise ReportError(f"there is no report at {file}, nor a folder {file.parent}; give a {_NAME} or its folder")
        near = nearest(file.name, (one.name for one in file.parent.iterdir()))
        raise ReportError(f"there is no report at {file}{near}; give a {_NAME} or its folder")
    return file


def _decoded(content: bytes, file: Path) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ReportError(f"{file} is UTF-16, as some shells write what is redirected; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _stranger(file, f"byte {error.start} is not UTF-8") from error
    if not text.strip():
        raise ReportError(f"{file} is empty; give the {_NAME} of an audit")
    return text


def _parsed(text: str, file: Path) -> JsonValue:
    def refuse(constant: str) -> object:
        raise ReportError(f"{file} holds {constant}, which is not JSON; an audit writes null in its place")

    def finite(digits: str) -> float:
        if math.isinf(value := float(digits)):
            raise ValueError
        return value

    try:
        content: JsonValue = json.loads(text, parse_constant=refuse, parse_float=finite)
    except json.JSONDecodeError as error:
        whole = text.strip()
        if whole[0] in "{[" and (error.pos >= len(text.rstrip()) or whole[-1] not in "}]"):
            raise ReportError(f"{file} is cut off at line {error.lineno}; copy or write it again") from error
        raise _stranger(file, f"it is not JSON at line {error.lineno}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise _stranger(file, "it holds a number that is too large, or is nested too deeply") from error
    return content


def _newer(content: dict[str, JsonValue], file: Path) -> str | None:
    """The version of the schema where it is a newer minor one than this version's."""
    said = content.get("schema_version")
    version = _VERSION.fullmatch(said) if isinstance(said, str) else None
    if version is None:
        why = "it has no schema_version" if said is None else f"its schema_version is {_shown(said)}"
        raise _stranger(file, why)
    major, minor = map(int, version.groups())
    known_major, known_minor = map(int, SCHEMA_VERSION.split("."))
    if major != known_major:
        raise SchemaError(
            f"{file} has schema version {major}.{minor}, and this version of vaeaudit reads {known_major}.x"
        )
    return f"{major}.{minor}" if minor > known_minor else None


def _validated(content: dict[str, JsonValue], newer: str | None, file: Path) -> Report:
    try:
        report = Report.model_validate(content)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        unknown = [one["loc"] for one in errors if one["type"] == "extra_forbidden"]
        if newer is not None and unknown and all(_leave_out(content, place) for place in unknown):
            return _validated(content, newer, file)
        if any(len(place) == 1 for place in unknown) and (others := _not_installed(content)):
            raise ReportError(
                f"{file} holds what {listed(others)} found, of which no check is installed here; install the package "
                "that gives it"
            ) from error
        raise _wrong(file, _place(errors[0]["loc"]), _fault(errors[0]), newer) from error
    for field, value, known in (("verdict", report.verdict, VERDICTS), ("status", report.status, _STATUSES)):
        if value not in known:
            raise _wrong(file, field, f"is {_shown(value)}, where one of {', '.join(known)} was expected", newer)
    return report


def _not_installed(content: Mapping[str, JsonValue]) -> list[str]:
    """The checks that a report was written with and that are not known here."""
    timings = content.get("timings")
    return [name for name in timings if name not in checks()] if isinstance(timings, dict) else []


def _leave_out(content: Any, place: Sequence[str | int]) -> bool:
    """Take the field at ``place`` out of ``content``; whether it was there."""
    try:
        for step in place[:-1]:
            content = content[step]
        del content[place[-1]]
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _wrong(file: Path, field: str, fault: str, newer: str | None) -> ReportError:
    if newer is not None:
        return ReportError(
            f"{file} was written by a newer version of vaeaudit, with schema version {newer} where this one reads up "
            f"to {SCHEMA_VERSION}: its field {field} {fault}; update vaeaudit"
        )
    return _stranger(file, f"its field {field} {fault}")


def _fault(error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "extra_forbidden":
        return "is unknown"
    told = error["msg"].removeprefix("Value error, ")
    return f"is {_shown(error['input'])}: {told[:1].lower()}{told[1:]}"


def _place(steps: Sequence[str | int]) -> str:
    """A field as a reader finds it: metrics["margin.r4.median"].value, margins[0].r."""
    place = ""
    for step in steps:
        if isinstance(step, int):
            place += f"[{step}]"
        elif re.fullmatch(r"\w+", step):
            place += f".{clipped(step)}" if place else clipped(step)
        else:
            place += f"[{_shown(step)}]"
    return place


def _stranger(file: Path, why: str) -> ReportError:
    beside = file.name != _NAME and (file.parent / _NAME).is_file()
    hint = f"give the {_NAME} beside it" if beside else f"give the {_NAME} of an audit"
    return ReportError(f"{file} is no report: {why}; {hint}")


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _kind(value: JsonValue) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
