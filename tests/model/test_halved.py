"""A model in bfloat16, with all around it in the precision of the items."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vaeaudit import DiagonalGaussian, GaussianChain, GaussianLikelihood
from vaeaudit.checks.noise.measure import noise
from vaeaudit.checks.reconstruction.measure import reconstruction
from vaeaudit.errors import UnsupportedError
from vaeaudit.model.conditions import Conditioned, under
from vaeaudit.model.halved import halved
from vaeaudit.model.vae import Chain, Hierarchical
from vaeaudit.report.reading import read_report
from vaeaudit.subject.encodings import encodings

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL, DATA = EXAMPLES / "shapes-beta1.safetensors", EXAMPLES / "shapes.npz"
FEW = ("--items", 8, "--draws", 1, "--sigma", 0.5, "-q")
EPS = 2.0**-8  # of bfloat16, by which a value is rounded


class Scaled(nn.Module):
    """N(a x, 1) and N(z / a, 1) of one weight, a = 1.3, which is no bfloat16."""

    input_shape = (3,)
    range = None

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.3))

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((3,), self.a)

    def encode(self, x: Tensor) -> Any:
        mean = x * self.a
        return DiagonalGaussian(mean, torch.zeros_like(mean))

    def decode(self, z: Tensor) -> Any:
        return GaussianLikelihood(z / self.a, torch.zeros_like(self.a))


def test_weights_and_inputs_are_rounded_and_nothing_after_the_model_is() -> None:
    x = torch.rand(4, 3)
    vae = halved(Scaled(), x)
    a = torch.tensor(1.3).bfloat16()
    mean = (x.bfloat16() * a).float()
    q = vae.encode(x)
    assert torch.equal(q.mean, mean)
    z = q.sample(torch.full((4, 3), 1 / 3))
    assert torch.equal(z, mean + 1 / 3)
    p = vae.decode(z)
    assert torch.equal(p.mean, (z.bfloat16() / a).float())
    exact = (-0.5 * (x - p.mean).square() - 0.5 * math.log(2 * math.pi)).sum(1)
    torch.testing.assert_close(p.log_prob(x), exact, rtol=1e-6, atol=0)


def test_the_model_that_was_given_stays_as_it_is() -> None:
    vae = Scaled()
    halved(vae, torch.rand(1, 3))
    assert vae.a.dtype == torch.float32


def test_figures_are_those_of_float32_up_to_its_rounding(bundled_model: Any, bundled_images: Tensor) -> None:
    x = bundled_images[:24]
    lower = halved(bundled_model, x)
    clean = [noise(vae, x, [0.5], draws=2) for vae in (bundled_model, lower)]
    torch.testing.assert_close(clean[1].clean, clean[0].clean, rtol=8 * EPS, atol=0)
    torch.testing.assert_close(clean[1].log_likelihood, clean[0].log_likelihood, rtol=16 * EPS, atol=0)
    assert not torch.equal(clean[1].clean, clean[0].clean)
    made = [reconstruction(vae, x).at_mean["log_likelihood"] for vae in (bundled_model, lower)]
    torch.testing.assert_close(made[1], made[0], rtol=8 * EPS, atol=0)
    means = [encodings(vae, x).mean for vae in (bundled_model, lower)]
    assert float((means[1] - means[0]).norm() / means[0].norm()) < 4 * EPS


def test_a_chain_with_priors_stays_one_and_its_upper_layers_run_in_bfloat16_too() -> None:
    class Layered(Scaled):
        def encode(self, x: Tensor) -> Any:
            return GaussianChain(super().encode(x), (super().encode,))

        def decode(self, z: Tensor) -> Any:
            return super().decode(z[..., :3])

        def conditional_priors(self, z: Tensor) -> Any:
            return super().encode(z[..., 3:]), self.prior

    x = torch.rand(4, 3)
    vae = halved(Layered(), x)
    assert isinstance(vae, Hierarchical)
    q = vae.encode(x)
    assert isinstance(q, Chain)
    a = torch.tensor(1.3).bfloat16()
    assert torch.equal(q.mean[:, 3:], ((x.bfloat16() * a) * a).float())
    assert torch.equal(vae.conditional_priors(q.mean)[0].mean, (q.mean[:, 3:].bfloat16() * a).float())


def test_a_conditional_model_keeps_the_condition_of_each_item() -> None:
    class Shifted(Scaled):
        condition_shape = ()

        def encode(self, x: Tensor, c: Tensor) -> Any:  # type: ignore[override]
            return super().encode(x + c[:, None])

        def decode(self, z: Tensor, c: Tensor) -> Any:  # type: ignore[override]
            return super().decode(z - c[:, None])

    x = torch.zeros(3, 3)
    vae = halved(Conditioned(Shifted(), torch.tensor([0, 1, 2])), x)
    of_last = under(vae, torch.tensor([2, 1]))
    assert of_last.encode(x[:2]).mean[:, 0].tolist() == pytest.approx([2.6, 1.3], rel=2 * EPS)


def test_what_would_stay_in_bfloat16_is_refused() -> None:
    class Own:
        def __init__(self, mean: Tensor) -> None:
            self.mean = mean

    class Opaque(Scaled):
        def encode(self, x: Tensor) -> Any:
            return Own(x * self.a)

    with pytest.raises(UnsupportedError, match="dataclasses of tensors, but this model's Own is none"):
        halved(Opaque(), torch.rand(2, 3))


def test_the_command_line_takes_it_for_the_checks_that_need_no_gradient(command: Any) -> None:
    given = (MODEL, "--data", DATA, "--dtype", "bfloat16")
    done = command("noise", *given, *FEW)
    assert (done.code, done.err) == (0, "")
    report, _ = read_report("vaeaudit-report")
    assert report.environment.dtype == "bfloat16"
    assert command("noise", *given[:-2], *FEW).code == 0
    whole, _ = read_report("vaeaudit-report")
    (name, *_) = whole.metrics
    assert report.metrics[name].value == pytest.approx(whole.metrics[name].value, rel=0.05)
    assert report.metrics[name].value != pytest.approx(whole.metrics[name].value, rel=1e-5)
    of_others = "--dtype bfloat16 is for noise, reconstruction, latents, but attack{} would be carried out"
    assert command("attack", *given).said(2, of_others.format(""))
    assert command("init", *given).said(2, of_others.format(", margin, equivalence, mig"))
    assert command("weights", MODEL, "--dtype", "bfloat16").said(2, "No such option: --dtype")
