"""The command line: exit codes, messages, streams, interruption; nothing half-written, whatever comes in."""

import io
import json
import os
import re
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vaeaudit.optim.gauss_newton import GaussNewton

COMMAND = Path(sys.executable).with_name("vaeaudit")
FAST = ("--pairs", "2", "--lambdas", "3", "--max-evaluations", "400")
REPORT = {
    "adversarial.safetensors",
    "attack-latent-curve.png",
    "items.json",
    "report.json",
    "report.md",
    "samples.safetensors",
}
# The projection of conftest.py as an adapter of a user's own; tests replace parts of it.
ADAPTER = """
import builtins, os, time, traceback
import torch
from torch import nn
import vaeaudit


class Own(nn.Module):
    input_shape, range = (1, 4, 4), (0.0, 1.0)

    def __init__(self, tensors):
        super().__init__()
        self.basis = nn.Parameter(tensors["encoder.mean.0.weight"].t().contiguous())
        self.calls = 0

    @property
    def prior(self):
        return vaeaudit.DiagonalGaussian.standard((3,), like=self.basis)

    def encode(self, x):
        mean = (x.flatten(1) - 0.5) @ self.basis
        return vaeaudit.DiagonalGaussian(mean, torch.full_like(mean, -3.0))

    def decode(self, z):
        return vaeaudit.GaussianLikelihood((0.5 + z @ self.basis.t()).unflatten(1, (1, 4, 4)), z.new_tensor(-2.0))
"""


