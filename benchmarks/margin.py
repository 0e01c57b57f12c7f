"""The margin check: items a second of each quantity, against the bare floor and against the algorithms as printed.

    python -m benchmarks.margin [--model PATH --adapter NAME --data PATH --resize FILTER] [--items 100] [--threads 1]

The floor is the model alone: the decoder on as many rows as draws; the encoder and a backward pass for each latent for
estimates and certificates (in the model's precision, where certificates take float64); for the empirical margin as many
rows of encoder and decoder, with and without the way back, as it took. As printed are algorithms 1 and 2 of Camuto et
al. 2021: one item at a time, radius or norm in equal steps, distances drawn anew at each. They leave their steps, draws
and attack open; what is taken here stands below the table. All draws of a step share one attack, which favours them.
All take turns in one process, and times are medians over the turns. The certificates around the items are timed apart,
once, in seconds of the CPU: linear bounds (--effort fast), sectors, and both as --effort thorough has them, where
linear bounds are only asked whether they reach further. `--certificates` prints these alone. `--boxed` prints, item by
item, what is certified within the data's range (--effort boxed), beside the empirical margin there: R lies between.
"""

import argparse
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor

from benchmarks.attack import briefly_trained, new_mlp
from vaeaudit.attacks.margin import empirical_margin
from vaeaudit.certify.graph import trace_encoder
from vaeaudit.certify.lipschitz import LipschitzBounds
from vaeaudit.certify.local import local_margin
from vaeaudit.certify.sectors import Sectors
from vaeaudit.certify.theorem import global_margin
from vaeaudit.checks.margin.certified import Certificates
from vaeaudit.checks.margin.estimates import first_order, jacobian_norms
from vaeaudit.checks.margin.measure import usual_radius
from vaeaudit.checks.margin.radius import draw_distances, kept, min_radius
from vaeaudit.data.items import fit
from vaeaudit.data.sources import read
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.registry import open_model
from vaeaudit.model.vae import VAE, Likelihood, Posterior
from vaeaudit.progress import always
from vaeaudit.stats.draws import uniform

TURNS = 3
DRAWS = 1000
M, ALPHA = 0.5, 0.05
LOCAL, EMPIRICAL, PRINTED_1, PRINTED_2 = 8, 4, 4, 1  # items of the slower ones
STEP_1 = 0.01  # of algorithm 1, as a share of the median of min r
STEP_2 = 0.02  # of algorithm 2, as a share of our margin: the tolerance that ours has
TOP = 10.0  # the norm that algorithm 2 steps down from
BEGIN = 2.0  # where it is begun here, in our margins; its time is scaled to all steps from TOP
RESTARTS = 5
ADAM_STEPS, ADAM_DRAWS, ADAM_RATE = 100, 16, 0.1  # the rate as a share of the norm's root mean square


@dataclass(frozen=True, eq=False)
class Found:
    """Values of each item by name, (items,) each, and what seconds are multiplied by where some steps were skipped."""

    values: dict[str, Tensor]
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Line:
    """One quantity of ``items`` items, with its floor and, where there is one, the algorithm as printed."""

    items: int
    ours: Callable[[], Found]
    floor: Callable[[], Found]
    printed: Callable[[], Found] | None = None
    printed_items: int = 1


class _Counted:
    """A VAE that counts the rows given to it, by encoder or decoder and by whether there is a way back."""

    def __init__(self, vae: VAE) -> None:
        self.input_shape, self.range, self.prior = vae.input_shape, vae.range, vae.prior
        self._vae, self.rows = vae, Counter[tuple[str, bool]]()

    def encode(self, x: Tensor) -> Posterior:
        self.rows["encode", x.requires_grad] += len(x)
        return self._vae.encode(x)

    def decode(self, z: Tensor) -> Likelihood:
        self.rows["decode", z.requires_grad] += len(z)
        return self._vae.decode(z)


