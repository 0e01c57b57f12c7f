"""Margins: certified <= exact <= empirical, each with the confidence that it states."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from vaeaudit.certify.graph import trace_encoder
from vaeaudit.certify.theorem import pathwise_margin
from vaeaudit.checks.margin.certified import Certificates
from vaeaudit.checks.margin.measure import MarginResult, margin, usual_radius
from vaeaudit.checks.margin.record import Margins, margin_refusals, margin_warnings
from vaeaudit.checks.margin.summarise import summarise_margin
from vaeaudit.errors import ConfigError, DataError, UnsupportedError
from vaeaudit.model.families import Concrete, Product
from vaeaudit.model.vae import DiagonalGaussian, GaussianLikelihood
from vaeaudit.progress import Progress
from vaeaudit.stats.draws import noise_set

CERTIFIED = ("certified",)


class HalfSpace(nn.Module):
    """mu(x) = w'x, sigma 1/2 and g(z) = max(z, 0): with mu(x) < 0 the success set is z <= r, a half-space.

    There the bound of theorem (i) is met: R = (Phi^-1(p0) - Phi^-1(m)) sigma / ||w|| exactly.
    """

    input_shape, range, stddev = (3,), None, 0.5

    def __init__(self, log_stddev: float = math.log(0.5)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[2.0, -1.0, 2.0]], dtype=torch.float64), requires_grad=False)
        self.log_stddev = log_stddev
        self.eval()

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((1,), like=self.weight)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        mean = x @ self.weight.T
        return DiagonalGaussian(mean, torch.full_like(mean, self.log_stddev))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(z.relu().expand(-1, 3), torch.zeros((), dtype=z.dtype))


class WithClasses(HalfSpace):
    """The same beside a class as good as sure at ``origin``, and soon after another, which moves g by 100."""

    def __init__(self, origin: Tensor) -> None:
        super().__init__()
        self.origin = origin

    @property
    def prior(self) -> Any:
        return Product((super().prior, Concrete(self.weight.new_zeros(1, 2), 0.5)))

    def encode(self, x: Tensor) -> Any:
        moved = (x - self.origin) @ self.weight.T
        return Product((super().encode(x), Concrete(torch.cat([40 - 1000 * moved, 0 * moved], 1), 0.5)))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood((z[:, :1].relu() + 100 * z[:, 2:]).expand(-1, 3), torch.zeros((), dtype=z.dtype))


def half_space(r: float, x: Tensor) -> tuple[HalfSpace, float]:
    """The model, and the exact margin of x (1, 3) at radius ``r`` of the reconstruction (three equal elements)."""
    vae = HalfSpace()
    gap = (r / math.sqrt(3) - float(x @ vae.weight.T)) / vae.stddev  # Phi^-1(p0)
    return vae, gap * vae.stddev / 3.0


def lin2(oracle: dict[str, Any], linear_gaussian: Any) -> tuple[Any, Tensor]:
    numbers = oracle["models"]["LIN2"]
    return linear_gaussian(numbers), torch.tensor([numbers["x"]], dtype=torch.float64)


# Against exact answers


@pytest.mark.parametrize("sigma", ["frozen", "full"])
def test_the_oracles_margin_lies_between_the_two_bounds(
    sigma: Any, oracle: dict[str, Any], linear_gaussian: Any
) -> None:
    vae, x = lin2(oracle, linear_gaussian)
    cases = [case for case in oracle["r_robust"]["cases"] if "exact_R" in case]
    result = margin(vae, x, [case["r"] for case in cases], sigma=sigma, draws=20_000)
    for case, at in zip(cases, result.at, strict=True):
        exact, bounds = case["exact_R"], case["bounds"]
        assert at.certified is not None
        assert at.empirical is not None
        assert at.certified.missing == ()
        # mu is linear: the certificate is the whitened estimate, here both from the lower bound of p0.
        assert 0.95 * bounds["mahalanobis"] <= at.certified.radius.item() <= exact
        assert at.certified.radius.item() == pytest.approx(at.estimates.whitened.item(), rel=1e-6)
        assert at.estimates.frobenius <= at.estimates.spectral <= at.estimates.whitened <= exact
        # Lip(g) and Lip(mu) are exact here, and sigma does not move.
        assert 0.95 * case["pathwise_product"] <= at.certified.pathwise.item() <= case["pathwise_product"] <= exact
        assert 0.999 * exact <= at.empirical.margin.item() <= 1.05 * exact
        low, high = stats.binomtest(int(at.kept.hits), at.kept.n).proportion_ci(1 - 1e-6)
        assert low <= bounds["p0"] <= high
    assert result.min_radius.estimate.item() == pytest.approx(oracle["r_robust"]["cases"][0]["min_r"], rel=0.05)


def test_the_margin_of_a_joint_posterior_is_that_of_its_gaussian_part_with_the_classes_as_at_x() -> None:
    x = torch.tensor([[-0.2, 0.3, 0.1]], dtype=torch.float64)
    _, exact = half_space(0.4, x)
    vae = WithClasses(x)
    result = margin(vae, x, 0.4, draws=5000)
    (at,) = result.at
    assert result.joint
    assert at.certified is not None and at.empirical is not None
    assert at.certified.missing == ()
    assert 0.9 * exact <= at.certified.radius.item() <= exact
    assert at.certified.radius.item() == pytest.approx(at.estimates.whitened.item(), rel=1e-6)
    assert 0.999 * exact <= at.empirical.margin.item() <= 1.1 * exact
    with pytest.raises(UnsupportedError, match="take sigma = frozen, which lets the Gaussian means move"):
        margin(vae, x, 0.4, sigma="full", draws=100)


def test_at_another_risk_level_the_bounds_still_hold(oracle: dict[str, Any], linear_gaussian: Any) -> None:
    vae, x = lin2(oracle, linear_gaussian)
    for case in oracle["r_robust"]["cases"]:
        if "exact_R_m075" in case:
            (at,) = margin(vae, x, case["r"], m=0.75, draws=20_000).at
            assert at.certified is not None
            assert at.empirical is not None
            assert at.certified.radius.item() <= case["exact_R_m075"] <= at.empirical.margin.item() / 0.999


def test_over_many_audits_a_certificate_is_wrong_at_most_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaeaudit.checks.margin.certified._TOGETHER", 200)  # all at once: less work, the same bounds
    x = torch.tensor([[-0.2, 0.3, 0.1]], dtype=torch.float64)
    vae, exact = half_space(0.4, x)
    audits = 200
    asked: dict[str, Any] = {"level": 0.8, "draws": 200, "parts": CERTIFIED, "effort": "fast"}
    (at,) = margin(vae, x.expand(audits, -1).contiguous(), 0.4, **asked).at
    assert at.certified is not None
    wrong = int((at.certified.radius > exact).sum())
    # The bound is met here, so only p_low's confidence stands between: 20%, less what a binomial cannot hit exactly.
    # So many audits tell that from 40%, as where the error were spent twice, in 999 cases of 1000.
    assert stats.binomtest(wrong, audits, 0.2, alternative="greater").pvalue > 1e-3
    assert wrong > 0.05 * audits
    together = margin(vae, x.expand(20, -1).contiguous(), 0.4, **asked, family_wise=True)
    # One of min r, one of p_low and a pathwise one for each of 20 items.
    assert together.alpha == pytest.approx(0.2 / 60)
    assert together.at[0].certified is not None
    assert (together.at[0].certified.radius <= at.certified.radius[:20]).all()


@pytest.mark.usefixtures("_searched_loosely")
def test_an_item_that_its_own_draws_take_out_of_r_has_no_margin() -> None:
    x = torch.tensor([[0.5, 0.0, 0.5], [-0.2, 0.3, 0.1]], dtype=torch.float64)
    (at,) = margin(HalfSpace(), x, 0.5, draws=400).at
    assert at.certified is not None
    assert at.empirical is not None
    assert at.estimates.robust.tolist() == [False, True]
    assert at.certified.radius[0] == at.estimates.whitened[0] == 0
    assert at.certified.by[0] == "none"
    assert at.certified.radius[1] > 0
    assert at.empirical.margin[1] > 0


# What holds for every model


@pytest.fixture(scope="module")
def curved(bundled_model: Any, bundled_images: Tensor) -> MarginResult:
    return margin(bundled_model, bundled_images[:3], (2.0, 4.0), draws=200)


def test_within_the_range_more_is_certified_of_an_image_of_which_much_lies_at_a_bound(
    curved: MarginResult, bundled_model: Any, bundled_images: Tensor
) -> None:
    asked = {"draws": 200, "parts": ["certified"], "effort": "boxed"}
    boxed = margin(bundled_model, bundled_images[:1], 4.0, **asked).at[0].certified
    usual = curved.at[1]
    assert boxed is not None
    assert usual.certified is not None
    assert usual.empirical is not None
    assert usual.certified.boxed.isnan().all()
    assert boxed.radius[0] == pytest.approx(usual.certified.radius[0])
    assert boxed.radius[0] < boxed.boxed[0] <= usual.empirical.margin[0]


def test_certified_is_never_above_empirical_and_a_larger_radius_never_has_a_smaller_certificate(
    curved: MarginResult,
) -> None:
    for at in curved.at:
        assert at.certified is not None
        assert at.empirical is not None
        assert (at.certified.radius > 0).all()
        assert (at.certified.radius <= at.empirical.margin).all()
        assert (at.certified.radius >= at.certified.everywhere).all()
        assert (at.certified.pathwise > 0).all()
        assert (at.certified.pathwise <= at.empirical.margin).all()
        assert (at.estimates.frobenius <= at.estimates.spectral).all()
        assert (at.estimates.spectral <= at.estimates.whitened).all()
    for at in curved.at:
        assert at.fall is not None
        assert (at.fall.p[:, 0] > 0.5).all()  # nothing moved
        middle = at.fall.p[:, at.fall.p.shape[1] // 2]  # at the margin itself P is m, but for the draws
        assert ((middle - 0.5).abs() < 0.1).all()
    small, large = (at.certified.radius for at in curved.at if at.certified is not None)
    assert (small <= large * 1.02).all()


def test_the_summary_names_radius_quantity_and_statistic(curved: MarginResult) -> None:
    metrics = summarise_margin(curved)
    assert metrics["margin.r4.certified.share"].value == 1
    assert metrics["margin.r2.censored.share"].value == 0
    for quantity in ("certified", "pathwise", "frobenius", "spectral", "whitened", "empirical"):
        low, middle, high = (
            metrics[f"margin.r4.{quantity}.{part}"].value for part in ("lower_quartile", "median", "upper_quartile")
        )
        assert low is not None
        assert middle is not None
        assert high is not None
        assert low <= middle <= high
    assert metrics["margin.min_r.median"].unit == "output units"
    json.dumps({name: metric.value for name, metric in metrics.items()}, allow_nan=False)


def test_the_same_seed_gives_the_same_bits_and_another_batch_size_the_same_draws(
    bundled_model: Any, bundled_images: Tensor
) -> None:
    first, again, apart = (
        margin(bundled_model, bundled_images[:2], 2.0, draws=200, parts=CERTIFIED, effort="fast", batch_size=size).at[0]
        for size in (None, None, 7)
    )
    assert first.certified is not None
    assert again.certified is not None
    assert torch.equal(first.certified.radius, again.certified.radius)
    assert torch.equal(first.kept.hits, apart.kept.hits)


def test_a_radius_chosen_from_the_data_rests_on_other_draws(bundled_model: Any, bundled_images: Tensor) -> None:
    x = bundled_images[:3]
    r = usual_radius(bundled_model, x, 2.0, items=range(3), batch_size=None)
    result = margin(bundled_model, x, r, parts=())
    assert r == pytest.approx(2 * float(result.min_radius.estimate.median()), rel=0.1)
    assert r != 2 * float(result.min_radius.estimate.median())
    assert result.at[0].certified is None
    assert result.at[0].empirical is None


class Cooled(DiagonalGaussian):
    """A posterior whose draws are closer to the mean than its standard deviation says."""

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean + 0.05 * self.stddev * noise


def test_a_posterior_whose_draws_are_not_what_it_says_has_no_margin() -> None:
    class Cold(HalfSpace):
        def encode(self, x: Tensor) -> DiagonalGaussian:
            q = super().encode(x)
            return Cooled(q.mean, q.log_stddev)

    with pytest.raises(UnsupportedError, match=r"draws mean \+ stddev \* noise, .* this model's is Cooled"):
        margin(Cold(), torch.zeros((1, 3), dtype=torch.float64), 0.3)


def test_draws_too_few_to_show_anything_are_refused_with_the_number_that_could() -> None:
    x = torch.zeros((1, 3), dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"100 draws can show a probability of 0.9705 at most .* take 299 draws"):
        margin(HalfSpace(), x, 0.3, m=0.99, draws=100)
    margin(HalfSpace(), x, 0.3, m=0.99, draws=299, parts=CERTIFIED)


def test_stopped_while_drawing_the_margins_are_of_the_items_drawn_until_then(
    bundled_model: Any, bundled_images: Tensor
) -> None:
    stages: list[str] = []

    def until_two(progress: Progress) -> bool:
        stages.append(progress.stage)
        return stages.count("drawing") < 2

    result = margin(bundled_model, bundled_images[:4], 2.0, draws=2**16, go_on=until_two)  # an item at a time
    assert (result.interrupted, result.n) == (True, 2)
    (at,) = result.at
    assert len(at.kept.p0) == len(at.estimates.whitened) == 2
    assert at.empirical is None
    assert (at.kept.p0 > 0).all()


@pytest.mark.parametrize("rounds", [0, 40])
def test_a_search_that_was_stopped_tells_how_many_it_left_unbroken(
    rounds: int, bundled_model: Any, bundled_images: Tensor
) -> None:
    asked = 0

    def go_on(progress: Progress) -> bool:
        nonlocal asked
        asked += progress.stage.startswith("margin")
        return asked <= rounds

    result = margin(bundled_model, bundled_images[:2], 30.0, parts=["empirical"], draws=50, go_on=go_on)
    empirical = result.at[0].empirical
    assert result.interrupted
    assert empirical is not None
    assert empirical.interrupted
    left = int(empirical.margin.isinf().sum())
    assert left > 0
    told = margin_warnings(Margins(result, (0, 1), "all 2"))
    assert any(f"before it broke {left} of 2 items" in line for line in told), told
    assert any("nothing is kept, though it may be told of here, and --resume begins it again" in line for line in told)


def test_what_is_interrupted_says_what_it_has_not_done(bundled_model: Any, bundled_images: Tensor) -> None:
    result = margin(bundled_model, bundled_images[:2], 2.0, draws=50, go_on=lambda _: False)
    assert result.interrupted
    (at,) = result.at
    assert at.certified is not None
    assert at.certified.around.isnan().all()
    assert at.empirical is None


class Normed(nn.Module):
    """An encoder with an operation that no certificate can be carried through."""

    input_shape, range = (4,), (0.0, 1.0)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 4))
        self.out = nn.Linear(2, 4)
        self.eval().requires_grad_(False)

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((2,), like=self.out.weight)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        mean, log_stddev = self.body(x).chunk(2, dim=1)
        return DiagonalGaussian(mean, 0.3 * log_stddev - 1)

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(self.out(z), torch.zeros(()))


class Moving(nn.Module):
    """mu(x) = A x, log sigma(x) as given of C x, and g(z) by ``decoder``; 3 inputs, 2 latents."""

    input_shape, range = (3,), None

    def __init__(self, log_stddev: Callable[[Tensor], Tensor], decoder: nn.Module | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.mean, self.spread, self.linear = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(2, 3)
        self.log_stddev, self.last = log_stddev, decoder or nn.Tanh()
        self.double().eval().requires_grad_(False)
        for weights in self.parameters():
            weights.copy_(0.8 * torch.randn(weights.shape, generator=generator, dtype=torch.float64))

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((2,), like=self.mean.weight)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(self.mean(x), self.log_stddev(self.spread(x)))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(self.last(self.linear(z)), torch.zeros((), dtype=z.dtype))


LIMITED: dict[str, Callable[[Tensor], Tensor]] = {
    "clamped": lambda h: 0.5 * h.clamp(max=0.6) - 1,
    "clamped below, then bounded": lambda h: (h.tanh().clamp(min=-0.5) - 0.5) / 2,
    "hardtanh": lambda h: nn.functional.hardtanh(h.view(-1, 2), -2.0, 0.25),
    "constant": lambda h: torch.full_like(h, -1.2),
}


@pytest.mark.parametrize("log_stddev", LIMITED.values(), ids=LIMITED)
def test_no_draw_leaves_its_path_and_so_none_leaves_r_within_the_pathwise_margin(
    log_stddev: Callable[[Tensor], Tensor],
) -> None:
    vae, x, draws, r = Moving(log_stddev), torch.tensor([[0.3, -0.2, 0.5], [0.0, 0.1, 0.2]]).double(), 400, 0.8
    certificates = Certificates(lambda: trace_encoder(vae, x), x, "full", "fast")
    growth = certificates.growth(vae, draws=draws, items=[3, 5], seed=1, check="margin")
    assert growth is not None
    assert certificates.missing == []
    eta = noise_set((2,), draws=draws, items=[3, 5], seed=1, check="margin", like=x)

    def far(at: Tensor) -> Tensor:
        moved = vae.decode(vae.encode(at).sample(eta).flatten(0, 1)).mean.view(draws, 2, 3)
        distances: Tensor = torch.linalg.vector_norm(moved - vae.decode(vae.encode(x).mean).mean, dim=2)
        return distances

    generator = torch.Generator().manual_seed(7)
    T = far(x)
    for length in (0.01, 0.3, 2.0):
        for _ in range(20):
            d = torch.randn(2, 3, generator=generator, dtype=torch.float64)
            d = length * d / torch.linalg.vector_norm(d, dim=1, keepdim=True)
            assert (far(x + d) <= T + length * growth).all()
    (at,) = margin(vae, x, r, sigma="full", draws=draws, items=[3, 5], seed=1, parts=CERTIFIED).at
    assert at.certified is not None
    pathwise = at.certified.pathwise
    assert (pathwise > 0).all()
    torch.testing.assert_close(pathwise, pathwise_margin(T, growth, r, 0.5, 0.05))


def test_where_sigma_or_the_decoder_has_no_bound_the_pathwise_margin_alone_is_missing() -> None:
    x = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64)
    for vae, sigma, words in (
        (Moving(lambda h: 0.2 * h), "full", "upper limit, .*, has none; sigma = frozen needs none"),
        (Moving(lambda h: (0.2 * h).clamp(-2000, 2000)), "full", "or with one above 709, has none; sigma = frozen"),
        (Moving(lambda h: 0.2 * h, nn.LayerNorm(3)), "frozen", "the decoder has no certificate.*'layer_norm'"),
    ):
        (at,) = margin(vae, x, 3.0, sigma=sigma, draws=200, parts=CERTIFIED).at  # type: ignore[arg-type]
        assert at.certified is not None
        assert at.certified.pathwise.isnan().all()
        (told,) = at.certified.missing
        assert told.startswith("along the path of each draw: ")
        assert re.search(words, told)
        assert (at.certified.radius > 0).all()


def test_a_stricter_confidence_never_lengthens_the_pathwise_margin(bundled_model: Any, bundled_images: Tensor) -> None:
    found = [
        margin(bundled_model, bundled_images[:1], 4.0, level=level, draws=100, parts=CERTIFIED, effort="fast")
        .at[0]
        .certified
        for level in (0.6, 0.999)
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert (found[1].pathwise < found[0].pathwise).all()


@pytest.mark.usefixtures("_searched_loosely")
def test_where_there_is_no_certificate_the_reason_stands_in_its_place() -> None:
    (at,) = margin(Normed(), torch.full((2, 4), 0.5), 1.0, draws=300).at
    assert at.certified is not None
    assert at.certified.radius.isnan().all()
    assert at.certified.by == ("none", "none")
    assert "'layer_norm' (layer 'body.1')" in at.certified.missing[0]
    assert at.empirical is not None
    assert (at.empirical.margin > 0).all()
    assert (at.estimates.whitened > 0).all()


def test_what_sectors_show_stands_where_linear_bounds_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: Any) -> None:
        raise UnsupportedError("refused")

    x = torch.linspace(-0.3, -0.1, 6, dtype=torch.float64)[:, None].expand(6, 3)  # more than are certified together
    (usual,) = margin(HalfSpace(), x, 1.0, draws=300, parts=CERTIFIED).at
    monkeypatch.setattr("vaeaudit.checks.margin.certified.local_margin", refusing)
    (at,) = margin(HalfSpace(), x, 1.0, draws=300, parts=CERTIFIED).at
    assert at.certified is not None and usual.certified is not None
    assert at.certified.missing == ("around each item: refused",)
    assert (at.certified.around > 0).all()
    assert (at.certified.around <= usual.certified.around).all()
    assert (at.certified.radius >= at.certified.around).all()


@pytest.mark.usefixtures("_searched_loosely")
def test_a_refused_certificate_is_no_figure_and_never_counts_as_0() -> None:
    x = torch.linspace(0.1, 0.9, 8)[:, None].expand(8, 4)
    result = margin(Normed(), x, 0.5, draws=300)
    metrics = summarise_margin(result)
    assert not [name for name in metrics if "certified" in name or "pathwise" in name]
    # R itself is still known to lie between 0 and what was broken.
    median, empirical = metrics["margin.r0.5.median"], metrics["margin.r0.5.empirical.median"]
    assert median.value == empirical.value
    assert empirical.ci is not None
    assert median.ci == (0.0, empirical.ci[1])
    refused = margin_refusals(Margins(result, tuple(range(8)), "all 8"))
    assert refused.keys() == {"margin.r0.5.certified", "margin.r0.5.pathwise"}
    assert "'layer_norm' (layer 'body.1')" in refused["margin.r0.5.certified"]
    assert refused["margin.r0.5.pathwise"] == "as margin.r0.5.certified"


def test_certified_figures_are_of_the_items_that_have_a_certificate(curved: MarginResult) -> None:
    at = curved.at[-1]
    assert at.certified is not None
    radius = at.certified.radius.clone()
    radius[0], radius[1] = math.nan, 0.0
    part = replace(curved, at=(replace(at, certified=replace(at.certified, radius=radius)),))
    metrics = summarise_margin(part)
    share = metrics["margin.r4.certified.share"]
    assert (share.value, share.n) == (1 / 2, 2)
    assert metrics["margin.r4.certified.mean"].n == metrics["margin.r4.certified.median"].n == 2
    assert metrics["margin.r4.certified.mean"].value == pytest.approx(float(radius[1:].mean()))
    assert margin_refusals(Margins(part, tuple(range(3)), "3")) == {}


def test_where_no_item_is_robust_unperturbed_all_margins_are_0() -> None:
    x = torch.tensor([[0.5, 0.0, 0.5], [0.2, 0.3, 0.4]], dtype=torch.float64)
    (at,) = margin(HalfSpace(), x, 0.01, draws=200).at
    assert at.certified is not None
    assert at.empirical is not None
    assert at.certified.radius.tolist() == at.estimates.whitened.tolist() == at.empirical.margin.tolist() == [0, 0]


def test_a_model_that_is_no_module_is_certified_in_float64_too(oracle: dict[str, Any], linear_gaussian: Any) -> None:
    numbers = oracle["models"]["LIN2"]
    vae, x = linear_gaussian(numbers, torch.float32), torch.tensor([numbers["x"]])
    (at,) = margin(vae, x, oracle["r_robust"]["cases"][2]["r"], parts=CERTIFIED).at
    assert at.certified is not None
    assert at.certified.missing == ()
    assert at.certified.radius.item() == pytest.approx(at.estimates.whitened.item(), rel=1e-5)


class Branching(HalfSpace):
    """An encoder whose code looks at its values."""

    def encode(self, x: Tensor) -> DiagonalGaussian:
        return super().encode(x if bool((x.sum() > 1e9).item()) else 1.0 * x)


def test_an_encoder_that_cannot_be_traced_is_told_in_one_sentence() -> None:
    (at,) = margin(Branching(), torch.full((1, 3), -0.3, dtype=torch.float64), 1.0, draws=200, parts=CERTIFIED).at
    assert at.certified is not None
    (told,) = at.certified.missing
    assert "torch.export cannot trace it" in told
    assert "\n" not in told


def test_a_radius_cannot_be_chosen_where_draws_change_nothing() -> None:
    x = torch.full((2, 3), -9.0, dtype=torch.float64)  # mu(x) far below 0, where the decoder is constant
    with pytest.raises(ConfigError, match="do not vary over draws"):
        usual_radius(HalfSpace(), x, 2.0, items=range(2), batch_size=None)


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"r": 0.0}, ConfigError, r"r must be positive and finite.*0\.0"),
        ({"r": [1.0, math.inf]}, ConfigError, "positive and finite"),
        ({"r": []}, ConfigError, "positive and finite"),
        ({"r": [2.0, 2.0000001]}, ConfigError, "first six digits"),
        ({"level": 1e-9}, ConfigError, "between 0.5 and"),
        ({"m": 1.0}, ConfigError, "risk level m.*between 0 and 1.*1"),
        ({"level": 0.0}, ConfigError, "confidence.*between 0 and 1"),
        ({"sigma": "ful"}, ConfigError, "no sigma 'ful'.*full"),
        ({"parts": ["certificate"]}, ConfigError, "no part 'certificate'"),
        ({"draws": 0}, ConfigError, "draw"),
        ({"items": [1]}, DataError, "2 items needs a number.*1 came"),
        ({"x": torch.ones(2, 4, dtype=torch.float64)}, DataError, r"\(items, 3\)"),
    ],
)
def test_bad_input_is_one_clear_sentence(options: dict[str, Any], error: type[Exception], words: str) -> None:
    given: dict[str, Any] = {"vae": HalfSpace(), "x": torch.zeros(2, 3, dtype=torch.float64), "r": 1.0, **options}
    with pytest.raises(error, match=words) as caught:
        margin(given.pop("vae"), given.pop("x"), given.pop("r"), **given)
    assert "\n" not in str(caught.value)
