"""Exit codes and streams, row by row, as a user or a pipeline sees them.

Every code is one of the installed command, a process of its own, at least once, and so is what only a process shows.
"""

import json
import os
import pickle
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

MOST_SECONDS = 60
Command = Any  # a function of arguments; what is `installed` takes more, see conftest.py
SUBJECT = '[model]\npath = "vae.safetensors"\n[data]\nsource = "val.npy"\n'
LATENTS = "[latents]\ntraverse = 0\n"
NOISE = "[noise]\nsigmas = [0.1]\ndraws = 2\n"
COMPARED = "noise.s0.1.log_likelihood.median"
FIGURE = "latents.kl.median"  # 7.55, with an interval of [7.53, 7.57]
MET, MISSED, ACROSS = (f'[checks."{FIGURE}"]\nmin = {least}\n' for least in (5, 9, 7.55))

# The model as an adapter of a user's own, and what it does beside encoding. The noise check comes before the latents.
ADAPTER = """
import glob, os, subprocess, sys, time, warnings
from pathlib import Path
import torch
import vaeaudit


def noise_is_done():
    logs = map(Path, glob.glob("vaeaudit-report/vaeaudit-journal/*.log"))
    return any(b'"part":""' in log.read_bytes() for log in logs)  # of a whole check


class Own(torch.nn.Module):
    input_shape, range = (1, 4, 4), (0.0, 1.0)

    def __init__(self, tensors):
        super().__init__()
        self.basis = torch.nn.Parameter(tensors["encoder.mean.0.weight"].t().contiguous())

    @property
    def prior(self):
        return vaeaudit.DiagonalGaussian.standard((3,), like=self.basis)

    def encode(self, x):
        {deed}
        mean = (x.flatten(1) - 0.5) @ self.basis
        return vaeaudit.DiagonalGaussian(mean, torch.full_like(mean, -3.0))

    def decode(self, z):
        return vaeaudit.GaussianLikelihood((0.5 + z @ self.basis.t()).unflatten(1, (1, 4, 4)), z.new_tensor(-2.3))


def open(checkpoint, config):
    return Own(checkpoint.tensors)
"""
IN_THE_MIDDLE = "if noise_is_done(): "


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, projection: Any) -> None:
    """A folder of its own, outside any repository, with a model, data, and settings that ask for the latents."""
    monkeypatch.chdir(tmp_path)
    projection.fill(tmp_path)
    configure(LATENTS)


def configure(settings: str) -> None:
    Path("vaeaudit.toml").write_text(SUBJECT + settings)


def own(deed: str = "pass", name: str = "own") -> str:
    """Write an adapter that does something whenever it encodes; how it is named on the command line."""
    Path(f"{name}.py").write_text(ADAPTER.replace("{deed}", deed.replace("\n", "\n        ")))
    return f"{name}.py:open"


def before(file: str, code: str) -> None:
    """Put code at the beginning of an adapter, where it runs as soon as the model is opened."""
    Path(file).write_text(f"{code}\n{Path(file).read_text()}")


OPENED = "open('opened', 'w').close()"


def report(folder: str = "vaeaudit-report") -> Any:
    return strict((Path(folder) / "report.json").read_text(encoding="utf-8"))


def ended(folder: str = "vaeaudit-report") -> tuple[str, str, int]:
    written = report(folder)
    return written["status"], written["verdict"], written["exit_code"]


def left() -> set[str]:
    """What a run left behind."""
    return {path.name for path in Path().iterdir()} - {"vae.safetensors", "val.npy", "vaeaudit.toml", "__pycache__"}


# ---- 0 and 1: the verdict


def test_thresholds_that_are_met_pass_and_end_with_0(installed: Command) -> None:
    configure(LATENTS + MET)
    done = installed("audit")
    assert (done.code, done.err) == (0, "")
    assert "verdict: passed" in done.out
    assert ended() == ("complete", "passed", 0)


def test_an_audit_without_thresholds_ends_with_0_and_never_says_passed(command: Command) -> None:
    done = command("audit")
    assert (done.code, done.err) == (0, "")
    assert "verdict: ungated" in done.out
    assert ended() == ("complete", "ungated", 0)
    forms = ("markdown", "junit", "github", "card", "html")
    for text in (done.out, *(command("report", "vaeaudit-report", "--format", form).out for form in forms)):
        shown = re.sub("<style>.*?</style>", "", text, flags=re.DOTALL)
        assert shown
        assert not re.search(r"\bpassed\b", shown, re.IGNORECASE), shown


