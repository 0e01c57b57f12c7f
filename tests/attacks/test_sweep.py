"""The sweep as a whole: what holds for every pair and lambda, whatever the search did."""

from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

import vaeaudit.attacks.sweep as module
from vaeaudit.attacks import following
from vaeaudit.attacks.attacked import PENALTIES, Sweep, penalise
from vaeaudit.attacks.left import ENOUGH, unfinished
from vaeaudit.attacks.left import MOST as FURTHEST
from vaeaudit.attacks.objectives import Objective
from vaeaudit.attacks.rungs import rungs
from vaeaudit.attacks.search import Effort, Search, together
from vaeaudit.attacks.similarity import kl_residuals
from vaeaudit.attacks.sweep import geometric_lambdas, sweep
from vaeaudit.attacks.term import Squares, Term
from vaeaudit.checks.attack.measure import attack
from vaeaudit.errors import NonFiniteError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.vae import DiagonalGaussian
from vaeaudit.optim.lbfgsb import Descent, Status, Stopping, minimise
from vaeaudit.progress import Progress, always
from vaeaudit.stats.draws import noise_set

DataTerm = Callable[[Tensor, Tensor], Tensor]
UNIT = (0.0, 1.0)
BATCHES = (1, 7, 500)
# With few lambda down to 2^-20 a search that reaches its limit ends where rounding leads it.
SETTLING = (2.0**-4, 0.3, 2.0, 16.0)


