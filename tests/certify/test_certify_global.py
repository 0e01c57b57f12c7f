"""Global certificates: no bound is ever below the exact norm, no margin ever above the exact radius."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, stats
from torch import Tensor, nn

from vaeaudit.certify.graph import Graph, trace, trace_decoder, trace_encoder
from vaeaudit.certify.lipschitz import LipschitzBounds
from vaeaudit.certify.norms import spectral_norm, symbol_norm
from vaeaudit.certify.theorem import global_margin, kept, pathwise_margin, scale_loss, scale_loss_of_norm
from vaeaudit.errors import InputError, UnsupportedError

DOUBLE = torch.zeros(1, dtype=torch.float64)


@cache
def traced(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Graph:
    of = function if isinstance(function, nn.Module) else None
    return trace(lambda x: (function(x).flatten(1),), shape, DOUBLE, "the network", of=of)


def bound(function: Callable[[Tensor], Tensor], shape: tuple[int, ...], scale: Tensor | None = None) -> Tensor:
    return LipschitzBounds(traced(function, shape)).of_output(0, scale)


def exact_norm(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> float:
    """Of an affine map: the dense matrix, column by column, and its largest singular value."""
    columns = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        matrix = (function(columns) - function(torch.zeros_like(columns[:1]))).flatten(1)
    return float(torch.linalg.svdvals(matrix)[0])


def network(*layers: nn.Module, seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    built = nn.Sequential(*layers).double().eval().requires_grad_(False)
    for name, value in [*built.named_parameters(), *built.named_buffers()]:
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(noise.abs() + 0.1 if "running_var" in name else noise)
    return built


def test_whole_numbers_among_the_parameters_stay_whole() -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.order = nn.Parameter(torch.tensor([2, 0]), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return 3 * torch.index_select(x, 1, self.order)

    assert float(bound(Chosen(), (3,))) == pytest.approx(3, rel=1e-6)


def test_what_cannot_be_traced_is_one_sentence_and_nothing_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    def branching(x: Tensor) -> Tensor:
        if bool((x < -5).any()):
            raise ValueError
        return x

    with pytest.raises(UnsupportedError, match=r"torch\.export cannot trace it"):
        bound(branching, (3,))
    with pytest.raises(UnsupportedError, match="a change of the dtype"):
        bound(lambda x: x.half().float(), (3,))
    assert capfd.readouterr().err == ""


def test_the_spectral_norm_is_never_below_the_true_one() -> None:
    for shape in ((3, 7), (7, 3), (1, 5)):
        matrices = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        true = torch.linalg.matrix_norm(matrices, ord=2)
        found = spectral_norm(matrices)
        assert bool((found >= true).all())
        torch.testing.assert_close(found, true, rtol=1e-8, atol=0)


@pytest.fixture
def no_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is small enough for a dense matrix, so that each operation's own bound shows."""
    monkeypatch.setattr("vaeaudit.certify.lipschitz._LARGEST_GRAM", 0)


def test_convolutions_of_the_oracle(oracle: dict[str, Any]) -> None:
    for case in oracle["lipschitz"]["convs"]:
        kernel = torch.tensor(case["kernel"], dtype=torch.float64)
        shape = (kernel.shape[1], case["H"], case["H"])

        def convolve(x: Tensor, kernel: Tensor = kernel, case: dict[str, Any] = case) -> Tensor:
            return F.conv2d(x, kernel, stride=case["stride"], padding=case["pad"])

        assert float(bound(convolve, shape)) == pytest.approx(case["exact"], rel=2e-9)
        assert float(bound(convolve, shape)) >= case["exact"] > case["power5_lower"]
        stride = [case["stride"]] * 2
        symbol = symbol_norm(kernel, shape[1:], stride, [1, 1])
        assert case["exact"] <= symbol <= case["fft_upper"] * (1 + 1e-8)
        if case["stride"] == 1:
            assert symbol == pytest.approx(case["fft_upper"], rel=2e-9)


