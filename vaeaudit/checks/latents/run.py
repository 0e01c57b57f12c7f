"""The latents check from settings to record: what the code of the items holds, and traversals of its units."""

from collections.abc import Iterator
from functools import partial

import torch

from vaeaudit.checks.latents.measure import LatentsResult, latents
from vaeaudit.checks.latents.record import Latents, latents_drawings, latents_entry, latents_rows, most_informative
from vaeaudit.checks.latents.summarise import summarise_latents
from vaeaudit.checks.latents.traversal import Traversal, traverse
from vaeaudit.checks.record import Record, Work, measured, without_pictures
from vaeaudit.progress import GoOn, within
from vaeaudit.stats.draws import uniform
from vaeaudit.subject.opened import Subject

_APART = 20_000  # as measured
_QUANTILES = 4096  # items whose mixture gives the quantiles: of all there are, it would take far longer than it adds


def cost(subject: Subject, _: str) -> float:
    """About how many rows the model is given, forward and back; taking the KL apart costs as much as so many more."""
    asked = subject.settings.latents
    return min(asked.items or subject.n, subject.n) * (1 + asked.draws) + _APART


def works(subject: Subject) -> dict[str, Work]:
    """What there is to do, in one piece."""
    return {"latents": partial(run, subject)}


def run(subject: Subject, go_on: GoOn) -> Record:
    """The latents of the items that the settings ask for."""
    chosen, vae = subject.settings.latents, subject.model.vae
    items, how = subject.drawn(chosen.items, "latents.items")
    result = latents(
        subject.vae(items),
        subject.images,
        draws=chosen.draws,
        estimator=chosen.estimator,
        **subject.given(items),
        go_on=within(go_on, 0.0, measured(len(items) * (1 + chosen.draws))),
    )
    found = Latents(result, tuple(items[: result.n]), how, vae.prior, tuple(_traversals(subject, items, result)))
    return Record(
        [latents_entry(found)],
        summarise_latents(result),
        result.warnings,
        interrupted=result.interrupted,
        signs={"latents": "an item has log p(x|z) of -inf, +inf or NaN"} if result.impossible else {},
        skipped=_skipped(subject, result) | (without_pictures("latents", subject.data) if chosen.traverse else {}),
        rows=latents_rows(found),
        drawings=latents_drawings(found, subject.data.range, subject.data.picture_shape),
    )


def _skipped(subject: Subject, result: LatentsResult) -> dict[str, str]:
    """What a prior that is no product over units does not have."""
    if result.factorised:
        return {}
    without = {name: result.without_kl for name in ("latents.kl", "latents.elbo") if result.without_kl}
    kind = type(subject.model.vae.prior).__name__
    return without | {
        "latents.units": f"the prior, a {kind}, is no product over units, so that no unit has a KL of its own: there "
        "is no KL of units, no number of those active by it, no mutual information, total correlation or dimension-"
        "wise KL"
    }


def _traversals(subject: Subject, items: list[int], result: LatentsResult) -> Iterator[Traversal]:
    """Traversals of the units of largest KL from the first item, those of a kind together."""
    if result.interrupted or not subject.settings.latents.traverse or subject.data.picture_shape is None:
        return
    some = None
    if len(result.layers) == 1:
        order = uniform(result.n, seed=subject.settings.run.seed, check="latents.quantiles", item=0).argsort()
        some = result.encodings.rows(torch.from_numpy(order[:_QUANTILES].copy()))
    start, vae = subject.images(items[:1])[0], subject.vae(items[:1])
    for units in most_informative(result, subject.settings.latents.traverse):
        yield traverse(vae, units, item=start, encoded=some, batch_size=subject.batch_size)
