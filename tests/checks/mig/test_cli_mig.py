"""`vaeaudit mig` as its user meets it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vaeaudit
from vaeaudit.checks.mig.entry import GapsEntry, HeldEntry, MigEntry, mig_table
from vaeaudit.report.model import json_schema

EXAMPLES = Path(__file__).parents[3] / "examples"
MODEL, DATA = EXAMPLES / "shapes-beta1.safetensors", EXAMPLES / "shapes.npz"
SCHEMA = jsonschema.Draft202012Validator(json_schema())  # itself checked in tests/report
ADAPTER = """
import torch
import vaeaudit


class Linear(torch.nn.Module):
    input_shape, range = (1, 4, 4), None

    def __init__(self, basis):
        super().__init__()
        self.register_buffer("basis", basis)
        self.eval()

    @property
    def prior(self):
        return vaeaudit.DiagonalGaussian.standard((self.basis.shape[1],), like=self.basis)

    def encode(self, x):
        mean = (x.flatten(1) - 0.5) @ self.basis
        return vaeaudit.DiagonalGaussian(mean, torch.full_like(mean, -3.0))

    def decode(self, z):
        return vaeaudit.GaussianLikelihood((0.5 + z @ self.basis.t()).unflatten(1, (1, 4, 4)), z.new_tensor(-2.0))


def open(checkpoint, config):
    return Linear(checkpoint.tensors["basis"])
