"""What several tests need: the oracle's exact answers, models whose answers are known, the bundled example.

Test modules do not import each other, so everything shared is a fixture; a fixture may be a class.
"""

import gc
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytest
import torch
import typer.main
from safetensors.torch import save_file
from torch import Tensor, nn
from vaeaudit_adapters.mlp import MLP

from vaeaudit import BernoulliLogits, DiagonalGaussian, GaussianLikelihood
from vaeaudit.attacks.margin import empirical_margin
from vaeaudit.certify.graph import Graph, trace_decoder, trace_encoder
from vaeaudit.cli.app import main
from vaeaudit.data.items import fit
from vaeaudit.data.sources import read
from vaeaudit.model.registry import open_model
from vaeaudit.subject.plausibility import examine
from vaeaudit.subject.repairs import explained

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
SHARED = HERE.parents[1] / "shared"
ASSEMBLED = cache(typer.main.get_command)  # the commands of an app, which a process needs once
COMMAND = Path(sys.executable).with_name("vaeaudit")
BLANK = b"\x89PNG\r\n\x1a\n"  # how every PNG file begins
Found = TypeVar("Found")
MOST_SECONDS = 60  # after which a run of the installed command counts as hanging

# One thread sums in one order, whatever the machine.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    gc.freeze()  # what is loaded by now stays, so that no collection need look through it


class LinearGaussian:
    """mu(x) = A x + b, constant sigma; the decoder's mean is B z + c, its standard deviation tau."""

    def __init__(
        self,
        numbers: Mapping[str, Any],
        dtype: torch.dtype = torch.float64,
        box: tuple[float, float] | None = None,
    ) -> None:
        self.A, self.b, self.B, self.c, sigma = (
            torch.tensor(numbers[name], dtype=dtype) for name in ("A", "b", "B", "c", "sigma")
        )
        self.log_sigma, self.log_tau = sigma.log(), torch.tensor(math.log(numbers["tau"]), dtype=dtype)
        self.input_shape: tuple[int, ...] = (self.A.shape[1],)
        self.range = box

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((len(self.b),), like=self.b)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        mean = x @ self.A.T + self.b
        return DiagonalGaussian(mean, self.log_sigma.expand_as(mean))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(z @ self.B.T + self.c, self.log_tau)


class SmallVAE(nn.Module):
    """A curved encoder and decoder on 6 inputs and 2 latents, the same weights every time."""

    input_shape = (2, 3)

    def __init__(
        self, box: tuple[float, float] | None = (0.0, 1.0), dtype: torch.dtype = torch.float64, seed: int = 5
    ) -> None:
        super().__init__()
        self.range = box
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6), nn.Unflatten(1, (2, 3)))
        generator = torch.Generator().manual_seed(seed)
        for weights in self.parameters():
            weights.data = 0.8 * torch.randn(weights.shape, generator=generator, dtype=torch.float64)
        self.to(dtype).eval().requires_grad_(False)

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((2,), like=next(self.parameters()))

    def encode(self, x: Tensor) -> DiagonalGaussian:
        mean, log_stddev = self.encoder(x).chunk(2, dim=1)
        return DiagonalGaussian(mean, 0.5 * log_stddev)

    def decode(self, z: Tensor) -> BernoulliLogits:
        return BernoulliLogits(self.decoder(z))


