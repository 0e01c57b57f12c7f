"""What an audit has finished, kept until its report is written, so that an audit which was ended goes on from there.

A piece of a check, or a part of its items, is kept under a hash of what it depends on: weights, adapter and its
options, what the model makes of the data, data, settings of the check, the files that these name, seed, precision,
batch size, device, threads, and versions of vaeaudit and the libraries that it computes with. It is never served for
anything else.

Several processes share an audit out (:mod:`vaeaudit.audit.shards`): each writes its own log and reads those of all.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from vaeaudit import errors
from vaeaudit.audit import log
from vaeaudit.audit.kept import DAMAGED, packed, part_of, record_of
from vaeaudit.audit.log import Log
from vaeaudit.audit.shards import WHOLE, Shard, parse, told_here
from vaeaudit.checks.record import Drawing, Record
from vaeaudit.errors import ConfigError, InputError, OutputError, VaeauditError, clipped, listed, told
from vaeaudit.model.batches import Elsewhere, KeepPart, halved, halving, keeping
from vaeaudit.model.files import named_part
from vaeaudit.progress import GoOn

FOLDER = "vaeaudit-journal"
_SECONDS = "seconds"
_HALVED = "halved"  # to how few rows batches were halved until then, as memory ran out
_NAME_IT = "name the --out of vaeaudit audit --shard I/N"
# Facts of a journal in words.
_MEANT = {
    "behaviour": "losses",
    "made": "resizing or normalisation",
    "run": "seed, precision or batch size",
    "device": "device or number of threads",
}


class Journal:
    """Finished work in a folder.

    Args:
        folder: of the report.
        facts: what all of it depends on.
        resume: whether what is there already is served; always among several processes.
        shard: which of several processes this one is.
        about: what is needed to do the audit again, kept with it.
    """

    def __init__(
        self,
        folder: Path,
        facts: Mapping[str, object],
        resume: bool,
        shard: Shard = WHOLE,
        about: Mapping[str, object] | None = None,
    ) -> None:
        self.folder = folder / FOLDER
        self.facts = facts
        self.resume = resume or shard.of > 1
        self.shard = shard
        self.about = {} if about is None else about
        self.missing: list[str] = []  # what other processes are to give
        self.seconds: dict[str, float] = {}  # that what was served had taken, by unit, whoever did it
        self._computes = True
        self._log: Log | None = None
        self._found: dict[tuple[str, str], log.Entry] = {}
        self._read: dict[Path, int] = {}
        self._opened: dict[Path, log.Entry] = {}
        self._made: list[Path] = []  # folders that were not there
        self._new = True
        self._kept = False

    def record(
        self,
        unit: str,
        settings: Mapping[str, object],
        work: Callable[[GoOn], Record],
        go_on: GoOn,
        owner: int = 0,
        parted: bool = False,
    ) -> Record:
        """The kept record of ``unit`` with these settings, or what ``work`` gives, kept unless it was interrupted.

        Among several processes it is that of the number ``owner`` which does it, or if ``parted`` all do parts of it.

        Raises :class:`vaeaudit.errors.OutputError` where it cannot be kept, what ``work`` raises, and
        :class:`vaeaudit.model.batches.Elsewhere` where other processes are to give it, or some of it.
        """
        key = hashlib.sha256(json.dumps([unit, self.facts, dict(settings)], sort_keys=True).encode()).hexdigest()
        entry = self._found.get((key, ""))
        if entry is not None and self._computes and "error" in entry.metadata:
            entry = None  # what was missing, such as a package, may be there now
        if entry is not None and (kept := record_of(entry)) is not None:
            self._count(unit, entry)
            return kept
        started, before = time.monotonic(), self.seconds.get(unit, 0.0)
        mine = self.shard.of == 1 or owner % self.shard.of == self.shard.number - 1
        if not parted and not (mine and self._computes):
            self.missing.append(f"{unit} (shard {owner % self.shard.of + 1})")
            raise Elsewhere(unit)
        calls: dict[str, int] = {}
        at = [0]  # where the parts begin that were computed here

        def keep(name: str) -> KeepPart:
            calls[name] = call = calls.get(name, 0) + 1
            absent: list[int] = []

            def part(
                start: int, number: int | None, give: Callable[[], tuple[Tensor, ...]]
            ) -> tuple[Tensor, ...] | None:
                place = f"{name}.{call} {start}"
                of = self.shard.number - 1 if number is None or not parted else (owner + number) % self.shard.of
                others = of != self.shard.number - 1
                entry = self._found.get((key, place))
                if entry is not None and others and absent:  # nothing is made of what is there
                    return None
                if entry is not None and (kept := part_of(entry)) is not None:
                    self._count(unit, entry)
                    return kept
                if others or not (self._computes or number is None):
                    absent.append(start)
                    self.missing.append(f"part of {unit} (shard {of + 1})")
                    return None
                at.append(start)
                begun = time.monotonic()
                found = give()
                if not self._computes:
                    return found
                tensors = {str(k): tensor.cpu().clone().contiguous() for k, tensor in enumerate(found)}  # may share
                on = json.dumps([str(tensor.device) for tensor in found])
                self._keep(key, place, tensors, {"on": on, _SECONDS: f"{time.monotonic() - begun:.3f}"}, sizes)
                return found

            return part

        if self._computes:
            self._open()
        try:
            with keeping(keep), halving() as sizes:
                record = work(go_on)
        except (Elsewhere, OutputError):
            raise
        except Exception as error:
            if self._computes and self.shard.of > 1:  # an answer, which a merge must know
                self._keep(key, "", {}, {"error": json.dumps(_answer(error)), "at": str(at[-1])})
            raise
        if record.interrupted:
            return record
        record = replace(record, drawings={what: drawn(drawing) for what, drawing in record.drawings.items()})
        if self._computes:
            taken = time.monotonic() - started + self.seconds.get(unit, 0.0) - before
            tensors, metadata = packed(record)
            self._keep(key, "", tensors, metadata | {_SECONDS: f"{taken:.3f}"}, sizes)
        return record

    def _count(self, unit: str, entry: log.Entry) -> None:
        """Add what a served entry had taken, if it says a number, and tell of batches that were halved for it."""
        with suppress(*DAMAGED):
            halved(int(entry.metadata[_HALVED]))
        with suppress(*DAMAGED):
            self.seconds[unit] = self.seconds.get(unit, 0.0) + max(0.0, float(entry.metadata[_SECONDS]))

    def serve_only(self) -> None:
        """From now on compute nothing: serve what there is, also what other processes have kept since."""
        self._computes = False
        self.missing.clear()
        self.seconds.clear()
        self._look()

    def __enter__(self) -> "Journal":
        """Read what is kept, and as a shard take its place in the folder.

        Raises :class:`ConfigError` where that holds shards of another audit, :class:`OutputError` where another process
        does this one, or an audit by itself there.
        """
        if self.resume:
            self._look()
        if self.shard.of > 1:
            log.check_free(self.folder / f"{WHOLE.file}{log.SUFFIX}")
            self._check_others()
        if self.shard.number:
            self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        """Let others write what this process wrote; of an audit that kept nothing, or was refused, nothing stays.

        What was kept stays where the report cannot be written.
        """
        if self._log is None:
            return
        self._log.close()
        refused = kind is not None and issubclass(kind, InputError) and not issubclass(kind, OutputError)
        if self.shard.of == 1 and self._new and (refused or not self._kept):
            self.remove(self.folder.parent)
            for made in self._made:
                with suppress(OSError):
                    made.rmdir()
        self._log = None

    @staticmethod
    def remove(folder: Path) -> None:
        """Forget what one process kept in ``folder``: the report is written. Of others, nothing is touched."""
        with suppress(OSError):  # something else lies there, or cannot be removed: it is no longer needed, that is all
            Log.remove(folder / FOLDER / f"{WHOLE.file}{log.SUFFIX}")
            (folder / FOLDER).rmdir()

    def _open(self) -> Log:
        """The log of this process, which says whose it is."""
        if self._log is None:
            self._made = [place for place in (self.folder, *self.folder.parents) if not place.exists()]
            self._log = Log(self.folder / f"{self.shard.file}{log.SUFFIX}")
            self._new = self._log.end == 0
            about = json.dumps({"facts": self.facts, **self.about}, sort_keys=True)
            here = {"shard": str(self.shard), "place": str(Path.cwd())}
            self._log.append({}, {"opened": told_here(), "about": about, **here})
        return self._log

    def _look(self) -> None:
        """Read what the logs have been given since they were read last."""
        for file in sorted(self.folder.glob(f"*{log.SUFFIX}")):
            for entry in log.entries(file, self._read.get(file, 0)):
                self._read[file] = entry.start + entry.length
                if "opened" in entry.metadata:
                    self._opened[file] = entry
                if "key" not in entry.metadata:
                    continue
                with suppress(*DAMAGED):
                    place = entry.metadata["key"], entry.metadata["part"]
                    self._found[place] = _better(self._found.get(place), entry)

    def _check_others(self) -> None:
        """Raise :class:`ConfigError` where the folder holds shares of another audit."""
        mine = json.loads(json.dumps({"facts": self.facts, **self.about}))
        for file, entry in self._opened.items():
            about, of, _ = _told(entry)
            if file.stem == "whole" or file.stem == self.shard.file:
                continue
            if of.of != self.shard.of:
                raise ConfigError(
                    f"{file} is the share {of}, and this one is {self.shard}; name another folder with --out"
                )
            differs = [name for name in mine["facts"] if mine["facts"][name] != about["facts"].get(name)]
            if differs or mine != about:
                what = listed(_MEANT.get(name, name) for name in differs or ["settings"])
                raise ConfigError(
                    f"{file} is a share of another audit: its {what} differ; name another folder with --out, or remove "
                    "that file"
                )

    def _keep(
        self, key: str, part: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], sizes: Sequence[int] = ()
    ) -> None:
        told = {_HALVED: str(min(sizes))} if sizes else {}
        entry = self._open().append(tensors, {"key": key, "part": part, **metadata, **told})
        self._kept = True
        if self.resume:
            self._found[key, part] = entry


def _answer(error: Exception) -> tuple[str, str]:
    """The name and the message of an error of ours that is raised again for this one."""
    if not isinstance(error, VaeauditError):
        return VaeauditError.__name__, f"the model raised {told(error)}"
    of_message = [kind for kind in type(error).__mro__ if "__init__" not in vars(kind)]
    return next(kind.__name__ for kind in of_message if getattr(errors, kind.__name__, None) is kind), str(error)


def _better(old: log.Entry | None, new: log.Entry) -> log.Entry:
    """Of two entries of one thing, whichever tells more: a result, or the error of the first items."""
    if old is None or "error" not in new.metadata:
        return new
    return new if "error" in old.metadata and int(new.metadata["at"]) <= int(old.metadata["at"]) else old


@dataclass(frozen=True)
class Shared:
    """What an audit that was done in shards is of, and the ``place`` from which its settings name files."""

    configuration: Mapping[str, object]
    threads: int
    place: Path


def shared(folder: Path) -> tuple[Shared, Shard]:
    """What the shards in a folder are of, and the shard that merges them.

    Raises :class:`ConfigError` where there is no such folder, where it holds none, or shards of several audits.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {clipped(str(folder))}; {_NAME_IT}")
    of = {file: told for file, told in opened(folder / FOLDER).items() if told[1].of > 1}
    if not of:
        cut = [file.name for file in sorted((folder / FOLDER).glob(f"shard-*{log.SUFFIX}")) if file.is_file()]
        if cut:
            raise ConfigError(
                f"no log in {folder / FOLDER} is whole to the end of its first entry, which says what it is of: "
                f"{listed(cut)}; run those shards again"
            )
        if (folder / FOLDER / f"{WHOLE.file}{log.SUFFIX}").is_file():
            raise ConfigError(
                f"{folder} holds an audit of one process that is not done, where shards were expected; run it again "
                "with --resume, which writes its report"
            )
        whole = (folder / "report.json").is_file()
        but = ", but a report, as one process or --shard 1/1 writes it without a merge" if whole else ""
        raise ConfigError(f"{folder} holds no shards of an audit{but}; {_NAME_IT}")
    (first, (about, shard, _)), *others = of.items()
    for file, (other, its, _) in others:
        if other != about or its.of != shard.of:
            raise ConfigError(f"{first.name} and {file.name} in {folder} are shards of different audits; remove one")
    configuration, device = about.get("configuration"), about["facts"].get("device")
    threads = device[1] if isinstance(device, list) and len(device) == 2 else None
    if not isinstance(configuration, dict) or not isinstance(threads, int) or not 0 < threads < 2**15:
        raise ConfigError(f"{first} is damaged, or of another version; remove it and run that shard again")
    return Shared(configuration, threads, _place(configuration, [place for *_, place in of.values()])), Shard(
        0, shard.of
    )


