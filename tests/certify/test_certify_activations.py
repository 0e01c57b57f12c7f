"""What is claimed of each activation: slopes, curvatures and lines, against the function itself on dense grids."""

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaeaudit.certify.activations import ACTIVATIONS, Kinked, Smooth, options_of, shape_of
from vaeaudit.certify.graph import Graph, Kind, trace
from vaeaudit.certify.lines import lines
from vaeaudit.certify.lipschitz import LipschitzBounds
from vaeaudit.certify.rewriting import name_of

DOUBLE = torch.zeros((), dtype=torch.float64)


def prelu(*slopes: float) -> nn.Module:
    layer = nn.PReLU(len(slopes)).double().requires_grad_(False)
    layer.weight.data.copy_(torch.tensor(slopes))
    return layer


# By the operation that each is traced as.
EVERY: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "relu": [nn.ReLU(), F.relu, torch.relu, lambda x: F.relu_(x * 1)],
    "relu6": [F.relu6],
    "leaky_relu": [nn.LeakyReLU(0.3), nn.LeakyReLU(1.7), nn.LeakyReLU(-0.4), lambda x: F.leaky_relu(x, 0.1)],
    "prelu": [prelu(0.25), prelu(-0.6), prelu(0.1, 2.5, -1.5)],
    "abs": [torch.abs, lambda x: x.abs()],
    "hardtanh": [nn.Hardtanh(-0.4, 0.7), nn.ReLU6()],
    "clamp": [lambda x: x.clamp(-0.5, 2), lambda x: torch.clamp(x, min=0.1), lambda x: x.clamp(max=0.3)],
    "clamp_min": [lambda x: torch.clamp_min(x, -1.0)],
    "clamp_max": [lambda x: x.clamp_max(1.0)],
    "tanh": [nn.Tanh()],
    "sigmoid": [nn.Sigmoid()],
    "log_sigmoid": [nn.LogSigmoid()],
    "softplus": [nn.Softplus(), nn.Softplus(3.0), nn.Softplus(0.5, 25)],
    "gelu": [nn.GELU(), nn.GELU("tanh")],
    "silu": [nn.SiLU(), lambda x: x * torch.sigmoid(x), lambda x: x.sigmoid().mul(x)],
    "mish": [nn.Mish()],
    "softsign": [nn.Softsign(), lambda x: x / (x.abs() + 1)],
    "hardswish": [nn.Hardswish()],
    "elu": [nn.ELU(), nn.ELU(0.4), nn.ELU(2.5), nn.ELU(-0.7), nn.CELU(), nn.CELU(0.3), nn.CELU(4.0)],
    "selu": [nn.SELU()],
}
CASES = [(name, number) for name, functions in EVERY.items() for number in range(len(functions))]


def traced(function: Callable[[Tensor], Tensor], elements: int = 3) -> Graph:
    of = function if isinstance(function, nn.Module) else None
    return trace(lambda x: (function(x),), (elements,), DOUBLE, "it", of=of)


@cache
def case(name: str, number: int) -> tuple[Graph, Kinked | Smooth]:
    """The graph of one of :data:`EVERY`, and what is claimed of its activation."""
    graph = traced(EVERY[name][number])
    (node,) = graph.of(Kind.ACTIVATION)
    assert name_of(node) == name
    options = {
        key: graph.module.get_parameter(str(value.target)) if getattr(value, "op", "") == "get_attr" else value
        for key, value in options_of(node).items()
    }
    found = shape_of(name, options)
    assert found is not None
    return graph, found


def operation(graph: Graph) -> Callable[[Tensor], Tensor]:
    """What the graph computes: in it some are put as what they are made of."""
    return lambda x: graph.module(x)[0]


def slopes(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    at = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(at).sum(), at)
    return slope


def grid(low: float, high: float, step: float) -> Tensor:
    """(points, 3)."""
    return torch.linspace(low, high, round((high - low) / step) + 1, dtype=torch.float64).unsqueeze(1).expand(-1, 3)


def test_every_activation_is_here() -> None:
    assert set(EVERY) == ACTIVATIONS


@pytest.mark.parametrize(("name", "number"), CASES)
def test_no_slope_exceeds_the_lipschitz_constant_which_is_nearly_met(name: str, number: int) -> None:
    function = EVERY[name][number]
    graph, found = case(name, number)
    stated = found.steepest
    x = torch.cat([grid(-60, 60, 2e-2), grid(-4, 4, 1e-3)])
    steepest = float(slopes(function, x).abs().max())
    secant = float((function(x).diff(dim=0) / x.diff(dim=0)).abs().max())
    assert max(steepest, secant - 1e-6) <= stated <= 1.01 * steepest  # softplus has a step of 2e-9
    assert float(LipschitzBounds(graph).of_output(0)) == pytest.approx(stated, rel=1e-8)


@pytest.mark.parametrize(("name", "number"), CASES)
def test_torch_differentiates_it_in_double_precision_or_no_tangent_is_one(name: str, number: int) -> None:
    graph, found = case(name, number)
    kinks = found.kinks if isinstance(found, Kinked) else [place for place, _ in found.jumps]
    x, step = grid(-8.0003, 8, 0.0173), 1e-4
    away = torch.ones(len(x), dtype=torch.bool)
    for kink in kinks:
        away &= (x[:, 0] - kink).abs() > 2 * step
    run = operation(graph)
    by_differences = (8 * (run(x + step) - run(x - step)) - run(x + 2 * step) + run(x - 2 * step)) / (12 * step)
    assert float((slopes(run, x) - by_differences)[away].abs().max()) < 1e-10


