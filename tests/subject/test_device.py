"""How exactly a GPU computes; the switches are torch's and are there without one."""

from collections.abc import Iterator

import pytest
import torch

import vaeaudit
from vaeaudit.audit.writing import environment
from vaeaudit.subject.device import compute_exactly

PRODUCTS = (torch.backends.cuda.matmul, torch.backends.cudnn)
Asked = list[tuple[bool, bool]]


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    """What is asked of torch's algorithms, which is not done: it imports a second's worth of modules."""
    asked: Asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on, warn_only: asked.append((on, warn_only)))
    before = [products.allow_tf32 for products in PRODUCTS]
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield asked
    for products, was in zip(PRODUCTS, before, strict=True):
        products.allow_tf32 = was
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def test_on_cuda_products_are_whole_unless_tf32_is_asked_for_and_sums_are_the_same_each_time(
    deterministic: Asked,
) -> None:
    for index, tf32 in enumerate((False, True, False)):
        compute_exactly(torch.device("cuda", 0), tf32=tf32)
        assert [products.allow_tf32 for products in PRODUCTS] == [tf32] * 2
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        with torch.backends.cudnn.flags(enabled=False):  # as layers ask for, which reads all switches
            pass
        assert deterministic[index:] == [(True, True)]  # what has no such form warns, and does not fail


def test_a_function_of_the_public_interface_does_the_same(deterministic: Asked) -> None:
    torch.backends.cudnn.allow_tf32 = True
    vaeaudit.compute_exactly("cuda")
    assert [products.allow_tf32 for products in PRODUCTS] == [False] * 2
    assert deterministic == [(True, True)]


def test_a_report_says_that_bits_repeat_on_a_gpu_where_that_was_asked_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    for asked in (True, False):
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda asked=asked: asked)
        assert environment(0, "float32", torch.device("cuda", 0)).deterministic is asked
        assert environment(0, "float32", torch.device("cpu")).deterministic


def test_other_devices_are_left_alone(deterministic: Asked) -> None:
    before = [products.allow_tf32 for products in PRODUCTS]
    for name in ("cpu", "mps"):
        compute_exactly(torch.device(name), tf32=True)
    assert [products.allow_tf32 for products in PRODUCTS] == before
    assert not deterministic
