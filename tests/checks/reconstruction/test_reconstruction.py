"""Figures of reconstructions against closed forms, scikit-image and plainly wrong models."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from vaeaudit import BernoulliLogits, DiagonalGaussian, GaussianLikelihood
from vaeaudit.checks.reconstruction.measure import reconstruction
from vaeaudit.checks.reconstruction.metrics import PSNR, SSIM
from vaeaudit.checks.reconstruction.summarise import group_means, scaled_errors, summarise_reconstruction
from vaeaudit.errors import ConfigError, DataError, NonFiniteError
from vaeaudit.stats import estimates


class Giving:
    """A model whose reconstruction is what ``function`` makes of its input; it has no spread unless one is given."""

    def __init__(self, function: Any, *shape: int, box: Any = (0.0, 1.0), log_stddev: float = -math.inf) -> None:
        self.function, self.input_shape, self.range, self.log_stddev = function, shape, box, log_stddev

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard(self.input_shape, like=torch.zeros(1, dtype=torch.float64))

    def encode(self, x: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(x, torch.full_like(x, self.log_stddev))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(self.function(z), z.new_zeros(()))


def images(*shape: int, seed: int = 0) -> Tensor:
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.avg_pool2d(noise, 5, 1, 2)


def test_psnr_and_ssim_are_those_of_scikit_image(bundled_model: Any, bundled_images: Tensor) -> None:
    x = bundled_images[:24]
    result = reconstruction(bundled_model, x, draws=0)
    with torch.no_grad():
        made = bundled_model.decode(bundled_model.encode(x).mean).mean
    for place, (a, b) in enumerate(zip(x[:, 0].double().numpy(), made[:, 0].double().numpy(), strict=True)):
        psnr = peak_signal_noise_ratio(a, b, data_range=1.0)
        ssim = structural_similarity(a, b, data_range=1.0, gaussian_weights=True, use_sample_covariance=False)
        assert float(result.at_mean["psnr"][place]) == pytest.approx(psnr, abs=1e-6)
        assert float(result.at_mean["ssim"][place]) == pytest.approx(ssim, abs=1e-6)


def test_a_shift_of_one_step_is_found_by_every_error_and_named_by_its_channel() -> None:
    x = 0.5 * images(6, 3, 12, 12)
    step = 1 / 255

    def greener(z: Tensor) -> Tensor:
        return z + step * torch.tensor([0.0, 1.0, 0.0]).reshape(3, 1, 1)

    result = reconstruction(Giving(greener, 3, 12, 12), x, draws=0)
    found = result.at_mean
    assert found["largest_error"].tolist() == pytest.approx([step] * 6)
    assert found["mean_error"].tolist() == pytest.approx([step / 3] * 6)
    assert found["mse"].tolist() == pytest.approx([step**2 / 3] * 6)
    assert found["psnr"].tolist() == pytest.approx([10 * math.log10(3 * 255**2)] * 6)
    assert found["share_off"].tolist() == [0.0] * 6  # one step and no more
    assert found["brightness"].tolist() == pytest.approx([step / 3] * 6)
    assert result.bias is not None
    np.testing.assert_allclose(result.bias.numpy(), [[0, step, 0]] * 6, atol=1e-15)
    beyond = reconstruction(Giving(lambda z: z + 1.01 * step, 3, 12, 12), x, draws=0)
    assert beyond.at_mean["share_off"].tolist() == [1.0] * 6


def test_a_perfect_model_has_infinite_psnr_that_quantiles_keep_and_means_count() -> None:
    x = images(8, 1, 12, 12)
    result = reconstruction(Giving(lambda z: z, 1, 12, 12), x)
    assert result.at_mean["ssim"].tolist() == result.at_draws["ms_ssim"].tolist() == [1.0] * 8
    metrics = summarise_reconstruction(result)
    mean, median = metrics["reconstruction.psnr.mean"], metrics["reconstruction.psnr.median"]
    assert (mean.value, mean.n, mean.nonfinite) == (None, 0, 8)
    assert (median.value, median.n, median.nonfinite, median.keeps_infinite) == (None, 8, 8, True)
    assert metrics["reconstruction.largest_error.worst"].value == 0


def test_draws_of_a_linear_model_have_the_error_that_their_variance_gives() -> None:
    """rec - x = sigma eta, so that E MSE = sigma^2, and its mean over many numbers is near that."""
    x = torch.full((40, 1, 12, 12), 0.5, dtype=torch.float64)
    result = reconstruction(Giving(lambda z: z, 1, 12, 12, log_stddev=math.log(0.03)), x, draws=4)
    assert (result.at_mean["mse"] == 0).all()
    n = x.numel() * 4
    assert float(result.at_draws["mse"].mean()) == pytest.approx(0.03**2, rel=4 * math.sqrt(2 / n))
    again = reconstruction(
        Giving(lambda z: z, 1, 12, 12, log_stddev=math.log(0.03)), x[10:20], items=range(10, 20), draws=4, batch_size=3
    )
    torch.testing.assert_close(again.at_draws["mse"], result.at_draws["mse"][10:20], rtol=1e-12, atol=0)


def test_the_same_pictures_written_in_another_range_have_the_same_psnr_and_ssim() -> None:
    x = images(4, 3, 12, 14)
    plain = reconstruction(Giving(lambda z: 0.9 * z, 3, 12, 14), x, draws=0)
    low, high = torch.tensor([-1.0, 0.0, -3.0]).reshape(3, 1, 1), torch.tensor([1.0, 255.0, 2.0]).reshape(3, 1, 1)
    box = tuple(zip(low.flatten().tolist(), high.flatten().tolist(), strict=True))

    def same(z: Tensor) -> Tensor:
        return low + 0.9 * (z - low)

    moved = reconstruction(Giving(same, 3, 12, 14, box=box), low + x * (high - low), draws=0)
    for name in ("psnr", "ssim", "ms_ssim", "share_off"):
        torch.testing.assert_close(moved.at_mean[name], plain.at_mean[name], rtol=1e-9, atol=1e-12)
    for shape in ((12, 14, 3), (3 * 12 * 14,)):
        channels_last = x.movedim(1, -1).reshape(4, *shape)
        other = reconstruction(Giving(lambda z: 0.9 * z, *shape), channels_last, draws=0, picture=(12, 14, 3))
        torch.testing.assert_close(other.at_mean["ssim"], plain.at_mean["ssim"], rtol=1e-9, atol=0)
        torch.testing.assert_close(other.bias, plain.bias)


def test_what_cannot_be_told_is_left_out_by_name_with_the_cure() -> None:
    small = reconstruction(Giving(lambda z: z / 2, 1, 10, 12), images(4, 1, 10, 12))
    assert set(small.left_out) == {"ssim", "ms_ssim"}
    assert "at least 11 pixels a side" in small.left_out["ssim"]
    assert "psnr" in small.at_mean
    for box, why in ((None, "no range of the model is known"), ((0.0, math.inf), "the range [0, inf) has an open end")):
        unknown = reconstruction(Giving(lambda z: z / 2, 1, 12, 12, box=box), images(4, 1, 12, 12))
        assert set(unknown.left_out) == {"psnr", "ssim", "ms_ssim", "share_off"}
        assert f"{why}; give --range LO HI" in unknown.left_out["psnr"]
    vectors = reconstruction(Giving(lambda z: z / 2, 5), torch.rand(4, 5, dtype=torch.float64))
    assert set(vectors.left_out) == {"psnr", "ssim", "ms_ssim", "share_off", "brightness", "bias"}
    assert "are no images" in vectors.left_out["ssim"]
    with pytest.raises(NonFiniteError, match=r"reconstruction is NaN or infinite for 1 of 3 items, item 7"):
        x = images(3, 1, 12, 12)
        x[1, 0, 0, 0] = 0
        reconstruction(Giving(lambda z: z / (z[:, :, :1, :1] != 0), 1, 12, 12), x, items=[5, 7, 9])
    with pytest.raises(DataError, match=r"must lie in the range \[0, 1\]"):
        reconstruction(Giving(lambda z: z, 1, 12, 12), 2 + images(3, 1, 12, 12))
    with pytest.raises(ConfigError, match="no fewer than 0 draws"):
        reconstruction(Giving(lambda z: z, 1, 12, 12), images(3, 1, 12, 12), draws=-1)


def test_errors_by_feature_are_in_its_standard_deviations() -> None:
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = 1000 + x * torch.tensor([1.0, 10.0, 100.0])
    shrunk = Giving(lambda z: 1000 + torch.tensor([1.0, 0.5, 0.9]) * (z - 1000), 3, box=None)
    result = reconstruction(shrunk, x, batch_size=17)
    assert result.features is not None
    value, ends = scaled_errors(result.features, 500)
    expected = ((shrunk.function(x) - x).square().mean(0).sqrt() / x.std(0, correction=0)).numpy()
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    assert value == pytest.approx([0, 0.5, 0.1], abs=0.01)
    assert ((ends[:, 0] <= value) & (value <= ends[:, 1])).all()
    worst = summarise_reconstruction(result)["reconstruction.scaled_error.feature_worst"]
    assert worst.value == pytest.approx(expected[1])
    assert worst.ci == pytest.approx(tuple(ends[1]))


def test_the_worst_group_and_its_gap_are_covered_as_often_as_they_say() -> None:
    """Ten groups of which two share the lowest mean: the interval of the least of ten true means."""
    true, rng = np.array([5.0, 5, 6, 6, 6, 6, 7, 7, 7, 8]), np.random.default_rng(0)
    of = np.repeat(np.arange(10), 12)
    held = 0
    for _ in range(300):
        values = true[of] + rng.normal(size=of.size)
        groups = group_means(PSNR, values, {"label": of})
        both = summarise_groups(groups)
        held += all(low <= at <= high for (low, high), at in zip(both, (5.0, 3.0), strict=True))
    assert held >= 0.95 * 300


def summarise_groups(groups: Any) -> tuple[tuple[float, float], tuple[float, float]]:
    from vaeaudit.checks.reconstruction.summarise import _of_groups

    worst, gap = _of_groups(groups, "dB", "higher", 0.95)
    assert worst.ci is not None and gap.ci is not None and worst.value is not None and gap.value is not None
    assert worst.ci[0] <= worst.value <= worst.ci[1]
    assert gap.ci[0] <= gap.value <= gap.ci[1]
    return worst.ci, gap.ci


def test_a_single_item_is_no_group_and_one_group_is_not_compared() -> None:
    values = np.array([1.0, 2, 3, 4, 100])
    (groups,) = group_means(PSNR, values, {"label": np.array([0, 0, 1, 1, 2]), "one": np.zeros(5, np.int64)})
    assert (groups.by, groups.names, groups.n.tolist(), groups.mean.tolist()) == (
        "label",
        ("0", "1"),
        [2, 2],
        [1.5, 3.5],
    )


def test_no_interval_of_a_similarity_reaches_beyond_1() -> None:
    values = [0.5, 0.99]
    assert estimates.statistics(SSIM, values)["ssim.mean"].ci == (pytest.approx(0.745 - 12.706 * 0.245, abs=1e-3), 1.0)
    (groups,) = group_means(SSIM, np.array(values * 2), {"label": np.array([0, 0, 1, 1])})
    assert groups.ci[:, 1].tolist() == [1.0, 1.0]


def test_the_worst_of_n_items_bounds_the_share_that_it_says() -> None:
    """At least (1 - level)^(1/n) of all is no worse than the worst of n, in 95% of samples."""
    found = estimates.worst([3.0, 1.0, 2.0], unit="dB", direction="higher")
    assert (found.value, found.exact, found.ci) == (1.0, True, None)
    assert "worst of these 3 items; with 95% confidence, no worse are 36.840% of all such items" in found.estimator
    rng = np.random.default_rng(0)
    no_worse = 1 - rng.random((4000, 20)).min(1)  # the share of uniform values above the least of twenty
    assert (no_worse >= 0.05 ** (1 / 20)).mean() == pytest.approx(0.95, abs=0.015)
    assert estimates.worst([1.0, math.nan], unit="dB", direction="higher").value is None
    assert estimates.worst([1.0, math.inf], unit="dB", direction="lower").value is None


def test_a_likelihood_of_logits_gives_its_own_log_likelihood(bundled_model: Any, bundled_images: Tensor) -> None:
    result = reconstruction(bundled_model, bundled_images[:5], draws=0)
    p = bundled_model.decode(bundled_model.encode(bundled_images[:5]).mean)
    assert isinstance(p, BernoulliLogits)
    torch.testing.assert_close(result.at_mean["log_likelihood"].float(), p.log_prob(bundled_images[:5]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_decoder_of_another_precision_is_compared_as_what_it_gives(
    dtype: torch.dtype, bundled_model: Any, bundled_images: Tensor
) -> None:
    class Rounded:
        def __getattr__(self, name: str) -> Any:
            return getattr(bundled_model, name)

        def decode(self, z: Tensor) -> BernoulliLogits:
            return BernoulliLogits(bundled_model.decode(z).logits.to(dtype))

    class Given(Rounded):
        def decode(self, z: Tensor) -> GaussianLikelihood:
            return GaussianLikelihood(super().decode(z).mean.float(), torch.tensor(0.0))

    rounded, given = (reconstruction(vae, bundled_images[:5], draws=2) for vae in (Rounded(), Given()))
    for name in set(rounded.at_mean) - {"log_likelihood"}:
        torch.testing.assert_close(rounded.at_mean[name], given.at_mean[name])
        torch.testing.assert_close(rounded.at_draws[name], given.at_draws[name])
