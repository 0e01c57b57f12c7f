"""Every check on a model and a device, in one table: items a second, share of the bare model's floor, peak memory.

    python -m benchmarks [--model PATH --adapter NAME --data PATH] [--device cpu] [--threads 1] [--scale 1] [--out FILE]

Each check runs in a process of its own, on a quarter of its items (or pairs of an attack) to warm up, and on all. The
floor is the time that the bare model takes, in full batches, for as many rows of encoder and decoder, with a way back
where the check asks for one; its share of the check's own time is told. Seconds are those of the CPU, on a GPU of the
clock. Without a model the example's is measured. How cost grows with items, latents and pixels follows on models made
for that (benchmarks.exponents), unless left out with --table-only. All goes into a file with hardware and versions.
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from benchmarks import exponents
from vaeaudit.audit.run import audit
from vaeaudit.checks.registry import OURS
from vaeaudit.model.batches import RowBatches
from vaeaudit.settings.config import resolve
from vaeaudit.subject.opened import Subject, prepare

EXAMPLES = Path(__file__).parents[1] / "examples"
# Of each check: the setting that says of how many items it is, and how many.
ITEMS = {
    "attack": ("attack.pairs", 8),
    "margin": ("margin.items", 8),
    "noise": ("noise.items", 400),
    "reconstruction": ("reconstruction.items", 400),
    "equivalence": ("equivalence.items", 400),
    "latents": ("latents.items", 400),
    "mig": ("mig.items", 400),
}
GIVEN = {
    "attack.modes": ["latent"],
    "margin.r": 4,
    "equivalence.variants": ["dtype=bfloat16"],
    "equivalence.shown": 0,
    "reconstruction.shown": 0,
    "latents.traverse": 0,
}
Kind = tuple[str, bool]  # "encode" or "decode", and whether there is a way back


def count_rows(vae: Any) -> Counter[Kind]:
    """Let the model count the rows that it is given from now on."""
    rows: Counter[Kind] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(model: Any, points: torch.Tensor, *more: Any) -> Any:
            rows[name, torch.is_grad_enabled() and points.requires_grad] += len(points)
            return function(model, points, *more)

        return call

    for name in ("encode", "decode"):  # of the class, as another form of the model is a copy of it
        setattr(type(vae), name, counted(name, getattr(type(vae), name)))
    return rows


def bare(subject: Subject, kind: Kind, most: int) -> float:
    """Seconds that the bare model takes for a row, in batches of at most ``most``."""
    name, back = kind
    vae = subject.vae(subject.items[:1].tolist()) if hasattr(subject.model.vae, "conditions") else subject.model.vae
    places = [place % subject.n for place in range(most)]
    with torch.no_grad():
        x = subject.at(places)
        points = x if name == "encode" else vae.encode(x).mean
    taken = []
    for _ in range(4):
        started = _now(subject.device)
        with torch.set_grad_enabled(back):
            given = points.clone().requires_grad_(back)
            mean = getattr(vae, name)(given).mean
            if back:
                torch.autograd.grad(mean.sum(), given)
        taken.append(_now(subject.device) - started)
    return min(taken[1:]) / most


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()  # of a CPU its own time, whatever else runs


def one(check: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One check, in this process."""
    torch.set_num_threads(asked.threads)
    model = {"model.path": asked.model, "data.source": asked.data, "run.device": asked.device}
    model |= {"model.adapter": asked.adapter} if asked.adapter else {}
    seconds, size, rows, subject = 0.0, 0, Counter[Kind](), None
    key, most = ITEMS.get(check, ("", 0))
    most = max(4, round(most * asked.scale))
    for items in (most // 4, most) if key else (0, 0):  # the first to warm up
        given = {**GIVEN, **model, **({key: items} if key else {})}
        resolved = resolve({name: (value, "benchmark") for name, value in given.items()}, None)
        subject = prepare(resolved.settings)
        rows = count_rows(subject.model.vae)
        started = _now(subject.device)
        done = audit(subject, resolved, ["benchmark"], [check], lambda _: True)
        seconds, size = _now(subject.device) - started, min(items, subject.n)
        if done.fault is not None or check in done.report.skipped:
            return {"check": check, "fault": str(done.fault or done.report.skipped[check])}
    assert subject is not None
    batch = RowBatches.automatic(tuple(subject.model.vae.input_shape), subject.device).size
    peak = torch.cuda.max_memory_allocated() if subject.device.type == "cuda" else 2**10 * _resident()
    counted = dict(rows)  # before the floor adds its own
    floor = sum(count * bare(subject, kind, batch) for kind, count in counted.items())
    return {
        "check": check,
        "items": size,
        "seconds": seconds,
        "per_second": size / seconds if key else None,
        "rows": {f"{name}{' and back' if back else ''}": count for (name, back), count in counted.items()},
        "floor_share": floor / seconds,
        "peak_mib": peak / 2**20,
    }


def _resident() -> int:
    """KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def hardware(device: str) -> dict[str, Any]:
    """What the figures depend on besides the code."""
    named = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": named[0].partition(":")[2].strip() if named else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("vaeaudit", "torch", "numpy", "scipy", "scikit-learn")},
    }


def main() -> None:
    """Measure each check, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(EXAMPLES / "shapes-beta1.safetensors"))
    parser.add_argument("--adapter")
    parser.add_argument("--data", default=str(EXAMPLES / "shapes.npz"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the items")
    parser.add_argument("--out", default="benchmarks.json")
    parser.add_argument("--table-only", action="store_true", help="leave out how cost grows")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.one, asked)))
        return
    found: list[dict[str, Any]] = []
    written = {"hardware": hardware(asked.device), "asked": vars(asked), "checks": found}
    for check in OURS:
        call = [sys.executable, "-m", "benchmarks", *sys.argv[1:], "--one", check.name]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        fault = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        found.append(
            json.loads(done.stdout.splitlines()[-1])
            if done.returncode == 0
            else {"check": check.name, "fault": fault[0]}
        )
        Path(asked.out).write_text(json.dumps(written, indent=1) + "\n")  # whoever ends this keeps what there is
        print(f"{check.name} done", file=sys.stderr)
    table = [
        [
            Path(asked.model).name,
            asked.device,
            row["check"],
            *(row.get(name, math.nan) for name in ("items", "per_second", "seconds", "floor_share", "peak_mib")),
            row.get("fault", ""),
        ]
        for row in found
    ]
    heads = ["model", "device", "check", "items", "items/s", "seconds", "floor's share", "peak MiB", ""]
    print(tabulate(table, headers=heads, floatfmt=".3g"))
    if not asked.table_only:
        grown = exponents.measured([*exponents.MEASURED], exponents.AXES, asked.scale, 2)
        print("", exponents.table(grown), sep="\n")
        Path(asked.out).write_text(json.dumps(written | {"exponents": grown}, indent=1) + "\n")


if __name__ == "__main__":
    main()
