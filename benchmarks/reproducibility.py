"""How far another batch size moves the figures of attacks, beside how far other starts of the same search move them.

    python -m benchmarks.reproducibility [--model PATH --adapter NAME --data PATH --resize FILTER] [--pairs 10]

On a CPU a search repeats to the bit for the same batches. Other batches round differently, and a search that rounds
differently may end in another minimum of nearly the same depth: no worse than another start, which is the band that
stands beside it. For the latent attack these are other numbers of restarts; for the damage attack, whose starts are
drawn, other seeds with the same items, which change the draws that damage is averaged over as well.
"""

import argparse
from pathlib import Path

import torch
from tabulate import tabulate

from vaeaudit.audit.run import audit
from vaeaudit.settings.config import resolve
from vaeaudit.subject.opened import prepare

EXAMPLES = Path(__file__).parents[1] / "examples"
BATCHES = {"batches of 7": {"run.batch_size": 7}, "batches of 64": {"run.batch_size": 64}}
STARTS = {
    "latent": {f"{n} restarts": {"attack.restarts": n} for n in (0, 2, 5)},
    "damage": {f"seed {n}": {"run.seed": n} for n in (1, 2, 3)},
}


def figures(mode: str, given: dict[str, object]) -> dict[str, float]:
    """The metrics of one attack."""
    asked = {"attack.modes": [mode], "attack.caps": [1.0], "run.device": "cpu", **given}
    resolved = resolve({name: (value, "benchmark") for name, value in asked.items()}, None)
    done = audit(prepare(resolved.settings), resolved, ["benchmark"], ["attack"], lambda _: True)
    if done.fault is not None:
        raise done.fault
    return {name: metric.value for name, metric in done.report.metrics.items() if metric.value is not None}


def main() -> None:
    """Measure, and print the largest relative change of every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(EXAMPLES / "shapes-beta1.safetensors"))
    parser.add_argument("--adapter")
    parser.add_argument("--data", default=str(EXAMPLES / "shapes.npz"))
    parser.add_argument("--resize")
    parser.add_argument("--pairs", type=int, default=10)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model: dict[str, object] = {"model.path": asked.model, "data.source": asked.data}
    model |= {"model.adapter": asked.adapter} if asked.adapter else {}
    model |= {"data.resize": asked.resize} if asked.resize else {}
    model["attack.pair"] = [f"{item}:{item + asked.pairs}" for item in range(asked.pairs)]  # whatever the seed
    rows = []
    for mode, starts in STARTS.items():
        base = figures(mode, model)
        moved = {
            how: {name: figures(mode, model | change) for name, change in changes.items()}
            for how, changes in (("batch", BATCHES), ("start", starts))
        }
        for name, value in base.items():
            most = [
                max(abs(other[name] - value) / max(abs(value), 1e-12) for other in moved[how].values())
                for how in ("batch", "start")
            ]
            rows.append([name, f"{most[0]:.1e}", f"{most[1]:.1e}", "" if most[0] <= most[1] else "above"])
    print(tabulate(rows, headers=["metric", "batch sizes 7, 64", "other starts", "batch above starts"]))


if __name__ == "__main__":
    main()
