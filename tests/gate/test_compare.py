"""Two audits are paired item by item; what is worse beyond chance and allowance regressed; what differs is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from vaeaudit.audit.artifacts import artifacts
from vaeaudit.audit.run import Audit, audit
from vaeaudit.errors import IncomparableError
from vaeaudit.gate.compare import Side, compare, side_of
from vaeaudit.report.model import FindingEntry, Report
from vaeaudit.report.reading import ReportError
from vaeaudit.report.samples import SamplesError, pack, read_samples
from vaeaudit.report.writer import write
from vaeaudit.settings.config import resolve
from vaeaudit.stats.estimates import Sample
from vaeaudit.subject.opened import prepare

EXAMPLES = Path(__file__).parents[2] / "examples"
FAILED = FindingEntry(name="range", verdict="fail", message="is a sigmoid missing?")
MEDIANS = {
    f"noise.s{sigma}.{figure}.median"
    for sigma in ("0", "0.5")
    for figure in ("log_likelihood", "degradation", "relative_degradation", "denoising_error")
} - {"noise.s0.degradation.median", "noise.s0.relative_degradation.median"}


def measured(**values: object) -> Audit:
    given = {
        "model.path": str(EXAMPLES / "shapes-beta1.safetensors"),
        "data.source": str(EXAMPLES / "shapes.npz"),
        "run.device": "cpu",
        "run.limit": 60,
        "noise.sigmas": 0.5,
        **{name.replace("__", "."): value for name, value in values.items()},
    }
    resolved = resolve({name: (value, "test") for name, value in given.items()}, None)
    return audit(prepare(resolved.settings), resolved, ["test"], ["noise", "latents"], lambda _: True)


@pytest.fixture(scope="module")
def done() -> Audit:
    return measured()


@pytest.fixture(scope="module")
def old(done: Audit) -> Side:
    return Side(done.report, done.samples, "old")


def moved(side: Side, by: Callable[[np.ndarray], np.ndarray], only: str = "") -> Side:
    """The same audit with other values behind its figures; the figures themselves stay."""
    samples = {
        name: Sample(by(sample.values.copy()), sample.q) if only in name else sample
        for name, sample in side.samples.items()
    }
    return Side(side.report, samples, "new")


def changed(side: Side, **update: Any) -> Side:
    return Side(side.report.model_copy(update=update), side.samples)


def test_an_audit_compared_with_itself_shows_no_difference_in_any_median(old: Side) -> None:
    found = compare(old, old)
    assert found.verdict == "passed"
    assert {one.metric for one in found.tested} == MEDIANS
    assert {(one.difference, one.ci, one.outcome) for one in found.tested} == {(0, (0, 0), "no difference shown")}
    others = {one.metric for one in found.of("not tested")}
    assert "latents.elbo.mean" in others  # of which neither way is more robust
    assert "noise.s0.5.degradation.upper_quartile" in others


def test_what_is_worse_regressed_whichever_way_is_more_robust(old: Side) -> None:
    name = "noise.s0.5.degradation.median"  # lower is more robust
    worse = compare(old, moved(old, lambda values: values * 1.01, "s0.5.degradation"))
    assert [one.metric for one in worse.of("regressed")] == [name]
    assert worse.verdict == "failed"
    better = compare(old, moved(old, lambda values: values * 0.99, "s0.5.degradation"))
    assert ([one.metric for one in better.of("improved")], better.verdict) == ([name], "passed")
    likelihood = compare(old, moved(old, lambda values: values - 1, "s0.5.log_likelihood"))  # higher is
    assert [one.metric for one in likelihood.of("regressed")] == ["noise.s0.5.log_likelihood.median"]


def test_the_difference_is_of_items_and_not_of_the_two_medians(old: Side) -> None:
    """Every item moves by 3, whatever else: shuffling the items of one audit would lose that."""
    name = "noise.s0.5.log_likelihood.median"
    (one,) = compare(old, moved(old, lambda values: values - 3), metrics=[name]).tested
    assert one.difference == pytest.approx(-3)
    assert one.ci == pytest.approx((-3, -3))
    generator = np.random.default_rng(0)
    shuffled = moved(old, lambda values: generator.permutation(values) - 3)
    (other,) = compare(old, shuffled, metrics=[name]).tested
    assert other.ci is not None
    assert other.ci[0] < -4 < -2 < other.ci[1]


@pytest.mark.parametrize(("allowed", "outcome"), [(0.0, "regressed"), (2.9, "regressed"), (3.1, "no difference shown")])
def test_a_regression_must_exceed_what_is_allowed(old: Side, allowed: float, outcome: str) -> None:
    name = "noise.s0.5.log_likelihood.median"
    (one,) = compare(old, moved(old, lambda values: values - 3), metrics=[name], min_effect={name: allowed}).tested
    assert (one.outcome, one.min_effect) == (outcome, allowed)


@pytest.mark.parametrize("share", ["1%", "20%"])
def test_what_is_allowed_may_be_a_share_of_the_earlier_figure(old: Side, share: str) -> None:
    name = "noise.s0.5.log_likelihood.median"
    before = old.report.metrics[name].value
    assert before is not None
    allowed = float(share[:-1]) / 100 * abs(before)
    loss = 3.0
    (one,) = compare(old, moved(old, lambda values: values - loss), metrics=[name], min_effect={name: share}).tested
    assert one.min_effect == pytest.approx(allowed)
    assert one.outcome == ("regressed" if loss > allowed else "no difference shown")


def test_chance_is_no_regression(old: Side) -> None:
    noise = np.random.default_rng(4)
    found = compare(old, moved(old, lambda values: values + noise.normal(size=values.shape)))
    assert found.verdict == "passed"
    assert all(one.p is not None and one.ci is not None for one in found.tested)


def test_few_items_cannot_tell_among_many_metrics_and_can_of_one(old: Side) -> None:
    def few(side: Side) -> Side:
        return Side(side.report, {name: Sample(one.values[:5], one.q) for name, one in side.samples.items()})

    worse = moved(old, lambda values: values - 3, "s0.5.log_likelihood")
    name = "noise.s0.5.log_likelihood.median"
    many = compare(few(old), few(worse))
    told = next(one for one in many.tested if one.metric == name)
    assert (told.outcome, many.verdict) == ("cannot tell", "inconclusive")
    assert told.why is not None
    assert "5 items that differ cannot show a change among 6 metrics" in told.why
    alone = compare(few(old), few(worse), metrics=[name], min_effect={name: 0.5})
    assert (alone.tested[0].outcome, alone.tested[0].p) == ("regressed", 0.5**5)


def few(side: Side, n: int, by: Callable[[np.ndarray], np.ndarray] = lambda values: values) -> Side:
    """The first items alone, of all figures that may regress."""
    return Side(side.report, {name: Sample(by(one.values[:n].copy()), one.q) for name, one in side.samples.items()})


def towards(side: Side, n: int, better: bool, by: Callable[[np.ndarray], np.ndarray]) -> Side:
    """Some items, of which every figure is better, or worse, by a share ``by`` of their numbers of its size."""
    samples = {}
    for name, one in side.samples.items():
        sign = 1.0 if (side.report.metrics[name].direction == "higher") == better else -1.0
        values = one.values[:n]
        samples[name] = Sample(values + sign * by(np.arange(n)) * np.maximum(np.abs(values), 1.0), one.q)
    return Side(side.report, samples)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 60])
@pytest.mark.parametrize("scale", [1e-8, 5e-5])
def test_differences_of_rounding_size_are_none_however_few_the_items(old: Side, n: int, scale: float) -> None:
    """Two identical functions with other weight scales: every item differs, by 1e-8 of its size."""
    noise = np.random.default_rng(n)
    other = few(old, n, lambda values: values * (1 + scale * noise.uniform(-1, 1, size=values.shape)))
    found = compare(few(old, n), other)
    assert (found.verdict, found.rounding) == ("passed", 1e-4)
    assert {(one.difference, one.outcome, one.why) for one in found.tested} == {(0, "no difference shown", None)}


def test_the_same_function_with_other_weight_scales_differs_in_nothing(tmp_path: Path) -> None:
    """ReLU(3 a) / 3 = ReLU(a): every hidden layer of the bundled model scaled by 3, and the next one back."""
    file = EXAMPLES / "shapes-beta1.safetensors"
    with safe_open(file, "pt") as handle:
        metadata, tensors = handle.metadata(), {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    layers = {"encoder.shared.0": ["encoder.mean.0", "encoder.logvar.0"], "decoder.0": ["decoder.2"]}
    for layer, next_ones in {**layers, "decoder.2": ["decoder.4"]}.items():
        for part in ("weight", "bias"):
            tensors[f"{layer}.{part}"] = tensors[f"{layer}.{part}"] * 3
        for other in next_ones:
            tensors[f"{other}.weight"] = tensors[f"{other}.weight"] / 3
    save_file(tensors, tmp_path / "scaled.safetensors", metadata)
    one, other = measured(run__limit=8), measured(run__limit=8, model__path=str(tmp_path / "scaled.safetensors"))
    assert one.report.metrics != other.report.metrics  # they round differently
    found = compare(Side(one.report, one.samples), Side(other.report, other.samples))
    assert found.verdict == "passed"
    assert {(entry.difference, entry.outcome) for entry in found.tested} == {(0, "no difference shown")}


def test_a_difference_that_is_small_and_no_rounding_is_found(old: Side) -> None:
    found = compare(old, towards(old, 60, False, lambda k: 2e-4 + 0 * k))
    assert found.verdict == "failed"


@pytest.mark.parametrize("n", [1, 2, 5, 8, 60])
def test_a_pure_improvement_passes_and_is_called_one(old: Side, n: int) -> None:
    found = compare(few(old, n), towards(old, n, True, lambda k: 0.1 + 0.01 * k))
    assert found.verdict == "passed"
    assert {one.outcome for one in found.tested} == {"improved"}
    some = [one.why for one in found.tested if one.why]
    assert some == ([f"no item is worse and {n} of {n} are better, few as they are"] * len(MEDIANS) if n < 8 else [])
    one_better = compare(few(old, n), towards(old, n, True, lambda k: 0.1 * (k == 0)))
    assert one_better.verdict == "passed"


@pytest.mark.parametrize("n", [1, 2, 4])
def test_what_few_items_show_for_the_worse_is_neither_passed_nor_failed(old: Side, n: int) -> None:
    worse = towards(old, n, False, lambda k: 0.1 + 0 * k)
    found = compare(few(old, n), worse)
    assert ({one.outcome for one in found.tested}, found.verdict) == ({"cannot tell"}, "inconclusive")
    mixed = compare(few(old, n + 1), towards(old, n + 1, False, lambda k: np.where(k % 2 == 0, 0.1, -0.05)))
    assert mixed.verdict == "inconclusive"
    allowed = dict.fromkeys(MEDIANS, 1000000.0)
    assert compare(few(old, n), worse, min_effect=allowed).verdict == "passed"  # no item is worse by more than that


def test_items_that_are_mostly_better_are_shown_to_be_no_worse_though_too_few_for_so_many_metrics(old: Side) -> None:
    """7 of 8 better, the least change the worse one: p = 2/256, which no multiple of many metrics keeps below 0.05."""
    name, by = "noise.s0.5.degradation.median", lambda k: np.where(k == 0, -0.001, 0.01 * (k + 1))
    family = [name, *(f"missing.{number}.median" for number in range(19))]
    found = compare(few(old, 8), towards(old, 8, True, by), metrics=family)
    assert next(one.outcome for one in found.tested if one.metric == name) == "no difference shown"
    worse = compare(few(old, 8), towards(old, 8, False, by), metrics=family)
    assert next(one.outcome for one in worse.tested if one.metric == name) == "cannot tell"


def test_what_a_search_may_leave_is_no_difference_that_few_items_could_show(old: Side) -> None:
    """Searches of one function end a percent apart: with few pairs that is no ground for anything, with many it is."""
    name = "noise.s0.5.degradation.median"
    searched = old.report.metrics[name].model_copy(update={"search": "raises"})
    side = changed(old, metrics={**old.report.metrics, name: searched})
    family = [name, *(f"missing.{number}.median" for number in range(19))]
    for share, few_items, many in ((0.01, "no difference shown", "regressed"), (0.1, "cannot tell", "regressed")):
        worse = towards(side, 60, False, lambda k, share=share: share + 0 * k)
        (first, *_) = compare(few(side, 8), few(worse, 8), metrics=family).tested
        assert (first.metric, first.outcome) == (name, few_items)
        assert compare(side, worse, metrics=[name]).tested[0].outcome == many


@pytest.mark.parametrize("share", [0.0, 0.02])
def test_items_that_nothing_broke_leave_no_room_for_the_loss_of_others(old: Side, share: float) -> None:
    """Of 10 items 3 were unbroken and are broken at once now: no share of infinity makes that no difference."""
    name = "noise.s0.5.log_likelihood.median"  # higher is more robust
    metric = old.report.metrics[name].model_copy(update={"search": "lowers" if share else "none"})
    report = old.report.model_copy(update={"metrics": {**old.report.metrics, name: metric}})
    before, after = np.arange(5.0, 15.0), np.arange(5.0, 15.0)
    before[7:], after[7:] = np.inf, 1.0
    one, other = (Side(report, {**old.samples, name: Sample(values, 0.5)}) for values in (before, after))
    family = [name, *(f"missing.{number}.median" for number in range(19))]
    assert compare(one, other, metrics=family).tested[0].outcome == "cannot tell"
    assert compare(other, one, metrics=family).tested[0].outcome == "no difference shown"


@pytest.mark.parametrize("q", [None, 0.5])
def test_a_mean_that_a_few_of_many_items_lowered_is_not_called_unchanged(old: Side, q: float | None) -> None:
    """4 of 100 lost nearly everything, and the mean 4%: of the median that says nothing, of the mean it does."""
    name = "noise.s0.5.log_likelihood.median"
    metric = old.report.metrics[name].model_copy(update={"search": "lowers"})
    report = old.report.model_copy(update={"metrics": {**old.report.metrics, name: metric}})
    before, after = np.full(100, 5.0), np.full(100, 5.0)
    after[:4] = 0.2
    one, other = (Side(report, {**old.samples, name: Sample(values, q)}) for values in (before, after))
    family = [name, *(f"missing.{number}.median" for number in range(19))]
    told = compare(one, other, metrics=family).tested[0].outcome
    assert told == ("cannot tell" if q is None else "no difference shown")


def test_a_figure_in_doubt_cannot_be_told_however_much_worse(old: Side) -> None:
    name = "noise.s0.5.log_likelihood.median"
    metrics = {**old.report.metrics, name: old.report.metrics[name].model_copy(update={"doubt": "a sign"})}
    found = compare(old, moved(changed(old, metrics=metrics), lambda values: values - 30), metrics=[name])
    assert (found.tested[0].outcome, found.tested[0].why) == ("cannot tell", "in the later audit, a sign")
    assert found.verdict == "inconclusive"


def test_a_mean_whose_values_became_infinite_is_not_called_improved(old: Side) -> None:
    name = "noise.s0.5.degradation.mean"
    metrics = {**old.report.metrics, name: old.report.metrics[name].model_copy(update={"nonfinite": 8})}

    def exploded(values: np.ndarray) -> np.ndarray:
        values[:8] = np.inf
        return values * 0.9

    found = compare(old, moved(changed(old, metrics=metrics), exploded), metrics=[name])
    assert (found.tested[0].outcome, found.verdict) == ("cannot tell", "inconclusive")
    assert found.tested[0].why == "in the later audit, 8 of its values are NaN or infinite and were left out"


def test_more_noises_or_modes_leave_the_others_comparable(old: Side) -> None:
    other = {**old.report.configuration, "noise": {**old.report.configuration["noise"], "sigmas": [0.5, 2.0]}}  # type: ignore[dict-item]
    assert compare(old, changed(old, configuration=other)).verdict == "passed"


def test_images_that_were_resized_differently_are_other_data(old: Side) -> None:
    other = {**old.report.configuration, "data": {**old.report.configuration["data"], "resize": "box"}}  # type: ignore[dict-item]
    found = compare(old, changed(old, configuration=other))
    assert found.refused == ["their images are resized differently (not at all and box)"]


def test_without_a_figure_that_could_regress_there_is_no_verdict(old: Side) -> None:
    only = {name: metric for name, metric in old.report.metrics.items() if name.startswith("latents")}
    found = compare(changed(old, metrics=only), changed(old, metrics=only))
    assert (found.tested, found.verdict) == ([], "inconclusive")
    assert found.summary().startswith("nothing could regress")


def test_a_named_figure_that_is_missing_or_has_no_direction_cannot_be_told(old: Side) -> None:
    found = compare(old, old, metrics=["margin.r4.median", "latents.elbo.mean", "mig.chen"])
    assert [one.outcome for one in found.tested] == ["cannot tell"] * 2 + ["cannot tell"]
    whys = [one.why for one in found.tested]
    assert whys[0] == "it was not measured in either audit"
    assert whys[1] is not None
    assert whys[1].startswith("neither way is more robust")
    lacking = {name: metric for name, metric in old.report.metrics.items() if "s0.5" not in name}
    gone = compare(old, changed(old, metrics=lacking))
    assert "noise.s0.5.degradation.mean" in {one.metric for one in gone.of("not tested")}
    assert gone.verdict == "inconclusive"
    assert {one.why for one in gone.of("cannot tell")} == {"it was not measured in the later audit"}


def test_other_settings_of_a_check_make_its_figures_incomparable_and_name_the_setting(old: Side) -> None:
    other = {**old.report.configuration, "noise": {**old.report.configuration["noise"], "draws": 3}}  # type: ignore[dict-item]
    found = compare(old, changed(old, configuration=other))
    assert found.verdict == "inconclusive"
    assert {one.why for one in found.tested} == {"the settings of [noise] differ (draws)"}


@pytest.mark.parametrize(
    ("place", "update", "reason"),
    [
        ("data", {"sha256": "0" * 64}, "their data differ"),
        ("data", {"n": 3}, "one saw 60 items and the other 3"),
        ("data", {"range": (0.0, 255.0)}, "the range of their inputs differs"),
        ("environment", {"seed": 1}, "their seeds differ (0 and 1)"),
        ("model", {"input_shape": [784]}, "their inputs differ in shape"),
        ("model", {"likelihood": "Bernoulli from probabilities"}, "log p(x|z) is computed differently"),
        ("plausibility", {"findings": [FAILED]}, "the later audit has no figures, since its model did not pass"),
        ("data", {"drawn_from": 576}, "their 60 items are not the same (the first and drawn from 576)"),
        (None, {"status": "interrupted"}, "the later audit is not complete (status interrupted)"),
    ],
)
def test_audits_of_other_things_are_refused_with_the_reason(
    old: Side, place: str | None, update: dict[str, Any], reason: str
) -> None:
    entry = update if place is None else {place: getattr(old.report, place).model_copy(update=update)}
    found = compare(old, changed(old, **entry))
    assert (found.verdict, found.differences) == ("inconclusive", [])
    assert any(told.startswith(reason) for told in found.refused), found.refused


def test_what_may_change_figures_by_itself_is_a_warning(old: Side) -> None:
    found = compare(old, changed(old, tool="vaeaudit 9.9"))
    assert found.verdict == "passed"
    assert found.warnings == [
        "their versions of vaeaudit differ (vaeaudit 0.1.0 and vaeaudit 9.9), which may change figures by itself"
    ]


@pytest.fixture(scope="module")
def kept(done: Audit) -> Callable[[Path], Report]:
    """Writes that audit with its files, whose figures take long to draw, into a folder."""
    files = artifacts(done)
    return lambda folder: write(done.report, files, folder)


def test_a_report_on_disk_with_its_samples_gives_the_same_answer(
    kept: Callable[[Path], Report], old: Side, tmp_path: Path
) -> None:
    kept(tmp_path)
    for path in (tmp_path, tmp_path / "report.json"):
        read = side_of(str(path))
        assert set(read.samples) == set(old.samples)
        for name, sample in read.samples.items():
            assert np.array_equal(sample.values, old.samples[name].values, equal_nan=True)
            assert sample.q == old.samples[name].q
        assert compare(read, old).verdict == "passed"


def test_samples_of_another_report_or_none_are_refused(kept: Callable[[Path], Report], tmp_path: Path) -> None:
    kept(tmp_path)
    (tmp_path / "samples.safetensors").write_bytes(pack({"x": Sample(np.ones(3), None)}))
    with pytest.raises(SamplesError, match="is not the file that was written with the report"):
        side_of(str(tmp_path))
    (tmp_path / "samples.safetensors").unlink()
    with pytest.raises(SamplesError, match="keep it beside the report"):
        side_of(str(tmp_path))


def test_a_report_that_leads_elsewhere_for_its_samples_is_not_followed(
    kept: Callable[[Path], Report], tmp_path: Path
) -> None:
    report = kept(tmp_path / "a")
    report = report.model_copy(update={"files": {**report.files, "samples": "../../b/samples.safetensors"}})
    assert read_samples(report, tmp_path / "a")  # the one beside it


def test_a_report_of_another_major_schema_cannot_be_compared(kept: Callable[[Path], Report], tmp_path: Path) -> None:
    kept(tmp_path)
    file = tmp_path / "report.json"
    file.write_text(file.read_text().replace('"schema_version": "1.', '"schema_version": "2.'))
    with pytest.raises(IncomparableError, match="so that it cannot be compared"):
        side_of(str(file))
    file.write_text("{")
    with pytest.raises(ReportError):
        side_of(str(file))


def test_equal_columns_are_stored_once() -> None:
    values = np.arange(1000.0)
    once = len(pack({"a": Sample(values, None)}))
    assert len(pack({"a": Sample(values, None), "b": Sample(values.copy(), 0.5)})) < once + 200


def test_a_metric_with_an_allowance_may_regress_besides_the_medians(old: Side) -> None:
    found = compare(old, old, min_effect={"noise.s0.5.degradation.mean": 1, "noise.s0.log_likelihood.median": 2})
    assert {one.metric for one in found.tested} == MEDIANS | {"noise.s0.5.degradation.mean"}
