"""Opening models: a checkpoint, by the adapter that is named or that its files say.

A model is recognised automatically only when its file names an installed adapter, or an adapter's ``recognises`` knows
it; otherwise the user names one: a wrong activation or layout would load without an error.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from vaeaudit.errors import AdapterError, CheckpointError, ContractError, VaeauditError, clipped, listed, told
from vaeaudit.model.adapters import Adapter, adapter_names, adapter_of, find_adapter
from vaeaudit.model.checkpoints import Checkpoint, check_finite, open_checkpoint, readings, sha256_of
from vaeaudit.model.conditions import model_of
from vaeaudit.model.contract import PAGE, fault_of
from vaeaudit.model.ranges import range_for
from vaeaudit.model.vae import VAE
from vaeaudit.model.weight_sets import refuse_twins


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """An opened model with the facts that a report states about it.

    ``state_sha256`` is that of its parameters and buffers, whatever files its adapter read them from; None where it is
    no module.
    """

    vae: VAE
    checkpoint: Checkpoint
    adapter: Adapter
    options: Mapping[str, object]
    state_sha256: str | None

    @cached_property
    def files(self) -> dict[str, str]:
        """SHA-256 of each file that decides what it is, by where it lies; of the first with the key in it."""
        tensors = {one.source: one.sha256 for one in (self.checkpoint, *self.checkpoint.companions)}
        return tensors | {str(file): sha256_of(file) for file in self.checkpoint.described}

    @property
    def notes(self) -> tuple[str, ...]:
        """What its adapter and its files leave to be told of it, in sentences without a full stop."""
        told = tuple(map(str, getattr(model_of(self.vae), "notes", ())))
        files = (self.checkpoint, *self.checkpoint.companions)
        kinds = {t.dtype for file in files for t in file.tensors.values() if t.is_floating_point()}
        half = sorted(str(kind).removeprefix("torch.") for kind in kinds if kind.itemsize < 4)
        return (
            (*told, f"weights are stored in {' and '.join(half)}, and raised to what is computed in") if half else told
        )

    @property
    def sha256(self) -> str:
        """That of its file; of several, that of their "HASH  NAME" lines, as sha256sum prints them."""
        if len(self.files) == 1:
            return self.checkpoint.sha256
        lines = "".join(f"{sha256}  {Path(file).name}\n" for file, sha256 in self.files.items())
        return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def open_model(
    path: str | Path,
    adapter: str | None = None,
    options: Mapping[str, object] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    trust_code: bool = False,
) -> LoadedModel:
    """Read a checkpoint and open it with its adapter, in evaluation mode, without parameter gradients.

    Facts that the file states about itself reach the adapter that it names, or any where it names none, under
    ``options``, which win. Programs of torch.export are loaded with ``trust_code`` alone.

    Raises:
        CheckpointError, TrustError, NonFiniteError: see :func:`~vaeaudit.model.checkpoints.read_checkpoint`.
        AdapterError: unknown adapter, or it raised.
        ContractError: what it returned is no VAE.
    """
    checkpoint = open_checkpoint(path, trust_code)
    facts = dict(checkpoint.facts)
    stated = facts.pop("adapter", None)
    found = find_adapter(adapter) if adapter is not None else adapter_of(checkpoint)
    if found is None:
        said = (
            f"names the adapter '{clipped(str(stated))}', which is not installed"
            if stated
            else "does not say what it is"
        )
        raise AdapterError(
            f"{checkpoint.path} {said}; name one with --adapter: {listed(adapter_names())}, "
            "package.module:open or file.py:open"
        )
    given = {**(facts if stated in (None, found.name) else {}), **(options or {})}
    return opened_by(found, checkpoint, given, device=device, dtype=dtype)


def opened_by(
    adapter: Adapter,
    checkpoint: Checkpoint,
    options: Mapping[str, object],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Open a checkpoint that was read, by this adapter and these options alone; otherwise as :func:`open_model`."""
    vae, checkpoint = _opened(adapter, checkpoint, options)
    for file in (checkpoint, *checkpoint.companions):
        check_finite(file)
    state = None
    if isinstance(vae, nn.Module):
        state = _state_sha256(vae)
        vae.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return LoadedModel(vae, checkpoint, adapter, options, state)


def load(
    path: str | Path,
    adapter: str | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    trust_code: bool = False,
    **options: object,
) -> VAE:
    """Open a trained VAE: ``load("vae.safetensors", adapter="mlp", activation="tanh")``.

    ``options`` go to the adapter and override what the file says of itself. For errors see
    :func:`open_model`.
    """
    return open_model(path, adapter, options, device=device, dtype=dtype, trust_code=trust_code).vae


def _fitted(adapter: Adapter, checkpoint: Checkpoint, options: Mapping[str, object]) -> tuple[VAE, Checkpoint]:
    """The model, by its tensors' names as they are or, if it takes only those, by one of :func:`readings`.

    What fits is the adapter's to say: it may expect the names of a wrapper.
    """
    try:
        return adapter.open(checkpoint, options), (checkpoint.parts or [checkpoint])[-1]
    except Exception as error:
        if isinstance(error, VaeauditError) and not isinstance(error, CheckpointError):
            raise  # it is no matter of names
        for inner in readings(checkpoint):
            try:
                return adapter.open(inner, options), inner
            except VaeauditError as other:
                if not isinstance(other, CheckpointError):
                    raise
            except Exception:  # what it says of names that are not in the file helps nobody
                continue
        refuse_twins(checkpoint.path, checkpoint.tensors, checkpoint.key)
        raise


def _state_sha256(module: nn.Module) -> str | None:
    """Over names, types, sizes and bytes of a module's parameters and buffers; None where one has no bytes yet."""
    digest = hashlib.sha256()
    try:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(errors="surrogateescape"))
            if tensor.numel():
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    except (RuntimeError, ValueError):
        return None
    return digest.hexdigest()


def _opened(adapter: Adapter, checkpoint: Checkpoint, options: Mapping[str, object]) -> tuple[VAE, Checkpoint]:
    """The model, and the checkpoint by the names that it took."""
    try:
        vae, taken = _fitted(adapter, checkpoint, options)
        fault = fault_of(vae)
        of_range = "" if fault else _range_fault(vae.range, tuple(vae.input_shape))
    except (VaeauditError, KeyboardInterrupt):
        raise
    except BaseException as error:  # an adapter is the user's code: whatever it raises is its failure
        raise AdapterError(
            f"adapter '{clipped(adapter.name)}' could not open {checkpoint.path}: {told(error)}; see {PAGE}"
        ) from error
    if of_range and "range" in options:  # what it was told, and not of its own making
        raise AdapterError(
            f"the option range of adapter '{clipped(adapter.name)}' is {of_range}; leave it out or correct it"
        )
    if of_range:
        fault = f"whose range is {of_range}, or None where there is none; see {PAGE}#ranges"
    if fault:
        raise ContractError(f"adapter '{clipped(adapter.name)}' returned a {type(vae).__name__} {fault}")
    return vae, taken


def _range_fault(span: object, shape: tuple[int, ...]) -> str:
    """What is wrong with a model's range, in words, or ""."""
    try:
        if span is not None:
            range_for(span, shape)
    except ValueError as error:
        return clipped(str(error), 300)
    return ""
