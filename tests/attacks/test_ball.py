"""What is handed out is measured as the model sees it: fl(x + d) - x, exactly."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vaeaudit.attacks.ball import exceeds, furthest, settle
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


DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    DTYPES,
    st.sampled_from(["l2", "linf"]),
    st.sampled_from(["none", "half-line", "by element", "mixed"]),
    st.integers(-12, 6),
    st.integers(-12, 3),
    st.integers(1, 40),
)
def test_cap_and_box_are_kept_at_any_offset_and_scale_in_any_box_and_precision(
    seed: int, dtype: torch.dtype, norm: str, kind: str, offset: int, size: int, n: int
) -> None:
    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** min(offset, 3 if dtype == torch.float16 else offset)
    low, high = torch.full((2, 1, n), math.inf, dtype=torch.float64) * torch.tensor([-1, 1])[:, None, None]
    if kind != "none":
        low = (rand(1, n) - 0.5) * scale
    if kind in ("by element", "mixed"):
        high = low + rand(1, n) * scale
    if kind == "mixed":
        high = torch.where(rand(1, n) < 0.5, math.inf, high)
        low = torch.where(rand(1, n) < 0.3, -math.inf, low)
    edges = low, high = low.to(dtype), high.to(dtype)
    x = (scale * (2 * rand(3, n) - 1)).to(dtype).clamp(low, high)
    edge = torch.where(rand(3, n) < 0.5, low, high)  # a third of the elements at an edge
    x = torch.where((rand(3, n) < 0.3) & edge.isfinite(), edge, x)
    caps = 10.0**size * (scale if seed % 2 else 1) * (0.1 + rand(3))
    asked = (caps[:, None] * 10 * (rand(3, n) - 0.5)).to(dtype)
    if not bool((caps.to(dtype) > 0).all() and caps.to(dtype).isfinite().all() and asked.isfinite().all()):
        return
    for d in (asked, furthest(asked, low - x, high - x, caps.to(dtype), norm)):
        settled = settle(x, d, edges, caps, norm)
        point = x + settled
        assert (exact(x, point, norm) <= caps).all()
        assert (exact(torch.zeros_like(x), settled, norm) <= caps).all()
        assert ((point >= low) & (point <= high)).all()
        assert not exceeds(x, settled, edges, caps, norm)
        assert (settled * d >= 0).all()  # nothing is turned round


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("radius", [1e-30, 1e-15, 1.0, 1e25])
@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1.0, 1e20])
def test_a_direction_is_lengthened_to_the_cap_whatever_its_own_length(
    scale: float, radius: float, dtype: torch.dtype
) -> None:
    v = scale * torch.tensor([[3.0, -4.0, 0.0, 12.0]], dtype=dtype)
    low, high = radius * torch.tensor([[[-1.0]], [[0.25]]], dtype=dtype).expand(2, 1, 4)
    cap = torch.tensor([radius], dtype=dtype)
    inf = torch.full_like(v, math.inf)
    of_cap = {
        "l2": (torch.tensor([[3 / 13, -4 / 13, 0, 12 / 13]]), torch.tensor([[0.25, -(0.875**0.5), 0, 0.25]])),
        "linf": (torch.tensor([[1.0, -1, 0, 1]]), torch.tensor([[0.25, -1, 0, 0.25]])),
    }
    for norm, (free, boxed) in of_cap.items():
        for found, expected in ((furthest(v, -inf, inf, cap, norm), free), (furthest(v, low, high, cap, norm), boxed)):
            torch.testing.assert_close(found / cap, expected.to(dtype))
    short = furthest(v, -inf, inf, 4 * v.abs().amax(1), most=1.0)  # within the ball: it is left as it is
    assert torch.equal(short, v)


@BOTH_NORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_attack_on_inputs_far_from_zero_keeps_to_a_cap_that_is_about_their_rounding(
    norm: str, dtype: torch.dtype, small_vae: Any
) -> None:
    vae = small_vae(box=((0.0, math.inf), (999_999.5, 1e6)), dtype=dtype)
    of = vae.encode
    vae.encode = lambda points: of(points - 999_999)
    x = (999_999 + torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).to(dtype)
    x[:, 1].clamp_(min=999_999.5)
    x[0, 1] = 1e6
    caps = (1e-3, 0.1, 0.5)
    found = capped_attack(vae, x, caps=caps, norm=norm, max_evaluations=40).capped
    size = exact(x[:, None].flatten(2), found.adversarial.flatten(2), norm)
    assert (size <= torch.tensor(caps, dtype=torch.float64)).all()
    assert torch.equal(size, found.norm)
    assert ((found.adversarial[:, :, 1] >= 999_999.5) & (found.adversarial[:, :, 1] <= 1e6)).all()
    assert (size[:, -1] > 0.3).all()  # and something is found
    # One unit in the last place of float32 is 1/16 here: the smallest cap lets the model see nothing at all.
    assert (size[:, 0] == 0).all() if dtype == torch.float32 else (size[:, 0] > 9e-4).all()


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