@dataclass(frozen=True)
class Projection:
    """A VAE for the adapter "mlp" that needs no training: x -> z = B'(x - 1/2) -> 1/2 + B z, through ReLUs."""

    shape: tuple[int, ...] = (1, 4, 4)
    latents: int = 3

    @property
    def basis(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.linalg.qr(torch.randn(math.prod(self.shape), self.latents, generator=generator))[0]

    @property
    def facts(self) -> dict[str, str]:
        stated = {"adapter": "mlp", "likelihood": "gaussian", "stddev": "0.1", "range": "[0, 1]"}
        return {f"vaeaudit.{name}": value for name, value in (stated | {"input_shape": str([*self.shape])}).items()}

    def weights(self) -> dict[str, Tensor]:
        basis, size, latents = self.basis, math.prod(self.shape), self.latents
        sides = torch.cat([torch.eye(latents), -torch.eye(latents)])
        return {
            "encoder.shared.0.weight": torch.eye(size),
            "encoder.shared.0.bias": torch.zeros(size),
            "encoder.mean.0.weight": basis.t().contiguous(),
            "encoder.mean.0.bias": -0.5 * basis.sum(0),
            "encoder.logvar.0.weight": torch.zeros(latents, size),
            "encoder.logvar.0.bias": torch.full((latents,), -6.0),
            "decoder.0.weight": sides,
            "decoder.0.bias": torch.zeros(2 * latents),
            "decoder.2.weight": basis @ sides.t(),
            "decoder.2.bias": torch.full((size,), 0.5),
        }

    def images(self, seed: int = 1) -> np.ndarray[Any, Any]:
        """40 items that it reconstructs, in [0, 1]."""
        z = 0.25 * np.random.default_rng(seed).normal(size=(40, self.latents))
        return np.clip(0.5 + z @ self.basis.numpy().T, 0, 1).astype(np.float32).reshape(40, *self.shape)

    def fill(self, folder: Path, **facts: str) -> None:
        """Put it into a folder as vae.safetensors, with these facts of its own, and its items as val.npy."""
        stated = self.facts | {f"vaeaudit.{name}": value for name, value in facts.items()}
        save_file(self.weights(), folder / "vae.safetensors", stated)
        np.save(folder / "val.npy", self.images())


@pytest.fixture(scope="session")
def oracle() -> dict[str, Any]:
    """Exact answers, confirmed by a second method; a copy of ../shared/oracle/cases.json."""
    return json.loads((HERE / "oracle" / "cases.json").read_text())


@pytest.fixture(scope="session")
def linear_gaussian() -> type[LinearGaussian]:
    return LinearGaussian


@pytest.fixture(scope="session")
def small_vae() -> type[SmallVAE]:
    return SmallVAE


@pytest.fixture(scope="session")
def projection() -> Projection:
    return Projection()


@pytest.fixture(scope="session")
def bundled_model() -> nn.Module:
    """The bundled shapes-beta1 in float32: a healthy model. Not to be changed in place."""
    vae = open_model(EXAMPLES / "shapes-beta1.safetensors").vae
    assert isinstance(vae, nn.Module)
    return vae


@pytest.fixture(scope="session")
def bundled_images(bundled_model: Any) -> Tensor:
    """192 of the bundled images, (192, 1, 28, 28) in [0, 1]."""
    data = fit(read(EXAMPLES / "shapes.npz"), input_shape=bundled_model.input_shape, data_range=bundled_model.range)
    every_third: Sequence[int] = range(0, len(data), 3)
    return data.batch(every_third)


@pytest.fixture(scope="session")
def published() -> Callable[[str, int], tuple[Any, Tensor]]:
    """A published model by name and that many items of its data, spread over all; skips where ../shared is not here."""

    def opened(name: str, count: int) -> tuple[Any, Tensor]:
        file = SHARED / "checkpoints" / "disentangling-vae" / name / "model.pt"
        source = (
            SHARED / "data" / ("mnist/train_first1000_32x32.npy" if "mnist" in name else "dsprites/dsprites_subset.npz")
        )
        if not (file.is_file() and source.is_file()):
            pytest.skip("the trained checkpoints and data of ../shared are not here")
        vae = open_model(file, "burgess").vae
        data = fit(read(source), input_shape=vae.input_shape, data_range=vae.range)
        return vae, data.batch(np.linspace(0, len(data) - 1, count).astype(int))

    return opened


class Outcome(NamedTuple):
    """How a command ended, and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one sentence on stderr, once it is known to be one, free of jargon."""
        assert self.err.startswith("error: "), self.err
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n"), self.err
        for jargon in ("Traceback", "Input should", "pydantic", "Value error", "unexpected", "<frozen"):
            assert jargon not in self.err, self.err
        return self.err.removeprefix("error: ").rstrip("\n")

    def said(self, code: int, message: str) -> bool:
        """Whether it ended with this code and one sentence that holds the message, and gave no result."""
        assert self.code == code, self
        assert self.out == ""
        assert message in self.message
        return True


def remembering(asking: Callable[..., Found]) -> Callable[..., Found]:
    """What is asked once of the same model of the adapter "mlp", which is its options and weights."""
    kept: dict[object, Found] = {}

    def remembered(*given: Any, **asked: Any) -> Found:
        vae = next((one for one in given if isinstance(one, MLP)), None)
        if vae is None:
            return asking(*given, **asked)
        tensors = [*(one for one in given if isinstance(one, Tensor)), *vae.state_dict().values()]
        made = hashlib.sha256()
        for tensor in tensors:
            made.update(tensor.numpy().tobytes())
        others = [one for one in given if one is not vae and not isinstance(one, Tensor)]
        kinds = [(tensor.shape, tensor.dtype) for tensor in tensors]
        key = repr((others, vae, vae.options, vae.training, kinds, sorted(asked.items()))), made.digest()
        if key not in kept:
            kept[key] = asking(*given, **asked)
        return kept[key]

    return remembered


@pytest.fixture(scope="session", autouse=True)
def _asked_once() -> Iterator[None]:
    """What an audit asks of the model first is asked once of the same model and items, in whatever test.

    So are the graphs that certificates rest on, which are of the model alone.
    """

    def like_a_row(trace: Callable[..., Graph]) -> Callable[..., Graph]:
        once = remembering(trace)
        return lambda vae, like, *more: once(vae, like.new_zeros(0), *more)

    with pytest.MonkeyPatch.context() as patched:
        for examination in (examine, explained):
            patched.setattr(f"vaeaudit.subject.opened.{examination.__name__}", remembering(examination))
        patched.setattr("vaeaudit.checks.margin.varying.trace_encoder", like_a_row(trace_encoder))
        patched.setattr("vaeaudit.checks.margin.certified.trace_decoder", like_a_row(trace_decoder))
        yield


def run_here(
    patch: pytest.MonkeyPatch, folder: Path, *, figures: bool = False, whole: bool = False
) -> Callable[..., int]:
    """`vaeaudit` with the given arguments in this process, from that folder: its exit code.

    Figures, lambda searched between the few asked for, and pairs followed through all of them cost most of a small run,
    so that they are left out. Nor is it told how long a run takes yet, however slow the machine.
    """
    patch.chdir(folder)
    patch.setattr("vaeaudit.cli.common._LINE_EVERY", math.inf)
    patch.setattr("typer.main.get_command", ASSEMBLED)
    if not figures:
        patch.setattr("vaeaudit.audit.journal.drawn", lambda drawing: replace(drawing, draw=lambda: BLANK))
        patch.setattr("vaeaudit.checks.weights.run._bars", lambda _: BLANK)  # of a check that keeps no journal
    if not whole:
        patch.setattr("vaeaudit.attacks.search.rungs", lambda *_: [])
        patch.setattr("vaeaudit.attacks.search.follow", lambda *_: None)

    def run(*arguments: object) -> int:
        patch.setattr(sys, "argv", ["vaeaudit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


@pytest.fixture(scope="session")
def search_loosely() -> Callable[[pytest.MonkeyPatch], None]:
    """Lets empirical margins of an encoder with spread be wider, where nothing rests on how tight they are."""

    def loosely(patch: pytest.MonkeyPatch) -> None:
        wide = partial(empirical_margin, draws=1024, tolerance=0.1)
        patch.setattr("vaeaudit.checks.margin.varying.empirical_margin", wide)

    return loosely


@pytest.fixture
def _searched_loosely(search_loosely: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    search_loosely(monkeypatch)


@pytest.fixture
def command(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Callable[..., Outcome]:
    """`vaeaudit` in this process, outside any repository; only tests marked so have figures and whole searches."""
    asked = {name: request.node.get_closest_marker(name) is not None for name in ("figures", "whole")}
    run = run_here(monkeypatch, tmp_path, **asked)
    return lambda *arguments: Outcome(run(*arguments), *capsys.readouterr())


@pytest.fixture(scope="session")
def carried_out() -> Callable[..., None]:
    """Runs `vaeaudit` in a folder, for fixtures that many tests share, and asserts that it ends with 0."""

    def carry_out(folder: Path, *arguments: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            assert run_here(patch, folder)(*arguments) == 0

    return carry_out


# Answers every request, a line of JSON, with the id of a fork that becomes the command, and then with how it ended.
LOADED = """
import atexit, dataclasses, functools, gc, importlib, json, os, pkgutil, runpy, signal, sys
import typer.main, vaeaudit
for module in pkgutil.walk_packages(vaeaudit.__path__, "vaeaudit."):
    module.name == "vaeaudit.__main__" or importlib.import_module(module.name)
import matplotlib.figure, torch.fx.experimental.symbolic_shapes, vaeaudit_adapters.mlp  # what is loaded on the way
matplotlib.figure.Figure().savefig(os.devnull, format="png")
typer.main.get_command = functools.cache(typer.main.get_command)
typer.main.get_command(vaeaudit.cli.app.app)
command = sys.argv[1]
sys.path.insert(0, os.path.dirname(command))
gc.collect()
gc.freeze()  # so that a fork does not copy what it only looks through
for line in iter(sys.stdin.readline, ""):
    asked = json.loads(line)
    child = os.fork()
    if child:
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    signal.alarm(asked["seconds"])
    os.chdir(asked["folder"])
    for number, name in enumerate(asked["streams"]):
        reader, writer = os.pipe()
        os.close(reader)
        if name != "|":
            writer = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY)
        os.dup2(writer, number)
    # As a fresh interpreter makes them.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    if not asked["whole"]:
        blank = bytes.fromhex(sys.argv[2])
        vaeaudit.audit.journal.drawn = lambda drawing: dataclasses.replace(drawing, draw=lambda: blank)
        vaeaudit.checks.weights.run._bars = lambda _: blank
        vaeaudit.attacks.search.rungs = lambda *_: []
        vaeaudit.attacks.search.follow = lambda *_: None
    exec(asked["first"], {})
    sys.argv = [command, *asked["arguments"]]
    try:
        runpy.run_path(command, run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    # The end of an interpreter, but for taking down all that is loaded, which would take longest.
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120
    os._exit(code)
"""


def variables() -> dict[str, str]:
    """The environment of every run: none of ours, and one thread."""
    ours = ("VAEAUDIT_", "GITHUB_")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return plain | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TERM": "xterm"}


@dataclass
class Running:
    """The command on its way; ``end`` waits for it."""

    pid: int
    served: subprocess.Popen[str]
    streams: tuple[Path, Path, Path]

    def end(self) -> Outcome:
        assert self.served.stdout is not None
        code = int(self.served.stdout.readline())
        assert code != -signal.SIGALRM, "the command hangs"
        _, out, err = self.streams
        return Outcome(code, *("" if not file.is_file() else file.read_text(encoding="utf-8") for file in (out, err)))


class Installed:
    """The installed command, each run a process of its own: most are forks of one that has loaded what takes seconds.

    They run the command's own file, with streams and folder of their own; most leave out figures, lambda between the
    few asked for and the following of pairs, which would take longest. ``whole`` leaves nothing out, and ``cold``
    starts from nothing as well.
    """

    def __init__(self, place: Path, more: Mapping[str, str]) -> None:
        self.place = place
        self.served = subprocess.Popen(
            [sys.executable, "-P", "-c", LOADED, COMMAND, BLANK.hex()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=variables() | more,
        )

    def start(
        self,
        *arguments: object,
        out: str | None = None,
        err: str | None = None,
        first: str = "",
        whole: bool = False,
    ) -> Running:
        """Begin a run in the current folder, after the code ``first``; nobody reads a stream that goes to "|"."""
        streams = (Path(os.devnull), Path(out or self.place / "out"), Path(err or self.place / "err"))
        asked = {
            "arguments": [str(argument) for argument in arguments],
            "folder": str(Path.cwd()),
            "streams": [str(stream) for stream in streams],
            "first": first,
            "seconds": MOST_SECONDS,
            "whole": whole,
        }
        assert self.served.stdin is not None
        assert self.served.stdout is not None
        self.served.stdin.write(json.dumps(asked) + "\n")
        self.served.stdin.flush()
        return Running(int(self.served.stdout.readline()), self.served, streams)

    def __call__(self, *arguments: object, **more: Any) -> Outcome:
        return self.start(*arguments, **more).end()

    @staticmethod
    def cold(*arguments: object, shell: str = '"$@"') -> Outcome:
        """Run the installed command from nothing, where need be within a shell's redirections."""
        done = subprocess.run(
            ["bash", "-c", shell, "bash", COMMAND, *map(str, arguments)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=MOST_SECONDS,
            env=variables(),
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def close(self) -> None:
        self.served.communicate(timeout=MOST_SECONDS)


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Installed]]:
    """Makes the installed command, with variables of the environment from before anything is loaded."""
    with ExitStack() as ending:

        def make(**variables: str) -> Installed:
            one = Installed(tmp_path_factory.mktemp("streams"), variables)
            ending.callback(one.close)
            return one

        yield make


@pytest.fixture(scope="session")
def installed(loaded: Callable[..., Installed]) -> Installed:
    return loaded()
