"""How far sampling moves a reconstruction, and the first-order estimates of the margin."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vaeaudit import DiagonalGaussian, GaussianLikelihood
from vaeaudit.checks.margin import estimates
from vaeaudit.checks.margin.estimates import FirstOrder, JacobianNorms, first_order, jacobian_norms
from vaeaudit.checks.margin.radius import distances, draw_distances, kept, min_radius
from vaeaudit.data.items import fit
from vaeaudit.data.sources import read
from vaeaudit.errors import ConfigError, ContractError, NonFiniteError, UnsupportedError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.registry import open_model
from vaeaudit.model.vae import VAE
from vaeaudit.stats.draws import noise_set

SHARED = Path(__file__).parents[4] / "shared"
ROWS = RowBatches(512)


class Given:
    """A VAE from functions: the mean and the standard deviation of x, the decoder's mean of z."""

    range = None

    def __init__(
        self,
        mean: Callable[[Tensor], Tensor],
        stddev: Callable[[Tensor], Tensor],
        decoder: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
    ) -> None:
        self.mean, self.stddev, self.decoder, self.input_shape = mean, stddev, decoder, shape

    @property
    def prior(self) -> DiagonalGaussian:
        raise NotImplementedError

    def encode(self, x: Tensor) -> DiagonalGaussian:
        mean = self.mean(x)
        return DiagonalGaussian(mean, self.stddev(x).log().expand_as(mean))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(self.decoder(z), torch.zeros((), dtype=z.dtype))


def line(sigma: float = 0.5, slope: float = 1.0) -> Given:
    """mu(x) = slope x, g(z) = z, in one dimension."""
    return Given(lambda x: slope * x, lambda x: torch.full_like(x, sigma), lambda z: z, (1,))


