"""The mutual information gap in a report: its entry, and how it is shown."""

from typing import Literal, Self

from pydantic import Field, model_validator

from vaeaudit.checks.mig.metrics import METRICS
from vaeaudit.errors import listed
from vaeaudit.layout.entry import Entry, Number
from vaeaudit.layout.section import Section, Shown, Table, number
from vaeaudit.stats.metric import meanings

INFORMATION = "mutual informations"  # figure
# What the columns of the table mean; those of the gaps come once for each estimator.
MIG_LEGEND = {
    "factor": "what varies in the data; the last row is the mean over factors, the MIG",
    "H(v)": "entropy of the factor in nats: what there is to know about it",
    "gap": "how much more the unit that knows most of the factor knows than the second, as a share of H(v), with its "
    "interval: 1 where one unit alone holds the factor, 0 where two know it equally well or none does",
    "held by": "the unit that knows most, and the second, each with what it knows of the factor as a share of H(v)",
}
_ESTIMATORS = {
    "chen": "chen takes each unit's noise into account (the exact mixture of all items' posteriors)",
    "hist20": "hist20 takes the posterior's mean alone, in 20 bins of equal width",
}


class HeldEntry(Entry):
    """What the units know of one factor by one estimator, as shares of the factor's entropy."""

    gap: Number
    ci: tuple[float, float] | None
    unit: int = Field(description="The unit that knows most; -1 where the check was stopped.")
    share: Number
    second: int
    second_share: Number


class GapsEntry(Entry):
    """The gaps by one estimator; ``factors`` in the order of the entry's."""

    estimator: Literal["chen", "hist20"]
    value: Number = Field(description="The MIG: the mean of the gaps.")
    ci: tuple[float, float] | None
    factors: list[HeldEntry]


class MigEntry(Entry):
    """The mutual information gap of all factors that vary."""

    n: int
    chosen: str = Field(description="How the items were chosen.")
    units: int = Field(description="Continuous ones, then categorical ones, which count as one each.")
    categorical: int
    layer: int
    layers: int
    level: float
    complete: bool = Field(description="Whether the items are all combinations of the factors' classes, each once.")
    factors: list[str]
    entropy: list[float] = Field(description="Of each factor, in nats.")
    constant: list[str] = Field(description="Factors that do not vary over these items, left out.")
    by: list[GapsEntry]

    @model_validator(mode="after")
    def _of_the_same_factors(self) -> Self:
        if {len(self.entropy), *(len(gaps.factors) for gaps in self.by)} != {len(self.factors)}:
            raise ValueError("entropy, and factors of each estimator, must be as many as factors")
        return self

    def section(self) -> Section:
        """How the gap is shown."""
        of = f"{self.n} items ({self.chosen}), {self.units} units"
        of += f", of which {self.categorical} categorical" if self.categorical else ""
        of += f", layer {self.layer} of {self.layers}" if self.layers > 1 else ""
        told = "; ".join(_ESTIMATORS[gaps.estimator] for gaps in self.by)
        others = ": but these are all combinations of the factors, of which there are no others" * self.complete
        return Section(
            "Mutual information gap",
            "Whether each known factor of the data is held by one unit of the latent code alone: the unit that knows "
            "most about the factor against the second (Chen et al. 2018). There are two usual estimators, whose "
            f"figures must not be compared with each other: {told}. Of {of}; intervals at {self.level:.0%} take the "
            f"items as a sample, and tell what others would have given{others}.",
            [Shown(f"mutual information gap: {of}", mig_table(self), MIG_LEGEND)],
            [f"Left out, since constant over these items: {listed(self.constant)}."] if self.constant else [],
            {
                INFORMATION: "What each unit knows of each factor, as a share of the factor's entropy, by "
                "both estimators; a frame marks the unit that knows most"
            },
            meanings(METRICS),
            {"mig.chen": "1: each factor has its own unit"},
        )


def mig_table(mig: MigEntry) -> Table:
    """One row a factor, and the mean."""
    headers = ["factor", "H(v)"]
    for gaps in mig.by:
        headers += [f"{name}, {gaps.estimator}" for name in ("gap", "held by")]
    rows = []
    for place, factor in enumerate(mig.factors):
        row = [factor, number(mig.entropy[place])]
        for gaps in mig.by:
            held = gaps.factors[place]
            row += [_share(held.gap, held.ci), _holders(held)]
        rows.append(row)
    means = [cell for gaps in mig.by for cell in (_share(gaps.value, gaps.ci), "")]
    return headers, [*rows, ["mean (MIG)", "", *means]]


def _share(value: float | None, ci: tuple[float, float] | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:.3f}" + (f" [{ci[0]:.3f}, {ci[1]:.3f}]" if ci else "")


def _holders(held: HeldEntry) -> str:
    if held.share is None or held.second_share is None:
        return "n/a"
    return f"{held.unit} ({held.share:.2f}), then {held.second} ({held.second_share:.2f})"