Cli = Callable[..., Any]  # `Outcome` of conftest.py


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, projection: Any) -> None:
    """A folder of its own with a model and data, outside any repository, and no variables set."""
    for name in [*os.environ]:
        if name.startswith("VAEAUDIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    projection.fill(tmp_path)


@pytest.fixture
def attack(command: Cli) -> Cli:
    """A small attack; further arguments follow and win."""
    return lambda *more, model="vae.safetensors": command("attack", model, "--data", "val.npy", *FAST, *more)


def own(body: str, name: str) -> str:
    """Write an adapter whose class Sub and function open are ``body``; how it is named on the command line."""
    Path(f"{name}.py").write_text(f"{ADAPTER}\n\n{textwrap.dedent(body)}")
    return f"{name}.py:open"


def sub(methods: str) -> str:
    return f"class Sub(Own):\n{textwrap.indent(textwrap.dedent(methods), '    ')}\n\n" + textwrap.dedent(
        """
        def open(checkpoint, config):
            return Sub(checkpoint.tensors)
        """
    )


def here() -> set[str]:
    return {path.name for path in Path().iterdir()} - {"vae.safetensors", "val.npy", "__pycache__"}


def report(folder: str = "vaeaudit-report") -> dict[str, object]:
    text = (Path(folder) / "report.json").read_text()
    content: dict[str, object] = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in report.json"))
    return content


# ---- A sound run, help and version


@pytest.mark.parametrize(("stated", "holds"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_leave_the_processor_to_others_unless_told_otherwise(
    stated: str | None, holds: str, command: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, stated or "")  # put back afterwards
        if stated is None:
            monkeypatch.delenv(name)
    assert command("--version").code == 0
    assert os.environ["OMP_WAIT_POLICY"] == holds
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (stated or ":4096:8")


@pytest.mark.whole
def test_an_attack_writes_its_report_and_prints_the_same_figures(attack: Cli) -> None:
    done = attack("--format", "json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == report()
    assert {path.name for path in Path("vaeaudit-report").iterdir()} == {*REPORT, "attack-latent-panel.png"}
    assert report()["exit_code"] == 0


@pytest.mark.whole
def test_the_pairs_of_an_attack_are_followed(attack: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, advance = [], GaussNewton.advance
    monkeypatch.setattr(GaussNewton, "advance", lambda *given: (steps.append(given), advance(*given))[1])
    monkeypatch.setattr("vaeaudit.attacks.search.rungs", lambda *_: [])
    # As few evaluations as make enough steps for so small a model.
    done = attack("--pairs", "1", "--lambdas", "2", "--max-evaluations", "800")
    assert (done.code, done.err) == (0, "")
    assert steps


def test_doctor_prints_what_it_saw_and_writes_nothing(command: Cli) -> None:
    done = command("doctor", "vae.safetensors", "--data", "val.npy")
    assert (done.code, done.err) == (0, "")
    assert "verdict: plausible" in done.out
    assert here() == set()
    listed = json.loads(command("doctor", "vae.safetensors", "--data", "val.npy", "--format", "json").out)
    assert listed["plausibility"]["passed"] is True
    assert listed["model"]["options"] == {
        "likelihood": "gaussian",
        "stddev": 0.1,
        "input_shape": [1, 4, 4],
        "range": [0, 1],
    }


def test_markdown_on_stdout_is_the_report_file(attack: Cli) -> None:
    done = attack("--format", "markdown", "--out", "a b/ü")
    assert done.out == Path("a b/ü/report.md").read_text(encoding="utf-8")


def test_the_command_alone_shows_its_help_as_usage_error(command: Cli) -> None:
    done = command()
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: vaeaudit [OPTIONS] COMMAND")


# ---- Wrong options, variables and configuration


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "0"], "--pairs must be at least 1, but 0 came"),
        (["--pairs", "-1"], "--pairs must be at least 1, but -1 came"),
        (["--pairs", "1e9"], "--pairs must be a valid integer, but '1e9' came"),
        (["--pairs", ""], "--pairs must be a valid integer, but '' came"),
        (["--pairs", "2000"], "40 items make 1560 pairs, fewer than the 2000 asked for"),
        (["--pairs", "1000000000"], "--pairs must be at most 100000, but 1000000000 came"),
        (["--lambdas", "1000000000"], "--lambdas must be at most 10000, but 1000000000 came"),
        (["--restarts", "1000000000"], "--restarts must be at most 100, but 1000000000 came"),
        (["--max-evaluations", "1000000000"], "--max-evaluations must be at most 1000000, but 1000000000 came"),
        (["--lambdas", "0"], "--lambdas must be at least 1, but 0 came"),
        (["--max-evaluations", "0"], "--max-evaluations must be at least 1, but 0 came"),
        (["--seed", "x"], "--seed must be a valid integer, but 'x' came"),
        (
            ["--range", "1", "0"],
            "--range must be two numbers LO < HI, of which either may be infinite",
        ),
        (["--range", "nan", "1"], "for each channel or feature, but (nan, 1.0) came"),
        (["--range", "0.5", "inf"], "but the model takes [0.5, inf)"),
        (["--range", "a", "b"], "--range must be a valid number, but 'a' came"),
        (["--range", "0", "0.5"], "but the model takes [0, 0.5]; map them as training did (bytes"),
        (["--dtype", "float16"], "--dtype must be 'float32', 'float64' or 'bfloat16', but 'float16' came"),
        (["--device", "nonsense"], "there is no device 'nonsense'; expected auto, cpu, cuda or cuda:N"),
        (["--device", "mps"], "device 'mps' has no float64, in which distances and errors are computed"),
        (["--device", ""], "--device must be a text that is not empty"),
        (["--device", "cuda:4711"], "device 'cuda:4711' is not on this machine; leave --device out"),
        (["--batch-size", "0"], "--batch-size must be at least 1 or 'auto', but 0 came"),
        (["--batch-size", "-1"], "--batch-size must be at least 1 or 'auto', but -1 came"),
        (["--batch-size", "x"], "--batch-size must be a valid integer or 'auto', but 'x' came"),
        (["--batch-size", "²"], "--batch-size must be a valid integer or 'auto', but '²' came"),
        (["--limit", "0"], "--limit must be at least 1, but 0 came"),
        (["--limit", "1"], "--limit leaves 1 of 40 items, where at least two are needed"),
        (["--mode", "outptu"], "or 'worst', but 'outptu' came (did you mean 'output'?)"),
        (["--mode", "latnt"], "but 'latnt' came (did you mean 'latent'?)"),
        (["--similarity", "KL"], "--similarity must be 'kl', 'reverse-kl', "),
        (["--penalty", "l1"], "--penalty must be 'l2' or 'l2sq', but 'l1' came"),
        (
            ["--format", "jsn"],
            "--format must be one of 'table', 'json', 'markdown', 'junit', 'github', but 'jsn' came",
        ),
        (["--resize", "bilinea"], "(did you mean 'bilinear'?)"),
        (
            ["--adapter", "mpl"],
            "there is no adapter 'mpl' (did you mean 'mlp'?); installed are burgess, diffusers, ",
        ),
        (["--adapter", ""], "--adapter must be a text that is not empty"),
        (["--adapter", "x.py"], "there is no adapter 'x.py' (did you mean 'x.py:open'?)"),
        (["--adapter", "x.py:open"], "there is no adapter file x.py"),
        (["--adapter", ":open"], "there is no adapter ':open'"),
        (["--adapter", "no.such:open"], "cannot be imported: ModuleNotFoundError: No module named 'no'"),
        (["--adapter", "json:open"], "adapter 'json:open' defines no function 'open'"),
        (["--adapter", "burgess"], "the checkpoint does not fit this adapter (missing: encoder.conv1.weight"),
        (
            ["--option", "activation"],
            "an option of an adapter is NAME=VALUE, as in activation=tanh, but 'activation' came",
        ),
        (["--option", "activaton=tanh"], "no option 'activaton' (did you mean 'activation'?)"),
        (["--option", "activation=tan"], "adapter 'mlp' cannot take activation = 'tan'"),
        (["--out", ""], "--out must be a text that is not empty"),
        (["-o", ""], "--output must name a file, but nothing came"),
        (["-o", "a\0b"], "--output must name a file, but 'a\\x00b' holds a NUL"),
        (["--batch-size", "9" * 5000], "--batch-size must be a valid integer or 'auto', but '9999"),
        (["--seed", "9" * 5000], "--seed must be a whole number of fewer digits, but '9999"),
        (["--config", "no.toml"], "there is no configuration file 'no.toml'; expected a TOML file"),
        (["--config", "x", "--isolated"], "--config names a file and --isolated reads none; give one of them"),
        (["--par", "2"], "No such option: --par"),
        (["--pair", "2"], "'2' names a source without a target; write it as in 3:7"),
        (["more"], "Got unexpected extra argument(s) (more); see vaeaudit attack --help"),
    ],
)
def test_a_wrong_option_ends_with_one_sentence_and_leaves_nothing(
    attack: Cli, arguments: list[str], message: str
) -> None:
    done = attack(*arguments)
    assert (done.code, done.out) == (2, "")
    if "unexpected extra" not in message and "cannot take" not in message:
        assert message in done.message
    assert message in done.err
    assert here() == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["atack"], "No such command 'atack'. Did you mean 'attack'?; see vaeaudit --help"),
        (["--versoin"], "No such option: --versoin (Possible options: --version); see vaeaudit --help"),
        (["attack"], "no model is named; give one, as in `vaeaudit attack vae.safetensors --data val.npz`"),
        (["attack", "vae.safetensors"], "no data are named; give them, as in `--data val.npz`"),
        (["attack", ""], "MODEL must be a text that is not empty, but '' came"),
        (["attack", "-d.safetensors"], "No such option: -d; see vaeaudit attack --help"),
        (["doctor", "no.pt", "--data", "val.npy"], "there is no checkpoint at no.pt; give a .safetensors, .pt"),
        (["doctor", "vae.safetensors", "--data", "no.npy"], "there are no data at no.npy"),
    ],
)
def test_what_is_not_named_or_not_there_is_told(command: Cli, arguments: list[str], message: str) -> None:
    done = command(*arguments)
    assert done.said(2, message)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--lambdas", "1", "--max-evaluations", "3000", "--seed", "-5"],
        ["--max-evaluations", "1", "--batch-size", "1", "--mode", "latent", "--mode", "latent"],
        ["--seed", str(2**70), "--dtype", "float64", "--limit", "99999"],
        ["--range", "-1", "2", "--batch-size", "auto"],
        ["--penalty", "l2sq", "--similarity", "wasserstein"],
    ],
    ids=" ".join,
)
def test_odd_but_possible_options_give_a_whole_report(attack: Cli, arguments: list[str]) -> None:
    done = attack(*arguments, "--format", "json")
    # A norm-like similarity has a crease at the match; where the search sticks in it, the failure signs say so.
    verdict = report()["verdict"]
    assert (done.code, done.err) == (5 if verdict == "inconclusive" and "wasserstein" in arguments else 0, ""), report()
    assert json.loads(done.out) == report()
    assert len(report()["attacks"]) == 1  # type: ignore[arg-type]


