"""`vaeaudit noise` as its user meets it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

from vaeaudit.checks.noise import figures as figures_noise
from vaeaudit.checks.noise.entry import NoiseEntry, NoiseLevelEntry
from vaeaudit.cli.common import Reporter
from vaeaudit.layout.entry import MetricEntry
from vaeaudit.report.model import json_schema

EXAMPLES = Path(__file__).parents[3] / "examples"
MODEL, DATA = EXAMPLES / "shapes-beta1.safetensors", EXAMPLES / "shapes.npz"
SCHEMA = jsonschema.Draft202012Validator(json_schema())  # itself checked in tests/report


Noise = Callable[..., Any]  # its exit code, stdout and stderr: code, out, err


@pytest.fixture
def cli(command: Noise) -> Noise:
    return partial(command, "noise")


@pytest.fixture
def noise(cli: Noise) -> Noise:
    """The command on twenty items of the bundled model."""
    return lambda *more: cli(MODEL, "--data", DATA, "--items", 20, "--draws", 2, *more)


def report() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("vaeaudit-report/report.json").read_text())
    SCHEMA.validate(content)
    return content


def test_it_measures_every_noise_and_writes_that_down(noise: Noise) -> None:
    done = noise("--sigma", 0.5, "--sigma", 0.1, "--format", "json", "-q")
    assert (done.code, done.err) == (0, "")
    written = report()
    assert json.loads(done.out) == written
    (entry,) = written["noise"]
    assert (entry["n"], entry["chosen"], entry["draws"], entry["clip"]) == (20, "20 of 576, drawn at random", 2, None)
    assert [level["sigma"] for level in entry["levels"]] == [0, 0.5, 0.1]
    clean, strong, weak = (level["log_likelihood_median"]["value"] for level in entry["levels"])
    assert strong < weak < clean
    assert entry["levels"][1]["noise_norm_median"]["value"] == pytest.approx(14, rel=0.05)  # 0.5 sqrt(784)
    assert written["metrics"]["noise.s0.5.log_likelihood.median"] == entry["levels"][1]["log_likelihood_median"]
    text = Path("vaeaudit-report/items.json").read_text()
    rows = json.loads(text)["noise"]
    assert text.splitlines()[2:62] == [json.dumps(row) + "," * (row is not rows[-1]) for row in rows]
    assert [(row["item"], row["sigma"]) for row in rows[:60:20]] == [(rows[0]["item"], s) for s in (0, 0.5, 0.1)]
    assert len(rows) == 60
    assert {"items", "samples", "noise histograms", "noise curves", "markdown"} == set(written["files"])
    for name in ("noise-histograms.png", "noise-curves.png"):
        assert Path("vaeaudit-report", name).read_bytes().startswith(b"\x89PNG")
    markdown = Path("vaeaudit-report/report.md").read_text(encoding="utf-8")
    assert "## Noise" in markdown
    assert "](noise-curves.png)" in markdown


def test_noisy_inputs_can_be_clipped_by_a_configuration_file_too(noise: Noise) -> None:
    Path("vaeaudit.toml").write_text("[noise]\nsigmas = [1, 1.0]\nclip = true\n")
    assert noise().code == 0
    (entry,) = report()["noise"]
    assert entry["clip"] == [0, 1]
    assert [level["sigma"] for level in entry["levels"]] == [0, 1]
    assert entry["levels"][1]["noise_norm_median"]["value"] < 20  # 28 unclipped


def test_one_item_supports_no_verdict(noise: Noise) -> None:
    done = noise("--sigma", 0.5, "--items", 1)
    assert done.code == 5
    assert "0.5 !" in done.out
    assert report()["verdict"] == "inconclusive"
    assert "is of one item" in " ".join(report()["warnings"])


def test_a_mean_loss_whose_interval_contains_0_leaves_no_doubt_and_thresholds_read_the_interval(
    noise: Noise, command: Noise
) -> None:
    name = "noise.s0.001.degradation.mean"
    assert noise("--sigma", 0.001).code == 0
    assert report()["verdict"] == "ungated"
    metric = report()["metrics"][name]
    (low, high), mean = metric["ci"], metric["value"]
    assert low < 0 < high
    assert metric["doubt"] is None
    for limit, word in ((high + 1, "passed"), ((mean + high) / 2, "inconclusive"), (low - 1, "failed")):
        gate = f'[noise]\nsigmas = [0.001]\nitems = 20\ndraws = 2\n[checks."{name}"]\nmax = {limit}\n'
        Path("vaeaudit.toml").write_text(gate)
        command("audit", MODEL, "--data", DATA)
        assert report()["verdict"] == word


ADAPTER = """
import torch
import vaeaudit


