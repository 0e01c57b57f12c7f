"""`vaeaudit attack` as its user meets it: modes, choices of pairs, bad input, models that hide their slope."""

import json
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaeaudit.attacks.signs import Sign

EXAMPLES = Path(__file__).parents[3] / "examples"
MODEL, DATA = EXAMPLES / "shapes-beta1.safetensors", EXAMPLES / "shapes.npz"
FAST = ("--pairs", "2", "--lambdas", "3", "--max-evaluations", "60")

# The bundled model with its encoder wrapped.
MASKED = """
import torch
from vaeaudit import DiagonalGaussian
from vaeaudit.model.registry import open_model


class Masked(torch.nn.Module):
    def __init__(self, vae, how):
        super().__init__()
        self.vae, self.how = vae, how
        self.input_shape, self.range = vae.input_shape, vae.range

    @property
    def prior(self):
        return self.vae.prior

    def encode(self, x):
        if self.how == "lower half detached":
            x = torch.cat([x[:, :, :14], x[:, :, 14:].detach()], 2)
        q = self.vae.encode(x)
        if self.how == "clamped":
            return DiagonalGaussian(q.mean, (2 * q.log_stddev).clamp(-4, 20) / 2)
        if self.how == "gradient halved":
            return DiagonalGaussian(0.5 * q.mean + 0.5 * q.mean.detach(), q.log_stddev)
        if self.how == "detached":
            return DiagonalGaussian(q.mean.detach(), q.log_stddev.detach())
        return q

    def decode(self, z):
        return self.vae.decode(z)


def open(checkpoint, config):
    return Masked(open_model(checkpoint.path, "mlp").vae, config["how"])
"""


Attack = Callable[..., Any]  # `Outcome` of conftest.py


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder outside any repository with labelled data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with np.load(DATA) as shapes:
        # What a linear classifier tells from blurred reconstructions: where the shape lies.
        np.savez("labelled.npz", imgs=shapes["imgs"], labels=shapes["latents_classes"][:, 3] // 2)
        np.savez("shapes-labelled.npz", imgs=shapes["imgs"], labels=shapes["latents_classes"][:, 0])


@pytest.fixture
def attack(command: Attack) -> Attack:
    """A small attack on the bundled model in this process; further arguments follow and win."""
    return lambda *more, data=DATA: command("attack", MODEL, "--data", data, *FAST, *more)


def report() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("vaeaudit-report/report.json").read_text())
    return content


def markdown() -> str:
    return Path("vaeaudit-report/report.md").read_text(encoding="utf-8")


# Modes and options


def test_a_healthy_model_gives_0_and_no_sign_in_either_mode(attack: Attack) -> None:
    done = attack("-v", "--mode", "latent", "--mode", "output", "--max-evaluations", "300")
    assert (done.code, done.err) == (0, "")
    written = report()
    assert written["verdict"] == "ungated"
    assert [entry["mode"] for entry in written["attacks"]] == ["latent", "output"]
    for entry in written["attacks"]:
        assert entry["signs"] == {}
        assert all(pair["signs"] == [] for pair in entry["pairs"])
        assert (entry["unit"], entry["on"], entry["restarts"], entry["layers"]) == ("nats", "both", 7, None)
        assert len(entry["pairs"]) == 2
        assert sum(entry["statuses"].values()) == 2 * 3
    latent, output = written["attacks"]
    assert (latent["similarity"], output["similarity"]) == ("kl", None)
    assert latent["pairs"][0]["fresh_data_term"] is None  # a closed form takes no noise
    assert output["pairs"][0]["fresh_data_term"] is not None
    assert [p["source"] for p in latent["pairs"]] == [p["source"] for p in output["pairs"]]
    assert {name.split(".")[1] for name in written["metrics"]} == {"latent", "output"}
    assert "latent attack, kl(q(z|x + d), q(z|x_t)) + λ ‖d‖" in done.out
    assert "## Attack: output" in markdown()
    assert "failure sign" not in done.out


@pytest.mark.parametrize(
    ("arguments", "entry", "told"),
    [
        (["--on", "mean"], {"on": "mean"}, "its mean alone"),
        (["--on", "std", "--penalty", "l2sq"], {"on": "std", "penalty": "l2sq"}, "its standard deviation alone"),
        (["--layers", "1", "--restarts", "0"], {"layers": [1], "restarts": 0}, "layers 1"),
        (["--restarts", "5", "--similarity", "wasserstein"], {"restarts": 5, "unit": "latent units"}, "wasserstein(q"),
        (
            ["--on", "mean", "--mode", "output", "--layers", "1"],  # layers belong to the latent attack
            {"mode": "output", "on": "mean", "layers": None},
            "its mean alone",
        ),
    ],
)
def test_options_reach_the_attack_and_are_told(
    attack: Attack, arguments: list[str], entry: dict[str, object], told: str
) -> None:
    done = attack("--pairs", "1", "--lambdas", "2", "--max-evaluations", "10", *arguments)
    assert done.code in (0, 5)  # so short a search need not have settled
    (written,) = report()["attacks"]
    assert {name: written[name] for name in entry} == entry
    assert told in markdown()
    assert told in " ".join(done.out.split())


