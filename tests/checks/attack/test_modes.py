"""Rows of attack modes: what each names is there, nothing else names a mode, and a new one is a row and a function."""

import ast
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from vaeaudit.attacks.modes import MODES, Mode, names
from vaeaudit.attacks.objectives import Objective
from vaeaudit.attacks.term import DataTerm

ROOT = Path(__file__).parents[3]
CAPS = (0.25, 0.5)


@pytest.mark.parametrize("mode", names())
def test_the_function_of_a_row_takes_what_the_row_says(mode: str) -> None:
    row = MODES[mode]
    inspect.signature(row.function).bind("vae", "x", **dict.fromkeys(row.takes))
    for member in row.members:
        Objective(*member.split()[:1])  # raises where it is none


def test_no_module_but_that_of_the_rows_names_a_mode_of_its_own() -> None:
    apart = set(names()) - {"latent", "output", "damage", "worst"}  # words that mean other things too
    for file in (ROOT / "vaeaudit").rglob("*.py"):
        if file.name != "modes.py":
            for node in ast.walk(ast.parse(file.read_text())):
                assert not (isinstance(node, ast.Constant) and node.value in apart), f"{file}:{node.lineno}"


def near(_vae: Any, _x: Tensor, x_t: Tensor) -> DataTerm:
    """||x* - x_t||^2, whose best d with the penalty lambda ||d||^2 is (x_t - x) / (1 + lambda)."""
    return lambda points, item: (points - x_t[item]).flatten(1).square().sum(1)


def far(_vae: Any, x: Tensor, on: str) -> DataTerm:
    """-||x* - x||^2, least on the whole sphere of the cap."""
    assert on == "mean"
    return lambda points, item: -(points - x[item]).flatten(1).square().sum(1)


def test_a_new_mode_is_a_row_and_a_function(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        Mode("near", f"{__name__}:near", ("x_t",), "‖x + d - x_t‖²", search="lowers", swept=True, floor=0.0),
        Mode("far", f"{__name__}:far", ("on",), "‖d‖²{reached}", search="raises"),
    )
    for row in rows:
        monkeypatch.setitem(MODES, row.name, row)
    model, data = (ROOT / "examples" / name for name in ("shapes-beta1.safetensors", "shapes.npz"))
    asked = ("--mode", "near", "--mode", "far", "--on", "mean", "--penalty", "l2sq", "--pairs", "2", "--lambdas", "5")
    caps = [argument for cap in CAPS for argument in ("--cap", cap)]
    done = command("attack", model, "--data", data, *asked, *caps, "--max-evaluations", "60", "-q")
    assert done.code == 0, done.err

    report = json.loads(Path("vaeaudit-report/report.json").read_text())
    metrics = report["metrics"]
    for cap in CAPS:
        name = f"attack.far.l2-{cap:g}.damage.median"
        assert metrics[name]["value"] == pytest.approx(cap**2, rel=1e-5)
        assert (metrics[name]["unit"], metrics[name]["search"]) == ("input units", "raises")
    delta = metrics["attack.near.delta.mean"]
    assert (delta["unit"], delta["search"]) == ("input units", "lowers")
    with np.load(data) as shapes:
        images = shapes["imgs"].reshape(len(shapes["imgs"]), -1) / 255
    for row in json.loads(Path("vaeaudit-report/items.json").read_text())["attack.near"]:
        gap = ((images[row["source"]] - images[row["target"]]) ** 2).sum()
        assert row["objective"] == pytest.approx(row["lam"] / (1 + row["lam"]) * gap, rel=1e-4)
    told = Path("vaeaudit-report/report.md").read_text(encoding="utf-8")
    assert "Minimises ‖x + d - x_t‖² + λ ‖d‖² over d" in told
    assert "Maximises ‖d‖² (through its mean alone), over d" in told
