"""What is traced: only what the bounded outputs depend on, the function that the model computes, or a refusal."""

import random as chance
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from vaeaudit.certify.graph import Graph, Kind, trace, trace_decoder, trace_encoder
from vaeaudit.certify.lipschitz import LipschitzBounds
from vaeaudit.certify.local import displacement, local_margin
from vaeaudit.certify.maximum import without_maxima
from vaeaudit.certify.propagation import first_norms, propagate
from vaeaudit.checks.margin.measure import margin
from vaeaudit.errors import UnsupportedError
from vaeaudit.model.vae import DiagonalGaussian, GaussianLikelihood

Function = Callable[[Tensor], Tensor]
DOUBLE = torch.zeros((), dtype=torch.float64)


def same(h: Tensor) -> Tensor:
    return h


class Model(nn.Module):
    """2 latents of 3 inputs; what is given is done to the mean, to log sigma and in the decoder."""

    input_shape, range = (3,), None

    def __init__(self, mean: Function = same, log_stddev: Function = same, decoder: Function = same) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.mean, self.spread, self.out = (nn.Linear(a, b) for a, b in ((3, 4), (4, 2), (4, 2), (2, 3)))
        self.of_mean, self.of_log_stddev, self.of_decoder = mean, log_stddev, decoder
        self.eval().requires_grad_(False)

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((2,), like=self.out.weight)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        h = torch.relu(self.body(x))
        return DiagonalGaussian(self.of_mean(self.mean(h)), self.of_log_stddev(0.3 * self.spread(h) - 1))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(self.of_decoder(self.out(z)), torch.zeros(()))


def traced(
    function: Callable[[Tensor], tuple[Tensor, ...]], inputs: int = 3, like: Tensor = DOUBLE, **more: Any
) -> Graph:
    return trace(function, (inputs,), like, "it", **more)


# What only the standard deviation depends on


def in_place(h: Tensor) -> Tensor:
    h = h.clone()
    h[:, 0] = -1.0
    return h


SIGMAS: dict[str, Function] = {
    "absolute": lambda h: -h.abs(),
    "softplus": lambda h: torch.log(F.softplus(h) + 0.05),
    "root": lambda h: torch.log(torch.sqrt(torch.exp(h) + 1e-3)),
    "sorted": lambda h: h.sort(dim=1).values,
    "normalised": lambda h: F.layer_norm(h, (2,)) / 10,
    "squared": lambda h: -h * h,
    "by its largest": lambda h: h - torch.logsumexp(h, 1, keepdim=True),
    "in place": in_place,
    "of another precision": lambda h: h.half().float(),
}


def one_after_another(functions: Mapping[str, Function]) -> Function:
    """All of them in one graph, as tracing each by itself would take longest."""
    return lambda h: reduce(lambda value, function: function(value), functions.values(), h)


def test_with_sigma_frozen_the_certificate_is_that_of_the_mean_whatever_makes_sigma() -> None:
    vae, x = Model(log_stddev=one_after_another(SIGMAS)), torch.tensor([[0.3, -0.2, 0.5]])
    p_low = torch.tensor([0.95], dtype=torch.float64)
    graph = trace_encoder(vae, x, "frozen")
    log_stddev = graph.module(x.double())[1]

    def plain(x: Tensor) -> tuple[Tensor, Tensor]:
        return vae.encode(x).mean, log_stddev.to(x.dtype).expand(x.shape[0], -1)

    known = trace(plain, (3,), x, "it", of=vae, bounded=1)
    ours, plainly = local_margin(graph, x, p_low), local_margin(known, x, p_low)
    assert float(plainly.radius) > 0
    assert float(ours.radius) == pytest.approx(float(plainly.radius), rel=1e-5)
    whitened = [LipschitzBounds(each).of_output(0, torch.exp(-log_stddev)) for each in (graph, known)]
    assert float(whitened[0]) == pytest.approx(float(whitened[1]), rel=1e-9)


