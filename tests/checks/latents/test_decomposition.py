"""The KL of a data set taken apart: against the oracle, closed forms, enumeration and torch's own mixtures."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vaeaudit.checks.latents import decomposition
from vaeaudit.checks.latents.decomposition import Decomposition, decompose, log_density, log_mixture, unit_kl
from vaeaudit.errors import ConfigError, ContractError, NonFiniteError
from vaeaudit.subject.encodings import Encodings

ALL = torch.arange


def gaussian(mean: Any, stddev: Any, *log_probabilities: Tensor) -> Encodings:
    mean, stddev = (torch.as_tensor(values, dtype=torch.float64) for values in (mean, stddev))
    return Encodings(mean, stddev.log(), log_probabilities)


def standard(units: int, *log_probabilities: Tensor) -> Encodings:
    return gaussian([[0.0] * units], [[1.0] * units], *log_probabilities)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def curved(n: int = 40, units: int = 3, seed: int = 0) -> Encodings:
    """Posteriors along a curve, so that the units depend on each other."""
    t = 4 * rand(n, 1, seed=seed) - 2
    mean = torch.cat([t.sin() * (k + 1) + t * k / 3 for k in range(units)], 1)
    return gaussian(mean, 0.2 + 0.5 * rand(n, units, seed=seed + 1))


def none_of(points: int) -> Tensor:
    return torch.empty(points, 0, dtype=torch.long)


def parts_of(encoded: Encodings, units: int = 3, **options: Any) -> Decomposition:
    found = decompose(encoded, standard(units), **options)
    assert found is not None
    return found


def three(found: Decomposition) -> list[float]:
    return [part.value for part in (found.mutual_information, found.total_correlation, found.dimension_wise)]


@pytest.fixture
def tc(oracle: dict[str, Any]) -> dict[str, Any]:
    return oracle["tc"]["cases"][0]


@pytest.fixture
def six(tc: dict[str, Any]) -> tuple[Encodings, Tensor]:
    """The oracle's six posteriors and a point of each."""
    return gaussian(tc["mu"], tc["s"]), torch.tensor(tc["z"], dtype=torch.float64)


# The KL of each unit


def test_the_kl_of_a_unit_is_the_oracles(oracle: dict[str, Any]) -> None:
    for case in oracle["kl"]["cases"]:
        q, p = gaussian([case["m1"]], [case["s1"]]), gaussian([case["m2"]], [case["s2"]])
        for other, expected in ((p, case["kl"]), (standard(len(case["m1"])), case["kl_prior"])):
            assert float(unit_kl(q, other).sum()) == pytest.approx(expected, rel=oracle["kl"]["tol"])


def test_the_kl_of_a_categorical_unit_is_torchs_and_a_class_of_probability_0_adds_nothing() -> None:
    q = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]], dtype=torch.float64)
    p = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    empty = [[]] * 2
    found = unit_kl(gaussian(empty, empty, q.log()), standard(0, p.log()))
    expected = torch.distributions.kl_divergence(Categorical(q), Categorical(p))
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-12, atol=0)


def test_a_prior_of_other_units_is_refused() -> None:
    with pytest.raises(ContractError, match="the prior has 2 continuous units"):
        unit_kl(curved(), standard(2))
    with pytest.raises(ContractError, match=r"classes, where the posterior has 3 and \[\]"):
        decompose(curved(), standard(3, torch.zeros(1, 4)))


# The mixture at given points


def test_the_exact_mixture_at_given_points_is_the_oracles(tc: dict[str, Any], six: tuple[Encodings, Tensor]) -> None:
    encoded, z = six
    log_q, log_units = log_mixture(encoded, z, none_of(6), ALL(6))
    expected = tc["exact_full_samples"]
    assert log_q.tolist() == pytest.approx(expected["log_qz"], abs=1e-9)
    assert log_units.sum(1).tolist() == pytest.approx(expected["log_prod"], abs=1e-9)
    assert float((log_q - log_units.sum(1)).mean()) == pytest.approx(expected["tc"], abs=1e-9)


def test_stratified_sampling_is_the_oracles_with_the_own_weight_on_the_diagonal(
    tc: dict[str, Any], six: tuple[Encodings, Tensor]
) -> None:
    encoded, z = six
    batch = gaussian(tc["mu"][:4], tc["s"][:4])
    log_q, log_units = log_mixture(batch, z[:4], none_of(4), ALL(4), n=encoded.n)
    right, wrong = tc["mss_sym_batch4"], tc["mss_buggy_reference_code_batch4"]
    assert log_q.tolist() == pytest.approx(right["log_qz"], abs=1e-9)
    assert log_units.sum(1).tolist() == pytest.approx(right["log_prod"], abs=1e-9)
    assert log_q.tolist() != pytest.approx(wrong["log_qz"], abs=1e-2)


