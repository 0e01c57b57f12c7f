"""`vaeaudit margin` as its user meets it."""

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

from vaeaudit.certify.local import LocalMargin
from vaeaudit.report.model import json_schema
from vaeaudit.subject.opened import _sample

EXAMPLES = Path(__file__).parents[3] / "examples"
MODEL, DATA = EXAMPLES / "shapes-beta1.safetensors", EXAMPLES / "shapes.npz"
SCHEMA = jsonschema.Draft202012Validator(json_schema())  # itself checked in tests/report
FAST = ("--items", "2", "--draws", "100")


Margin = Callable[..., Any]  # its exit code, stdout and stderr: code, out, err


@pytest.fixture
def cli(command: Margin) -> Margin:
    return partial(command, "margin")


@pytest.fixture
def margin(cli: Margin) -> Margin:
    """The command on two items of the bundled model."""
    return lambda *more, effort="fast": cli(MODEL, "--data", DATA, *FAST, "--effort", effort, *more)


# An autoencoder of 4x4 images on a basis of three, with the posteriors that models of other families have.
ADAPTER = """
from dataclasses import dataclass

import torch
import vaeaudit
from vaeaudit.errors import UnsupportedError


@dataclass
class Point:
    mean: torch.Tensor
    noise_shape = (0,)

    def sample(self, noise):
        return self.mean.expand(*noise.shape[:-1], -1)

    def kl(self, other):
        raise UnsupportedError("a posterior of this family has no KL to the prior")

    wasserstein2 = kl

    def rows(self, index):
        return type(self)(self.mean[index])


@dataclass
class Categorical(Point):
    noise_shape = (3,)

    def kl(self, other):
        return self.mean.new_zeros(len(self.mean))

    def sample(self, noise):
        gumbel = -(-torch.special.log_ndtr(noise)).log()
        drawn = torch.nn.functional.one_hot((self.mean + gumbel).argmax(-1), 3).to(self.mean)
        return self.mean + 1e-3 * drawn


def stddev_0(mean):
    return vaeaudit.DiagonalGaussian(mean, torch.full_like(mean, -torch.inf))


def without_certificate(mean):
    return vaeaudit.DiagonalGaussian(mean + 0 * mean.sort(dim=1).values, torch.full_like(mean, -3.0))


def looking_at_values(mean):
    return vaeaudit.DiagonalGaussian(mean if mean.sum() < 1e9 else -mean, torch.full_like(mean, -3.0))


def no_number(mean):
    return vaeaudit.DiagonalGaussian(mean, torch.where(mean > 1, torch.nan, -3.0))


def one_item_without_end(mean):
    stddev = torch.full_like(mean, -3.0)
    stddev[mean.abs().amax(1) > 5] = float("nan")
    return vaeaudit.DiagonalGaussian(mean, stddev)


class Own(torch.nn.Module):
    input_shape, range = (1, 4, 4), None

    def __init__(self, basis, posterior):
        super().__init__()
        self.register_buffer("basis", basis)
        self.posterior = posterior
        self.eval()

    @property
    def prior(self):
        return vaeaudit.DiagonalGaussian.standard((3,), like=self.basis)

    def encode(self, x):
        return self.posterior((x.flatten(1) - 0.5) @ self.basis)

    def decode(self, z):
        return vaeaudit.GaussianLikelihood((0.5 + z @ self.basis.t()).unflatten(1, (1, 4, 4)), z.new_tensor(-2.0))


def open(checkpoint, config):
    return Own(checkpoint.tensors["basis"], globals()[config["posterior"]])
"""


@pytest.fixture
def toy(cli: Margin) -> Margin:
    """The command on a model of 4x4 images, whose posterior is named, and 1,100 images, of which it tries 1,000."""
    basis = torch.linalg.qr(torch.randn(16, 3, generator=torch.Generator().manual_seed(1))).Q.contiguous()
    z = torch.randn(1100, 3, generator=torch.Generator().manual_seed(2))
    outside = next(item for item in range(1100) if item not in _sample(1100, 0))
    z[outside] = 10
    save_file({"basis": basis}, "toy.safetensors")
    np.save("toy.npy", (0.5 + z @ basis.T).reshape(-1, 1, 4, 4).numpy())
    Path("toy_posteriors.py").write_text(ADAPTER)
    model = ("toy.safetensors", "--data", "toy.npy", "--adapter", "toy_posteriors.py:open")
    return lambda posterior, *more: cli(*model, "--option", f"posterior={posterior}", *more)


def report() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("vaeaudit-report/report.json").read_text())
    return content