@pytest.mark.parametrize("name", ["sorted", "in place", "of another precision"])
def test_a_margin_with_sigma_frozen_is_certified_whatever_makes_sigma(name: str) -> None:
    vae, x = Model(log_stddev=SIGMAS[name]), torch.tensor([[0.3, -0.2, 0.5]])
    (at,) = margin(vae, x, 3.0, draws=50, parts=("certified",), effort="fast").at
    assert at.certified is not None
    assert at.certified.missing == ()
    assert float(at.certified.radius) > 0


def test_with_sigma_moving_the_operation_is_named_and_what_does_without_it() -> None:
    for name in ("sorted", "normalised", "squared"):
        with pytest.raises(UnsupportedError, match=r"safe bound for its operation '\w+'; sigma = frozen, .* need none"):
            trace_encoder(Model(log_stddev=SIGMAS[name]), torch.zeros(1, 3), "full")
    with pytest.raises(UnsupportedError, match=r"operation 'sort'; the empirical margin needs none"):
        trace_encoder(Model(mean=SIGMAS["sorted"]), torch.zeros(1, 3), "full")


def test_what_sigma_writes_into_the_mean_is_not_overlooked() -> None:
    def through_a_view(x: Tensor) -> tuple[Tensor, Tensor]:
        h = 2 * x
        return h, h[:, :2].relu_()

    def whole(x: Tensor) -> tuple[Tensor, Tensor]:
        h = 2 * x
        spread = h.mul_(5)
        return h + 1, spread

    def without_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        h = 2 * x
        with torch.no_grad():
            spread = h.sort(dim=1).values.mul_(5)
        return h + 1, spread

    with pytest.raises(UnsupportedError, match="'relu_'"):
        traced(through_a_view, bounded=1)
    # Where it can be told what becomes of the mean, it is bounded as such.
    assert float(LipschitzBounds(traced(whole, bounded=1)).of_output(0)) == pytest.approx(10)
    try:
        graph = traced(without_gradient, bounded=1)
    except UnsupportedError:
        return
    assert float(LipschitzBounds(graph).of_output(0)) == pytest.approx(2)


# Constants and precision


def constant_of_its_own(h: Tensor) -> Tensor:
    return h + torch.tensor(0.5).log().to(h)


def filled(h: Tensor) -> Tensor:
    scale = torch.zeros(h.shape[1:])
    scale[0], scale[1:] = 3.0, torch.linspace(1, 2, len(scale) - 1)
    return h * scale


PRECISE: dict[str, Function] = {
    "a constant logarithm": constant_of_its_own,
    "a filled constant": filled,
    "float of float": lambda h: h.float(),
    "a step in double": lambda h: (h.double() * 0.5).float(),
    "type of another": lambda h: h.type_as(torch.zeros(1)),
    "a coarse constant": lambda h: h * torch.tensor(1 / 3).half().float(),
    "added up in its own precision": lambda h: h - 0.5 * h.mean(1, keepdim=True, dtype=torch.float32),
    "added up in double": lambda h: h - 0.5 * h.sum(1, keepdim=True, dtype=torch.float64).float(),
    "of an index": lambda h: h * torch.arange(h.shape[1]).float(),
}


def test_what_a_model_does_with_constants_and_precision_is_followed() -> None:
    every = one_after_another(PRECISE)
    vae, x = Model(mean=every, decoder=every), torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    graph, decoder = trace_encoder(vae, x), trace_decoder(vae, x)
    torch.testing.assert_close(graph.module(x.double())[0], vae.encode(x).mean.double(), rtol=1e-5, atol=1e-6)
    z = vae.encode(x).mean
    torch.testing.assert_close(decoder.module(z.double())[0], vae.decode(z).mean.double(), rtol=1e-5, atol=1e-6)
    assert graph.module(x.double())[0].dtype == torch.float64
    (at,) = margin(vae, x[:2], 3.0, draws=50, parts=("certified",), effort="fast").at
    assert at.certified is not None
    assert at.certified.missing == ()
    assert (at.certified.radius > 0).all()
    assert (at.certified.pathwise > 0).all()


