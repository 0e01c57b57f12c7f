"""The sweep against SciPy's L-BFGS-B one problem at a time, BoTorch's batched one, and the bare forward and backward.

    python -m benchmarks.attack [--preset mlp | --preset burgess --model PATH --data PATH] [--pairs 2] [--threads 1]

All methods run in turn, several times over, with the number of threads pinned; times are medians, and ratios of times
medians of the ratios within one turn. SciPy has one thread a process. Every method's points are judged alike: data
term and ||d|| anew in float64.

"Free bound" is the better of d = 0 and d = x_t - x, which need no optimiser. "+ free bounds" gives a problem the best
of those and of what the same method found for other lambda of its pair, min_i KL_i + lambda_j ||d_i||. Problems that
the free bound solves to 0.1% of the best that any method knows are "trivial": they say nothing of an optimiser.
Then what the sweep costs beside the model, and few lambda against the same ones among 41.
Attacks under caps (benchmarks.capped) and the output attack (benchmarks.adam) follow, on the same pairs.
"""

import argparse
import copy
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from vaeaudit_adapters.mlp import MLP, MLPOptions

import vaeaudit
from benchmarks import adam, capped
from vaeaudit.attacks.attacked import Sweep
from vaeaudit.attacks.objectives import Objective
from vaeaudit.attacks.search import Effort
from vaeaudit.attacks.sweep import geometric_lambdas, sweep
from vaeaudit.attacks.term import DataTerm, Squares
from vaeaudit.checks.attack.pairs import at_random
from vaeaudit.data.items import Data, fit
from vaeaudit.data.sources import read
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.registry import open_model
from vaeaudit.model.vae import VAE, Posterior
from vaeaudit.optim.lbfgsb import Stopping
from vaeaudit.progress import GoOn, always

