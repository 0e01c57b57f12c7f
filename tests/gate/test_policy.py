"""Thresholds read intervals, waivers end, and what is missing never passes."""

from datetime import date
from typing import Any

import pytest

from vaeaudit.checks.naming import check_names
from vaeaudit.checks.registry import checks
from vaeaudit.errors import ConfigError
from vaeaudit.gate.policy import enabled, evaluate, remarks, waived
from vaeaudit.layout.entry import MetricEntry, belongs
from vaeaudit.report.gates import CheckEntry
from vaeaudit.settings.config import resolve
from vaeaudit.settings.sections import GateSettings, Settings

TODAY = date(2026, 5, 1)


def metric(value: float | None = 0.5, ci: tuple[float, float] | None = (0.4, 0.6), **changes: Any) -> MetricEntry:
    plain = {"level": 0.95, "n": 20, "nonfinite": 0, "unit": "nats", "direction": "higher"}
    return MetricEntry(**{"value": value, "ci": ci, "estimator": "mean, t interval", **plain, **changes})


def gate(**values: Any) -> GateSettings:
    return GateSettings.model_validate(values)


def held(asked: GateSettings, measured: MetricEntry | None = None, today: date = TODAY) -> CheckEntry:
    metrics = {"margin.r4.median": measured or metric()}
    return evaluate({"margin.r4.median": asked}, metrics, {}, today)[0]


@pytest.mark.parametrize(
    ("asked", "outcome", "observed", "why"),
    [
        ({"min": 0.3}, "passed", 0.4, "the lower end 0.4 is at least 0.3"),
        ({"min": 0.4}, "passed", 0.4, "the lower end 0.4 is at least 0.4"),
        ({"min": 0.5}, "inconclusive", 0.4, "the lower end 0.4 is below 0.5 and the upper end 0.6 is not"),
        ({"min": 0.6}, "inconclusive", 0.4, "the lower end 0.4 is below 0.6 and the upper end 0.6 is not"),
        ({"min": 0.7}, "failed", 0.6, "even the upper end 0.6 is below 0.7"),
        ({"max": 0.7}, "passed", 0.6, "the upper end 0.6 is at most 0.7"),
        ({"max": 0.5}, "inconclusive", 0.6, "the upper end 0.6 is above 0.5 and the lower end 0.4 is not"),
        ({"max": 0.3}, "failed", 0.4, "even the lower end 0.4 is above 0.3"),
        ({"min": 0.3, "max": 0.7}, "passed", 0.4, "the lower end 0.4 is at least 0.3"),
        ({"min": 0.3, "max": 0.5}, "inconclusive", 0.6, "the upper end 0.6 is above 0.5"),
        ({"min": 0.3, "max": 0.35}, "failed", 0.4, "even the lower end 0.4 is above 0.35"),
        ({"min": 0.5, "bound": "ci_lower"}, "failed", 0.4, "the lower end 0.4 is below 0.5"),
        ({"min": 0.5, "bound": "ci_upper"}, "passed", 0.6, "the upper end 0.6 is at least 0.5"),
        ({"max": 0.5, "bound": "ci_upper"}, "failed", 0.6, "the upper end 0.6 is above 0.5"),
        ({"min": 0.5, "bound": "value"}, "passed", 0.5, "the value 0.5 is at least 0.5"),
        ({"min": 0.51, "bound": "value"}, "failed", 0.5, "the value 0.5 is below 0.51"),
    ],
)
def test_a_threshold_reads_the_interval_or_the_bound_that_it_names(
    asked: dict[str, Any], outcome: str, observed: float, why: str
) -> None:
    check = held(gate(**asked))
    assert (check.verdict, check.observed) == (outcome, observed)
    assert why in check.why