def test_a_limit_is_told_as_partial_and_what_two_items_leave_unsure_is_a_warning(attack: Cli) -> None:
    done = attack("--limit", "2")
    assert done.code == 0
    assert report()["partial"] == [
        "only the first 2 of 40 items, in the order of the data; --sample 2 draws them at random"
    ]
    assert report()["verdict"] == "ungated"
    warnings = report()["warnings"]
    assert isinstance(warnings, list)
    assert any("is unsure; if it is meant, say why in [doctor.acknowledge]" in told for told in warnings), warnings
    assert "partial: only the first 2 of 40 items" in done.out


def test_flags_win_over_variables_over_the_file_over_facts(attack: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("vaeaudit.toml").write_text("[run]\nseed = 1\nlimit = 30\n[model]\noptions = { stddev = 0.2 }\n")
    monkeypatch.setenv("VAEAUDIT_RUN_SEED", "2")
    monkeypatch.setenv("VAEAUDIT_RUN_LIMIT", "35")
    monkeypatch.setenv("VAEAUDIT_RUN_OUT", "")  # an empty variable says nothing
    assert attack("--seed", "3").code == 0
    written = report()
    assert written["configuration"]["run"] | {"out": ""} == {  # type: ignore[index]
        "seed": 3, "limit": 35, "sample": None, "batch_size": "auto", "device": "auto", "dtype": "float32",
        "tf32": False, "out": "", "checks": ["attack"],
    }  # fmt: skip
    sources = written["configuration_sources"]
    assert isinstance(sources, dict)
    assert sources["run.seed"] == "--seed"
    assert sources["run.limit"] == "VAEAUDIT_RUN_LIMIT"
    assert sources["model.path"] == "MODEL"
    assert sources["data.source"] == "--data"
    assert sources["model.options"] == str(Path("vaeaudit.toml").resolve())
    assert written["model"]["options"] == {  # type: ignore[index]
        "likelihood": "gaussian", "stddev": 0.2, "input_shape": [1, 4, 4], "range": [0, 1]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("VAEAUDIT_RUN_SEED", "x", "VAEAUDIT_RUN_SEED must be a valid integer, but 'x' came"),
        ("VAEAUDIT_ATTACK_PAIRS", "0", "VAEAUDIT_ATTACK_PAIRS must be at least 1, but 0 came"),
        (
            "VAEAUDIT_RUN_DTYPE",
            "half",
            "VAEAUDIT_RUN_DTYPE must be 'float32', 'float64' or 'bfloat16', but 'half' came",
        ),
        ("VAEAUDIT_NOISE_CLIP", "2", "VAEAUDIT_NOISE_CLIP must be a valid boolean, but 2 came"),
        ("VAEAUDIT_MARGIN_LEVEL", "yes", "VAEAUDIT_MARGIN_LEVEL must be a valid number, but 'yes' came"),
        ("VAEAUDIT_NOISE_SIGMAS", "0.1,x", "VAEAUDIT_NOISE_SIGMAS must be a valid number, but 'x' came"),
        ("VAEAUDIT_ATTACK_MODES", "latent,damages", "but 'damages' came (did you mean 'damage'?)"),
        ("VAEAUDIT_DATA_RANGE", "0,x", "VAEAUDIT_DATA_RANGE must be"),
        ("VAEAUDIT_BASELINE_MIN_EFFECT", "0.1", "VAEAUDIT_BASELINE_MIN_EFFECT must be"),
        ("VAEAUDIT_CHECKS", "0.1", "VAEAUDIT_CHECKS must be a table as JSON, but '0.1' came"),
        ("VAEAUDIT_CHECKS", '{"mig.chen": {"mni": 1}}', "VAEAUDIT_CHECKS: unknown key 'mni'"),
        ("VAEAUDIT_SEED", "x", "VAEAUDIT_SEED must be a valid integer, but 'x' came"),
        ("VAEAUDIT_CONFIG", "no.toml", "there is no configuration file 'no.toml'"),
    ],
)
def test_a_wrong_variable_is_named(
    command: Cli, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    done = command("attack", "vae.safetensors", "--data", "val.npy", "-q")
    assert done.said(2, message)


def test_the_file_of_the_repository_is_found_below_it_and_its_paths_are_from_there(
    command: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path(".git").mkdir()
    Path("sub/folder").mkdir(parents=True)
    Path("vaeaudit.toml").write_text("[model]\npath = 'vae.safetensors'\n[data]\nsource = 'val.npy'\n")
    monkeypatch.chdir("sub/folder")
    assert command("doctor").code == 0
    assert command("doctor", "--isolated").message.startswith("no model is named")
    monkeypatch.setenv("VAEAUDIT_CONFIG", str(tmp_path / "vaeaudit.toml"))
    assert command("doctor", "--isolated").message.startswith("no model is named")
    monkeypatch.chdir("/")
    assert command("doctor").code == 0


def test_odd_file_names_are_taken_as_they_are(command: Cli) -> None:
    for name in ("a b é:λ.safetensors", "-d.safetensors"):
        shutil.copy("vae.safetensors", name)
    assert "a b é:λ.safetensors" in command("doctor", "a b é:λ.safetensors", "--data", "val.npy").out
    assert command("doctor", "--data", "val.npy", "--", "-d.safetensors").code == 0
    assert command("doctor", "./-d.safetensors", "--data", "val.npy").code == 0


# ---- Wrong models and data


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_checkpoints_of_other_precision_are_audited_in_the_precision_asked_for(
    attack: Cli, projection: Any, dtype: torch.dtype
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in projection.weights().items()}
    save_file(tensors, "vae.safetensors", projection.facts)
    assert attack().code == 0
    assert report()["environment"]["dtype"] == "float32"  # type: ignore[index]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda x: x[:, :, :3], 2, "items are 1x3x4 but the model takes 1x4x4; --resize bilinear resizes them"),
        (lambda x: x * 3, 2, "but the model takes [0, 1]; map them as training did (bytes"),
        (lambda x: x[:1], 2, "val.npy holds 1 item, where at least two are needed"),
        (lambda x: x[:0], 2, "holds no items"),
        (lambda x: np.repeat(x[:1], 9, 0), 2, "at least two different items are needed to try the model"),
        (lambda x: np.full_like(x, np.nan), 2, "NaN or infinite values of 640"),
    ],
    ids=["shape", "range", "one", "none", "all equal", "nan"],
)
def test_data_that_do_not_fit_are_told(
    attack: Cli, change: Callable[[np.ndarray], np.ndarray], code: int, message: str
) -> None:
    np.save("val.npy", change(np.load("val.npy")))
    done = attack()
    assert done.said(code, message)
    assert here() == set()


