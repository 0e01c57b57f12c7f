"""An audit shared out among processes that know nothing of each other but their number and a folder.

Launchers that people have (torchrun, srun, job arrays, a matrix of jobs) place, watch and restart the processes. Each
does its share into its own log of the journal, waits for nobody, and can be run again. Whoever finishes last finds all
of it there and writes the report, which is that of one process to the bit.
"""

import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from vaeaudit.errors import ConfigError, clipped


@dataclass(frozen=True)
class Shard:
    """The process ``number``, from 1, of so many; ``source`` is what says so. 0 does no share, and merges them."""

    number: int
    of: int
    source: str = ""

    @property
    def file(self) -> str:
        """The name of its log, without its ending."""
        return "whole" if self.of == 1 else f"shard-{self.number}-of-{self.of}"

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


WHOLE = Shard(1, 1)
MOST = 10_000


def parse(text: str) -> Shard:
    """The shard that "I/N" names, I from 1 to N; raises :class:`ConfigError` for what is none."""
    if found := re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip(), re.ASCII):
        number, of = int(found[1]), int(found[2])
        if 1 <= number <= of <= MOST:
            return Shard(number, of, "--shard")
    raise ConfigError(
        f"--shard takes I/N, such as 1/4 to 4/4 for four processes, of {MOST} at most, but '{clipped(text)}' came"
    )


# What a launcher says: the variables of a process's number and of how many there are, and that of the least number.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", ""),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    ("SLURM_PROCID", "SLURM_NTASKS", ""),
)


def launched(environment: Mapping[str, str]) -> Shard:
    """The shard that a launcher names in the environment; the whole where none does.

    Raises :class:`ConfigError` for one of torchrun's variables without the other, or for what are no numbers.
    """
    for rank, size, least in _LAUNCHERS:
        there = [name for name in (rank, size) if environment.get(name)]
        if rank == "SLURM_PROCID" and "SLURM_STEP_ID" not in environment:  # a batch script, no task that srun started
            continue
        if len(there) == 1 and rank == "RANK":
            other = size if there == [rank] else rank
            raise ConfigError(
                f"{there[0]} is set and {other} is not, so that the share of this process is not known; set both, or "
                "give --shard I/N"
            )
        if len(there) < 2:
            continue
        try:
            number, of, first = (_number(environment.get(name) or "0") for name in (rank, size, least))
        except ValueError as error:
            raise ConfigError(
                f"{rank} and {size} are to be numbers, but {clipped(environment[rank])} and "
                f"{clipped(environment[size])} came"
            ) from error
        number -= first
        if not 0 <= number < of <= MOST:
            raise ConfigError(
                f"{rank} = {number} names none of the {of} processes that {size} counts; give --shard I/N"
            )
        if of > 1:
            return Shard(number + 1, of, rank)
    return WHOLE


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        raise ValueError(text)
    return int(text)


def owners(costs: Sequence[float], of: int) -> list[int]:
    """Which of so many processes, from 0, does each of several works: the dearest first, to whoever has least."""
    loads, owner = [0.0] * of, [0] * len(costs)
    for work in sorted(range(len(costs)), key=lambda work: -costs[work]):
        owner[work] = loads.index(min(loads))
        loads[owner[work]] += costs[work]
    return owner


def told_here() -> str:
    """Who this process is and when it began, for whoever finds the folder taken."""
    return f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC).isoformat(timespec='seconds')}"
