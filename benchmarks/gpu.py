"""All that is asked of a machine with a GPU, in under six minutes, as one JSON: tests, sweeps, an autoencoder, floors.

    python -m benchmarks.gpu [--out gpu.json] [--seconds 330] [--only PART] [--device cpu --small]

Its parts, each in a process of its own which is ended where its time is up:

- tests: those marked `gpu`.
- mlp-500, mlp-5000, burgess-500: the latent attack's sweep on as many problems (pairs times 50 lambda), of a
  784-400-400-20 MLP and of the network of Burgess et al. for 64x64, both trained briefly; beside it what the bare model
  takes for as many rows, forward and back.
- autoencoder: AutoencoderKL of the library diffusers, 84 M random weights, 3x512x512: 500 problems, stopped when its
  time is up; whether memory sufficed.
- checks: the table of `python -m benchmarks` on the example's model.

`--device cpu --small` runs the same parts in small, so that they are known to run.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from vaeaudit_adapters.burgess import Burgess, BurgessOptions

from benchmarks.__main__ import EXAMPLES, hardware
from benchmarks.attack import Problems, alone, at_random, briefly_trained, floor, new_mlp
from vaeaudit.attacks.sweep import geometric_lambdas
from vaeaudit.data.items import fit
from vaeaudit.data.sources import read
from vaeaudit.model.batches import fitting
from vaeaudit.model.memory import rows_that_fit
from vaeaudit.model.vae import VAE
from vaeaudit.subject.device import compute_exactly

LAMBDAS = 50
# The config of the autoencoder of Stable Diffusion, and one that only has its parts.
LARGE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
}
TINY = LARGE | {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 32}


def synchronised(device: torch.device) -> float:
    """The clock, once the device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak(device: torch.device) -> float:
    """MiB that this process has held at most, on the device where that is a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def sweep_of(problems: Problems) -> dict[str, Any]:
    """A sweep's seconds beside those of the bare model for as many rows."""
    device = problems.x.device
    alone(Problems(problems.vae, problems.x[:1], problems.x_t[:1], problems.lambdas, 20), problems.lambdas)  # warm
    started = synchronised(device)
    found = alone(problems, problems.lambdas)
    seconds = synchronised(device) - started
    rows = int(found.evaluations.sum())
    floor(problems, min(rows, problems.rows.size))
    started = synchronised(device)
    floor(problems, rows)
    bare = synchronised(device) - started
    return {
        "problems": found.norm.numel(),
        "seconds": seconds,
        "rows": rows,
        "bare_seconds": bare,
        "floor_share": bare / seconds,
        "peak_mib": peak(device),
    }


def sweep_on(vae: VAE, asked: argparse.Namespace, pairs: int) -> dict[str, Any]:
    """The same of random pairs of the example's images, in the size of the model."""
    where = {"device": asked.device, "dtype": torch.float32}
    data = fit(read(EXAMPLES / "shapes.npz"), input_shape=tuple(vae.input_shape), data_range=(0, 1), resize="bilinear")
    chosen = at_random(data, pairs, seed=0)
    x, x_t = (data.batch(items, **where) for items in (chosen.sources, chosen.targets))
    lambdas = geometric_lambdas(3 if asked.small else LAMBDAS)
    return sweep_of(Problems(vae, x, x_t, lambdas, 20 if asked.small else 600))


def mlp(asked: argparse.Namespace, pairs: int) -> dict[str, Any]:
    """A sweep of the MLP."""
    return sweep_on(trained(new_mlp((1, 28, 28)), asked), asked, 1 if asked.small else pairs)


def burgess(asked: argparse.Namespace) -> dict[str, Any]:
    """A sweep of the convolutional network."""
    torch.manual_seed(0)
    vae = Burgess(1, 64, 10, BurgessOptions(input_shape=(1, 64, 64)))
    return sweep_on(trained(vae, asked), asked, 1 if asked.small else 10)


def trained(vae: Any, asked: argparse.Namespace) -> Any:
    """The model after a few steps on the example's images."""
    data = fit(read(EXAMPLES / "shapes.npz"), input_shape=vae.input_shape, data_range=(0, 1), resize="bilinear")
    return briefly_trained(vae, data, steps=3 if asked.small else 300).to(asked.device)