@pytest.mark.usefixtures("_searched_loosely")
def test_it_bounds_every_item_from_below_and_above_and_writes_that_down(margin: Margin) -> None:
    done = margin("--r", "4", "--format", "json", "-q", effort="thorough")  # a slow machine would show progress
    assert (done.code, done.err) == (0, "")
    written = report()
    assert json.loads(done.out) == written
    SCHEMA.validate(written)
    (entry,) = written["margins"]
    assert (entry["r"], entry["m"], entry["sigma"], entry["box"], entry["draws"]) == (4, 0.5, "frozen", [0, 1], 100)
    assert entry["chosen"] == "2 of 576, drawn at random"
    assert entry["failure_signs"] == {}
    for item in entry["items"]:
        assert 0 < item["certified"] <= item["empirical"]
        assert 0 < item["pathwise"] <= item["empirical"]
        assert item["frobenius"] <= item["spectral"] <= item["whitened"]
        assert item["p_low"] <= item["p0"]
        assert item["min_r"] <= item["min_r_upper"] < 4
    assert written["metrics"]["margin.r4.certified.median"]["value"] > 0
    assert set(written["files"]) == {
        *("items", "samples", "adversarial inputs", "margins at r = 4", "falls at r = 4", "markdown")
    }
    assert all(Path("vaeaudit-report", name).stat().st_size for name in written["files"].values())
    markdown = Path("vaeaudit-report/report.md").read_text(encoding="utf-8")
    assert "## Margins at r = 4" in markdown
    assert "](margin-r4.png)" in markdown


def test_a_radius_can_be_chosen_from_the_data_and_a_bound_left_out(margin: Margin) -> None:
    done = margin("--r", "auto", "--part", "certified", "--sigma", "full", "--no-box", "--family-wise", "--m", "0.6")
    assert done.code == 0
    (entry,) = report()["margins"]
    assert entry["chosen"].endswith("; r is twice the median of their least r, from other draws")
    assert (entry["sigma"], entry["box"], entry["m"], entry["alpha"]) == ("full", None, 0.6, pytest.approx(0.05 / 6))
    assert all(item["empirical"] is None and item["certified"] > 0 for item in entry["items"])
    assert "margins at r = " in done.out


def test_settings_come_from_a_configuration_file_too(margin: Margin) -> None:
    Path("vaeaudit.toml").write_text('[margin]\nr = [3, "auto"]\nparts = ["certified"]\nlevel = 0.9\n')
    assert margin().code == 0
    entries = report()["margins"]
    assert [entry["level"] for entry in entries] == [0.9, 0.9]
    assert entries[0]["r"] == 3


def test_a_report_of_an_earlier_run_is_not_taken_for_that_of_one_that_could_not_begin(margin: Margin) -> None:
    assert margin("--r", "4", "--part", "certified").code == 0
    done = margin("--r", "4", "--draws", "1")
    assert done.code == 2
    assert "note: vaeaudit-report/report.json is of an earlier run\nerror: 1 draws can show" in done.err


@pytest.mark.usefixtures("_searched_loosely")
def test_margins_that_contradict_each_other_support_no_verdict(margin: Margin, monkeypatch: pytest.MonkeyPatch) -> None:
    def overstated(*_: object) -> LocalMargin:
        return LocalMargin(*(torch.full((1,), value, dtype=torch.float64) for value in (1e3, 0.0, 0.0)))

    monkeypatch.setattr("vaeaudit.checks.margin.certified.local_margin", overstated)
    done = margin("--r", "4", "--items", "1")
    assert done.code == 5
    written = report()
    assert written["verdict"] == "inconclusive"
    assert any("exceeds its empirical one" in warning for warning in written["warnings"])


LYING = """
from vaeaudit.model.registry import open_model


class Lying:
    def __init__(self, vae):
        self.vae, self.input_shape, self.range, self.prior = vae, vae.input_shape, vae.range, vae.prior

    def encode(self, x):
        return self.vae.encode(2 * x.detach() - x)

    def decode(self, z):
        return self.vae.decode(z)


def open(checkpoint, config):
    return Lying(open_model(checkpoint.path, "mlp").vae)
"""


@pytest.mark.usefixtures("_searched_loosely")
def test_a_gradient_that_lies_to_the_margins_search_passes_no_threshold_and_is_told_everywhere(command: Margin) -> None:
    Path("lying.py").write_text(LYING)
    asked = '[margin]\nr = [4]\nitems = 2\ndraws = 100\neffort = "fast"\n'
    threshold = '[checks."margin.r4.empirical.median"]\nmin = 0.01\nbound = "value"\n'
    Path("vaeaudit.toml").write_text(asked + threshold)
    done = command("audit", MODEL, "--data", DATA, "--check", "margin", "--adapter", "lying.py:open")
    written = report()
    assert (done.code, written["checks"][0]["observed"] > 0.01) == (5, True)
    SCHEMA.validate(written)
    assert (written["verdict"], written["checks"][0]["verdict"]) == ("inconclusive", "inconclusive")
    (entry,) = written["margins"]
    assert entry["failure_signs"] == {"wrong gradient": 2}
    assert all(item["failure_signs"][0].startswith("wrong gradient: the gradient and") for item in entry["items"])
    told = "failure sign 'wrong gradient' in 2 of 2 items at r = 4, so that they support no verdict; of item "
    assert any(warning.startswith(told) for warning in written["warnings"])
    assert told in " ".join(done.out.split())
    markdown = Path("vaeaudit-report/report.md").read_text(encoding="utf-8")
    assert sum("wrong gradient" in line.split("|")[-2] for line in markdown.splitlines() if "| wrong" in line) == 2


