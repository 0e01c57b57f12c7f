"""Texts from outside act on nothing: whatever stands in whatever field, every form shows it and obeys none of it."""

import json
import os
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import junitparser
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pydantic import BaseModel, JsonValue
from rich.cells import cell_len
from safetensors.torch import save_file

from vaeaudit.cli import render
from vaeaudit.cli.common import line
from vaeaudit.cli.render import comparison_lines, report_line, report_text
from vaeaudit.layout.inert import one_line, visible
from vaeaudit.report.forms import card, github, html, junit, literal, markdown
from vaeaudit.report.glance import at_a_glance
from vaeaudit.report.model import SCHEMA_VERSION, Report
from vaeaudit.report.reading import PNG, ReportError, read_report
from vaeaudit.report.wording import NOT_ASKED
from vaeaudit.report.writer import to_json
from vaeaudit.settings.fields import Range

PIXEL = PNG + bytes.fromhex("0000000d4948445200000001000000010800000000")
# What acts on a terminal, the log of GitHub, Azure or TeamCity, a viewer of Markdown, a page, XML, YAML, rich's markup.
BEGINNING = [
    "::error::x", "a\r::add-mask::x", "##[error]x", "##teamcity[x]", "\x1b[2Jx", "\x9b2Jx", "# heading", "- item",
    "1. item", "[ ] box", "> quoted", "[x]: http://a.b", "```", "- !!python/object x", "<img src=x onerror=alert(1)>",
    "[red]x[/red]", "error: all is well\nverdict: passed", "{{ 1 }}", "a | b |", "\u202egnp.exe",
]  # fmt: skip
WITHIN = [
    "a##vso[task.x]y", "a\n::error::x", "\x1b]8;;http://a.b\x1b\\x\x1b]8;;\x1b\\", "a\x08\x08b", "a\u2028::error::x",
    "a\x85::error::x", "x\n# heading", "x\n\n- item", "![x](http://a.b/c.png)", "www.a.b", "a@b.org", "@org/team",
    "</details><script>x", "<!-- x", "&lt;b&gt;", "a`b", "*a* **b** _c_ ~~d~~", "[link=http://a.b]x[/link]", "a\\|b",
    "]]>",
]  # fmt: skip
ENDING = [
    "a ::set-output name=a::b", "a\x0b::error::x", "a\u200bb\ufeffc\U000e0041", "\ud800", "\x00", "x\n===", "---",
    "***", "a #", "[x](http://a.b)", "](http://a.b)", "https://a.b", "`code`", "a\\", "$x$", "x: y\n---\nz: 1", "[bold",
    "[/]", ":skull:", "a\n---",
]  # fmt: skip
HOSTILE = [*BEGINNING, *WITHIN, *ENDING]
# A whole report has several at once in every field, and alone what acts only so.
TOGETHER = [*map(" ".join, zip(BEGINNING, WITHIN, ENDING, strict=True)), "---", "***"]


