"""The local certificates: no displacement within the ball exceeds them; exact where everything is linear."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from vaeaudit.certify.ellipsoids import Ellipsoid
from vaeaudit.certify.graph import Graph, trace, trace_encoder
from vaeaudit.certify.item import Item
from vaeaudit.certify.lipschitz import LipschitzBounds
from vaeaudit.certify.local import displacement, local_margin
from vaeaudit.certify.maps import pulled_back, row_norms, rows
from vaeaudit.certify.maximum import without_maxima
from vaeaudit.certify.propagation import Ball, first_norms, propagate
from vaeaudit.certify.room import Room
from vaeaudit.certify.screen import screened
from vaeaudit.certify.sector import derivative_of, sector
from vaeaudit.certify.sectors import Sectors
from vaeaudit.certify.theorem import excess
from vaeaudit.errors import UnsupportedError

FLOAT64 = torch.float64


class Residual(nn.Module):
    """A skip, a concatenation and a branch of the input around activations."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(12, 6)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.activation(self.first(x))
        return self.out(torch.cat([self.activation(self.second(h)), h - x], dim=1))


def mlp(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), activation, nn.Linear(12, 9), activation, nn.Linear(9, 6))


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 5, 3, padding=1, groups=1), nn.LeakyReLU(0.2), nn.AvgPool2d(3), nn.Flatten()),
        *(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6)),
    )


def sequence() -> nn.Module:
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 4, 3, padding=1), nn.PReLU(4), nn.MaxPool1d(3, 2, 1)),
        *(nn.Conv1d(4, 3, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(6, 6)),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "relu": (lambda: mlp(nn.ReLU()), 6),
    "concave leaky": (lambda: mlp(nn.LeakyReLU(1.7)), 6),
    "tanh": (lambda: mlp(nn.Tanh()), 6),
    "gelu": (lambda: mlp(nn.GELU()), 6),
    "hardtanh": (lambda: mlp(nn.Hardtanh(-0.4, 0.7)), 6),
    "hardswish": (lambda: mlp(nn.Hardswish()), 6),
    "prelu": (lambda: nn.Sequential(nn.Linear(6, 12), nn.PReLU(12), nn.Linear(12, 9), nn.PReLU(), nn.Linear(9, 6)), 6),
    "absolute": (lambda: Residual(torch.abs), 6),
    "swish by hand": (lambda: Residual(lambda y: y * torch.sigmoid(y)), 6),
    "limits in tensors": (lambda: Residual(lambda y: y.clamp(torch.full((6,), -0.3), torch.ones(6) * 0.5)), 6),
    "pooled sequence": (sequence, 12),
    "residual": (lambda: Residual(F.relu), 6),
    "clamped residual": (lambda: Residual(lambda y: y.clamp(min=-0.3, max=0.5)), 6),
    "convolutional": (convolutional, 36),
}
# What differs from one of these in its activation alone: that its lines and its sector hold is tested of each.
OTHERS = (
    *(nn.LeakyReLU(0.3), nn.Sigmoid(), nn.Softplus(beta=2), nn.ELU(), nn.SiLU(), nn.ReLU6(), nn.GELU("tanh")),
    *(nn.ELU(1.8), nn.ELU(0.4), nn.CELU(0.5), nn.SELU(), nn.Mish(), nn.Softsign(), nn.LogSigmoid(), nn.Hardsigmoid()),
)


def weighted(network: nn.Module, seed: int = 3) -> nn.Module:
    """The network in evaluation with random weights, large enough that activations bend."""
    generator = torch.Generator().manual_seed(seed)
    network = network.double().eval().requires_grad_(False)
    for name, weights in network.state_dict().items():
        if weights.is_floating_point():
            noise = torch.randn(weights.shape, generator=generator, dtype=FLOAT64)
            scale = 1.2 / math.sqrt(weights[0].numel()) if weights.ndim > 1 else 0.4
            weights.copy_(1 + 0.3 * noise.tanh() if "running_var" in name else scale * noise)
    return network


def heads(network: nn.Module, inputs: int) -> Graph:
    """A network of 6 outputs as the encoder of 3 latents."""
    return trace(lambda x: network(x).chunk(2, dim=1), (inputs,), torch.zeros((), dtype=FLOAT64), "it", of=network)


@cache
def traced(build: Callable[[], nn.Module], inputs: int) -> Graph:
    """The heads of such a network with random weights: tracing takes longer than most of what is asked of it."""
    return heads(weighted(build()), inputs)


@contextmanager
def lent(build: Callable[[], nn.Module], inputs: int) -> Iterator[Graph]:
    """That graph, whose weights may be changed: they are put back."""
    graph = traced(build, inputs)
    kept = [weights.clone() for weights in graph.module.parameters()]
    try:
        yield graph
    finally:
        for weights, before in zip(graph.module.parameters(), kept, strict=True):
            weights.copy_(before)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64)


def ball(graph: Graph, x: Tensor, rho: float) -> Ball:
    graph = without_maxima(graph)
    return propagate(graph, x, torch.full((len(x),), rho, dtype=FLOAT64), first_norms(graph, x[:1]))


