"""The mutual information gap of all items against the bare encoder on the same items.

    python -m benchmarks.mig --model PATH --data PATH [--adapter NAME] [--resize FILTER] [--items N] [--threads 1]

The floor is the model's encoder alone on a batch of items that is there already, again and again until as many rows are
encoded as there are items. Ours starts from what the data store and ends with both gaps and their intervals. They take
turns in one process; each figure is the median of the ratios of a turn.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
from tabulate import tabulate

from vaeaudit.checks.mig.measure import MigResult, mig
from vaeaudit.data.items import Data, fit
from vaeaudit.data.sources import read
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.registry import open_model
from vaeaudit.model.vae import VAE
from vaeaudit.subject.encodings import encodings


@torch.no_grad()
def bare(vae: VAE, data: Data, items: int) -> None:
    """The encoder on as many rows, in batches of the size that ours takes."""
    size = RowBatches.automatic(tuple(vae.input_shape), torch.device("cpu")).size
    x = data.batch(range(min(size, items)))
    for first in range(0, items, size):
        vae.encode(x[: items - first])


def seconds(what: Callable[[], object]) -> tuple[float, float]:
    """On the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    what()
    return time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    """Time all tasks in turns and print them with the gaps found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter")
    parser.add_argument("--data", required=True)
    parser.add_argument("--resize")
    parser.add_argument("--items", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    vae = open_model(given.model, given.adapter).vae
    data = fit(read(given.data), input_shape=tuple(vae.input_shape), data_range=vae.range, resize=given.resize)
    if data.factors is None:
        parser.error(f"{given.data} holds no factors")
    items = min(given.items or len(data), len(data))
    classes, names = data.factors.classes[:items], data.factors.names
    encoded = encodings(vae, data.batch, n=items)
    found: list[MigResult] = []
    tasks: dict[str, Callable[[], object]] = {
        "bare encoder": lambda: bare(vae, data, items),
        "encodings": lambda: encodings(vae, data.batch, n=items),
        "mig, chen": lambda: mig(vae, data.batch, classes, encoded=encoded, estimators=["chen"]),
        "mig, hist20": lambda: mig(vae, data.batch, classes, encoded=encoded, estimators=["hist20"]),
        "all, both": lambda: found.append(mig(vae, data.batch, classes, names=names)),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for _ in range(given.turns):
        for name, task in tasks.items():
            taken[name].append(seconds(task))
    floor = taken["bare encoder"]
    rows = []
    for name, times in taken.items():
        row: list[object] = [name]
        for kind in (0, 1):
            row.append(statistics.median(each[kind] for each in times))
            row.append(statistics.median(a[kind] / b[kind] for a, b in zip(times, floor, strict=True)))
        rows.append(row)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{given.model}: {items:,} items, torch {torch.__version__}, {given.threads} thread(s), ", end="")
    print(f"medians of {given.turns}; peak memory {peak:.2f} GiB, with the stored data\n")
    headers = ["", "seconds", "x the encoder", "CPU seconds", "x the encoder"]
    print(tabulate(rows, headers=headers, floatfmt=".3g"), "", sep="\n")
    gaps = [[of.estimator, of.value, *of.ci, *of.gaps.tolist()] for of in found[-1].by]
    print(tabulate(gaps, headers=["", "MIG", "from", "to", *found[-1].names], floatfmt=".4f"))


if __name__ == "__main__":
    main()
