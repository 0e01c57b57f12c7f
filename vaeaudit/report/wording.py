"""What every form of a report says in words: the verdict's meaning, asides, meanings of metrics, what was audited."""

import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

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

# Control characters, half surrogate pairs, line separators, marks that turn the direction of writing, non-characters:
# XML cannot hold some, and the rest would let a file's name show as another or break a line.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


class Fact(NamedTuple):
    """Something that was audited: ``exact`` is to be shown to the letter (None: nothing is), ``words`` follow it."""

    name: str
    exact: str | None
    words: str = ""


def visible(text: str) -> str:
    """``text`` with characters that cannot be seen or stored written as escapes."""
    return _HIDDEN.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def one_line(text: str, most: int | None = None) -> str:
    """``text`` made visible on one line, cut after ``most`` characters."""
    line = " ".join(visible(text).split())
    return line if most is None or len(line) <= most else line[: most - 1] + "…"


def spans(text: str) -> Iterator[tuple[str, bool]]:
    """The pieces of a text in which `backticks` mark what is to be shown to the letter, and whether each is such."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:  # the last backtick has no partner
        pieces[-2:] = ["`".join(pieces[-2:])]
    return ((piece, place % 2 == 1) for place, piece in enumerate(pieces) if piece)


def asides(report: Report) -> list[str]:
    """What a reader must know before the figures, a sentence each."""
    return [
        *(f"Partial: {reason}." for reason in report.partial),
        *(f"Skipped {name}: {reason}." for name, reason in report.skipped.items()),
        *(f"Warning: {warning}." for warning in report.warnings),
        *([f"Reproduced: {report.reproduced.summary()}."] if report.reproduced and report.reproduced.agree else []),
    ]


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
    if model.adapter is not None:
        facts.append(Fact("adapter", None, f"{model.adapter.name} ({model.adapter.source})"))
    if model.likelihood is not None:
        facts.append(Fact("likelihood", None, model.likelihood))
    if data is not None:
        facts += [
            Fact("data", data.source, f", {data.n} items"),
            Fact("data SHA-256", data.sha256),
            Fact("stored as", None, data.stored),
            *([Fact("left out of the data", None, "; ".join(data.skipped))] if data.skipped else []),
            Fact("range", None, f"[{data.range[0]:g}, {data.range[1]:g}]" if data.range else "none"),
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
