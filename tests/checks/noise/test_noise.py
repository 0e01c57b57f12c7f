"""Noise: the expected log-likelihood of clean items seen through noise, whatever the batches, the order, the sigmas."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vaeaudit import BernoulliLogits, BernoulliProbabilities, DiagonalGaussian, GaussianLikelihood
from vaeaudit.checks.noise import measure as module
from vaeaudit.checks.noise.entry import NOISE_LEGEND
from vaeaudit.checks.noise.measure import SIGMAS, NoiseResult, noise, over_draws
from vaeaudit.checks.noise.run import _doubts
from vaeaudit.checks.noise.summarise import summarise_noise
from vaeaudit.checks.record import metric_entry
from vaeaudit.checks.relative import near_zero, remark, share_of
from vaeaudit.data.items import fit
from vaeaudit.data.sources import read
from vaeaudit.errors import ConfigError, DataError, InputError
from vaeaudit.model.registry import open_model
from vaeaudit.model.vae import VAE
from vaeaudit.progress import Progress
from vaeaudit.stats.draws import noise_set

SHARED = Path(__file__).parents[4] / "shared"


class Scaled:
    """mu(x) = x, sigma(x) = ``stddev`` of x; the decoder's mean is z, its standard deviation 1."""

    input_shape, range = (2,), None

    def __init__(self, stddev: float = 0.1, steep: float = 0.0) -> None:
        self.stddev, self.steep = stddev, steep

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((2,), like=torch.zeros((), dtype=torch.float64))

    def encode(self, x: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(x, math.log(self.stddev) + self.steep * (x.abs() - 1).relu())

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(z, torch.zeros((), dtype=z.dtype))


@pytest.fixture
def x() -> Tensor:
    return torch.rand((9, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def values(result: NoiseResult) -> tuple[Tensor, ...]:
    return result.clean, result.log_likelihood, result.clean_error, result.error, result.length


def same(one: NoiseResult, other: NoiseResult) -> None:
    for a, b in zip(values(one), values(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# Against exact answers


def lin2(oracle: dict[str, Any], linear_gaussian: Any, n: int) -> tuple[Any, Tensor]:
    numbers = oracle["models"]["LIN2"]
    return linear_gaussian(numbers), torch.tensor([numbers["x"]], dtype=torch.float64).expand(n, -1)


def test_means_are_the_oracles_within_five_standard_errors(oracle: dict[str, Any], linear_gaussian: Any) -> None:
    vae, x = lin2(oracle, linear_gaussian, 4000)
    cases = oracle["noise"]["cases"]
    result = noise(vae, x, [case["s_eps"] for case in cases])
    clean = over_draws(result.clean)
    for place, case in enumerate(cases):
        found = over_draws(result.log_likelihood[place])
        error = float(found.std()) / math.sqrt(len(x))
        assert error < 0.02 * abs(case["E_log_p"])
        assert abs(float(found.mean()) - case["E_log_p"]) <= 5 * error
        lost = over_draws(result.degradation[place])
        relative = float(lost.mean() / clean.mean().abs())
        assert abs(relative - case["rel_degradation"]) <= 5 * float(lost.std()) / math.sqrt(len(x)) / 10
        p = result.log_likelihood[place].exp()  # the other order of logarithm and mean, from the same draws
        spread = float(p.std()) / math.sqrt(p.numel())
        assert abs(float(p.mean()) - math.exp(case["log_E_p"])) <= 5 * spread


def test_the_mean_embedding_is_what_remains_without_sampling(oracle: dict[str, Any], linear_gaussian: Any) -> None:
    vae, x = lin2(oracle, linear_gaussian, 2000)
    vae.log_sigma = torch.full_like(vae.log_sigma, -torch.inf)
    cases = oracle["noise"]["cases"]
    result = noise(vae, x, [case["s_eps"] for case in cases])
    for place, case in enumerate(cases):
        found = over_draws(result.log_likelihood[place])
        expected = case["E_log_p_mean_embedding"]
        assert abs(float(found.mean()) - expected) <= 5 * float(found.std()) / math.sqrt(len(x)) + 1e-9


def test_intervals_cover_the_closed_form_of_a_linear_model(oracle: dict[str, Any], linear_gaussian: Any) -> None:
    vae, x = lin2(oracle, linear_gaussian, 40)
    tau = float(vae.log_tau.exp())
    lost = 0.5**2 * float((vae.B @ vae.A).square().sum()) / (2 * tau**2)  # s^2 ||B A||_F^2 / (2 tau^2)
    clean, noisy = (oracle["noise"]["cases"][i]["E_log_p"] for i in (0, 2))
    assert lost == pytest.approx(clean - noisy, rel=1e-9)
    covered = 0
    for seed in range(50):
        ci = summarise_noise(noise(vae, x, [0.5], draws=3, seed=seed))["noise.s0.5.degradation.mean"].ci
        assert ci is not None
        covered += ci[0] <= lost <= ci[1]
    assert 43 <= covered <= 50


def test_figures_are_those_of_one_row_at_a_time(small_vae: type[Any], x: Tensor) -> None:
    vae, sigmas = small_vae(), (0.0, 0.3, 2.0)
    result = noise(vae, x, sigmas, draws=4, seed=3, batch_size=5)
    eta = noise_set((2, 3), draws=4, items=range(9), seed=3, check="noise.input", like=x)
    latent = noise_set((2,), draws=4, items=range(9), seed=3, check="noise.latent", like=x)
    for i, item in enumerate(x.split(1)):
        assert float(result.clean_error[i]) == pytest.approx(float((rec(vae, item) - item).norm()), rel=1e-12)
        for j in range(4):
            q = vae.encode(item)
            clean = vae.decode(q.mean + q.stddev * latent[j, i]).log_prob(item)
            assert float(result.clean[j, i]) == pytest.approx(float(clean), rel=1e-12)
            for k, sigma in enumerate(sigmas):
                q = vae.encode(item + sigma * eta[j, i])
                noisy = vae.decode(q.mean + q.stddev * latent[j, i]).log_prob(item)
                assert float(result.log_likelihood[k, j, i]) == pytest.approx(float(noisy), rel=1e-12)
        for k, sigma in enumerate(sigmas):
            away = float((rec(vae, item + sigma * eta[0, i]) - item).norm())
            assert float(result.error[k, i]) == pytest.approx(away, rel=1e-12)
            assert float(result.length[k, i]) == pytest.approx(sigma * float(eta[0, i].norm()), rel=1e-12)
    torch.testing.assert_close(result.log_likelihood[0], result.clean, rtol=1e-12, atol=0)


def rec(vae: VAE, x: Tensor) -> Tensor:
    return vae.decode(vae.encode(x).mean).mean


# What changes nothing


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_the_batch_size_changes_nothing(small_vae: type[Any], x: Tensor, size: int) -> None:
    same(noise(small_vae(), x, draws=3, batch_size=size), noise(small_vae(), x, draws=3))


def test_little_noise_is_held_at_once_and_that_changes_nothing(
    small_vae: type[Any], x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, held = noise(small_vae(), x, draws=3), []

    def watched(shape: tuple[int, ...], **given: Any) -> Tensor:
        made = noise_set(shape, **given)
        held.append(made.numel())
        return made

    monkeypatch.setattr(module, "_MOST_NUMBERS", 40)
    monkeypatch.setattr(module, "noise_set", watched)
    same(noise(small_vae(), x, draws=3), whole)
    assert max(held) <= 40


def test_draws_depend_on_seed_item_and_place_alone(small_vae: type[Any], x: Tensor) -> None:
    vae = small_vae()
    whole = noise(vae, x, (0.1, 0.5), draws=6)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    again = noise(vae, x, (0.1, 0.5), draws=6)
    assert all(torch.equal(a, b) for a, b in zip(values(whole), values(again), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    few = noise(vae, x, (0.5,), draws=2)
    torch.testing.assert_close(few.log_likelihood[0], whole.log_likelihood[1, :2], rtol=1e-12, atol=0)
    order = [5, 0, 8]
    some = noise(vae, x[order], (0.5, 0.1), draws=6, items=order)
    torch.testing.assert_close(some.log_likelihood.flip(0), whole.log_likelihood[:, :, order], rtol=1e-12, atol=0)
    torch.testing.assert_close(some.error.flip(0), whole.error[:, order], rtol=1e-12, atol=0)
    assert some.items == (5, 0, 8)
    assert not torch.allclose(noise(vae, x, (0.5,), draws=2, seed=1).log_likelihood, few.log_likelihood)


def test_items_may_come_from_a_function(small_vae: type[Any], x: Tensor) -> None:
    asked: list[int] = []

    def images(numbers: Sequence[int]) -> Tensor:
        asked.append(len(numbers))
        return x[list(numbers)]

    same(noise(small_vae(), images, n=9, draws=3, batch_size=4), noise(small_vae(), x, draws=3))
    assert max(asked) <= 4
    some = noise(small_vae(), images, items=[7, 2], draws=3)
    same(some, noise(small_vae(), x[[7, 2]], items=[7, 2], draws=3))


def test_the_dtype_is_the_items(small_vae: type[Any], x: Tensor) -> None:
    single, double = noise(small_vae(dtype=torch.float32), x.float()), noise(small_vae(), x)
    assert all(value.dtype == torch.float32 for value in values(single))
    torch.testing.assert_close(single.log_likelihood.double(), double.log_likelihood, rtol=1e-4, atol=1e-4)


# Clipping


def test_noisy_inputs_are_clipped_only_where_that_is_asked(x: Tensor, small_vae: type[Any]) -> None:
    vae, seen = small_vae(), []
    encode = vae.encode
    vae.encode = lambda given: seen.append(given) or encode(given)
    free, clipped = noise(vae, x, (2.0,)), noise(vae, x, (2.0,), clip=True)
    assert free.clip is None
    assert clipped.clip == (0.0, 1.0)
    half = len(seen) // 2
    assert min(float(given.min()) for given in seen[:half]) < 0
    assert all(float(given.min()) >= 0 and float(given.max()) <= 1 for given in seen[half:])
    assert bool((clipped.length < free.length).all())
    torch.testing.assert_close(clipped.clean, free.clean, rtol=0, atol=0)
    narrow = noise(small_vae(None), x, (2.0,), clip=True, data_range=(-1.0, 2.0))
    assert bool(((clipped.length < narrow.length) & (narrow.length < free.length)).all())


# When a mean tells nothing


def test_a_mean_that_single_draws_carry_is_told_and_the_median_is_not_carried() -> None:
    x = torch.zeros((200, 2), dtype=torch.float64)
    healthy, exploding = (noise(Scaled(steep=steep), x, (0.2, 1.0)) for steep in (0.0, 6.0))
    assert healthy.signs == (None, None)
    assert exploding.signs[0] is None
    said = exploding.signs[1]
    assert said is not None
    assert "less than twice its standard error over 200 items" in said
    means, medians = (over_draws(exploding.degradation[1], by) for by in ("mean", "median"))
    assert float(means.median()) > 10 * float(medians.median())
    metrics = summarise_noise(exploding)
    assert metrics["noise.s1.degradation.median"].value == pytest.approx(float(medians.median()))
    assert metrics["noise.s1.degradation.mean"].value == pytest.approx(float(means.mean()))


def with_losses(losses: Tensor) -> NoiseResult:
    """The result of one noise under which items lose ``losses`` (I,) nats."""
    nothing = torch.zeros((1, len(losses)), dtype=losses.dtype)
    return NoiseResult(
        (0.5,), 1, tuple(range(len(losses))), None, "", 0, nothing, -losses[None, None], *(nothing,) * 3, False
    )


@given(st.integers(0, 10**6), st.sampled_from([2, 3, 5, 10, 40, 600]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_mean_near_0_that_no_item_carries_is_a_figure_whose_interval_contains_0(seed: int, n: int) -> None:
    losses = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    result = with_losses(losses - losses.mean() * (n > 2))
    assert result.signs == (None,)
    interval = summarise_noise(result)["noise.s0.5.degradation.mean"].ci
    assert interval is not None
    assert n == 2 or interval[0] < 0 < interval[1]


@given(st.integers(0, 10**6), st.floats(3, 12), st.sampled_from([4, 5, 10, 40, 600]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_mean_that_one_item_carries_is_told_whichever_it_is(seed: int, height: float, n: int) -> None:
    losses = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).abs()
    losses[seed % n] = 10**height * n
    (said,) = with_losses(losses).signs
    assert f"of whose square item {seed % n} alone makes" in str(said)


@given(st.integers(0, 10**6), st.floats(0.2, 4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_losses_that_are_not_negative_are_told_whenever_their_mean_is_within_two_standard_errors(
    seed: int, tail: float
) -> None:
    losses = torch.rand(400, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** -tail
    within = bool(2 * losses.std() / 20 > losses.mean())
    assert (with_losses(losses).signs != (None,)) is within


def test_values_that_are_not_finite_are_counted_and_told() -> None:
    class Overflowing(Scaled):
        def decode(self, z: Tensor) -> GaussianLikelihood:
            return GaussianLikelihood(torch.where(z.abs() > 2, torch.nan, z), torch.zeros((), dtype=z.dtype))

    result = noise(Overflowing(), torch.zeros((50, 2), dtype=torch.float64), (0.1, 1.0))
    assert result.signs[0] is None
    bad = int(result.log_likelihood[1].isnan().sum())
    assert bad > 0
    assert str(result.signs[1]).startswith(
        f"with noise of 1, {bad} of 500 log-likelihoods are NaN or infinite: of item"
    )
    measured = summarise_noise(result)["noise.s1.log_likelihood.mean"]
    assert measured.nonfinite == int(result.log_likelihood[1].isnan().any(0).sum())
    assert measured.n == 50 - measured.nonfinite


def test_probabilities_that_are_nan_are_missing_draws_and_end_nothing() -> None:
    class Exploding(Scaled):
        def decode(self, z: Tensor) -> BernoulliProbabilities:  # type: ignore[override]
            return BernoulliProbabilities(torch.where(z.abs() > 2, torch.nan, z.sigmoid()))

    result = noise(Exploding(), torch.zeros((50, 2), dtype=torch.float64), (0.1, 1.0))
    assert bool(result.log_likelihood[0].isfinite().all())
    bad = result.log_likelihood[1].isnan()
    assert 0 < int(bad.sum()) < 250
    assert f"with noise of 1, {int(bad.sum())} of 500 log-likelihoods are NaN or infinite" in str(result.signs[1])
    measured = summarise_noise(result)["noise.s1.degradation.mean"]
    assert (measured.n, measured.nonfinite) == (50 - int(bad.any(0).sum()), int(bad.any(0).sum()))


@pytest.mark.parametrize("broken", [math.nan, -math.inf, math.inf])
def test_one_draw_that_is_not_finite_leaves_quantiles_as_they_would_be_were_it_the_worst(broken: float) -> None:
    result = noise(Scaled(), torch.zeros((21, 2), dtype=torch.float64), (1.0,), items=range(100, 121), draws=5)
    values, errors = result.log_likelihood.clone(), result.error.clone()
    values[0, 3, 7], errors[0, 7] = broken, math.nan
    touched = replace(result, log_likelihood=values, error=errors)
    worst = result.log_likelihood.clone()
    worst[0, 3, 7], errors = -1e6, torch.where(errors.isnan(), 1e6, errors)
    found, expected = map(summarise_noise, (touched, replace(result, log_likelihood=worst, error=errors)))
    for name, measured in expected.items():
        if not name.endswith("mean"):
            assert (found[name].value, found[name].ci) == (measured.value, measured.ci), name
    assert found["noise.s1.degradation.mean"].nonfinite == 1
    said = str(touched.signs[0])
    assert "1 of 105 log-likelihoods are NaN or infinite: of item 107 (the first in its draw 4 of 5)" in said
    doubts = _doubts(touched)
    assert {name.removeprefix("noise.s1.") for name in doubts} == {
        *("log_likelihood.mean", "degradation.mean", "relative_degradation.mean", "denoising_error.mean")
    }
    assert "item 107, 1 of 21" in doubts["noise.s1.denoising_error.mean"]


def test_one_item_has_no_standard_error(x: Tensor, small_vae: type[Any]) -> None:
    result = noise(small_vae(), x[:1], (0.0, 0.5))
    assert result.signs[0] is None
    assert "is of one item" in str(result.signs[1])
    assert summarise_noise(result)["noise.s0.5.degradation.mean"].ci is None


# The metrics


def test_every_figure_has_its_interval_its_n_and_its_estimator(small_vae: type[Any], x: Tensor) -> None:
    metrics = summarise_noise(noise(small_vae(), x, SIGMAS))
    statistics = {"mean", "lower_quartile", "median", "upper_quartile"}
    expected = {f"noise.s0.{name}" for name in ("denoising_error.mean", "denoising_error.median")}
    expected |= {f"noise.s0.log_likelihood.{statistic}" for statistic in statistics}
    for s in ("0.1", "0.25", "0.5", "1"):
        for figure in ("log_likelihood", "degradation", "relative_degradation"):
            expected |= {f"noise.s{s}.{figure}.{statistic}" for statistic in statistics}
        for figure in ("denoising_error", "noise_norm"):
            expected |= {f"noise.s{s}.{figure}.mean", f"noise.s{s}.{figure}.median"}
    assert set(metrics) == expected
    for name, measured in metrics.items():
        assert measured.n == 9
        assert measured.value is not None
        if not name.endswith("quartile"):  # nine items are too few for these
            assert measured.ci is not None
            assert measured.ci[0] <= measured.value <= measured.ci[1]
    said = {name: metrics[f"noise.s0.25.{name}"].estimator for name in ("degradation.mean", "degradation.median")}
    assert said["degradation.mean"] == (
        "mean, Student t interval over items; of each item's mean over 10 draws"
    )  # fmt: skip
    assert said["degradation.median"].endswith("of each item's median over 10 draws")
    assert metrics["noise.s0.25.noise_norm.mean"].estimator.endswith("one draw an item")
    directions = {name: metrics[f"noise.s1.{name}.mean"].direction for name in ("log_likelihood", "degradation")}
    assert directions == {"log_likelihood": "higher", "degradation": "lower"}


def test_relative_degradation_is_that_of_the_items_means(small_vae: type[Any], x: Tensor) -> None:
    result = noise(small_vae(), x, (0.5,), draws=3)
    noisy, clean = result.log_likelihood[0].mean(0), result.clean.mean(0)
    torch.testing.assert_close(result.relative_degradation()[0], (noisy - clean).abs() / clean.abs())
    middle = result.degradation[0].median(0).values.abs() / result.clean.median(0).values.abs()
    torch.testing.assert_close(result.relative_degradation("median")[0], middle)


def test_relative_degradation_counts_gains_as_losses_and_its_median_is_of_paired_differences() -> None:
    clean = torch.tensor([[-10.0, -10], [-20, -10], [-30, -10]], dtype=torch.float64)  # (D, I)
    noisy = torch.tensor([[-40.0, -5], [-10, -5], [-20, -5]], dtype=torch.float64)
    none = torch.zeros(2, dtype=torch.float64)
    result = NoiseResult((0.5,), 3, (0, 1), None, "", 0, clean, noisy[None], none, none[None], none[None], False)
    torch.testing.assert_close(result.relative_degradation()[0], torch.tensor([0.5 / 3, 0.5]).double())
    # Lost are 30, -10 and -10: their median is -10, where the medians differ by 0.
    torch.testing.assert_close(result.relative_degradation("median")[0], torch.tensor([0.5, 0.5]).double())
    metrics = summarise_noise(result)
    assert metrics["noise.s0.5.relative_degradation.median"].value == pytest.approx(0.5)
    assert metrics["noise.s0.5.relative_degradation.mean"].direction == "lower"
    assert metrics["noise.s0.5.degradation.median"].value == pytest.approx(-10)
    assert "Gains count as losses" in NOISE_LEGEND["relative"]


def test_the_bundled_model_degrades_with_the_noise_and_denoises(bundled_model: Any, bundled_images: Tensor) -> None:
    result = noise(bundled_model, bundled_images, draws=4)
    assert result.route == "Bernoulli from logits"
    assert result.signs == (None,) * 4
    lost = over_draws(result.degradation).mean(1)
    assert bool((lost.diff() > 0).all())
    assert float(lost[0]) > 0
    assert bool((result.error[-1] < result.length[-1]).all())
    typical = result.length.mean(1) / math.sqrt(784)
    torch.testing.assert_close(typical, torch.tensor(SIGMAS), rtol=0.01, atol=0)


# Bad input and interruption


def test_a_stop_keeps_the_items_done(small_vae: type[Any], x: Tensor) -> None:
    seen: list[Progress] = []

    def until(progress: Progress) -> bool:
        seen.append(progress)
        return progress.running > 4

    result = noise(small_vae(), x, draws=3, batch_size=3, go_on=until)
    assert result.interrupted
    assert result.items == (0, 1, 2, 3, 4, 5)
    assert list(dict.fromkeys(p.running for p in seen)) == [9, 6, 3]
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    whole = noise(small_vae(), x, draws=3)
    assert not whole.interrupted
    torch.testing.assert_close(result.log_likelihood, whole.log_likelihood[..., :6], rtol=1e-12, atol=0)
    assert summarise_noise(result)["noise.s1.degradation.mean"].n == 6


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"sigmas": (-0.1,)}, ConfigError, r"finite and not negative, but \(-0.1,\) came"),
        ({"sigmas": (0.1, math.nan)}, ConfigError, "finite and not negative"),
        ({"sigmas": (math.inf,)}, ConfigError, "finite and not negative"),
        ({"sigmas": ()}, ConfigError, "finite and not negative"),
        ({"sigmas": (0.1, 0.10000001)}, ConfigError, "first six digits"),
        ({"draws": 0}, ConfigError, "at least one is needed, but 0"),
        ({"n": 0}, ConfigError, "at least one item is needed, but 0"),
        ({"n": 10}, ConfigError, "10 of the 9 that are there"),
        ({"items": [1]}, ConfigError, "1 numbers were given for 9 items"),
        ({"batch_size": 0}, ConfigError, "batch size"),
        ({"data_range": (0.4, 0.6)}, DataError, r"items must lie in the range \[0.4, 0.6\]"),
        ({"x": torch.zeros((3, 6), dtype=torch.float64)}, DataError, "items must be floating-point"),
        ({"x": lambda _: torch.zeros((3, 2, 3))}, ConfigError, "give n"),
        ({"x": lambda _: torch.zeros((3, 2, 3)), "items": []}, ConfigError, "at least one item"),
    ],
)
def test_bad_input_is_told(
    given: dict[str, Any], kind: type[InputError], message: str, small_vae: type[Any], x: Tensor
) -> None:
    with pytest.raises(kind, match=message):
        noise(small_vae(), **{"x": x, **given})


def test_clipping_needs_a_range_and_items_lie_in_the_support(small_vae: type[Any], x: Tensor) -> None:
    with pytest.raises(ConfigError, match="clipped to a known range only"):
        noise(small_vae(None), x, clip=True)
    with pytest.raises(DataError, match=r"range \[0, 1\]"):
        noise(small_vae(None), 2 * x)


# Real models


def test_a_real_model_at_no_noise_is_as_recorded_and_degrades_with_it() -> None:
    folder = SHARED / "checkpoints" / "disentangling-vae" / "VAE_mnist"
    file = SHARED / "data/mnist/train_first1000_32x32.npy"
    if not (folder.exists() and file.exists()):
        pytest.skip("the real checkpoints are not here")
    vae = open_model(folder, "burgess").vae
    data = fit(read(file), input_shape=vae.input_shape, data_range=vae.range)

    class AtTheMean:
        """Recorded with z = the mean."""

        input_shape, range, prior, decode = vae.input_shape, vae.range, vae.prior, staticmethod(vae.decode)

        def encode(self, x: Tensor) -> DiagonalGaussian:
            mean = vae.encode(x).mean
            return DiagonalGaussian(mean, torch.full_like(mean, -torch.inf))

    recorded = noise(AtTheMean(), data.batch, (0.1,), n=1000, draws=1)
    assert -float(over_draws(recorded.clean).mean()) == pytest.approx(111.90942, rel=1e-5)
    result = noise(vae, data.batch, n=40, draws=4)
    assert isinstance(vae.decode(torch.zeros(1, 10)), BernoulliLogits)
    lost = over_draws(result.degradation, "median").median(1).values
    assert bool((lost.diff() > 0).all())
    assert float(lost[0]) > 0


# A share of what is near nothing


class Sharp(Scaled):
    """The same with another standard deviation of the decoder, by which log p is moved through 0."""

    def __init__(self, log_stddev: float) -> None:
        super().__init__()
        self.log_stddev = log_stddev

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(z, z.new_tensor(self.log_stddev))


@pytest.mark.parametrize(("log_stddev", "defined"), [(math.log(0.38), False), (0.0, True)])
def test_a_relative_loss_whose_base_is_near_0_is_left_out_and_the_loss_in_nats_stays(
    log_stddev: float, defined: bool
) -> None:
    found = noise(Sharp(log_stddev), torch.rand(20, 2, dtype=torch.float64), [0.3], draws=20)
    assert bool((found.clean.mean(0).abs() > 1).all()) is defined
    assert bool(found.relative_degradation().isfinite().any()) is defined
    metrics = summarise_noise(found)
    relative, absolute = (metrics[f"noise.s0.3.{name}.median"] for name in ("relative_degradation", "degradation"))
    assert absolute.value is not None and absolute.value > 0
    assert (relative.value is not None) is defined
    assert (metric_entry(relative).doubt is None) is defined
    said = remark(over_draws(found.clean), found.clean_spread, "the relative loss", "the loss")
    assert len(said) == (not defined)
    assert defined or "of 20 of 20 items is below 1 nat" in said[0]


def test_a_base_that_is_below_its_own_monte_carlo_error_is_near_0() -> None:
    base, error = torch.tensor([0.5, 3.0, 3.0, -3.0, -40.0]), torch.tensor([0.1, 4.0, 0.1, 0.1, 50.0])
    assert near_zero(base, error).tolist() == [True, True, False, False, True]
    assert near_zero(base).tolist() == [True, False, False, False, False]
    share = share_of(torch.full((2, 5), -6.0), base)
    assert share.isnan().tolist() == [[True, False, False, False, False]] * 2
    torch.testing.assert_close(share[0, 1:], torch.tensor([2.0, 2.0, 2.0, 0.15]))