# Pairs


def test_pairs_by_label_have_success_rates_with_intervals_and_what_named_the_classes(attack: Attack) -> None:
    done = attack("-v", "--pairing", "label", "--pairs", "6", "--max-evaluations", "40", data="labelled.npz")
    assert done.code in (0, 5)
    assert done.err == ""
    written = report()
    (entry,) = written["attacks"]
    labels = np.load("labelled.npz")["labels"]
    assert all(labels[pair["source"]] != labels[pair["target"]] for pair in entry["pairs"])
    table, metrics = entry["classes"], written["metrics"]
    assert table["classes"] == [0, 1]
    assert np.array(table["attacked"]).tolist() == [[0, 3], [3, 0]]
    for fewer, more in combinations(("reached", "left", "valid", "attacked"), 2):
        assert (np.array(table[fewer]) <= np.array(table[more])).all()
    assert metrics["attack.latent.success.classifier_accuracy"]["value"] > 0.8
    reached, left = (metrics[f"attack.latent.success.{name}"] for name in ("target", "ignore_target"))
    assert reached["value"] <= left["value"]
    for rate in (reached, left):
        assert rate["n"] == np.sum(table["valid"])
        assert 0 <= rate["ci"][0] <= rate["value"] <= rate["ci"][1] <= 1
    assert "reached, left / valid" in done.out
    assert table["classifier"] in markdown()


def test_rates_of_a_classifier_that_cannot_tell_the_classes_come_with_a_warning(attack: Attack) -> None:
    done = attack("--pairing", "label", "--lambdas", "1", "--max-evaluations", "5", data="shapes-labelled.npz")
    assert any("the classifier names" in warning for warning in report()["warnings"])
    assert "warning: the classifier names" in done.out


def test_pairs_by_factor_differ_in_it_alone_and_tell_success_and_progress(attack: Attack) -> None:
    done = attack("--vary", "orientation", "--pairs", "3", "--lambdas", "2", "--max-evaluations", "30")
    assert done.code in (0, 5)
    written = report()
    (entry,) = written["attacks"]
    with np.load(DATA) as shapes:
        classes, names = shapes["latents_classes"], shapes["latents_names"].tolist()
    for pair in entry["pairs"]:
        differs = classes[pair["source"]] != classes[pair["target"]]
        assert [name for name, it in zip(names, differs, strict=True) if it] == ["orientation"]
    assert "orientation" in entry["chosen"]
    assert entry["classes"] is None
    metrics = written["metrics"]
    for name in ("success.factor", "success.factor_at_source", "success.factor_at_target"):
        rate = metrics[f"attack.latent.{name}"]
        assert (rate["n"], rate["unit"]) == (3, "share")
    assert metrics["attack.latent.progress.median"]["value"] <= 1
    for name in ("success.factor", "progress"):
        assert f"- **{name}**: " in markdown()


def test_given_pairs_are_those_attacked(attack: Attack) -> None:
    assert attack("--pair", "3:7", "--pair", "100:8", "--lambdas", "1", "--max-evaluations", "10").code in (0, 5)
    (entry,) = report()["attacks"]
    assert [(pair["source"], pair["target"]) for pair in entry["pairs"]] == [(3, 7), (100, 8)]
    assert entry["chosen"] == "as given"
    assert "3 → 7" in markdown()


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairing", "label"], "holds no labels, where pairs by label need one for each item"),
        (["--pairing", "labels"], "--pairing must be 'random' or 'label', but 'labels' came (did you mean 'label'?)"),
        (["--vary", "colour"], "there is no factor 'colour' in "),
        (["--vary", "orientaton"], "(did you mean 'orientation'?)"),
        (["--vary", "shape", "--limit", "100"], "the factor shape is 0 for all 100 items of "),
        (["--vary", "posY", "--limit", "4", "--pairs", "30"], "only 12 of 30 pairs were found"),
        (["--vary", ""], "--vary must be a text that is not empty"),
        (["--pair", "3"], "'3' names a source without a target; write it as in 3:7"),
        (["--pair", "3:3"], "the pair 3:3 attacks an item towards itself; name two different items"),
        (["--pair", "3:576"], "the pair 3:576 names an item that is not there; items are numbered 0 to 575"),
        (["--pair", "0:100", "--limit", "100"], "items are numbered 0 to 99"),
        (["--pair", "-1:5"], "but '-1:5' came"),
        (["--pair", "1:2", "--pair", "1:2"], "the pair 1:2 is named twice"),
        (["--pair", "1:2", "--vary", "shape"], "--pair must be left out where vary or pairing chooses the pairs"),
        (["--pair", "1:2", "--pairing", "label"], "--pair must be left out where vary or pairing chooses the pairs"),
        (["--vary", "shape", "--pairing", "label"], "--vary must be left out where pairing is label"),
        (["--layers", "0"], "--layers must be at least 1, but 0 came"),
        (["--layers", "x"], "--layers must be a valid integer, but 'x' came"),
        (["--on", "nonsense"], "--on must be 'both', 'mean' or 'std', but 'nonsense' came"),
        (["--restarts", "-1"], "--restarts must be at least 0, but -1 came"),
    ],
)
def test_a_wrong_option_ends_with_one_sentence_and_leaves_nothing(
    attack: Attack, arguments: list[str], message: str
) -> None:
    done = attack(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.message
    assert not Path("vaeaudit-report").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "2"], "layers must be different numbers from 1 to 1, the stochastic layers of this model's"),
        (["--layers", "1", "--layers", "1"], "but [1, 1] was given"),
        (["--on", "std", "--similarity", "mean"], "does not change the distance of the means"),
    ],
)
def test_what_this_model_cannot_serve_ends_with_one_sentence(
    attack: Attack, arguments: list[str], message: str
) -> None:
    done = attack(*arguments)
    assert done.said(2, message)