@pytest.mark.parametrize(("name", "number"), CASES)
def test_the_derivative_lies_in_its_range_and_changes_no_faster_than_stated(name: str, number: int) -> None:
    graph, found = case(name, number)
    x = grid(-30, 30, 1e-3)
    function = operation(graph)
    slope = slopes(function, x)
    if isinstance(found, Kinked):
        # Between kinks the slope is that of the piece.
        places = torch.tensor([-math.inf, *found.kinks, math.inf], dtype=torch.float64)
        for place, piece in enumerate(found.pieces):
            inside = (x[:, 0] > places[place] + 1e-9) & (x[:, 0] < places[place + 1] - 1e-9)
            assert bool(inside.any())
            torch.testing.assert_close(slope[inside], torch.as_tensor(piece).double().expand_as(slope[inside]))
        return
    assert found.least <= float(slope.min())
    assert float(slope.max()) <= found.most
    assert found.least >= float(slope.min()) - 0.01
    apart = x.diff(dim=0)
    change = slope.diff(dim=0).abs() - sum(size * ((x[:-1] <= place) & (place <= x[1:])) for place, size in found.jumps)
    fastest = float((change / apart).max())
    assert 0.97 * found.curvature <= fastest <= found.curvature * (1 + 1e-6) + 1e-7
    for place, size in found.jumps:
        sides = slopes(function, torch.tensor([[place - 1e-9], [place + 1e-9]], dtype=torch.float64).expand(-1, 3))
        assert float((sides[1] - sides[0]).abs().max()) == pytest.approx(size, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(("name", "number"), CASES)
def test_both_lines_hold_on_the_whole_interval(name: str, number: int) -> None:
    function = EVERY[name][number]
    graph, found = case(name, number)
    generator = torch.Generator().manual_seed(1)
    count = 1000
    y = 4 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    if isinstance(found, Kinked) or found.jumps:  # on and beside kinks too
        kinks = found.kinks if isinstance(found, Kinked) else [place for place, _ in found.jumps]
        y[:400] = torch.tensor(kinks).double()[torch.randint(len(kinks), (400, 1), generator=generator)]
        y[200:400] += 1e-6 * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    below, above = (10 ** (torch.rand(count, 3, generator=generator, dtype=torch.float64) * 7 - 6) for _ in range(2))
    below[::7], above[1::7] = 0.0, 0.0
    run = operation(graph)
    value, low_slope, low_offset, high_slope, high_offset = lines(run, found, y, below, above)
    torch.testing.assert_close(value, function(y))
    for share in torch.linspace(0, 1, 101, dtype=torch.float64):
        t = y - below + share * (below + above)
        at, rounding = run(t), 2e-15 * (1 + y.abs() + below + above)
        assert bool((value + low_offset + low_slope * (t - y) <= at + rounding).all())
        assert bool((at - rounding <= value + high_offset + high_slope * (t - y)).all())


@pytest.mark.parametrize(("name", "number"), CASES)
def test_on_a_tiny_interval_the_lines_are_the_tangent(name: str, number: int) -> None:
    function = EVERY[name][number]
    graph, found = case(name, number)
    y = grid(-5.003, 4.999, 0.0173)
    far = torch.full_like(y, 1e-6)
    _, low_slope, low_offset, high_slope, high_offset = lines(operation(graph), found, y, far, far)
    for slope in (low_slope, high_slope):
        torch.testing.assert_close(slope, slopes(function, y), rtol=1e-6, atol=1e-9)
    assert float((high_offset - low_offset).abs().max()) < 1e-11


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: F.softplus(x, threshold=5), "softplus"),
        (lambda x: F.softplus(x, beta=-2.0), "softplus"),
    ],
)
def test_an_activation_turned_into_one_without_a_bound_is_refused_by_name(
    function: Callable[[Tensor], Tensor], name: str
) -> None:
    (node,) = traced(function).of(Kind.ACTIVATION)
    assert name_of(node) == name
    assert shape_of(name, options_of(node)) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.maximum(x, torch.tensor([0.3, -1.0, 0.0]).double()),
        lambda x: torch.minimum(torch.tensor(0.2).double(), x),
        lambda x: torch.clamp(x, torch.tensor([-0.1, 0.0, 2.0]).double(), torch.tensor([0.4, 3.0, 1.0]).double()),
        lambda x: x.clamp(max=torch.tensor(0.5).double()),
        lambda x: torch.max(x, torch.zeros(3).double()),
        lambda x: 6 * F.hardsigmoid(x),
    ],
)
def test_limits_given_as_tensors_are_limits(function: Callable[[Tensor], Tensor]) -> None:
    graph, x = traced(function), grid(-3, 3, 0.01)
    torch.testing.assert_close(graph.module(x)[0], function(x))
    assert float(LipschitzBounds(graph).of_output(0)) == pytest.approx(1, rel=1e-8)


def test_the_larger_of_two_branches_is_traced_as_what_it_is() -> None:
    def network(x: Tensor) -> Tensor:
        return torch.maximum(2 * x, 1 - x)

    graph, x = traced(network), grid(-3, 3, 0.01)
    torch.testing.assert_close(graph.module(x)[0], network(x))
    assert float(LipschitzBounds(graph).of_output(0)) >= 2
