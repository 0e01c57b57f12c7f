"""Running a model on many rows, a bounded number at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from vaeaudit.errors import ConfigError, VaeauditError


class RowBatches:
    """Splits rows into parts of at most ``size``; out of memory halves the part and goes on.

    Rows are independent of each other, so the size changes speed and memory, and values by rounding only.
    Raises :class:`ConfigError` if ``size`` is not positive.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ConfigError(f"the batch size must be at least 1, but {size} was given")
        self.size = size

    @classmethod
    def automatic(cls, input_shape: tuple[int, ...], device: torch.device) -> "RowBatches":
        """A size by the elements of one row: what fits the caches of a CPU, or keeps a GPU busy."""
        elements = 2**19 if device.type == "cpu" else 2**24
        return cls(max(1, elements // max(1, torch.Size(input_shape).numel())))

    def map(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        *arguments: Tensor,
        go_on: Callable[[int, int], bool] | None = None,
    ) -> tuple[Tensor, ...]:
        """``function`` of each part of ``arguments`` (all with the same rows), its results concatenated.

        ``go_on`` is asked after each part with the rows that are left and all of them; on False those are left out.

        Raises :class:`VaeauditError` if a single row does not fit into memory.
        """
        results: list[tuple[Tensor, ...]] = []
        done, total = 0, len(arguments[0])
        while done < total or not results:
            part = tuple(argument[done : done + self.size] for argument in arguments)
            try:
                results.append(function(*part))
            except torch.OutOfMemoryError as error:
                if self.size == 1:
                    raise VaeauditError(
                        "not even one row of the model fits into memory; use a larger device"
                    ) from error
                self.size = max(1, min(self.size, total) // 2)
                continue
            done += self.size
            if go_on is not None and done < total and not go_on(total - done, total):
                break
        return results[0] if len(results) == 1 else tuple(torch.cat(column) for column in zip(*results, strict=True))
