import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from vaeaudit.attacks import capped as engine
from vaeaudit.attacks.attacked import Capped
from vaeaudit.attacks.ball import furthest
from vaeaudit.attacks.capped import capped
from vaeaudit.attacks.directions import pull_back, pullback_directions, random_search
from vaeaudit.attacks.left import ENOUGH, MOST
from vaeaudit.attacks.objectives import damage
from vaeaudit.attacks.term import DataTerm
from vaeaudit.errors import ConfigError, NonFiniteError
from vaeaudit.model.batches import RowBatches
from vaeaudit.optim.lbfgsb import Status
from vaeaudit.progress import Progress
from vaeaudit.stats.draws import noise_set

Box = tuple[float, float] | None
UNIT = (0.0, 1.0)
CAPS = torch.tensor([0.6, 0.05, 0.2], dtype=torch.float64)
BOTH_NORMS = pytest.mark.parametrize("norm", ["l2", "linf"])
BOTH_DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def images(count: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    """Items of the small VAE, (count, 2, 3), half of their elements exactly at the edges of [0, 1]."""
    generator = torch.Generator().manual_seed(8)
    return (torch.rand(count, 2, 3, generator=generator, dtype=torch.float64) * 2 - 0.5).clamp(0, 1).to(dtype)


def noise(x: Tensor, draws: int = 6, seed: int = 0) -> Tensor:
    return noise_set(tuple(x.shape[1:]), draws=draws, items=range(len(x)), seed=seed, check="capped", like=x)


def attack(term: DataTerm, x: Tensor, box: Box = UNIT, caps: Tensor = CAPS, **settings: Any) -> Capped:
    settings = {"directions": noise(x), "max_evaluations": 120, "rows": RowBatches(1000)} | settings
    return capped(term, x, box, caps, **settings)


def norm_of(d: Tensor, norm: str) -> Tensor:
    return torch.linalg.vector_norm(d.flatten(2), 2 if norm == "l2" else math.inf, dim=2)


# The intersection of ball and box


def ball_and_box(seed: int, n: int = 7) -> tuple[Tensor, Tensor, Tensor, float]:
    """A direction, a box around 0 that binds on some sides, and a radius."""
    generator = torch.Generator().manual_seed(seed)
    v, edges = torch.randn(n, generator=generator), torch.rand(2, n, generator=generator)
    edges[0, 0] = edges[1, 1] = 0  # an item at the edge of its box
    return v.double(), -edges[0].double(), edges[1].double(), 0.3 + 0.2 * (seed % 4)


def by_scipy(objective: Callable[[np.ndarray], float], low: Tensor, high: Tensor, radius: float) -> np.ndarray:
    ball = {"type": "ineq", "fun": lambda d: radius**2 - d @ d}
    bounds = list(zip(low.tolist(), high.tolist(), strict=True))
    start = np.full(len(low), 1e-3).clip(low.numpy(), high.numpy())
    return minimize(
        objective, start, bounds=bounds, constraints=[ball], method="SLSQP", options={"ftol": 1e-14, "maxiter": 500}
    ).x


@pytest.mark.parametrize("seed", range(8))
def test_the_furthest_point_along_a_direction_is_that_of_an_independent_solver(seed: int) -> None:
    v, low, high, radius = ball_and_box(seed)
    d = furthest(v[None], low[None], high[None], torch.tensor([radius], dtype=torch.float64))[0]
    other = by_scipy(lambda d: -float(d @ v.numpy()), low, high, radius)
    assert ((low <= d) & (d <= high)).all()
    assert float(d @ v) == pytest.approx(float(other @ v.numpy()), rel=1e-7)
    assert float(torch.linalg.vector_norm(d)) <= radius * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_the_projection_is_that_of_an_independent_solver(seed: int) -> None:
    v, low, high, radius = ball_and_box(seed)
    d = furthest(v[None], low[None], high[None], torch.tensor([radius], dtype=torch.float64), most=1.0)[0]
    other = by_scipy(lambda d: float(((d - v.numpy()) ** 2).sum()), low, high, radius)
    np.testing.assert_allclose(d.numpy(), other, atol=1e-5)


def test_without_a_box_the_furthest_point_is_on_the_ball_and_in_a_small_box_in_its_corner() -> None:
    v = torch.tensor([[3.0, 0.0, -4.0]])
    radius, free = torch.tensor([2.0]), torch.full((1, 3), math.inf)
    torch.testing.assert_close(furthest(v, -free, free, radius), torch.tensor([[1.2, 0.0, -1.6]]))
    torch.testing.assert_close(furthest(v, -free, free, radius, most=0.1), 0.1 * v)
    corner = torch.tensor([[0.5, 0.0, -0.25]])
    edge = torch.tensor([[0.5, 0.5, 0.25]])
    torch.testing.assert_close(furthest(v, -edge, edge, radius), corner)
    torch.testing.assert_close(furthest(v, -free, free, radius, "linf"), torch.tensor([[2.0, 0.0, -2.0]]))
    assert not furthest(0 * v, -free, free, radius).any()


# Exact answers


@pytest.mark.parametrize("case", range(3))
def test_the_largest_damage_of_a_linear_model_is_the_oracles(
    case: int, oracle: dict[str, Any], linear_gaussian: Any
) -> None:
    exact = oracle["max_damage"]["cases"][case]
    vae = linear_gaussian(oracle["models"][exact["model"]])
    x = torch.tensor([oracle["models"][exact["model"]]["x"]], dtype=torch.float64)
    spread = float((vae.B * vae.log_sigma.exp()).square().sum())

    def mean_square(points: Tensor, _: Tensor) -> Tensor:
        return -((points - x) @ vae.A.T @ vae.B.T).square().sum(1) - spread  # E||B(A d + sigma eta)||^2

    terms = {
        "ref_recon_value": damage(vae, x, None),
        "ref_x_value": damage(vae, x, None, ref="input"),
        "mean_square_damage": mean_square,
    }
    for name, term in terms.items():
        found = attack(term, x, None, torch.tensor([exact["cap"]]), max_evaluations=300)
        assert -float(found.data_term) == pytest.approx(exact[name], rel=1e-6)
        assert -float(found.data_term) <= exact[name] * (1 + 1e-9)


@BOTH_NORMS
def test_a_linear_term_is_minimised_exactly_and_a_bowl_to_its_bottom(norm: str) -> None:
    x = images()
    slope = noise(x, draws=1, seed=3)[0]
    low, high = -x, 1 - x
    linear = attack(lambda points, item: (points * slope[item]).flatten(1).sum(1), x, norm=norm)
    for c, cap in enumerate(CAPS):
        radius = cap.expand(len(x))
        best = furthest(-slope.flatten(1), low.flatten(1), high.flatten(1), radius, norm)
        expected = ((x.flatten(1) + best) * slope.flatten(1)).sum(1)
        torch.testing.assert_close(linear.data_term[:, c], expected, rtol=1e-9, atol=1e-9)
    # A minimum inside of the ball: nothing is gained by going as far as the cap.
    bottom = x + 0.02 * (0.5 - x)
    bowl = attack(lambda points, item: (points - bottom[item]).square().flatten(1).sum(1), x, norm=norm)
    torch.testing.assert_close(bowl.adversarial[:, 0], bottom, rtol=0, atol=1e-6)
    assert (bowl.status[:, 0] == int(Status.CONVERGED)).all()


# What always holds


@BOTH_NORMS
@BOTH_DTYPES
@pytest.mark.parametrize("box", [UNIT, None])
def test_what_is_handed_out_keeps_box_and_cap_to_the_bit(
    norm: str, dtype: torch.dtype, box: Box, small_vae: Any
) -> None:
    vae, x = small_vae(box=box, dtype=dtype), images(dtype=dtype)
    caps = CAPS.to(dtype)
    term = damage(vae, x, None)
    found = attack(term, x, box, caps, norm=norm, directions=noise(x))
    assert found.distortion.dtype == dtype
    assert found.adversarial.shape == (5, 3, 2, 3)
    assert torch.equal(found.adversarial, x[:, None] + found.distortion)
    if box:
        assert ((found.adversarial >= 0) & (found.adversarial <= 1)).all()
    assert (norm_of(found.distortion, norm) <= caps).all()
    assert (norm_of(found.distortion.double(), norm) <= caps.double()).all()
    seen = found.adversarial.double() - x[:, None].double()  # where x + d was rounded, the model saw another d
    assert (norm_of(seen, norm) <= caps.double()).all()
    assert torch.equal(found.norm, norm_of(seen, norm))
    item = torch.arange(5).repeat_interleave(3)
    again = term(found.adversarial.flatten(0, 1), item).reshape(5, 3)
    torch.testing.assert_close(found.data_term, again)
    assert (found.data_term < found.zero_data_term[:, None]).all()


@BOTH_NORMS
def test_a_larger_cap_is_never_worse_whatever_their_order(norm: str, small_vae: Any) -> None:
    vae, x = small_vae(), images()
    caps = torch.tensor([0.4, 0.1, 3.0, 0.2, 0.2, 0.05], dtype=torch.float64)
    found = attack(damage(vae, x, None), x, caps=caps, norm=norm, max_evaluations=30)
    assert (found.data_term[:, caps.argsort()].diff(dim=1) <= 0).all()
    assert torch.equal(found.data_term[:, 3], found.data_term[:, 4])


def test_a_small_model_is_searched_to_the_bottom(small_vae: Any) -> None:
    # Many random points, each followed by SciPy, find nothing that the attack left.
    vae, x = small_vae(), images(3)
    term = damage(vae, x, None)
    found = attack(term, x, caps=torch.tensor([0.5]), max_evaluations=300)
    for i in range(3):

        def objective(d: np.ndarray, i: int = i) -> tuple[float, np.ndarray]:
            leaf = torch.from_numpy(d).requires_grad_(True)
            value = term((x[i].flatten() + leaf).reshape(1, 2, 3), torch.tensor([i]))
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            return value.item(), gradient.numpy()

        bounds = list(zip((-x[i]).flatten().tolist(), (1 - x[i]).flatten().tolist(), strict=True))
        ball = {"type": "ineq", "fun": lambda d: 0.25 - d @ d, "jac": lambda d: -2 * d}
        starts = 0.2 * noise(x, draws=10, seed=4)[:, i].flatten(1).numpy()
        best = min(
            minimize(objective, start, jac=True, bounds=bounds, constraints=[ball], method="SLSQP").fun
            for start in starts
        )
        assert float(found.data_term[i, 0]) <= best + 1e-5 * abs(best)


def test_the_same_call_gives_the_same_bits_and_batch_size_and_groups_change_rounding_only(
    small_vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, x = small_vae(), images()
    term = damage(vae, x, None)
    found = attack(term, x)
    assert torch.equal(found.distortion, attack(term, x).distortion)
    for size in (1, 7):
        torch.testing.assert_close(attack(term, x, rows=RowBatches(size)).data_term, found.data_term, rtol=1e-6, atol=0)
    monkeypatch.setattr(engine, "_MEMORY", 1)
    alone = attack(term, x)  # each item by itself
    torch.testing.assert_close(alone.data_term, found.data_term, rtol=1e-6, atol=0)
    assert alone.evaluations.shape == found.evaluations.shape


def test_it_costs_no_more_rows_than_allowed_and_counts_them(small_vae: Any) -> None:
    vae, x = small_vae(), images()
    inner, rows = damage(vae, x, None), torch.zeros(5, dtype=torch.long)

    def term(points: Tensor, item: Tensor) -> Tensor:
        rows.index_add_(0, item, torch.ones_like(item))
        return inner(points, item)

    for most in (13, 40, 200):
        rows.zero_()
        found = attack(term, x, max_evaluations=most)
        assert (found.evaluations <= torch.where(found.further, MOST * most, most)).all()
        assert (found.evaluations.sum(1) - 2 == rows).all()  # d = 0 is evaluated once for all three caps


@BOTH_NORMS
def test_a_problem_that_still_gains_at_its_limit_is_searched_on_and_only_such(norm: str, small_vae: Any) -> None:
    vae, x = small_vae(), images()
    found = attack(damage(vae, x, None), x, norm=norm, max_evaluations=15)
    assert found.further.any()
    assert not found.further.all()
    assert (found.evaluations[found.further] > 15).all()
    assert (found.evaluations[~found.further] <= 15).all()
    # What is left of those that are neither settled nor searched to the end is little.
    gain = found.zero_data_term[:, None] - found.data_term
    short = (found.status == int(Status.LIMIT)) & (found.evaluations <= 2 * 15)
    assert (found.recent[short] <= ENOUGH * gain[short]).all()
    assert not attack(damage(vae, x, None), x, norm=norm, max_evaluations=400).further.any()


def test_it_stops_when_told_to_with_the_best_it_has(small_vae: Any) -> None:
    vae, x = small_vae(), images()
    stages = set()
    for most in (0, 5, 50, 80, 100):
        asked = 0

        def go_on(progress: Progress, most: int = most) -> bool:
            nonlocal asked
            asked += 1
            stages.add(progress.stage)
            return asked <= most

        found = attack(damage(vae, x, None), x, directions=noise(x, draws=1), go_on=go_on)
        assert found.interrupted
        assert (found.status == int(Status.STOPPED)).any()
        assert (found.data_term <= found.zero_data_term[:, None]).all()
    assert stages == {"exploring, rounds", "following"}
    assert not attack(damage(vae, x, None), x).interrupted


# Refused, or beyond help


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"caps": torch.tensor([0.5, 0.0])}, "caps must be positive and finite"),
        ({"caps": torch.tensor([-1.0])}, "caps must be positive and finite"),
        ({"caps": torch.tensor([math.inf])}, "caps must be positive and finite"),
        ({"caps": torch.tensor([math.nan])}, "caps must be positive and finite"),
        ({"caps": torch.tensor([])}, "at least one"),
        ({"norm": "linff"}, "did you mean 'linf'"),
        ({"directions": torch.zeros(0, 5, 2, 3)}, "draw at least one"),
        ({"max_evaluations": 12}, "3 caps need at least 13 evaluations"),
    ],
)
def test_bad_input_is_one_clear_sentence(changed: dict[str, Any], message: str, small_vae: Any) -> None:
    x = images()
    with pytest.raises(ConfigError, match=message):
        attack(damage(small_vae(), x, None), x, **changed)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("power", [-6, 6])
