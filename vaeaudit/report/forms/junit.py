"""JUnit XML, which test dashboards read: a suite a check, a case a threshold.

Failures are findings on the model; errors mean that there is no verdict. A report that no policy decided has a skipped
case, since an empty suite, or none, would read as a success.
"""

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from vaeaudit.layout.inert import visible
from vaeaudit.report.model import Report
from vaeaudit.report.outcomes import Kind, Outcome, outcomes
from vaeaudit.report.wording import decision

_ELEMENTS: dict[Kind, str] = {
    "failed": "failure",
    "inconclusive": "error",
    "interrupted": "error",
    "error": "error",
    "waived": "skipped",
    "warns": "skipped",
    "ungated": "skipped",
}


def render(report: Report) -> str:
    """The outcomes of the report as JUnit XML; in ASCII with character references, which every reader takes."""
    suites: dict[str, list[Outcome]] = {}
    for outcome in outcomes(report):
        suites.setdefault(outcome.group, []).append(outcome)
    root = ET.Element("testsuites", {"name": "vaeaudit"} | _counts([one for suite in suites.values() for one in suite]))
    root.set("time", _seconds(sum(report.timings.values())))
    for name, found in suites.items():
        root.append(_suite(name, found, report))
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="us-ascii").decode("ascii")}\n'


def _suite(name: str, found: Sequence[Outcome], report: Report) -> ET.Element:
    suite = ET.Element("testsuite", {"name": visible(name)} | _counts(found))
    suite.set("time", _seconds(report.timings.get(name, 0.0)))
    suite.set("timestamp", visible(report.created))
    properties = ET.SubElement(suite, "properties")
    facts = {
        "model": report.model.file.path,
        "model.sha256": report.model.file.sha256,
        "data.sha256": "none" if report.data is None else report.data.sha256,
        "verdict": report.verdict,
    }
    if told := decision(report):
        facts["decision"] = told
    for fact, value in facts.items():
        ET.SubElement(properties, "property", name=fact, value=visible(value))
    suite.extend(map(_case, found))
    return suite


def _case(outcome: Outcome) -> ET.Element:
    case = ET.Element("testcase", classname=visible(f"vaeaudit.{outcome.group}"), name=visible(outcome.name))
    why = visible(outcome.why)
    if outcome.kind == "passed":
        ET.SubElement(case, "system-out").text = why
        return case
    element = ET.SubElement(case, _ELEMENTS[outcome.kind], message=why)
    if element.tag != "skipped":
        element.set("type", outcome.kind)
        element.text = visible(f"{outcome.name} must be {outcome.asked}: {outcome.why}") if outcome.asked else why
    return case


def _counts(found: Sequence[Outcome]) -> dict[str, str]:
    elements = [_ELEMENTS.get(one.kind) for one in found]
    counted = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    return {"tests": str(len(found))} | {name: str(elements.count(tag)) for name, tag in counted.items()}


def _seconds(value: float) -> str:
    return f"{value:.3f}"
