"""How much memory there is, what a row of a model takes of it, and which errors say that there was not enough.

What a row takes is measured, not guessed from the sizes of weights and inputs: in convolutions at full resolution it is
thousands of times the input. A way back is part of it, as an attack needs one.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from vaeaudit.errors import ContractError, told
from vaeaudit.model.conditions import under
from vaeaudit.model.vae import VAE

_SHARE = 0.5  # of what is free, as other parts of an audit hold memory too
_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Of a control group of version 2 and of 1: where limit and use stand, and in its statistics what can be taken back.
_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out: on a GPU, in NumPy, or in torch's allocator of the CPU or of MPS."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in text for words in ("not enough memory", "can't allocate memory", "out of memory"))
    )


def rows_that_fit(vae: VAE, x: Tensor) -> int | None:
    """How many rows the model can be given at once in half of the memory that is free, at least 1.

    None where either is not known, as of a model that cannot be run on the first of ``x``, which its examination tells.
    Raises :class:`ContractError` for one that can only be run once it has raised, which no later call would tell.
    """
    there = free(x.device)
    if there is None:
        return None
    try:
        one, two = _of_one_and_two(vae, x)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the adapter is the user's code
        if ran_out(error):
            return 1
        if not _runs(vae, x):
            return None
        raise ContractError(
            f"the model raised {told(error)} when it was run first, and not when it was run again; see its adapter"
        ) from error
    # What does not grow with the rows, as weights that are computed anew, is there once.
    row, first = taken([more - less for less, more in zip(one, two, strict=False)]), taken(one)
    return 1 + max(0, int((_SHARE * there - first) // row)) if row > 0 else None


def _of_one_and_two(vae: VAE, x: Tensor) -> tuple[list[int], list[int]]:
    """What is :func:`saved` of one row of ``x``, and of two."""
    one, two = (saved(under(vae, slice(rows)), x[:rows]) for rows in (1, 2))
    return one, two


def _runs(vae: VAE, x: Tensor) -> bool:
    try:
        _of_one_and_two(vae, x)
    except KeyboardInterrupt:
        raise
    except BaseException:  # the adapter is the user's code
        return False
    return True


def taken(sizes: Sequence[int]) -> int:
    """Bytes that the model holds at most, beside its weights: what is :func:`saved`, and what going back adds."""
    return sum(sizes) + 2 * max(sizes, default=0)


def saved(vae: VAE, x: Tensor) -> list[int]:
    """Bytes of each tensor that is kept for the way back while ``x`` goes through both halves, with input and output.

    Modes that see every operation would import what takes a second.
    """
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        whole = tensor if tensor._base is None else tensor._base
        if not whole.is_leaf:  # as weights are
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # or what saves its own output would hold itself for good

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        leaf, out = _through(vae, x)
    return [leaf.nbytes, out.nbytes, *sizes.values()]


@torch.enable_grad()
def _through(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_(True)
    return leaf, vae.decode(vae.encode(leaf).mean).mean


def free(device: torch.device) -> int | None:
    """Bytes that can still be had on a device, within the limits of control groups; None where nothing tells."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    facts = dict(line.partition(":")[::2] for line in _text(_PROC / "meminfo").splitlines())
    found = list(_left_in_groups())
    if "MemAvailable" in facts:
        found.append(2**10 * int(facts["MemAvailable"].split()[0]))
    return min(found, default=None)


def _left_in_groups() -> Iterator[int]:
    """What the limit of each control group around this process leaves."""
    own = [line.split(":", 2)[1:] for line in _text(_PROC / "self" / "cgroup").splitlines() if line.count(":") > 1]
    for hierarchy, limit, used, reclaimable in _FILES:
        for controllers, path in own:
            if hierarchy not in controllers.split(","):
                continue
            inner = _CGROUPS / hierarchy / path.lstrip("/")
            for folder in [inner, *(above for above in inner.parents if above.is_relative_to(_CGROUPS))]:
                with suppress(ValueError, IndexError):  # "max", or a group that is not seen from within a container
                    statistics = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
                    held = int(_text(folder / used)) - int(statistics.get(reclaimable, 0))
                    yield max(0, int(_text(folder / limit)) - held)


def _text(file: Path) -> str:
    """What a file says; "" where it does not."""
    with suppress(OSError, UnicodeDecodeError):
        return file.read_text()
    return ""
