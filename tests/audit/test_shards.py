"""An audit shared out among processes: the report of one process to the bit, nothing lost, no wait for anybody."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vaeaudit_adapters.mlp import MLP

from vaeaudit.audit.artifacts import artifacts
from vaeaudit.audit.journal import FOLDER, Journal, shared
from vaeaudit.audit.log import Log, entries
from vaeaudit.audit.run import Audit, audit, journal_of
from vaeaudit.audit.shards import WHOLE, Shard, launched, owners, parse
from vaeaudit.checks.margin.certified import Certificates
from vaeaudit.checks.record import Record
from vaeaudit.errors import (
    CheckpointError,
    ConfigError,
    MisfitError,
    NonFiniteError,
    OutputError,
    UnfinishedError,
    UnsupportedError,
    VaeauditError,
)
from vaeaudit.model.batches import Elsewhere, RowBatches
from vaeaudit.model.vae import DiagonalGaussian
from vaeaudit.report import writer
from vaeaudit.report.writer import to_json
from vaeaudit.settings.config import Resolved, resolve
from vaeaudit.subject.opened import prepare

CERTIFIED = Certificates.of
EXAMPLES = Path(__file__).parents[2] / "examples"
CHECKS = ("attack", "noise", "reconstruction", "equivalence", "latents", "weights")


def asked(folder: Path, **values: object) -> Resolved:
    given = {
        "model.path": str(EXAMPLES / "shapes-beta1.safetensors"),
        "data.source": str(EXAMPLES / "shapes.npz"),
        "run.device": "cpu",
        "run.limit": 40,
        "run.batch_size": 7,
        "run.out": str(folder),
        "attack.modes": ["damage"],
        "attack.pairs": 1,
        "attack.caps": 1,
        "attack.max_evaluations": 15,
        "noise.sigmas": 0.5,
        "equivalence.variants": ["dtype=bfloat16"],
        "equivalence.items": 20,
        "weights.spectral": False,
        **{name.replace("__", "."): value for name, value in values.items()},
    }
    return resolve({name: (value, "test") for name, value in given.items()}, None)


def shard_of(resolved: Resolved, shard: Shard, checks: tuple[str, ...] = CHECKS, resume: bool = False) -> Audit:
    subject = prepare(resolved.settings)
    return audit(subject, resolved, ["test"], checks, lambda _: True, journal_of(subject, resume, shard))


def told(done: Audit) -> tuple[str, dict[str, bytes]]:
    """All that an audit gives, but for times and the folder."""
    same = {"timings": {}, "created": "", "configuration": {}, "configuration_sha256": ""}
    files = {name: b"".join(content) for name, content in artifacts(done).values()}
    return to_json(done.report.model_copy(update=same)), files


@pytest.fixture(scope="module", autouse=True)
def _without_figures() -> Iterator[None]:
    """They take most of the time of so small an audit, and the tests of the journal keep them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vaeaudit.audit.journal.drawn", lambda drawing: replace(drawing, draw=lambda: b"a figure"))
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return shard_of(asked(tmp_path_factory.mktemp("alone")), WHOLE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, alone: Audit) -> Path:
    """Where three shards have done their shares, each as if it knew nothing of the others."""
    folder = tmp_path_factory.mktemp("shared")
    resolved = asked(folder)
    for number in (2, 3):
        with pytest.raises(UnfinishedError, match=r"shard 1\)"):
            shard_of(resolved, Shard(number, 3))
    assert told(shard_of(resolved, Shard(1, 3))) == told(alone), "whoever ends last gives the report of one process"
    return folder


def test_a_merge_computes_nothing_and_gives_the_same_as_often_as_it_is_asked_for(folder: Path, alone: Audit) -> None:
    before = {file: file.stat().st_size for file in (folder / FOLDER).glob("*.log")}
    about, merging = shared(folder)
    assert (merging.number, merging.of) == (0, 3)
    for _ in range(2):
        assert told(shard_of(asked(folder), merging)) == told(alone)
    assert {file: file.stat().st_size for file in before} == before
    assert about.threads == torch.get_num_threads()


