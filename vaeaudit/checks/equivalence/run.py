"""The equivalence check from settings to record: variants and another model beside the one that is audited."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vaeaudit.checks.compared import STEPS, pictures_of
from vaeaudit.checks.equivalence.entry import EquivalenceEntry, FigureEntry, LocatedEntry, VariantEntry
from vaeaudit.checks.equivalence.measure import EquivalenceResult, VariantResult, equivalence
from vaeaudit.checks.equivalence.metrics import AGAINST, OF_SIDES, SCALE, named
from vaeaudit.checks.equivalence.summarise import summarise_equivalence
from vaeaudit.checks.record import (
    Columns,
    Drawing,
    Record,
    Work,
    array,
    measured,
    metric_entry,
    number,
    without_pictures,
)
from vaeaudit.errors import ConfigError, UnsupportedError
from vaeaudit.layout.entry import FileHash
from vaeaudit.layout.figures import as_images, item_panel
from vaeaudit.layout.section import number as shown
from vaeaudit.model.box import range_of
from vaeaudit.model.conditions import conditioned_as
from vaeaudit.model.ranges import span_text
from vaeaudit.model.registry import LoadedModel, open_model
from vaeaudit.model.variant import Variant
from vaeaudit.model.variants import Running, check_alike, varied
from vaeaudit.progress import GoOn, within
from vaeaudit.stats.estimates import Measurement
from vaeaudit.subject.opened import Subject

_ROUNDING = 64  # spacings of numbers at the largest value up to which a difference looks like rounding
_FAR = 0.01  # share of the squared difference that is left where two channels are exchanged back


def works(subject: Subject) -> dict[str, Work]:
    """What there is to do, in one piece: all variants are compared with the same outputs."""
    return {"equivalence": partial(run, subject)}


def cost(subject: Subject, _: str) -> float:
    """About how many rows the model is given, forward and back."""
    asked = subject.settings.equivalence
    return min(asked.items, subject.n) * (2 + asked.draws) * (1 + len(named(asked)))


def run(subject: Subject, go_on: GoOn) -> Record:
    """The variants that the settings name, and the other model."""
    asked, dtype = subject.settings.equivalence, subject.dtype
    if not named(asked):
        raise ConfigError(
            "nothing is named that should give the same; name another form of the model, as in --variant "
            "dtype=bfloat16, or another model with --against OTHER"
        )
    items, how = subject.drawn(asked.items, "equivalence.items")
    other, vae = _other(subject), subject.vae(items)
    running, failed = dict[str, Running](), dict[str, str]()
    if other is not None:
        wanted = getattr(torch, asked.dtype) if asked.dtype else dtype
        running[AGAINST] = Running(conditioned_as(vae, other.vae, wanted), wanted, Variant(), subject.device)
    for variant in map(Variant.parse, asked.variants):
        try:
            running[variant.name] = varied(vae, variant, dtype, subject.device)
        except UnsupportedError as error:
            failed[variant.name] = str(error)
    if not running:
        raise UnsupportedError("; ".join(failed.values()))
    reference = Running(vae, dtype, Variant(), subject.device)
    result = equivalence(
        reference,
        running,
        subject.images,
        draws=asked.draws,
        picture=subject.data.picture_shape,
        **subject.given(items),
        go_on=within(go_on, 0.0, measured(cost(subject, "equivalence"))),
    )
    failed |= result.failed
    metrics = summarise_equivalence(result)
    seen = {name: _Seen(subject, reference, running[name], result, name) for name in result.variants}
    entry = EquivalenceEntry(
        n=len(result.items),
        chosen=how,
        draws=result.draws,
        dtype=str(dtype).removeprefix("torch."),
        control=result.control,
        again=result.again,
        ranged=result.ranged,
        tolerance=asked.tolerance,
        variants=[
            _variant(result, name, running[name], other if name == AGAINST else None, metrics, seen[name].likely())
            for name in result.variants
        ],
    )
    return Record(
        [entry],
        metrics,
        tuple(_warnings(result)),
        interrupted=result.interrupted,
        skipped={f"equivalence.{name}": why for name, why in failed.items()}
        | {f"equivalence.{name}": why for name, why in result.left_out.items()}
        | (without_pictures("equivalence", subject.data) if asked.shown else {}),
        rows={f"equivalence.{name}": _rows(result, of) for name, of in result.variants.items()},
        drawings={
            f"{name}: largest differences": Drawing(f"equivalence-{name}.png", of.panel())
            for name, of in seen.items()
            if asked.shown and subject.data.picture_shape is not None
        },
    )


def _other(subject: Subject) -> LoadedModel | None:
    """The other model, opened; raises :class:`ConfigError` where it takes other inputs or has other latents."""
    asked = subject.settings.equivalence
    if asked.against is None:
        return None
    dtype = getattr(torch, asked.dtype) if asked.dtype else subject.dtype
    other = open_other(asked.against, subject, dtype)
    vae, x = subject.vae(subject.items[:1].tolist()), subject.at([0])
    if tuple(vae.input_shape) == tuple(other.vae.input_shape) and range_of(vae) != range_of(other.vae):
        raise ConfigError(
            f"the model takes values in {span_text(range_of(vae))} and the other in {span_text(range_of(other.vae))}, "
            "so that the same items mean something else to each; let the adapter of one map them"
        )
    check_alike(vae, conditioned_as(vae, other.vae, dtype), x, x.to(dtype))
    return other


def open_other(against: str, subject: Subject, dtype: torch.dtype) -> LoadedModel:
    """The model of that file, by the adapter that the settings name for it."""
    asked, model = subject.settings.equivalence, subject.settings.model
    adapter = asked.adapter or model.adapter
    options = asked.options or (model.options if adapter == model.adapter else {})
    return open_model(against, adapter, options, device=subject.device, dtype=dtype, trust_code=model.trust_code)


def _variant(
    result: EquivalenceResult,
    name: str,
    running: Running,
    other: LoadedModel | None,
    metrics: Mapping[str, Measurement],
    likely: Sequence[str],
) -> VariantEntry:
    of = result.variants[name]
    figures = []
    for figure, metric in OF_SIDES.items():
        if figure not in of.values:
            continue
        found = {key: metric_entry(metrics[f"equivalence.{name}.{figure}.{key}"]) for key in metric.statistics}
        values = array(of.values[figure])
        extreme = int(values.argmin() if metric.direction == "higher" else values.argmax())
        scaled = figure if figure.startswith("encoder.") else figure.partition(".")[2]
        scale = metrics.get(f"equivalence.{SCALE}.{scaled}.median")
        figures.append(
            FigureEntry(
                name=figure,
                median=found["median"],
                tail=found["tail"],
                worst=found["worst"],
                worst_item=result.items[extreme],
                scale=None if scale is None else scale.value,
            )
        )
    return VariantEntry(
        name=name,
        file=None if other is None else FileHash(path=other.checkpoint.source, sha256=other.sha256),
        adapter=None if other is None else other.adapter.name,
        options={} if other is None else dict(other.options),
        dtype=str(running.dtype).removeprefix("torch."),
        identical=_identical(of),
        figures=figures,
        nonfinite=int(of.nonfinite.sum()),
        located=[LocatedEntry(side=one.side, item=one.item, module=one.module) for one in of.located],
        likely=list(likely),
    )


def _identical(of: VariantResult) -> list[str]:
    """Which sides are equal to the bit."""
    encoder = [values for name, values in of.values.items() if name in ("encoder.mean_shift", "encoder.log_stddev")]
    return [
        side
        for side, values in (("encoder", encoder), ("decoder", [of.values["decoder.largest_difference"]]))
        if all(bool((one == 0).all()) for one in values)
    ]


class _Seen:
    """The items of which a variant differs most end to end, run once more to be looked at."""

    @torch.no_grad()
    def __init__(
        self, subject: Subject, reference: Running, running: Running, result: EquivalenceResult, name: str
    ) -> None:
        of = result.variants[name]
        self.subject, self.of, self.result, self.running = subject, of, result, running
        far = array(of.values["end.largest_difference"])
        self.places = np.argsort(-far, kind="stable")[: max(1, subject.settings.equivalence.shown)].tolist()
        x = subject.images([result.items[place] for place in self.places])
        places = torch.as_tensor(self.places)
        reference, running = reference.of_items(places), running.of_items(places)
        mean = reference.encode(x).mean.to(x.dtype)
        self.one, self.other = reference.decode(mean), running.decode(mean)  # decoders on the same latents
        self.ends = self.one, running.decode(running.encode(x).mean.to(x.dtype))

    def likely(self) -> list[str]:
        """What the differences look like, in sentences without a full stop."""
        return [*self._located(), *self._alike()]

    def _located(self) -> Iterator[str]:
        for one in self.of.located:
            count = int(self.of.nonfinite.sum())
            where = "no single module gives it, so that it arises between them"
            if one.module is None:
                where = "the model has no modules that could tell where"
            elif one.module:
                where = f"the first module that does is {one.module}"
            yield (
                f"the {one.side} gives NaN or infinity ({count} of {len(self.result.items)} items), first for item "
                f"{one.item}; {where}"
            )

    def _alike(self) -> Iterator[str]:
        a, b = self.one.double(), self.other.double()
        gap = b - a
        if not bool(gap.isfinite().all()) or not bool(gap.any()):
            return
        picture = self.subject.data.picture_shape
        if picture is not None and (exchanged := _exchanged(pictures_of(a, picture), pictures_of(b, picture))):
            yield f"the decoder's channels look exchanged: its {exchanged}, of which the worst item fits far better so"
        shift = array(self.of.shift)
        for channel, mean in enumerate(shift.mean(0).tolist()):
            width = _width(self.subject)
            if abs(mean) > 0 and np.abs(shift[:, channel] - mean).max() < 0.1 * abs(mean):
                of = "the decoder's output" if shift.shape[1] == 1 else f"channel {channel} of the decoder's output"
                steps = f", {STEPS * mean / width:+.3g} steps of 1/255 of the range" if width else ""
                yield f"{of} is shifted by {mean:+.3g} throughout{steps}"
        spacing = float(torch.finfo(self.one.dtype).eps * self.one.abs().max())
        width = _width(self.subject) if self.result.ranged else 1.0  # differences of vectors are in input units
        if width is None:
            return
        largest = max(float(gap.abs().max()), width * float(self.of.values["decoder.largest_difference"].max()))
        if largest <= _ROUNDING * spacing:
            yield (
                f"the decoder differs by rounding alone: at most {shown(largest, 2)}, "
                f"{largest / spacing:.2g} spacings of {str(self.one.dtype).removeprefix('torch.')} at its largest value"
            )

    def panel(self) -> partial[bytes]:
        """The reconstructions of both, and their difference."""
        shape = self.subject.data.picture_shape
        assert shape is not None
        one, other = (end.double().nan_to_num(0.0, 0.0, 0.0) for end in self.ends)
        columns = {"reference": one, "variant": other, "difference": other - one}
        worst = self.of.values["end.largest_difference"]
        of = " of the range" if self.result.ranged else ""
        told = [f"item {self.result.items[place]}\nby {float(worst[place]):.2g}{of}" for place in self.places]
        images = {name: as_images(array(of), shape) for name, of in columns.items()}
        return partial(item_panel, images, told, self.subject.data.range, "difference")


def _width(subject: Subject) -> float | None:
    """The width of the range where it is one for all values."""
    span = subject.data.range
    if span is None or isinstance(span[0], tuple) or isinstance(span[1], tuple):
        return None
    return number(span[1] - span[0])


def _exchanged(a: Tensor, b: Tensor) -> str | None:
    """Which order of the channels of ``b``, (n, channels, h, w), comes far nearer to ``a`` than its own."""
    straight = float((b[0] - a[0]).square().sum())
    orders = [order for order in itertools.permutations(range(a.shape[1])) if order != tuple(range(a.shape[1]))]
    for order in orders:
        if float((b[0, list(order)] - a[0]).square().sum()) < _FAR * straight:
            return ", ".join(f"{of} is in the place of {place}" for place, of in enumerate(order) if place != of)
    return None


def _warnings(result: EquivalenceResult) -> Iterator[str]:
    if result.control > 0:
        yield (
            f"the reference is not deterministic: run again on {result.again} items it differs by up to "
            f"{shown(result.control)}, so that differences below that say nothing of a variant"
        )


def _rows(result: EquivalenceResult, of: VariantResult) -> Columns:
    """One row an item."""
    columns = {name: array(values) for name, values in of.values.items()}
    return Columns({"item": np.array(result.items), "finite": array(of.nonfinite) == 0} | columns)
