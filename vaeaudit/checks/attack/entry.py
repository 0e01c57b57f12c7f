"""Attacks in a report: their entries, and how they are shown."""

from typing import Literal, Self

from pydantic import Field, model_validator

from vaeaudit.attacks.modes import MODES
from vaeaudit.checks.attack.metrics import METRICS
from vaeaudit.layout.entry import Entry, Number
from vaeaudit.layout.section import Section, Shown, Table, number
from vaeaudit.model.ranges import span_text
from vaeaudit.settings.fields import CappedMode, Range, SweptMode
from vaeaudit.stats.metric import meanings

_CLASSES = (
    "reached, left / valid: of the attacks whose clean reconstruction has the source's class, how many end in the "
    "target's class, and in any other than the source's."
)
# What the columns of the attack table mean, for readers of the report.
LEGEND = {
    "pair": "source → target, as item numbers of the data",
    "λ": "weight of the distortion, chosen so that the data term is just better than its mean over all λ",
    "‖d‖": "length of the distortion that was found",
    "data": "the data term: what the attack minimises besides the length",
    "penalty": "λ pen(d)",
    "total": "data + penalty, the objective",
    "-log p": "of the target under z ~ q(z|x*), before → after the attack, in nats",
    "to target": "‖x_t - rec(x*)‖, before → after the attack (floor: what the target's own reconstruction has)",
    "own": "‖x* - rec(x*)‖, how badly the adversarial input itself is reconstructed",
    "signs": "failure signs: the figures of a pair with one support no verdict",
}
# What the columns of the table of an attack under caps mean.
CAPPED_LEGEND = {
    "item": "number of the item in the data (of its target, where an attack has one)",
    "cap": "largest norm that the distortion may have",
    "‖d‖": "norm of the distortion that was found",
    "damage": "E ‖g(z) - ref‖ over draws that no search has seen, at d = 0 → under attack",
    "-log p": "-log p(x|z*) of the clean input over the same draws, in nats, at d = 0 → under attack",
    "by": "the attack that found it",
    "signs": "failure signs: the figures of an item with one support no verdict",
}
PANEL, CURVE = "{} panel", "{} curve"  # figures, by mode

Reached = Literal["mean", "std", "both"]


class PairEntry(Entry):
    """One attacked pair at its chosen lambda."""

    source: int
    target: int
    lam: float
    norm: float
    data_term: float
    penalty: float
    objective: float
    target_nll: Number
    target_nll_unattacked: Number
    target_error: Number
    target_error_unattacked: Number
    target_error_floor: Number
    own_error: Number
    fresh_data_term: Number = Field(description="On noise that the search never saw; null where none is taken.")
    status: str
    signs: list[str] = Field(description="Failure signs in words; with one, the pair's figures support no verdict.")


class ClassTableEntry(Entry):
    """Attacks by class of source (row) and target (column)."""

    classifier: str
    classes: list[int]
    attacked: list[list[int]]
    valid: list[list[int]] = Field(description="Their clean reconstruction has the source's class.")
    left: list[list[int]] = Field(description="Valid, and the adversarial reconstruction has another class.")
    reached: list[list[int]] = Field(description="Valid, and the adversarial reconstruction has the target's class.")

    @model_validator(mode="after")
    def _square(self) -> Self:
        for counts in (self.attacked, self.valid, self.left, self.reached):
            if [len(row) for row in counts] != [len(self.classes)] * len(self.classes):
                raise ValueError("attacked, valid, left and reached must have a row and a column for each of classes")
        return self


