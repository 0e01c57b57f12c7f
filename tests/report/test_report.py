"""A report says what was found, is valid for its schema, repeats to the byte, and is enough to find it again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors import safe_open

from vaeaudit.attacks.similarity import SIMILARITIES
from vaeaudit.audit.artifacts import artifacts
from vaeaudit.audit.run import audit
from vaeaudit.checks.attack.entry import LEGEND, attack_table, ends
from vaeaudit.data.items import fit
from vaeaudit.data.sources import read
from vaeaudit.errors import OutputError
from vaeaudit.layout.entry import MetricEntry
from vaeaudit.layout.figures import PANEL_ROWS
from vaeaudit.layout.section import interval, number
from vaeaudit.model.registry import open_model
from vaeaudit.report import glance
from vaeaudit.report.forms.markdown import render
from vaeaudit.report.forms.tables import metric_table
from vaeaudit.report.glance import at_a_glance
from vaeaudit.report.model import Report, json_schema
from vaeaudit.report.reading import read_report
from vaeaudit.report.writer import check_writable, to_json, write, write_file
from vaeaudit.settings.config import Resolved, resolve
from vaeaudit.subject.opened import Subject, prepare

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
# A report of some of everything; every form of it stands beside it.
REPORT = read_report(Path(__file__).parent / "reports")[0]
SCHEMA = json.loads((ROOT / "vaeaudit" / "report" / "report.schema.json").read_text(encoding="utf-8"))
VALID = jsonschema.Draft202012Validator(SCHEMA)


def asked(**values: object) -> Resolved:
    given: dict[str, object] = {
        "model.path": str(EXAMPLES / "shapes-beta1.safetensors"),
        "data.source": str(EXAMPLES / "shapes.npz"),
        "run.device": "cpu",
        "run.limit": 100,
        "attack.pairs": 2,
        "attack.lambdas": 4,
        "attack.max_evaluations": 15,
        **{name.replace("__", "."): value for name, value in values.items()},
    }
    return resolve({name: (value, "test") for name, value in given.items()}, None)


def audited(resolved: Resolved, folder: Path, go_on: Callable[[object], bool] = lambda _: True) -> Report:
    done = audit(prepare(resolved.settings), resolved, ["vaeaudit", "a test"], ["attack"], go_on)
    return write(done.report, artifacts(done), folder)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of one audit done two times."""
    folders = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    for folder in folders:
        audited(asked(), folder)
    return folders


@pytest.fixture(scope="module")
def first(twice: tuple[Path, Path]) -> Path:
    return twice[0]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return prepare(asked().settings)


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


# ---- The schema and the files


def test_the_schema_beside_the_report_is_the_one_of_the_model_and_is_a_schema() -> None:
    assert json_schema() == SCHEMA
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_a_report_is_strict_json_and_valid_for_the_schema(first: Path) -> None:
    content = strict((first / "report.json").read_text(encoding="utf-8"))
    VALID.validate(content)
    assert Report.model_validate(content).model_dump(mode="json") == content
    assert content["partial"] == [
        "only the first 100 of 576 items, in the order of the data; --sample 100 draws them at random"
    ]
    with pytest.raises(jsonschema.ValidationError):
        VALID.validate({**content, "more": 1})


def test_an_interrupted_and_a_failed_audit_are_valid_reports_too(tmp_path: Path) -> None:
    calls: list[object] = []

    def soon(progress: object) -> bool:
        calls.append(progress)
        return len(calls) < 4

    def fault(_: object) -> bool:
        raise ZeroDivisionError("late")

    stopped, failed = audited(asked(), tmp_path / "stopped", soon), audited(asked(), tmp_path / "failed", fault)
    for report in (stopped, failed):
        VALID.validate(strict(to_json(report)))
    assert (stopped.status, stopped.verdict, stopped.exit_code) == ("interrupted", "inconclusive", 130)
    assert len(stopped.attacks[0].pairs) == 2
    assert (failed.status, failed.verdict, failed.exit_code) == ("error", "error", 3)
    assert str(failed.error).startswith("the model raised ZeroDivisionError: late (test_report.py, line ")
    assert {path.name for path in (tmp_path / "failed").iterdir()} == {"report.json", "report.md"}


def test_every_file_is_named_in_the_report_and_lies_beside_it(first: Path) -> None:
    files = strict((first / "report.json").read_text(encoding="utf-8"))["files"]
    assert {path.name for path in first.iterdir()} == {"report.json", *files.values()}


