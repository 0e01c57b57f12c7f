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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pydantic import BaseModel, ValidationError, create_model
from pydantic_core import ErrorDetails

from vaeaudit.checks.registry import OURS, checks
from vaeaudit.errors import ConfigError, clipped, listed, nearest
from vaeaudit.model.files import obstacle
from vaeaudit.settings.sections import BaselineSettings, GateSettings, Settings, WaiveSettings

_FILES = frozenset(
    {"model.path", "data.source", "run.out", "baseline.path"}
    | {f"{check.name}.{key}" for check in checks().values() for key in check.files}
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+]+:")  # hf:REPO is no path
_POLICY = ("checks.", "baseline.")  # the settings that judge figures; all others say how they are measured


def _whole() -> type[Settings]:
    """All sections, those of third parties' checks among them."""
    others = [check for check in checks().values() if check not in OURS]
    kinds = {check.name: check.load(check.settings) for check in others}
    sections: dict[str, Any] = {name: (kind, kind()) for name, kind in kinds.items()}
    return create_model("Settings", __base__=Settings, **sections) if sections else Settings


WHOLE = _whole()


@dataclass(frozen=True)
class Resolved:
    """Settings with the source of every value that is not a default: "section.key" -> words."""

    settings: Settings
    sources: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """Hash of what determines figures and verdict, whoever said it and wherever the files lie.

        Where the report goes is left out, and so are the folders of files, whose contents have hashes of their own.
        """
        values = self.settings.model_dump(mode="json", exclude={"run": {"out"}})
        for section, key in (name.split(".") for name in _FILES - {"run.out"}):
            if (value := values[section][key]) and not _SCHEME.match(value):
                values[section][key] = PurePath(value).name
        if _is_code(values["model"]["adapter"]):
            values["model"]["adapter"] = PurePath(values["model"]["adapter"]).name
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def auditing(resolved: Resolved, checks: Sequence[str]) -> Resolved:
    """The same settings with the checks of an audit named, so that its report tells how to do it again.

    Raises :class:`ConfigError` where some of them cannot be carried out in bfloat16, which the settings ask for.
    """
    settings = resolved.settings
    if settings.run.dtype == "bfloat16":
        _require_halving(checks)
    run = settings.run.model_copy(update={"checks": tuple(checks)})
    sources = {"run.checks": "the command, or the sections and thresholds of the configuration"} | dict(
        resolved.sources
    )
    return Resolved(settings.model_copy(update={"run": run}), sources)


def _require_halving(names: Sequence[str]) -> None:
    """Raise :class:`ConfigError` unless the checks of these ``names`` can be carried out in bfloat16."""
    if whole := [name for name in names if not checks()[name].halves]:
        halving = listed(name for name, check in checks().items() if check.halves and not check.of_file)
        raise ConfigError(
            f"--dtype bfloat16 is for {halving}, but {listed(whole)} would be carried out; leave it out, or carry out "
            "those checks alone, as with vaeaudit audit --check"
        )


def measuring(resolved: Resolved, checks: Sequence[str]) -> Resolved:
    """The same settings for checks alone, without thresholds and baseline."""
    named = auditing(resolved, checks)
    bare = named.settings.model_copy(update={"checks": {}, "baseline": BaselineSettings()})
    return Resolved(bare, {key: who for key, who in named.sources.items() if not key.startswith(_POLICY)})


def model_and_data(settings: Settings) -> tuple[str, str]:
    """Where the settings say that these lie; raises :class:`ConfigError` where they do not."""
    if settings.model.path is None:
        raise ConfigError(
            "no model is named; give one, as in `vaeaudit attack vae.safetensors --data val.npz`, "
            "or set [model] path in vaeaudit.toml"
        )
    if settings.data.source is None:
        raise ConfigError("no data are named; give them, as in `--data val.npz`, or set [data] source in vaeaudit.toml")
    return settings.model.path, settings.data.source


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
    if fault := obstacle(file):
        raise ConfigError(fault)
    if file.is_dir() or not file.exists():
        raise ConfigError(f"there is no configuration file '{file}'; expected a TOML file such as vaeaudit.toml")
    content = _own_table(file) if file.name == "pyproject.toml" else _parse(file)
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds no table [tool.vaeaudit]; add one, or name another file")
    sections: dict[str, dict[str, object]] = {}
    for name, values in content.items():
        if name not in WHOLE.model_fields:
            raise ConfigError(f"{file}: {_unknown_section(name)}")
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: '{clipped(name)}' must be a section [{name}], but {_shown(values)} came")
        sections[name] = {key: _anchored(name, key, value, file.parent) for key, value in values.items()}
    return sections


def json_schema() -> dict[str, object]:
    """The JSON Schema of a configuration file, for editors."""
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "vaeaudit.toml"}
    return {**WHOLE.model_json_schema(), **about}


def resolve(given: Mapping[str, tuple[object, str]], file: Path | None) -> Resolved:
    """Merge ``given``, "section.key" -> (value, who said it), over what ``file`` says.

    Raises :class:`ConfigError` that names the value at fault, who said it, and what was expected.
    """
    said: dict[str, tuple[object, str]] = {}
    nested: dict[str, dict[str, object]] = {}
    if file is not None:
        for section, values in read_config(file).items():
            nested[section] = {}  # a section without keys counts as said: it names its check
            said.update({f"{section}.{key}": (value, str(file)) for key, value in values.items()})
    in_file = set(nested)
    said.update(given)
    for key, (value, _) in said.items():
        section, _, name = key.partition(".")
        nested.setdefault(section, {})[name] = value
    sources = {key: source for key, (_, source) in said.items()}
    try:
        settings = WHOLE.model_validate(nested)
    except ValidationError as error:
        raise _explained(error, sources) from error
    # A section of the file names its check; a flag or a variable changes a value, and chooses none.
    return Resolved(WHOLE.model_construct(in_file, **dict(settings)), sources)


