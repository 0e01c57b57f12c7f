"""Walks: what they cross, and what holds wherever they lead."""

import torch
from torch import Tensor

from vaeaudit.optim.lbfgsb import Stopping, minimise
from vaeaudit.optim.walk import walk

LOW, HIGH = torch.zeros(1, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.float64)
START = torch.tensor([[1.0, 0.0, 0.5, 0.2], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
STEP = torch.tensor([0.2, 0.2], dtype=torch.float64)


def creased(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    """10 sum |x_i - x_{i+1}| + sum (x_i - 0.7)^2: its minimum, 0, lies on every kink at once."""
    step, way = x.diff(dim=1), x - 0.7
    slope = 2 * way
    slope[:, 1:] += 10 * step.sign()
    slope[:, :-1] -= 10 * step.sign()
    return 10 * step.abs().sum(1) + way.square().sum(1), slope


def test_a_walk_goes_on_where_a_search_is_stuck_at_a_kink() -> None:
    walked = walk(creased, START, LOW, HIGH, STEP, 300, lambda _: True)
    searched = minimise(creased, START, LOW, HIGH, Stopping(ftol=1e-10, max_evaluations=300))
    assert (walked.value <= 0.1).all()
    assert (searched.value[0] >= 2 * walked.value[0]).all()


def test_what_a_walk_tells_is_the_best_point_that_it_met() -> None:
    met: list[tuple[Tensor, Tensor]] = []

    def watched(x: Tensor, problem: Tensor) -> tuple[Tensor, Tensor]:
        met.append((x.clone(), creased(x, problem)[0]))
        return creased(x, problem)

    before = START.clone()
    found = walk(watched, START, LOW, HIGH, STEP, 40, lambda _: True)
    assert torch.equal(START, before)
    assert found.evaluations.tolist() == [40, 40]
    values = torch.stack([value for _, value in met])
    assert torch.equal(found.value, values.amin(0))
    assert all(torch.equal(found.x[row], met[int(at)][0][row]) for row, at in enumerate(values.argmin(0)))
    assert all(((x >= LOW) & (x <= HIGH)).all() for x, _ in met)


def test_a_walk_that_is_ended_keeps_what_it_has() -> None:
    found = walk(creased, START, LOW, HIGH, STEP, 40, lambda taken: taken < 3)
    assert found.evaluations.tolist() == [3, 3]
    none = walk(creased, START, LOW, HIGH, STEP, 40, lambda _: False)
    assert none.value.isposinf().all()
    assert torch.equal(none.x, START)


def test_a_point_that_is_not_finite_ends_no_other_walk() -> None:
    def hole(x: Tensor, problem: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = creased(x, problem)
        gone = (x == START[:1]).all(1)
        return value.masked_fill(gone, torch.nan), slope.masked_fill(gone[:, None], torch.nan)

    found = walk(hole, START, LOW, HIGH, STEP, 300, lambda _: True)
    assert found.value[0].isposinf()
    assert found.value[1] <= 0.1


def test_the_units_of_the_objective_lead_a_walk_nowhere_else() -> None:
    def scaled(x: Tensor, problem: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = creased(x, problem)
        return 2.0**-40 * value, 2.0**-40 * slope

    found, other = (walk(each, START, LOW, HIGH, STEP, 50, lambda _: True) for each in (creased, scaled))
    torch.testing.assert_close(other.x, found.x, rtol=1e-9, atol=1e-12)