def pairs_of(count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Sources and targets for the small VAE, (count, 2, 3), some elements exactly at the edges of [0, 1]."""
    both = torch.rand(2, 10, 2, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64) * 1.4 - 0.2
    x, x_t = both.clamp(0, 1).to(dtype)
    return x[:count], x_t[:count]


def run(
    data_term: DataTerm,
    x: Tensor,
    x_t: Tensor,
    lambdas: int | tuple[float, ...] = 10,
    *,
    size: int = 500,
    evaluations: int = 300,
    starts: int = 2,
    **more: Any,
) -> Sweep:
    settings = {
        "effort": Effort(Stopping.for_dtype(x.dtype, evaluations), starts),
        "rows": RowBatches(size),
        "box": UNIT,
    } | more
    values = torch.tensor(geometric_lambdas(lambdas) if isinstance(lambdas, int) else lambdas, dtype=x.dtype)
    return sweep(data_term, x, x_t, lambdas=values, **settings)


def term_of(vae: Any, x: Tensor, x_t: Tensor, mode: str = "latent", similarity: str = "kl") -> DataTerm:
    shape = vae.encode(x[:1]).noise_shape
    noise = noise_set(shape, draws=8, items=range(len(x)), seed=0, check="test.sweep", like=x)
    return Objective(mode, similarity).data_term(vae, x, x_t, noise)


def gap_of(x: Tensor, x_t: Tensor) -> Tensor:
    return torch.linalg.vector_norm((x_t - x).flatten(1), dim=1)


# Invariants


MOST = 80  # evaluations of a problem in the sweeps below
FINE = 41  # lambda a factor of 2 apart, between which none is searched
KINDS = ["small latent l2", "small latent l2sq", "small output", "small float32", "bundled"]


@pytest.fixture(scope="module", params=KINDS)
def solved(
    request: pytest.FixtureRequest, small_vae: Any, bundled_model: Any, bundled_images: Tensor
) -> tuple[DataTerm, Tensor, Tensor, Sweep]:
    """A data term with its pairs and what the sweep found."""
    if request.param == "bundled":
        x, x_t, vae = bundled_images[:1], bundled_images[100:101], bundled_model
    else:
        dtype = torch.float32 if "float32" in request.param else torch.float64
        (x, x_t), vae = pairs_of(3, dtype), small_vae(dtype=dtype)
    mode, penalty = "output" if "output" in request.param else "latent", "l2sq" if "l2sq" in request.param else "l2"
    term = term_of(vae, x, x_t, mode)
    floor = 0.0 if mode == "latent" else None
    return term, x, x_t, run(term, x, x_t, FINE, penalty=penalty, floor=floor, evaluations=MOST)


def test_no_objective_is_above_one_of_the_two_candidates_that_are_free(
    solved: tuple[DataTerm, Tensor, Tensor, Sweep],
) -> None:
    term, x, x_t, found = solved
    every = torch.arange(len(x))
    with torch.no_grad():
        zero, reached = term(x, every), term(x_t, every)
    bound = reached[:, None] + found.lambdas * penalise(gap_of(x, x_t), found.penalty)[:, None]
    rounding = 20 * torch.finfo(x.dtype).eps
    assert torch.allclose(found.zero_data_term, zero, rtol=rounding, atol=0)
    assert (found.objective <= found.zero_data_term[:, None]).all()
    assert (found.objective <= bound + rounding * (bound.abs() + 1)).all()


def test_no_solution_is_dominated_by_that_of_another_lambda(solved: tuple[DataTerm, Tensor, Tensor, Sweep]) -> None:
    *_, found = solved
    others = found.data_term[:, None, :] + found.lambdas[:, None] * penalise(found.norm, found.penalty)[:, None, :]
    assert (found.objective[:, :, None] <= others).all()
    # So a larger lambda never has the longer distortion of two that differ, nor the smaller data term.
    rounding = 100 * torch.finfo(found.norm.dtype).eps
    assert (found.norm.diff(dim=1) <= rounding * found.norm[:, :1]).all()


def test_what_is_handed_out_is_what_was_measured(solved: tuple[DataTerm, Tensor, Tensor, Sweep]) -> None:
    term, x, _, found = solved
    assert ((found.adversarial >= 0) & (found.adversarial <= 1)).all()
    assert torch.equal(found.adversarial, x[:, None] + found.distortion)
    pairs, count = found.norm.shape
    with torch.no_grad():
        data = term(found.adversarial.flatten(0, 1), torch.arange(pairs).repeat_interleave(count))
    tight = {"rtol": 100 * torch.finfo(x.dtype).eps, "atol": 100 * torch.finfo(x.dtype).eps}
    torch.testing.assert_close(found.data_term.flatten(), data, **tight)
    torch.testing.assert_close(found.norm, torch.linalg.vector_norm(found.distortion.flatten(2), dim=2), **tight)
    assert torch.equal(found.objective, found.data_term + found.penalty_term)
    assert torch.equal(found.penalty_term, found.lambdas * penalise(found.norm, found.penalty))


def test_statuses_evaluations_and_recent_gains_are_told_for_every_problem(
    solved: tuple[DataTerm, Tensor, Tensor, Sweep],
) -> None:
    *_, found = solved
    assert not found.interrupted
    assert set(found.status.flatten().tolist()) <= {int(Status.CONVERGED), int(Status.STALLED), int(Status.LIMIT)}
    assert (found.evaluations >= 1).all()
    # At d = 0, exploring from two points, a walk, following, refining, and searching on where that was not enough.
    most = 1 + (3 / 4 + 3 / 6) * MOST + 4
    assert (found.evaluations <= most + torch.where(found.further, FURTHEST * MOST, MOST)).all()
    assert (found.recent >= 0).all()
    rounding = 1e-5 * found.zero_data_term.abs()[:, None]
    ended = (found.status == int(Status.CONVERGED)) | (found.status == int(Status.STALLED))
    few = ~ended & (found.evaluations < 100)  # too few to tell of gains to come
    assert torch.equal(found.recent.isinf(), few)
    assert (few | (found.recent <= found.zero_data_term[:, None] - found.objective + rounding)).all()
    limited = found.status == int(Status.LIMIT)
    assert (found.evaluations[limited] >= MOST).all()


SHORT = 20  # evaluations that are too few for some pairs


def test_what_still_falls_at_its_limit_is_searched_on_and_nothing_else(small_vae: Any) -> None:
    (x, x_t), vae = pairs_of(6), small_vae()
    term = term_of(vae, x, x_t)
    told: list[Progress] = []

    short = run(term, x, x_t, FINE, evaluations=SHORT, go_on=lambda one: told.append(one) or True)
    assert short.further.any()
    assert not short.further.any(1).all()  # pairs that were done are left as they are
    assert "searching on, evaluations" in {one.stage for one in told}
    assert [one.done for one in told] == sorted(one.done for one in told)
    limited = short.status == int(Status.LIMIT)
    # What is left to gain of all others is little; only what took all that may be spent can show a sign.
    at_end = short.evaluations >= 1 + 0.9 * FURTHEST * SHORT
    assert not (unfinished(short) & ~at_end).any()
    assert (short.evaluations[limited & ~short.further] <= 1 + (3 / 4 + 3 / 6) * SHORT + 4 + SHORT).all()
    whole = run(term, x, x_t, FINE, evaluations=FURTHEST * SHORT)
    assert not whole.further.any()
    mean, other = (found.objective.mean(1) for found in (short, whole))
    assert ((mean - other).abs() <= 2 * ENOUGH * other).all()


def test_beyond_the_gradient_at_the_source_nothing_is_searched(small_vae: Any) -> None:
    (x, x_t), vae = pairs_of(10), small_vae()
    term = term_of(vae, x, x_t)
    found = run(term, x, x_t, FINE, evaluations=30)
    leaf = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(term(leaf, torch.arange(10)).sum(), leaf)
    blocked = ((x == 0) & (slope > 0)) | ((x == 1) & (slope < 0))
    steep = torch.linalg.vector_norm(slope.masked_fill(blocked, 0).flatten(1), dim=1)
    towards = (found.zero_data_term - term(x_t, torch.arange(10))) / gap_of(x, x_t)
    optimal = found.lambdas >= torch.maximum(steep, towards)[:, None]
    assert optimal.any()
    assert (found.evaluations[optimal] == 1).all()
    assert (found.norm[optimal] == 0).all()
    assert (found.status[optimal] == int(Status.CONVERGED)).all()
    assert (found.norm[found.lambdas < 0.99 * steep[:, None]] > 0).all()


# Few lambda


@pytest.mark.parametrize("values", [(1.0,), geometric_lambdas(2), geometric_lambdas(30), (0.3, 5e-4, 7.0, 7.1)])
def test_neighbours_are_never_more_than_a_factor_of_two_apart(values: tuple[float, ...]) -> None:
    every = np.sort([*values, *rungs(values, 100)])
    ratio = every[1:] / every[:-1]
    assert ratio.max() <= 2.01
    assert ratio.min() > 1.01
    assert every[0] == min(values)
    assert every[-1] >= 2.0**15 * max(values)


def test_a_look_with_few_evaluations_spends_none_between_the_lambda_asked_for(
    bundled_model: Any, bundled_images: Tensor
) -> None:
    x, x_t = bundled_images[2:3], bundled_images[102:103]
    found = run(term_of(bundled_model, x, x_t), x, x_t, (2.0**-8,), evaluations=20)
    # Exploring from two points takes a sixth each, walking a quarter; and it is searched on to four times as many.
    assert int(found.evaluations) <= 1 + 2 * 4 + 5 + 4 * 20


@pytest.mark.parametrize(("starts", "most"), [(1, 50 + 23), (8, 50 + 23), (40, 40 * 6)])
def test_no_more_problems_of_a_pair_are_searched_at_once_than_memory_is_kept_for(
    starts: int, most: int, bundled_model: Any, bundled_images: Tensor
) -> None:
    x, x_t, values = bundled_images[2:3], bundled_images[102:103], geometric_lambdas(50)
    asked: list[Progress] = []
    run(
        term_of(bundled_model, x, x_t), x, x_t, values, evaluations=30, starts=starts,
        go_on=lambda progress: asked.append(progress) or len(asked) < 40,
    )  # fmt: skip
    assert together(values, Effort(Stopping.for_dtype(x.dtype, 30), starts)) == most
    assert max(one.problems for one in asked if "evaluations" not in one.stage) <= most


def test_between_the_lambda_of_a_fine_grid_none_is_searched() -> None:
    for count in (FINE, 50):
        values = geometric_lambdas(count)
        assert min(rungs(values, 100)) > max(values)


def test_a_lambda_asked_for_alone_is_searched_as_well_as_among_many(bundled_model: Any, bundled_images: Tensor) -> None:
    x, x_t = bundled_images[2:3], bundled_images[102:103]
    term, lam = term_of(bundled_model, x, x_t), 2.0**-8
    alone = run(term, x, x_t, (lam,), evaluations=MOST)
    among = run(term, x, x_t, FINE, evaluations=MOST)
    assert alone.objective.shape == (1, 1)
    assert float(alone.objective) <= 1.01 * float(among.objective[0, geometric_lambdas(FINE).index(lam)])


def test_few_lambda_keep_what_holds_for_many(small_vae: Any) -> None:
    (x, x_t), vae = pairs_of(3), small_vae()
    term, asked = term_of(vae, x, x_t), (2.0**-2, 2.0**-14, 3.0)
    searched = 0

    def counted(points: Tensor, pair: Tensor) -> Tensor:
        nonlocal searched
        searched += len(points) if torch.is_grad_enabled() else 0
        return term(points, pair)

    found = run(counted, x, x_t, asked, evaluations=SHORT)
    for name in ("objective", "status", "evaluations", "further", "recent"):
        assert getattr(found, name).shape == (3, 3), name
    assert found.lambdas.tolist() == list(asked)
    assert torch.equal(found.adversarial, x[:, None] + found.distortion)
    assert ((found.adversarial >= 0) & (found.adversarial <= 1)).all()
    others = found.data_term[:, None, :] + found.lambdas[:, None] * found.norm[:, None, :]
    assert (found.objective[:, :, None] <= others).all()
    # Every row of the search is told, and one at d = 0 for each lambda asked for.
    assert int(found.evaluations.sum()) - found.evaluations.numel() == searched - len(x)


# Bits, batches, groups


@pytest.mark.parametrize(("mode", "similarity"), [("latent", "kl"), ("latent", "sample"), ("output", "kl")])
def test_same_seed_and_settings_give_the_same_bits(mode: str, similarity: str, small_vae: Any) -> None:
    x, x_t = pairs_of(3)
    settings: dict[str, Any] = {"similarity": similarity, "lambdas": 5, "max_evaluations": 30}
    first, second = (attack(small_vae(), x, x_t, mode, **settings) for _ in range(2))
    for name in ("distortion", "data_term", "objective", "status", "evaluations", "recent"):
        assert torch.equal(getattr(first.sweep, name), getattr(second.sweep, name)), name
    assert torch.equal(first.target_nll, second.target_nll)
    assert torch.equal(first.signs.measured, second.signs.measured)


def test_draws_are_the_same_for_every_batch_size(small_vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (x, x_t), drawn = pairs_of(1), dict[int, list[Tensor]]()
    for size in BATCHES:
        drawn[size] = []

        def kept(*shape: Any, _to: list[Tensor] = drawn[size], **more: Any) -> Tensor:
            _to.append(noise_set(*shape, **more))
            return _to[-1]

        monkeypatch.setattr("vaeaudit.checks.attack.measure.noise_set", kept)
        attack(small_vae(), x, x_t, "output", lambdas=[1.0], max_evaluations=2, batch_size=size)
    assert drawn[1]
    for size in BATCHES[1:]:
        assert all(torch.equal(a, b) for a, b in zip(drawn[1], drawn[size], strict=True))


@pytest.mark.parametrize("mode", ["latent", "output"])
def test_objectives_of_all_batch_sizes_agree_where_the_search_may_end(
    mode: str, small_vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaeaudit.attacks.search.rungs", lambda *_: [])  # a row at a time is dear
    x, x_t = pairs_of(1)
    term, floor = term_of(small_vae(), x, x_t, mode), 0.0 if mode == "latent" else None
    found = [run(term, x, x_t, SETTLING[1:], size=size, floor=floor) for size in BATCHES]
    for other in found[1:]:
        relative = (other.objective / found[0].objective - 1).abs()
        assert (relative <= 1e-4).double().mean() >= 0.99


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=str)
def in_units(request: pytest.FixtureRequest, small_vae: Any) -> tuple[torch.dtype, Callable[[float], Sweep], Sweep]:
    """A sweep in any units, which the encoder undoes and of which no box is known, and that in the model's own."""
    (x, x_t), vae = pairs_of(2, request.param), small_vae(dtype=request.param)
    term, lambdas = term_of(vae, x, x_t), torch.tensor(SETTLING) * (gap_of(x, x_t).mean() / 2)

    def in_units(unit: float) -> Sweep:
        values = tuple((lambdas / unit).tolist())
        return run(lambda points, item: term(points / unit, item), x * unit, x_t * unit, values, box=None)

    return request.param, in_units, in_units(1.0)


@pytest.mark.parametrize("power", [-6, 6])
def test_the_units_of_the_input_change_nothing(
    power: int, in_units: tuple[torch.dtype, Callable[[float], Sweep], Sweep]
) -> None:
    unit, (dtype, run_in, plain) = 10.0**power, in_units
    scaled = run_in(unit)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-5
    torch.testing.assert_close(scaled.objective, plain.objective, rtol=tolerance, atol=0)
    torch.testing.assert_close(scaled.norm / unit, plain.norm, rtol=30 * tolerance, atol=1e-6)
    assert (scaled.norm > 0).double().mean() > 0.5


@pytest.mark.parametrize("penalty", PENALTIES)
def test_groups_of_pairs_give_what_all_together_give(
    penalty: str, small_vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, x_t = pairs_of(3)
    term = term_of(small_vae(), x, x_t)
    whole = run(term, x, x_t, SETTLING, evaluations=60, penalty=penalty)
    groups: list[int] = []

    class Counted(Search):
        def run(self) -> None:
            groups.append(len(self.x))
            super().run()

    monkeypatch.setattr(module, "Search", Counted)
    searched = together(SETTLING, Effort(Stopping.for_dtype(x.dtype, 60), 2))
    monkeypatch.setattr(module, "_MEMORY", 2 * searched * 6 * 8 * module._VECTORS)
    apart = run(term, x, x_t, SETTLING, evaluations=60, penalty=penalty)
    assert groups == [2, 1]
    torch.testing.assert_close(apart.objective, whole.objective, rtol=1e-4, atol=0)
    torch.testing.assert_close(apart.zero_data_term, whole.zero_data_term, rtol=1e-12, atol=0)
    for name in ("distortion", "adversarial", "status", "evaluations", "recent", "norm"):
        assert getattr(apart, name).shape == getattr(whole, name).shape
    monkeypatch.setattr(module, "_MEMORY", 1)  # not even one pair: one at a time
    groups.clear()
    run(term, x[:2], x_t[:2], 3, penalty=penalty, evaluations=4)
    assert groups == [1, 1]


# Against other minimisers and the oracle


@pytest.mark.parametrize(("mode", "penalty"), [("latent", "l2"), ("latent", "l2sq"), ("output", "l2")])
def test_no_problem_is_solved_worse_than_by_scipy(mode: str, penalty: str, small_vae: Any) -> None:
    (x, x_t), vae = pairs_of(2), small_vae()
    term = term_of(vae, x, x_t, mode)
    found = run(term, x, x_t, 3, penalty=penalty, floor=0.0 if mode == "latent" else None, evaluations=100)
    start = np.random.default_rng(0).normal(size=6) * 1e-2
    for i, (j, lam) in product(range(2), enumerate(found.lambdas.tolist())):

        def one(d: np.ndarray, i: int = i, lam: float = lam) -> tuple[float, np.ndarray]:
            leaf = torch.from_numpy(d).requires_grad_(True)
            norm = torch.linalg.vector_norm(leaf)
            value = term(x[i : i + 1] + leaf.reshape(1, 2, 3), torch.tensor([i])).sum()
            value = value + lam * (norm if penalty == "l2" else norm.square())
            value.backward()
            assert leaf.grad is not None
            return float(value.detach()), leaf.grad.numpy().copy()

        low, high = -x[i].flatten().numpy(), 1 - x[i].flatten().numpy()
        scipy = optimize.minimize(
            one,
            start.clip(low, high),
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(low, high, strict=True)),
            options={"maxcor": 10, "ftol": 2.2e-9, "maxiter": 200},
        )
        objective = float(found.objective[i, j])
        assert objective <= scipy.fun + 1e-3 * abs(scipy.fun), (i, lam)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_sampled_output_attack_is_within_its_standard_error_of_the_oracle(
    penalty: str, oracle: dict[str, Any], linear_gaussian: Any
) -> None:
    norm = {"l2": "l2", "l2sq": "squared"}[penalty]
    cases = [case for case in oracle["attacks"]["cases"] if case["kind"] == "output" and case["norm"] == norm]
    assert cases
    for case in cases:
        numbers = oracle["models"][case["model"]]
        vae = linear_gaussian(numbers)
        x, x_t = (torch.tensor([numbers[name]], dtype=torch.float64) for name in ("x", "xt"))
        box = tuple(case["box"]) if case["box"] else None
        given: dict[str, Any] = {"lambdas": case["lam"], "penalty": penalty, "data_range": box, "max_evaluations": 100}
        result = attack(vae, x, x_t, "output", **given)
        found, exact = result.sweep, torch.tensor([case["objective"]], dtype=torch.float64)
        q = vae.encode(found.adversarial[0])
        # In closed form: what an expectation over all draws would give at the same points.
        spread = (q.stddev[:, None] * vae.B / vae.log_tau.exp()).square().sum((1, 2))
        closed = -vae.decode(q.mean).log_prob(x_t) + 0.5 * spread + q.kl(vae.prior) + found.penalty_term[0]
        draws = noise_set(q.noise_shape, draws=4000, items=[0], seed=0, check="test.output", like=x)
        z = q.mean[:, None] + q.stddev[:, None] * draws[:, 0]
        each = torch.stack([-vae.decode(of).log_prob(x_t) for of in z])  # (L, draws)
        error = each.std(1) / 16**0.5  # of a mean over the attack's 16 draws
        assert (closed >= exact[0] - 1e-6).all()  # the oracle's is the optimum
        assert ((found.objective[0] - exact[0]).abs() <= 4 * error).all()
        assert ((closed - exact[0]) <= 4 * error).all()
        # On the attack's own draws the oracle's optimum is one more candidate.
        own = noise_set(q.noise_shape, draws=16, items=[0], seed=0, check="attack.output", like=x)
        d = torch.tensor(case["d"], dtype=torch.float64)
        term = Objective("output").data_term(vae, x, x_t, own)
        with torch.no_grad():
            there = term(x + d, torch.zeros(len(d), dtype=torch.long)) + found.lambdas * penalise(
                d.norm(dim=1), penalty
            )
        assert (found.objective[0] <= there + 1e-6 * there.abs()).all()
        assert result.fresh_data_term is not None
        fresh = result.fresh_data_term[0] + found.penalty_term[0]
        assert ((fresh - closed).abs() <= 4 * error).all()


# Where the search meets what it cannot use


def test_a_search_that_stays_at_the_target_is_called_stuck() -> None:
    x, x_t = pairs_of(2)

    def needle(points: Tensor, item: Tensor) -> Tensor:
        """No way leads to the target: the data term is 5 beside it."""
        away = (points - x_t[item]).flatten(1).square().sum(1)
        return torch.where(away > 1e-12, 5 + away, away)

    found = run(needle, x, x_t, 5)
    at_target = (found.adversarial - x_t[:, None]).flatten(2).abs().amax(2) < 2e-6
    assert at_target[:, :3].all()  # with lambda up to 1 the whole way costs less than 5
    assert (found.status[at_target] == int(Status.STALLED)).all()
    assert (found.status[found.norm == 0] == int(Status.CONVERGED)).all()


def test_a_start_where_the_model_is_nan_does_not_hide_what_another_start_found() -> None:
    x, x_t = torch.full((1, 4), 0.1, dtype=torch.float64), torch.full((1, 4), 0.9, dtype=torch.float64)

    def hole(points: Tensor, _: Tensor) -> Tensor:
        """A parabola around 0.3 in each element, NaN around the point halfway to the target."""
        value = 10 * (points - 0.3).square().sum(1)
        return value + torch.where((points - 0.5).abs().amax(1) < 0.05, torch.nan, 0.0)

    class Exploring(Search):
        def _refine(self, *_: Any) -> None:
            pass

    lambdas = torch.tensor([0.1, 0.5, 2.0], dtype=x.dtype)
    objectives = []
    for starts in (1, 2):
        effort = Effort(Stopping.for_dtype(x.dtype), starts)
        search = Exploring(Term(hole, (4,), RowBatches(9)), x, x_t, UNIT, lambdas, "l2", 0.0, effort, always)
        search.run()
        objectives.append(search.objective)
    torch.testing.assert_close(objectives[1], objectives[0], rtol=1e-9, atol=0)
    assert (objectives[0] < hole(x, x)).all()


def test_a_model_without_any_slope_leaves_the_candidates_that_are_free() -> None:
    x, x_t = pairs_of(2)
    found = run(lambda points, _: torch.ones_like(points[:, 0, 0]), x, x_t, 5)
    assert (found.distortion == 0).all()
    assert (found.evaluations == 1).all()
    assert (found.recent == 0).all()


# Data terms that are not what one expects


def squares() -> DataTerm:
    """The squared distance to 0.6, of a model that cannot take a batch of no rows."""

    def data_term(points: Tensor, _pair: Tensor) -> Tensor:
        return (points.reshape(points.shape[0], -1) - 0.6).square().sum(1)

    return data_term


def spoilt(data_term: DataTerm, where: Tensor, by: Tensor) -> DataTerm:
    """``data_term``, but ``by`` (P,) within 1e-3 of ``where`` (P, *shape)."""

    def other(points: Tensor, pair: Tensor) -> Tensor:
        near = (points - where[pair]).abs().flatten(1).amax(1) < 1e-3
        return torch.where(near, by[pair], data_term(points, pair))

    return other


def test_a_model_is_never_given_a_batch_of_no_rows() -> None:
    x, x_t = pairs_of(2)
    found = run(squares(), x, x_t, (1e6, 1e7))  # d = 0 is optimal for all: nothing is left to search
    assert (found.norm == 0).all()
    assert (found.status == int(Status.CONVERGED)).all()


def test_a_data_term_that_is_not_finite_somewhere_is_no_candidate_there() -> None:
    x, x_t = pairs_of(3)
    term = squares()
    whole = run(term, x, x_t, (0.01, 0.1))
    by = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=x.dtype)  # one a pair
    for where in (x_t, 0.5 * (x + x_t)):
        found = run(spoilt(term, where, by), x, x_t, (0.01, 0.1))
        torch.testing.assert_close(found.objective, whole.objective, rtol=1e-6, atol=1e-9)
        assert (found.status == int(Status.CONVERGED)).all()