@pytest.mark.parametrize(("more", "code"), [([], 1), (["--exit-zero"], 0)])
def test_a_threshold_that_fails_ends_with_1_and_exit_zero_changes_the_code_alone(
    command: Command, more: list[str], code: int
) -> None:
    configure(LATENTS + MISSED)
    done = command("audit", "--format", "json", *more)
    assert (done.code, done.err) == (code, "")
    assert strict(done.out) == report()
    assert ended() == ("complete", "failed", 1)
    assert [check["verdict"] for check in report()["checks"]] == ["failed"]


@pytest.fixture(scope="module")
def earlier(carried_out: Command, tmp_path_factory: pytest.TempPathFactory, projection: Any) -> Path:
    """The report of an audit of the same model on the same data, as a baseline."""
    folder = tmp_path_factory.mktemp("earlier")
    projection.fill(folder)
    (folder / "vaeaudit.toml").write_text(SUBJECT + NOISE)
    carried_out(folder, "audit")
    return folder / "vaeaudit-report"


def baseline(path: object) -> str:
    return f'{NOISE}[baseline]\npath = "{path}"\nmetrics = ["{COMPARED}"]\n'


def test_a_regression_against_the_baseline_ends_with_1(command: Command, earlier: Path, projection: Any) -> None:
    configure(baseline(earlier))
    worse = projection.weights()
    worse["decoder.2.weight"] *= 1.3
    save_file(worse, "vae.safetensors", projection.facts)
    done = command("audit")
    assert (done.code, done.err) == (1, "")
    assert ended() == ("complete", "failed", 1)
    (tested,) = (one for one in report()["baseline"]["differences"] if one["outcome"] != "not tested")
    assert (tested["metric"], tested["outcome"]) == (COMPARED, "regressed")
    assert command("compare", earlier, "vaeaudit-report").code == 1
    done = command("compare", earlier, "vaeaudit-report", "--exit-zero", "--format", "json")
    assert (done.code, done.err, strict(done.out)["verdict"]) == (0, "", "failed")


def test_a_waiver_that_runs_keeps_a_failure_from_counting_and_passes_nothing(command: Command) -> None:
    configure(LATENTS + MISSED + 'waive = { until = 2999-12-31, reason = "tracked in #12" }\n')
    done = command("audit")
    assert (done.code, done.err) == (0, "")
    assert ended() == ("complete", "ungated", 0)
    assert report()["checks"][0]["verdict"] == "failed"
    assert report()["checks"][0]["waived"] == {"until": "2999-12-31", "reason": "tracked in #12"}


# ---- 2: usage, configuration, input


def test_a_wrong_configuration_ends_with_2(command: Command) -> None:
    configure("[run]\nsede = 1\n")
    assert command("audit", "--exit-zero").said(2, "unknown key 'sede' in [run] (did you mean 'seed'?)")
    assert left() == set()


@pytest.mark.parametrize("section", ["checks", "baseline"])
def test_a_threshold_of_no_figure_is_told_with_the_nearest_before_the_model_is_opened(
    command: Command, section: str
) -> None:
    name = "latents.kl.medain"
    asked = f'[checks."{name}"]\nmin = 1\n' if section == "checks" else f'[baseline]\nmin_effect = {{ "{name}" = 1 }}\n'
    configure(LATENTS + asked)
    adapter = own()
    before("own.py", OPENED)
    assert command("audit", "--adapter", adapter).said(2, "(did you mean 'latents.kl.median'?)")
    assert left() == {"own.py"}


def test_a_usage_error_ends_with_2_from_nothing(installed: Command) -> None:
    assert installed.cold("audit", "--check", "latnets").said(2, "(did you mean 'latents'?)")
    assert left() == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.safetensors"], "there is no checkpoint at no.safetensors"),
        (["--data", "no.npy"], "there are no data at no.npy"),
        (["--limit", "1"], "where at least two are needed"),
        (["--from", "no.json"], "there is no report at no.json"),
        (["--check", "mig"], "factors"),
    ],
)
def test_a_wrong_input_ends_with_2(command: Command, arguments: list[str], message: str) -> None:
    assert command("audit", *arguments, "--exit-zero").said(2, message)
    assert left() == set()


