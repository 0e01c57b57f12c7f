"""The margin check from settings to record: randomly drawn items at every radius."""

from functools import partial

from vaeaudit.checks.margin.measure import margin, usual_radius
from vaeaudit.checks.margin.metrics import beginning
from vaeaudit.checks.margin.record import Margins, margin_drawings, margin_entries, margin_refusals, margin_warnings
from vaeaudit.checks.margin.summarise import summarise_margin
from vaeaudit.checks.record import Record, Work
from vaeaudit.progress import GoOn
from vaeaudit.subject.opened import Subject

_ROWS = 10_000.0  # for the empirical margin of an item at a radius, as measured
_TIMES = 2.0  # of the median of the items' least radii: what "auto" stands for


def cost(subject: Subject, _: str) -> float:
    """About how many rows the model is given, forward and back."""
    asked = subject.settings.margin
    of_radius = _ROWS if "empirical" in asked.parts else 0.0
    return min(asked.items, subject.n) * (asked.draws + len(asked.r) * of_radius)


def works(subject: Subject) -> dict[str, Work]:
    """What there is to do, in one piece."""
    return {"margin": partial(run, subject)}


def run(subject: Subject, go_on: GoOn) -> Record:
    """The margins of the items at all radii that the settings name."""
    chosen, seed = subject.settings.margin, subject.settings.run.seed
    items, how = subject.drawn(chosen.items, "margin.items")
    vae, x, auto = subject.vae(items), subject.images(items), None
    radii = [radius for radius in chosen.r if not isinstance(radius, str)]
    if len(radii) < len(chosen.r):
        auto = usual_radius(vae, x, _TIMES, m=chosen.m, seed=seed, items=items, batch_size=subject.batch_size)
        radii.append(auto)
    result = margin(
        vae,
        x,
        radii,
        m=chosen.m,
        sigma=chosen.sigma,
        data_range=subject.data.range,
        boxed=chosen.boxed,
        level=chosen.level,
        family_wise=chosen.family_wise,
        draws=chosen.draws,
        parts=chosen.parts,
        effort=chosen.effort,
        seed=seed,
        batch_size=subject.batch_size,
        items=items,
        go_on=go_on,
    )
    items = items[: result.n]  # all, unless the audit was stopped
    margins = Margins(result, tuple(items), how, auto, subject.settings.doctor.acknowledge)
    entries = margin_entries(margins)
    return Record(
        entries,
        summarise_margin(result),
        tuple(margin_warnings(margins)),
        margin_refusals(margins),
        interrupted=result.interrupted,
        signs=margins.signs,
        rows={beginning(entry.r): [item.model_dump(mode="json") for item in entry.items] for entry in entries},
        tensors={
            f"{beginning(at.r)}.distortion": at.empirical.distortion for at in result.at if at.empirical is not None
        },
        about={"items": items},
        drawings=margin_drawings(margins),
    )
