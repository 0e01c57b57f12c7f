"""The latents check: ELBO, KL by unit and layer, active units, and traversals."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vaeaudit import DiagonalGaussian, GaussianChain, GaussianLikelihood
from vaeaudit.checks.latents.measure import LatentsResult, latents
from vaeaudit.checks.latents.summarise import summarise_latents
from vaeaudit.checks.latents.traversal import aggregate_quantiles, traverse
from vaeaudit.errors import ConfigError, DataError, NonFiniteError, UnsupportedError
from vaeaudit.model.registry import open_model
from vaeaudit.model.vae import Hierarchical, Posterior
from vaeaudit.subject.encodings import Encodings

SHARED = Path(__file__).parents[4] / "shared"
BATCHES = {"VAE_mnist": 60, "btcvae_mnist": 60}  # that the recorded values were divided by


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Linear:
    """The oracle's chain q(z1|x) q(z2|z1), with its generative side p(z1|z2) p(z2); the decoder reads z1."""

    input_shape = (4,)
    range = None

    def __init__(self, chain: dict[str, Any], generative: dict[str, Any]) -> None:
        self.A1, self.A2, self.s1, self.s2 = (
            torch.tensor(chain[name], dtype=torch.float64) for name in ("A1", "A2", "s1", "s2")
        )
        self.P, self.sp = (torch.tensor(generative[name], dtype=torch.float64) for name in ("P", "sp"))

    @property
    def prior(self) -> GaussianChain:
        return self.encode(torch.zeros(1, 4, dtype=torch.float64))

    def encode(self, x: Tensor) -> GaussianChain:
        def upper(z: Tensor) -> DiagonalGaussian:
            return DiagonalGaussian(z @ self.A2.T, self.s2.log().expand(len(z), -1))

        return GaussianChain(DiagonalGaussian(x @ self.A1.T, self.s1.log().expand(len(x), -1)), (upper,))

    def conditional_priors(self, z: Tensor) -> tuple[Posterior, ...]:
        mean = z[:, 3:] @ self.P.T
        return DiagonalGaussian(mean, self.sp.log().expand_as(mean)), DiagonalGaussian.standard((2,), like=z)

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(z[:, :3] @ self.A1 + 0.1 * z[:, 3:].sum(1, keepdim=True), torch.zeros(()).double())


@dataclass(frozen=True, eq=False)
class Classes:
    """A categorical posterior by its logits; a draw is the class of the largest logit plus noise."""

    logits: Tensor

    @property
    def log_probabilities(self) -> Tensor:
        return self.logits.log_softmax(1)

    @property
    def mean(self) -> Tensor:
        return self.logits.softmax(1)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (self.logits.shape[1],)

    def sample(self, noise: Tensor) -> Tensor:
        return (self.logits + noise).softmax(-1)

    def kl(self, other: Self) -> Tensor:
        return (self.mean * (self.log_probabilities - other.log_probabilities)).sum(1)

    def wasserstein2(self, _other: Self) -> Tensor:
        raise NotImplementedError

    def rows(self, index: Tensor) -> Self:
        return type(self)(self.logits[index])


@dataclass(frozen=True, eq=False)
class Both:
    """A categorical and a continuous part, in that order."""

    parts: tuple[Posterior, ...]

    @property
    def mean(self) -> Tensor:
        return torch.cat([part.mean for part in self.parts], 1)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (sum(part.noise_shape[0] for part in self.parts),)

    def sample(self, noise: Tensor) -> Tensor:
        sizes = [part.noise_shape[0] for part in self.parts]
        drawn = [part.sample(eta) for part, eta in zip(self.parts, torch.split(noise, sizes, dim=-1), strict=True)]
        return torch.cat(drawn, -1)

    def kl(self, other: Self) -> Tensor:
        return torch.stack([a.kl(b) for a, b in zip(self.parts, other.parts, strict=True)]).sum(0)

    def wasserstein2(self, _other: Self) -> Tensor:
        raise NotImplementedError

    def rows(self, index: Tensor) -> Self:
        return type(self)(tuple(part.rows(index) for part in self.parts))