def save_odd(projection: Any, shape: tuple[int, ...], latents: int, **facts: str | None) -> None:
    """The projection and its data for another shape of input."""
    other = type(projection)(shape, latents)
    stated = {**other.facts, **{f"vaeaudit.{k}": v for k, v in facts.items()}}
    save_file(other.weights(), "vae.safetensors", {k: v for k, v in stated.items() if v is not None})
    z = np.random.default_rng(1).uniform(-0.4, 0.4, (40, latents)) / latents**0.5
    np.save("val.npy", np.clip(0.5 + z @ other.basis.numpy().T, 0, 1).astype(np.float32).reshape(40, *shape))


@pytest.mark.figures
@pytest.mark.parametrize(
    ("shape", "latents", "facts", "drawn"),
    [
        ((3, 4, 4), 3, {}, True),
        ((1, 3, 6), 1, {}, True),
        ((2, 4, 4), 2, {}, False),
        ((1, 2, 3, 2), 2, {}, False),
        ((7,), 3, {"range": None}, False),
        ((1,), 1, {}, False),
        ((1, 4, 4), 3, {"stddev": "1e-30"}, True),
    ],
    ids=[
        "rgb",
        "not square, one latent",
        "two channels",
        "volume",
        "vector without range",
        "one number",
        "infinite nll",
    ],
)
def test_odd_models_are_audited_and_drawn_where_they_are_images(
    attack: Cli, projection: Any, shape: tuple[int, ...], latents: int, facts: dict[str, str | None], drawn: bool
) -> None:
    save_odd(projection, shape, latents, **facts)
    done = attack()
    assert (done.code, done.err) == (0, "")
    assert {path.name for path in Path("vaeaudit-report").iterdir()} == REPORT | (
        {"attack-latent-panel.png"} if drawn else set()
    )
    files = report()["files"]
    assert isinstance(files, dict)
    assert ("latent panel" in files) is drawn
    (entry,) = report()["attacks"]  # type: ignore[misc]
    assert entry["box"] == (None if "range" in facts else [0, 1])


