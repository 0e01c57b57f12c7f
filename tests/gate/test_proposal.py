"""What `vaeaudit init` proposes of a first audit."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from vaeaudit.checks.registry import OURS
from vaeaudit.gate import proposal
from vaeaudit.report.reading import read_report
from vaeaudit.settings.sections import Settings


def test_thresholds_are_proposed_for_the_metrics_that_the_rows_of_checks_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report, _ = read_report(str(Path(__file__).parents[1] / "report" / "reports"))
    for gated, named in (((), []), ((r"margin\.r4\..*mean",), ["margin.r4.certified.mean"])):
        rows = {check.name: replace(check, gated=gated) for check in OURS}
        monkeypatch.setattr(proposal, "checks", lambda rows=rows: rows)
        text = proposal.propose(report, Settings.model_validate({"model": {"path": "vae.pt"}}), tmp_path)
        assert re.findall(r'^\[checks\."(.*)"\]$', text, re.MULTILINE) == named


def test_thresholds_that_a_check_brings_itself_are_told_with_what_was_measured(tmp_path: Path) -> None:
    report, _ = read_report(str(Path(__file__).parents[1] / "report" / "reports"))
    plain = Settings.model_validate({"model": {"path": "vae.pt"}})
    assert '# variants = ["dtype=bfloat16"]' in proposal.propose(report, plain, tmp_path)
    name = "equivalence.float16.end.largest_difference.worst"
    entry = next(iter(report.metrics.values())).model_copy(update={"value": 0.25})
    report = report.model_copy(update={"metrics": report.metrics | {name: entry}})
    asked = Settings.model_validate(
        {"model": {"path": "vae.pt"}, "equivalence": {"variants": ["dtype=float16"], "tolerance": 0.5}}
    )
    text = proposal.propose(report, asked, tmp_path)
    assert "# [equivalence] brings thresholds of its own" in text
    assert f'# [checks."{name}"]  # max = 0.5; measured 0.25, not held against it' in text