def test_a_data_term_that_is_not_finite_before_any_distortion_is_refused() -> None:
    x, x_t = pairs_of(3)
    with pytest.raises(NonFiniteError, match=r"of 1 of 3 pairs is not finite .nan. before any distortion"):
        run(spoilt(squares(), torch.stack([x[0], x_t[0] + 9, x_t[0] + 9]), x.new_full((3,), torch.nan)), x, x_t)


# Descents that are moved


def bowls(count: int) -> tuple[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], Tensor, Tensor]:
    """1/2 (x - c)' H (x - c), the same ill-conditioned H for all: objective, c (count, 8), start (count, 8)."""
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    hessian = basis @ torch.diag(torch.logspace(0, 2, 8, dtype=torch.float64)) @ basis.T
    centre, start = torch.randn(2, count, 8, generator=generator, dtype=torch.float64)

    def objective(x: Tensor, problem: Tensor) -> tuple[Tensor, Tensor]:
        slope = (x - centre[problem]) @ hessian
        return 0.5 * ((x - centre[problem]) * slope).sum(1), slope

    return objective, centre, start


NONE = torch.full((1, 8), torch.inf, dtype=torch.float64)
STOPPING = Stopping(ftol=1e-14, max_evaluations=400)


def test_a_descent_that_is_looked_at_is_the_same_descent() -> None:
    objective, centre, start = bowls(6)
    whole = minimise(objective, start, -NONE, NONE, STOPPING)
    descent = Descent(objective, start, -NONE, NONE, STOPPING)
    while descent.running:
        descent.advance(3)
        seen = descent.minima()
        assert (seen.evaluations <= whole.evaluations).all()
    assert torch.equal(descent.minima().x, whole.x)
    assert torch.equal(descent.minima().evaluations, whole.evaluations)
    torch.testing.assert_close(whole.x, centre, rtol=0, atol=1e-5)