# ---- Adapters of the user's own


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("raise ValueError('boom\\nline two')", 2, r"imported: ValueError: boom line two \(own0.py, line \d+\)"),
        ("def :", 2, r"cannot be imported: SyntaxError: invalid syntax \(own1.py, line \d+\)$"),
        ("import sys; sys.exit(0)", 2, r"cannot be imported: SystemExit: 0 \(own2.py, line \d+\)"),
        ("def open(c, o): raise RuntimeError('bad')", 2, r"could not open vae.safetensors: RuntimeError: bad \(own3"),
        ("def open(c, o): raise SystemExit(1)", 2, r"could not open vae.safetensors: SystemExit: 1 \(own4"),
        ("def open(): pass", 2, r"TypeError: open\(\) takes 0 positional arguments but 2 were given; see docs"),
        ("open = 3", 2, "defines no function 'open'"),
        (sub("range = (1, 0)"), 3, r"whose range is \(1, 0\), where two numbers LO < HI"),
        (sub("def encode(self, x): raise IndexError('no')"), 3, r"raised IndexError: no \(own15.py, line \d+\) when"),
        (sub("def encode(self, x): raise SystemExit(0)"), 3, r"the model raised SystemExit: 0 \(own16"),
        (
            sub("def encode(self, x): z = x.flatten(1)[:, :3]; return vaeaudit.DiagonalGaussian(z * torch.inf, z)"),
            3,
            "the posterior mean is NaN or infinite for 40 of 40 items",
        ),
    ],
)  # fmt: skip
def test_an_adapter_that_raises_or_returns_nonsense_is_told(
    attack: Cli, request: pytest.FixtureRequest, body: str, code: int, message: str
) -> None:
    number = re.search(r"own(\d+)", message)
    name = number[0] if number else f"own_{request.node.callspec.id.encode().hex()[-12:]}"
    done = attack("--adapter", own(body, name))
    assert (done.code, done.out) == (code, "")
    assert re.search(message, done.message)
    assert here() == {f"{name}.py"}


