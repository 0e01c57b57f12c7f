"""Reading checkpoints without running code from them.

safetensors first. PyTorch files go through ``weights_only=True`` and nothing else: there is no unsafe fallback
and no flag for one. A file that needs more is refused, and the refusal says how to convert it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vaeaudit.errors import CheckpointError, MisfitError, NonFiniteError, VaeauditError, clipped, listed
from vaeaudit.model.files import amount, named_part, obstacle
from vaeaudit.model.reparametrised import plain
from vaeaudit.model.stated import (
    INDEX,
    PROGRAM,
    config_facts,
    facts_in,
    find_checkpoint,
    not_whole,
    read_config,
    shards,
    ties,
)
from vaeaudit.model.torch_files import check_claims, read_program, read_torch
from vaeaudit.model.weight_sets import renamed, select, under

_BLOCK = 2**24  # numbers of a tensor that are looked at together


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of one file, by name, on the CPU, with the facts that the file states about itself.

    ``facts`` are the entries of the safetensors metadata under "vaeaudit." (JSON values) over those in the
    "vaeaudit" object of a config.json beside the file: adapter name, range, shapes; never paths or code. Tensors are
    mapped to the file where its format allows, so that names and shapes cost nothing. ``key`` is where in the file they
    lie, if it holds more, ``prefix`` what a wrapper had put before their names and was taken off; ``computed`` are the
    weights that were made of the tensors that weight or spectral normalisation stores; ``config`` is all that the
    config.json beside the file says, and ``described`` are the JSON files there that say what the model is. ``program``
    is what a .pt2 file holds, which is read where code is ``trusted``.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, object]
    key: str | None = None
    prefix: str = ""
    computed: tuple[str, ...] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    companions: list["Checkpoint"] = field(default_factory=list)
    described: list[Path] = field(default_factory=list)
    parts: list["Checkpoint"] = field(default_factory=list)
    program: "torch.export.ExportedProgram | None" = None
    trusted: bool = False

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file's bytes, in hexadecimal."""
        return sha256_of(self.path)

    @property
    def source(self) -> str:
        """The file, with the key in it that holds these tensors: FILE#KEY."""
        return str(self.path) if self.key is None else f"{self.path}#{self.key}"

    def json(self, name: str) -> dict[str, object]:
        """What a JSON file of that name in the same folder says; empty where there is none, or where it is no object.

        Its hash counts as the model's. Raises :class:`CheckpointError` where it is damaged.
        """
        said = read_config(self.path, name)
        file = self.path.with_name(name)
        if said and file not in self.described:
            self.described.append(file)
        return said

    def part(self, key: str) -> "Checkpoint":
        """The tensors under ``key``, by their names without it: those of the model, where the file holds much more.

        Nothing else of the file is then looked at. Raises :class:`CheckpointError` where there are none.
        """
        inner = key if self.key is None else f"{self.key}.{key}"
        found = replace(self, tensors=under(self.path, self.tensors, key), key=inner)
        self.parts.append(found)
        return found

    def beside(self, name: str) -> "Checkpoint":
        """Another file of the same model, in the same folder; reports name it, and its hash counts as the model's.

        Raises :class:`CheckpointError` for a name that leads elsewhere, and as :func:`open_checkpoint` does.
        """
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(
                f"'{clipped(name)}' leads out of the folder of {self.path}, where a file beside it was expected; "
                "give its name alone"
            )
        other = replace(open_checkpoint(self.path.with_name(name), self.trusted), companions=self.companions)
        self.companions.append(other)
        return other


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a .safetensors or PyTorch file, or a folder that holds exactly one; "FILE#KEY" names one set of several.

    An index of several safetensors files (``*.safetensors.index.json``) is read as one file of all.

    Raises:
        CheckpointError: missing, truncated, or not a file of tensors.
        TrustError: loading would mean running pickled code.
        NonFiniteError: a weight is NaN or infinite.
    """
    checkpoint = open_checkpoint(path)
    check_finite(checkpoint)
    return checkpoint


def open_checkpoint(path: str | Path, trust_code: bool = False) -> Checkpoint:
    """As :func:`read_checkpoint`, but no tensor is read yet, nor looked at for NaN: see :func:`check_finite`.

    With ``trust_code`` a program of torch.export is loaded, which may run code that it brings.
    """
    file, key = find_checkpoint(Path(path)), named_part(path)[1]
    tensors: dict[str, Tensor]
    program = None
    if file.suffix.lower() == ".safetensors":
        tensors, facts = _open_safetensors(file)
        tensors = tensors if key is None else under(file, tensors, key)
    elif file.name.lower().endswith(INDEX):
        tensors, facts = _open_shards(file), {}
        tensors = tensors if key is None else under(file, tensors, key)
    elif file.suffix.lower() == PROGRAM:
        program = read_program(file, trust_code)
        tensors, facts = dict(program.state_dict), {}
    else:
        key, tensors = select(file, read_torch(file), key)
        check_claims(file, tensors)
        facts = {}
    if not tensors and program is None:
        raise CheckpointError(f"{file} holds no tensors, where a model's weights were expected; export it again")
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            kind = f"{tensor.layout}, {tensor.dtype} on {tensor.device}".replace("torch.", "")
            raise CheckpointError(
                f"{file}: {clipped(name)} is a tensor of another kind ({kind}), where a dense one of real numbers was "
                "expected; export the model in float32"
            )
    config = read_config(file)
    stated = config_facts(config)
    described = [file.with_name("config.json")] if stated else []
    facts = {**stated, **facts}
    return Checkpoint(
        file, tensors, facts, key, config=config, described=described, program=program, trusted=trust_code
    )


def readings(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """The checkpoint with other names, and then with the weights that weight and spectral normalisation stand for."""
    for prefix, tensors in renamed(checkpoint.tensors):
        yield replace(checkpoint, tensors=tensors, prefix=prefix, companions=[])
    made, computed = plain(checkpoint.tensors)
    for prefix, tensors in (("", made), *renamed(made)) if computed else ():
        yield replace(checkpoint, tensors=tensors, prefix=prefix, computed=computed, companions=[])


def check_finite(checkpoint: Checkpoint) -> None:
    """Raise :class:`NonFiniteError` where a weight is NaN or infinite."""
    for name, tensor in checkpoint.tensors.items():
        if tensor.is_floating_point():
            bad = sum(int((~torch.isfinite(part)).sum()) for part in _parts(tensor))
            if bad:
                raise NonFiniteError(
                    f"{checkpoint.path}: {clipped(name)} holds {bad} NaN or infinite value{'s' * (bad > 1)} of "
                    f"{tensor.numel()}, so no figure of this model would mean anything; export it again from a sound "
                    "state"
                )


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor in parts along its dimensions, no copies, none much larger than it must be."""
    if tensor.numel() <= _BLOCK or not tensor.ndim:
        yield tensor
    elif len(tensor) == 1:
        yield from _parts(tensor[0])
    else:
        rows = max(1, _BLOCK * len(tensor) // tensor.numel())
        for start in range(0, len(tensor), rows):
            part = tensor[start : start + rows]
            yield from (part,) if part.numel() <= _BLOCK else _parts(part)


def load_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy ``tensors`` into ``module``; every name and shape must match.

    Raises :class:`CheckpointError` that names what is missing, left over, or of another shape.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in expected]
    wrong = [
        f"{name} (expected {_shape(expected[name])}, came {_shape(tensors[name])})"
        for name in expected
        if name in tensors and expected[name].shape != tensors[name].shape
    ]
    faults = [("missing", missing), ("not expected", extra), ("of another shape", wrong)]
    told = "; ".join(f"{what}: {listed(names)}" for what, names in faults if names)
    if told:
        message = f"the checkpoint does not fit this adapter ({told}); is it another architecture?"
        raise MisfitError(message, expected.keys() - {name.partition(" ")[0] for name in wrong}, tensors.keys())
    module.load_state_dict(dict(tensors))


