import math
from dataclasses import FrozenInstanceError
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from vaeaudit.stats import estimates
from vaeaudit.stats.estimates import Measurement


def median(values: object, level: float = 0.95) -> Measurement:
    return estimates.median(values, unit="nats", direction="higher", level=level)  # type: ignore[arg-type]


def mean(values: object, level: float = 0.95) -> Measurement:
    return estimates.mean(values, unit="nats", direction="higher", level=level)  # type: ignore[arg-type]


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


def test_the_bootstrap_interval_of_a_mean_repeats_and_is_near_students_for_normal_values() -> None:
    values = np.random.default_rng(0).normal(3, 1, 200).tolist()
    found, student = (
        measure(values, unit="nats", direction="none") for measure in (estimates.bootstrap_mean, estimates.mean)
    )
    assert found == estimates.bootstrap_mean(values, unit="nats", direction="none")
    assert found.value == student.value
    np.testing.assert_allclose(found.ci, student.ci, atol=0.02)


def test_the_bootstrap_interval_of_a_mean_follows_the_skew_and_needs_two_values() -> None:
    skewed = np.random.default_rng(1).exponential(1, 40)
    found = estimates.bootstrap_mean(skewed.tolist(), unit="nats", direction="none")
    assert found.ci is not None
    assert found.ci[1] - skewed.mean() > skewed.mean() - found.ci[0]
    assert estimates.bootstrap_mean([2.0], unit="nats", direction="none").ci is None
    assert estimates.bootstrap_mean([2.0, 2.0, math.inf], unit="nats", direction="none").ci == (2.0, 2.0)


def test_a_change_by_rounding_moves_the_bootstrap_interval_of_few_values_by_rounding() -> None:
    values = np.random.default_rng(3).exponential(0.05, 5)  # one resample of 26 is the sample in another order
    found = estimates.bootstrap_mean(values.tolist(), unit="nats", direction="none").ci
    assert found is not None
    for moved in (values * (1 + 1e-13 * np.arange(5)), values * 3 / 3, values[::-1][::-1] + 1e-17, values * 0.1 / 0.1):
        other = estimates.bootstrap_mean(moved.tolist(), unit="nats", direction="none").ci
        assert other == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize(
    "values", [[1, 1 + 1e-15, 1], [3, 3 + 1e-14, 3 - 1e-14, 3], [(0.1 * x) / x for x in range(1, 21)]]
)
def test_values_that_differ_by_rounding_have_their_range_as_the_interval_of_their_mean(values: list[float]) -> None:
    found = estimates.bootstrap_mean(values, unit="nats", direction="none")
    assert found.ci == (min(values), max(values))


@pytest.mark.parametrize("spread", [1e-13, 1e-9, 1.0])
def test_the_bootstrap_interval_of_few_values_is_finite_and_as_wide_as_they_are(spread: float) -> None:
    found = estimates.bootstrap_mean([1, 1 + spread, 1, 1 - spread], unit="nats", direction="none")
    assert found.ci is not None
    assert 0.5 * spread <= found.ci[1] - found.ci[0] <= 2 * spread


@pytest.mark.parametrize("scale", [1e-300, 1e-110, 1e110, 1e150])
def test_the_bootstrap_interval_of_a_mean_has_the_units_of_the_values(scale: float) -> None:
    one, other = (estimates.bootstrap_mean([s, 2 * s, 4 * s], unit="nats", direction="none").ci for s in (1.0, scale))
    assert one is not None
    assert other == pytest.approx((one[0] * scale, one[1] * scale))


def test_the_rank_correlation_is_scipys_and_counts_infinity_as_the_largest() -> None:
    x = np.random.default_rng(2).normal(size=30)
    y = x + np.random.default_rng(3).normal(size=30)
    found = estimates.rank_correlation(x.tolist(), y.tolist())
    assert found.value == pytest.approx(reference.spearmanr(x, y).statistic, rel=1e-12)
    assert found.ci is not None
    assert found.ci[0] < found.value < found.ci[1]
    y[y.argmax()] = math.inf
    assert estimates.rank_correlation(x.tolist(), y.tolist()).value == found.value
    assert estimates.rank_correlation([1, 1, 1], [1, 2, 3]).value is None
    assert estimates.rank_correlation([1, 2], [2, 1]).ci is None


def test_the_interval_of_the_rank_correlation_covers_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(4)
    truth = 6 / math.pi * math.asin(0.6 / 2)  # of normal values correlated by 0.6
    covered = 0
    for _ in range(400):
        x = generator.normal(size=25)
        found = estimates.rank_correlation(x.tolist(), (0.6 * x + 0.8 * generator.normal(size=25)).tolist())
        assert found.ci is not None
        covered += found.ci[0] <= truth <= found.ci[1]
    assert covered >= 0.92 * 400


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
    measured = estimates.median([1, 2, 3], unit="input units", direction="lower")
    assert (measured.unit, measured.direction, measured.level) == ("input units", "lower", 0.95)
    assert "median" in measured.estimator
    assert "t interval" in mean([1, 2]).estimator
    with pytest.raises(FrozenInstanceError):
        measured.value = 0.0  # type: ignore[misc]


# Proportions