def test_a_merged_report_adds_the_seconds_of_what_it_was_made_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(journal: Journal, unit: str, _: object) -> None:
        journal.seconds[unit] = journal.seconds.get(unit, 0.0) + 100

    monkeypatch.setattr(Journal, "_count", counted)
    timings = shard_of(asked(folder), shared(folder)[1]).report.timings
    assert {name: round(seconds, -2) for name, seconds in timings.items()} == dict.fromkeys(CHECKS, 100)


def test_the_parts_of_items_are_shared_out_and_each_is_done_once(folder: Path) -> None:
    parts = [
        [entry.metadata["part"] for entry in entries(file) if entry.metadata.get("part", "").startswith("noise.")]
        for file in sorted((folder / FOLDER).glob("*.log"))
    ]
    assert sorted(part for of in parts for part in of) == sorted(f"noise.1 {start}" for start in range(0, 40, 7))
    assert [len(of) for of in parts] == [2, 2, 2]


def test_margins_are_shared_out_and_kept_by_groups_of_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, projection: Any
) -> None:
    of_search = {
        "_TURNS": 1,
        "_STEPS": 1,
        "_TESTS": 1,
        "_OCTAVES": 1,
        "_SELECTION": 16,
        "_RAYS": 2,
        "_NEW": 1,
        "_SHARE": 99,
    }
    for name, value in of_search.items():  # a search of no worth, which takes the same way
        monkeypatch.setattr(f"vaeaudit.attacks.margin.{name}", value)
    monkeypatch.setattr("vaeaudit.checks.margin.measure._LENGTHS", 2)
    projection.fill(tmp_path)
    chosen = {"margin__r": [0.5, 1], "margin__items": 3, "margin__draws": 50, "margin__effort": "fast"}
    chosen |= {"model__path": str(tmp_path / "vae.safetensors"), "data__source": str(tmp_path / "val.npy")}
    resolved = asked(tmp_path / "shared", run__batch_size=192, **chosen)
    alone = shard_of(asked(tmp_path / "alone", run__batch_size=192, **chosen), WHOLE, ("margin",))
    with pytest.raises(UnfinishedError, match=r"part of margin \(shard 1\)"):
        shard_of(resolved, Shard(2, 2), ("margin",))
    assert told(shard_of(resolved, Shard(1, 2), ("margin",))) == told(alone)
    # Killed within its last group, one process does that one again and no other.
    log = tmp_path / "alone" / FOLDER / "whole.log"
    *_, last, _ = entries(log)
    log.write_bytes(log.read_bytes()[: last.start + 9])
    certified = []
    monkeypatch.setattr(
        Certificates, "of", lambda self, x, *given: certified.append(len(x)) or CERTIFIED(self, x, *given)
    )
    again = asked(tmp_path / "alone", run__batch_size=192, **chosen)
    assert told(shard_of(again, WHOLE, ("margin",), resume=True)) == told(alone)
    assert certified == [1, 1], "the third item at both radii"


def test_what_is_missing_is_named_with_whose_it_is(tmp_path: Path) -> None:
    resolved = asked(tmp_path)
    with pytest.raises(UnfinishedError) as found:
        shard_of(resolved, Shard(1, 2), ("attack", "noise"))
    assert "is not done: part of noise (shard 2); run those shards" in str(found.value)
    assert f"vaeaudit merge {tmp_path}" in str(found.value)
    assert found.value.exit_code == 5


@pytest.mark.parametrize("of", [1, 2])
def test_killed_at_any_byte_an_audit_goes_on_from_there(tmp_path: Path, of: int) -> None:
    """Whatever a process had written of its log when it ended, the next one needs no more than the rest."""
    checks = ("noise",)
    resolved = asked(tmp_path)
    whole = told(shard_of(resolved, WHOLE, checks))
    for number in range(of, 0, -1):
        try:
            assert told(shard_of(resolved, Shard(number, of), checks, resume=True)) == whole
        except UnfinishedError:
            assert number > 1
    log = tmp_path / FOLDER / f"{Shard(1, of).file}.log"
    content = log.read_bytes()
    for cut in torch.randint(len(content), (6,), generator=torch.Generator().manual_seed(of)).tolist():
        log.write_bytes(content[:cut] + b"\x00" * (cut % 3))
        kept = len(list(entries(log)))
        assert told(shard_of(resolved, Shard(1, of), checks, resume=True)) == whole
        assert len(list(entries(log))) >= kept


