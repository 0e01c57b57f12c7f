"""Finding adapters: by entry point, by import path, or in a file.

An adapter is a function ``open(checkpoint, config) -> VAE``. Entry points of the group ``vaeaudit.adapters``
are ours and third parties' alike.
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from vaeaudit.errors import AdapterError, VaeauditError, clipped, listed, nearest, told
from vaeaudit.model.checkpoints import Checkpoint, sha256_of
from vaeaudit.model.files import obstacle
from vaeaudit.model.vae import VAE

GROUP = "vaeaudit.adapters"
Open = Callable[[Checkpoint, Mapping[str, object]], VAE]


@dataclass(frozen=True)
class Adapter:
    """A function that opens checkpoints, with where it came from: entry point, import path or file."""

    name: str
    source: str
    sha256: str | None
    open: Open


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


def _the_one(name: str, points: list[EntryPoint]) -> EntryPoint:
    """The entry point of an installed name; raises :class:`AdapterError` where several packages give it."""
    points = [point for point in points if point.name == name]
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
    return _among(_points(), name)


def _among(points: list[EntryPoint], name: str) -> Adapter:
    """:func:`find_adapter`, of which these are the installed ones: to look for them takes time."""
    installed = sorted({point.name for point in points})
    if name in installed:
        point = _the_one(name, points)
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
    stated, points = checkpoint.facts.get("adapter"), _points()
    names = dict.fromkeys(point.name for point in points)
    if stated:
        return _among(points, stated) if isinstance(stated, str) and stated in names else None
    found = []
    for name in names:
        with suppress(Exception):  # one that cannot be imported, or asked, recognises nothing
            adapter = _among(points, name)
            if said_beside(adapter, "recognises", lambda _: False)(checkpoint):
                found.append(adapter)
    if len(found) > 1:
        several = listed(adapter.name for adapter in found)
        raise AdapterError(f"{checkpoint.path} is recognised by several adapters ({several}); name one with --adapter")
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
    inside = {at: found for at in {at for at, _ in files} if (found := _resolved(at)).is_relative_to(top)}
    mine = sorted({inside[at] / name for at, name in files if at in inside})
    return {str(file): sha256_of(file) for file in mine if file.is_file()}


@cache
def _resolved(folder: str) -> Path:
    return Path(folder).resolve()  # of hundreds of folders, each time a model is opened


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
