"""Margins in a report: their entries, and how they are shown."""

from pydantic import Field

from vaeaudit.checks.margin.metrics import METRICS
from vaeaudit.layout.entry import Entry, Number
from vaeaudit.layout.section import Section, Shown, Table, number
from vaeaudit.model.ranges import span_text
from vaeaudit.settings.fields import Range
from vaeaudit.stats.metric import meanings

PANEL, FALLS = "margins at r = {:.6g}", "falls at r = {:.6g}"  # figures
# What the columns of the margin table mean.
MARGIN_LEGEND = {
    "item": "number of the item in the data",
    "min r": "least r that holds the item's own draws, unperturbed (upper confidence value), in output units",
    "p0": "share of draws within r, unperturbed (lower confidence bound, on which certificate and estimates rest)",
    "certified": "lower bound of the margin: no distortion shorter than this takes the item out of r (by which proof): "
    "errors of all activations maximised together (sectors), linear bounds carried through the encoder (propagation), "
    "its linear region around the item, or its Lipschitz constants",
    "in the box": "lower bound of the margin where x + d stays in the data's range, at least the certified one",
    "pathwise": "another lower bound, with a confidence of its own: how far each draw stays within r by the Lipschitz "
    "constants of encoder and decoder, and their quantile; n/a where there are none",
    "Frobenius, spectral, whitened": "first-order estimates: what the margin would be if the encoder were linear; they "
    "are no bounds and may lie outside the two that are; in brackets the last's interval, where norms are estimated",
    "empirical": "upper bound of the margin: a distortion of this length was seen to take the item out of r",
    "signs": "failure signs of the search for the empirical margin: with one, the item's figures support no verdict",
}


class MarginItemEntry(Entry):
    """The margins of one item at one radius, in input units."""

    item: int
    min_r: float = Field(description="Least r for which the item is r-robust unperturbed, in output units.")
    min_r_upper: Number = Field(description="Its upper confidence value; null where there are too few draws.")
    p0: float = Field(description="Share of draws within r where nothing is perturbed.")
    p_low: float = Field(description="Its lower confidence bound, on which certificate and estimates rest.")
    certified: Number = Field(description="Lower bound of the margin; null where there is none.")
    certified_boxed: Number = Field(
        None, description="Lower bound where x + d stays in the box; null where there is none, or no box."
    )
    pathwise: Number = Field(
        None, description="Another lower bound, of a confidence of its own; null where there is none."
    )
    by: str = Field(description="The certificate that gave the certified margin.")
    frobenius: Number
    spectral: Number
    whitened: Number = Field(description="First-order estimate: bounded by neither of the two bounds.")
    frobenius_interval: tuple[Number, Number] | None = Field(None, description="Null where the norm is exact.")
    spectral_interval: tuple[Number, Number] | None = None
    whitened_interval: tuple[Number, Number] | None = None
    empirical: Number = Field(description="Upper bound of the margin; null where nothing broke the item.")
    p_at_empirical: Number
    censored: bool = Field(description="Nothing broke the item up to the largest norm tried.")
    largest: Number
    failure_signs: list[str] = Field(
        [], description="Of the search for the empirical margin, in words; with one, its figures support no verdict."
    )


class MarginEntry(Entry):
    """The margins of all items at one radius."""

    r: float
    m: float
    sigma: str
    box: Range | None = Field(description="Of the empirical margin; a certificate holds with any.")
    level: float
    alpha: float = Field(description="Error probability of each bound of each item.")
    family_wise: bool
    draws: int
    chosen: str = Field(description="How the items and the radius were chosen.")
    estimator: str = Field(description="How the Jacobian's norms were found.")
    items: list[MarginItemEntry]
    failure_signs: dict[str, int] = Field(
        {}, description="Of the search for the empirical margins: sign -> items that show it."
    )
    missing: list[str] = Field(description="Certificates that there are none of, and why.")
    deterministic: bool = Field(
        False, description="The encoder has no spread: margins of g(mu(x)) alone, whose bounds are sure (alpha is 0)."
    )
    joint: bool = Field(
        False, description="Of the posterior's Gaussian part: its other latents are drawn as at x, wherever x moves."
    )
    chain: bool = Field(
        False, description="Of a chain of layers: x moves q(z^1|x), and those above are drawn given the one below."
    )

    def section(self) -> Section:
        """How the margins are shown."""
        name, prefix = f"r = {self.r:.6g}", f"margin.r{self.r:.6g}"
        table = margin_table(self)
        return Section(
            f"Margins at {name}",
            "How far an item may move before its reconstruction leaves the ball of radius r around g(mu(x)) with "
            f"probability 1 - m or more: {asked(self)}. The margin R lies between the certified and the empirical one.",
            [Shown(f"margins at {asked(self)}", table, {name: MARGIN_LEGEND[name] for name in table[0]})],
            figures={
                PANEL.format(self.r): "Left: the margins of all items, each kind in ascending order. Right: the "
                "empirical margin over the whitened estimate, and the line where they are equal",
                FALLS.format(self.r): "Probability of staying within r along the distortion that broke each item",
            },
            meanings=meanings(METRICS),
            headlines={
                f"{prefix}.median": "how far items may safely move",
                f"{prefix}.certified.median": "proven: no shorter move breaks items",
                f"{prefix}.empirical.median": "how far items moved to break",
            },
        )


def margin_table(margins: MarginEntry) -> Table:
    """One row an item; what was certified in the box has a column where that was asked."""
    boxed = any(item.certified_boxed is not None for item in margins.items)
    rows = [
        [
            str(item.item),
            f"{number(item.min_r)} ({number(item.min_r_upper)})",
            f"{number(item.p0)} ({number(item.p_low)})",
            number(item.certified) + ("" if item.by == "none" else f" ({item.by})"),
            *([number(item.certified_boxed)] if boxed else []),
            number(item.pathwise),
            ", ".join(number(value) for value in (item.frobenius, item.spectral, item.whitened))
            + (" [{}, {}]".format(*map(number, item.whitened_interval)) if item.whitened_interval else ""),
            f"> {number(item.largest)} tried" if item.censored else number(item.empirical),
            "; ".join(sign.split(":")[0] for sign in item.failure_signs) or "none",
        ]
        for item in margins.items
    ]
    return [name for name in MARGIN_LEGEND if boxed or name != "in the box"], rows


def asked(margins: MarginEntry) -> str:
    """What a margin is of, in a sentence."""
    box = f"x + d in {span_text(margins.box)}" if margins.box else "no box"
    if margins.deterministic:
        return (
            f"r = {margins.r:.6g}, {box} for the empirical margin; the encoder is deterministic, so that this "
            "probability is 0 or 1, the bounds are sure, and m, sigma and draws play no part; the estimates are "
            f"r / ||J|| of g(mu(x)), with nothing to whiten; items: {margins.chosen}"
        )
    level = f"{margins.level:.10g}" + (" for all bounds, items and radii together" if margins.family_wise else " each")
    held = " and all latents that are not Gaussian, drawn as at x," if margins.joint else ""
    held = " of the first layer, above which layers are drawn given the one below," if margins.chain else held
    return (
        f"r = {margins.r:.6g}, m = {margins.m:g}, sigma{held} {margins.sigma}, {box} for the empirical margin; "
        f"confidence of the bounds {level}; {margins.draws} draws an item; items: {margins.chosen}"
    )