@pytest.mark.parametrize("posterior", ["Point", "stddev_0"])
def test_a_deterministic_autoencoder_gets_the_margin_that_is_left_of_r_robustness(posterior: str, toy: Margin) -> None:
    done = toy(posterior, "--r", "0.5", "--items", "2")
    assert (done.code, done.err) == (0, "")
    assert "r-robustness degenerates" in " ".join(done.out.split())
    written = report()
    SCHEMA.validate(written)
    (entry,) = written["margins"]
    assert entry["failure_signs"] == {}
    assert (entry["deterministic"], entry["alpha"], entry["draws"], entry["missing"]) == (True, 0, 0, [])
    for item in entry["items"]:  # f(x) is a projection: the exact margin is r
        assert item["certified"] == pytest.approx(0.5, rel=0.01)
        assert item["spectral"] == pytest.approx(0.5, rel=1e-5)
        assert item["certified"] <= 0.5 <= item["empirical"] <= 0.525
        assert item["pathwise"] is None
    markdown = Path("vaeaudit-report/report.md").read_text(encoding="utf-8")
    assert "the encoder is deterministic, so that this probability is 0 or 1, the bounds are sure" in markdown
    assert markdown.count("Warning: ") == 1


@pytest.mark.usefixtures("toy", "_searched_loosely")
@pytest.mark.parametrize(
    ("posterior", "words"),
    [("without_certificate", "its operation 'sort'"), ("looking_at_values", "torch.export cannot trace it")],
)
def test_a_certificate_that_cannot_be_had_is_told_once_and_leaves_its_thresholds_unmeasured(
    posterior: str, words: str, command: Margin
) -> None:
    thresholds = {"certified.share": 0.5, "pathwise.median": 0.1, "empirical.median": 0.1}
    Path("vaeaudit.toml").write_text(
        f'[model]\npath = "toy.safetensors"\nadapter = "toy_posteriors.py:open"\noptions.posterior = "{posterior}"\n'
        '[data]\nsource = "toy.npy"\n[margin]\nr = 0.5\nitems = 6\ndraws = 200\n'
        + "".join(f'[checks."margin.r0.5.{name}"]\nmin = {least}\n' for name, least in thresholds.items())
    )
    done = command("audit", "-q")
    assert (done.code, done.err) == (5, "")
    written = report()
    SCHEMA.validate(written)
    refused = {name: why for name, why in written["skipped"].items() if name.startswith("margin")}
    assert refused.keys() == {"margin.r0.5.certified", "margin.r0.5.pathwise"}
    assert words in refused["margin.r0.5.certified"]
    assert not any(words in warning for warning in written["warnings"])
    assert not any("certified" in name or "pathwise" in name for name in written["metrics"])
    by_name = {check["id"]: check for check in written["checks"]}
    for name in ("margin.r0.5.certified.share", "margin.r0.5.pathwise.median"):
        assert by_name[name]["verdict"] == "inconclusive"
        assert by_name[name]["why"].startswith("not measured: ")
    assert by_name["margin.r0.5.empirical.median"]["verdict"] == "passed"
    (entry,) = written["margins"]
    assert all(item["certified"] is None and item["by"] == "none" for item in entry["items"])
    assert all(item["empirical"] > 0 and item["whitened"] > 0 for item in entry["items"])


def test_standard_deviations_that_are_not_finite_leave_no_verdict(toy: Margin) -> None:
    done = toy("no_number", "--r", "0.5", "-q")
    assert (done.code, done.err) == (5, "")
    assert report()["skipped"] == {"margin": "the model did not pass: KL to the prior, log-variance"}


@pytest.mark.parametrize(
    ("posterior", "arguments", "words"),
    [
        ("Point", ["--r", "auto"], "the reconstructions do not vary over draws of the posterior"),
        ("Categorical", [], "this model's is Categorical, which does vary; `vaeaudit attack` takes any posterior"),
        ("Categorical", ["--r", "1"], "this model's is Categorical, which does vary"),
        ("one_item_without_end", ["--items", "1100"], "NaN or infinite for 1 of 1100 items, the first of them item "),
        ("one_item_without_end", ["--items", "1100", "--r", "1"], "NaN or infinite for 1 of 1100 items"),
    ],
)
def test_a_posterior_that_has_no_margin_is_one_sentence_and_exit_2(
    posterior: str, arguments: list[str], words: str, toy: Margin
) -> None:
    done = toy(posterior, *arguments, "-q")
    assert done.said(2, words)
    assert not Path("vaeaudit-report").exists()


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
    assert done.said(2, words)
    assert not Path("vaeaudit-report").exists()
