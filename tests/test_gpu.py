"""What only a GPU can show; VAEAUDIT_TEST_DEVICE=cpu runs those that do not need one, so that they are known to run."""

import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from vaeaudit.checks.attack.measure import AttackResult, attack
from vaeaudit.checks.noise.measure import noise
from vaeaudit.checks.reconstruction.measure import reconstruction
from vaeaudit.model import memory
from vaeaudit.model.batches import RowBatches
from vaeaudit.optim.lbfgsb import Descent
from vaeaudit.stats.draws import noise_set
from vaeaudit.subject.device import compute_exactly
from vaeaudit.subject.encodings import encodings

NAME = os.environ.get("VAEAUDIT_TEST_DEVICE", "cuda")
THERE = NAME == "cpu" or torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not THERE, reason="there is no GPU")]
alone = pytest.mark.skipif(NAME == "cpu", reason="of a GPU alone")
DEVICE = torch.device(NAME)


@pytest.fixture(scope="module", autouse=True)
def _exactly() -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    compute_exactly(DEVICE, tf32=False)
    yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def vae(bundled_model: Any) -> Iterator[Any]:
    yield bundled_model.to(DEVICE)
    bundled_model.to("cpu")


@pytest.fixture
def x(bundled_images: Tensor) -> Tensor:
    return bundled_images.to(DEVICE)


def searched(vae: Any, x: Tensor) -> AttackResult:
    return attack(vae, x[:2], x[2:4], lambdas=4, max_evaluations=40)


def test_draws_have_the_bits_that_they_have_on_a_cpu() -> None:
    settings: dict[str, Any] = {"draws": 2, "items": [3, 1], "seed": 7, "check": "test"}
    there, here = (noise_set((5,), **settings, like=torch.zeros(1, device=device)) for device in (DEVICE, "cpu"))
    assert there.device.type == DEVICE.type
    assert torch.equal(there.cpu(), here)


def test_figures_are_those_of_a_cpu_up_to_rounding(bundled_model: Any, bundled_images: Tensor) -> None:
    found = []
    for device in (DEVICE, "cpu"):
        vae, x = bundled_model.to(device), bundled_images[:40].to(device)
        made = reconstruction(vae, x)
        found.append([noise(vae, x, [0.5], draws=2).log_likelihood, encodings(vae, x).mean, *made.at_mean.values()])
    for there, here in zip(*found, strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)


def test_a_search_gives_the_same_bits_each_time_and_no_worse_optima_than_on_a_cpu(
    bundled_model: Any, bundled_images: Tensor
) -> None:
    vae, x = bundled_model.to(DEVICE), bundled_images[:4].to(DEVICE)
    once, again = searched(vae, x).sweep, searched(vae, x).sweep
    assert torch.equal(once.distortion, again.distortion)
    assert torch.equal(once.data_term, again.data_term)
    here = searched(bundled_model.to("cpu"), bundled_images[:4]).sweep
    assert float((once.objective.cpu() / here.objective).median()) < 1.02


@alone
def test_a_search_waits_about_once_a_round(vae: Any, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch itself counts; what waits within the model counts too."""
    rounds, whole = [0], Descent._round

    def counted(self: Descent) -> None:
        rounds[0] += 1
        whole(self)

    monkeypatch.setattr(Descent, "_round", counted)
    searched(vae, x)
    rounds[0] = 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            searched(vae, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(told) <= 3 * rounds[0] + 200


@alone
def test_batches_are_halved_where_the_gpus_own_memory_runs_out() -> None:
    there = torch.cuda.get_device_properties(DEVICE).total_memory

    def hungry(part: Tensor) -> tuple[Tensor]:
        torch.empty(len(part) * (there // 3), dtype=torch.uint8, device=DEVICE)
        return (part + 1,)

    rows = RowBatches(8)
    assert torch.equal(rows.map(hungry, torch.arange(9))[0], torch.arange(1, 10))
    assert rows.size == 2


def test_what_a_row_takes_grows_with_the_rows(vae: Any, x: Tensor) -> None:
    few, many = memory.taken(vae, x[:64]), memory.taken(vae, x[:256])
    assert 2 * few < many < 6 * few
    assert (memory.rows_that_fit(vae, x) or 0) > 1000
