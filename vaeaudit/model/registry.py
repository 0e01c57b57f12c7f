"""Finding adapters: by entry point, by import path, or in a file.

An adapter is a function ``open(checkpoint, config) -> VAE``. Entry points of the group ``vaeaudit.adapters``
are ours and third parties' alike. A model is recognised automatically only when its file names an installed
adapter, or an adapter's ``recognises`` knows it; otherwise the user names one: a wrong activation or layout would load
without an error.
"""

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from vaeaudit.errors import AdapterError, CheckpointError, ContractError, VaeauditError, clipped, listed, nearest, told
from vaeaudit.model.checkpoints import Checkpoint, check_finite, open_checkpoint, readings, sha256_of
from vaeaudit.model.contract import PAGE, fault_of
from vaeaudit.model.files import obstacle
from vaeaudit.model.ranges import range_for
from vaeaudit.model.vae import VAE
from vaeaudit.model.weight_sets import refuse_twins

GROUP = "vaeaudit.adapters"
Open = Callable[[Checkpoint, Mapping[str, object]], VAE]


@dataclass(frozen=True)
class Adapter:
    """A function that opens checkpoints, with where it came from: entry point, import path or file."""

    name: str
    source: str
    sha256: str | None
    open: Open


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
        """SHA-256 of each file that it was read from, by where it lies; of the first with the key in it."""
        return {one.source: one.sha256 for one in (self.checkpoint, *self.checkpoint.companions)}

    @property
    def notes(self) -> tuple[str, ...]:
        """What its adapter and its files leave to be told of it, in sentences without a full stop."""
        told = tuple(map(str, getattr(self.vae, "notes", ())))
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


def adapter_names() -> dict[str, EntryPoint]:
    """The installed adapters by name; of several of one name the first, which :func:`find_adapter` does not prefer."""
    names: dict[str, EntryPoint] = {}
    for point in _points():
        names.setdefault(point.name, point)
    return names


def _points() -> list[EntryPoint]:
    """The entry points of all adapters by name; one that is found twice, as of a package installed twice, is one."""
    found = {(point.name, point.value): point for point in entry_points(group=GROUP)}
    return [found[key] for key in sorted(found)]


@dataclass(frozen=True)
class InstalledAdapter:
    """An adapter of an installed package: what it opens in one sentence, or why it cannot be loaded."""

    name: str
    place: str
    package: str
    opens: str


def installed_adapters() -> list[InstalledAdapter]:
    """All adapters of installed packages; loading one runs its package's code."""
    names = [point.name for point in _points()]
    return [_described(point, names.count(point.name) > 1) for point in _points()]


def _described(point: EntryPoint, ambiguous: bool) -> InstalledAdapter:
    try:
        module = _imported(point.name, partial(importlib.import_module, point.module))
        opens = (inspect.getdoc(module) or "no description").splitlines()[0]
    except VaeauditError as error:
        opens = str(error)
    if ambiguous:
        opens += f" (another package gives this name too: use --adapter {clipped(point.value)})"
    return InstalledAdapter(point.name, point.value, _package(point), opens)


def _package(point: EntryPoint) -> str:
    return "unknown" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _the_one(name: str) -> EntryPoint:
    """The entry point of an installed name; raises :class:`AdapterError` where several packages give it."""
    points = [point for point in _points() if point.name == name]
    if len(points) > 1:
        given = " and ".join(f"{_package(point)} ({clipped(point.value)})" for point in points)
        raise AdapterError(
            f"the adapter '{clipped(name)}' is given by several packages, {given}, and none is preferred; name one by "
            f"its import path, as in --adapter {clipped(points[0].value)}, or uninstall the other"
        )
    return points[0]


def find_adapter(name: str) -> Adapter:
    """The adapter that ``name`` means: an installed name, "package.module:open" or "file.py:open".

    Raises :class:`AdapterError` if there is none, or if its code raises on import.
    """
    installed = adapter_names()
    if name in installed:
        point = _the_one(name)
        module_name, attribute, source = point.module, point.attr, f"entry point {point.value}"
        module = _imported(name, lambda: importlib.import_module(module_name))
    elif all(name.rpartition(":")[::2]):
        place, _, attribute = name.rpartition(":")
        if place.endswith(".py"):
            source = f"file {place}"
            module = _imported(name, lambda: _module_from_file(Path(place)))
        else:
            source = f"import path {name}"
            module = _imported(name, lambda: importlib.import_module(place))
    else:
        meant = f" (did you mean '{clipped(name)}:open'?)" if name.endswith(".py") else nearest(name, installed)
        raise AdapterError(
            f"there is no adapter '{clipped(name)}'{meant}; installed are {listed(installed)}, "
            "and package.module:open or file.py:open name your own"
        )
    function = getattr(module, attribute, None)
    if not callable(function):
        raise AdapterError(
            f"adapter '{clipped(name)}' defines no function '{clipped(attribute)}'; it needs open(checkpoint, config)"
        )
    file = _source_file(module)
    return Adapter(name, source, sha256_of(Path(file)) if file else None, function)