def test_data_without_factors_vary_in_none(attack: Attack) -> None:
    done = attack("--vary", "orientation", data="labelled.npz")
    assert done.said(2, "labelled.npz holds no factors")


def test_one_label_makes_no_pairs(attack: Attack) -> None:
    np.savez("alike.npz", imgs=np.load(DATA)["imgs"], labels=np.zeros(576, dtype=np.int64))
    done = attack("--pairing", "label", data="alike.npz")
    assert done.said(2, "all have label 0, where pairs by label need two labels or more")


# Models that hide their slope


@pytest.mark.parametrize(
    ("how", "sign", "mode"),
    [
        ("clamped", Sign.CLAMPED, "latent"),
        ("clamped", Sign.CLAMPED, "output"),
        ("gradient halved", Sign.WRONG_GRADIENT, "latent"),
    ],
)
def test_a_masked_model_is_inconclusive_and_its_sign_is_told_everywhere(
    attack: Attack, how: str, sign: Sign, mode: str
) -> None:
    Path("masked.py").write_text(MASKED)
    done = attack("--adapter", "masked.py:open", "--option", f"how={how}", "--mode", mode, "--max-evaluations", "40")
    assert (done.code, done.err) == (5, "")
    written = report()
    assert (written["status"], written["verdict"], written["exit_code"]) == ("complete", "inconclusive", 5)
    (entry,) = written["attacks"]
    assert entry["signs"][sign] >= 1
    assert any(told.startswith(f"{sign}: ") for pair in entry["pairs"] for told in pair["signs"])
    (warning,) = [told for told in written["warnings"] if told.startswith(f"failure sign '{sign}' in ")]
    assert f"of 2 {mode} pairs" in warning
    shown = next(pair for pair in entry["pairs"] if pair["signs"])
    assert f"of source {shown['source']}: " in warning
    printed = " ".join(done.out.split())
    assert f"warning: failure sign '{sign}'" in printed
    assert "verdict: inconclusive" in printed
    rows = [line for line in markdown().splitlines() if line.startswith("| ") and " → " in line]
    assert any(sign in row.split("|")[-2] for row in rows)
    assert "**Inconclusive: the figures below support no verdict.**" in markdown()
    assert f"- Warning: failure sign '{sign}'" in markdown()


def test_a_clamp_that_is_acknowledged_is_no_failure_of_the_attack(attack: Attack) -> None:
    Path("masked.py").write_text(MASKED)
    Path("vaeaudit.toml").write_text('[doctor.acknowledge]\nlog-variance = "the floor is meant"\n')
    done = attack("--adapter", "masked.py:open", "--option", "how=clamped", "--max-evaluations", "40")
    written = report()
    assert (done.code, written["verdict"]) == (0, "ungated")
    assert written["attacks"][0]["signs"][Sign.CLAMPED] >= 1
    (warning,) = [told for told in written["warnings"] if told.startswith("failure sign 'clamped log-variance' in ")]
    assert "which is acknowledged (the floor is meant); of source" in warning
    assert all(metric["doubt"] is None for metric in written["metrics"].values())


@pytest.mark.parametrize("how", ["detached", "lower half detached"])
def test_a_detached_encoder_is_not_attacked_at_all(attack: Attack, how: str) -> None:
    Path("masked.py").write_text(MASKED)
    done = attack("--adapter", "masked.py:open", "--option", f"how={how}")
    assert done.code == 5
    assert report()["attacks"] == []
    assert "gradients" in report()["skipped"]["attack"]
    assert {path.name for path in Path("vaeaudit-report").iterdir()} == {"report.json", "report.md"}
    assert "verdict: inconclusive" in done.out