def worst(graph: Graph, x: Tensor, rho: float | Tensor, *sizes: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The largest of each of ``sizes`` of the outputs' displacements that search finds by ascent, (sizes, items).

    For each from random places. ``rho`` is the radius of the ball, or of each item's, (items, 1).
    """
    clean = graph.module(x)
    d = F.normalize(random(60, *x.shape), dim=-1) * rho
    d[30:] *= torch.rand(30, len(x), 1, generator=torch.Generator().manual_seed(1), dtype=FLOAT64)
    d = d.repeat(len(sizes), 1, 1, 1)  # (sizes, 60, items, inputs)
    best = torch.zeros(len(sizes), len(x), dtype=FLOAT64)
    for _ in range(12):
        d = d.detach().requires_grad_()
        found = (output.unflatten(0, d.shape[:3]) for output in graph.module((x + d).flatten(0, 2)))
        away = [new - old for new, old in zip(found, clean, strict=True)]
        moved = torch.stack([size(*parts) for size, *parts in zip(sizes, *away, strict=True)])
        best = torch.maximum(best, moved.detach().amax(1))
        (ascent,) = torch.autograd.grad(moved.sum(), d)
        d = d + 0.3 * rho * F.normalize(ascent, dim=-1)
        d = d * (rho / d.norm(dim=-1, keepdim=True)).clamp(max=1)
    return best


@pytest.mark.parametrize("name", NETWORKS)
def test_no_displacement_found_in_the_ball_exceeds_the_bounds(name: str) -> None:
    build, inputs = NETWORKS[name]
    graph, x = traced(build, inputs), random(2, inputs, seed=7)
    radii, x = (0.05, 1.0), torch.cat([x, x])
    omega, moves = map(torch.cat, zip(*(displacement(ball(graph, x[:2], rho)) for rho in radii), strict=True))
    stddev = graph.module(x)[1].exp()
    # Of log sigma each latent as a share of its bound, of which each point ascends the largest; a bound of 0 allows
    # nothing.
    shift, share = worst(
        graph,
        x,
        torch.tensor(radii, dtype=FLOAT64).repeat_interleave(2)[:, None],
        lambda v, _: (v / stddev).norm(dim=-1),
        lambda _, u: (u.abs() / moves.clamp(min=1e-300)).amax(-1),
    )
    assert bool((shift <= omega).all())
    assert bool((share <= 1).all())


@pytest.mark.parametrize("name", NETWORKS)
def test_no_attack_inside_the_certified_radius_uses_up_the_gap(name: str) -> None:
    build, inputs = NETWORKS[name]
    graph, x = traced(build, inputs), random(2, inputs, seed=8)
    p_low = torch.tensor([0.8, 0.98], dtype=FLOAT64)
    found, gap, stddev = local_margin(graph, x, p_low), torch.special.ndtri(p_low), graph.module(x)[1].exp()
    everywhere = LipschitzBounds(graph).of_output(0, 1 / stddev)
    assert bool((found.radius > 0).all())
    certified = torch.cat([found.radius, gap / everywhere * (1 - 1e-9)])
    shift = worst(graph, x.repeat(2, 1), certified[:, None], lambda v, _: (v / stddev.repeat(2, 1)).norm(dim=-1))
    assert bool((shift < gap.repeat(2)).all())


@pytest.mark.parametrize("name", NETWORKS)
def test_on_a_ball_so_small_that_nothing_bends_much_the_bound_is_that_of_the_jacobian(name: str) -> None:
    build, inputs = NETWORKS[name]
    graph, x, rho = traced(build, inputs), random(1, inputs, seed=7), 1e-5

    def mean(at: Tensor) -> Tensor:
        return graph.module(at.unsqueeze(0))[0][0]

    whitened = torch.autograd.functional.jacobian(mean, x[0]) / graph.module(x)[1].exp().T
    omega, _ = displacement(ball(graph, x, rho))
    assert omega.item() / rho == pytest.approx(torch.linalg.matrix_norm(whitened, ord=2).item(), rel=2e-3)


def test_the_intervals_of_a_larger_ball_change_nothing_but_the_work() -> None:
    graph, x = traced(*NETWORKS["convolutional"]), random(2, 36, seed=7)
    norms, rho = first_norms(graph, x[:1]), torch.tensor([0.1, 0.2], dtype=FLOAT64)
    alone = displacement(propagate(graph, x, rho, norms))
    aided = displacement(propagate(graph, x, rho, norms, propagate(graph, x, 2 * rho, norms).intervals))
    for one, other in zip(alone, aided, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=0)


def test_the_bounds_are_those_of_crown_by_hand() -> None:
    # y = x + 0.5 is in [-0.5, 1.5] on the ball of radius 1: relu is below the chord 0.75 (y + 0.5), and above y, since
    # the piece that rises is the longer one. So 2 relu(y) - 1 is in [2 x, 1.5 (x + 1) - 1].
    graph = trace(lambda x: (2 * F.relu(x + 0.5), 0 * x), (1,), torch.zeros((), dtype=FLOAT64), "it")
    here = ball(graph, torch.zeros(1, 1, dtype=FLOAT64), 1.0)
    lower = here.bounds(here.outputs[0], torch.ones(1, 1, 1, dtype=FLOAT64))
    upper = here.bounds(here.outputs[0], -torch.ones(1, 1, 1, dtype=FLOAT64))
    assert [lower.slope.item(), lower.offset.item()] == pytest.approx([2, 0], abs=1e-9)
    assert [-upper.slope.item(), -upper.offset.item()] == pytest.approx([1.5, 0.5], abs=1e-8)
    assert -upper.least(here.rho).item() == pytest.approx(2, rel=1e-8)


def test_a_value_that_is_added_to_itself_moves_twice_as_far() -> None:
    def network(x: Tensor) -> tuple[Tensor]:
        h = torch.relu(x)
        return (torch.relu(h + h - 1.5),)

    here = ball(trace(network, (1,), random(1), "it"), torch.full((1, 1), 0.2, dtype=torch.float64), 1.0)
    rise = -here.bounds(here.outputs[0], -torch.ones(1, 1, 1, dtype=torch.float64)).least(here.rho)
    assert float(rise) >= 0.9  # at x = 1.2


def encoder_of(mean: Callable[[Tensor], Tensor], log_stddev: Callable[[Tensor], Tensor], inputs: int) -> Graph:
    like = torch.zeros((), dtype=FLOAT64)
    return trace(lambda x: (mean(x), log_stddev(x)), (inputs,), like, "the encoder")


def test_the_kink_is_certified_up_to_where_the_encoder_is_linear_and_never_beyond_the_truth(oracle: Any) -> None:
    case = oracle["kink"]
    graph = encoder_of(
        lambda x: x + case["steep"] * F.relu(x - case["kink"]), lambda x: 0 * x + math.log(case["sigma"]), 1
    )
    found = local_margin(graph, torch.zeros(1, 1), torch.tensor([case["p0"]]))
    assert found.region.item() == pytest.approx(case["linear_region_radius"], rel=1e-6)
    assert found.linear.item() == pytest.approx(case["local_region_certificate"], rel=1e-6)
    assert case["local_region_certificate"] * (1 - 1e-6) <= found.radius.item() <= case["exact_R"]
    # The chord through the kink ends where the encoder does: there sigma times the gap is all that it may move.
    gap = torch.special.ndtri(torch.tensor(case["p0"], dtype=FLOAT64)).item()
    reached = (case["sigma"] * gap + case["steep"] * case["kink"]) / (1 + case["steep"])
    assert 0.99 * reached <= found.radius.item() <= reached
    assert found.won == ["propagation"]


def test_a_linear_encoder_is_certified_as_far_as_theorem_1_allows(oracle: Any) -> None:
    cases, model = [case for case in oracle["r_robust"]["cases"] if "exact_R" in case], oracle["models"]["LIN2"]
    A, b, stddev, x = (torch.tensor(model[name], dtype=FLOAT64) for name in ("A", "b", "sigma", "x"))
    graph = encoder_of(lambda x: x @ A.T + b, lambda x: 0 * x[:, :2] + stddev.log(), 8)
    p0 = torch.tensor([case["bounds"]["p0"] for case in cases], dtype=FLOAT64)
    found = local_margin(graph, x.expand(len(cases), -1), p0)
    for radius, case in zip(found.radius.tolist(), cases, strict=True):
        assert radius == pytest.approx(case["bounds"]["mahalanobis"], rel=1e-6)
        assert radius <= case["exact_R"]


def test_the_half_space_is_certified_exactly(oracle: Any) -> None:
    case = oracle["halfspace"]
    A, stddev = torch.tensor(case["A"], dtype=FLOAT64), torch.tensor(case["sigma"], dtype=FLOAT64)
    graph = encoder_of(lambda x: x @ A.T, lambda x: 0 * x + stddev.log(), 2)
    found = local_margin(graph, torch.zeros(1, 2, dtype=FLOAT64), torch.tensor([case["p0"]], dtype=FLOAT64))
    assert found.radius.item() == pytest.approx(case["exact_R"], rel=1e-6)
    assert found.radius.item() <= case["exact_R"]


def test_a_moving_scale_costs_some_of_the_margin(oracle: Any) -> None:
    for case in oracle["sigma_varying"]["cases"]:
        graph = encoder_of(lambda x, a=case["a"]: a * x, lambda x, c=case: math.log(c["s0"]) + c["Lam"] * x, 1)
        x, p0 = torch.zeros(1, 1, dtype=FLOAT64), torch.tensor([case["p0"]], dtype=FLOAT64)
        full = local_margin(graph, x, p0, sigma="full").radius.item()
        assert case["cert_varying"] * (1 - 1e-6) <= full <= case["exact_R_full"]
        frozen = local_margin(graph, x, p0).radius.item()
        assert frozen == pytest.approx(case["cert_frozen_sigma_assumed"], rel=1e-6)


@pytest.mark.parametrize("sigma", ["frozen", "full"])
def test_more_probability_certifies_more_and_none_above_the_level_nothing(sigma: Any) -> None:
    graph, x = traced(*NETWORKS["relu"]), random(1, 6, seed=7).expand(5, -1)
    found = local_margin(graph, x, torch.tensor([0.3, 0.5, 0.6, 0.9, 0.999], dtype=FLOAT64), sigma=sigma)
    first, second, *rest = found.radius.tolist()
    assert first == second == 0 and found.won[0] == "none"
    assert 0 < rest[0] < rest[1] < rest[2] < math.inf
    at_09 = local_margin(graph, x[:1], torch.tensor([0.95], dtype=FLOAT64), m=0.9, sigma=sigma).radius.item()
    assert 0 < at_09 < rest[2]


def test_the_number_of_items_at_once_changes_nothing_but_rounding() -> None:
    graph, x = traced(*NETWORKS["relu"]), random(5, 6, seed=7)
    p_low = torch.linspace(0.6, 0.99, 5, dtype=FLOAT64)
    together, apart = (local_margin(graph, x, p_low, items_at_once=n) for n in (5, 2))
    torch.testing.assert_close(together.radius, apart.radius, rtol=1e-6, atol=0)


def test_the_certified_radius_of_a_real_encoder_holds_against_ascent(
    bundled_model: Any, bundled_images: Tensor
) -> None:
    x = bundled_images[:2]
    p_low = torch.tensor([0.9, 0.99], dtype=FLOAT64)
    found = local_margin(trace_encoder(bundled_model, x), x, p_low)
    assert bool((found.radius > 0).all())

    def heads(rows: Tensor) -> tuple[Tensor, Tensor]:
        q = bundled_model.encode(rows.unflatten(1, x.shape[1:]))
        return q.mean, q.log_stddev

    flat = trace(heads, (x[0].numel(),), x, "it", of=bundled_model)
    for item in range(2):
        start = x[item : item + 1].double().flatten(1)
        stddev = flat.module(start)[1].exp()
        shift = worst(flat, start, found.radius[item].item(), lambda v, _, s=stddev: (v / s).norm(dim=-1))
        assert shift.item() < torch.special.ndtri(p_low[item]).item()


def test_stopped_between_balls_it_returns_what_it_had_verified() -> None:
    graph, x = traced(*NETWORKS["relu"]), random(3, 6)
    p_low, asked = torch.full((3,), 0.99, dtype=torch.float64), iter([True, True, True, False])
    whole, stopped = local_margin(graph, x, p_low), local_margin(graph, x, p_low, go_on=lambda: next(asked))
    assert (stopped.radius <= whole.propagated).all()
    assert (stopped.radius > 0).any()
    assert (local_margin(graph, x, p_low, go_on=lambda: False).radius == 0).all()


def test_an_operation_without_linear_bounds_is_refused_by_name() -> None:
    # What local_margin writes anew before: the propagation alone has no lines for it.
    network = nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.MaxPool2d(2), nn.Flatten()).double()
    graph = trace(lambda x: network(x).chunk(2, dim=1), (16,), torch.zeros((), dtype=FLOAT64), "it", of=network)
    x = torch.zeros(1, 16, dtype=FLOAT64)
    with pytest.raises(UnsupportedError, match="max_pool2d"):
        propagate(graph, x, x[:, 0], first_norms(graph, x))


@pytest.mark.parametrize("fold", [lambda h: h.view(-1, 4, 1).transpose(0, 1), lambda h: h.reshape(-1, 2)])
def test_an_encoder_that_folds_items_or_turns_them_is_refused_in_one_sentence(fold: Any) -> None:
    def mean(x: Tensor) -> Tensor:
        h = torch.relu(fold(torch.relu(x + 5)) - 5.01)
        return (h.transpose(0, 1) if h.dim() == 3 else h).reshape(-1, 4).sum(1, keepdim=True)

    graph = encoder_of(mean, lambda x: 0 * x[:, :1], 4)
    with pytest.raises(UnsupportedError, match="no local certificate: 'relu' acts where items are folded"):
        local_margin(graph, torch.zeros(4, 4, dtype=torch.float64), torch.full((4,), 0.999, dtype=torch.float64))


def test_numbers_too_large_for_bounds_certify_nothing_beyond_the_truth() -> None:
    def mean(x: Tensor) -> Tensor:
        h = torch.relu(x)
        for _ in range(3):
            h = torch.relu(h * 1e120 - 0.5e120)
        return h

    graph = encoder_of(mean, lambda x: 0 * x, 1)
    one = torch.tensor([[0.1]], dtype=torch.float64), torch.tensor([0.999], dtype=torch.float64)
    assert float(local_margin(graph, *one).radius) <= 0.4001


def test_a_softplus_turned_around_is_refused() -> None:
    graph = encoder_of(lambda x: F.softplus(3 * x, beta=-2.0), lambda x: 0 * x, 1)
    with pytest.raises(UnsupportedError, match="softplus"):
        local_margin(graph, torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0.999], dtype=torch.float64))


def test_an_encoder_that_does_not_depend_on_its_input_is_never_moved() -> None:
    graph = encoder_of(lambda x: F.relu(x) * 0, lambda x: 0 * x, 2)
    omega, moves = displacement(ball(graph, torch.ones(1, 2, dtype=FLOAT64), 5.0))
    assert omega.item() == 0 and moves.tolist() == [[0, 0]]


# Sectors and ellipsoids.


def item_of(sectors: Sectors, x: Tensor) -> Item:
    """The item whose outputs are the whitened mean and the log of the standard deviation."""

    def outputs(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([sectors.stages.outputs[0] / values[1].exp().T, sectors.stages.outputs[1]])

    return Item(sectors.graph, sectors.stages, x, outputs)


def bounds(item: Item, latents: int, rho: float, improvements: int) -> tuple[float, Tensor]:
    """omega and the moves of log sigma, after the multipliers were improved so often for omega."""
    for _ in range(improvements):
        ellipsoid = Ellipsoid(item, rho)
        block = ellipsoid.block.requires_grad_()
        (gradient,) = torch.autograd.grad(torch.linalg.eigvalsh(block[:latents, :latents])[-1].log(), block)
        ellipsoid.improve(gradient)
    block = Ellipsoid(item, rho).block
    omega = rho * torch.linalg.eigvalsh(block[:latents, :latents])[-1].sqrt()
    return float(omega), rho * block.diagonal()[latents:].sqrt()


@pytest.mark.parametrize("name", [*NETWORKS, "others"])
def test_an_activation_stays_in_its_sector(name: str) -> None:
    if name == "others":
        layers = (layer for activation in OTHERS for layer in (nn.Linear(6, 6), activation))
        graph, inputs = heads(weighted(nn.Sequential(*layers)), 6), 6
    else:
        graph, inputs = traced(*NETWORKS[name]), NETWORKS[name][1]
    bends = item_of(Sectors(graph, random(1, inputs)), random(1, inputs, seed=5)).bends
    assert len(bends) >= (2 if name != "others" else len(OTHERS))
    for bend in bends:
        z = torch.linspace(-4, 4, 41, dtype=FLOAT64).view(-1, *(1,) * (bend.at.dim() - 1)) + 0 * bend.at
        for below, above in ((0.1, 0.1), (1.3, 0.4), (5.0, 5.0)):
            reach = torch.full_like(z, below), torch.full_like(z, above)
            slope, share = (
                side.repeat(60, *(1,) * (z.dim() - 1))
                for side in sector(bend.shape, z, derivative_of(bend.activation, z), *reach)
            )
            at = z.repeat(60, *(1,) * (z.dim() - 1))
            part = torch.linspace(0, 1, 60, dtype=FLOAT64).repeat_interleave(len(z)).view(-1, *(1,) * (z.dim() - 1))
            u = part * (below + above) - below
            off = bend.activation(at + u) - bend.activation(at) - slope * u
            assert bool((off.abs() <= share * u.abs() + 1e-14 * (1 + at.abs())).all()), bend.activation


def test_the_sector_of_relu_is_what_it_can_bend_within_its_reach() -> None:
    graph = encoder_of(torch.relu, lambda x: 0 * x, 1)
    (bend,) = item_of(Sectors(graph, torch.zeros(1, 1)), torch.zeros(1, 1)).bends
    z, far = torch.tensor([-0.5, 0.5, -0.5], dtype=FLOAT64), torch.tensor([1.0, 1.0, 0.4], dtype=FLOAT64)
    slope, share = sector(bend.shape, z, derivative_of(bend.activation, z), far, far)
    torch.testing.assert_close(slope, torch.tensor([0.25, 0.75, 0.0], dtype=FLOAT64))
    torch.testing.assert_close(share, torch.tensor([0.25, 0.25, 0.0], dtype=FLOAT64))


def test_a_sector_holds_exactly_where_its_reach_is_less_than_the_digits_of_the_input() -> None:
    graph = encoder_of(F.relu6, lambda x: 0 * x, 1)
    (bend,) = item_of(Sectors(graph, torch.zeros(1, 1)), torch.zeros(1, 1)).bends
    z = torch.full((40,), 6 - 2.0**-44, dtype=FLOAT64)
    far = (1.01 + 0.1 * torch.arange(40, dtype=FLOAT64)) * 2.0**-44
    derivative = derivative_of(bend.activation, z)
    for at, reach, slope, share in zip(z, far, *sector(bend.shape, z, derivative, far, far), strict=True):
        at, u, slope, share = (Fraction(float(value)) for value in (at, reach, slope, share))
        for way in (u, -u, 6 - at):
            assert abs(min(at + way, 6) - at - slope * way) <= share * abs(way)


def test_certificates_hold_where_gradients_are_switched_off() -> None:
    graph, x = traced(lambda: nn.Linear(6, 6), 6), random(2, 6)
    p_low = torch.full((2,), 0.9, dtype=FLOAT64)
    with torch.no_grad():
        off = local_margin(graph, x, p_low).radius, Sectors(graph, x[:1]).margin(x, p_low, 0.5, "frozen")
    on = local_margin(graph, x, p_low).radius, Sectors(graph, x[:1]).margin(x, p_low, 0.5, "frozen")
    assert all(map(torch.equal, off, on)) and bool((off[0] > 0).all())


def test_neurons_that_never_move_keep_no_certificate_from_the_others() -> None:
    weights = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=FLOAT64)
    graph = encoder_of(lambda x: torch.tanh(torch.tanh(x @ weights) @ weights)[:, :1], lambda x: 0 * x[:, :1], 2)
    x, p_low = torch.full((1, 2), 0.1, dtype=FLOAT64), torch.tensor([0.7], dtype=FLOAT64)
    assert Sectors(graph, x).margin(x, p_low, 0.5, "frozen").item() > 0.35


def test_a_single_neuron_is_bounded_exactly_once_its_multiplier_is() -> None:
    sectors = Sectors(encoder_of(torch.relu, lambda x: 0 * x, 1), torch.zeros(1, 1))
    omega, _ = bounds(item_of(sectors, torch.full((1, 1), -0.5)), 1, 1.0, 60)
    assert 0.5 <= omega <= 0.5005  # relu(-0.5 + 1)


CASES = 3  # weights of each network; benchmarks.soundness has thousands


@pytest.mark.parametrize("name", NETWORKS)
def test_no_displacement_found_exceeds_the_ellipsoids_and_better_multipliers_narrow_them(name: str) -> None:
    build, inputs = NETWORKS[name]
    narrowed = []
    with lent(build, inputs) as graph:
        for case in range(CASES):
            for place, weights in enumerate(graph.module.parameters()):
                noise = random(*weights.shape, seed=100 * case + place)
                weights.copy_(noise * (1.2 / math.sqrt(weights[0].numel()) if weights.ndim > 1 else 0.4))
            x, rho = random(1, inputs, seed=case), (0.3, 1.0, 0.03, 0.1)[case % 4]
            item = item_of(Sectors(graph, x), x)
            begun, better = (bounds(item, 3, rho, improvements) for improvements in (0, 4))
            narrowed.append(better[0] / begun[0])
            stddev, latent = graph.module(x)[1].exp(), case % 3
            shift, moved = worst(
                graph,
                x,
                rho,
                lambda v, _, s=stddev: (v / s).norm(dim=-1),
                lambda _, u, at=latent: u[..., at].abs(),
            )
            assert shift.item() <= better[0]
            assert moved.item() <= min(begun[1][latent].item(), better[1][latent].item())
    assert sorted(narrowed)[CASES // 2] <= 1  # one step may overshoot


def padded(graph: Graph) -> Sectors:
    """The sectors of a network of 6 inputs that takes 20, of which it ignores the others."""
    wide = trace(lambda x: graph.module(x[:, :6]), (20,), torch.zeros((), dtype=FLOAT64), "it", of=graph.module)
    return Sectors(wide, torch.zeros(1, 20, dtype=FLOAT64))


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_a_first_layer_wider_than_the_input_is_bounded_as_one_that_is_not(name: str) -> None:
    graph, x = traced(*NETWORKS[name]), random(1, 6, seed=7)
    narrow, wide = Sectors(graph, x), padded(graph)
    one, other = item_of(narrow, x), item_of(wide, F.pad(x, (0, 14)))
    assert narrow.stages.inputs < narrow.stages.chain[0].matrix.shape[0] < wide.stages.inputs
    for improvements in (0, 3):
        for found in zip(bounds(one, 3, 0.5, improvements), bounds(other, 3, 0.5, improvements), strict=True):
            torch.testing.assert_close(*map(torch.as_tensor, found), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_attack_inside_the_sectors_margin_uses_up_the_gap(name: str) -> None:
    build, inputs = NETWORKS[name]
    graph, x = traced(build, inputs), random(1, inputs, seed=8)
    p_low = torch.tensor([0.98], dtype=FLOAT64)
    radius, stddev = Sectors(graph, x).margin(x, p_low, 0.5, "frozen").item(), graph.module(x)[1].exp()
    assert radius > 0
    shift = worst(graph, x, radius, lambda v, _: (v / stddev).norm(dim=-1))
    assert shift.item() < torch.special.ndtri(p_low).item()


@pytest.mark.parametrize("seed", range(3))
def test_no_certificate_reaches_a_counterexample_that_is_hidden_in_the_network(seed: int) -> None:
    # One neuron wakes shortly before the planted d, in whose direction alone it looks, and takes the mean just too far.
    network, x = weighted(mlp(nn.ReLU()), seed=seed), random(1, 6, seed=seed)
    planted = F.normalize(random(1, 6, seed=50 + seed)) * (0.05, 0.2, 1.0)[seed % 3]
    gap = torch.special.ndtri(torch.tensor(0.98, dtype=FLOAT64))
    direction = planted[0] / planted.norm()
    wakes = (x[0] + 0.9 * planted[0]) @ direction
    beyond = (2 * gap + network(x + planted).norm()) / (0.1 * planted.norm())

    def mean(rows: Tensor) -> Tensor:
        spike = F.relu((rows * direction).sum(1, keepdim=True) - wakes) * beyond
        return 0.01 * network(rows) + F.pad(spike, (0, 5))

    graph = trace(lambda x: (mean(x), 0 * x), (6,), torch.zeros((), dtype=FLOAT64), "it", of=network)
    assert (mean(x + planted) - mean(x)).norm() > gap
    p_low = torch.tensor([0.98], dtype=FLOAT64)
    radius = Sectors(graph, x).margin(x, p_low, 0.5, "frozen")
    assert 0 < radius.item() < planted.norm().item()
    assert local_margin(graph, x, p_low, verified=radius).radius.item() < planted.norm().item()


def test_sectors_certify_more_of_a_network_that_bends_than_linear_bounds_do() -> None:
    graph, x = traced(*NETWORKS["relu"]), random(4, 6, seed=7)
    p_low = torch.full((4,), 0.98, dtype=FLOAT64)
    for sigma in ("frozen", "full"):
        by_sectors = Sectors(graph, x[:1]).margin(x, p_low, 0.5, sigma)
        by_lines = local_margin(graph, x, p_low, sigma=sigma)
        assert by_sectors.median() > by_lines.radius.median()
        # Asked what another has verified, linear bounds tell what they reach beyond it, and nothing else.
        beyond = local_margin(graph, x, p_low, sigma=sigma, verified=by_sectors).propagated
        assert bool(((beyond == 0) | (beyond > by_sectors)).all())
        assert bool((beyond[by_lines.propagated > 1.05 * by_sectors] > 0).all())


# Wide first layers and large maps.


@pytest.mark.parametrize("groups", [1, 2])
def test_a_map_read_off_many_rows_at_once_is_that_read_off_one_by_one(groups: int) -> None:
    conv = weighted(nn.Conv2d(2, 6, 2, stride=2, padding=1, dilation=2, groups=groups))
    after = weighted(nn.Sequential(nn.BatchNorm2d(6), nn.AvgPool2d(2)))
    leaf, more = (random(1, 2, 24, 16, seed=seed).requires_grad_() for seed in range(2))
    value = after(conv(leaf) - 2 * conv(more.flip(-1)))
    found, each = rows(value, (leaf, more), math.inf), torch.eye(value.numel(), dtype=FLOAT64)
    parts = pulled_back(value, (leaf, more), each.view(-1, *value.shape))
    expected = torch.cat([part.flatten(1) for part in parts], dim=1)
    assert found is not None and rows(value, (leaf, more), value.numel() * expected.shape[1] // 2) is not None
    torch.testing.assert_close(torch.from_numpy(found.toarray()), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(row_norms(conv(leaf), leaf), expected_norms(conv(leaf), leaf))


def expected_norms(value: Tensor, leaf: Tensor) -> Tensor:
    each = torch.eye(value.numel(), dtype=FLOAT64).view(-1, *value.shape)
    return pulled_back(value, (leaf,), each)[0].flatten(1).norm(dim=1)


@pytest.mark.parametrize("boxed", [False, True])
def test_a_wide_first_layer_is_followed_only_where_it_matters(boxed: bool) -> None:
    def build() -> nn.Module:
        pixels = nn.Unflatten(1, (1, 8, 8))
        convolutions = nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 2, 2, 2), nn.ReLU()
        return nn.Sequential(pixels, *convolutions, nn.Flatten(), nn.Linear(8, 6))

    graph, x = traced(build, 64), random(1, 64, seed=9).clamp(0, 1)
    sectors, rho = Sectors(graph, x), 0.05
    item = item_of(sectors, x)
    box = (torch.zeros((1, 64), dtype=FLOAT64), torch.ones((1, 64), dtype=FLOAT64)) if boxed else None
    if box is not None:
        item.enter(Room.of(x, box))
    first, second = Ellipsoid(item, rho).layers
    assert first.screen is not None and not bool(first.screen.matters.all())
    assert len(second.rows) < len(second.reach) and set(second.alive.tolist()) <= set(second.rows.tolist())
    d = F.normalize(random(400, 64, seed=5)) * rho
    d = d if box is None else (x + d).clamp(0, 1) - x
    given = d @ torch.from_numpy(sectors.stages.chain[0].matrix.toarray()).T
    at = item.bends[0].at.flatten()
    moved = (F.relu(at + given) - F.relu(at)) @ torch.from_numpy(sectors.stages.chain[1].matrix.toarray()).T
    assert bool((moved.abs() <= second.reach).all())


def test_to_follow_less_of_a_first_layer_bounds_the_rest_no_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    # Most pooled neurons are shown to move far less than ellipsoids alone tell.
    def build() -> nn.Module:
        convolutions = nn.Conv2d(1, 6, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 2, 3, 1, 1), nn.ReLU()
        return nn.Sequential(nn.Unflatten(1, (1, 6, 6)), *convolutions, nn.Flatten(), nn.Linear(18, 6))

    graph, found = traced(build, 36), []
    sectors = Sectors(graph, random(1, 36))
    for screen in (screened, lambda *_: None):
        monkeypatch.setattr("vaeaudit.certify.ellipsoids.screened", screen)
        items = (item_of(sectors, random(1, 36, seed=seed).clamp(0, 1)) for seed in range(3))
        found.append(torch.tensor([bounds(item, 3, rho, 0)[0] for item in items for rho in (0.003, 0.02)]))
    assert bool((found[0] <= 1.01 * found[1]).all())


# Within a box.


def test_how_far_a_function_moves_within_ball_and_box_is_the_maximum_that_water_filling_finds() -> None:
    a, x = random(30, 12), torch.rand(1, 12, generator=torch.Generator().manual_seed(1), dtype=FLOAT64)
    x[:, :5], x[:, 5:7] = 0, 1
    a[0], a[1, :11], a[2] = 0, 0, -1
    room = Room.of(x, (torch.zeros(1, 12), torch.ones(1, 12)))
    for rho in (1e-3, 0.4, 2.0, 50.0, 1e200):  # whose square overflows at last
        for side, found in zip((-1, 1), room.farthest(sparse.csr_matrix(a.numpy()), rho), strict=True):
            signed = side * a
            cap = torch.where(signed > 0, room.up, room.down)
            low, high = torch.full((30, 1), 1e-9, dtype=FLOAT64), torch.full((30, 1), 1e9, dtype=FLOAT64)
            for _ in range(200):
                middle = (low * high).sqrt()
                out = torch.minimum(signed.abs() * middle, cap).norm(dim=1, keepdim=True) > rho
                low, high = torch.where(out, low, middle), torch.where(out, middle, high)
            exact = (signed.abs() * torch.minimum(signed.abs() * low, cap)).sum(1)
            assert bool((found >= exact * (1 - 1e-12)).all())
            assert bool((found <= 1.05 * exact + 1e-9).all())
    inward = (random(1, 5, seed=3).clamp(min=0), torch.zeros(1, 7, dtype=FLOAT64))
    only = room.farthest(sparse.csr_matrix(torch.cat(inward, dim=1).numpy()), 0.01)
    assert only[0].item() == 0 and only[1].item() == pytest.approx(0.01 * inward[0].norm().item())
    huge = sparse.csr_matrix(torch.cat((1e200 * torch.ones(2, 6), torch.zeros(2, 6)), dim=1).double().numpy())
    for side, rho in ((1, 0.01), (0, 2.0)):  # whose squares overflow
        assert bool((room.farthest(huge, rho)[side] >= 1e200 * min(rho, 1.0)).all())


def test_pairs_bound_a_linear_map_on_the_orthant_as_well_as_can_be() -> None:
    J, room = random(1, 40), Room.of(torch.zeros(1, 40), (torch.zeros(1, 40), torch.ones(1, 40)))
    rest = J[:, room.inward == 0]
    N = room.pairs(J, rest)
    assert N is not None and bool((N >= 0).all()) and torch.equal(N, N.T)
    bound = (J @ torch.linalg.solve(torch.eye(40, dtype=FLOAT64) - N, J.T)).sqrt().item()
    exact = max(J.clamp(min=0).norm().item(), J.clamp(max=0).norm().item())
    assert exact <= bound <= 1.01 * exact < 0.9 * J.norm().item()
    assert Room.of(torch.full((1, 40), 0.5), (torch.zeros(1, 40), torch.ones(1, 40))).pairs(J, J) is None
    tiny = room.pairs(1e-30 * J, 1e-30 * rest)
    assert tiny is not None
    torch.testing.assert_close(tiny, N, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "sigma"), [("relu", "full"), ("tanh", "frozen"), ("convolutional", "frozen"), ("residual", "full")]
)
def test_no_attack_within_ball_and_box_uses_up_the_gap_nor_does_the_box_cost_any_margin(name: str, sigma: Any) -> None:
    build, inputs = NETWORKS[name]
    graph, x = traced(build, inputs), random(2, inputs, seed=8).clamp(min=0)
    box = torch.zeros((1, inputs), dtype=FLOAT64), torch.full((1, inputs), 5.0, dtype=FLOAT64)
    p_low, spent = torch.full((2,), 0.98, dtype=FLOAT64), []
    free, boxed = Sectors(graph, x[:1]).margins(x, p_low, 0.5, sigma, box)
    assert bool((boxed >= free).all()) and bool((boxed > 1.01 * free).any())
    for item in range(2):
        here, rho = x[item : item + 1], boxed[item].item()
        mean, log_stddev = graph.module(here)
        d = F.normalize(random(80, inputs), dim=1) * rho
        for _ in range(15):
            d = (here + d).clamp(*box) - here
            d = (d * (rho / d.norm(dim=1, keepdim=True)).clamp(max=1)).detach().requires_grad_()
            moved, spread = graph.module(here + d)
            away, log_ratio = (moved - mean) / log_stddev.exp(), (spread - log_stddev).abs()
            farthest = int(away.norm(dim=1).argmax())
            lost = away[farthest].norm(), None if sigma == "frozen" else log_ratio[farthest]
            used, held = excess(p_low[:1], 0.5, *lost)
            assert bool(held)
            spent.append(used.exp().item())
            (ascent,) = torch.autograd.grad(away.norm(dim=1).sum(), d)
            d = d.detach() + 0.2 * rho * F.normalize(ascent, dim=1)
    assert max(spent) > 0.1


def free_and_boxed(go_on: Callable[[], bool] = lambda: True) -> tuple[Tensor, Tensor]:
    """The radii of an item of a residual network, (1,) each, of which the second is kept in a box."""
    graph, x = traced(*NETWORKS["residual"]), random(4, 6, seed=8).clamp(min=0)[2:3]
    box = torch.zeros((1, 6), dtype=FLOAT64), torch.full((1, 6), 5.0, dtype=FLOAT64)
    return Sectors(graph, x).margins(x, torch.full((1,), 0.98, dtype=FLOAT64), 0.5, "frozen", box, go_on)


def test_a_box_tells_from_the_first_ball_on_and_a_search_ends_once_it_gains_and_misses_little() -> None:
    balls = []

    def go_on() -> bool:
        balls.append(1)
        return True

    free, boxed = free_and_boxed(go_on)
    assert boxed.item() > 1.01 * free.item() and len(balls) <= 16


def test_radii_looked_for_in_float32_are_verified_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    balls = set()

    class Seen(Ellipsoid):
        def __init__(self, item: Item, rho: float) -> None:
            super().__init__(item, rho)
            balls.add((rho, self.block.dtype, item.dtype))

    usual = free_and_boxed()
    monkeypatch.setattr("vaeaudit.certify.sectors._CHEAP", 0)
    monkeypatch.setattr("vaeaudit.certify.sectors.Ellipsoid", Seen)
    found = free_and_boxed()
    assert {(radius.item(), FLOAT64, FLOAT64) for radius in found} <= balls
    assert any(dtype is torch.float32 for *_, dtype in balls)
    assert all(0.95 * before < radius for radius, before in zip(found, usual, strict=True))


def test_products_of_a_narrow_first_layer_under_weights_of_pairs_are_at_least_those_of_dense_matrices() -> None:
    network = weighted(nn.Sequential(nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 6)))
    x = random(1, 12).clamp(min=0)  # some at a bound
    with torch.no_grad():
        network[0].weight[1:, 10:] = 0  # two inputs of the first neuron alone
        network[0].bias[0] = -100  # which is off
        network[0].weight[3:, x[0] == 0] = 0  # neurons of unpaired inputs alone, where nothing but rounding is amiss
    sectors = Sectors(heads(network, 12), x)
    item = item_of(sectors, x)
    item.enter(Room.of(x, (torch.zeros_like(x), torch.full_like(x, 5))))
    assert item.pairs is not None and item.pairs.any() and item.gram is not None
    assert item.paired.tolist() == (x[0, :10] == 0).nonzero()[:, 0].tolist()
    N = torch.zeros(12, 12, dtype=FLOAT64)
    N[item.paired[:, None], item.paired] = item.pairs
    T = torch.from_numpy(sectors.stages.chain[0].matrix.toarray())
    above = torch.linalg.eigvalsh(item.gram - T @ torch.linalg.inv(torch.eye(12, dtype=FLOAT64) - N) @ T.T)
    assert above.min() >= 0
    weights, kept = T[3:].tolist(), item.gram[3:, 3:].tolist()

    def exactly(row: list[float], other: list[float]) -> Fraction:
        return sum((Fraction(a) * Fraction(b) for a, b in zip(row, other, strict=True)), Fraction())

    off = [[float(Fraction(kept[i][j]) - exactly(weights[i], weights[j])) for j in range(2)] for i in range(2)]
    assert torch.linalg.eigvalsh(torch.tensor(off, dtype=FLOAT64)).min() > 0
    assert above.max() <= 1e-8 * torch.linalg.matrix_norm(item.gram, 2)
    assert torch.equal(item.gram, item.gram.T)


def test_what_a_search_in_float32_promises_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lying(Ellipsoid):
        def __init__(self, item: Item, rho: float) -> None:
            super().__init__(item, rho)
            if item.dtype == torch.float32:
                self.block *= 0.25

    usual = free_and_boxed()
    monkeypatch.setattr("vaeaudit.certify.sectors._CHEAP", 0)
    monkeypatch.setattr("vaeaudit.certify.sectors.Ellipsoid", Lying)
    found = free_and_boxed()
    assert all(0 < radius < 1.05 * right for radius, right in zip(found, usual, strict=True))


def test_a_search_whose_time_is_up_verifies_no_second_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    verified = []

    class Lying(Ellipsoid):
        def __init__(self, item: Item, rho: float) -> None:
            super().__init__(item, rho)
            if item.dtype == torch.float32:
                self.block *= 0.05
            else:
                verified.append(rho)

    monkeypatch.setattr("vaeaudit.certify.sectors._CHEAP", 0)
    monkeypatch.setattr("vaeaudit.certify.sectors.Ellipsoid", Lying)
    free, boxed = free_and_boxed(lambda: not verified)
    assert free.item() == boxed.item() == 0 and len(verified) == 1


def test_what_has_no_sectors_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaeaudit.certify.stages._MOST", 10)
    with pytest.raises(UnsupportedError, match="no sector certificate: a map to the 12 inputs of 'relu' from 6 values"):
        Sectors(traced(*NETWORKS["relu"]), random(1, 6))


def test_where_the_jacobian_or_the_level_says_nothing_no_radius_is_tried() -> None:
    dead = encoder_of(lambda x: F.relu(x - 5), lambda x: 0 * x, 1)
    x, p_low = torch.zeros(1, 1, dtype=FLOAT64), torch.tensor([0.98], dtype=FLOAT64)
    assert Sectors(dead, x).margin(x, p_low, 0.5, "frozen").item() == 0
    alive = Sectors(encoder_of(lambda x: 3 * x, lambda x: 0 * x, 1), x)
    assert alive.margin(x, p_low, 0.99, "frozen").item() == 0
    assert alive.margin(x, p_low, 0.5, "frozen", go_on=lambda: False).item() == 0
    exact = torch.special.ndtri(p_low).item() / 3
    assert 0.97 * exact <= alive.margin(x, p_low, 0.5, "frozen").item() <= exact