def _own_table(file: Path) -> object:
    """[tool.vaeaudit] of a pyproject.toml, None without one."""
    tool = _parse(file).get("tool")
    return tool.get("vaeaudit") if isinstance(tool, dict) else None


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))  # editors of Windows put a mark before the text
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 (byte {error.start} is none of it); save it as UTF-8") from error
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise ConfigError(f"{file} is not valid TOML ({error}); correct it there") from error
    except RecursionError as error:
        raise ConfigError(f"{file} holds a value that is nested too deeply; give a plainer one") from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); check its permissions") from error


def _anchored(section: str, key: str, value: object, folder: Path) -> object:
    """A path in a file is meant from the file's folder, wherever the command runs."""
    if not isinstance(value, str) or not value or _SCHEME.match(value):
        return value
    is_code = (section, key) == ("model", "adapter") and _is_code(value)
    return str(folder / value) if f"{section}.{key}" in _FILES or is_code else value


def _is_code(adapter: str | None) -> bool:
    """Whether an adapter is named by its file, as "file.py:open"."""
    return adapter is not None and ".py:" in adapter


def _explained(error: ValidationError, sources: Mapping[str, str]) -> ConfigError:
    """The first fault of a validation in one sentence."""
    fault = error.errors()[0]
    place = [clipped(str(part)) for part in fault["loc"]]
    section, key = place[0], place[1] if len(place) > 1 else ""
    name = f"{section}.{key}" if key else section
    source = sources.get(".".join(map(str, fault["loc"][:2])), "the configuration")
    if section == "checks":
        name = ".".join([f'checks."{key}"', *place[2:]])
    elif key in ("options", "min_effect", "acknowledge") and len(place) > 2:
        name += f".{place[2]}"
    if fault["type"] == "missing":
        return ConfigError(f"{source}: {name} is missing; give it")
    if fault["type"] == "extra_forbidden":
        return ConfigError(f"{source}: {_unknown(place, fault['input'])}")
    others = [f for f in error.errors() if f["loc"][:2] == fault["loc"][:2]]  # the other types it could have had
    # A flag or a variable is what its user knows; the key is what the file says, and which of those in a table.
    spoken = (source.startswith(("-", "VAEAUDIT_")) or source == "MODEL") and name == f"{section}.{key}"
    return ConfigError(told(source if spoken else f"{source}: {name}", others))


def _unknown_section(name: str) -> str:
    known = ", ".join(WHOLE.model_fields)
    return f"unknown section [{clipped(name)}]{nearest(name, WHOLE.model_fields)}; known are {known}"


def _unknown(place: list[str], came: object) -> str:
    """That the last key of ``place`` is not known in the section or threshold where it stands."""
    key, section = place[-1], place[0]
    if len(place) == 1:
        return _unknown_section(key)
    if section == "checks" and isinstance(came, dict):  # [checks.margin.r4.median] is a table in a table in a table
        came_as = ".".join(place)
        return f'names with dots must be quoted, as in [checks."margin.r4.median"], but [{came_as}] came'
    if section == "checks":
        model: object = WaiveSettings if len(place) > 3 else GateSettings
        where = f'[checks."{place[1]}"]' + " waive" * (len(place) > 3)
    else:
        model, where = WHOLE.model_fields[section].annotation, f"[{section}]"
    assert isinstance(model, type) and issubclass(model, BaseModel)
    fields = model.model_fields
    return f"unknown key '{key}' in {where}{nearest(key, fields)}; known are {', '.join(fields)}"


def told(name: str, faults: list[ErrorDetails]) -> str:
    """What pydantic found wrong with one value, as "pairs must be at least 1, but 0 came"."""
    came = faults[0]["input"]
    wanted = list(dict.fromkeys(_wanted(fault) for fault in faults))
    near = nearest(_shown(came).strip("'").lower(), re.findall(r"'([^']+)'", " ".join(wanted)))
    return f"{name} must be {' or '.join(wanted)}, but {_shown(came)} came{near}"


def _shown(value: object) -> str:
    """The beginning of a value as Python writes it."""
    try:
        return repr(value)[:80]
    except RecursionError:
        return "one nested too deeply to be shown"


_WORDS = {
    "string_too_short": "a text that is not empty",
    "date_type": "a day such as 2026-12-31",
    "date_parsing": "a day such as 2026-12-31",
    "date_from_datetime_parsing": "a day such as 2026-12-31",
    "string_unicode": "text in UTF-8 (rename the file, or set LC_ALL=C.UTF-8)",
    "int_parsing_size": "a whole number of fewer digits",
    "recursion_depth_exceeded": "a value that is not nested so deeply",
    "model_type": "a table of keys and values",
    "string_pattern_mismatch": "a text with something to see in it, and no NUL",
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
    text = text.replace("less than or equal to", "at most")
    return text.replace("valid tuple", "list").rstrip(".")
