"""A report held against what lies beside it: are its figures those of its values, its verdict that of its figures?

Whoever changes a figure in report.json must change the values that it is a statistic of, the hash of their file, and
every outcome that reads it; whoever changes all of that leaves nothing to find, which only a signature mends.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import vaeaudit
from vaeaudit.checks.registry import checks
from vaeaudit.gate.ending import EXIT_CODES, ending
from vaeaudit.gate.policy import Outcome, brought, evaluate
from vaeaudit.layout.entry import MetricEntry
from vaeaudit.layout.section import number
from vaeaudit.model.checkpoints import sha256_of
from vaeaudit.report.forms import markdown
from vaeaudit.report.model import Report
from vaeaudit.report.reading import lies_beside
from vaeaudit.report.samples import PURPOSE, SamplesError, read_samples
from vaeaudit.settings.sections import GateSettings
from vaeaudit.stats import estimates
from vaeaudit.stats.estimates import Measurement, Sample

_CLOSE = 1e-9  # of a figure's size: what another build of the libraries may change by rounding


@dataclass(frozen=True)
class Verification:
    """What was found: ``faults`` contradict the report, a sentence each.

    Of the names of its figures ``recomputed`` hold those whose value and interval were computed again, ``values`` those
    of which the value alone was, ``written`` those that nothing beside the report tells. ``files`` were found with
    their hash, ``absent`` not found.
    """

    faults: tuple[str, ...]
    recomputed: tuple[str, ...]
    values: tuple[str, ...]
    written: tuple[str, ...]
    files: tuple[str, ...]
    absent: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 where all agrees, 1 where something does not, 5 where the values that would tell are not there."""
        return 1 if self.faults else 5 if PURPOSE in self.absent else 0


def verify(report: Report, folder: Path) -> Verification:
    """Hold a report, which lies in ``folder``, against the files beside it, those of its model, and itself."""
    faults: list[str] = []
    files, absent = _files(report, folder, faults)
    samples: Mapping[str, Sample] = {}
    try:
        samples = read_samples(report, folder)
    except SamplesError as error:
        if PURPOSE not in absent and not any(PURPOSE in fault for fault in faults):
            faults.append(str(error))
    ways: dict[str, list[str]] = {"recomputed": [], "values": [], "written": []}
    for name, entry in report.metrics.items():
        if entry.estimator.startswith("worst of these"):  # of the values that the median beside it is of
            way, fault = _worst_again(entry, samples.get(f"{name.removesuffix('worst')}median"))
        else:
            way, fault = _again(entry, samples.get(name))
        ways[way].append(name)
        faults += [f"{name}: {fault}"] if fault else []
    faults += [f"{name} has values beside the report, which lacks it" for name in samples if name not in report.metrics]
    faults += [*_thresholds(report), *_verdict(report)]
    return Verification(
        faults=tuple(faults),
        recomputed=tuple(ways["recomputed"]),
        values=tuple(ways["values"]),
        written=tuple(ways["written"]),
        files=tuple(files),
        absent=tuple(absent),
    )


def _files(report: Report, folder: Path, faults: list[str]) -> tuple[list[str], list[str]]:
    """The files whose hash agrees, and those that are not there; adds to ``faults`` what is another file."""
    asked = {purpose: (folder / name, report.files_sha256.get(purpose)) for purpose, name in report.files.items()}
    asked |= {f"model {file.path}": (Path(file.path), file.sha256) for file in report.model.files}
    found, absent = list[str](), list[str]()
    for purpose, (file, hashed) in asked.items():
        if purpose in report.files and not lies_beside(report.files[purpose]):
            faults.append(f"{purpose} is said to lie outside of the report's folder")
        elif not file.is_file():
            absent.append(purpose)
        elif purpose == "markdown":
            if report.tool != f"vaeaudit {vaeaudit.__version__}":  # another version words it otherwise
                absent.append(f"the version that wrote {file.name}")
            elif file.read_bytes() != markdown.render(report).encode(errors="backslashreplace"):
                faults.append(f"{file.name} does not say what the report holds")
            else:
                found.append(purpose)
        elif not report.files_sha256 and purpose in report.files:  # as earlier versions wrote it
            absent.append(f"the hash of {purpose}")
        elif hashed is None:
            faults.append(f"the report has no hash of {purpose}")
        elif sha256_of(file) != hashed:
            faults.append(f"{purpose} ({file.name}) is not the file that the audit was of or wrote: its hash differs")
        else:
            found.append(purpose)
    return found, absent


