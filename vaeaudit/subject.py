"""What is audited: a model, its data, and whether they go together."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vaeaudit.box import range_of
from vaeaudit.checks.encodings import Encodings
from vaeaudit.checks.inputs import route_of
from vaeaudit.checks.plausibility import Plausibility, examine
from vaeaudit.data import Data, fit
from vaeaudit.draws import uniform
from vaeaudit.errors import ConfigError, ContractError, DataError, VaeauditError
from vaeaudit.formats import read
from vaeaudit.registry import LoadedModel, open_model, told
from vaeaudit.settings import Settings

_EXAMINED = 1000  # most items that the plausibility check looks at


@dataclass(frozen=True, eq=False)
class Subject:
    """The model and the first ``n`` items of the data, fitted to it and tried on it."""

    settings: Settings
    device: torch.device
    dtype: torch.dtype
    model: LoadedModel
    data: Data
    n: int
    plausibility: Plausibility
    likelihood: str
    encoded: dict[tuple[int, ...], Encodings] = field(default_factory=dict)  # by items, kept for the checks to come

    @property
    def batch_size(self) -> int | None:
        """Most rows given to the model at once; None where that is chosen by size."""
        size = self.settings.run.batch_size
        return size if isinstance(size, int) else None

    def images(self, items: Sequence[int]) -> Tensor:
        """The named items as the model takes them, (len(items), *input_shape)."""
        return self.data.batch(items, dtype=self.dtype, device=self.device)

    def drawn(self, most: int | None, check: str) -> tuple[list[int], str]:
        """At most so many items (None for all), by a draw keyed by ``check``, in ascending order; and how, in words."""
        if most is None or most >= self.n:
            return list(range(self.n)), f"all {self.n}"
        order = uniform(self.n, seed=self.settings.run.seed, check=check, item=0).argsort(kind="stable")
        return sorted(order[:most].tolist()), f"{most} of {self.n}, drawn at random"


def prepare(settings: Settings) -> Subject:
    """Open the model, fit the data to it, and try it on them.

    Raises :class:`VaeauditError` where one of these cannot be done; a model that can be tried and looks wrong
    is no error but a finding.
    """
    if settings.model.path is None:
        raise ConfigError(
            "no model is named; give one, as in `vaeaudit attack vae.safetensors --data val.npz`, "
            "or set [model] path in vaeaudit.toml"
        )
    if settings.data.source is None:
        raise ConfigError("no data are named; give them, as in `--data val.npz`, or set [data] source in vaeaudit.toml")
    device, dtype = choose_device(settings.run.device), getattr(torch, settings.run.dtype)
    model = open_model(settings.model.path, settings.model.adapter, settings.model.options, device=device, dtype=dtype)
    shape = tuple(model.vae.input_shape)
    data_range = settings.data.range or range_of(model.vae)
    data = fit(read(settings.data.source), input_shape=shape, data_range=data_range, resize=settings.data.resize)
    n = min(len(data), settings.run.limit or len(data))
    if n < 2:
        some = f"--limit leaves {n} of {len(data)} items" if n < len(data) else f"{data.source} holds {n} item"
        raise DataError(f"{some}, where at least two are needed; give more")
    sample = data.batch(_sample(n, settings.run.seed), dtype=dtype, device=device)
    size = settings.run.batch_size if isinstance(settings.run.batch_size, int) else None
    try:
        plausibility = examine(model.vae, sample, seed=settings.run.seed, batch_size=size)
        likelihood = route_of(model.vae, sample[:2])
    except VaeauditError:
        raise
    except (Exception, SystemExit) as error:  # the adapter is the user's code
        raise ContractError(f"the model raised {told(error)} when it was tried on the data; see its adapter") from error
    return Subject(settings, device, dtype, model, data, n, plausibility, likelihood)


def choose_device(name: str) -> torch.device:
    """The device that ``name`` means; "auto" is a GPU where there is one.

    Raises :class:`ConfigError` for a device that is not there.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"there is no device '{name}'; expected auto, cpu, cuda, cuda:N or mps") from error
    there = {"cpu": True, "cuda": cuda and (device.index or 0) < torch.cuda.device_count(), "mps": mps}
    if not there.get(device.type, False):
        raise ConfigError(f"device '{name}' is not on this machine; leave --device out to take what is")
    return device


def _sample(n: int, seed: int) -> list[int]:
    """All items, or a keyed random thousand: data sets are often stored in the order of their factors."""
    if n <= _EXAMINED:
        return list(range(n))
    order = uniform(n, seed=seed, check="plausibility.items", item=0).argsort(kind="stable")
    return sorted(order[:_EXAMINED].tolist())
