"""Two audits of the same items: which figures are worse in the later one, beyond chance and beyond what is allowed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vaeaudit.checks.registry import checks
from vaeaudit.errors import ConfigError, IncomparableError, clipped, listed, nearest
from vaeaudit.layout.entry import MetricEntry
from vaeaudit.model.files import split_part
from vaeaudit.model.ranges import span_text
from vaeaudit.report.comparison import ComparisonEntry, DifferenceEntry, Result, SideEntry
from vaeaudit.report.model import Report
from vaeaudit.report.reading import SchemaError, read_report
from vaeaudit.report.samples import read_samples
from vaeaudit.stats.estimates import Sample
from vaeaudit.stats.paired import ROUNDING, Difference, difference, holm, least_p, signed_rank_p

# Of a figure's own size: what the search behind it may leave without a failure sign, so that less is no difference that
# few items could show.
_SEARCHED = 0.02


@dataclass(frozen=True, eq=False)
class Side:
    """An audit with the samples behind its figures, and where its report was read (None for one under way)."""

    report: Report
    samples: Mapping[str, Sample]
    path: str | None = None
    folder: Path | None = None


@dataclass(frozen=True, eq=False)
class _Pair:
    """A metric in both audits; ``why`` tells why it has no ``found``, if it has none."""

    name: str
    old: MetricEntry | None
    new: MetricEntry | None
    found: Difference | None
    why: str | None


def side_of(path: str) -> Side:
    """A report on disk, or the folder of one, with the samples beside it.

    Raises:
        ReportError: no report, or a damaged one.
        SamplesError: the samples are not beside it, or not those of the report.
        IncomparableError: one of another major schema.
    """
    try:
        report, folder = read_report(path)
    except SchemaError as error:
        raise IncomparableError(f"{error}, so that it cannot be compared") from error
    return Side(report, read_samples(report, folder), path, folder.resolve())


def array_name(source: str) -> str:
    """The array of a file that holds several, as "x_test" of "mnist.npz#x_test"; "" where none is named."""
    return split_part(source)[1] or ""


def check_known(name: str, sides: Sequence[Side]) -> None:
    """Raise :class:`ConfigError` for a metric that no audit has, with the nearest that one has."""
    there = {known for side in sides for known in side.report.metrics}
    if name not in there:
        raise ConfigError(f"neither report has a metric '{clipped(name)}'{nearest(name, there)}; correct the name")


def compare(
    old: Side,
    new: Side,
    *,
    metrics: Sequence[str] = (),
    min_effect: Mapping[str, float | str] | None = None,
    level: float = 0.95,
) -> ComparisonEntry:
    """Compare two audits metric by metric, paired by item.

    The family that may regress is ``metrics``, or all medians of which one way is more robust, but for first-order
    estimates; and what ``min_effect`` names, with the difference that a regression must exceed, or "2%" of the size of
    the earlier figure. A metric regressed
    where its change for the worse is significant by Wilcoxon's signed-rank test at 1 - ``level``, Holm-adjusted over
    those metrics, its BCa interval leaves out 0, and it exceeds ``min_effect``. An item's values that differ by no more
    than rounding are equal. Two audits of different data, seeds or definitions are refused: the comparison says why,
    and its verdict is inconclusive.
    """
    allowed = {name: _difference(effect, old.report.metrics.get(name)) for name, effect in (min_effect or {}).items()}
    refused = list(_obstacles(old.report, new.report))
    tested: list[DifferenceEntry] = []
    others: list[DifferenceEntry] = []
    if not refused:
        there = {**old.report.metrics, **new.report.metrics}
        family = list(metrics) or [name for name, metric in there.items() if _may_regress(name, metric)]
        family = list(dict.fromkeys([*family, *allowed]))
        tested = _tested([_paired(name, old, new, level) for name in family], allowed, level)
        rest = [name for name in there if name not in family]
        others = [_entry(_paired(name, old, new, level), "not tested") for name in rest]
    outcomes = {one.outcome for one in tested}
    unknown = not tested or "cannot tell" in outcomes
    return ComparisonEntry(
        old=_side(old),
        new=_side(new),
        level=level,
        rounding=ROUNDING,
        refused=refused,
        warnings=list(_cautions(old.report, new.report)),
        differences=[*tested, *others],
        verdict="failed" if "regressed" in outcomes else "inconclusive" if unknown else "passed",
    )


def _difference(effect: float | str, before: MetricEntry | None) -> float:
    """What a figure may worsen by, in its own unit."""
    if not isinstance(effect, str):
        return effect
    share = float(effect.removesuffix("%")) / 100
    return 0.0 if before is None or before.value is None else share * abs(before.value)


def _may_regress(name: str, metric: MetricEntry) -> bool:
    """Whether a metric is of the family where nobody names one: quartiles and means repeat what medians say."""
    check = checks().get(name.partition(".")[0])
    aside = check is not None and any(re.fullmatch(pattern, name) for pattern in check.aside)
    return metric.direction != "none" and name.endswith(".median") and not aside


def _obstacles(old: Report, new: Report) -> Iterator[str]:
    """Why two audits cannot be compared at all."""
    for which, report in (("earlier", old), ("later", new)):
        if report.status != "complete":
            yield f"the {which} audit is not complete (status {report.status})"
        elif report.plausibility is not None and report.plausibility.failed:
            yield f"the {which} audit has no figures, since its model did not pass"
    if old.data is None or new.data is None:
        if old.data is not new.data:
            yield "one of the audits has no data"
    else:
        if array_name(old.data.source) != array_name(new.data.source):
            yield f"their data differ ({old.data.source} and {new.data.source} name different arrays)"
        elif old.data.sha256 != new.data.sha256:
            yield f"their data differ ({old.data.source} and {new.data.source} hold different bytes)"
        elif old.data.n != new.data.n:
            yield f"one saw {old.data.n} items and the other {new.data.n}"
        elif old.data.drawn_from != new.data.drawn_from:
            drawn = [f"drawn from {n}" if n else "the first" for n in (old.data.drawn_from, new.data.drawn_from)]
            yield f"their {new.data.n} items are not the same ({' and '.join(drawn)})"
        if old.data.range != new.data.range:
            yield f"the range of their inputs differs ({span_text(old.data.range)} and {span_text(new.data.range)})"
    one, other = (_settings(report, "data").get("resize") for report in (old, new))
    if one != other:
        yield f"their images are resized differently ({one or 'not at all'} and {other or 'not at all'})"
    if old.environment.seed != new.environment.seed:
        yield f"their seeds differ ({old.environment.seed} and {new.environment.seed})"
    if old.model.input_shape != new.model.input_shape:
        yield f"their inputs differ in shape ({old.model.input_shape} and {new.model.input_shape})"
    if old.model.likelihood != new.model.likelihood:
        yield f"log p(x|z) is computed differently ({old.model.likelihood} and {new.model.likelihood})"


def _cautions(old: Report, new: Report) -> Iterator[str]:
    """What else differs and may explain a difference of figures."""
    sides = {
        "adapters": (old.model.adapter and old.model.adapter.sha256, new.model.adapter and new.model.adapter.sha256),
        "versions of vaeaudit": (old.tool, new.tool),
        "versions of torch": (old.environment.torch, new.environment.torch),
        "devices": (old.environment.device, new.environment.device),
        "precisions": (old.environment.dtype, new.environment.dtype),
    }
    for what, (one, other) in sides.items():
        if one != other:
            yield f"their {what} differ ({str(one)[:24]} and {str(other)[:24]}), which may change figures by itself"


def _paired(name: str, old: Side, new: Side, level: float) -> _Pair:
    """One metric of both, with the reason where it cannot be compared."""
    before, after = old.report.metrics.get(name), new.report.metrics.get(name)
    found: Difference | None = None
    why = _unpairable(name, old, new, before, after)
    if why is None:
        found = difference(old.samples[name], new.samples[name], level, ROUNDING)
        why = "the figure is not a finite number in both audits" if found is None else None
    return _Pair(name, before, after, found, why)


def _unpairable(name: str, old: Side, new: Side, before: MetricEntry | None, after: MetricEntry | None) -> str | None:
    if before is None or after is None:
        which = "either audit" if before is after else "the later audit" if after is None else "the earlier audit"
        return f"it was not measured in {which}"
    check = name.partition(".")[0]
    if keys := _differing(old.report, new.report, check):
        return f"the settings of [{check}] differ ({listed(keys)})"
    if (before.unit, before.estimator) != (after.unit, after.estimator):
        return f"it is estimated differently ({before.estimator}; {after.estimator})"
    if before.direction != after.direction:
        return f"the two reports do not agree which way is more robust ({before.direction} and {after.direction})"
    if before.value is None or after.value is None:
        return "the figure is not a finite number in both audits"
    if name not in old.samples or name not in new.samples:
        return "it is no statistic of one value an item, so that nothing can be paired"
    one, other = old.samples[name].values, new.samples[name].values
    if one.shape != other.shape:
        return f"it is of {len(one)} items in one audit and of {len(other)} in the other"
    return None


def _settings(report: Report, section: str) -> Mapping[str, object]:
    """A section of the configuration that an audit had."""
    found = report.configuration.get(section)
    return found if isinstance(found, dict) else {}


def _differing(old: Report, new: Report, check: str) -> list[str]:
    """Which settings of a check differ, so that its figures are of different things."""
    one, other = _settings(old, check), _settings(new, check)
    told = checks()[check].choices if check in checks() else ()
    if one.get("family_wise") or other.get("family_wise"):  # then the confidence of each bound depends on their number
        told = ()
    return [key for key in {**one, **other} if key not in told and one.get(key) != other.get(key)]


def _tested(pairs: Sequence[_Pair], allowed: Mapping[str, float], level: float) -> list[DifferenceEntry]:
    """The family of metrics that may regress, judged together."""
    worse, better = (_adjusted(pairs, worse) for worse in (True, False))
    found = []
    for pair in pairs:
        outcome, why = _judged(pair, worse.get(pair.name), better.get(pair.name), allowed, len(pairs), level)
        found.append(_entry(pair, outcome, why, allowed.get(pair.name, 0.0), worse.get(pair.name)))
    return found


def _adjusted(pairs: Sequence[_Pair], worse: bool) -> dict[str, float]:
    """Holm-adjusted p-values of changes for the worse, or for the better, by metric."""
    p: dict[str, float] = {}
    for pair in pairs:
        if pair.found is not None and pair.new is not None:
            p[pair.name] = pair.found.p_lower if (pair.new.direction == "higher") == worse else pair.found.p_higher
    # Metrics without an answer count in the family: leaving them out afterwards would make the others' p too small.
    alone = holm(np.array([*p.values(), *[1.0] * (len(pairs) - len(p))]))
    return dict(zip(p, alone.tolist(), strict=False))


def _judged(
    pair: _Pair,
    worse: float | None,
    better: float | None,
    allowed: Mapping[str, float],
    family: int,
    level: float,
) -> tuple[Result, str | None]:
    """What became of one metric of the family, and why where it cannot be told."""
    if pair.found is None or pair.old is None or pair.new is None or worse is None or better is None:
        return "cannot tell", pair.why
    for which, metric in (("earlier", pair.old), ("later", pair.new)):
        if why := metric.doubt or metric.left_out:
            return "cannot tell", f"in the {which} audit, {why}"
    if pair.new.direction == "none":
        return "cannot tell", "neither way is more robust, so that it cannot regress; set a threshold instead"
    found, alpha, may = pair.found, 1 - level, allowed.get(pair.name, 0.0)
    if found.ci == (0.0, 0.0):
        return "no difference shown", None
    # Where most items have not moved, the rest are few; where no item has moved there is nothing to be told.
    if least_p(found.moved) * family > alpha:
        searched = pair.name.startswith("attack.") or pair.new.search != "none"
        return _of_few(found, pair.new.direction, may, _SEARCHED if searched else 0.0, alpha) or (
            "cannot tell",
            f"{found.moved} items that differ cannot show a change among {family} metrics, whatever it is; take more "
            "items, or name the few metrics that count",
        )
    if found.ci is None:
        return "cannot tell", "the interval of its difference is not finite"
    loss = -found.value if pair.new.direction == "higher" else found.value
    clear = not found.ci[0] <= 0 <= found.ci[1]
    if clear and worse <= alpha and loss > may:
        return "regressed", None
    if clear and better <= alpha and -loss > may:
        return "improved", None
    return "no difference shown", None


def _of_few(
    found: Difference, direction: str, may: float, share: float, alpha: float
) -> tuple[Result, str | None] | None:
    """What can be told where too few items differ for a regression ever to be found; None where nothing can.

    That no item is worse by more than ``may``, or than ``share`` of its size; or that a signed-rank test shows the
    items' loss to be less than that, and the figure has lost no more either, as a mean does by a few items. For all
    metrics together to be no worse each must be, so that this test, unlike those that find a regression, is not
    adjusted for their number. What is infinite in one audit has no size of which a share could be allowed.
    """
    losses = -found.each if direction == "higher" else found.each
    loss = -found.value if direction == "higher" else found.value
    if (losses <= 0).all() and -loss > may:
        return "improved", f"no item is worse and {found.moved} of {found.n} are better, few as they are"
    most = np.maximum(may, share * np.where(np.isfinite(found.sizes), found.sizes, 0.0))
    room = most - losses
    if (room >= 0).all() or (loss <= np.median(most) and signed_rank_p(room, "greater") <= alpha):
        return "no difference shown", None
    return None


def _entry(
    pair: _Pair, outcome: Result, why: str | None = None, min_effect: float = 0.0, p: float | None = None
) -> DifferenceEntry:
    metric = pair.new or pair.old
    return DifferenceEntry(
        metric=pair.name,
        old=pair.old.value if pair.old else None,
        new=pair.new.value if pair.new else None,
        difference=pair.found.value if pair.found else None,
        ci=pair.found.ci if pair.found else None,
        n=pair.found.n if pair.found else 0,
        unit=metric.unit if metric else "",
        direction=metric.direction if metric else "none",
        min_effect=min_effect,
        p=p,
        outcome=outcome,
        why=why or pair.why,
    )


def _side(side: Side) -> SideEntry:
    report = side.report
    return SideEntry(
        report=side.path,
        model=report.model.file.path,
        model_sha256=report.model.file.sha256,
        created=report.created,
        tool=report.tool,
    )