"""


Mig = Callable[..., Any]  # its exit code, stdout and stderr: code, out, err


@pytest.fixture
def mig(command: Mig) -> Mig:
    return partial(command, "mig")


@pytest.fixture
def toy(mig: Mig) -> Mig:
    """The command on 60 items on so many units, whose file holds the arrays that are given besides."""

    def run(units: int, file: str = "toy.npz", **arrays: np.ndarray[Any, Any]) -> Any:
        basis = torch.linalg.qr(torch.randn(16, units, generator=torch.Generator().manual_seed(1))).Q.contiguous()
        save_file({"basis": basis}, "toy.safetensors")
        z = torch.randn(60, units, generator=torch.Generator().manual_seed(2))
        images = (0.5 + z @ basis.T).reshape(-1, 1, 4, 4).numpy()
        if file.endswith(".npy"):
            np.save(file, images)
        else:
            np.savez(file, imgs=images, **arrays)
        Path("toy_linear.py").write_text(ADAPTER)
        return mig("toy.safetensors", "--data", file, "--adapter", "toy_linear.py:open", "-q")

    return run


def report() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("vaeaudit-report/report.json").read_text())
    return content


def test_it_measures_the_gap_of_every_factor_by_both_estimators_and_writes_that_down(mig: Mig) -> None:
    done = mig(MODEL, "--data", DATA, "--format", "json", "-q")
    assert (done.code, done.err) == (0, "")
    written = report()
    assert json.loads(done.out) == written
    SCHEMA.validate(written)
    (entry,) = written["migs"]
    assert (entry["n"], entry["chosen"], entry["units"], entry["constant"]) == (576, "all 576", 10, [])
    assert entry["factors"] == ["shape", "scale", "orientation", "posX", "posY"]
    assert entry["entropy"] == pytest.approx(np.log([3, 3, 4, 4, 4]))
    for gaps in entry["by"]:
        assert gaps["value"] == pytest.approx(np.mean([held["gap"] for held in gaps["factors"]]))
        assert gaps["ci"][0] <= gaps["value"] <= gaps["ci"][1]
        for held in gaps["factors"]:
            assert held["gap"] == pytest.approx(held["share"] - held["second_share"])
            assert held["ci"][0] <= held["gap"] <= held["ci"][1]
        assert written["metrics"][f"mig.{gaps['estimator']}"]["value"] == gaps["value"]
    assert written["warnings"] == []
    assert set(written["files"]) == {"items", "mutual informations", "markdown"}
    assert all(Path("vaeaudit-report", name).stat().st_size for name in written["files"].values())
    units = json.loads(Path("vaeaudit-report/items.json").read_text())
    assert len(units["mig.chen"]) == len(units["mig.hist20"]) == 10
    chen = entry["by"][0]["factors"][1]
    assert units["mig.chen"][chen["unit"]]["scale"] == pytest.approx(chen["share"] * np.log(3))
    markdown = Path("vaeaudit-report/report.md").read_text(encoding="utf-8")
    assert "## Mutual information gap" in markdown
    assert "](mig.png)" in markdown


def test_the_command_gives_what_python_gives(
    mig: Mig, bundled_model: vaeaudit.VAE, bundled_images: torch.Tensor
) -> None:
    with np.load(DATA, allow_pickle=False) as stored:
        classes = stored["latents_classes"][::3]
        np.savez("third.npz", imgs=stored["imgs"][::3], latents_classes=classes)
    assert mig(MODEL, "--data", "third.npz", "-q").code == 0
    found = vaeaudit.mig(bundled_model, bundled_images, classes)
    assert isinstance(found, vaeaudit.MigResult)
    assert [gaps["value"] for gaps in report()["migs"][0]["by"]] == [gaps.value for gaps in found.by]


def test_fewer_items_are_drawn_at_random_and_few_are_warned_of(mig: Mig) -> None:
    Path("vaeaudit.toml").write_text("[mig]\nitems = 200\n")
    done = mig(MODEL, "--data", DATA)
    assert done.code == 0
    written = report()
    assert written["migs"][0]["chosen"] == "200 of 576, drawn at random"
    warning = written["warnings"][-1]
    assert warning.startswith("200 items are few for the intervals by 'hist20' of ")
    assert "the mean (" in warning


def test_what_does_not_vary_is_left_out_and_said(toy: Mig) -> None:
    classes = np.stack([np.zeros(60, int), np.arange(60) % 3], 1)
    names = np.array(["colour", "shape"])
    assert toy(2, latents_classes=classes, latents_names=names).code == 0
    assert report()["migs"][0]["constant"] == ["colour"]
    assert "Left out, since constant over these items: colour." in Path("vaeaudit-report/report.md").read_text()


def test_an_interruption_keeps_a_report_without_figures(mig: Mig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaeaudit.cli.common.Reporter.go_on", lambda *_: False)
    done = mig(MODEL, "--data", DATA, "--batch-size", "100")
    assert done.code == 130
    written = report()
    SCHEMA.validate(written)
    assert written["metrics"]["mig.chen"]["value"] is None
    assert {held["unit"] for gaps in written["migs"][0]["by"] for held in gaps["factors"]} == {-1}
    assert set(written["files"]) == {"markdown"}


def test_data_without_factors_are_told_where_they_were_looked_for(toy: Mig) -> None:
    for done, words in (
        (toy(2, "plain.npz"), "looked for in plain.npz as the .npz array 'latents_classes', which is not there"),
        (toy(2, "plain.npy"), "only .npz and .safetensors files can hold, as an array 'latents_classes'"),
        (
            toy(2, "pickled.npz", latents_classes=np.array([{}] * 60)),
            "the .npz array 'latents_classes', which is pickled and was not loaded",
        ),
    ):
        refused(done, words)


def test_factors_that_no_gap_can_be_of_are_one_sentence_and_exit_2(toy: Mig, mig: Mig) -> None:
    three = np.arange(60)[:, None] % 3
    refused(toy(2, latents_classes=three[:59]), "60 items but 59 factor classes")
    refused(toy(2, latents_classes=np.zeros((60, 2), int)), "none of the factors factor0, factor1 varies")
    refused(toy(2, latents_classes=np.arange(60)[:, None]), "factor factor0 has 60 classes for 60 items")
    refused(toy(1, latents_classes=three), "the latent code has only one")
    refused(mig(MODEL, "--data", DATA, "--items", "1"), "--items")


def refused(done: Any, words: str) -> None:
    assert done.said(2, words)
    assert not Path("vaeaudit-report").exists()


def test_the_table_names_each_factors_holder() -> None:
    gaps = [
        GapsEntry(
            estimator=name,
            value=0.5,
            ci=(0.25, 0.75),
            factors=[HeldEntry(gap=0.5, ci=(0.2, 0.8), unit=3, share=0.75, second=0, second_share=0.25)],
        )
        for name in ("chen", "hist20")
    ]
    entry = MigEntry(
        n=576,
        chosen="all 576",
        units=4,
        categorical=1,
        layer=2,
        layers=2,
        level=0.95,
        complete=False,
        factors=["posX"],
        entropy=[np.log(4)],
        constant=[],
        by=gaps,
    )
    assert mig_table(entry) == (
        ["factor", "H(v)", "gap, chen", "held by, chen", "gap, hist20", "held by, hist20"],
        [
            ["posX", "1.386", *2 * ["0.500 [0.200, 0.800]", "3 (0.75), then 0 (0.25)"]],
            ["mean (MIG)", "", *2 * ["0.500 [0.250, 0.750]", ""]],
        ],
    )
    asked = entry.section().asked
    assert "Of 576 items (all 576), 4 units, of which 1 categorical, layer 2 of 2;" in asked
    assert asked.endswith("intervals at 95% take the items as a sample, and tell what others would have given.")
    assert entry.model_copy(update={"complete": True}).section().asked.endswith("of which there are no others.")
