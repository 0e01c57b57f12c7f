"""`vaeaudit init` asks nothing it can find out and proposes thresholds that are met; `config` and `adapters`."""

import json
import shutil
import tomllib
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from vaeaudit.checks.naming import check_names
from vaeaudit.gate.policy import evaluate
from vaeaudit.gate.proposal import propose, threshold
from vaeaudit.layout.entry import MetricEntry
from vaeaudit.report.reading import read_report
from vaeaudit.settings.config import json_schema, resolve

EXAMPLES = Path(__file__).parents[2] / "examples"
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def first(carried_out: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `vaeaudit init` was said, with no argument but speed."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("shapes-beta1.safetensors", "shapes.npz"):
        shutil.copy(EXAMPLES / name, folder)
    (folder / "pyproject.toml").write_text(
        "[tool.vaeaudit.noise]\ndraws = 3\n"
        "[tool.vaeaudit.attack]\npairs = 6\nlambdas = 3\nmax_evaluations = 300\n[tool.vaeaudit.latents]\ntraverse = 0\n"
        "[tool.vaeaudit.margin]\nitems = 3\ndraws = 100\nparts = ['certified']\n"
    )
    carried_out(folder, "init", "--limit", "12", "-q")
    return folder


def test_what_it_writes_is_a_configuration_of_what_it_found(first: Path) -> None:
    content = tomllib.loads((first / "vaeaudit.toml").read_text(encoding="utf-8"))
    assert content["model"] == {"path": "shapes-beta1.safetensors", "adapter": "mlp"}
    assert content["data"] == {"source": "shapes.npz", "range": [0, 1]}
    assert {"attack", "margin", "noise", "latents", "mig", "weights"} <= set(content)
    assert isinstance(content["margin"]["r"][0], float)  # a number, so that the next model is measured at the same
    jsonschema.validate(json.loads(json.dumps(content)), json_schema())
    check_names(resolve({}, first / "vaeaudit.toml").settings)


def test_what_was_asked_otherwise_is_written_down(first: Path) -> None:
    settings = resolve({}, first / "vaeaudit.toml").settings
    report, _ = read_report(first / "vaeaudit-report")
    assert (settings.run.limit, settings.noise.draws, settings.attack.lambdas) == (12, 3, 3)
    assert report.configuration_sources["model.path"] == "found here"
    assert report.configuration_sources["noise.draws"].endswith("pyproject.toml")


def test_every_threshold_is_met_by_the_audit_that_it_comes_from_and_can_be_missed(first: Path) -> None:
    settings = resolve({}, first / "vaeaudit.toml").settings
    report, _ = read_report(first / "vaeaudit-report")
    found = evaluate(settings.checks, report.metrics, report.skipped, date.today())
    assert len(found) >= 6
    assert {check.verdict for check in found} == {"passed"}
    for check in found:  # a metric at zero robustness is on the wrong side of each
        assert check.min is None or check.min > 0
        assert check.max is None or check.max < 1e6


@pytest.mark.parametrize(
    ("ci", "direction", "proposed"),
    [
        ((4.0, 6.0), "higher", 3.0),
        ((4.0, 6.0), "lower", 7.0),
        ((0.5, 3.0), "higher", 0.25),  # half of the interval below it would be below 0, which nothing misses
        ((-40.0, -30.0), "higher", -45.0),
        ((0.123456, 0.13), "lower", 0.14),
        ((-1.0, 0.0), "lower", 0.5),
        ((0.0, 0.2), "higher", None),  # as certified margins often do: nothing falls below 0
        ((0.0, 0.0), "higher", None),
    ],
)
def test_a_threshold_lies_half_an_interval_beyond_it(ci: tuple[float, float], direction: str, proposed: float) -> None:
    metric = MetricEntry(
        value=ci[0], ci=ci, level=0.95, n=9, nonfinite=0, unit="nats", direction=direction, estimator="median"
    )
    assert threshold(metric) == (proposed if proposed is None else pytest.approx(proposed))
    assert threshold(metric.model_copy(update={"doubt": "a sign"})) is None
    assert threshold(metric.model_copy(update={"ci": None})) is None


def test_a_configuration_that_is_there_is_kept_unless_forced(command: Command) -> None:
    Path("vaeaudit.toml").write_text("[run]\nseed = 3\n")
    done = command("init")
    assert (done.code, done.err) == (2, "error: there is a vaeaudit.toml here already; --force replaces it\n")
    assert Path("vaeaudit.toml").read_text() == "[run]\nseed = 3\n"


def test_what_cannot_be_found_out_is_told_and_not_guessed(command: Command) -> None:
    done = command("init")
    assert done.said(2, "there is no checkpoint here (.safetensors, .pt, .pth, .ckpt); name one")
    for name in ("a.safetensors", "b.safetensors"):
        shutil.copy(EXAMPLES / "shapes-beta1.safetensors", name)
    done = command("init")
    assert "error: there are 2 checkpoints here (a.safetensors, b.safetensors); name one" in done.err
    done = command("init", "a.safetensors")
    assert "error: there is no data file here (.npz, .npy or MNIST idx); name one, as in `--data val.npz`" in done.err
    assert not Path("vaeaudit.toml").exists()


def test_config_show_tells_every_value_and_who_said_it(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAEAUDIT_RUN_LIMIT", "9")
    model = EXAMPLES / "shapes-beta1.safetensors"
    Path("vaeaudit.toml").write_text(f'[model]\npath = "{model}"\n[run]\nseed = 3\n[checks."mig.chen"]\nmin = 0.1\n')
    done = command("config", "show", "--dtype", "float64", "--format", "json")
    assert (done.code, done.err) == (0, "")
    shown = json.loads(done.out)
    here = str(Path("vaeaudit.toml").resolve())
    assert shown["run.dtype"] == {"value": "float64", "source": "--dtype"}
    assert shown["run.limit"] == {"value": 9, "source": "VAEAUDIT_RUN_LIMIT"}
    assert shown["run.seed"] == {"value": 3, "source": here}
    assert shown["model.adapter"] == {"value": "mlp", "source": f"facts in {model}"}
    assert shown["model.options.activation"] == {"value": "relu", "source": f"facts in {model}"}
    assert shown["noise.draws"] == {"value": 10, "source": "default"}
    assert shown["checks.mig.chen"]["value"]["min"] == 0.1
    table = command("config", "show")
    assert "noise.draws" in table.out
    assert "default" in table.out


def test_the_schema_of_the_configuration_is_one_and_takes_the_interfaces_example(command: Command) -> None:
    done = command("config", "schema")
    schema = json.loads(done.out)
    jsonschema.Draft202012Validator.check_schema(schema)
    example = {
        "model": {"path": "vae.safetensors", "adapter": "mlp"},
        "data": {"source": "val.npz", "range": [0, 1]},
        "run": {"seed": 0},
        "attack": {"modes": ["latent", "output"], "pairs": 10},
        "margin": {"r": [4]},
        "checks": {
            "margin.r4.median": {"min": 0.5, "bound": "ci_lower"},
            "attack.latent.delta.median": {
                "min": 3.0, "severity": "warn", "waive": {"until": "2026-12-31", "reason": "tracked in #12"}
            },
        },
        "baseline": {"path": "audit/v1.json", "min_effect": {"margin.r4.median": 0.02}},
    }  # fmt: skip
    jsonschema.validate(example, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**example, "attack": {"pears": 10}}, schema)


def test_adapters_are_listed_with_what_they_open(command: Command) -> None:
    done = command("adapters")
    assert done.code == 0
    assert "mlp" in done.out
    assert "Fully connected VAEs with Gaussian latents" in done.out
    listed = json.loads(command("adapters", "--format", "json").out)
    assert [adapter["name"] for adapter in listed] == [
        "burgess",
        "diffusers",
        "export",
        "hierarchical",
        "jointvae",
        "ldm",
        "mlp",
        "pythae",
        "scvi",
        "taesd",
    ]
    assert listed[0]["place"] == "vaeaudit_adapters.burgess:open"


def test_an_adapter_named_as_another_is_listed_and_none_of_the_two_is_preferred(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import EntryPoint

    ours = EntryPoint("mlp", "vaeaudit_adapters.mlp:open", "vaeaudit.adapters")
    other = EntryPoint("mlp", "vaeaudit_adapters.burgess:open", "vaeaudit.adapters")
    monkeypatch.setattr("vaeaudit.model.adapters.entry_points", lambda **_: [ours, other, ours])
    listed = json.loads(command("adapters", "--format", "json").out)
    assert [adapter["place"] for adapter in listed] == [other.value, ours.value]
    assert all("another package gives this name too" in adapter["opens"] for adapter in listed)
    for named in ([], ["--adapter", "mlp"]):  # the file names it as well
        done = command("weights", EXAMPLES / "shapes-beta1.safetensors", *named)
        assert done.said(2, "the adapter 'mlp' is given by several packages")
        assert "as in --adapter vaeaudit_adapters.burgess:open" in done.err
    assert command("weights", EXAMPLES / "shapes-beta1.safetensors", "--adapter", ours.value).code == 0


def test_an_adapter_that_cannot_be_loaded_is_listed_with_its_fault(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import EntryPoint

    broken = EntryPoint("broken", "no_such_module_at_all:open", "vaeaudit.adapters")
    monkeypatch.setattr("vaeaudit.model.adapters.entry_points", lambda **_: [broken])
    done = command("adapters")
    assert done.code == 0
    assert "cannot be imported: ModuleNotFoundError" in " ".join(done.out.split())


def test_large_data_are_offered_a_draw_and_unsure_findings_an_acknowledgement(first: Path) -> None:
    report, _ = read_report(first / "vaeaudit-report")
    assert report.data is not None
    assert report.plausibility is not None
    unsure = report.plausibility.findings[0].model_copy(update={"verdict": "unsure", "message": "seen\nso"})
    found = report.plausibility.model_copy(update={"findings": [unsure, *report.plausibility.findings[1:]]})
    data = report.data.model_copy(update={"n": 46080})
    report = report.model_copy(update={"data": data, "plausibility": found})
    text = propose(report, resolve({}, None).settings, first)
    assert "# sample = 10000  # so many of the 46080 items, drawn at random, where all take too long" in text
    assert f'# [doctor.acknowledge]\n# "{unsure.name}" = "why it is meant"  # unsure: seen\\nso\n' in text
    for key in ("run.sample", "run.limit"):
        settings = resolve({key: (9, "test"), "doctor.acknowledge": ({unsure.name: "meant"}, "test")}, None).settings
        kept = tomllib.loads(propose(report, settings, first))
        assert kept["run"][key.removeprefix("run.")] == 9
        assert kept["doctor"]["acknowledge"] == {unsure.name: "meant"}
        assert "# sample" not in propose(report, settings, first)
