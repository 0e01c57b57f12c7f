"""A report is held against the values and files beside it: what was written is found, and what was forged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vaeaudit.gate.verification import verify
from vaeaudit.report.model import Report
from vaeaudit.report.reading import read_report

SETTINGS = """
[model]
path = "vae.safetensors"
[data]
source = "val.npy"
[latents]
traverse = 0
[noise]
sigmas = [0.1]
draws = 2
[reconstruction]
draws = 0
shown = 0
[checks."noise.s0.1.denoising_error.mean"]
max = 100
[checks."latents.kl.median"]
min = 1
waive = {until = 2999-01-01, reason = "known"}
"""
Forge = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def written(carried_out: Any, projection: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("audited")
    projection.fill(folder)
    (folder / "vaeaudit.toml").write_text(SETTINGS)
    carried_out(folder, "audit")
    return folder / "vaeaudit-report"


def forged(folder: Path, forge: Forge) -> Report:
    content = json.loads((folder / "report.json").read_text())
    forge(content)
    return Report.model_validate(content)


def test_a_report_as_it_was_written_agrees_and_says_what_was_computed_again(written: Path, command: Any) -> None:
    found = verify(*read_report(written))
    assert found.faults == ()
    assert {"noise.s0.1.denoising_error.mean", "latents.elbo.mean", "latents.kl.median"} <= {*found.recomputed}
    assert len(found.recomputed) > 20
    assert found.absent == ()
    done = command("report", written, "--verify")
    assert done.code == 0
    assert done.out.endswith("the report agrees with what lies beside it\n")


def test_the_worst_of_the_items_that_is_forged_is_caught(written: Path) -> None:
    names = {name for name in read_report(written)[0].metrics if name.endswith(".worst")}

    def forge(content: dict[str, Any]) -> None:
        for name in names:
            content["metrics"][name]["value"] += 1e-3

    found = verify(forged(written, forge), written)
    assert "reconstruction.mse.worst" in names
    assert names == {*found.recomputed} & names == {fault.partition(":")[0] for fault in found.faults} & names


@pytest.mark.parametrize("part", ["value", "lower", "upper", "n", "nonfinite"])
def test_every_figure_that_was_computed_again_is_caught_if_it_is_forged(written: Path, part: str) -> None:
    names = {name for name, entry in read_report(written)[0].metrics.items() if entry.ci is not None}

    def forge(content: dict[str, Any]) -> None:
        for name in names:
            entry = content["metrics"][name]
            low, high = entry["ci"]
            size = max(abs(low), abs(high)) or 1.0
            if part in ("lower", "upper"):
                entry["ci"] = [low + (part == "lower") * 1e-6 * size, high - (part == "upper") * 1e-6 * size]
            else:
                entry[part] += 1e-6 * size if part == "value" else 1

    found = verify(forged(written, forge), written)
    caught = {fault.partition(":")[0] for fault in found.faults}
    assert names & {*found.recomputed} <= caught
    if part == "value":
        assert names & {*found.values} <= caught


FORGED: dict[str, tuple[Forge, str]] = {
    "an outcome": (
        lambda it: it["checks"][0].update(verdict="failed"),
        "the threshold on noise.s0.1.denoising_error.mean is written as failed",
    ),
    "a threshold": (
        lambda it: it["checks"][0].update(max=1000.0),
        "the threshold on noise.s0.1.denoising_error.mean is written as passed",
    ),
    "a waiver": (lambda it: it["checks"][0].update(waived={"until": "2999-01-01", "reason": "no"}), "denoising_error"),
    "an outcome taken away": (
        lambda it: it["checks"].pop(0),
        "the threshold on noise.s0.1.denoising_error.mean stands in its configuration alone",
    ),
    "a verdict": (lambda it: it.update(verdict="failed"), "its verdict is written as failed, and what it rests on"),
    "an exit code": (lambda it: it.update(exit_code=1), "its exit code is written as 1"),
    "a hash of the values": (lambda it: it["files_sha256"].update(samples="0" * 64), "samples (samples.safetensors)"),
    "a hash of the model": (lambda it: it["model"]["files"][0].update(sha256="0" * 64), "vae.safetensors"),
    "a hash taken away": (lambda it: it["files_sha256"].pop("samples"), "the report has no hash of samples"),
    "a warning": (lambda it: it["warnings"].clear() or it["partial"].append("x"), "report.md does not say what"),
    "a file elsewhere": (lambda it: it["files"].update(samples="../samples.safetensors"), "outside of the report's"),
    "a figure taken away": (lambda it: it["metrics"].pop("latents.elbo.mean"), "latents.elbo.mean has values beside"),
    "a time": (lambda it: it.update(created="yesterday"), "cannot be read"),
}


@pytest.mark.parametrize("what", FORGED)
def test_what_else_was_forged_is_named(written: Path, what: str) -> None:
    forge, fault = FORGED[what]
    assert any(fault in one for one in verify(forged(written, forge), written).faults)


def test_values_that_were_changed_or_lost_are_told_apart(written: Path, command: Any, tmp_path: Path) -> None:
    written = shutil.copytree(written, tmp_path / "report")
    file = written / "samples.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    done = command("report", written, "--verify")
    assert done.code == 1
    assert "does not agree: samples (samples.safetensors) is not the file that the audit was of or wrote" in done.out
    assert done.out.endswith("the report does not agree with what lies beside it: 1 fault\n")
    file.unlink()
    done = command("report", written, "--verify")
    assert done.code == 5
    assert done.out.endswith("cannot be verified, as the values behind its figures are not there\n")
    assert "not there: 1 (samples)" in done.out
    assert "told by nothing beside the report: " in done.out
