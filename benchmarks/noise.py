"""The noise check against the bare model: times as ratios, memory, and what draws of noise cost beside it.

    python -m benchmarks.noise [--model PATH --adapter NAME --data PATH --resize FILTER] [--items 1000] [--threads 1]

The floor is the bare model on the rows that the definition needs: the encoder on each noisy input, the decoder on each
of its latents, in the same batches, with noise, likelihoods and pairing with the clean input for nothing. Apart stand
the floor with the likelihoods and with the decoder on clean latents, which paired degradations need as well, and the
keyed noise alone. All take turns in one process; times are medians over the turns. The data are repeated where they
hold fewer than the items.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from tabulate import tabulate
from torch import Tensor

from vaeaudit.checks.noise.measure import SIGMAS, NoiseResult, noise
from vaeaudit.data.items import fit
from vaeaudit.data.sources import read
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.registry import open_model
from vaeaudit.model.vae import VAE
from vaeaudit.stats.draws import noise_set

TURNS = 3


class Problem:
    """``n`` items of a model, given by ``images``, under ``draws`` of noise of every sigma."""

    def __init__(self, vae: VAE, images: Callable[[Sequence[int]], Tensor], n: int, draws: int) -> None:
        self.vae, self.images, self.n, self.draws = vae, images, n, draws
        self.size = RowBatches.automatic(tuple(vae.input_shape), torch.device("cpu")).size
        self.found: NoiseResult | None = None

    def ours(self) -> None:
        """The check."""
        self.found = noise(self.vae, self.images, n=self.n, draws=self.draws)

    @torch.no_grad()
    def bare(self, whole: bool) -> None:
        """Encoder and decoder on all rows of the sigmas; if ``whole``, log p and the decoder on clean latents too."""
        x = self.images(range(self.size))
        z = self.vae.encode(x).mean
        clean = self.n * self.draws
        rows = clean * len(SIGMAS)
        for first in range(0, rows, self.size):
            likelihood = self.vae.decode(self.vae.encode(x[: rows - first]).mean)
            if whole:
                likelihood.log_prob(x[: rows - first])
        for first in range(0, clean if whole else 0, self.size):
            self.vae.decode(z[: clean - first]).log_prob(x[: clean - first])

    def draw(self) -> None:
        """The noise of inputs alone."""
        x = self.images([0])
        for first in range(0, self.n, self.size):
            items = range(first, min(first + self.size, self.n))
            noise_set(tuple(x.shape[1:]), draws=self.draws, items=items, seed=0, check="benchmark", like=x)


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="examples/shapes-beta1.safetensors")
    parser.add_argument("--adapter")
    parser.add_argument("--data", default="examples/shapes.npz")
    parser.add_argument("--resize")
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.items < 1 or given.draws < 1:
        parser.error("--items and --draws must be at least 1")
    torch.set_num_threads(given.threads)
    vae = open_model(given.model, given.adapter).vae
    data = fit(read(given.data), input_shape=tuple(vae.input_shape), data_range=vae.range, resize=given.resize)
    problem = Problem(vae, lambda items: data.batch([i % len(data) for i in items]), given.items, given.draws)
    works: dict[str, Callable[[], None]] = {
        "the check": problem.ours,
        "encoder and decoder": lambda: problem.bare(False),
        "with log p and clean latents": lambda: problem.bare(True),
        "noise of inputs alone": problem.draw,
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(TURNS):
        names = list(works)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            works[name]()
            seconds[name].append(time.perf_counter() - started)
    rows = given.items * given.draws * len(SIGMAS)
    table = []
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds["the check"], taken, strict=True))
        table.append([name, statistics.median(taken), 1e6 * statistics.median(taken) / rows, ratio])
    print(f"{given.model}: {given.items:,} items, {given.draws} draws, sigmas {SIGMAS}: {rows:,} rows,", end=" ")
    print(f"{given.threads} thread(s), torch {torch.__version__}, medians of {TURNS}\n")
    print(tabulate(table, headers=["", "seconds", "us a row", "the check's time over it"], floatfmt=".4g"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nPeak memory of the process: {peak:.2f} GiB.")


if __name__ == "__main__":
    main()