def test_only_the_problems_that_begin_run_until_the_others_are_moved() -> None:
    objective, centre, start = bowls(5)
    begin = torch.tensor([1, 3])
    descent = Descent(objective, start, -NONE, NONE, STOPPING, begin=begin)
    assert descent.running == 2
    descent.advance(500)
    waiting = torch.tensor([0, 2, 4])
    found = descent.minima()
    assert (found.status[begin] == int(Status.CONVERGED)).all()
    assert (found.status[waiting] == int(Status.STOPPED)).all()
    assert (found.evaluations[waiting] == 0).all()
    assert found.value[waiting].isposinf().all()
    descent.move(torch.tensor([0, 4]), start[[0, 4]], torch.tensor([-1, -1]))
    assert descent.running == 2
    descent.advance(500)
    found = descent.minima()
    torch.testing.assert_close(found.x[[0, 1, 3, 4]], centre[[0, 1, 3, 4]], rtol=0, atol=1e-5)
    assert int(found.evaluations[2]) == 0


def test_what_a_descent_is_given_stays_as_it_is() -> None:
    objective, _, start = bowls(5)
    begin = torch.arange(5)
    descent = Descent(objective, start, -NONE, NONE, STOPPING, begin=begin)
    before = start.clone()
    descent.advance(500)
    assert begin.tolist() == list(range(5))
    assert torch.equal(start, before)


