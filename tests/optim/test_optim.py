from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from vaeaudit.optim.history import inv_hessian_product
from vaeaudit.optim.lbfgsb import Descent, Status, Stopping, minimise

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
TIGHT = Stopping(ftol=1e-14, patience=3, max_evaluations=2_000)
INF = float("inf")


def differentiated(function: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    def objective(x: Tensor, problem: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_(True)
        value = function(leaf, problem)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient

    return objective


def quadratics(count: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """1/2 x'Hx - h'x with condition numbers up to some hundreds: H (count, n, n), h (count, n)."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(count, n, n, generator=generator, dtype=torch.float64)).Q
    spectrum = 10 ** (3 * torch.rand(count, n, generator=generator, dtype=torch.float64) - 1)
    h = 10 * torch.randn(count, n, generator=generator, dtype=torch.float64)
    return basis @ torch.diag_embed(spectrum) @ basis.transpose(1, 2), h


def quadratic(hessian: Tensor, h: Tensor) -> Objective:
    def objective(x: Tensor, problem: Tensor) -> tuple[Tensor, Tensor]:
        hx = (hessian[problem] @ x[:, :, None]).squeeze(2)
        return (x * (0.5 * hx - h[problem])).sum(1), hx - h[problem]

    return objective


def rosenbrock(x: Tensor, problem: Tensor) -> Tensor:
    steep = 10.0 ** (problem % 3).to(x.dtype)  # 1, 10 and 100: another valley for each problem
    return (steep[:, None] * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)


def scipy_answer(
    objective: Objective, start: Tensor, lower: Tensor, upper: Tensor, problem: int
) -> tuple[np.ndarray, float]:
    def one(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(torch.from_numpy(x)[None], torch.tensor([problem]))
        return float(value), gradient[0].numpy()

    found = optimize.minimize(
        one,
        start.numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(lower.tolist(), upper.tolist(), strict=True)),
        options={"ftol": 0, "gtol": 1e-11, "maxiter": 5_000, "maxfun": 20_000},
    )
    return found.x, float(found.fun)


def bounded(count: int, n: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Start and bounds: two-sided, one-sided and infinite ones mixed."""
    generator = torch.Generator().manual_seed(seed)
    lower = -torch.rand(count, n, generator=generator, dtype=torch.float64)
    upper = torch.rand(count, n, generator=generator, dtype=torch.float64)
    kind = torch.randint(4, (count, n), generator=generator)
    lower = lower.masked_fill(kind == 1, -INF).masked_fill(kind == 3, -INF)
    upper = upper.masked_fill(kind == 2, INF).masked_fill(kind == 3, INF)
    start = torch.randn(count, n, generator=generator, dtype=torch.float64).clamp(lower, upper)
    return start, lower, upper


def anywhere(start: Tensor) -> tuple[Tensor, Tensor]:
    return torch.full_like(start, -INF), torch.full_like(start, INF)


def test_bounded_convex_quadratics_end_where_scipy_ends() -> None:
    hessian, h = quadratics(16, 7)
    start, lower, upper = bounded(16, 7)
    objective = quadratic(hessian, h)
    found = minimise(objective, start, lower, upper, TIGHT)
    active = (found.x == lower) | (found.x == upper)
    assert 0.2 < active.double().mean() < 0.8  # the bounds matter, and not they alone
    for k in range(16):
        x, value = scipy_answer(objective, start[k], lower[k], upper[k], k)
        assert float(found.value[k]) == pytest.approx(value, rel=1e-9)
        np.testing.assert_allclose(found.x[k].numpy(), x, atol=1e-5)


def test_bounded_convex_quadratics_meet_the_kkt_conditions() -> None:
    hessian, h = quadratics(16, 7)
    start, lower, upper = bounded(16, 7)
    objective = quadratic(hessian, h)
    found = minimise(objective, start, lower, upper, TIGHT)
    gradient = objective(found.x, torch.arange(16))[1]
    projected = (found.x - gradient).clamp(lower, upper) - found.x
    assert projected.abs().max() < 1e-4 * h.norm(dim=1).max()


@pytest.mark.parametrize("n", [2, 6])
def test_rosenbrocks_valley_ends_where_scipy_ends(n: int) -> None:
    generator = torch.Generator().manual_seed(2)
    start = 0.5 * torch.randn(9, n, generator=generator, dtype=torch.float64)
    lower, upper = torch.full_like(start, -1.5), torch.full_like(start, 2.0)
    upper[::2, 0] = 0.8  # every second problem ends on a bound
    start = start.clamp(lower, upper)
    objective = differentiated(rosenbrock)
    found = minimise(objective, start, lower, upper, TIGHT)
    for k in range(9):
        x, value = scipy_answer(objective, start[k], lower[k], upper[k], k)
        assert float(found.value[k]) == pytest.approx(value, rel=1e-7, abs=1e-12)
        np.testing.assert_allclose(found.x[k].numpy(), x, atol=1e-4)


def test_problems_in_float32_come_as_near_as_float32_allows() -> None:
    hessian, h = quadratics(8, 5)
    start, lower, upper = bounded(8, 5)
    exact = minimise(quadratic(hessian, h), start, lower, upper, TIGHT)
    single = minimise(
        quadratic(hessian.float(), h.float()),
        start.float(),
        lower.float(),
        upper.float(),
        Stopping.for_dtype(torch.float32),
    )
    assert single.x.dtype == single.value.dtype == torch.float32
    torch.testing.assert_close(single.value.double(), exact.value, rtol=1e-4, atol=1e-4)


def test_an_answer_does_not_depend_on_the_other_problems_of_the_batch() -> None:
    hessian, h = quadratics(6, 5)
    start, lower, upper = bounded(6, 5)
    stopping = Stopping.for_dtype(torch.float64)
    together = minimise(quadratic(hessian, h), start, lower, upper, stopping)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    reordered = minimise(quadratic(hessian[order], h[order]), start[order], lower[order], upper[order], stopping)
    torch.testing.assert_close(reordered.x, together.x[order], rtol=1e-9, atol=1e-9)
    assert torch.equal(reordered.evaluations, together.evaluations[order])
    for k in range(6):
        alone = minimise(
            quadratic(hessian[k : k + 1], h[k : k + 1]),
            start[k : k + 1],
            lower[k : k + 1],
            upper[k : k + 1],
            stopping,
        )
        torch.testing.assert_close(alone.x[0], together.x[k], rtol=1e-9, atol=1e-9)
        assert alone.status[0] == together.status[k]
        assert alone.evaluations[0] == together.evaluations[k]


def test_no_trial_point_leaves_the_bounds() -> None:
    hessian, h = quadratics(10, 6)
    start, lower, upper = bounded(10, 6)
    inner = quadratic(hessian, h)

    def watched(x: Tensor, problem: Tensor) -> tuple[Tensor, Tensor]:
        assert ((x >= lower[problem]) & (x <= upper[problem])).all()
        return inner(x, problem)

    found = minimise(watched, start + 5 * torch.ones_like(start), lower, upper, TIGHT)  # starts outside too
    assert ((found.x >= lower) & (found.x <= upper)).all()


def test_a_variable_with_equal_bounds_stays() -> None:
    hessian, h = quadratics(3, 4)
    start, lower, upper = bounded(3, 4)
    lower[:, 1] = upper[:, 1] = 0.25
    assert (minimise(quadratic(hessian, h), start, lower, upper, TIGHT).x[:, 1] == 0.25).all()


@pytest.mark.parametrize("limit", [1, 2, 3, 10, 40])
def test_the_limit_on_evaluations_holds_and_the_value_is_never_above_the_starts(limit: int) -> None:
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(12, 8, generator=generator, dtype=torch.float64)
    objective = differentiated(rosenbrock)
    counted = torch.zeros(12, dtype=torch.long)

    def counting(x: Tensor, problem: Tensor) -> tuple[Tensor, Tensor]:
        counted[problem] += 1
        return objective(x, problem)

    lower, upper = anywhere(start)
    found = minimise(counting, start, lower, upper, Stopping(ftol=1e-12, max_evaluations=limit))
    assert torch.equal(found.evaluations, counted)
    assert (counted <= limit).all()
    assert (found.status == int(Status.LIMIT)).any()
    everything = torch.arange(12)
    assert (found.value <= objective(start, everything)[0]).all()
    torch.testing.assert_close(found.value, objective(found.x, everything)[0], rtol=1e-12, atol=0)


def test_finished_problems_are_evaluated_no_more() -> None:
    # Every second problem is a parabola that one step solves; the others are curved valleys.
    def mixed(x: Tensor, problem: Tensor) -> Tensor:
        return torch.where(problem % 2 == 0, 0.5 * x.square().sum(1), rosenbrock(x, 2 + 0 * problem))

    seen: list[Tensor] = []
    objective = differentiated(mixed)

    def recorded(x: Tensor, problem: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(problem.clone())
        return objective(x, problem)

    start = torch.full((8, 4), 0.5, dtype=torch.float64)
    found = minimise(recorded, start, *anywhere(start), TIGHT)
    sizes = [len(problem) for problem in seen]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 8
    assert set(seen[10].tolist()) == {1, 3, 5, 7}
    assert sum(sizes) == int(found.evaluations.sum())
    torch.testing.assert_close(found.x[1::2], torch.ones(4, 4, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    assert (found.x[::2].abs() < 1e-6).all()


def test_a_problem_that_is_not_finite_at_the_start_says_so_and_spoils_no_other() -> None:
    hessian, h = quadratics(4, 3)
    start, lower, upper = bounded(4, 3)
    inner = quadratic(hessian, h)

    def spoilt(x: Tensor, problem: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = inner(x, problem)
        gradient[problem == 2] = torch.nan
        return torch.where(problem == 0, torch.nan, value), gradient

    found = minimise(spoilt, start, lower, upper, TIGHT)
    clean = minimise(inner, start, lower, upper, TIGHT)
    assert found.status[[0, 2]].tolist() == [Status.NONFINITE] * 2
    assert torch.equal(found.x[[0, 2]], start[[0, 2]])
    torch.testing.assert_close(found.x[[1, 3]], clean.x[[1, 3]], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("wall", [torch.nan, torch.inf, -torch.inf])
def test_a_search_that_meets_values_that_are_not_finite_turns_back_and_goes_on(wall: float) -> None:
    # The first steps overshoot x = 1, where the objective ends; the minimum is at 0.9.
    def walled(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        value = 50 * (x - 0.9).square().sum(1)
        return torch.where((x > 1).any(1), wall, value), 100 * (x - 0.9)

    start = torch.tensor([[0.0, 0.5]], dtype=torch.float64)
    found = minimise(walled, start, *anywhere(start), TIGHT)
    torch.testing.assert_close(found.x, torch.full_like(start, 0.9), rtol=0, atol=1e-6)
    assert found.status[0] in (Status.CONVERGED, Status.STALLED)


@pytest.mark.parametrize("rounds", [0, 1, 5])
def test_a_search_told_to_stop_returns_the_best_it_has(rounds: int) -> None:
    start = torch.full((3, 4), -1.0, dtype=torch.float64)
    objective = differentiated(rosenbrock)
    asked: list[int] = []

    def go_on(running: int) -> bool:
        asked.append(running)
        return len(asked) <= rounds

    found = minimise(objective, start, *anywhere(start), TIGHT, go_on=go_on)
    assert len(asked) == rounds + 1
    assert (found.status == int(Status.STOPPED)).all()
    assert (found.evaluations <= rounds).all()
    if rounds == 0:
        assert torch.equal(found.x, start)
        assert (found.value == torch.inf).all()  # nothing is known of it
    else:
        everything = torch.arange(3)
        torch.testing.assert_close(found.value, objective(found.x, everything)[0], rtol=1e-12, atol=0)
        assert (found.value <= objective(start, everything)[0]).all()


def test_a_problem_that_starts_at_its_minimum_converges_at_once() -> None:
    start = torch.zeros(2, 3, dtype=torch.float64)
    identity = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    h = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    lower, upper = torch.full_like(start, -1.0), torch.zeros_like(start)
    upper[1, 2], lower[1, 2] = 1.0, 0.0  # problem 1 is pushed outwards at two bounds
    found = minimise(quadratic(identity, h), start, lower, upper, TIGHT)
    assert found.status.tolist() == [Status.CONVERGED] * 2
    assert found.evaluations.tolist() == [1, 1]
    assert torch.equal(found.x, start)


def test_a_variable_just_short_of_its_bound_does_not_pass_for_convergence() -> None:
    # Going straight towards a valley's floor from here, a variable near its bound cuts the step of all others.
    generator = torch.Generator().manual_seed(6)
    matrix = torch.randn(200, 3, 8, generator=generator, dtype=torch.float64)
    goal = torch.rand(200, 8, generator=generator, dtype=torch.float64).round()
    start = torch.rand(200, 8, generator=generator, dtype=torch.float64)
    hessian = matrix.transpose(1, 2) @ matrix + 2.0**-11 * torch.eye(8, dtype=torch.float64)
    h = (hessian @ goal[:, :, None]).squeeze(2) - 2.0**-11 * (goal - start)
    lower, upper = torch.zeros_like(start), torch.ones_like(start)
    objective = quadratic(hessian, h)
    found = minimise(objective, start, lower, upper, Stopping.for_dtype(torch.float64, 2_000))
    assert (found.status == int(Status.CONVERGED)).all()
    gradient = objective(found.x, torch.arange(200))[1]
    projected = (found.x - gradient).clamp(lower, upper) - found.x
    assert projected.norm(dim=1).max() < 1e-3


def test_no_problems_give_no_answers() -> None:
    start = torch.zeros(0, 3)
    found = minimise(quadratic(*quadratics(1, 3)), start, start, start, TIGHT)
    assert found.x.shape == (0, 3)
    assert found.value.shape == found.status.shape == found.evaluations.shape == (0,)


def test_the_start_is_left_as_it_was() -> None:
    hessian, h = quadratics(4, 3)
    start, lower, upper = bounded(4, 3)
    copies = [tensor.clone() for tensor in (start, lower, upper)]
    minimise(quadratic(hessian, h), start, lower, upper, TIGHT)
    for tensor, copy in zip((start, lower, upper), copies, strict=True):
        assert torch.equal(tensor, copy)


def test_every_status_has_a_message_of_its_own() -> None:
    assert len({status.message for status in Status}) == len(Status)


def dense_bfgs(history: Tensor, free: Tensor, newest: int, pairs: int) -> Tensor:
    """H of one problem by the rank-two formula, Nocedal & Wright eq. 7.19, in the free variables."""
    m, n = history.shape[1:]
    kept = []
    for age in reversed(range(pairs)):  # oldest first
        s, y = (history[which, (newest - age) % m] * free for which in (0, 1))
        if s @ y > torch.finfo(s.dtype).eps * (y @ y):
            kept.append((s, y))
    identity = torch.eye(n, dtype=history.dtype)
    hessian = identity * (kept[-1][0] @ kept[-1][1] / (kept[-1][1] @ kept[-1][1]) if kept else 1.0)
    for s, y in kept:
        rho = 1 / (s @ y)
        left = identity - rho * torch.outer(s, y)
        hessian = left @ hessian @ left.T + rho * torch.outer(s, s)
    return hessian


def test_the_inverse_hessian_product_is_the_dense_bfgs_matrix_times_the_gradient() -> None:
    a, m, n = 12, 4, 6
    generator = torch.Generator().manual_seed(4)
    hessian, _ = quadratics(a, n)
    s = torch.randn(a, m, n, generator=generator, dtype=torch.float64)
    y = s @ hessian  # positive curvature
    y[3, 1] = -y[3, 1]  # but for one pair, which must be left out
    free = torch.rand(a, n, generator=generator) < 0.7
    free[0], free[1] = True, False
    newest = torch.arange(a) % m
    pairs = torch.arange(a) % (m + 1)
    g = torch.randn(a, n, generator=generator, dtype=torch.float64) * free
    history = torch.stack([s, y], dim=1)
    product = inv_hessian_product(g, free.to(g), history, newest, pairs)
    for k in range(a):
        dense = dense_bfgs(history[k], free[k], int(newest[k]), int(pairs[k]))
        torch.testing.assert_close(product[k], dense @ g[k], rtol=1e-8, atol=1e-10)


def test_what_was_moved_runs_and_is_counted_at_once() -> None:
    objective = quadratic(*quadratics(3, 4))
    start = torch.full((3, 4), 2.0, dtype=torch.float64)
    waiting = torch.tensor([0])  # alone begins
    descent = Descent(objective, start, *anywhere(start), TIGHT, begin=waiting)
    assert descent.running == 1
    every = descent.left
    descent.move(torch.tensor([1, 2]), start[1:], torch.tensor([-1, -1]))
    assert (descent.running, descent.left) == (3, 3 * every)
    descent.advance(1)
    assert descent.left == 3 * (every - 1)


def test_the_inverse_hessian_product_moves_no_held_variable_and_goes_downhill() -> None:
    hessian, _ = quadratics(5, 6)
    generator = torch.Generator().manual_seed(5)
    s = torch.randn(5, 3, 6, generator=generator, dtype=torch.float64)
    free = torch.tensor([True, False, True, True, False, True]).expand(5, 6)
    g = torch.randn(5, 6, generator=generator, dtype=torch.float64) * free
    newest, pairs = torch.full((5,), 2), torch.full((5,), 3)
    product = inv_hessian_product(g, free.to(g), torch.stack([s, s @ hessian], dim=1), newest, pairs)
    assert (product[~free] == 0).all()
    assert ((product * g).sum(1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unit", [2.0**power for power in (-30, -15, 15)])
def test_small_and_ordinary_units_of_the_variables_change_nothing(unit: float, dtype: torch.dtype) -> None:
    """A curvature in micrograms is 10^12 times that in grams; both tell the same of the way to the minimum."""
    start = torch.tensor([[-1.2, 1.0, -0.5, 0.8]], dtype=dtype)
    nowhere = torch.full_like(start, INF)
    stopping = Stopping.for_dtype(dtype, 400)
    plain, scaled = (
        minimise(
            differentiated(lambda x, problem, u=u: rosenbrock(x / u, problem + 1)),
            start * u, -nowhere, nowhere, stopping,
        )
        for u in (1.0, unit)
    )  # fmt: skip
    assert int(plain.status) == int(scaled.status) == int(Status.CONVERGED)
    assert int(scaled.evaluations) < 2 * int(plain.evaluations)
    torch.testing.assert_close(scaled.x / unit, plain.x, rtol=1e-2, atol=1e-2)
