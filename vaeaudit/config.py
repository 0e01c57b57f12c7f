"""Settings: what an audit is asked to do, and where each value was said.

Precedence: flag > ``VAEAUDIT_*`` environment variable > configuration file > facts beside the model > default.
The file is the nearest ``vaeaudit.toml``, or ``pyproject.toml`` with ``[tool.vaeaudit]``, from the working
directory up to the root of its repository; files are not merged. Outside a repository only the working
directory is looked at: a file planted in a shared parent must not choose the code that runs.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vaeaudit.errors import ConfigError, nearest
from vaeaudit.settings import Settings


@dataclass(frozen=True)
class Resolved:
    """Settings with the source of every value that is not a default: "section.key" -> words."""

    settings: Settings
    sources: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """Hash of all values, whatever said them."""
        return hashlib.sha256(self.settings.model_dump_json().encode()).hexdigest()


def find_config(start: Path) -> Path | None:
    """The configuration file that counts for the working directory ``start``, if there is one."""
    start = start.resolve()
    folders = [start, *start.parents]
    roots = [place for place, folder in enumerate(folders) if (folder / ".git").exists()]
    for folder in folders[: roots[0] + 1 if roots else 1]:
        own, shared = folder / "vaeaudit.toml", folder / "pyproject.toml"
        if own.is_file():
            return own
        if shared.is_file() and _own_table(shared) is not None:
            return shared
    return None


def read_config(file: Path) -> dict[str, dict[str, object]]:
    """The sections of a configuration file, with paths made relative to its folder absolute.

    Raises :class:`ConfigError` for what is missing, is no TOML, or has a section that is not known.
    """
    if file.is_dir() or not file.exists():
        raise ConfigError(f"there is no configuration file '{file}'; expected a TOML file such as vaeaudit.toml")
    content = _own_table(file) if file.name == "pyproject.toml" else _parse(file)
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds no table [tool.vaeaudit]; add one, or name another file")
    sections: dict[str, dict[str, object]] = {}
    for name, values in content.items():
        if name not in Settings.model_fields:
            known = ", ".join(Settings.model_fields)
            raise ConfigError(
                f"{file}: unknown section [{name}]{nearest(name, Settings.model_fields)}; known are {known}"
            )
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: '{name}' must be a section [{name}], but {repr(values)[:80]} came")
        sections[name] = {key: _anchored(name, key, value, file.parent) for key, value in values.items()}
    return sections


def strict_json(text: str) -> object:
    """Parse JSON without NaN and Infinity. Raises ValueError."""

    def refuse(constant: str) -> object:
        raise ValueError(f"{constant} is not JSON")

    value: object = json.loads(text, parse_constant=refuse)
    return value


def resolve(given: Mapping[str, tuple[object, str]], file: Path | None) -> Resolved:
    """Merge ``given``, "section.key" -> (value, who said it), over what ``file`` says.

    Raises :class:`ConfigError` that names the value at fault, who said it, and what was expected.
    """
    said: dict[str, tuple[object, str]] = {}
    if file is not None:
        for section, values in read_config(file).items():
            said.update({f"{section}.{key}": (value, str(file)) for key, value in values.items()})
    said.update(given)
    nested: dict[str, dict[str, object]] = {}
    for key, (value, _) in said.items():
        section, _, name = key.partition(".")
        nested.setdefault(section, {})[name] = value
    sources = {key: source for key, (_, source) in said.items()}
    try:
        return Resolved(Settings.model_validate(nested), sources)
    except ValidationError as error:
        raise _explained(error, sources) from error


def _own_table(file: Path) -> object:
    """[tool.vaeaudit] of a pyproject.toml, None without one."""
    tool = _parse(file).get("tool")
    return tool.get("vaeaudit") if isinstance(tool, dict) else None


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML ({error}); correct it there") from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); check its permissions") from error


def _anchored(section: str, key: str, value: object, folder: Path) -> object:
    """A path in a file is meant from the file's folder, wherever the command runs."""
    if not isinstance(value, str) or not value or re.match(r"[A-Za-z][A-Za-z0-9+]+:", value):  # hf:REPO is no path
        return value
    is_path = (section, key) in {("model", "path"), ("data", "source"), ("run", "out"), ("weights", "against")}
    is_code = (section, key) == ("model", "adapter") and ".py:" in value
    return str(folder / value) if is_path or is_code else value


def _explained(error: ValidationError, sources: Mapping[str, str]) -> ConfigError:
    """The first fault of a validation in one sentence."""
    fault = error.errors()[0]
    place = [str(part) for part in fault["loc"]]
    section, key = place[0], place[1] if len(place) > 1 else ""
    name = f"{section}.{key}" if key else section
    source = sources.get(name, "the configuration")
    if key == "options" and len(place) > 2:
        name += f".{place[2]}"
    field = Settings.model_fields[section].annotation
    assert isinstance(field, type) and issubclass(field, BaseModel)
    if fault["type"] == "extra_forbidden":
        known = ", ".join(field.model_fields)
        return ConfigError(
            f"{source}: unknown key '{key}' in [{section}]{nearest(key, field.model_fields)}; known are {known}"
        )
    others = [f for f in error.errors() if f["loc"][:2] == fault["loc"][:2]]  # the other types it could have had
    # A flag or a variable is what its user knows; the key is what the file says.
    spoken = source.startswith(("-", "VAEAUDIT_")) or source == "MODEL"
    return ConfigError(told(source if spoken else f"{source}: {name}", others))


def told(name: str, faults: list[ErrorDetails]) -> str:
    """What pydantic found wrong with one value, as "pairs must be at least 1, but 0 came"."""
    came = faults[0]["input"]
    wanted = list(dict.fromkeys(_wanted(fault) for fault in faults))
    near = nearest(str(came).lower(), re.findall(r"'([^']+)'", " ".join(wanted)))
    return f"{name} must be {' or '.join(wanted)}, but {repr(came)[:80]} came{near}"


_WORDS = {
    "string_too_short": "a text that is not empty",
    "invalid-json-value": "texts, finite numbers, booleans, or lists and tables of them",
}


def _wanted(fault: ErrorDetails) -> str:
    """What was expected, as it follows "must be"; messages of our own validators are written so."""
    text = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    text = re.sub(r"^'.*' is not one of", "one of", text).split(", unable to parse")[0]
    if fault["type"] in _WORDS:
        return _WORDS[fault["type"]]
    text = re.sub(r"^(\d+) values are required, .*", r"\1 numbers", text)
    text = text.replace("greater than or equal to", "at least").replace("greater than", "more than")
    return text.replace("valid tuple", "list").rstrip(".")
