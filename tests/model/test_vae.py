import math
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats
from torch import Tensor, distributions, nn

from vaeaudit.attacks.similarity import SIMILARITIES
from vaeaudit.checks.attack.measure import attack
from vaeaudit.checks.latents.measure import latents
from vaeaudit.checks.noise.measure import noise
from vaeaudit.errors import ContractError, UnsupportedError
from vaeaudit.model.vae import (
    VAE,
    BernoulliLogits,
    BernoulliProbabilities,
    DiagonalGaussian,
    GaussianLikelihood,
    Likelihood,
    Posterior,
    reconstruct,
)
from vaeaudit.stats.draws import noise_set
from vaeaudit.subject.inputs import route_of

PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])


def gaussian(mean: list[float], stddev: list[float], dtype: torch.dtype = torch.float64) -> DiagonalGaussian:
    """One row."""
    return DiagonalGaussian(
        torch.tensor([mean], dtype=dtype), torch.tensor([stddev], dtype=torch.float64).log().to(dtype)
    )


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# KL and Wasserstein distance of diagonal Gaussians


@PRECISIONS
def test_kl_is_the_oracles(oracle: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    for case in oracle["kl"]["cases"]:
        q, p = gaussian(case["m1"], case["s1"], dtype), gaussian(case["m2"], case["s2"], dtype)
        prior = DiagonalGaussian.standard((len(case["m1"]),), like=q.mean)
        for computed, name in ((q.kl(p), "kl"), (p.kl(q), "kl_rev"), (q.kl(prior), "kl_prior")):
            assert computed.shape == (1,)
            assert computed.dtype == dtype
            assert abs(float(computed) - case[name]) <= tolerance * max(1, abs(case[name])), (name, case)


def test_kl_is_the_mean_log_ratio_of_draws() -> None:
    q, p = gaussian([0.4, -1.2, 0.0], [0.7, 1.5, 0.2]), gaussian([0.1, -0.5, 0.3], [1.1, 0.9, 0.4])
    noise = noise_set(q.noise_shape, draws=200_000, items=[0], seed=0, check="test", like=q.mean)
    z = q.sample(noise)[:, 0]
    ratio = sum(
        distributions.Normal(sign.mean, sign.stddev).log_prob(z).sum(1) * factor for sign, factor in ((q, 1), (p, -1))
    )
    standard_error = float(ratio.std()) / len(z) ** 0.5
    assert abs(float(ratio.mean()) - float(q.kl(p))) < 4 * standard_error
    assert standard_error < 0.01 * float(q.kl(p))


def test_kl_is_torchs_for_many_random_gaussians() -> None:
    q = DiagonalGaussian(randn(50, 3, 2, seed=1), randn(50, 3, 2, seed=2))
    p = DiagonalGaussian(randn(50, 3, 2, seed=3), randn(50, 3, 2, seed=4))
    reference = distributions.kl_divergence(
        distributions.Normal(q.mean, q.stddev), distributions.Normal(p.mean, p.stddev)
    )
    torch.testing.assert_close(q.kl(p), reference.sum((1, 2)), rtol=1e-12, atol=1e-12)


def test_identical_posteriors_have_kl_zero_not_half_a_nat_for_each_dimension() -> None:
    # tabacof/adv_vae has the standard deviation where the variance belongs and no 1/2: 0.5 for each dimension.
    q = gaussian([0.3, -2.0, 1.1], [0.4, 1.7, 1.0])
    assert float(q.kl(q)) == 0
    assert float(gaussian([0, 0], [1, 1]).kl(gaussian([0, 0], [1, 1]))) == 0


@given(
    m=st.floats(-5, 5),
    log_s=st.floats(-5, 3),
    step=st.floats(-1, 1),
    exponent=st.integers(-20, 0),
    single=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_kl_is_never_negative_however_near_the_match(
    m: float, log_s: float, step: float, exponent: int, single: bool
) -> None:
    dtype = torch.float32 if single else torch.float64
    mean, log_stddev = (torch.tensor([[value]], dtype=dtype) for value in (m, log_s))
    q = DiagonalGaussian(mean, log_stddev)
    p = DiagonalGaussian(mean, log_stddev + step * 10.0**exponent)
    assert float(q.kl(p)) >= 0
    assert float(p.kl(q)) >= 0


def test_kl_and_its_gradient_vanish_at_a_match() -> None:
    mean, log_stddev = randn(4, 3, seed=1).requires_grad_(), randn(4, 3, seed=2).requires_grad_()
    target = DiagonalGaussian(mean.detach().clone(), log_stddev.detach().clone())
    q = DiagonalGaussian(mean, log_stddev)
    for value in (q.kl(target), target.kl(q)):
        assert (value == 0).all()
        for gradient in torch.autograd.grad(value.sum(), (mean, log_stddev)):
            assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3, 1e-4])
