"""Keyed random draws: every number depends on (seed, check, item, draw) and on nothing else.

So the batch size, the number of workers, the order of items and a resumed run never change a draw. The bits
come from Philox, whose stream NumPy guarantees, and become normals through the inverse distribution function:
a draw is the same on every platform and with every later version.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

_ZEROS = np.zeros(4, np.uint64)
_CACHED = 2**14  # numbers that a core's own cache holds


def uniform(count: int, *, seed: int, check: str, item: int | str) -> NDArray[np.float64]:
    """``count`` uniforms in the open interval (0, 1); a longer request starts with the shorter one's."""
    return _middles(_bits(np.random.Philox(key=0), count, f"{seed}|{check}|{item}"))


def _bits(philox: np.random.Philox, count: int, name: str) -> NDArray[np.uint64]:
    """``count`` numbers of 64 bits of the stream keyed by ``name``, in a Philox whose state is set anew.

    Making a Philox draws entropy, which takes longer than the numbers do.
    """
    key = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), dtype="<u8")
    philox.state = {
        "bit_generator": "Philox",
        "state": {"counter": _ZEROS, "key": key},
        "buffer": _ZEROS,
        "buffer_pos": 4,  # nothing is left in it
        "has_uint32": 0,
        "uinteger": 0,
    }
    return philox.random_raw(count)


def _middles(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniforms in (0, 1) from 64 bits each, which are overwritten."""
    # 52 random bits in the middle of their cell: never 0 and never 1, so the inverse below is finite. With 53
    # bits the middle of the last cell is no float64, and rounds to 1.
    bits >>= np.uint64(12)
    middles = bits.astype(np.float64)
    middles += 0.5
    middles *= 2.0**-52
    return middles


def noise_set(
    shape: tuple[int, ...], *, draws: int, items: Sequence[int], seed: int, check: str, like: Tensor
) -> Tensor:
    """Standard normal noise (draws, len(items), *shape), in the dtype and on the device of ``like``.

    Draw j of an item is the same whatever the number of draws and whichever items stand beside it.
    """
    size = int(np.prod(shape, dtype=np.int64))
    normals = np.empty((draws, len(items), *shape), np.float32 if like.dtype == torch.float32 else np.float64)
    philox = np.random.Philox(key=0)
    # A few items at once, whose numbers fit a cache: large arrays in between cost as much as the numbers do.
    some = max(1, _CACHED // max(1, draws * size))
    for first in range(0, len(items), some):
        names = [f"{seed}|{check}|{item}" for item in items[first : first + some]]
        u = _middles(np.stack([_bits(philox, draws * size, name) for name in names]))
        normals[:, first : first + some] = ndtri(u, out=u).reshape(len(u), draws, *shape).swapaxes(0, 1)
    return torch.from_numpy(normals).to(dtype=like.dtype, device=like.device)
