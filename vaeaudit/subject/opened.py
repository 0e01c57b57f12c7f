"""What is audited: a model, its data, and whether they go together."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeaudit.data.items import Data, fit
from vaeaudit.data.labels import whole_numbers
from vaeaudit.data.sources import read
from vaeaudit.errors import ConfigError, ContractError, DataError, VaeauditError, clipped, listed, nearest, told
from vaeaudit.model.batches import RowBatches, fitting
from vaeaudit.model.box import range_of
from vaeaudit.model.conditions import Conditional, Conditioned, conditions_of, under
from vaeaudit.model.halved import halved
from vaeaudit.model.memory import ran_out, rows_that_fit
from vaeaudit.model.ranges import Range, normalised
from vaeaudit.model.registry import LoadedModel, open_model
from vaeaudit.model.vae import VAE, Resizable
from vaeaudit.settings.config import model_and_data
from vaeaudit.settings.sections import Settings
from vaeaudit.stats.draws import uniform
from vaeaudit.subject.baselines import unlike_scales
from vaeaudit.subject.device import choose_device, compute_exactly
from vaeaudit.subject.inputs import not_finite, numbered, route_of
from vaeaudit.subject.plausibility import Plausibility, examine
from vaeaudit.subject.repairs import explained

_EXAMINED = 1000  # most items that the plausibility check looks at


class Given(TypedDict):
    """What every measurement of items is given, by keyword."""

    n: int
    items: Sequence[int]
    data_range: Range | None
    seed: int
    batch_size: int | None


@dataclass(frozen=True, eq=False)
class Subject:
    """The model and ``items`` of the data, fitted to it and tried on it.

    ``items`` (n,) are the numbers that these have in the data, ascending: all, the first few, or a draw. ``fits`` is
    how many rows memory has room for at once; None where that is not known, or the batch size was given.
    """

    settings: Settings
    device: torch.device
    dtype: torch.dtype
    model: LoadedModel
    data: Data
    items: NDArray[np.int64]
    plausibility: Plausibility
    likelihood: str
    fits: int | None = None

    @property
    def n(self) -> int:
        """How many items there are."""
        return len(self.items)

    @property
    def picked(self) -> bool:
        """Whether these are other items than the first n."""
        return bool(self.items[-1] >= self.n)

    @property
    def drawn_from(self) -> int | None:
        """Of how many, the first, these items were drawn at random; None where they are the first n themselves."""
        return min(self.settings.run.limit or len(self.data), len(self.data)) if self.picked else None

    @cached_property
    def chosen(self) -> Data:
        """The data of these items alone, numbered by their places among them."""
        return self.data.some(self.items if self.picked else slice(self.n))

    @property
    def part(self) -> str | None:
        """Which part of the data these items are, in words; None for all."""
        n, there = self.n, len(self.data)
        if (among := self.drawn_from) is not None:
            of = f"{there}" if among == there else f"the first {among} of {there}"
            return f"{n} of {of} items, drawn at random (seed {self.settings.run.seed})"
        if n < there:
            return f"only the first {n} of {there} items, in the order of the data; --sample {n} draws them at random"
        return None

    @property
    def batch_size(self) -> int | None:
        """Most rows given to the model at once; None where that is chosen by size."""
        size = self.settings.run.batch_size
        return size if isinstance(size, int) else None

    def images(self, items: Sequence[int]) -> Tensor:
        """The named items as the model takes them, (len(items), *input_shape)."""
        return self.data.batch(items, dtype=self.dtype, device=self.device)

    def given(self, items: Sequence[int]) -> Given:
        """What a measurement of the items of these numbers is given."""
        seed = self.settings.run.seed
        return Given(n=len(items), items=items, data_range=self.data.range, seed=seed, batch_size=self.batch_size)

    def vae(self, items: Sequence[int]) -> VAE:
        """The model for the items of these numbers, a row for each: a conditional one under their conditions."""
        return under(self.model.vae, torch.as_tensor(items, device=self.device))

    def at(self, places: Sequence[int]) -> Tensor:
        """The items at these places among those there are, likewise."""
        return self.images(self.items[list(places)].tolist())

    def drawn(self, most: int | None, check: str) -> tuple[list[int], str]:
        """At most so many items (None for all), by a draw keyed by ``check``, in ascending order; and how, in words."""
        if most is None or most >= self.n:
            return self.items.tolist(), f"all {self.n}"
        return self.items[_draw(self.n, most, self.settings.run.seed, check)].tolist(), (
            f"{most} of {self.n}, drawn at random"
        )


def prepare(settings: Settings) -> Subject:
    """Open the model, fit the data to it, and try it on them.

    Raises :class:`VaeauditError` where one of these cannot be done; a model that can be tried and looks wrong
    is no error but a finding. It is tried in float32 where the settings ask for bfloat16.
    """
    path, source = model_and_data(settings)
    device, dtype = choose_device(settings.run.device), getattr(torch, settings.run.dtype)
    dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    model = open_model(
        path,
        settings.model.adapter,
        settings.model.options,
        device=device,
        dtype=dtype,
        trust_code=settings.model.trust_code,
    )
    compute_exactly(device, tf32=settings.run.tf32)  # after the adapter, which may have set switches of its own
    stored = read(source)
    if isinstance(model.vae, Resizable) and settings.data.resize is None:
        model = replace(model, vae=_of_size(model.vae, stored.values.shape[1:]))
    shape = tuple(model.vae.input_shape)
    data_range = _normalised(settings, shape) or settings.data.range or range_of(model.vae)
    unit = settings.data.normalize is not None
    data = fit(stored, input_shape=shape, data_range=data_range, resize=settings.data.resize, unit=unit)
    asked, seed = settings.run, settings.run.seed
    there = min(asked.limit or len(data), len(data))
    items = _draw(there, min(asked.sample or there, there), seed, "items")
    n = len(items)
    if n < 2:
        option = "--limit" if asked.sample is None else "--sample"
        some = f"{option} leaves {n} of {len(data)} items" if n < len(data) else f"{data.source} holds {n} item"
        raise DataError(f"{some}, where at least two are needed; give more")
    tried = items[_sample(n, seed)].tolist()
    model = replace(model, vae=bound(model.vae, data, dtype, device))
    of_sample = under(model.vae, torch.as_tensor(tried, device=device))
    sample = data.batch(tried, dtype=dtype, device=device)
    data = replace(data, warnings=(*data.warnings, *_scales(data, sample)))
    size = settings.run.batch_size if isinstance(settings.run.batch_size, int) else None
    small = size is not None or RowBatches.automatic(shape, device).size == 1
    fits = None if small else rows_that_fit(of_sample, sample)
    try:
        with fitting(fits):
            plausibility = examine(of_sample, sample, seed=seed, batch_size=size, items=tried)
            plausibility = explained(plausibility, of_sample, sample, seed=seed, batch_size=size)
        likelihood = _route(of_sample, sample)
        _check_counts(data, sample, likelihood)
    except (VaeauditError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the adapter is the user's code
        if ran_out(error):
            raise VaeauditError(
                f"memory ran out when the model was tried on a few items ({told(error)}); use a larger device"
            ) from error
        given = _range_of_conditions(model.vae)
        raise ContractError(
            f"the model raised {told(error)} when it was tried on the data{given}; see its adapter"
        ) from error
    _check_acknowledged(settings, plausibility)
    if settings.run.dtype == "bfloat16":  # whether model and data go together is no question of precision
        model = replace(model, vae=halved(model.vae, sample))
    usual = RowBatches.automatic(shape, device).size
    if fits is not None and fits < usual:
        with fitting(fits):
            told_of = f"memory had room for batches of {RowBatches.automatic(shape, device).size} rows, not {usual}"
        data = replace(data, warnings=(*data.warnings, f"{told_of}, which rounds differently; --batch-size repeats it"))
    return Subject(settings, device, dtype, model, data, items, plausibility, likelihood, fits)


def _normalised(settings: Settings, shape: tuple[int, ...]) -> Range | None:
    """The range of the model's inputs, of this shape, where the settings say how training normalised them."""
    text = settings.data.normalize
    if text is None:
        return None
    if settings.data.range is not None:
        raise ConfigError("--normalize gives the range of the model's inputs, and so does --range; give one of them")
    try:
        found = normalised(text)
    except ValueError as error:
        raise ConfigError(f"--normalize takes {error}, but '{clipped(text)}' came") from None
    if isinstance(found[0], tuple) and len(found) != shape[0]:
        raise ConfigError(
            f"--normalize {clipped(text)} has numbers for {len(found)} channels, but the model's inputs have {shape[0]}"
        )
    return found


