"""Intervals over trainings and items together, against two levels of normal values whose variance is known."""

import math

import numpy as np
import pytest

from vaeaudit.stats.levels import Array, levelled

SEEDS, ITEMS = 3, 12


def drawn(rng: np.random.Generator, seeds: float, items: float, both: float = 0.5) -> Array:
    """What a training, an item, and the two together add, of these standard deviations: (seeds, items)."""
    each = rng.normal(size=(SEEDS, 1)), rng.normal(size=(1, ITEMS)), rng.normal(size=(SEEDS, ITEMS))
    return np.asarray(seeds * each[0] + items * each[1] + both * each[2])


@pytest.mark.parametrize(("seeds", "items"), [(1.0, 0.0), (0.0, 1.0), (0.6, 1.0)])
@pytest.mark.parametrize("q", [None, 0.5])
def test_they_cover_the_true_figure_as_often_as_they_say(seeds: float, items: float, q: float | None) -> None:
    rng = np.random.default_rng(0)
    found = [levelled([drawn(rng, seeds, items)], q).ci for _ in range(300)]
    covered = sum(ci is not None and ci[0] <= 0 <= ci[1] for ci in found)
    assert covered >= 276  # 285 are expected; fewer than 276 come once in a hundred times


def test_the_variance_is_the_known_one_and_little_more() -> None:
    rng = np.random.default_rng(1)
    known = 1.0 / SEEDS + 4.0 / ITEMS + 0.25 / (SEEDS * ITEMS)
    samples = [drawn(rng, 1.0, 2.0) for _ in range(2000)]
    of_seeds = [sample.mean(1).var(ddof=1) / SEEDS for sample in samples]
    of_items = [sample.mean(0).var(ddof=1) / ITEMS for sample in samples]
    assert np.mean(of_seeds) + np.mean(of_items) == pytest.approx(known + 0.25 / (SEEDS * ITEMS), rel=0.04)
    value, ci = (one := levelled([samples[0]])).value, one.ci
    assert ci is not None
    a, b = of_seeds[0], of_items[0]
    freedom = (a + b) ** 2 / (a**2 / (SEEDS - 1) + b**2 / (ITEMS - 1))
    from scipy.stats import t

    assert ci == pytest.approx([value + sign * t.ppf(0.975, freedom) * math.sqrt(a + b) for sign in (-1, 1)])


def test_items_that_are_hard_for_all_models_do_not_hide_a_difference() -> None:
    rng = np.random.default_rng(2)
    hard = 100 * rng.normal(size=(1, ITEMS))
    first, second = (hard + shift + 0.1 * rng.normal(size=(SEEDS, ITEMS)) for shift in (0.0, 1.0))
    change = levelled([first, second])
    assert change.ci is not None
    assert change.value == pytest.approx(1, abs=0.2)
    assert 0 < change.ci[0] < change.ci[1] < 2
    alone = levelled([second]).ci
    assert alone is not None
    assert alone[1] - alone[0] > 50


@pytest.mark.parametrize("single", [0, 1])
def test_a_change_from_or_to_a_single_training_has_no_interval(single: int) -> None:
    rng = np.random.default_rng(3)
    groups = [drawn(rng, 1.0, 1.0), drawn(rng, 1.0, 1.0)]
    assert levelled(groups).ci is not None
    groups[single] = groups[single][:1]
    for found in (levelled(groups), levelled(groups, 0.5), levelled([group[:, 0] for group in groups])):
        assert (found.ci, found.seeds) == (None, 1)
        assert math.isfinite(found.value)
    assert levelled([groups[single]]).ci is not None  # over its items


def test_one_training_one_number_each_and_what_is_missing() -> None:
    values = np.array([[1.0, 2.0, 3.0, np.nan]])
    one = levelled([values])
    assert (one.value, one.seeds, one.items) == (2.0, 1, 3)
    assert one.ci == pytest.approx((2 - 4.3026 / math.sqrt(3), 2 + 4.3026 / math.sqrt(3)), rel=1e-4)
    numbers = levelled([np.array([1.0, 3.0])])
    assert (numbers.value, numbers.seeds, numbers.items) == (2.0, 2, 0)
    assert numbers.ci == pytest.approx((2 - 12.706, 2 + 12.706), rel=1e-4)
    assert levelled([np.array([1.0])]).ci is None
    assert levelled([np.array([5.0, 5.0, 5.0])]).ci == (5.0, 5.0)
    unbroken = levelled([np.array([[1.0, 2.0, math.inf], [1.0, 3.0, math.inf]])], 0.5)
    assert (unbroken.value, unbroken.ci) == (2.5, None)
    assert math.isnan(levelled([np.full((2, 3), np.nan)]).value)


def test_intervals_that_numbers_came_with_widen_those_over_trainings_by_squares_on_each_side() -> None:
    ends = np.array([[0.5, 0.9], [0.7, 0.9]])  # of 0.8 and 0.8: 0.2 below and 0.1 above, on average
    alike = np.array([0.8, 0.8])
    assert levelled([alike], ends=[ends]).ci == pytest.approx((0.6, 0.9))
    assert levelled([alike[:1]], ends=[ends[:1]]).ci == pytest.approx((0.5, 0.9))
    assert levelled([alike - 0.5, alike], ends=[ends - 0.5, ends]).ci == pytest.approx(
        (0.5 - math.hypot(0.2, 0.1), 0.5 + math.hypot(0.2, 0.1))
    )
    assert levelled([alike], ends=[ends], level=0.683).ci == pytest.approx(
        (0.8 - 0.2 / 1.96, 0.8 + 0.1 / 1.96), abs=1e-4
    )
    apart = np.array([1.0, 3.0])
    half = math.hypot(12.706, 0.5)
    assert levelled([apart], ends=[apart[:, None] + [-0.5, 0.5]]).ci == pytest.approx((2 - half, 2 + half), rel=1e-4)
    assert levelled([alike[:1], alike], ends=[ends[:1], ends]).ci is None


def test_the_squares_of_two_sides_cover_a_difference_of_shares_as_often_as_they_say() -> None:
    from scipy.stats import beta

    rng = np.random.default_rng(4)
    n, p = 40, np.array([0.9, 0.6])
    covered = 0
    for hits in rng.binomial(n, p, size=(400, 2)):
        ends = beta.ppf([[0.025], [0.975]], hits + 0.5, n - hits + 0.5).T  # Jeffreys' intervals
        ci = levelled([hits[:1] / n, hits[1:] / n], ends=[ends[:1], ends[1:]]).ci
        assert ci is None  # of one training each
        ci = levelled([hits[[0, 0]] / n, hits[[1, 1]] / n], ends=[ends[[0, 0]], ends[[1, 1]]]).ci
        assert ci is not None
        covered += ci[0] <= p[1] - p[0] <= ci[1]
    assert covered >= 368  # 380 are expected


@pytest.mark.parametrize("q", [None, 0.5])
def test_the_largest_figures_that_are_taken_have_intervals_that_scale(q: float | None) -> None:
    """Up to 1e140, whose squares are numbers and whose fourth powers are none."""
    groups = [np.random.default_rng(seed).uniform(-1, 1, (3, 20)) for seed in (0, 1)]
    plain, large = levelled(groups, q), levelled([1e140 * group for group in groups], q)
    assert plain.ci is not None
    assert large.ci == pytest.approx([1e140 * end for end in plain.ci])
