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


def uniform(count: int, *, seed: int, check: str, item: int | str) -> NDArray[np.float64]:
    """``count`` uniforms in the open interval (0, 1); a longer request starts with the shorter one's."""
    digest = hashlib.blake2b(f"{seed}|{check}|{item}".encode(), digest_size=16).digest()
    bits = np.random.Philox(key=np.frombuffer(digest, dtype="<u8")).random_raw(count)
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
    # Item by item, whose numbers fit a cache: large arrays in between cost as much as the numbers do.
    normals = np.empty((draws, len(items), *shape), np.float32 if like.dtype == torch.float32 else np.float64)
    for place, item in enumerate(items):
        u = uniform(draws * size, seed=seed, check=check, item=item)
        normals[:, place] = ndtri(u, out=u).reshape(draws, *shape)
    return torch.from_numpy(normals).to(dtype=like.dtype, device=like.device)
