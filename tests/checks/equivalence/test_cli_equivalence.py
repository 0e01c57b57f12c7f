"""`vaeaudit equivalence` as its user meets it."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vaeaudit.report.model import json_schema

EXAMPLES = Path(__file__).parents[3] / "examples"
MODEL, DATA = EXAMPLES / "shapes-beta1.safetensors", EXAMPLES / "shapes.npz"
SCHEMA = jsonschema.Draft202012Validator(json_schema())  # itself checked in tests/report
Command = Callable[..., Any]
ADAPTER = """
import torch
import vaeaudit


class Own(torch.nn.Module):
    def __init__(self, channels, planted):
        super().__init__()
        self.input_shape, self.range, self.planted = (channels, 12, 12), (0.0, 1.0), planted
        self.scale = torch.nn.Conv2d(channels, channels, 1)

    @property
    def prior(self):
        return vaeaudit.DiagonalGaussian.standard(self.input_shape, like=self.scale.bias)

    def encode(self, x):
        mean = self.scale(x)
        return vaeaudit.DiagonalGaussian(mean, torch.full_like(mean, -3.0))

    def decode(self, z):
        if self.planted == "swapped":
            z = z.flip(1)
        if self.planted == "shifted":
            z = z + 1 / 255
        if self.planted == "hot":
            z = 1e-6 * self.scale(1e6 * z)
        return vaeaudit.GaussianLikelihood(z, z.new_tensor(-2.0))


def open(checkpoint, config):
    vae = Own(len(checkpoint.tensors["scale.bias"]), config.get("planted"))
    vaeaudit.load_state(vae, checkpoint.tensors)
    return vae