def test_weighted_sampling_is_off_by_log_n_for_each_unit_and_so_never_reported(
    tc: dict[str, Any], six: tuple[Encodings, Tensor]
) -> None:
    z = six[1]
    for size, name in ((6, "mws_full"), (4, "mws_batch4")):
        batch = gaussian(tc["mu"][:size], tc["s"][:size])
        log_q, log_units = log_mixture(batch, z[:size], none_of(size), ALL(size))
        assert (log_q - math.log(6)).tolist() == pytest.approx(tc[name]["log_qz"], abs=1e-9)
        assert (log_units.sum(1) - 2 * math.log(6)).tolist() == pytest.approx(tc[name]["log_prod"], abs=1e-9)


def test_the_mixture_is_torchs_own() -> None:
    encoded, points = curved(300), 50
    own = ALL(points)
    z = encoded.mean[own] + encoded.log_stddev[own].exp() * torch.randn(
        points, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    log_q, log_units = log_mixture(encoded, z, none_of(points), own)
    even = Categorical(torch.ones(300, dtype=torch.float64))
    joint = MixtureSameFamily(even, Independent(Normal(encoded.mean, encoded.log_stddev.exp()), 1))
    torch.testing.assert_close(log_q, joint.log_prob(z), rtol=1e-12, atol=1e-12)
    for j in range(3):
        unit = MixtureSameFamily(even, Normal(encoded.mean[:, j], encoded.log_stddev[:, j].exp()))
        torch.testing.assert_close(log_units[:, j], unit.log_prob(z[:, j]), rtol=1e-12, atol=1e-12)


def test_neither_blocks_nor_the_order_of_items_change_the_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = curved(300)
    z, own = encoded.mean[:20] + 0.1, ALL(20)
    expected = log_mixture(encoded, z, none_of(20), own)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    shuffled = gaussian(encoded.mean[order], encoded.log_stddev[order].exp())
    place = order.argsort()[:20]
    monkeypatch.setattr(decomposition, "_TOGETHER", 7)
    for found, value in zip(log_mixture(shuffled, z, none_of(20), place), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)


def test_points_beyond_the_reach_of_exp_keep_their_density() -> None:
    encoded = gaussian([[0.0] * 400, [60.0] * 400], [[1e-3] * 400, [5.0] * 400])
    log_q, log_units = log_mixture(encoded, encoded.mean, none_of(2), ALL(2))
    own = log_density(encoded, encoded.mean, none_of(2))
    torch.testing.assert_close(log_q, own.sum(1) - math.log(2), rtol=1e-12, atol=0)
    assert bool(log_units.isfinite().all())


# The parts


def test_total_correlation_is_the_oracles_by_quadrature(tc: dict[str, Any], six: tuple[Encodings, Tensor]) -> None:
    found = parts_of(six[0], 2, points=20_000)
    part = found.total_correlation
    assert abs(part.value - tc["tc_exact"]) < 4 * part.standard_error < 0.02


@pytest.mark.parametrize("points", [8, 33, 500])
def test_the_parts_sum_to_the_closed_form(points: int) -> None:
    found = parts_of(curved(), points=points)
    expected = float(unit_kl(curved(), standard(3)).sum(1).mean())
    assert found.kl == pytest.approx(expected, rel=1e-12)
    assert sum(three(found)) == pytest.approx(expected, rel=1e-9)
    assert float(found.units.sum()) == pytest.approx(found.dimension_wise.value, rel=1e-9)
    assert found.points == points


def test_the_parts_are_those_of_a_plain_monte_carlo_computation() -> None:
    encoded, many = curved(), 5000
    noise = torch.randn(many, 40, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    z = encoded.mean + encoded.log_stddev.exp() * noise  # (many, 40, 3)
    density = Normal(encoded.mean, encoded.log_stddev.exp()).log_prob(z[:, :, None])[:500]  # (500, 40, 40, 3)
    log_q = density.sum(-1).logsumexp(2) - math.log(40)
    log_units = density.logsumexp(2) - math.log(40)
    of_own = Normal(encoded.mean, encoded.log_stddev.exp()).log_prob(z[:500]).sum(-1)
    log_p = Normal(0.0, 1.0).log_prob(z[:500]).sum(-1)
    expected = [of_own - log_q, log_q - log_units.sum(-1), log_units.sum(-1) - log_p]
    found = parts_of(encoded, points=4000)
    parts = (found.mutual_information, found.total_correlation, found.dimension_wise)
    for part, values in zip(parts, expected, strict=True):
        error = math.hypot(part.standard_error, float(values.std()) / values.numel() ** 0.5)
        assert abs(part.value - float(values.mean())) < 5 * error


def test_intervals_cover_and_the_controls_narrow_them() -> None:
    encoded = curved(200)
    truth = torch.tensor(three(parts_of(encoded, points=20_000, seed=10**6)))
    found = [parts_of(encoded, points=100, seed=seed) for seed in range(100)]
    values = torch.tensor([three(one) for one in found])
    errors = torch.tensor(
        [[p.standard_error for p in (o.mutual_information, o.total_correlation, o.dimension_wise)] for o in found]
    )
    assert bool((((values - truth).abs() < 1.985 * errors).double().mean(0) > 0.9).all())
    own, z, classes = decomposition._drawn(encoded, list(range(200)), 5, 0)
    log_q, log_units = log_mixture(encoded, z, classes, own)
    assert float(errors[:, 1].mean()) < 0.9 * float((log_q - log_units.sum(1)).std()) / 100**0.5


@pytest.mark.parametrize(("n", "points"), [(11, None), (11, 33), (12, 100)])
def test_controls_that_are_constant_leave_the_plain_means(n: int, points: int | None) -> None:
    p = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    # All items alike but for the order of classes: log q(z|x) of a hard choice and log p(z) are constant.
    hard = torch.full((n, 3), -torch.inf, dtype=torch.float64)
    hard[torch.arange(n), torch.arange(n) % 3] = 0.0
    even = torch.full((n, 3), 1 / 3, dtype=torch.float64).log()
    empty = gaussian([[]] * n, [[]] * n, hard, even)
    prior = standard(0, even[:1], even[:1])
    found = decompose(empty, prior, points=points)
    assert found is not None
    shares = torch.bincount(torch.arange(n) % 3).double() / n
    entropy = float(torch.special.entr(shares).sum())
    for part, expected in zip(three(found), (entropy, 0.0, math.log(3) - entropy), strict=True):
        assert part == pytest.approx(expected, abs=0.1)
    assert sum(three(found)) == pytest.approx(found.kl, rel=1e-9)
    values = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    constant = p.log().sum().expand(n, 2) * torch.tensor([1.0, 1 / 3], dtype=torch.float64)
    means, _ = decomposition._controlled(values, constant, constant[0] * (1 + 1e-15))
    torch.testing.assert_close(means, values.mean(0), rtol=1e-9, atol=1e-9)


def test_equal_posteriors_tell_nothing_and_isolated_ones_their_number() -> None:
    same = parts_of(gaussian([[0.0] * 3] * 9, [[1.0] * 3] * 9), points=100)
    assert three(same) == pytest.approx([0, 0, 0], abs=1e-12)
    assert not same.saturated
    isolated = parts_of(gaussian(10 * rand(50, 3) + 1, [[1e-7] * 3] * 50))
    assert isolated.mutual_information.value == pytest.approx(math.log(50), rel=1e-12)
    assert isolated.total_correlation.value == pytest.approx(2 * math.log(50), rel=1e-6)
    assert isolated.saturated


def test_one_unit_has_no_total_correlation() -> None:
    found = parts_of(curved(30, 1), 1)
    assert found.total_correlation.value == pytest.approx(0, abs=1e-12)


def test_categorical_units_are_those_of_enumeration() -> None:
    n, sizes = 12, (3, 4)
    tables = [(4 * rand(n, size, seed=size)).log_softmax(1) for size in sizes]
    tables[0][0] = torch.tensor([0.0, -torch.inf, -torch.inf])
    empty = gaussian([[]] * n, [[]] * n, *tables)
    uniform = standard(0, *(torch.full((1, size), -math.log(size), dtype=torch.float64) for size in sizes))
    a, b = (table.exp() for table in tables)
    joint, first, second = torch.einsum("ni,nj->ij", a, b) / n, a.mean(0), b.mean(0)
    mutual, correlation, dimension_wise = 0.0, 0.0, 0.0
    for i, j in itertools.product(range(3), range(4)):
        product = float(first[i] * second[j])
        correlation += float(joint[i, j]) * math.log(float(joint[i, j]) / product)
        dimension_wise += float(joint[i, j]) * math.log(product * 12)
        for item in range(n):
            if (p := float(a[item, i] * b[item, j])) > 0:
                mutual += p / n * math.log(p / float(joint[i, j]))
    found = decompose(empty, uniform, points=20_000)
    assert found is not None
    parts = (found.mutual_information, found.total_correlation, found.dimension_wise)
    for part, expected in zip(parts, (mutual, correlation, dimension_wise), strict=True):
        assert abs(part.value - expected) < 4 * part.standard_error < 0.02
    assert sum(three(found)) == pytest.approx(found.kl, rel=1e-9)


def test_continuous_and_categorical_units_stand_side_by_side() -> None:
    encoded = curved(60)
    table = (3 * rand(60, 5)).log_softmax(1)
    uniform = torch.full((1, 5), -math.log(5), dtype=torch.float64)
    both = decompose(gaussian(encoded.mean, encoded.log_stddev.exp(), table), standard(3, uniform))
    assert both is not None
    assert both.units.shape == (4,)
    assert both.mutual_information.value > parts_of(encoded).mutual_information.value
    assert sum(three(both)) == pytest.approx(both.kl, rel=1e-9)


# Minibatches


def test_one_minibatch_of_all_items_is_exact_at_the_same_points() -> None:
    encoded = curved()
    found = parts_of(encoded, estimator="stratified")
    own, z, classes = decomposition._drawn(encoded, list(range(40)), 1, 0)
    log_q, log_units = log_mixture(encoded, z, classes, own)
    assert found.total_correlation.value == pytest.approx(float((log_q - log_units.sum(1)).mean()), rel=1e-9)
    assert not found.biased
    assert math.isnan(found.total_correlation.standard_error)


def test_minibatches_are_biased_as_jensen_says() -> None:
    encoded = curved(400)
    exact, small = parts_of(encoded, points=4000), parts_of(encoded, estimator="stratified", batch=8)
    assert small.biased and not exact.biased
    assert (small.points, small.mutual_information.freedom) == (400, 49)
    assert small.mutual_information.value > exact.mutual_information.value
    assert small.dimension_wise.value < exact.dimension_wise.value


# What a caller may ask for


def test_the_same_seed_gives_the_same_bits_and_another_one_other_draws() -> None:
    for estimator in ("exact", "stratified"):
        first, again, other = (parts_of(curved(), estimator=estimator, seed=seed) for seed in (0, 0, 1))
        assert three(first) == three(again)
        assert torch.equal(first.units, again.units)
        assert three(first) != three(other)


def test_float32_encodings_are_taken_apart_in_float64() -> None:
    encoded = curved()
    single = Encodings(encoded.mean.float(), encoded.log_stddev.float(), ())
    back = Encodings(single.mean.double(), single.log_stddev.double(), ())
    found = decompose(single, Encodings(torch.zeros(1, 3), torch.zeros(1, 3), ()))
    assert found is not None
    assert found.units.dtype == torch.float64
    assert three(found) == three(parts_of(back))


def test_points_are_many_for_small_data_and_bounded_for_large(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parts_of(curved(5)).points == 4096
    monkeypatch.setattr(decomposition, "_PAIRS", 300 * 400 * 3)
    assert parts_of(curved(400)).points == 300
    assert parts_of(curved(2000)).points == 256


def test_stopping_keeps_the_points_so_far() -> None:
    asked: list[str] = []

    def twice(progress: Any) -> bool:
        asked.append(progress.stage)
        return len(asked) <= 2

    found = parts_of(curved(), points=100, go_on=twice)
    assert found.points == 16
    assert sum(three(found)) == pytest.approx(found.kl, rel=1e-9)
    assert decompose(curved(), standard(3), go_on=lambda _: False) is None
    assert decompose(curved(), standard(3), estimator="stratified", go_on=lambda _: False) is None


def test_what_cannot_be_asked_for_is_refused() -> None:
    for options, told in (
        ({"estimator": "exakt"}, "did you mean 'exact'"),
        ({"points": 7}, "at least 8 points are needed"),
        ({"estimator": "stratified", "batch": 1}, "a minibatch needs at least 2"),
        ({"estimator": "stratified", "batch": 41}, "at most all 40 items"),
        ({"estimator": "stratified", "batch": 20, "points": 19}, "at least 20 points"),
    ):
        with pytest.raises(ConfigError, match=told):
            decompose(curved(), standard(3), **options)
    with pytest.raises(ConfigError, match="at least two items"):
        decompose(curved(1), standard(3))


def test_an_infinite_kl_has_no_parts() -> None:
    table = torch.full((4, 2), -math.log(2), dtype=torch.float64)
    empty = gaussian([[]] * 4, [[]] * 4, table)
    impossible = standard(0, torch.tensor([[0.0, -torch.inf]], dtype=torch.float64))
    with pytest.raises(NonFiniteError, match="the mean KL to the prior is inf"):
        decompose(empty, impossible)
