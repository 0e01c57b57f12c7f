"""Processes of an audit that are killed (SIGKILL) at random moments and run again, until 200 were: is anything lost?

    python -m benchmarks.survive [--kills 200] [--processes 1] [--seed 0]

All checks on a small model, by searches of no worth that go the same ways. Each process is killed after a random time
of the CPU, up to half of what a whole audit takes, and run again with what it left behind, until one comes to its end.
Its report and the files beside it must then be those of an audit that nobody ended, to the bit but for times, and no
log may hold anything twice: what was kept is not done again, so that a kill costs the batch, or the mode of an attack,
that was under way. Figures are left out, as they would take most of the time. Of several processes each is killed and
run again by itself.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vaeaudit.attacks import margin as search
from vaeaudit.attacks import within
from vaeaudit.audit import journal as journals
from vaeaudit.audit.artifacts import artifacts
from vaeaudit.audit.log import entries
from vaeaudit.audit.run import Audit, audit, journal_of
from vaeaudit.audit.shards import Shard
from vaeaudit.checks.margin import certified, measure, varying
from vaeaudit.checks.registry import checks
from vaeaudit.errors import UnfinishedError
from vaeaudit.report.writer import to_json
from vaeaudit.settings.config import resolve
from vaeaudit.subject.opened import prepare

EXAMPLES = Path(__file__).parents[1] / "examples"
ASKED = {
    "model.path": str(EXAMPLES / "shapes-beta1.safetensors"),
    "data.source": str(EXAMPLES / "shapes.npz"),
    "run.device": "cpu",
    "run.limit": 400,
    "run.batch_size": 96,
    "attack.modes": ["latent", "damage"],
    "attack.pairs": 2,
    "attack.lambdas": 3,
    "attack.caps": 1,
    "attack.max_evaluations": 15,
    "margin.r": 4,
    "margin.items": 2,
    "margin.draws": 50,
    "margin.effort": "fast",
    "noise.sigmas": 0.5,
    "equivalence.variants": ["dtype=bfloat16"],
    "equivalence.items": 300,
}
CHEAP = {
    "_TURNS": 1,
    "_STEPS": 1,
    "_TESTS": 1,
    "_OCTAVES": 1,
    "_SELECTION": 16,
    "_RAYS": 2,
    "_NEW": 1,
    "_SHARE": 99,
    "BLOCK": 64,
}


class Trial:
    """One audit that is done again and again in folders of its own."""

    def __init__(self, processes: int, folder: Path) -> None:
        self.resolved = resolve({name: (value, "benchmark") for name, value in ASKED.items()}, None)
        self.subject = prepare(self.resolved.settings)
        self.processes, self.folder = processes, folder
        self.whole = told(self.audit(folder / "whole", Shard(1, 1)))
        started = time.process_time()
        assert told(self.audit(folder / "again", Shard(1, 1))) == self.whole
        self.seconds = time.process_time() - started
        self.kills, self.finished, self.parts = 0, 0, 0
        self.during: Counter[str] = Counter()  # what was kept last when a process was killed

    def audit(self, folder: Path, shard: Shard) -> Audit:
        """The share of one process, in this folder."""
        journal = journal_of(self.subject, True, shard)
        journal.folder = folder / journals.FOLDER
        return audit(self.subject, self.resolved, ["benchmark"], tuple(checks()), lambda _: True, journal)

    def start(self, folder: Path, number: int) -> int:
        """A process that does its share, and writes down what the report was if it came to one; its id."""
        if child := os.fork():
            return child
        code = 1
        try:
            found = told(self.audit(folder, Shard(number, self.processes)))
            (folder / f"{number}.part").write_text(found)
            (folder / f"{number}.part").rename(folder / f"{number}.told")
            code = 0
        except UnfinishedError:
            code = 5
        except BaseException as error:
            print(f"process {number}: {error!r}", file=sys.stderr, flush=True)
        os._exit(code)

    def last(self, folder: Path) -> str:
        """The kind of what was kept last in this folder: the name of a batch, or a whole record."""
        logs = sorted((folder / journals.FOLDER).glob("*.log"), key=lambda file: file.stat().st_mtime)
        kept = [entry.metadata["part"] for entry in entries(logs[-1]) if "key" in entry.metadata] if logs else []
        return kept[-1].partition(".")[0] or "a record" if kept else "nothing"

    def chain(self, folder: Path, kills: int, draw: random.Random) -> None:
        """Kill and run again until all have ended by themselves, or ``kills`` are spent; then look at what is there."""
        folder.mkdir()
        ends: dict[int, float] = {}
        running: dict[int, int] = {}
        waiting = list(range(1, self.processes + 1))
        while running or waiting:
            for number in waiting:
                running[number] = self.start(folder, number)
                ends[number] = draw.uniform(0, self.seconds / 2)
            waiting = []
            for number, child in list(running.items()):
                ended, status = os.waitpid(child, os.WNOHANG)
                if not ended and kills > 0 and spent(child) > ends[number]:
                    os.kill(child, signal.SIGKILL)
                    ended, status = os.waitpid(child, 0)
                if not ended:
                    continue
                del running[number]
                if os.WIFSIGNALED(status):
                    kills -= 1
                    self.kills += 1
                    self.during[self.last(folder)] += 1
                    waiting.append(number)
                elif os.WEXITSTATUS(status) not in (0, 5):
                    raise SystemExit(f"a process ended with {os.WEXITSTATUS(status)}")
            time.sleep(0.01)
        reports = [file.read_text() for file in folder.glob("*.told")]
        if self.processes > 1:
            reports.append(told(self.audit(folder, Shard(0, self.processes))))
        if not reports or any(report != self.whole for report in reports):
            raise SystemExit(f"{folder}: the report is another one, or there is none")
        kept = Counter(
            (entry.metadata["key"], entry.metadata["part"])
            for file in (folder / journals.FOLDER).glob("*.log")
            for entry in entries(file)
            if "key" in entry.metadata
        )
        twice = [place for place, count in kept.items() if count > 1 and place[1] and not place[1].startswith("radius")]
        if twice:
            raise SystemExit(f"{folder}: done twice: {twice}")
        self.finished, self.parts = self.finished + 1, len(kept)


def spent(child: int) -> float:
    """The CPU seconds that a process has taken, which other work on the machine stretches less than the clock's."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def told(done: Audit) -> str:
    """All that an audit gives, but for times, as a hash."""
    if done.fault is not None:
        raise done.fault
    report = done.report.model_copy(update={"timings": {}, "created": ""})
    digest = hashlib.sha256(to_json(report).encode())
    for name, content in sorted(artifacts(done).values()):
        digest.update(name.encode())
        for part in content:
            digest.update(part)
    return digest.hexdigest()


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """What it gave first: every process traces the same model."""
    given: list[Any] = []

    def known(*asked: Any) -> Any:
        given or given.append(function(*asked))
        return given[0]

    return known


