"""Another form of a model in a report: its entry, and how it is shown."""

import math

from pydantic import Field, JsonValue

from vaeaudit.checks.equivalence.metrics import METRICS
from vaeaudit.layout.entry import Entry, FileHash, MetricEntry, Number
from vaeaudit.layout.section import Section, Shown, Table, number, with_interval
from vaeaudit.stats.metric import meanings

# What the columns of the tables mean.
LEGEND = {
    "variant": "what is compared with the reference",
    "encoder": "largest shift of a latent's mean in units of its standard deviation, of the median and the worst item",
    "decoder": "largest difference of a value on the reference's latents, likewise: z = the mean, and draws",
    "end to end": "largest difference of a value of the reconstructions, each at its own mean, likewise",
    "not finite": "items of which it gives NaN or infinity",
    "same": "whether encoder and decoder are equal to the bit, or how far they differ beside what two draws of z do",
}
FIGURE_LEGEND = {
    "figure": "of each item: of the encoder, of the decoder on the reference's latents, and end to end",
    "median": "over items, with its interval",
    "tail": "what 5% of all items are worse than, likewise",
    "worst": "of these items, and which: a fact about them, no estimate",
    "two draws of z": "the same figure between two draws of z under the reference: the median over items",
}


class FigureEntry(Entry):
    """One figure of a variant."""

    name: str
    median: MetricEntry
    tail: MetricEntry
    worst: MetricEntry
    worst_item: int
    scale: Number = Field(description="The same figure between two draws of z: median over items; null without any.")


class LocatedEntry(Entry):
    """Where a variant first gives NaN or infinity."""

    side: str
    item: int
    module: str | None = Field(description="First module whose output is not finite; empty: none of them.")


class VariantEntry(Entry):
    """How far one variant is from the reference."""

    name: str
    file: FileHash | None = Field(description="Of another model; null for another form of the same.")
    adapter: str | None
    options: dict[str, JsonValue]
    dtype: str
    identical: list[str] = Field(description="What is equal to the bit: encoder, decoder, both or none.")
    figures: list[FigureEntry]
    nonfinite: int = Field(description="Items of which it gives NaN or infinity.")
    located: list[LocatedEntry]
    likely: list[str] = Field(description="What the differences look like, in sentences.")


class EquivalenceEntry(Entry):
    """Whether other forms of a model give the same."""

    n: int
    chosen: str = Field(description="How the items were chosen.")
    draws: int
    dtype: str = Field(description="Precision of the reference.")
    control: float = Field(description="Largest difference where the reference is run again: 0 if it is deterministic.")
    again: int = Field(description="Items of which it was run again.")
    ranged: bool = Field(description="Whether differences are in units of the range, or else of the input.")
    tolerance: float
    variants: list[VariantEntry]

    def section(self) -> Section:
        """How the figures are shown."""
        complete = self.chosen == f"all {self.n}" or self.chosen.startswith(f"{self.n} of ")
        done = "" if complete else f", of which {self.n} were done"
        units = "the range" if self.ranged else "the input"
        draws = f"{self.draws} draw{'s' * (self.draws != 1)}"
        tables = [Shown(f"{self.n} items ({self.chosen}{done})", self._summary(), LEGEND)]
        tables += [Shown(f"{one.name}, of {one.dtype}", _figures(one), FIGURE_LEGEND) for one in self.variants]
        control = (
            f"The reference, run again on {self.again} items, gives the same to the bit."
            if self.control == 0
            else f"The reference is not deterministic: run again on {self.again} items, it differs by up to "
            f"{number(self.control)}, and no difference below that says anything of a variant."
        )
        return Section(
            "Equivalence",
            f"Does another form of the model give the same as this one in {self.dtype}? The same items, the same "
            f"latents (z = the mean and {draws} an item), the same noise; differences in units of {units}. What passes "
            f"keeps within {number(self.tolerance)} at the worst item and half of it at the median one.",
            tables,
            [control, *(f"{one.name}: {text}." for one in self.variants for text in one.likely)],
            figures={
                f"{one.name}: largest differences": "The items that differ most: the reference's reconstruction, the "
                "variant's, and the difference, blue where the variant is lower and red where it is higher"
                for one in self.variants
            },
            meanings=meanings(METRICS),
            headlines={
                f"equivalence.{one.name}.end.largest_difference.worst": f"worst difference of a value, {one.name}"
                for one in sorted(self.variants, key=_farthest, reverse=True)
            },
        )

    def _summary(self) -> Table:
        rows = []
        for one in self.variants:
            by_name = {figure.name: figure for figure in one.figures}
            told = [by_name.get(f"{side}") for side in ("encoder.mean_shift", *_LARGEST)]
            rows.append(
                [
                    one.name,
                    *("" if figure is None else f"{_value(figure.median)}; {_value(figure.worst)}" for figure in told),
                    str(one.nonfinite),
                    _same(one),
                ]
            )
        return list(LEGEND), rows


_LARGEST = ("decoder.largest_difference", "end.largest_difference")
_WORDS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "kl": "KL, nats",
    "kl_back": "KL back, nats",
    "mean_shift": "shift of the mean, σ",
    "log_stddev": "|log σ − log σ|",
}


def _farthest(one: VariantEntry) -> float:
    """The worst difference end to end, infinite where it is."""
    worst = next((figure.worst.value for figure in one.figures if figure.name == _LARGEST[1]), None)
    return math.inf if worst is None else worst


def _same(one: VariantEntry) -> str:
    if len(one.identical) == 2:
        return "to the bit"
    figure = next((figure for figure in one.figures if figure.name == _LARGEST[1]), None)
    told = f"{one.identical[0]} to the bit; " if one.identical else ""
    if figure is None or not figure.scale or figure.worst.value is None:
        return f"{told}no"
    return f"{told}{figure.worst.value / figure.scale:.2g} of two draws"


def _figures(one: VariantEntry) -> Table:
    rows = []
    for figure in one.figures:
        side, _, name = figure.name.partition(".")
        rows.append(
            [
                f"{'end to end' if side == 'end' else side} {_WORDS.get(name, name.replace('_', ' '))}",
                _value(figure.median, interval=True),
                _value(figure.tail, interval=True),
                f"{_value(figure.worst)} (item {figure.worst_item})",
                "" if figure.scale is None else number(figure.scale, 3),
            ]
        )
    return list(FIGURE_LEGEND), rows


def _value(metric: MetricEntry, interval: bool = False) -> str:
    if metric.value is None:
        return "infinite" if metric.nonfinite else "n/a"
    if metric.unit == "share" and 0.999 < metric.value < 1:  # of which three digits would say 1
        return f"1 − {1 - metric.value:.2g}"
    return with_interval(metric.value, metric.ci if interval else None)
