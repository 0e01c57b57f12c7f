"""`vaeaudit latents` as its user meets it."""

import json
import math
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
from vaeaudit.checks.latents.entry import ActiveEntry, FigureEntry, LatentsEntry, UnitEntry
from vaeaudit.report.model import json_schema

EXAMPLES = Path(__file__).parents[3] / "examples"
MODEL, DATA = EXAMPLES / "shapes-beta1.safetensors", EXAMPLES / "shapes.npz"
SCHEMA = jsonschema.Draft202012Validator(json_schema())  # itself checked in tests/report
# Linear models of 4x4 images: of 90 units, a chain of two layers, and continuous units beside a class of three.
ADAPTER = """
from dataclasses import dataclass

import torch
import vaeaudit


@dataclass(frozen=True, eq=False)
class Classes:
    logits: torch.Tensor

    @property
    def log_probabilities(self):
        return self.logits.log_softmax(1)

    @property
    def mean(self):
        return self.logits.softmax(1)

    @property
    def noise_shape(self):
        return self.logits.shape[1:]

    def sample(self, noise):
        return (self.logits + noise).softmax(-1)

    def kl(self, other):
        return (self.mean * (self.log_probabilities - other.log_probabilities)).sum(1)

    def wasserstein2(self, other):
        raise NotImplementedError

    def rows(self, index):
        return type(self)(self.logits[index])


@dataclass(frozen=True, eq=False)
class Both:
    parts: tuple

    @property
    def mean(self):
        return torch.cat([part.mean for part in self.parts], 1)

    @property
    def noise_shape(self):
        return (sum(part.noise_shape[0] for part in self.parts),)

    def sample(self, noise):
        widths = [part.noise_shape[0] for part in self.parts]
        drawn = zip(self.parts, torch.split(noise, widths, dim=-1), strict=True)
        return torch.cat([part.sample(eta) for part, eta in drawn], -1)

    def kl(self, other):
        return sum(a.kl(b) for a, b in zip(self.parts, other.parts, strict=True))

    def wasserstein2(self, other):
        raise NotImplementedError

    def rows(self, index):
        return type(self)(tuple(part.rows(index) for part in self.parts))


class Wide(torch.nn.Module):
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
        return vaeaudit.DiagonalGaussian(mean, torch.full_like(mean, -1.0))

    def decode(self, z):
        mean = 0.5 + z[:, : self.basis.shape[1]] @ self.basis.t()
        return vaeaudit.GaussianLikelihood(mean.unflatten(1, (1, 4, 4)), z.new_tensor(-2.0))


class Joint(Wide):
    @property
    def prior(self):
        return Both((super().prior, Classes(self.basis.new_zeros(1, 3))))

    def encode(self, x):
        q = super().encode(x)
        return Both((q, Classes(2 * q.mean[:, :3])))


class Chain(Wide):
    @property
    def prior(self):
        return self.encode(self.basis.new_full((1, 1, 4, 4), 0.5))

    def encode(self, x):
        def upper(z):
            return vaeaudit.DiagonalGaussian(z[:, :2], torch.full_like(z[:, :2], -1.0))

        return vaeaudit.GaussianChain(super().encode(x), (upper,))

    def conditional_priors(self, z):
        width = self.basis.shape[1]
        down = torch.nn.functional.pad(z[:, width:], (0, width - 2))
        return (
            vaeaudit.DiagonalGaussian(down, torch.zeros_like(down)),
            vaeaudit.DiagonalGaussian.standard((2,), like=z),
        )


def open(checkpoint, config):
    return globals()[config["kind"]](checkpoint.tensors["basis"])
"""


Latents = Callable[..., Any]  # its exit code, stdout and stderr: code, out, err


@pytest.fixture
def latents(command: Latents) -> Latents:
    return partial(command, "latents")


@pytest.fixture
def bundled(latents: Latents) -> Latents:
    """The command on the bundled model."""
    return lambda *more: latents(MODEL, "--data", DATA, *more)


@pytest.fixture
def toy(latents: Latents) -> Latents:
    """The command on a linear model of the named kind with so many units, and 100 images."""

    def run(kind: str, units: int, *more: object) -> Any:
        generator = torch.Generator().manual_seed(1)
        basis = torch.randn(16, units, generator=generator) / math.sqrt(max(units, 16))
        save_file({"basis": basis}, "toy.safetensors")
        np.save("toy.npy", 0.5 + torch.randn(100, 1, 4, 4, generator=generator).numpy())
        Path("toy_linear.py").write_text(ADAPTER)
        model = ("toy.safetensors", "--data", "toy.npy", "--adapter", "toy_linear.py:open")
        return latents(*model, "--option", f"kind={kind}", "-q", *more)

    return run


def report() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("vaeaudit-report/report.json").read_text())
    return content


def items() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("vaeaudit-report/items.json").read_text())
    return content