def test_a_check_that_the_data_cannot_answer_ends_with_2_and_keeps_what_was_found(command: Command) -> None:
    configure(LATENTS + MET + '[checks."mig.chen"]\nmin = 0\n')
    done = command("audit")
    assert done.code == 2
    assert "factors" in done.message
    assert ended() == ("error", "error", 2)
    assert FIGURE in report()["metrics"]
    assert [check["verdict"] for check in report()["checks"]] == ["inconclusive", "inconclusive"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [("cut off", "is cut off at line"), ("other samples", "is not the file that was written with the report")],
)
def test_a_damaged_baseline_ends_with_2_before_the_model_is_opened(
    command: Command, earlier: Path, fault: str, message: str
) -> None:
    shutil.copytree(earlier, "old")
    if fault == "cut off":
        file = Path("old/report.json")
        file.write_text(file.read_text()[:1000])
    else:
        file = Path("old/samples.safetensors")
        file.write_bytes(file.read_bytes() + b" ")
    configure(baseline("old"))
    adapter = own()
    before("own.py", OPENED)
    assert command("audit", "--adapter", adapter).said(2, message)
    assert left() == {"old", "own.py"}


# ---- 3: what could not complete


@pytest.mark.parametrize(
    ("deed", "message"),
    [
        ("raise RuntimeError('late')", "the model raised RuntimeError: late (own.py, line "),
        ("raise SystemExit(1)", "the model raised SystemExit: 1 (own.py, line "),
        ("raise type('Panic', (BaseException,), {})('late')", "the model raised Panic: late (own.py, line "),
        ("raise MemoryError", "the model raised MemoryError (own.py, line "),
        ("raise torch.OutOfMemoryError('simulated')", "the model raised OutOfMemoryError: simulated"),
        ("x.new_empty(2**60)", "the model raised RuntimeError: "),
        ("x = x * torch.nan", "NaN"),
    ],
)
def test_a_model_that_fails_in_the_middle_ends_with_3_and_keeps_what_was_found(
    command: Command, deed: str, message: str
) -> None:
    configure(NOISE + LATENTS + MET)
    done = command("audit", "--adapter", own(IN_THE_MIDDLE + deed), "--format", "json", "--exit-zero")
    assert done.code == 3
    assert message in done.message
    assert strict(done.out) == report()
    assert ended() == ("error", "error", 3)
    assert report()["error"] == done.message
    assert COMPARED in report()["metrics"]
    assert FIGURE not in report()["metrics"]
    assert report()["checks"][0]["verdict"] == "inconclusive"


@pytest.mark.parametrize("room", [8, 2])
def test_memory_that_holds_fewer_rows_than_asked_for_changes_nothing(command: Command, room: int) -> None:
    configure(LATENTS + MET)
    done = command("audit", "--adapter", own(f"if len(x) > {room}: raise torch.OutOfMemoryError('simulated')"))
    assert (done.code, done.err) == (0, "")
    less = report()["metrics"]
    assert command("audit", "--adapter", own()).code == 0
    assert less.keys() == report()["metrics"].keys()
    for name, figure in report()["metrics"].items():
        assert less[name]["value"] == pytest.approx(figure["value"], rel=1e-5)


def test_not_even_one_row_in_memory_ends_with_3(installed: Command) -> None:
    adapter = own("raise torch.OutOfMemoryError('simulated')")
    assert installed("audit", "--adapter", adapter).code == 3


@pytest.mark.parametrize(
    ("deed", "message"),
    [
        ("x = x * torch.inf", "NaN or infinite"),
        ("raise IndexError('no')", "the model raised IndexError: no (own.py, line "),
        ("sys.exit(1)", "the model raised SystemExit: 1 (own.py, line "),
    ],
)
def test_a_model_that_cannot_even_be_tried_ends_with_3_and_no_report(command: Command, deed: str, message: str) -> None:
    assert command("audit", "--adapter", own(deed), "--exit-zero").said(3, message)
    assert left() == {"own.py"}


def test_weights_that_are_not_finite_end_with_3(command: Command, projection: Any) -> None:
    broken = projection.weights()
    broken["decoder.2.bias"][0] = torch.nan
    save_file(broken, "vae.safetensors", projection.facts)
    assert command("audit").said(3, "decoder.2.bias holds 1 NaN or infinite value")


