from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vaeaudit.attacks.objectives import latent, output
from vaeaudit.attacks.similarity import LAYERWISE, SIMILARITIES, layer_terms
from vaeaudit.errors import ConfigError, ContractError, UnsupportedError
from vaeaudit.model.chain import GaussianChain
from vaeaudit.model.vae import VAE, Chain, DiagonalGaussian, GaussianLikelihood, Posterior, Recombinable
from vaeaudit.stats.draws import noise_set


class Linear:
    """The oracle's q(z1|x) q(z2|z1) with linear means and constant standard deviations; the decoder reads z1."""

    input_shape = (4,)
    range = None

    def __init__(self, numbers: dict[str, Any]) -> None:
        self.A1, self.A2, self.s1, self.s2 = (
            torch.tensor(numbers[name], dtype=torch.float64) for name in ("A1", "A2", "s1", "s2")
        )

    def upper(self, z: Tensor) -> DiagonalGaussian:
        mean = z @ self.A2.T
        return DiagonalGaussian(mean, self.s2.log().expand_as(mean))

    @property
    def prior(self) -> GaussianChain:
        return self.encode(torch.zeros(1, 4, dtype=torch.float64))

    def encode(self, x: Tensor) -> GaussianChain:
        mean = x @ self.A1.T
        return GaussianChain(DiagonalGaussian(mean, self.s1.log().expand_as(mean)), (self.upper,))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(z[:, :3] @ self.A1, torch.zeros((), dtype=z.dtype))


class Curved(nn.Module):
    """Three layers of widths 3, 2 and 4 with nonlinear means and standard deviations."""

    input_shape = (5,)
    range = None

    def __init__(self) -> None:
        super().__init__()
        sizes = [(5, 3), (3, 2), (2, 4)]
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(a, 8), nn.Tanh(), nn.Linear(8, 2 * b)) for a, b in sizes)
        generator = torch.Generator().manual_seed(3)
        for weights in self.parameters():
            weights.data = 0.8 * torch.randn(weights.shape, generator=generator, dtype=torch.float64)
        self.requires_grad_(False)

    def layer(self, number: int, values: Tensor) -> DiagonalGaussian:
        mean, log_stddev = self.nets[number](values).chunk(2, dim=1)
        return DiagonalGaussian(mean, 0.5 * log_stddev)

    @property
    def prior(self) -> GaussianChain:
        return self.encode(torch.zeros(1, 5, dtype=torch.float64))

    def encode(self, x: Tensor) -> GaussianChain:
        return GaussianChain(self.layer(0, x), (lambda z: self.layer(1, z), lambda z: self.layer(2, z)))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(z[:, :5], torch.zeros((), dtype=z.dtype))


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise_for(q: Posterior, draws: int, items: int, check: str = "test") -> Tensor:
    return noise_set(q.noise_shape, draws=draws, items=range(items), seed=0, check=check, like=q.mean)


@pytest.fixture
def hier(oracle: dict[str, Any]) -> dict[str, Any]:
    return oracle["hier"]


@pytest.fixture
def pair(hier: dict[str, Any]) -> tuple[GaussianChain, GaussianChain]:
    """The oracle's adversarial posterior and its target's."""
    x, d, x_t = (torch.tensor([hier[name]], dtype=torch.float64) for name in ("x", "d", "xt"))
    return Linear(hier).encode(x + d), Linear(hier).encode(x_t)


def test_a_chain_is_a_posterior_and_its_model_keeps_the_contract(hier: dict[str, Any]) -> None:
    vae = Linear(hier)
    assert isinstance(vae, VAE)
    assert isinstance(vae.prior, Posterior)
    assert isinstance(vae.prior, Chain)
    assert isinstance(vae.prior, Recombinable)
    assert not isinstance(vae.prior.first, Chain)
    assert vae.prior.layers == 2
    assert vae.prior.noise_shape == (5,)


# The oracle's answers


@pytest.mark.parametrize("draws", [1, 7])
def test_the_terms_of_its_layers_are_the_oracles(
    draws: int, pair: tuple[GaussianChain, GaussianChain], hier: dict[str, Any]
) -> None:
    q, target = pair
    first, second = layer_terms(q, target, noise_for(q, draws, 1)).squeeze(1).tolist()
    assert first == pytest.approx(hier["kl_layer1"], abs=hier["tol"])
    # Linear means and the same noise in both: every draw moves alike, so that one is as good as many.
    assert second == pytest.approx(hier["layer2_crn_or_mean_propagation"], abs=hier["tol"])
    assert float(q.kl(target)) == pytest.approx(hier["joint_kl"], abs=hier["tol"])


