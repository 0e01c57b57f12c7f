"""Named errors. Each says what was expected, what came, and what to do, in one sentence.

``exit_code`` is what the command line ends with when the error reaches it: 2 for usage, configuration or
input; 3 when the audit could not complete; 4 when something was refused on trust; 5 when there can be no verdict. None
of them is ever 1, which means "a check failed" and nothing else.
"""

import importlib
import traceback
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path

# Of no interest where what a module does on import, or an adapter on opening, has gone wrong.
_LOADERS = (
    "<frozen",
    str(Path(importlib.__file__).parent),
    *(str(Path(__file__).parent / file) for file in ("checks/registry.py", "model/registry.py", "model/adapters.py")),
)


class VaeauditError(Exception):
    """The audit could not complete."""

    exit_code = 3


class InputError(VaeauditError):
    """Something the user gave cannot be used as it is."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration file, environment variable or option is wrong."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, or holds other tensors than the adapter expects."""


class MisfitError(CheckpointError):
    """The names of a checkpoint's tensors are not those that an adapter expects; ``fits`` is the share that are."""

    def __init__(self, message: str, expected: Collection[str], came: Collection[str]) -> None:
        super().__init__(message)
        self.fits = len({*expected} & {*came}) / max(1, len({*expected} | {*came}))


class AdapterError(InputError):
    """An adapter cannot be found, or raised while opening a checkpoint."""


class CheckError(InputError):
    """A check of an installed package cannot be used."""


class DataError(InputError):
    """The data cannot be read, or does not fit the model."""


class OutputError(InputError):
    """A result cannot be written where it was asked for."""


class UnsupportedError(InputError):
    """The question has no answer for this kind of model; the message says which question has one."""


class TrustError(VaeauditError):
    """Reading the file would mean running code from it; refused."""

    exit_code = 4


class NonFiniteError(VaeauditError):
    """The model's weights or outputs are NaN or infinite."""

    exit_code = 3


class IncomparableError(VaeauditError):
    """Two audits whose figures cannot be held against each other: no verdict."""

    exit_code = 5


class UnfinishedError(VaeauditError):
    """Other processes have not done their shares of an audit: no report yet."""

    exit_code = 5


class ContractError(VaeauditError):
    """An adapter's model does not keep the contract of :mod:`vaeaudit.model.vae`."""

    exit_code = 3


def without_extra(what: str, extra: str) -> InputError:
    """What to say where ``what`` takes packages that are not installed."""
    return InputError(f"{what} is read by packages that are not installed; pip install 'vaeaudit[{extra}]'")


def clipped(text: str, most: int = 100) -> str:
    """``text``, which came from outside, cut after ``most`` characters: for messages that echo it."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def listed(names: Iterable[str], most: int = 6) -> str:
    """The first ``most`` of ``names``, each clipped, and how many more there are: "a, b and 3 more"."""
    every = list(names)
    shown = ", ".join(clipped(name) for name in every[:most])
    return f"{shown} and {len(every) - most} more" if len(every) > most else shown


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return " (did you mean 'x'?)" for the known name nearest to ``name``, or "" if none is as near as ``cutoff``."""
    close = get_close_matches(name[:200], list(known), n=1, cutoff=cutoff)  # of longer ones the search takes for ever
    return f" (did you mean '{clipped(close[0])}'?)" if close else ""


def told(error: BaseException) -> str:
    """Tell "ValueError: text (file.py, line 12)": enough to find the fault without a traceback."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_LOADERS)]
    name = type(error).__name__
    if not frames or isinstance(error, SyntaxError):  # which says itself where it is
        place = ""
    else:
        place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    try:
        text = clipped(" ".join(str(error).split()), 1000)
    except Exception:  # it is the user's class
        text = ""
    return f"{name}: {text}{place}" if text else f"{name}{place}"