def test_a_cast_to_less_than_the_models_own_precision_is_refused() -> None:
    for cast in (
        lambda h: h.half().float(),
        lambda h: h.bfloat16() * 1.0,
        lambda h: h + h.sum(1, keepdim=True, dtype=torch.float16),
        lambda h: h + h.mean(1, keepdim=True, dtype=torch.bfloat16),
    ):
        with pytest.raises(UnsupportedError, match="a change of the dtype"):
            trace_encoder(Model(mean=cast), torch.zeros(1, 3), "frozen")


def test_a_sum_is_bounded_in_double_whatever_precision_it_is_told() -> None:
    graph = traced(lambda x: (x.sum(1, keepdim=True, dtype=torch.float32),), like=torch.zeros(()))
    assert float(LipschitzBounds(graph).of_output(0)) >= 3**0.5
    with pytest.raises(UnsupportedError, match="a change of the dtype"):  # where the model itself is in double
        traced(lambda x: (x.sum(1, keepdim=True, dtype=torch.float32),))
    with pytest.raises(UnsupportedError, match="a change of the dtype"):  # bits taken for numbers
        traced(lambda x: ((x.view(torch.int64) + 2**50).view(torch.float64),))


def test_a_normalisation_whose_factors_move_too_is_not_affine() -> None:
    still = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match="'batch_norm'"):
        traced(lambda x: (F.batch_norm(x, still, still + 1, weight=x[0]),))


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm, torch.nn.utils.spectral_norm])
def test_a_parametrised_weight_is_bounded_as_the_weight_that_it_makes(norm: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(3)
    first, second = norm(nn.Linear(5, 6)), norm(nn.Linear(6, 4))
    network = nn.Sequential(first, nn.ReLU(), second).double()
    network(torch.zeros(1, 5, dtype=torch.float64))  # spectral norm estimates in training
    network = network.eval().requires_grad_(False)
    graph = traced(lambda x: network(x).chunk(2, dim=1), 5, of=network)
    product = float(torch.linalg.matrix_norm(first.weight, 2) * torch.linalg.matrix_norm(second.weight[:2], 2))
    assert float(LipschitzBounds(graph).of_output(0)) == pytest.approx(product, rel=1e-6)
    x = torch.randn(400, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    torch.testing.assert_close(graph.module(x)[0], network(x)[:, :2])
    # No displacement inside the certified radius uses up the gap.
    start, p_low = x[:1], torch.tensor([0.9], dtype=torch.float64)
    radius = float(local_margin(graph, start, p_low).radius)
    moved = start + radius * F.normalize(x, dim=1)
    shift = (network(moved) - network(start))[:, :2] / network(start)[:, 2:].exp()
    assert radius > 0
    assert float(shift.norm(dim=1).max()) <= float(torch.special.ndtri(p_low))


# What is no single function


def drawn(h: Tensor) -> Tensor:
    return h * (1 + chance.random())


def for_one_row(h: Tensor) -> Tensor:
    return 2 * h if h.shape[0] == 1 else h


def for_many_rows(h: Tensor) -> Tensor:
    return 2 * h if h.shape[0] > 7 else h


def while_compiled(h: Tensor) -> Tensor:
    return h if torch.compiler.is_compiling() else 3 * h


def fails_while_compiled(h: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        raise ValueError("no\nway" + "x" * 5000)
    return h


def tiny_linear(h: Tensor) -> Tensor:
    return F.linear(h, 1e-100 * torch.eye(h.shape[1], dtype=torch.float64), torch.ones(h.shape[1], dtype=torch.float64))


_UNDERFLOW = "weights or products of weights below 1e-146, whose squares underflow"
REFUSED: dict[str, tuple[Function, str]] = {
    "chance in python": (drawn, "other values, .* apart"),
    "overflow": (
        lambda h: h * 1e30 * 1e30,
        "finite in float64 overflow float32; try --dtype float64; the",
    ),
    "weights that are 0 when squared": (
        lambda h: F.linear(h.double(), 1e-200 * torch.eye(h.shape[1], dtype=torch.float64)),
        _UNDERFLOW,
    ),
    "a factor that is 0 when squared": (lambda h: h.double() * 1e-200, _UNDERFLOW),
    "a divisor whose inverse is 0 when squared": (lambda h: h.double() / 1e200, _UNDERFLOW),
    "factors one of which is 0 when squared": (
        lambda h: h.double() * torch.tensor([1e-200, *[1.0] * (h.shape[1] - 1)], dtype=torch.float64),
        _UNDERFLOW,
    ),
    "normalisation by what is 0 when squared": (
        lambda h: F.batch_norm(
            h.double(), *(torch.full((h.shape[1],), n, dtype=torch.float64) for n in (0, 1, 1e-200))
        ),
        _UNDERFLOW,
    ),
    "layers whose product is 0 when squared": (
        lambda h: 1e200 * F.leaky_relu(tiny_linear(F.leaky_relu(tiny_linear(h.double()))), 5.0),
        _UNDERFLOW,
    ),
    "a sum of integers": (lambda h: h + torch.relu(h.sum(1, keepdim=True, dtype=torch.int64)), "a change of the dtype"),
    "chance": (lambda h: h + torch.rand(h.shape[1]), "'rand'|other values"),
    "dropout that trains": (lambda h: F.dropout(h, 0.5, training=True), "'dropout'|other values"),
    "a branch for one row": (for_one_row, "other values|cannot trace it"),
    "a branch for many rows": (for_many_rows, "cannot trace it"),
    "another function for export": (while_compiled, "other values"),
    "an error in export": (fails_while_compiled, r"cannot trace it \(ValueError: no\)"),
    "a branch on values": (lambda h: h if h.sum() > -1e9 else -h, "cannot trace it"),
    "numpy": (lambda h: h + torch.from_numpy(h.detach().numpy().copy()), "cannot trace it"),
    "rows one by one": (lambda h: torch.stack([row * 2 for row in h]), "cannot trace it"),
    "a number": (lambda h: h * h.sum().item(), "'item'"),
    "a value written in place": (in_place, "'(copy|fill)_'"),
    "an operation without a bound": (lambda h: h.sort(dim=1).values, "'sort'"),
}


# Both parts are traced by one function: of the decoder, one refusal of each kind.
OF_DECODER = ("chance in python", "an error in export", "a number", "an operation without a bound")


@pytest.mark.parametrize(
    ("where", "name"),
    [*(("the encoder", name) for name in REFUSED), *(("the decoder", name) for name in OF_DECODER)],
)
def test_what_has_no_certificate_is_one_short_sentence(
    where: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    done, words = REFUSED[name]
    traced = trace_encoder if where == "the encoder" else trace_decoder
    with pytest.raises(UnsupportedError, match=f"^{where} has no certificate: .*({words})") as refused:
        traced(Model(mean=done, decoder=done), torch.zeros(1, 3))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    assert capfd.readouterr().err == ""


def test_what_is_finite_when_traced_alone_is_another_function_and_no_overflow_of_float64() -> None:
    def infinite(h: Tensor) -> Tensor:
        return h if torch.compiler.is_compiling() else h / 0

    with pytest.raises(UnsupportedError, match="other values, inf apart"):
        trace_encoder(Model(mean=infinite).double(), torch.zeros(1, 3).double())


@pytest.mark.parametrize("name", ["chance in python", "an error in export", "an operation without a bound"])
def test_where_there_is_no_certificate_the_margin_goes_on(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    done, _ = REFUSED[name]
    (at,) = margin(Model(mean=done), torch.tensor([[0.3, 0.2, 0.1]]), 3.0, draws=50).at
    assert at.certified is not None
    assert at.certified.radius.isnan().all()
    (told,) = at.certified.missing
    assert "\n" not in told
    assert at.empirical is not None
    assert (at.estimates.whitened > 0).all()
    assert capfd.readouterr().err == ""


def test_an_autograd_function_of_its_own_is_bounded_by_what_it_computes() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(_: Any, gradient: Tensor) -> Tensor:
            return 1e-3 * gradient

    graph = traced(lambda x: (Doubled.apply(x),))
    assert float(LipschitzBounds(graph).of_output(0)) == pytest.approx(2)


def test_a_bound_that_torch_cannot_carry_is_a_sentence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("derivative for aten::x is not implemented\n\nWhile executing %x\n" + "y" * 4000)

    monkeypatch.setattr("vaeaudit.checks.margin.certified.local_margin", fails)
    (at,) = margin(Model(), torch.tensor([[0.3, 0.2, 0.1]]), 3.0, draws=200, parts=("certified",), effort="fast").at
    assert at.certified is not None
    assert (at.certified.radius > 0).all()  # from Lipschitz constants
    assert at.certified.missing == (
        "around each item: torch cannot carry bounds through the model (RuntimeError: derivative for aten::x is not "
        "implemented); the empirical margin needs none",
    )


def test_torch_distributions_are_traced_though_they_check_their_parameters() -> None:
    class Distributed(Model):
        def encode(self, x: Tensor) -> DiagonalGaussian:
            q = super().encode(x)
            normal = torch.distributions.Normal(q.mean, q.log_stddev.exp())
            return DiagonalGaussian(normal.mean, normal.stddev.log())

    x, validates = torch.tensor([[0.3, 0.2, 0.1]]), torch.distributions.Distribution._validate_args
    plain, distributed = (
        margin(vae, x, 3.0, draws=200, parts=("certified",), effort="fast").at[0] for vae in (Model(), Distributed())
    )
    assert plain.certified is not None
    assert distributed.certified is not None
    assert float(distributed.certified.radius) == pytest.approx(float(plain.certified.radius), rel=1e-5)
    assert torch.distributions.Distribution._validate_args == validates


def test_only_what_the_bounded_outputs_depend_on_is_classified() -> None:
    graph = traced(lambda x: (torch.relu(x), torch.relu(x + 1).tanh()), bounded=1)
    assert [node.name for node in graph.of(Kind.ACTIVATION)] == ["relu"]
    assert list(graph.kinds.values()).count(Kind.FREE) == 3


# Odd graphs: no point of a ball may lie beyond what is certified of it


class Odd(nn.Module):
    """2 latents of (4, 5, 4) inputs by way of ``body``, (b, 4, 5, 4) -> (b, ...)."""

    input_shape, range = (4, 5, 4), None

    def __init__(self, body: Function, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.body = nn.ModuleList(layers).double().eval(), body
        with torch.no_grad():
            size = body(torch.zeros(1, *self.input_shape, dtype=torch.float64)).numel()
        self.heads = nn.Linear(size, 4).double()
        self.requires_grad_(False)

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((2,), like=self.heads.weight)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        mean, spread = self.heads(self.body(x).flatten(1)).chunk(2, dim=1)
        return DiagonalGaussian(mean, 0.2 * spread - 1)

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(z, torch.zeros((), dtype=z.dtype))


def odd(name: str) -> Odd:
    torch.manual_seed(0)
    shared, other, norm, drop = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)
    odder = nn.Conv2d(4, 8, (2, 3), (2, 1), (1, 2), (1, 2), groups=2, bias=False)
    turned = nn.ConvTranspose2d(8, 4, 3, 2, 1, output_padding=1, groups=4, dilation=2)
    wrapped = weight_norm(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"))
    mirrored, bent = nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), nn.PReLU(4, init=-0.4)
    constant = torch.randn(4, 1, 1, dtype=torch.float64)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 3)
    bodies: dict[str, Function] = {
        "a layer called twice": lambda x: shared(F.relu(shared(x))),
        "residuals of both signs": lambda x: torch.add(F.relu(x) - other(torch.tanh(x)), shared(x).sigmoid(), alpha=-2),
        "x taken three ways": lambda x: torch.cat([x, F.gelu(shared(x)), 1 - other(x).abs()], 1),
        "axes that change places": lambda x: F.silu(shared(x).permute(0, 3, 1, 2).reshape(x.shape[0], 8, -1)) + 1,
        "in place": lambda x: F.relu_((shared(x) * 1.5).add_(0.3)).mul(-0.7),
        "normalised and dropped out": lambda x: F.elu(drop(norm(shared(x)))),
        "grouped, dilated, strided": lambda x: F.leaky_relu(odder(x), 1.7),
        "transposed": lambda x: F.mish(turned(F.relu(odder(x)))),
        "weights made anew, wrapped around": lambda x: bent(wrapped(x)),
        "mirrored": lambda x: F.max_pool2d(F.softplus(mirrored(x)), 3, 2, 1),
        "constants": lambda x: F.hardtanh(x * constant + constant.abs()) - constant,
        "without its mean": lambda x: F.relu(x - x.mean((2, 3), keepdim=True)) - x.mean(1, keepdim=True),
        "the larger of two": lambda x: torch.maximum(shared(x), 0.1 - 0.5 * x),
        "halves of each other": lambda x: torch.sub(*F.relu(odder(x)).chunk(2, 1), alpha=2),
    }
    return Odd(bodies[name], shared, other, norm, drop, odder, turned, wrapped, mirrored, bent)


ODD = (
    *("a layer called twice", "residuals of both signs", "x taken three ways", "axes that change places", "in place"),
    *("normalised and dropped out", "grouped, dilated, strided", "transposed", "weights made anew, wrapped around"),
    *("mirrored", "constants", "without its mean", "the larger of two", "halves of each other"),
)


@pytest.mark.parametrize("name", ODD)
def test_nothing_in_a_ball_of_an_odd_graph_moves_further_than_is_certified(name: str) -> None:
    vae, generator = odd(name), torch.Generator().manual_seed(3)
    x = torch.randn(1, *vae.input_shape, generator=generator, dtype=torch.float64)
    graph, q0 = trace_encoder(vae, x), vae.encode(x)
    bounds, unit = LipschitzBounds(graph), (-q0.log_stddev).exp()
    everywhere = float(bounds.of_output(0, unit)), float(bounds.of_output(1))
    plain = without_maxima(graph)
    for rho in (1e-3, 0.1, 1.0):
        around = displacement(propagate(plain, x, torch.tensor([rho], dtype=torch.float64), first_norms(plain, x)))
        local = around[0], around[1].norm(dim=1)
        for found, bound, lipschitz in zip(ascended(vae, x, rho, generator), local, everywhere, strict=True):
            assert found > 0
            assert found <= float(bound) * (1 + 1e-12)
            assert found <= lipschitz * rho * (1 + 1e-12)


def test_tracing_leaves_a_model_in_the_modes_in_which_it_was_opened() -> None:
    vae = odd("normalised and dropped out")
    assert vae.training  # which matters to none of its layers, since these are evaluated
    trace_encoder(vae, torch.zeros(1, *vae.input_shape, dtype=torch.float64))
    assert vae.training
    assert not any(layer.training for layer in vae.layers)


def ascended(vae: Odd, x: Tensor, rho: float, generator: torch.Generator) -> tuple[float, float]:
    """How far mean, in units of sigma, and log sigma move on the ball, by ascent from eight directions for each."""
    q0 = vae.encode(x)
    d = torch.randn(16, x.numel(), generator=generator, dtype=torch.float64)
    best = torch.zeros(2, dtype=torch.float64)
    for step in range(25):
        d = (rho * d / d.norm(dim=1, keepdim=True)).requires_grad_()
        q = vae.encode(x + d.view(16, *x.shape[1:]))
        moved = (q.mean - q0.mean) * (-q0.log_stddev).exp(), q.log_stddev - q0.log_stddev
        value = torch.stack([moved[0][:8], moved[1][8:]]).norm(dim=2)  # (2, 8)
        best = torch.maximum(best, value.detach().amax(1))
        (slope,) = torch.autograd.grad(value.sum(), d)
        d = d.detach() + 0.5 * rho * (1 - step / 25) * slope / slope.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return float(best[0]), float(best[1])