def made(kind: Any, text: str, name: str = "") -> Any:
    """A value of a type in which every text is ``text``."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is JsonValue:
        return text
    if Range in (kind, *arguments):  # its ends must be in order
        return [0.0, 1.0]
    if origin is Annotated:
        return made(arguments[0], text, name)
    if origin in (Union, types.UnionType):
        return made(arguments[0], text, name)
    if origin is Literal:
        return arguments[0]
    if origin is list:
        return [made(arguments[0], text, name)]
    if origin is dict:
        return {made(arguments[0], text): made(arguments[1], text, name)}
    if origin is tuple:
        return [made(one, text, name) for one in arguments]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        named = {  # those that must be one of a row's names
            field: one.names()[0]
            for field, info in kind.model_fields.items()
            for one in info.metadata
            if hasattr(one, "names")
        }
        return {field: made(info.annotation, text, field) for field, info in kind.model_fields.items()} | named
    return {str: text, int: 1, float: 1.0, bool: True}[kind]


@cache
def report_of(text: str) -> Report:
    """A report with ``text`` in every field that holds one, but for those of which only a few are read."""
    fixed = {"schema_version": SCHEMA_VERSION, "verdict": "failed", "status": "complete"}
    content = made(Report, text) | fixed | {"metrics": {}}
    content["configuration"] = {text: {text: text}}
    whole = Report.model_validate(content | {"metrics": made(Report, text)["metrics"]})
    purposes = [purpose for section in whole.sections for purpose in section.figures]
    return whole.model_copy(update={"files": dict.fromkeys(purposes, text)})


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from (*texts(name), *texts(one))
    elif isinstance(value, list):
        for one in value:
            yield from texts(one)


def test_the_report_holds_the_text_in_every_field_of_every_entry() -> None:
    found = json.dumps(report_of("hostile").model_dump(mode="json")).count('"hostile"')
    assert found > 120
    for section in report_of("hostile").sections:
        assert section.tables


def obeyed(text: str) -> list[str]:
    """Lines of a log that a runner would take for a command, and all that moves a cursor or turns the writing."""
    lines = re.split(r"\r\n|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", text)
    commands = [one for one in lines if one.lstrip().startswith("::") or re.search(r"##\w*\[", one)]
    return commands + re.findall(
        r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", text
    )


FORMS: dict[str, Callable[[Report], str]] = {
    "table": lambda report: report_text(report, Path("out"), to_terminal=False, verbose=True),
    "last line": lambda report: report_line(report, Path("out")),
    "comparison": lambda report: comparison_lines(report.baseline, to_terminal=False),  # type: ignore[arg-type]
    "json": to_json,
    "markdown": markdown.render,
    "markdown of a comparison": lambda report: markdown.render_comparison(report.baseline),  # type: ignore[arg-type]
    "summary": github.summary,
    "junit": junit.render,
    "card": card.render,
    "html": lambda report: html.render(report, dict.fromkeys(report.files, PIXEL)),
}


@cache
def shown_as(form: str, text: str) -> str:
    return FORMS[form](report_of(text))


def check_forms(text: str) -> None:
    report = report_of(text)
    for name in FORMS:
        shown = re.sub("<style>.*?</style>", "", shown_as(name, text), flags=re.DOTALL)
        assert obeyed(shown) == [], name
    for one in github.annotations(report).splitlines():
        level, _, rest = one.removeprefix("::").partition(" title=")
        assert level in ("error", "warning", "notice")
        title, _, message = rest.partition("::")
        assert not re.search("[:,]", title)
        assert obeyed(message) == []


@pytest.mark.parametrize("text", TOGETHER)
def test_no_form_holds_a_command_or_a_control_character(text: str) -> None:
    check_forms(text)


@given(st.text(max_size=12))
@settings(max_examples=20, deadline=None)
def test_no_form_acts_on_any_text(text: str) -> None:
    check_forms(text)


@pytest.mark.parametrize("width", ["30", "80", "200"])
@pytest.mark.parametrize(
    "text", ["::error::x", "a ::error::x", "::error::x" * 40, "a" * 79 + "::error::x", "x " * 39 + "::error::x"]
)
def test_no_line_of_a_table_begins_with_a_command_at_any_width(
    text: str, width: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("NO_COLOR", "1")
    for verbose in (False, True):
        assert obeyed(report_text(report_of(text), Path("out"), to_terminal=True, verbose=verbose)) == []


MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def tokens(text: str) -> list[Any]:
    return [one for token in MARKDOWN.parse(text) for one in (token, *(token.children or ()))]


def shape(found: list[Any]) -> list[tuple[str, str]]:
    """What a document is made of, but for its words; a text in backticks is one that is shown."""
    plain = ("text", "text_special", "code_inline", "softbreak")
    return [(token.type, token.tag) for token in found if token.type not in plain]


def words(found: list[Any]) -> str:
    return "".join(token.content for token in found if token.type in ("text", "text_special", "code_inline"))


def without_files(form: str, text: str) -> list[Any]:
    return tokens(FORMS[form](report_of(text).model_copy(update={"files": {}})))


@pytest.mark.parametrize("form", ["markdown", "summary"])
@pytest.mark.parametrize("text", TOGETHER)
def test_markdown_is_made_of_the_same_parts_whatever_the_text(text: str, form: str) -> None:
    found = without_files(form, text)
    assert shape(found) == plain_shape(form)
    assert one_line(text) in words(found)


@cache
def plain_shape(form: str) -> list[tuple[str, str]]:
    return shape(without_files(form, "plain"))


@pytest.mark.parametrize("text", ["a.png", "a b.png", "../a.png", "http://a.b/c.png", "..\\a.png", "x](y)", "\ud800\n"])
def test_an_image_is_of_a_file_beside_the_report_or_none(text: str) -> None:
    images = [token for token in tokens(markdown.render(report_of(text))) if token.type == "image"]
    for image in images:
        assert re.fullmatch(r"[\w.~%-]+", image.attrs["src"])
    assert bool(images) == ("/" not in text and "\\" not in text)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_in_markdown_is_shown_to_the_letter_and_is_no_mark(text: str) -> None:
    for place in ("{}", "- {}", "> {}", "**A:** {}.", "# {}", "{}: x", "![{}](a.png)", "| {} | x |\n|--|--|"):
        check_place(text, place)


def check_place(text: str, place: str) -> None:
    if place.startswith("!["):
        escape = literal.alt
    else:
        escape = {"|": literal.cell, "*": literal.inline, "#": literal.inline}.get(place[0], literal.block)
    found = tokens(place.replace("{}", escape(text)))
    assert shape(found) == shape(tokens(place.replace("{}", "plain")))
    shown = one_line(text)
    if place.startswith("!["):
        (image,) = (token for token in found if token.type == "image")
        assert "".join(child.content for child in image.children) == shown
    else:
        assert shown in words(found)


class Page(HTMLParser):
    """What a browser finds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[object] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "wbr":
            self.found.append((tag, [name for name, _ in attrs if name != "class"]))
            self.found += [value for name, value in attrs if name in ("href", "src") and not value.startswith("#")]  # type: ignore[union-attr]

    def handle_comment(self, data: str) -> None:
        self.found.append(data)

    def handle_data(self, data: str) -> None:
        self.words += data