def test_independent_noise_would_have_the_oracles_floor_and_another_mean(
    pair: tuple[GaussianChain, GaussianChain], hier: dict[str, Any]
) -> None:
    q, target = pair
    draws = 40_000
    own, others = noise_for(q, draws, 1), noise_for(q, draws, 1, "another")
    for other, expected in (
        (target, hier["layer2_independent_samples_expectation"]),
        (q, hier["independent_samples_floor_at_perfect_match"]),
    ):
        terms = q.conditionals(own)[1].kl(other.conditionals(others)[1])
        assert float(terms.mean()) == pytest.approx(expected, abs=4 * float(terms.std()) / draws**0.5)
    assert (layer_terms(q, q, own) == 0).all()


def test_the_marginal_kl_is_below_both_the_first_layers_and_the_coupled_term(
    pair: tuple[GaussianChain, GaussianChain], hier: dict[str, Any]
) -> None:
    q, target = pair
    vae = Linear(hier)
    covariance = vae.A2 @ torch.diag(vae.s1.square()) @ vae.A2.T + torch.diag(vae.s2.square())
    gap = (q.first.mean - target.first.mean)[0] @ vae.A2.T
    marginal = float(0.5 * gap @ torch.linalg.solve(covariance, gap))
    assert marginal == pytest.approx(hier["kl_layer2_marginal"], abs=hier["tol"])
    assert marginal <= min(layer_terms(q, target, noise_for(q, 3, 1)).squeeze(1).tolist())


# A chain as a posterior


def test_its_draws_are_those_of_the_chain(hier: dict[str, Any]) -> None:
    q = Linear(hier).encode(rand(1, 4))
    z = q.sample(noise_for(q, 50_000, 1))[:, 0]
    A = torch.cat([torch.eye(3, dtype=torch.float64), Linear(hier).A2])
    covariance = A @ torch.diag(Linear(hier).s1.square()) @ A.T
    covariance[3:, 3:] += torch.diag(Linear(hier).s2.square())
    torch.testing.assert_close(z.mean(0), q.mean[0], rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(z.T), covariance, rtol=0.05, atol=0.05)
    torch.testing.assert_close(q.mean, torch.cat([q.first.mean, q.first.mean @ Linear(hier).A2.T], 1))


def test_each_draw_of_each_item_is_its_own_whatever_stands_beside_it() -> None:
    q = Curved().encode(rand(6, 5))
    noise = noise_for(q, 4, 6)
    z = q.sample(noise)
    assert z.shape == (4, 6, 9)
    torch.testing.assert_close(q.sample(noise[2]), z[2], rtol=1e-12, atol=1e-12)
    some = torch.tensor([5, 0, 5])
    torch.testing.assert_close(q.rows(some).sample(noise[:, some]), z[:, some], rtol=1e-12, atol=1e-12)
    # The conditionals of the layers above are those given the draws below, draw after draw.
    first, second, third = q.conditionals(noise)
    assert (len(first.mean), len(second.mean), len(third.mean)) == (6, 24, 24)
    torch.testing.assert_close(second.sample(noise[..., 3:5].flatten(0, 1)), z[..., 3:5].flatten(0, 1))
    torch.testing.assert_close(third.mean, Curved().layer(2, z[..., 3:5].flatten(0, 1)).mean)


