"""How the cost of each check grows with items, latents and pixels, on a small MLP of random weights.

    python -m benchmarks.exponents [--check NAME] [--axis items] [--scale 1] [--repeats 2]

Seconds of the CPU, least of some repeats, are fitted as a + b n^p, every size weighing alike by its relative error. The
least size is far below the others, so that it tells a: what does not depend on n, as opening figures and files. p is
what is told, with how much of the largest size's seconds is a. The model passes no examination, which is not asked for:
its figures are of no worth, and take as long. A check of which less than a quarter depends on n has no exponent.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.optimize import nnls
from tabulate import tabulate

from vaeaudit.audit.run import audit
from vaeaudit.settings.config import resolve
from vaeaudit.subject.opened import prepare

HIDDEN = 32
AXES = ("items", "latents", "pixels")
POWERS = np.arange(0.1, 3, 0.005)  # that are tried
# What is measured: the check, and its settings.
MEASURED: dict[str, tuple[str, dict[str, object]]] = {
    "noise": ("noise", {"noise.sigmas": 0.5, "noise.draws": 1}),
    "reconstruction": ("reconstruction", {"reconstruction.shown": 0}),
    "equivalence": ("equivalence", {"equivalence.variants": ["dtype=float64"], "equivalence.shown": 0}),
    "latents": ("latents", {"latents.estimator": "stratified", "latents.traverse": 0}),
    "latents, exact mixture": ("latents", {"latents.traverse": 0}),
    "mig": ("mig", {}),
    "attack": ("attack", {"attack.lambdas": 3, "attack.max_evaluations": 20}),
    "margin": ("margin", {"margin.r": 1.0, "margin.draws": 100, "margin.effort": "fast"}),
}
FEW = ("attack", "margin")  # of which an item takes long


def sizes_of(name: str, axis: str, scale: float) -> list[int]:
    """The sizes, the least of which is there for what does not depend on them."""
    if axis == "latents":
        return [2, 32, 64, 128, 256] if name in FEW else [2, 64, 128, 256, 512]  # mig needs two
    if axis == "pixels":
        return [4**2, 16**2, 32**2, 64**2]
    if name in FEW:
        return [1, 32, 64, 128, 256]
    return [64, *(round(scale * size) for size in (2048, 4096, 8192, 16384, 32768))]


def made(folder: Path, items: int, latents: int, pixels: int) -> dict[str, object]:
    """A model and data of these sizes, as settings name them."""
    generator = torch.Generator().manual_seed(0)
    layers = {
        "encoder.shared.0": (HIDDEN, pixels),
        "encoder.mean.0": (latents, HIDDEN),
        "encoder.logvar.0": (latents, HIDDEN),
        "decoder.0": (HIDDEN, latents),
        "decoder.2": (pixels, HIDDEN),
    }
    tensors = {}
    for name, size in layers.items():
        tensors[f"{name}.weight"] = torch.randn(size, generator=generator) / size[1] ** 0.5
        tensors[f"{name}.bias"] = torch.zeros(size[0])
    side = int(pixels**0.5)
    facts = {"vaeaudit.adapter": "mlp", "vaeaudit.input_shape": json.dumps([1, side, side])}
    save_file(tensors, folder / "model.safetensors", facts)
    labels = np.arange(items) % 10
    images = np.random.default_rng(0).integers(0, 128, (items, side, side), dtype=np.uint8)
    images += 12 * labels[:, None, None].astype(np.uint8)
    factors = np.stack([labels, np.arange(items) // 10 % 4], 1)
    np.savez(folder / "data.npz", images=images, labels=labels, latents_classes=factors)
    return {"model.path": str(folder / "model.safetensors"), "data.source": str(folder / "data.npz")}


def seconds_of(name: str, axis: str, size: int, repeats: int) -> float:
    """CPU seconds of a check, once model and data are open."""
    check, asked = MEASURED[name]
    items = 4 if name in FEW else 2048
    given = {"items": items, "latents": 8, "pixels": 16**2} | {axis: size}
    counted = {"attack": "attack.pairs"}.get(check, f"{check}.items")
    with tempfile.TemporaryDirectory() as folder:
        files = made(Path(folder), max(256, given["items"]), given["latents"], given["pixels"])
        settings = {**asked, **files, counted: given["items"], "run.device": "cpu"}
        resolved = resolve({key: (value, "benchmark") for key, value in settings.items()}, None)
        subject = prepare(resolved.settings)
        subject = replace(subject, plausibility=replace(subject.plausibility, findings=()))
        taken = []
        for _ in range(repeats):
            started = time.process_time()
            done = audit(subject, resolved, ["benchmark"], [check], lambda _: True)
            taken.append(time.process_time() - started)
            if done.fault is not None:
                raise done.fault
    return min(taken)


def fitted(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float | None, float]:
    """p of a + b n^p and a's share of the largest size's seconds.

    p is None where b n^p is under a quarter of these, or where the best is the least or greatest p that is tried.
    """
    n, t = np.array(sizes, float), np.array(seconds)
    best = (np.inf, 0.0, 0.0)
    for p in POWERS:
        columns = np.stack([np.ones_like(n), (n / n.max()) ** p], 1) / t[:, None]
        (a, b), error = nnls(columns, np.ones_like(n))
        if error < best[0]:
            best = (error, p, a / (a + b))
    _, p, constant = best
    told = constant <= 0.75 and p not in (POWERS[0], POWERS[-1])  # at an end another power may fit better
    return (float(p) if told else None), float(constant)


def one(name: str, axes: Sequence[str], scale: float, repeats: int) -> list[dict[str, Any]]:
    """All axes of a check, in this process."""
    torch.set_num_threads(1)
    seconds_of(name, "items", sizes_of(name, "items", scale)[1], 1)  # nobody's first call is timed
    found = []
    for axis in axes:
        sizes = sizes_of(name, axis, scale)
        seconds = [seconds_of(name, axis, size, repeats) for size in sizes]
        exponent, constant = fitted(sizes, seconds)
        of = {"check": name, "axis": axis, "sizes": sizes, "seconds": seconds}
        found.append(of | {"exponent": exponent, "constant": constant})
    return found


def measured(names: Sequence[str], axes: Sequence[str], scale: float, repeats: int) -> list[dict[str, Any]]:
    """Each check in a process of its own."""
    found = []
    for name in names:
        call = [sys.executable, "-m", "benchmarks.exponents", "--check", name, "--one", "--scale", str(scale)]
        call += ["--repeats", str(repeats), *(word for axis in axes for word in ("--axis", axis))]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found += json.loads(done.stdout.splitlines()[-1])
        else:
            said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            found.append({"check": name, "axis": "", "fault": said[0]})
        print(f"exponents of {name} done", file=sys.stderr)
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """A row for each check and axis."""
    rows = [
        [
            row["check"],
            row["axis"],
            f"{row['sizes'][1]} to {row['sizes'][-1]}" if "sizes" in row else "",
            row["seconds"][-1] if "seconds" in row else None,
            row.get("exponent"),
            row.get("constant"),
            row.get("fault", ""),
        ]
        for row in found
    ]
    heads = ["check", "against", "from", "seconds", "exponent", "constant part", ""]
    return tabulate(rows, headers=heads, floatfmt=".3g")


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", choices=MEASURED, action="append")
    parser.add_argument("--axis", choices=AXES, action="append")
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the items")
    parser.add_argument("--repeats", type=int, default=2, help="of which the least is taken")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    names, axes = asked.check or [*MEASURED], asked.axis or AXES
    if asked.one:
        print(json.dumps(one(names[0], axes, asked.scale, asked.repeats)))
    else:
        print(table(measured(names, axes, asked.scale, asked.repeats)))


if __name__ == "__main__":
    main()