def adapter_of(checkpoint: Checkpoint) -> Adapter | None:
    """The installed adapter that a checkpoint names, or else the one that recognises it; None where there is none.

    An adapter recognises what its module's function ``recognises(checkpoint)``, beside ``open``, says it does. Raises
    :class:`AdapterError` where several do.
    """
    stated = checkpoint.facts.get("adapter")
    if stated:
        return find_adapter(stated) if isinstance(stated, str) and stated in adapter_names() else None
    found = []
    for name in adapter_names():
        with suppress(Exception):  # one that cannot be imported, or asked, recognises nothing
            adapter = find_adapter(name)
            if said_beside(adapter, "recognises", lambda _: False)(checkpoint):
                found.append(adapter)
    if len(found) > 1:
        names = listed(adapter.name for adapter in found)
        raise AdapterError(f"{checkpoint.path} is recognised by several adapters ({names}); name one with --adapter")
    return found[0] if found else None


def said_beside(adapter: Adapter, name: str, otherwise: Any) -> Any:
    """What an adapter's module says under ``name``, beside its ``open``; ``otherwise`` where it says nothing."""
    return getattr(sys.modules.get(getattr(code_of(adapter.open), "__module__", "")), name, otherwise)


def code_of(function: object) -> object:
    """What holds the code of a callable: the function in a partial one, the class of an object that can be called."""
    while isinstance(function, partial):
        function = function.func
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function)


def _source_file(thing: Any) -> str | None:
    try:
        return inspect.getsourcefile(thing)
    except TypeError:  # it is built in
        return None


def code_beside(adapter: Adapter) -> dict[str, str]:
    """Hashes of the loaded Python files in the folder of an adapter's own and below: what it imports of its own."""
    if (own := _source_file(code_of(adapter.open))) is None:
        return {}
    named = (getattr(module, "__file__", None) or "" for module in list(sys.modules.values()))
    files = {os.path.split(file) for file in named if file.endswith(".py")}  # thousands: kept as strings
    top = Path(own).resolve().parent
    inside = {at: found for at in {at for at, _ in files} if (found := Path(at).resolve()).is_relative_to(top)}
    mine = sorted({inside[at] / name for at, name in files if at in inside})
    return {str(file): sha256_of(file) for file in mine if file.is_file()}


def open_model(
    path: str | Path,
    adapter: str | None = None,
    options: Mapping[str, object] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Read a checkpoint and open it with its adapter, in evaluation mode, without parameter gradients.

    Facts that the file states about itself reach the adapter that it names, or any where it names none, under
    ``options``, which win.

    Raises:
        CheckpointError, TrustError, NonFiniteError: see :func:`~vaeaudit.model.checkpoints.read_checkpoint`.
        AdapterError: unknown adapter, or it raised.
        ContractError: what it returned is no VAE.
    """
    checkpoint = open_checkpoint(path)
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
    **options: object,
) -> VAE:
    """Open a trained VAE: ``load("vae.safetensors", adapter="mlp", activation="tanh")``.

    ``options`` go to the adapter and override what the file says of itself. For errors see
    :func:`open_model`.
    """
    return open_model(path, adapter, options, device=device, dtype=dtype).vae


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


def _imported(name: str, load_module: Callable[[], ModuleType]) -> ModuleType:
    try:
        return load_module()
    except (VaeauditError, KeyboardInterrupt):
        raise
    except BaseException as error:  # likewise: importing runs the user's code
        place, _, attribute = name.rpartition(":")
        meant = f" (did you mean '{place}.py:{attribute}'?)" if _is_file(f"{place}.py") else ""
        raise AdapterError(f"adapter '{clipped(name)}' cannot be imported{meant}: {told(error)}") from error


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # a name that is too long for any file
        return False


def _module_from_file(file: Path) -> ModuleType:
    if fault := obstacle(file):
        raise AdapterError(fault)
    if not _is_file(str(file)):
        raise AdapterError(f"there is no adapter file {clipped(str(file))}; expected a Python file that defines open")
    spec = importlib.util.spec_from_file_location(f"vaeaudit_user_adapter_{file.stem}", file)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    folder = str(file.parent.resolve())
    if folder not in sys.path:  # the model's own code lies beside; last, so that it hides nothing
        sys.path.append(folder)
    spec.loader.exec_module(module)
    return module