class Problem:
    """Items x (I, *input_shape) of a model and a radius r, and everything that is timed on them."""

    def __init__(self, vae: VAE, x: Tensor, r: float) -> None:
        self.vae, self.x, self.r, self.items = vae, x, r, range(len(x))
        self.rows = RowBatches.automatic(tuple(vae.input_shape), x.device)
        with torch.no_grad():
            self.z = vae.encode(x).mean
        distances = self.distances()
        self.p_low = kept(distances, r, ALPHA).p_low
        self.min_radius = min_radius(distances, M, ALPHA).estimate
        self.graph = trace_encoder(vae, x)
        self.margins: dict[str, Tensor] = {}  # empirical, by the mode of sigma
        self.counts: dict[str, Counter[tuple[str, bool]]] = {}

    def distances(self) -> Tensor:
        """(draws, I)."""
        return draw_distances(
            self.vae, self.x, self.rows, draws=DRAWS, items=self.items, seed=0, check="benchmark.margin"
        )

    def probability(self) -> Found:
        """Draws, min r and p0."""
        distances = self.distances()
        return Found({"min r": min_radius(distances, M, ALPHA).estimate, "p0": kept(distances, self.r, ALPHA).p0})

    def estimates(self) -> Found:
        """First-order estimates."""
        found = first_order(jacobian_norms(self.vae, self.x, self.rows, items=self.items, seed=0), self.p_low, M)
        names = {"Frobenius": found.frobenius, "spectral": found.spectral, "whitened": found.whitened}
        return Found({f"estimate, {name}": value for name, value in names.items()})

    def everywhere(self) -> Found:
        """The global certificate, with the trace and the constants that all items share."""
        graph = trace_encoder(self.vae, self.x)
        with torch.no_grad():
            log_stddev = graph.module(self.x.double())[1]
        lipschitz = LipschitzBounds(graph).of_output(0, torch.exp(-log_stddev))
        return Found({"certified, global": global_margin(self.p_low, M, lipschitz)})

    def around(self) -> Found:
        """The local certificate."""
        return Found({"certified, local": local_margin(self.graph, self.x[:LOCAL], self.p_low[:LOCAL], M).radius})

    def empirical(self, sigma: str) -> Found:
        """The empirical margin."""
        counted = _Counted(self.vae)
        found = empirical_margin(
            counted, self.x[:EMPIRICAL], self.r, m=M, sigma=sigma, box=self.vae.range, alpha=ALPHA, rows=self.rows
        )
        self.margins[sigma], self.counts[sigma] = found.margin, counted.rows
        return Found({f"empirical, {sigma} sigma": found.margin})

    def decoded(self) -> Found:
        """The decoder on as many rows as there are draws."""
        self._passes("decode", False, DRAWS * len(self.x))
        return Found({})

    def backward(self, count: int) -> Found:
        """The encoder and a backward pass for each latent, on ``count`` items."""
        for part in torch.split(self.x[:count], self.rows.size):
            x = part.clone().requires_grad_()
            mean = self.vae.encode(x).mean.flatten(1)
            for axis in torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device):
                torch.autograd.grad(mean, x, axis.expand_as(mean), retain_graph=True)
        return Found({})

    def counted(self, sigma: str) -> Found:
        """As many rows as the empirical margin took."""
        for (what, gradient), count in self.counts[sigma].items():
            self._passes(what, gradient, count)
        return Found({})

    def _passes(self, what: str, gradient: bool, count: int) -> None:
        source = self.x if what == "encode" else self.z
        points = source[torch.arange(self.rows.size, device=source.device) % len(source)]
        with torch.set_grad_enabled(gradient):
            for first in range(0, count, self.rows.size):
                part = points[: count - first].clone().requires_grad_(gradient)
                mean = self.vae.encode(part).mean if what == "encode" else self.vae.decode(part).mean
                if gradient:
                    torch.autograd.grad(mean.sum(), part)

    @torch.no_grad()
    def algorithm_1(self) -> Found:
        """Estimating r, as printed: steps up from 0 until half of the distances drawn at that step are below r."""
        step = STEP_1 * float(self.min_radius.median())
        noise = torch.Generator(self.x.device).manual_seed(0)
        found = []
        for item in range(min(PRINTED_1, len(self.x))):
            q = self.vae.encode(self.x[item : item + 1])
            centre = self.vae.decode(q.mean).mean
            r, p = 0.0, 0.0
            while p < M:
                far = self._drawn(q, centre, noise)
                r += step
                p = float((far < r).double().mean())
            found.append(r)
        return Found({"min r, algorithm 1": self.x.new_tensor(found)})

    def algorithm_2(self) -> Found:
        """Estimating R, as printed: steps down, a maximum damage attack at each, until P of the last is a half."""
        if (item := self.attacked) is None:
            return Found({"empirical, algorithm 2": self.x.new_tensor([torch.nan])}, torch.nan)
        x, ours = self.x[item : item + 1], float(self.margins["full"][item])
        step, begin, p = STEP_2 * ours, min(BEGIN * ours, TOP), 0.0
        R = begin
        noise = torch.Generator(x.device).manual_seed(0)
        with torch.no_grad():
            centre = self.vae.decode(self.vae.encode(x).mean).mean
        while p < M and R > 0:
            for _ in range(RESTARTS):  # of which the last one's p is kept, and R falls within
                d = self._most_damage(x, centre, R, noise)
                with torch.no_grad():
                    far = self._drawn(self.vae.encode(x + d), centre, noise)
                R -= step
                p = float((far < self.r).double().mean())
        return Found({"empirical, algorithm 2": x.new_tensor([R])}, (TOP - R) / (begin - R))

    @property
    def attacked(self) -> int | None:
        """The item for algorithm 2: the first whose margin lies between 0 and TOP, if any."""
        margin = self.margins["full"]
        between = ((margin > 0) & (margin < TOP)).nonzero()
        return int(between[0, 0]) if len(between) else None

    def _drawn(self, q: Posterior, centre: Tensor, noise: torch.Generator) -> Tensor:
        eta = torch.randn((DRAWS, 1, *q.noise_shape), generator=noise, dtype=centre.dtype, device=centre.device)
        far = self.vae.decode(q.sample(eta).flatten(0, 1)).mean - centre
        distances: Tensor = torch.linalg.vector_norm(far.flatten(1), dim=1)
        return distances

    def _most_damage(self, x: Tensor, centre: Tensor, cap: float, noise: torch.Generator) -> Tensor:
        """Camuto et al. eq. 5 by Adam, projected on ball and box after each step."""
        d = torch.randn(x.shape, generator=noise, dtype=x.dtype, device=x.device)
        d = (d * (cap / torch.linalg.vector_norm(d))).requires_grad_()
        optimiser = torch.optim.Adam([d], lr=ADAM_RATE * cap / x.numel() ** 0.5)
        low, high = self.vae.range or (-torch.inf, torch.inf)
        for _ in range(ADAM_STEPS):
            q = self.vae.encode(x + d)
            eta = torch.randn((ADAM_DRAWS, 1, *q.noise_shape), generator=noise, dtype=x.dtype, device=x.device)
            far = self.vae.decode(q.sample(eta).flatten(0, 1)).mean - centre
            (d.grad,) = torch.autograd.grad(-torch.linalg.vector_norm(far.flatten(1), dim=1).mean(), d)
            optimiser.step()
            with torch.no_grad():
                d.mul_((cap / torch.linalg.vector_norm(d)).clamp(max=1))
                d.copy_((x + d).clamp(low, high) - x)
        result: Tensor = d.detach()
        return result


