"""Writing the latents down: entry of the report, values of items and units, figures."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import stats as distributions

from vaeaudit.checks.latents.decomposition import Estimate, unit_kl
from vaeaudit.checks.latents.entry import SHOWN, UNITS, ActiveEntry, FigureEntry, LatentsEntry, UnitEntry
from vaeaudit.checks.latents.figures import Bars, kl_bars, traversal_panel
from vaeaudit.checks.latents.layers import Layer
from vaeaudit.checks.latents.measure import LatentsResult
from vaeaudit.checks.latents.summarise import ACTIVE, estimated, summarise_latents, support_of
from vaeaudit.checks.latents.traversal import Traversal
from vaeaudit.checks.record import Columns, Drawing, Row, array, number
from vaeaudit.layout.figures import as_images
from vaeaudit.model.ranges import Range
from vaeaudit.model.vae import Posterior
from vaeaudit.stats import estimates
from vaeaudit.stats.estimates import Measurement
from vaeaudit.subject.encodings import Encodings, units_of

_LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Latents:
    """Latents with the numbers of the items that they are of, how these were chosen, the prior, and traversals."""

    result: LatentsResult
    items: tuple[int, ...]
    how: str
    prior: Posterior
    traversals: tuple[Traversal, ...]


def most_informative(result: LatentsResult, most: int) -> list[list[int]]:
    """At most so many units, those that hold most, by numbers across layers; those of a kind together."""
    chosen = [number for _, number in _sorted(result)[:most]]
    continuous = sum(len(layer.kl) for layer in result.layers) - len(result.encodings.log_probabilities)
    kinds: dict[int, list[int]] = {}
    for unit in chosen:
        classes = result.encodings.log_probabilities[unit - continuous].shape[1] if unit >= continuous else 1
        kinds.setdefault(classes, []).append(unit)
    return [kinds[classes] for classes in sorted(kinds)]


def _sorted(result: LatentsResult) -> list[tuple[float, int]]:
    """KL and number across layers of every unit, the largest first; the variance of its mean where KLs are unknown."""
    each = [layer.kl if result.factorised else layer.mean_variance.nan_to_num(0.0) for layer in result.layers]
    every = [value for values in each for value in values.tolist()]
    return sorted(zip(every, range(len(every)), strict=True), key=lambda pair: (-pair[0], pair[1]))


def latents_entry(found: Latents) -> LatentsEntry:
    """What is shown of the latents."""
    result = found.result
    parts, metrics = result.decomposition, summarise_latents(result, level=_LEVEL)
    units = [unit for layer in result.layers for unit in _units(result, layer)]
    return LatentsEntry(
        n=result.n,
        chosen=found.how,
        draws=result.draws,
        route=result.route,
        level=_LEVEL,
        threshold=ACTIVE,
        layers=len(result.layers),
        of_units=len(units),
        log_n=math.log(result.n),
        kl_estimator=result.kl_estimator,
        evidence=list(_evidence(found)),
        apart=[
            *(
                _shown(name, metrics[f"latents.{metric}"], estimate.standard_error)
                for name, metric, estimate in (
                    ("mutual information", "mutual_information", parts.mutual_information),
                    ("total correlation", "total_correlation", parts.total_correlation),
                    ("dimension-wise KL", "dimension_wise_kl", parts.dimension_wise),
                )
            ),
            FigureEntry(name="sum, the mean KL", value=parts.kl, error=0.0, ci=None),
        ]
        if parts is not None
        else [],
        estimator=parts.estimator if parts is not None else None,
        units=[units[number] for _, number in _sorted(result)[:SHOWN]],
        active=[
            _active(layer, criterion, metrics[f"{_prefix(result, layer)}.active_units.{key}"])
            for layer in result.layers
            for key, criterion in (("kl", f"KL > {ACTIVE:g} nats"), ("variance", f"variance of the mean > {ACTIVE:g}"))
            if key != "kl" or result.factorised
        ],
        traversals={
            _purpose(traversal): f"from item {found.items[0]}, {traversal.span}" for traversal in found.traversals
        },
    )


def _evidence(found: Latents) -> Iterator[FigureEntry]:
    """ELBO, log-likelihood, KL, and the KL's shares of layers, or of the parts of a joint posterior."""
    result = found.result
    every = {"ELBO": result.elbo, "log-likelihood": result.log_likelihood, "KL": result.kl}
    columns = {name: values for name, values in every.items() if values is not None}
    supports: dict[str, estimates.Support] = {}
    if len(result.layers) > 1:
        columns |= {f"KL, layer {layer.number}": layer.item_kl for layer in result.layers}
        supports |= {f"KL, layer {layer.number}": support_of(layer, result) for layer in result.layers}
    elif result.factorised and result.encodings.log_probabilities and result.encodings.mean.shape[1]:
        of_units = unit_kl(result.encodings, Encodings(*units_of(found.prior)))
        continuous = result.encodings.mean.shape[1]
        columns["KL, continuous units"] = of_units[:, :continuous].sum(1)
        columns |= {f"KL, categorical unit {unit}": of_units[:, unit] for unit in range(continuous, of_units.shape[1])}
    for name, values in columns.items():
        exact = values.double()
        error = float(exact.std()) / math.sqrt(result.n)
        support = supports.get(name, estimates.NOT_NEGATIVE if name.startswith("KL") else estimates.ANY)
        mean = estimated(Estimate(float(exact.mean()), error, result.n - 1), result.n, _LEVEL, support)
        yield _shown(name, mean, error)


