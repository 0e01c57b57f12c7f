"""A study from its table to its page: trained, audited by the commands, gathered, and shown."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

STUDY = Path(__file__).parents[2] / "examples" / "study"
TABLE = """
[defaults]
data = "shapes"
items = 400
epochs = 15
batch = 20
width = 32
latents = 6
learning_rate = 5e-3
audit = "small"

[[system]]
system = "beta-VAE"
objective = "beta_vae"
beta = [0.5, 8]

[[system]]
system = "diverging VAE"
objective = "vae"
learning_rate = 1e20

[audit.small.run]
checks = ["latents", "weights"]
[audit.small.latents]
items = 60
traverse = 0
[audit.small.weights]
spectral = false
"""


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(STUDY)
    import study

    return study


def test_a_miniature_runs_from_end_to_end_and_a_diverged_model_is_recorded_as_such(
    study: Any, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "_command", lambda *arguments: command(*arguments).code)
    (tmp_path / "mini.toml").write_text(TABLE, encoding="utf-8")
    table, told = study.read_table(tmp_path / "mini.toml"), []
    file = study.carry_out(table, tmp_path / "runs", None, told.append)
    assert sum(": audited, small, " in text for text in told) == 2
    (diverged,) = (text for text in told if "diverged and not audited" in text)
    assert diverged.startswith("diverging_VAE")
    with file.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    faults = ("diverged", "implausible")
    assert {row["metric"] for row in rows if row["system"] == "diverging VAE"} == {*faults}
    assert {"latents.elbo.median", "weights.encoder.l2", "encoder.jacobian.mean"} <= {row["metric"] for row in rows}
    done = command("study", file, "--metric", "latents.kl.mean", "--metric", "diverged", "--out", "page")
    assert (done.code, done.out) == (0, "page/study.md: 2 metrics of 3 models against beta\n")
    page = Path("page/study.md").read_text(encoding="utf-8")
    assert "![latents.kl.mean against beta](latents.kl.mean.png)" in page
    kl = {row["beta"]: float(row["value"]) for row in rows if row["metric"] == "latents.kl.mean" and not row["item"]}
    assert kl["8.0"] < kl["0.5"]
    assert f"{kl['8.0']:.3g} [" in page
    told.clear()
    study.carry_out(table, tmp_path / "runs", None, told.append)  # nothing is done again
    assert told == [diverged]
    flags = {(row["system"], row["metric"]): float(row["value"]) for row in rows if row["metric"] in faults}
    assert [flags["diverging VAE", name] for name in faults] == [1, 0]
    assert [flags["beta-VAE", name] for name in faults] == [0, 0]
    told.clear()
    twice = (table.rows[0], table.rows[0].model_copy(update={"audit": "norms"}))  # one model, trained once
    audits = {**table.audits, "norms": {"run": {"checks": ["weights"]}}}
    file = study.carry_out(study.Study(rows=twice, audits=audits), tmp_path / "runs", None, told.append)
    assert [text.partition(": ")[2].rpartition(",")[0] for text in told] == ["audited, norms"]
    with file.open(encoding="utf-8") as stream:
        norms = {row["audit"]: row["value"] for row in csv.DictReader(stream) if row["metric"] == "weights.encoder.l2"}
    assert norms["small"] == norms["norms"]
    told.clear()
    slower = table.rows[2].model_copy(update={"learning_rate": 1e-3})
    with pytest.raises(ValueError, match=r"diverging.* was trained with learning_rate = 1e\+20, now 0.001; delete it"):
        study.carry_out(table.model_copy(update={"rows": (slower,)}), tmp_path / "runs", None, told.append)


def test_what_an_interrupted_audit_left_is_not_taken_for_a_whole_one(
    study: Any, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mini.toml").write_text(TABLE.replace("epochs = 15", "epochs = 1"), encoding="utf-8")
    whole = study.read_table(tmp_path / "mini.toml")
    row = whole.rows[0]
    place, asked = tmp_path / row.name / row.audit, list[tuple[object, ...]]()

    def audit(items: int, how: Callable[..., int]) -> None:
        monkeypatch.setattr(study, "_command", how)
        settings = {**whole.audits["small"], "latents": {"items": items, "traverse": 0}}
        study.carry_out(study.Study(rows=(row,), audits={"small": settings}), tmp_path, None, lambda _: None)

    def done(*arguments: object) -> int:
        asked.append(arguments)
        return int(command(*arguments).code)

    def cut(*_: object) -> int:
        raise KeyboardInterrupt

    audit(20, done)
    with pytest.raises(KeyboardInterrupt):
        audit(30, cut)
    audit(30, done)
    assert len(asked) == 2
    report = json.loads((place / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["configuration"]["latents"]["items"] == 30
    (place / "report" / "report.json").write_text(
        json.dumps({**report, "plausibility": {**report["plausibility"], "passed": False}}), encoding="utf-8"
    )
    assert {one.metric: one.value for one in study.gathered(row, place, False)}["implausible"] == 1
    (place / "report" / "report.json").write_text(json.dumps({**report, "status": "interrupted"}), encoding="utf-8")
    with pytest.raises(RuntimeError, match="ended with 0"):  # asked for again, and not taken where it is not complete
        audit(30, lambda *_: 0)


def test_images_that_lie_in_the_order_of_their_factors_are_drawn_at_random(study: Any) -> None:
    first, random = (study.chosen(name, 900, 600) for name in ("mnist", "fashion"))
    assert [*first] == [*range(600)]
    assert len({*random}) == 600
    assert {int(place) // 300 for place in random} == {0, 1, 2}
    assert [*study.chosen("dsprites", 900, 600)] == [*random]
    assert len(study.chosen("dsprites", 9, 600)) == 9


@pytest.mark.parametrize("objective", ["controlled_capacity_vae", "factor_vae"])
def test_interrupted_training_goes_on_to_the_same_bits(study: Any, tmp_path: Path, objective: str) -> None:
    row = study.Row(
        system="any", objective=objective, data="shapes", latents=3, width=8, epochs=3, batch=16, gamma=3, capacity=9
    )
    x = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))

    def stop(text: str) -> None:
        if "epoch 2/3" in text:
            raise KeyboardInterrupt

    for name in ("whole", "halved"):
        (tmp_path / name).mkdir()
    with pytest.raises(KeyboardInterrupt):
        study.train(row, lambda: x, tmp_path / "halved", stop)
    with pytest.raises(ValueError, match="trained with batch = 16, now 20; delete it"):
        study.train(row.model_copy(update={"batch": 20}), lambda: x, tmp_path / "halved", print)
    found = [study.train(row, lambda: x, tmp_path / name, lambda _: None) for name in ("whole", "halved")]
    first, second = (study.vaeaudit.load(file).state_dict() for file in found)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not (tmp_path / "halved" / "training.pt").exists()
    with pytest.raises(ValueError, match="trained with epochs = 3, now 4; delete it"):
        study.train(row.model_copy(update={"epochs": 4}), lambda: x, tmp_path / "whole", print)
    assert study.train(row.model_copy(update={"audit": "another"}), lambda: x, tmp_path / "whole", print) == found[0]


@pytest.mark.parametrize("file", sorted(STUDY.glob("*.toml")), ids=lambda file: file.stem)
def test_every_row_of_the_tables_has_an_objective_and_networks(study: Any, file: Path) -> None:
    import objectives
    from networks import untrained

    table = study.read_table(file)
    assert len({(row.name, row.audit) for row in table.rows}) == len(table.rows)
    for row in table.rows:
        assert callable(getattr(objectives, row.objective))
        if row.seed == table.rows[0].seed:
            vae, _ = untrained(row, study.image_shape(row))
            assert vae.input_shape == study.image_shape(row)


def test_faults_of_tables_and_data_are_told_in_a_sentence(study: Any, tmp_path: Path) -> None:
    file = tmp_path / "table.toml"
    for text, fault in (
        ("x =", "is no table of a study"),
        (TABLE.replace("epochs = 15", "epoch = 15"), "epoch: Extra inputs are not permitted"),
        (TABLE.replace("diverging VAE", "beta-VAE").replace("[0.5, 8]", "[1, 8]"), "stands there twice"),
        (TABLE.replace('audit = "small"', 'audit = "large"'), "there is no audit 'large'"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=fault):
            study.read_table(file)
    file.write_text(TABLE.replace("shapes", "mnist"), encoding="utf-8")
    for folder, fault in (
        (None, "name the folder that holds mnist/mnist_train.npz with --data"),
        (tmp_path, "put it there"),
    ):
        with pytest.raises(ValueError, match=fault):
            study.carry_out(study.read_table(file), tmp_path / "runs", folder, print)