def test_the_units_of_the_input_change_nothing(power: int, norm: str, small_vae: Any) -> None:
    x, unit = images(), 10.0**power
    term = damage(small_vae(), x, None)
    plain = attack(term, x, None, norm=norm)
    scaled = attack(lambda points, item: term(points / unit, item), x * unit, None, CAPS * unit, norm=norm)
    torch.testing.assert_close(scaled.data_term, plain.data_term, rtol=1e-6, atol=0)


def test_a_model_that_is_not_finite_at_an_item_is_refused_by_its_number() -> None:
    x = images()

    def term(points: Tensor, item: Tensor) -> Tensor:
        return torch.where(item == 3, torch.nan, 1.0) * points.flatten(1).sum(1)

    with pytest.raises(NonFiniteError, match="item 3 is nan"):
        attack(term, x)


def test_where_the_model_is_not_finite_the_search_goes_elsewhere_or_says_so() -> None:
    x = images()

    def wall(points: Tensor, item: Tensor) -> Tensor:
        d = (points - x[item]).flatten(1)
        return torch.where(d[:, 0].abs() > 0.1, torch.nan, -d.abs().sum(1))

    found = attack(wall, x)
    assert (found.data_term < 0).all()
    assert (found.distortion[:, :, 0, 0].abs() <= 0.1).all()

    def island(points: Tensor, item: Tensor) -> Tensor:
        d = (points - x[item]).flatten(1).abs().sum(1)
        return torch.where(d > 0, torch.nan, d)

    found = attack(island, x)
    assert (found.status == int(Status.NONFINITE)).all()
    assert not found.distortion.any()


