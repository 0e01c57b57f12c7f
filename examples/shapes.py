"""Grey 28x28 images of one shape each, made from known factors, in the layout of dSprites.

The factors are shape, scale, orientation, posX and posY. An image is a function of its factors alone: each
pixel is the share of it that the shape covers, to first order in the distance to the shape's edge.

    python examples/shapes.py      writes examples/shapes.npz: every combination of the values in GRID
"""

from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIZE = 28
SHAPES = ("square", "ellipse", "triangle")
# Values of each factor in the bundled file. Quarter turns of the square and third turns of the triangle look
# alike, so orientations stay below a quarter turn: no two images of the grid are the same.
GRID = {
    "shape": (0.0, 1.0, 2.0),
    "scale": (0.6, 0.8, 1.0),
    "orientation": (0.0, np.pi / 8, np.pi / 4, 3 * np.pi / 8),
    "posX": (0.0, 1 / 3, 2 / 3, 1.0),
    "posY": (0.0, 1 / 3, 2 / 3, 1.0),
}
RADIUS = 8.97  # of the circle around a shape of scale 1, in pixels
TRAVEL = 8.59  # from posX = 0 to posX = 1, in pixels; so every shape lies inside the image


def draw(factors: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Images (n, 28, 28) of factors (n, 5): index of the shape, scale, angle in radians, posX, posY in [0, 1]."""
    shape, scale, angle, pos_x, pos_y = (column[:, None, None] for column in factors.T)  # each (n, 1, 1)
    pixel = np.arange(SIZE, dtype=np.float64)
    middle = (SIZE - 1) / 2
    x = pixel[None, None, :] - (middle + (pos_x - 0.5) * TRAVEL)  # (n, 1, 28), from the shape's centre
    y = pixel[None, :, None] - (middle + (pos_y - 0.5) * TRAVEL)  # (n, 28, 1)
    u = np.cos(angle) * x + np.sin(angle) * y  # (n, 28, 28), in the shape's own axes
    v = np.cos(angle) * y - np.sin(angle) * x
    radius = RADIUS * scale
    distances = np.stack([_square(u, v, radius), _ellipse(u, v, radius), _triangle(u, v, radius)])  # (3, n, 28, 28)
    distance = np.take_along_axis(distances, shape[None].astype(np.int64), axis=0)[0]  # (n, 28, 28)
    covered = np.clip(0.5 - distance, 0.0, 1.0)
    return np.floor(255 * covered + 0.5).astype(np.uint8)


def random_factors(count: int, seed: int) -> NDArray[np.float64]:
    """Factors (count, 5) drawn evenly from the whole range that GRID covers."""
    rng = np.random.default_rng(seed)
    low = [min(values) for values in GRID.values()]
    high = [max(values) for values in GRID.values()]
    factors = rng.uniform(low, high, size=(count, len(GRID)))
    factors[:, 0] = rng.integers(len(SHAPES), size=count)
    factors[:, 2] = rng.uniform(0, np.pi / 2, size=count)  # beyond the last value lies the first one again
    return factors


def grid() -> dict[str, NDArray[np.generic]]:
    """The arrays of the bundled file; the last factor varies fastest, as in dSprites."""
    classes = np.array(list(product(*(range(len(values)) for values in GRID.values()))), dtype=np.int64)
    columns = [np.array(values)[classes[:, k]] for k, values in enumerate(GRID.values())]
    values = np.stack(columns, axis=1)  # (n, 5)
    return {
        "imgs": draw(values),
        "latents_classes": classes,
        "latents_values": values,
        "latents_names": np.array(list(GRID)),
    }


def _square(u: NDArray[np.float64], v: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance to the edge, negative inside."""
    return np.maximum(np.abs(u), np.abs(v)) - radius / np.sqrt(2)


def _ellipse(u: NDArray[np.float64], v: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance to the edge to first order, (f - 1) / |grad f| with f = |(u / a, v / b)|; negative inside."""
    a, b = radius, 0.55 * radius
    f = np.sqrt((u / a) ** 2 + (v / b) ** 2)
    slope = np.sqrt((u / a**2) ** 2 + (v / b**2) ** 2)
    return np.where(slope > 0, f * (f - 1) / np.maximum(slope, 1e-12), -b)


def _triangle(u: NDArray[np.float64], v: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance to the nearest of the three edge lines, negative inside; one corner points down."""
    slanted = np.abs(u) * np.cos(np.pi / 6) + v * 0.5
    return np.maximum(slanted, -v) - radius / 2


def main() -> None:
    """Write the bundled file beside this script."""
    file = Path(__file__).with_suffix(".npz")
    arrays = grid()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    print(f"{file.name}: {len(arrays['imgs'])} images, {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