class AttackEntry(Entry):
    """One attack mode over all pairs and lambda."""

    mode: SweptMode
    similarity: str | None = Field(description="What the latent attack compares posteriors by.")
    on: Reached = Field(description="What of the posterior the perturbation reaches: mean, std or both.")
    layers: list[int] | None = Field(description="Layers of a chain that are compared; null for all.")
    unit: str
    penalty: Literal["l2", "l2sq"]
    box: Range | None
    lambdas: list[float] = Field(min_length=1)
    restarts: int
    chosen: str = Field(description="How the pairs were chosen.")
    pairs: list[PairEntry]
    signs: dict[str, int] = Field(description="Failure signs that were seen: sign -> pairs.")
    classes: ClassTableEntry | None
    statuses: dict[str, int] = Field(description="How the problems ended: message -> count.")
    evaluations: int
    searched_on: int = Field(0, description="Problems that could still gain at their first limit, searched on.")
    budget: int = Field(0, description="Evaluations that such a problem may take at most.")
    zero_optimal: int = Field(description="Problems whose best distortion is d = 0.")

    def section(self) -> Section:
        """How the attack is shown."""
        box = f"x + d in {span_text(self.box)}" if self.box else "no box"
        title = f"{self.mode} attack, {minimised(self)}, in {self.unit}; values before → after the attack"
        tables = [Shown(title, attack_table(self), LEGEND)]
        if self.classes:
            tables.append(Shown(f"Classes by {self.classes.classifier}; {_CLASSES}", class_table(self.classes)))
        return Section(
            f"Attack: {self.mode}",
            f"Minimises {minimised(self)} over d with {box}; pairs: {len(self.pairs)}, {self.chosen}; values of λ: "
            f"{len(self.lambdas)}, from {self.lambdas[0]:.3g} to {self.lambdas[-1]:.3g}; the data term is in "
            f"{self.unit}. Here x is the source, x_t the target, x* = x + d the adversarial input, and rec the "
            "decoder's mean at z = the posterior's mean. An attack is a lower bound on harm: a stronger one may do "
            "more.",
            tables,
            [f"{ends(self)}."],
            {
                PANEL.format(self.mode): "Attack panel of the first pairs: input, reconstruction, adversarial, "
                "distortion, its reconstruction, target",
                CURVE.format(self.mode): "Distortion curves: distance to the target over the norm of the distortion",
            },
            meanings(METRICS),
            {f"attack.{self.mode}.delta.median": "cost of an attack; more is better"},
        )


class CapEntry(Entry):
    """One item under one cap."""

    cap: float
    norm: float
    damage: Number
    nll: Number = Field(description="-log p(x|z*) in nats.")
    by: str = Field(description="The attack that found it.")
    status: str


class CappedItemEntry(Entry):
    """One attacked item."""

    item: int
    target: int | None
    damage_unattacked: Number
    nll_unattacked: Number
    caps: list[CapEntry]
    signs: list[str] = Field(description="Failure signs in words; with one, the item's figures support no verdict.")


class CappedEntry(Entry):
    """One attack mode under caps."""

    mode: CappedMode
    members: list[str] = Field(description="The attacks of which the worst was taken.")
    similarity: str | None
    on: Reached
    ref: Literal["reconstruction", "input"]
    norm: Literal["l2", "linf"]
    box: Range | None
    items: list[CappedItemEntry]
    signs: dict[str, int] = Field(description="Failure signs that were seen: sign -> items.")
    evaluations: int
    searched_on: int = Field(0, description="Items and caps of the first attack that were searched on.")
    budget: int = Field(0, description="Evaluations that one of these may take at most.")

    def section(self) -> Section:
        """How the attack is shown."""
        box = f"x + d in {span_text(self.box)}" if self.box else "no box"
        norm = "‖d‖₂" if self.norm == "l2" else "‖d‖∞"
        largest = max((cap.cap for item in self.items for cap in item.caps), default=0.0)
        return Section(
            f"Attack under a cap: {self.mode}",
            f"Maximises {maximised(self)}, over d with {norm} at most the cap and {box}; items: {len(self.items)}, "
            f"{self.evaluations:,} evaluations of the first attack{searched_on(self)}. Damage is in input units. "
            "An attack is a lower bound on harm: a stronger one may do more.",
            [Shown(f"{self.mode} attack: {maximised(self)}", capped_table(self), CAPPED_LEGEND)],
            figures={
                PANEL.format(self.mode): "Panel of the first items under the largest cap",
                CURVE.format(self.mode): "Damage over the cap",
            },
            meanings=meanings(METRICS),
            headlines={f"attack.{self.mode}.{self.norm}-{largest:.4g}.damage.median": "damage done; less is better"},
        )


