"""Two audits compared, in a report of their own or as the baseline of an audit: entries, and how they are shown."""

from typing import Literal

from pydantic import Field

from vaeaudit.layout.entry import Entry, Number
from vaeaudit.layout.section import Section, Shown, Table, number, with_interval

DIFFERENCE_LEGEND = {
    "metric": "the figure",
    "old": "in the earlier audit",
    "new": "in the later one",
    "new - old": "their difference, of a median the items' median difference, and its interval: BCa bootstrap over "
    "items (BC for medians), the values of an item in both audits resampled together",
    "may worsen by": "the difference in the worse direction that a regression must exceed (min_effect)",
    "p": "chance of a change for the worse as clear as this, or clearer, were both models the same: Wilcoxon's "
    "signed-rank test over items, one-sided, by Holm's method for all metrics of this table together",
    "outcome": "regressed: p is small enough, the interval leaves out 0, and the difference exceeds what is allowed; "
    "improved: the same the other way, or no item is worse; no difference shown: neither; cannot tell: there is no "
    "ground for an answer",
}

Result = Literal["regressed", "improved", "no difference shown", "cannot tell", "not tested"]


class SideEntry(Entry):
    """One of two audits."""

    report: str | None = Field(description="Where its report was read; null for the audit that this is part of.")
    model: str
    model_sha256: str
    created: str
    tool: str


class DifferenceEntry(Entry):
    """One metric in both audits."""

    metric: str
    old: Number
    new: Number
    difference: Number = Field(description="new - old, of the items that both have.")
    ci: tuple[float, float] | None
    n: int
    unit: str
    direction: str
    min_effect: float = Field(description="In the figure's unit, whatever it was given in.")
    p: Number = Field(description="Of a change for the worse, Holm-adjusted; null where not tested.")
    outcome: Result
    why: str | None = Field(description="Why it cannot be told or was not tested, or in what it improved.")


class ComparisonEntry(Entry):
    """Two audits of the same items with the same seed."""

    old: SideEntry
    new: SideEntry
    level: float
    rounding: float = Field(0.0, description="Share of its size by which an item's values may differ and be equal.")
    refused: list[str] = Field(description="Why the two cannot be compared at all; empty where they can.")
    warnings: list[str]
    differences: list[DifferenceEntry]
    verdict: Literal["passed", "failed", "inconclusive"]

    def of(self, *outcomes: Result) -> list[DifferenceEntry]:
        """The differences with one of these outcomes."""
        return [one for one in self.differences if one.outcome in outcomes]

    @property
    def tested(self) -> list[DifferenceEntry]:
        """The differences that decide: a regression among them is one of the verdict."""
        return [one for one in self.differences if one.outcome != "not tested"]

    def summary(self) -> str:
        """The outcome in one sentence, without a full stop."""
        if self.refused:
            return f"not compared: {'; '.join(self.refused)}"
        if not self.tested:
            return "nothing could regress: they share no figure of which one way is more robust"
        counted = {name: len(self.of(name)) for name in ("regressed", "improved", "no difference shown", "cannot tell")}
        return f"of {len(self.tested)} metrics " + ", ".join(f"{n} {name}" for name, n in counted.items() if n)

    def section(self) -> Section:
        """How the differences are shown."""
        tested = Shown("metrics that may regress", _table(self.tested), DIFFERENCE_LEGEND)
        rest = [one for one in self.of("not tested") if one.difference is not None or None in (one.old, one.new)]
        others = Shown("other metrics", _others(rest), {})
        return Section(
            "Compared with an earlier audit",
            f"{self.new.model} against {self.old.model} ({self.old.created}), paired by item: {self.summary()}."
            + (
                f" The chance that anything is called regressed where both models are the same is at most "
                f"{1 - self.level:.2g}."
                if self.tested
                else ""
            )
            + (
                f" Values of an item that differ by at most {self.rounding:g} of their size are taken as equal."
                if self.tested and self.rounding
                else ""
            ),
            [*([tested] if self.tested else []), *([others] if rest else [])],
            [f"{one.metric}: {one.why}." for one in self.of("cannot tell", "improved") if one.why],
        )


def _table(differences: list[DifferenceEntry]) -> Table:
    rows = [
        [
            one.metric,
            number(one.old),
            number(one.new),
            with_interval(one.difference, one.ci),
            number(one.min_effect),
            number(one.p, 2) if one.p is not None else "",
            one.outcome,
        ]
        for one in differences
    ]
    return list(DIFFERENCE_LEGEND), rows


def _others(differences: list[DifferenceEntry]) -> Table:
    rows = [
        [one.metric, number(one.old), number(one.new), with_interval(one.difference, one.ci), one.unit]
        for one in differences
    ]
    return ["metric", "old", "new", "new - old", "unit"], rows
