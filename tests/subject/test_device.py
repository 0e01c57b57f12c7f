"""How exactly a GPU computes; the switches are torch's and are there without one."""

from collections.abc import Iterator

import pytest
import torch

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


def test_other_devices_are_left_alone(deterministic: Asked) -> None:
    before = [products.allow_tf32 for products in PRODUCTS]
    for name in ("cpu", "mps"):
        compute_exactly(torch.device(name), tf32=True)
    assert [products.allow_tf32 for products in PRODUCTS] == before
    assert not deterministic
