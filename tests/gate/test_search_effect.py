"""What a better search does to a figure, which decides whether a threshold on it is lost: which figures, and why."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vaeaudit import attack, capped_attack, margin
from vaeaudit.attacks.modes import names
from vaeaudit.attacks.signs import Sign, Signs
from vaeaudit.checks.attack.measure import AttackResult
from vaeaudit.checks.attack.summarise import summarise, summarise_capped
from vaeaudit.checks.margin.summarise import summarise_margin
from vaeaudit.checks.record import metric_entry
from vaeaudit.stats import estimates
from vaeaudit.stats.estimates import Measurement


def searched(metrics: dict[str, Measurement]) -> dict[str, str]:
    return {name: metric.search for name, metric in metrics.items() if metric.search != "none"}


@pytest.fixture(scope="module")
def pairs(small_vae: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
    x = torch.rand((2, 3, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return small_vae(), x[0], x[1]


def swept(pairs: tuple[Any, torch.Tensor, torch.Tensor], mode: str) -> AttackResult:
    return attack(*pairs, mode, lambdas=2, max_evaluations=8, restarts=0)


def showing(result: Any, *signs: Sign) -> Any:
    """The result with these signs alone, of its second item."""
    measured = torch.zeros_like(result.signs.measured)
    for sign in signs:
        measured[list(Sign).index(sign), 1] = 1.0
    return replace(result, signs=Signs(measured, result.signs.cut_off))


@pytest.mark.parametrize("mode", ["latent", "output"])
def test_a_better_search_lowers_the_objective_and_nothing_else_of_an_attack_over_lambda(mode: str, pairs: Any) -> None:
    weak = [Sign.NOT_CONVERGED, Sign.FALLING, Sign.ZERO_GRADIENT, Sign.WRONG_GRADIENT, Sign.CLAMPED, Sign.RANDOM]
    expected = {f"attack.{mode}.delta.{name}": "lowers" for name in ("median", "mean")}
    assert searched(summarise(showing(swept(pairs, mode), *weak))) == expected


@pytest.mark.parametrize("mode", names(swept=False))
def test_a_better_search_raises_damage_where_damage_is_searched_for(mode: str, pairs: Any) -> None:
    vae, x, x_t = pairs
    result = capped_attack(vae, x, mode, x_t if mode == "worst" else None, caps=[0.1], max_evaluations=30)
    names = () if mode == "untargeted" else ("median", "mean")
    expected = {f"attack.{mode}.l2-0.1.damage.{name}": "raises" for name in names}
    assert searched(summarise_capped(showing(result))) == expected


@pytest.mark.parametrize("sign", [Sign.NOT_FINITE, Sign.NOT_REPEATABLE, Sign.ABOVE_ZERO])
def test_values_that_are_themselves_in_doubt_bound_nothing(sign: Sign, pairs: Any) -> None:
    """A search that fits its own noise, or a model that gives another value each time, finds less than there is."""
    vae, x, _ = pairs
    assert searched(summarise(showing(swept(pairs, "output"), sign, Sign.NOT_CONVERGED))) == {}
    damage = capped_attack(vae, x, "damage", caps=[0.1], max_evaluations=30)
    assert searched(summarise_capped(showing(damage, sign))) == {}


def test_a_better_search_lowers_empirical_margins_unless_a_certified_one_exceeds_them(pairs: Any) -> None:
    vae, x, _ = pairs
    result = margin(vae, x, 0.3, draws=100, effort="boxed")
    marked = searched(summarise_margin(result))
    quartiles = ("lower_quartile", "median", "upper_quartile")
    lowered = {"median", "censored.share"} | {f"empirical.{part}" for part in quartiles}
    found = {name for name, effect in marked.items() if effect == "lowers"}
    assert found - {"margin.r0.3.empirical.mean"} == {f"margin.r0.3.{name}" for name in lowered}
    # What was certified rests on no search.
    kept = {f"{kind}.{part}" for kind in ("certified", "certified.boxed", "pathwise") for part in quartiles}
    kept |= {"certified.mean", "certified.share", "not_robust_unperturbed.share"}
    assert set(marked) - found == {f"margin.r0.3.{name}" for name in kept}
    assert {marked[f"margin.r0.3.{name}"] for name in kept} == {"keeps"}
    (at,) = result.at
    assert at.empirical is not None
    amiss = replace(at, empirical=showing(at.empirical, Sign.NOT_REPEATABLE))
    assert set(searched(summarise_margin(replace(result, at=(amiss,)))).values()) == {"keeps"}
    assert at.certified is not None
    wrong = replace(at, certified=replace(at.certified, radius=at.certified.radius + 1e9))
    assert searched(summarise_margin(replace(result, at=(wrong,)))) == {}


def test_what_is_missing_may_be_anything_whatever_a_better_search_does_to_the_rest() -> None:
    whole, lacking = (
        estimates.median(values, unit="nats", direction="higher") for values in ([1, 2, 3], [1, 2, float("nan")])
    )
    assert metric_entry(replace(whole, search="lowers"), "a sign").search == "lowers"
    assert metric_entry(replace(lacking, search="lowers"), "a sign").search == "none"


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(0, 9)), min_size=1, max_size=20), st.sampled_from([0.25, 0.5, 0.75])
)
def test_lower_values_lower_the_mean_every_quantile_and_the_ends_of_its_interval(
    values: list[tuple[float, float]], q: float
) -> None:
    """Why what holds of each pair holds of their figure."""
    before, after = [value for value, _ in values], [value - less for value, less in values]
    for statistic in (estimates.mean, lambda of, **named: estimates.quantile(of, q, **named)):
        old, new = (statistic(of, unit="nats", direction="higher") for of in (before, after))
        assert old.value is not None
        assert new.value is not None
        assert new.value <= old.value + 1e-12
        if old.keeps_infinite and old.ci is not None and new.ci is not None:
            assert new.ci[0] <= old.ci[0]
            assert new.ci[1] <= old.ci[1]