def test_none_may_begin_at_all() -> None:
    objective, centre, start = bowls(2)
    descent = Descent(objective, start, -NONE, NONE, STOPPING, begin=torch.tensor([], dtype=torch.long))
    assert descent.running == 0
    descent.advance(3)
    descent.move(torch.tensor([1]), start[1:], torch.tensor([0]))  # problem 0 never ran and has no history
    descent.advance(500)
    torch.testing.assert_close(descent.minima().x[1], centre[1], rtol=0, atol=1e-5)


def test_a_problem_moved_with_the_history_of_its_like_needs_fewer_evaluations() -> None:
    objective, centre, start = bowls(2)
    costs = {}
    for like in (0, -1):
        descent = Descent(objective, start, -NONE, NONE, STOPPING, begin=torch.tensor([0]))
        descent.advance(12)
        assert descent.running == 1
        descent.move(torch.tensor([1]), start[1:], torch.tensor([like]))
        descent.advance(500)
        found = descent.minima()
        torch.testing.assert_close(found.x, centre, rtol=0, atol=1e-5)
        costs[like] = int(found.evaluations[1])
    assert costs[0] < costs[-1]


def test_a_moved_problem_runs_from_there_and_keeps_counting() -> None:
    objective, centre, start = bowls(3)
    descent = Descent(objective, start, -NONE, NONE, STOPPING)
    descent.advance(4)
    before = descent.minima().evaluations.clone()
    there = centre[:1] + 1e-3
    descent.move(torch.tensor([0]), there, torch.tensor([0]))
    found = descent.minima()
    assert torch.equal(found.x[:1], there)
    assert (found.evaluations - before).tolist() == [1, 0, 0]
    descent.advance(500)
    found = descent.minima()
    torch.testing.assert_close(found.x, centre, rtol=0, atol=1e-5)
    assert (found.status == int(Status.CONVERGED)).all()


