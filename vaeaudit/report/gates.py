"""Thresholds in a report: their entries, and how they are shown."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from vaeaudit.layout.entry import Entry, Number
from vaeaudit.layout.section import Section, Shown, Table


class WaiverEntry(Entry):
    """A known fault that does not count yet."""

    until: str = Field(description="Last day on which it does not count.")
    reason: str


class CheckEntry(Entry):
    """A threshold with its outcome."""

    id: str = Field(description="The metric that it reads.")
    bound: Literal["interval", "ci_lower", "ci_upper", "value"] = Field(description="What of the metric is read.")
    min: float | None
    max: float | None
    observed: Number = Field(description="The number that decided: an end of the interval, or the value.")
    verdict: Literal["passed", "failed", "inconclusive"]
    severity: Literal["error", "warn"] = Field(description="Whether the outcome counts, or only warns.")
    waived: WaiverEntry | None = Field(description="Why the outcome does not count, while it does not.")
    why: str = Field(description="The outcome in words.")

    @property
    def counts(self) -> bool:
        """Whether the verdict of the audit depends on it."""
        return self.severity == "error" and self.waived is None


def gates_section(checks: Sequence[CheckEntry]) -> Section:
    """How the thresholds and their outcomes are shown."""
    counting = [check.verdict for check in checks if check.counts]
    told = ", ".join(f"{counting.count(word)} {word}" for word in ("passed", "failed", "inconclusive"))
    return Section(
        "Thresholds",
        f"Of {len(counting)} that count: {told}. Unless it names one bound, a threshold reads the whole interval: it "
        "passes where all of it is on the right side, fails where all of it is on the wrong side, and is inconclusive "
        "in between.",
        [Shown("thresholds", check_table(checks), numbers_from=5)],
    )


def check_table(checks: Sequence[CheckEntry]) -> Table:
    """One row a threshold; what does not count says so."""
    rows = []
    for check in checks:
        bounds = [
            f"≥ {check.min:g}" if check.min is not None else "",
            f"≤ {check.max:g}" if check.max is not None else "",
        ]
        counted = "yes" if check.counts else "warns only"
        if check.waived is not None:
            counted = f"waived until {check.waived.until}: {check.waived.reason}"
        asked = " and ".join(filter(None, bounds)) + ("" if check.bound == "interval" else f" ({check.bound})")
        rows.append([check.id, asked, check.verdict, check.why, counted])
    return ["metric", "must be", "outcome", "why", "counts"], rows
