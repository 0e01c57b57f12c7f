"""Settings: what an audit is asked to do, and where each value was said.

Precedence: flag > ``VAEAUDIT_*`` environment variable > configuration file > facts beside the model > default.
The file is the nearest ``vaeaudit.toml``, or ``pyproject.toml`` with ``[tool.vaeaudit]``, from the working
directory up to the root of its repository; files are not merged. Outside a repository only the working
directory is looked at: a file planted in a shared parent must not choose the code that runs.
"""

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vaeaudit.errors import ConfigError, nearest

Positive = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(_Section):
    """Which model, and how it is opened."""

    path: str | None = Field(None, description="Checkpoint: .safetensors, .pt, .pth, .ckpt, or its folder.")
    adapter: str | None = Field(None, description="Installed adapter, package.module:open, or file.py:open.")
    options: dict[str, Any] = Field({}, description="Options of the adapter, over what the file says of itself.")


class DataSettings(_Section):
    """Which data, and how they become the model's inputs."""

    source: str | None = Field(None, description="npz, npy, safetensors, MNIST idx(.gz), or a folder of images.")
    range: tuple[float, float] | None = Field(None, description="[lo, hi] of the model's inputs; the model's own.")
    resize: str | None = Field(
        None, description="Pillow filter that resizes images to the model's size; never unasked."
    )


class RunSettings(_Section):
    """How the audit runs."""

    seed: int = Field(0, description="Of every random draw.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    dtype: Literal["float32", "float64"] = Field("float32", description="Precision of model and optimiser.")
    batch_size: Positive | Literal["auto"] = Field("auto", description="Most rows given to the model at once.")
    limit: Positive | None = Field(None, description="Use only the first N items; the report says it is partial.")
    out: str = Field("vaeaudit-report", description="Folder of the report.")


class AttackSettings(_Section):
    """The attack check."""

    modes: tuple[Literal["latent"], ...] = Field(("latent",), min_length=1, description="Attack modes.")
    pairs: Positive = Field(10, description="Source and target pairs.")
    lambdas: Positive = Field(50, description="Values of lambda, geometric from 2^-20 to 2^20.")
    similarity: Literal["kl", "reverse-kl", "symmetric-kl", "mean", "sample", "wasserstein"] = Field(
        "kl", description="What the latent attack minimises between the two posteriors."
    )
    penalty: Literal["l2", "l2sq"] = Field("l2", description="||d||_2 or its square.")
    max_evaluations: Positive = Field(300, description="Model evaluations for one problem and one search.")


class Settings(_Section):
    """All sections. Thresholds and a baseline come with a later version; until then they are refused."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    run: RunSettings = RunSettings()
    attack: AttackSettings = AttackSettings()


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
        if shared.is_file() and "vaeaudit" in _parse(shared).get("tool", {}):
            return shared
    return None


def read_config(file: Path) -> dict[str, dict[str, object]]:
    """The sections of a configuration file, with paths made relative to its folder absolute.

    Raises :class:`ConfigError` for what is missing, is no TOML, or has a section or key that is not known.
    """
    if not file.is_file():
        raise ConfigError(f"there is no configuration file {file}; expected a TOML file such as vaeaudit.toml")
    content = _parse(file)
    if file.name == "pyproject.toml":
        content = content.get("tool", {}).get("vaeaudit", {})
    sections: dict[str, dict[str, object]] = {}
    for name, values in content.items():
        if name not in Settings.model_fields:
            known = ", ".join(Settings.model_fields)
            raise ConfigError(
                f"{file}: unknown section [{name}]{nearest(name, Settings.model_fields)}; known are {known}"
            )
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: '{name}' must be a section [{name}], but is a {type(values).__name__}")
        sections[name] = {key: _anchored(name, key, value, file.parent) for key, value in values.items()}
    return sections


def resolve(flags: Mapping[str, object], environment: Mapping[str, object], file: Path | None) -> Resolved:
    """Merge what was said, most telling first; keys are "section.key".

    Raises :class:`ConfigError` that names the value at fault, who said it, and what was expected.
    """
    said: dict[str, tuple[object, str]] = {}
    if file is not None:
        for section, values in read_config(file).items():
            said.update({f"{section}.{key}": (value, str(file)) for key, value in values.items()})
    said.update({key: (value, f"VAEAUDIT_{key.partition('.')[2].upper()}") for key, value in environment.items()})
    said.update({key: (value, "flag") for key, value in flags.items()})
    nested: dict[str, dict[str, object]] = {}
    for key, (value, _) in said.items():
        section, _, name = key.partition(".")
        nested.setdefault(section, {})[name] = value
    sources = {key: source for key, (_, source) in said.items()}
    try:
        return Resolved(Settings.model_validate(nested), sources)
    except ValidationError as error:
        raise _explained(error, sources) from error


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error


def _anchored(section: str, key: str, value: object, folder: Path) -> object:
    """A path in a file is meant from the file's folder, wherever the command runs."""
    if not isinstance(value, str):
        return value
    is_path = (section, key) in {("model", "path"), ("data", "source"), ("run", "out")}
    is_code = (section, key) == ("model", "adapter") and ".py:" in value
    return str(folder / value) if is_path or is_code else value


def _explained(error: ValidationError, sources: Mapping[str, str]) -> ConfigError:
    """The first fault of a validation in one sentence."""
    fault = error.errors()[0]
    place = [str(part) for part in fault["loc"]]
    section, key = place[0], place[1] if len(place) > 1 else ""
    name = f"{section}.{key}" if key else section
    source = sources.get(name, "the configuration")
    field = Settings.model_fields[section].annotation
    assert isinstance(field, type) and issubclass(field, BaseModel)
    if fault["type"] == "extra_forbidden":
        known = ", ".join(field.model_fields)
        return ConfigError(
            f"{source}: unknown key '{key}' in [{section}]{nearest(key, field.model_fields)}; known are {known}"
        )
    reason = fault["msg"][0].lower() + fault["msg"][1:]
    return ConfigError(f"{name} is {fault['input']!r} ({source}), but {reason}")
