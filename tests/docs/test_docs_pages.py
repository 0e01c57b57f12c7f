"""What README and the pages in docs say of commands, options, settings, reports and exit codes is so."""

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from typer.main import get_command

from vaeaudit import errors
from vaeaudit.audit.journal import FOLDER
from vaeaudit.checks.naming import check_names
from vaeaudit.cli.app import app
from vaeaudit.cli.environment import variable
from vaeaudit.gate.ending import EXIT_CODES
from vaeaudit.layout.entry import MetricEntry
from vaeaudit.report.comparison import ComparisonEntry, DifferenceEntry
from vaeaudit.report.gates import CheckEntry
from vaeaudit.report.model import Report, ReproductionEntry
from vaeaudit.report.wording import VERDICTS
from vaeaudit.settings.config import json_schema, resolve
from vaeaudit.settings.sections import Settings
from vaeaudit.stats.estimates import quantile
from vaeaudit.stats.paired import least_p

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text(page), re.MULTILINE | re.DOTALL)


def section(page: Path, heading: str) -> str:
    return re.split(r"\n#+ ", text(page).split(f"# {heading}\n", 1)[1], maxsplit=1)[0]


def rows(table: str) -> list[list[str]]:
    """The rows of the first table in a text, without its header."""
    lines = re.search(r"(?:^\|.*\n)+", table + "\n", re.MULTILINE)
    assert lines is not None
    cut = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines.group().splitlines()]
    return [[cell.strip() for cell in cells] for cells in cut[2:]]


def commands(command: Any = None, name: str = "") -> Iterator[tuple[str, Any]]:
    command = command or get_command(app)
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
    for sub in inner or ():
        yield from commands(inner[sub], f"{name} {sub}".strip())


COMMANDS: dict[str, Any] = dict(commands())


def named(words: list[str]) -> tuple[str, list[str]]:
    """The command that the words after `vaeaudit` begin with, and the rest of them."""
    for length in (2, 1):
        if (name := " ".join(words[:length])) in COMMANDS:
            return name, words[length:]
    raise AssertionError(f"there is no command vaeaudit {' '.join(words)}")


def spellings(command: str) -> dict[str, Any]:
    """The parameters of a command by each of their spellings."""
    found = COMMANDS[command].params
    return {one: parameter for parameter in found for one in (*parameter.opts, *parameter.secondary_opts)}


def generator() -> ModuleType:
    spec = spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- Configuration


@pytest.mark.parametrize("name", ["configuration.md", "commands.md"])
def test_a_page_that_is_generated_is_what_its_script_gives(name: str) -> None:
    assert text(DOCS / name) == generator().PAGES[name](), "run: python docs/generate.py"


def test_every_section_and_key_has_its_place_on_that_page() -> None:
    for name, field in Settings.model_fields.items():
        told = [row[0].strip("`") for row in rows(section(DOCS / "configuration.md", name))]
        if name != "checks":
            assert told == list(field.annotation.model_fields)  # type: ignore[union-attr]


@each_page
def test_what_is_given_to_configure_is_valid_and_its_figures_exist(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "toml"):
        content = tomllib.loads(block)
        if "project" in content:  # of a package, not of ours
            continue
        file = tmp_path / ("pyproject.toml" if "tool" in content else "vaeaudit.toml")
        file.write_text(block, encoding="utf-8")
        check_names(resolve({}, file).settings)


# ---- Commands and options


@each_page
def test_every_command_line_is_accepted(page: Path) -> None:
    lines = [line for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("vaeaudit ")]
    for line in lines:
        name, arguments = named(shlex.split(line, comments=True)[1:])
        COMMANDS[name].make_context(name, arguments)  # raises what the user would be told


@each_page
def test_every_command_named_in_a_sentence_has_the_options_named_with_it(page: Path) -> None:
    for line in re.findall(r"`vaeaudit ([a-z][^`]*)`", re.sub(r"```.*?```", "", text(page), flags=re.DOTALL)):
        name, arguments = named(line.split())
        for argument in arguments:
            if argument.startswith("-"):
                assert argument in spellings(name), line


@each_page
def test_every_option_that_is_named_belongs_to_a_command(page: Path) -> None:
    known = {one for name in COMMANDS for one in spellings(name)} | {"--help", "--version"}
    for span in re.findall(r"`(--?[a-z][^`]*)`", text(page)):
        option = OPTION.match(span)
        # What begins with one dash and is longer than a letter is no option but a formula or a number.
        assert option is None or option.group() in known or re.match(r"-\w{2}", span), span


SETTINGS = [
    pytest.param(key.name, parameter, id=f"{name} {parameter.name}")
    for name, one in COMMANDS.items()
    for parameter in one.params
    if (key := one.callback.keys.get(parameter.name)) is not None
]