@pytest.mark.parametrize("where", ["vaeaudit.report.writer.render", "vaeaudit.audit.release.evaluate"])
def test_an_accident_of_our_own_never_reads_as_a_failed_check(installed: Command, where: str) -> None:
    configure(LATENTS + MET)
    adapter, (module, _, name) = own(), where.rpartition(".")
    before("own.py", f"import {module}\ndef broken(*_): raise ValueError('of our own')\n{module}.{name} = broken")
    done = installed("audit", "--adapter", adapter)
    assert done == (3, "", "error: unexpected ValueError: of our own; -v shows where, and a report helps\n")
    assert not Path("vaeaudit-report/report.json").exists()


# ---- 4: trust


class Evil:
    """Touches a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch canary",)


def test_a_checkpoint_that_would_run_code_ends_with_4_and_does_not(installed: Command, projection: Any) -> None:
    torch.save({"state_dict": projection.weights(), "callback": Evil()}, "vae.pt")
    Path("bare.pt").write_bytes(pickle.dumps(Evil()))
    for file in ("vae.pt", "bare.pt"):
        done = installed("audit", file, "--adapter", "mlp", "--exit-zero")
        assert done.said(4, "could run code, so it was not loaded")
    assert left() == {"vae.pt", "bare.pt"}


def test_data_that_would_run_code_are_left_out_or_end_with_4_and_do_not(installed: Command) -> None:
    objects = np.empty(2, object)
    objects[:] = [Evil(), Evil()]
    np.savez("both.npz", imgs=np.load("val.npy"), metadata=objects)
    np.savez("only.npz", imgs=objects)
    Path("bare.npz").write_bytes(pickle.dumps(Evil()))
    np.save("list.npy", objects, allow_pickle=True)
    assert "metadata: pickled objects are not loaded" in installed("doctor", "--data", "both.npz").out
    for data in ("only.npz", "bare.npz", "list.npy"):
        assert installed("doctor", "--data", data).said(4, "could run code")
    assert not Path("canary").exists()


# ---- 5: no verdict


def test_an_interval_across_its_threshold_ends_with_5(installed: Command) -> None:
    configure(LATENTS + ACROSS)
    done = installed("audit", "--exit-zero")
    assert (done.code, done.err) == (5, "")
    assert ended() == ("complete", "inconclusive", 5)
    assert "more items may tell" in report()["checks"][0]["why"]


def test_a_threshold_whose_check_is_not_run_ends_with_5_and_says_so(command: Command) -> None:
    configure(f'[run]\nchecks = ["latents"]\n{LATENTS}{MET}[checks."{COMPARED}"]\nmin = 0\n')
    done = command("audit", "--exit-zero")
    assert (done.code, done.err) == (5, "")
    assert ended() == ("complete", "inconclusive", 5)
    (check,) = (check for check in report()["checks"] if check["id"] == COMPARED)
    assert check["verdict"] == "inconclusive"
    assert "no such figure" not in check["why"]  # there is one, had its check been run


def test_a_model_that_does_not_pass_doctor_ends_with_5(command: Command) -> None:
    configure(LATENTS + MET)
    adapter = own("x = x.detach()")
    done = command("audit", "--adapter", adapter, "--exit-zero")
    assert (done.code, done.err) == (5, "")
    assert ended() == ("complete", "inconclusive", 5)
    assert report()["metrics"] == {}
    assert report()["checks"][0]["why"] == f"not measured: {report()['skipped']['latents']}"
    assert command("doctor", "--adapter", adapter).code == 5


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--seed", "1"], "their seeds differ (0 and 1)"),
        (["--data", "other.npy"], "their data differ"),
    ],
)
def test_audits_of_other_seeds_or_data_cannot_be_compared_and_end_with_5(
    command: Command, earlier: Path, projection: Any, arguments: list[str], why: str
) -> None:
    np.save("other.npy", projection.images(seed=2))
    configure(baseline(earlier))
    done = command("audit", *arguments, "--exit-zero")
    assert (done.code, done.err) == (5, "")
    assert ended() == ("complete", "inconclusive", 5)
    assert why in report()["baseline"]["refused"][0]
    done = command("compare", earlier, "vaeaudit-report", "--exit-zero", "--format", "json")
    assert done.code == 5
    assert strict(done.out)["verdict"] == "inconclusive"
    assert done.err.startswith(f"not compared: {why}")


def test_a_report_of_another_major_schema_ends_with_5_before_the_model_is_opened(
    command: Command, earlier: Path
) -> None:
    shutil.copytree(earlier, "old")
    newer = report("old") | {"schema_version": "2.0"}
    Path("old/report.json").write_text(json.dumps(newer))
    configure(baseline("old"))
    message = "has schema version 2.0, and this version of vaeaudit reads 1.x, so that it cannot be compared"
    assert command("audit", "--exit-zero").said(5, message)
    assert command("compare", "old", earlier, "--exit-zero").said(5, message)
    assert command("compare", earlier, "old").said(5, message)
    assert left() == {"old"}


# ---- 130: interruption

# Says that it is within the latents check, and stays there until it is told that the signal is on its way.
WAITING = """
if os.path.exists("stop") and noise_is_done():
    os.rename("stop", "there")
    while not os.path.exists("sent"): time.sleep(0.01)
