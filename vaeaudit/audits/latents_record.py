"""Writing the latents down: entry of the report, values of items and units, figures."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import stats as distributions

from vaeaudit.audits.base import Drawing, Row, array, number
from vaeaudit.checks.decomposition import Estimate, unit_kl
from vaeaudit.checks.encodings import Encodings, units_of
from vaeaudit.checks.latents import LatentsResult, Layer
from vaeaudit.checks.summary_latents import ACTIVE, estimated, summarise_latents
from vaeaudit.checks.traversal import Traversal
from vaeaudit.report.figures import as_images, spans_pixels
from vaeaudit.report.figures_latents import Bars, kl_bars, traversal_panel
from vaeaudit.report.latents import SHOWN, ActiveEntry, FigureEntry, LatentsEntry, UnitEntry
from vaeaudit.stats import Measurement
from vaeaudit.vae import Posterior

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
    """At most so many units, those of largest KL, by numbers across layers; those of a kind together."""
    chosen = [number for _, number in _sorted(result)[:most]]
    continuous = sum(len(layer.kl) for layer in result.layers) - len(result.encodings.log_probabilities)
    kinds: dict[int, list[int]] = {}
    for unit in chosen:
        classes = result.encodings.log_probabilities[unit - continuous].shape[1] if unit >= continuous else 1
        kinds.setdefault(classes, []).append(unit)
    return [kinds[classes] for classes in sorted(kinds)]


def _sorted(result: LatentsResult) -> list[tuple[float, int]]:
    """KL and number across layers of every unit, the largest KL first."""
    every = [value for layer in result.layers for value in layer.kl.tolist()]
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
        evidence=list(_evidence(found)),
        apart=[
            *(
                _figure(name, estimate, result.n)
                for name, estimate in (
                    ("mutual information", parts.mutual_information),
                    ("total correlation", parts.total_correlation),
                    ("dimension-wise KL", parts.dimension_wise),
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
        ],
        traversals={
            _purpose(traversal): f"from item {found.items[0]}, {traversal.span}" for traversal in found.traversals
        },
    )


def _evidence(found: Latents) -> Iterator[FigureEntry]:
    """ELBO, log-likelihood, KL, and the KL's shares of layers, or of the parts of a joint posterior."""
    result = found.result
    columns = {"KL": result.kl}
    if result.elbo is not None and result.log_likelihood is not None:
        columns = {"ELBO": result.elbo, "log-likelihood": result.log_likelihood, **columns}
    if len(result.layers) > 1:
        columns |= {f"KL, layer {layer.number}": layer.item_kl for layer in result.layers}
    elif result.encodings.log_probabilities and result.encodings.mean.shape[1]:
        of_units = unit_kl(result.encodings, Encodings(*units_of(found.prior)))
        continuous = result.encodings.mean.shape[1]
        columns["KL, continuous units"] = of_units[:, :continuous].sum(1)
        columns |= {f"KL, categorical unit {unit}": of_units[:, unit] for unit in range(continuous, of_units.shape[1])}
    for name, values in columns.items():
        exact = values.double()
        error = float(exact.std()) / math.sqrt(result.n)
        yield _figure(name, Estimate(float(exact.mean()), error, result.n - 1), result.n)


def _units(result: LatentsResult, layer: Layer) -> Iterator[UnitEntry]:
    """All units of a layer, in their order."""
    whole = sum(float(each.kl.sum()) for each in result.layers)
    categorical = len(result.encodings.log_probabilities)
    columns = (layer.kl.tolist(), layer.kl_error.tolist(), layer.mean_variance.tolist())
    for unit, (kl, error, variance) in enumerate(zip(*columns, strict=True)):
        by = {"KL": kl > ACTIVE, "variance": variance > ACTIVE}
        yield UnitEntry(
            layer=layer.number,
            unit=unit,
            kind="categorical" if unit >= len(layer.kl) - categorical else "continuous",
            kl=_figure("KL", Estimate(kl, error, result.n - 1), result.n),
            share=number(kl / whole) if whole > 0 else None,
            variance=number(variance),
            active=[name for name, active in by.items() if active],
        )


def _figure(name: str, estimate: Estimate, n: int) -> FigureEntry:
    measured = estimated(estimate, n, _LEVEL)
    return FigureEntry(name=name, value=measured.value, error=number(estimate.standard_error), ci=measured.ci)


def _active(layer: Layer, criterion: str, count: Measurement) -> ActiveEntry:
    units = int((~layer.mean_variance.isnan()).sum()) if criterion.startswith("variance") else len(layer.kl)
    return ActiveEntry(layer=layer.number, criterion=criterion, active=count.value, ci=count.ci, units=units)


def _prefix(result: LatentsResult, layer: Layer) -> str:
    return f"latents.layer{layer.number}" if len(result.layers) > 1 else "latents"


def latents_rows(found: Latents) -> dict[str, list[Row]]:
    """Of every item ELBO, log-likelihood and KL; of every unit KL and variance of the mean, with standard errors."""
    result = found.result
    columns = {"kl": result.kl.tolist()}
    if result.elbo is not None and result.log_likelihood is not None:
        columns |= {"elbo": result.elbo.tolist(), "log_likelihood": result.log_likelihood.tolist()}
    items: list[Row] = [
        {"item": item, **{name: number(values[place]) for name, values in columns.items()}}
        for place, item in enumerate(found.items)
    ]
    units: list[Row] = []
    for layer in result.layers:
        each = (layer.kl, layer.kl_error, layer.mean_variance, layer.mean_variance_error)
        for unit, values in enumerate(zip(*(column.tolist() for column in each), strict=True)):
            names = ("kl", "kl_error", "mean_variance", "mean_variance_error")
            numbers = dict(zip(names, map(number, values), strict=True))
            units.append({"layer": layer.number, "unit": unit, **numbers})
    return {"latents": items, "latents.units": units}


def latents_drawings(
    found: Latents, box: tuple[float, float] | None, picture: tuple[int, ...] | None
) -> dict[str, Drawing]:
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
    drawings = {"KL of each unit": Drawing("latents-kl.png", partial(kl_bars, bars, ACTIVE))}
    every = np.concatenate([bar.kl for bar in bars])
    if picture is None:
        return drawings
    for traversal in found.traversals:
        labels = [f"unit {_place(result, unit)}\nKL {every[unit]:.3g}" for unit in traversal.units]
        title = f"one unit moved, the others as encoded from item {found.items[0]}; below: its value, {traversal.span}"
        images = as_images(array(traversal.images), picture, lead=2)
        shared = box if spans_pixels(box, tuple(traversal.images.shape[2:]), picture) else None
        draw = partial(traversal_panel, images, array(traversal.values), labels, shared, title)
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
