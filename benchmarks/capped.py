"""Attacks under an L2 cap, ours and others, on the same items in one process: what each reaches, and what it costs.

    python -m benchmarks.capped [--model PATH --adapter NAME --data PATH --resize FILTER] [--items 10] [--threads 1]

Damage is ||g(mu(x*)) - g(mu(x))||, which an attack maximises; KL(q(z|x*) || q(z|x_t)) what it minimises. PGD (Madry et
al. 2018) keeps its best iterate. APGD is that of
Croce & Hein 2020, once as written here and once as adversarial-library has it; that and Foolbox are compared where they
are installed. They take logits: (0, f) with f the damage, or minus the logarithm of the KL, keeps the gradient's
direction. A row is one input through the model, with or without the way back; ours include those of its directions.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from tabulate import tabulate
from torch import Tensor, nn

from vaeaudit.attacks.capped import capped
from vaeaudit.attacks.directions import pull_back, random_search
from vaeaudit.attacks.objectives import damage
from vaeaudit.attacks.term import DataTerm, Term
from vaeaudit.checks.attack.pairs import at_random
from vaeaudit.data.items import fit
from vaeaudit.data.sources import read
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.registry import open_model
from vaeaudit.model.vae import VAE
from vaeaudit.stats.draws import noise_set

CAPS, LATENT_CAPS = (0.5, 1.0), (1.0, 2.0, 4.0)
ROWS = 505  # that an attack of equal cost may spend on an item and a cap
STARTS = 15
LENGTHS = (0.05, 0.1, 0.3)  # of PGD's steps, as shares of the cap; which is best depends on model and cap
GROUP = 5  # items attacked by one attack before it is the next one's turn


@dataclass(frozen=True, eq=False)
class Task:
    """What is minimised on items x (I, *shape), under which caps, and what the peers take as logit."""

    name: str
    term: DataTerm
    x: Tensor
    box: tuple[float, float] | None
    caps: Tensor
    directions: Callable[[], Tensor]
    logit: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Row:
    """One attack on one task: least values (I, C), rows of the model for an item and a cap, seconds in all."""

    task: str
    attack: str
    value: Tensor
    rows: int
    seconds: float


class Problems:
    """The items and caps of a task as rows k = item * C + cap, with the model's rows counted and the best kept."""

    def __init__(self, task: Task) -> None:
        self.task, count = task, len(task.caps)
        self.item = torch.arange(len(task.x), device=task.x.device).repeat_interleave(count)
        self.cap = task.caps.repeat(len(task.x))
        self.x = task.x.flatten(1)[self.item]
        low, high = task.box or (-torch.inf, torch.inf)
        self.low, self.high = low - self.x, high - self.x
        self.shape = tuple(task.x.shape[1:])
        self.engine = Term(task.term, self.shape, RowBatches.automatic(self.shape, task.x.device))
        self.best = torch.full_like(self.cap, torch.inf)
        self.rows = 0

    def gradient(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """Value (K,) and gradient (K, n) at d (K, n)."""
        self.rows += 1
        value, gradient = self.engine.gradient(self.x + d, self.item)
        self.best = torch.minimum(self.best, value)
        return value, gradient

    def logits(self, points: Tensor) -> Tensor:
        """(b, 2), differentiable, for the libraries."""
        self.rows += 1
        value = self.task.term(points, self.item)
        self.best = torch.minimum(self.best, value.detach())
        f = self.task.logit(value)
        return torch.stack([torch.zeros_like(f), f], 1)

    def project(self, d: Tensor) -> Tensor:
        """On the ball, then on the box, as these attacks do."""
        length = torch.linalg.vector_norm(d, dim=1, keepdim=True).clamp(min=1e-30)
        d = d * (self.cap[:, None] / length).clamp(max=1)
        return torch.maximum(torch.minimum(d, self.high), self.low)

    def start(self, number: int) -> Tensor:
        """A random point on the sphere, cut at the box."""
        items = range(len(self.x))
        d = noise_set(self.shape, draws=1, items=items, seed=number, check="benchmark.capped", like=self.x)[0].flatten(
            1
        )
        return self.project(d / torch.linalg.vector_norm(d, dim=1, keepdim=True) * self.cap[:, None])

    @property
    def table(self) -> Tensor:
        """The best seen, (I, C)."""
        return self.best.reshape(len(self.task.x), -1)


def ours(task: Task) -> tuple[Tensor, int]:
    """The attack of this package."""
    rows = RowBatches.automatic(tuple(task.x.shape[1:]), task.x.device)
    found = capped(
        task.term,
        task.x,
        task.box,
        task.caps,
        directions=task.directions(),
        max_evaluations=ROWS - STARTS,
        rows=rows,
    )
    return found.data_term, int(found.evaluations.max()) + STARTS


def searched_at_random(task: Task) -> tuple[Tensor, int]:
    """Random search."""
    draws = ROWS // 2
    noise = noise_set(
        tuple(task.x.shape[1:]), draws=draws, items=range(len(task.x)), seed=0, check="benchmark.random", like=task.x
    )
    rows = RowBatches.automatic(tuple(task.x.shape[1:]), task.x.device)
    radius = task.caps.expand(len(task.x), -1)
    return random_search(task.term, task.x, task.box, "l2", radius, noise, rows)[0], 2 * draws


def pgd(task: Task, steps: int, restarts: int, length: float) -> tuple[Tensor, int]:
    """Projected gradient steps of ``length`` times the cap, best iterate of all restarts."""
    problems = Problems(task)
    for restart in range(restarts):
        d = problems.start(restart)
        for _ in range(steps):
            _, gradient = problems.gradient(d)
            d = problems.project(d - length * problems.cap[:, None] * _unit(gradient))
        problems.gradient(d)
    return problems.table, problems.rows


def _pgd(length: float) -> Callable[[Task], tuple[Tensor, int]]:
    return lambda task: pgd(task, 200, 10, length)


def apgd(task: Task, steps: int, restarts: int) -> tuple[Tensor, int]:
    """APGD, Croce & Hein 2020, "Reliable evaluation of adversarial robustness", algorithm 1 and section 3.3."""
    problems = Problems(task)
    checks, share, before = [], 0.22, 0.0
    while share <= 1:  # p_0 = 0, p_1 = 0.22, and ever shorter stretches, of at least 0.06
        checks.append(round(share * steps))
        share, before = share + max(share - before - 0.03, 0.06), share
    for restart in range(restarts):
        d = last = problems.start(restart)
        value, gradient = problems.gradient(d)
        best, best_d, best_gradient = value, d, gradient
        step = 2 * problems.cap
        rises, checked, reduced = torch.zeros_like(value), best, torch.ones_like(value, dtype=torch.bool)
        since = 0
        for done in range(1, steps + 1):
            ahead = problems.project(d - step[:, None] * _unit(gradient))
            if done > 1:
                ahead = problems.project(d + 0.75 * (ahead - d) + 0.25 * (d - last))
            last, d = d, ahead
            was = value
            value, gradient = problems.gradient(d)
            rises, since = rises + (value < was), since + 1
            better = value < best
            best = torch.where(better, value, best)
            best_d = torch.where(better[:, None], d, best_d)
            best_gradient = torch.where(better[:, None], gradient, best_gradient)
            if done in checks:
                halve = (rises < 0.75 * since) | (~reduced & (best >= checked))
                step = torch.where(halve, step / 2, step)
                d, gradient = (
                    torch.where(halve[:, None], best_d, d),
                    torch.where(halve[:, None], best_gradient, gradient),
                )
                reduced, checked, since, rises = halve, best, 0, torch.zeros_like(rises)
    return problems.table, problems.rows


def of_adversarial_library(task: Task) -> tuple[Tensor, int] | None:
    """adversarial-library's APGD, 100 steps and 5 restarts, with ``best_loss``; None where it is not installed."""
    try:
        from adv_lib.attacks.auto_pgd import apgd as library
    except ImportError:
        return None
    problems = Problems(task)
    labels = torch.zeros(len(problems.x), dtype=torch.long, device=task.x.device)
    torch.manual_seed(0)
    points = problems.x.reshape(-1, *problems.shape)
    model = _Model(problems)
    library(model, points, labels, problems.cap, 2, n_restarts=5, loss_function="ce", best_loss=True)
    return problems.table, problems.rows


def of_foolbox(task: Task) -> tuple[Tensor, int] | None:
    """Foolbox's L2 PGD, 100 steps and 5 runs, which returns its last iterate; None where it is not installed."""
    try:
        import foolbox
    except ImportError:
        return None
    values, rows = [], 0
    torch.manual_seed(0)
    for cap in task.caps:
        problems = Problems(replace(task, caps=cap[None]))
        model = foolbox.PyTorchModel(_Model(problems).eval(), bounds=task.box, device=task.x.device)
        attack = foolbox.attacks.L2ProjectedGradientDescentAttack(steps=100)
        labels = foolbox.criteria.Misclassification(torch.zeros(len(task.x), dtype=torch.long, device=task.x.device))
        last = [attack.run(model, task.x, labels, epsilon=float(cap)) for _ in range(5)]
        values.append(torch.stack([problems.engine.value(each.flatten(1), problems.item) for each in last]).amin(0))
        rows = problems.rows
    return torch.stack(values, 1), rows


class _Model(nn.Module):
    """What the libraries attack, with the label 0."""

    def __init__(self, problems: Problems) -> None:
        super().__init__()
        self.problems = problems

    def forward(self, points: Tensor) -> Tensor:
        return self.problems.logits(points)


def _unit(gradient: Tensor) -> Tensor:
    return gradient / torch.linalg.vector_norm(gradient, dim=1, keepdim=True).clamp(min=1e-30)


ATTACKS: dict[str, Callable[[Task], tuple[Tensor, int] | None]] = {
    "ours": ours,
    "APGD 100 x 5": lambda task: apgd(task, 100, 5),
    "adversarial-library APGD 100 x 5": of_adversarial_library,
    "Foolbox PGD 100 x 5": of_foolbox,
    **{f"PGD 200 x 10, steps of {length} caps": _pgd(length) for length in LENGTHS},
    "random search": searched_at_random,
}


def tasks(vae: VAE, x: Tensor, x_t: Tensor, caps: Tensor, latent_caps: Tensor, seed: int, items: range) -> list[Task]:
    """Damage at z = the mean under ``caps``, and KL to the targets under ``latent_caps``."""
    rows = RowBatches.automatic(vae.input_shape, x.device)

    def mean(points: Tensor, _item: Tensor) -> Tensor:
        return vae.encode(points).mean

    def directions(count: int) -> Tensor:
        with torch.no_grad():
            latent = tuple(vae.encode(x[:1]).mean.shape[1:])
        noise = noise_set(latent, draws=count, items=items, seed=seed, check="benchmark.ours", like=x)
        return pull_back(mean, x, noise, rows)

    with torch.no_grad():
        target = vae.encode(x_t)
    return [
        Task("damage", damage(vae, x, None), x, vae.range, caps, lambda: directions(STARTS), lambda value: -value),
        Task(
            "KL left",
            lambda points, pair: vae.encode(points).kl(target.rows(pair)),
            x,
            vae.range,
            latent_caps,
            lambda: torch.cat([(x_t - x)[None], directions(STARTS - 1)]),
            lambda value: -value.log(),
        ),
    ]


def compare(
    vae: VAE,
    x: Tensor,
    x_t: Tensor,
    caps: tuple[float, ...],
    latent_caps: tuple[float, ...],
    seed: int,
) -> list[Row]:
    """All attacks on ``x`` (I, *shape) with targets ``x_t``, turn about on groups of items."""
    found: dict[tuple[str, str], list[Row]] = {}
    for first in range(0, len(x), GROUP):
        group = slice(first, first + GROUP)
        items = range(len(x))[group]
        for task in tasks(vae, x[group], x_t[group], x.new_tensor(caps), x.new_tensor(latent_caps), seed, items):
            for name, attack in ATTACKS.items():
                started = time.perf_counter()
                result = attack(task)
                if result is not None:
                    row = Row(task.name, name, *result, time.perf_counter() - started)
                    found.setdefault((task.name, name), []).append(row)
    return [
        replace(rows[0], value=torch.cat([row.value for row in rows]), seconds=sum(row.seconds for row in rows))
        for rows in found.values()
    ]


def show(rows: list[Row], task: str, caps: tuple[float, ...]) -> str:
    """The table of one task: means over items, and how often ours is at least as strong."""
    rows = [row for row in rows if row.task == task]
    mine = rows[0]
    sign = -1 if task == "damage" else 1
    lines = [
        [
            row.attack,
            row.rows,
            row.seconds / mine.seconds,
            *(sign * row.value).mean(0).tolist(),
            float((mine.value <= row.value + 1e-3 * row.value.abs()).double().mean()),
            float((mine.value / row.value if sign < 0 else row.value / mine.value).min()),
        ]
        for row in rows
    ]
    headers = ["attack", "rows", "times our seconds", *(f"{task}, cap {cap:g}" for cap in caps)]
    headers += ["ours as strong to 0.1%: share", "worst ratio"]
    return tabulate(lines, headers=headers, floatfmt=".4g")


def tables(vae: VAE, x: Tensor, x_t: Tensor, seed: int = 0) -> str:
    """Damage and KL left of all attacks on ``x`` (I, *shape) with targets ``x_t``."""
    rows = compare(vae, x, x_t, CAPS, LATENT_CAPS, seed)
    return f"{show(rows, 'damage', CAPS)}\n\n{show(rows, 'KL left', LATENT_CAPS)}"


def main() -> None:
    """Run the comparison and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="examples/shapes-beta1.safetensors")
    parser.add_argument("--adapter")
    parser.add_argument("--data", default="examples/shapes.npz")
    parser.add_argument("--resize")
    parser.add_argument("--items", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    vae = open_model(given.model, given.adapter).vae
    data = fit(read(given.data), input_shape=tuple(vae.input_shape), data_range=vae.range, resize=given.resize)
    pairs = at_random(data, given.items, seed=given.seed)
    x, x_t = data.batch(pairs.sources), data.batch(pairs.targets)
    print(f"{given.model}: {given.items} items, torch {torch.__version__}, {given.threads} thread(s)")
    print(tables(vae, x, x_t, given.seed))


if __name__ == "__main__":
    main()
