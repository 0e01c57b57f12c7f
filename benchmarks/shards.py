"""What the bookkeeping of an audit in very many shards costs, without any model; and what two processes gain.

    python -m benchmarks.shards [--shards 1000] [--items 1000000] [--batch 500] [--measured 50]
    python -m benchmarks.shards --torchrun [--repeats 3] [--scale 1]

Every shard takes its place in the folder, does its batches of items, of which it keeps three numbers each, and finds
that others are to give the rest, as one process after another; then all is merged. No batch may be done twice or left
out. The last few are measured, who find the logs of all others there; those before them do not look at these.

With ``--torchrun``: whole audits of the example's model, by one process of two threads and by two of one thread that
torchrun starts, in turn; seconds of the clock, opening and report included, which tell something of a quiet machine
alone. What torchrun's processes found must be what one process of one thread finds, to the bit.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from vaeaudit.audit.journal import FOLDER, Journal
from vaeaudit.audit.shards import Shard
from vaeaudit.checks.record import Record
from vaeaudit.model.batches import Elsewhere, RowBatches
from vaeaudit.progress import GoOn, always

# Enough of each check that starting takes a small part of the whole.
AUDIT = """
[run]
device = "cpu"
batch_size = 96
[attack]
modes = ["latent", "damage"]
pairs = {few}
lambdas = 11
[margin]
r = 4
items = {few}
draws = 200
effort = "fast"
[noise]
items = {many}
[reconstruction]
items = {many}
shown = 0
[equivalence]
items = {many}
shown = 0
variants = ["dtype=bfloat16"]
[latents]
traverse = 0
"""


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# How an audit is started, and the threads of each process.
WAYS: dict[str, tuple[tuple[str, ...], int]] = {
    "one, 2 threads": ((), 2),
    "two, 1 thread each": (TORCHRUN, 1),
    "one, 1 thread": ((), 1),
}


def launched(asked: argparse.Namespace) -> None:
    """Time audits by one process and by torchrun's two, and print the ratio."""
    examples = Path(__file__).parents[1] / "examples"
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        few, many = max(2, round(8 * asked.scale)), max(20, round(500 * asked.scale))
        Path(folder, "vaeaudit.toml").write_text(AUDIT.format(few=few, many=many))
        call = ["-m", "vaeaudit", "audit", str(examples / "shapes-beta1.safetensors")]
        call += ["--data", str(examples / "shapes.npz"), "--exit-zero", "-q"]
        for turn in range(asked.repeats):
            for way, (launcher, threads) in WAYS.items():
                if turn and way == "one, 1 thread":  # there for what it finds
                    continue
                out = Path(folder, f"{way}-{turn}")
                started = time.monotonic()
                subprocess.run(
                    [sys.executable, *launcher, *call, "--out", str(out)],
                    cwd=folder,
                    env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                    check=True,
                    capture_output=True,
                )
                seconds[way].append(time.monotonic() - started)
                report = json.loads((out / "report.json").read_text())
                beside = [file.read_bytes() for file in sorted(out.glob("*.safetensors"))]
                found[way] = report["metrics"], (out / "items.json").read_bytes(), beside
    assert found["two, 1 thread each"] == found["one, 1 thread"]
    for way, taken in seconds.items():
        print(f"{way}: {', '.join(f'{each:.1f}' for each in taken)} s")
    one, two = (statistics.median(seconds[way]) for way in ("one, 2 threads", "two, 1 thread each"))
    print(
        f"two processes took {two / one:.2f} of one's time (medians of {asked.repeats}), and found the same to the bit"
    )


class Blind(Journal):
    """One that does not look at what others wrote, nor at what it wrote itself before."""

    def _look(self) -> None:
        pass


def main() -> None:
    """Do all shares, merge, and print seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--measured", type=int, default=50)
    parser.add_argument("--torchrun", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the items of --torchrun's audits")
    asked = parser.parse_args()
    if asked.torchrun:
        launched(asked)
        return
    folder = Path(tempfile.mkdtemp(prefix="shards-"))
    done: list[int] = []

    def work(_: GoOn) -> Record:
        def of_items(index: Tensor) -> tuple[Tensor]:
            done.append(int(index[0]))
            return (index[:, None].expand(-1, 3).float(),)

        (found,) = RowBatches(asked.batch).map(of_items, torch.arange(asked.items), kept="items")
        assert torch.equal(found[:, 2], torch.arange(asked.items).float())
        return Record(warnings=("all",))

    seconds = []
    order = torch.randperm(asked.shards, generator=torch.Generator().manual_seed(0)).tolist()
    for place, number in enumerate(order):
        measured = place >= asked.shards - asked.measured
        started = time.process_time()
        with (Journal if measured else Blind)(folder, {}, False, Shard(number + 1, asked.shards)) as journal:
            with suppress(Elsewhere):
                journal.record("noise", {}, work, always, parted=True)
            journal.serve_only()
        if measured:
            seconds.append(time.process_time() - started)
    assert sorted(done) == list(range(0, asked.items, asked.batch))
    started = time.process_time()
    with Journal(folder, {}, False, Shard(0, asked.shards)) as journal:
        journal.serve_only()
        assert journal.record("noise", {}, work, always, parted=True).warnings == ("all",)
    merged = time.process_time() - started
    size = sum(file.stat().st_size for file in (folder / FOLDER).glob("*.log"))
    shutil.rmtree(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{asked.shards:,} shards of {asked.items:,} items in batches of {asked.batch}: CPU seconds of one of the last "
        f"{len(seconds)} shards {statistics.median(seconds):.3g} (most {max(seconds):.3g}), merging {merged:.3g}; "
        f"the logs are {size / 2**20:.0f} MiB, the peak of the process that did it all {peak:.2f} GiB"
    )


if __name__ == "__main__":
    main()