class JointModel:
    """Three classes and two Gaussian units of six inputs; the decoder is linear."""

    input_shape, range = (6,), None

    @property
    def prior(self) -> Both:
        zeros = torch.zeros(1, 3, dtype=torch.float64)
        return Both((Classes(zeros), DiagonalGaussian.standard((2,), like=zeros)))

    def encode(self, x: Tensor) -> Both:
        return Both((Classes(2 * x[:, :3]), DiagonalGaussian(x[:, 3:5], -x[:, 5:].square().expand(-1, 2))))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(torch.cat([z, z[:, :1]], 1), torch.zeros(()).double())


@pytest.fixture
def chain(oracle: dict[str, Any]) -> Linear:
    return Linear(oracle["hier"], oracle["seatbelt_eq9"])


@pytest.fixture
def lin2(oracle: dict[str, Any], linear_gaussian: type[Any]) -> Any:
    return linear_gaussian(oracle["models"]["LIN2"])


# The ELBO and its parts


def test_the_elbo_of_a_linear_model_is_its_closed_form_and_below_the_evidence(lin2: Any) -> None:
    x = randn(30, *lin2.input_shape)
    found = latents(lin2, x, draws=400)
    q = lin2.encode(x)
    variance, tau = lin2.log_sigma.exp().square(), lin2.log_tau.exp()
    away = (x - q.mean @ lin2.B.T - lin2.c).square().sum(1) + (lin2.B.square() @ variance).sum()
    expected = -0.5 * away / tau**2 - x.shape[1] * (lin2.log_tau + 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(found.kl, q.kl(lin2.prior), rtol=1e-12, atol=0)
    assert found.log_likelihood is not None
    spread = latents(lin2, x, draws=1).log_likelihood
    assert spread is not None
    error = float((spread - expected).std()) / 20
    assert bool(((found.log_likelihood - expected).abs() < 6 * error).all())
    evidence = MultivariateNormal(lin2.c, lin2.B @ lin2.B.T + tau**2 * torch.eye(x.shape[1]).double()).log_prob(x)
    assert found.elbo is not None
    assert bool((found.elbo < evidence).all())
    torch.testing.assert_close(found.elbo, found.log_likelihood - found.kl)


@pytest.mark.parametrize("size", [1, 7])
def test_the_batch_size_changes_nothing(small_vae: type[Any], size: int) -> None:
    x = torch.rand(20, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = latents(small_vae(), x, draws=3, batch_size=size), latents(small_vae(), x, draws=3)
    assert one.elbo is not None and other.elbo is not None
    torch.testing.assert_close(one.elbo, other.elbo, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.layers[0].kl, other.layers[0].kl, rtol=1e-12, atol=1e-12)
    assert one.decomposition is not None and other.decomposition is not None
    torch.testing.assert_close(one.decomposition.units, other.decomposition.units, rtol=1e-9, atol=1e-9)


def test_items_given_by_a_function_are_asked_for_once_and_the_same_seed_gives_the_same_bits(
    bundled_model: Any, bundled_images: Tensor
) -> None:
    asked: list[int] = []

    def images(items: Sequence[int]) -> Tensor:
        asked.extend(items)
        return bundled_images[list(items)]

    one = latents(bundled_model, images, n=60, batch_size=25)
    other = latents(bundled_model, bundled_images[:60], batch_size=25)
    assert asked == [0, *range(60)]  # the first tells what the model is
    assert one.elbo is not None and other.elbo is not None
    assert torch.equal(one.elbo, other.elbo)
    assert one.decomposition is not None and other.decomposition is not None
    assert torch.equal(one.decomposition.units, other.decomposition.units)
    assert one.route == "Bernoulli from logits"


def test_without_draws_nothing_is_decoded(lin2: Any) -> None:
    lin2.decode = None
    found = latents(lin2, randn(9, *lin2.input_shape), draws=0)
    assert (found.log_likelihood, found.elbo, found.route) == (None, None, None)
    assert found.decomposition is not None
    assert "latents.elbo.mean" not in summarise_latents(found)


def test_draws_are_an_items_own_whatever_their_number(lin2: Any) -> None:
    x = randn(9, *lin2.input_shape)
    all_items, some = latents(lin2, x).elbo, latents(lin2, x[:4]).elbo
    assert all_items is not None and some is not None
    torch.testing.assert_close(some, all_items[:4], rtol=1e-12, atol=1e-12)


# Units


def test_a_collapsed_unit_is_inactive_by_both_criteria_and_a_spread_one_active(linear_gaussian: type[Any]) -> None:
    numbers = {
        "A": [[1.0, 0.0, 0.0], [0.0, 0.02, 0.0], [0.0, 0.0, 0.0]], "b": [0.0] * 3, "sigma": [0.5, 0.8, 1.0],
        "B": torch.eye(3).tolist(), "c": [0.0] * 3, "tau": 1.0,
    }  # fmt: skip
    x = randn(500, 3)
    found = latents(linear_gaussian(numbers), x, draws=0)
    (layer,) = found.layers
    expected = [0.5 * (s * s + float((a * x[:, j]).square().mean()) - 1) - math.log(s)
                for j, (a, s) in enumerate(zip((1.0, 0.02, 0.0), numbers["sigma"], strict=True))]  # fmt: skip
    assert layer.kl.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert layer.mean_variance.tolist() == pytest.approx(
        [float(x[:, 0].var()), 0.0004 * float(x[:, 1].var()), 0], rel=1e-9
    )
    metrics = summarise_latents(found)
    assert (metrics["latents.active_units.kl"].value, metrics["latents.active_units.kl"].ci) == (2, (2, 2))
    assert (metrics["latents.active_units.variance"].value, metrics["latents.active_units.variance"].ci) == (1, (1, 1))
    assert "Burda" in metrics["latents.active_units.variance"].estimator


def test_the_number_of_active_units_is_uncertain_where_a_unit_is_near_the_threshold(linear_gaussian: type[Any]) -> None:
    numbers = {"A": [[0.14]], "b": [0.0], "sigma": [1.0], "B": [[1.0]], "c": [0.0], "tau": 1.0}
    metrics = summarise_latents(latents(linear_gaussian(numbers), randn(100, 1), draws=0))
    assert metrics["latents.active_units.kl"].ci == (0, 1)


def test_a_joint_models_parts_are_its_units() -> None:
    vae, x = JointModel(), randn(200, 6)
    found = latents(vae, x, draws=2)
    (layer,) = found.layers
    q = vae.encode(x)
    categorical, continuous = q.parts[0], q.parts[1]
    assert layer.kl.shape == (3,)  # two continuous units and, last, one of three classes
    assert float(layer.kl[2]) == pytest.approx(float(categorical.kl(vae.prior.parts[0]).mean()), rel=1e-9)
    assert float(layer.kl[:2].sum()) == pytest.approx(float(continuous.kl(vae.prior.parts[1]).mean()), rel=1e-9)
    torch.testing.assert_close(found.kl, q.kl(vae.prior), rtol=1e-9, atol=1e-12)
    assert layer.mean_variance.isnan().tolist() == [False, False, True]
    assert found.decomposition is not None
    assert found.decomposition.units.shape == (3,)
    assert found.encodings.units == 3
    assert summarise_latents(found)["latents.active_units.variance"].value == 2


# Chains


def test_the_first_layer_of_a_chain_is_the_oracles_log_ratio_and_not_the_printed_kl(
    oracle: dict[str, Any], chain: Linear
) -> None:
    assert isinstance(chain, Hierarchical)
    case = oracle["seatbelt_eq9"]
    x = torch.tensor([oracle["hier"]["x"]], dtype=torch.float64).expand(20_000, -1)
    first, _ = latents(chain, x, draws=2, points=8).layers
    value, error = float(first.item_kl.mean()), float(first.item_kl.std()) / len(x) ** 0.5
    assert abs(value - case["correct_E_log_ratio"]) < 5 * error < 0.3
    assert abs(value - case["printed_E_KL"]) > 5 * error
    assert float(first.kl.sum()) == pytest.approx(value, rel=1e-9)


def test_the_layers_of_a_linear_chain_sum_to_the_kl_of_the_joint_gaussians(chain: Linear) -> None:
    x = randn(40, 4)
    found = latents(chain, x, draws=500, points=8)

    def joint(first: Tensor, gain: Tensor, noise: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of (u, v) with u ~ N(mean, diag first^2) and v = gain u + noise."""
        cross = gain * first.square()
        over = cross @ gain.T + noise.square().diag()
        return torch.cat([above, above @ gain.T], -1), torch.cat(
            [torch.cat([first.square().diag(), cross.T], 1), torch.cat([cross, over], 1)]
        )

    q = MultivariateNormal(*joint(chain.s1, chain.A2, chain.s2, x @ chain.A1.T))
    ones = torch.ones(2, dtype=torch.float64)
    mean, covariance = joint(ones, chain.P, chain.sp, torch.zeros(1, 2, dtype=torch.float64))  # of (z2, z1)
    order = [2, 3, 4, 0, 1]
    p = MultivariateNormal(mean[:, order], covariance[order][:, order])
    exact = torch.distributions.kl_divergence(q, p)
    error = (found.kl - exact).std() / 40**0.5
    assert abs(float((found.kl - exact).mean())) < 4 * float(error) < 0.05 * float(exact.mean())
    torch.testing.assert_close(found.kl, found.layers[0].item_kl + found.layers[1].item_kl)


def test_the_share_of_a_layer_below_the_top_can_be_negative_and_its_interval_knows() -> None:
    # z2 is z1 but for little noise, and p(z1|z2) is as narrow; the third unit of z1 is as its prior.
    eye = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    posterior = {"A1": [[1.0] * 4, [1.0] * 4, [0.0] * 4], "A2": eye, "s1": [1.0] * 3, "s2": [0.1, 0.1]}
    copied = Linear(posterior, {"P": torch.tensor(eye).T.tolist(), "sp": [0.1, 0.1, 1.0]})
    found = latents(copied, randn(60, 4), draws=2, points=8)
    metrics = summarise_latents(found)
    # Of a unit E[log q - log p] = -log 1 - 1/2 + log 0.1 + 0.1^2/(2 0.1^2).
    for name in ("kl.mean", "unit0.kl.mean", "unit1.kl.mean"):
        below, top = metrics[f"latents.layer1.{name}"], metrics[f"latents.layer2.{name}"]
        exact = math.log(0.1) * (2 if name == "kl.mean" else 1)
        assert below.value is not None and below.ci is not None and top.ci is not None
        assert below.ci[0] < below.value < below.ci[1] < 0 < top.ci[0]
        assert below.value == pytest.approx(exact, rel=0.2)
        assert below.ci[1] - below.value == pytest.approx(below.value - below.ci[0])


def test_the_activity_of_an_upper_layer_is_that_of_its_mean_without_the_variance_of_drawing(chain: Linear) -> None:
    x = randn(3000, 4)
    found = latents(chain, x, draws=4, points=8)
    exact = (x @ chain.A1.T @ chain.A2.T).var(0)
    upper = found.layers[1]
    assert bool(((upper.mean_variance - exact).abs() < 4 * upper.mean_variance_error).all())
    assert bool((upper.mean_variance_error < 0.1 * exact).all())
    torch.testing.assert_close(found.layers[0].mean_variance, (x @ chain.A1.T).var(0), rtol=1e-9, atol=0)
    alone = latents(chain, x[:50], points=8)
    assert bool(alone.layers[1].mean_variance.isnan().all())
    metrics = summarise_latents(alone)
    assert metrics["latents.layer2.active_units.variance"].value is None
    assert metrics["latents.layer1.active_units.variance"].value == 3


def test_the_error_of_an_upper_layers_activity_is_what_other_items_would_have_given(chain: Linear) -> None:
    uppers = [latents(chain, randn(200, 4, seed=seed), draws=2, points=8, seed=seed).layers[1] for seed in range(100)]
    spread = torch.stack([upper.mean_variance for upper in uppers]).std(0)
    told = torch.stack([upper.mean_variance_error for upper in uppers]).mean(0)
    torch.testing.assert_close(told, spread, rtol=0.2, atol=0)  # two draws: without their own spread 30% too little


def test_the_top_layer_of_a_chain_is_what_is_taken_apart(chain: Linear) -> None:
    found = latents(chain, randn(50, 4), draws=0)
    assert found.decomposition is not None
    assert (found.encodings.layer, found.encodings.layers, found.encodings.units) == (2, 2, 2)
    assert found.decomposition.kl == pytest.approx(float(found.layers[1].kl.sum()), rel=1e-9)


def test_a_chain_without_the_priors_of_its_layers_is_refused(chain: Linear) -> None:
    class Without:
        input_shape, range, prior = chain.input_shape, None, chain.prior
        encode, decode = staticmethod(chain.encode), staticmethod(chain.decode)

    with pytest.raises(UnsupportedError, match="conditional_priors"):
        latents(Without(), randn(9, 4))
    with pytest.raises(UnsupportedError, match="conditional_priors"):
        traverse(Without(), [0])


# What was recorded in training


@pytest.mark.parametrize("name", list(BATCHES))
def test_the_kl_of_each_unit_is_the_recorded_one(name: str) -> None:
    folder = SHARED / "checkpoints/disentangling-vae" / name
    images = SHARED / "data/mnist/train_first1000_32x32.npy"
    if not (folder / "model.pt").exists() or not images.exists():
        pytest.skip("needs the checkpoints and images of ../shared")
    vae = open_model(str(folder / "model.pt"), "burgess").vae
    x = torch.from_numpy(np.load(images)).reshape(-1, 1, 32, 32) / 255
    found = latents(vae, x, draws=0, points=8)
    (layer,) = found.layers
    recorded = json.loads((folder / "test_losses.log").read_text())
    expected = [BATCHES[name] * recorded[f"kl_loss_{unit}"] for unit in range(10)]
    assert layer.kl.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert float(found.kl.double().mean()) == pytest.approx(BATCHES[name] * recorded["kl_loss"], rel=1e-5)


# Traversals


def test_quantiles_of_the_aggregate_are_those_of_its_distribution_function() -> None:
    encoded = Encodings(3 * randn(70, 2), 0.3 * randn(70, 2, seed=1) - 1, ())
    levels = torch.tensor([0.001, 0.3, 0.5, 0.999], dtype=torch.float64)
    found = aggregate_quantiles(encoded, [1, 0], levels)
    for row, unit in enumerate([1, 0]):
        below = torch.distributions.Normal(encoded.mean[:, unit], encoded.log_stddev[:, unit].exp())
        torch.testing.assert_close(below.cdf(found[row, :, None]).mean(1), levels, rtol=1e-9, atol=1e-12)
    standard = Encodings(torch.zeros(5, 1).double(), torch.zeros(5, 1).double(), ())
    torch.testing.assert_close(aggregate_quantiles(standard, [0], levels)[0], torch.special.ndtri(levels))


def test_a_traversal_moves_one_unit_of_the_item_and_no_other(lin2: Any) -> None:
    item = randn(*lin2.input_shape)
    units = [1, 0]
    found = traverse(lin2, units, item=item, steps=5)
    assert found.values.shape == (2, 5)
    assert found.values[0].tolist() == pytest.approx([-3, -1.5, 0, 1.5, 3])
    assert found.images.shape == (2, 5, *lin2.input_shape)
    for row, unit in enumerate(units):
        z = lin2.encode(item[None]).mean.expand(5, -1).clone()
        z[:, unit] = found.values[row]
        torch.testing.assert_close(found.images[row], lin2.decode(z).mean)
    from_prior = traverse(lin2, [0], steps=3)
    torch.testing.assert_close(from_prior.images[0, 1], lin2.c)


def test_a_traversal_stays_where_the_data_lie_where_they_are_given(lin2: Any) -> None:
    x = randn(50, *lin2.input_shape)
    encoded = latents(lin2, x, draws=0).encodings
    found = traverse(lin2, [0], encoded=encoded, steps=3)
    aggregate = torch.distributions.Normal(encoded.mean[:, 0], encoded.log_stddev[:, 0].exp())
    assert float(aggregate.cdf(found.values[0, 1]).mean()) == pytest.approx(0.5, abs=1e-9)
    assert "50 items" in found.span


def test_a_categorical_unit_takes_its_classes_in_turn() -> None:
    found = traverse(JointModel(), [2], item=torch.zeros(6, dtype=torch.float64))
    assert found.values.tolist() == [[0, 1, 2]]
    torch.testing.assert_close(found.images[0, :, :3], torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(traverse(JointModel(), [1], steps=3).images[0, :, 4], torch.tensor([-3, 0, 3]).double())
    with pytest.raises(ConfigError, match="traverse them apart"):
        traverse(JointModel(), [0, 2])


def test_parts_of_several_dimensions_lie_side_by_side_along_the_last_axis() -> None:
    class Grid:
        """Latents (2, 3): two Gaussian columns of one part, one of the other; the decoder shows them."""

        input_shape, range = (2, 3), None

        @property
        def prior(self) -> Any:
            return self.encode(torch.zeros(1, 2, 3, dtype=torch.float64))

        def encode(self, x: Tensor) -> Any:
            both = (DiagonalGaussian(part, 0 * part) for part in (x[..., :2], x[..., 2:]))
            return Columns(tuple(both))

        def decode(self, z: Tensor) -> GaussianLikelihood:
            return GaussianLikelihood(z, torch.zeros(()).double())

    class Columns(Both):
        @property
        def mean(self) -> Tensor:
            return torch.cat([part.mean for part in self.parts], -1)

    vae = Grid()
    encoded = latents(vae, randn(9, 2, 3), draws=0).encodings
    marked = torch.arange(6, dtype=torch.float64).reshape(1, 2, 3)
    mean = latents(vae, marked.repeat(2, 1, 1), draws=0, points=8).encodings.mean[0]
    found = traverse(vae, range(6), steps=3)
    assert encoded.units == 6
    for unit in range(6):
        moved = found.images[unit, 2].flatten().nonzero().squeeze(1).tolist()
        assert moved == [int(mean[unit])]  # the place in the latents that the encodings have at this unit


def test_a_traversal_of_a_chain_moves_any_layer_as_its_prior_does(chain: Linear) -> None:
    found = traverse(chain, [0, 4], steps=3)
    assert found.values[1].tolist() == pytest.approx([-3, 0, 3])
    assert float(found.values[0, 2]) == pytest.approx(3 * float(chain.sp[0]))  # the start is 0, and so is P z2
    with pytest.raises(UnsupportedError, match="leave the encodings out"):
        traverse(chain, [0], encoded=latents(chain, randn(9, 4)).encodings)


# The summary


def test_metrics_hold_every_figure_with_its_interval(small_vae: type[Any]) -> None:
    x = torch.rand(200, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = latents(small_vae(), x)
    metrics = summarise_latents(found)
    assert list(metrics) == [
        *(f"latents.{part}.{what}" for part in ("elbo", "log_likelihood", "kl") for what in ("mean", "median")),
        *(f"latents.unit{unit}.kl.mean" for unit in (0, 1)),
        "latents.active_units.kl",
        "latents.active_units.variance",
        "latents.mutual_information",
        "latents.total_correlation",
        "latents.dimension_wise_kl",
    ]
    for measured in metrics.values():
        assert measured.value is not None and measured.ci is not None
        assert measured.ci[0] <= measured.value <= measured.ci[1]
        assert (measured.n, measured.nonfinite, measured.direction) == (200, 0, "none")
    units = [metrics[f"latents.unit{unit}.kl.mean"].value or 0.0 for unit in (0, 1)]
    assert sum(units) == pytest.approx(metrics["latents.kl.mean"].value, rel=1e-9)
    parts = ("mutual_information", "total_correlation", "dimension_wise_kl")
    assert sum(metrics[f"latents.{part}"].value or 0.0 for part in parts) == pytest.approx(sum(units), rel=1e-9)
    wider = summarise_latents(found, level=0.99)["latents.total_correlation"].ci
    assert wider is not None and wider[0] < metrics["latents.total_correlation"].ci[0]  # type: ignore[index]


class _Impossible(GaussianLikelihood):
    """Of probability 0 for items whose first number is above 2."""

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 2, -torch.inf, super().log_prob(x))


def test_items_that_the_likelihood_cannot_have_are_told(lin2: Any) -> None:
    x = randn(30, *lin2.input_shape).clamp(max=1)
    x[[4, 7], 0] = 3
    assert not latents(lin2, x).impossible
    decode = lin2.decode
    lin2.decode = lambda z: _Impossible(decode(z).mean, decode(z).log_stddev)
    found = latents(lin2, x, items=range(100, 130))
    assert found.impossible
    assert found.warnings[0].startswith("log p(x|z) is infinite for 2 of 30 items, the first of them item 104, and so")
    metrics = summarise_latents(found)
    assert (metrics["latents.elbo.mean"].nonfinite, metrics["latents.kl.mean"].nonfinite) == (2, 0)
    assert metrics["latents.elbo.median"].value is not None


def test_estimators_name_draws_and_interval(small_vae: type[Any]) -> None:
    x = torch.rand(200, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for estimator, over in (("exact", "draws of z"), ("stratified", "minibatches")):
        told = summarise_latents(latents(small_vae(), x, draws=0, estimator=estimator, batch=20))
        assert told["latents.total_correlation"].estimator.endswith(f"Student t interval over {over}; n counts items")


def test_saturation_and_bias_are_told(linear_gaussian: type[Any]) -> None:
    numbers = {"A": torch.eye(3).tolist(), "b": [0.0] * 3, "sigma": [1e-3] * 3, "B": torch.eye(3).tolist(),
               "c": [0.0] * 3, "tau": 1.0}  # fmt: skip
    (told,) = latents(linear_gaussian(numbers), randn(50, 3), draws=0).warnings
    assert told.startswith("the mutual information, 3.91 nats, is near log N = 3.91, the most that 50 items can have")
    _, biased = latents(linear_gaussian(numbers), randn(50, 3), draws=0, estimator="stratified", batch=10).warnings
    assert "minibatch stratified sampling is biased" in biased
    assert "the total correlation off either way; both can be negative" in biased
    wide = {**numbers, "sigma": [1.0] * 3}
    assert latents(linear_gaussian(wide), randn(50, 3), draws=0).warnings == ()


# Stopping and bad input


def test_stopping_leaves_the_first_items(small_vae: type[Any]) -> None:
    x = torch.rand(20, 2, 3, dtype=torch.float64)

    def run(times: int) -> LatentsResult:
        left = iter([True] * times)
        return latents(small_vae(), x, batch_size=5, go_on=lambda _: next(left, False))

    whole = latents(small_vae(), x, batch_size=5)
    first = run(1)
    assert (first.n, first.interrupted, first.decomposition) == (10, True, None)
    assert torch.equal(first.kl, whole.kl[:10])
    assert "latents.mutual_information" not in summarise_latents(first)
    later = run(6)
    assert (later.n, later.interrupted) == (20, True)
    assert later.decomposition is not None and whole.decomposition is not None
    assert later.decomposition.points < whole.decomposition.points
    assert not whole.interrupted
    fewest = latents(small_vae(), x, batch_size=1, go_on=lambda _: False)
    assert (fewest.n, fewest.interrupted) == (2, True)  # one item alone has no spread
    assert summarise_latents(fewest)["latents.active_units.kl"].n == 2


def test_what_cannot_be_looked_at_is_refused(small_vae: type[Any], lin2: Any) -> None:
    vae, x = small_vae(), torch.rand(9, 2, 3, dtype=torch.float64)
    with pytest.raises(ConfigError, match="give n"):
        latents(vae, lambda items: x[list(items)])
    with pytest.raises(ConfigError, match="at least 2 items are needed, but 1 of the 9"):
        latents(vae, x, n=1)
    with pytest.raises(ConfigError, match="but 10 of the 9"):
        latents(vae, x, n=10)
    with pytest.raises(ConfigError, match="-1 were asked for"):
        latents(vae, x, draws=-1)
    with pytest.raises(DataError, match=r"must lie in the range \[0, 1\]"):
        latents(vae, 2 * x)
    with pytest.raises(ConfigError, match="numbered 0 to 1, but unit 2"):
        traverse(vae, [2])
    with pytest.raises(ConfigError, match="but none was asked for"):
        traverse(vae, [])
    with pytest.raises(ConfigError, match="at least two steps"):
        traverse(vae, [0], steps=1)
    with pytest.raises(ConfigError, match="the encodings have 3 units"):
        traverse(vae, [0], encoded=Encodings(randn(5, 3), randn(5, 3), ()))
    wrong = randn(9, *lin2.input_shape)
    wrong[4] = 1e200
    with pytest.raises(NonFiniteError, match="item 4 "):
        latents(lin2, wrong)