def main() -> None:
    """Kill, and print how often, and what was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name, value in CHEAP.items():
        setattr(search, name, value)
    setattr(within, "BLOCK", CHEAP["BLOCK"])  # noqa: B010
    setattr(measure, "_LENGTHS", 2)  # noqa: B010 - of this module alone
    setattr(varying, "trace_encoder", once(varying.trace_encoder))  # noqa: B010
    setattr(certified, "trace_decoder", once(certified.trace_decoder))  # noqa: B010
    setattr(journals, "drawn", lambda drawing: replace(drawing, draw=lambda: b"a figure"))  # noqa: B010
    draw = random.Random(asked.seed)
    folder = Path(tempfile.mkdtemp(prefix="survive-"))
    trial = Trial(asked.processes, folder)
    started = time.monotonic()
    while trial.kills < asked.kills:
        chain = folder / str(trial.finished)
        trial.chain(chain, asked.kills - trial.kills, draw)
        shutil.rmtree(chain)
    shutil.rmtree(folder)
    seconds = time.monotonic() - started
    during = ", ".join(f"{name} ({count})" for name, count in trial.during.most_common())
    print(
        f"{trial.kills} kills of {asked.processes} process(es) at random moments of an audit of {trial.seconds:.1f} s "
        f"of CPU in {trial.parts} entries: all {trial.finished} audits that were run to their end gave the report of "
        f"one that nobody ended, to the bit, and nothing that was kept was done again; {seconds:.0f} s. "
        f"Kept last before a kill: {during}"
    )


if __name__ == "__main__":
    main()