with Path("count").open("a") as counting: counting.write("x")
"""
STOPPING = "stopping: keeping what has been found (once more to end at once)\n"


def interrupted(installed: Command, number: signal.Signals, *arguments: object, times: int = 1) -> Any:
    """An audit of noise and latents that is sent the signal within the latents."""
    Path("stop").touch()
    running = installed.start("audit", "--adapter", own(WAITING), *arguments)
    until = time.monotonic() + MOST_SECONDS
    while not Path("there").exists() and time.monotonic() < until:
        time.sleep(0.01)
    for _ in range(times):
        os.kill(running.pid, number)
        time.sleep(0.05)
    Path("sent").touch()
    done = running.end()
    Path("there").unlink()
    Path("sent").unlink()
    return done


def test_an_interrupted_audit_ends_with_130_and_goes_on_to_the_report_that_it_would_have_been(
    installed: Command,
) -> None:
    configure(NOISE + LATENTS + MET + "[run]\nbatch_size = 8\n")
    assert installed("audit", "--adapter", own(WAITING)).code == 0
    whole, files, calls = report(), contents(), Path("count").stat().st_size
    shutil.rmtree("vaeaudit-report")

    done = interrupted(installed, signal.SIGINT)
    assert (done.code, done.err) == (130, STOPPING)
    assert "verdict: inconclusive" in done.out
    assert ended() == ("interrupted", "inconclusive", 130)
    kept = report()
    noise = {name: value for name, value in whole["metrics"].items() if name.startswith("noise.")}
    assert noise == {name: value for name, value in kept["metrics"].items() if name.startswith("noise.")}
    assert kept["partial"] == ["interrupted: figures are of what was done until then"]
    assert [check["verdict"] for check in kept["checks"]] == ["inconclusive"]

    Path("count").unlink()
    done = installed("audit", "--adapter", own(WAITING), "--resume")
    assert (done.code, done.err) == (0, "")
    assert "verdict: passed" in done.out
    assert "interrupted:" not in done.out + Path("vaeaudit-report/report.md").read_text(encoding="utf-8")
    assert Path("count").stat().st_size < calls  # noise was not done again
    resumed = report()
    assert resumed["argv"][1:] == ["audit", "--adapter", "own.py:open", "--resume"]
    for told in (whole, resumed):
        for key in ("created", "timings", "argv"):
            del told[key]
    assert resumed == whole
    assert contents() == files
    assert {path.name for path in Path("vaeaudit-report").iterdir()} == {
        *whole["files"].values(),
        "report.json",
        "attestation.json",
    }


def contents() -> dict[str, bytes]:
    """All files of the report but those that tell when it was written."""
    return {
        path.name: path.read_bytes()
        for path in Path("vaeaudit-report").iterdir()
        if path.is_file() and path.suffix != ".md" and path.name not in ("report.json", "attestation.json")
    }


def test_a_terminated_audit_ends_with_130_whatever_exit_zero_says(installed: Command) -> None:
    configure(NOISE + LATENTS + MISSED)
    done = interrupted(installed, signal.SIGTERM, "--exit-zero", "--format", "json", "-q")
    assert (done.code, done.err) == (130, "")
    assert strict(done.out) == report()
    assert ended() == ("interrupted", "inconclusive", 130)
    assert COMPARED in report()["metrics"]


def test_an_audit_that_is_interrupted_twice_says_nothing_false_of_what_is_kept(installed: Command) -> None:
    configure(NOISE + LATENTS + MET)
    done = interrupted(installed, signal.SIGINT, times=2)
    assert (done.code, done.out) == (130, "")
    assert done.err.startswith(STOPPING)
    assert not Path("vaeaudit-report/report.json").exists()
    kept = list(Path("vaeaudit-report").glob("vaeaudit-journal/*.log"))
    assert len(kept) == 1
    assert "nothing was kept" not in done.err
    done = installed("audit", "--adapter", own(WAITING), "--resume")
    assert (done.code, done.err) == (0, "")
    assert not kept[0].exists()


SWALLOWING = """
import contextlib, os, signal, time
with contextlib.suppress(KeyboardInterrupt):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