def test_the_same_audit_gives_the_same_report_and_the_same_bytes(twice: tuple[Path, Path]) -> None:
    one, other = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in twice)
    assert set(one) == set(other)
    reports = [strict(files.pop("report.json").decode()) for files in (one, other)]
    for report in reports:
        del report["created"], report["timings"]
    assert reports[0] == reports[1]
    texts = [
        [row for row in files.pop("report.md").decode().splitlines() if not row.startswith(("| at ", "| took "))]
        for files in (one, other)
    ]
    assert texts[0] == texts[1]
    assert {name for name in one if one[name] != other[name]} == set()


# ---- What was found can be found again


def test_adversarial_inputs_are_source_plus_distortion_to_the_bit_and_in_range(first: Path, subject: Subject) -> None:
    items = strict((first / "items.json").read_text(encoding="utf-8"))["attack.latent"]
    with safe_open(first / "adversarial.safetensors", framework="pt") as handle:
        found, d = handle.get_tensor("latent.adversarial"), handle.get_tensor("latent.distortion")
        about = strict(handle.metadata()["audit"])
    pairs, lambdas = about["pairs"], about["lambdas"]
    assert about["model_sha256"] == subject.model.checkpoint.sha256
    assert found.shape == d.shape == (len(pairs), len(lambdas), 1, 28, 28)
    x = subject.data.batch([source for source, _ in pairs])
    assert torch.equal(x[:, None] + d, found)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert [(row["source"], row["target"]) for row in items[:: len(lambdas)]] == [tuple(pair) for pair in pairs]
    assert [row["lam"] for row in items] == lambdas * len(pairs)
    norms = torch.linalg.vector_norm(d.flatten(2), dim=2).flatten()
    torch.testing.assert_close(norms, torch.tensor([row["norm"] for row in items]))
    assert sum(row["chosen"] for row in items) == len(pairs)