def test_a_single_row_stands_for_every_item() -> None:
    vae = Curved()
    q = vae.encode(rand(3, 5))
    noise = noise_for(q, 4, 3)
    repeated = vae.prior.rows(torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(layer_terms(q, vae.prior, noise), layer_terms(q, repeated, noise))


def test_it_has_no_wasserstein_distance_and_says_what_it_has() -> None:
    q = Curved().encode(rand(2, 5))
    with pytest.raises(UnsupportedError, match="use the similarity 'kl', 'mean' or 'sample'"):
        q.wasserstein2(q)


def test_a_layer_that_is_not_flat_is_named() -> None:
    square = DiagonalGaussian(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
    with pytest.raises(ContractError, match=r"layer 1 .*\(1, 2, 2\); flatten it"):
        GaussianChain(square, ())
    flat = DiagonalGaussian(torch.zeros(1, 4), torch.zeros(1, 4))
    with pytest.raises(ContractError, match="layer 2"):
        GaussianChain(flat, (lambda _: square,)).sample(torch.zeros(1, 8))


# Attacks on a chain


@pytest.mark.parametrize(("layers", "terms"), [(None, (0, 1)), ((1, 2), (0, 1)), ((1,), (0,)), ((2,), (1,))])
def test_the_latent_attack_adds_up_the_chosen_layers_of_the_oracle(
    layers: tuple[int, ...] | None, terms: tuple[int, ...], hier: dict[str, Any]
) -> None:
    vae = Linear(hier)
    x, d, x_t = (torch.tensor([hier[name]], dtype=torch.float64) for name in ("x", "d", "xt"))
    data_term = latent(vae, x, x_t, "kl", noise_for(vae.prior, 5, 1), layers=layers)
    item = torch.zeros(1, dtype=torch.long)
    expected = (hier["kl_layer1"], hier["layer2_crn_or_mean_propagation"])
    assert float(data_term(x + d, item)) == pytest.approx(sum(expected[term] for term in terms), abs=hier["tol"])
    assert float(data_term(x_t, item)) == 0


@pytest.mark.parametrize("similarity", sorted(LAYERWISE))
@pytest.mark.parametrize("layers", [None, (1,), (3,), (2, 3)])
def test_the_term_of_each_point_is_that_of_its_own_item_and_draws(
    similarity: str, layers: tuple[int, ...] | None
) -> None:
    vae = Curved()
    x, x_t = rand(3, 5, seed=1), rand(3, 5, seed=2)
    noise = noise_for(vae.prior, 4, 3)
    item = torch.tensor([2, 0, 2, 1])
    points = rand(4, 5, seed=3)
    found = latent(vae, x, x_t, similarity, noise, layers=layers)(points, item)
    rows = [0, 1, 2] if layers is None else [layer - 1 for layer in layers]
    for k, i in enumerate(item.tolist()):
        terms = layer_terms(vae.encode(points[k : k + 1]), vae.encode(x_t[i : i + 1]), noise[:, i : i + 1], similarity)
        assert float(found[k]) == pytest.approx(float(terms[rows].sum()), rel=1e-12)


@pytest.mark.parametrize("similarity", sorted(LAYERWISE))
def test_the_terms_are_zero_with_zero_gradient_at_a_match_and_positive_elsewhere(similarity: str) -> None:
    vae = Curved()
    x_t = rand(2, 5)
    data_term = latent(vae, x_t, x_t, similarity, noise_for(vae.prior, 4, 2))
    item = torch.arange(2)
    leaf = x_t.clone().requires_grad_()
    value = data_term(leaf, item)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    # The target ran in a batch of its own, so that rounding may differ.
    assert value.detach().abs().max() < 1e-25
    assert gradient.abs().max() < 1e-12
    assert (data_term(x_t + 0.1, item) > 0).all()


@pytest.mark.parametrize("layers", [None, (1,), (2,), (3,)])
def test_the_gradient_of_a_chains_terms_is_that_of_finite_differences(layers: tuple[int, ...] | None) -> None:
    vae = Curved()
    data_term = latent(vae, rand(2, 5), rand(2, 5, seed=1), "kl", noise_for(vae.prior, 3, 2), layers=layers)
    points = rand(2, 5, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda points: data_term(points, torch.tensor([1, 0])), points)


def test_a_similarity_that_is_no_kl_compares_all_latents_as_one() -> None:
    vae = Curved()
    x, x_t, item = rand(2, 5), rand(2, 5, seed=1), torch.arange(2)
    noise = noise_for(vae.prior, 3, 2)
    for name in ("mean", "sample"):
        found = latent(vae, x, x_t, name, noise)(x, item)
        torch.testing.assert_close(found, SIMILARITIES[name](vae.encode(x), vae.encode(x_t), noise))
    with pytest.raises(UnsupportedError, match="2-Wasserstein"):
        latent(vae, x, x_t, "wasserstein", noise)(x, item)
    with pytest.raises(UnsupportedError, match="by kl, reverse-kl, symmetric-kl, not by 'mean'"):
        latent(vae, x, x_t, "mean", noise, layers=(1,))


@pytest.mark.parametrize("layers", [(), (0,), (4,), (1, 1), (-1,)])
def test_layers_that_the_chain_does_not_have_are_named(layers: tuple[int, ...]) -> None:
    vae, x = Curved(), rand(2, 5)
    with pytest.raises(ConfigError, match=r"different numbers from 1 to 3, .* but \[.*\] was given"):
        latent(vae, x, x, "kl", noise_for(vae.prior, 3, 2), layers=layers)


def test_what_a_chain_does_not_give_is_refused_in_one_sentence() -> None:
    vae, x = Curved(), rand(2, 5)
    noise = noise_for(vae.prior, 3, 2)
    with pytest.raises(
        UnsupportedError, match=r"output attack needs KL.*conditional_priors; use mode 'latent' or 'damage'"
    ):
        output(vae, x, x, noise)


def test_of_the_mean_or_the_deviation_alone_a_chain_moves_those_of_its_first_layer() -> None:
    vae, (x, x_t) = Curved(), rand(2, 2, 5)
    q, target = vae.encode(x), vae.encode(x_t)
    mixed, noise = q.with_mean_of(target), noise_for(q, 3, 2)
    assert torch.equal(mixed.first.mean, target.first.mean) and torch.equal(mixed.first.log_stddev, q.first.log_stddev)
    (_, upper, _), z1 = mixed.conditionals(noise), mixed.first.sample(noise[..., :3])
    torch.testing.assert_close(upper.mean, vae.layer(1, z1.flatten(0, 1)).mean)
