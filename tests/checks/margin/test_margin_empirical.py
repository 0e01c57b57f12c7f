import math
from typing import Any

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from vaeaudit import DiagonalGaussian, GaussianLikelihood
from vaeaudit.attacks.margin import Empirical, empirical_margin
from vaeaudit.attacks.signs import Sign
from vaeaudit.errors import ConfigError, NonFiniteError
from vaeaudit.model.batches import RowBatches
from vaeaudit.progress import Progress
from vaeaudit.stats.estimates import clopper_pearson


class Curve:
    """One input and one latent: mu(x), log sigma(x) and g(z) as they are given."""

    input_shape, range = (1,), None

    def __init__(self, mean: Any, log_stddev: Any, decode: Any = lambda z: z) -> None:
        self.mean, self.log_stddev, self.mean_of = mean, log_stddev, decode

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((1,), like=torch.zeros(1, dtype=torch.float64))

    def encode(self, x: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(self.mean(x), self.log_stddev(x))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(self.mean_of(z), torch.zeros((), dtype=z.dtype))


def margin(vae: Any, x: Tensor, r: Tensor | float, **settings: Any) -> Empirical:
    return empirical_margin(vae, x, r, **{"box": None, "rows": RowBatches(4096)} | settings)


def linear(oracle: dict[str, Any], linear_gaussian: Any) -> tuple[Any, Tensor]:
    numbers = oracle["models"]["LIN2"]
    return linear_gaussian(numbers), torch.tensor([numbers["x"]], dtype=torch.float64)


@pytest.mark.parametrize("case", [1, 2, 3])
@pytest.mark.parametrize(("m", "key"), [(0.5, "exact_R"), (0.75, "exact_R_m075")])
def test_a_linear_models_margin_is_just_above_the_oracles(
    case: int, m: float, key: str, oracle: dict[str, Any], linear_gaussian: Any
) -> None:
    exact = oracle["r_robust"]["cases"][case]
    if key not in exact:
        pytest.skip("p0 is below this level")
    found = margin(*linear(oracle, linear_gaussian), exact["r"], m=m)
    assert 0.999 * exact[key] <= float(found.margin) <= 1.05 * exact[key]
    assert not found.censored.any()
    assert float(found.interval[0, 1]) <= m


def test_an_item_at_the_level_itself_has_a_margin_near_zero_and_one_far_below_it_zero(
    oracle: dict[str, Any], linear_gaussian: Any
) -> None:
    vae, x = linear(oracle, linear_gaussian)
    r = oracle["r_robust"]["cases"][0]["r"]  # P(0) = m, so R = 0
    found = margin(vae, x.expand(2, -1), torch.tensor([r, 0.8 * r]))
    assert float(found.margin[0]) < 0.2
    assert float(found.margin[1]) == 0
    assert not found.distortion[1].any()
    assert float(found.interval[1, 1]) <= 0.5


def test_a_kink_that_first_order_does_not_see_is_found(oracle: dict[str, Any]) -> None:
    case = oracle["kink"]
    vae = Curve(
        lambda x: x + case["steep"] * (x - case["kink"]).relu(), lambda x: torch.full_like(x, math.log(case["sigma"]))
    )
    found = margin(vae, torch.zeros(1, 1, dtype=torch.float64), case["r"])
    assert case["exact_R"] * (1 - 1e-3) <= float(found.margin) <= 1.05 * case["exact_R"]
    assert float(found.margin) < case["thm1_local"]


def test_a_half_space_is_left_at_its_exact_distance(oracle: dict[str, Any], linear_gaussian: Any) -> None:
    case = oracle["halfspace"]
    vae = linear_gaussian({**case, "B": [[1.0, 0.0]], "c": [0.0], "tau": 1.0})
    plain = vae.decode

    def decode(z: Tensor) -> GaussianLikelihood:
        inner = plain(z)
        return GaussianLikelihood(case["slope"] * (inner.mean - case["a"]).relu(), inner.log_stddev)

    vae.decode = decode
    found = margin(vae, torch.tensor([case["x"]], dtype=torch.float64), case["r"])
    assert case["exact_R"] * 0.999 <= float(found.margin) <= 1.05 * case["exact_R"]


@pytest.mark.parametrize("case", [0, 1])
def test_sigma_that_moves_is_bounded_in_its_own_mode(case: int, oracle: dict[str, Any]) -> None:
    exact = oracle["sigma_varying"]["cases"][case]
    vae = Curve(lambda x: exact["a"] * x, lambda x: math.log(exact["s0"]) + exact["Lam"] * x, lambda z: exact["B"] * z)
    found = margin(vae, torch.zeros(1, 1, dtype=torch.float64), exact["r"], sigma="full")
    assert exact["exact_R_full"] * 0.999 <= float(found.margin) <= 1.05 * exact["exact_R_full"]
    assert exact["cert_varying"] <= float(found.margin)


def test_in_many_audits_the_margin_is_below_the_truth_in_at_most_alpha() -> None:
    # g(z) = z, so P(d) = Phi((r - d) / s) - Phi((-r - d) / s), which is m at the exact margin.
    s, r, count, alpha = 0.5, 1.0, 120, 0.2
    vae = Curve(lambda x: x, lambda x: torch.full_like(x, math.log(s)))
    found = margin(vae, torch.zeros(count, 1, dtype=torch.float64), r, alpha=alpha, draws=2048)
    p = norm.cdf((r - found.margin.numpy()) / s) - norm.cdf((-r - found.margin.numpy()) / s)
    wrong = int((p > 0.5).sum())
    assert clopper_pearson(wrong, count, 1e-3)[0] <= alpha


BOXES = [(0.0, 1.0), None]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_distortion_keeps_to_the_box_to_the_bit_and_its_norm_is_the_margin(
    box: tuple[float, float] | None, dtype: torch.dtype, small_vae: Any
) -> None:
    x = images(dtype)
    found = margin(small_vae(dtype=dtype), x, 0.5, box=box, draws=1024, tolerance=0.1)
    broken = found.margin.isfinite()
    assert broken.any()
    if box:
        moved = x + found.distortion
        assert ((moved >= 0) & (moved <= 1)).all()
    seen = (x + found.distortion).double() - x.double()  # where x + d was rounded, the model saw another d
    length = torch.linalg.vector_norm(seen.flatten(1), dim=1)
    assert torch.equal(length[broken], found.margin[broken])
    assert (found.interval[broken, 1] <= 0.5).all()


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    """Items of the small VAE, (4, 2, 3), half of their elements exactly at the edges of [0, 1]."""
    generator = torch.Generator().manual_seed(8)
    return (torch.rand(4, 2, 3, generator=generator, dtype=torch.float64) * 2 - 0.5).clamp(0, 1).to(dtype)


Z, W = Sign.ZERO_GRADIENT, Sign.WRONG_GRADIENT
LIES: dict[str, tuple[Any, set[Sign]]] = {
    "healthy": (lambda x: x, set()),
    "turned round": (lambda x: 2 * x.detach() - x, {W}),
    "half as long": (lambda x: (x + x.detach()) / 2, {W}),
    "detached": (lambda x: x.detach(), {Z, W}),
    "rounded": (lambda x: (1000 * x).round() / 1000, {Z, W}),
}


@pytest.mark.parametrize(
    ("lie", "where", "box", "sigma"),
    [
        *(("healthy", "encoder", box, sigma) for box in BOXES for sigma in ("frozen", "full")),
        *((lie, "encoder", BOXES[0], "full") for lie in [*LIES][1:]),
        *((lie, "decoder", BOXES[1], "frozen") for lie in LIES),
    ],
)
def test_a_gradient_that_lies_is_a_sign_on_every_item_and_an_honest_one_is_none(
    lie: str, box: tuple[float, float] | None, sigma: str, where: str, small_vae: Any
) -> None:
    bend, meant = LIES[lie]
    vae = small_vae(box=box)
    of = vae.encode if where == "encoder" else vae.decode
    setattr(vae, "encode" if where == "encoder" else "decode", lambda values: of(bend(values)))
    found = margin(vae, images(), 0.5, box=box, sigma=sigma, draws=1024, tolerance=0.1)
    shown = [set(found.signs.of(item)) for item in range(4)]
    # What cannot be followed finds no shorter distortion than chance does.
    assert all(meant <= signs <= meant | ({Sign.RANDOM} if meant else set()) for signs in shown), shown


def test_a_map_without_spread_shows_its_signs_too() -> None:
    vae = Curve(lambda x: x.tanh(), lambda x: torch.full_like(x, -torch.inf))
    lying = Curve(lambda x: (2 * x.detach() - x).tanh(), vae.log_stddev)
    x = torch.zeros(2, 1, dtype=torch.float64)
    assert not margin(vae, x, 0.5, sigma="full").signs.fired.any()
    assert all(Sign.WRONG_GRADIENT in margin(lying, x, 0.5, sigma="full").signs.of(item) for item in (0, 1))


def test_an_item_that_needs_no_search_shows_no_sign(small_vae: Any) -> None:
    vae = small_vae(box=None)
    of = vae.encode
    vae.encode = lambda x: of(2 * x.detach() - x)
    found = margin(vae, images(), torch.tensor([1e-3, 0.5, 1e-3, 0.5], dtype=torch.float64), draws=1024)
    assert found.signs.any.tolist() == [False, True, False, True]
    assert found.margin[[0, 2]].tolist() == [0, 0]


def test_a_clamp_of_log_variances_is_a_sign_only_where_the_search_could_move_them(small_vae: Any) -> None:
    vae = small_vae()
    of = vae.encode

    def encode(x: Tensor) -> DiagonalGaussian:
        q = of(x)
        return DiagonalGaussian(q.mean, q.log_stddev.clamp(max=-0.2))

    vae.encode = encode
    for sigma, clamped in (("frozen", False), ("full", True)):
        signs = margin(vae, images(), 0.5, box=(0.0, 1.0), sigma=sigma, draws=1024, tolerance=0.1).signs
        assert (Sign.CLAMPED in set().union(*(signs.of(item) for item in range(4)))) is clamped


def test_what_nothing_breaks_is_censored_and_not_a_number() -> None:
    vae = Curve(lambda x: x.tanh(), lambda x: torch.full_like(x, -3.0))
    found = margin(vae, torch.zeros(2, 1, dtype=torch.float64), torch.tensor([3.0, 0.5]), most=5.0)
    assert found.censored.tolist() == [True, False]
    assert float(found.margin[0]) == math.inf
    assert float(found.largest[0]) == pytest.approx(5.0)
    assert math.atanh(0.5) * 0.999 <= float(found.margin[1]) <= 1.05 * math.atanh(0.5)


def test_items_do_not_depend_on_their_company_or_on_the_batch_size_and_a_seed_repeats_the_bits(small_vae: Any) -> None:
    x, settings = images()[:2], {"box": (0.0, 1.0), "draws": 1024, "tolerance": 0.1}
    vae = small_vae()
    whole = margin(vae, x, 0.5, **settings)
    again = margin(vae, x, 0.5, **settings)
    assert torch.equal(whole.margin, again.margin)
    assert torch.equal(whole.distortion, again.distortion)
    small = margin(vae, x, 0.5, **settings | {"rows": RowBatches(500)})
    torch.testing.assert_close(small.margin, whole.margin)
    assert torch.equal(small.tests, whole.tests)
    alone = margin(vae, x[1:2], 0.5, items=[1], **settings)
    torch.testing.assert_close(alone.margin, whole.margin[1:2])
    other = margin(vae, x, 0.5, **settings, seed=1)
    assert not torch.equal(other.margin, whole.margin)


def test_a_stopped_search_hands_out_the_best_so_far_tested_once(oracle: dict[str, Any], linear_gaussian: Any) -> None:
    vae, x = linear(oracle, linear_gaussian)
    exact = oracle["r_robust"]["cases"][2]
    asked = []

    def three_times(progress: Progress) -> bool:
        asked.append(progress)
        return len(asked) <= 3

    found = margin(vae, x, exact["r"], go_on=three_times)
    assert found.interrupted
    assert len(asked) == 4
    assert int(found.tests) == 1
    assert Sign.NOT_CONVERGED in found.signs.of(0)
    assert "let it end" in found.signs.message(Sign.NOT_CONVERGED, 0)
    assert "--max-evaluations" not in found.signs.message(Sign.NOT_CONVERGED, 0)
    assert float(found.margin) >= exact["exact_R"]
    nothing = margin(vae, x, exact["r"], go_on=lambda _: False)
    assert nothing.interrupted
    assert float(nothing.margin) == math.inf
    assert not nothing.censored.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0.0}, "the radius r must be positive"),
        ({"m": 1.0}, "m must lie between 0 and 1"),
        ({"alpha": 0.0}, "alpha must lie between 0 and 1"),
        ({"sigma": "frozn"}, "did you mean 'frozen'"),
        ({"most": math.inf}, "the largest norm tried must be positive and finite"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str, small_vae: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        margin(small_vae(), images(), **{"r": 1.0} | settings)


def test_a_reconstruction_that_is_not_finite_is_refused() -> None:
    vae = Curve(lambda x: x, torch.zeros_like, lambda z: z / 0)
    with pytest.raises(NonFiniteError, match="item 0 is not finite"):
        margin(vae, torch.zeros(1, 1), 1.0)