def test_a_problem_at_its_evaluation_limit_cannot_be_moved_past_it() -> None:
    objective, _, start = bowls(2)
    descent = Descent(objective, start, -NONE, NONE, Stopping(ftol=1e-14, max_evaluations=5))
    descent.advance(500)
    assert (descent.minima().evaluations == 5).all()
    assert (descent.minima().status == int(Status.LIMIT)).all()
    descent.move(torch.tensor([0]), start[1:], torch.tensor([-1]))
    assert descent.running == 0


def test_what_is_ended_runs_no_further_and_can_be_moved() -> None:
    objective, _, start = bowls(3)
    descent = Descent(objective, start, -NONE, NONE, Stopping(ftol=1e-14))
    descent.advance(2)
    descent.end(torch.tensor([True, False, False]), Status.SLOWED)
    assert descent.running == 2
    descent.advance(3)
    assert descent.minima().status.tolist() == [Status.SLOWED, Status.STOPPED, Status.STOPPED]
    assert descent.minima().evaluations.tolist() == [3, 6, 6]
    descent.move(torch.tensor([0]), start[1:2], torch.tensor([-1]))
    assert descent.running == 3


# Following by Jacobians


class _Small:
    """An encoder of six inputs and two latents, from ``means`` of them."""

    input_shape, range = (2, 3), UNIT

    def __init__(self, means: Callable[[Tensor], Tensor]) -> None:
        self.means = means
        self.matrix = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """The posterior, of log-deviations about -1."""
        means = torch.relu(self.means(x.flatten(1)) @ self.matrix[:, :2]) + 0.1 * x.flatten(1) @ self.matrix[:, :2]
        return DiagonalGaussian(means, 0.1 * x.flatten(1) @ self.matrix[:, 2:] - 1)