def test_kl_keeps_its_digits_near_a_match_where_the_attack_ends(dtype: torch.dtype, gap: float) -> None:
    log_stddev = torch.tensor([[gap / 2]], dtype=dtype)
    q = DiagonalGaussian(torch.zeros_like(log_stddev), log_stddev)
    p = DiagonalGaussian(torch.zeros_like(log_stddev), torch.zeros_like(log_stddev))
    with localcontext() as context:
        context.prec = 50
        u = 2 * Decimal(float(log_stddev))
        exact = (u.exp() - 1 - u) / 2  # the textbook formula, in 50 digits
    # The textbook formula in this precision loses 2 eps / u^2; what is promised is eps / u.
    assert abs(float(q.kl(p)) / float(exact) - 1) < 4 * torch.finfo(dtype).eps / gap


def test_kl_to_a_prior_of_one_row_is_taken_for_every_row() -> None:
    q = DiagonalGaussian(randn(5, 3, seed=1), randn(5, 3, seed=2))
    prior = DiagonalGaussian.standard((3,), like=q.mean)
    one_by_one = torch.cat([q.rows(torch.tensor([k])).kl(prior) for k in range(5)])
    assert q.kl(prior).shape == (5,)
    torch.testing.assert_close(q.kl(prior), one_by_one, rtol=1e-14, atol=0)


def test_wasserstein_distance_is_the_matrix_formula() -> None:
    q, p = DiagonalGaussian(randn(4, 3), randn(4, 3, seed=1)), DiagonalGaussian(randn(4, 3, seed=2), randn(4, 3))
    for k in range(4):
        a, b = (np.diag(g.stddev[k].numpy() ** 2) for g in (q, p))
        root = linalg.sqrtm(a)
        cross = linalg.sqrtm(root @ b @ root)
        squared = ((q.mean[k] - p.mean[k]).square().sum()).item() + np.trace(a + b - 2 * cross).real
        assert float(q.wasserstein2(p)[k]) == pytest.approx(squared**0.5, rel=1e-9)


def test_wasserstein_distance_is_zero_at_a_match_and_its_gradient_is_not_nan() -> None:
    mean = randn(2, 3).requires_grad_()
    q = DiagonalGaussian(mean, torch.zeros(2, 3, dtype=torch.float64))
    distance = q.wasserstein2(DiagonalGaussian(mean.detach(), q.log_stddev))
    assert (distance == 0).all()
    (gradient,) = torch.autograd.grad(distance.sum(), mean)
    assert (gradient == 0).all()


# Draws


