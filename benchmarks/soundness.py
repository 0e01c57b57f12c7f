"""Certificates against attacks: random networks, and the worst that a search finds inside every ball they bound.

    python -m benchmarks.soundness [--networks 2000] [--first 0] [--only KIND]

Networks are small, of every activation that certificates know, with skips, shared layers, convolutions and pooling;
layers are scaled by up to 1e6 either way, sigma lies between 1e-8 and 1e3, and biases put neurons on kinks at the item
or far into saturation. "hidden" ones are flat at the item, and steep shortly beside it. Every ball that the search for
a margin bounded is a claim, whether it kept the level or not: of the outputs, that their changes lie in the ellipsoid;
of every activation, that its input stays within its reach. Half of the items are kept in a box, at whose bounds many
of their inputs lie. Of each item the ball certified and one of the others are searched, by samples and by gradient
ascent from them. Shares of the bound are told as reached by the best attack: near 1 where the network is all but linear
on the ball. Suspects are evaluated to 60 digits, so that a violation is none of float64's.
"""

import argparse
import itertools
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import mpmath
import torch
from mpmath import mpf
from tabulate import tabulate
from torch import Tensor, fx, nn
from torch.nn import functional as F

from vaeaudit.certify import sectors
from vaeaudit.certify.activations import Kinked, options_of
from vaeaudit.certify.ellipsoids import Ellipsoid
from vaeaudit.certify.graph import trace
from vaeaudit.certify.item import Bend, Item
from vaeaudit.certify.lines import by_channel
from vaeaudit.certify.rewriting import name_of
from vaeaudit.certify.theorem import excess

STARTS, STEPS = 64, 24
WEIGHTS = 8  # of each architecture, which takes longer to trace than to certify
LATENTS = 2
COARSE = 1e-6  # of the item: in smaller balls too few digits are left to float64
DIGITS = 1e-14  # of a sum: what float64 rounds it by, a few times over

ACTIVATIONS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "relu": lambda: F.relu,
    "leaky": lambda: nn.LeakyReLU(random.choice((0.01, 0.3, 1.7, -0.5))),
    "prelu": nn.PReLU,
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-0.4, 0.7),
    "clamp": lambda: lambda y: y.clamp(min=-0.3, max=0.5),
    "clamp below": lambda: lambda y: y.clamp(min=-0.3),
    "abs": lambda: torch.abs,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "tanh": lambda: torch.tanh,
    "sigmoid": lambda: torch.sigmoid,
    "log sigmoid": nn.LogSigmoid,
    "softplus": lambda: nn.Softplus(beta=random.choice((0.5, 1, 4))),
    "softsign": nn.Softsign,
    "elu": lambda: nn.ELU(random.choice((0.4, 1.0, 1.8, -0.7))),
    "celu": lambda: nn.CELU(random.choice((0.3, 2.0))),
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "gelu by tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "maximum": lambda: lambda y: torch.maximum(y, -0.3 * y + 0.1),
}


class Chained(nn.Module):
    """Layers and activations in a chain; of one activation, or of any."""

    def __init__(self, inputs: int, name: str | None) -> None:
        super().__init__()
        widths = [inputs, *(random.randint(2, 10) for _ in range(random.randint(1, 4)))]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.activations = [activation(name) for _ in self.layers]
        self.held = nn.ModuleList(a for a in self.activations if isinstance(a, nn.Module))
        self.head = nn.Linear(widths[-1], 2 * LATENTS)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        for layer, act in zip(self.layers, self.activations, strict=True):
            x = act(layer(x))
        out: Tensor = self.head(x)
        return out


class Branched(nn.Module):
    """Skips over one and over several activations, a layer used twice, two heads that branch early."""

    def __init__(self, inputs: int, name: str | None) -> None:
        super().__init__()
        n = random.randint(2, 7)
        self.first, self.shared, self.other = nn.Linear(inputs, n), nn.Linear(n, n), nn.Linear(inputs, n)
        self.mean, self.log_stddev = nn.Linear(3 * n, LATENTS), nn.Linear(2 * n, LATENTS)
        self.a, self.b = activation(name), activation(name)
        self.held = nn.ModuleList(a for a in (self.a, self.b) if isinstance(a, nn.Module))
        self.variant = random.randint(0, 3)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        h = self.a(self.first(x))
        k = self.b(self.shared(h))
        k = k + h if self.variant % 2 else k
        last = self.a(self.shared(k))  # with the weights of the layer before
        branch = self.b(self.other(x)) if self.variant < 2 else k - h
        mean = self.mean(torch.cat([last, branch, h], dim=1))
        return torch.cat([mean, self.log_stddev(torch.cat([self.b(last - k), h], dim=1))], dim=1)


