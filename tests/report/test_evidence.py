"""What of an audit travels beyond its folder: a statement to sign, a bill of materials, a pull request's comment."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from vaeaudit.report.forms import cyclonedx, github
from vaeaudit.report.model import Report
from vaeaudit.report.reading import read_report

STORED = Path(__file__).parent / "reports" / "report.json"
EXAMPLES = Path(__file__).parents[2] / "examples"
STORED_REPORT = read_report(STORED)[0]
HASHED = re.sub(r'"sha256":"\w+"', f'"sha256":"{"ab" * 32}"', STORED_REPORT.model_dump_json())  # theirs are made up
REPORT = Report.model_validate_json(HASHED)
Command = Callable[..., Any]


def altered(**update: Any) -> Report:
    return REPORT.model_copy(update=update)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_statement_names_model_and_report_by_their_hashes_and_every_test_by_its_outcome(command: Command) -> None:
    model = EXAMPLES / "shapes-beta1.safetensors"
    gates = {"psnr.median": (20, "error"), "ssim.median": (0.999, "warn"), "psnr.worst": (10, "error")}
    lines = [
        f'[checks."reconstruction.{name}"]\nmin = {least}\nseverity = "{severity}"\n'
        for name, (least, severity) in gates.items()
    ]
    Path("vaeaudit.toml").write_text("[reconstruction]\nitems = 30\ndraws = 0\n" + "".join(lines))
    audit = ("audit", model, "--data", EXAMPLES / "shapes.npz")
    assert command(*audit).code == 0
    folder = Path("vaeaudit-report")
    found = json.loads((folder / "attestation.json").read_text())
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert found["subject"] == [{"name": model.name, "digest": {"sha256": sha256(model)}}]
    predicate = found["predicate"]
    assert predicate["result"] == "WARNED"
    assert predicate["passedTests"] == ["reconstruction.psnr.median", "reconstruction.psnr.worst"]
    assert (predicate["warnedTests"], predicate["failedTests"]) == (["reconstruction.ssim.median"], [])
    report, configuration, data = predicate["configuration"]
    assert report["digest"]["sha256"] == sha256(folder / "report.json")
    assert report["annotations"]["verdict"] == "passed"
    assert configuration["digest"]["sha256"] == json.loads((folder / "report.json").read_text())["configuration_sha256"]
    assert data == {"name": "shapes.npz", "digest": {"sha256": sha256(EXAMPLES / "shapes.npz")}}
    Path("vaeaudit.toml").write_text('[reconstruction]\nitems = 30\n[checks."reconstruction.psnr.median"]\nmin = 90\n')
    assert command(*audit).code == 1
    assert json.loads((folder / "attestation.json").read_text())["predicate"]["result"] == "FAILED"
    assert command("reconstruction", model, "--data", EXAMPLES / "shapes.npz", "--items", 30).code == 0
    assert not (folder / "attestation.json").exists()  # nothing was decided, and no earlier statement stays


@pytest.mark.parametrize("report", [REPORT, altered(checks=[], data=None), altered(metrics={}, baseline=None)])
def test_a_bill_of_materials_keeps_to_the_published_schema(report: Report) -> None:
    text = cyclonedx.render(report)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    component = json.loads(text)["metadata"]["component"]
    assert component["hashes"] == [{"alg": "SHA-256", "content": report.model.file.sha256}]
    told = {one["type"]: one for one in component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    for name, metric in report.metrics.items() if report.checks else ():
        if any(check.id == name for check in report.checks) and metric.value is not None:
            one = told[f"{name} in {metric.unit}"]
            assert float(one["value"]) == metric.value
            if metric.ci:
                assert [float(one["confidenceInterval"][end]) for end in ("lowerBound", "upperBound")] == [*metric.ci]


def test_a_comment_tells_what_changed_and_stays_below_the_limit() -> None:
    assert REPORT.baseline is not None
    text = github.comment(REPORT)
    assert text.startswith(f"{github.MARK}\n")
    for one in REPORT.baseline.of("regressed", "improved", "cannot tell"):
        assert re.search(rf"^\| {re.escape(one.metric)} \|.*\| {one.outcome} \|$", text, re.MULTILINE)
    for check in REPORT.checks:
        assert (f"| {check.id} |" in text.split("### Thresholds")[1].split("###")[0]) == (check.verdict != "passed")
    assert "](http" not in text
    pictures = altered(files={"worst reconstructions": "worst one.png", "worst of others": "../x.png"})
    linked = github.comment(pictures, "https://example.org/audit/")
    assert "![worst reconstructions](https://example.org/audit/worst%20one.png)" in linked
    assert "x.png" not in linked
    long = altered(
        warnings=[f"warning {number} of many, which says something at some length" for number in range(3000)]
    )
    assert len(github.comment(long)) < 65_536
    assert "Cut here" in github.comment(long)


def test_the_command_gives_both_forms_and_refuses_what_is_no_address(command: Command) -> None:
    assert command("report", STORED, "--format", "comment").out.startswith(github.MARK)
    assert json.loads(command("report", STORED, "--format", "cyclonedx").out)["bomFormat"] == "CycloneDX"
    refused = command("report", STORED, "--format", "comment", "--link", "javascript:alert(1)")
    assert refused.said(2, "--link takes an address such as https://example.org/audit, but 'javascript:alert(1)' came")
