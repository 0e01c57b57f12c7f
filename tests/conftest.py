"""What several tests need: the oracle's exact answers, models whose answers are known, the bundled example.

Test modules do not import each other, so everything shared is a fixture; a fixture may be a class.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vaeaudit import BernoulliLogits, DiagonalGaussian, GaussianLikelihood
from vaeaudit.cli.app import main
from vaeaudit.data.items import fit
from vaeaudit.data.sources import read
from vaeaudit.model.registry import open_model

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
SHARED = HERE.parents[1] / "shared"

# One thread sums in one order, whatever the machine.
torch.set_num_threads(1)


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


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Outcome]:
    """`vaeaudit` with the given arguments in this process, outside any repository."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["vaeaudit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, *capsys.readouterr())

    return run