def test_a_model_that_does_not_see_its_input_is_left_alone() -> None:
    x = images()
    found = attack(lambda points, _: torch.ones(len(points), dtype=points.dtype), x)
    assert not found.distortion.any()
    assert (found.data_term == 1).all()


# Directions


def jacobians(vae: Any, x: Tensor) -> Tensor:
    """(I, latent, n), one product at a time."""
    rows = [
        torch.autograd.functional.jacobian(lambda part: vae.encode(part).mean[0], x[i : i + 1]) for i in range(len(x))
    ]
    return torch.stack(rows).reshape(len(x), 2, -1)


def encoder(vae: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda points, _item: vae.encode(points).mean


def latent_noise(x: Tensor, draws: int) -> Tensor:
    return noise_set((2,), draws=draws, items=range(len(x)), seed=1, check="pull-back", like=x)


def test_pulling_back_is_the_transposed_jacobian(small_vae: Any) -> None:
    vae, x = small_vae(), images()
    u = latent_noise(x, 4)
    expected = torch.einsum("ril,iln->rin", u, jacobians(vae, x)).reshape(4, *x.shape)
    for size in (1, 3, 100):
        torch.testing.assert_close(pull_back(encoder(vae), x, u, RowBatches(size)), expected)
    assert not pull_back(lambda points, _item: points.flatten(1)[:, :2].detach(), x, u, RowBatches(9)).any()


@pytest.mark.parametrize("count", [1, 2])
def test_pull_back_directions_are_the_singular_vectors_of_the_jacobian(count: int, small_vae: Any) -> None:
    vae, x = small_vae(), images()
    _, exact, right = torch.linalg.svd(jacobians(vae, x), full_matrices=False)
    vectors, values = pullback_directions(encoder(vae), x, latent_noise(x, count), RowBatches(3))
    assert vectors.shape == (count, *x.shape)
    tolerance = 1e-9 if count == 2 else 1e-3  # all of them at once are exact, the first alone is iterated
    torch.testing.assert_close(values, exact.T[:count], rtol=tolerance, atol=0)
    along = (vectors.flatten(2) * right.transpose(0, 1)[:count]).sum(2).abs()
    torch.testing.assert_close(along, torch.ones_like(along), rtol=30 * tolerance, atol=0)
    assert (values <= exact.T[:count] * (1 + 1e-9)).all()


def test_a_mean_cut_off_from_its_input_has_no_sensitive_direction() -> None:
    x = images()
    _, values = pullback_directions(
        lambda points, _item: points.flatten(1)[:, :2].detach(), x, latent_noise(x, 2), RowBatches(9)
    )
    assert not values.any()


@BOTH_NORMS
@BOTH_DTYPES
def test_random_search_keeps_norm_and_box_and_takes_the_best(norm: str, dtype: torch.dtype, small_vae: Any) -> None:
    vae, x = small_vae(dtype=dtype), images(dtype=dtype)
    term, rows = damage(vae, x, None), RowBatches(4)
    radius = torch.tensor([0.3, 0.05], dtype=dtype).expand(5, 2)
    value, d = random_search(term, x, UNIT, norm, radius, noise(x, 3), rows)
    assert (norm_of(d, norm) <= radius).all()
    torch.testing.assert_close(norm_of(d, norm), radius)  # the box leaves room for both lengths
    points = x[:, None] + d
    assert ((points >= 0) & (points <= 1)).all()
    item = torch.arange(5).repeat_interleave(2)
    torch.testing.assert_close(term(points.flatten(0, 1), item).reshape(5, 2), value)
    more, _ = random_search(term, x, UNIT, norm, radius, noise(x, 12), rows)
    assert (more <= value + 1e-6).all()
    assert (more < value - 1e-6).any()
    searched = attack(term, x, caps=radius[0], norm=norm)
    assert (searched.data_term <= more + 1e-6).all()
