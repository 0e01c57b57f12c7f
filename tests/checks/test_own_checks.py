"""The check of the page on checks of one's own, in a package as it would be installed, has what ours have."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import typer

from vaeaudit.audit.run import weigh, works_of
from vaeaudit.checks.registry import GROUP, OURS, TAKEN, Check, among, checks
from vaeaudit.checks.weights.stored import open_weights
from vaeaudit.cli.app import app
from vaeaudit.errors import CheckError
from vaeaudit.settings.config import resolve
from vaeaudit.settings.sections import Settings

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "own-checks.md").read_text(encoding="utf-8")
Run = Callable[..., str]
COMMAND = Path(sys.executable).with_name("vaeaudit")
ON = [EXAMPLES / "shapes-beta1.safetensors", "--data", EXAMPLES / "shapes.npz"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def install(site: Path, points: str) -> None:
    """What an installer would write of a package that has these entry points."""
    about = site / "vaeaudit_calibration-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vaeaudit-calibration\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the page in a folder of packages."""
    site = tmp_path_factory.mktemp("site")
    for code in blocks("python"):
        file = site / code.splitlines()[0].removeprefix("# ")
        file.parent.mkdir(exist_ok=True)
        file.write_text(code, encoding="utf-8")
    (point,) = re.findall(r'"vaeaudit.checks"\]\ncalibration = "(.*)"', blocks("toml")[0])
    install(site, f"calibration = {point}")
    return site


@pytest.fixture(scope="module")
def run(loaded: Any, site: Path) -> Run:
    """What the installed command prints with the package besides, after it ended with ``code``."""
    command = loaded(PYTHONPATH=str(site))

    def printed(*arguments: object, cwd: Path, code: int = 0, first: str = "") -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(cwd)
            done = command(*arguments, first=first)
        assert done.code == code, done
        return str(done.out + done.err)

    return printed