def stopped_within(installed: Command, name: str, source: str) -> Any:
    """A command whose adapter is interrupted as it is loaded, and answers that as the source does."""
    adapter = own()
    before("own.py", source)
    return installed(name, "--adapter", adapter)


@pytest.mark.parametrize("name", ["doctor", "audit"])
def test_an_interruption_of_which_an_adapter_makes_nothing_ends_with_130_all_the_same(
    installed: Command, name: str
) -> None:
    done = stopped_within(installed, name, SWALLOWING)
    assert done.code == 130
    assert "passed" not in done.out
    if name == "doctor":
        assert (done.out, done.err) == ("", "interrupted; no report was written\n")
    else:
        assert ended() == ("interrupted", "inconclusive", 130)


RENAMING = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
except KeyboardInterrupt as error:
    raise RuntimeError("something went wrong") from error
"""


@pytest.mark.parametrize("name", ["doctor", "audit"])
def test_an_interruption_that_an_adapter_tells_as_an_error_of_its_own_ends_with_130_all_the_same(
    installed: Command, name: str
) -> None:
    done = stopped_within(installed, name, RENAMING)
    assert (done.code, done.out, done.err) == (130, "", "interrupted; no report was written\n")


def test_an_interruption_of_which_a_library_makes_nothing_while_no_work_is_done_ends_with_130(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaeaudit.model.adapters.installed_adapters", lambda: exec(SWALLOWING, {}) or [])
    done = command("adapters")
    assert (done.code, done.err) == (130, "interrupted\n")


def test_a_signal_while_the_command_line_is_loaded_ends_with_130() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it, and so would the run
    traced = [sys.executable, "-X", "importtime", "-m", "vaeaudit", "audit"]
    with subprocess.Popen(traced, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        seen = next((line for line in running.stderr if " vaeaudit.errors" in line), "")
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
    assert seen
    assert running.returncode == 130
    assert [line for line in rest.splitlines() if not line.startswith("import time:")] == ["interrupted"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not show what a process has loaded")
def test_a_signal_while_torch_is_loaded_ends_with_130() -> None:
    command = Path(sys.executable).with_name("vaeaudit")
    running = subprocess.Popen([command, "audit"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{running.pid}/maps")
    while running.poll() is None and "libtorch" not in maps.read_text():
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    out, err = running.communicate(timeout=MOST_SECONDS)
    assert (running.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert err.endswith("interrupted\n")
    assert left() == set()


# ---- Places where nothing can be written

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


@needs_full
def test_a_full_stdout_ends_with_2_and_the_report_is_kept(installed: Command) -> None:
    configure(LATENTS + MISSED)
    done = installed("audit", out="/dev/full")
    assert done.said(2, "stdout cannot be written: No space left on device; give --output FILE")
    assert ended() == ("complete", "failed", 2)


@needs_full
@pytest.mark.parametrize("arguments", [["--help"], ["noise", "--help"], ["--version"]])
def test_help_that_cannot_be_printed_ends_with_2(installed: Command, arguments: list[str]) -> None:
    assert installed(*arguments, out="/dev/full").said(2, "stdout cannot be written: No space left on device")


@needs_full
def test_a_full_output_file_ends_with_2_and_the_report_is_kept(command: Command) -> None:
    done = command("audit", "-o", "/dev/full")
    assert done.said(2, "/dev/full cannot be written: No space left on device; name another place")
    assert ended() == ("complete", "ungated", 2)


@needs_full
@pytest.mark.parametrize(("settings", "code"), [(MISSED, 1), (ACROSS, 5), ("[run]\nsede = 1\n", 2)])
def test_a_full_stderr_changes_no_exit_code(installed: Command, settings: str, code: int) -> None:
    configure(LATENTS + settings)
    assert installed("audit", err="/dev/full").code == code


# A file system of its own, of so many bytes, for this process alone, whose files are listed at its end.
SMALL = """
import atexit, ctypes, os
if ctypes.CDLL(None).unshare(0x20000) or os.system("mount --make-rprivate / && mount -t tmpfs -o size={size} x small"):
    os._exit(77)
