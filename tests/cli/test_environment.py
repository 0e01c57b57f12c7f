"""Variables of the environment: every setting has one, by its section and key, and every command takes it alike."""

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from typer.main import get_command

from vaeaudit.cli.app import app
from vaeaudit.cli.environment import said, variable
from vaeaudit.errors import ConfigError
from vaeaudit.settings.config import Resolved, resolve
from vaeaudit.settings.sections import Settings

# What is written in the variable of each setting, and what it stands for.
WRITTEN: dict[str, list[tuple[str, object]]] = {
    "model.path": [("vae.pt", "vae.pt"), ("7", "7"), ("a,b c.pt", "a,b c.pt"), ("true", "true")],
    "model.adapter": [("mlp", "mlp")],
    "model.options": [('{"activation": "tanh", "units": 3}', {"activation": "tanh", "units": 3})],
    "model.trust_code": [("true", True)],
    "data.source": [("val.npz", "val.npz"), ("null", "null")],
    "data.range": [("0,255", (0, 255)), ("[-1, 1]", (-1, 1)), ("0 inf", (0, float("inf"))), ("[[0,1]]", ((0, 1),))],
    "data.resize": [("bilinear", "bilinear")],
    "data.normalize": [("imagenet", "imagenet")],
    "run.seed": [("3", 3), ("-3", -3), (" 3 ", 3)],
    "run.device": [("cuda:1", "cuda:1")],
    "run.dtype": [("float64", "float64")],
    "run.tf32": [("true", True)],
    "run.batch_size": [("16", 16), ("auto", "auto")],
    "run.limit": [("5", 5)],
    "run.sample": [("5", 5)],
    "run.out": [("there", "there")],
    "run.checks": [("noise", ("noise",)), ("noise, mig", ("noise", "mig")), ('["mig"]', ("mig",))],
    "doctor.acknowledge": [('{"log-variance": "meant"}', {"log-variance": "meant"})],
    "attack.modes": [("latent,worst", ("latent", "worst")), ("latent worst", ("latent", "worst"))],
    "attack.pairs": [("3", 3)],
    "attack.pairing": [("label", "label")],
    "attack.vary": [("shape", "shape")],
    "attack.pair": [("1:2,3:4", ("1:2", "3:4"))],
    "attack.lambdas": [("7", 7)],
    "attack.similarity": [("mean", "mean")],
    "attack.on": [("std", "std")],
    "attack.layers": [("1,2", (1, 2)), ("1", (1,))],
    "attack.penalty": [("l2sq", "l2sq")],
    "attack.caps": [("0.5", (0.5,)), ("0.5,1", (0.5, 1)), ("[2]", (2,))],
    "attack.norm": [("linf", "linf")],
    "attack.ref": [("input", "input")],
    "attack.restarts": [("0", 0)],
    "attack.max_evaluations": [("70", 70)],
    "margin.r": [("4", (4,)), ("4,auto", (4, "auto")), ('[4, "auto"]', (4, "auto"))],
    "margin.items": [("6", 6)],
    "margin.m": [("0.7", 0.7)],
    "margin.sigma": [("full", "full")],
    "margin.level": [("0.9", 0.9)],
    "margin.family_wise": [("true", True), ("1", True), ("Yes", True)],
    "margin.draws": [("30", 30)],
    "margin.boxed": [("no", False), ("false", False), ("0", False)],
    "margin.parts": [("certified", ("certified",))],
    "margin.effort": [("fast", "fast")],
    "noise.sigmas": [("0.1,0.5", (0.1, 0.5)), ("0.1, 0.5", (0.1, 0.5)), ("[0.1]", (0.1,)), ("1e-3", (0.001,))],
    "noise.items": [("9", 9)],
    "noise.draws": [("2", 2)],
    "noise.clip": [("on", True)],
    "reconstruction.items": [("9", 9)],
    "reconstruction.draws": [("0", 0)],
    "reconstruction.by": [("label,shape", ("label", "shape"))],
    "reconstruction.shown": [("3", 3)],
    "reconstruction.perceptual": [("lpips.pt2", "lpips.pt2")],
    "reconstruction.features": [("inception.pt2", "inception.pt2")],
    "reconstruction.trust_networks": [("true", True)],
    "equivalence.variants": [
        ("dtype=bfloat16+compile=true,dtype=float16", ("dtype=bfloat16+compile=true", "dtype=float16")),
        ('["dtype=bfloat16,compile=true"]', ("dtype=bfloat16,compile=true",)),
    ],
    "equivalence.against": [("new.safetensors", "new.safetensors")],
    "equivalence.adapter": [("mlp", "mlp")],
    "equivalence.options": [('{"activation": "tanh"}', {"activation": "tanh"})],
    "equivalence.dtype": [("float16", "float16")],
    "equivalence.tolerance": [("0.1", 0.1)],
    "equivalence.items": [("9", 9)],
    "equivalence.draws": [("0", 0)],
    "equivalence.shown": [("3", 3)],
    "weights.against": [("old.safetensors", "old.safetensors")],
    "weights.parts": [('{"encoder": ["enc."]}', {"encoder": ("enc.",)})],
    "weights.vectors": [("true", True)],
    "weights.spectral": [("off", False)],
    "mig.items": [("9", 9)],
    "latents.items": [("9", 9)],
    "latents.draws": [("0", 0)],
    "latents.estimator": [("stratified", "stratified")],
    "latents.traverse": [("3", 3)],
    "baseline.path": [("last", "last")],
    "baseline.metrics": [("mig.chen", ("mig.chen",))],
    "baseline.min_effect": [('{"mig.chen": 0.1}', {"mig.chen": 0.1})],
    "baseline.level": [("0.9", 0.9)],
}
Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("VAEAUDIT_")]:
        monkeypatch.delenv(name)


