"""`vaeaudit margin` as its user meets it."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from vaeaudit.certify.local import LocalMargin
from vaeaudit.cli.app import main
from vaeaudit.report.model import json_schema

EXAMPLES = Path(__file__).parents[1] / "examples"
MODEL, DATA = EXAMPLES / "shapes-beta1.safetensors", EXAMPLES / "shapes.npz"
FAST = ("--items", "2", "--draws", "100")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Margin = Callable[..., Outcome]


@pytest.fixture
def margin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Margin:
    """The command on two items of the bundled model, in this process, outside any repository."""
    monkeypatch.chdir(tmp_path)

    def run(*more: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["vaeaudit", *map(str, ("margin", MODEL, "--data", DATA, *FAST, *more))])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, *capsys.readouterr())

    return run


def report() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("vaeaudit-report/report.json").read_text())
    return content


def test_it_bounds_every_item_from_below_and_above_and_writes_that_down(margin: Margin) -> None:
    done = margin("--r", "4", "--format", "json")
    assert (done.code, done.err) == (0, "")
    written = report()
    assert json.loads(done.out) == written
    jsonschema.validate(written, json_schema())
    (entry,) = written["margins"]
    assert (entry["r"], entry["m"], entry["sigma"], entry["box"], entry["draws"]) == (4, 0.5, "frozen", [0, 1], 100)
    assert entry["chosen"] == "2 of 576, drawn at random"
    for item in entry["items"]:
        assert 0 < item["certified"] <= item["empirical"]
        assert item["frobenius"] <= item["spectral"] <= item["whitened"]
        assert item["p_low"] <= item["p0"]
        assert item["min_r"] <= item["min_r_upper"] < 4
    assert written["metrics"]["margin.r4.certified.median"]["value"] > 0
    assert {"items", "adversarial inputs", "margins at r = 4", "falls at r = 4", "markdown"} == set(written["files"])
    assert all(Path("vaeaudit-report", name).stat().st_size for name in written["files"].values())
    markdown = Path("vaeaudit-report/report.md").read_text(encoding="utf-8")
    assert "## Margins at r = 4" in markdown
    assert "](margin-r4.png)" in markdown


def test_a_radius_can_be_chosen_from_the_data_and_a_bound_left_out(margin: Margin) -> None:
    done = margin("--r", "auto", "--part", "certified", "--sigma", "full", "--no-box", "--family-wise", "--m", "0.6")
    assert done.code == 0
    (entry,) = report()["margins"]
    assert entry["chosen"].endswith("; r is twice the median of their least r, from other draws")
    assert (entry["sigma"], entry["box"], entry["m"], entry["alpha"]) == ("full", None, 0.6, pytest.approx(0.025))
    assert all(item["empirical"] is None and item["certified"] > 0 for item in entry["items"])
    assert "margins at r = " in done.out


def test_settings_come_from_a_configuration_file_too(margin: Margin) -> None:
    Path("vaeaudit.toml").write_text('[margin]\nr = [3, "auto"]\nparts = ["certified"]\nlevel = 0.9\n')
    assert margin().code == 0
    entries = report()["margins"]
    assert [entry["level"] for entry in entries] == [0.9, 0.9]
    assert entries[0]["r"] == 3


def test_margins_that_contradict_each_other_support_no_verdict(margin: Margin, monkeypatch: pytest.MonkeyPatch) -> None:
    def overstated(*_: object) -> LocalMargin:
        return LocalMargin(*(torch.full((2,), value, dtype=torch.float64) for value in (1e3, 0.0, 0.0)))

    monkeypatch.setattr("vaeaudit.checks.margin.local_margin", overstated)
    done = margin("--r", "4")
    assert done.code == 5
    written = report()
    assert written["verdict"] == "inconclusive"
    assert any("exceeds its empirical one" in warning for warning in written["warnings"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--r", "0"], "--r"),
        (["--r", "-1"], "--r"),
        (["--r", "nan"], "--r"),
        (["--r", "inf"], "--r"),
        (["--r", "four"], "--r takes a radius in output units, or auto, but 'four' came"),
        (["--m", "1"], "--m"),
        (["--level", "0"], "--level"),
        (["--sigma", "frosty"], "--sigma"),
        (["--part", "everything"], "--part"),
        (["--items", "0"], "--items"),
        (["--draws", "0"], "--draws"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(arguments: list[str], words: str, margin: Margin) -> None:
    done = margin(*arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert words in done.err
    assert not Path("vaeaudit-report").exists()
