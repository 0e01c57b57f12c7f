"""Texts from outside act on nothing: whatever stands in whatever field, every form shows it and obeys none of it."""

import json
import re
import types
from collections.abc import Callable, Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import junitparser
import pytest
import yaml
from markdown_it import MarkdownIt
from pydantic import BaseModel, JsonValue

from vaeaudit.cli.common import line
from vaeaudit.cli.render import comparison_lines, report_line, report_text
from vaeaudit.inert import one_line, visible
from vaeaudit.report import card, github, html, junit, literal, markdown
from vaeaudit.report.model import Report
from vaeaudit.report.reading import PNG
from vaeaudit.report.writer import to_json

PIXEL = PNG + bytes.fromhex("0000000d4948445200000001000000010800000000")
# What acts on a terminal, the log of GitHub, Azure or TeamCity, a viewer of Markdown, a page, XML, YAML, rich's markup.
HOSTILE = [
    "::error::x", "a\n::error::x", "a\r::add-mask::x", "a ::set-output name=a::b", "##[error]x", "a##vso[task.x]y",
    "##teamcity[x]", "\x1b[2Jx", "\x9b2Jx", "\x1b]8;;http://a.b\x1b\\x\x1b]8;;\x1b\\", "a\x08\x08b", "\u202egnp.exe",
    "a\u2028::error::x", "a\x85::error::x", "a\x0b::error::x", "a\u200bb\ufeffc\U000e0041", "\ud800", "\x00",
    "x\n# heading", "# heading", "x\n\n- item", "- item", "1. item", "[ ] box", "> quoted", "x\n===", "---", "***",
    "a #", "[x](http://a.b)", "![x](http://a.b/c.png)", "](http://a.b)", "[x]: http://a.b", "https://a.b", "www.a.b",
    "a@b.org", "@org/team", "<img src=x onerror=alert(1)>", "</details><script>x", "<!-- x", "&lt;b&gt;",
    "`code`", "```", "a`b",
    "*a* **b** _c_ ~~d~~", "a | b |", "a\\", "a\\|b", "$x$", "]]>", "x: y\n---\nz: 1", "- !!python/object x", "{{ 1 }}",
    "[red]x[/red]", "[link=http://a.b]x[/link]", "[bold", "[/]", ":skull:", "error: all is well\nverdict: passed",
]  # fmt: skip


def made(kind: Any, text: str, name: str = "") -> Any:
    """A value of a type in which every text is ``text``."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is JsonValue:
        return text
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
        return {field: made(info.annotation, text, field) for field, info in kind.model_fields.items()}
    return {str: text, int: 1, float: 1.0, bool: True}[kind]


@cache
def report_of(text: str) -> Report:
    """A report with ``text`` in every field that holds one, but for the two whose values are fixed when it is read."""
    content = made(Report, text) | {"verdict": "failed", "status": "complete", "metrics": {}}
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
    "table": lambda report: report_text(report, Path("out"), to_terminal=False),
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


@pytest.mark.parametrize("text", HOSTILE)
def test_no_form_holds_a_command_or_a_control_character(text: str) -> None:
    report = report_of(text)
    for name, form in FORMS.items():
        shown = re.sub("<style>.*?</style>", "", form(report), flags=re.DOTALL)
        assert obeyed(shown) == [], name
    for one in github.annotations(report).splitlines():
        level, _, rest = one.removeprefix("::").partition(" title=")
        assert level in ("error", "warning", "notice")
        title, _, message = rest.partition("::")
        assert not re.search("[:,]", title)
        assert obeyed(message) == []


@pytest.mark.parametrize("width", ["30", "80", "200"])
@pytest.mark.parametrize(
    "text", ["::error::x", "a ::error::x", "::error::x" * 40, "a" * 79 + "::error::x", "x " * 39 + "::error::x"]
)
def test_no_line_of_a_table_begins_with_a_command_at_any_width(
    text: str, width: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("NO_COLOR", "1")
    assert obeyed(report_text(report_of(text), Path("out"), to_terminal=True)) == []


def tokens(text: str) -> Iterator[Any]:
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        yield token
        yield from token.children or ()


def shape(text: str) -> list[tuple[str, str]]:
    """What a document is made of, but for its words; a text in backticks is one that is shown."""
    plain = ("text", "text_special", "code_inline", "softbreak")
    return [(token.type, token.tag) for token in tokens(text) if token.type not in plain]


def words(text: str) -> str:
    return "".join(token.content for token in tokens(text) if token.type in ("text", "text_special", "code_inline"))


@cache
def plain_shape(form: str) -> list[tuple[str, str]]:
    return shape(FORMS[form](report_of("plain").model_copy(update={"files": {}})))


@pytest.mark.parametrize("form", ["markdown", "markdown of a comparison", "summary"])
@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_is_made_of_the_same_parts_whatever_the_text(text: str, form: str) -> None:
    document = FORMS[form](report_of(text).model_copy(update={"files": {}}))
    assert shape(document) == plain_shape(form)
    assert one_line(text) in words(document)


@pytest.mark.parametrize("text", HOSTILE)
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
    document = place.replace("{}", escape(text))
    assert shape(document) == shape(place.replace("{}", "plain"))
    shown = one_line(text)
    if place.startswith("!["):
        (image,) = (token for token in tokens(document) if token.type == "image")
        assert "".join(child.content for child in image.children) == shown
    else:
        assert shown in words(document)


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
    return Page(FORMS["html"](report_of("plain")))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_is_made_of_the_same_parts_whatever_the_text(text: str) -> None:
    page = Page(FORMS["html"](report_of(text)))
    assert page.found == plain_page().found
    assert visible(text) in page.words


@pytest.mark.parametrize("text", HOSTILE)
def test_xml_yaml_and_json_hold_the_text_and_no_part_more(text: str, tmp_path: Path) -> None:
    report = report_of(text)
    file = tmp_path / "junit.xml"
    file.write_text(junit.render(report), encoding="ascii")
    cases = [case for suite in junitparser.JUnitXml.fromfile(str(file)) for case in suite]
    assert len(cases) == junit.render(report_of("plain")).count("<testcase")
    assert visible(text) in {case.name for case in cases}
    front = yaml.safe_load(card.render(report).removeprefix("---\n").removesuffix("---\n"))
    assert set(front) == {"model-index"}
    assert one_line(text) in set(texts(front))
    kept = text.encode(errors="backslashreplace").decode()
    assert kept in set(texts(json.loads(to_json(report))))


@pytest.mark.parametrize("text", HOSTILE)
def test_the_terminal_shows_the_text(text: str) -> None:
    shown = report_text(report_of(text), Path("out"), to_terminal=False)
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