def resolved() -> Resolved:
    return resolve(said()[0], None)


def test_every_setting_of_every_section_has_a_variable() -> None:
    sections = {name: field.annotation for name, field in Settings.model_fields.items() if name != "checks"}
    assert [*WRITTEN] == [f"{name}.{key}" for name, kind in sections.items() for key in kind.model_fields]  # type: ignore[union-attr]


@pytest.mark.parametrize(("key", "text", "value"), [(key, *one) for key, ways in WRITTEN.items() for one in ways])
def test_a_variable_gives_its_setting(monkeypatch: pytest.MonkeyPatch, key: str, text: str, value: object) -> None:
    name = f"VAEAUDIT_{key.replace('.', '_').upper()}"
    assert variable(key) == name
    monkeypatch.setenv(name, text)
    section, _, inner = key.partition(".")
    assert getattr(getattr(resolved().settings, section), inner) == value
    assert resolved().sources == {key: name}


def test_thresholds_come_as_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAEAUDIT_CHECKS", '{"margin.r4.median": {"min": 0.5}, "mig.chen": {"min": 0.1}}')
    assert {name: gate.min for name, gate in resolved().settings.checks.items()} == {
        "margin.r4.median": 0.5,
        "mig.chen": 0.1,
    }
    assert set(resolved().sources.values()) == {"VAEAUDIT_CHECKS"}


COMMANDS = {
    "audit": (), "init": (), "doctor": (), "attack": (), "margin": (), "noise": (), "mig": (), "latents": (),
    "reconstruction": (), "equivalence": (),
    "weights": (), "compare": ("old", "new"), "convert": ("a.pt", "b.safetensors"), "config show": (),
}  # fmt: skip