class Convolved(nn.Module):
    """Convolutions of any stride, padding, dilation and groups, batch norm in evaluation, pooling."""

    def __init__(self, inputs: int, name: str | None) -> None:
        super().__init__()
        self.inputs, channels = inputs, random.choice((2, 4))
        layers: list[nn.Module] = [nn.Conv2d(1, channels, random.choice((1, 2, 3)), random.choice((1, 2)), 1)]
        layers += [nn.BatchNorm2d(channels)] if random.random() < 0.5 else []
        layers.append(_Applied(activation(name)))
        layers.append(
            random.choice((nn.MaxPool2d(2, 1), nn.MaxPool2d(2, 2, 1), nn.AvgPool2d(2, 1), nn.Identity(), nn.Identity()))
        )
        groups = random.choice((1, 2))
        layers.append(nn.Conv2d(channels, 4, 2, random.choice((1, 2)), 1, random.choice((1, 2)), groups))
        layers += [_Applied(activation(name)), nn.Flatten()]
        self.body = nn.Sequential(*layers).double().eval()
        self.head = nn.Linear(self.body(torch.zeros(1, 1, 4, inputs // 4, dtype=torch.float64)).shape[1], 2 * LATENTS)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.head(self.body(x.unflatten(1, (1, 4, self.inputs // 4))))
        return out


class Hidden(nn.Module):
    """All but flat at the item: spikes that wake within ``within`` of it, and cancel or saturate until they do."""

    def __init__(self, inputs: int, name: str | None, within: float = 0.3) -> None:
        super().__init__()
        self.usual, self.act = nn.Linear(inputs, 2 * LATENTS), activation(name or random.choice(("relu", "tanh")))
        self.held = nn.ModuleList([self.act] if isinstance(self.act, nn.Module) else [])
        self.spikes, self.second = nn.Linear(inputs, 6), nn.Linear(6, 4)
        self.out = nn.Linear(4, 2 * LATENTS)
        self.within, self.steepness, self.at = within, 10 ** random.uniform(0, 4), None

    def sharpen(self, x: Tensor) -> None:
        """Places the spikes around ``x`` (1, inputs)."""
        directions = F.normalize(torch.randn_like(self.spikes.weight), dim=1)
        self.spikes.weight.copy_(directions * self.steepness)
        wake = (x @ self.spikes.weight.T)[0] + self.steepness * self.within * torch.rand(6, dtype=torch.float64)
        self.spikes.bias.copy_(-wake)
        self.usual.weight.mul_(0.01)
        # The second layer sleeps at the item, too, until several spikes are awake.
        self.second.bias.copy_(-(self.act(self.spikes(x)) @ self.second.weight.T)[0] - torch.rand(4).double())

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.usual(x) + self.out(F.relu(self.second(self.act(self.spikes(x)))))
        return out


class _Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


KINDS: dict[str, type[nn.Module]] = {"chain": Chained, "branches": Branched, "convolution": Convolved, "hidden": Hidden}


def activation(name: str | None) -> Callable[[Tensor], Tensor]:
    """The activation of that name, or any."""
    return ACTIVATIONS[name or random.choice(list(ACTIVATIONS))]()


def disturbed(network: nn.Module, x: Tensor) -> None:
    """Gives random weights and biases, some of which put neurons on kinks at ``x`` or in saturation."""
    wild = random.random() < 0.3
    for name, weights in network.state_dict().items():
        if not weights.is_floating_point():
            continue
        noise = torch.randn_like(weights)
        scale = 10 ** (random.uniform(-6, 6) if wild else random.uniform(-0.5, 0.7))
        scale = scale / math.sqrt(weights[0].numel()) if weights.ndim > 1 else 0.4
        weights.copy_(1 + 0.3 * noise.tanh() if "running_var" in name else scale * noise)
    placed = random.choice(("nowhere", "kinks", "saturated", "a little off kinks"))
    size = {"nowhere": 0.0, "kinks": 0.0, "saturated": 10 ** random.uniform(0, 3), "a little off kinks": 1e-7}[placed]

    def place(layer: Any, _: Any, out: Tensor) -> Tensor:
        of_units = out[0].flatten(1)[:, 0] if out.dim() > 2 else out[0]
        moved = torch.where(torch.rand_like(of_units) < 0.5, size * torch.randn_like(of_units).sign() - of_units, 0.0)
        layer.bias += moved
        return out + moved.view(-1, *(1,) * (out.dim() - 2))

    layers = [part for part in network.modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
    handles = [layer.register_forward_hook(place) for layer in layers[:-1] if placed != "nowhere"]
    if not isinstance(network, Branched):  # whose layer used twice would be placed twice
        network(x)
    for handle in handles:
        handle.remove()
    if isinstance(network, Hidden):
        network.sharpen(x)


class Encoder(nn.Module):
    """A network with what sets the size of sigma at the item: mean and log of the standard deviation, side by side."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("unit", torch.ones((), dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(1, 2 * LATENTS, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.network(x) * self.unit + self.shift
        return out


class Recorded(Ellipsoid):
    """An ellipsoid that is kept once it was shown, which in float32 none is."""

    kept: ClassVar[list[Ellipsoid]] = []

    def __init__(self, item: Item, rho: float) -> None:
        super().__init__(item, rho)
        self.room, self.claim = item.room, self.block.clone()
        if item.dtype == torch.float64:
            Recorded.kept.append(self)


def changes(item: Item, d: Tensor) -> list[Tensor]:
    """How what each activation is given, and the outputs, change by ``d`` (rows, inputs), (rows, neurons) each."""
    found, state = [], d
    for stage, bend in zip(item.stages.chain, item.bends, strict=True):
        u = state @ torch.from_numpy(stage.matrix.toarray()).T
        found.append(u[:, stage.passed :])
        moved = bend.activation(bend.at + found[-1].view(-1, *bend.at.shape[1:])) - bend.activation(bend.at)
        state = torch.cat([u[:, : stage.passed], moved.flatten(1)], dim=1)
    return [*found, state @ item.outputs.T]


def exact_changes(item: Item, d: Tensor) -> list[list[Any]]:
    """The same of one ``d`` (inputs,), to 60 digits."""
    found, state = [], [mpf(value) for value in d.tolist()]
    for stage, bend in zip(item.stages.chain, item.bends, strict=True):
        u = [mpmath.fdot(zip(map(mpf, row), state, strict=True)) for row in stage.matrix.toarray().tolist()]
        found.append(u[stage.passed :])
        act = exact(stage.node, bend)
        at = [mpf(value) for value in bend.at.flatten().tolist()]
        moved = [act(z + v, k) - act(z, k) for k, (z, v) in enumerate(zip(at, found[-1], strict=True))]
        state = u[: stage.passed] + moved
    return [*found, [mpmath.fdot(zip(map(mpf, row), state, strict=True)) for row in item.outputs.tolist()]]


def exact(node: fx.Node, bend: Bend) -> Callable[[Any, int], Any]:
    """The activation of a number, the k-th of those that it acts on, to 60 digits."""
    options, shape = options_of(node), bend.shape
    if isinstance(shape, Kinked):
        slopes = [by_channel(slope, bend.at).expand_as(bend.at).flatten().tolist() for slope in shape.pieces]

        def pieces(y: Any, k: int) -> Any:
            ends = [min(0, y), *(min(max(kink, min(0, y)), max(0, y)) for kink in shape.kinks), max(0, y)]
            size = sum(slope[k] * (b - a) for slope, (a, b) in zip(slopes, itertools.pairwise(ends), strict=True))
            return size if y >= 0 else -size

        return pieces
    name = name_of(node)
    sigmoid = lambda y: 1 / (1 + mpmath.exp(-y))  # noqa: E731
    if name in ("elu", "selu"):
        scale, alpha, inner = (mpf(options.get(key, 1)) for key in ("scale", "alpha", "input_scale"))
        if name == "selu":
            scale, alpha = mpf(1.0507009873554805), mpf(1.6732632423543772)
        return lambda y, _: scale * (y if y > 0 else alpha * mpmath.expm1(inner * y))
    if name == "softplus":
        beta, threshold = mpf(options["beta"]), options["threshold"]
        return lambda y, _: y if beta * y > threshold else mpmath.log1p(mpmath.exp(beta * y)) / beta
    if name == "gelu" and options["approximate"] == "tanh":
        return lambda y, _: y / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (y + mpf(0.044715) * y**3)))
    simple: dict[str, Callable[[Any], Any]] = {
        "tanh": mpmath.tanh,
        "sigmoid": sigmoid,
        "log_sigmoid": lambda y: -mpmath.log1p(mpmath.exp(-y)),
        "gelu": lambda y: y * mpmath.ncdf(y),
        "silu": lambda y: y * sigmoid(y),
        "mish": lambda y: y * mpmath.tanh(mpmath.log1p(mpmath.exp(y))),
        "softsign": lambda y: y / (1 + abs(y)),
        "hardswish": lambda y: y * min(max(y + 3, 0), 6) / 6,
    }
    return lambda y, _: simple[name](y)


@dataclass
class Tally:
    """What was seen of networks of one kind; attacks as shares of the bound."""

    networks: int = 0
    balls: int = 0
    certified: int = 0
    outputs: list[float] = field(default_factory=list)
    reaches: list[float] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)  # of what may be lost within the radius certified
    violations: int = 0


def kept_to(ball: Recorded, d: Tensor) -> Tensor:
    """Displacements (rows, inputs) taken back into the ball, and into the box where there is one."""
    d = d if ball.room is None else torch.minimum(torch.maximum(d, -ball.room.down), ball.room.up)
    return d * (ball.rho * (1 - 1e-14) / d.norm(dim=1, keepdim=True).clamp(min=1e-300)).clamp(max=1)


def climbed(ball: Recorded, size: Callable[[Tensor], Tensor], first: Tensor) -> Tensor:
    """The best displacements (rows, inputs) of a ball that ascent of ``size`` (rows,) finds from the ``first``."""
    d, where = first, first
    best = torch.full((len(first),), -math.inf, dtype=torch.float64)
    for step in range(STEPS):
        d = (where if step % 8 == 7 else d).detach().requires_grad_()
        found = size(d)
        (ascent,) = torch.autograd.grad(found.sum(), d)
        better = found.detach() > best
        best, where = torch.where(better, found.detach(), best), torch.where(better[:, None], d.detach(), where)
        d = kept_to(ball, d.detach() + ball.rho * 0.8 * 0.85**step * F.normalize(ascent, dim=1, eps=1e-300))
    return where


def sampled(rho: float, jacobian: Tensor) -> Tensor:
    """Displacements on the sphere, within it, and along what moves the outputs most to first order."""
    on = F.normalize(torch.randn(STARTS, jacobian.shape[1], dtype=torch.float64), dim=1) * rho
    on[::3] *= torch.rand(len(on[::3]), 1, dtype=torch.float64) ** random.choice((0.5, 3))
    steepest = torch.linalg.svd(jacobian, full_matrices=False)[2] * rho
    return torch.cat([on, steepest, -steepest]) * (1 - 1e-12)


def attacked(network: Encoder, ball: Recorded, x: Tensor, tally: Tally) -> Tensor:
    """The displacements tried, (rows, inputs); counts in the tally what they reach of the ball's bounds."""
    rho, item = ball.rho, ball.item
    with torch.no_grad():
        base = network(x)
        units = torch.cat([base[:, LATENTS:].exp(), torch.ones_like(base[:, LATENTS:])], dim=1)[:, : len(item.outputs)]
        base = base[:, : len(item.outputs)] / units
    # Singular where there are more outputs than they can move in: what rounding alone reaches is left out.
    values, vectors = torch.linalg.eigh(ball.claim)
    floor = 1e-13 * values[-1] + (1e-13 * base.abs().amax() / rho) ** 2 + 1e-300
    whiten = vectors / (values.clamp(min=0) + floor).sqrt() / rho
    reaches = [layer.reach.detach() for layer in ball.layers]
    first = kept_to(ball, sampled(rho, item.first_order))
    places = [random.randrange(len(reaches) or 1) for _ in first]
    weights = [torch.zeros(len(first), len(reach), dtype=torch.float64) for reach in reaches]
    for row, place in enumerate(places[: len(first) if reaches else 0]):
        weights[place][row, random.randrange(len(reaches[place]))] = random.choice((-1, 1))

    def of_outputs(d: Tensor) -> Tensor:
        return ((network(x + d)[:, : len(item.outputs)] / units - base) @ whiten).norm(dim=1)

    def of_reaches(d: Tensor) -> Tensor:
        parts = zip(changes(item, d)[:-1], weights, reaches, strict=True)
        return torch.stack([(u * weight / reach.clamp(min=1e-300)).sum(1) for u, weight, reach in parts]).sum(0)

    d = torch.cat([first, climbed(ball, of_outputs, first), *([climbed(ball, of_reaches, first)] if reaches else [])])
    with torch.no_grad():
        outward = of_outputs(d)
        *given, moved = changes(item, d)
        along = (moved @ whiten).norm(dim=1)
        shares = [(u.abs() / reach.clamp(min=1e-300)).amax(1) for u, reach in zip(given, reaches, strict=True)]
        within = torch.stack(shares).amax(0) if shares else torch.zeros_like(along)
        # Suspects are looked at with digits enough to tell rounding from a bound that is broken.
        suspects = {int(found.argmax()) for found in (along, within) if float(found.max()) > 1}
        f = torch.linalg.solve(ball.claim + floor * torch.eye(len(floor * values)), moved.T).T
        for row in suspects:
            *u, y = exact_changes(item, d[row])
            length = mpmath.norm([mpf(value) for value in d[row].tolist()]) / mpf(rho)
            assert length <= 1
            g = [mpf(value) for value in f[row].tolist()]
            claim = mpmath.matrix(ball.claim.tolist())
            bound = mpf(rho) * mpmath.sqrt((mpmath.matrix([g]) * claim * mpmath.matrix(g))[0])
            over = [abs(mpmath.fdot(zip(g, y, strict=True))) / bound if bound else mpf(0)]
            over += [
                abs(v) / mpf(reach) if reach else mpf(abs(v) > 0) * 2
                for layer, far in zip(u, reaches, strict=True)
                for v, reach in zip(layer, far.tolist(), strict=True)
            ]
            if max(over) > 1 + 1e-12:
                tally.violations += 1
                print(f"a bound is exceeded by {float(max(over) - 1):.3g} on a ball of {rho:.3g}")
        apart = (network(x + d)[:, : len(item.outputs)] / units - base - moved).norm(dim=1)
        added = base.abs() + network.shift[:, : len(item.outputs)].abs() / units
    # The chain speaks for the network, as far as the network itself has digits for the changes of what it adds up.
    told = COARSE < rho / (1 + float(x.norm())) < 1 / COARSE
    if told and float(apart.max()) > 1e-3 * float(moved.norm(dim=1).max()) + DIGITS * float(added.max()):
        tally.violations += 1
        print(f"the network does not move as its chain does on a ball of {rho:.3g}")
    tally.balls += 1
    tally.outputs.append(min(1.0, float(outward.max())))
    tally.reaches.append(min(1.0, float(within.max())))
    return d


def examined(kind: str, name: str | None, tally: Tally) -> None:
    """One architecture with several random weights: its certificates, and attacks on them."""
    inputs = random.choice((16, 20)) if kind == "convolution" else random.choice((1, 2, 2, 3, 6, 12))
    network = KINDS[kind](inputs, name)
    encoder = Encoder(network).double().eval().requires_grad_(False)
    graph = trace(lambda x: encoder(x).chunk(2, 1), (inputs,), torch.zeros((), dtype=torch.float64), "it", encoder)
    copies = {**dict(graph.module.named_parameters()), **dict(graph.module.named_buffers())}
    for _ in range(WEIGHTS):
        x = torch.randn(1, inputs, dtype=torch.float64) * 10 ** random.uniform(-1, 1)
        encoder.unit.fill_(1.0)
        disturbed(network, x)
        encoder.unit.fill_(10 ** random.uniform(-8, 3) if random.random() < 0.5 else 1.0)
        encoder.shift.copy_(-network(x) * encoder.unit + random.uniform(math.log(1e-8), math.log(1e3)))
        for key, value in encoder.state_dict().items():
            (copy,) = (held for told, held in copies.items() if told.endswith(key))
            copy.copy_(value)
        tally.networks += 1
        p_low, m = torch.tensor([random.choice((0.6, 0.98, 0.9999))], dtype=torch.float64), random.choice((0.5, 0.3))
        sigma = random.choice(("frozen", "full"))
        Recorded.kept = []
        room = 10 ** random.uniform(-2, 1) * torch.rand((2, *x.shape), dtype=torch.float64)
        room = torch.where(torch.rand_like(room) < 0.4, 0.0, room)
        box = (x - room[0], x + room[1]) if random.random() < 0.5 else None
        sectors._CHEAP = random.choice((0, 2000))  # whether radii are looked for in float32
        radius = float(sectors.Sectors(graph, x).margins(x, p_low, m, sigma, box)[1])
        tally.certified += radius > 0
        balls = [ball for ball in Recorded.kept if ball.rho == radius][-1:]
        others = [ball for ball in Recorded.kept if ball.rho != radius]
        for ball in balls + ([random.choice(others)] if others else []):
            d = attacked(encoder, ball, x, tally)
            if ball.rho == radius > COARSE * (1 + float(x.norm())):
                level_kept(encoder, x, d, p_low, m, sigma, tally)


@torch.no_grad()
def level_kept(encoder: nn.Module, x: Tensor, d: Tensor, p_low: Tensor, m: float, sigma: str, tally: Tally) -> None:
    """Counts a violation where the half-space across a displacement keeps no more than ``m`` of its ``p_low``."""
    (mean, spread), (new_mean, new_spread) = (encoder(rows).chunk(2, dim=1) for rows in (x, x + d))
    v = (new_mean - mean) / spread.exp()
    moves = new_spread - spread if sigma == "full" else 0 * new_spread
    stddev = (F.normalize(v, dim=1, eps=1e-300) * moves.exp()).norm(dim=1).clamp(min=1e-300)
    kept = torch.special.ndtr((torch.special.ndtri(p_low) - v.norm(dim=1)) / stddev)
    worst = int(v.norm(dim=1).argmax())
    spent, _ = excess(p_low, m, v[worst].norm(), moves[worst].abs() if sigma == "full" else None)
    tally.spent.append(min(1.0, math.exp(min(0.0, float(spent)))))
    if float(kept.min()) < m * (1 - 1e-6):
        tally.violations += 1
        print(f"the level {m} is lost: {float(kept.min())}")


def main() -> None:
    """Run the search and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first, which names its random choices")
    parser.add_argument("--only", choices=KINDS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    mpmath.mp.dps = 60
    sectors.Ellipsoid = Recorded  # type: ignore[misc]
    tallies: dict[str, Tally] = defaultdict(Tally)
    names, started = [*ACTIVATIONS, None], time.perf_counter()
    for number in range(given.first, given.first + given.networks // WEIGHTS):
        random.seed(number)
        torch.manual_seed(number)
        kind = given.only or list(KINDS)[number % len(KINDS)]
        name = names[number // len(KINDS) % len(names)]
        before = tallies[kind].violations
        examined(kind, name, tallies[kind])
        if tallies[kind].violations > before:
            print(f"number {number}, {kind}, {name}", flush=True)
    headers = ["networks", "", "certified", "balls", "best attack / bound: median", "upper decile"]
    headers += ["of reaches", "of the margin's loss", "violations"]
    rows = []
    for kind, tally in tallies.items():
        outputs, reaches, spent = (torch.tensor(found) for found in (tally.outputs, tally.reaches, tally.spent))
        rows.append([kind, tally.networks, tally.certified, tally.balls, outputs.median(), outputs.quantile(0.9)])
        rows[-1] += [reaches.median(), spent.median(), tally.violations]
    print(tabulate(rows, headers=headers, floatfmt=".3f"))
    print(f"Shares are medians unless said. {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
