"""Running a model on many rows, a bounded number at a time."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vaeaudit.errors import ConfigError, VaeauditError, told
from vaeaudit.model.memory import ran_out

# Gives a part that was kept, or keeps what is given: asked with the first row, which part that is, None where it is not
# shared out, and what gives it; None where another process is to give it.
KeepPart = Callable[[int, int | None, Callable[[], tuple[Tensor, ...]]], tuple[Tensor, ...] | None]
Keep = Callable[[str], KeepPart]  # asked with the name of what is measured, once a measurement
# It changes no value, so that it need not be handed through all that measures.
_KEEP: ContextVar[Keep | None] = ContextVar("keep", default=None)
_FITS: ContextVar[int | None] = ContextVar("fits", default=None)  # rows, likewise
_HALVED: ContextVar[list[int] | None] = ContextVar("halved", default=None)  # rows, likewise


class Elsewhere(Exception):  # noqa: N818 - it is no error
    """Another process is to give what is missing here."""


class Stopped(Exception):  # noqa: N818 - it is no error
    """A part was not finished, since the user stopped it."""


@contextmanager
def keeping(keep: Keep) -> Iterator[None]:
    """Within this, the parts of every :meth:`RowBatches.map` with a name are given to ``keep``."""
    token = _KEEP.set(keep)
    try:
        yield
    finally:
        _KEEP.reset(token)


@contextmanager
def fitting(rows: int | None) -> Iterator[None]:
    """Within this, sizes that are chosen automatically are halved until so many ``rows`` fit; None says nothing."""
    token = _FITS.set(rows)
    try:
        yield
    finally:
        _FITS.reset(token)


@contextmanager
def halving() -> Iterator[list[int]]:
    """The sizes that batches are halved to within this, as memory runs out; whoever asked around it gets them, too."""
    sizes: list[int] = []
    token = _HALVED.set(sizes)
    try:
        yield sizes
    finally:
        _HALVED.reset(token)
        for size in sizes:
            halved(size)


def halved(size: int) -> None:
    """Tell whoever asked by :func:`halving` that batches were halved to so many rows."""
    if (sizes := _HALVED.get()) is not None:
        sizes.append(size)


class RowBatches:
    """Splits rows into parts of at most ``size``; out of memory halves the part and goes on.

    Rows are independent of each other, so the size changes speed and memory, and values by rounding only. What is
    shared out among processes is in parts of ``most``, which no process's memory changes; ``size`` where None.
    Raises :class:`ConfigError` if ``size`` is not positive.
    """

    def __init__(self, size: int, most: int | None = None) -> None:
        if size < 1:
            raise ConfigError(f"the batch size must be at least 1, but {size} was given")
        self.size, self.most = size, size if most is None else most

    @classmethod
    def automatic(cls, input_shape: tuple[int, ...], device: torch.device) -> "RowBatches":
        """A size by the elements of one row: what fits the caches of a CPU, or keeps a GPU busy, and the memory."""
        elements = 2**19 if device.type == "cpu" else 2**24
        size = most = max(1, elements // max(1, torch.Size(input_shape).numel()))
        fits = _FITS.get()
        while fits is not None and size > max(1, fits):  # by halves, so that little changes it
            size //= 2
        return cls(size, most)

    def within(self, rows: int) -> "RowBatches":
        """The same where a part has at most so many rows."""
        return RowBatches(min(self.size, rows), min(self.most, rows))

    def map(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        *arguments: Tensor,
        go_on: Callable[[int, int], bool] | None = None,
        kept: str = "",
        shared: bool = True,
    ) -> tuple[Tensor, ...]:
        """``function`` of each part of ``arguments`` (all with the same rows), its results concatenated.

        ``go_on`` is asked after each part with the rows that are left and all of them; on False those are left out, and
        so is a part whose ``function`` raises :class:`Stopped`, with all after it: nothing where that was the first.
        What has a name, ``kept``, is taken from and given to a journal where there is one, and done by one of several
        processes, or where it is not ``shared`` by any that needs it; its first result has as many rows as the part.

        Raises :class:`VaeauditError` if a single row does not fit into memory, :class:`Elsewhere` where another process
        is to give some parts.
        """
        results: list[tuple[Tensor, ...]] = []
        keeper = _KEEP.get()
        keep = None if keeper is None or not kept else keeper(kept)
        done, total, most, elsewhere = 0, len(arguments[0]), self.most, False
        while done < total or not (results or elsewhere):
            end = min(done + self.size, (done // most + 1) * most)  # within what is shared out
            part = tuple(argument[done:end] for argument in arguments)
            try:
                if keep is None:
                    found: tuple[Tensor, ...] | None = function(*part)
                else:
                    found = keep(done, done // most if shared else None, partial(function, *part))
            except Stopped:
                break
            except Exception as error:
                if not ran_out(error):
                    raise
                if self.size == 1:
                    raise VaeauditError(
                        f"not even one row of the model fits into memory ({told(error)}); use a larger device"
                    ) from error
                self.size = max(1, min(self.size, total) // 2)
                halved(self.size)
                continue
            if found is None:
                elsewhere = True
                done = (done // most + 1) * most
            else:
                results.append(found)
                done += len(part[0]) if keep is None else len(found[0])
            if go_on is not None and done < total and not go_on(total - done, total):
                break
        if elsewhere:
            raise Elsewhere(kept)
        if len({len(found) for found in results}) > 1:
            raise VaeauditError("the model gives other results for some items than for others; run doctor on it")
        return results[0] if len(results) == 1 else tuple(torch.cat(column) for column in zip(*results, strict=True))


def line_of(value: object) -> Tensor:
    """Something in JSON as a result of a part of rows, (bytes,): what tensors cannot tell."""
    return torch.frombuffer(bytearray(json.dumps(value).encode() + b"\n"), dtype=torch.uint8)


def lines_of(column: Tensor) -> list[Any]:
    """What :func:`line_of` wrote for each part, out of the concatenated results."""
    return [json.loads(line) for line in column.cpu().numpy().tobytes().splitlines()]
