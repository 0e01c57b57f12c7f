"""What every form of a report says in words: the verdict's meaning, asides, meanings of metrics, what was audited."""

import shlex
from typing import NamedTuple

from vaeaudit.errors import listed
from vaeaudit.model.ranges import span_text
from vaeaudit.report.model import Report

VERDICTS = {
    "passed": "Passed: every threshold that counts is met, and nothing regressed.",
    "failed": "Failed: the model does not meet its policy.",
    "ungated": "Ungated: measured, with no policy to pass or fail.",
    "inconclusive": "Inconclusive: the figures below support no verdict.",
    "error": "Error: the audit could not complete.",
}
METRIC_NOTES = (
    "One value a pair or item. Medians and quartiles are order statistics; a small sample gives them no interval."
)

NOT_ASKED = "it is not among the checks that were asked for"


class Fact(NamedTuple):
    """Something that was audited: ``exact`` is to be shown to the letter (None: nothing is), ``words`` follow it."""

    name: str
    exact: str | None
    words: str = ""


def skipped(report: Report) -> dict[str, str]:
    """What could not be answered, and why; what nobody asked for stands last and together."""
    asked = {name: reason for name, reason in report.skipped.items() if reason != NOT_ASKED}
    rest = [name for name in report.skipped if name not in asked]
    return asked | ({", ".join(rest): "not asked for"} if rest else {})


def sentence(text: str) -> str:
    """``text`` with a capital and a full stop, "" where it is empty."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def decision(report: Report) -> str:
    """What the verdict rests on, "" where the report does not say: "decided by NAME: WHY", and how many more there are.

    Names that share the first one's reason are counted with it.
    """
    if not report.decided:
        return ""
    first = report.decided[0]
    same = [one for one in report.decided if one.why == first.why]
    shared, more = (f" and {n} more" if n else "" for n in (len(same) - 1, len(report.decided) - len(same)))
    return f"decided by {first.name}{shared}: {first.why}" + (f";{more} below" if more else "")


def asides(report: Report) -> list[str]:
    """What a reader must know before the figures, a sentence each."""
    return [
        *(f"Partial: {reason}." for reason in report.partial),
        *(f"Skipped {name}: {reason}." for name, reason in skipped(report).items()),
        *(f"Warning: {warning}." for warning in report.warnings),
        *(f"Acknowledged: {told}." for told in acknowledged(report)),
        *([f"Reproduced: {report.reproduced.summary()}."] if report.reproduced and report.reproduced.agree else []),
    ]


def acknowledged(report: Report) -> list[str]:
    """What doctor is unsure of and the configuration says is meant, with the reason."""
    findings = report.plausibility.findings if report.plausibility is not None else []
    unsure = (one for one in findings if one.verdict == "unsure")
    return [f"{one.name}: {one.told}" for one in unsure if one.acknowledged is not None]


def meanings(report: Report) -> dict[str, str]:
    """What the metrics of this report mean, by the part of their name between check and statistic."""
    names = [f".{name}." for name in report.metrics]
    every = {part: meaning for section in report.sections for part, meaning in section.meanings.items()}
    return {part: meaning for part, meaning in every.items() if any(f".{part}." in name for name in names)}


def provenance(report: Report) -> list[Fact]:
    """What was audited, on what, with what and how."""
    model, data, environment = report.model, report.data, report.environment
    facts = [Fact("model", model.file.path), Fact("model SHA-256", model.file.sha256)]
    if len(model.files) > 1:
        facts += [Fact("model file", file.path, f", SHA-256 {file.sha256}") for file in model.files]
    if model.state_sha256 is not None:
        facts.append(Fact("opened weights SHA-256", model.state_sha256))
    if model.prefix:
        facts.append(Fact("names", model.prefix, ", which a wrapper had put before them, was taken off"))
    if model.computed:
        facts.append(Fact("computed", listed(model.computed), ", of what weight or spectral normalisation stores"))
    if model.adapter is not None:
        facts.append(Fact("adapter", None, f"{model.adapter.name} ({model.adapter.source})"))
    if model.likelihood is not None:
        facts.append(Fact("likelihood", None, model.likelihood))
    facts += [Fact("note", None, note) for note in model.notes]
    if data is not None:
        facts += [
            Fact("data", data.source, f", {data.n} items"),
            Fact("data SHA-256", data.sha256),
            Fact("stored as", None, data.stored),
            *([Fact("left out of the data", None, "; ".join(data.skipped))] if data.skipped else []),
            Fact("range", None, span_text(data.range)),
        ]
    return [
        *facts,
        Fact("seed", None, str(environment.seed)),
        Fact("ran on", None, f"{environment.device}, threads: {environment.threads}, {environment.dtype}"),
        Fact("with", None, f"{report.tool}, torch {environment.torch}, Python {environment.python}"),
        Fact("at", None, report.created),
        Fact("took", None, ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.timings.items())),
        Fact("command", shlex.join(report.argv)),
        Fact("configuration SHA-256", report.configuration_sha256),
    ]