class _Once(torch.autograd.Function):
    """The identity, which can be passed back through but once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The input."""
        ctx.once = [True]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        """The slope."""
        ctx.once.pop()
        return slopes[0]


def _rooted(x: Tensor) -> Tensor:
    return x.sqrt()  # infinite slope at 0, where some of the sources lie


@pytest.fixture
def _small_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps for few inputs and residuals as for many, which tests could not wait for."""
    monkeypatch.setattr(following, "_EACH", 1)
    monkeypatch.setattr(following, "_DEEP", 2)


@pytest.fixture
def _followed_in_few_steps(_small_is_followed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few evaluations a problem has, for what does not depend on how low a front comes."""
    monkeypatch.setattr(following, "_SHORTEST", 1)
    monkeypatch.setattr(following, "_FEW", 20)


@pytest.mark.usefixtures("_followed_in_few_steps")
@pytest.mark.parametrize(
    "means", [lambda x: 1e12 * x, _rooted, _Once.apply, torch.Tensor.detach], ids=["steep", "root", "once", "detached"]
)
def test_odd_encoders_end_as_others_do(means: Callable[[Tensor], Tensor]) -> None:
    x, x_t = pairs_of(3, torch.float32 if means is not _rooted else torch.float64)
    vae: Any = _Small(means)
    vae.matrix = vae.matrix.to(x.dtype)
    term = Objective().data_term(vae, x, x_t, x.new_zeros(1, 3, 2))
    found = run(term, x, x_t, 6, evaluations=30)
    assert found.objective.isfinite().all()
    assert (found.objective <= found.zero_data_term[:, None]).all()
    assert not found.interrupted