LATE = """
def {method}(self, x):
    self.calls += any("checks/attack" in frame.f_code.co_filename for frame, _ in traceback.walk_stack(None))
    if self.calls > {after}:
        {deed}
    return super().{method}(x)
"""


@pytest.mark.parametrize(
    ("method", "deed", "message"),
    [
        ("encode", "raise RuntimeError('late')", "the model raised RuntimeError: late (late_0.py, line "),
        ("decode", "raise RuntimeError('late')", "the model raised RuntimeError: late (late_1.py, line "),
        ("encode", "raise BrokenPipeError", "the model raised BrokenPipeError (late_3.py, line "),
        ("encode", "raise torch.OutOfMemoryError('x')", "not even one row of the model fits into memory"),
        ("encode", "return super().encode(x * torch.nan)", "the sweep's result is not finite"),
    ],
)  # fmt: skip
def test_an_error_in_the_middle_ends_with_3_and_a_report_that_says_so(
    attack: Cli, method: str, deed: str, message: str
) -> None:
    number = re.search(r"late_\d", message)
    name = number[0] if number else f"late_{len(message)}"
    after = 20 if method == "encode" else 1
    done = attack("--adapter", own(sub(LATE.format(method=method, deed=deed, after=after)), name))
    assert done.code == 3
    assert message in done.message
    assert "verdict: error" in done.out
    written = report()
    assert (written["status"], written["verdict"], written["exit_code"]) == ("error", "error", 3)
    assert message in str(written["error"])
    assert {path.name for path in Path("vaeaudit-report").iterdir()} == {"report.json", "report.md"}