def lines(problem: Problem) -> dict[str, Line]:
    """What is timed, by name."""
    n = len(problem.x)
    local, few = min(LOCAL, n), min(EMPIRICAL, n)
    draws, latents = f"min r and p0, {DRAWS:,} draws", lambda: problem.backward(n)
    return {
        draws: Line(n, problem.probability, problem.decoded, problem.algorithm_1, min(PRINTED_1, n)),
        "first-order estimates": Line(n, problem.estimates, latents),
        "global certificate": Line(n, problem.everywhere, latents),
        "local certificate": Line(local, problem.around, lambda: problem.backward(local)),
        "empirical, frozen sigma": Line(few, lambda: problem.empirical("frozen"), lambda: problem.counted("frozen")),
        "empirical, full sigma": Line(
            few, lambda: problem.empirical("full"), lambda: problem.counted("full"), problem.algorithm_2, PRINTED_2
        ),
    }


def certificates(problem: Problem) -> str:
    """What the certificates around the items reach, over the whitened estimate, and what they cost."""
    x, p_low, n = problem.x, problem.p_low, len(problem.x)
    whitened = problem.estimates().values["estimate, whitened"].double()
    marks = [time.process_time()]

    def mark(radius: Tensor) -> Tensor:
        marks.append(time.process_time())
        return radius

    sectors = Sectors(problem.graph, x[:1])
    marks.append(time.process_time())
    fast = mark(local_margin(problem.graph, x, p_low, M).radius)
    alone = mark(sectors.margin(x, p_low, M, "frozen"))
    beyond = mark(local_margin(problem.graph, x, p_low, M, verified=alone).radius)
    read, of_fast, of_sectors, of_rest = (after - before for before, after in itertools.pairwise(marks))
    rows = []
    for name, radius, seconds in (
        ("linear bounds (fast)", fast, of_fast),
        ("sectors", alone, of_sectors),
        ("both (thorough)", torch.maximum(alone, beyond), of_sectors + of_rest),
    ):
        share = (radius / whitened)[whitened > 0]
        quartiles = share.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
        rows.append([name, len(share), *quartiles, seconds / n])
    headers = ["certificate", "items", "over whitened: lower quartile", "median", "upper quartile", "CPU s / item"]
    told = f"{int((beyond > alone).sum())} of {n} items are certified further by linear bounds than by sectors; "
    return f"{tabulate(rows, headers=headers, floatfmt='.3g')}\n{told}maps are read off in {read:.2g} s, once a model."