def test_the_data_term_can_be_recomputed_from_the_report_alone(first: Path) -> None:
    report = Report.model_validate_json((first / "report.json").read_text(encoding="utf-8"))
    about, on = report.model, report.data
    model = open_model(about.file.path, about.adapter.name, about.options)
    assert model.checkpoint.sha256 == about.file.sha256
    assert model.adapter.sha256 == about.adapter.sha256
    data = fit(read(on.source), input_shape=tuple(about.input_shape), data_range=on.range)
    assert data.sha256 == on.sha256
    items = strict((first / report.files["items"]).read_text(encoding="utf-8"))["attack.latent"]
    with safe_open(first / report.files["adversarial inputs"], framework="pt") as handle:
        found = handle.get_tensor("latent.adversarial").flatten(0, 1)
    x_t = data.batch([row["target"] for row in items])
    vae = model.vae
    with torch.no_grad():
        term = SIMILARITIES[report.attacks[0].similarity](vae.encode(found), vae.encode(x_t), torch.empty(0))
        error = torch.linalg.vector_norm((x_t - vae.decode(vae.encode(found).mean).mean).flatten(1), dim=1)
    torch.testing.assert_close(term, torch.tensor([row["data_term"] for row in items]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(error, torch.tensor([row["target_error"] for row in items]), rtol=1e-4, atol=1e-4)
    for row in items:
        assert row["objective"] == pytest.approx(row["data_term"] + row["lam"] * row["norm"], rel=1e-5)


def test_the_chosen_rows_of_the_items_are_the_pairs_of_the_report(first: Path) -> None:
    report = Report.model_validate_json((first / "report.json").read_text(encoding="utf-8"))
    items = strict((first / "items.json").read_text(encoding="utf-8"))["attack.latent"]
    chosen = [row for row in items if row["chosen"]]
    shared = ("source", "target", "lam", "norm", "data_term", "objective", "target_nll", "target_error", "status")
    for row, pair in zip(chosen, report.attacks[0].pairs, strict=True):
        assert {name: row[name] for name in shared} == {name: getattr(pair, name) for name in shared}


def test_a_panel_of_many_pairs_shows_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def panel(columns: dict[str, np.ndarray], labels: list[str], _box: object) -> bytes:
        assert {len(column) for column in columns.values()} == {len(labels)}
        drawn.append(len(labels))
        return b""

    monkeypatch.setattr("vaeaudit.checks.attack.record.item_panel", panel)
    resolved = asked(attack__pairs=PANEL_ROWS + 5, attack__lambdas=1, attack__max_evaluations=1)
    artifacts(audit(prepare(resolved.settings), resolved, [], ["attack"], lambda _: True))
    assert drawn == [PANEL_ROWS]


# ---- Writing


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_file(tmp_path / "new" / "a.txt", b"one")
    write_file(tmp_path / "new" / "a.txt", b"two")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"two"
    for place in (tmp_path / "new", tmp_path / "new" / "a.txt" / "b"):
        with pytest.raises(OutputError, match=r"cannot be written: .*; name another place"):
            write_file(place, b"three")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_trying_whether_a_folder_can_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", "--out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"nothing can be written to .*file: File exists; name another place with -o"):
        check_writable(tmp_path / "file", "-o")


# ---- Words and tables


def measured(value: float | None, ci: tuple[float, float] | None, **more: Any) -> MetricEntry:
    given = {"level": 0.95, "n": 2, "nonfinite": 0, "unit": "nats", "direction": "higher", "estimator": "median"}
    return MetricEntry(value=value, ci=ci, **(given | more))


def test_verdicts_and_errors_come_first() -> None:
    failed = REPORT.model_copy(update={"verdict": "error", "error": "the model raised X", "attacks": [], "metrics": {}})
    lines = render(failed).splitlines()
    assert lines[2] == "**Error: the audit could not complete.** the model raised X."
    assert "## Metrics" not in lines
    for verdict, told in (
        ("ungated", "**Ungated: measured, with no policy to pass or fail.**"),
        ("inconclusive", "**Inconclusive: the figures below support no verdict.**"),
    ):
        assert render(REPORT.model_copy(update={"verdict": verdict})).splitlines()[2] == told


def test_tables_show_what_is_not_finite_and_what_is_too_small() -> None:
    assert [number(v) for v in (None, 0.0, 1234.5678, 1e-12, -2.0)] == ["n/a", "0", "1235", "1e-12", "-2"]
    assert interval(measured(1.0, None)) == "n too small"
    assert interval(measured(1.0, (0.123456, 2.0))) == "[0.1235, 2]"
    headers, rows = metric_table(REPORT.metrics)
    assert headers == ["metric", "value", "95% interval", "unit", "more robust", "n"]
    assert rows[1] == ["attack.latent.target_nll.median", "n/a", "n/a", "nats", "higher", "0 (2 not finite)"]
    headers, rows = attack_table(REPORT.attacks[0])
    assert headers == list(LEGEND)
    assert rows == [
        ["3 → 14", "0.125", "1.5", "0.25", "0.1875", "0.4375", "1.235e+06 → n/a", "9.877 → 0.5 (0.25)", "1e-07",
         "not converged"]
    ]  # fmt: skip
    assert ends(REPORT.attacks[0]) == (
        "2 problems: 1 converged, 1 evaluation limit reached; d = 0 is the best found for 1; 12,345 evaluations"
    )


def test_json_of_a_report_is_ascii_and_keeps_odd_paths() -> None:
    odd = REPORT.model_copy(update={"argv": ["é", "λ", "\U0001f600"]})
    assert to_json(odd).isascii()
    assert strict(to_json(odd))["argv"] == ["é", "λ", "\U0001f600"]


# ---- At a glance


def test_every_check_has_a_line_at_a_glance_that_is_one_of_its_metrics(first: Path) -> None:
    report = read_report(first)[0]
    assert [one.name for one in at_a_glance(report)] == ["attack.latent.delta.median"]
    for section in report.check_sections:
        assert section.headlines.keys() & report.metrics.keys()
        assert all(len(meaning.split()) <= 8 for meaning in section.headlines.values())


@pytest.mark.parametrize(
    ("ci", "thresholds", "before", "drawn"),
    [
        ((1.0, 2.0), (), None, "0·········├───●────┤"),
        ((1.25, 2.0), (1.0,), 0.5, "0····○····┃·├─●────┤"),
        ((-2.0, 2.0), (), None, "├─────────0──────●─┤"),
        (None, (4.0,), None, "0······●···········┃"),
    ],
)
def test_a_picture_shows_the_interval_and_what_it_is_held_against(
    ci: tuple[float, float] | None, thresholds: tuple[float, ...], before: float | None, drawn: str
) -> None:
    drawing = glance.picture(measured(1.5, ci), thresholds, before)
    assert drawing is not None
    assert drawing.text() == drawn
    assert glance.picture(measured(None, None), thresholds, before) is None
