"""An audit held against what was asked of it: thresholds, an earlier audit, its own reproduction."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from vaeaudit.audit.run import Audit, audit, journal_of, weigh
from vaeaudit.audit.shards import WHOLE, Shard
from vaeaudit.audit.writing import in_doubt
from vaeaudit.checks import registry
from vaeaudit.checks.naming import check_names
from vaeaudit.checks.weights.stored import open_weights
from vaeaudit.errors import ConfigError, UnfinishedError, listed, nearest
from vaeaudit.gate.compare import Side, array_name, compare, side_of
from vaeaudit.gate.ending import concluded
from vaeaudit.gate.policy import brought, enabled, evaluate, remarks
from vaeaudit.layout.entry import MetricEntry
from vaeaudit.progress import GoOn
from vaeaudit.report.model import Report, ReproductionEntry
from vaeaudit.report.wording import NOT_ASKED
from vaeaudit.settings.config import Resolved, auditing
from vaeaudit.settings.sections import Settings
from vaeaudit.stats.paired import ROUNDING
from vaeaudit.subject.opened import Subject, prepare


@dataclass(frozen=True, eq=False)
class Terms:
    """What an audit is held against; ``warnings`` tell what of it is not there."""

    baseline: Side | None = None
    warnings: tuple[str, ...] = ()


def release_audit(
    resolved: Resolved,
    argv: Sequence[str],
    today: date,
    resume: bool,
    go_on: GoOn,
    ready: Callable[[], None] = lambda: None,
    again: str | None = None,
    earlier: Report | None = None,
    shard: Shard = WHOLE,
    held: ExitStack | None = None,
) -> Audit:
    """Every check that the settings enable, then their policy: one verdict.

    ``ready`` is called once model and data are open: from then on an interruption keeps what was found. ``earlier`` is
    the report, read from ``again``, whose audit this one does again; for ``held`` see
    :func:`vaeaudit.audit.run.audit`. For errors see :func:`terms` and
    :func:`vaeaudit.subject.opened.prepare`.
    """
    names, optional = enabled(resolved.settings)
    by = terms(resolved.settings)
    named = auditing(resolved, names)
    if all(registry.checks()[name].of_file for name in names):  # which needs no data and runs no model
        stored = open_weights(resolved.settings)
        if earlier is not None and again is not None:
            same_model(stored.source, {stored.source: stored.sha256}, earlier, again)
        ready()
        if shard.number > 1:
            raise UnfinishedError(f"{listed(names)} of a file alone is not shared out: shard 1 does it")
        done = weigh(stored, named, argv, names, go_on)
    else:
        subject = prepare(named.settings)
        if earlier is not None and again is not None:
            same_model(subject.model.checkpoint.source, subject.model.files, earlier, again)
            same_data(subject, earlier, again)
            optional = frozenset(earlier.skipped)
        ready()
        done = audit(subject, named, argv, names, go_on, journal_of(subject, resume, shard), optional, held)
    done = _with_the_rest(done, names)
    if earlier is not None and again is not None:
        done = reproduced(done, earlier, again)
    return judged(done, resolved.settings, by, today)


def _with_the_rest(done: Audit, names: Sequence[str]) -> Audit:
    """The audit, whose report names the checks that were not asked for as well."""
    rest = dict.fromkeys((name for name in registry.checks() if name not in names), NOT_ASKED)
    return replace(done, report=done.report.model_copy(update={"skipped": done.report.skipped | rest}))


def terms(settings: Settings) -> Terms:
    """What these settings hold an audit against, read and tried before anything long begins.

    Raises:
        ConfigError: a threshold or ``min_effect`` for a figure that these settings do not give.
        ReportError, SamplesError, IncomparableError: a baseline that cannot be compared with; see
            :func:`vaeaudit.gate.compare.side_of`.
    """
    check_names(settings)
    path = settings.baseline.path
    if path is None:
        return Terms()
    if not os.path.lexists(path):  # a link that leads nowhere is a fault, and no baseline that is still to come
        there = [entry.name for entry in Path(path).parent.iterdir()] if Path(path).parent.is_dir() else []
        near = nearest(Path(path).name, there)
        return Terms(warnings=(f"there is no baseline at {path} yet{near}, so that nothing was compared",))
    side = side_of(path)
    if side.folder == Path(settings.run.out).resolve():
        raise ConfigError(f"the report would take the place of its baseline {path}; name another folder with --out")
    return Terms(side)


def judged(done: Audit, settings: Settings, held: Terms, today: date) -> Audit:
    """The audit with the outcome of every threshold and of the comparison, and the verdict that they come to.

    An audit that did not complete keeps its verdict, and its thresholds are inconclusive.
    """
    report = done.report
    gates = brought(report.timings, lambda check: getattr(settings, check)) | settings.checks
    complete = report.status == "complete"
    metrics = report.metrics if complete else {}
    reasons = report.skipped if complete else dict.fromkeys(registry.checks(), "the audit did not complete")
    checks = evaluate(gates, metrics, reasons, today)
    compared = None
    if held.baseline is not None:
        asked = settings.baseline
        new = Side(report, done.samples)
        compared = compare(held.baseline, new, metrics=asked.metrics, min_effect=asked.min_effect, level=asked.level)
    warnings = [*report.warnings, *held.warnings, *remarks(checks, gates, today)]
    warnings += compared.warnings if compared else []
    update: dict[str, Any] = {"checks": checks, "baseline": compared, "warnings": warnings}
    return replace(done, report=concluded(report.model_copy(update=update), *in_doubt(done.records)))


def same_model(source: str, files: Mapping[str, str], earlier: Report, path: str) -> None:
    """Make sure that an audit which is done again is of the same model; else raises :class:`ConfigError`.

    ``files`` are hashes by path; of an earlier version's report those that it names, which may be fewer.
    """
    if array_name(source) != array_name(earlier.model.file.path):
        raise ConfigError(
            f"{source} is not the model of {path}, which was of {earlier.model.file.path}: give the same key, FILE#KEY"
        )
    for known in earlier.model.files or [earlier.model.file]:
        if known.sha256 not in files.values():
            raise ConfigError(
                f"{source} is not the model of {path}: no file of it has the SHA-256 of {known.path}, which begins "
                f"{known.sha256[:12]}; give the files that were audited"
            )


def same_data(subject: Subject, earlier: Report, path: str) -> None:
    """Make sure that an audit which is done again is on the same data; else raises :class:`ConfigError`."""
    data = subject.data
    named = (data.sha256, array_name(data.source))
    if earlier.data is None or named != (earlier.data.sha256, array_name(earlier.data.source)):
        raise ConfigError(f"{data.source} does not hold the data of {path}; give those that were audited, with --data")


def reproduced(done: Audit, earlier: Report, path: str) -> Audit:
    """The audit with whether its figures agree with those of ``earlier``."""
    differing = _differing(earlier.metrics, done.report.metrics)
    agree = all(value is not None and value <= ROUNDING for value in differing.values())
    entry = ReproductionEntry(
        report=path, figures=len(earlier.metrics), differing=differing, tolerance=ROUNDING, agree=agree
    )
    return replace(done, report=done.report.model_copy(update={"reproduced": entry}))


def _differing(old: Mapping[str, MetricEntry], new: Mapping[str, MetricEntry]) -> dict[str, float | None]:
    """Figures that are not the same to the bit, with their relative difference; None where one is missing."""
    found: dict[str, float | None] = {}
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in old or name not in new:
            found[name] = None
        elif (gap := _gap(old[name], new[name])) != 0:
            found[name] = gap if math.isfinite(gap) else None
    return found


def _gap(old: MetricEntry, new: MetricEntry) -> float:
    """The largest difference of value and interval, relative to themselves or to the interval's width.

    Infinite where one has what the other lacks, or is of another number of values.
    """
    if (old.n, old.nonfinite) != (new.n, new.nonfinite):
        return math.inf
    width = old.ci[1] - old.ci[0] if old.ci else 0.0  # a figure at 0 has no size of its own
    sides = [(old.value, new.value)]
    sides += list(zip(old.ci, new.ci, strict=True)) if old.ci and new.ci else [(None, 0.0)] * (old.ci != new.ci)
    gaps = [0.0]
    for one, other in sides:
        if one is None or other is None:
            gaps.append(0.0 if one is other else math.inf)
        elif one != other:
            gaps.append(abs(one - other) / max(abs(one), abs(other), width))
    return max(gaps)