@pytest.mark.parametrize(
    ("measured", "asked", "outcome", "why"),
    [
        (metric(ci=None), {"min": 0}, "inconclusive", "it has no interval, since 20 values are too few for one"),
        (metric(ci=None), {"min": 0, "bound": "ci_lower"}, "inconclusive", "it has no interval"),
        (metric(ci=None), {"min": 0, "bound": "value"}, "passed", "the value 0.5 is at least 0"),
        (metric(ci=None, exact=True), {"max": 0.4}, "failed", "the value 0.5 is above 0.4"),
        (
            metric(ci=None, nonfinite=6, keeps_infinite=True),
            {"min": 0},
            "inconclusive",
            "an end of its interval is infinite: 6 of 20 values are",
        ),
        (metric(None, None), {"min": 0}, "inconclusive", "the figure is not a finite number"),
        (metric(doubt="failure signs"), {"min": 0}, "inconclusive", "failure signs"),
        (metric(doubt="failure signs"), {"min": 0, "bound": "value"}, "inconclusive", "failure signs"),
        (metric(doubt="failure signs"), {"min": 9}, "inconclusive", "failure signs"),
        (metric(nonfinite=2), {"min": 0}, "inconclusive", "2 of its values are NaN or infinite and were left out"),
        (
            metric(nonfinite=2, keeps_infinite=True),
            {"min": 0},
            "passed",
            "the lower end",
        ),  # they keep their place in order
    ],
)
def test_a_figure_without_ground_is_inconclusive_and_never_passes(
    measured: MetricEntry, asked: dict[str, Any], outcome: str, why: str
) -> None:
    check = held(gate(**asked), measured)
    assert check.verdict == outcome
    assert why in check.why


FAILED, OPEN = "failed", "inconclusive"


@pytest.mark.parametrize(
    ("search", "asked", "changes", "outcome"),
    [
        ("lowers", {"min": 0.7}, {}, FAILED),  # the interval is [0.4, 0.6]
        ("lowers", {"min": 0.6}, {}, OPEN),  # its upper end is not below: chance, not the search, leaves it open
        ("lowers", {"min": 0.5}, {}, OPEN),
        ("lowers", {"min": 0.3}, {}, OPEN),  # a better search may lower it further
        ("lowers", {"max": 0.3}, {}, OPEN),  # a better search may save it
        ("lowers", {"min": 0.3, "max": 0.35}, {}, OPEN),
        ("lowers", {"min": 0.7, "max": 0.8}, {}, FAILED),
        ("raises", {"max": 0.3}, {}, FAILED),
        ("raises", {"max": 0.4}, {}, OPEN),
        ("raises", {"min": 0.7}, {}, OPEN),
        ("keeps", {"min": 0.7}, {}, FAILED),
        ("keeps", {"max": 0.3}, {}, FAILED),
        ("keeps", {"min": 0.3}, {}, OPEN),  # it does not pass beside a failure sign
        ("keeps", {"min": 0.7}, {"value": None, "ci": None}, OPEN),
        ("none", {"min": 0.7}, {}, OPEN),
        ("lowers", {"min": 0.51, "bound": "value"}, {}, FAILED),
        ("lowers", {"min": 0.5, "bound": "value"}, {}, OPEN),
        ("lowers", {"min": 0.51, "bound": "ci_lower"}, {}, FAILED),
        ("lowers", {"min": 0.45, "bound": "ci_lower"}, {"keeps_infinite": True}, FAILED),  # order statistics only fall
        ("lowers", {"min": 0.45, "bound": "ci_lower"}, {}, OPEN),  # that of a mean may rise as its values come nearer
        ("raises", {"max": 0.55, "bound": "ci_upper"}, {}, OPEN),
        ("lowers", {"min": 0.7}, {"ci": None}, OPEN),
        ("lowers", {"min": 0.7, "bound": "value"}, {"ci": None}, FAILED),
        ("lowers", {"min": 0.7}, {"nonfinite": 2}, OPEN),
        ("lowers", {"min": 0.7}, {"value": None, "ci": None}, OPEN),
    ],
)
def test_a_threshold_that_no_better_search_could_save_fails_and_one_that_it_could_is_inconclusive(
    search: str, asked: dict[str, Any], changes: dict[str, Any], outcome: str
) -> None:
    check = held(gate(**asked), metric(doubt="a failure sign", search=search, **changes))
    assert check.verdict == outcome, check.why
    if outcome == FAILED:
        told = f"and a better search only {search} it (in doubt: a failure sign)"
        assert check.why.endswith(", which rests on no search" if search == "keeps" else f", {told}")
    else:
        assert check.why == "a failure sign"
    assert held(gate(**asked), metric(search=search)).verdict == held(gate(**asked), metric()).verdict