def _units(result: LatentsResult, layer: Layer) -> Iterator[UnitEntry]:
    """All units of a layer, in their order."""
    support = support_of(layer, result)
    whole = sum(float(each.kl.sum()) for each in result.layers)
    categorical = len(result.encodings.log_probabilities)
    columns = (layer.kl.tolist(), layer.kl_error.tolist(), layer.mean_variance.tolist())
    for unit, (kl, error, variance) in enumerate(zip(*columns, strict=True)):
        by = {"KL": kl > ACTIVE, "variance": variance > ACTIVE}
        yield UnitEntry(
            layer=layer.number,
            unit=unit,
            kind="categorical" if unit >= len(layer.kl) - categorical else "continuous",
            kl=_shown("KL", estimated(Estimate(kl, error, result.n - 1), result.n, _LEVEL, support), error),
            share=number(kl / whole) if whole > 0 else None,
            variance=number(variance),
            active=[name for name, active in by.items() if active],
        )


def _shown(name: str, measured: Measurement, error: float) -> FigureEntry:
    return FigureEntry(name=name, value=measured.value, error=number(error), ci=measured.ci)


def _active(layer: Layer, criterion: str, count: Measurement) -> ActiveEntry:
    units = int((~layer.mean_variance.isnan()).sum()) if criterion.startswith("variance") else len(layer.kl)
    return ActiveEntry(layer=layer.number, criterion=criterion, active=count.value, ci=count.ci, units=units)


def _prefix(result: LatentsResult, layer: Layer) -> str:
    return f"latents.layer{layer.number}" if len(result.layers) > 1 else "latents"


def latents_rows(found: Latents) -> dict[str, Iterable[Row]]:
    """Values of every item, with the error of a KL that is estimated; KL and variance of every unit, with errors."""
    result = found.result
    every = {
        "kl": result.kl,
        "kl_error": result.kl_error,
        "elbo": result.elbo,
        "log_likelihood": result.log_likelihood,
    }
    columns = {name: array(values) for name, values in every.items() if values is not None}
    items = Columns({"item": np.array(found.items)} | columns)
    units: list[Row] = []
    for layer in result.layers:
        each = (layer.kl, layer.kl_error, layer.mean_variance, layer.mean_variance_error)
        for unit, values in enumerate(zip(*(column.tolist() for column in each), strict=True)):
            names = ("kl", "kl_error", "mean_variance", "mean_variance_error")
            numbers = dict(zip(names, map(number, values), strict=True))
            units.append({"layer": layer.number, "unit": unit, **numbers})
    return {"latents": items, "latents.units": units}


def latents_drawings(found: Latents, box: Range | None, picture: tuple[int, ...] | None) -> dict[str, Drawing]:
    """KL of each unit, and the traversals, of images of the shape ``picture``."""
    result = found.result
    times = float(distributions.t.ppf(0.5 + _LEVEL / 2, result.n - 1))
    bars = [
        Bars(
            (f"layer {layer.number}: " if len(result.layers) > 1 else "")
            + f"KL of {len(layer.kl)} units over {result.n} items",
            array(layer.kl),
            array(layer.kl_error) * times,
        )
        for layer in result.layers
    ]
    drawings = {}
    if result.factorised:
        drawings[UNITS] = Drawing("latents-kl.png", partial(kl_bars, bars, ACTIVE))
    every = np.concatenate([bar.kl for bar in bars])
    if picture is None:
        return drawings
    for traversal in found.traversals:
        labels = [
            f"unit {_place(result, unit)}" + (f"\nKL {every[unit]:.3g}" if result.factorised else "")
            for unit in traversal.units
        ]
        title = f"one unit moved, the others as encoded from item {found.items[0]}; below: its value, {traversal.span}"
        images = as_images(array(traversal.images), picture, lead=2)
        draw = partial(traversal_panel, images, array(traversal.values), labels, box, title)
        purpose = _purpose(traversal)
        drawings[purpose] = Drawing(f"latents-{purpose.replace(' ', '-')}.png", draw)
    return drawings


def _purpose(traversal: Traversal) -> str:
    """The figure's name: of continuous units, or of categorical ones of so many classes."""
    return f"traversals of {traversal.classes} classes" if traversal.classes else "traversals"


def _place(result: LatentsResult, unit: int) -> str:
    """A unit's number, in a chain within its layer."""
    if len(result.layers) == 1:
        return str(unit)
    for layer in result.layers:
        if unit < len(layer.kl):
            return f"{unit} of layer {layer.number}"
        unit -= len(layer.kl)
    raise ValueError(f"the layers have no unit {unit}")
