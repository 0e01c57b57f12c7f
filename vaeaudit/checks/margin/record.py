"""Writing margins down: entries of the report, what its reader must be warned of, figures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from vaeaudit.checks import sign_record
from vaeaudit.checks.margin.certified import Certified
from vaeaudit.checks.margin.entry import FALLS, PANEL, MarginEntry, MarginItemEntry
from vaeaudit.checks.margin.figures import fall_curves, margin_panel
from vaeaudit.checks.margin.measure import MarginAt, MarginResult
from vaeaudit.checks.margin.metrics import beginning
from vaeaudit.checks.record import Drawing, array, number
from vaeaudit.stats.estimates import rank_correlation

_AUTO = "; r is twice the median of their least r, from other draws"


@dataclass(frozen=True, eq=False)
class Margins:
    """Margins with the numbers of the items that they are of, and how these were chosen.

    ``auto`` is the radius that was chosen from the data, None where all were given. ``acknowledged`` are findings of
    doctor that are meant, with the reason.
    """

    result: MarginResult
    items: tuple[int, ...]
    how: str
    auto: float | None = None
    acknowledged: Mapping[str, str] = field(default_factory=dict)

    @property
    def signs(self) -> dict[str, str]:
        """The radii at which the search shows failure signs, or a certified margin exceeds its empirical one."""
        found = {}
        for at in self.result.at:
            why = []
            if bool((crossed := at.crossed).any()):
                why.append(f"a certified margin exceeds the empirical one in {int(crossed.sum())} items")
            if at.empirical is not None and (counted := sign_record.counted(at.empirical.signs, self.acknowledged)):
                why.append(f"failure signs of the empirical margin's search: {counted}")
            if why:
                found[beginning(at.r)] = "; ".join(why)
        return found


def margin_entries(margins: Margins) -> list[MarginEntry]:
    """One entry for each radius."""
    result = margins.result
    return [
        MarginEntry(
            r=at.r,
            m=result.m,
            sigma=result.sigma,
            box=result.box,
            level=result.level,
            alpha=result.alpha,
            family_wise=result.family_wise,
            draws=result.draws,
            chosen=margins.how + (_AUTO if at.r == margins.auto else ""),
            estimator=result.norms.estimator,
            items=[_item(result, at, place, item) for place, item in enumerate(margins.items)],
            failure_signs={} if at.empirical is None else sign_record.seen(at.empirical.signs),
            missing=list(at.certified.missing) if at.certified is not None else [],
            deterministic=result.deterministic,
            joint=result.joint,
            chain=result.chain,
        )
        for at in result.at
    ]


def _item(result: MarginResult, at: MarginAt, place: int, item: int) -> MarginItemEntry:
    least, certified, empirical = result.min_radius, at.certified, at.empirical
    return MarginItemEntry(
        item=item,
        min_r=float(least.estimate[place]),
        min_r_upper=number(least.upper[place]),
        p0=float(at.kept.p0[place]),
        p_low=float(at.kept.p_low[place]),
        certified=None if certified is None else number(certified.radius[place]),
        certified_boxed=None if certified is None else number(certified.boxed[place]),
        pathwise=None if certified is None else number(certified.pathwise[place]),
        by="none" if certified is None else certified.by[place],
        frobenius=number(at.estimates.frobenius[place]),
        spectral=number(at.estimates.spectral[place]),
        whitened=number(at.estimates.whitened[place]),
        **_bars(at, place),
        empirical=None if empirical is None else number(empirical.margin[place]),
        p_at_empirical=None if empirical is None else number(empirical.p[place]),
        censored=False if empirical is None else bool(empirical.censored[place]),
        largest=None if empirical is None else number(empirical.largest[place]),
        failure_signs=[] if empirical is None else sign_record.of_item(empirical.signs, place),
    )


def _bars(at: MarginAt, place: int) -> dict[str, Any]:
    """The intervals of the estimates of an item, where the norms that they rest on are estimated."""
    bars = at.estimates.bars
    if bars is None:
        return {}
    kinds = {"frobenius": bars.frobenius, "spectral": bars.spectral, "whitened": bars.whitened}
    return {f"{kind}_interval": tuple(number(end) for end in ends[:, place]) for kind, ends in kinds.items()}


def margin_refusals(margins: Margins) -> dict[str, str]:
    """Why there are no figures of certificates: how the names of such figures begin -> a sentence."""
    refused = {}
    for at in margins.result.at:
        if at.certified is None:
            continue
        name, paths, others = beginning(at.r), *_reasons(at.certified)
        if bool(at.certified.radius.isnan().all()):
            refused[f"{name}.certified"] = "; ".join(others) or "it was stopped before"
        if bool(at.certified.pathwise.isnan().all()) and not margins.result.deterministic:
            refused[f"{name}.pathwise"] = "; ".join(paths) or f"as {name}.certified"
    return refused


def _reasons(certified: Certified) -> tuple[list[str], list[str]]:
    """Why certificates are missing, as sentences: of the pathwise one, and of the others."""
    kinds = ("from", "around")
    paths = [reason for reason in certified.missing if reason.startswith("along")]
    others = [reason for reason in certified.missing if reason not in paths]
    return [f"no certificate {reason}" for reason in paths], [
        f"no certificate {reason}" if reason.startswith(kinds) else reason for reason in others
    ]


def margin_warnings(margins: Margins) -> list[str]:
    """What a reader of these margins must know."""
    told = []
    if margins.result.deterministic:
        told.append(
            "the encoder is deterministic, so that r-robustness degenerates (P(||Delta|| <= r) is 0 or 1): the margins "
            "are the least ||d|| that moves the reconstruction g(mu(x + d)) by more than r, and their bounds are sure"
        )
    if margins.result.interrupted:
        told.append(
            "the margins were stopped: of the group of items that was under way nothing is kept, though it may be told "
            "of here, and --resume begins it again"
        )
    for at in margins.result.at:
        items, name = len(margins.items), f"r = {at.r:.6g}"
        bare = int((~at.estimates.robust).sum())
        if bare:
            told.append(
                f"{bare} of {items} items are not shown to be r-robust even unperturbed at {name}: their certified "
                "margin and their estimates are 0"
            )
        if at.certified is not None and not bool(at.certified.radius.isnan().all()):  # else told as a refusal
            told += _reasons(at.certified)[1]
        if at.empirical is None:
            continue
        names = [f"item {item}" for item in margins.items]
        told += sign_record.warnings(at.empirical.signs, f"items at {name}", names, margins.acknowledged)
        broken = at.empirical.margin
        beyond = int((at.estimates.whitened > broken).sum())
        if beyond:
            told.append(
                f"the first-order estimate exceeds the empirical upper bound on {beyond} of {items} items at {name}: "
                "first order misleads there"
            )
        unbroken, searched = broken.isinf(), at.empirical.censored
        if at.empirical.interrupted:
            left = int((unbroken & ~searched).sum())
            found = f"before it broke {left} of {items} items" if left else "before it ended: margins may be wider"
            told.append(f"the search was stopped at {name} {found}")
        if bool(searched.any()):
            told.append(
                f"nothing broke {int(searched.sum())} of {items} items at {name} up to a norm of "
                f"{float(at.empirical.largest.max()):.4g}: their margin may be larger still, or the attack too weak"
            )
        if bool(at.crossed.any()):
            crossed = margins.items[int(at.crossed.nonzero()[0])]
            told.append(
                f"the certified margin of item {crossed} exceeds its empirical one at {name}: one of the two "
                "confidences failed, or there is a fault of vaeaudit"
            )
    return told


def margin_drawings(margins: Margins) -> dict[str, Drawing]:
    """For each radius all kinds of margins, and where something broke how the probability fell."""
    drawings = {}
    for at in margins.result.at:
        name = f"{at.r:.6g}"
        drawings[PANEL.format(at.r)] = Drawing(f"margin-r{name}.png", partial(_margin_panel, at))
        if at.fall is not None and len(at.fall.place) and at.empirical is not None:
            falls = partial(
                fall_curves,
                array(at.fall.lengths),
                array(at.fall.p),
                array(at.empirical.margin[at.fall.place]),
                [str(margins.items[place]) for place in at.fall.place.tolist()],
                margins.result.m,
            )
            drawings[FALLS.format(at.r)] = Drawing(f"margin-r{name}-falls.png", falls)
    return drawings


def _margin_panel(at: MarginAt) -> bytes:
    margins = {
        f"{kind} estimate": array(values)
        for kind, values in {
            "whitened": at.estimates.whitened,
            "spectral": at.estimates.spectral,
            "Frobenius": at.estimates.frobenius,
        }.items()
    }
    if at.certified is not None:
        boxed = {} if bool(at.certified.boxed.isnan().all()) else {"certified in the box": array(at.certified.boxed)}
        margins = {"certified": array(at.certified.radius), **boxed, **margins}
    nothing = np.full(len(at.estimates.whitened), np.nan)
    if at.empirical is None:
        return margin_panel(margins, array(at.estimates.whitened), nothing, np.isfinite(nothing), nothing, at.r, "")
    margins["empirical"] = array(at.empirical.margin)
    censored, largest = at.empirical.censored.cpu().numpy(), array(at.empirical.largest)
    estimate = array(at.estimates.whitened)
    correlation = rank_correlation(estimate.tolist(), margins["empirical"].tolist()).value
    told = "" if correlation is None else f"; rank correlation {correlation:.2f}"
    return margin_panel(margins, estimate, margins["empirical"], censored, largest, at.r, told)
