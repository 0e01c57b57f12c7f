"""The sweep against Adam at equal evaluations: the same draws, and for each problem as many gradients as ours took.

    python -m benchmarks.adam [--mode output|latent] [--model PATH --adapter NAME --data PATH --resize FILTER]

Adam starts from a small step towards the target, is clipped into the box after each step, and keeps its best iterate;
of the learning rates tried, each problem is given the best, which is generous. "+ exchange" gives it, for each
problem, the best of what it found for other lambda of the pair, d = 0 and d = x_t - x.
"""

import argparse

import torch
from tabulate import tabulate
from torch import Tensor

from vaeaudit.attacks.attacked import Sweep
from vaeaudit.attacks.objectives import Objective
from vaeaudit.attacks.search import Effort
from vaeaudit.attacks.sweep import geometric_lambdas, sweep
from vaeaudit.attacks.term import Term
from vaeaudit.checks.attack.pairs import at_random
from vaeaudit.data.items import fit
from vaeaudit.data.sources import read
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.registry import open_model
from vaeaudit.model.vae import VAE
from vaeaudit.optim.lbfgsb import Stopping
from vaeaudit.stats.draws import noise_set

RATES = (0.003, 0.01, 0.03)
OFF_ZERO = 1e-2  # of the way to the target, as the other benchmark's peers
DRAWS = 4


def adam(term: Term, x: Tensor, x_t: Tensor, box: tuple[float, float], found: Sweep, rate: float) -> tuple[Tensor, ...]:
    """Data term and ||d|| (P, L) of the best iterate of each problem after as many evaluations as ours took."""
    pairs, count = found.objective.shape
    pair, lam = torch.arange(pairs, device=x.device).repeat_interleave(count), found.lambdas.repeat(pairs)
    budget = found.evaluations.flatten()
    x, x_t = x.flatten(1)[pair], x_t.flatten(1)[pair]
    point = torch.lerp(x, x_t, OFF_ZERO)
    first, second = torch.zeros_like(point), torch.zeros_like(point)
    best = torch.full_like(lam, torch.inf)
    best_data, best_norm = best.clone(), best.clone()
    for step in range(1, int(budget.max()) + 1):
        live = (budget >= step).nonzero().squeeze(1)
        data, gradient = term.gradient(point[live], pair[live])
        d = point[live] - x[live]
        norm = torch.linalg.vector_norm(d, dim=1)
        value = data + lam[live] * norm
        better = value < best[live]
        won = live[better]
        best[won], best_data[won], best_norm[won] = value[better], data[better], norm[better]
        gradient = torch.addcmul(gradient, (lam[live] / norm.clamp(min=1e-30))[:, None], d)
        first[live] = 0.9 * first[live] + 0.1 * gradient
        second[live] = 0.999 * second[live] + 0.001 * gradient.square()
        scale = (second[live] / (1 - 0.999**step)).sqrt() + 1e-8
        point[live] = (point[live] - rate * first[live] / (1 - 0.9**step) / scale).clamp(*box)
    return best_data.reshape(pairs, count), best_norm.reshape(pairs, count)


def table(vae: VAE, x: Tensor, x_t: Tensor, mode: str = "output", lambdas: int = 10) -> str:
    """Ours against Adam on each pair of x and x_t (P, *shape) and ``lambdas`` values from 2^-20 to 2^20."""
    with torch.no_grad():
        shape = vae.encode(x[:1]).noise_shape
    noise = noise_set(shape, draws=DRAWS, items=range(len(x)), seed=0, check="benchmark.adam", like=x)
    objective, rows = Objective(mode), RowBatches.automatic(tuple(vae.input_shape), x.device)
    term, lam = objective.data_term(vae, x, x_t, noise), x.new_tensor(geometric_lambdas(lambdas))
    floor, effort = objective.row.floor, Effort(Stopping.for_dtype(x.dtype, 600))
    ours = sweep(term, x, x_t, vae.range, lam, floor=floor, effort=effort, rows=rows)

    box, engine = vae.range or (-torch.inf, torch.inf), Term(term, tuple(vae.input_shape), rows)
    every = torch.arange(len(x), device=x.device)
    zero, matched = engine.value(x.flatten(1), every), engine.value(x_t.flatten(1), every)
    gap = torch.linalg.vector_norm((x_t - x).flatten(1), dim=1)
    # An output attack's data term has no natural zero: differences are shares of what an attack can change.
    span = (zero - torch.minimum(matched, ours.data_term.amin(1))).clamp(min=torch.finfo(x.dtype).tiny)[:, None]
    own, exchanged = torch.full_like(ours.objective, torch.inf), torch.full_like(ours.objective, torch.inf)
    for rate in RATES:
        value, norm = adam(engine, x, x_t, box, ours, rate)
        own = torch.minimum(own, value + lam * norm)
        values = torch.cat([value, torch.stack([zero, matched], 1)], 1)[:, None]
        norms = torch.cat([norm, torch.stack([torch.zeros_like(gap), gap], 1)], 1)[:, None]
        exchanged = torch.minimum(exchanged, (values + lam[:, None] * norms).amin(2))
    moved = torch.minimum(ours.objective, own) < zero[:, None] - 1e-3 * span  # where anybody finds more than d = 0
    if not moved.any():
        return f"{mode} attack: no method found more than d = 0"
    lines = []
    for name, peer in (("Adam", own), ("Adam + exchange", exchanged)):
        behind = ((ours.objective - peer) / span)[moved]
        shares = [float((behind <= tolerance).double().mean()) for tolerance in (0.0, 1e-3)]
        lines.append([name, len(behind), *shares, float(behind.max()), float(behind.mean())])
    headers = [
        f"{mode} attack, ours against",
        "problems",
        "as strong",
        "to 0.1%",
        "furthest behind",
        "mean (< 0: ahead)",
    ]
    spent = f"{int(ours.evaluations.sum()):,} evaluations; differences are shares of what an attack changes"
    return f"{tabulate(lines, headers=headers, floatfmt='.4g', intfmt=',')}\n{spent}"


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("output", "latent"), default="output")
    parser.add_argument("--model", default="examples/shapes-beta1.safetensors")
    parser.add_argument("--adapter")
    parser.add_argument("--data", default="examples/shapes.npz")
    parser.add_argument("--resize")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--lambdas", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    vae = open_model(given.model, given.adapter).vae
    data = fit(read(given.data), input_shape=tuple(vae.input_shape), data_range=vae.range, resize=given.resize)
    pairs = at_random(data, given.pairs, seed=0)
    x, x_t = data.batch(pairs.sources), data.batch(pairs.targets)
    print(f"{given.model}: {given.pairs} pairs x {given.lambdas} lambda")
    print(table(vae, x, x_t, given.mode, given.lambdas))


if __name__ == "__main__":
    main()