def proportion(successes: int, n: int, level: float = 0.95) -> Measurement:
    return estimates.proportion(successes, n, unit="share", direction="lower", level=level)


def test_clopper_pearson_bounds_agree_with_the_oracle(oracle: dict[str, Any]) -> None:
    section = oracle["clopper_pearson"]
    for case in section["cases"]:
        low, high = estimates.clopper_pearson(case["k"], case["n"], case["alpha"])
        assert low == pytest.approx(case["lower"], abs=section["tol"])
        assert high == pytest.approx(case["upper"], abs=section["tol"])


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 7), (3, 7), (7, 7), (41, 100)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_the_interval_of_a_proportion_is_scipys_exact_one(k: int, n: int, level: float) -> None:
    expected = reference.binomtest(k, n).proportion_ci(level, "exact")
    measured = proportion(k, n, level)
    assert measured.value == k / n
    assert measured.n == n
    assert measured.ci == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_clopper_pearson_covers_every_probability_often_enough() -> None:
    n, level = 12, 0.95
    intervals = [proportion(k, n, level).ci for k in range(n + 1)]
    for p in np.linspace(0.001, 0.999, 333):
        covered = sum(
            reference.binom.pmf(k, n, p) for k, ci in enumerate(intervals) if ci is not None and ci[0] <= p <= ci[1]
        )
        assert covered >= level


@pytest.mark.parametrize(("k", "n"), [(-1, 3), (4, 3), (0, 0)])
def test_counts_that_cannot_be_are_an_error(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=rf"{k} of {n}"):
        estimates.clopper_pearson(k, n, 0.025)


def test_no_trials_give_no_proportion_rather_than_0_or_1() -> None:
    measured = proportion(0, 0)
    assert (measured.value, measured.ci, measured.n) == (None, None, 0)


def mean_proportion(successes: list[int], n: list[int], level: float = 0.95) -> Measurement:
    return estimates.mean_proportion(successes, n, unit="share", direction="lower", level=level)


def test_the_mean_of_proportions_weighs_each_group_alike() -> None:
    measured = mean_proportion([1, 9], [1, 90])
    assert measured.value == pytest.approx((1 + 0.1) / 2)
    assert measured.n == 91
    assert "Hoeffding" in measured.estimator


def test_with_as_many_trials_in_each_group_it_is_the_proportion_of_all() -> None:
    measured, pooled = mean_proportion([1, 4, 0], [5, 5, 5]), proportion(5, 15)
    assert (measured.value, measured.ci, measured.n) == (pooled.value, pooled.ci, pooled.n)


@pytest.mark.parametrize(("successes", "n"), [([], []), ([0], [0]), ([1, 0], [3, 0])])
def test_a_group_without_trials_leaves_the_mean_of_proportions_without_value(
    successes: list[int], n: list[int]
) -> None:
    measured = mean_proportion(successes, n)
    assert (measured.value, measured.ci, measured.n) == (None, None, sum(n))


@pytest.mark.parametrize("n", [[6, 6, 6], [2, 5, 11]])
@pytest.mark.parametrize("p", [[0.5, 0.5, 0.5], [0.05, 0.5, 0.95], [0.02, 0.02, 0.1]])
def test_the_interval_of_the_mean_of_proportions_covers_often_enough(n: list[int], p: list[float]) -> None:
    # All outcomes with their exact probabilities.
    covered = 0.0
    for outcome in product(*(range(count + 1) for count in n)):
        ci = mean_proportion(list(outcome), n).ci
        assert ci is not None
        assert 0 <= ci[0] <= ci[1] <= 1
        chance = math.prod(float(reference.binom.pmf(*each)) for each in zip(outcome, n, p, strict=True))
        covered += chance * (ci[0] <= sum(p) / len(p) <= ci[1])
    assert covered >= 0.95


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=9))
def test_the_interval_of_a_mean_keeps_to_what_the_figure_can_be_and_loses_nothing_of_it(values: list[float]) -> None:
    """Two pairs of a figure that is never negative once had a mean within [-631, ...]."""
    plain = estimates.mean(values, unit="nats", direction="higher")
    kept = estimates.mean(values, unit="nats", direction="higher", support=estimates.NOT_NEGATIVE)
    assert plain.ci is not None
    assert kept.ci == (max(plain.ci[0], 0.0), plain.ci[1])
    assert kept.value == plain.value


@pytest.mark.parametrize(
    ("value", "support", "interval"),
    [
        (0.5, (0.0, 1.0), (0.0, 1.0)),
        (-7e-10, (0.0, math.inf), (-7e-10, 2.0)),  # an estimate stays in its interval
        (1.5, (0.0, 1.0), (0.0, 1.5)),
        (0.5, (-math.inf, math.inf), (-2.0, 2.0)),
    ],
)
def test_an_interval_is_cut_to_the_support_and_never_off_its_estimate(
    value: float, support: tuple[float, float], interval: tuple[float, float]
) -> None:
    assert estimates.cut((-2.0, 2.0), value, support) == interval


def test_an_interval_off_the_support_reaches_into_it() -> None:
    assert estimates.cut((-3.0, -1.0), -2.0, (0.0, 1.0)) == (-2.0, 0.0)
    assert estimates.cut((2.0, 4.0), 3.0, (0.0, 1.0)) == (1.0, 3.0)
