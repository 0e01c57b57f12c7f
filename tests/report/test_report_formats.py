"""Reports in other forms: what each says exactly, and how reports on disk are read."""

import json
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import junitparser
import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from vaeaudit.errors import InputError
from vaeaudit.layout.entry import MetricEntry
from vaeaudit.layout.inert import visible
from vaeaudit.report.forms import card, github, html, junit, markdown
from vaeaudit.report.model import DecisionEntry, PlausibilityEntry, Report, ReproductionEntry
from vaeaudit.report.outcomes import COUNTING, outcomes
from vaeaudit.report.reading import PNG, ReportError, SchemaError, figures_of, read_report
from vaeaudit.report.wording import decision

HERE = Path(__file__).parent / "reports"
REPORT = read_report(HERE)[0]
# A report of some of everything: a threshold of every outcome, and an earlier audit.
CONTENT = json.loads((HERE / "report.json").read_text(encoding="utf-8"))
PIXEL = PNG + bytes.fromhex("0000000d4948445200000001000000010800000000")

BARE = REPORT.model_copy(update={"checks": [], "baseline": None, "verdict": "ungated", "exit_code": 0, "warnings": []})


def without(**update: object) -> Report:
    """The report of no policy, changed."""
    return BARE.model_copy(update=update)


# ---- Exact texts


def body(page: str) -> str:
    return page[page.index("<body>") : page.index("</body>")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("report.md", lambda: markdown.render(REPORT)),
        ("junit.xml", lambda: junit.render(REPORT)),
        ("annotations.txt", lambda: github.annotations(REPORT)),
        ("summary.md", lambda: github.summary(REPORT)),
        ("card.md", lambda: card.render(REPORT)),
        ("body.html", lambda: body(html.render(REPORT, {"latent panel": PIXEL}))),
    ],
)
def test_every_form_says_exactly_this(name: str, text: Callable[[], str]) -> None:
    assert text() == (HERE / name).read_text(encoding="utf-8")


# ---- What is not passed never looks passed


NOT_PASSED = {
    "ungated": (without(), "ungated", "Ungated: measured, with no policy to pass or fail"),
    "doubtful": (
        without(verdict="inconclusive"),
        "inconclusive",
        "failure signs of the attack: 'not converged' (1 of 1)",
    ),
    "without a reason": (
        without(verdict="inconclusive", metrics={}),
        "inconclusive",
        "Inconclusive: the figures below support no verdict",
    ),
    "failed without a reason": (
        without(verdict="failed", metrics={}),
        "failed",
        "Failed: the model does not meet its policy",
    ),
    "error": (without(verdict="error", status="error", error="the model raised X"), "error", "the model raised X"),
    "interrupted": (
        without(verdict="inconclusive", status="interrupted", partial=["interrupted: figures are of a part"]),
        "interrupted",
        "the audit was interrupted; interrupted: figures are of a part",
    ),
}


@pytest.mark.parametrize(("report", "kind", "why"), NOT_PASSED.values(), ids=NOT_PASSED)
def test_a_report_that_no_threshold_decided_is_one_case_that_did_not_pass(report: Report, kind: str, why: str) -> None:
    (outcome,) = outcomes(report)
    assert (outcome.group, outcome.name, outcome.kind, outcome.why) == ("audit", "audit", kind, why)
    (suite,) = ET.fromstring(junit.render(report))
    (case,) = suite.iter("testcase")
    element = {"ungated": "skipped", "failed": "failure"}.get(kind, "error")
    assert [(child.tag, child.get("message")) for child in case] == [(element, why)]
    assert (case.get("classname"), case.get("name")) == ("vaeaudit.audit", "audit")
    level = "notice" if kind == "ungated" else "error"
    first = github.annotations(report).splitlines()[0]
    assert first.startswith(f"::{level} title=vaeaudit%3A the audit ")
    assert first.endswith(f"::{why.replace('%', '%25')}")


def finding(verdict: str, acknowledged: str | None = None) -> PlausibilityEntry:
    found = {"name": "range", "verdict": verdict, "message": "data in [0, 255]", "acknowledged": acknowledged}
    return PlausibilityEntry.model_validate(
        CONTENT["plausibility"] | {"passed": verdict != "fail", "findings": [found]}
    )


