"""The reconstruction and equivalence checks against the bare models: times as ratios, and memory.

    python -m benchmarks.reconstruction [--model PATH --adapter NAME --data PATH --resize FILTER] [--items 10000]

The floor of a reconstruction is the bare model on the rows that the definition needs, in the same batches: the encoder
on every item, the decoder at z = the mean and at one draw. That of an equivalence are both models' rows, here the model
against itself: two encoders, and of decoders three for the reference (the mean and two draws) and four for the variant
(its own mean as well). Items are read from memory, drawn noise and figures come on top. All take turns in one process;
times are medians over the turns. The data are repeated where they hold fewer than the items.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from tabulate import tabulate
from torch import Tensor

from vaeaudit.checks.equivalence.measure import equivalence
from vaeaudit.checks.reconstruction.measure import reconstruction
from vaeaudit.data.items import fit
from vaeaudit.data.sources import read
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.registry import open_model
from vaeaudit.model.variants import Running, Variant

TURNS = 3


class Problem:
    """``n`` items of a model, given by ``images``."""

    def __init__(self, vae: torch.nn.Module, images: Callable[[Sequence[int]], Tensor], n: int) -> None:
        self.vae, self.images, self.n = vae, images, n
        self.size = RowBatches.automatic(tuple(vae.input_shape), torch.device("cpu")).size
        self.picture = tuple(images([0]).shape[1:])

    def reconstruction(self) -> None:
        """The check, of one draw an item."""
        reconstruction(self.vae, self.images, n=self.n, picture=self.picture)

    def equivalence(self) -> None:
        """The check, of the model against itself and two draws an item."""
        one, other = (Running(self.vae, torch.float32, Variant(), torch.device("cpu")) for _ in range(2))
        equivalence(one, {"same": other}, self.images, n=self.n, picture=self.picture)

    @torch.no_grad()
    def bare(self, encoders: int, decoders: int) -> None:
        """So many passes of encoder and decoder over all items."""
        x = self.images(range(self.size))
        z = self.vae.encode(x).mean
        for first in range(0, self.n, self.size):
            for _ in range(encoders):
                self.vae.encode(x[: self.n - first])
            for _ in range(decoders):
                _ = self.vae.decode(z[: self.n - first]).mean


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="examples/shapes-beta1.safetensors")
    parser.add_argument("--adapter")
    parser.add_argument("--data", default="examples/shapes.npz")
    parser.add_argument("--resize")
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    vae = open_model(given.model, given.adapter).vae
    data = fit(read(given.data), input_shape=tuple(vae.input_shape), data_range=vae.range, resize=given.resize)
    stored = data.batch(range(min(given.items, len(data))))
    problem = Problem(vae, lambda items: stored[[item % len(stored) for item in items]], given.items)
    runs = {
        "reconstruction": (problem.reconstruction, lambda: problem.bare(1, 2)),
        "equivalence": (problem.equivalence, lambda: problem.bare(2, 7)),
    }
    rows = []
    for name, (check, bare) in runs.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        taken: list[tuple[float, float]] = []
        for _ in range(TURNS):
            times = []
            for one in (check, bare):
                start = time.process_time()
                one()
                times.append(time.process_time() - start)
            taken.append((times[0], times[1]))
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        ratio = statistics.median(mine / floor for mine, floor in taken)
        ours, floor = (statistics.median(column) for column in zip(*taken, strict=True))
        rows.append([name, given.items, f"{ours:.2f}", f"{floor:.2f}", f"{ratio:.2f}", f"{grown:.0f}"])
    print(tabulate(rows, ["check", "items", "seconds", "bare passes", "ratio", "MiB more"]))


if __name__ == "__main__":
    main()
