"""The mig check from settings to record: the items' factors against the units of their code."""

from functools import partial
from pathlib import PurePath

import numpy as np
from torch import Tensor

from vaeaudit.checks.mig.entry import INFORMATION, GapsEntry, HeldEntry, MigEntry
from vaeaudit.checks.mig.figures import information_panel
from vaeaudit.checks.mig.measure import Gaps, MigResult, mig
from vaeaudit.checks.mig.summarise import summarise_mig
from vaeaudit.checks.record import Drawing, Record, Work, array, number
from vaeaudit.data.items import Factors
from vaeaudit.errors import DataError
from vaeaudit.progress import GoOn
from vaeaudit.subject.opened import Subject

_KEY = "latents_classes"


def cost(subject: Subject, _: str) -> float:
    """About how many rows the model is given, forward and back; the mixtures cost as much as several more each."""
    asked = subject.settings.mig.items
    return 10 * min(asked or subject.n, subject.n)


def works(subject: Subject) -> dict[str, Work]:
    """What there is to do, in one piece."""
    return {"mig": partial(run, subject)}


def run(subject: Subject, go_on: GoOn) -> Record:
    """The mutual information gap of the items that the settings ask for, by both estimators."""
    factors = _factors(subject)
    items, how = subject.drawn(subject.settings.mig.items, "mig.items")
    result = mig(
        subject.vae(items),
        subject.images,
        factors.classes[items],
        names=factors.names,
        items=items,
        seed=subject.settings.run.seed,
        batch_size=subject.batch_size,
        go_on=go_on,
    )
    return Record(
        [_entry(result, how)],
        summarise_mig(result),
        result.warnings,
        interrupted=result.interrupted,
        rows={} if result.interrupted else {f"mig.{gaps.estimator}": _rows(result, gaps) for gaps in result.by},
        drawings=_drawings(result),
    )


def _factors(subject: Subject) -> Factors:
    """The data's factors; raises :class:`DataError` that names the key that was looked for."""
    data = subject.data
    if data.factors is not None:
        return data.factors
    suffix = PurePath(data.source.partition("#")[0]).suffix.lower()
    if suffix not in (".npz", ".safetensors"):
        raise DataError(
            f"{data.source} holds no factors, which the mutual information gap needs and only .npz and .safetensors "
            f"files can hold, as an array '{_KEY}' of integers (items, factors); store the images in one with it"
        )
    pickled = any(told.startswith(f"{_KEY}:") for told in data.skipped)
    found = "is pickled and was not loaded" if pickled else "is not there"
    raise DataError(
        f"the mutual information gap needs factors, looked for in {data.source} as the {suffix} array '{_KEY}', which "
        f"{found}; store there the class of each item in each factor, integers (items, factors)"
    )


def _entry(result: MigResult, how: str) -> MigEntry:
    return MigEntry(
        n=result.n,
        chosen=how,
        units=result.units,
        categorical=result.categorical,
        layer=result.layer,
        layers=result.layers,
        level=result.level,
        complete=result.complete,
        factors=list(result.names),
        entropy=result.entropy.tolist(),
        constant=list(result.constant),
        by=[
            GapsEntry(
                estimator=gaps.estimator,
                value=number(gaps.value),
                ci=_interval(gaps.ci),
                factors=_held(gaps, result.entropy),
            )
            for gaps in result.by
        ],
    )


def _held(gaps: Gaps, entropy: Tensor) -> list[HeldEntry]:
    shares, order = (gaps.information / entropy).topk(2, 0)
    stopped = bool(shares.isnan().any())
    return [
        HeldEntry(
            gap=number(gaps.gaps[k]),
            ci=_interval((float(gaps.gap_ci[k, 0]), float(gaps.gap_ci[k, 1]))),
            unit=-1 if stopped else int(order[0, k]),
            share=number(shares[0, k]),
            second=-1 if stopped else int(order[1, k]),
            second_share=number(shares[1, k]),
        )
        for k in range(len(entropy))
    ]


def _interval(ci: tuple[float, float]) -> tuple[float, float] | None:
    return ci if all(map(np.isfinite, ci)) else None


def _rows(result: MigResult, gaps: Gaps) -> list[dict[str, object]]:
    """A row a unit: its mutual information with each factor, in nats."""
    return [
        {"unit": unit, **dict(zip(result.names, values, strict=True))}
        for unit, values in enumerate(gaps.information.tolist())
    ]


def _drawings(result: MigResult) -> dict[str, Drawing]:
    if result.interrupted:
        return {}
    shares = {gaps.estimator: array(gaps.information / result.entropy) for gaps in result.by}
    return {INFORMATION: Drawing("mig.png", partial(information_panel, shares, list(result.names)))}