@pytest.mark.parametrize(
    ("verdict", "acknowledged", "kind", "why"),
    [
        ("fail", None, "inconclusive", "failed: data in [0, 255]"),
        ("fail", "meant", "inconclusive", "failed: data in [0, 255]"),
        ("unsure", None, "warns", "data in [0, 255]"),
        ("unsure", "meant", "waived", "data in [0, 255] (acknowledged: meant)"),
    ],
)
def test_a_finding_of_doctor_that_did_not_pass_is_a_case_of_its_own(
    verdict: str, acknowledged: str | None, kind: str, why: str
) -> None:
    word = "inconclusive" if verdict == "fail" else "ungated"
    report = without(verdict=word, plausibility=finding(verdict, acknowledged), metrics={})
    told = outcomes(report)[0]
    assert (told.group, told.name, told.kind, told.why) == ("doctor", "range", kind, why)
    suite = next(iter(ET.fromstring(junit.render(report))))
    (case,) = suite.iter("testcase")
    assert [(child.tag, child.get("message")) for child in case] == [("error" if verdict == "fail" else "skipped", why)]


def test_what_decided_stands_at_the_head_of_every_form_and_old_reports_that_do_not_say_are_read() -> None:
    assert REPORT.decided == []  # as an earlier version wrote it
    sign = DecisionEntry(kind="sign", name="attack.latent", why="failure signs of the attack: 'not finite' (1 of 1)")
    same = sign.model_copy(update={"name": "attack.output"})
    other = DecisionEntry(kind="threshold", name="mig.chen", why="not measured: no factors")
    told = f"decided by attack.latent and 1 more: {sign.why}; and 1 more below"
    report = without(verdict="inconclusive", decided=[sign, same, other])
    assert decision(report) == told
    assert decision(BARE) == ""
    properties = {one.get("name"): one.get("value") for one in ET.fromstring(junit.render(report)).iter("property")}
    assert properties["decision"] == told
    assert f"D{told[1:]}." in markdown.render(report).splitlines()
    assert "Decided by attack.latent and 1 more" in github.summary(report)
    assert (
        "latent</code> and 1 more inconclusive: failure signs"
        in body(html.render(report, {})).partition("</section>")[0]
    )  # the banner


def test_a_passed_report_without_thresholds_is_one_case_that_passed() -> None:
    report = without(verdict="passed")
    assert [(one.name, one.kind) for one in outcomes(report)] == [("audit", "passed")]
    assert list(ET.fromstring(junit.render(report)).attrib.items())[1:5] == [
        ("tests", "1"),
        ("failures", "0"),
        ("errors", "0"),
        ("skipped", "0"),
    ]


def test_an_audit_that_did_not_complete_has_its_error_beside_its_thresholds() -> None:
    report = REPORT.model_copy(update={"verdict": "error", "status": "error", "error": "out of memory"})
    assert [one.kind for one in outcomes(report)][-1] == "error"
    assert len(outcomes(report)) == len(outcomes(REPORT)) + 1
    assert github.annotations(report).startswith("::error title=vaeaudit%3A the audit could not complete::out of mem")


def test_what_cannot_be_compared_and_what_was_not_found_again_are_errors() -> None:
    assert REPORT.baseline is not None
    refused = REPORT.baseline.model_copy(update={"refused": ["their seeds differ (0 and 1)"], "differences": []})
    again = ReproductionEntry(report="v1.json", figures=7, differing={"a.b": 0.5}, tolerance=1e-4, agree=False)
    report = without(verdict="inconclusive", baseline=refused, reproduced=again, warnings=[again.summary()])
    assert [(one.group, one.name, one.kind, one.why) for one in outcomes(report)] == [
        ("baseline", "baseline", "inconclusive", "not compared: their seeds differ (0 and 1)"),
        ("audit", "reproduction", "inconclusive", "1 of 7 figures differ from v1.json, a.b most, by 0.5 relative"),
    ]
    assert github.annotations(report).count("1 of 7 figures") == 1
    found = again.model_copy(update={"agree": True, "differing": {}})
    assert outcomes(without(reproduced=found))[0].kind == "passed"
    assert "<li>Reproduced: all 7 figures agree with v1.json to the bit.</li>" in html.render(
        without(reproduced=found), {}
    )


# ---- JUnit