class Convolutional(nn.Module):
    """Latents (4, 8, 8) of images (3, 16, 16); the same weights every time."""

    input_shape, range = (3, 16, 16), (0.0, 1.0)

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.Conv2d(8, 8, 1),
        )  # fmt: skip
        self.decoder = nn.ConvTranspose2d(4, 3, 2, stride=2)
        generator = torch.Generator().manual_seed(3)
        for weights in self.parameters():
            weights.data = 0.3 * torch.randn(weights.shape, generator=generator, dtype=torch.float64)
        self.to(dtype).eval().requires_grad_(False)

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((4, 8, 8), like=next(self.parameters()))

    def encode(self, x: Tensor) -> DiagonalGaussian:
        mean, log_stddev = self.encoder(x).chunk(2, dim=1)
        return DiagonalGaussian(mean, log_stddev.clamp(-3, 1))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(self.decoder(z), torch.zeros((), dtype=z.dtype))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand((5, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def lin2(oracle: dict[str, Any], linear_gaussian: type[Any]) -> VAE:
    return linear_gaussian(oracle["models"]["LIN2"])


def norms_of(vae: VAE, x: Tensor, exact: bool | None = None, rows: RowBatches = ROWS) -> JacobianNorms:
    return jacobian_norms(vae, x, rows, items=range(len(x)), seed=0, exact=exact)


def at(vae: VAE, x: Tensor, p: float, m: float = 0.5) -> FirstOrder:
    return first_order(norms_of(vae, x), torch.full((len(x),), p, dtype=torch.float64), m)


def figures(found: FirstOrder) -> list[float]:
    return [float(value[0]) for value in (found.frobenius, found.spectral, found.whitened)]


# Distances


def test_a_distance_is_that_of_two_reconstructions(small_vae: type[Any]) -> None:
    vae, x = small_vae(), torch.rand((3, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = noise_set((2,), draws=4, items=range(3), seed=0, check="t", like=x)
    q = vae.encode(x)
    expected = torch.tensor(
        [[float((vae.decode(q.sample(eta)).mean[i] - vae.decode(q.mean).mean[i]).norm()) for i in range(3)]
         for eta in noise], dtype=torch.float64,
    )  # fmt: skip
    torch.testing.assert_close(distances(vae, x, noise, ROWS), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [1, 1000])
def test_the_batch_size_changes_no_distance_and_no_norm(images: Tensor, size: int) -> None:
    vae = Convolutional()

    def run(rows: RowBatches) -> tuple[Tensor, ...]:
        found = draw_distances(vae, images, rows, draws=9, items=range(5), seed=1, check="t")
        norms = [norms_of(vae, images, exact, rows) for exact in (True, False)]
        return found, *(value for n in norms for value in (n.frobenius, n.spectral, n.whitened))

    for value, alike in zip(run(RowBatches(size)), run(RowBatches(3)), strict=True):
        torch.testing.assert_close(value, alike, rtol=1e-10, atol=0)


def test_draws_are_an_items_own_and_little_noise_is_held_at_once(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = Convolutional()
    everything = draw_distances(vae, images, ROWS, draws=6, items=range(5), seed=1, check="t")
    monkeypatch.setattr("vaeaudit.checks.margin.radius._MOST_NUMBERS", 2 * 6 * 256)
    in_parts = draw_distances(vae, images[[4, 1, 2]], ROWS, draws=6, items=[4, 1, 2], seed=1, check="t")
    torch.testing.assert_close(in_parts, everything[:, [4, 1, 2]], rtol=1e-12, atol=0)


def test_nan_reconstructions_are_refused() -> None:
    vae = Given(lambda x: x, torch.ones_like, lambda z: torch.where(z > 2, torch.nan, z), (1,))
    with pytest.raises(NonFiniteError, match="for 1 of 2 items, item 1"):
        distances(vae, torch.tensor([[0.0], [9.0]]), torch.zeros((3, 2, 1)), ROWS)


# min r and p0


def test_the_place_of_the_upper_value_is_the_oracles(oracle: dict[str, Any]) -> None:
    for case in oracle["clopper_pearson"]["quantile"]:
        n = case["n"]
        found = min_radius(torch.arange(n, 0, -1.0, dtype=torch.float64)[:, None], case["m"], case["alpha"])
        assert found.place == case["upper_index"]
        assert found.upper.tolist() == [case["upper_index"] or torch.inf]
        assert found.estimate.tolist() == [np.ceil(round(case["m"] * n, 6))]


def test_the_estimate_is_an_order_statistic_whatever_the_rounding_of_m() -> None:
    values = torch.arange(1.0, 101.0)[:, None]
    assert [float(min_radius(values, m, 0.05).estimate) for m in (0.07, 0.5, 0.001, 0.999)] == [7, 50, 1, 100]


def test_min_r_and_p0_cover_the_exact_values(oracle: dict[str, Any], lin2: VAE) -> None:
    cases, audits, alpha = oracle["r_robust"]["cases"], 2000, 0.1
    x = torch.tensor(oracle["models"]["LIN2"].get("x", [0.0] * 8), dtype=torch.float64).expand(audits, -1)
    drawn = draw_distances(lin2, x, ROWS, draws=200, items=range(audits), seed=7, check="t")
    most = alpha + 3 * (alpha * (1 - alpha) / audits) ** 0.5
    for m, exact in ((0.5, cases[0]["min_r"]), (0.9, cases[0]["min_r_090"])):
        found = min_radius(drawn, m, alpha)
        assert float((found.upper < exact).double().mean()) <= most
        assert float(found.estimate.median()) == pytest.approx(exact, rel=0.02)
    for case in cases:
        assert float((kept(drawn, case["r"], alpha).p_low > case["bounds"]["p0"]).double().mean()) <= most
        assert float(kept(drawn, case["r"], alpha).p0.mean()) == pytest.approx(case["bounds"]["p0"], abs=3e-3)


def test_lower_bounds_are_the_oracles_one_sided_ones(oracle: dict[str, Any]) -> None:
    for case in oracle["clopper_pearson"]["cases"]:
        drawn = torch.ones((case["n"], 1), dtype=torch.float64)
        drawn[case["k"] :] = 3
        found = kept(drawn, 1.0, case["alpha"])
        assert (int(found.hits), found.n, float(found.p0)) == (case["k"], case["n"], case["k"] / case["n"])
        assert float(found.p_low) == pytest.approx(case["lower"], abs=1e-10)


def test_each_item_may_have_a_radius_of_its_own() -> None:
    drawn = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    assert kept(drawn, torch.tensor([1.0, 2.5]), 0.05).hits.tolist() == [1, 2]


def test_radii_levels_and_samples_that_mean_nothing_are_refused() -> None:
    drawn = torch.ones((3, 1))
    for r in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="radius r must be above 0"):
            kept(drawn, r, 0.05)
    for value in (0.0, 1.0, -0.1):
        with pytest.raises(ConfigError, match="risk level m must lie strictly between 0 and 1"):
            min_radius(drawn, value, 0.05)
        with pytest.raises(ConfigError, match="alpha must lie strictly between 0 and 1"):
            kept(drawn, 1.0, value)
    with pytest.raises(ConfigError, match="at least one draw"):
        min_radius(drawn[:0], 0.5, 0.05)


# First-order estimates


def test_estimates_of_a_linear_encoder_are_the_oracles(oracle: dict[str, Any], lin2: VAE) -> None:
    x = torch.randn((2, *lin2.input_shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for case in oracle["r_robust"]["cases"]:
        bounds = case["bounds"]
        found = at(lin2, x, bounds["p0"])
        assert float(found.gap[0]) == pytest.approx(bounds["probit_gap"], rel=1e-9, abs=1e-14)
        assert figures(found) == pytest.approx(
            [bounds["frobenius"], bounds["spectral"], bounds["mahalanobis"]], rel=1e-9, abs=1e-14
        )
        norms = found.norms
        assert [float(norms.frobenius[1]), float(norms.spectral[1]), float(norms.whitened[1])] == pytest.approx(
            [bounds["frob_norm"], bounds["spec_norm"], bounds["whitened_spec_norm"]], rel=1e-9
        )
        if "mahalanobis_m075" in case:
            assert figures(at(lin2, x, bounds["p0"], m=0.75))[2] == pytest.approx(case["mahalanobis_m075"], rel=1e-9)


def test_estimates_from_a_sample_are_the_oracles(oracle: dict[str, Any], lin2: VAE) -> None:
    case = oracle["margin_ci"]
    drawn = torch.ones((case["n"], 1), dtype=torch.float64)
    drawn[case["k"] :] = 3
    found = first_order(norms_of(lin2, torch.zeros((1, *lin2.input_shape), dtype=torch.float64)),
                        kept(drawn, 2.0, case["alpha"]).p_low, 0.5)  # fmt: skip
    assert float(found.p_low) == pytest.approx(case["p_low"], abs=1e-10)
    assert figures(found)[1:] == pytest.approx([case["spectral"], case["cert"]], abs=1e-10)


def test_a_half_space_is_where_they_are_exact(oracle: dict[str, Any]) -> None:
    case = oracle["halfspace"]
    A, sigma = (torch.tensor(case[name], dtype=torch.float64) for name in ("A", "sigma"))
    vae = Given(lambda x: x @ A.T, lambda _: sigma, lambda z: case["slope"] * (z[:, :1] - case["a"]).relu(), (2,))
    found = at(vae, torch.zeros((1, 2), dtype=torch.float64), case["p0"])
    assert figures(found) == pytest.approx([case["frobenius"], case["spectral"], case["mahalanobis"]], rel=1e-9)


def test_beyond_a_kink_the_estimate_exceeds_the_true_margin(oracle: dict[str, Any]) -> None:
    case = oracle["kink"]
    vae = Given(lambda x: x + case["steep"] * (x - case["kink"]).relu(),
                lambda x: torch.full_like(x, case["sigma"]), lambda z: z, (1,))  # fmt: skip
    found = at(vae, torch.zeros((1, 1), dtype=torch.float64), case["p0"])
    assert figures(found) == pytest.approx([case["thm1_local"]] * 3, rel=1e-9)
    assert figures(found)[0] > 10 * case["exact_R"]


def test_what_is_not_robust_unperturbed_has_the_estimate_0_and_a_constant_encoder_an_infinite_one() -> None:
    x = torch.zeros((3, 1), dtype=torch.float64)
    p_low = torch.tensor([0.0, 0.5, 0.6], dtype=torch.float64)
    found = first_order(norms_of(line(), x), p_low, 0.5)
    assert found.robust.tolist() == [False, False, True]
    for value in (found.frobenius, found.spectral, found.whitened):
        assert value[:2].tolist() == [0, 0]
        assert 0 < float(value[2]) < torch.inf
    flat = first_order(norms_of(line(slope=0.0), x), p_low, 0.5)
    assert flat.whitened.tolist() == [0, 0, torch.inf]
    with pytest.raises(ConfigError, match="risk level m"):
        first_order(norms_of(line(), x), p_low, 1.0)


def test_the_norms_are_those_of_the_jacobian(images: Tensor) -> None:
    vae = Convolutional()
    found = norms_of(vae, images)
    assert found.exact
    assert found.bars is None
    for i, x in enumerate(images):
        J = torch.autograd.functional.jacobian(lambda one: vae.encode(one[None]).mean.flatten(), x).flatten(1)
        sigma = vae.encode(x[None]).stddev.flatten()
        assert float(found.smallest_stddev[i]) == pytest.approx(float(sigma.min()), rel=1e-12)
        for norm, expected in (
            (found.frobenius, J.norm()),
            (found.spectral, torch.linalg.matrix_norm(J, 2)),
            (found.whitened, torch.linalg.matrix_norm(J / sigma[:, None], 2)),
        ):
            assert float(norm[i]) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exact", [True, False])
def test_the_three_estimates_are_in_order_to_the_last_bit(exact: bool, dtype: torch.dtype, images: Tensor) -> None:
    p_low = torch.linspace(0.3, 0.99, 5, dtype=torch.float64)
    for vae, x in (
        (Convolutional(dtype), images.to(dtype)),
        (line(sigma=0.3), images[:, 0, 0, :1].to(dtype)),  # all three are equal
    ):
        found = first_order(norms_of(vae, x, exact), p_low, 0.5)
        assert bool(((found.frobenius <= found.spectral) & (found.spectral <= found.whitened)).all())


# Without forming the Jacobian


def test_matrix_free_bars_hold_the_exact_norms(images: Tensor) -> None:
    vae = Convolutional()
    exact, found = norms_of(vae, images), norms_of(vae, images, exact=False)
    assert not found.exact
    assert found.estimator == "Hutch++, 32 probes; Lanczos, 32 steps"
    assert found.bars is not None
    for name in ("frobenius", "spectral", "whitened"):
        truth, value, (low, high) = (getattr(source, name) for source in (exact, found, found.bars))
        assert bool(((low <= value) & (value <= high)).all())
        assert bool(((low <= truth * (1 + 1e-9)) & (truth <= high)).all())
        assert bool(((value / truth - 1).abs() <= 0.02).all())
    p_low = torch.full((5,), 0.9, dtype=torch.float64)
    margins, exactly = first_order(found, p_low, 0.5), first_order(exact, p_low, 0.5)
    assert margins.bars is not None
    for name in ("frobenius", "spectral", "whitened"):
        low, high = getattr(margins.bars, name)
        assert bool(((low <= getattr(exactly, name)) & (getattr(exactly, name) <= high * (1 + 1e-9))).all())


def spread(k: int, outlier: float, seed: int) -> Given:
    """A linear encoder whose k singular values fall off evenly, and one beside them: the hard case has none."""
    values = torch.linspace(0.5, 1, k, dtype=torch.float64)
    values[-1] = outlier
    left, right = (
        torch.linalg.qr(torch.randn((k, k), generator=torch.Generator().manual_seed(s), dtype=torch.float64)).Q
        for s in (seed, seed + 1)
    )
    A = left @ values.diag() @ right
    return Given(lambda x: x @ A.T, lambda _: torch.ones((), dtype=torch.float64), lambda z: z, (k,))


@pytest.mark.parametrize("outlier", [1.0, 20.0])
def test_matrix_free_intervals_cover(outlier: float) -> None:
    vae, x = spread(80, outlier, 0), torch.zeros((300, 80), dtype=torch.float64)
    truth, found = norms_of(vae, x[:1]), norms_of(vae, x, exact=False)
    assert found.bars is not None
    for name in ("frobenius", "spectral"):
        low, high = getattr(found.bars, name)
        exact = getattr(truth, name)
        missed = float(((low > exact * (1 + 1e-9)) | (exact > high)).double().mean())
        assert missed <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


def test_few_latents_are_exact_without_the_jacobian_too(lin2: VAE) -> None:
    x = torch.zeros((2, *lin2.input_shape), dtype=torch.float64)
    exact, found = norms_of(lin2, x), norms_of(lin2, x, exact=False)
    for name in ("frobenius", "spectral", "whitened"):
        torch.testing.assert_close(getattr(found, name), getattr(exact, name), rtol=1e-9, atol=0)


def test_a_jacobian_too_large_to_form_is_not_formed(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "_MOST_LATENTS", 100)
    assert not norms_of(Convolutional(), images).exact


# What has no estimate


@dataclass(frozen=True, eq=False)
class Other:
    """A posterior of another family."""

    mean: Tensor


def test_encoders_without_an_estimate_are_refused(images: Tensor) -> None:
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    deterministic = Given(lambda x: x, lambda x: x, lambda z: z, (1,))
    infinite = Given(lambda x: x, lambda x: 1 / x, lambda z: z, (1,))
    cut_off = Given(lambda x: x.detach(), torch.ones_like, lambda z: z, (1,))
    steep = Given(lambda x: x.sqrt(), torch.ones_like, lambda z: z, (1,))
    for exact in (True, False):
        with pytest.raises(UnsupportedError, match=r"deterministic .* for 1 of 2 items: r-robustness degenerates"):
            norms_of(deterministic, x, exact)
        with pytest.raises(NonFiniteError, match="standard deviation is NaN or infinite for 1 of 2 items, item 0"):
            norms_of(infinite, x, exact)
        with pytest.raises(NonFiniteError, match="derivative is NaN or infinite for 1 of 2 items, item 0"):
            norms_of(steep, x, exact)
        with pytest.raises(ContractError, match="cut off from its input"):
            norms_of(cut_off, x, exact)
    other = Convolutional()
    other.encode = lambda x: Other(x)  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(UnsupportedError, match="diagonal Gaussian posterior, but this model's is Other"):
        norms_of(other, images)


# Real models


# Each at twice its own median min r over the first items; the figures were computed by another program.
@pytest.mark.parametrize(
    ("name", "r", "expected"), [("VAE_mnist", 2.408, (0.091, 0.224)), ("btcvae_mnist", 3.91, (0.220, 0.399))]
)
def test_whitened_estimates_of_real_models(name: str, r: float, expected: tuple[float, float]) -> None:
    folder, file = SHARED / "checkpoints" / "disentangling-vae" / name, SHARED / "data/mnist/train_first1000_32x32.npy"
    if not (folder.exists() and file.exists()):
        pytest.skip("the real checkpoints are not here")
    vae = open_model(folder, "burgess").vae
    x = fit(read(file), input_shape=vae.input_shape, data_range=vae.range).batch([0, 1])
    drawn = draw_distances(vae, x, ROWS, draws=4000, items=range(2), seed=0, check="t")
    found = first_order(norms_of(vae, x), kept(drawn, r, 0.05).p0, 0.5)
    assert found.whitened.tolist() == pytest.approx(expected, rel=0.05)