def _is_plain(tensor: Tensor) -> bool:
    """Dense real numbers in memory; types of 8 bits and fewer have too little arithmetic to be loaded as they are."""
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return dense and not tensor.is_complex() and (not tensor.is_floating_point() or tensor.element_size() > 1)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; of an index that of the "HASH  NAME" lines of it and its files."""
    if path.name.lower().endswith(INDEX):
        names = [path.name, *sorted(shards(path))]
        lines = "".join(f"{_sha256(path.with_name(name))}  {name}\n" for name in names)
        return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _open_shards(index: Path) -> dict[str, Tensor]:
    """The tensors that an index names, out of the files beside it that it names for them."""
    tensors: dict[str, Tensor] = {}
    for name, wanted in shards(index).items():
        if fault := obstacle(index.with_name(name)):
            raise CheckpointError(fault)
        held = _open_safetensors(index.with_name(name))[0]
        if absent := [tensor for tensor in wanted if tensor not in held]:
            raise CheckpointError(f"{index} says that {name} holds {listed(absent)}, which it does not; take both anew")
        tensors |= {tensor: held[tensor] for tensor in wanted}
    return tensors


def _open_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.offset_keys()}
            metadata = handle.metadata() or {}
        tensors |= {name: tensors[kept] for name, kept in ties(tensors, metadata).items()}
    except MemoryError as error:
        raise VaeauditError(
            f"{file} of {amount(file.stat().st_size)} cannot be mapped into the memory that this process may use; "
            "raise its limit"
        ) from error
    except (SafetensorError, OSError) as error:
        raise not_whole(file, error) from error
    return tensors, facts_in(metadata)