def test_an_adapter_finds_the_code_beside_it_and_may_use_dataclasses(command: Cli) -> None:
    place = Path("elsewhere")
    place.mkdir()
    (place / "beside_the_adapter.py").write_text(ADAPTER)
    (place / "with_neighbour.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom beside_the_adapter import Own\n"
        "@dataclass\nclass Options:\n    size: int = 4\n"
        "def open(checkpoint, config):\n    Options()\n    return Own(checkpoint.tensors)\n"
    )
    done = command("doctor", "vae.safetensors", "--data", "val.npy", "--adapter", "elsewhere/with_neighbour.py:open")
    assert (done.code, done.err) == (0, "")


def test_a_module_meant_as_a_file_is_suggested(attack: Cli) -> None:
    own(sub("pass"), "not_a_module_here")
    done = attack("--adapter", "not_a_module_here:open")
    assert "(did you mean 'not_a_module_here.py:open'?)" in done.message


def test_facts_meant_for_another_adapter_do_not_reach_the_one_that_is_named(attack: Cli) -> None:
    body = """
    def open(checkpoint, config):
        assert dict(config) == {"a": [1]}, config
        return Own(checkpoint.tensors)
    """
    assert attack("--adapter", own(body, "wants_options"), "--option", "a=[1]").code == 0
    assert report()["model"]["options"] == {"a": [1]}  # type: ignore[index]


def test_a_model_that_is_no_module_is_audited(attack: Cli) -> None:
    body = """
    class Plain:
        input_shape, range = [1, 4, 4], [0, 1]

        def __init__(self, vae):
            self.vae, self.prior = vae, vae.prior
            self.encode, self.decode = vae.encode, vae.decode

    def open(checkpoint, config):
        return Plain(Own(checkpoint.tensors).requires_grad_(False))
    """
    done = attack("--adapter", own(body, "plain_object"))
    assert (done.code, done.err) == (0, "")
    assert report()["model"]["parameters"] is None  # type: ignore[index]


