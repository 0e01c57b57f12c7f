"""`vaeaudit reconstruction` as its user meets it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from safetensors.torch import save_file

from vaeaudit.report.model import json_schema

EXAMPLES = Path(__file__).parents[3] / "examples"
MODEL, DATA = EXAMPLES / "shapes-beta1.safetensors", EXAMPLES / "shapes.npz"
SCHEMA = jsonschema.Draft202012Validator(json_schema())  # itself checked in tests/report
Command = Callable[..., Any]


@pytest.fixture
def cli(command: Command) -> Command:
    return partial(command, "reconstruction")


def report() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("vaeaudit-report/report.json").read_text())
    SCHEMA.validate(content)
    return content


@pytest.mark.figures
def test_it_tells_the_worst_items_and_groups_and_draws_them(cli: Command) -> None:
    done = cli(MODEL, "--data", DATA, "--items", 60, "--by", "shape", "--shown", 2, "-v")
    assert done.code == 0
    written = report()
    (entry,) = written["reconstructions"]
    rows = json.loads(Path("vaeaudit-report/items.json").read_text())["reconstruction"]
    assert (entry["n"], entry["chosen"], entry["scales"], len(rows)) == (60, "60 of 576, drawn at random", 2, 60)
    worst = min(rows, key=lambda row: row["psnr"])
    psnr = next(one for one in entry["qualities"] if (one["name"], one["of"]) == ("psnr", "mean"))
    assert (psnr["worst_item"], psnr["worst"]["value"]) == (worst["item"], worst["psnr"])
    means = {group: np.mean([row["psnr"] for row in rows if row["shape"] == group]) for group in (0, 1, 2)}
    lowest = min(means, key=lambda group: means[group])
    assert (entry["groups"][0]["by"], entry["groups"][0]["group"]) == ("shape", str(lowest))
    assert written["metrics"]["reconstruction.psnr.group_worst"]["value"] == pytest.approx(means[lowest])
    assert "mean psnr by group" in done.out
    for name in ("reconstruction-worst.png", "reconstruction-distribution.png"):
        assert Path("vaeaudit-report", name).read_bytes().startswith(b"\x89PNG")
    assert written["metrics"]["reconstruction.psnr.median"]["value"] > 20


def test_what_cannot_be_told_of_vectors_is_skipped_by_name(cli: Command, projection: Any, tmp_path: Path) -> None:
    facts = projection.facts | {"vaeaudit.input_shape": "[16]"}
    save_file(projection.weights(), tmp_path / "vae.safetensors", facts)
    np.save("val.npy", projection.images().reshape(40, 16))
    assert cli("vae.safetensors", "--data", "val.npy").code == 0
    written = report()
    names = ("psnr", "ssim", "ms_ssim", "share_off", "brightness", "bias", "pictures")
    assert {f"reconstruction.{name}" for name in names} <= set(written["skipped"])
    assert "reconstruction.scaled_error.feature_worst" in written["metrics"]
    assert len(written["reconstructions"][0]["features"]) == 16


def test_groups_that_cannot_be_are_told(cli: Command, projection: Any, tmp_path: Path) -> None:
    save_file(projection.weights(), tmp_path / "vae.safetensors", projection.facts)
    np.savez("val.npz", images=projection.images(), labels=np.arange(40) // 39)
    assert cli("vae.safetensors", "--data", "val.npz", "--by", "label").code == 0
    written = report()
    assert "fewer than two groups have two items or more" in written["skipped"]["reconstruction.groups"]
    assert written["reconstructions"][0]["alone"] == 1
    refused = cli("vae.safetensors", "--data", "val.npz", "--by", "labels", "--out", "other")
    assert refused.said(2, "no label or factor 'labels' (did you mean 'label'?); they have label")


def test_thresholds_read_worst_items_and_groups(command: Command) -> None:
    for limit, code, word in ((10, 0, "passed"), (30, 1, "failed")):
        gates = "".join(
            f'[checks."reconstruction.psnr.{name}"]\nmin = {limit}\n' for name in ("worst", "group_worst", "tail")
        )
        Path("vaeaudit.toml").write_text(f"[reconstruction]\nitems = 120\n{gates}")
        assert command("audit", MODEL, "--data", DATA).code == code
        checks = report()["checks"]
        assert [check["verdict"] for check in checks] == [word] * 3
    assert checks[0]["why"].startswith("the value ")
    misspelt = '[checks."reconstruction.psnr.wurst"]\nmin = 1\n'
    Path("vaeaudit.toml").write_text(misspelt)
    assert command("audit", MODEL, "--data", DATA, "--out", "other").said(
        2, "did you mean 'reconstruction.psnr.worst'?"
    )
