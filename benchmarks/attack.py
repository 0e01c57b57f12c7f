"""The sweep against SciPy's L-BFGS-B one problem at a time, and against the model's bare forward and backward.

    python -m benchmarks.attack [--model PATH --adapter NAME --data PATH --resize FILTER] [--pairs 2] [--threads 1]

All in one process, so that only ratios matter. "Free bound" is the better of d = 0 and d = x_t - x, which no
optimiser is needed for; problems that it solves to within 0.1% are counted apart, because they say nothing of one.
"""

import argparse
import platform
import time

import numpy as np
import torch
from scipy.optimize import minimize
from tabulate import tabulate
from torch import Tensor

import vaeaudit
from vaeaudit.data import fit
from vaeaudit.formats import read
from vaeaudit.pairs import at_random
from vaeaudit.registry import open_model
from vaeaudit.vae import VAE, Posterior


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="examples/shapes-beta1.safetensors")
    parser.add_argument("--adapter")
    parser.add_argument("--data", default="examples/shapes.npz")
    parser.add_argument("--resize")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--lambdas", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    vae = open_model(given.model, given.adapter).vae
    shape = tuple(vae.input_shape)
    data = fit(read(given.data), input_shape=shape, data_range=vae.range, resize=given.resize)
    pairs = at_random(data, given.pairs, seed=0)
    x, x_t = data.batch(pairs.sources), data.batch(pairs.targets)

    started = time.perf_counter()
    ours = vaeaudit.attack(vae, x, x_t, lambdas=given.lambdas)
    our_seconds = time.perf_counter() - started
    lambdas = ours.sweep.lambdas
    evaluations = int(ours.sweep.evaluations.sum())
    floor_seconds = _floor(vae, x, x_t, lambdas, evaluations)
    started = time.perf_counter()
    scipy_value, scipy_evaluations = _scipy(vae, x, x_t, lambdas)
    scipy_seconds = time.perf_counter() - started

    gap = torch.linalg.vector_norm((x_t - x).flatten(1), dim=1)
    free = torch.minimum(ours.sweep.zero_data_term[:, None], lambdas * gap[:, None]).double()
    value = ours.sweep.objective.double()
    searched = torch.minimum(value, scipy_value) < 0.999 * free  # problems that the free bound does not solve
    ratio = (value / scipy_value)[searched]
    bounded = (value / torch.minimum(scipy_value, free))[searched]
    print(f"{given.model}: {value.numel()} problems, {int(searched.sum())} not solved by the free bound")
    print(f"torch {torch.__version__}, {given.threads} thread(s), {platform.processor() or platform.machine()}")
    print(
        tabulate(
            [
                ["ours", our_seconds, evaluations, scipy_seconds / our_seconds],
                ["bare forward + backward of our rows", floor_seconds, evaluations, scipy_seconds / floor_seconds],
                ["SciPy L-BFGS-B, one by one", scipy_seconds, scipy_evaluations, 1.0],
            ],
            headers=["", "seconds", "evaluations", "times SciPy's speed"],
            floatfmt=".3g",
        )
    )
    print(
        tabulate(
            [
                ["SciPy", *_quality(ratio)],
                ["SciPy or the free bound, the better", *_quality(bounded)],
            ],
            headers=["ours over", "geometric mean", "share <= 1.001", "worst"],
            floatfmt=".4g",
        )
    )


def _quality(ratio: Tensor) -> tuple[float, float, float]:
    if not ratio.numel():
        return (float("nan"),) * 3
    return float(ratio.log().mean().exp()), float((ratio <= 1.001).double().mean()), float(ratio.max())


def _floor(vae: VAE, x: Tensor, x_t: Tensor, lambdas: Tensor, evaluations: int) -> float:
    """Seconds for as many rows of nothing but encoder, KL and gradient, in batches of all problems."""
    rows = len(x) * len(lambdas)
    batch = x.repeat_interleave(len(lambdas), 0)
    target = vae.encode(x_t).rows(torch.arange(len(x)).repeat_interleave(len(lambdas)))
    repeats = max(1, min(20, evaluations // rows))
    started = time.perf_counter()
    for _ in range(repeats):
        leaf = batch.clone().requires_grad_(True)
        torch.autograd.grad(vae.encode(leaf).kl(target).sum(), leaf)
    return (time.perf_counter() - started) / (repeats * rows) * evaluations


def _scipy(vae: VAE, x: Tensor, x_t: Tensor, lambdas: Tensor) -> tuple[Tensor, int]:
    """Objectives (P, L) by SciPy from a small step off d = 0, and evaluations in all."""
    values = torch.empty(len(x), len(lambdas), dtype=torch.float64)
    evaluations = 0
    bounds = [vae.range or (None, None)] * x[0].numel()
    for p in range(len(x)):
        target = vae.encode(x_t[p : p + 1])
        source = x[p].flatten().double().numpy()
        for k, lam in enumerate(lambdas.tolist()):
            start = source + 1e-2 * (x_t[p].flatten().double().numpy() - source)
            options = {"maxcor": 10, "ftol": 2.2e-9, "maxiter": 15000}
            found = minimize(
                _objective,
                start,
                (vae, target, source, lam),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options=options,
            )
            values[p, k] = found.fun
            evaluations += found.nfev
    return values, evaluations


def _objective(
    point: np.ndarray, vae: VAE, target: Posterior, source: np.ndarray, lam: float
) -> tuple[float, np.ndarray]:
    leaf = torch.from_numpy(point).float().requires_grad_(True)
    data = vae.encode(leaf.reshape(1, *vae.input_shape)).kl(target).sum()
    (gradient,) = torch.autograd.grad(data, leaf)
    d = point - source
    norm = float(np.linalg.norm(d))
    return data.item() + lam * norm, gradient.double().numpy() + lam * d / max(norm, 1e-30)


if __name__ == "__main__":
    main()
