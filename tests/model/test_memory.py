"""Batches that fit into memory: what a row takes is measured, and out of memory halves them, whoever says it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from vaeaudit_adapters.mlp import MLP

from vaeaudit import VAE, BernoulliLogits, DiagonalGaussian
from vaeaudit.audit.run import audit
from vaeaudit.errors import ContractError, VaeauditError
from vaeaudit.model import memory
from vaeaudit.model.batches import RowBatches, fitting
from vaeaudit.model.memory import free, ran_out, rows_that_fit, saved, taken
from vaeaudit.settings.config import resolve
from vaeaudit.subject.opened import prepare

EXAMPLES = Path(__file__).parents[2] / "examples"

CPU = torch.device("cpu")
WIDE = 1000


class Wide(nn.Module):
    """4 inputs, WIDE hidden units in the encoder, whose values alone are of a size to speak of."""

    input_shape = (4,)
    range = (0.0, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.spread, self.gather = nn.Linear(4, WIDE), nn.Linear(WIDE, 2)
        self.prior = DiagonalGaussian.standard((2,), torch.zeros(1))

    def encode(self, x: Tensor) -> DiagonalGaussian:
        mean = self.gather(torch.tanh(self.spread(x)))
        return DiagonalGaussian(mean, torch.zeros_like(mean))

    def decode(self, z: Tensor) -> BernoulliLogits:
        return BernoulliLogits(z.repeat(1, 2))


def test_what_a_row_takes_is_measured_and_grows_with_the_rows_and_not_with_the_weights() -> None:
    vae, x = Wide(), torch.rand(8, 4)
    one, eight = taken(saved(vae, x[:1])), taken(saved(vae, x))
    hidden = 4 * WIDE  # bytes of one row of hidden values
    assert 2 * hidden <= one <= 6 * hidden  # before tanh, after it, and on the way back
    assert eight == pytest.approx(8 * one, rel=0.05)


def test_what_does_not_grow_with_the_rows_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, normed, x = Wide(), Wide(), torch.rand(2, 4)
    nn.utils.parametrizations.weight_norm(normed.spread)  # whose weight is computed anew each time
    monkeypatch.setattr(memory, "free", lambda _: 2**24)
    rows, fewer = (rows_that_fit(vae, x) for vae in (plain, normed))
    assert rows is not None
    assert fewer is not None
    assert 0.9 * rows < fewer <= rows


def test_memory_that_runs_out_as_the_model_is_tried_is_no_fault_of_its_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*_: object) -> DiagonalGaussian:
        raise MemoryError

    monkeypatch.setattr(MLP, "encode", encode)
    given = {"model.path": str(EXAMPLES / "shapes-beta1.safetensors"), "data.source": str(EXAMPLES / "shapes.npz")}
    resolved = resolve({name: (value, "test") for name, value in (given | {"run.batch_size": 1}).items()}, None)
    with pytest.raises(VaeauditError, match="memory ran out when the model was tried on a few items"):
        prepare(resolved.settings)


def test_an_audit_keeps_to_what_fits_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[torch.device, bool]] = []
    monkeypatch.setattr("vaeaudit.subject.opened.compute_exactly", lambda device, tf32: asked.append((device, tf32)))
    monkeypatch.setattr("vaeaudit.subject.opened.rows_that_fit", lambda *_: 50)
    given = {"model.path": str(EXAMPLES / "shapes-beta1.safetensors"), "data.source": str(EXAMPLES / "shapes.npz")}
    small = {"run.device": "cpu", "run.tf32": True, "run.limit": 200, "noise.items": 100, "noise.draws": 1}
    resolved = resolve({name: (value, "test") for name, value in (given | small | {"noise.sigmas": 0.5}).items()}, None)
    subject = prepare(resolved.settings)
    assert asked == [(CPU, True)]
    (told,) = [one for one in subject.data.warnings if "memory" in one]
    assert told.startswith("memory had room for batches of 41 rows, not 668, which rounds differently")
    seen: list[int] = []
    encode = MLP.encode
    monkeypatch.setattr(MLP, "encode", lambda vae, x: (seen.append(len(x)), encode(vae, x))[1])
    done = audit(subject, resolved, ["test"], ("noise",), lambda _: True, None)
    assert max(seen) <= 50
    assert [one for one in done.report.warnings if "memory" in one] == [told]

    def hungry(vae: MLP, x: Tensor) -> DiagonalGaussian:
        if len(x) > 15:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(vae, x)

    monkeypatch.setattr(MLP, "encode", hungry)
    done = audit(subject, resolved, ["test"], ("noise", "latents"), lambda _: True, None)
    (_, halved) = [one for one in done.report.warnings if "memory" in one]
    assert halved == "memory ran out, so that batches were halved, down to 10 rows, which rounds differently"


def test_rows_fit_in_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x = Wide(), torch.rand(2, 4)
    row = taken(saved(vae, x[:1]))
    monkeypatch.setattr(memory, "free", lambda _: 20 * row)
    assert rows_that_fit(vae, x) == 10
    monkeypatch.setattr(memory, "free", lambda _: row // 9)
    assert rows_that_fit(vae, x) == 1
    monkeypatch.setattr(memory, "free", lambda _: None)
    assert rows_that_fit(vae, x) is None


def test_a_model_that_cannot_be_run_is_left_to_its_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(error: BaseException) -> VAE:
        class Refusing(Wide):
            def encode(self, _: Tensor) -> DiagonalGaussian:
                raise error

        return Refusing()

    monkeypatch.setattr(memory, "free", lambda _: 2**30)
    assert rows_that_fit(refusing(ValueError("a fault")), torch.rand(1, 4)) is None
    assert rows_that_fit(refusing(SystemExit(1)), torch.rand(1, 4)) is None
    assert rows_that_fit(refusing(torch.OutOfMemoryError("CUDA out of memory")), torch.rand(1, 4)) == 1


def test_what_a_model_raises_when_it_is_run_first_and_not_again_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its examination runs it once more, and so would not see it."""
    encode, calls = MLP.encode, []

    def once(vae: MLP, x: Tensor) -> DiagonalGaussian:
        calls.append(x)
        if len(calls) == 1:
            raise ValueError("a cache that is not there yet")
        return encode(vae, x)

    monkeypatch.setattr(MLP, "encode", once)
    monkeypatch.setattr(memory, "free", lambda _: 2**30)
    given = {"model.path": str(EXAMPLES / "shapes-beta1.safetensors"), "data.source": str(EXAMPLES / "shapes.npz")}
    resolved = resolve({name: (value, "test") for name, value in given.items()}, None)
    with pytest.raises(ContractError, match=r"ValueError: a cache .* \(test_memory.py, .* not when it was run again"):
        prepare(resolved.settings)


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_every_control_group_around_the_process_counts(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    assert free(CPU) is None  # as on a system that tells nothing
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert free(CPU) == 8000 * 2**10
    line = "4:cpu,memory:/job/task\n" if version == 1 else "0::/job/task\n"
    (tmp_path / "proc" / "self" / "cgroup").write_text(line)
    job = tmp_path / "cgroup" / ("memory" if version == 1 else "") / "job"
    (job / "task").mkdir(parents=True)
    limit, used = ("limit_in_bytes", "usage_in_bytes") if version == 1 else ("max", "current")
    for folder, most in ((job, "5000000"), (job / "task", "max")):
        (folder / f"memory.{limit}").write_text(f"{most}\n")
        (folder / f"memory.{used}").write_text("4000000\n")
        (folder / "memory.stat").write_text(f"anon 5\n{'total_' * (version == 1)}inactive_file 1000000\n")
    assert free(CPU) == 2_000_000  # a cache of files is given back


def test_automatic_batches_are_halved_until_they_fit_and_what_is_shared_out_stays_as_it_is() -> None:
    usual = RowBatches.automatic((28, 28), CPU)
    with fitting(usual.size // 3):
        scarce = RowBatches.automatic((28, 28), CPU)
    with fitting(10**9):
        assert RowBatches.automatic((28, 28), CPU).size == usual.size
    assert scarce.size == usual.size // 4
    assert scarce.most == usual.most == usual.size
    seen: list[int] = []
    rows = scarce.within(usual.size - 10)
    (found,) = rows.map(lambda part: (seen.append(len(part)), (part,))[1], torch.arange(2 * usual.size))
    assert torch.equal(found, torch.arange(2 * usual.size))
    assert max(seen) == scarce.size
    assert usual.size - 10 in np.cumsum(seen)  # a part that is shared out ends there, whatever fits


@pytest.mark.parametrize("kind", ["torch's allocator of the CPU", "NumPy", "MPS", "a GPU"])
def test_out_of_memory_of_every_kind_halves_the_batch_with_equal_results(kind: str) -> None:
    def hungry(part: Tensor) -> tuple[Tensor]:
        if len(part) > 2:
            if kind == "NumPy":
                np.empty(len(part) * 10**15)
            if kind == "MPS":
                raise RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")
            if kind == "a GPU":
                raise torch.OutOfMemoryError("CUDA out of memory")
            torch.empty(len(part) * 10**15)
        return (part * 2,)

    rows = RowBatches(8)
    assert torch.equal(rows.map(hungry, torch.arange(21))[0], 2 * torch.arange(21))
    assert rows.size == 2


def test_other_errors_are_not_taken_for_memory() -> None:
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not ran_out(ValueError("out of memory"))
