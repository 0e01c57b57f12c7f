"""The latents check in a report: its entry, and how it is shown."""

from typing import Literal

from pydantic import Field

from vaeaudit.checks.latents.metrics import METRICS
from vaeaudit.layout.entry import Entry, Number
from vaeaudit.layout.section import Section, Shown, Table, number, with_interval
from vaeaudit.stats.metric import meanings

UNITS = "KL of each unit"  # figure
SHOWN = 30  # units in the table; items.json holds all

EVIDENCE_LEGEND = {
    "ELBO": "evidence lower bound of log p(x), no H(q(x)) added: the log-likelihood of the item under the decoder at "
    "its own z, less the KL; higher is a better model, not a more robust one",
    "log-likelihood": "E log p(x|z), z drawn from q(z|x)",
    "KL": "KL(q(z|x) || p(z)), what an item's code costs; below it its shares, where the code has several parts",
}
APART_LEGEND = {
    "mutual information": "how much the code tells which of the N items was encoded; at most log N",
    "total correlation": "how far the units depend on each other over the data: KL(q(z) || prod q(z_j))",
    "dimension-wise KL": "how far each unit's distribution over the data is from its prior, summed over units",
    "standard error": "of the estimate by draws; the sum is known exactly",
}
UNITS_LEGEND = {
    "KL": "mean over items of the unit's KL to its prior in nats, with its interval; 0 for a unit that holds nothing",
    "share": "of the KL of all units",
    "variance of the mean": "variance over items of the mean of q(z_j|x), in squared latent units; none for a "
    "categorical unit, nor above a chain's first layer with fewer than two draws",
    "active": "by which criterion: KL, or variance of the mean (Burda et al. 2016), above the threshold",
}
ACTIVE_LEGEND = {
    "criterion": "what must exceed the threshold",
    "active": "units that do, between those that surely do and those that may",
}


class FigureEntry(Entry):
    """A mean in nats with its standard error and interval, null where unknown."""

    name: str
    value: Number
    error: Number
    ci: tuple[float, float] | None


class UnitEntry(Entry):
    """One unit of the code."""

    layer: int
    unit: int = Field(description="Number within its layer; continuous units come first.")
    kind: Literal["continuous", "categorical"]
    kl: FigureEntry
    share: Number = Field(description="Of the KL of all units.")
    variance: Number = Field(description="Of the posterior's mean over items; null where there is none.")
    active: list[str] = Field(description="Criteria by which the unit is active.")


class ActiveEntry(Entry):
    """How many units of a layer are active by one criterion."""

    layer: int
    criterion: str
    active: Number
    ci: tuple[float, float] | None
    units: int