def _of_size(vae: Resizable, item: tuple[int, ...]) -> VAE:
    """The model for inputs of the size of an ``item`` as it is stored, channels first or last or the one left out."""
    for shape in (item, (item[-1], *item[:-1]), (1, *item)):
        other = vae if shape == tuple(vae.input_shape) else vae.resized(shape)
        if other is not None:
            return other
    return vae


def bound(vae: VAE, data: Data, dtype: torch.dtype, device: torch.device) -> VAE:
    """A conditional model under the conditions of all items; any other as it is.

    Raises :class:`DataError` where the data do not hold what it takes.
    """
    if not isinstance(vae, Conditional):
        return vae
    wanted = tuple(vae.condition_shape)
    stored = _labels(data) if data.conditions is None and not wanted else data.conditions
    if stored is None and wanted != (0,):
        needed = "a label" if not wanted else f"conditions of shape ({', '.join(map(str, wanted))})"
        name, kind = ("conditions", "all numbers") if wanted else ("labels", "one whole number")
        why = "".join(f" ({one})" for one in data.skipped if one.startswith(f"{name}: "))
        raise DataError(
            f"the model is conditional and needs {needed} for each item, {kind}, but {data.source} holds none{why}; "
            f"store them beside the items, as an array named '{name}'"
        )
    if stored is not None and wanted != (0,) and stored.shape[1:] != wanted:
        raise DataError(
            f"the model is conditional and takes conditions of shape {wanted}, but those in {data.source} are "
            f"{stored.shape[1:]} for each item; store what it was trained with"
        )
    held = None
    if stored is not None and wanted != (0,):
        held = torch.from_numpy(np.ascontiguousarray(stored))
        held = (held.to(dtype) if held.is_floating_point() else held.long()).to(device)
        if wrong := not_finite(held):
            raise DataError(
                f"the condition of {numbered(wrong)} in {data.source} is NaN or infinite; mend or leave it out"
            )
    made = [
        conditions_of(vae, data.batch(part, dtype=dtype, device=device), None if held is None else held[part])
        for part in np.array_split(np.arange(len(data)), max(1, len(data) // _EXAMINED))
    ]
    return Conditioned(vae, torch.cat(made))


def _range_of_conditions(vae: VAE) -> str:
    """Words for what a conditional model was given, most often the reason for which it raises."""
    if not isinstance(vae, Conditioned) or not vae.conditions.numel():
        return ""
    return f", under conditions from {vae.conditions.min().item():.4g} to {vae.conditions.max().item():.4g}"


def _labels(data: Data) -> NDArray[np.int64] | None:
    """Labels as conditions: where they number texts, the whole numbers that these are."""
    if data.labels is None or data.label_names is None:
        return data.labels
    found = whole_numbers(data.labels, data.label_names)
    if found is None:  # which number a text had in training is in no file
        raise DataError(
            f"the model is conditional and takes labels as numbers, but those of {data.source} are texts "
            f"({listed(data.label_names)}); give the numbers that it was trained with, or an array named "
            "'conditions' beside the items"
        )
    return found


def _check_counts(data: Data, sample: Tensor, route: str) -> None:
    """Raise :class:`DataError` for data that are no counts where the likelihood, of this ``route``, is of counts."""
    odd = sample[sample != sample.round()]
    if len(odd) and "negative binomial" in route:
        raise DataError(
            f"the model's likelihood is of counts, but {data.source} holds numbers that are not whole, such as "
            f"{float(odd[0]):.4g}; give the counts themselves, before they were normalised, as in FILE.h5ad#counts"
        )


def _check_acknowledged(settings: Settings, plausibility: Plausibility) -> None:
    """Raise :class:`ConfigError` for an acknowledgement of a finding that there is not."""
    if not plausibility.losses:  # of a model that takes batches of some sizes only, not every question was asked
        return
    names = [finding.name for finding in plausibility.findings]
    for name in settings.doctor.acknowledge:
        if name not in names:
            raise ConfigError(
                f"[doctor.acknowledge]: doctor has no finding '{clipped(name)}'{nearest(name, names)}; it has "
                f"{', '.join(names)}"
            )


def _scales(data: Data, sample: Tensor) -> Iterator[str]:
    """A warning where no common range holds the elements and their scales are far apart."""
    spreads = unlike_scales(sample, data.range)
    if spreads is not None:
        yield (
            f"the scales of the input's elements differ by 10^{round(math.log10(spreads[1] / spreads[0]))} (they vary "
            f"by {spreads[0]:.2g} to {spreads[1]:.2g} over the items): one noise, and one norm of a distortion, is "
            "nothing to the largest and everything to the smallest; bring them to one scale in the data, and let "
            "the adapter undo it"
        )


@torch.no_grad()
def _route(vae: VAE, x: Tensor) -> str:
    """The route of p(x|z): of two items, or of one where the model does not take two at once."""
    try:
        return route_of(under(vae, slice(2)), x[:2])
    except Exception:  # told of by the plausibility check, which found a size that it takes
        vae = under(vae, slice(1))
        return vae.decode(vae.encode(x[:1]).mean).route


def _sample(n: int, seed: int) -> list[int]:
    """All items, or a keyed random thousand: data sets are often stored in the order of their factors."""
    sample: list[int] = _draw(n, min(n, _EXAMINED), seed, "plausibility.items").tolist()
    return sample


def _draw(n: int, count: int, seed: int, check: str) -> NDArray[np.int64]:
    """``count`` of 0 to n - 1 by a draw keyed by ``check``, ascending; all where they are as many."""
    if count == n:
        return np.arange(n)
    return np.sort(uniform(n, seed=seed, check=check, item=0).argsort(kind="stable")[:count])