def check_unshared(folder: Path) -> None:
    """Raise :class:`ConfigError` where a folder is that of an audit in shards, whose report would replace another's."""
    if any((folder / FOLDER).glob(f"shard-*{log.SUFFIX}")):
        raise ConfigError(
            f"{folder} is the folder of an audit in shards, which writes its report there; name another with --out, or "
            f"remove {folder / FOLDER} where that audit is done with"
        )


def _place(configuration: Mapping[str, Any], places: Iterable[Path]) -> Path:
    """Where a shard ran that finds the model under its name; this folder where none of them is on this machine."""
    with suppress(*DAMAGED, OSError):
        named, _ = named_part(configuration["model"]["path"])
        return next((place for place in places if place.is_dir() and (place / named).exists()), Path.cwd())
    return Path.cwd()


def opened(folder: Path) -> dict[Path, tuple[dict[str, Any], Shard, Path]]:
    """What each log in a journal's folder is of, which share of it, and where that ran, as its process said last."""
    last = {
        file: entry
        for file in sorted(folder.glob(f"*{log.SUFFIX}"))
        for entry in log.entries(file)
        if "opened" in entry.metadata
    }
    return {file: _told(entry) for file, entry in last.items()}


def _told(entry: log.Entry) -> tuple[dict[str, Any], Shard, Path]:
    """What the process that opened a log said; raises :class:`ConfigError` where that cannot be read."""
    try:
        about, shard = json.loads(entry.metadata["about"]), parse(entry.metadata["shard"])
        if not isinstance(about["facts"], dict):
            raise TypeError
    except (*DAMAGED, ConfigError) as error:
        raise ConfigError(
            f"{entry.file} is damaged, or of another version; remove it and run that shard again"
        ) from error
    return about, shard, Path(entry.metadata.get("place", ""))


def drawn(drawing: Drawing) -> Drawing:
    """The same figure, drawn now and once."""
    return Drawing(drawing.name, partial(bytes, drawing.draw()))
