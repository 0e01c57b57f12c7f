"""An item of which the model makes NaN is named by its number in whatever check meets it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vaeaudit import DiagonalGaussian, GaussianLikelihood
from vaeaudit.checks.attack.capped import capped_attack
from vaeaudit.checks.attack.measure import attack
from vaeaudit.checks.latents.measure import latents
from vaeaudit.checks.margin.measure import margin
from vaeaudit.checks.noise.measure import noise
from vaeaudit.errors import NonFiniteError
from vaeaudit.subject.encodings import encodings

SILENT, NUMBERS = 2, [1397, 1398, 1400, 1403]


class Loudness(nn.Module):
    """Each clip is brought to unit loudness first: 0 / 0 for silence."""

    input_shape, range = (8,), (-1.0, 1.0)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.basis = nn.Parameter(torch.linalg.qr(torch.randn((8, 3), generator=generator)).Q.contiguous())
        self.requires_grad_(False)

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((3,), like=self.basis)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        mean = (x / x.norm(dim=1, keepdim=True)) @ self.basis
        return DiagonalGaussian(mean, torch.full_like(mean, -2.0))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(z @ self.basis.T, torch.tensor(-1.0))


def clips(n: int = 4, silent: int = SILENT) -> Tensor:
    x = torch.randn((n, 3), generator=torch.Generator().manual_seed(1)) @ Loudness().basis.T
    x = x / x.norm(dim=1, keepdim=True)
    x[silent] = 0
    return x


CHECKS: dict[str, Callable[[Any, Tensor, list[int]], Any]] = {
    "attack": lambda vae, x, items: attack(vae, x, x.roll(1, 0), items=items, lambdas=2, max_evaluations=20),
    "capped attack": lambda vae, x, items: capped_attack(vae, x, "damage", caps=(0.5,), items=items),
    "margin": lambda vae, x, items: margin(vae, x, [1.0], items=items, parts=()),
    "encodings, of mig": lambda vae, x, items: encodings(vae, x, items=items),
    "latents": lambda vae, x, items: latents(vae, x, items=items),
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_that_cannot_go_on_names_the_item(name: str) -> None:
    with pytest.raises(NonFiniteError, match=r"item 1400\b"):
        CHECKS[name](Loudness(), clips(), NUMBERS)


def test_a_silent_target_is_named_by_its_pair() -> None:
    x = clips()
    others = torch.flip(x[[0, 1, 3]], [0])
    with pytest.raises(NonFiniteError, match="of the target is NaN or infinite for 1 of 3 items, item 1398"):
        attack(Loudness(), x[[0, 1, 3]], others.index_copy(0, torch.tensor([1]), x[[2]]), items=[1397, 1398, 1403])


def test_the_noise_check_goes_on_and_names_the_item() -> None:
    (sign,) = noise(Loudness(), clips(), (0.1,), items=NUMBERS, draws=3).signs
    assert "of item 1400 (the first in its draw 1 of 3)" in str(sign)


ADAPTER = """
import torch
from torch import nn

import vaeaudit


class Own(nn.Module):
    input_shape, range = (8,), (-1.0, 1.0)

    def __init__(self, basis, normalised):
        super().__init__()
        self.basis, self.normalised = nn.Parameter(basis), normalised
        self.norm = nn.BatchNorm1d(3, track_running_stats=False)

    @property
    def prior(self):
        return vaeaudit.DiagonalGaussian.standard((3,), like=self.basis)

    def encode(self, x):
        mean = (x if self.normalised else x / x.norm(dim=1, keepdim=True)) @ self.basis
        return vaeaudit.DiagonalGaussian(self.norm(mean) if self.normalised else mean, torch.full_like(mean, -2.0))

    def decode(self, z):
        return vaeaudit.GaussianLikelihood(z @ self.basis.t(), torch.tensor(-1.0))


def open(checkpoint, config):
    return Own(checkpoint.tensors["basis"], bool(int(config["normalised"])))
"""


@pytest.fixture
def own(command: Callable[..., Any]) -> Callable[..., Any]:
    save_file({"basis": Loudness().basis.data}, "own.safetensors")
    Path("own.py").write_text(ADAPTER)

    def run(name: str, x: Tensor, normalised: bool, *more: object) -> Any:
        np.save("clips.npy", x.numpy())
        about = ("own.safetensors", "--adapter", "own.py:open", "--option", f"normalised={normalised:d}")
        return command(name, *about, "--data", "clips.npy", *more)

    return run


def test_doctor_names_the_item_among_those_that_it_drew(own: Callable[..., Any]) -> None:
    done = own("doctor", clips(250, 137), False)
    assert done.code == 3
    assert "1 of 250 items, item 137" in done.err


def test_doctor_tells_of_batch_normalisation_without_running_statistics(own: Callable[..., Any]) -> None:
    x = clips(60)
    done = own("doctor", x, True)
    assert done.code == 5
    told = " ".join(done.out.split())
    assert "a batch of 2, but on one of 1 it raised ValueError" in told
    assert "Traceback" not in done.err
    audit = own("noise", x, True, "--sigma", 0.1)
    assert audit.code == 5


def test_doctor_says_by_how_much_the_scales_of_the_inputs_differ(own: Callable[..., Any]) -> None:
    scale = 10.0 ** torch.linspace(-3, 5, 8)
    Path("own.py").write_text(ADAPTER.replace("(-1.0, 1.0)", "None"))
    done = own("doctor", (2 + torch.rand((60, 8), generator=torch.Generator().manual_seed(2))) * scale, False)
    told = " ".join(done.out.replace("│", " ").replace("|", " ").split())
    assert "the scales of the input's elements differ by 10^8" in told
