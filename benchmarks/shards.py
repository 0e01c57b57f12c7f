"""What the bookkeeping of an audit in very many shards costs, without any model.

    python -m benchmarks.shards [--shards 1000] [--items 1000000] [--batch 500] [--measured 50]

Every shard takes its place in the folder, does its batches of items, of which it keeps three numbers each, and finds
that others are to give the rest, as one process after another; then all is merged. No batch may be done twice or left
out. The last few are measured, who find the logs of all others there; those before them do not look at these.
"""

import argparse
import resource
import shutil
import statistics
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
    asked = parser.parse_args()
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
