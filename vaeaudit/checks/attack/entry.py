"""Attacks in a report: their entries, and how they are shown."""

from typing import Literal, Self

from pydantic import Field, model_validator

from vaeaudit.layout.entry import Entry, Number
from vaeaudit.layout.section import Section, Shown, Table, number
from vaeaudit.model.ranges import span_text
from vaeaudit.settings.sections import Range

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
# What the metrics of an attack mean, by the part of their name between mode and statistic.
METRICS = {
    "delta": "objective, data + λ pen(d), averaged over all λ; in nats it also grows as posteriors narrow",
    "data_term": "the data term at the λ shown for the pair",
    "distortion": "‖d‖ there",
    "target_nll": "-log p(x_t|z) there",
    "target_error": "‖x_t - rec(x*)‖ there",
    "curve_area": "area under the distortion curve between its ends d = 0 and d = x_t - x, as a share: "
    "0 where any touch turns the model, near 1 where it yields only to the target itself",
    "success.target": "of the pairs whose rec(x) has the source's class, the share whose rec(x*) has the target's",
    "success.ignore_target": "share of those whose rec(x*) has any other class than the source's",
    "success.classifier_accuracy": "share of held-out reconstructions that the classifier names rightly",
    "success.factor": "share of pairs where the image of the data nearest to rec(x*) has the target's value of the "
    "varied factor and the source's of all others",
    "success.factor_at_source": "the same at rec(x), without an attack",
    "success.factor_at_target": "the same at rec(x_t), after a perfect one",
    "damage": "E ‖g(z) - ref‖ under the named cap, over draws that no search has seen",
    "degradation": "log p(x|z) - log p(x|z*) there, in nats",
    "relative_degradation": "the same as a share of |log p(x|z)|, which depends on the likelihood's constants",
    "ms_ssim_input": "multi-scale structural similarity of x and x*: 1 where the attack cannot be seen",
    "ms_ssim_reconstruction": "that of rec(x) and rec(x*): 1 where the attack changes nothing",
    "progress": "1 - ‖rec(x*) - x_t‖ / ‖rec(x) - x_t‖: 0 where nothing changes, 1 at the target",
}


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

    mode: Literal["latent", "output"]
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
                f"{self.mode} panel": "Attack panel of the first pairs: input, reconstruction, adversarial, "
                "distortion, its reconstruction, target",
                f"{self.mode} curve": "Distortion curves: distance to the target over the norm of the distortion",
            },
            METRICS,
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

    mode: Literal["damage", "untargeted", "latent-side", "worst"]
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
                f"{self.mode} panel": "Panel of the first items under the largest cap",
                f"{self.mode} curve": "Damage over the cap",
            },
            meanings=METRICS,
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
    ref = "g(mu(x))" if attack.ref == "reconstruction" else "x"
    damage = f"E ‖g(z) - {ref}‖, z ~ q(z|x + d){reached[attack.on]}"
    return {
        "damage": damage,
        "untargeted": f"{attack.similarity}(q(z|x + d), q(z|x)){reached[attack.on]}",
        "latent-side": "‖g(mu(x) + d) - g(mu(x))‖",
        "worst": f"{damage}, the worst of {', '.join(attack.members)}",
    }[attack.mode]


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
    terms = {
        "latent": f"{attack.similarity}(q(z|x + d){reached}, q(z|x_t)){layers}",
        "output": f"KL(q(z|x + d) || p(z)) - E log p(x_t|z) over z ~ q(z|x + d){reached}",
    }
    return f"{terms[attack.mode]} + λ {pen}"


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