def test_the_perceptron_of_the_oracle_with_its_scale_absorbed(oracle: dict[str, Any]) -> None:
    case = oracle["lipschitz"]["mlp"]
    W1, W2 = (torch.tensor(case[name], dtype=torch.float64) for name in ("W1", "W2"))
    scale = 1 / torch.tensor([case["sigma"], [1.0, 1.0, 1.0]], dtype=torch.float64)
    bounds = bound(lambda x: torch.relu(x @ W1.T) @ W2.T, (4,), scale)
    assert bounds.tolist() == pytest.approx([case["whitened_product"], case["product"]], rel=3e-9)
    assert bounds[0] >= case["whitened_product"] * (1 - 1e-14)


@pytest.mark.usefixtures("no_dense")
def test_a_small_map_on_which_the_circular_symbol_is_no_bound() -> None:
    # On the 2x2 torus left and right are the same pixel, and the symbol of K is zero everywhere.
    kernel = torch.tensor([[[[0.0, 0, 0], [1, 0, -1], [0, 0, 0]]]], dtype=torch.float64)
    assert 1 <= bound(lambda x: F.conv2d(x, kernel, padding=1), (1, 2, 2)) <= 2 * (1 + 1e-8)
    assert symbol_norm(kernel, [2, 2], [1, 1], [1, 1]) >= 1