def test_it_tells_what_the_latents_hold_and_writes_that_down(bundled: Latents) -> None:
    done = bundled("--format", "json", "-q")
    assert (done.code, done.err) == (0, "")
    written = report()
    assert json.loads(done.out) == written
    SCHEMA.validate(written)
    (entry,) = written["latents"]
    assert (entry["n"], entry["chosen"], entry["draws"], entry["of_units"]) == (576, "all 576", 1, 10)
    elbo, log_likelihood, kl = (part["value"] for part in entry["evidence"])
    assert elbo == pytest.approx(log_likelihood - kl)
    *parts, whole = (part["value"] for part in entry["apart"])
    assert sum(parts) == pytest.approx(whole)
    assert whole == pytest.approx(kl, rel=1e-5)
    assert entry["log_n"] == pytest.approx(math.log(576))
    in_order = [unit["kl"]["value"] for unit in entry["units"]]
    assert in_order == sorted(in_order, reverse=True)
    assert sum(in_order) == pytest.approx(kl, rel=1e-5)
    assert [unit["active"] for unit in entry["units"]] == 8 * [["KL", "variance"]] + 2 * [[]]
    assert [count["active"] for count in entry["active"]] == [8, 8]
    assert written["metrics"]["latents.elbo.mean"]["value"] == pytest.approx(elbo)
    assert any("near log N" in warning for warning in written["warnings"])
    values = items()
    assert [row["item"] for row in values["latents"]] == list(range(576))
    assert np.mean([row["elbo"] for row in values["latents"]]) == pytest.approx(elbo)
    assert len(values["latents.units"]) == 10
    assert set(written["files"]) == {"items", "samples", "KL of each unit", "traversals", "markdown"}
    assert all(Path("vaeaudit-report", name).stat().st_size for name in written["files"].values())
    markdown = Path("vaeaudit-report/report.md").read_text(encoding="utf-8")
    assert "## Latents" in markdown
    assert "](latents-kl.png)" in markdown
    assert "](latents-traversals.png)" in markdown


def test_the_tables_tell_the_intervals_of_the_metrics(bundled: Latents) -> None:
    assert bundled("-q").code == 0
    (entry,), metrics = report()["latents"], report()["metrics"]
    names = {
        **dict(zip(("ELBO", "log-likelihood", "KL"), ("elbo.mean", "log_likelihood.mean", "kl.mean"), strict=True)),
        **{name: name.replace(" ", "_") for name in ("mutual information", "total correlation")},
        "dimension-wise KL": "dimension_wise_kl",
    }
    shown = {part["name"]: part for part in entry["evidence"] + entry["apart"]}
    shown |= {f"unit{unit['unit']}.kl.mean": unit["kl"] for unit in entry["units"]}
    for name, part in shown.items():
        if name == "sum, the mean KL":
            continue
        metric = metrics[f"latents.{names.get(name, name)}"]
        assert [part["value"], *part["ci"]] == pytest.approx([metric["value"], *metric["ci"]]), name
        assert part["value"] != metric["ci"][0] or part["error"] == 0, name


def test_the_command_gives_what_python_gives(
    latents: Latents, bundled_model: vaeaudit.VAE, bundled_images: torch.Tensor
) -> None:
    with np.load(DATA, allow_pickle=False) as stored:
        np.save("third.npy", stored["imgs"][::3])
    assert latents(MODEL, "--data", "third.npy", "--draws", "2", "--traverse", "0", "-q").code == 0
    found = vaeaudit.latents(bundled_model, bundled_images, draws=2)
    assert isinstance(found, vaeaudit.LatentsResult)
    assert found.elbo is not None
    assert [row["elbo"] for row in items()["latents"]] == found.elbo.tolist()
    assert "traversals" not in report()["files"]


def test_items_keep_their_draws_when_fewer_are_asked_for(bundled: Latents) -> None:
    Path("vaeaudit.toml").write_text('[latents]\nitems = 64\nestimator = "stratified"\ntraverse = 0\n')
    assert bundled("-q").code == 0
    few = {row["item"]: row["elbo"] for row in items()["latents"]}
    entry = report()["latents"][0]
    assert (entry["n"], entry["chosen"]) == (64, "64 of 576, drawn at random")
    assert entry["estimator"].startswith("minibatch stratified sampling of 64 posteriors")
    assert bundled("--items", "576", "--draws", "1", "--estimator", "exact", "-q").code == 0
    every = {row["item"]: row["elbo"] for row in items()["latents"]}
    assert few == pytest.approx({item: every[item] for item in few}, rel=1e-5)


def test_without_draws_there_is_no_elbo(bundled: Latents) -> None:
    done = bundled("--draws", "0", "--items", "50", "--traverse", "2", "-q")
    assert done.code == 0
    written = report()
    assert [part["name"] for part in written["latents"][0]["evidence"]] == ["KL"]
    assert not any(name.startswith(("latents.elbo", "latents.log")) for name in written["metrics"])
    assert "0 draws of z an item, and so no ELBO." in Path("vaeaudit-report/report.md").read_text(encoding="utf-8")


