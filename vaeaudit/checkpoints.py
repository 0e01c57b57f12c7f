"""Reading checkpoints without running code from them.

safetensors first. PyTorch files go through ``weights_only=True`` and nothing else: there is no unsafe fallback
and no flag for one. A file that needs more is refused, and the refusal says how to convert it.
"""

import hashlib
import pickle
import pickletools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vaeaudit.errors import CheckpointError, NonFiniteError, TrustError, listed
from vaeaudit.stated import config_facts, facts_in, find_checkpoint, first_sentence, not_whole

# Where training frameworks put the weights when a checkpoint holds more than them.
_NESTED_KEYS = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of one file, by name, on the CPU, with the facts that the file states about itself.

    ``facts`` are the entries of the safetensors metadata under "vaeaudit." (JSON values) over those in the
    "vaeaudit" object of a config.json beside the file: adapter name, range, shapes; never paths or code.
    """

    path: Path
    sha256: str
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, object]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a .safetensors or PyTorch file, or a folder that holds exactly one.

    Raises:
        CheckpointError: missing, truncated, or not a file of tensors.
        TrustError: loading would mean running pickled code.
        NonFiniteError: a weight is NaN or infinite.
    """
    file = find_checkpoint(Path(path))
    tensors, facts = _read_safetensors(file) if file.suffix.lower() == ".safetensors" else (_read_torch(file), {})
    if not tensors:
        raise CheckpointError(f"{file} holds no tensors, where a model's weights were expected; export it again")
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            kind = f"{tensor.layout}, {tensor.dtype} on {tensor.device}".replace("torch.", "")
            raise CheckpointError(
                f"{file}: {name} is a tensor of another kind ({kind}), where a dense one of real numbers was expected; "
                "export the model in float32"
            )
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise NonFiniteError(
                f"{file}: {name} holds {bad} NaN or infinite value{'s' * (bad > 1)} of {tensor.numel()}, "
                "so no figure of this model would mean anything; export it again from a sound state"
            )
    return Checkpoint(file, sha256_of(file), tensors, {**config_facts(file), **facts})


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
        raise CheckpointError(f"the checkpoint does not fit this adapter ({told}); is it another architecture?")
    module.load_state_dict(dict(tensors))


def _is_plain(tensor: Tensor) -> bool:
    """Dense real numbers in memory; types of 8 bits and fewer have too little arithmetic to be loaded as they are."""
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return dense and not tensor.is_complex() and (not tensor.is_floating_point() or tensor.element_size() > 1)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.offset_keys()}
            metadata = handle.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise not_whole(file, error) from error
    return tensors, facts_in(metadata)


def _read_torch(file: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():  # torch warns of old pickle protocols; the outcome says enough
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes raise nearly anything
        raise _unreadable(file, error) from error
    for key in _NESTED_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file} holds one {type(content).__name__}, where a dictionary of tensors was expected; "
            "save model.state_dict()"
        )
    strange = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(
            f"{file} holds entries that are not tensors ({listed(strange)}), where a state_dict was expected; "
            "save model.state_dict() alone"
        )
    return {str(name): tensor for name, tensor in content.items()}


def _unreadable(file: Path, error: Exception) -> CheckpointError | TrustError:
    """Tell a file of more than tensors from one that is damaged, or no checkpoint at all."""
    with file.open("rb") as stream:
        start = stream.read(4)
    known = start == b"PK\x03\x04" or start[:1] == b"\x80"  # a zip archive, or a pickle that begins with its protocol
    # A zip archive reaches the unpickler only if it is whole.
    refused = known and isinstance(error, pickle.UnpicklingError)
    if refused or "TorchScript" in str(error) or _is_old_pickle(file):
        return TrustError(
            f"{file} holds pickled objects other than tensors, and loading them could run code, so it was not "
            "loaded; where you trust it, convert it: "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        )
    if not known:
        return CheckpointError(f"{file} is not a PyTorch checkpoint; it may be damaged or only named so")
    return CheckpointError(
        f"{file} is not a whole PyTorch checkpoint ({first_sentence(error)}); it may be truncated or only named so"
    )


def _is_old_pickle(file: Path) -> bool:
    """Whether the file is a pickle of protocol 0 or 1, which has no magic number, that names objects to call."""
    try:
        with file.open("rb") as stream:
            names = {opcode.name for opcode, _, _ in pickletools.genops(stream)}  # reads on to STOP, runs nothing
    except Exception:  # damaged bytes raise nearly anything
        return False
    return bool(names & {"GLOBAL", "INST"})
