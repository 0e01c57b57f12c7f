"""False alarms and missed regressions of `vaeaudit compare`, by simulation on the bundled model.

    python -m benchmarks.gate [--pairs 200] [--worse 0.02 0.05 0.1] [--margins]

Each simulated pair is two real audits (noise, damage attack, least radius, reconstruction, bfloat16 as an equivalence;
with --margins the empirical margin too) of the same 24 items. False alarms: the same model twice, with different seeds
of every draw; whatever is called regressed is one. They are counted in the family that is tested where none is named,
with the medians of reconstruction and equivalence that rest on draws of z beside it, and in these alone. Missed
regressions: the model, and the model with the weights of its encoder's mean head made larger by a stated share, which
moves posteriors further apart for the same distortion. Different seeds are what `compare` refuses: here alone they are
passed off as the same, so that chance is in the differences.
"""

import argparse
import json
import platform
import re
import time
from pathlib import Path

import scipy
import torch
from safetensors.torch import load_file, save_file

from vaeaudit.audit.run import audit
from vaeaudit.gate.compare import Side, compare
from vaeaudit.model.stated import read_facts
from vaeaudit.settings.config import resolve
from vaeaudit.stats.estimates import clopper_pearson
from vaeaudit.subject.opened import prepare

EXAMPLES = Path(__file__).parents[1] / "examples"
MODEL = EXAMPLES / "shapes-beta1.safetensors"
CHECKS = ("attack", "margin", "noise", "reconstruction", "equivalence")
SETTINGS = {
    "data.source": str(EXAMPLES / "shapes.npz"),
    "run.device": "cpu",
    "run.limit": 24,  # all of them in every audit: seeds choose no items
    "attack.modes": ["damage"],
    "attack.pair": [f"{item}:{item + 12}" for item in range(12)],
    "attack.caps": [1.0],
    "attack.max_evaluations": 60,
    "margin.r": [2.0],
    "margin.items": 24,
    "margin.draws": 200,
    "margin.parts": [],
    "noise.sigmas": [0.1, 0.5],
    "noise.draws": 5,
    "reconstruction.shown": 0,
    "equivalence.variants": ["dtype=bfloat16"],
    "equivalence.shown": 0,
}
# Medians of what draws of z move, which are of no family unless they are named.
OF_DRAWS = re.compile(r"(reconstruction\.draws|equivalence\.bfloat16\.decoder)\..*\.median")


def side(model: Path, seed: int) -> Side:
    """One audit, as if its seed were 0."""
    given = SETTINGS | {"model.path": str(model), "run.seed": seed}
    resolved = resolve({name: (value, "benchmark") for name, value in given.items()}, None)
    done = audit(prepare(resolved.settings), resolved, ["benchmark"], CHECKS, lambda _: True)
    if done.fault is not None:
        raise done.fault
    environment = done.report.environment.model_copy(update={"seed": 0})
    return Side(done.report.model_copy(update={"environment": environment}), done.samples)


def worsened(share: float, folder: Path) -> Path:
    """The bundled model with a mean head larger by ``share``."""
    tensors = load_file(MODEL)
    for name in tensors:
        if name.startswith("encoder.mean.2."):
            tensors[name] = tensors[name] * (1 + share)
    file = folder / f"worse-{share:g}.safetensors"
    facts = {f"vaeaudit.{key}": json.dumps(value) for key, value in read_facts(MODEL).items()}
    save_file(tensors, file, facts)
    return file


def told(hits: int, n: int) -> str:
    """A share with its 95% interval."""
    low, high = clopper_pearson(hits, n, 0.025)
    return f"{hits} of {n} = {hits / n:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Simulate, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--worse", type=float, nargs="*", default=[0.01, 0.02, 0.05])
    parser.add_argument("--margins", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("vaeaudit-report"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.margins:
        SETTINGS["margin.parts"] = ["empirical"]
    asked.folder.mkdir(parents=True, exist_ok=True)
    print(f"{platform.machine()}, torch {torch.__version__}, scipy {scipy.__version__}; {asked.pairs} pairs of audits")
    began = time.perf_counter()
    firsts = [side(MODEL, seed) for seed in range(asked.pairs)]
    seconds = [side(MODEL, asked.pairs + seed) for seed in range(asked.pairs)]
    usual = [one.metric for one in compare(firsts[0], seconds[0]).tested]
    there = firsts[0].report.metrics
    drawn = [name for name, one in there.items() if OF_DRAWS.fullmatch(name) and one.direction != "none"]
    for family in (usual, [*usual, *drawn], drawn):
        outcomes = [compare(old, new, metrics=family) for old, new in zip(firsts, seconds, strict=True)]
        alarms = sum(one.verdict == "failed" for one in outcomes)
        unsure = sum(one.verdict == "inconclusive" for one in outcomes)
        alarmed = told(alarms, asked.pairs)
        print(f"same model, different seeds, {len(family)} metrics: regressed in {alarmed}; {unsure} inconclusive")
    for share in asked.worse:
        model = worsened(share, asked.folder)
        worse = [side(model, seed) for seed in range(asked.pairs)]
        for how, before in (("the same seed", firsts), ("different seeds", seconds)):
            hits = sum(compare(old, new).verdict == "failed" for old, new in zip(before, worse, strict=True))
            print(f"mean head {share:+.1%}, {how}: found in {told(hits, asked.pairs)}")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
