"""What is handed out is measured as the model sees it: fl(x + d) - x, exactly."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vaeaudit.attacks.ball import settle
from vaeaudit.attacks.modes import names
from vaeaudit.checks.attack.capped import capped_attack
from vaeaudit.checks.attack.measure import attack
from vaeaudit.model.box import flat_bounds

BOTH_NORMS = pytest.mark.parametrize("norm", ["l2", "linf"])
BUDGETS = {"linf": (2 / 255, 8 / 255, 0.3), "l2": (0.5, 1.0, 4.0)}


def exact(x: Tensor, point: Tensor, norm: str) -> Tensor:
    """How far ``point`` (..., n) is from ``x``: differences of float32 values are exact in float64, or nearly."""
    return torch.linalg.vector_norm(point.double() - x.double(), 2 if norm == "l2" else math.inf, dim=-1)


@BOTH_NORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("box", [(0.0, 1.0), (-0.3, 0.7), None])
@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1.0])
def test_what_the_model_sees_keeps_to_box_and_cap_whatever_is_asked(
    norm: str, dtype: torch.dtype, box: tuple[float, float] | None, scale: float
) -> None:
    generator = torch.Generator().manual_seed(5)
    low, high = box or (-5.0, 5.0)
    x = (low + (high - low) * torch.rand(40, 200, generator=generator, dtype=torch.float64)).to(dtype).clamp(low, high)
    x[:, :20] = low
    x[:, 20:40] = high
    x[:, 40:60] *= 1e-6 if low <= 0 else 1  # near 0 a float has many more digits than beside it
    if low <= 0:
        x[:, 60:80] = 0
    caps = scale * torch.tensor(BUDGETS[norm], dtype=torch.float64).repeat(14)[:40]
    d = caps[:, None] * torch.randn(40, 200, generator=generator, dtype=torch.float64)
    settled = settle(x, d.to(dtype), flat_bounds(box, (200,), x), caps, norm)
    point = x + settled
    assert (exact(x, point, norm) <= caps).all()
    assert (exact(torch.zeros_like(x), settled, norm) <= caps).all()
    if box:
        assert ((point >= low) & (point <= high)).all()
    assert torch.equal(settle(x, settled, flat_bounds(box, (200,), x), caps, norm), settled)
    # Little is given away for it: what is rounded is at most the last place of x in each element.
    plain = torch.maximum(torch.minimum(d.to(dtype), high - x if box else d.to(dtype)), low - x if box else d.to(dtype))
    if norm == "linf":
        plain = torch.maximum(torch.minimum(plain, caps[:, None].to(dtype)), -caps[:, None].to(dtype))
        lost = (settled - plain).abs()
        assert (
            lost <= 4 * torch.finfo(dtype).eps * (x.abs() + plain.abs() + caps[:, None]) + 2e-12 * caps[:, None]
        ).all()


def test_a_distortion_that_keeps_to_its_cap_is_left_as_the_model_sees_it() -> None:
    x, d = torch.tensor([[0.9, 0.25, 0.0]]), torch.tensor([[0.0078431, -0.001, 0.001]])
    settled = settle(x, d, flat_bounds((0.0, 1.0), tuple(x.shape[1:]), x), torch.tensor([1.0]))
    assert torch.equal(x + settled, x + d)
    assert torch.equal(settled, (x + d) - x)


@pytest.fixture(scope="module")
def images(bundled_images: Tensor) -> tuple[Tensor, Tensor]:
    """Bundled images with grey levels everywhere, in float32."""
    noise = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(2))
    return (0.7 * bundled_images[:3] + 0.3 * noise).clamp(0, 1), bundled_images[40:43]


@pytest.mark.parametrize("mode", names(swept=False))
@BOTH_NORMS
def test_every_attack_under_a_cap_keeps_to_it_as_the_model_sees_it(
    mode: str, norm: str, bundled_model: Any, images: tuple[Tensor, Tensor]
) -> None:
    x, x_t = images
    caps = BUDGETS[norm]
    target = x_t if mode == "worst" else None
    result = capped_attack(bundled_model, x, mode, target, caps=caps, norm=norm, max_evaluations=20, draws=1)
    found = result.capped
    if mode == "latent-side":
        with torch.no_grad():
            x = bundled_model.encode(x).mean
    else:
        assert ((found.adversarial >= 0) & (found.adversarial <= 1)).all()
    assert torch.equal(x[:, None] + found.distortion, found.adversarial)
    size = exact(x[:, None].flatten(2), found.adversarial.flatten(2), norm)
    assert (size <= torch.tensor(caps, dtype=torch.float64)).all()
    assert torch.equal(size, found.norm)
    assert found.caps.tolist() == list(caps)  # as they were asked for, not as float32 has them


def test_a_sweep_keeps_to_the_box_to_the_bit(bundled_model: Any, images: tuple[Tensor, Tensor]) -> None:
    x, x_t = images
    low, high = 0.1, 0.9
    found = attack(
        bundled_model, x.clamp(low, high), x_t.clamp(low, high), lambdas=4, max_evaluations=20, data_range=(low, high)
    ).sweep
    assert ((found.adversarial >= low) & (found.adversarial <= high)).all()
    assert torch.equal(x.clamp(low, high)[:, None] + found.distortion, found.adversarial)