@cache
def plain_page() -> Page:
    return Page(shown_as("html", "plain"))


@pytest.mark.parametrize("text", TOGETHER)
def test_a_page_is_made_of_the_same_parts_whatever_the_text(text: str) -> None:
    page = Page(shown_as("html", text))
    assert page.found == plain_page().found
    assert visible(text) in page.words


@pytest.mark.parametrize("text", TOGETHER)
def test_xml_yaml_and_json_hold_the_text_and_no_part_more(text: str, tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    file.write_text(shown_as("junit", text), encoding="ascii")
    cases = [case for suite in junitparser.JUnitXml.fromfile(str(file)) for case in suite]
    assert len(cases) == shown_as("junit", "plain").count("<testcase")
    assert visible(text) in {case.name for case in cases}
    front = yaml.safe_load(shown_as("card", text).removeprefix("---\n").removesuffix("---\n"))
    assert set(front) == {"model-index"}
    assert one_line(text) in set(texts(front))
    kept = text.encode(errors="backslashreplace").decode()
    assert kept in set(texts(json.loads(shown_as("json", text))))


@pytest.mark.parametrize("text", TOGETHER)
def test_the_terminal_shows_the_text(text: str) -> None:
    shown = shown_as("table", text)
    assert f"partial: {line(text)}\n" in shown
    assert f"warning: {line(text)}\n" in shown


def test_what_is_shown_stays_so() -> None:
    for text in HOSTILE:
        assert visible(visible(text)) == visible(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("::error::x", r"\x3a:error::x"),
        ("a::b std::vector", "a::b std::vector"),
        ("a\t::b", r"a\t::b"),
        ("##[error]#1 ## x", r"#\x23[error]#1 ## x"),
        ("a\r\nb\x1b[0m", r"a\r\nb\x1b[0m"),
        ("é 漢 ‖x‖ → λ", "é 漢 ‖x‖ → λ"),
    ],
)
def test_only_what_would_act_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown


# ---- The command line