class Own(torch.nn.Module):
    input_shape, range = (1, 4, 4), (0.0, 1.0)

    def __init__(self, basis):
        super().__init__()
        self.register_buffer("basis", basis)

    @property
    def prior(self):
        return vaeaudit.DiagonalGaussian.standard((3,), like=self.basis)

    def encode(self, x):
        mean = (x.flatten(1) - 0.5) @ self.basis
        return vaeaudit.DiagonalGaussian(mean, torch.full_like(mean, -3.0))

    def decode(self, z):
        p = (0.5 + z @ self.basis.t()).clamp(0.01, 0.99).unflatten(1, (1, 4, 4))
        far = z.norm(dim=1)[:, None, None, None] > 3
        return vaeaudit.BernoulliProbabilities(torch.where(far, torch.nan, p))


def open(checkpoint, config):
    return Own(checkpoint.tensors["basis"])
"""


def test_probabilities_that_are_nan_under_noise_are_counted_and_end_nothing(cli: Noise) -> None:
    basis = torch.linalg.qr(torch.randn(16, 3, generator=torch.Generator().manual_seed(1))).Q.contiguous()
    z = 0.3 * torch.randn(300, 3, generator=torch.Generator().manual_seed(2))
    save_file({"basis": basis}, "toy.safetensors")
    np.save("toy.npy", (0.5 + z @ basis.T).clamp(0.01, 0.99).reshape(-1, 1, 4, 4).numpy())
    Path("toy_adapter.py").write_text(ADAPTER)
    done = cli(
        "toy.safetensors", "--data", "toy.npy", "--adapter", "toy_adapter.py:open", "--sigma", 0.1, "--sigma", 1.5, "-q"
    )
    assert (done.code, done.err) == (5, "")
    (entry,) = report()["noise"]
    _, weak, strong = entry["levels"]
    assert (weak["nonfinite"], weak["sign"]) == (0, None)
    said = f"with noise of 1.5, {strong['nonfinite']} of 3000 log-likelihoods are NaN or infinite: of items "
    assert strong["sign"].startswith(said)
    measured = report()["metrics"]["noise.s1.5.log_likelihood.mean"]
    assert measured["nonfinite"] > 0
    assert measured["n"] + measured["nonfinite"] == 300
    assert measured["doubt"] == strong["sign"]
    assert report()["metrics"]["noise.s1.5.log_likelihood.median"]["doubt"] is None


def test_an_interruption_keeps_the_items_done(noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reporter, "go_on", lambda *_: False)
    assert noise("--sigma", 0.5, "--batch-size", 8).code == 130
    written = report()
    assert (written["status"], written["noise"][0]["n"]) == ("interrupted", 8)
    assert "drawn at random, of which 8 were done." in Path("vaeaudit-report/report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sigma", "-0.1"], "--sigma must be at least 0, but -0.1 came"),
        (["--sigma", "nan"], "--sigma must be"),
        (["--sigma", "inf"], "--sigma must be a finite number, but inf came"),
        (["--sigma", "loud"], "--sigma must be a valid number, but 'loud' came"),
        (["--sigma", "0.1", "--sigma", "0.10000001"], "sigmas must differ in their first six digits"),
        (["--items", "0"], "--items must be at least 1, but 0 came"),
        (["--draws", "0"], "--draws must be at least 1, but 0 came"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(arguments: list[str], words: str, noise: Noise) -> None:
    done = noise(*arguments)
    assert done.said(2, words)
    assert not Path("vaeaudit-report").exists()


# ---- Exact texts and figures


def measured(value: float | None, ci: tuple[float, float] | None = None) -> MetricEntry:
    return MetricEntry(
        value=value, ci=ci, level=0.95, n=4, nonfinite=0, unit="nats", direction="higher", estimator="mean"
    )


def test_the_section_says_exactly_this() -> None:
    shared = {"nonfinite": 0, "sign": None, "log_likelihood_median": measured(-9.5)}
    levels = [
        NoiseLevelEntry(
            sigma=0.0, log_likelihood_mean=measured(-10.0, (-11.0, -9.0)), degradation_mean=None,
            degradation_median=None, relative_degradation_median=None, denoising_error_median=measured(1.5),
            noise_norm_median=None, **shared,
        ),
        NoiseLevelEntry(
            sigma=0.25, log_likelihood_mean=measured(None), degradation_mean=measured(2.0, (1.0, 3.0)),
            degradation_median=measured(1.75), relative_degradation_median=measured(0.125),
            denoising_error_median=measured(1.625), noise_norm_median=measured(7.0), **shared | {"sign": "odd"},
        ),
    ]  # fmt: skip
    entry = NoiseEntry(n=3, chosen="4 of 9, drawn at random", draws=2, clip=(0, 1), route="Bernoulli", levels=levels)
    section = entry.section()
    assert section.asked.endswith(
        "2 draws of noise and latents an item; noisy inputs clipped to [0, 1]; Bernoulli; items: 4 of 9, drawn at "
        "random, of which 3 were done."
    )
    for n, chosen, told in (
        (3, "all 5000", "all 5000, of which 3 were done."),
        (5000, "all 5000", "all 5000."),
        (300, "300 of 5000, drawn at random", "300 of 5000, drawn at random."),
    ):
        asked = entry.model_copy(update={"n": n, "chosen": chosen}).section().asked
        assert asked.endswith(f"items: {told}")
    headers, rows = section.tables[0].table
    assert headers == ["s", "log p", "median", "lost", "median lost", "relative", "‖rec(x+ε)-x‖", "‖ε‖"]
    assert rows == [
        ["0", "-10 [-11, -9]", "-9.5", "", "", "", "1.5", ""],
        ["0.25 !", "n/a", "-9.5", "2 [1, 3]", "1.75", "0.125", "1.625", "7"],
    ]
    assert section.remarks == ["Rows marked ! support no verdict: see the warnings."]


def test_heavy_tails_leave_the_axis_to_the_rest_and_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures_noise, "to_png", lambda figure: drawn.append(figure) or b"")
    near = -100 - np.arange(1000.0) / 100
    heavy = np.where(np.arange(1000) < 5, -1e12, 2 * near)
    figures_noise.likelihood_histograms({"clean": near, "s = 1": heavy})
    heavier = np.where(np.arange(1000) < 500, 20 * near, heavy)
    figures_noise.likelihood_histograms({"clean": near, "s = 1": np.append(heavier, np.nan)})
    linear, logarithmic = (figure.axes[0] for figure in drawn)
    assert (linear.get_xscale(), logarithmic.get_xscale()) == ("linear", "log")
    assert linear.get_xlim()[0] > -300
    assert [text.get_text() for text in linear.get_legend().get_texts()] == ["clean", "s = 1 (0.5% left out)"]
    for lines in (linear.lines, logarithmic.lines):
        assert float(np.sum(lines[0].get_ydata())) == pytest.approx(1)

    statistics = np.array([[-100.0, -101, -99], [-1e9, -2e9, 1e9]])
    quartiles = {name: np.array([[v] * 3, [2 * v] * 3]) for name, v in
                 (("lower_quartile", -110.0), ("median", -100.0), ("upper_quartile", -90.0))}  # fmt: skip
    lengths = np.ones((2, 5))
    figures_noise.noise_curves([0.0, 1.0], {"mean": statistics, **quartiles}, lengths, 2 * lengths)
    left, right = drawn[-1].axes
    assert left.get_ylim()[0] > -300
    assert left.get_title() == "mean off the axis at s = 1: -1e+09"
    assert [line.get_ydata()[0] for line in right.lines] == [1, 2]


def test_figures_are_drawn_of_values_that_are_alike_or_no_numbers() -> None:
    for values in (np.full(10, -3.0), np.full(10, np.nan), np.zeros(1), np.arange(5.0)):
        assert figures_noise.likelihood_histograms({"clean": values}).startswith(b"\x89PNG")
    nothing = {name: np.full((1, 3), np.nan) for name in ("mean", "lower_quartile", "median", "upper_quartile")}
    assert figures_noise.noise_curves([0.0], nothing, np.full((1, 2), np.nan), np.zeros((1, 2))).startswith(b"\x89PNG")
