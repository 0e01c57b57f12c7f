"""Every likelihood against SciPy's or torch's distributions, and each sums or integrates to one."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import integrate, stats
from torch import Tensor, distributions

import vaeaudit
from vaeaudit.model.contract import check_contract

SHAPE = (2, 3, 4)  # of x, two items


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MEAN, SPREAD = drawn(*SHAPE, seed=0), 0.5 * drawn(*SHAPE, seed=1)
COUNTS = torch.distributions.Poisson(4.0).sample(SHAPE).double()
COUNTS[0, 0] = 0
LEVELS = torch.arange(24, dtype=torch.float64).reshape(SHAPE) % 16 / 15  # of 16
LOGITS, MEANS, SCALES = drawn(*SHAPE, 16, seed=2), 0.5 + 0.5 * drawn(*SHAPE, 3, seed=3), drawn(*SHAPE, 3, seed=4) - 3
COUNTED = vaeaudit.NegativeBinomialLikelihood(MEAN, SPREAD)
MIXED = vaeaudit.LogisticMixtureLikelihood(drawn(*SHAPE, 3, seed=5), MEANS, SCALES, levels=16)


def binned(x: Any) -> Any:
    """log p of a mixture of logistics in 16 bins, by differences of SciPy's distribution function."""
    parts, w = stats.logistic(MEANS.numpy(), SCALES.exp().numpy()), MIXED.logits.softmax(-1).numpy()
    x = x.numpy()[..., None]
    upper = np.where(x > 1 - 1 / 30, 1.0, parts.cdf(x + 1 / 30))
    lower = np.where(x < 1 / 30, 0.0, parts.cdf(x - 1 / 30))
    return np.log((w * (upper - lower)).sum(-1))


def inflated(x: Any) -> Any:
    r, w = SPREAD.exp().numpy(), torch.sigmoid(MEAN).numpy()
    p = stats.nbinom(r, r / (r + MEAN.exp().numpy())).pmf(x.numpy())
    return np.log((1 - w) * p + w * (x.numpy() == 0))


CASES: dict[str, tuple[Any, Tensor, Any]] = {
    "Laplace": (
        vaeaudit.LaplaceLikelihood(MEAN, SPREAD), drawn(*SHAPE, seed=6),
        lambda x: stats.laplace(MEAN, SPREAD.exp()).logpdf(x),
    ),
    "Student t": (
        vaeaudit.StudentTLikelihood(MEAN, SPREAD, 2.5), drawn(*SHAPE, seed=6),
        lambda x: stats.t(2.5, MEAN, SPREAD.exp()).logpdf(x),
    ),
    "negative binomial": (
        COUNTED, COUNTS,
        lambda x: stats.nbinom(SPREAD.exp(), SPREAD.exp() / (SPREAD.exp() + MEAN.exp())).logpmf(x),
    ),
    "zero-inflated": (vaeaudit.ZeroInflatedLikelihood(COUNTED, MEAN), COUNTS, inflated),
    "categorical": (
        vaeaudit.CategoricalLikelihood(LOGITS), LEVELS,
        lambda x: distributions.Categorical(logits=LOGITS).log_prob((x * 15).round()).numpy(),
    ),
    "logistic mixture": (MIXED, LEVELS, binned),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_log_p_is_that_of_another_implementation(name: str) -> None:
    ours, x, theirs = CASES[name]
    assert_allclose(ours.log_prob(x), theirs(x).reshape(2, -1).sum(1), rtol=1e-9)
    assert isinstance(ours, vaeaudit.Likelihood)


@pytest.mark.parametrize("name", ["categorical", "logistic mixture", "negative binomial", "zero-inflated"])
def test_the_mean_is_the_sum_of_values_times_their_probabilities(name: str) -> None:
    ours, _, theirs = CASES[name]
    levels = name in ("categorical", "logistic mixture")
    values = torch.linspace(0, 1, 16, dtype=torch.float64) if levels else torch.arange(300.0, dtype=torch.float64)
    p = np.stack([np.exp(theirs(value.expand(SHAPE))) for value in values], -1)
    assert_allclose(
        ours.mean, (p * values.numpy()).sum(-1), rtol=1e-6, atol=1 / 30 if name == "logistic mixture" else 0
    )


def test_the_mean_of_a_mixture_of_wide_logistics_is_nearly_that_of_its_levels() -> None:
    wide = vaeaudit.LogisticMixtureLikelihood(torch.zeros(1, 1, 1), torch.tensor([[[0.4]]]), torch.tensor([[[-3.0]]]))
    values = torch.linspace(0, 1, 256)
    p = torch.stack([wide.log_prob(value.reshape(1, 1)).exp() for value in values])
    assert p.sum() == pytest.approx(1, abs=1e-5)
    assert wide.mean == pytest.approx(float((p[:, 0] * values).sum()), abs=2e-5)


def test_densities_integrate_to_one() -> None:
    for make in (vaeaudit.LaplaceLikelihood, lambda m, s: vaeaudit.StudentTLikelihood(m, s, 3.0)):
        one: Any = make(torch.tensor([[0.3]], dtype=torch.float64), torch.tensor(-0.4, dtype=torch.float64))

        def density(x: float, one: Any = one) -> float:
            return math.exp(one.log_prob(torch.tensor([[x]], dtype=torch.float64)))

        assert integrate.quad(density, -400, 400, points=[0.3], limit=200)[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    ours, x, _ = CASES[name]
    inside = (x + 0.021).clamp(max=ours.support[1] - 0.01 if ours.support else math.inf).requires_grad_()
    assert torch.autograd.gradcheck(ours.log_prob, (inside,), eps=1e-6, atol=1e-5)


def test_far_from_all_logistics_log_p_and_its_gradient_are_finite() -> None:
    sharp = vaeaudit.LogisticMixtureLikelihood(
        torch.zeros(1, 1, 1), torch.full((1, 1, 1), 5.0), torch.full((1, 1, 1), -7.0)
    )
    x = torch.full((1, 1), 0.5, requires_grad=True)
    log_p = sharp.log_prob(x)
    (gradient,) = torch.autograd.grad(log_p.sum(), x)
    assert log_p.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient > 0


@pytest.mark.parametrize("spread", [(), (2, 1), SHAPE])
@pytest.mark.parametrize("kind", ["LaplaceLikelihood", "NegativeBinomialLikelihood"])
def test_a_spread_is_one_number_one_of_each_item_or_of_each_element(kind: str, spread: tuple[int, ...]) -> None:
    given = drawn(*spread, seed=7)
    whole = given.reshape(2, 1, 1).expand(SHAPE) if spread == (2, 1) else given.expand(SHAPE)
    make = getattr(vaeaudit, kind)
    torch.testing.assert_close(make(MEAN, given).log_prob(COUNTS), make(MEAN, whole.contiguous()).log_prob(COUNTS))


@pytest.mark.parametrize("name", CASES)
def test_a_model_with_it_keeps_the_contract(name: str, small_vae: Any) -> None:
    ours, x, _ = CASES[name]

    class Model(small_vae):  # type: ignore[misc]
        input_shape = SHAPE[1:]

        def encode(self, x: Tensor) -> vaeaudit.Posterior:
            return super().encode(x.flatten(1)[:, :6].reshape(-1, 2, 3))

        def decode(self, _z: Tensor) -> vaeaudit.Likelihood:
            return ours

    check_contract(Model(), x)
