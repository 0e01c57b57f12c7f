"""The reconstruction check from settings to record: what the model makes of items, by group, and the worst drawn."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from vaeaudit.checks.reconstruction.entry import (
    SHOWN,
    SPREAD,
    WORST,
    FeatureEntry,
    GroupEntry,
    NetworkEntry,
    QualityEntry,
    ReconstructionEntry,
)
from vaeaudit.checks.reconstruction.figures import histograms
from vaeaudit.checks.reconstruction.measure import ReconstructionResult, reconstruction
from vaeaudit.checks.reconstruction.metrics import DRAWS, GROUPED, OF_ITEMS
from vaeaudit.checks.reconstruction.networks import Network, open_network
from vaeaudit.checks.reconstruction.summarise import (
    GroupMeans,
    group_means,
    scaled_errors,
    summarise_reconstruction,
)
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
from vaeaudit.errors import ConfigError, clipped, listed, nearest
from vaeaudit.layout.entry import FileHash, MetricEntry
from vaeaudit.layout.figures import as_images, item_panel
from vaeaudit.progress import GoOn, within
from vaeaudit.stats.estimates import Measurement
from vaeaudit.subject.opened import Subject

_CLASSES = 100  # most groups of a label or factor that is not asked for by name
_LEVEL = 0.95
_PANELS = {"psnr": "PSNR in dB", "ssim": "SSIM", "mse": "mean square error"}  # the first two that there are are drawn


def works(subject: Subject) -> dict[str, Work]:
    """What there is to do, in one piece."""
    return {"reconstruction": partial(run, subject)}


def cost(subject: Subject, _: str) -> float:
    """About how many rows the model is given, forward and back."""
    asked = subject.settings.reconstruction
    return min(asked.items or subject.n, subject.n) * (1 + asked.draws)


def run(subject: Subject, go_on: GoOn) -> Record:
    """The reconstructions of the items that the settings ask for."""
    asked = subject.settings.reconstruction
    items, how = subject.drawn(asked.items, "reconstruction.items")
    groupings = _groupings(subject, asked.by)
    result = reconstruction(
        subject.vae(items),
        subject.images,
        draws=asked.draws,
        picture=subject.data.picture_shape,
        perceptual=_network(subject, asked.perceptual, 2),
        network=_network(subject, asked.features, 1),
        **subject.given(items),
        go_on=within(go_on, 0.0, measured(cost(subject, "reconstruction"))),
    )
    of_items = {by: of[list(result.items)] for by, of in groupings.items()}
    groups = {
        metric.name: group_means(metric, array(result.at_mean[metric.name]), of_items, _LEVEL)
        for metric in GROUPED
        if metric.name in result.at_mean
    }
    metrics = summarise_reconstruction(result, groups, _LEVEL)
    worst = _order(result)[: asked.shown]
    return Record(
        [_entry(result, metrics, how, groups, of_items)],
        metrics,
        interrupted=result.interrupted,
        skipped={f"reconstruction.{name}": why for name, why in result.left_out.items()}
        | _without_groups(subject, asked.by, of_items, groups)
        | (without_pictures("reconstruction", subject.data) if asked.shown else {}),
        rows={"reconstruction": _rows(result, of_items)},
        drawings=_drawings(subject, result, worst),
    )


def _network(subject: Subject, path: str | None, images: int) -> Network | None:
    """The network of a file, if one is named."""
    trusted = subject.settings.reconstruction.trust_networks
    return None if path is None else open_network(path, images, trusted, subject.device)


def _groupings(subject: Subject, by: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """The group of each item of the data, by the name of a label or factor: those asked for, or all with few groups."""
    data = subject.data
    there: dict[str, NDArray[np.int64]] = {} if data.labels is None else {"label": data.labels}
    if data.factors is not None:
        there |= dict(zip(data.factors.names, data.factors.classes.T, strict=True))
    for name in by:
        if name not in there:
            has = f"they have {listed(there)}" if there else "they have neither labels nor factors"
            raise ConfigError(f"the data have no label or factor '{clipped(name)}'{nearest(name, there)}; {has}")
    return {name: of for name, of in there.items() if (name in by if by else len(np.unique(of)) <= _CLASSES)}


def _without_groups(
    subject: Subject,
    by: Sequence[str],
    groupings: Mapping[str, NDArray[np.int64]],
    groups: Mapping[str, Sequence[GroupMeans]],
) -> dict[str, str]:
    """Why there are no groups, of what was asked for or could have been."""
    found = {of.by for of in next(iter(groups.values()), ())}
    lacking = [name for name in groupings if name not in found]
    if lacking and (by or not found):
        return {
            "reconstruction.groups": f"of {listed(lacking)}, fewer than two groups have two items or more, so that "
            "there are no groups to compare"
        }
    many = subject.data.labels is not None or subject.data.factors is not None
    return (
        {"reconstruction.groups": f"no label or factor has at most {_CLASSES} groups; --by names one all the same"}
        if many and not groupings
        else {}
    )


def _order(result: ReconstructionResult) -> list[int]:
    """The places of all items, the worst first: by squared error, in units of the range where that is known."""
    by = "psnr" if "psnr" in result.at_mean else "mse"
    values = array(result.at_mean[by])
    order: list[int] = np.argsort(values if by == "psnr" else -values, kind="stable").tolist()
    return order


def _entry(
    result: ReconstructionResult,
    metrics: Mapping[str, Measurement],
    how: str,
    groups: Mapping[str, Sequence[GroupMeans]],
    of_items: Mapping[str, NDArray[np.int64]],
) -> ReconstructionEntry:
    grouped = next((name for name in groups if groups[name]), "")
    means = sorted(_groups(groups.get(grouped, ())), key=lambda one: _badness(grouped, one.mean))
    counts = [np.unique(of, return_counts=True)[1] for of in of_items.values()]
    features = [] if result.features is None else sorted(_features(result), key=lambda one: -(one.value or 0.0))
    bias = [name for name in metrics if name.startswith("reconstruction.bias.") and name.endswith(".mean")]
    return ReconstructionEntry(
        n=len(result.items),
        chosen=how,
        draws=result.draws,
        route=result.route,
        scales=result.scales,
        qualities=[*_qualities(result, metrics)],
        bias=[metric_entry(metrics[name]) for name in [*bias, "reconstruction.brightness.mean"] if name in metrics],
        grouped=grouped,
        groups=means[:SHOWN],
        of_groups=len(means),
        alone=sum(int((count == 1).sum()) for count in counts),
        features=features[:SHOWN],
        of_features=len(features),
        networks=[*_networks(result, metrics)],
        level=_LEVEL,
    )


def _networks(result: ReconstructionResult, metrics: Mapping[str, Measurement]) -> Iterator[NetworkEntry]:
    """The networks, with what they gave of all items together."""
    if result.perceptual is not None:
        yield _network_entry(result.perceptual)
    if result.network is not None:
        yield _network_entry(
            result.network,
            fid=metric_entry(metrics[f"reconstruction.fid.n{len(result.items)}"]),
            kid=metric_entry(metrics["reconstruction.kid"]),
        )


def _network_entry(network: Network, **found: MetricEntry) -> NetworkEntry:
    file = FileHash(path=network.path, sha256=network.sha256)
    return NetworkEntry(file=file, size=network.size, channels=network.channels, **found)


def _qualities(result: ReconstructionResult, metrics: Mapping[str, Measurement]) -> Iterator[QualityEntry]:
    for of, values in (("", result.at_mean), (DRAWS, result.at_draws)):
        for metric in OF_ITEMS:
            if metric.name not in values:
                continue
            name = f"reconstruction.{of}{metric.name}"
            found = {key: metric_entry(metrics[f"{name}.{key}"]) for key in metric.statistics}
            of_items = array(values[metric.name])
            extreme = of_items.argmin() if metric.direction == "higher" else of_items.argmax()
            yield QualityEntry(
                name=metric.name,
                of="draws" if of else "mean",
                mean=found["mean"],
                median=found["median"],
                tail=found.get("tail"),
                worst=found.get("worst"),
                worst_item=result.items[int(extreme)] if "worst" in found else None,
            )


def _badness(name: str, mean: float | None) -> float:
    """By which groups are sorted, the worst first."""
    higher = next((metric.direction == "higher" for metric in GROUPED if metric.name == name), False)
    return 0.0 if mean is None else mean if higher else -mean


def _groups(groups: Sequence[GroupMeans]) -> Iterator[GroupEntry]:
    for of in groups:
        for name, n, mean, ci in zip(of.names, of.n.tolist(), of.mean.tolist(), of.ci.tolist(), strict=True):
            finite = all(map(np.isfinite, ci))
            yield GroupEntry(by=of.by, group=name, n=n, mean=number(mean), ci=(ci[0], ci[1]) if finite else None)


def _features(result: ReconstructionResult) -> Iterator[FeatureEntry]:
    assert result.features is not None
    values, ends = scaled_errors(result.features, len(result.items), _LEVEL)
    for feature, (value, ci) in enumerate(zip(values.tolist(), ends.tolist(), strict=True)):
        known = number(value) is not None and len(result.items) > 1
        yield FeatureEntry(feature=feature, value=number(value), ci=(ci[0], ci[1]) if known else None)


def _rows(result: ReconstructionResult, groupings: Mapping[str, NDArray[np.int64]]) -> Columns:
    """One row an item."""
    columns = {name: array(values) for name, values in result.at_mean.items()}
    columns |= {f"{DRAWS}{name}": array(values) for name, values in result.at_draws.items()}
    for channel, of in enumerate(() if result.bias is None else result.bias.T):
        columns[f"bias.channel{channel}"] = array(of)
    return Columns({"item": np.array(result.items)} | dict(groupings) | columns)


def _drawings(subject: Subject, result: ReconstructionResult, worst: Sequence[int]) -> dict[str, Drawing]:
    named = [name for name in _PANELS if name in result.at_mean][:2]
    panels = {
        _PANELS[name]: {"z = the mean": array(result.at_mean[name])}
        | ({"draws of z": array(result.at_draws[name])} if result.draws else {})
        for name in named
    }
    sides = {_PANELS[name]: name != "mse" for name in named}
    found = {SPREAD: Drawing("reconstruction-distribution.png", partial(histograms, panels, sides))}
    if worst and subject.data.picture_shape is not None:
        found[WORST] = Drawing("reconstruction-worst.png", _panel(subject, result, worst))
    return found


@torch.no_grad()
def _panel(subject: Subject, result: ReconstructionResult, worst: Sequence[int]) -> partial[bytes]:
    """The worst items, reconstructed anew so that none of the others need be kept."""
    shape = subject.data.picture_shape
    assert shape is not None
    numbers = [result.items[place] for place in worst]
    x, vae = subject.images(numbers), subject.vae(numbers)
    made = vae.decode(vae.encode(x).mean).mean
    columns = {"input": x, "reconstruction": made, "error": made - x}
    figure = "psnr" if "psnr" in result.at_mean else "mse"
    told = [
        f"item {item}\n{'PSNR ' if figure == 'psnr' else 'MSE '}{float(result.at_mean[figure][place]):.3g}"
        for item, place in zip(numbers, worst, strict=True)
    ]
    images = {name: as_images(array(of), shape) for name, of in columns.items()}
    return partial(item_panel, images, told, subject.data.range, "error")
