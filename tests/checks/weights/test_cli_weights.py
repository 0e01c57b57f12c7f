"""`vaeaudit weights` as its user meets it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vaeaudit.checks.weights.entry import PartEntry, TensorEntry, WeightsEntry
from vaeaudit.cli.common import Reporter
from vaeaudit.report.model import json_schema

EXAMPLES = Path(__file__).parents[3] / "examples"
MODEL, OTHER = EXAMPLES / "shapes-beta8.safetensors", EXAMPLES / "shapes-beta1.safetensors"
SCHEMA = jsonschema.Draft202012Validator(json_schema())  # itself checked in tests/report


Weights = Callable[..., Any]  # its exit code, stdout and stderr: code, out, err


@pytest.fixture
def weights(command: Weights) -> Weights:
    return partial(command, "weights")


def report() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("vaeaudit-report/report.json").read_text())
    SCHEMA.validate(content)
    return content


def norm(file: Path, part: str) -> float:
    squares = [t.double().square().sum() for name, t in load_file(file).items() if name.startswith(part) and t.ndim > 1]
    return float(torch.stack(squares).sum().sqrt())


@pytest.mark.figures
def test_it_compares_the_norms_of_two_models_without_data(weights: Weights) -> None:
    done = weights(MODEL, "--against", OTHER, "--format", "json", "-q")
    assert (done.code, done.err) == (0, "")
    written = report()
    assert json.loads(done.out) == written
    assert (written["data"], written["plausibility"], written["verdict"]) == (None, None, "ungated")
    assert (written["model"]["adapter"]["name"], written["model"]["likelihood"]) == ("mlp", None)
    (entry,) = written["weights"]
    assert (entry["against"]["path"], len(entry["against"]["sha256"])) == (str(OTHER), 64)
    for part in entry["parts"]:
        here, there = norm(MODEL, part["name"]), norm(OTHER, part["name"])
        assert part["l2"] == pytest.approx(here, rel=1e-9)
        assert part["change"] == pytest.approx(100 * (here - there) / there, rel=1e-6)
        assert written["metrics"][f"weights.{part['name']}.l2"]["value"] == part["l2"]
    assert [tensor["name"] for tensor in entry["tensors"]][:2] == ["decoder.0.weight", "decoder.2.weight"]
    assert json.loads(Path("vaeaudit-report/items.json").read_text()) == {"weights": entry["tensors"]}
    assert Path("vaeaudit-report/weights.png").read_bytes().startswith(b"\x89PNG")
    markdown = Path("vaeaudit-report/report.md").read_text(encoding="utf-8")
    assert "and of the other model's](weights.png)" in markdown
    assert "| weights.encoder.l2 " in markdown
    assert "| exact " in markdown
    for what in ("Is it the model", "likelihood", "One value a pair", "data SHA-256"):
        assert what not in markdown


def test_only_what_an_adapter_says_of_names_is_used(weights: Weights) -> None:
    Path("mine.py").write_text(
        "WEIGHT_PARTS = {'encoder': ('a.',), 'decoder': ('b.',)}\n"
        "def open(checkpoint, config):\n    raise RuntimeError('the model was opened')\n"
    )
    save_file({"a.w": torch.ones(2, 2), "b.w": torch.ones(3, 3), "b.bias": torch.ones(3)}, "mine.safetensors")
    assert weights("mine.safetensors", "--adapter", "mine.py:open").code == 0
    (entry,) = report()["weights"]
    assert [part["l2"] for part in entry["parts"]] == [2, 3]
    assert entry["left_out"] == ["b.bias"]
    assert weights("mine.safetensors", "--adapter", "mine.py:open", "--vectors", "--no-spectral").code == 0
    (entry,) = report()["weights"]
    assert [part["l2"] for part in entry["parts"]] == [2, pytest.approx(12**0.5)]
    assert (entry["left_out"], {tensor["spectral"] for tensor in entry["tensors"]}) == ([], {None})


def test_prefixes_can_be_given_and_a_long_table_shows_the_largest(weights: Weights) -> None:
    layers = {f"enc.{i:02}.w": torch.full((2, 2), float(i)) for i in range(1, 36)}
    save_file({**layers, "dec.w": torch.full((2, 2), 100.0), "disc.w": torch.ones(2, 2)}, "long.safetensors")
    parts = ("--part", "encoder=enc.", "--part", "decoder=dec.")
    done = weights("-v", "long.safetensors", *parts, "--part", "neither=disc.")
    assert done.code == 0
    assert "the 30 largest of 36 tensors" in done.out
    assert "The other 6 tensors are in items.json." in done.out
    written = report()
    assert written["model"]["adapter"] is None
    (entry,) = written["weights"]
    assert {tensor["name"] for tensor in entry["tensors"]} == {"dec.w", *(f"enc.{i:02}.w" for i in range(7, 36))}
    assert len(json.loads(Path("vaeaudit-report/items.json").read_text())["weights"]) == 36
    Path("vaeaudit.toml").write_text(
        '[model]\npath = "long.safetensors"\n'
        '[weights]\nagainst = "long.safetensors"\n'
        'parts = { encoder = ["enc."], decoder = ["dec."], neither = ["di"] }\n'
    )
    assert weights().code == 0
    assert [part["change"] for part in report()["weights"][0]["parts"]] == [0, 0]
    done = weights("long.safetensors", "--isolated", *parts)
    assert done.code == 2
    assert "encoder or the decoder: disc.w; " in done.err
    assert "(--part encoder=PREFIX)" in done.err


def test_weights_under_weight_norm_are_those_at_work_and_unknown_ones_are_in_doubt(weights: Weights) -> None:
    torch.manual_seed(0)
    layers = nn.ModuleDict({"encoder": nn.Linear(3, 5), "decoder": nn.Linear(4, 4)})
    worked = {name: float(layer.weight.detach().double().norm()) for name, layer in layers.items()}
    nn.utils.parametrizations.weight_norm(layers["encoder"])
    nn.utils.parametrizations.weight_norm(layers["decoder"])
    save_file(layers.state_dict(), "normed.safetensors")
    done = weights("-v", "normed.safetensors")
    assert done.code == 0
    assert "Counted as the model works with them" in done.out
    written = report()
    for part in written["weights"][0]["parts"]:
        assert part["l2"] == pytest.approx(worked[part["name"]], rel=1e-6)
    assert written["weights"][0]["computed"] == ["decoder.weight", "encoder.weight"]
    nn.utils.parametrize.remove_parametrizations(layers["decoder"], "weight")
    nn.utils.parametrizations.orthogonal(layers["decoder"])
    save_file({name: tensor.contiguous() for name, tensor in layers.state_dict().items()}, "normed.safetensors")
    assert weights("normed.safetensors").code == 5
    written = report()
    assert written["verdict"] == "inconclusive"
    assert "not known of decoder.parametrizations" in written["metrics"]["weights.decoder.l2"]["doubt"]
    assert written["metrics"]["weights.encoder.l2"]["doubt"] is None


def test_an_interruption_leaves_the_parts_open(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reporter, "go_on", lambda *_: False)
    assert weights(MODEL).code == 130
    written = report()
    assert written["status"] == "interrupted"
    assert [part["l2"] for part in written["weights"][0]["parts"]] == [None, None]


def test_weights_that_are_not_finite_are_an_error_in_the_report(weights: Weights) -> None:
    save_file({"encoder.w": torch.tensor([[torch.nan, 1.0]]), "decoder.w": torch.ones(1, 1)}, "odd.safetensors")
    assert weights("odd.safetensors").code == 3
    written = report()
    assert written["verdict"] == "error"
    assert written["error"].startswith("encoder.w holds 1 NaN or infinite value of 2, so that no norm")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "no model is named; give one, as in `vaeaudit weights vae.safetensors`"),
        ([MODEL, "--part", "head=h."], 2, "--part takes encoder=PREFIX, decoder=PREFIX or neither=PREFIX"),
        ([MODEL, "--part", "encoder="], 2, "as in encoder=enc., but 'encoder=' came"),
        ([MODEL, "--against", "small.safetensors"], 2, "the other model's tensors differ (missing there: "),
        ([MODEL, "--against", "none.safetensors"], 2, "there is no checkpoint at none.safetensors"),
        ([MODEL, "--adapter", "mpl"], 2, "there is no adapter 'mpl' (did you mean 'mlp'?)"),
        (["code.pt"], 4, "loading them could run code, so it was not loaded"),
        (["broken.safetensors"], 2, "is not a whole safetensors file"),
        ([MODEL, "--data", "x.npz"], 2, "No such option: --data"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[object], code: int, words: str, weights: Weights) -> None:
    save_file({"encoder.w": torch.ones(1, 1), "decoder.w": torch.ones(1, 1)}, "small.safetensors")
    torch.save({"encoder.w": Path("x")}, "code.pt")
    Path("broken.safetensors").write_bytes(b"\x10")
    done = weights(*arguments)
    assert done.said(code, words)
    assert not Path("vaeaudit-report").exists()


def test_the_section_says_exactly_this() -> None:
    none: dict[str, Any] = {"against": None, "change": None}
    tensor = TensorEntry(
        name="encoder.w", part="encoder", shape=[2, 3], dtype="float16", l2=1.5, share=1.0, spectral=None, method="",
        tied_to=None, **none,
    )  # fmt: skip
    tied = tensor.model_copy(update={"name": "encoder.v", "share": 0.0, "tied_to": "encoder.w"})
    entry = WeightsEntry(
        against=None, prefixes={"encoder": ["encoder."], "decoder": ["decoder.", "out."]}, vectors=False,
        parts=[PartEntry(name="encoder", l2=1.5, tensors=1, numbers=6000, why="odd", **none)], tensors=[tensor, tied],
        counted=2, left_out=[str(i) for i in range(8)],
    )  # fmt: skip
    section = entry.section()
    assert section.asked == (
        "How large the weights in tensors of two or more dimensions of encoder and decoder are, read from the file "
        "without running the model. Norms tell models of one architecture apart, such as two that were trained with "
        "different regularisation; neither a small nor a large one is robust by itself. Whose a tensor is, its name's "
        "beginning tells (encoder: encoder.; decoder: decoder., out.)."
    )
    parts, tensors = section.tables
    assert parts.table == (["part", "L2", "tensors", "numbers"], [["encoder", "1.5", "1", "6,000"]])
    assert tensors.table == (
        ["tensor", "part", "shape", "type", "L2", "share", "2-norm"],
        [
            ["encoder.w", "encoder", "2x3", "float16", "1.5", "100.0%", "n/a"],
            ["encoder.v", "encoder", "2x3", "float16", "1.5", "tied to encoder.w", "n/a"],
        ],
    )
    assert section.remarks == ["No change of the encoder: odd.", "Not counted: 0, 1, 2, 3, 4, 5 and 2 more."]