def test_those_are_all_commands_that_read_a_configuration() -> None:
    group: Any = get_command(app)
    found = {**group.commands, **{f"config {name}": one for name, one in group.commands["config"].commands.items()}}
    reading = [name for name, one in found.items() if any(parameter.name == "config" for parameter in one.params)]
    assert sorted(reading) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_variables_alike(name: str, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAEAUDIT_NOISE_SIGMAS", "0.1,0.5")
    monkeypatch.setenv("VAEAUDIT_RUN_SEED", "3")
    seen = []

    def stop(given: object, _file: object) -> None:
        seen.append(given)
        raise ConfigError("seen")

    monkeypatch.setattr("vaeaudit.settings.config.resolve", stop)
    assert command(*name.split(), *COMMANDS[name]).err == "error: seen\n"
    (given,) = seen
    assert {key: value for key, value in given.items() if key != "model.path"} == {
        "noise.sigmas": ([0.1, 0.5], "VAEAUDIT_NOISE_SIGMAS"),
        "run.seed": (3, "VAEAUDIT_RUN_SEED"),
    }


OLD = {
    "MODEL": ("a.pt", "model.path"), "ADAPTER": ("mlp", "model.adapter"), "DATA": ("val.npz", "data.source"),
    "RANGE": ("0 1", "data.range"), "RESIZE": ("box", "data.resize"), "DEVICE": ("cpu", "run.device"),
    "DTYPE": ("float64", "run.dtype"), "SEED": ("3", "run.seed"), "BATCH_SIZE": ("auto", "run.batch_size"),
    "LIMIT": ("3", "run.limit"), "SAMPLE": ("3", "run.sample"), "OUT": ("there", "run.out"),
    "BASELINE": ("last", "baseline.path"), "MODE": ("latent worst", "attack.modes"), "PAIRS": ("3", "attack.pairs"),
    "PAIRING": ("label", "attack.pairing"), "VARY": ("x", "attack.vary"), "LAMBDAS": ("3", "attack.lambdas"),
    "SIMILARITY": ("mean", "attack.similarity"), "ON": ("std", "attack.on"), "PENALTY": ("l2sq", "attack.penalty"),
    "NORM": ("linf", "attack.norm"), "REF": ("input", "attack.ref"), "RESTARTS": ("2", "attack.restarts"),
    "MAX_EVALUATIONS": ("9", "attack.max_evaluations"), "M": ("0.7", "margin.m"), "SIGMA": ("full", "margin.sigma"),
    "ESTIMATOR": ("exact", "latents.estimator"), "TRAVERSE": ("2", "latents.traverse"),
    "AGAINST": ("old.pt", "weights.against"),
}  # fmt: skip


@pytest.mark.parametrize("old", OLD)
def test_an_old_name_counts_for_this_release_and_says_its_new_one(monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    text, key = OLD[old]
    monkeypatch.setenv(f"VAEAUDIT_{old}", text)
    assert resolved().sources == {key: f"VAEAUDIT_{old}"}
    assert said()[1] == [f"VAEAUDIT_{old} is {variable(key)} now; the next release does not read the old name"]


@pytest.mark.parametrize(
    ("old", "sections"),
    [("ITEMS", "MARGIN NOISE LATENTS MIG"), ("DRAWS", "MARGIN NOISE LATENTS"), ("LEVEL", "MARGIN BASELINE")],
)
def test_an_old_name_of_several_settings_is_refused_with_the_new_ones(
    monkeypatch: pytest.MonkeyPatch, old: str, sections: str
) -> None:
    monkeypatch.setenv(f"VAEAUDIT_{old}", "3")
    new = " or ".join(f"VAEAUDIT_{section}_{old}" for section in sections.split())
    with pytest.raises(ConfigError, match=f"^VAEAUDIT_{old} meant .*; set {new} in its place$"):
        said()


def test_remarks_are_said_once_and_not_where_quiet_is_asked_for(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAEAUDIT_SEED", "3")
    monkeypatch.setenv("VAEAUDIT_RUN_SEED", "4")  # the new name wins
    monkeypatch.setenv("VAEAUDIT_DATA", "no.npz")
    monkeypatch.setenv("VAEAUDIT_NOISE_SIGMA", "3")
    remarks = [
        "note: VAEAUDIT_NOISE_SIGMA is no variable that vaeaudit knows (did you mean 'VAEAUDIT_NOISE_SIGMAS'?); "
        "nothing was made of it",
        "note: VAEAUDIT_DATA is VAEAUDIT_DATA_SOURCE now, VAEAUDIT_SEED is VAEAUDIT_RUN_SEED now; the next release "
        "does not read the old names",
    ]
    shown = command("config", "show", "--format", "json")
    assert (shown.code, shown.err.splitlines()) == (0, remarks)
    assert json.loads(shown.out)["run.seed"] == {"value": 4, "source": "VAEAUDIT_RUN_SEED"}
    error = "error: no model is named"
    assert [line.startswith(error) for line in command("noise").err.splitlines()] == [False, False, True]
    assert command("noise", "-q").err.startswith(error)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("NOPE", ""), ("QUIET", ""), ("RUN_SEEDS", "RUN_SEED"), ("NOISE_SIGMA", "NOISE_SIGMAS"), ("CHECK", "CHECKS")],
)
def test_what_two_names_share_by_their_prefix_makes_them_not_alike(
    monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    monkeypatch.setenv(f"VAEAUDIT_{name}", "1")
    hint = f" (did you mean 'VAEAUDIT_{meant}'?)" if meant else ""
    assert said()[1] == [f"VAEAUDIT_{name} is no variable that vaeaudit knows{hint}; nothing was made of it"]


def test_of_a_list_as_json_the_wrong_value_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAEAUDIT_NOISE_SIGMAS", '[0.1, "a"]')
    with pytest.raises(ConfigError, match=r"^VAEAUDIT_NOISE_SIGMAS must be a valid number, but 'a' came$"):
        resolved()


@pytest.mark.parametrize(
    ("variable", "value", "fault"),
    [
        ("CHECKS", '{"a": {"min": "x"}}', "VAEAUDIT_CHECKS: checks.\"a\".min must be a valid number, but 'x' came"),
        ("CHECKS", '{"a": 3}', 'VAEAUDIT_CHECKS: checks."a" must be a table of keys and values, but 3 came'),
        ("MODEL_OPTIONS", '{"a": [1e400]}', "VAEAUDIT_MODEL_OPTIONS: model.options.a must be a finite number"),
        ("MODEL_OPTIONS", "3", "VAEAUDIT_MODEL_OPTIONS must be a valid dictionary, but 3 came"),
    ],
)
def test_what_is_wrong_in_a_table_of_a_variable_is_told_by_its_key(
    variable: str, value: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"VAEAUDIT_{variable}", value)
    with pytest.raises(ConfigError) as told:
        resolved()
    assert str(told.value).startswith(fault)