@pytest.mark.usefixtures("no_dense")
@pytest.mark.parametrize("seed", range(16))
def test_no_bound_of_a_convolution_is_below_its_exact_norm(seed: int) -> None:
    draw = np.random.default_rng(seed)
    groups = int(draw.choice([1, 1, 2, 3]))
    ins, outs = (groups * int(n) for n in draw.integers(1, 4, 2))
    kernel, dilation = (tuple(int(n) for n in draw.integers(1, high, 2)) for high in (5, 4))
    stride = tuple(int(n) for n in draw.integers(1, 4, 2))
    padding = tuple(int(n) for n in draw.integers(0, 4, 2))
    # At least as large as the kernel reaches, so that there is an output at all.
    shape = (ins, *((k - 1) * d + int(n) for k, d, n in zip(kernel, dilation, draw.integers(1, 5, 2), strict=True)))
    if seed % 2:
        more = tuple(int(draw.integers(0, max(s, d))) for s, d in zip(stride, dilation, strict=True))
        small = tuple(min(p, (k - 1) * d // 2) for p, k, d in zip(padding, kernel, dilation, strict=True))
        layer: nn.Module = nn.ConvTranspose2d(ins, outs, kernel, stride, small, more, groups=groups, dilation=dilation)
    else:
        layer = nn.Conv2d(ins, outs, kernel, stride, padding, dilation, groups)
    layer = network(layer, seed=seed)
    exact = exact_norm(layer, shape)
    assert exact * (1 - 1e-13) <= float(bound(layer, shape)) <= 3 * exact + 1e-9


@pytest.mark.usefixtures("no_dense")
def test_convolutions_over_one_and_three_axes() -> None:
    for layer, shape in (
        (network(nn.Conv1d(2, 3, 3, 2, 1)), (2, 9)),
        (network(nn.ConvTranspose1d(2, 3, 3, 2, 1)), (2, 5)),
        (network(nn.Conv3d(1, 2, 2, padding=1)), (1, 3, 4, 2)),
        (network(nn.Conv2d(2, 2, 3, padding="same", dilation=2)), (2, 5, 5)),
        (network(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")), (2, 5, 5)),
        (network(nn.Conv2d(2, 2, 3, padding=2, padding_mode="reflect")), (2, 5, 5)),
    ):
        exact = exact_norm(layer, shape)
        assert exact * (1 - 1e-13) <= float(bound(layer, shape)) <= 4 * exact


AFFINE: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "batch norm": (network(nn.BatchNorm2d(3)), (3, 4, 4)),
    "convolution and batch norm": (network(nn.Conv2d(2, 6, 3, 2, 1, groups=2), nn.BatchNorm2d(6), seed=1), (2, 5, 6)),
    "transposed and batch norm": (
        network(nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2), nn.BatchNorm2d(6, affine=False), seed=2),
        (4, 3, 3),
    ),
    "average pool": (nn.AvgPool2d(2), (2, 6, 6)),
    "average pool that overlaps": (nn.AvgPool2d(3, 2, 1), (2, 7, 7)),
    "adaptive average pool": (nn.AdaptiveAvgPool2d(3), (1, 7, 5)),
    "upsampling": (nn.Upsample(scale_factor=2), (2, 3, 3)),
    "pixel shuffle": (nn.PixelShuffle(2), (4, 3, 3)),
    "linear": (network(nn.Linear(5, 7)), (5,)),
    "residual": (lambda x: x - 0.25 * (x @ torch.arange(16.0, dtype=torch.float64).reshape(4, 4)), (4,)),
    "concatenation": (lambda x: torch.cat([x, 3 * x[:, 1:], -x], 1), (4,)),
    "stack": (lambda x: torch.stack([x, 0.5 * x], 2), (4,)),
    "sum over channels": (lambda x: x.sum(1), (5, 2)),
    "mean removed": (lambda x: x - x.mean(1, keepdim=True), (5,)),
    "broadcast addition": (lambda x: x[:, :1] + x, (4,)),
    "division": (lambda x: x / torch.tensor([-0.5, 2.0, 4.0], dtype=torch.float64), (3,)),
    "parts": (lambda x: x.unflatten(1, (2, 3)).unbind(2)[1] * 0.5, (6,)),
    "chunks": (lambda x: x.chunk(2, 1)[0] - x.chunk(2, 1)[1], (6,)),
    "in place": (lambda x: x.mul(2).add_(x).mul_(3), (4,)),
}


@pytest.mark.parametrize("name", AFFINE)
def test_an_affine_map_has_its_exact_norm(name: str) -> None:
    function, shape = AFFINE[name]
    exact = exact_norm(function, shape)
    assert exact * (1 - 1e-13) <= float(bound(function, shape)) <= exact * (1 + 2e-9)


@pytest.mark.usefixtures("no_dense")
@pytest.mark.parametrize("name", AFFINE)
def test_operation_by_operation_the_norm_of_an_affine_map_is_still_bounded(name: str) -> None:
    function, shape = AFFINE[name]
    exact = exact_norm(function, shape)
    assert exact * (1 - 1e-13) <= float(bound(function, shape)) <= 4 * exact


@pytest.mark.usefixtures("no_dense")
def test_batch_norm_is_folded_into_the_convolution_before_it() -> None:
    layers, shape = AFFINE["convolution and batch norm"]
    assert isinstance(layers, nn.Sequential)
    apart = float(bound(layers[0], shape)) * float(bound(layers[1], (6, 3, 3)))
    assert float(bound(layers, shape)) < 0.9 * apart


ACTIVATIONS: dict[str, tuple[nn.Module, float]] = {
    "relu": (nn.ReLU(), 1),
    "relu in place": (nn.ReLU(inplace=True), 1),
    "leaky": (nn.LeakyReLU(-1.5), 1.5),
    "elu": (nn.ELU(2.0), 2),
    "tanh": (nn.Tanh(), 1),
    "sigmoid": (nn.Sigmoid(), 0.25),
    "softplus": (nn.Softplus(3), 1),
    "gelu": (nn.GELU(), 1.1291),
    "gelu by tanh": (nn.GELU("tanh"), 1.1291),
    "silu": (nn.SiLU(), 1.0999),
    "hardtanh": (nn.Hardtanh(-2, 0.5), 1),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_slope_of_an_activation_is_bounded_and_nearly_met(name: str) -> None:
    activation, most = ACTIVATIONS[name]
    x = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    y = activation(x.clone())
    steepest = float((y.diff() / x.diff()).abs().max())
    ours = float(bound(lambda x: activation(2 * x), (3,))) / 2
    assert ours == pytest.approx(most, rel=1e-8)
    assert 0.999 * ours <= steepest <= ours * (1 + 1e-9)


def test_max_pools_grow_with_their_overlap() -> None:
    for pool, most in (
        (nn.MaxPool2d(2), 1.0),
        (nn.MaxPool2d(3, 2, 1), 2.0),
        (nn.MaxPool2d((3, 2), (1, 2)), math.sqrt(3)),
        (nn.MaxPool2d(2, 2, dilation=2), 2.0),
    ):
        assert float(bound(pool, (1, 9, 9))) == pytest.approx(most)
        single = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
        reached = []
        for cell in range(81):
            single.zero_().view(-1)[cell] = 1
            reached.append(float(pool(single).norm()))
        assert max(reached) == pytest.approx(most)


class Block(nn.Module):
    """A small encoder with all that a residual network has."""

    def __init__(self) -> None:
        super().__init__()
        self.first = network(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.inner = network(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), seed=1)
        self.last = network(nn.Linear(2 * 4 * 9 + 36, 6), seed=2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h + self.inner(h)
        h = torch.cat([F.max_pool2d(h, 2), F.avg_pool2d(h, 2)], 1).flatten(1)
        shortcut = torch.tanh(x.flatten(1))
        return self.last(torch.cat([h, shortcut], 1)).chunk(2, 1)[0]


def test_a_residual_network_never_stretches_a_pair_of_points_by_more_than_its_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block, generator = Block().eval(), torch.Generator().manual_seed(3)
    scale = torch.rand(5, 3, generator=generator, dtype=torch.float64) + 0.1
    exact = bound(block, (1, 6, 6), scale)
    x = torch.randn(2000, 1, 6, 6, generator=generator, dtype=torch.float64)
    # Pairs far apart and pairs so close that they show the steepest Jacobian of many.
    for y in (x.flip(0), x + 1e-4 * torch.randn(x.shape, generator=generator, dtype=torch.float64)):
        moved = ((block(x) - block(y))[:, None] * scale).norm(dim=2) / (x - y).flatten(1).norm(dim=1)[:, None]
        assert (moved.amax(0) <= exact).all()
    monkeypatch.setattr("vaeaudit.certify.lipschitz._LARGEST_GRAM", 0)
    assert (bound(block, (1, 6, 6), scale) >= exact).all()


def test_residual_and_concatenation_of_branches() -> None:
    W = torch.tensor([[0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    # x + tanh(W x): 1 + ||W||; [x, tanh(W x)]: sqrt(1 + ||W||^2).
    assert float(bound(lambda x: x + torch.tanh(x @ W.T), (2,))) == pytest.approx(3, rel=1e-8)
    joined = float(bound(lambda x: torch.cat([x, torch.tanh(x @ W.T)], 1), (2,)))
    assert joined == pytest.approx(math.sqrt(5), rel=1e-8)


def test_what_has_no_bound_is_refused_by_name() -> None:
    def squared(x: Tensor) -> Tensor:
        return x * x

    def floored(x: Tensor) -> Tensor:
        return torch.div(x, 0.5, rounding_mode="floor")

    def overwritten(x: Tensor) -> Tensor:
        y = 2 * x
        y[:, 1:].relu_()
        return y

    for function, name in ((squared, "'mul'"), (floored, "'div'"), (overwritten, "'relu_'")):
        with pytest.raises(UnsupportedError, match=name):
            bound(function, (3,))
    with pytest.raises(UnsupportedError, match="'softplus'"):
        bound(nn.Softplus(1, threshold=1), (3,))
    with pytest.raises(UnsupportedError, match="'layer_norm'"):
        bound(nn.LayerNorm(3).double(), (3,))


def test_a_constant_output_has_the_constant_zero() -> None:
    graph = trace(lambda x: (x.flatten(1), torch.ones(1, 2, dtype=torch.float64)), (3,), DOUBLE, "the network")
    bounds = LipschitzBounds(graph)
    assert float(bounds.of_output(1)) == 0
    assert bounds.of_output(1, torch.ones(4, 2)).tolist() == [0] * 4


def test_a_half_space_is_certified_to_its_exact_radius(oracle: dict[str, Any]) -> None:
    case = oracle["halfspace"]
    A, sigma = (torch.tensor(case[name], dtype=torch.float64) for name in ("A", "sigma"))
    p0 = torch.tensor([case["p0"]], dtype=torch.float64)
    margin = global_margin(p0, 0.5, bound(lambda x: x @ A.T, (2,), 1 / sigma[None]))
    assert float(margin) == pytest.approx(case["exact_R"], abs=case["tol"])
    assert float(margin) <= case["exact_R"]


def test_the_kink_is_certified_where_first_order_is_wrong(oracle: dict[str, Any]) -> None:
    case = oracle["kink"]
    whitened = bound(
        lambda x: x + case["steep"] * torch.relu(x - case["kink"]),
        (1,),
        torch.tensor([[1 / case["sigma"]]], dtype=torch.float64),
    )
    margin = float(global_margin(torch.tensor([case["p0"]], dtype=torch.float64), 0.5, whitened))
    assert margin == pytest.approx(case["certificate_global_L"], abs=case["tol"])
    assert margin <= case["exact_R"] < case["thm1_local"]


def test_margins_of_a_clopper_pearson_bound(oracle: dict[str, Any], linear_gaussian: Any) -> None:
    case = oracle["margin_ci"]
    vae = linear_gaussian(oracle["models"][case["model"]])
    whitened = bound(lambda x: x @ vae.A.T + vae.b, vae.input_shape, 1 / vae.log_sigma.exp()[None])
    margin = global_margin(torch.tensor([case["p_low"]], dtype=torch.float64), 0.5, whitened)
    assert float(margin) == pytest.approx(case["cert"], abs=2e-9)
    assert float(margin) <= case["cert"]
    exact = torch.linalg.matrix_norm(vae.A / vae.log_sigma.exp()[:, None], 2)[None]
    margin = global_margin(torch.tensor([case["p_low"]], dtype=torch.float64), 0.5, exact)
    assert float(margin) == pytest.approx(case["cert"], abs=case["tol"])


def test_margins_of_the_linear_model_stay_below_the_exact_radius(oracle: dict[str, Any], linear_gaussian: Any) -> None:
    vae = linear_gaussian(oracle["models"]["LIN2"])
    encoder = bound(lambda x: x @ vae.A.T, vae.input_shape)
    whitened = bound(lambda x: x @ vae.A.T, vae.input_shape, 1 / vae.log_sigma.exp()[None])
    decoder = bound(lambda z: z @ vae.B.T, (2,))
    for case in oracle["r_robust"]["cases"]:
        if "exact_R" not in case:
            continue
        p0 = torch.tensor([case["bounds"]["p0"]], dtype=torch.float64)
        margin = float(global_margin(p0, 0.5, whitened))
        assert margin == pytest.approx(case["bounds"]["mahalanobis"], rel=3e-9)
        assert margin <= case["exact_R"]
        if "exact_R_m075" in case:
            assert float(global_margin(p0, 0.75, whitened)) == pytest.approx(case["mahalanobis_m075"], rel=1e-8)
        # From the exact quantile of the distances, then from a sample of them.
        quantile = torch.full((100, 1), case["min_r"], dtype=torch.float64)
        product = pathwise_margin(quantile, decoder * encoder, case["r"], 0.5, 1e-3)
        assert float(product) == pytest.approx(case["pathwise_product"], abs=2e-7)
        eta = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        distances = (eta * vae.log_sigma.exp() @ vae.B.T).norm(dim=1, keepdim=True)
        sampled = float(pathwise_margin(distances, decoder * encoder, case["r"], 0.5, 1e-3))
        assert 0.8 * case["pathwise_product"] <= sampled <= case["pathwise_product"]


def test_margins_where_sigma_moves_stay_below_the_exact_radius(oracle: dict[str, Any]) -> None:
    for case in oracle["sigma_varying"]["cases"]:
        p0, L, spread = (
            torch.tensor([value], dtype=torch.float64) for value in (case["p0"], case["a"] / case["s0"], case["Lam"])
        )
        margin = float(global_margin(p0, 0.5, L, spread))
        assert margin == pytest.approx(case["cert_varying"], abs=1e-9)
        assert margin <= case["exact_R_full"]
        assert float(global_margin(p0, 0.5, L)) == pytest.approx(case["cert_frozen_sigma_assumed"], abs=1e-9)


def test_what_is_not_robust_unperturbed_has_no_margin_and_certainty_is_refused() -> None:
    p = torch.tensor([0.0, 0.3, 0.5, 0.9])
    for log_lipschitz in (None, torch.tensor(0.7)):
        margins = global_margin(p, 0.5, torch.full((4,), 2.0), log_lipschitz)
        assert (margins[:3] == 0).all() and 0 < margins[3] < math.inf
        assert (global_margin(p[3:], 0.5, torch.tensor([math.nan]), log_lipschitz) == 0).all()
        assert (global_margin(p[3:], 0.5, torch.tensor([math.inf]), log_lipschitz) == 0).all()
        with pytest.raises(InputError, match="Clopper-Pearson"):
            global_margin(torch.ones(1), 0.5, torch.ones(1), log_lipschitz)
    with pytest.raises(InputError, match="below 1"):
        kept(torch.ones(1), torch.zeros(1))


def test_an_encoder_that_does_not_move_is_limited_by_its_scale_alone() -> None:
    p, none = torch.tensor([0.9]), torch.zeros(1)
    assert global_margin(p, 0.5, none).tolist() == [math.inf]
    assert global_margin(p, 0.5, none, none).tolist() == [math.inf]
    margin = global_margin(p, 0.5, none, torch.ones(1))
    assert float(scale_loss_of_norm(margin)) == pytest.approx(0.4, abs=1e-6)


def test_what_a_shift_keeps() -> None:
    p, omega = torch.tensor([0.0, 1e-9, 0.3, 0.9, 1 - 1e-12], dtype=torch.float64), torch.tensor([0.0, 0.5, 3.0])
    found = kept(p[:, None], omega)
    expected = stats.norm.cdf(stats.norm.ppf(p.numpy())[:, None] - omega.double().numpy())
    assert found.numpy() == pytest.approx(expected, rel=1e-10, abs=0)
    assert (found[:, 0] <= p).all()


@pytest.mark.parametrize("u", [1e-12, 1e-7, 9.99e-4, 1.001e-3, 0.03, 0.7, 4.0])
def test_the_loss_of_one_scale_is_its_total_variation(u: float) -> None:
    # The width of the narrower density varies over many orders: integrate between where the densities cross.
    s = math.exp(u)
    cross = s * math.sqrt(2 * u / math.expm1(2 * u))
    area, _ = integrate.quad(lambda t: math.exp(-t * t / 2), cross / s, cross, epsabs=0, epsrel=1e-12)
    expected = 2 * area / math.sqrt(2 * math.pi)
    found = float(scale_loss(torch.tensor([[u]], dtype=torch.float64)))
    assert found == pytest.approx(expected, rel=1e-9)
    assert found <= float(scale_loss_of_norm(torch.tensor(u, dtype=torch.float64)))


def test_the_loss_of_many_scales_takes_the_lesser_of_both_bounds() -> None:
    v = torch.full((1, 64), 0.1, dtype=torch.float64)
    assert float(scale_loss(v)) == pytest.approx(math.sqrt(1 - math.exp(-0.32)))
    assert scale_loss(torch.zeros(2, 3)).tolist() == [0, 0]
    assert scale_loss(torch.tensor([[1e3, 0.0], [math.inf, 0.0]])).tolist() == [1, 1]
    assert scale_loss(torch.tensor([[math.nan, 0.0]])).isnan().all()
    steps = scale_loss(torch.logspace(-14, 2.5, 4000, dtype=torch.float64)[:, None])
    assert (steps.diff() >= 0).all()


def test_pathwise_margins_take_the_order_statistic_of_their_confidence() -> None:
    draws = torch.arange(1, 101, dtype=torch.float64)[:, None] / 100
    # The largest k with P(Bin(100, 1/2) < k) <= 5% is 42.
    k = int(max(k for k in range(1, 101) if stats.binom.cdf(k - 1, 100, 0.5) <= 0.05))
    margin = pathwise_margin(draws, torch.tensor(2.0), 3.0, 0.5, 0.05)
    assert float(margin) == pytest.approx(float((3 - draws).sort(dim=0).values[k - 1] / 2))
    # Too few draws, and draws already outside.
    assert pathwise_margin(draws[:3], torch.tensor(2.0), 3.0, 0.5, 0.05).tolist() == [0]
    assert pathwise_margin(draws + 5, torch.tensor(2.0), 3.0, 0.5, 0.05).tolist() == [0]
    broken = torch.where(torch.arange(100)[:, None] < 60, math.nan, draws)
    assert pathwise_margin(broken, torch.tensor(2.0), 3.0, 0.5, 0.05).tolist() == [0]


def test_pathwise_margins_exceed_the_truth_no_more_often_than_alpha() -> None:
    # T = |eta|, W = 1 + |eta| / 2: rho = (r - T) / W decreases in |eta|, so its median is at that of |eta|.
    eta = torch.randn(60, 4000, generator=torch.Generator().manual_seed(8), dtype=torch.float64).abs()
    middle = stats.norm.ppf(0.75)
    truth = (2 - middle) / (1 + middle / 2)
    margins = pathwise_margin(eta, 1 + eta / 2, 2.0, 0.5, 0.1)
    above = int((margins > truth).sum())
    assert stats.binomtest(above, 4000, 0.1, alternative="greater").pvalue > 1e-3
    assert above > 0.03 * 4000


@pytest.mark.parametrize("name", ["VAE_mnist"])
def test_a_real_encoder_has_a_global_bound_above_its_steepest_jacobian(name: str) -> None:
    path = Path(__file__).parents[3] / "shared" / "checkpoints" / "disentangling-vae" / name
    if not path.exists():
        pytest.skip("needs the published checkpoints")
    from vaeaudit.model.registry import open_model

    vae = open_model(path, "burgess").vae
    bounds = LipschitzBounds(trace_encoder(vae, torch.zeros(1)))
    assert 1e5 < float(bounds.of_output(0)) < 2e5


def test_the_bundled_model_in_float32_is_bounded_in_float64(bundled_model: Any, bundled_images: Tensor) -> None:
    bounds = LipschitzBounds(trace_encoder(bundled_model, bundled_images))
    with torch.no_grad():
        q = bundled_model.encode(bundled_images)
        mean, log_stddev = q.mean.double(), q.log_stddev.double()
    apart = (bundled_images - bundled_images.flip(0)).flatten(1).norm(dim=1).double()
    whitened = bounds.of_output(0, 1 / log_stddev.exp())
    moved = ((mean - mean.flip(0)) / log_stddev.exp()).norm(dim=1)
    assert whitened.dtype == torch.float64 and (moved <= whitened * apart).all()
    assert ((log_stddev - log_stddev.flip(0)).norm(dim=1) <= bounds.of_output(1) * apart).all()
    assert float(LipschitzBounds(trace_decoder(bundled_model, bundled_images)).of_output(0)) > 0
