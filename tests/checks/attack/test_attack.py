import math
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear, minimize_scalar
from torch import Tensor

from vaeaudit.attacks.attacked import PENALTIES, Sweep, just_better_than_mean
from vaeaudit.attacks.objectives import Objective
from vaeaudit.attacks.search import Effort, together
from vaeaudit.attacks.signs import Sign, Signs
from vaeaudit.attacks.similarity import SIMILARITIES
from vaeaudit.attacks.sweep import geometric_lambdas, sweep
from vaeaudit.checks.attack.capped import capped_attack
from vaeaudit.checks.attack.measure import AttackResult, attack
from vaeaudit.checks.attack.summarise import summarise
from vaeaudit.checks.margin.measure import margin
from vaeaudit.errors import ConfigError, DataError, UnsupportedError, VaeauditError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.vae import BernoulliLogits, DiagonalGaussian
from vaeaudit.optim.lbfgsb import Status, Stopping
from vaeaudit.progress import Progress
from vaeaudit.stats.draws import noise_set

Box = tuple[float, float] | None
CASES = range(8)  # of the oracle's section `attacks`
PENALTY = {"l2": "l2", "squared": "l2sq"}  # the oracle's names and ours


def pairs_of(count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Sources and targets for the small VAE, (count, 2, 3), some elements exactly at the edges of [0, 1]."""
    generator = torch.Generator().manual_seed(8)
    both = torch.rand(2, 10, 2, 3, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    x, x_t = both.clamp(0, 1).to(dtype)
    return x[:count], x_t[:count]


# The lambda sweep against exact answers


def output_term(vae: Any, x_t: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """-E log p(x_t|z) + KL(q(z|x*) || p(z)), the expectation in closed form for a linear decoder."""

    def data_term(x_adv: Tensor, pair: Tensor) -> Tensor:
        q = vae.encode(x_adv)
        likelihood = vae.decode(q.mean)
        spread = (q.stddev[:, None] * vae.B / vae.log_tau.exp()).square().sum((1, 2))
        return -likelihood.log_prob(x_t[pair]) + 0.5 * spread + q.kl(vae.prior)

    return data_term


def solve(vae: Any, case: dict[str, Any], x: Tensor, x_t: Tensor) -> Sweep:
    box = tuple(case["box"]) if case["box"] else None
    penalty, lambdas = PENALTY[case["norm"]], case["lam"]
    if case["kind"] == "latent":
        return attack(vae, x, x_t, lambdas=lambdas, penalty=penalty, data_range=box).sweep
    return sweep(
        output_term(vae, x_t),
        x,
        x_t,
        box,
        torch.tensor(lambdas, dtype=x.dtype),
        penalty=penalty,
        floor=None if case["kind"] == "output" else 0.0,
        effort=Effort(Stopping.for_dtype(x.dtype)),
        rows=RowBatches(100),
    )


def data_gradient(vae: Any, case: dict[str, Any], x_t: Tensor, points: Tensor) -> Tensor:
    """Gradient of the data term of one pair at ``points`` (b, n), in float64."""
    item = torch.zeros(len(points), dtype=torch.long)
    leaf = points.detach().clone().requires_grad_(True)
    latent = Objective("latent").data_term(vae, x_t, x_t, x_t[None])
    term = latent if case["kind"] == "latent" else output_term(vae, x_t)
    return torch.autograd.grad(term(leaf, item).sum(), leaf)[0].double()


# In float32 every other: of each kind, norm and box one with either of the others.
@pytest.mark.parametrize(
    ("dtype", "number"), [*((torch.float64, k) for k in CASES), *((torch.float32, k) for k in (0, 3, 5, 6))]
)
def test_the_sweep_finds_the_oracles_optima(
    number: int, dtype: torch.dtype, oracle: dict[str, Any], linear_gaussian: Any
) -> None:
    case = oracle["attacks"]["cases"][number]
    numbers = oracle["models"][case["model"]]
    vae = linear_gaussian(numbers, dtype)
    x, x_t = (torch.tensor([numbers[name]], dtype=dtype) for name in ("x", "xt"))
    found = solve(vae, case, x, x_t)
    exact, objective = np.array(case["objective"]), found.objective[0].double().numpy()
    deviation = (objective - exact) / np.maximum(1, np.abs(exact))
    assert deviation.max() <= (1e-6 if dtype == torch.float64 else 1e-3)
    assert deviation.min() >= -1e-6
    # Also relative to the optimum itself, which for small lambda is far below 1: wherever the model's precision tells
    # the gradient there. (At lambda = 2^-20 float32 errs by a large share of it, which no descent along it can mend.)
    points = found.adversarial[0]
    gradient = data_gradient(vae, case, x_t, points)
    true = data_gradient(linear_gaussian(numbers, torch.float64), case, x_t.double(), points.double())
    told = ((gradient - true).norm(dim=1) <= 0.01 * true.norm(dim=1)).numpy()
    assert told[np.array(case["lam"]) > 1e-5].all()
    relative = np.abs(objective / exact - 1)
    assert relative[told].max() <= (1e-7 if dtype == torch.float64 else 1e-4)
    assert relative.max() <= 0.05
    # Strictly convex in the directions that the penalty sees, so the optimum is unique; float64 can tell it.
    if dtype == torch.float64:
        tolerance = oracle["attacks"]["tol_d"]
        np.testing.assert_allclose(found.distortion[0].numpy(), case["d"], rtol=0, atol=tolerance)
        np.testing.assert_allclose(found.norm[0].numpy(), case["dnorm"], rtol=0, atol=tolerance)
        np.testing.assert_allclose(found.data_term[0].numpy(), case["data_term"], rtol=0, atol=tolerance)
    assert int(found.chosen) == case["lambda_rule_index"]


@pytest.mark.parametrize("number", [k for k in CASES if k in (0, 1, 4, 5)])
def test_from_the_critical_lambda_on_no_distortion_at_all_is_returned(
    number: int, oracle: dict[str, Any], linear_gaussian: Any
) -> None:
    case = dict(oracle["attacks"]["cases"][number])
    numbers = oracle["models"][case["model"]]
    x, x_t = (torch.tensor([numbers[name]], dtype=torch.float64) for name in ("x", "xt"))
    critical = case["lam_critical_zero"]
    case["lam"] = [0.99 * critical, 1.0001 * critical, 2 * critical, 1e6 * critical]
    found = solve(linear_gaussian(numbers), case, x, x_t)
    assert float(found.norm[0, 0]) > 1e-4
    assert float(found.objective[0, 0]) < float(found.zero_data_term)
    assert (found.distortion[0, 1:] == 0).all()
    assert (found.norm[0, 1:] == 0).all()
    assert torch.equal(found.adversarial[0, 1:], x.expand(3, -1))
    assert (found.objective[0, 1:] == found.zero_data_term).all()
    assert (found.status == int(Status.CONVERGED)).all()


def boxed_optimum(vae: Any, x: Tensor, x_t: Tensor, lam: float, penalty: str) -> tuple[float, np.ndarray]:
    """The box-constrained optimum by bounded least squares (an active-set method).

    The data term is 1/2 ||W (A d - r)||^2. With `l2sq` the penalty is another least-squares row; with `l2`,
    lambda ||d|| = min over t of lambda (||d||^2 / t + t) / 2, jointly convex in d and t.
    """
    W = np.diag(np.exp(-vae.log_sigma.numpy()))
    A, r = W @ vae.A.numpy(), W @ vae.A.numpy() @ (x_t - x).numpy()
    n = len(x)
    bounds = (-x.numpy() - 1e-300, 1 - x.numpy() + 1e-300)

    def least_squares(weight: float) -> np.ndarray:
        stacked = np.vstack([A, math.sqrt(weight) * np.eye(n)])
        found = lsq_linear(stacked, np.append(r, np.zeros(n)), bounds, method="bvls", tol=1e-15, max_iter=1000)
        return found.x

    def objective(d: np.ndarray) -> float:
        norm = np.linalg.norm(d)
        return float(0.5 * np.sum((A @ d - r) ** 2) + lam * (norm if penalty == "l2" else norm**2))

    if penalty == "l2sq":
        d = least_squares(2 * lam)
        return objective(d), d
    search = minimize_scalar(
        lambda log_t: objective(least_squares(lam / math.exp(log_t))),
        bounds=(math.log(1e-4), math.log(10)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    d = least_squares(lam / math.exp(search.x))
    zero = np.zeros(n)
    return min((objective(d), d), (objective(zero), zero), key=lambda pair: pair[0])


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_box_that_binds_gives_the_optimum_of_a_bounded_least_squares_solver(
    penalty: str, linear_gaussian: Any
) -> None:
    generator = torch.Generator().manual_seed(6)
    weights = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    vae = linear_gaussian(
        {
            "A": weights.tolist(),
            "b": [0.1, -0.2, 0.3],
            "sigma": [0.3, 0.7, 0.5],
            "B": weights.T.tolist(),
            "c": [0.5] * 8,
            "tau": 0.5,
        },
        box=(0.0, 1.0),
    )
    # Sources and targets close to the edges, where the straight way to a match leaves the box.
    ends = torch.rand(2, 2, 8, generator=generator, dtype=torch.float64).round() * 0.9
    x, x_t = ends + 0.1 * torch.rand(2, 2, 8, generator=generator, dtype=torch.float64)
    lambdas = [2.0**-12, 0.05, 1.0, 5.0]
    found = attack(vae, x, x_t, lambdas=lambdas, penalty=penalty).sweep
    free = attack(vae, x, x_t, lambdas=lambdas, penalty=penalty, data_range=(-10, 10)).sweep
    bound = (found.adversarial == 0) | (found.adversarial == 1)
    assert (bound.flatten(2).any(2).sum(1) >= 2).all()  # for every pair the box binds for two lambda or more
    assert (found.objective[:, 0] > free.objective[:, 0] * 1.01).all()
    for i, (j, lam) in product(range(2), enumerate(lambdas)):
        value, d = boxed_optimum(vae, x[i], x_t[i], lam, penalty)
        assert float(found.objective[i, j]) == pytest.approx(value, rel=1e-6, abs=1e-9), (i, lam)
        np.testing.assert_allclose(found.distortion[i, j].numpy(), d, rtol=0, atol=2e-3)


# One contract over every attack


@pytest.fixture(scope="module")
def found_by(small_vae: Any) -> Callable[..., AttackResult]:
    """Attacks on the small VAE, each run once."""
    kept: dict[tuple[object, ...], AttackResult] = {}

    def find(similarity: str, penalty: str, box: Box, dtype: torch.dtype) -> AttackResult:
        key = (similarity, penalty, box, dtype)
        if key not in kept:
            x, x_t = pairs_of(3, dtype)
            kept[key] = attack(
                small_vae(box, dtype),
                x,
                x_t,
                similarity=similarity,
                penalty=penalty,
                lambdas=[2.0**-10, 2.0**-5, 0.3, 6.0, 2.0**20],
                max_evaluations=20,
            )
        return kept[key]

    return find


UNIT = (0.0, 1.0)
EVERY_ATTACK = pytest.mark.parametrize(
    ("similarity", "penalty", "box", "dtype"),
    [
        *[(similarity, "l2", UNIT, torch.float64) for similarity in SIMILARITIES],
        *[(similarity, "l2sq", None, torch.float64) for similarity in ("kl", "sample")],
        *[("kl", penalty, UNIT, torch.float32) for penalty in PENALTIES],
    ],
)


@EVERY_ATTACK
def test_every_attack_keeps_the_contract(
    similarity: str,
    penalty: str,
    box: Box,
    dtype: torch.dtype,
    found_by: Callable[..., AttackResult],
    small_vae: Any,
) -> None:
    result = found_by(similarity, penalty, box, dtype)
    found = result.sweep
    vae, (x, x_t) = small_vae(box, dtype), pairs_of(3, dtype)
    rounding = 100 * torch.finfo(dtype).eps
    low, high = box or (-math.inf, math.inf)

    # What is handed out is x + d to the bit, inside the box.
    assert found.distortion.shape == found.adversarial.shape == (3, 5, 2, 3)
    assert found.distortion.dtype == found.objective.dtype == dtype
    assert torch.equal(found.adversarial, x[:, None] + found.distortion)
    assert ((found.adversarial >= low) & (found.adversarial <= high)).all()

    # The figures are those of what is handed out, computed anew.
    target, pair = vae.encode(x_t), torch.arange(3)
    noise = noise_set((2,), draws=16, items=range(3), seed=0, check="attack.latent", like=x)
    measure = SIMILARITIES[similarity]

    def data_term(points: Tensor) -> Tensor:
        return measure(vae.encode(points), target, noise[:, pair])

    for j, lam in enumerate(found.lambdas):
        norm = torch.linalg.vector_norm(found.distortion[:, j].flatten(1), dim=1)
        pen = norm if penalty == "l2" else norm**2
        again = data_term(found.adversarial[:, j])
        torch.testing.assert_close(found.data_term[:, j], again, rtol=rounding, atol=rounding)
        torch.testing.assert_close(found.norm[:, j], norm, rtol=rounding, atol=0)
        torch.testing.assert_close(found.objective[:, j], again + lam * pen, rtol=rounding, atol=rounding)

        # Never worse than the two distortions that need no search, d = 0 and d = x_t - x.
        gap = torch.linalg.vector_norm((x_t - x).flatten(1), dim=1)
        assert (found.objective[:, j] <= data_term(x) + rounding).all()
        at_target = data_term(x_t) + lam * (gap if penalty == "l2" else gap**2)
        assert (found.objective[:, j] <= at_target * (1 + rounding) + rounding).all()

    # The curve runs the right way: more lambda, less distortion and more data term.
    assert (found.norm.diff(dim=1) <= rounding).all()
    assert (found.data_term.diff(dim=1) >= -rounding).all()

    # Small lambda match the target far better than d = 0 does; the largest does not pay with `l2`.
    assert (found.data_term[:, 0] < 0.1 * found.zero_data_term).all()
    if penalty == "l2":
        assert (found.distortion[:, -1] == 0).all()

    # It says how it ended, and is not called interrupted when nobody did.
    assert set(found.status.flatten().tolist()) <= {Status.CONVERGED, Status.STALLED, Status.LIMIT}
    assert not result.interrupted
    assert (found.evaluations >= 1).all()


@EVERY_ATTACK
def test_every_attack_gives_finite_measurements_of_its_reconstructions(
    similarity: str, penalty: str, box: Box, dtype: torch.dtype, found_by: Callable[..., AttackResult]
) -> None:
    result = found_by(similarity, penalty, box, dtype)
    assert result.target_nll.shape == result.target_error.shape == result.own_error.shape == (3, 5)
    metrics = summarise(result)
    assert all(name.startswith("attack.latent.") for name in metrics)
    for name, measured in metrics.items():
        robust = "delta" in name or "curve_area" in name
        assert measured.direction == ("higher" if robust else "none")
        if "curve_area" not in name:
            assert measured.value is not None, name
            assert math.isfinite(measured.value)
            assert (measured.n, measured.nonfinite) == (3, 0)
    assert torch.equal(result.curve_area.isfinite(), result.source_error > result.target_floor)


@EVERY_ATTACK
def test_the_gradient_of_every_similarity_is_finite_at_a_perfect_match(
    similarity: str, penalty: str, box: Box, dtype: torch.dtype, small_vae: Any
) -> None:
    del penalty
    vae, (x, _) = small_vae(box, dtype), pairs_of(3, dtype)
    leaf = x.clone().requires_grad_(True)
    noise = noise_set((2,), draws=4, items=range(3), seed=0, check="test", like=x)
    value = SIMILARITIES[similarity](vae.encode(leaf), vae.encode(x), noise)
    assert (value == 0).all()
    assert torch.autograd.grad(value.sum(), leaf)[0].isfinite().all()


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_no_point_that_the_search_tried_is_better_than_what_it_returns(similarity: str, small_vae: Any) -> None:
    # Several published attacks return the last iterate instead of the best.
    x, x_t = pairs_of(1)
    tried: list[Tensor] = []

    class Watched(small_vae):  # type: ignore[misc]
        def encode(self, points: Tensor) -> DiagonalGaussian:
            tried.append(points.detach().clone())
            return super().encode(points)

    found = attack(Watched(), x, x_t, lambdas=[0.2], similarity=similarity, max_evaluations=2 * SHORT).sweep
    points = torch.cat(tried)
    assert len(points) > 10
    assert ((points >= 0) & (points <= 1)).all()
    vae = small_vae()
    noise = noise_set((2,), draws=16, items=[0], seed=0, check="attack.latent", like=x)
    data = SIMILARITIES[similarity](vae.encode(points), vae.encode(x_t).rows(torch.zeros(len(points)).long()), noise)
    objective = data + 0.2 * torch.linalg.vector_norm((points - x).flatten(1), dim=1)
    assert float(found.objective) <= float(objective.min()) + 1e-8


# Similarities and penalties by hand


def test_similarities_are_their_formulas_on_one_latent() -> None:
    q = DiagonalGaussian(torch.tensor([[1.0]]), torch.tensor([[math.log(2.0)]]))  # N(1, 2^2)
    target = DiagonalGaussian(torch.tensor([[0.0]]), torch.tensor([[0.0]]))  # N(0, 1)
    noise = torch.tensor([[[1.0]], [[-1.0]], [[-3.0]]])  # |1 + noise| = 2, 0, 2
    expected = {
        "kl": 2 - math.log(2),  # (4 - 1 - log 4 + 1) / 2
        "reverse-kl": math.log(2) - 0.25,  # (1/4 - 1 + log 4 + 1/4) / 2
        "symmetric-kl": 1.75,
        "mean": 1.0,
        "sample": 4 / 3,
        "wasserstein": math.sqrt(2),
    }
    assert set(expected) == set(SIMILARITIES)
    for name, value in expected.items():
        assert float(SIMILARITIES[name](q, target, noise)) == pytest.approx(value, rel=1e-6), name


def test_similarities_take_norms_over_all_latents_of_an_item_and_never_over_items() -> None:
    q = DiagonalGaussian(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.zeros(2, 2))
    target = DiagonalGaussian(torch.zeros(2, 2), torch.zeros(2, 2))
    noise = torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(0))
    for name in ("mean", "sample", "wasserstein"):
        assert SIMILARITIES[name](q, target, noise).tolist() == pytest.approx([5.0, 1.0], rel=1e-5)
    assert SIMILARITIES["kl"](q, target, noise).tolist() == [12.5, 0.5]


def test_the_penalty_is_the_norm_or_its_square_and_which_is_recorded(small_vae: Any) -> None:
    x, x_t = pairs_of(2)
    for penalty, power in (("l2", 1), ("l2sq", 2)):
        found = attack(small_vae(), x, x_t, penalty=penalty, lambdas=[0.3], max_evaluations=SHORT).sweep
        assert found.penalty == penalty
        assert (found.norm > 0.01).all()
        torch.testing.assert_close(found.objective, found.data_term + 0.3 * found.norm**power)


def test_lambdas_are_50_from_2_to_the_minus_20_to_2_to_the_20_in_even_ratios() -> None:
    values = np.array(geometric_lambdas(50))
    assert (len(values), values[0], values[-1]) == (50, 2.0**-20, 2.0**20)
    np.testing.assert_allclose(values[1:] / values[:-1], 2 ** (40 / 49), rtol=1e-12)
    assert geometric_lambdas(1) == (1.0,)
    assert geometric_lambdas(3) == (2.0**-20, 1.0, 2.0**20)


def test_the_chosen_lambda_is_the_largest_data_term_below_the_mean() -> None:
    data_term = torch.tensor(
        [
            [0.0, 1.0, 2.0, 9.0],  # mean 3: the third
            [9.0, 2.0, 1.0, 0.0],  # in whatever order
            [0.0, 4.0, 4.0, 12.0],  # a tie below the mean 5: the first
            [0.0, 2.0, 4.0, 2.0],  # equal to the mean is not below it
        ]
    )
    assert just_better_than_mean(data_term).tolist() == [2, 1, 1, 0]


def test_with_equal_data_terms_the_chosen_lambda_is_the_first() -> None:
    assert just_better_than_mean(torch.full((2, 5), 0.1)).tolist() == [0, 0]
    assert just_better_than_mean(torch.zeros(1, 1)).tolist() == [0]


# The distortion curve and the summary


def result_of(norm: list[float], error: list[float], *, gap: float, source: float, floor: float) -> AttackResult:
    """A result of one pair with the given curve; everything that the curve does not need is zero."""
    count = len(norm)
    nothing, blank = torch.zeros(1, count), torch.zeros(1, count, 1)
    found = Sweep(
        lambdas=torch.ones(count),
        penalty="l2",
        distortion=blank,
        adversarial=blank,
        data_term=torch.arange(count).float()[None],
        norm=torch.tensor([norm]),
        status=torch.zeros(1, count).long(),
        evaluations=nothing.long(),
        further=nothing > 0,
        recent=nothing,
        followed=torch.zeros(1) > 0,
        zero_data_term=torch.zeros(1),
        interrupted=False,
    )
    one = torch.zeros(1, 1)
    return AttackResult(
        objective=Objective("latent"),
        seed=0,
        sweep=found,
        signs=Signs(torch.zeros(len(Sign), 1), torch.zeros(1) > 0),
        source=one,
        source_reconstruction=one,
        target=one,
        target_reconstruction=one,
        reconstruction=blank,
        fresh_data_term=None,
        target_nll=nothing,
        target_error=torch.tensor([error]),
        own_error=nothing,
        source_nll=torch.zeros(1),
        target_floor=torch.tensor([floor]),
        source_error=torch.tensor([source]),
        gap=torch.tensor([gap]),
    )


@pytest.mark.parametrize(
    ("norm", "error", "area"),
    [
        # gap 4, source error 10, floor 2: the straight line from (0, 1) to (1, 0) has area 1/2
        ([], [], 0.5),
        ([2.0], [6.0], 0.5),
        ([2.0], [2.0], 0.25),  # (0.5, 0)
        ([3.0, 1.0], [4.0, 10.0], 0.25 + 0.3125 + 0.03125),  # in any order: (0.25, 1), (0.75, 0.25)
        ([0.0, 0.0], [10.0, 10.0], 0.5),  # nothing moved
        ([4e-9], [2.0], 0.0),  # any touch turns it
        ([4.0], [10.0], 1.0),  # it yields to nothing but the target
        ([6.0, 2.0], [9.0, 2.0], 0.25),  # a point beyond d = x_t - x is left out
        ([4.0], [2.0], 0.5),
    ],
)
def test_the_area_under_the_curve_by_hand(norm: list[float], error: list[float], area: float) -> None:
    result = result_of(norm, error, gap=4.0, source=10.0, floor=2.0)
    assert float(result.curve_area) == pytest.approx(area, rel=1e-6, abs=1e-8)


def test_a_blurred_decoder_has_the_same_area_as_a_sharp_one() -> None:
    sharp = result_of([1.0, 2.0], [8.0, 4.0], gap=4.0, source=10.0, floor=2.0)
    blurred = result_of([1.0, 2.0], [9.0, 7.0], gap=4.0, source=10.0, floor=6.0)  # errors halfway to 10
    assert float(sharp.curve_area) == pytest.approx(float(blurred.curve_area), rel=1e-6)


def test_there_is_no_area_where_the_source_is_as_near_the_target_as_its_own_reconstruction() -> None:
    assert math.isnan(float(result_of([2.0], [3.0], gap=4.0, source=2.0, floor=2.0).curve_area))


def test_the_summary_reads_delta_over_lambda_and_the_rest_at_the_chosen_lambda() -> None:
    metrics = summarise(result_of([3.0, 2.0, 2.5], [2.0, 3.0, 7.0], gap=4.0, source=10.0, floor=2.0))
    # data terms 0, 1, 2: the largest below their mean is the first; objectives at lambda = 1: 3, 3, 4.5
    assert metrics["attack.latent.delta.median"].value == 3.5
    assert metrics["attack.latent.delta.mean"].value == 3.5
    assert metrics["attack.latent.data_term.median"].value == 0.0
    assert metrics["attack.latent.distortion.median"].value == 3.0
    assert metrics["attack.latent.target_error.median"].value == 2.0
    assert metrics["attack.latent.delta.median"].unit == "nats"


def test_reconstruction_errors_are_distances_to_reconstructions(small_vae: Any) -> None:
    vae, (x, x_t) = small_vae(), pairs_of(2)
    result = attack(vae, x, x_t, lambdas=[0.01, 1.0], max_evaluations=SHORT)

    def rec(points: Tensor) -> Tensor:
        return vae.decode(vae.encode(points).mean).mean

    for i in range(2):
        assert float(result.gap[i]) == pytest.approx(float((x_t[i] - x[i]).norm()))
        assert float(result.target_floor[i]) == pytest.approx(float((x_t[i] - rec(x_t[i : i + 1])[0]).norm()))
        assert float(result.source_error[i]) == pytest.approx(float((x_t[i] - rec(x[i : i + 1])[0]).norm()))
        adversarial = result.sweep.adversarial[i]
        torch.testing.assert_close(result.target_error[i], (x_t[i] - rec(adversarial)).flatten(1).norm(dim=1))
        torch.testing.assert_close(result.own_error[i], (adversarial - rec(adversarial)).flatten(1).norm(dim=1))


def test_the_targets_likelihood_is_judged_on_noise_that_the_search_never_saw(small_vae: Any) -> None:
    vae, (x, x_t) = small_vae(), pairs_of(2)
    result = attack(vae, x, x_t, lambdas=[0.01], similarity="sample", seed=4, max_evaluations=SHORT)
    seen, fresh = (
        noise_set((2,), draws=16, items=range(2), seed=4, check=check, like=x)
        for check in ("attack.latent", "attack.latent.fresh")
    )
    assert not (seen == fresh).any()
    q = vae.encode(result.sweep.adversarial[:, 0])
    by_draw = torch.stack([-vae.decode(z).log_prob(x_t) for z in q.sample(fresh)])
    torch.testing.assert_close(result.target_nll[:, 0], by_draw.mean(0), rtol=1e-12, atol=0)


# Draws, batches, order, interruption


def assert_same_answers(a: AttackResult, b: AttackResult, *, rtol: float) -> None:
    torch.testing.assert_close(a.sweep.objective, b.sweep.objective, rtol=rtol, atol=rtol * 1e-2)
    torch.testing.assert_close(a.target_nll, b.target_nll, rtol=0.01, atol=0.01)
    assert torch.equal(a.sweep.zero_data_term.isfinite(), b.sweep.zero_data_term.isfinite())


LAMBDAS = [0.02, 0.2, 0.5]
SHORT = 60  # evaluations, where it is all one how far a search gets


def test_the_same_attack_gives_the_same_bits_so_its_noise_is_fixed(small_vae: Any) -> None:
    # FabianBarrett/Lipschitz_VAEs draws anew on every call, so the line search sees noise.
    x, x_t = pairs_of(2)
    vae = small_vae()
    given: dict[str, Any] = {"similarity": "sample", "lambdas": [0.2], "max_evaluations": SHORT}
    first, second = (attack(vae, x, x_t, **given) for _ in range(2))
    assert torch.equal(first.sweep.distortion, second.sweep.distortion)
    assert torch.equal(first.sweep.objective, second.sweep.objective)
    assert torch.equal(first.target_nll, second.target_nll)
    other = attack(vae, x, x_t, **given, seed=1)
    assert not torch.equal(first.sweep.objective, other.sweep.objective)


def test_the_global_random_state_neither_matters_nor_changes(small_vae: Any) -> None:
    vae, (x, x_t) = small_vae(), pairs_of(1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    given: dict[str, Any] = {"similarity": "sample", "lambdas": [0.5], "max_evaluations": SHORT}
    first = attack(vae, x, x_t, **given)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = attack(vae, x, x_t, **given)
    assert torch.equal(first.sweep.objective, second.sweep.objective)


# The distances of `sample` have kinks, at which a search turns rounding into more than rounding.
SMOOTH_AND_NOT = pytest.mark.parametrize(("similarity", "rtol"), [("kl", 1e-6), ("sample", 1e-3)])


@SMOOTH_AND_NOT
def test_the_batch_size_changes_values_by_rounding_only(similarity: str, rtol: float, small_vae: Any) -> None:
    x, x_t = pairs_of(2)
    results = [
        attack(
            small_vae(), x, x_t, similarity=similarity, lambdas=LAMBDAS[1:], max_evaluations=2 * SHORT, batch_size=size
        )
        for size in (None, 3)
    ]
    assert_same_answers(*results, rtol=rtol)


@SMOOTH_AND_NOT
def test_a_pairs_answer_depends_neither_on_the_other_pairs_nor_on_their_order(
    similarity: str, rtol: float, small_vae: Any
) -> None:
    # Of ChethanKodase/alma: attacked images rescaled by the minimum and maximum of their batch.
    x, x_t = pairs_of(3)
    items, order = [10, 11, 12], [2, 0, 1]
    vae = small_vae()

    def run(rows: list[int]) -> AttackResult:
        keys = [items[k] for k in rows]
        given: dict[str, Any] = {"similarity": similarity, "lambdas": LAMBDAS[1:], "max_evaluations": 2 * SHORT}
        return attack(vae, x[rows], x_t[rows], items=keys, **given)

    together, reordered, alone = run([0, 1, 2]), run(order), run([1])
    for other, rows in ((reordered, order), (alone, [1])):
        torch.testing.assert_close(other.sweep.objective, together.sweep.objective[rows], rtol=rtol, atol=1e-8)
        torch.testing.assert_close(other.target_nll, together.target_nll[rows], rtol=0.01, atol=0.01)


MODES = ("latent", "output", "damage", "untargeted", "latent-side", "worst", "margin")


@pytest.mark.parametrize("mode", MODES)
def test_what_is_left_of_a_stage_never_rises(mode: str, small_vae: Any) -> None:
    vae, (x, x_t) = small_vae(), pairs_of(3)
    asked: list[Progress] = []

    def go_on(progress: Progress) -> bool:
        asked.append(progress)
        return True

    if mode == "margin":
        margin(vae, x, 0.5, parts=["empirical"], draws=50, go_on=go_on)
    elif mode in ("latent", "output"):
        attack(vae, x, x_t, mode, lambdas=9, max_evaluations=60, go_on=go_on)
    else:
        target = x_t if mode == "worst" else None
        capped_attack(vae, x, mode, target, caps=[0.1, 0.4], max_evaluations=40, go_on=go_on)
    assert len({progress.stage for progress in asked}) > 1
    for before, after in pairwise(asked):
        assert 0 <= after.running <= after.problems
        assert after.stage != before.stage or after.running <= before.running, (before, after)


def at_once(max_evaluations: int) -> int:
    """Most problems of one pair that are searched at once, of all points that are explored from."""
    return together(LAMBDAS, Effort(Stopping.for_dtype(torch.float64, max_evaluations)))


@pytest.mark.parametrize("allowed", [0, 1, 7, 40])
def test_an_interrupted_attack_returns_the_best_it_has_and_says_so(allowed: int, small_vae: Any) -> None:
    vae, (x, x_t) = small_vae(), pairs_of(3)
    asked: list[Progress] = []

    def go_on(progress: Progress) -> bool:
        asked.append(progress)
        return len(asked) <= allowed

    result = attack(vae, x, x_t, lambdas=LAMBDAS, go_on=go_on)
    assert len(asked) == allowed + 1  # asked no more after the first no
    assert 0 < asked[0].running <= asked[0].problems <= 3 * at_once(600)
    assert asked[0].stage
    assert result.interrupted
    found = result.sweep
    assert torch.equal(found.adversarial, x[:, None] + found.distortion)
    assert ((found.adversarial >= 0) & (found.adversarial <= 1)).all()
    assert (found.objective <= found.zero_data_term[:, None]).all()
    gap = torch.linalg.vector_norm((x_t - x).flatten(1), dim=1)
    assert (found.objective <= found.lambdas * gap[:, None] + 1e-12).all()  # d = x_t - x matches
    assert result.target_nll.isfinite().all()


def test_an_interrupted_attack_is_never_better_than_a_whole_one_nor_worse_than_none(small_vae: Any) -> None:
    x, x_t = pairs_of(3)
    asked: list[Progress] = []
    whole = attack(small_vae(), x, x_t, lambdas=LAMBDAS, go_on=lambda progress: asked.append(progress) or True)
    assert not whole.interrupted
    for allowed in (0, 3, 10, 30, len(asked) // 2, len(asked) - 1):
        count = iter(range(allowed))
        found = attack(small_vae(), x, x_t, lambdas=LAMBDAS, go_on=lambda _, c=count: next(c, None) is not None)
        assert found.interrupted
        assert (whole.sweep.objective <= found.sweep.objective + 1e-12).all()
        assert (found.sweep.objective <= whole.sweep.zero_data_term[:, None] + 1e-12).all()


def test_a_search_that_finds_nothing_better_than_d_0_is_not_called_interrupted() -> None:
    x, x_t = pairs_of(1)

    def islands(points: Tensor, _: Tensor) -> Tensor:
        """Finite at the source, at the target (where it is worse), and nowhere else."""
        at_x, at_target = ((points == end).flatten(1).all(1) for end in (x, x_t))
        slope = points.flatten(1).sum(1)
        return torch.where(at_x, slope, torch.where(at_target, slope + 50, slope * torch.nan))

    found = sweep(
        islands,
        x,
        x_t,
        (0.0, 1.0),
        torch.tensor([0.01, 0.1], dtype=x.dtype),
        effort=Effort(Stopping.for_dtype(x.dtype, 50)),
        rows=RowBatches(8),
    )
    assert (found.distortion == 0).all()
    assert not found.interrupted
    assert (found.status != int(Status.STOPPED)).all()


def test_a_notebook_may_stand_under_no_grad_and_inputs_stay_as_they_were(small_vae: Any) -> None:
    x, x_t = pairs_of(2)
    copies = x.clone(), x_t.clone()
    with torch.no_grad():
        under = attack(small_vae(), x, x_t, lambdas=[0.5], max_evaluations=SHORT)
    plain = attack(small_vae(), x, x_t, lambdas=[0.5], max_evaluations=SHORT)
    assert torch.equal(under.sweep.objective, plain.sweep.objective)
    assert torch.equal(x, copies[0])
    assert torch.equal(x_t, copies[1])
    for tensor in (plain.sweep.adversarial, plain.sweep.objective, plain.reconstruction, plain.target_nll):
        assert not tensor.requires_grad


def test_parameters_that_require_gradients_get_none(small_vae: Any) -> None:
    x, x_t = pairs_of(1)
    vae = small_vae().requires_grad_(True)
    result = attack(vae, x, x_t, lambdas=[0.1], max_evaluations=SHORT)
    assert all(weights.grad is None for weights in vae.parameters())
    assert not result.reconstruction.requires_grad


# Out of memory


def hungry(most: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def function(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        if len(a) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return a + b, a * b

    return function


@pytest.mark.parametrize("most", [1, 2, 3, 10])
def test_out_of_memory_halves_the_batch_and_goes_on_with_every_row_once(most: int) -> None:
    rows = RowBatches(8)
    a, b = torch.arange(21.0), torch.arange(21.0) + 5
    total, product_ = rows.map(hungry(most), a, b)
    assert torch.equal(total, a + b)
    assert torch.equal(product_, a * b)
    assert rows.size <= most
    assert rows.size == {1: 1, 2: 2, 3: 2, 10: 8}[most]


def test_out_of_memory_on_a_single_row_is_an_error_that_says_so() -> None:
    with pytest.raises(VaeauditError, match=r"one row .*memory") as raised:
        RowBatches(4).map(hungry(0), torch.ones(3), torch.ones(3))
    assert raised.value.exit_code == 3


def test_other_errors_of_the_model_are_not_taken_for_memory() -> None:
    def faulty(_: Tensor) -> tuple[Tensor]:
        raise ValueError("of the model")

    with pytest.raises(ValueError, match="of the model"):
        RowBatches(4).map(faulty, torch.ones(3))


def test_running_out_of_memory_leaves_an_attacks_answers_unchanged(small_vae: Any) -> None:
    class Hungry(small_vae):  # type: ignore[misc]
        refused = 0

        def encode(self, points: Tensor) -> DiagonalGaussian:
            if points.shape[0] > 4:
                Hungry.refused += 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().encode(points)

    x, x_t = pairs_of(3)
    plenty = attack(small_vae(), x, x_t, lambdas=LAMBDAS, max_evaluations=SHORT)
    scarce = attack(Hungry(), x, x_t, lambdas=LAMBDAS, max_evaluations=SHORT)
    assert 1 <= Hungry.refused <= math.ceil(math.log2(3 * at_once(SHORT) / 4))  # what was learnt is kept
    assert_same_answers(plenty, scarce, rtol=1e-6)


@pytest.mark.parametrize(("shape", "device"), [((1, 28, 28), "cpu"), ((3, 512, 512), "cpu"), ((2000,), "cuda")])
def test_an_automatic_batch_has_at_least_one_row_and_more_on_a_gpu(shape: tuple[int, ...], device: str) -> None:
    size = RowBatches.automatic(shape, torch.device(device)).size
    assert size >= 1
    assert RowBatches.automatic(shape, torch.device("cuda")).size >= size


# Bad input


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"mode": "latnet"}, ConfigError, "mode 'latnet'.*did you mean 'latent'"),
        ({"similarity": "KL"}, ConfigError, "similarity 'KL'.*there are kl"),
        ({"penalty": "l1"}, ConfigError, "penalty 'l1'.*l2, l2sq"),
        ({"lambdas": 0}, ConfigError, "takes 1 to 10,000 values of lambda, but 0"),
        ({"lambdas": 10**12}, ConfigError, "takes 1 to 10,000 values of lambda, but 1000000000000"),
        ({"lambdas": []}, ConfigError, "lambda must be positive"),
        ({"lambdas": [1.0, -2.0]}, ConfigError, "positive and finite.*-2"),
        ({"lambdas": [0.0]}, ConfigError, "positive"),
        ({"lambdas": [math.inf]}, ConfigError, "finite"),
        ({"lambdas": [math.nan]}, ConfigError, "finite"),
        ({"lambdas": [1e-400]}, ConfigError, "positive and finite in float64"),
        ({"max_evaluations": 0}, ConfigError, "at least one evaluation of a problem.*0"),
        ({"batch_size": 0}, ConfigError, "batch size.*at least 1.*0"),
        ({"batch_size": -3}, ConfigError, "batch size.*-3"),
        ({"items": [4]}, DataError, "2 sources.*item number.*1 came"),
        ({"x": torch.zeros(2, 6).double()}, DataError, r"\(pairs, 2, 3\).*\(2, 6\)"),
        ({"x_t": torch.zeros(3, 2, 3).double()}, DataError, r"\(2, 2, 3\) and \(3, 2, 3\)"),
        ({"x": torch.zeros(0, 2, 3).double(), "x_t": torch.ones(0, 2, 3).double()}, DataError, "at least one pair"),
        ({"x": torch.full((2, 2, 3), 255.0).double()}, DataError, r"sources.*\[0, 1\].*\[255, 255\].*rescale"),
        ({"x_t": torch.full((2, 2, 3), -0.5).double()}, DataError, r"targets.*range"),
        ({"x": torch.full((2, 2, 3), math.nan).double()}, DataError, "sources.*nan"),
        ({"x": torch.zeros(2, 2, 3).int()}, DataError, "floating-point.*int32"),
        ({"x_t": torch.zeros(2, 2, 3)}, DataError, "one floating-point type.*float64.*float32"),
        ({"data_range": (0.4, 0.6)}, DataError, r"range \[0.4, 0.6\]"),
    ],
)
def test_bad_input_is_an_error_that_says_what_came(
    given: dict[str, Any], error: type[Exception], words: str, small_vae: Any
) -> None:
    x, x_t = pairs_of(2)
    with pytest.raises(error, match=words):
        attack(small_vae(), **{"x": x, "x_t": x_t, "lambdas": 2, **given})


def test_a_pair_of_equal_images_is_an_error_that_names_it(small_vae: Any) -> None:
    x, x_t = pairs_of(3)
    x_t = torch.stack([x_t[0], x[1], x_t[2]])
    with pytest.raises(DataError, match="same image in pair 1"):
        attack(small_vae(), x, x_t, lambdas=2)


def test_a_model_cut_off_from_its_input_gives_the_best_free_candidate(small_vae: Any) -> None:
    class Detached(small_vae):  # type: ignore[misc]
        def encode(self, points: Tensor) -> DiagonalGaussian:
            return super().encode(points.detach())

    x, x_t = pairs_of(1)
    for trainable in (False, True):  # with trainable weights the output has a gradient, but not by the input
        vae = Detached().requires_grad_(trainable)
        found = attack(
            vae, x, x_t, lambdas=2, max_evaluations=SHORT
        ).sweep  # no gradient to follow: the failure signs say so
        gap = torch.linalg.vector_norm((x_t - x).flatten(1), dim=1)[:, None]
        assert (found.objective <= torch.minimum(found.zero_data_term[:, None], found.lambdas * gap) + 1e-12).all()


def test_a_model_that_is_not_finite_at_the_source_gives_an_error_and_no_figures(small_vae: Any) -> None:
    class Broken(small_vae):  # type: ignore[misc]
        def encode(self, points: Tensor) -> DiagonalGaussian:
            q = super().encode(points)
            return DiagonalGaussian(q.mean * torch.nan, q.log_stddev)

    x, x_t = pairs_of(1)
    with pytest.raises(VaeauditError, match="NaN or infinite for 1 of 1 items, item 0"):
        attack(Broken(), x, x_t, lambdas=2)


@pytest.mark.parametrize(
    ("given", "advice"), [(torch.float16, "its adapter$"), (torch.float64, "or try --dtype float64$")]
)
def test_a_posterior_of_another_precision_than_its_input_is_refused_in_one_sentence(
    given: torch.dtype, advice: str, small_vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, x_t = pairs_of(1, torch.float32)
    vae, told = small_vae(dtype=torch.float32), f"precision of the input, float32, but the model gives {given}"
    own_encode, own_decode = vae.encode, vae.decode

    def encode(points: Tensor) -> DiagonalGaussian:
        q = own_encode(points)
        return DiagonalGaussian(q.mean.to(given), q.log_stddev.to(given))

    def decode(z: Tensor) -> BernoulliLogits:
        return BernoulliLogits(own_decode(z.float()).logits.to(z.dtype))

    monkeypatch.setattr(vae, "encode", encode)
    monkeypatch.setattr(vae, "decode", decode)
    for refused in (
        lambda: attack(vae, x, x_t, lambdas=2, max_evaluations=SHORT),
        lambda: margin(vae, x, 1.0, draws=200, parts=("empirical",)),
    ):
        with pytest.raises(UnsupportedError, match=f"{told.replace('torch.', '')}.*{advice}"):
            refused()


@pytest.mark.parametrize("box", [(0.1, 0.7), (-2.1179, 2.64)])
def test_at_the_edge_of_an_uneven_range_rounding_of_x_plus_d_does_not_leave_it(box: Box, linear_gaussian: Any) -> None:
    assert box is not None
    low, high = torch.tensor(box, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    x, x_t = low + (high - low) * torch.rand(2, 1, 300, generator=generator)
    x_t = torch.where(x_t < x, low, high)  # every element is pulled to an edge
    assert ((x + (x_t - x) < low) | (x + (x_t - x) > high)).any()  # where plain arithmetic would step over it
    numbers = {"A": np.eye(300).tolist(), "b": [0.0] * 300, "sigma": [1.0] * 300, "tau": 1.0, "c": [0.0] * 300}
    vae = linear_gaussian({**numbers, "B": numbers["A"]}, torch.float32, (float(low), float(high)))
    found = attack(vae, x, x_t, lambdas=[2.0**-20, 0.1]).sweep
    assert torch.equal(found.adversarial, x[:, None] + found.distortion)
    assert ((found.adversarial >= low) & (found.adversarial <= high)).all()
    torch.testing.assert_close(found.adversarial[0, 0], x_t[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lam", [0.1, 1.0, 100.0])
def test_a_black_source_is_attacked_as_well_as_any(lam: float, linear_gaussian: Any) -> None:
    # With x = 0 every step towards d = 0 ends in the corner of the box, exactly on the kink of `l2`.
    numbers = {"A": [[3.0, 1.0, 0.5]], "b": [0.0], "sigma": [0.05], "B": [[1.0]] * 3, "c": [0.0] * 3, "tau": 1.0}
    vae = linear_gaussian(numbers, box=(0.0, 1.0))
    x, x_t = torch.zeros(1, 3).double(), torch.tensor([[0.5, 0.0, 0.9]]).double()
    found = attack(vae, x, x_t, lambdas=[lam])
    value, _ = boxed_optimum(vae, x[0], x_t[0], lam, "l2")
    assert float(found.sweep.objective) == pytest.approx(value, rel=1e-7)
    assert not found.interrupted
