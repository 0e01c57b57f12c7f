import math
from dataclasses import FrozenInstanceError
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats as reference

from vaeaudit import stats
from vaeaudit.stats import Measurement


def median(values: object, level: float = 0.95) -> Measurement:
    return stats.median(values, unit="nats", direction="higher", level=level)  # type: ignore[arg-type]


def mean(values: object, level: float = 0.95) -> Measurement:
    return stats.mean(values, unit="nats", direction="higher", level=level)  # type: ignore[arg-type]


def largest_rank(n: int, level: Fraction) -> int:
    """The largest k with P(Bin(n, 1/2) < k) <= (1 - level) / 2, in exact fractions."""
    k, below = 0, Fraction(0)
    while (below := below + Fraction(math.comb(n, k), 2**n)) <= (1 - level) / 2:
        k += 1
    return k


@pytest.mark.parametrize(
    ("values", "expected"),
    [([5.0], 5.0), ([2.0, 9.0], 2.0), ([9.0, 1.0, 4.0], 4.0), ([8.0, 6.0, 2.0, 4.0], 4.0)],
)
def test_the_median_is_one_of_the_values_and_never_between_two(values: list[float], expected: float) -> None:
    assert median(values).value == expected


# Ranks that tables of the sign test print.
@pytest.mark.parametrize(
    ("n", "low", "high"), [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (20, 6, 15), (100, 40, 61)]
)
def test_the_interval_of_the_median_has_the_ranks_of_the_tables(n: int, low: int, high: int) -> None:
    shuffled = np.random.default_rng(0).permutation(np.arange(1, n + 1))
    assert median(shuffled).ci == (low, high)


@pytest.mark.parametrize("level", [Fraction(9, 10), Fraction(95, 100), Fraction(99, 100), Fraction(999, 1000)])
def test_the_interval_of_the_median_is_the_shortest_that_covers_enough_for_every_n(level: Fraction) -> None:
    for n in range(1, 200):
        k = largest_rank(n, level)
        expected = (k, n + 1 - k) if k else None
        assert median(range(1, n + 1), float(level)).ci == expected, n


def test_the_interval_of_the_median_uses_the_level_up_where_it_is_met_exactly() -> None:
    # P(all five on one side of the median) = 2/32: the range of five values covers 15/16 exactly.
    assert median([1, 2, 3, 4, 5], level=15 / 16).ci == (1, 5)


@pytest.mark.parametrize("n", range(6))
def test_fewer_than_six_values_have_no_median_interval_at_95_percent(n: int) -> None:
    measured = median(range(n))
    assert measured.ci is None
    assert measured.n == n
    assert (measured.value is None) == (n == 0)


def test_the_interval_of_the_median_covers_as_often_as_the_binomial_formula_says() -> None:
    n, runs = 25, 3_000
    samples = np.random.default_rng(1).lognormal(sigma=2.0, size=(runs, n))  # median 1, very skew
    intervals = np.array([median(row).ci for row in samples])
    covered = float(((intervals[:, 0] <= 1) & (intervals[:, 1] >= 1)).mean())
    exact = 1 - 2 * float(reference.binom.cdf(largest_rank(n, Fraction(95, 100)) - 1, n, 0.5))
    assert exact >= 0.95
    assert abs(covered - exact) < 4 * (exact * (1 - exact) / runs) ** 0.5


def test_the_median_and_its_interval_commute_with_every_increasing_function() -> None:
    values = np.random.default_rng(2).normal(size=31)
    plain, raised = median(values), median(np.exp(values))
    assert plain.value is not None
    assert plain.ci is not None
    assert raised.value == np.exp(plain.value)
    assert raised.ci == tuple(np.exp(plain.ci))


def test_the_interval_of_the_mean_is_students() -> None:
    values = np.random.default_rng(3).normal(2.0, 3.0, size=17)
    for level in (0.8, 0.95, 0.999):
        expected = reference.ttest_1samp(values, 0).confidence_interval(level)
        measured = mean(values, level)
        assert measured.value == pytest.approx(values.mean(), rel=1e-14)
        assert measured.ci == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_the_interval_of_the_mean_by_hand() -> None:
    # 1, 2, 3: mean 2, standard deviation 1; Student's t with 2 degrees of freedom has a closed quantile, 4.3027.
    half = 0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3)
    assert mean([1, 2, 3]).ci == pytest.approx((2 - half, 2 + half), rel=1e-12)


def test_the_interval_of_the_mean_covers_normal_values_as_often_as_it_says() -> None:
    runs = 3_000
    samples = np.random.default_rng(4).normal(size=(runs, 5))
    intervals = np.array([mean(row).ci for row in samples])
    covered = float(((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0)).mean())
    assert abs(covered - 0.95) < 4 * (0.95 * 0.05 / runs) ** 0.5


def test_one_value_has_a_mean_and_no_interval_and_none_has_neither() -> None:
    assert (mean([4.0]).value, mean([4.0]).ci) == (4.0, None)
    assert (mean([]).value, mean([]).ci, mean([]).n) == (None, None, 0)


def test_a_mean_leaves_out_what_is_not_finite_and_counts_it() -> None:
    good = [3.0, 1.0, 2.0, 5.0, 4.0, 6.0, 7.0]
    spoilt, clean = mean([math.nan, *good, math.inf, -math.inf]), mean(good)
    assert (spoilt.value, spoilt.ci, spoilt.n) == (clean.value, clean.ci, 7)
    assert (spoilt.nonfinite, clean.nonfinite) == (3, 0)


def test_an_infinite_value_keeps_its_place_in_a_median_and_nan_has_none() -> None:
    # Left out, the infinities would pull the median down; they are the largest values there are.
    measured = median([math.nan, 1.0, 2.0, 3.0, 4.0, math.inf, math.inf, math.inf])
    assert (measured.value, measured.n, measured.nonfinite) == (4.0, 7, 4)
    assert measured.ci is None  # its upper end is infinite
    many = median([*range(20), math.inf])
    assert many.value == 10
    assert many.ci is not None


@pytest.mark.parametrize("measure", [median, mean])
def test_nothing_but_bad_values_has_no_value_rather_than_nan(measure: object) -> None:
    measured = measure([math.nan, math.inf])  # type: ignore[operator]
    assert (measured.value, measured.ci, measured.nonfinite) == (None, None, 2)


def test_a_measurement_says_what_it_is_and_does_not_change() -> None:
    measured = stats.median([1, 2, 3], unit="input units", direction="lower")
    assert (measured.unit, measured.direction, measured.level) == ("input units", "lower", 0.95)
    assert "median" in measured.estimator
    assert "t interval" in mean([1, 2]).estimator
    with pytest.raises(FrozenInstanceError):
        measured.value = 0.0  # type: ignore[misc]