def in_the_box(problem: Problem) -> str:
    """The margin within the data's range, certified and empirical, and what the range adds to the certified one."""
    x, p_low, n = problem.x, problem.p_low, len(problem.x)
    whitened = problem.estimates().values["estimate, whitened"].double()
    started = time.process_time()
    certificates = Certificates(lambda: problem.graph, x, "frozen", "boxed", box=problem.vae.range)
    found = certificates.of(x, certificates.lipschitz(x), p_low, M, always)
    certified = time.process_time()
    empirical = empirical_margin(
        problem.vae, x, problem.r, m=M, sigma="frozen", box=problem.vae.range, alpha=ALPHA, rows=problem.rows
    ).margin.double()
    attacked = time.process_time()
    names = ["item", "certified", "in the box", "over it", "empirical in the box", "certified / empirical"]
    columns = [found.radius, found.boxed, found.boxed / found.radius, empirical, found.boxed / empirical]
    rows = [[str(item), *values] for item, values in enumerate(torch.stack(columns, 1).tolist())]
    rows.append(["median", *(column.quantile(0.5).item() for column in columns)])
    told = [f"without: {missing}" for missing in found.missing]
    told.append(f"In the box over whitened: median {(found.boxed / whitened)[whitened > 0].quantile(0.5).item():.3g}.")
    seconds = f"CPU s / item: certified with and without the box {(certified - started) / n:.3g}, "
    told.append(f"{seconds}empirical {(attacked - certified) / n:.3g}.")
    return "\n".join([tabulate(rows, headers=names, floatfmt=".3g"), *told])


def timed(work: Callable[[], Found], values: dict[str, Tensor]) -> float:
    """Seconds of ``work``, whose values are kept in ``values``."""
    started = time.perf_counter()
    found = work()
    seconds = (time.perf_counter() - started) * found.scale
    values.update(found.values)
    return seconds


def measure(all_lines: dict[str, Line]) -> tuple[list[list[object]], dict[str, Tensor]]:
    """The table's rows, and the values of each item by name."""
    values: dict[str, Tensor] = {}
    works: dict[tuple[str, str], Callable[[], Found]] = {}
    for name, line in all_lines.items():
        works[name, "ours"], works[name, "floor"] = line.ours, line.floor
        if line.printed is not None:
            works[name, "printed"] = line.printed
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in works}
    for turn in range(TURNS):
        keys = list(works)
        first = turn * len(keys) // TURNS
        for key in keys[first:] + keys[:first]:
            seconds[key].append(timed(works[key], values))
    draws, estimates, *_ = all_lines
    for column in ("ours", "floor"):
        both = zip(seconds[draws, column], seconds[estimates, column], strict=True)
        seconds["both of these", column] = [sum(pair) for pair in both]
    rows: list[list[object]] = []
    for name in (draws, estimates, "both of these", *list(all_lines)[2:]):
        line = all_lines.get(name, all_lines[draws])
        ours, floor = seconds[name, "ours"], seconds[name, "floor"]
        rate = line.items / statistics.median(ours)
        over = statistics.median(a / b for a, b in zip(ours, floor, strict=True))
        row: list[object] = [name, line.items, rate, line.items / statistics.median(floor), over]
        if (name, "printed") in seconds:
            printed = line.printed_items / statistics.median(seconds[name, "printed"])
            row += [line.printed_items, printed, rate / printed]
        rows.append(row)
    return rows, values


