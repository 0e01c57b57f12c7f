"""How often Python waits for a GPU: values that count who reads them stand for those on one.

Each time a number is read back, everything that was asked of the GPU must be done before anything else can be asked.
The bounds are of rounds of a search and of batches of items: none is of rows, draws or problems alone.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from vaeaudit.attacks.search import Effort
from vaeaudit.attacks.sweep import sweep
from vaeaudit.checks.noise.measure import noise
from vaeaudit.checks.reconstruction.measure import reconstruction
from vaeaudit.model.batches import RowBatches
from vaeaudit.optim import history, lbfgsb
from vaeaudit.optim.lbfgsb import Descent, Stopping
from vaeaudit.subject.encodings import encodings

READING = {"item", "tolist", "cpu", "numpy", "nonzero", "argwhere", "masked_select", "unique", "equal", "allclose"}
READING |= {"__bool__", "__int__", "__float__", "__index__", "__contains__", "is_nonzero"}
WAITED: Counter[str] = Counter()


class Remote(Tensor):
    """A tensor as on a GPU: what is made of it is one as well, and what reads it, or needs to know how many, counts."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        masks = name in ("__getitem__", "__setitem__") and _masked(args[1])
        if name in READING or masks or (name == "to" and "cpu" in map(str, args[1:])):
            WAITED[name] += 1
        found = super().__torch_function__(func, types, args, kwargs)
        return found.as_subclass(Tensor) if name == "cpu" else found


def _masked(index: object) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and (part.dtype == torch.bool or part.ndim == 0) for part in parts)


@pytest.fixture(autouse=True)
def _far(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (history, lbfgsb):
        monkeypatch.setattr(module, "far", lambda values: isinstance(values, Remote))
    WAITED.clear()


def waits(of: Any, *given: Any, **more: Any) -> int:
    WAITED.clear()
    of(*given, **more)
    return WAITED.total()


@pytest.fixture
def x(bundled_images: Tensor) -> Tensor:
    return bundled_images[:16].as_subclass(Remote)


def test_noise_waits_a_few_times_a_batch_of_items_whatever_the_draws(bundled_model: Any, x: Tensor) -> None:
    def of(batch: int, draws: int) -> int:
        return waits(noise, bundled_model, x, [0.5, 1.0], draws=draws, batch_size=batch)

    few, many = of(8, 2), of(2, 2)
    assert of(8, 8) == few
    assert many - few <= 2 * 6  # in six batches more; whether items lie in the range


def test_reconstruction_waits_a_few_times_a_batch_and_once_a_draw(bundled_model: Any, x: Tensor) -> None:
    def of(batch: int, draws: int) -> int:
        return waits(reconstruction, bundled_model, x, draws=draws, batch_size=batch)

    few, many = of(8, 1), of(2, 1)
    assert many - few <= 6 * 6  # in six batches more; range, finite means and draws, and three columns that are kept
    assert of(8, 3) - few <= 2 * 2  # in two batches; whether what was drawn is finite


def test_encoding_waits_twice_a_batch(bundled_model: Any, x: Tensor) -> None:
    few, many = (waits(encodings, bundled_model, x, batch_size=batch) for batch in (8, 2))
    assert many - few <= 2 * 6


def swept(small_vae: Any, x: Tensor) -> Any:
    vae = small_vae(dtype=torch.float32)
    target = vae.encode(x[2:])
    return sweep(
        lambda points, item: vae.encode(points).kl(target.rows(item)),
        x[:2],
        x[2:],
        (0.0, 1.0),
        x.new_tensor([0.01, 0.1, 1.0]).as_subclass(type(x)),
        effort=Effort(Stopping.for_dtype(torch.float32, 40)),
        rows=RowBatches(100),
    )


def test_a_sweep_waits_little_more_than_once_a_round_and_a_cpu_finds_the_same_to_the_bit(
    small_vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU computes all rows and leaves some out, where a CPU looks which it needs."""
    rounds = [0]
    whole = Descent._round

    def counted(self: Descent) -> None:
        rounds[0] += 1
        whole(self)

    monkeypatch.setattr("vaeaudit.attacks.search.rungs", lambda *_: [])
    x = torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(0))
    here = swept(small_vae, x)
    monkeypatch.setattr(Descent, "_round", counted)
    there = swept(small_vae, x.as_subclass(Remote))
    assert rounds[0] > 40
    assert WAITED["tolist"] <= rounds[0] + 2, WAITED  # which have ended
    assert WAITED.total() <= 2 * rounds[0], WAITED  # three times more where some have, and at each exchange
    assert isinstance(there.distortion, Remote)
    for name in ("distortion", "data_term", "norm", "evaluations", "status"):
        assert torch.equal(getattr(here, name), getattr(there, name).as_subclass(Tensor)), name