@pytest.mark.usefixtures("_followed_in_few_steps")
def test_a_group_of_later_pairs_is_followed_as_it_is_alone(small_vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (x, x_t), vae = pairs_of(2), small_vae()
    alone = run(term_of(vae, x[1:], x_t[1:]), x[1:], x_t[1:], FINE, evaluations=30)
    monkeypatch.setattr(module, "_MEMORY", 1)  # one pair a group
    both = run(term_of(vae, x, x_t), x, x_t, FINE, evaluations=30)
    assert both.followed.all()
    torch.testing.assert_close(both.objective[1:], alone.objective, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("_small_is_followed")
def test_following_that_is_interrupted_hands_out_what_it_has(small_vae: Any) -> None:
    x, x_t = pairs_of(2)
    steps = 0

    def go_on(at: Progress) -> bool:
        nonlocal steps
        steps += at.stage.startswith("following")
        return steps < 50

    effort = Effort(Stopping(1e-12, 3, 120))
    lambdas = x.new_tensor(geometric_lambdas(FINE))
    term = term_of(small_vae(), x, x_t)
    found = sweep(term, x, x_t, UNIT, lambdas, effort=effort, rows=RowBatches(64), go_on=go_on)
    assert steps == 50
    assert found.interrupted
    assert not found.followed.any()
    assert (found.objective <= found.zero_data_term[:, None]).all()
    assert (found.norm[:, 0] > 0).all()


def test_pairs_are_followed_at_length_only_where_a_look_shows_that_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_EACH": 2, "_DEEP": 2, "_FEW": 20, "_GLANCE": 15}.items():
        monkeypatch.setattr(following, name, value)
    steps: list[int] = []

    def go_on(at: Progress) -> bool:
        if at.stage.startswith("following") and at.running == at.problems:
            steps.append(at.problems)
        return not at.stage.startswith("refining")

    x, x_t = pairs_of(1)
    vae: Any = _Small(lambda x: x)
    term = Objective().data_term(vae, x, x_t, x.new_zeros(1, 1, 2))
    for worthwhile, asked in ((0.5, [7, 15]), (0.0, [7, 15, 240])):
        monkeypatch.setattr(following, "_WORTHWHILE", worthwhile)
        steps.clear()
        assert run(term, x, x_t, FINE, evaluations=120, starts=1, go_on=go_on).followed.all()
        assert steps == asked


def test_what_a_look_gained_is_a_mean_over_all_pairs_below_their_tops() -> None:
    search = SimpleNamespace(
        objective=torch.tensor([0.5, 1.0, 9.0, 3.0, 2.0, 0.0]),
        lam=torch.tensor([1.0, 2.0, 4.0] * 2),
        pair=torch.tensor([0, 0, 0, 1, 1, 1]),
    )
    before = torch.tensor([1.0, 1.0, 90.0, 4.0, 2.0, 0.0])
    gained = following._gained(search, before, torch.tensor([4.0, 5.0]))  # the third lambda is the first pair's top
    assert gained == pytest.approx((0.5 + 0 + 0.25 + 0 + 0) / 5)


def test_a_front_that_is_not_finite_hides_none_that_serves() -> None:
    search: Any = SimpleNamespace(
        x=torch.zeros(1, 2),
        lambdas=torch.tensor([0.1, 10.0]),
        penalty="l2",
        objective=torch.tensor([1.0, 1.0]),
        best=torch.zeros(2, 2),
        data_term=torch.ones(2),
        norm=torch.zeros(2),
    )
    points = torch.arange(8.0).reshape(1, 4, 2)
    data = torch.tensor([[torch.nan, -torch.inf, 0.25, 0.5]])
    Search.offer(search, points, data, torch.tensor([[1.0, 1.0, 0.5, 0.5]]), torch.tensor([0]))
    assert search.best.tolist() == [[4.0, 5.0], [0.0, 0.0]]
    assert (search.data_term.tolist(), search.norm.tolist()) == ([0.25, 1.0], [0.5, 0.0])


@pytest.mark.usefixtures("_small_is_followed")
def test_following_goes_below_what_quasi_newton_steps_reach_on_a_network_of_kinks() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((40, 60), (60, 60), (60, 6))
    wide = [torch.randn(shape, generator=generator, dtype=torch.float64) / shape[0] ** 0.5 for shape in shapes]
    shift = 0.3 * torch.randn(60, generator=generator, dtype=torch.float64)

    def encode(x: Tensor) -> DiagonalGaussian:
        x = torch.relu(6 * (x - 0.5) @ wide[0] + shift)
        out = 2 * torch.relu(1.5 * x @ wide[1] + shift) @ wide[2]
        return DiagonalGaussian(3 * out[:, :3], 0.7 * out[:, 3:] - 1)

    ends = torch.rand(2, 2, 40, generator=generator, dtype=torch.float64)
    target = encode(ends[1])

    def kl(points: Tensor, item: Tensor) -> Tensor:
        return encode(points).kl(target.rows(item))

    squares = Squares(kl, lambda points, item: kl_residuals(encode(points), target.rows(item)))
    asked = tuple(2.0 ** (-20 + i) for i in range(30))
    by_jacobians, by_gradients = (run(term, *ends, asked, evaluations=2 * MOST) for term in (squares, kl))
    assert by_jacobians.followed.all()
    assert not by_gradients.followed.any()
    low = by_jacobians.lambdas < 2.0**-8
    gain = (by_jacobians.objective / by_gradients.objective)[:, low].log().mean().exp()
    assert float(gain) <= 0.6
    # What was followed ends once it gains little; what was not runs on until it settles.
    assert (by_jacobians.status == int(Status.SLOWED)).any()
    assert not (by_gradients.status == int(Status.SLOWED)).any()
    # Fronts cost no more than 0.4 times what refining may.
    assert by_jacobians.evaluations.sum() <= by_gradients.evaluations.sum() + 0.4 * 2 * MOST * 2 * 41 + 4 * 6 * 2