@pytest.mark.parametrize(("key", "parameter"), SETTINGS)
def test_the_help_of_an_option_tells_the_default_and_the_variable_of_its_setting(key: str, parameter: Any) -> None:
    assert parameter.help.endswith(f" [env:{variable(key)}]")
    section, _, name = key.partition(".")
    value = getattr(getattr(Settings(), section), name)
    told = re.search(r"\[default: (.*?)\]", parameter.help)
    if value in (None, (), {}) or (value is False and not parameter.secondary_opts):  # said in words, if at all
        return
    assert told is not None
    if isinstance(value, bool):
        assert f"--{told.group(1)}" in (parameter.opts if value else parameter.secondary_opts)
    elif told.group(1) == "both" and isinstance(value, tuple):
        assert len(value) == 2
    else:
        values = [f"{one:g}" if isinstance(one, float) else str(one) for one in as_list(value)]
        assert re.split(r", | and ", told.group(1))[: len(values)] == values


def as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("words", [[], ["config"], *([*name.split()] for name in COMMANDS)], ids=" ".join)
def test_help_fits_a_terminal_of_80_columns(
    words: list[str], command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    told = command(*words, "--help").out
    assert max(map(len, told.splitlines())) <= 80
    assert "..." not in told.partition("Commands:")[2], "the first sentence of a command's docstring is its line here"


# ---- Links


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    bare = re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", bare, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text(page)):
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), target
        if anchor:
            assert anchor in slugs(file), target


def test_every_page_is_in_the_index() -> None:
    listed = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)]+)\)", text(DOCS / "README.md"))}
    assert {page for page in PAGES if page.is_relative_to(DOCS)} - {DOCS / "README.md"} <= listed


# ---- The release gate


def test_the_exit_codes_of_readme_and_of_the_gate_are_those_of_errors_and_verdicts() -> None:
    table = rows(section(DOCS / "gate.md", "The five verdicts").split("| code |")[1].join(["| code |", ""]))
    assert table == rows(section(README, "Exit codes"))
    told = {int(code): meaning for code, meaning in table}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert set(told) == {*EXIT_CODES.values(), *(kind.exit_code for kind in kinds), 130}
    for word, code in EXIT_CODES.items():
        assert word in told[code]
    for code in {kind.exit_code for kind in kinds} - {*EXIT_CODES.values()}:
        assert told[code].startswith("error: ")


def test_the_verdicts_of_the_gate_are_those_that_a_report_can_have() -> None:
    assert {row[0].strip("`") for row in rows(section(DOCS / "gate.md", "The five verdicts"))} == set(VERDICTS)


def test_the_bounds_of_the_gate_are_those_there_are() -> None:
    told = [row[0].strip("`") for row in rows(section(DOCS / "gate.md", "How a threshold reads a figure"))]
    schema: Any = json_schema()
    assert told == schema["$defs"]["GateSettings"]["properties"]["bound"]["enum"]


def test_how_many_figures_so_few_items_can_tell_is_computed() -> None:
    for items, least, most in rows(section(DOCS / "gate.md", "Compared with a baseline")):
        assert f"{least_p(int(items)):.3g}" == least
        assert int(most) == int(0.05 / least_p(int(items)))


def test_the_numbers_of_values_that_an_interval_needs_are_right() -> None:
    for q, needed in ((0.5, 6), (0.25, 13), (0.75, 13)):
        few, enough = (
            quantile([float(one) for one in range(n)], q, unit="", direction="none") for n in (needed - 1, needed)
        )
        assert few.ci is None and enough.ci is not None
    for page in ("gate.md", "reports.md"):
        assert re.search(r"a median needs 6 .*?a quartile 13", text(DOCS / page), re.DOTALL)


def test_the_gate_names_the_folder_of_the_journal() -> None:
    assert f"`{FOLDER}`" in section(DOCS / "gate.md", "To go on after an interruption")


# ---- Reports


@pytest.mark.parametrize(
    "entry", [Report, MetricEntry, CheckEntry, ComparisonEntry, DifferenceEntry, ReproductionEntry]
)
def test_the_page_on_reports_tells_every_field(entry: Any) -> None:
    assert [field for field in entry.model_fields if f"`{field}`" not in text(DOCS / "reports.md")] == []


def test_the_page_on_reports_and_the_help_tell_every_form() -> None:
    told = {row[0].strip("`") for row in rows(section(DOCS / "reports.md", "Other forms"))}
    offered = [spellings(name)["--format"] for name in ("audit", "report")]
    assert told == {form for parameter in offered for form in get_args(parameter.type_descriptor.annotation)}
    for parameter in offered:
        assert all(form in parameter.help for form in get_args(parameter.type_descriptor.annotation))


def test_the_python_of_the_page_on_reports_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vaeaudit-report").mkdir()
    written = (ROOT / "tests" / "report" / "reports" / "report.json").read_bytes()
    (tmp_path / "vaeaudit-report" / "report.json").write_bytes(written)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (block,) = blocks(DOCS / "reports.md", "python")
    exec(compile(block, "reports.md", "exec"), {})
    if json.loads(written)["status"] == "complete":
        assert capsys.readouterr().out