Command = Callable[..., Any]
# One of each kind that a message may carry: a log's command, a line of ours, a terminal's sequence, markup, and much.
SPOKEN = [
    "::error::x",
    "a\n::error::x\nerror: b\x1b[2J##[error]x[red]x[/red]\u202e$\\frac$",
    "x" * 5000,
    "\udcff",
]
spoken = pytest.mark.parametrize("text", SPOKEN, ids=[visible(text)[:30] for text in SPOKEN])


def said(done: Any) -> str:
    """All that a command wrote, once it is known to act on nothing and to be lines of ours, none of them long."""
    ours = r"^::(error|warning|notice) title=[^:,\n]*::"
    for stream in (re.sub(ours, "", done.out, flags=re.MULTILINE), done.err):
        assert obeyed(stream) == [], stream
    for one in done.err.splitlines():
        assert one.startswith(("error: ", "note: ", "not compared: ", "Traceback ", "  ", "no vaeaudit.toml ")), one
        assert len(one) <= 2100
    return done.out + done.err


SHARING = ("audit", "doctor")  # two of those whose options are the same groups


@pytest.mark.parametrize("text", SPOKEN[1:3], ids=["acting", "long"])
def test_no_option_or_path_acts_through_a_message(command: Command, projection: Any, text: str) -> None:
    projection.fill(Path())
    np.save("x.npy", np.zeros(3))
    calls = [
        *([name, text] for name in SHARING),
        *([name, "vae.safetensors", "--adapter", text] for name in SHARING),
        *([name, "vae.safetensors", "--data", text] for name in SHARING),
        *([name, "vae.safetensors", "--data", "val.npy", "--option", text] for name in SHARING),
        *([name, "vae.safetensors", "--data", "val.npy", "--device", text] for name in SHARING),
        *([name, "vae.safetensors", "--config", text] for name in SHARING),
        ["weights", text], ["init", text],
        ["audit", "--check", text], ["audit", "--from", text], ["audit", "--baseline", text], ["audit", "--seed", text],
        ["attack", "vae.safetensors", "--data", "val.npy", "--vary", text], ["attack", "--pair", text],
        ["attack", "--mode", text], ["weights", "vae.safetensors", "--part", text], [text], ["audit", f"--{text}"],
        ["weights", "vae.safetensors", "--against", text], ["report", text], ["compare", text, text], ["config", text],
        ["report", "x.npy", "--format", text], ["compare", "x.npy", "x.npy", "--min-effect", text],
    ]  # fmt: skip
    for arguments in calls:
        done = command(*arguments)
        assert done.code == 2, (arguments, done)
        assert len(said(done).splitlines()) == 1
        assert "unexpected " not in done.err.replace("unexpected extra", "")


@spoken
def test_config_show_shows_what_was_said_as_it_is(command: Command, text: str) -> None:
    for form in ("table", "json"):
        done = command("config", "show", "--option", f"a={text}", "--format", form)
        assert done.code in (0, 2)
        said(done)


@spoken
def test_no_name_of_a_tensor_acts(command: Command, text: str) -> None:
    if text == "\udcff":
        pytest.skip("a name within a file is UTF-8")
    save_file(
        {f"encoder.{text}": torch.ones(2, 2), "decoder.w": torch.ones(2, 2), text: torch.ones(1, 1)}, "a.safetensors"
    )
    save_file({"encoder.b": torch.ones(2, 2), "decoder.w": torch.ones(2, 2)}, "b.safetensors")
    save_file({text: torch.full((1,), torch.nan)}, "nan.safetensors")
    assert command("weights", "a.safetensors").code == 2
    parts = ("--part", "encoder=encoder.", "--part", "decoder=decoder.", "--part", f"neither={text}")
    for arguments in (
        ["weights", "a.safetensors"],
        ["weights", "a.safetensors", *parts],
        ["weights", "a.safetensors", *parts, "--against", "b.safetensors"],
        ["weights", "nan.safetensors"],
        ["doctor", "a.safetensors", "--adapter", "mlp", "--data", "b.safetensors"],
        ["report", "vaeaudit-report"],
        ["report", "vaeaudit-report", "--format", "html"],
    ):
        said(command(*arguments))


