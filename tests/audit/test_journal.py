"""What the journal keeps comes back to the bit, and is never served for anything else."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vaeaudit.audit.artifacts import artifacts
from vaeaudit.audit.journal import FOLDER, Journal
from vaeaudit.audit.run import Audit, audit, journal_of
from vaeaudit.checks.record import Record
from vaeaudit.checks.registry import checks
from vaeaudit.errors import DataError, InputError, OutputError
from vaeaudit.progress import Progress
from vaeaudit.report.writer import to_json
from vaeaudit.settings.config import Resolved, resolve
from vaeaudit.settings.sections import NoiseSettings
from vaeaudit.subject.opened import Subject, prepare

EXAMPLES = Path(__file__).parents[2] / "examples"


def asked(**values: object) -> Resolved:
    given = {
        "model.path": str(EXAMPLES / "shapes-beta1.safetensors"),
        "data.source": str(EXAMPLES / "shapes.npz"),
        "run.device": "cpu",
        "run.limit": 60,
        "attack.modes": ["latent", "damage"],
        "attack.pairs": 2,
        "attack.lambdas": 3,
        "attack.caps": 1,
        "attack.max_evaluations": 15,
        "margin.r": 4,
        "margin.items": 2,
        "margin.draws": 50,
        "margin.parts": ["certified"],
        "noise.sigmas": 0.5,
        "weights.spectral": False,
        **{name.replace("__", "."): value for name, value in values.items()},
    }
    return resolve({name: (value, "test") for name, value in given.items()}, None)


def carried_out(resolved: Resolved, resume: bool, go_on: Callable[[Progress], bool] = lambda _: True) -> Audit:
    subject = prepare(resolved.settings)
    return audit(subject, resolved, ["test"], tuple(checks()), go_on, journal_of(subject, resume))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Resolved, Audit]:
    """A whole audit whose journal is still there, as if it had been killed before its report was written."""
    resolved = asked(run__out=str(tmp_path_factory.mktemp("kept")))
    return resolved, carried_out(resolved, resume=False)


def go(_: Progress) -> bool:
    return True


SETTINGS = NoiseSettings().model_dump(mode="json")


def but_for_time(done: Audit) -> str:
    return to_json(done.report.model_copy(update={"timings": {}, "created": ""}))


def files(done: Audit) -> dict[str, bytes]:
    return {name: b"".join(content) for name, content in artifacts(done).values()}


def never(progress: Progress) -> bool:
    assert progress.stage.endswith("beginning"), "something was computed again"
    return True


def test_a_resumed_audit_gives_the_same_report_and_files_to_the_bit(kept: tuple[Resolved, Audit]) -> None:
    resolved, first = kept
    again = carried_out(resolved, resume=True, go_on=never)
    assert but_for_time(again) == but_for_time(first)
    assert files(again) == files(first)
    for name, sample in first.samples.items():
        assert np.array_equal(again.samples[name].values, sample.values, equal_nan=True)
        assert again.samples[name].q == sample.q


def test_without_resume_nothing_is_served(kept: tuple[Resolved, Audit]) -> None:
    fresh = Record(warnings=("computed",), interrupted=True)  # which is not kept
    with journal_of(prepare(kept[0].settings), resume=False) as journal:
        assert journal.record("noise", SETTINGS, lambda _: fresh, go) is fresh


@pytest.mark.parametrize(
    "changes",
    [
        {"run__seed": 1},
        {"run__dtype": "float64"},
        {"run__limit": 59},
        {"run__batch_size": 7},
        {"noise__draws": 3},
        {"model__path": str(EXAMPLES / "shapes-beta8.safetensors")},
        {"model__options": {"activation": "tanh"}},
    ],
    ids=str,
)
def test_a_record_is_never_served_for_anything_else(kept: tuple[Resolved, Audit], changes: dict[str, object]) -> None:
    resolved = asked(run__out=kept[0].settings.run.out, **changes)
    fresh = Record(warnings=("computed",), interrupted=True)
    with journal_of(prepare(resolved.settings), resume=True) as journal:
        served = journal.record("noise", resolved.settings.noise.model_dump(mode="json"), lambda _: fresh, go)
    assert served.warnings == ("computed",)


SHIFTED = (
    "import torch, vaeaudit\n"
    "class Shifted(torch.nn.Module):\n"
    "    def __init__(self, vae):\n"
    "        super().__init__()\n"
    "        self.vae, self.input_shape, self.range = vae, vae.input_shape, vae.range\n"
    "    prior = property(lambda self: self.vae.prior)\n"
    "    def decode(self, z): return self.vae.decode(z)\n"
    "    def encode(self, x):\n"
    "        q = self.vae.encode(x)\n"
    "        return vaeaudit.DiagonalGaussian(q.mean + SHIFT, q.log_stddev)\n"
)


def test_a_model_whose_adapters_own_imports_changed_is_another_model(tmp_path: Path) -> None:
    """The adapter has the same file; what it imports from beside it, and so what the model does, is another thing."""
    (tmp_path / "adapter.py").write_text(
        "import vaeaudit, helper_of_test_journal as helper\n"
        "def open(checkpoint, config):\n"
        f"    vae = vaeaudit.load({str(EXAMPLES / 'shapes-beta1.safetensors')!r})\n"
        "    return helper.Shifted(vae)\n"
    )
    helper = tmp_path / "helper_of_test_journal.py"
    facts = []
    for shift in ("0.0", "0.01"):
        helper.write_text(SHIFTED.replace("SHIFT", shift))
        sys.modules.pop("helper_of_test_journal", None)
        resolved = asked(model__adapter=f"{tmp_path / 'adapter.py'}:open", run__out=str(tmp_path / "out"))
        facts.append(journal_of(prepare(resolved.settings), resume=True).facts)
    sys.path.remove(str(tmp_path))
    assert {key for key in facts[0] if facts[0][key] != facts[1][key]} == {"adapter", "behaviour"}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path, {"model": "a"}, resume=True) as journal:
        yield journal


@pytest.mark.parametrize("damage", [b"", b"\x00" * 40, None], ids=["empty", "zeros", "cut"])
def test_a_damaged_record_is_computed_again(small: Journal, damage: bytes | None) -> None:
    small.record("noise", SETTINGS, lambda _: Record(warnings=("first",)), go)
    small.__exit__()
    (file,) = small.folder.glob("*.log")
    file.write_bytes(file.read_bytes()[:-20] if damage is None else damage)
    with Journal(small.folder.parent, small.facts, resume=True) as again:
        assert again.record("noise", SETTINGS, lambda _: Record(warnings=("second",)), go).warnings == ("second",)


def test_an_interrupted_record_is_not_kept(small: Journal) -> None:
    small.record("noise", SETTINGS, lambda _: Record(interrupted=True), go)
    assert small.record("noise", SETTINGS, lambda _: Record(warnings=("second",)), go).warnings == ("second",)


def test_odd_values_come_back_as_they_were(small: Journal) -> None:
    tensors = {"x": torch.tensor([0.1, -0.0, 1e-45]), "none": torch.empty(0, 3)}
    doubts, signs = {"noise.s1.degradation.mean": "ü\ud800"}, {"margin.r4": "crossed"}
    first = Record(tensors=tensors, about={"pairs": [[1, 2]]}, signs=signs, doubts=doubts, skipped={"a": "b"})
    small.record("noise", SETTINGS, lambda _: first, go)
    again = small.record("noise", SETTINGS, lambda _: Record(), go)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in tensors.items())
    assert torch.signbit(again.tensors["x"][1])
    assert (again.about, again.signs, again.doubts, again.skipped) == (first.about, signs, doubts, first.skipped)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file stands here")
    with pytest.raises(OutputError), Journal(tmp_path, {}, resume=False) as journal:
        journal.record("noise", SETTINGS, lambda _: Record(), go)


def test_what_was_kept_stays_where_the_report_cannot_be_written_and_not_where_the_audit_is_refused(
    tmp_path: Path,
) -> None:
    def ended_by(error: Exception) -> bool:
        with suppress(InputError), Journal(tmp_path, {}, resume=False) as journal:
            journal.record("noise", SETTINGS, lambda _: Record(), go)
            raise error
        return bool([*(tmp_path / FOLDER).glob("*.log")])

    assert not ended_by(DataError("refused"))
    assert ended_by(OutputError("no space left on device"))


def test_removing_takes_only_what_the_journal_wrote(small: Journal, tmp_path: Path) -> None:
    small.record("noise", SETTINGS, lambda _: Record(), go)
    (small.folder / "diary.txt").write_text("mine")
    Journal.remove(tmp_path)
    assert list(small.folder.glob("*.log")), "a log that is being written stays"
    small.__exit__()
    Journal.remove(tmp_path)
    assert [file.name for file in small.folder.iterdir()] == ["diary.txt"]
    (small.folder / "diary.txt").unlink()
    Journal.remove(tmp_path)
    assert not small.folder.exists()
    Journal.remove(tmp_path)  # where there is none


def test_every_setting_that_a_check_reads_is_among_the_facts_or_in_its_section(kept: tuple[Resolved, Audit]) -> None:
    """A new key of [model], [data] or [run] must be told apart, or be known to change no figure."""
    no_figure = {
        "model.path",
        "model.adapter",
        "model.trust_code",
        "data.source",
        "data.range",
        "run.device",
        "run.limit",
        "run.sample",
    }  # by what they gave
    no_figure |= {"run.out", "run.checks"}
    keyed = {"model.options", "data.resize", "data.normalize", "run.seed", "run.dtype", "run.tf32", "run.batch_size"}
    settings: Any = kept[0].settings
    sections = {name: getattr(settings, name) for name in ("model", "data", "run")}
    assert {
        f"{name}.{key}" for name, section in sections.items() for key in type(section).model_fields
    } == no_figure | keyed
    assert isinstance(prepare(settings), Subject)


def stages_of(resolved: Resolved) -> list[Progress]:
    """What a resumed audit tells of as it computes: nothing, where the journal has it."""
    stages: list[Progress] = []
    subject = prepare(resolved.settings)

    def go_on(progress: Progress) -> bool:
        stages.append(progress)
        return True

    audit(subject, resolved, ["test"], resolved.settings.run.checks, go_on, journal_of(subject, resume=True))
    return [stage for stage in stages if not stage.stage.endswith("beginning")]


def test_a_mode_more_computes_that_mode_alone_and_another_file_to_compare_weights_with_is_another(
    kept: tuple[Resolved, Audit], tmp_path: Path
) -> None:
    more = asked(run__out=kept[0].settings.run.out, attack__modes=["latent", "damage", "latent-side"])
    stages = []
    carried_out(more, resume=True, go_on=lambda progress: stages.append(progress.stage) or True)
    computed = [stage for stage in stages if not stage.endswith("beginning")]
    assert {stage.partition(" ")[0] for stage in computed} == {"attack.latent-side"}
    against = tmp_path / "other.safetensors"
    for source in ("shapes-beta1.safetensors", "shapes-beta8.safetensors"):
        against.write_bytes((EXAMPLES / source).read_bytes())
        with_other = asked(run__out=str(tmp_path), weights__against=str(against), run__checks=["weights"])
        assert stages_of(with_other)
        assert not stages_of(with_other)


def test_the_other_half_of_a_pair_to_compare_weights_with_is_of_what_was_asked(tmp_path: Path) -> None:
    (tmp_path / "pairs.py").write_text(
        "import vaeaudit\n"
        "def files(path): return {part: f'{part}.safetensors' for part in ('encoder', 'decoder')}\n"
        f"def open(checkpoint, config): return vaeaudit.load({str(EXAMPLES / 'shapes-beta1.safetensors')!r})\n"
    )

    def write(folder: str, part: str, scale: float) -> Path:
        (tmp_path / folder).mkdir(exist_ok=True)
        save_file({"0.weight": torch.full((2, 3), scale)}, tmp_path / folder / f"{part}.safetensors")
        return tmp_path / folder / f"{part}.safetensors"

    first, other = (write(folder, "encoder", scale) for folder, scale in (("first", 1.0), ("other", 2.0)))
    for folder, scale in (("first", 3.0), ("other", 4.0)):
        write(folder, "decoder", scale)
    changes = {"model__path": str(first), "model__adapter": f"{tmp_path / 'pairs.py'}:open"}
    resolved = asked(run__out=str(tmp_path), run__checks=["weights"], weights__against=str(other), **changes)
    assert stages_of(resolved)
    assert not stages_of(resolved)
    write("other", "decoder", 5.0)
    assert stages_of(resolved)


def test_the_code_of_the_adapter_of_a_model_to_be_held_against_is_of_what_was_asked(tmp_path: Path) -> None:
    model = str(EXAMPLES / "shapes-beta1.safetensors")
    to_open = f"def open(checkpoint, config): return Shifted(vaeaudit.load({model!r}))\n"
    adapter = tmp_path / "other_adapter.py"
    changes = {"equivalence__against": model, "equivalence__adapter": f"{adapter}:open", "equivalence__items": 3}
    resolved = asked(run__out=str(tmp_path), run__checks=["equivalence"], **changes)
    shifts = []
    for shift in ("0.0", "0.01"):
        adapter.write_text(SHIFTED.replace("SHIFT", shift) + to_open)
        subject = prepare(resolved.settings)
        done = audit(subject, resolved, ["test"], ["equivalence"], go, journal_of(subject, resume=True))
        shifts.append(done.samples["equivalence.against.encoder.mean_shift.median"].values.max())
    assert shifts[0] == 0 < shifts[1]