def _again(entry: MetricEntry, sample: Sample | None) -> tuple[str, str | None]:
    """How far a figure was computed again, and what contradicts it."""
    given: dict[str, Any] = {"unit": entry.unit, "direction": entry.direction, "level": entry.level}
    if sample is None:
        if "Clopper-Pearson interval" not in entry.estimator or entry.value is None or not entry.n:
            return "written", None
        successes = round(min(max(entry.value, 0.0), 1.0) * entry.n)
        return "recomputed", _contradiction(entry, [estimates.proportion(successes, entry.n, **given)])
    values = sample.values.tolist()
    if sample.q is not None:
        whole = [estimates.quantile(values, sample.q, **given)]
        known = f"{sample.q:g} quantile, order" in entry.estimator or "median, order" in entry.estimator
    elif "BCa bootstrap" in entry.estimator:
        whole, known = [estimates.bootstrap_mean(values, **given)], True
    else:
        supports = [(least, most) for least in (-math.inf, 0.0) for most in (math.inf, 1.0)]  # those of metrics
        whole = [estimates.mean(values, **given, support=support) for support in supports]
        known = "mean, Student t" in entry.estimator
    return "recomputed" if known else "values", _contradiction(entry, whole, ends=known)


def _worst_again(entry: MetricEntry, sample: Sample | None) -> tuple[str, str | None]:
    """The same of the worst of the values, which is no sample of its own."""
    if sample is None:
        return "written", None
    given: dict[str, Any] = {"unit": entry.unit, "direction": entry.direction, "level": entry.level}
    return "recomputed", _contradiction(entry, [estimates.worst(sample.values.tolist(), **given)])


def _contradiction(entry: MetricEntry, found: Sequence[Measurement], ends: bool = True) -> str | None:
    """Why none of the figures ``found`` is the one that was written; None where one is."""
    last: str | None = None
    for one in found:
        size = max([abs(x) for x in (one.value, *(one.ci or ())) if x is not None], default=0.0)
        told: list[tuple[str, float | None, float | None]] = [
            ("value", entry.value, one.value),
            ("n", entry.n, one.n),
            ("nonfinite", entry.nonfinite, one.nonfinite),
        ]
        if ends:
            (low, high), (true_low, true_high) = (of.ci or (None, None) for of in (entry, one))
            told += [("lower end", low, true_low), ("upper end", high, true_high)]
        wrong = [(what, said, true) for what, said, true in told if not _same(said, true, size)]
        if not wrong:
            return None
        what, said, true = wrong[0]
        last = f"its {what} is written as {number(said)}, and its values give {number(true)}"
    return last


def _same(said: float | None, true: float | None, size: float) -> bool:
    if said is None or true is None:
        return said is true
    return math.isclose(said, true, rel_tol=_CLOSE, abs_tol=_CLOSE * size)


def _thresholds(report: Report) -> Iterator[str]:
    """What contradicts the outcomes of thresholds."""
    try:
        asked: Any = report.configuration.get("checks", {})
        gates = brought(report.timings, partial(_section, report))
        gates |= {name: GateSettings.model_validate(gate) for name, gate in asked.items()}
        day = datetime.fromisoformat(report.created).date()
    except (AttributeError, KeyError, ValueError):
        yield "its configuration holds thresholds, or it a time, that cannot be read"
        return
    written = {check.id: check for check in report.checks}
    for name in sorted(gates.keys() ^ written.keys()):
        yield f"the threshold on {name} stands in its {'configuration' if name in gates else 'outcomes'} alone"
    if report.status != "complete":
        return
    # A waiver ends at midnight where the audit ran, and the time is UTC's.
    days = [day + timedelta(days=shift) for shift in (0, -1, 1)]
    each = zip(*(evaluate(gates, report.metrics, report.skipped, today) for today in days), strict=True)
    for found in each:
        there = written.get(found[0].id)
        if there is not None and there not in found:
            yield f"the threshold on {there.id} is written as {there.verdict}: {there.why}; its figure gives " + (
                f"{found[0].verdict}: {found[0].why}"
            )


def _section(report: Report, check: str) -> object:
    """The section of a check's settings that the audit had."""
    row = checks()[check]
    return row.load(row.settings).model_validate(report.configuration.get(check, {}))


def _verdict(report: Report) -> Iterator[str]:
    """What contradicts the verdict of a complete audit."""
    if report.status != "complete":
        return
    outcomes: list[Outcome] = [check.verdict for check in report.checks if check.counts]
    if (compared := report.baseline) is not None and (compared.tested or compared.refused):
        outcomes.append(compared.verdict)
    if report.reproduced is not None and not report.reproduced.agree:
        outcomes.append("inconclusive")
    plausible = report.plausibility is None or not report.plausibility.failed
    doubted = any(entry.doubt for entry in report.metrics.values()) or any(one.kind == "sign" for one in report.decided)
    may = {ending(outcomes, plausible=plausible).verdict}
    if doubted:  # whether a doubt is of a figure or of a whole check, the report does not tell
        may.add(ending(outcomes, plausible=plausible, signs=True).verdict)
    if report.verdict not in may:
        yield f"its verdict is written as {report.verdict}, and what it rests on gives {' or '.join(sorted(may))}"
    elif report.exit_code not in (EXIT_CODES[report.verdict], 2):  # 2: the result could not be shown
        yield f"its exit code is written as {report.exit_code}, and its verdict gives {EXIT_CODES[report.verdict]}"