@spoken
def test_no_fact_of_a_file_and_no_word_of_an_adapter_acts(command: Command, projection: Any, text: str) -> None:
    plain = text.encode(errors="backslashreplace").decode()
    Path("own.py").write_text(f"def open(checkpoint, config):\n    raise ValueError({text!r})\n", encoding="utf-8")
    for facts in ({"adapter": plain}, {"activation": plain}, {plain: "1"}):
        projection.fill(Path(), **facts)
        assert command("config", "show", "vae.safetensors").code == 0
        done = command("doctor", "vae.safetensors", "--data", "val.npy")
        assert done.code == 2
        assert len(said(done).splitlines()) == 1
    for verbose in ([], ["-v"]):
        done = command("doctor", "vae.safetensors", "--data", "val.npy", "--adapter", "own.py:open", *verbose)
        assert done.code == 2
        assert [one for one in said(done).splitlines() if not one.startswith("  ")][bool(verbose) :] == [
            done.err.splitlines()[-1]
        ]


@spoken
def test_no_name_of_a_factor_acts(command: Command, projection: Any, text: str) -> None:
    if text == "\udcff":
        pytest.skip("NumPy stores names as text")
    projection.fill(Path())
    classes = np.stack([np.arange(40) % 2, np.zeros(40, int), np.arange(40) // 20], 1)
    names = np.array([f"{text}a", f"{text}b", "c"])
    np.savez("val.npz", imgs=np.load("val.npy"), latents_classes=classes, latents_names=names)
    for arguments in (
        ["mig", "vae.safetensors", "--data", "val.npz"],
        ["attack", "vae.safetensors", "--data", "val.npz", "--vary", f"{text}b"],
        ["attack", "vae.safetensors", "--data", "val.npz", "--vary", "d"],
        ["doctor", "vae.safetensors", "--data", "val.npz"],
        *(["report", "vaeaudit-report", "--format", form] for form in ("markdown", "junit", "github", "card", "html")),
    ):
        assert "unexpected" not in said(command(*arguments))


@spoken
def test_no_report_acts_however_it_was_doctored(command: Command, text: str) -> None:
    Path("old").mkdir()
    Path("old/report.json").write_text(to_json(report_of(text)))
    Path("odd.json").write_text(json.dumps({text: text, "schema_version": text}))
    for form in ("markdown", "junit", "github", "card", "html"):
        done = command("report", "old", "--format", form)
        assert done.code == 0
        said(done)
    for arguments in (["compare", "old", "old"], ["audit", "--from", "old"], ["report", "odd.json"]):
        done = command(*arguments)
        assert done.code in (2, 5)
        assert "unexpected" not in said(done)


# ---- Odd reports, names and nesting: refused with their reason, or taken


def leaves(value: Any, way: tuple[Any, ...] = (), beside: Any = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The way to everything within a report, and the names beside which its last step stands."""
    if way:
        yield way, beside
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for step, one in inner:
        yield from leaves(one, (*way, step), tuple(value) if isinstance(value, dict) and len(value) > 1 else way)


def changed(content: Any, way: tuple[Any, ...], value: Any) -> Any:
    """The content with another value there."""
    step, *rest = way
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[step] = changed(content[step], tuple(rest), value) if rest else value
    return copy


@pytest.mark.parametrize("value", [-1, []], ids=repr)
def test_a_report_with_any_field_changed_is_read_and_shown_or_refused_with_its_name(value: Any, tmp_path: Path) -> None:
    content = json.loads(to_json(report_of("plain")))
    file = tmp_path / "report.json"
    of_a_kind = {(way[0], beside, way[-1]): way for way, beside in leaves(content)}  # once in each entry of the report
    for way in of_a_kind.values():
        file.write_text(json.dumps(changed(content, way, value)))
        try:
            report, _ = read_report(file)
        except ReportError as error:
            if len(way) > 1 and way[0] not in ("configuration", "files"):
                assert str(way[-1] if isinstance(way[-1], str) else way[-2]) in str(error), (way, error)
            continue
        try:
            for form in (github.annotations, junit.render, card.render):
                form(report)
            assert report.sections
        except Exception as error:
            raise AssertionError(way) from error


@pytest.mark.parametrize("depth", [300, 1000, 100_000])
def test_values_nested_too_deeply_are_refused(command: Command, projection: Any, depth: int) -> None:
    deep = "[" * depth + "]" * depth
    Path("vaeaudit.toml").write_text(f"[model]\noptions = {{ a = {deep} }}\n")
    done = command("config", "show")
    assert done.code == 2
    assert "nested" in said(done)
    Path("config.json").write_text(json.dumps({}).replace("}", f'"vaeaudit": {{"a": {deep}}}}}'))
    save_file(projection.weights(), "vae.safetensors", {"vaeaudit.a": deep})
    assert command("config", "show", "vae.safetensors", "--isolated").code == 0
    done = command("doctor", "vae.safetensors", "--isolated", "--data", "vae.safetensors")
    assert done.code == 2
    said(done)


def test_names_that_are_no_utf8_are_refused_with_a_way_out_or_taken(command: Command, projection: Any) -> None:
    projection.fill(Path())
    name = os.fsdecode(b"m\xff.safetensors")
    Path("vae.safetensors").rename(name)
    done = command("weights", name)
    assert (done.code, said(done).count("\n")) == (2, 1)
    assert "MODEL must be text in UTF-8 (rename the file, or set LC_ALL=C.UTF-8)" in done.err
    Path(name).rename("vae.safetensors")
    done = command("weights", "vae.safetensors", "-o", os.fsdecode(b"r\xff.txt"))
    assert done.code == 0
    assert r"r\udcff.txt" in json.loads(Path("vaeaudit-report/report.json").read_text())["argv"]
    assert command("report", "vaeaudit-report").code == 0


# ---- The width of a terminal


def test_every_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    for text in ("plain", "a.name_of.twenty_letters", "words of many lengths that must be wrapped somewhere"):
        tables = []
        for width in (20, 40, 80, 120):
            monkeypatch.setenv("COLUMNS", str(width))
            shown = report_text(report_of(text), Path("out"), to_terminal=True, verbose=True)
            drawn = [one for one in shown.splitlines() if one and one[0] in "┏┃┡│└+|"]
            assert all(cell_len(one) <= width for one in drawn)
            tables.append(shown.count("┏"))
        assert tables == sorted(tables)
        assert tables[0] < tables[-1]


def test_a_row_without_room_for_a_table_is_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    lines = report_text(report_of("plain"), Path("out"), to_terminal=True, verbose=True).splitlines()
    start = lines.index("metrics")
    assert lines[start + 1 : start + 4] == [
        "plain !",
        "  value: 1; 100% interval: [1, 1]; unit:",
        "  plain; more robust: higher; n: 1 (1",
    ]


# ---- What nobody asked for


def test_what_nobody_asked_for_is_one_line_and_no_annotation() -> None:
    rest = dict.fromkeys(("attack", "margin", "mig"), NOT_ASKED)
    report = report_of("plain").model_copy(update={"skipped": {"noise": "no room"} | rest})
    assert github.annotations(report).count("skipped") == 1
    told = "kipped attack, margin, mig: not asked for"
    for form in ("summary", "markdown", "table", "html"):
        assert FORMS[form](report).count(told) == 1
        assert FORMS[form](report).count("kipped") == 2


@pytest.mark.parametrize("text", HOSTILE)
def test_no_unit_or_meaning_acts_at_a_glance(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    report, folder = read_report(str(Path(__file__).parent / "reports"))
    (first, *_) = at_a_glance(report)
    unit = first.metric.model_copy(update={"unit": text})
    doctored = report.model_copy(update={"metrics": report.metrics | {first.name: unit}})
    assert at_a_glance(doctored)[0].metric.unit == text
    told = [replace(one, means=text) for one in at_a_glance(doctored)]
    monkeypatch.setattr(render, "at_a_glance", lambda _: told)
    shown = report_text(doctored, folder, to_terminal=False)
    assert obeyed(shown) == []
    assert shown.count(line(text).rstrip()) >= 2
