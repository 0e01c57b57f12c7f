"""Finding a checkpoint, and what it says of itself, without reading its tensors or loading what these need."""

import re
from collections.abc import Container, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from vaeaudit.errors import CheckpointError, clipped, listed
from vaeaudit.model.files import amount, named_part, obstacle, strict_json

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")
PROGRAM = ".pt2"  # of torch.export, which a folder holds as encoder.pt2 and decoder.pt2
INDEX = ".safetensors.index.json"  # how the name of a file ends that says in which file beside it each tensor lies
FACT_PREFIX = "vaeaudit."
_MOST_CONFIG = 2**24  # bytes of a config.json


def find_checkpoint(path: Path) -> Path:
    """The file that ``path`` means, without the #KEY that may follow: itself, or the only checkpoint in a folder.

    Of a folder with one pair alone, such as ``taesd_encoder.pth`` and ``taesd_decoder.pth``, the encoder.
    Raises :class:`CheckpointError`.
    """
    path = named_part(path)[0]
    try:
        inside = list(path.iterdir()) if path.is_dir() else None
    except OSError as error:  # a name that is too long, or a folder that may not be looked into
        raise CheckpointError(
            f"{clipped(str(path))} cannot be read ({error.strerror}); check its name and permissions"
        ) from error
    if inside is not None:
        files = sorted(f for f in inside if f.name.lower().endswith(INDEX)) or sorted(
            f for f in inside if f.suffix.lower() in SUFFIXES
        )
        files = files or [f for f in inside if f.name == f"encoder{PROGRAM}"]
        if len(files) == 2:
            decoder, encoder = (file.name for file in files)
            files = [
                f for f in files if "encoder" in f.name and encoder.replace("encoder", "decoder") == decoder
            ] or files
        if len(files) != 1:
            came = f"holds {listed(f.name for f in files)}" if files else "holds none"
            raise CheckpointError(
                f"{path} is a folder that {came}, where one checkpoint ({', '.join(SUFFIXES)}) was expected; "
                "name the file"
            )
        path = files[0]
    if fault := obstacle(path):
        raise CheckpointError(fault)
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {path}; give a {', '.join(SUFFIXES)} file or its folder")
    if path.suffix.lower() not in (*SUFFIXES, PROGRAM) and not path.name.lower().endswith(INDEX):
        raise CheckpointError(
            f"the name of {path} ends in none of {', '.join(SUFFIXES)}, by which a checkpoint is known; "
            "convert or rename it"
        )
    try:
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    return path


def shards(index: Path) -> dict[str, list[str]]:
    """The files that an index names, each with the tensors that lie in it; all of them are there.

    Raises :class:`CheckpointError` for an index that is damaged, or names a file that lies elsewhere or is missing.
    """
    try:
        if index.stat().st_size > _MOST_CONFIG:
            raise ValueError(f"it is larger than {amount(_MOST_CONFIG)}")
        content = strict_json(index.read_text(encoding="utf-8-sig"))
        found = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
            raise ValueError('it has no "weight_map" of tensors and files')
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{index} is no index of weights ({first_sentence(error)}); take it anew") from error
    held: dict[str, list[str]] = {}
    for tensor, name in found.items():
        held.setdefault(str(name), []).append(tensor)
    for name in sorted(held):
        if Path(name).name != name or name in ("", ".", "..") or not name.lower().endswith(".safetensors"):
            raise CheckpointError(
                f"{index} names '{clipped(name)}', where a safetensors file of its own folder was expected; take it"
                " anew"
            )
    if missing := [name for name in sorted(held) if not index.with_name(name).is_file()]:
        raise CheckpointError(
            f"{index} names {len(held)} files, of which {listed(missing)} {'is' if len(missing) == 1 else 'are'} "
            "missing; fetch the rest"
        )
    return held


def read_facts(file: Path) -> dict[str, object]:
    """What a checkpoint states about itself, as in :class:`Checkpoint`, without reading its tensors.

    Raises :class:`CheckpointError` where the file or the config.json beside it is damaged.
    """
    metadata: dict[str, str] = {}
    if file.suffix.lower() == ".safetensors":
        try:
            with safe_open(file, framework="numpy") as handle:
                metadata = handle.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise not_whole(file, error) from error
    return {**config_facts(read_config(file)), **facts_in(metadata)}


def facts_in(metadata: Mapping[str, str]) -> dict[str, object]:
    """What the metadata of a safetensors file state about the model."""
    # Sorted, since safetensors gives them in another order in every process.
    stated = {key.removeprefix(FACT_PREFIX): value for key, value in metadata.items() if key.startswith(FACT_PREFIX)}
    return {name: _fact(value) for name, value in sorted(stated.items())}


def ties(names: Container[str], metadata: Mapping[str, str]) -> dict[str, str]:
    """Names that metadata note as those of a stored tensor too, and its name.

    Of tensors that share memory, save_model of safetensors stores one and notes the others' names beside its own.
    """
    return {name: kept for name, kept in metadata.items() if kept in names and name not in names}


def not_whole(file: Path, error: Exception) -> CheckpointError:
    """What to say where safetensors cannot read ``file``."""
    return CheckpointError(
        f"{file} is not a whole safetensors file ({first_sentence(error)}); it may be truncated or only named so"
    )


def _fact(value: str) -> object:
    """A metadata value is JSON; what is not JSON is the string itself."""
    try:
        return strict_json(value)
    except ValueError:
        return value


def read_config(file: Path, name: str = "config.json") -> dict[str, object]:
    """The config.json, or another JSON file, beside a checkpoint; empty where there is none, or where it is no object.

    Raises :class:`CheckpointError` where it is damaged.
    """
    config = file.with_name(name)
    if not config.is_file():
        return {}
    try:
        if config.stat().st_size > _MOST_CONFIG:
            raise ValueError(f"it is larger than {amount(_MOST_CONFIG)}")
        content = strict_json(config.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{config} beside the checkpoint is not readable JSON ({first_sentence(error)}); correct or remove it"
        ) from error
    return content if isinstance(content, dict) else {}


def config_facts(config: Mapping[str, object]) -> dict[str, object]:
    """What a config.json states about the model under "vaeaudit"."""
    section = config.get("vaeaudit", {})
    return dict(section) if isinstance(section, dict) else {}


def first_sentence(error: Exception) -> str:
    """The first sentence of what a library said, without the addresses of its objects."""
    lines = re.sub(r"<[\w.]+ object at 0x[0-9a-f]+>", "it", str(error)).splitlines()
    return lines[0].split(". ")[0][:160].rstrip(".") if lines else type(error).__name__