def attack_table(attack: AttackEntry) -> Table:
    """One row a pair, at its chosen lambda."""
    rows = [
        [
            f"{pair.source} → {pair.target}",
            number(pair.lam),
            number(pair.norm),
            number(pair.data_term),
            number(pair.penalty),
            number(pair.objective),
            f"{number(pair.target_nll_unattacked)} → {number(pair.target_nll)}",
            f"{number(pair.target_error_unattacked)} → {number(pair.target_error)} ({number(pair.target_error_floor)})",
            number(pair.own_error),
            "; ".join(sign.split(":")[0] for sign in pair.signs) or "none",
        ]
        for pair in attack.pairs
    ]
    return list(LEGEND), rows


def capped_table(attack: CappedEntry) -> Table:
    """One row an item and cap."""
    rows = [
        [
            str(item.item) + ("" if item.target is None else f" ({item.target})"),
            number(cap.cap),
            number(cap.norm),
            f"{number(item.damage_unattacked)} → {number(cap.damage)}",
            f"{number(item.nll_unattacked)} → {number(cap.nll)}",
            cap.by,
            "; ".join(sign.split(":")[0] for sign in item.signs) or "none",
        ]
        for item in attack.items
        for cap in item.caps
    ]
    return list(CAPPED_LEGEND), rows


def maximised(attack: CappedEntry) -> str:
    """What an attack under a cap makes as large as it can, as a formula."""
    reached = {"both": "", "mean": " (through its mean alone)", "std": " (through its standard deviation alone)"}
    return MODES[attack.mode].formula.format(
        similarity=attack.similarity,
        ref="g(mu(x))" if attack.ref == "reconstruction" else "x",
        reached=reached[attack.on],
        members=", ".join(attack.members),
    )


def class_table(classes: ClassTableEntry) -> Table:
    """One row a class of source: of each class of target "reached, left / valid" attacks."""
    rows = [
        [
            str(name),
            *(
                f"{reached}, {left} / {valid}" if attacked else "-"
                for reached, left, valid, attacked in zip(*(counts[i] for counts in of), strict=True)
            ),
        ]
        for of in [(classes.reached, classes.left, classes.valid, classes.attacked)]
        for i, name in enumerate(classes.classes)
    ]
    return ["source \\ target", *map(str, classes.classes)], rows


def minimised(attack: AttackEntry) -> str:
    """The objective of an attack as a formula."""
    pen = "‖d‖" if attack.penalty == "l2" else "‖d‖²"
    reached = {"both": "", "mean": " (its mean alone)", "std": " (its standard deviation alone)"}[attack.on]
    layers = f", layers {', '.join(map(str, attack.layers))}" if attack.layers else ""
    term = MODES[attack.mode].formula.format(similarity=attack.similarity, reached=reached, layers=layers)
    return f"{term} + λ {pen}"


def ends(attack: AttackEntry) -> str:
    """How the problems of an attack ended, in a sentence."""
    problems = len(attack.pairs) * len(attack.lambdas)
    told = ", ".join(f"{count} {message}" for message, count in attack.statuses.items())
    zero = f"d = 0 is the best found for {attack.zero_optimal}"
    return f"{problems} problems: {told}; {zero}; {attack.evaluations:,} evaluations{searched_on(attack)}"


def searched_on(attack: AttackEntry | CappedEntry) -> str:
    """How many problems were searched on, as the end of a sentence."""
    if not attack.searched_on:
        return ""
    return f", {attack.searched_on} problems that still gained at their limit searched on, to {attack.budget:,} at most"