class LatentsEntry(Entry):
    """What the latents of the items hold."""

    n: int
    chosen: str = Field(description="How the items were chosen.")
    draws: int
    route: str | None = Field(description="How log p(x|z) is computed; null without draws.")
    level: float
    threshold: float = Field(description="Of both criteria of an active unit.")
    layers: int
    of_units: int = Field(description="Units of all layers.")
    log_n: float = Field(description="Log of the number of items: the largest mutual information there can be.")
    kl_estimator: str | None = Field(None, description="How the KL was estimated; null where it has a closed form.")
    evidence: list[FigureEntry]
    apart: list[FigureEntry] = Field(description="Parts of the mean KL and their sum; empty where not computed.")
    estimator: str | None = Field(description="How q(z) was estimated.")
    units: list[UnitEntry] = Field(description="Those of largest KL, at most 30.")
    active: list[ActiveEntry]
    traversals: dict[str, str] = Field(
        description="Figure of traversals -> what they start from, and which values a unit takes."
    )

    def section(self) -> Section:
        """How the latents are shown."""
        level = f"{self.level:.0%} interval"
        draws = f"{self.draws} draw{'s' * (self.draws != 1)} of z an item"
        done = "" if self.chosen == f"all {self.n}" or self.chosen.startswith(f"{self.n} of ") else ", not all done"
        of = f"{self.n} items ({self.chosen}{done})"
        evidence = Shown(
            f"ELBO and its parts, mean over {of}, {draws}, nats",
            (["part", "mean", "standard error", level], [_figure(part) for part in self.evidence]),
            {name: told for name, told in EVIDENCE_LEGEND.items() if any(p.name == name for p in self.evidence)},
        )
        top = " of the top layer" if self.layers > 1 else ""
        apart = Shown(
            f"the mean KL{top} taken apart over N = {self.n} items, log N = {number(self.log_n)}, nats",
            (["part", "mean", "standard error", level], [_figure(part) for part in self.apart]),
            APART_LEGEND,
        )
        by_kl = any(unit.kl.value is not None for unit in self.units)
        largest = f", the largest {len(self.units)}" if len(self.units) < self.of_units else ""
        units = Shown(
            f"{'KL of the' if by_kl else 'the'} {self.of_units} units in descending order{largest}"
            + (", nats" if by_kl else " of variance; none has a KL of its own, as the prior is no product over units"),
            self._units(),
            UNITS_LEGEND,
        )
        active = Shown(f"active units, threshold {self.threshold:g}", self._active(), ACTIVE_LEGEND)
        remarks = []
        if self.apart:
            remarks.append(
                f"All three parts depend on N: compare them at equal N only. Here N = {self.n}, and the mutual "
                f"information can be at most log N = {number(self.log_n)} nats. Estimated by {self.estimator}."
            )
        if self.kl_estimator is not None:
            remarks.append(f"{self.kl_estimator}; the intervals of KL and ELBO cover it.")
        if self.of_units > len(self.units):
            remarks.append(f"items.json holds all {self.of_units} units.")
        return Section(
            "Latents",
            "What the latent code holds: how well it tells the data (ELBO), which of its units carry information and "
            f"which are idle, and whether they do so independently. Of {of}; {draws}"
            + (f"; {self.route}." if self.route else ", and so no ELBO."),
            [evidence, *([apart] if self.apart else []), units, active],
            remarks,
            {
                UNITS: "KL of every unit to its prior in descending order with its interval; above the "
                "dashed line a unit counts as active",
                **{
                    name: f"What the decoder makes of a unit while the others stay: {told}"
                    for name, told in self.traversals.items()
                },
            },
            meanings(METRICS),
            {
                "latents.elbo.mean": "lower bound of log p(x)",
                "latents.kl.mean": "what the code of an item costs",
                "latents.active_units.variance": "units of the code in use",
            },
        )

    def _units(self) -> Table:
        layered = self.layers > 1
        rows = [
            [
                *([str(unit.layer)] if layered else []),
                f"{unit.unit}" + (" (categorical)" if unit.kind == "categorical" else ""),
                with_interval(unit.kl.value, unit.kl.ci),
                "n/a" if unit.share is None else f"{unit.share:.1%}",
                number(unit.variance, 3),
                " and ".join(unit.active) or "no",
            ]
            for unit in self.units
        ]
        return [*(["layer"] if layered else []), "unit", "KL", "share", "variance of the mean", "active"], rows

    def _active(self) -> Table:
        layered = self.layers > 1
        rows = [
            [
                *([str(count.layer)] if layered else []),
                count.criterion,
                "n/a" if count.active is None else f"{count.active:.0f}",
                "n/a" if count.ci is None else f"[{count.ci[0]:.0f}, {count.ci[1]:.0f}]",
                str(count.units),
            ]
            for count in self.active
        ]
        headers = [*(["layer"] if layered else []), "criterion", "active", f"{self.level:.0%} interval", "of"]
        return headers, rows


def _figure(figure: FigureEntry) -> list[str]:
    ends = "n/a" if figure.ci is None else f"[{number(figure.ci[0])}, {number(figure.ci[1])}]"
    return [figure.name, number(figure.value), "exact" if figure.error == 0 else number(figure.error, 2), ends]