def autoencoder(asked: argparse.Namespace) -> dict[str, Any]:
    """As many problems of the large autoencoder as its time allows."""
    if find_spec("diffusers") is None:
        return {"skipped": "the extra diffusers is not installed: pip install 'vaeaudit[diffusers]'"}
    from vaeaudit_adapters.convolutional import ConvolutionalOptions
    from vaeaudit_adapters.diffusers import opened

    device, said = torch.device(asked.device), TINY if asked.small else LARGE
    torch.manual_seed(0)
    model = import_module("diffusers").AutoencoderKL.from_config(said)
    vae = opened("AutoencoderKL", said, model.state_dict(), ConvolutionalOptions()).to(device)
    size = said["sample_size"]
    count = 2 if asked.small else 10
    x, x_t = torch.rand(2, count, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device) * 2 - 1
    lambdas = geometric_lambdas(2 if asked.small else LAMBDAS)
    fits, started, asked_rounds = rows_that_fit(vae, x), synchronised(device), 0

    def go_on(_: object) -> bool:
        nonlocal asked_rounds
        asked_rounds += 1
        return time.perf_counter() - started < asked.seconds

    with fitting(fits):
        problems = Problems(vae, x, x_t, lambdas, 4 if asked.small else 600)
        found = alone(problems, lambdas, go_on=go_on)
    return {
        "weights": sum(weights.numel() for weights in model.parameters()),
        "rows_that_fit": fits,
        "rows_at_once": problems.rows.size,
        "problems": found.norm.numel(),
        "stopped": found.interrupted,
        "evaluations": int(found.evaluations.sum()),
        "seconds": synchronised(device) - started,
        "peak_mib": peak(device),
    }


# What there is to do, and the most seconds that each takes.
PARTS: dict[str, tuple[Callable[[argparse.Namespace], dict[str, Any]] | None, int]] = {
    "tests": (None, 80),
    "mlp-500": (lambda asked: mlp(asked, 10), 40),
    "mlp-5000": (lambda asked: mlp(asked, 100), 60),
    "burgess-500": (burgess, 60),
    "autoencoder": (autoencoder, 100),
    "checks": (None, 150),
}


def told(call: Sequence[str], seconds: float, **environment: str) -> tuple[str | None, str]:
    """What a process wrote on stdout, None where it failed or its time was up, and its last words."""
    try:
        done = subprocess.run(
            [sys.executable, *call],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=max(1.0, seconds),
        )
    except subprocess.TimeoutExpired:
        return None, f"ended after {seconds:.0f} s, when its time was up"
    words = [line for line in (done.stdout + done.stderr).strip().splitlines() if line][-1:]
    return (done.stdout if done.returncode == 0 else None), (words or [f"exit code {done.returncode}"])[0]


def part(name: str, asked: argparse.Namespace, seconds: float) -> Any:
    """What a part found, or why it has nothing, in a sentence."""
    if name == "tests":
        marked = ["-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py"]
        return {"said": told(marked, seconds, VAEAUDIT_TEST_DEVICE=asked.device)[1]}
    with tempfile.TemporaryDirectory() as folder:
        if name == "checks":
            file, scale = Path(folder, "table.json"), "0.01" if asked.small else "1"
            call = ["-m", "benchmarks", "--table-only", "--device", asked.device, "--scale", scale, "--out", str(file)]
            found, words = told(call, seconds)
            done = json.loads(file.read_text())["checks"] if file.exists() else []
            return [*done, *([] if found is not None else [{"fault": words}])]
    small = ["--small"] if asked.small else []
    stops = str(max(5.0, 0.6 * seconds))  # the rest is for opening, and for what was found until then
    call = ["-m", "benchmarks.gpu", "--device", asked.device, *small, "--part", name, "--seconds", stops]
    found, words = told(call, seconds)
    return json.loads(found.splitlines()[-1]) if found is not None else {"fault": words}


def main() -> None:
    """Do all parts and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=330, help="in all")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--out", default="gpu.json")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        print("there is no CUDA device on this machine; run this where one is, or in small with --device cpu --small")
        return
    if asked.part:
        compute_exactly(torch.device(asked.device), tf32=False)
        function, _ = PARTS[asked.part]
        assert function is not None
        print(json.dumps(function(asked)))
        return
    started, found = time.monotonic(), {}
    for name in asked.only or PARTS:
        left = asked.seconds - (time.monotonic() - started)
        begun = time.monotonic()
        found[name] = part(name, asked, min(PARTS[name][1], left)) if left > 5 else {"fault": "no time was left for it"}
        print(f"{name}: {time.monotonic() - begun:.0f} s: {json.dumps(found[name])}", flush=True)
    written = {"hardware": hardware(asked.device), "small": asked.small, "seconds": time.monotonic() - started}
    Path(asked.out).write_text(json.dumps(written | {"parts": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
