"""An audit from settings to report: the checks, in order, with what went wrong told apart from what was found.

Nothing here prints; the command line renders what this returns. Only a journal, where one is given, writes files.
"""

import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType

import torch
from pydantic import BaseModel

import vaeaudit
from vaeaudit.audit.journal import Journal
from vaeaudit.audit.shards import WHOLE, Shard, owners
from vaeaudit.audit.writing import Audited, device_name, file_alone, whole, write_down
from vaeaudit.checks.record import Record, Work
from vaeaudit.checks.registry import OURS, Check, checks
from vaeaudit.checks.weights.stored import StoredModel, open_weights, stored_sha256
from vaeaudit.errors import (
    CheckError,
    CheckpointError,
    DataError,
    InputError,
    OutputError,
    UnfinishedError,
    UnsupportedError,
    VaeauditError,
    listed,
    told,
)
from vaeaudit.model.adapters import Adapter, code_beside
from vaeaudit.model.batches import Elsewhere, fitting, halving
from vaeaudit.model.checkpoints import sha256_of
from vaeaudit.model.stated import find_checkpoint
from vaeaudit.progress import GoOn, Progress
from vaeaudit.report.model import Report
from vaeaudit.settings.config import Resolved
from vaeaudit.stats.estimates import Sample
from vaeaudit.subject.opened import Subject

# What a model or its data cannot answer ends no other check.
_UNANSWERED = (DataError, UnsupportedError)


def journal_of(subject: Subject, resume: bool, shard: Shard = WHOLE) -> Journal:
    """The journal of this audit, in the folder of its report."""
    model, data, run = subject.model, subject.data, subject.settings.run
    facts = {
        "model": [model.sha256, model.checkpoint.key, model.checkpoint.prefix, model.state_sha256],
        # An adapter may import code whose change no hash of its own file tells; its losses on the data do.
        "behaviour": {name: loss.value for name, loss in subject.plausibility.losses.items()},
        "adapter": [model.adapter.source, model.adapter.sha256, dict(model.options), code_beside(model.adapter)],
        "data": [data.sha256, data.source, subject.n, subject.drawn_from, data.range],
        "made": [subject.settings.data.resize, subject.settings.data.normalize],
        "run": [run.seed, run.dtype, run.tf32, run.batch_size],
        "device": [device_name(subject.device), torch.get_num_threads()],
        "versions": [vaeaudit.__version__, *map(_version, ("torch", "numpy", "scipy", "scikit-learn"))],
    }
    configuration = subject.settings.model_dump(mode="json")
    configuration["run"].pop("out")
    return Journal(Path(run.out), facts, resume, shard, {"configuration": configuration})


@cache
def _version(package: str) -> str | None:
    """That of an installed package; None of one that is not, without which a record lacks something."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _code(check: Check) -> list[str]:
    """Hashes of the loaded files of the package that brings a check."""
    check.load(check.works)
    package = check.works.partition(":")[0].partition(".")[0]
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == package]
    files = {file for module in modules if (file := getattr(module, "__file__", None))}
    return [sha256_of(Path(file)) for file in sorted(files)]


def _asked(check: Check, subject: Subject) -> dict[str, object]:
    """What of a check its records depend on: settings, hashes of the files that they name, code that is not ours."""
    settings: BaseModel = getattr(subject.settings, check.name)
    asked: dict[str, object] = settings.model_dump(mode="json", exclude={check.pieces} if check.pieces else None)
    named = {key: path for key in check.files if isinstance(path := asked[key], str)}
    if check not in OURS:
        asked["code"] = _code(check)
    if check.name == "equivalence" and "against" in named:
        asked["other"] = _other(check, subject, named["against"])
    adapter = subject.model.adapter if check.of_file else None  # which knows the files of a pair
    return asked | {f"{key}_sha256": _hashed(Path(path), adapter) for key, path in named.items()}


def _other(check: Check, subject: Subject, against: str) -> list[object] | None:
    """What makes the other model what it is: all its files, what it says of its state, and its adapter's code."""
    try:
        other = check.load("vaeaudit.checks.equivalence.run:open_other")(against, subject, subject.dtype)
        code = [other.adapter.source, other.adapter.sha256, code_beside(other.adapter)]
        return [other.sha256, other.state_sha256, dict(other.options), *code]
    except VaeauditError:  # which its check tells
        return None


