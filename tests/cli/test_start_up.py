"""What help and version load: an answer that needs no model must not wait for the libraries that models need."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from vaeaudit.cli.app import app

COMMAND = Path(sys.executable).with_name("vaeaudit")
OPENING = ("attack", "audit", "doctor")
HEAVY = {"torch", "numpy", "scipy", "matplotlib", "jinja2", "yaml", "huggingface_hub", "safetensors", "PIL", "sympy"}


def asked() -> list[list[str]]:
    """Every way to ask for help, of the command and of each command below it, and for the version."""
    found = [["--help"], ["-h"], ["--version"]]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        found.append([name, "--help"])
        found += [[name, below, "--help"] for below in getattr(command, "commands", {})]
    return found


# Each in a fork, so that none sees what another has loaded.
PROBE = f"""
import json, os, sys
from vaeaudit.cli.app import main
for arguments in json.loads(sys.argv[1]):
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    sys.argv = ["vaeaudit", *arguments]
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        heavy = {HEAVY!r} & {{name.partition(".")[0] for name in sys.modules}}
        print(json.dumps([arguments, end.code, sorted(heavy)]), file=sys.stderr, flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, tuple[int, list[str]]]:
    """How each way to ask ended, and what it loaded of what is heavy."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([*asked(), *([name, "--isolated"] for name in OPENING)])],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: no model is named;")]
    assert len(errors) == len(OPENING)
    told = (json.loads(line) for line in lines if line not in errors)
    return {" ".join(arguments): (code, heavy) for arguments, code, heavy in told}


@pytest.mark.parametrize("arguments", asked(), ids=" ".join)
def test_help_and_version_load_nothing_that_only_models_need(
    loaded: dict[str, tuple[int, list[str]]], arguments: list[str]
) -> None:
    assert loaded[" ".join(arguments)] == (0, [])


@pytest.mark.parametrize("name", OPENING)
def test_that_no_model_is_named_is_told_without_torch(loaded: dict[str, tuple[int, list[str]]], name: str) -> None:
    code, heavy = loaded[f"{name} --isolated"]
    assert code == 2
    assert "torch" not in heavy


def test_all_commands_are_asked() -> None:
    names = {name for name, *_ in asked()}
    assert {"attack", "margin", "noise", "mig", "weights", "latents", "audit", "compare", "report"} <= names
    assert {"init", "adapters", "doctor", "config"} <= names


def test_settings_are_shown_with_the_facts_of_a_model_and_without_torch() -> None:
    model = Path(__file__).parents[2] / "examples" / "shapes-beta1.safetensors"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", COMMAND, "config", "show", model, "--isolated"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert f"facts in {model}" in " ".join(re.sub("[│|]", " ", done.stdout).split())
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "pydantic" in modules
    assert not modules & {"torch", "scipy", "matplotlib"}


def test_the_installed_command_loads_nothing_that_only_models_need() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", COMMAND, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert {"vaeaudit", "typer"} <= modules
    assert not modules & HEAVY
    assert done.stdout.startswith("Usage: vaeaudit [OPTIONS] COMMAND")