# ---- Streams


def test_the_result_goes_whole_to_a_file_or_through_a_link(attack: Cli) -> None:
    assert attack("-o", "new/result.json", "--format", "json") == (0, "", "")
    assert json.loads(Path("new/result.json").read_text()) == report()
    Path("target.md").write_text("old")
    Path("link.md").symlink_to("target.md")
    assert attack("-o", "link.md", "--format", "markdown").code == 0
    assert Path("link.md").is_symlink()
    assert Path("target.md").read_text(encoding="utf-8").startswith("# Audit of `vae.safetensors`")
    assert {path.name for path in Path("new").iterdir()} == {"result.json"}
    assert attack("-o", "/dev/null") == (0, "", "")


def test_exit_codes_hold_where_streams_are_closed_or_nobody_reads_them(
    attack: Cli, installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert installed.cold("attack", "--pairs", "0", shell='"$@" >&- 2>&- <&-').code == 2
    assert installed("attack", "--pairs", "0", out="|", err="|").code == 2
    monkeypatch.setattr(sys, "stdout", None)  # what Python makes of a closed one
    assert attack().code == 0


def test_an_ascii_terminal_gets_ascii_tables_and_valid_json(command: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("val.npy").rename("ré.npy")
    printed = []
    for form in ("table", "json"):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", stdout)
        assert command("doctor", "vae.safetensors", "--data", "ré.npy", "--format", form) == (0, "", "")
        assert isinstance(stdout.buffer, io.BytesIO)
        printed.append(stdout.buffer.getvalue().decode("ascii"))
    assert "+---" in printed[0]
    assert "r\\xe9.npy, 40 items" in printed[0]
    assert json.loads(printed[1])["data"]["source"] == "ré.npy"


@pytest.mark.parametrize("variable", ["NO_COLOR", "FORCE_COLOR", "COLUMNS"])
def test_colour_and_width_of_a_terminal_do_not_reach_a_pipe(
    command: Cli, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    plain = command("doctor", "vae.safetensors", "--data", "val.npy")
    monkeypatch.setenv(variable, "20")
    assert command("doctor", "vae.safetensors", "--data", "val.npy") == plain
    assert "\x1b" not in plain.out + plain.err


# ---- Interruption

SLOW = """
def encode(self, x):
    time.sleep(0.005)
    builtins.open("loading", "w").close()
    self.calls += any("checks/attack" in frame.f_code.co_filename for frame, _ in traceback.walk_stack(None))
    if self.calls == 20:
        builtins.open("sweeping", "w").close()
    return super().encode(x)
"""


@pytest.mark.parametrize(("number", "stage"), [(signal.SIGINT, "sweeping"), (signal.SIGTERM, "loading")])
def test_an_interruption_ends_with_130_and_keeps_what_there_is(
    installed: Any, number: signal.Signals, stage: str
) -> None:
    adapter = own(sub(SLOW), "slow")
    arguments = ["--pairs", "4", "--lambdas", "20", "--max-evaluations", "500", "--adapter", adapter]
    running = installed.start("attack", "vae.safetensors", "--data", "val.npy", *arguments)
    deadline = time.monotonic() + 50
    while not Path(stage).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(running.pid, number)
    code, out, err = running.end()
    assert code == 130, err
    assert "Traceback" not in err
    if stage == "sweeping":
        assert err == "stopping: keeping what has been found (once more to end at once)\n"
        written = report()
        assert (written["status"], written["verdict"], written["exit_code"]) == ("interrupted", "inconclusive", 130)
        assert written["partial"]
        assert "verdict: inconclusive" in out
        assert {path.name for path in Path("vaeaudit-report").iterdir()} == {*REPORT, "attack-latent-panel.png"}
    else:
        assert err.endswith("interrupted; no report was written\n")
        assert out == ""
        assert not Path("vaeaudit-report").exists()