def test_a_waiver_covers_a_sign_only_where_all_that_would_count_of_its_figures_is_waived() -> None:
    until = {"until": date(2026, 5, 1), "reason": "tracked in #12"}
    metrics = {name: metric(doubt="a sign") for name in ("attack.latent.delta.median", "attack.latent.delta.mean")}

    def told(*asked: GateSettings, today: date = TODAY) -> str | None:
        checks = evaluate(dict(zip(metrics, asked, strict=False)), metrics, {}, today)
        assert {check.verdict for check in checks} <= {"inconclusive"}
        return waived("attack.latent", checks)

    assert told(gate(min=0, waive=until)) == "tracked in #12"
    assert told(gate(min=0, waive=until), gate(min=0, waive=until)) == "tracked in #12"
    assert told(gate(min=0, waive=until), gate(min=0, severity="warn")) == "tracked in #12"
    assert told(gate(min=0, waive=until), gate(min=0)) is None
    assert told(gate(min=0, severity="warn")) is None
    assert told() is None
    assert told(gate(min=0, waive=until), today=date(2026, 5, 2)) is None
    other = evaluate({"attack.latent-side.l2-1.damage.mean": gate(max=0, waive=until)}, {}, {}, TODAY)
    assert waived("attack.latent", other) is None


def test_a_missing_figure_is_inconclusive_and_its_reason_or_the_nearest_name_is_told() -> None:
    gates = {"margin.r4.medain": gate(min=0), "mig.chen": gate(min=0), "attack.latent.delta.median": gate(min=0)}
    found = evaluate(gates, {"margin.r4.median": metric()}, {"mig": "no factors"}, TODAY)
    assert [check.verdict for check in found] == ["inconclusive"] * 3
    assert found[0].why == "there is no such figure (did you mean 'margin.r4.median'?)"
    assert found[1].why == "not measured: no factors"


def test_a_waiver_holds_on_its_last_day_and_not_a_day_longer() -> None:
    asked = gate(min=9, waive={"until": date(2026, 5, 1), "reason": "tracked in #12"})
    waived = held(asked, today=date(2026, 5, 1))
    assert (waived.verdict, waived.counts) == ("failed", False)
    assert waived.waived is not None
    assert (waived.waived.until, waived.waived.reason) == ("2026-05-01", "tracked in #12")
    ended = held(asked, today=date(2026, 5, 2))
    assert (ended.verdict, ended.counts, ended.waived) == ("failed", True, None)
    assert remarks([ended], {"margin.r4.median": asked}, date(2026, 5, 2)) == [
        "the waiver of margin.r4.median (tracked in #12) ended on 2026-05-01: it counts again"
    ]


def test_what_only_warns_is_told_and_does_not_count() -> None:
    asked = gate(min=9, severity="warn")
    check = held(asked)
    assert not check.counts
    assert remarks([check], {"margin.r4.median": asked}, TODAY) == [
        "margin.r4.median: even the upper end 0.6 is below 9; it only warns"
    ]
    assert remarks([held(gate(min=0, severity="warn"))], {}, TODAY) == []


def settings(**values: object) -> Settings:
    return resolve({name.replace("__", "."): (value, "test") for name, value in values.items()}, None).settings


def test_the_checks_of_an_audit_are_those_named_then_those_whose_section_or_threshold_stands_then_all() -> None:
    assert enabled(settings()) == (tuple(checks()), frozenset(checks()))
    named = settings(run__checks=["weights", "attack"], margin__items=3)
    assert enabled(named) == (("attack", "weights"), frozenset())
    assert enabled(settings(margin__items=3, mig__items=9)) == enabled(settings())  # a value alone names no check
    read = resolve({"checks.noise.s0.1.degradation.median": ({"max": 1}, "test")}, None).settings
    assert enabled(read)[0] == ("noise",)
    assert enabled(settings(baseline__min_effect={"margin.r4.median": 0.1}))[0] == ("margin",)