def called(command: list[object], site: Path | None, cwd: Path, code: int = 0) -> str:
    environment = {**os.environ, "PYTHONPATH": "" if site is None else str(site)}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def audited(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration of the page, and a report of the audit that it asks for."""
    folder = tmp_path_factory.mktemp("audited")
    (folder / "vaeaudit.toml").write_text(blocks("text")[1] + "[run]\nlimit = 120\n")
    run("audit", *ON, "--out", "first", cwd=folder)
    return folder


def report(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_it_has_its_section_its_threshold_and_its_place_in_an_audit(audited: Path) -> None:
    found = report(audited / "first")
    assert found["verdict"] == "passed"
    assert list(found["timings"]) == ["calibration"]
    assert found["configuration"]["calibration"] == {"items": 100}
    assert [check["id"] for check in found["checks"]] == ["calibration.gap.median"]
    assert [(entry["n"], entry["chosen"]) for entry in found["calibrations"]] == [(100, "100 of 120, drawn at random")]
    assert found["calibrations"][0]["gap"]["value"] == found["metrics"]["calibration.gap.median"]["value"] > 0
    assert len(json.loads((audited / "first" / "items.json").read_text())["calibration"]) == 100


def test_its_settings_have_variables(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAEAUDIT_CALIBRATION_ITEMS", "7")
    shown = json.loads(called([COMMAND, "config", "show", "--format", "json"], site, tmp_path))
    assert shown["calibration.items"] == {"value": 7, "source": "VAEAUDIT_CALIBRATION_ITEMS"}
    assert "[env:VAEAUDIT_CALIBRATION_ITEMS]" in called([COMMAND, "calibration", "--help"], site, tmp_path)


def test_it_has_its_command_and_help_needs_none_of_its_libraries(run: Run, site: Path, audited: Path) -> None:
    told = called([sys.executable, "-X", "importtime", COMMAND, "--help"], site, audited)
    assert re.search(r"calibration +Whether the decoder's mean is right", told)
    assert not re.search(r"\| +(torch|pydantic)$", told, re.MULTILINE)
    told = run("calibration", *ON, "--items", 50, "--out", "alone", "-v", cwd=audited)
    assert report(audited / "alone")["calibrations"][0]["n"] == 50
    assert "calibration.gap.median" in told


@pytest.mark.parametrize("form", ["markdown", "html", "junit", "github", "card"])
def test_every_form_of_a_report_shows_it(run: Run, audited: Path, form: str) -> None:
    shown = run("report", "first", "--format", form, cwd=audited).replace("<wbr>", "")
    assert "calibration.gap.median" in shown
    if form in ("markdown", "html"):
        assert "|mean of x - mean of its reconstruction|" in shown.replace("\\", "")


def test_it_is_compared_with_a_baseline(run: Run, audited: Path) -> None:
    run("audit", *ON, "--out", "second", "--baseline", "first", cwd=audited)
    differences = report(audited / "second")["baseline"]["differences"]
    assert {one["metric"]: one["outcome"] for one in differences}["calibration.gap.median"] == "no difference shown"


RESUMED = """
from vaeaudit.audit.run import audit, journal_of
from vaeaudit.settings.config import find_config, resolve
from vaeaudit.subject.opened import prepare
from pathlib import Path
resolved = resolve({{"model.path": ({model!r}, ""), "data.source": ({data!r}, "")}}, find_config(Path.cwd()))
subject = prepare(resolved.settings)
asked = [], []
first, again = (
    audit(subject, resolved, [], ["calibration"], lambda _: told.append(1) or True, journal_of(subject, resume))
    for resume, told in zip((False, True), asked)
)
assert asked[0] and not asked[1]
code = Path(__import__("calibration.run").__file__).with_name("run.py")
before = code.read_text()
code.write_text(before + "# of another version")
audit(subject, resolved, [], ["calibration"], lambda _: asked[1].append(1) or True, journal_of(subject, True))
code.write_text(before)
assert asked[1]
assert first.report.calibrations == again.report.calibrations and first.report.metrics == again.report.metrics
"""


def test_an_audit_goes_on_from_it_unless_its_code_is_another(run: Run, audited: Path) -> None:
    run("--version", cwd=audited, first=RESUMED.format(model=str(ON[0]), data=str(ON[2])))


def test_the_page_on_configuration_has_its_rows(site: Path) -> None:
    page = called(
        [sys.executable, "-c", "import runpy; print(runpy.run_path('docs/generate.py')['configuration']())"], site, ROOT
    )
    assert (
        "| [`calibration`](https://example.org/calibration) | Whether the decoder's mean is right on average |" in page
    )
    assert "\n## calibration\n\nThe calibration check: [what it measures](https://example.org/calibration).\n" in page
    assert "| `items` | whole number, at least 2 | none | Items, drawn at random; all if left out. |" in page


def test_a_threshold_that_it_cannot_give_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "vaeaudit.toml").write_text('[checks."calibration.gap.medan"]\nmax = 1\n')
    told = run("audit", *ON, cwd=tmp_path, code=2)
    assert "gives no such figure (did you mean 'calibration.gap.median'?)" in told


def test_a_report_of_a_check_that_is_not_installed_says_so(audited: Path) -> None:
    told = called([COMMAND, "report", "first"], None, audited, 2)
    assert "first/report.json holds what calibration found, of which no check is installed here" in told


def test_a_check_that_cannot_be_used_is_told_in_a_sentence_and_help_is_there(tmp_path: Path) -> None:
    install(tmp_path / "site", "calibration = no_such_module:CHECK")
    fault = (
        "error: the check 'calibration' cannot be used: no_such_module:CHECK cannot be imported: ModuleNotFoundError: "
        "No module named 'no_such_module'; mend or uninstall its package\n"
    )
    for arguments in (["noise", *ON], ["calibration", *ON]):
        assert called([COMMAND, *arguments], tmp_path / "site", tmp_path, 2) == fault
    assert "calibration" in called([COMMAND, "--help"], tmp_path / "site", tmp_path)


def test_the_row_and_the_command_of_a_check_may_lie_in_one_module(tmp_path: Path) -> None:
    install(tmp_path / "site", "calibration = together:CHECK")
    row, command = next(one for one in blocks("python") if "vaeaudit.Check(" in one), blocks("python")[-1]
    (tmp_path / "site" / "together.py").write_text(f"{command}\n{row}".replace("calibration.command:", "together:"))
    for arguments in (["--help"], ["calibration", "--help"], ["audit", "--help"]):
        assert "cannot be used" not in called([COMMAND, *arguments], tmp_path / "site", tmp_path)


def point(value: str, name: str = "calibration") -> EntryPoint:
    return EntryPoint(name, value, GROUP)


@pytest.mark.parametrize(
    ("points", "fault"),
    [
        ([point("a:ROW"), point("b:ROW")], "it is given by several packages, unknown (a:ROW) and unknown (b:ROW)"),
        ([point("a:ROW", "noise")], "unknown (a:ROW) gives it a name that vaeaudit has itself"),
        ([point("a:ROW", "audit")], "unknown (a:ROW) gives it a name that vaeaudit has itself"),
        ([point("json:loads")], "json:loads is a function, where a vaeaudit.Check was expected"),
        ([point("vaeaudit.checks.registry:OURS")], "is a tuple, where a vaeaudit.Check was expected"),
    ],
)
def test_names_that_collide_and_rows_that_are_none_are_told(points: list[EntryPoint], fault: str) -> None:
    found, faults = among([*points, *points])
    assert list(found) == [check.name for check in OURS]
    (told,) = faults.values()
    assert fault in told
    assert told.startswith(f"the check '{points[0].name}' cannot be used: ")


def test_the_names_that_no_check_may_take_are_those_of_commands_and_sections() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {*commands, *Settings.model_fields} - {*checks()} == TAKEN


@pytest.mark.parametrize("check", OURS, ids=lambda check: check.name)
def test_every_path_of_a_row_leads_somewhere(check: Any) -> None:
    for path in (check.works, check.possible, check.command, *check.entries.values()):
        assert callable(check.load(path))
    section = Settings.model_fields[check.name].annotation
    assert check.load(check.settings) is section
    assert {*check.choices, *check.files, *filter(None, [check.pieces])} <= {*section.model_fields}  # type: ignore[union-attr]
    assert (ROOT / "docs" / check.page).is_file()


def leaves(_: object) -> object:
    raise SystemExit(1)


@pytest.mark.parametrize(
    ("works", "fault"),
    [
        (leaves, "works of the check 'odd' raised SystemExit"),
        (lambda _: {"odd": 3}, "works of the check 'odd' must be functions by name"),
        (lambda _: {1: print}, "works of the check 'odd' must be functions by name"),
        (lambda _: {"other": print}, "works of the check 'odd' begin with its name"),
    ],
)
def test_what_is_wrong_with_its_works_is_told_as_the_checks(works: Any, fault: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(Check, "load", lambda *_: works)
    with pytest.raises(CheckError, match=fault):
        works_of(replace(OURS[0], name="odd"), lambda: None)


def test_what_its_work_raises_is_told_of_the_check_and_not_of_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(_: object) -> None:
        raise RuntimeError("late")

    odd = replace(OURS[-1], name="odd")
    monkeypatch.setattr("vaeaudit.audit.run.checks", lambda: {"odd": odd})
    monkeypatch.setattr(Check, "load", lambda *_: lambda _: {"odd": work})
    resolved = resolve({"model.path": (str(EXAMPLES / "shapes-beta1.safetensors"), "test")}, None)
    done = weigh(open_weights(resolved.settings), resolved, ["test"], ["odd"], lambda _: True)
    assert (done.report.verdict, done.report.exit_code) == ("error", 3)
    assert str(done.report.error).startswith("the check 'odd', or the model in it, raised RuntimeError: late (test_own")
