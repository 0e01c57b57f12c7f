"""The images that a study trains on and audits with."""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from table import Row
from torch import Tensor

from vaeaudit.data.items import Stored, fit
from vaeaudit.data.sources import read

EXAMPLES = Path(__file__).parents[1]
sys.path.append(str(EXAMPLES))

from shapes import draw, random_factors  # noqa: E402

# Training file and audited file, in the folder that --data names. Of Fashion and dSprites all is both.
SOURCES = {
    "mnist": ("mnist/mnist_train.npz", "mnist/mnist_test.npz"),
    "fashion": ("fashion/fashion_sprite_900.npz", "fashion/fashion_sprite_900.npz"),
    "dsprites": ("dsprites/dsprites_downsampled.npz", "dsprites/dsprites_downsampled.npz"),
}
ORDERED = ("fashion", "dsprites")  # by class, and by their factors


def audited(name: str, folder: Path | None) -> Path:
    """The file that models of this data are audited with. Raises ValueError where it is missing."""
    return EXAMPLES / "shapes.npz" if name == "shapes" else _found(name, folder, 1)


def training_images(name: str, folder: Path | None, shape: tuple[int, ...], items: int, seed: int) -> Tensor:
    """As many images (n, *shape) in [0, 1] as ``items``, or all: those ``chosen``, and shapes drawn by ``seed``.

    Raises ValueError where a file is missing.
    """
    if name == "shapes":
        factors = random_factors(items, seed=seed + 1)
        images = np.concatenate([draw(part) for part in np.array_split(factors, max(1, items // 2000))])
        stored = Stored(images, None, None, "shapes", "")
    else:
        stored = read(_found(name, folder, 0))
    data = fit(stored, input_shape=shape, data_range=(0.0, 1.0), resize="bilinear")
    return data.batch(chosen(name, len(data), items))


def chosen(name: str, there: int, items: int) -> NDArray[np.int64]:
    """Numbers of ``items`` of the images, or of all: the first ones; random ones of data that lie in order."""
    order = np.random.default_rng(0).permutation(there) if name in ORDERED else np.arange(there)
    return order[:items]


def image_shape(row: Row) -> tuple[int, ...]:
    """(channels, height, width) of the images as a row trains on them: convolutions ask for 32x32, or 64x64."""
    if row.data == "dsprites":
        return (1, 64, 64)
    return (1, 32, 32) if row.adapter in ("burgess", "jointvae") else (1, 28, 28)


def _found(name: str, folder: Path | None, place: int) -> Path:
    if name not in SOURCES:
        raise ValueError(f"there are no data '{name}'; there are shapes, {', '.join(SOURCES)}")
    file = SOURCES[name][place]
    if folder is None:
        raise ValueError(f"data '{name}' lie in files: name the folder that holds {file} with --data")
    if not (folder / file).exists():
        raise ValueError(f"there is no {folder / file}; put it there, or name another folder with --data")
    return folder / file