def test_a_sample_is_the_mean_plus_stddev_times_noise_for_any_leading_dimensions() -> None:
    q = gaussian([1.0, -2.0], [0.5, 3.0])
    noise = torch.tensor([[[0.0, 0.0]], [[1.0, -1.0]], [[-2.0, 2.0]]], dtype=torch.float64)
    expected = torch.tensor([[[1.0, -2.0]], [[1.5, -5.0]], [[0.0, 4.0]]], dtype=torch.float64)
    torch.testing.assert_close(q.sample(noise), expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(q.sample(noise[1]), expected[1], rtol=1e-14, atol=1e-14)
    assert q.noise_shape == (2,)


def test_samples_have_the_distribution_of_the_posterior() -> None:
    q = gaussian([1.0, -2.0], [0.5, 3.0])
    z = q.sample(noise_set((2,), draws=20_000, items=[0], seed=1, check="test", like=q.mean))[:, 0]
    for j, (mean, stddev) in enumerate(((1.0, 0.5), (-2.0, 3.0))):
        assert stats.kstest(z[:, j].numpy(), "norm", (mean, stddev)).pvalue > 0.01


def test_a_sample_passes_gradients_to_mean_and_stddev() -> None:
    mean, log_stddev = torch.zeros(1, 1, requires_grad=True), torch.zeros(1, 1, requires_grad=True)
    z = DiagonalGaussian(mean, log_stddev).sample(torch.full((1, 1), 0.7))
    gradients = torch.autograd.grad(z.sum(), (mean, log_stddev))
    assert [float(g) for g in gradients] == pytest.approx([1.0, 0.7])


def test_rows_may_be_repeated_and_left_out() -> None:
    q = DiagonalGaussian(randn(3, 2), randn(3, 2, seed=1))
    picked = q.rows(torch.tensor([2, 0, 2]))
    assert torch.equal(picked.mean, q.mean[[2, 0, 2]])
    assert torch.equal(picked.log_stddev, q.log_stddev[[2, 0, 2]])


# Likelihoods

X = torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # grey, not only 0 and 1
LOGITS = 3 * randn(4, 2, 3, seed=1)


def test_bernoulli_from_logits_is_torchs_distribution() -> None:
    reference = distributions.Bernoulli(logits=LOGITS, validate_args=False)
    likelihood = BernoulliLogits(LOGITS)
    torch.testing.assert_close(likelihood.log_prob(X), reference.log_prob(X).sum((1, 2)), rtol=1e-12, atol=0)
    torch.testing.assert_close(likelihood.mean, reference.probs, rtol=1e-12, atol=0)


def test_bernoulli_from_probabilities_agrees_with_logits_where_nothing_is_clamped() -> None:
    by_probability = BernoulliProbabilities(torch.sigmoid(LOGITS))
    torch.testing.assert_close(by_probability.log_prob(X), BernoulliLogits(LOGITS).log_prob(X), rtol=1e-12, atol=0)
    torch.testing.assert_close(by_probability.mean, torch.sigmoid(LOGITS), rtol=0, atol=0)


def test_bernoulli_from_logits_is_exact_where_the_decoder_is_sure() -> None:
    logits = torch.tensor([[500.0, -500.0, 500.0, -500.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    assert float(BernoulliLogits(logits).log_prob(x)) == pytest.approx(-1000.0, rel=1e-12)


def test_bernoulli_from_probabilities_clamps_each_logarithm_at_minus_100() -> None:
    p = torch.tensor([[0.0, 1.0, 0.0, 1.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    assert float(BernoulliProbabilities(p).log_prob(x)) == -200.0
    assert float(BernoulliProbabilities(p[:, :1]).log_prob(torch.full((1, 1), 0.25).double())) == -25.0


def test_gradients_are_finite_where_probabilities_are_0_or_1() -> None:
    p = torch.tensor([[0.0, 1.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(BernoulliProbabilities(p).log_prob(x).sum(), p)
    assert gradient.isfinite().all()
    logits = torch.tensor([[-800.0, 800.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(BernoulliLogits(logits).log_prob(x).sum(), logits)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -1.0, -0.5, 0.5]], dtype=torch.float64))


def test_a_row_with_a_nan_has_no_log_probability_and_leaves_the_others_theirs() -> None:
    p = torch.tensor([[0.5, torch.nan], [0.5, 0.25]], dtype=torch.float64, requires_grad=True)
    found = BernoulliProbabilities(p).log_prob(torch.ones(1, 2, dtype=torch.float64))
    assert bool(found[0].isnan())
    assert float(found[1].detach()) == pytest.approx(math.log(0.5 * 0.25))
    (gradient,) = torch.autograd.grad(found[1], p)
    assert gradient.tolist() == [[0, 0], [2, 4]]


@pytest.mark.parametrize("bad", [1.0001, -0.2, math.inf])
def test_values_that_are_no_probabilities_are_an_error_that_asks_for_the_sigmoid(bad: float) -> None:
    with pytest.raises(ContractError, match=r"\[0, 1\].*missing sigmoid"):
        BernoulliProbabilities(torch.tensor([[0.5, bad]])).log_prob(torch.ones(1, 2))


def test_gaussian_likelihoods_are_torchs_distribution() -> None:
    mean, log_stddev = randn(4, 2, 3, seed=2), 0.5 * randn(4, 2, 3, seed=3)
    for scale in (log_stddev, torch.tensor(-0.7, dtype=torch.float64), log_stddev[:1, :, :1]):
        reference = distributions.Normal(mean, scale.exp().expand_as(mean)).log_prob(X).sum((1, 2))
        likelihood = GaussianLikelihood(mean, scale)
        torch.testing.assert_close(likelihood.log_prob(X), reference, rtol=1e-12, atol=1e-12)
        assert torch.equal(likelihood.mean, mean)


def test_every_way_to_compute_log_p_names_itself_apart() -> None:
    fixed, learned = GaussianLikelihood(X, torch.zeros(())), GaussianLikelihood(X, X)
    routes = [BernoulliLogits(X).route, BernoulliProbabilities(X).route, fixed.route, learned.route]
    assert len(set(routes)) == 4
    assert "logits" in routes[0]
    assert "-100" in routes[1]
    assert "fixed" in routes[2]
    assert "learned" in routes[3]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (4, 1), (4, 1, 1), (4, 2, 3), (1, 2, 3), (2, 1)])
def test_a_constant_variance_is_fixed_however_it_is_shaped(shape: tuple[int, ...]) -> None:
    scale = torch.full(shape, -0.3, dtype=torch.float64)
    likelihood = GaussianLikelihood(X, scale)
    assert likelihood.route == "Gaussian, fixed variance"
    expected = distributions.Normal(X, math.exp(-0.3)).log_prob(1 - X).sum((1, 2))
    torch.testing.assert_close(likelihood.log_prob(1 - X), expected)


@pytest.mark.parametrize("shape", [(4, 1), (4, 1, 1), (4, 2, 3)])
def test_a_variance_that_differs_between_rows_is_learned(shape: tuple[int, ...]) -> None:
    scale = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).reshape(shape)
    likelihood = GaussianLikelihood(X, scale)
    assert likelihood.route == "Gaussian, learned variance"
    of_rows = scale.reshape(4, *scale.shape[1:], *[1] * (3 - scale.ndim))
    expected = distributions.Normal(X, of_rows.exp().expand_as(X)).log_prob(1 - X).sum((1, 2))
    torch.testing.assert_close(likelihood.log_prob(1 - X), expected)


def test_the_route_of_a_model_is_told_from_latents_that_differ(linear_gaussian: Any, oracle: dict[str, Any]) -> None:
    vae = linear_gaussian(oracle["models"]["LIN2"])
    x = randn(1, 8)
    assert route_of(vae, x) == "Gaussian, fixed variance"
    decode = vae.decode
    vae.decode = lambda z: GaussianLikelihood(decode(z).mean, z[:, :1])
    assert route_of(vae, x) == "Gaussian, learned variance"
    vae.decode = lambda z: GaussianLikelihood(decode(z).mean, torch.zeros(len(z), 1, dtype=z.dtype))
    assert route_of(vae, x) == "Gaussian, fixed variance"
    assert noise(vae, x, [0.1]).route == latents(vae, x.expand(2, -1)).route == "Gaussian, fixed variance"


def test_a_reconstruction_is_the_decoders_mean_at_the_posterior_mean(
    oracle: dict[str, Any], linear_gaussian: Any
) -> None:
    vae = linear_gaussian(oracle["models"]["LIN2"])
    x = randn(3, 8)
    expected = (x @ vae.A.T + vae.b) @ vae.B.T + vae.c
    torch.testing.assert_close(reconstruct(vae, x), expected, rtol=1e-12, atol=1e-12)


def test_the_classes_here_keep_the_contract(oracle: dict[str, Any], linear_gaussian: Any) -> None:
    vae = linear_gaussian(oracle["models"]["LIN2"])
    assert isinstance(vae, VAE)
    assert isinstance(vae.prior, Posterior)
    for likelihood in (BernoulliLogits(X), BernoulliProbabilities(X), vae.decode(randn(1, 2))):
        assert isinstance(likelihood, Likelihood)


# Other families keep the contract and are attacked unchanged


class Categorical:
    """One categorical latent, relaxed (Concrete) at a temperature; latents are points of the simplex."""

    def __init__(self, logits: Tensor, temperature: float = 0.5) -> None:
        self.log_p, self.temperature = logits.log_softmax(1), temperature

    @property
    def mean(self) -> Tensor:
        return self.log_p.exp()

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return tuple(self.log_p.shape[1:])

    def sample(self, noise: Tensor) -> Tensor:
        gumbel = -torch.log(-torch.special.log_ndtr(noise))  # Phi(noise) is uniform
        return ((self.log_p + gumbel) / self.temperature).softmax(-1)

    def kl(self, other: "Categorical") -> Tensor:
        return (self.mean * (self.log_p - other.log_p)).sum(1)

    def wasserstein2(self, other: "Categorical") -> Tensor:  # noqa: ARG002
        raise UnsupportedError("categories have no distance")

    def rows(self, index: Tensor) -> "Categorical":
        return Categorical(self.log_p[index], self.temperature)


class Point:
    """A deterministic encoder."""

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return ()

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean.expand(*noise.shape, *self.mean.shape[1:])

    def kl(self, other: "Point") -> Tensor:  # noqa: ARG002
        raise UnsupportedError("a deterministic encoder has no KL; use the similarity 'mean'")

    def wasserstein2(self, other: "Point") -> Tensor:
        return torch.linalg.vector_norm(self.mean - other.mean, dim=1)

    def rows(self, index: Tensor) -> "Point":
        return Point(self.mean[index])


class Chain:
    """q(z1|x) q(z2|z1) with a linear second layer; both layers' latents side by side."""

    def __init__(self, first: DiagonalGaussian, second: Tensor, stddev: Tensor) -> None:
        self.first, self.second, self.stddev = first, second, stddev

    @property
    def mean(self) -> Tensor:
        return torch.cat([self.first.mean, self.first.mean @ self.second.T], dim=-1)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (sum(self.second.shape),)

    def sample(self, noise: Tensor) -> Tensor:
        of_first, of_second = noise.split(list(reversed(self.second.shape)), dim=-1)
        z1 = self.first.sample(of_first)
        return torch.cat([z1, z1 @ self.second.T + self.stddev * of_second], dim=-1)

    def kl(self, other: "Chain") -> Tensor:
        # With the same noise in both chains the second means differ by second (m1 - m1'), whatever the noise.
        gap = (self.first.mean - other.first.mean) @ self.second.T / self.stddev
        return self.first.kl(other.first) + 0.5 * gap.square().sum(1)

    def wasserstein2(self, other: "Chain") -> Tensor:  # noqa: ARG002
        raise UnsupportedError("not in closed form for a chain")

    def rows(self, index: Tensor) -> "Chain":
        return Chain(self.first.rows(index), self.second, self.stddev)


class Family(nn.Module):
    """A VAE on 4 inputs with one of the posteriors above."""

    input_shape = (4,)
    range = (0.0, 1.0)

    def __init__(self, kind: str, numbers: dict[str, Any]) -> None:
        super().__init__()
        self.kind = kind
        self.A1, self.A2, self.s1, self.s2 = (
            torch.tensor(numbers[name], dtype=torch.float64) for name in ("A1", "A2", "s1", "s2")
        )
        self.eval()

    @property
    def prior(self) -> Any:
        return self.encode(torch.zeros(1, 4, dtype=torch.float64))

    def encode(self, x: Tensor) -> Any:
        mean = x @ self.A1.T
        if self.kind == "categorical":
            return Categorical(mean)
        if self.kind == "deterministic":
            return Point(mean)
        return Chain(DiagonalGaussian(mean, self.s1.log().expand_as(mean)), self.A2, self.s2)

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(z[..., :3] @ self.A1, torch.zeros((), dtype=z.dtype))


@pytest.mark.parametrize(
    ("kind", "unsupported"),
    [
        ("categorical", {"wasserstein"}),
        ("deterministic", {"kl", "reverse-kl", "symmetric-kl"}),
        ("chain", {"wasserstein"}),
    ],
)
def test_another_family_is_attacked_unchanged(kind: str, unsupported: set[str], oracle: dict[str, Any]) -> None:
    vae = Family(kind, oracle["hier"])
    assert isinstance(vae, VAE)
    assert isinstance(vae.prior, Posterior)
    x, x_t = (torch.rand(2, 4, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2))
    for name in SIMILARITIES:
        if name in unsupported:
            with pytest.raises(UnsupportedError):
                attack(vae, x, x_t, similarity=name, lambdas=[0.01, 100.0])
            continue
        found = attack(vae, x, x_t, similarity=name, lambdas=[0.01, 1000.0], max_evaluations=40)
        assert found.target_nll.isfinite().all()
        start = found.sweep.zero_data_term
        assert (found.sweep.data_term[:, 0] < 0.5 * start).all(), name  # a small lambda matches
        assert (found.sweep.norm[:, 1] == 0).all(), name  # a large one does not move
        assert ((found.sweep.adversarial >= 0) & (found.sweep.adversarial <= 1)).all()


def test_a_chain_with_the_same_noise_has_the_oracles_coupled_kl(oracle: dict[str, Any]) -> None:
    case = oracle["hier"]
    vae = Family("chain", case)
    x, d, x_t = (torch.tensor([case[name]], dtype=torch.float64) for name in ("x", "d", "xt"))
    q, target = vae.encode(x + d), vae.encode(x_t)
    expected = case["kl_layer1"] + case["layer2_crn_or_mean_propagation"]
    assert float(q.kl(target)) == pytest.approx(expected, rel=1e-9)
    # All draws move alike, so the distance of draws is the distance of means.
    noise = noise_set(q.noise_shape, draws=5, items=[0], seed=0, check="test", like=x)
    by_draws, by_means = (SIMILARITIES[name](q, target, noise) for name in ("sample", "mean"))
    torch.testing.assert_close(by_draws, by_means, rtol=1e-12, atol=0)
    assert float(SIMILARITIES["sample"](target, target, noise)) == 0