@pytest.mark.parametrize("of", [1, 2])
def test_batches_that_another_process_halved_are_told_by_the_report(
    tmp_path: Path, of: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved, encode = asked(tmp_path), MLP.encode
    subject = prepare(resolved.settings)

    def hungry(vae: MLP, x: Tensor) -> DiagonalGaussian:
        if len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(vae, x)

    monkeypatch.setattr(MLP, "encode", hungry)
    with suppress(UnfinishedError):
        audit(subject, resolved, ["test"], ("noise",), lambda _: True, journal_of(subject, False, Shard(of, of)))
    monkeypatch.setattr(MLP, "encode", encode)
    done = shard_of(resolved, Shard(1, of), ("noise",), resume=True)
    (told_of,) = [warning for warning in done.report.warnings if "halved" in warning]
    assert told_of == "memory ran out, so that batches were halved, down to 3 rows, which rounds differently"


def test_a_damaged_entry_and_all_after_it_are_done_again(tmp_path: Path) -> None:
    log = Log(tmp_path / "whole.log")
    for value in range(3):
        log.append({"0": torch.full((4,), float(value))}, {"part": str(value)})
    log.close()
    path = tmp_path / "whole.log"
    second = list(entries(path))[1]
    content = bytearray(path.read_bytes())
    content[second.start + second.length - 1] ^= 1
    path.write_bytes(content)
    assert [entry.metadata["part"] for entry in entries(path)] == ["0"]
    log = Log(path)
    log.append({}, {"part": "again"})
    log.close()
    assert [entry.metadata["part"] for entry in entries(path)] == ["0", "again"]


def test_shards_of_other_settings_models_or_numbers_are_refused_by_what_differs(folder: Path) -> None:
    for other, shard, why in (
        (asked(folder, run__seed=1), Shard(2, 3), "its seed, precision or batch size differ"),
        (asked(folder, noise__draws=3), Shard(2, 3), "its settings differ"),
        (
            asked(folder, model__path=str(EXAMPLES / "shapes-beta8.safetensors")),
            Shard(2, 3),
            "its model, losses differ",
        ),
        (asked(folder), Shard(2, 4), "is the share 1/3, and this one is 2/4"),
    ):
        with pytest.raises(ConfigError) as found:
            shard_of(other, shard)
        assert why in str(found.value)


@pytest.mark.parametrize(
    ("raised", "again", "message"),
    [
        (UnsupportedError("no such question"), UnsupportedError, "no such question"),
        (NonFiniteError("NaN of item 3"), NonFiniteError, "NaN of item 3"),
        (MisfitError("other names", ["a"], ["b"]), CheckpointError, "other names"),
        (ZeroDivisionError("by zero"), VaeauditError, "the model raised .*by zero"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_an_answer_that_a_merge_tells_as_well(
    tmp_path: Path, raised: Exception, again: type[Exception], message: str
) -> None:
    def work(_: object) -> Record:
        raise raised

    with Journal(tmp_path, {}, False, Shard(1, 2)) as journal, pytest.raises(type(raised)):
        journal.record("noise", {}, work, lambda _: True)
    with Journal(tmp_path, {}, False, Shard(0, 2)) as journal, pytest.raises(again, match=message):
        journal.serve_only()
        journal.record("noise", {}, lambda _: Record(), lambda _: True)
    # Whoever does that share again asks anew, and what it then gives counts.
    with Journal(tmp_path, {}, False, Shard(1, 2)) as journal:
        journal.record("noise", {}, lambda _: Record(warnings=("mended",)), lambda _: True)
    with Journal(tmp_path, {}, False, Shard(0, 2)) as journal:
        journal.serve_only()
        assert journal.record("noise", {}, work, lambda _: True).warnings == ("mended",)


def test_a_shard_that_is_stopped_says_so_and_is_not_done(tmp_path: Path) -> None:
    subject = prepare(asked(tmp_path).settings)
    journal = journal_of(subject, False, Shard(2, 2))
    with pytest.raises(KeyboardInterrupt):
        audit(subject, asked(tmp_path), ["test"], ("noise",), lambda progress: "beginning" in progress.stage, journal)


def test_a_report_of_one_process_leaves_the_logs_of_others(tmp_path: Path) -> None:
    with Journal(tmp_path, {}, False, Shard(1, 2)) as shard, Journal(tmp_path, {}, False) as alone:
        for journal in (shard, alone):
            journal.record("noise", {}, lambda _: Record(), lambda _: True)
        Journal.remove(tmp_path)
        assert len(list((tmp_path / FOLDER).glob("*.log"))) == 2, "one is being written"
    Journal.remove(tmp_path)
    assert [file.name for file in (tmp_path / FOLDER).glob("*.log")] == ["shard-1-of-2.log"]


def test_an_audit_of_one_process_is_told_to_need_no_merge(tmp_path: Path) -> None:
    with Journal(tmp_path, {}, False, parse("1/1")) as alone:
        alone.record("noise", {}, lambda _: Record(), lambda _: True)
    with pytest.raises(ConfigError, match=r"one process that is not done, .*; run it again with --resume"):
        shared(tmp_path)
    Journal.remove(tmp_path)
    (tmp_path / "report.json").touch()
    with pytest.raises(ConfigError, match="no shards of an audit, but a report, as one process or --shard 1/1 writes"):
        shared(tmp_path)


def test_an_audit_of_which_nothing_was_kept_leaves_no_folder(tmp_path: Path) -> None:
    with Journal(tmp_path / "out", {}, False) as journal, pytest.raises(UnsupportedError):
        journal.record("noise", {}, lambda _: (_ for _ in ()).throw(UnsupportedError("no")), lambda _: True)
    assert not (tmp_path / "out").exists()


def test_parts_come_back_on_the_device_that_gave_them(tmp_path: Path) -> None:
    """The device "meta" stands for one that this machine may lack."""
    devices: list[str] = []

    def work(_: object) -> Record:
        (found,) = RowBatches(4).map(lambda part: (part,), torch.arange(4), kept="items")
        devices.append(found.device.type)
        return Record(interrupted=True)

    for place in ("cpu", "meta"):
        with Journal(tmp_path, {}, True) as journal:
            journal.record("noise", {}, work, lambda _: True, parted=True)
        assert devices[-1] == place
        log = tmp_path / FOLDER / "whole.log"
        entry = next(entry for entry in entries(log) if "key" in entry.metadata)
        assert entry.metadata["on"] == '["cpu"]'
        writing = Log(log)
        writing.append(entry.tensors() or {}, {**entry.metadata, "on": '["meta"]'})
        writing.close()


def _holds(path: Path, ready: "multiprocessing.synchronize.Event", done: "multiprocessing.synchronize.Event") -> None:
    log = Log(path)
    log.append({}, {"opened": "process 7 on a host"})
    ready.set()
    done.wait(30)


def test_two_processes_do_not_write_one_log_and_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_holds, args=(tmp_path / FOLDER / "whole.log", ready, done))
    other.start()
    assert ready.wait(30)
    with pytest.raises(OutputError, match="process 7 on a host"):
        Log(tmp_path / FOLDER / "whole.log")
    other.kill()
    other.join()
    Log(tmp_path / FOLDER / "whole.log").close()


def test_an_audit_in_a_folder_where_another_works_is_refused_whatever_is_kept_there(tmp_path: Path) -> None:
    with Journal(tmp_path, {}, True) as first:
        first.record("weights", {}, lambda _: Record(), lambda _: True)
        for shard in (WHOLE, Shard(1, 2)):
            with (
                pytest.raises(OutputError, match="another process of vaeaudit works in"),
                Journal(tmp_path, {}, True, shard=shard),
            ):
                pass
    with Journal(tmp_path, {}, True, shard=Shard(1, 2)):  # what one audit left unfinished is served to shards
        pass


def test_a_shard_that_cannot_ask_whether_another_works_there_says_so(tmp_path: Path) -> None:
    (tmp_path / FOLDER / "whole.lock").mkdir(parents=True)  # no lock can be taken, as in a folder that is read-only
    (tmp_path / FOLDER / "whole.log").touch()
    with (
        pytest.raises(OutputError, match=r"whole\.log cannot be written: .*; name another place with --out"),
        Journal(tmp_path, {}, True, shard=Shard(1, 2)),
    ):
        pass


def test_a_report_is_written_before_the_next_audit_may_begin_in_its_folder(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or one that was stopped, and writes late, would replace the report of the next."""
    whole, tried = writer.write, []

    def write(report: Any, files: Any, folder: Path) -> Any:
        tried.append(folder)
        with pytest.raises(OutputError, match="another process of vaeaudit works in"):
            Log(folder / FOLDER / "whole.log")
        return whole(report, files, folder)

    monkeypatch.setattr(writer, "write", write)
    given = (EXAMPLES / "shapes-beta1.safetensors", "--data", EXAMPLES / "shapes.npz", "--items", 4, "--draws", 1, "-q")
    assert command("noise", *given).code == 0
    assert tried == [Path("vaeaudit-report")]
    assert not Path("vaeaudit-report", FOLDER).exists()


def test_the_folder_of_an_audit_in_shards_takes_no_other_report(command: Any) -> None:
    """Which whoever finishes the shards would replace."""
    with Journal(Path("shared"), {}, False, Shard(1, 2)):
        pass
    for name, data in (("noise", True), ("audit", True), ("weights", False)):
        given = ["--data", EXAMPLES / "shapes.npz"] * data
        done = command(name, EXAMPLES / "shapes-beta1.safetensors", *given, "--out", "shared")
        assert done.code == 2
        assert done.err.startswith("error: shared is the folder of an audit in shards, which writes its report there; ")
    assert not Path("shared", "report.json").exists()


def test_what_is_taken_from_the_journal_counts_the_seconds_that_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a merged or resumed report tells what its figures took, and not what reading them did."""
    now = [0.0]
    monkeypatch.setattr("vaeaudit.audit.journal.time", SimpleNamespace(monotonic=lambda: now[0]))

    def slow(part: Tensor) -> tuple[Tensor]:
        now[0] += 10
        return (part,)

    def work(_: object) -> Record:
        RowBatches(2).map(slow, torch.arange(8), kept="items")
        return Record()

    for number in (1, 2):
        with Journal(tmp_path, {}, False, Shard(number, 2)) as journal, suppress(Elsewhere):
            journal.record("noise", {}, work, lambda _: True, parted=True)
    with Journal(tmp_path, {}, False, Shard(0, 2)) as journal:
        journal.serve_only()
        journal.record("noise", {}, work, lambda _: True, parted=True)
    assert journal.seconds == {"noise": 40.0}
    for _ in range(2):  # one process, and then what it kept
        with Journal(tmp_path / "one", {}, True) as journal:
            journal.record("noise", {}, work, lambda _: True, parted=True)
    assert journal.seconds == {"noise": 40.0}


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, WHOLE),
        ({"RANK": "0", "WORLD_SIZE": "1"}, WHOLE),
        ({"RANK": "3", "WORLD_SIZE": "4"}, Shard(4, 4, "RANK")),
        ({"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "10"}, Shard(3, 3)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, Shard(2, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, WHOLE),  # a batch script, no task that srun started
    ],
    ids=str,
)
def test_launchers_say_which_share_a_process_does(environment: Mapping[str, str], shard: Shard) -> None:
    found = launched(environment)
    assert (found.number, found.of) == (shard.number, shard.of)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (lambda: launched({"RANK": "1"}), "WORLD_SIZE is not"),
        (lambda: launched({"WORLD_SIZE": "2"}), "RANK is not"),
        (lambda: launched({"RANK": "2", "WORLD_SIZE": "2"}), "none of the 2 processes"),
        (lambda: launched({"RANK": "one", "WORLD_SIZE": "2"}), "to be numbers"),
        (lambda: parse("0/4"), "such as 1/4"),
        (lambda: parse("5/4"), "such as 1/4"),
        (lambda: parse("1/٤"), "such as 1/4"),
        (lambda: parse("half"), "such as 1/4"),
    ],
    ids=range(8),
)
def test_a_share_that_is_none_is_told(of: Callable[[], Shard], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        of()


def test_whole_pieces_go_to_whoever_has_least() -> None:
    assert owners([5, 1, 4, 2, 2], 2) == [0, 1, 1, 1, 0]
    assert owners([1, 1], 5) == [0, 1]


def test_the_bookkeeping_of_many_shards_is_exact_and_quick(tmp_path: Path) -> None:
    """20,000 items in parts of 50 by 20 processes in any order: every part once, by its process."""
    done: list[int] = []

    def work(_: object) -> Record:
        (found,) = RowBatches(50).map(
            lambda part: (done.append(int(part[0])) or part,), torch.arange(20_000), kept="items"
        )
        assert torch.equal(found, torch.arange(20_000))
        return Record(warnings=("all",))

    for number in torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist():
        with Journal(tmp_path, {}, False, Shard(number + 1, 20)) as journal:
            before = len(done)
            try:
                assert journal.record("noise", {}, work, lambda _: True, parted=True).warnings == ("all",)
                assert len(done) == 400
            except Exception as error:
                assert type(error).__name__ == "Elsewhere"
            assert len(done) - before == 20
    assert sorted(done) == list(range(0, 20_000, 50))


def test_torchrun_works_as_it_stands(tmp_path: Path) -> None:
    """Two processes; a report from one of them, and exit code 0 of both."""
    (tmp_path / "vaeaudit.toml").write_text(
        "[run]\nlimit = 40\nbatch_size = 7\ndevice = 'cpu'\n[noise]\nsigmas = 0.5\n[reconstruction]\nshown = 0\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    call = ["-m", "vaeaudit", "audit", str(EXAMPLES / "shapes-beta1.safetensors"), "--out", "shared"]
    call += ["--check", "noise", "--check", "reconstruction"]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    subprocess.run(
        [*launcher, *call, "--data", str(EXAMPLES / "shapes.npz"), "-q"],
        cwd=tmp_path,
        env=environment | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=240,
    )
    assert (tmp_path / "shared" / "report.json").is_file()
    assert len(list((tmp_path / "shared" / FOLDER).glob("shard-*-of-2.log"))) == 2


@pytest.mark.parametrize(
    "metadata",
    [
        {"opened": "me", "about": "[]", "shard": "1/2"},
        {"opened": "me", "about": "{", "shard": "1/2"},
        {"opened": "me", "about": '{"facts": {}}', "shard": "1/2"},
        {"opened": "me", "about": '{"facts": {"device": ["cpu", "many"]}}', "shard": "1/2"},
        {"opened": "me", "about": '{"facts": {"device": ["cpu", -1]}, "configuration": {}}', "shard": "1/2"},
        {"opened": "me", "about": '{"facts": {"device": ["cpu", 1]}, "configuration": {}}', "shard": "9/2"},
        {"opened": "me"},
    ],
    ids=str,
)
def test_a_forged_log_is_one_sentence(tmp_path: Path, metadata: dict[str, str]) -> None:
    log = Log(tmp_path / FOLDER / "shard-1-of-2.log")
    log.append({}, metadata)
    log.close()
    with pytest.raises(ConfigError, match="is damaged, or of another version; remove it and run that shard again"):
        shared(tmp_path)


@pytest.mark.parametrize(
    "forged",
    [{"record": "["}, {"record": "{}"}, {"error": '["print", "x"]'}, {"error": '["KeyError", "x"]'}, {"error": "7"}],
    ids=str,
)
def test_what_a_damaged_entry_held_is_missing(tmp_path: Path, forged: dict[str, str]) -> None:
    with Journal(tmp_path, {}, False, Shard(1, 2)) as journal:
        journal.record("noise", {}, lambda _: Record(), lambda _: True)
    path = tmp_path / FOLDER / "shard-1-of-2.log"
    entry = next(entry for entry in entries(path) if "key" in entry.metadata)
    log = Log(path)
    log.append({}, {"key": entry.metadata["key"], "part": "", "at": "0", **forged})
    log.close()
    with Journal(tmp_path, {}, False, Shard(0, 2)) as journal:
        journal.serve_only()
        if "record" in forged:
            with pytest.raises(Elsewhere):
                journal.record("noise", {}, lambda _: Record(), lambda _: True)
        else:
            assert journal.record("noise", {}, lambda _: Record(), lambda _: True).warnings == ()


def test_a_pipe_in_the_journals_folder_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    os.mkfifo(tmp_path / FOLDER / "shard-2-of-2.log")
    with pytest.raises(ConfigError, match="holds no shards"):
        shared(tmp_path)


def test_logs_that_are_cut_within_their_first_entry_are_named_and_not_taken_for_none(tmp_path: Path) -> None:
    with Journal(tmp_path, {}, False, Shard(1, 2)):
        pass
    log = tmp_path / FOLDER / "shard-1-of-2.log"
    log.write_bytes(log.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"its first entry, .*: shard-1-of-2\.log; run those shards again"):
        shared(tmp_path)
