"""Paired differences: against SciPy's bootstrap and enumeration, and how often intervals and tests are wrong."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vaeaudit.stats.estimates import Sample
from vaeaudit.stats.paired import Difference, difference, holm, least_p, signed_rank_p

LEVEL = 0.95


def found(old: object, new: object, q: float | None = None, level: float = LEVEL) -> Difference:
    answer = difference(Sample(np.asarray(old, float), q), Sample(np.asarray(new, float), q), level)
    assert answer is not None
    return answer


@pytest.fixture
def skewed() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    old = generator.normal(size=40)
    return old, old + generator.exponential(size=40) - 0.4


def test_a_mean_differs_by_the_mean_of_differences_and_a_median_by_their_median(
    skewed: tuple[np.ndarray, np.ndarray],
) -> None:
    old, new = skewed
    assert found(old, new).value == pytest.approx(np.mean(new - old), rel=1e-12)
    assert found(old, new, 0.5).value == pytest.approx(np.median(new - old), rel=1e-12)
    quartile = np.sort(new)[9] - np.sort(old)[9]  # x_(ceil(40 / 4))
    assert found(old, new, 0.25).value == pytest.approx(quartile, rel=1e-12)


@pytest.mark.parametrize(("q", "statistic"), [(None, np.mean), (0.5, np.median)])
def test_the_interval_is_that_of_scipys_bootstrap(
    skewed: tuple[np.ndarray, np.ndarray], q: float | None, statistic: object
) -> None:
    old, new = skewed
    ours = found(old, new, q).ci
    generator = np.random.default_rng(0)
    theirs = stats.bootstrap((new - old,), statistic, n_resamples=40_000, rng=generator).confidence_interval
    assert ours is not None
    # Both are simulated: two of 1,999 resamples at the ends move them by some percent of the interval.
    assert np.allclose(ours, theirs, atol=0.08 * (theirs.high - theirs.low))


def test_the_mirrored_question_has_the_mirrored_answer(skewed: tuple[np.ndarray, np.ndarray]) -> None:
    old, new = skewed
    for q in (None, 0.5):
        there, back = found(old, new, q), found(new, old, q)
        assert back.value == pytest.approx(-there.value)
        assert (back.p_higher, back.p_lower) == (there.p_lower, there.p_higher)


def signed_rank(each: np.ndarray) -> float:
    """P(sum of the ranks of positive differences >= seen) by enumeration of all signs."""
    ranks = stats.rankdata(np.abs(each))
    seen = ranks[each > 0].sum()
    sums = [ranks[np.array(signs, bool)].sum() for signs in product((0, 1), repeat=len(each))]
    return float(np.mean(np.array(sums) >= seen - 1e-9))


@pytest.mark.parametrize("each", [[1.0, 2, -0.5, 3, 4, 5], [1.0, 1, -1, 2, 2, 3, 3], [0.1] * 6, [5.0, -4, 3, -2, 1]])
def test_p_values_are_those_of_all_signs_with_ties_as_well(each: list[float]) -> None:
    values = np.array(each)
    zero = np.zeros_like(values)
    assert found(zero, values).p_higher == pytest.approx(signed_rank(values))
    assert found(zero, values).p_lower == pytest.approx(signed_rank(-values))


@pytest.mark.parametrize("n", [5, 10, 20])
def test_no_p_value_is_below_what_so_many_pairs_can_give(n: int) -> None:
    assert found(np.zeros(n), np.arange(n) + 1.0).p_higher == pytest.approx(least_p(n)) == pytest.approx(0.5**n)


def test_what_is_the_same_differs_by_exactly_0() -> None:
    values = np.arange(12.0)
    for q in (None, 0.5, 0.25):
        same = found(values, values, q)
        assert (same.value, same.ci, same.n, same.moved) == (0.0, (0.0, 0.0), 12, 0)
        assert (same.p_higher, same.p_lower) == (1.0, 1.0)


@pytest.mark.parametrize("n", [52, 70])
def test_ties_among_many_items_make_no_test_too_sure(n: int) -> None:
    """All differences of one size: the test is that of signs, whose chances are binomial."""
    for positive in range(n // 2, n + 1, 3):
        each = np.where(np.arange(n) < positive, 2.0, -2.0)
        assert signed_rank_p(each, "greater") == pytest.approx(stats.binom.sf(positive - 1, n, 0.5), rel=1e-9)


def test_two_infinite_values_tell_nothing_of_each_other() -> None:
    old = np.array([*[np.inf] * 17, 1.0, 1.1, 1.2])
    new = np.array([*[np.inf] * 17, 0.1, 0.2, 0.3])
    answer = found(old, new, 0.5)
    assert (answer.n, answer.moved, answer.p_lower) == (3, 3, 0.125)


def test_infinite_values_count_in_medians_and_not_in_means() -> None:
    old = np.array([1.0, 2, 3, 4, 5, 6, 7, np.inf])
    assert found(old, old + 1).n == 7
    fallen = found(old, np.where(np.isinf(old), 9, old), 0.5)
    assert (fallen.n, fallen.moved, fallen.p_lower) == (8, 1, 0.5)
    none = difference(Sample(np.full(6, np.inf), None), Sample(np.ones(6), None), LEVEL)
    assert none is None


def test_pairs_with_a_value_that_is_not_there_are_left_out() -> None:
    old = np.array([1.0, np.nan, 3, 4, 5, 6, 7])
    assert found(old, old + 1, 0.5).n == 6


def test_samples_of_other_items_or_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        difference(Sample(np.ones(3), None), Sample(np.ones(4), None), LEVEL)
    with pytest.raises(ValueError, match="cannot be paired"):
        difference(Sample(np.ones(3), None), Sample(np.ones(3), 0.5), LEVEL)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_procedure_rejects(p: list[float]) -> None:
    adjusted = holm(np.array(p))
    for alpha in (0.01, 0.05, 0.3):
        rejected, order = set(), np.argsort(p, kind="stable")
        for step, place in enumerate(order):
            if p[place] > alpha / (len(p) - step):
                break
            rejected.add(int(place))
        agreed = {place for place in range(len(p)) if adjusted[place] <= alpha}
        # A p-value on the very threshold may fall on either side of it by rounding.
        assert all(np.isclose(adjusted[place], alpha) for place in rejected ^ agreed)


@pytest.mark.parametrize("n", [10, 60])
def test_the_same_model_with_other_draws_is_called_worse_no_more_often_than_allowed(n: int) -> None:
    """600 pairs of heavy-tailed samples of the same model, 6 metrics each; allowed 5%, 30 of 600."""
    generator = np.random.default_rng(11)
    alarms = 0
    for _ in range(600):
        item = generator.normal(size=n)
        old, new = (item + 0.3 * generator.standard_t(3, size=(6, n)) for _ in range(2))
        p = holm(np.array([signed_rank_p(each, "less") for each in new - old]))
        alarms += bool((p <= 0.05).any())
    assert stats.binom.sf(alarms - 1, 600, 0.05) > 1e-3, alarms
    assert alarms > 0, "a test that never errs at 5% is no test at 5%"


@pytest.mark.parametrize(("q", "n", "least"), [(None, 40, 0.9), (0.5, 20, 0.9)])
def test_the_interval_covers_the_difference_nearly_as_often_as_it_says(q: float | None, n: int, least: float) -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        old = generator.normal(size=n)
        low, high = found(old, old + 0.7 + generator.normal(size=n), q).ci or (np.nan, np.nan)
        covered += low <= 0.7 <= high
    assert covered / 300 >= least, covered


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12),
    st.sampled_from([None, 0.25, 0.5]),
    st.floats(0, 0.99),
)
def test_values_within_rounding_of_their_size_are_equal(values: list[float], q: float | None, share: float) -> None:
    """Their size is that of the item, or of the median item where that is larger."""
    old = np.array(values)
    size = np.maximum(np.abs(old), np.median(np.abs(old)))
    same = difference(Sample(old, q), Sample(old + 1e-4 * share * size * 0.999, q), LEVEL, rounding=1e-4)
    assert same is not None
    assert (same.value, same.ci, same.moved, same.p_higher, same.p_lower) == (0, (0, 0), 0, 1, 1)


def test_a_change_by_rounding_moves_the_interval_of_few_items_by_rounding() -> None:
    old, new = np.random.default_rng(3).exponential(0.05, (2, 5))  # one resample of 26 is the items in another order
    for moved in (new * (1 + 1e-13 * np.arange(5)), new * 3 / 3, new * 0.1 / 0.1):
        assert found(old, moved).ci == pytest.approx(found(old, new).ci, rel=1e-9)


def test_one_large_value_that_both_have_moves_the_interval_of_no_quantile() -> None:
    old, new = np.random.default_rng(5).exponential(1, (2, 30))
    old[0] = new[0] = 1e3
    before = found(old, new, 0.9).ci
    old[0] = new[0] = 1e12
    assert found(old, new, 0.9).ci == before


def test_what_exceeds_rounding_stays_whole_and_infinite_values_are_never_rounded() -> None:
    old = np.array([1.0, 2.0, 3.0, np.inf])
    new = np.array([1.0 + 1e-3, 2.0 + 1e-8, 3.0, 5.0])
    moved = difference(Sample(old, 0.5), Sample(new, 0.5), LEVEL, rounding=1e-4)
    assert moved is not None
    assert moved.moved == 2
    assert moved.each.tolist() == [pytest.approx(1e-3), 0, 0, -np.inf]
