"""Gauss-Newton steps on averaged Jacobians: where they end, what they cross, and what holds on the way."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vaeaudit.optim.gauss_newton import LEAST, Along, GaussNewton, Linearised
from vaeaudit.optim.lbfgsb import Stopping, minimise

LOW, HIGH = torch.zeros(1, 6, dtype=torch.float64), torch.ones(1, 6, dtype=torch.float64)
MATRIX = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
ORIGIN = torch.tensor([[0.5] * 6, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]], dtype=torch.float64)
AIM = torch.tensor([[0.3, -0.1, 0.2, 0.1, -0.3, 0.0], [0.1, 0.2, 0.0, -0.2, 0.1, -0.3]], dtype=torch.float64) @ MATRIX.T
UNIT = torch.ones(2, dtype=torch.float64)

# function(points, row) -> residuals (b, k) and their Jacobian (b, k, n)
Whole = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def seen(function: Whole) -> Linearised:
    """What is seen of a function whose whole Jacobian is known."""

    def linearised(points: Tensor, row: Tensor, along: Along) -> tuple[Tensor, Tensor, Tensor]:
        residuals, jacobian = function(points, row)
        directions = along(residuals, row)
        return residuals, directions, torch.bmm(directions, jacobian)

    return linearised


def linear(points: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """A (x - origin) - aim."""
    return (points - ORIGIN[row]) @ MATRIX.T - AIM[row], MATRIX.expand(len(points), 3, 6).clone()


def ends(function: Whole, weight: float, *, squared: bool, steps: int = 110) -> GaussNewton:
    """Where steps of growing damping end, from halfway to a corner."""
    front = GaussNewton(seen(function), ORIGIN, 0.9 * ORIGIN + 0.05, LOW, HIGH, UNIT, squared=squared)
    for step in range(steps):
        front.advance(torch.full_like(UNIT, weight), LEAST * 2.0 ** max(0.0, (step - 70) / 4))
    return front


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("weight", [1e-6, 0.1, 1.0])
def test_a_linear_problem_in_a_box_ends_at_its_minimum(weight: float, squared: bool) -> None:
    def objective(x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        residuals, jacobian = linear(x, row)
        d = x - ORIGIN[row]
        norm = torch.linalg.vector_norm(d, dim=1)
        value = 0.5 * residuals.square().sum(1) + weight * (norm.square() if squared else norm)
        pull = 2 * weight if squared else weight / norm[:, None].clamp(min=1e-12)
        return value, torch.einsum("bk,bkn->bn", residuals, jacobian) + pull * d

    least = minimise(objective, 0.9 * ORIGIN + 0.05, LOW, HIGH, Stopping(ftol=1e-14, max_evaluations=3000)).value
    front = ends(linear, weight, squared=squared)
    value = front.data + weight * (front.norm.square() if squared else front.norm)
    assert (value <= least * (1 + 1e-4) + 1e-12).all()
    assert ((front.points >= LOW) & (front.points <= HIGH)).all()


def test_a_linear_problem_without_a_box_ends_at_its_closed_form() -> None:
    far = torch.full_like(LOW, torch.inf)
    front = GaussNewton(seen(linear), ORIGIN, 0.9 * ORIGIN + 0.05, -far, far, UNIT, squared=True)
    for _ in range(100):
        front.advance(torch.full_like(UNIT, 0.3))
    ridge = MATRIX.T @ torch.linalg.solve(MATRIX @ MATRIX.T + 0.6 * torch.eye(3, dtype=torch.float64), AIM.T)
    torch.testing.assert_close(front.points - ORIGIN, ridge.T, rtol=1e-9, atol=1e-9)


def test_the_average_of_what_does_not_change_stays_as_it_is_and_both_directions_take_their_turn() -> None:
    asked = []

    def watched(points: Tensor, row: Tensor, along: Along) -> tuple[Tensor, Tensor, Tensor]:
        found = seen(linear)(points, row, along)
        asked.append(found[1])
        return found

    front = GaussNewton(watched, ORIGIN, 0.9 * ORIGIN + 0.05, LOW, HIGH, UNIT, squared=False)
    for _ in range(7):
        front.advance(torch.full_like(UNIT, 0.1))
    torch.testing.assert_close(front._average, MATRIX.expand(2, 3, 6), rtol=1e-12, atol=1e-12)
    assert [along.shape[1] for along in asked] == [3, 1, 1, 1, 1, 1, 1]
    # A linear model misses nothing but rounding: what is left of its misses has length 1 or none.
    lengths = torch.stack([torch.linalg.vector_norm(along, dim=2) for along in asked[1:]])
    assert ((lengths - 1).abs().minimum(lengths) < 1e-12).all()
    torch.testing.assert_close(lengths[1::2], torch.ones_like(lengths[1::2]))


def test_the_second_direction_is_what_the_model_missed_beside_the_multipliers() -> None:
    met = []

    def squared(points: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        residuals, jacobian = linear(points, row)
        return residuals + 0.3 * residuals.square(), (1 + 0.6 * residuals)[:, :, None] * jacobian

    def watched(points: Tensor, row: Tensor, along: Along) -> tuple[Tensor, Tensor, Tensor]:
        met.append((points, *seen(squared)(points, row, along)))
        return met[-1][1:]

    front = GaussNewton(watched, ORIGIN, 0.9 * ORIGIN + 0.05, LOW, HIGH, UNIT, squared=False)
    front.advance(torch.full_like(UNIT, 0.1))
    multipliers = F.normalize(front._multipliers)
    front.advance(torch.full_like(UNIT, 0.1))
    (before, start, _, jacobian), (after, end, direction, _) = met
    missed = end - start - torch.einsum("bkn,bn->bk", jacobian, after - before)
    missed -= (missed * multipliers).sum(1, keepdim=True) * multipliers
    torch.testing.assert_close(direction[:, 0], F.normalize(missed))


def creased(points: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """The linear residuals under a sawtooth: slopes of -9 to 11 times their own, with a kink each hundredth."""
    residuals, _ = linear(points, row)
    phase = (residuals / 0.01) % 1
    teeth = 0.1 * torch.where(phase < 0.5, phase, 1 - phase)
    slope = 1 + torch.where(phase < 0.5, 10.0, -10.0)
    return residuals + teeth, slope[:, :, None] * MATRIX


def value_of(function: Whole) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def objective(x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        residuals, jacobian = function(x, row)
        return 0.5 * residuals.square().sum(1), torch.einsum("bk,bkn->bn", residuals, jacobian)

    return objective


def test_kinks_at_which_a_search_settles_are_crossed() -> None:
    def of_first(points: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        return creased(points, torch.zeros_like(row))

    # Where a single front ends turns on rounding.
    start = (0.9 * ORIGIN[:1] + 0.05) + 0.02 * torch.rand(20, 6, generator=torch.Generator().manual_seed(0)).double()
    searched = minimise(value_of(of_first), start, LOW, HIGH, Stopping(ftol=1e-10, max_evaluations=300))
    front = GaussNewton(seen(of_first), ORIGIN[:1].expand(20, -1), start, LOW, HIGH, UNIT[:1].expand(20), squared=False)
    least = torch.full((20,), torch.inf, dtype=start.dtype)
    for _ in range(200):
        front.advance(start.new_full((20,), 1e-3))
        least = torch.minimum(least, front.data)
    assert float((least / searched.value).median()) <= 0.05


def test_a_row_steps_as_it_does_alone_whatever_others_need_a_second_turn() -> None:
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(6, 4, 100, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, 6)[:, None, None]
    origin = torch.rand(6, 100, generator=generator, dtype=torch.float64)

    def stepped(rows: Tensor) -> Tensor:
        def squashed(points: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            inner = torch.einsum("bkn,bn->bk", matrix[rows[row]], points - origin[rows[row]])
            return inner.tanh() - 0.9, (1 - inner.tanh().square())[:, :, None] * matrix[rows[row]]

        low, high = torch.zeros(1, 100, dtype=torch.float64), torch.ones(1, 100, dtype=torch.float64)
        front = GaussNewton(
            seen(squashed), origin[rows], 0.9 * origin[rows] + 0.05, low, high, torch.ones(len(rows)), squared=False
        )
        for _ in range(8):
            front.advance(torch.full((len(rows),), 1e-3, dtype=torch.float64))
        return front.points

    together = stepped(torch.arange(6))
    alone = torch.cat([stepped(torch.tensor([row])) for row in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-7, atol=1e-9)


def test_a_point_that_is_not_finite_is_left_and_moves_no_other() -> None:
    def hole(points: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        residuals, jacobian = linear(points, row)
        gone = (row == 0) & (torch.linalg.vector_norm(points - ORIGIN[row], dim=1) > 0.25)
        return residuals.masked_fill(gone[:, None], torch.nan), jacobian.masked_fill(gone[:, None, None], torch.nan)

    one, both = ends(hole, 0.1, squared=False), ends(linear, 0.1, squared=False)
    assert torch.equal(one.points[1], both.points[1])
    assert one.points.isfinite().all()
    assert float(one.norm[0]) <= 0.25 + 1e-4
    assert one.moves.all()


def test_a_step_to_where_slopes_alone_are_not_finite_is_taken_back() -> None:
    calls = 0

    def broken_once(points: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        residuals, jacobian = linear(points, row)
        return residuals, jacobian.masked_fill((row[:, None, None] == 1) & (calls == 2), torch.inf)

    begun = 0.9 * ORIGIN + 0.05
    front = GaussNewton(seen(broken_once), ORIGIN, begun, LOW, HIGH, UNIT, squared=False)
    for _ in range(2):
        front.advance(0.1 * UNIT)
    assert front.data.isfinite().all()
    torch.testing.assert_close(front._base[0], front.points[0] - ORIGIN[0])
    torch.testing.assert_close(front._base[1], begun[1] - ORIGIN[1])


def test_one_step_is_no_longer_than_half_of_the_distortion() -> None:
    front = GaussNewton(seen(linear), ORIGIN, 0.9 * ORIGIN + 0.05, LOW, HIGH, UNIT, squared=False)
    before = front.points
    for _ in range(20):
        front.advance(torch.full_like(UNIT, 1e-6))
        moved = torch.linalg.vector_norm(front.points - before, dim=1)
        length = torch.linalg.vector_norm(before - ORIGIN, dim=1)
        assert (moved <= 0.5 * length.clamp(min=0.05) + 1e-12).all()
        before = front.points


@pytest.mark.parametrize("wrong", ["values", "slopes"])
def test_a_row_that_is_never_finite_is_given_up_and_the_model_sees_no_nan(wrong: str) -> None:
    met = []

    def gone(points: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        met.append(points)
        residuals, jacobian = linear(points, row)
        if wrong == "values":
            return residuals.masked_fill(row[:, None] == 1, torch.nan), jacobian
        return residuals, jacobian.masked_fill(row[:, None, None] == 1, torch.inf)

    start = 0.9 * ORIGIN + 0.05
    front = GaussNewton(seen(gone), ORIGIN, start, LOW, HIGH, UNIT, squared=False)
    alone = GaussNewton(
        seen(lambda points, row: gone(points, row + 1)), ORIGIN[1:], start[1:], LOW, HIGH, UNIT[1:], squared=False
    )
    for _ in range(150):
        front.advance(torch.full_like(UNIT, 0.1))
        alone.advance(torch.full_like(UNIT[1:], 0.1))
    assert all(points.isfinite().all() for points in met)
    assert front.alive
    assert front.moves.tolist() == [True, False]
    assert not alone.alive


def test_residuals_that_depend_on_each_other_are_solved_in_single_precision() -> None:
    def doubled(points: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        residuals, jacobian = linear(points.double(), row)
        return torch.cat([residuals, residuals], 1).float(), torch.cat([jacobian, jacobian], 1).float()

    front = GaussNewton(
        seen(doubled),
        ORIGIN.float(),
        0.9 * ORIGIN.float() + 0.05,
        LOW.float(),
        HIGH.float(),
        UNIT.float(),
        squared=False,
    )
    for step in range(60):
        front.advance(torch.full_like(UNIT.float(), 1e-6), LEAST * 2.0 ** max(0.0, (step - 30) / 4))
    assert (front.data <= 1e-6).all()
