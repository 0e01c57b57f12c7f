"""Max-pooling written as affine operations and relu: the same values, and certificates that hold."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaeaudit.certify.graph import Graph, Kind, trace
from vaeaudit.certify.lipschitz import LipschitzBounds
from vaeaudit.certify.local import displacement, local_margin
from vaeaudit.certify.maximum import without_maxima
from vaeaudit.certify.propagation import first_norms, propagate
from vaeaudit.errors import UnsupportedError

DOUBLE = torch.zeros((), dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def traced(network: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Graph:
    of = network if isinstance(network, nn.Module) else None
    return trace(lambda x: (network(x).flatten(1),), shape, DOUBLE, "the network", of=of)


def drawn_pool(seed: int) -> tuple[nn.MaxPool2d, tuple[int, ...]]:
    """A pool of any kind, and the size of an image for it."""
    draw = np.random.default_rng(seed)
    kernel, stride, dilation = (tuple(int(n) for n in draw.integers(1, high, 2)) for high in (5, 5, 4))
    padding = tuple(int(draw.integers(0, k // 2 + 1)) for k in kernel)
    size = tuple((k - 1) * d + int(n) for k, d, n in zip(kernel, dilation, draw.integers(2, 7, 2), strict=True))
    return nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=bool(seed % 2)), (2, *size)


def test_the_values_are_those_of_the_pool() -> None:
    pools, shapes = zip(*map(drawn_pool, range(12)), strict=True)
    sizes = [math.prod(shape) for shape in shapes]

    def side_by_side(x: Tensor) -> Tensor:  # as tracing each by itself would take longest
        parts = zip(pools, x.split(sizes, dim=1), shapes, strict=True)
        return torch.cat([pool(part.unflatten(1, shape)).flatten(1) for pool, part, shape in parts], dim=1)

    x = random(3, sum(sizes))
    x[1] = x[1].round()  # with ties
    graph = traced(side_by_side, (sum(sizes),))
    written = without_maxima(graph)
    torch.testing.assert_close(written.module(x)[0], side_by_side(x), rtol=0, atol=1e-12)
    assert set(written.kinds) == set(written.module.graph.nodes)
    assert list(graph.kinds.values()).count(Kind.MAXIMUM) == len(pools)
    assert Kind.MAXIMUM not in written.kinds.values()


def test_other_ways_to_write_a_pool_and_pools_of_pools() -> None:
    networks: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: F.max_pool2d(x, 2),
        lambda x: torch.max_pool2d(x, [2, 3], stride=[]),
        lambda x: F.max_pool2d(F.max_pool2d(x, 3, 2, 1), kernel_size=2),
        lambda x: F.max_pool2d(F.max_pool2d(x, 1), 2) - F.max_pool2d(x.transpose(2, 3), 2),
        lambda x: F.max_pool2d(x.flatten(1, 2), 2),
        lambda x: F.max_pool1d(x.flatten(2), 5, 3, 1),
        lambda x: F.max_pool1d(x.flatten(1, 2), 2, dilation=2),
        lambda x: F.max_pool3d(x.unsqueeze(1), (2, 3, 2), (1, 2, 2), (0, 1, 1)),
        nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.ReLU(), nn.MaxPool2d((1, 3))),
    )

    def side_by_side(x: Tensor) -> Tensor:
        return torch.cat([network(x).flatten(1) for network in networks], dim=1)

    x = random(4, 2, 6, 6)
    written = without_maxima(traced(side_by_side, (2, 6, 6)))
    torch.testing.assert_close(written.module(x)[0], side_by_side(x), rtol=0, atol=1e-12)


def test_overlapping_windows_share_the_maxima_of_their_rows_and_what_lies_between_is_not_compared() -> None:
    def compared(pool: nn.Module, shape: tuple[int, ...]) -> int:
        graph = without_maxima(traced(pool, shape))
        norms = first_norms(graph, torch.zeros(1, *shape))
        ball = propagate(graph, random(1, *shape), torch.ones(1, dtype=torch.float64), norms)
        return sum(below.numel() for below, _ in ball.intervals.values())

    assert compared(nn.MaxPool2d(2), (1, 6, 6)) == 9 * 3
    # Of 7 rows, 2 maxima each for 3 windows; then 2 for each of 9 windows.
    assert compared(nn.MaxPool2d(3, 2), (1, 7, 7)) == 7 * 3 * 2 + 9 * 2
    assert compared(nn.MaxPool2d(2, 3), (1, 8, 8)) == 9 * 3
    # With padding only the middle windows have two rows or columns.
    assert compared(nn.MaxPool2d(2, 2, 1), (1, 4, 4)) == 4 * 1 + 3 * 1


def test_the_rest_of_the_graph_is_left_alone() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 2), nn.ReLU()).double()
    graph = traced(network.requires_grad_(False), (1, 8, 8))
    before = graph.module.code
    written = without_maxima(graph)
    assert graph.module.code == before and without_maxima(written) is written
    plain = traced(nn.Sequential(*network[:2]), (1, 8, 8))
    assert without_maxima(plain) is plain
    kinds = {node.name: kind for node, kind in graph.kinds.items() if kind is not Kind.MAXIMUM}
    assert kinds.items() <= {node.name: kind for node, kind in written.kinds.items()}.items()
    assert {p.data_ptr() for p in graph.module.parameters()} == {p.data_ptr() for p in written.module.parameters()}
    # So norms of the one serve the other.
    x = random(1, 1, 8, 8)
    old, new = first_norms(graph, x), first_norms(written, x)
    assert list(old) == list(new) and all(torch.equal(old[name], new[name]) for name in old)


POOLS: dict[str, tuple[nn.Module, type[nn.Module]]] = {
    "apart": (nn.MaxPool2d(2), nn.ReLU),
    "overlapping and padded": (nn.MaxPool2d(3, 2, 1), nn.ReLU),
    "smooth": (nn.MaxPool2d(2), nn.Tanh),
}


@cache
def traced_encoder(name: str) -> Graph:
    """Two convolutions with a pool after each, 2 latents."""
    pool, activation = POOLS[name]
    layers = nn.Sequential(
        *(nn.Conv2d(1, 2, 3, padding=1), activation(), pool, nn.Conv2d(2, 3, 2), activation(), pool),
        *(nn.Flatten(), nn.LazyLinear(4)),
    )
    layers(torch.zeros(1, 1, 8, 8))
    layers = layers.double().eval().requires_grad_(False)
    return trace(lambda x: layers(x).chunk(2, 1), (1, 8, 8), DOUBLE, "the encoder", of=layers)


def encoder(name: str, seed: int) -> Graph:
    """That encoder with weights of its own."""
    graph = traced_encoder(name)
    for number, weights in enumerate(graph.module.parameters()):
        weights.copy_(random(*weights.shape, seed=100 * seed + number) / math.sqrt(max(1, weights[0].numel())))
    return graph


def worst_shift(graph: Graph, x: Tensor, rho: Tensor) -> Tensor:
    """The largest ||D0^-1 (mu(x + d) - mu(x))|| that ascent from many directions finds on ||d|| <= rho, (items,)."""
    mean, log_stddev = graph.module(x)
    reach = rho.view(1, -1, 1)
    d = reach * F.normalize(random(40, len(x), x[0].numel(), seed=5), dim=-1)
    best = torch.zeros_like(rho)
    for _ in range(12):
        d = d.detach().requires_grad_()
        moved = graph.module((x.flatten(1) + d).view(-1, *x.shape[1:]))[0].view(*d.shape[:2], -1) - mean
        shift = (moved / log_stddev.exp()).norm(dim=-1)
        best = torch.maximum(best, shift.detach().amax(0))
        (ascent,) = torch.autograd.grad(shift.sum(), d)
        d = d + 0.3 * reach * F.normalize(ascent, dim=-1)
        d = d * (reach / d.norm(dim=-1, keepdim=True)).clamp(max=1)
    return best


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_attack_within_the_certified_margin_uses_up_the_gap(name: str, seed: int) -> None:
    graph, x = encoder(name, seed), random(3, 1, 8, 8, seed=seed)
    p_low = torch.tensor([0.7, 0.9, 0.99], dtype=torch.float64)
    found, gap = local_margin(graph, x, p_low), torch.special.ndtri(p_low)
    assert bool((found.radius > 0).all())
    assert bool((worst_shift(graph, x, found.radius) < gap).all())
    if name != "smooth":  # tanh may never let the mean go as far
        assert bool((worst_shift(graph, x, 30 * found.radius) >= gap).all())
        # And it is more than Lipschitz constants certify.
        stddev = graph.module(x)[1].exp()
        assert bool((found.radius > gap / LipschitzBounds(graph).of_output(0, 1 / stddev)).all())


@pytest.mark.parametrize("name", POOLS)
def test_no_displacement_found_in_a_ball_exceeds_its_bound(name: str) -> None:
    graph, x = encoder(name, 2), random(2, 1, 8, 8, seed=2)
    written = without_maxima(graph)
    for radius in (0.1, 2.0):
        rho = torch.full((2,), radius, dtype=torch.float64)
        omega, _ = displacement(propagate(written, x, rho, first_norms(written, x[:1])))
        assert bool((worst_shift(graph, x, rho) <= omega).all())


def test_within_the_linear_region_every_pool_keeps_its_element() -> None:
    graph, x = encoder("overlapping and padded", 0), random(3, 1, 8, 8)
    found = local_margin(graph, x, torch.full((3,), 0.95, dtype=torch.float64))
    assert bool((found.region > 0).all()) and bool((found.linear <= found.region).all())

    def jacobian(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        mean = graph.module(at)[0]
        return torch.stack([torch.autograd.grad(part.sum(), at, retain_graph=True)[0] for part in mean.unbind(1)])

    d = F.normalize(random(200, 3, 64, seed=4), dim=-1).view(200, 3, 1, 8, 8) * found.region.view(3, 1, 1, 1)
    here = jacobian(x)
    for step in d:
        assert torch.equal(jacobian(x + step), here)


def test_a_maximum_is_certified_by_hand() -> None:
    # max(x1, x2) with sigma 1 at (1, 0): it is x1 within 1 / sqrt 2, and its slope is 1 everywhere.
    graph = trace(lambda x: (F.max_pool2d(x, (1, 2)).flatten(1), 0 * x[:, 0, :, 0]), (1, 1, 2), DOUBLE, "the encoder")
    x = torch.tensor([[[[1.0, 0.0]]]], dtype=torch.float64)
    found = local_margin(graph, x, torch.tensor([0.999], dtype=torch.float64))
    exact = torch.special.ndtri(torch.tensor(0.999, dtype=torch.float64)).item()
    assert found.region.item() == pytest.approx(1 / math.sqrt(2), rel=1e-6)
    assert found.linear.item() == pytest.approx(1 / math.sqrt(2), rel=1e-6)
    assert 1 < found.propagated.item() <= exact


def test_the_number_of_items_at_once_changes_nothing_but_rounding() -> None:
    graph, x = encoder("apart", 3), random(3, 1, 8, 8, seed=3)
    p_low = torch.linspace(0.6, 0.99, 3, dtype=torch.float64)
    together, apart = (local_margin(graph, x, p_low, items_at_once=n) for n in (3, 2))
    for name in ("propagated", "linear", "region"):
        torch.testing.assert_close(getattr(together, name), getattr(apart, name), rtol=1e-6, atol=0)


def test_other_maxima_are_refused_by_name_and_windows_without_elements_too() -> None:
    for network, shape, name in (
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], (1, 4, 4), "max_pool2d_with_indices"),
        (nn.AdaptiveMaxPool2d(2), (1, 4, 4), "adaptive_max_pool2d"),
        (lambda x: x.amax((2, 3)), (1, 4, 4), "amax"),
    ):
        with pytest.raises(UnsupportedError, match=f"'{name}'"):
            traced(network, shape)
    with pytest.raises(UnsupportedError, match="'max_pool2d'"):
        without_maxima(traced(nn.MaxPool2d(2, 1, 1, dilation=4), (1, 3, 3)))