def test_a_section_of_a_file_enables_its_check_even_if_it_is_empty(tmp_path: Any) -> None:
    file = tmp_path / "vaeaudit.toml"
    file.write_text("[latents]\n[mig]\nitems = 9\n[model]\npath = 'x.safetensors'\n")
    assert enabled(resolve({"noise.draws": (3, "VAEAUDIT_NOISE_DRAWS")}, file).settings) == (
        ("latents", "mig"),
        frozenset(),
    )


def asking(name: str, **values: object) -> Settings:
    given = {key.replace("__", "."): (value, "test") for key, value in values.items()}
    return resolve({f"checks.{name}": ({"min": 0}, "test"), **given}, None).settings


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("margin.r4.median", {"margin__r": [4]}),
        ("margin.r2.5.certified.lower_quartile", {"margin__r": [2.5, 4]}),
        ("margin.r3.917.median", {}),  # the radius is chosen from the data
        ("attack.output.delta.mean", {"attack__modes": ["output"]}),
        ("attack.damage.l2-0.5.damage.median", {"attack__modes": ["damage"]}),
        ("attack.worst.linf-0.0314.damage.mean", {"attack__modes": ["worst"], "attack__norm": "linf"}),
        ("attack.latent.success.target", {"attack__pairing": "label"}),
        ("attack.latent.progress.median", {"attack__vary": "scale"}),
        ("noise.s0.25.relative_degradation.upper_quartile", {}),
        ("noise.s0.log_likelihood.median", {}),
        ("latents.layer2.unit7.kl.mean", {}),
        ("latents.active_units.kl", {}),
        ("mig.chen.posX", {}),
        ("weights.encoder.l2", {}),
        ("weights.decoder.l2.change", {"weights__against": "old.safetensors"}),
    ],
)
def test_figures_that_the_settings_give_are_known(name: str, values: dict[str, object]) -> None:
    check_names(asking(name, **values))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("margn.r4.median", {}, "there is no check 'margn' (did you mean 'margin'?)"),
        ("margin.r4.medain", {"margin__r": [4]}, "no such figure (did you mean 'margin.r4.median'?)"),
        ("margin.r8.median", {"margin__r": [4]}, "(did you mean 'margin.r4.median'?)"),
        ("margin.r4.median", {"margin__r": [4], "margin__parts": ["empirical"]}, "no such figure"),
        ("attack.output.delta.median", {}, "(did you mean 'attack.latent.delta.median'?)"),
        ("attack.latent.success.target", {}, "no such figure"),
        ("noise.s0.3.degradation.median", {}, "no such figure (did you mean 'noise.s"),
        ("weights.decoder.l2.change", {}, "(did you mean 'weights.decoder.l2'?)"),
        ("latents.elbo.mean", {"latents__draws": 0}, "no such figure"),
    ],
)
def test_a_threshold_of_what_they_do_not_give_is_refused_with_the_nearest(
    name: str, values: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_names(asking(name, **values))
    assert f'[checks."{name}"]' in str(refused.value)
    assert message in str(refused.value)


def test_min_effect_names_figures_as_well() -> None:
    with pytest.raises(ConfigError, match=r"baseline.min_effect.margin.r4.medain: .*did you mean 'margin.r4.median'"):
        check_names(settings(margin__r=[4], baseline__min_effect={"margin.r4.medain": 0.1}))


@pytest.mark.parametrize(
    ("name", "beginning", "is_of_it"),
    [
        ("margin.r4.median", "margin.r4", True),
        ("margin.r4.5.median", "margin.r4", False),
        ("margin.r4.5.median", "margin.r4.5", True),
        ("noise.s1.5.degradation.mean", "noise.s1", False),
        ("attack.latent-side.l2-1.damage.mean", "attack.latent", False),
        ("mig.chen", "mig.chen", True),
    ],
)
def test_a_doubt_of_one_radius_is_none_of_another(name: str, beginning: str, is_of_it: bool) -> None:
    assert belongs(name, beginning) is is_of_it