def _hashed(path: Path, adapter: Adapter | None) -> str | None:
    """The hash of a file that settings name, or of the checkpoint in a folder; None of none, which its check tells.

    Of a pair of files that make one model of the ``adapter`` it is that of both.
    """
    try:
        return stored_sha256(path if path.is_file() else find_checkpoint(path), adapter)
    except (CheckpointError, OSError):
        return None


def works_of(check: Check, audited: Subject | Callable[[], StoredModel]) -> Mapping[str, Work]:
    """What a check has to do, in pieces of which each gives a record that can be kept."""
    function = check.load(check.works)
    try:
        works: Mapping[str, Work] = function(audited)
    except (VaeauditError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a third party's code
        raise CheckError(f"works of the check '{check.name}' raised {told(error)}; mend its package") from error
    if not isinstance(works, Mapping) or not all(isinstance(unit, str) and callable(works[unit]) for unit in works):
        raise CheckError(f"works of the check '{check.name}' must be functions by name; mend its package")
    if any(unit.partition(".")[0] != check.name for unit in works):
        raise CheckError(f"works of the check '{check.name}' begin with its name, but {listed(works)} came")
    return works


@dataclass(frozen=True, eq=False)
class Audit:
    """A report with the records that it was written from; ``fault`` is what ended it early."""

    report: Report
    records: tuple[Record, ...]
    fault: BaseException | None

    @property
    def samples(self) -> dict[str, Sample]:
        """The values behind every metric that is a statistic of one value an item."""
        metrics = {name: value for record in self.records for name, value in record.metrics.items()}
        return {name: value.sample for name, value in metrics.items() if value.sample is not None}


def audit(
    subject: Subject,
    resolved: Resolved,
    argv: Sequence[str],
    names: Sequence[str],
    go_on: GoOn,
    journal: Journal | None = None,
    optional: Collection[str] = (),
    held: ExitStack | None = None,
) -> Audit:
    """Carry out the checks of these ``names``, in order, and write their report.

    An error in a check ends the audit with verdict "error" and what was found before it; where the model or the data
    have no answer for it, the others are carried out. After an interruption the
    checks that are left are not begun. A model that is not plausible gets none. What the user asked wrongly is raised
    as long as nothing was found; where a check is ``optional``, it is skipped instead.

    Of several processes that share the journal, each does its share, and whichever finds all of them done gives the
    audit. The others raise :class:`UnfinishedError`, all but the first where the model is not plausible. No other
    process takes this one's place in the folder until ``held`` is closed, or, where that is None, this returns.
    """
    failed = subject.plausibility.failed
    skipped = {check: f"the model did not pass: {', '.join(failed)}" for check in names if failed}
    works: dict[str, Work] = {}
    of: dict[str, Check] = {}
    costs: dict[str, float] = {}
    stored = partial(open_weights, subject.settings)
    for check in () if failed else map(checks().__getitem__, names):
        for unit, work in works_of(check, stored if check.of_file else subject).items():
            works[unit], of[unit] = _fitted(work, subject.fits), check
            if check.cost:
                costs[unit] = check.load(check.cost)(subject, unit)
    if journal is None:
        return _carried_out(works, whole(subject), resolved, argv, skipped, go_on, optional, costs)
    with ExitStack() as until_here:
        (until_here if held is None else held).enter_context(journal)
        if failed and journal.shard.number > 1:
            raise UnfinishedError(f"the model did not pass: {', '.join(failed)}; shard 1 writes the report of that")
        whole_ones = [0.0 if of[unit].parted else costs.get(unit, 1.0) for unit in works]
        owner = dict(zip(works, owners(whole_ones, journal.shard.of), strict=True))
        works = {unit: _kept(journal, unit, of[unit], subject, work, owner[unit]) for unit, work in works.items()}
        if journal.shard.of > 1:
            if journal.shard.number:
                _do_share(works, go_on, costs)
            journal.serve_only()
        try:
            done = _carried_out(works, whole(subject), resolved, argv, skipped, go_on, optional, costs)
        except InputError:
            if not journal.missing:
                raise
    if journal.missing:
        missing, out = listed(dict.fromkeys(journal.missing)), resolved.settings.run.out
        raise UnfinishedError(
            f"of the audit in {out} is not done: {missing}; run those shards (again), and where none writes the "
            f"report, vaeaudit merge {out}"
        )
    timings = dict(done.report.timings)
    for unit, seconds in journal.seconds.items():
        timings[of[unit].name] = round(timings[of[unit].name] + seconds, 3)
    return replace(done, report=done.report.model_copy(update={"timings": timings}))


def _fitted(work: Work, rows: int | None) -> Work:
    """The work in batches of which so many rows fit into memory."""

    def fitted(go_on: GoOn) -> Record:
        with fitting(rows):
            return work(go_on)

    return fitted


def _kept(journal: Journal, unit: str, check: Check, subject: Subject, work: Work, owner: int) -> Work:
    """The work, from the journal where that has it."""
    return lambda go_on: journal.record(unit, _asked(check, subject), work, go_on, owner, check.parted)


def _do_share(works: Mapping[str, Work], go_on: GoOn, costs: Mapping[str, float]) -> None:
    """Do what of the works is this process's; the journal keeps it."""
    shares = _shares(works, costs)
    stopped: list[Progress] = []

    def asked(progress: Progress) -> bool:
        goes_on = go_on(progress)
        if not goes_on:
            stopped.append(progress)
        return goes_on

    for place, (unit, work) in enumerate(works.items()):
        try:
            work(_placed(asked, unit, place, shares))
        except OutputError:
            raise
        except Exception:  # elsewhere, or an answer, which the journal keeps and the report tells
            pass
        if stopped:
            raise KeyboardInterrupt


def _shares(works: Mapping[str, Work], costs: Mapping[str, float]) -> list[float]:
    """The share of the whole that is done before each of the works, and at last."""
    usual = sum(costs.values()) / len(costs) if costs else 1.0
    sums = [0.0, *accumulate(costs.get(unit, usual) for unit in works)]
    return [part / (sums[-1] or 1.0) for part in sums]


def weigh(stored: StoredModel, resolved: Resolved, argv: Sequence[str], names: Sequence[str], go_on: GoOn) -> Audit:
    """Carry out checks of a file alone, which need no data and run no model, and write their report."""
    works = {unit: work for name in names for unit, work in works_of(checks()[name], lambda: stored).items()}
    return _carried_out(works, file_alone(stored, resolved.settings.run.seed), resolved, argv, {}, go_on)


def _carried_out(
    works: Mapping[str, Work],
    audited: Audited,
    resolved: Resolved,
    argv: Sequence[str],
    skipped: dict[str, str],
    go_on: GoOn,
    optional: Collection[str] = (),
    costs: Mapping[str, float] = MappingProxyType({}),
) -> Audit:
    """Do the works, of which the check is what their names begin with, and write down what they gave.

    ``costs`` tell how long each takes relative to the others.
    """
    shares = _shares(works, costs)
    records: list[Record] = []
    seconds = dict.fromkeys([*skipped, *(unit.partition(".")[0] for unit in works)], 0.0)
    fault: BaseException | None = None
    with halving() as sizes:
        for place, (unit, work) in enumerate(works.items()):
            check, started = unit.partition(".")[0], time.monotonic()
            goes_on = fault is None or isinstance(fault, _UNANSWERED)
            if goes_on and not any(record.interrupted for record in records):
                try:
                    records.append(work(_placed(go_on, unit, place, shares)))  # what came before an error stays
                except Elsewhere:
                    pass  # the journal knows what is missing
                except InputError as error:
                    if check in optional and not isinstance(error, OutputError):  # a full disk is no answer
                        skipped[check] = str(error)
                    elif not records:
                        raise
                    else:
                        fault = fault or error
                except KeyboardInterrupt:
                    raise
                except BaseException as error:  # the adapter is the user's code: it must not read as a finding
                    fault = error
                    if checks()[check] not in OURS and not isinstance(error, VaeauditError):
                        fault = VaeauditError(f"the check '{check}', or the model in it, raised {told(error)}")
                        fault.__cause__ = error
            seconds[check] += time.monotonic() - started
    if sizes:
        told_of = f"memory ran out, so that batches were halved, down to {min(sizes)} rows, which rounds differently"
        audited = replace(audited, warnings=(*audited.warnings, told_of))
    return Audit(write_down(audited, resolved, argv, records, skipped, fault, seconds), tuple(records), fault)


def _placed(go_on: GoOn, unit: str, place: int, shares: Sequence[float]) -> GoOn:
    """Progress that tells which of several works it is of; ``shares`` of the whole are done before each and at last."""
    works, (begin, end) = len(shares) - 1, shares[place : place + 2]
    if works == 1:
        return go_on
    named = f"{unit} ({place + 1} of {works}): "

    def placed(progress: Progress) -> bool:
        whole = begin + (end - begin) * progress.done
        return go_on(replace(progress, stage=named + progress.stage, check=unit, whole=whole))

    placed(Progress("beginning", 1, 1, 0.0))  # its time starts here; whether to go on the work asks itself
    return placed