def test_other_software_reads_the_junit_file(tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    file.write_text(junit.render(REPORT), encoding="ascii")
    read = junitparser.JUnitXml.fromfile(str(file))
    assert (read.tests, read.failures, read.errors, read.skipped, read.time) == (8, 2, 2, 2, 1.75)
    assert [(suite.name, suite.tests, suite.time) for suite in read] == [
        ("margin", 2, 0.5), ("attack", 2, 1.25), ("noise", 1, 0.0), ("baseline", 3, 0.0)
    ]  # fmt: skip
    results = {(case.classname, case.name): [type(one) for one in case.result] for suite in read for case in suite}
    assert results[("vaeaudit.margin", "margin.r4.median")] == [junitparser.Failure]
    assert results[("vaeaudit.margin", "margin.r4.certified.median")] == []
    assert results[("vaeaudit.baseline", "attack.latent.target_nll.median")] == [junitparser.Error]


# ---- GitHub


def commands(text: str) -> list[tuple[str, str, str]]:
    """Level, title and message of workflow commands, as the runner reads them."""
    found = []
    for line in re.split(r"\r\n|\r|\n", text.removesuffix("\n")) if text else []:
        command = re.fullmatch(r"::(error|warning|notice) title=([^,:\r\n]*)::(.*)", line, re.DOTALL)
        assert command, line
        level, title, message = command.groups()
        for code, character in (("%2C", ","), ("%3A", ":"), ("%0A", "\n"), ("%0D", "\r"), ("%25", "%")):
            title = title.replace(code, character)
        for code, character in (("%0A", "\n"), ("%0D", "\r"), ("%25", "%")):
            message = message.replace(code, character)
        found.append((level, title, message))
    return found


def test_at_most_ten_annotations_and_the_last_tells_of_the_others() -> None:
    assert len(commands(github.annotations(REPORT))) == 10
    many = REPORT.model_copy(update={"warnings": [f"warning {n}" for n in range(30)]})
    found = commands(github.annotations(many))
    assert len(found) == 10
    assert [level for level, _, _ in found] == ["error"] * 4 + ["warning"] * 6
    assert found[-1] == (
        "warning",
        "vaeaudit: more",
        "26 more of level warning, 3 more of level notice; see the summary or the report",
    )


def test_an_audit_that_passed_annotates_nothing() -> None:
    passed = [check for check in REPORT.checks if check.verdict == "passed"]
    assert github.annotations(without(checks=passed, verdict="passed", partial=[], skipped={})) == ""


def test_thresholds_that_share_a_reason_are_one_annotation() -> None:
    lost = [
        REPORT.checks[0].model_copy(update={"id": f"mig.{n}", "verdict": "inconclusive", "why": "the audit broke"})
        for n in range(12)
    ]
    found = commands(github.annotations(without(checks=lost, verdict="inconclusive")))
    assert found[0] == ("error", "vaeaudit: mig.0 is inconclusive, and so 11 more", "the audit broke")


def test_text_becomes_no_command_and_no_property() -> None:
    text = "100%\r\n::error::x,title=a:b\n##[set-output]%0A"
    found = commands(github.annotations(without(warnings=[text], skipped={text: text}, partial=[])))
    assert [level for level, _, _ in found] == ["warning", "notice", "notice"]
    assert found[0][2] == visible(text) == r"100%\r\n::error::x,title=a:b\n#\x23[set-output]%0A"
    assert found[2][1] == f"vaeaudit: skipped {visible(text)}"


def test_a_summary_that_is_too_long_is_cut_after_a_whole_line() -> None:
    metrics = REPORT.metrics | {f"margin.r{n}.median": REPORT.metrics["margin.r4.median"] for n in range(20_000)}
    whole, cut = github.summary(REPORT), github.summary(REPORT.model_copy(update={"metrics": metrics}))
    assert 990_000 < len(cut.encode()) < 1_048_576
    assert cut[: cut.index("<details>")] == whole[: whole.index("<details>")]
    *rest, closed, _, told = cut.splitlines()
    assert (closed, told) == (
        "</details>",
        "_Cut here, since GitHub shows no more: the whole report lies in report.md and report.json._",
    )
    assert rest[-2].startswith("| margin.r")
    assert rest[-2].count(" | ") == 5


def test_even_thresholds_that_are_too_long_are_cut_and_the_verdict_stays() -> None:
    checks = [REPORT.checks[0].model_copy(update={"id": f"margin.r{n}.median", "why": "w" * 5000}) for n in range(900)]
    cut = github.summary(REPORT.model_copy(update={"checks": [*checks, REPORT.checks[1]], "error": "é<" * 900_000}))
    assert len(cut.encode()) < 1_048_576
    lines = cut.splitlines()
    assert lines[2].startswith("**Failed: the model does not meet its policy.** é&lt;é")
    assert lines[-1].startswith("_Cut here")
    assert any(line.startswith("| margin.r4.median | ≥ 0.5 | failed |") for line in lines)  # the worst come first


# ---- The model card


def test_the_hub_reads_the_card() -> None:
    data = ModelCard(card.render(REPORT) + "\n# A model\n").data
    assert data.model_name == "my vae"
    assert [result.metric_type for result in data.eval_results] == [
        "margin.r4.certified.median", "margin.r4.median", "attack.latent.delta.mean", "attack.latent.delta.median"
    ]  # fmt: skip
    second = data.eval_results[1]
    assert (second.task_type, second.dataset_type, second.dataset_name) == ("feature-extraction", "val", "val")
    assert second.metric_value == 0.375
    assert second.metric_name == "Margin r4 median in input units, 95% interval [0.125, 0.45]"
    assert second.metric_args == {
        "ci": [0.125, 0.45], "level": 0.95, "n": 40, "estimator": "median of the empirical margin"
    }  # fmt: skip


def test_without_thresholds_the_card_states_medians_and_what_has_no_quartiles() -> None:
    results = ModelCard(card.render(BARE)).data.eval_results
    assert [result.metric_type for result in results] == [
        "attack.latent.delta.median", "attack.latent.delta.mean", "margin.r4.certified.median", "margin.r4.median"
    ]  # fmt: skip


def test_a_card_without_figures_or_data_is_a_card() -> None:
    assert ModelCard(card.render(without(metrics={}))).data.to_dict() == {"tags": ["vaeaudit"]}
    (alone, *_) = ModelCard(card.render(without(data=None))).data.eval_results
    assert (alone.dataset_type, alone.dataset_name) == ("none", "none: the weights alone")
    small = MetricEntry.model_validate(CONTENT["metrics"]["margin.r4.median"] | {"value": 1e-7, "ci": [-1e-9, 1e22]})
    (result,) = ModelCard(card.render(without(metrics={"a.b": small}))).data.eval_results
    assert (result.metric_value, result.metric_args["ci"]) == (1e-7, [-1e-9, 1e22])


# ---- The page


def test_the_page_begins_with_the_verdict_and_holds_every_part() -> None:
    page = html.render(REPORT, {"latent panel": PIXEL})
    headings = re.findall(r"<h([123])[^>]*>(.*?)</h\1>", page)
    texts = [(level, re.sub(r"<svg.*</svg>|<[^>]*>", "", text)) for level, text in headings]
    assert texts == [
        ("1", "my vae.pt"), ("2", "Failed"), ("2", "At a glance"), ("2", "Thresholds"),
        ("2", "Compared with an earlier audit"),
        ("2", "Attack: latent"), ("2", "Attack under a cap: worst"), ("2", "Margins at r = 4"), ("2", "Metrics"),
        ("2", "Is it the model it claims to be?"), ("2", "What was audited"), ("2", "Configuration"),
    ]  # fmt: skip
    assert '<html lang="en">' in page
    assert "<title>Audit of my vae.pt: failed</title>" in page
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in page
    assert page.count("<img ") == 1
    assert "The figure <code>margin-r4.png</code> is not beside the report as it was written." in page


def test_long_tables_and_many_remarks_are_closed_at_first() -> None:
    (margins,) = REPORT.margins
    long = margins.model_copy(update={"items": [*margins.items] * 20})
    page = html.render(REPORT.model_copy(update={"margins": [long]}), {})
    assert "<summary>Margins at r = 4 (40 rows)</summary>" in page
    assert REPORT.baseline is not None
    unsure = REPORT.baseline.of("cannot tell") * 6
    told = REPORT.model_copy(update={"baseline": REPORT.baseline.model_copy(update={"differences": unsure})})
    page = html.render(told, {})
    assert "<summary>6 remarks</summary>" in page
    assert "</code> and 5 more: cannot tell: the figure is not" in page


def test_what_is_no_png_is_not_on_the_page() -> None:
    assert "<img" not in html.render(REPORT, {"latent panel": b"GIF89a", "margins at r = 4": PNG})


# ---- Reading


def written(folder: Path, content: object, name: str = "report.json") -> Path:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def changed(place: str, value: object) -> dict[str, Any]:
    """The content of a report with one field changed."""
    content = json.loads(json.dumps(CONTENT))
    *way, last = place.split("/")
    inner = content
    for step in way:
        inner = inner[int(step) if isinstance(inner, list) else step]
    inner[last] = value
    return content


def lacking(field: str) -> dict[str, Any]:
    return {name: value for name, value in CONTENT.items() if name != field}


def test_a_report_is_read_by_its_name_or_its_folder(tmp_path: Path) -> None:
    file = written(tmp_path, CONTENT)
    assert read_report(str(file)) == read_report(tmp_path) == (REPORT, tmp_path)
    other = written(tmp_path, "\ufeff" + json.dumps(CONTENT), "of last year.json")
    assert read_report(other) == (REPORT, tmp_path)


DAMAGES: dict[str, tuple[object, str]] = {
    "empty": (" \n", "{file} is empty; give the report.json of an audit"),
    "cut off": (json.dumps(CONTENT)[:-40], "{file} is cut off at line 1; copy or write it again"),
    "cut off in a name": ('{\n"sche', "{file} is cut off at line 2; copy or write it again"),
    "cut off in a word": ('{"a": nul', "{file} is cut off at line 1; copy or write it again"),
    "not JSON": (
        "# Audit",
        "{file} is no report: it is not JSON at line 1, column 1; give the report.json of an audit",
    ),
    "two documents": (
        "{}\n{}",
        "{file} is no report: it is not JSON at line 2, column 1; give the report.json of an audit",
    ),
    "NaN": (
        json.dumps(changed("timings/attack", float("nan"))),
        "{file} holds NaN, which is not JSON; an audit writes null in its place",
    ),
    "Infinity": ("[-Infinity]", "{file} holds -Infinity, which is not JSON; an audit writes null in its place"),
    "infinite": (
        json.dumps(CONTENT).replace('"m": 0.5', '"m": 1e999', 1),
        "{file} is no report: it holds a number that is too large, or is nested too deeply; give the report.json of an "
        "audit",
    ),
    "too deep": (
        "[" * 100_000 + "]" * 100_000,
        "{file} is no report: it holds a number that is too large, or is nested too deeply; give the report.json of an "
        "audit",
    ),
    "too long": (
        f'{{"n": {"9" * 5000}}}',
        "{file} is no report: it holds a number that is too large, or is nested too deeply; give the report.json of an "
        "audit",
    ),
    "a list": (
        [],
        "{file} is no report: it holds a list, where an object was expected; give the report.json of an audit",
    ),
    "a number": (
        "3",
        "{file} is no report: it holds a number, where an object was expected; give the report.json of an audit",
    ),
    "an object": ({"a": 1}, "{file} is no report: it has no schema_version; give the report.json of an audit"),
    "an odd version": (
        changed("schema_version", "one"),
        '{file} is no report: its schema_version is "one"; give the report.json of an audit',
    ),
    "a lost field": (
        lacking("tool"),
        "{file} is no report: its field tool is missing; give the report.json of an audit",
    ),
    "an unknown field": (
        changed("model/colour", "red"),
        "{file} is no report: its field model.colour is unknown; give the report.json of an audit",
    ),
    "a wrong field": (
        changed("margins/0/items/1/item", "eight"),
        '{file} is no report: its field margins[0].items[1].item is "eight": input should be a valid integer, unable '
        "to parse string as an integer; give the report.json of an audit",
    ),
    "a wrong metric": (
        {**CONTENT, "metrics": {"a.b": {**CONTENT["metrics"]["margin.r4.median"], "value": "x" * 90}}},
        '{file} is no report: its field metrics["a.b"].value is "' + "x" * 58 + "…: input should be a valid number, "
        "unable to parse string as a number; give the report.json of an audit",
    ),
    "an unknown verdict": (
        changed("verdict", "splendid"),
        '{file} is no report: its field verdict is "splendid", where one of passed, failed, ungated, inconclusive, '
        "error was expected; give the report.json of an audit",
    ),
    "an unknown status": (
        changed("status", "done"),
        '{file} is no report: its field status is "done", where one of complete, interrupted, error was expected; '
        "give the report.json of an audit",
    ),
}


@pytest.mark.parametrize(("content", "told"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_no_report_is_told_in_one_sentence(content: object, told: str, tmp_path: Path) -> None:
    file = written(tmp_path, content)
    with pytest.raises(ReportError) as error:
        read_report(file)
    assert str(error.value) == told.replace("{file}", str(file))
    assert isinstance(error.value, InputError)
    assert not isinstance(error.value, SchemaError)


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ReportError, match=r"is no report: byte 7 is not UTF-8; give the report\.json of an audit$"):
        read_report(file)
    file.write_bytes(json.dumps(CONTENT).encode("utf-16"))
    with pytest.raises(ReportError, match=r"is UTF-16, as some shells write what is redirected; save it as UTF-8$"):
        read_report(file)


def test_what_is_not_there_is_told_with_what_is_near(tmp_path: Path) -> None:
    written(tmp_path, CONTENT)
    written(tmp_path, "[]", "items.json")
    (tmp_path / "empty").mkdir()
    cases = {
        tmp_path / "reprot.json": "there is no report at {} (did you mean 'report.json'?); give a report.json or its "
        "folder",
        tmp_path / "nowhere" / "report.json": "there is no report at {}, nor a folder {}; give a report.json or its "
        "folder",
        tmp_path / "empty": "{} is a folder without report.json, which an audit writes last",
        tmp_path / "items.json": "{} is no report: it holds a list, where an object was expected; give the "
        "report.json beside it",
        tmp_path / ("n" * 300): "{} cannot be read (File name too long); check its name and permissions",
    }
    for place, told in cases.items():
        with pytest.raises(ReportError) as error:
            read_report(place)
        assert str(error.value) == told.format(place, place.parent)
    written(tmp_path / "empty", CONTENT)
    (tmp_path / "report.json").unlink()
    with pytest.raises(ReportError, match=re.escape(f"writes last; there is one in {tmp_path / 'empty'}")):
        read_report(tmp_path)


def test_another_major_version_is_told_apart(tmp_path: Path) -> None:
    for version in ("2.0", "0.9"):
        with pytest.raises(SchemaError) as error:
            read_report(written(tmp_path, {"schema_version": version}))
        assert str(error.value) == (
            f"{tmp_path / 'report.json'} has schema version {version}, and this version of vaeaudit reads 1.x"
        )


def test_a_newer_minor_version_is_read_without_what_is_new_in_it(tmp_path: Path) -> None:
    newer = changed("schema_version", "1.999")
    newer["colour"] = {"deep": [1]}
    newer["model"]["colour"] = "red"
    newer["metrics"]["margin.r4.median"]["colour"] = "red"
    newer["margins"][0]["items"][1]["colour"] = "red"
    report, _ = read_report(written(tmp_path, newer))
    assert report == REPORT.model_copy(update={"schema_version": "1.999"})
    newer["checks"][0]["verdict"] = "splendid"
    with pytest.raises(ReportError) as error:
        read_report(written(tmp_path, newer))
    assert str(error.value).startswith(
        f"{tmp_path / 'report.json'} was written by a newer version of vaeaudit, with schema version 1.999 where this "
        "one reads up to 1."
    )
    assert 'its field checks[0].verdict is "splendid": input should be' in str(error.value)
    assert str(error.value).endswith("; update vaeaudit")


@given(
    st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5), st.lists, max_leaves=5)
)
@settings(max_examples=10, deadline=None)
def test_any_value_in_any_field_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    folder = tmp_path_factory.mktemp("odd")
    for field in CONTENT:
        try:
            report, _ = read_report(written(folder, {**CONTENT, field: value}))
        except ReportError as error:
            assert "\n" not in str(error)
        else:
            junit.render(report)
            github.summary(report)


