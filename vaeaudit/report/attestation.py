"""An unsigned in-toto statement of what an audit decided, beside its report, for whoever signs it.

The statement is of version 1, its predicate of type test-result v0.1: subjects are the model's files by SHA-256, tests
the thresholds and the comparison. What is signed can then travel with the model, and be verified against it.
"""

from pathlib import PurePath

from pydantic import JsonValue

from vaeaudit.layout.entry import FileHash
from vaeaudit.report.model import Report

FILE = "attestation.json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"


def statement(report: Report, report_sha256: str) -> dict[str, JsonValue] | None:
    """The statement, of a report.json with that hash; None where nothing was to be decided.

    A predicate knows PASSED, WARNED and FAILED alone: an audit without ground for a verdict, or that did not complete,
    is FAILED, and its verdict stands beside the report's hash.
    """
    tests: dict[str, list[str]] = {"passed": [], "warned": [], "failed": []}
    for check in report.checks:
        bad = "failed" if check.counts else "warned"
        tests["passed" if check.verdict == "passed" else bad].append(check.id)
    compared = report.baseline
    if compared is not None and (compared.tested or compared.refused):
        tests["passed" if compared.verdict == "passed" else "failed"].append("comparison with the baseline")
    if not any(tests.values()):
        return None
    result = ("WARNED" if tests["warned"] else "PASSED") if report.verdict == "passed" else "FAILED"
    configuration: list[JsonValue] = [
        {
            "name": "report.json",
            "digest": {"sha256": report_sha256},
            "annotations": {"verdict": report.verdict, "tool": report.tool, "created": report.created},
        },
        {"name": "configuration", "digest": {"sha256": report.configuration_sha256}},
    ]
    if report.data is not None:
        configuration.append({"name": _name(report.data.source), "digest": {"sha256": report.data.sha256}})
    return {
        "_type": STATEMENT,
        "subject": [_subject(file) for file in report.model.files or [report.model.file]],
        "predicateType": PREDICATE,
        "predicate": {
            "result": result,
            "configuration": configuration,
            **{f"{kind}Tests": list[JsonValue](names) for kind, names in tests.items()},
        },
    }


def _subject(file: FileHash) -> JsonValue:
    return {"name": _name(file.path), "digest": {"sha256": file.sha256}}


def _name(path: str) -> str:
    return PurePath(path).name or path