def test_of_many_units_the_table_shows_the_largest_and_the_file_all(toy: Latents) -> None:
    assert toy("Wide", 90).code == 0
    (entry,) = report()["latents"]
    assert (entry["of_units"], len(entry["units"])) == (90, 30)
    assert len(items()["latents.units"]) == 90
    assert entry["units"][29]["kl"]["value"] >= sorted(row["kl"] for row in items()["latents.units"])[60]
    assert "items.json holds all 90 units." in Path("vaeaudit-report/report.md").read_text(encoding="utf-8")


def test_a_chain_is_told_layer_by_layer(toy: Latents) -> None:
    assert toy("Chain", 4, "--draws", "2").code == 0
    written = report()
    SCHEMA.validate(written)
    (entry,) = written["latents"]
    evidence = {part["name"]: part["value"] for part in entry["evidence"]}
    assert evidence["KL, layer 1"] + evidence["KL, layer 2"] == pytest.approx(evidence["KL"])
    assert [(count["layer"], count["units"]) for count in entry["active"]] == [(1, 4), (1, 4), (2, 2), (2, 2)]
    assert {(unit["layer"], unit["unit"]) for unit in entry["units"]} == {*((1, k) for k in range(4)), (2, 0), (2, 1)}
    assert entry["traversals"]["traversals"] == "from item 0, -3 to 3 standard deviations of the prior"
    markdown = Path("vaeaudit-report/report.md").read_text(encoding="utf-8")
    assert "the mean KL of the top layer taken apart" in markdown
    assert "| layer   | unit   |" in markdown


def test_a_joint_posterior_is_told_part_by_part(toy: Latents) -> None:
    assert toy("Joint", 4).code == 0
    written = report()
    (entry,) = written["latents"]
    evidence = {part["name"]: part["value"] for part in entry["evidence"]}
    parts = evidence["KL, continuous units"] + evidence["KL, categorical unit 4"]
    assert parts == pytest.approx(evidence["KL"])
    assert {unit["unit"]: unit["kind"] for unit in entry["units"]}[4] == "categorical"
    assert set(entry["traversals"]) == {"traversals", "traversals of 3 classes"}
    assert entry["traversals"]["traversals of 3 classes"] == "from item 0, each class in turn"
    assert written["files"]["traversals of 3 classes"] == "latents-traversals-of-3-classes.png"
    assert "](latents-traversals-of-3-classes.png)" in Path("vaeaudit-report/report.md").read_text(encoding="utf-8")


def test_an_interruption_keeps_the_items_so_far(bundled: Latents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaeaudit.cli.common.Reporter.go_on", lambda *_: False)
    assert bundled("--batch-size", "100").code == 130
    written = report()
    SCHEMA.validate(written)
    (entry,) = written["latents"]
    assert (entry["n"], entry["apart"], entry["traversals"]) == (100, [], {})
    assert len(items()["latents"]) == 100
    assert "100 items (all 576, not all done)" in Path("vaeaudit-report/report.md").read_text(encoding="utf-8")
    assert written["status"] == "interrupted"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--items", "1"], "--items"),
        (["--draws", "-1"], "--draws"),
        (["--estimator", "weighted"], "--estimator"),
        (["--traverse", "21"], "--traverse"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(arguments: list[str], words: str, bundled: Latents) -> None:
    done = bundled(*arguments)
    assert done.said(2, words)
    assert not Path("vaeaudit-report").exists()


def test_the_tables_say_what_is_exact_and_what_is_not_known() -> None:
    def figure(name: str, value: float, error: float) -> FigureEntry:
        return FigureEntry(name=name, value=value, error=error, ci=(value - 2, value + 2) if error else None)

    entry = LatentsEntry(
        n=1000,
        chosen="all 1000",
        draws=1,
        route="Gaussian",
        level=0.95,
        threshold=0.01,
        layers=1,
        of_units=2,
        log_n=math.log(1000),
        evidence=[figure("KL", 3.0, 0.5)],
        apart=[figure("mutual information", 5.0, 0.25), figure("sum, the mean KL", 3.0, 0.0)],
        estimator="a mixture",
        units=[
            UnitEntry(
                layer=1,
                unit=1,
                kind="categorical",
                kl=figure("KL", 3.0, 0.5),
                share=1.0,
                variance=None,
                active=["KL"],
            )
        ],
        active=[ActiveEntry(layer=1, criterion="KL > 0.01 nats", active=1, ci=(1, 2), units=2)],
        traversals={},
    )
    evidence, apart, units, active = entry.section().tables
    assert evidence.table == (["part", "mean", "standard error", "95% interval"], [["KL", "3", "0.5", "[1, 5]"]])
    assert apart.caption == "the mean KL taken apart over N = 1000 items, log N = 6.908, nats"
    assert apart.table[1] == [
        ["mutual information", "5", "0.25", "[3, 7]"],
        ["sum, the mean KL", "3", "exact", "n/a"],
    ]
    assert units.caption == "KL of the 2 units in descending order, the largest 1, nats"
    assert units.table == (
        ["unit", "KL", "share", "variance of the mean", "active"],
        [["1 (categorical)", "3 [1, 5]", "100.0%", "n/a", "KL"]],
    )
    assert active.table[1] == [["KL > 0.01 nats", "1", "[1, 2]", "2"]]