def test_figures_beside_a_report_are_read_and_nothing_else(tmp_path: Path) -> None:
    folder, outside = tmp_path / "report", tmp_path / "outside.png"
    folder.mkdir()
    (folder / "inner.png").mkdir()
    outside.write_bytes(PIXEL)
    (folder / "link.png").symlink_to(outside)
    for name, content in {"a.png": PIXEL, "b.PNG": PIXEL, "c.png": b"no", "d.txt": PIXEL, "e.png": PIXEL}.items():
        (folder / name).write_bytes(content)
    names = ["a.png", "b.PNG", "c.png", "d.txt", "e.png", "gone.png", "inner.png", "link.png", "../outside.png"]
    names += [str(outside), "..\\outside.png", "a\0.png", "n" * 300 + ".png", "", ".png"]
    report = REPORT.model_copy(
        update={
            "files": {name: name for name in names},
            "files_sha256": {"e.png": "0" * 64, "a.png": sha256(PIXEL).hexdigest()},
        }
    )
    assert set(figures_of(report, folder)) == {"a.png", "b.PNG"}
    assert figures_of(report, tmp_path / "nowhere") == {}


def test_counting_outcomes_are_those_that_end_an_audit_badly() -> None:
    assert {one.kind for one in outcomes(REPORT)} == {"passed", "failed", "inconclusive", "warns", "waived"}
    assert {"error", "interrupted", "failed", "inconclusive"} == COUNTING