"""


@pytest.fixture
def cli(command: Command) -> Command:
    return partial(command, "equivalence")


@pytest.fixture
def own(cli: Command, tmp_path: Path) -> Command:
    """The command on a model of colour images that gives back what it is given."""
    (tmp_path / "own.py").write_text(ADAPTER)
    for channels in (1, 3):
        weights = {
            "scale.weight": torch.eye(channels).reshape(channels, channels, 1, 1),
            "scale.bias": torch.zeros(channels),
        }
        save_file(weights, tmp_path / f"vae{channels}.safetensors")
    x = np.random.default_rng(0).random((12, 3, 3, 3)).repeat(4, 2).repeat(4, 3)
    np.save("val.npy", (0.1 + 0.8 * x).astype(np.float32))
    return partial(cli, "vae3.safetensors", "--adapter", "own.py:open", "--data", "val.npy")


def report() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("vaeaudit-report/report.json").read_text())
    SCHEMA.validate(content)
    return content


@pytest.mark.figures
def test_a_row_for_each_variant_and_a_verdict_of_the_worst_item_and_the_median(cli: Command) -> None:
    variants = ("--variant", "dtype=bfloat16", "--variant", "channels-last=true", "--variant", "dtype=float64")
    done = cli(MODEL, "--data", DATA, "--items", 30, "--against", MODEL, *variants, "--shown", 1, "-v")
    assert done.code == 1
    written = report()
    (entry,) = written["equivalences"]
    assert [one["name"] for one in entry["variants"]] == ["against", "bfloat16", "float64"]
    assert "without 4-dimensional weights" in written["skipped"]["equivalence.channels-last"]
    assert entry["variants"][0]["identical"] == ["encoder", "decoder"]
    assert entry["variants"][0]["file"]["sha256"] == written["model"]["file"]["sha256"]
    assert entry["control"] == 0
    outcomes = {check["id"]: check["verdict"] for check in written["checks"]}
    assert outcomes["equivalence.against.end.largest_difference.worst"] == "passed"
    assert outcomes["equivalence.bfloat16.end.largest_difference.worst"] == "failed"
    assert outcomes["equivalence.float64.decoder.largest_difference.median"] == "passed"
    assert outcomes["equivalence.channels-last.nonfinite"] == "inconclusive"
    assert "gives the same to the bit" in done.out
    assert "float64: the decoder differs by rounding alone" in " ".join(done.out.split())
    rows = json.loads(Path("vaeaudit-report/items.json").read_text())["equivalence.bfloat16"]
    largest = max(row["end.largest_difference"] for row in rows)
    assert written["metrics"]["equivalence.bfloat16.end.largest_difference.worst"]["value"] == largest
    for name in ("against", "bfloat16", "float64"):
        assert Path(f"vaeaudit-report/equivalence-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_model_passes_and_a_wider_tolerance_lets_bfloat16_pass(cli: Command) -> None:
    assert cli(MODEL, "--data", DATA, "--items", 30, "--against", MODEL).code == 0
    assert report()["verdict"] == "passed"
    bfloat16 = ("--items", 30, "--variant", "dtype=bfloat16")
    assert cli(MODEL, "--data", DATA, *bfloat16, "--exit-zero").code == 0
    assert report()["verdict"] == "failed"
    assert cli(MODEL, "--data", DATA, *bfloat16, "--tolerance", 0.1).code == 0


def test_what_was_planted_is_named(own: Command) -> None:
    same = ("--against", "vae3.safetensors")
    assert own(*same, "--against-option", "planted=swapped").code == 1
    (swapped,) = report()["equivalences"][0]["variants"]
    assert "channels look exchanged: its 2 is in the place of 0, 0 is in the place of 2" in swapped["likely"][0]
    assert swapped["identical"] == ["encoder"]
    assert own(*same, "--against-option", "planted=shifted", "--tolerance", 0.003).code == 1
    (shifted,) = report()["equivalences"][0]["variants"]
    assert "channel 0 of the decoder's output is shifted by +0.00392 throughout, +1 steps" in shifted["likely"][0]


def test_a_layer_that_overflows_half_precision_is_named(own: Command) -> None:
    assert own("--option", "planted=hot", "--variant", "dtype=float16").code == 1
    (half,) = report()["equivalences"][0]["variants"]
    assert half["nonfinite"] == 12
    assert (
        "the decoder gives NaN or infinity (12 of 12 items), first for item 0; the first module that does is scale"
        in (half["likely"])
    )


def test_one_bit_of_a_weight_is_told_as_rounding_and_passes(own: Command) -> None:
    weights = load_file("vae3.safetensors")
    weights["scale.bias"][1] = 1e-7
    save_file(weights, "other.safetensors")
    assert own("--against", "other.safetensors").code == 0
    (other,) = report()["equivalences"][0]["variants"]
    assert other["identical"] == ["decoder"]
    assert 0 < report()["metrics"]["equivalence.against.end.largest_difference.worst"]["value"] < 1e-6


def test_what_cannot_be_compared_is_told_in_one_sentence(own: Command) -> None:
    assert own().said(2, "nothing is named that should give the same")
    assert own("--against", "vae1.safetensors").said(2, "takes inputs of 3x12x12 and the other of 1x12x12")
    refused = own("--variant", "dtype=int4")
    assert refused.said(2, "--variant must be dtype=float64|float32|bfloat16|float16, but 'dtype=int4' came")
    assert own("--variant", "tiling=true").said(2, "it offers neither tiling nor slicing")


def test_an_audit_has_it_only_where_its_section_names_something(command: Command) -> None:
    for section, there in (("", False), ('variants = ["dtype=float64"]\n', True)):
        Path("vaeaudit.toml").write_text(f"[run]\nchecks = ['reconstruction', 'equivalence']\n[equivalence]\n{section}")
        done = command("audit", MODEL, "--data", DATA, "--limit", 20, "--out", f"out{there}")
        assert done.code == (0 if there else 2)
    written = json.loads(Path("outTrue/report.json").read_text())
    assert written["verdict"] == "passed"
    assert len(written["checks"]) == 5


def test_what_it_decided_by_its_own_thresholds_can_be_verified(own: Command, command: Command) -> None:
    assert own("--variant", "dtype=bfloat16", "--tolerance", 0.1).code == 0
    verified = command("report", "vaeaudit-report", "--verify")
    assert verified.code == 0, verified


def test_rounding_of_vectors_is_told_in_the_units_of_their_differences(cli: Command, tmp_path: Path) -> None:
    code = ADAPTER.replace("(channels, 12, 12), (0.0, 1.0)", "(5,), (-4.0, 4.0)").replace("Conv2d", "Linear")
    code = code.replace("(channels, channels, 1)", "(channels, channels)").replace(
        "1e-6 * self.scale(1e6 * z)", "1.000002 * z"
    )
    (tmp_path / "own.py").write_text(code)
    save_file({"scale.weight": torch.eye(5), "scale.bias": torch.zeros(5)}, tmp_path / "vae.safetensors")
    np.save("val.npy", np.random.default_rng(0).uniform(-3, 3, (9, 5)).astype(np.float32))
    asked = ("vae.safetensors", "--adapter", "own.py:open", "--data", "val.npy", "--against", "vae.safetensors")
    done = cli(*asked, "--against-option", "planted=hot", "--tolerance", 1e-4, "-v")
    assert done.code == 0, done.err
    largest = report()["metrics"]["equivalence.against.decoder.largest_difference.worst"]["value"]
    (said,) = re.findall(r"rounding alone: at most (\S+),", " ".join(done.out.split()))
    assert float(said) == pytest.approx(largest, rel=0.06)