MAXCOR, FTOL = 10, 2.2e-9
OFF_ZERO = 1e-2  # where SciPy and BoTorch start, as a share of the way to the target: `l2` has no gradient at d = 0
STEPS = 300  # of the brief training of --preset mlp
SCIPY, TWO, BOTORCH = "SciPy, one process", "SciPy, two processes", "BoTorch, batched"
OURS, SWEEP, FLOOR = "ours, vaeaudit.attack", "ours, its sweep alone", "bare forward + backward"
LABELS = {SCIPY: "SciPy", BOTORCH: "BoTorch", OURS: "ours"}
MANY, FEW = 41, (1, 2, 6, 11, 21)  # of 41 lambda neighbours are a factor of 2 apart; few are some of them
Array = NDArray[np.float64]
T = TypeVar("T", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Found:
    """Points (K, n) of the problems ``which`` in float64, rows evaluated, CPU seconds of other processes, a remark."""

    points: Tensor | None
    evaluations: int
    which: Tensor | None = None
    cpu: float = 0.0
    told: str = ""


class LimitReachedError(Exception):
    """BoTorch has had the rows that it was given."""


@dataclass(frozen=True, eq=False)
class Problems:
    """P pairs and L lambda on one model: problem k is pair k // L, lambda k % L."""

    vae: VAE
    x: Tensor
    x_t: Tensor
    lambdas: tuple[float, ...]
    most: int  # evaluations that ours may spend on a problem

    @property
    def rows(self) -> RowBatches:
        """How many rows our attack gives the model at once: the other batched methods give as many."""
        return RowBatches.automatic(tuple(self.x.shape[1:]), self.x.device)

    @property
    def bounds(self) -> list[tuple[float | None, float | None]]:
        """The box of each element."""
        return [self.vae.range or (None, None)] * self.x[0].numel()

    def begin(self, k: Array) -> tuple[Posterior, Array, Array, Array]:
        """Target posterior, source, starting point and lambda of the problems ``k``."""
        pair = torch.from_numpy(k // len(self.lambdas))
        source, target = (t.flatten(1).double().cpu()[pair].numpy() for t in (self.x, self.x_t))
        with torch.no_grad():
            posterior = self.vae.encode(self.x_t).rows(pair.to(self.x.device))
        return posterior, source, source + OFF_ZERO * (target - source), np.array(self.lambdas)[k % len(self.lambdas)]

    def slope(self, points: Tensor, target: Posterior) -> tuple[Tensor, Tensor]:
        """KL(q(z|points) || target), (b,), and its gradient (b, *shape)."""
        leaf = points.detach().requires_grad_(True)
        value = self.vae.encode(leaf).kl(target)
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

    def objective(self, points: Array, target: Posterior, source: Array, lam: Array) -> tuple[Array, Array]:
        """KL + lambda ||d||, (b,), and its gradient (b, n): float64 outside, the model's own precision inside."""
        data, gradient = self.slope(torch.from_numpy(points).to(self.x).reshape(-1, *self.x.shape[1:]), target)
        d = points - source
        norm = np.linalg.norm(d, axis=1)
        slope = (lam / np.maximum(norm, 1e-30))[:, None] * d
        return data.double().cpu().numpy() + lam * norm, gradient.flatten(1).double().cpu().numpy() + slope


def one_by_one(problems: Problems, which: Array) -> tuple[Array, int, float]:
    """SciPy on the problems named, one after another on one thread: points, evaluations, CPU seconds."""
    threads, began = torch.get_num_threads(), time.process_time()
    torch.set_num_threads(1)
    (targets, source, start, lam), bounds, evaluations = problems.begin(which), problems.bounds, 0
    points, settings = np.empty_like(start), {"maxcor": MAXCOR, "ftol": FTOL, "maxiter": 15000, "maxfun": 10**9}
    for i in range(len(which)):
        own = targets.rows(torch.tensor([i], device=problems.x.device)), source[i : i + 1], lam[i : i + 1]

        def objective(x: Array, own: tuple[Posterior, Array, Array] = own) -> tuple[float, Array]:
            value, gradient = problems.objective(x[None], *own)
            return float(value[0]), gradient[0]

        found = minimize(objective, start[i], jac=True, method="L-BFGS-B", bounds=bounds, options=settings)
        points[i], evaluations = found.x, evaluations + found.nfev
    torch.set_num_threads(threads)
    return points, evaluations, time.process_time() - began


def scipy_one(problems: Problems, which: Array) -> Found:
    """SciPy in this process."""
    points, evaluations, _ = one_by_one(problems, which)
    return Found(torch.from_numpy(points), evaluations, torch.from_numpy(which))


def scipy_two(problems: Problems, which: Array) -> Found:
    """SciPy in two processes at once, each with every second problem."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        parts = pool.starmap(one_by_one, [(problems, which[part::2]) for part in (0, 1)])
    return Found(None, sum(part[1] for part in parts), torch.from_numpy(which), sum(part[2] for part in parts))


def botorch(problems: Problems, minimiser: Callable[..., object], most: int | None) -> Found:
    """BoTorch's batched L-BFGS-B on all problems: the best points seen, also where a limit of rows ends it."""
    targets, source, start, lam = problems.begin(np.arange(len(problems.x) * len(problems.lambdas)))
    best, points, size, evaluations = np.full(len(start), np.inf), start.copy(), problems.rows.size, 0

    def objective(x: Array, batch_indices: Sequence[int]) -> tuple[Array, Array]:
        nonlocal evaluations
        evaluations += len(x)
        if most is not None and evaluations > most:
            evaluations -= len(x)
            raise LimitReachedError
        parts, k = [], np.array(batch_indices)
        for first in range(0, len(x), size):
            part = slice(first, first + size)
            target = targets.rows(torch.from_numpy(k[part]).to(problems.x.device))
            parts.append(problems.objective(x[part], target, source[k[part]], lam[k[part]]))
        value, gradient = (np.concatenate(column) for column in zip(*parts, strict=True))
        better = value < best[k]
        best[k[better]], points[k[better]] = value[better], x[better]
        return value, gradient

    told, settings = "", {"maxcor": MAXCOR, "ftol": FTOL, "factr": None, "pass_batch_indices": True}
    try:
        minimiser(objective, start, problems.bounds, **settings)
    except LimitReachedError:
        told = f"limit of {most:,} rows hit, best points seen"
    return Found(torch.from_numpy(points), evaluations, told=told)


def ours(problems: Problems) -> Found:
    """Our attack as a user runs it: the sweep, its failure signs, and reconstructions of all that it found."""
    x, x_t, settings = problems.x, problems.x_t, {"lambdas": problems.lambdas, "max_evaluations": problems.most}
    return swept(vaeaudit.attack(problems.vae, x, x_t, **settings).sweep)


def alone(
    problems: Problems,
    lambdas: Sequence[float],
    seen: Callable[[Tensor], None] = lambda _: None,
    go_on: GoOn = always,
) -> Sweep:
    """The sweep within our attack, with the settings that it has there; each batch of points is ``seen``."""
    vae, x, x_t = problems.vae, problems.x, problems.x_t
    term = Objective("latent").data_term(vae, x, x_t, x.new_zeros(1, len(x), 1))  # the KL draws no noise

    def watched(function: DataTerm) -> DataTerm:
        def call(points: Tensor, pair: Tensor) -> Tensor:
            seen(points)
            return function(points, pair)

        return call

    of = Squares(watched(term.data_term), watched(term.residuals)) if isinstance(term, Squares) else watched(term)
    effort = Effort(Stopping.for_dtype(x.dtype, problems.most))
    return sweep(of, x, x_t, vae.range, x.new_tensor(lambdas), effort=effort, rows=problems.rows, go_on=go_on)


def ours_alone(problems: Problems) -> Found:
    """The search within our attack: the like of what the others do."""
    return swept(alone(problems, problems.lambdas))


def swept(found: Sweep) -> Found:
    """A sweep as the other methods are told."""
    return Found(found.adversarial.flatten(0, 1).flatten(1).double(), int(found.evaluations.sum()))


class Calls(TorchDispatchMode):
    """Counts the calls of tensor operations, those of backward passes among them."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Count, and call."""
        self.number += 1
        return func(*args, **(kwargs or {}))


def costs_table(problems: Problems) -> str:
    """Rounds of the sweep, rows in each, tensor calls of each, and those that are the model's."""
    batches: list[int] = []
    with Calls() as ours:
        alone(problems, problems.lambdas, lambda points: batches.append(len(points)) if points.requires_grad else None)
    target, *_ = problems.begin(np.array([0]))
    with Calls() as bare:
        problems.slope(problems.x[:1], target)
    rounds = len(batches)
    row = [rounds, sum(batches) / rounds, ours.number / rounds, bare.number]
    return tabulate([row], headers=["rounds", "rows a round", "tensor calls a round", "of the model"], floatfmt=".4g")


def few_table(problems: Problems) -> str:
    """Objectives with few lambda over those of the same lambda among MANY."""
    many, rows = alone(problems, geometric_lambdas(MANY)), []
    for count in FEW:
        found, lambdas = alone(problems, geometric_lambdas(count)), geometric_lambdas(MANY)
        same = [lambdas.index(value) for value in geometric_lambdas(count)]
        rows.append([count, int(found.evaluations.sum()), *quality(found.objective / many.objective[:, same])])
    headers = ["lambda", "evaluations", "n", "share <= 1.001", "worst", "geometric mean"]
    return tabulate(rows, headers=headers, floatfmt=".4g", intfmt=",")


def floor(problems: Problems, evaluations: int) -> Found:
    """Nothing but encoder, KL and gradient for as many rows as ours evaluated, in batches of the same size."""
    size = min(problems.rows.size, evaluations)
    target, *_ = problems.begin(np.arange(size) % (len(problems.x) * len(problems.lambdas)))
    points = problems.x[torch.arange(size, device=problems.x.device) % len(problems.x)]
    rest = torch.arange(evaluations % size, device=points.device)
    for _ in range(evaluations // size):
        problems.slope(points, target)
    if len(rest):
        problems.slope(points[rest], target.rows(rest))
    return Found(None, evaluations)


def judged(problems: Problems, found: dict[str, Found]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Objectives (P, L) of each method, NaN where it was not run; the free bound and the best known, (P, L)."""
    exact = copy.deepcopy(problems.vae)
    if isinstance(exact, nn.Module):
        exact.double()
    x, x_t = problems.x.double(), problems.x_t.double()
    shape, lam = (len(x), len(problems.lambdas)), x.new_tensor(problems.lambdas)
    pair = torch.arange(len(x), device=x.device)

    @torch.no_grad()
    def measure(points: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        kl = exact.encode(points.reshape(-1, *x.shape[1:])).kl(exact.encode(x_t[of]))
        return kl, torch.linalg.vector_norm(points - x[of].flatten(1), dim=1)

    def exchanged(*candidates: tuple[Tensor, Tensor]) -> Tensor:
        data, norm = (torch.cat(column, 1)[:, None] for column in zip(*candidates, strict=True))  # (P, 1, M)
        return (data + lam[:, None] * norm).min(2).values

    (zero, none), (matched, gap) = (measure(end.flatten(1), pair) for end in (x, x_t))
    free = torch.stack([zero, matched], 1), torch.stack([none, gap], 1)
    values, known = {}, [free]
    for method, label in LABELS.items():
        if method in found and (points := found[method].points) is not None:
            which = found[method].which
            k = torch.arange(shape[0] * shape[1]) if which is None else which
            data, norm = (x.new_full((shape[0] * shape[1],), torch.inf) for _ in range(2))
            k = k.to(x.device)
            data[k], norm[k] = problems.rows.map(measure, points.to(x.device), k // shape[1])
            own = data.reshape(shape), norm.reshape(shape)
            known.append(own)
            values[label] = (own[0] + lam * own[1]).masked_fill(own[0].isinf(), torch.nan)
            if method != OURS:
                values[f"{label} + free bounds"] = exchanged(own, free).masked_fill(own[0].isinf(), torch.nan)
    return values, exchanged(free), exchanged(*known)


def quality(ratio: Tensor) -> list[float]:
    """Problems, share <= 1.001, worst and geometric mean of a ratio of objectives, NaN left out."""
    ratio = ratio[~ratio.isnan()]
    if not len(ratio):
        return [0, math.nan, math.nan, math.nan]
    return [len(ratio), float((ratio <= 1.001).double().mean()), float(ratio.max()), float(ratio.log().mean().exp())]


def quality_tables(values: dict[str, Tensor], free: Tensor, best: Tensor) -> str:
    """Ours over each other method, then each method over the best known and over the free bound."""
    trivial = free <= 1.001 * best
    sets = {"all": trivial | ~trivial, "trivial": trivial, "others": ~trivial}
    figures = ["problems", "n", "share <= 1.001", "worst", "geometric mean"]
    over, known = [], []
    for label, value in values.items():
        for name, chosen in sets.items():
            if label != "ours":
                over.append([label, name, *quality((values["ours"] / value)[chosen])])
            known.append([label, name, *quality((value / best)[chosen]), 1 - quality((value / free)[chosen])[1]])
    first = tabulate(over, headers=["ours over", *figures], floatfmt=".4g")
    last = "share > 1.001 free bound"
    return f"{first}\n\n{tabulate(known, headers=['over the best known', *figures, last], floatfmt='.4g')}"


def times_table(seconds: dict[str, list[Array]], found: dict[str, Found], scale: dict[str, float]) -> str:
    """Wall and CPU seconds, (2,) a turn, as medians over the turns; of all problems for methods that ran on some."""
    seconds = {name: [turn * scale.get(name, 1.0) for turn in turns] for name, turns in seconds.items()}

    def median(values: Sequence[Array]) -> list[float]:
        return [statistics.median(column) for column in np.stack(values).T]

    rows = [
        [
            *(name, *median(own), round(found[name].evaluations * scale.get(name, 1.0))),
            *median([a / b for a, b in zip(seconds[SCIPY], own, strict=True)]),
            *median([a / b for a, b in zip(own, seconds[FLOOR], strict=True)]),
            found[name].told,
        ]
        for name, own in seconds.items()
    ]
    headers = ["", "wall s", "CPU s", "evaluations", "x SciPy's speed: wall", "CPU", "x the floor: wall", "CPU", ""]
    return tabulate(rows, headers=headers, floatfmt=".3g", intfmt=",")


def new_mlp(input_shape: tuple[int, ...]) -> MLP:
    """A 784-400-400-20 VAE of random weights, from a fixed seed."""
    heads = {f"encoder.{head}": {0: (20, 400)} for head in ("mean", "logvar")}
    ends = {"encoder.shared": {0: (400, 784), 2: (400, 400)}, "decoder": {0: (400, 20), 2: (400, 400), 4: (784, 400)}}
    torch.manual_seed(0)
    return MLP(ends | heads, MLPOptions(input_shape=input_shape))


def briefly_trained(vae: T, data: Data, steps: int = STEPS) -> T:
    """A model with a Bernoulli likelihood after some random batches of the data."""
    optimiser = torch.optim.Adam(vae.parameters(), lr=1e-3)
    for _ in range(steps):
        x = data.batch(torch.randint(len(data), (100,)).numpy())
        q = vae.encode(x)
        loss = (q.kl(vae.prior) - vae.decode(q.sample(torch.randn_like(q.mean))).log_prob(x)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return vae.eval().requires_grad_(False)


def opened(given: argparse.Namespace) -> tuple[Problems, str]:
    """The problems asked for, and what to call their model."""
    where = {"device": given.device, "dtype": getattr(torch, given.dtype)}
    if given.preset == "mlp":
        data = fit(read(given.data), input_shape=(1, 28, 28), data_range=(0, 1), resize=given.resize)
        vae: VAE = briefly_trained(new_mlp(data.input_shape), data).to(**where)
        name = f"784-400-400-20 MLP of seed 0, trained briefly ({STEPS} steps)"
    else:
        name = given.model or "examples/shapes-beta1.safetensors"
        vae = open_model(name, given.adapter, **where).vae
        data = fit(read(given.data), input_shape=tuple(vae.input_shape), data_range=vae.range, resize=given.resize)
    pairs = at_random(data, given.pairs, seed=0)
    x, x_t = (data.batch(items, **where) for items in (pairs.sources, pairs.targets))
    return Problems(vae, x, x_t, geometric_lambdas(given.lambdas), given.max_evaluations), f"{name} on {given.data}"


def options() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told = "mlp: a 784-400-400-20 VAE made here; burgess: --adapter burgess --resize bilinear, with your --model"
    parser.add_argument("--preset", choices=("mlp", "burgess"), help=told)
    parser.add_argument("--model", help="a checkpoint (default: the bundled shapes-beta1)")
    parser.add_argument("--adapter")
    parser.add_argument("--data", default="examples/shapes.npz")
    parser.add_argument("--resize")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--lambdas", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1, help="of all but SciPy, which has one a process")
    parser.add_argument("--repeats", type=int, default=3, help="turns of which medians are taken")
    parser.add_argument("--scipy-every", type=int, default=1, metavar="K", help="give SciPy every K-th lambda only")
    parser.add_argument("--two-processes", action="store_true", help="time SciPy in two processes as well")
    parser.add_argument("--max-evaluations", type=int, default=600, help="that ours may spend on a problem")
    parser.add_argument("--botorch-rows", type=int, metavar="N", help="most rows that BoTorch may evaluate")
    parser.add_argument("--sweep-only", action="store_true", help="leave out attacks under caps and the output attack")
    given = parser.parse_args()
    if given.preset == "mlp" and (given.model or given.adapter):
        parser.error("--preset mlp makes its own model; leave out --model and --adapter")
    if given.preset == "burgess":
        if not given.model:
            parser.error("--preset burgess needs --model, a checkpoint of the adapter burgess")
        given.adapter, given.resize = given.adapter or "burgess", given.resize or "bilinear"
    if given.two_processes and given.device != "cpu":
        parser.error("--two-processes needs --device cpu")
    if min(given.threads, given.repeats) < 1 or not 1 <= given.scipy_every <= given.lambdas:
        parser.error("--threads and --repeats must be at least 1, --scipy-every between 1 and --lambdas")
    return given


def main() -> None:
    """Run the comparison and print its tables."""
    given = options()
    pinned = {f"{library}_NUM_THREADS": str(given.threads) for library in ("OMP", "OPENBLAS", "MKL")}
    if any(os.environ.get(name) != value for name, value in pinned.items()):  # libraries read it as they load: anew
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.attack", *sys.argv[1:]], os.environ | pinned)
    torch.set_num_threads(given.threads)
    problems, name = opened(given)
    k = np.arange(given.pairs * given.lambdas)
    which = k[k % given.lambdas % given.scipy_every == min(given.scipy_every // 2, given.lambdas - 1)]
    warm = ours(problems)  # nobody's first call is timed
    if given.device == "cpu" and not torch.equal(warm.points, ours_alone(problems).points):
        sys.exit("the sweep alone is not that of vaeaudit.attack: bring its settings here up to date")
    methods: dict[str, Callable[[], Found]] = {SCIPY: lambda: scipy_one(problems, which)}
    if given.two_processes:
        methods[TWO] = lambda: scipy_two(problems, which)
    remarks = ["The floor is that of the rows that ours evaluated; the attack adds failure signs and reconstructions."]
    try:
        from botorch.optim.batched_lbfgs_b import fmin_l_bfgs_b_batched

        methods[BOTORCH] = lambda: botorch(problems, fmin_l_bfgs_b_batched, given.botorch_rows)
    except ImportError:
        remarks.append("BoTorch is not installed (pip install botorch): left out.")
    if given.scipy_every > 1:
        some = f"SciPy ran on {len(which)} of {len(k)} problems: its seconds and evaluations are scaled to all,"
        remarks.append(f"{some} its quality is that on those alone, exchanged among them alone.")
    methods |= {OURS: lambda: ours(problems), SWEEP: lambda: ours_alone(problems)}
    methods[FLOOR] = lambda: floor(problems, warm.evaluations)
    seconds: dict[str, list[Array]] = {method: [] for method in methods}
    found: dict[str, Found] = {}
    for turn in range(given.repeats):
        first = turn % len(methods)
        for method in [*list(methods)[first:], *list(methods)[:first]]:
            wall, cpu = time.perf_counter(), time.process_time()
            found[method] = methods[method]()
            if given.device != "cpu":
                torch.accelerator.synchronize()
            own = time.perf_counter() - wall, time.process_time() - cpu + found[method].cpu
            seconds[method].append(np.array(own))
    size = f"{given.pairs} pairs x {given.lambdas} lambda"
    print(f"{name}: {size}, {given.dtype}, {given.device}, {given.threads} thread(s)")
    print(f"at most {given.max_evaluations} evaluations of ours to refine a problem;", end=" ")
    print(f"torch {torch.__version__}, SciPy {scipy.__version__}, {platform.machine()}; medians of {given.repeats}\n")
    scale = dict.fromkeys((SCIPY, TWO), len(k) / len(which))
    print(times_table(seconds, found, scale), *remarks, "", quality_tables(*judged(problems, found)), sep="\n")
    print("", costs_table(problems), "", few_table(problems), sep="\n")
    if not given.sweep_only:
        of = problems.vae, problems.x, problems.x_t
        print("", capped.tables(*of), "", adam.table(*of), sep="\n")


if __name__ == "__main__":
    main()