def reached(values: dict[str, Tensor], chosen: int | None) -> str:
    """The median of each value, and of an algorithm as printed over ours on the same items."""
    rows: list[list[object]] = []
    for name, value in values.items():
        row: list[object] = [name, len(value), float(value.double().quantile(0.5, interpolation="lower"))]
        if name.endswith("algorithm 1"):
            row.append(float((value / values["min r"][: len(value)]).median()))
        if name.endswith("algorithm 2") and chosen is not None:
            row.append(float(value[0] / values["empirical, full sigma"][chosen]))
        rows.append(row)
    return tabulate(rows, headers=["value", "items", "median", "over ours, same items"], floatfmt=".4g")


def main() -> None:
    """Run the comparison and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="examples/shapes-beta1.safetensors")
    parser.add_argument("--adapter")
    parser.add_argument("--data", default="examples/shapes.npz")
    parser.add_argument("--resize")
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mlp", action="store_true", help="the 784-400-400-20 VAE of benchmarks.attack as the model")
    parser.add_argument("--certificates", action="store_true", help="only the certificates around the items")
    parser.add_argument("--boxed", action="store_true", help="only the margins within the data's range")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.mlp:
        given.model = "784-400-400-20 MLP"
        data = fit(read(given.data), input_shape=(1, 28, 28), data_range=(0, 1), resize=given.resize)
        vae: VAE = briefly_trained(new_mlp(data.input_shape), data)
    else:
        vae = open_model(given.model, given.adapter).vae
        data = fit(read(given.data), input_shape=tuple(vae.input_shape), data_range=vae.range, resize=given.resize)
    if not 1 <= given.items <= len(data):
        parser.error(f"--items must lie between 1 and {len(data):,}")
    x = data.batch(uniform(len(data), seed=0, check="benchmark.items", item=0).argsort(kind="stable")[: given.items])
    radius = usual_radius(vae, x, 2.0, items=range(len(x)), batch_size=None)
    problem = Problem(vae, x, radius)
    if given.certificates or given.boxed:
        print(f"{given.model}: r = {radius:.4g} (2 x median min r), m = {M}, {given.threads} thread(s)\n")
        print(certificates(problem) if given.certificates else in_the_box(problem))
        return
    all_lines = lines(problem)
    for line in all_lines.values():  # nobody's first call is timed
        line.ours()
    rows, values = measure(all_lines)
    headers = ["", "items", "items / s", "floor's items / s", "x the floor"]
    headers += ["as printed: items", "items / s", "x its speed"]
    print(
        f"{given.model}: r = {radius:.4g} (2 x median min r), m = {M}, {x.dtype}, torch {torch.__version__},", end=" "
    )
    print(f"{given.threads} thread(s), medians of {TURNS}\n")
    print(tabulate(rows, headers=headers, floatfmt=".4g"), "", sep="\n")
    print(f"Algorithm 1: {DRAWS:,} draws at each step, all at once; step {STEP_1:g} x the median of min r.")
    print(
        f"Algorithm 2: steps of {STEP_2:g} x our margin; {RESTARTS} restarts, one attack and {DRAWS:,} draws each (as "
        f"printed, an attack a draw); {ADAM_STEPS}\nsteps of Adam, {ADAM_DRAWS} draws, rate {ADAM_RATE:g} x cap / "
        f"sqrt(inputs). Begun at {BEGIN:g} x our margin, its time scaled to the steps from {TOP:g}."
    )
    print("", reached(values, problem.attacked), "", certificates(problem), sep="\n")


if __name__ == "__main__":
    main()
