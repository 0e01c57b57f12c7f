"""The search for the largest radius: what it hands out was shown, it comes near what could be, and it ends."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vaeaudit.certify.climb import Climb
from vaeaudit.certify.ellipsoids import TooFarError, _norm
from vaeaudit.certify.matrices import NotShownError
from vaeaudit.certify.sectors import _Search

LEVELS: dict[str, Callable[[float], float]] = {
    "linear in log r": math.log,
    "linear": lambda r: r - 1,
    "square": lambda r: r * r - 1,
    "steep": lambda r: 5 * math.log(r),
    "with a kink": lambda r: r - 5 + 20 * max(0.0, r - 0.8),
}
BALLS = 42  # of a small network


class Verified:
    """Balls whose excess rises with the radius through 0 at ``exact``; from ``fails`` on nothing is shown."""

    def __init__(
        self, excess: Callable[[float], float], exact: float, fails: float = math.inf, error: Any = NotShownError
    ) -> None:
        self.excess, self.exact, self.fails, self.error = excess, exact, fails, error
        self.balls: list[float] = []
        self.shown: list[float] = []

    def look(self, radius: float, _lost: float) -> tuple[float, bool, float]:
        self.balls.append(radius)
        if radius >= self.fails:
            raise self.error
        excess = self.excess(radius / self.exact)
        if excess < 0:
            self.shown.append(radius)
        return excess, excess < 0, 0.0

    def climbed(self, first: float, *, best: float = 0.0, wide: bool = False, most: int | None = None) -> float:
        """The radius found from ``first`` on, where ``most`` balls are looked at before time is up."""
        search: Any = object.__new__(_Search)
        search.wide, search._look, search._retreat, search.found = wide, self.look, lambda: None, []
        search.item = SimpleNamespace(shown=None, pace=1.0, dtype=torch.float64, multipliers=None)
        found = search._grow(best, first, 1.2 * self.exact, lambda: most is None or len(self.balls) < most)
        assert found == max([best, *self.shown]), "what is handed out was shown, and is the largest that was"
        return float(found)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", LEVELS)
def test_the_radius_found_is_shown_and_nearly_the_largest_wherever_the_search_begins(name: str, wide: bool) -> None:
    for exact in (1e-3, 1.0, 1e5):
        for begin in (0.05, 0.3, 1.5, 10.0):
            verified = Verified(LEVELS[name], exact)
            found = verified.climbed(begin * exact, wide=wide)
            assert (0.96 if wide else 0.995) * exact <= found < exact, (exact, begin, found / exact)
            assert len(verified.balls) <= (14 if wide else BALLS / 2)


@pytest.mark.parametrize("error", [NotShownError, TooFarError])
def test_where_balls_fail_before_the_level_is_lost_the_search_closes_in_on_those_that_do_not(error: Any) -> None:
    for fails in (0.02, 0.4, 0.9):
        verified = Verified(math.log, 1.0, fails, error)
        found = verified.climbed(0.3)
        assert 0.8 * fails <= found < fails, found
        assert len(verified.balls) <= BALLS / 2


def test_where_no_ball_shows_anything_the_radius_is_0_and_the_search_ends() -> None:
    verified = Verified(math.log, 1.0, 0.0)
    assert verified.climbed(0.3) == 0.0
    assert len(verified.balls) == BALLS
    assert verified.balls == sorted(verified.balls, reverse=True)


def test_a_deadline_ends_the_search_with_the_largest_radius_shown_until_then() -> None:
    found = []
    for most in range(8):
        verified = Verified(LEVELS["with a kink"], 1.0)
        found.append(verified.climbed(0.05, best=0.01, most=most))
        assert len(verified.balls) == most
    assert found[0] == 0.01  # verified before
    assert found == sorted(found)
    assert found[-1] > 0.05


def test_a_search_that_has_settled_names_a_radius_a_little_beyond_that_may_hold() -> None:
    climb = Climb(0.0, 0.3, 1.2, True)
    while not climb.over:
        climb.shown(math.log(climb.tried), climb.tried < 1, 0.0)
    assert climb.settled
    assert climb.best < climb.tried < 1


def test_the_norm_that_multipliers_start_from_is_about_the_largest_singular_value_and_never_above() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 7, 60):
        half = torch.randn(n, 2 * n, generator=generator, dtype=torch.float64)
        apart = torch.block_diag(half @ half.T, 3 * torch.eye(2, dtype=torch.float64), half[:, :n] + half[:, :n].T)
        for matrix in (half @ half.T, apart, 1e-9 * apart, apart.float()):
            exact = float(torch.linalg.svdvals(matrix.double())[0])
            assert 0.9 * exact <= _norm(matrix) <= exact * (1 + 1e-6), (n, _norm(matrix) / exact)
    assert 0 <= _norm(torch.zeros(3, 3)) <= 1e-30  # and nothing is divided by 0