atexit.register(os.system, "find small -type f")
"""


@pytest.mark.parametrize(("size", "full"), [("48k", "vaeaudit-journal/"), ("240k", "items.json")])
def test_a_full_file_system_ends_with_2_and_leaves_no_half_written_report(
    installed: Command, size: str, full: str
) -> None:
    configure(LATENTS + NOISE + MET)
    Path("small").mkdir()
    done = installed("audit", "-q", "--out", "small/report", first=SMALL.replace("{size}", size), whole=True)
    if done.code == 77:
        pytest.skip(f"no small file system can be made here: {done.err.strip()}")
    assert done.code == 2, done
    assert "No space left on device" in done.message
    assert f"small/report/{full}" in done.message
    assert "small/report/vaeaudit-journal/" in done.out  # what was found is kept
    assert not re.search(r"report\.json|/\.", done.out)


def no_file_over(largest: int) -> str:
    return f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest}, {largest}))"


@pytest.mark.parametrize("largest", [4_000, 80_000])
def test_a_file_that_may_not_grow_ends_with_2_and_nothing_is_half_written(installed: Command, largest: int) -> None:
    configure(NOISE + MET.replace(FIGURE, COMPARED))
    done = installed("audit", first=no_file_over(largest), whole=True)
    assert done.said(2, "cannot be written: File too large; name another place")
    assert not list(Path("vaeaudit-report").glob("report.json"))
    assert not list(Path("vaeaudit-report").rglob(".*"))


def test_a_check_whose_result_cannot_be_kept_is_never_passed_over(installed: Command) -> None:
    configure("")  # all checks, each only if the model and the data allow it; but most take seconds
    adapter = own()
    before(
        "own.py",
        "import vaeaudit.audit.run as a; w = a.works_of\n"
        "a.works_of = lambda c, s: w(c, s) if c.name == 'noise' else {}",
    )
    done = installed("audit", "--adapter", adapter, first=no_file_over(10_000))
    assert done.said(2, "cannot be written: File too large; name another place")
    assert "vaeaudit-journal" in done.message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "/proc/vaeaudit"], "nothing can be written to /proc/vaeaudit: "),
        (["--out", "val.npy"], "nothing can be written to val.npy: File exists; name another place with --out"),
        (["--out", "val.npy/report"], "nothing can be written to val.npy/report: Not a directory"),
        (["-o", "/proc/vaeaudit/result"], "nothing can be written to /proc/vaeaudit: "),
        (["-o", "val.npy/result"], "nothing can be written to val.npy: File exists; name another place with --output"),
        (["-o", "."], "--output must name a file, but '.' is a folder"),
    ],
)
def test_a_place_that_cannot_be_written_ends_with_2_before_the_model_is_opened(
    command: Command, arguments: list[str], message: str
) -> None:
    adapter = own()
    before("own.py", OPENED)
    assert command("audit", "--adapter", adapter, *arguments).said(2, message)
    assert left() == {"own.py"}


def test_a_file_in_place_of_the_journal_ends_with_2_and_stays(command: Command) -> None:
    Path("vaeaudit-report").mkdir()
    Path("vaeaudit-report/vaeaudit-journal").write_text("mine")
    done = command("audit", "--check", "latents")
    assert done.said(2, "vaeaudit-journal")
    assert Path("vaeaudit-report/vaeaudit-journal").read_text() == "mine"


def test_a_reader_who_leaves_early_changes_no_exit_code(installed: Command) -> None:
    configure(LATENTS + MISSED)
    assert installed("audit", "-q", "--format", "json", out="|") == (1, "", "")
    assert ended() == ("complete", "failed", 1)
    done = installed.cold("attack", "--help", shell='"$@" | head -1; echo ${PIPESTATUS[0]}')
    assert (done.out, done.err) == ("Usage: vaeaudit attack [OPTIONS] [MODEL]\n0\n", "")


# ---- Streams

CHATTY = """
print("chatter", flush=True)
sys.stdout.write("more chatter")
warnings.warn("careful")
time.sleep(0.03)
"""
WARNS = MISSED + 'severity = "warn"\n[baseline]\npath = "none.json"\n'


def test_json_on_stdout_is_nothing_but_json_beside_warnings_chatter_and_a_running_progress(
    installed: Command,
) -> None:
    configure(LATENTS + WARNS)
    ours, theirs = pty.openpty()
    seen: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(ours, 4096):
                seen.append(piece)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    done = installed("audit", "--adapter", own(CHATTY), "--format", "json", "-v", err=os.ttyname(theirs))
    os.close(theirs)
    reader.join()
    os.close(ours)
    shown = b"".join(seen).decode()
    assert done.code == 0
    assert strict(done.out) == report()
    assert len(report()["warnings"]) == 2
    for text in ("opening the model and the data", "chatter", "careful", "\x1b["):
        assert text in shown


def test_json_on_stdout_is_nothing_but_json_where_code_below_python_writes_to_it(installed: Command) -> None:
    done = installed("audit", "--adapter", own('os.write(1, b"below")\nos.system("echo beside")'), "--format", "json")
    assert done.code == 0
    assert strict(done.out) == report()
    assert "below" in done.err
    assert "beside" in done.err


def test_json_is_strict_where_figures_are_not_finite(command: Command, projection: Any) -> None:
    projection.fill(Path(), stddev="1e-30")
    done = command("audit", "--format", "json")
    assert (done.code, done.err) == (5, "")
    assert strict(done.out) == report()


def test_verbose_adds_a_traceback_to_stderr_alone(command: Command) -> None:
    configure(NOISE + LATENTS)
    adapter = own(IN_THE_MIDDLE + "raise RuntimeError('late')")
    done = command("audit", "--adapter", adapter, "--format", "json", "-v")
    assert done.code == 3
    assert strict(done.out) == report()
    assert done.err.startswith("Traceback (most recent call last):\n")
    assert done.err.splitlines()[-1].startswith("error: the model raised RuntimeError: late")
    done = command("audit", "no.safetensors", "-v", "--out", "none")
    assert done.err.startswith("Traceback (most recent call last):\n")
    assert done.err.splitlines()[-1].startswith("error: there is no checkpoint at no.safetensors")


@pytest.mark.parametrize("form", ["junit", "markdown"])
def test_a_result_goes_whole_to_stdout(command: Command, form: str) -> None:
    configure(LATENTS + MISSED)
    done = command("audit", "--format", form)
    assert (done.code, done.err) == (1, "")
    if form == "junit":
        root = ET.fromstring(done.out)
        assert root.tag == "testsuites"
        assert root.get("failures") == "1"
        assert done.out.startswith("<?xml")
    else:
        assert done.out == Path("vaeaudit-report/report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("settings", [MISSED, WARNS])
def test_quiet_leaves_stderr_empty_and_of_a_result_on_stdout_its_last_line(command: Command, settings: str) -> None:
    configure(LATENTS + settings)
    done = command("audit", "-q")
    assert done.err == ""
    decided = "" if settings == WARNS else ", decided by latents.kl.median: even the upper end .* is below 9"
    assert re.fullmatch(f"verdict: {report()['verdict']}{decided}; report: vaeaudit-report/report.md\n", done.out)


@pytest.mark.parametrize("check", ["latents", "noise", "weights"])
def test_quiet_leaves_one_line_of_every_check(command: Command, check: str) -> None:
    configure(NOISE + LATENTS)
    done = command(check, "-q", "--out", "r")
    assert (done.code, done.err, done.out) == (0, "", "verdict: ungated; report: r/report.md\n")


def test_quiet_leaves_one_line_of_doctor_and_of_a_comparison(command: Command, earlier: Path) -> None:
    assert command("doctor", "-q") == (0, "verdict: plausible\n", "")
    done = command("compare", earlier, earlier, "-q")
    assert done.err == ""
    assert re.fullmatch(r"verdict: \w+, of \d+ metrics .*\n", done.out)


def test_quiet_leaves_whole_what_is_for_a_program_or_a_file(command: Command) -> None:
    assert strict(command("latents", "-q", "--format", "json").out) == report()
    assert command("latents", "-q", "-o", "result.txt") == (0, "", "")
    assert "latents.elbo " in Path("result.txt").read_text(encoding="utf-8")


def test_quiet_still_tells_an_error(command: Command) -> None:
    configure(LATENTS + "[run]\nsede = 1\n")
    assert command("audit", "-q").said(2, "unknown key 'sede'")
