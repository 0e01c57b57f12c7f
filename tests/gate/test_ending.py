"""Everything that can become of an audit, and the one verdict and exit code that each comes to."""

from collections.abc import Iterator
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

import pytest

from vaeaudit.errors import ConfigError, IncomparableError, NonFiniteError, TrustError, VaeauditError
from vaeaudit.gate.ending import Ending, concluded, ending, exit_code
from vaeaudit.report.reading import read_report

PASSED, FAILED, OPEN, UNGATED = ("passed", 0), ("failed", 1), ("inconclusive", 5), ("ungated", 0)
# The outcomes that count -> the ending without doubts, with doubts of single figures only, and with a failure sign or
# of a model that is not plausible.
TABLE = {
    (): (UNGATED, OPEN, OPEN),
    ("passed",): (PASSED, PASSED, OPEN),
    ("inconclusive",): (OPEN, OPEN, OPEN),
    ("failed",): (FAILED, FAILED, FAILED),
    ("passed", "inconclusive"): (OPEN, OPEN, OPEN),
    ("passed", "failed"): (FAILED, FAILED, FAILED),
    ("inconclusive", "failed"): (FAILED, FAILED, FAILED),
    ("passed", "inconclusive", "failed"): (FAILED, FAILED, FAILED),
}
FAULTS = {
    ConfigError("x"): 2, TrustError("x"): 4, NonFiniteError("x"): 3, IncomparableError("x"): 5, VaeauditError("x"): 3,
    RuntimeError("x"): 3, SystemExit(1): 3,
}  # fmt: skip


def combined() -> Iterator[tuple[Any, ...]]:
    words = ("passed", "inconclusive", "failed")
    outcomes = chain.from_iterable(combinations(words, n) for n in range(len(words) + 1))
    return product(outcomes, (None, *FAULTS), *[(False, True)] * 4)


def test_every_combination_has_the_one_ending_that_the_table_gives() -> None:
    seen = set()
    for outcomes, fault, interrupted, plausible, signs, doubts in combined():
        if fault is not None:  # whatever else was found
            expected = Ending("error", "error", FAULTS[fault])
        elif interrupted:
            expected = Ending("interrupted", "inconclusive", 130)
        else:
            expected = Ending("complete", *TABLE[outcomes][2 if signs or not plausible else 1 if doubts else 0])
        facts = {"interrupted": interrupted, "plausible": plausible, "signs": signs, "doubts": doubts}
        found = ending(outcomes, fault=fault, **facts)
        assert found == expected, (outcomes, fault, facts)
        assert ending([*reversed(outcomes), *outcomes], fault=fault, **facts) == expected
        seen.add((found.status, found.verdict, found.exit_code))
    assert len(seen) == 4 + 1 + len(set(FAULTS.values()))
    assert {code for status, verdict, code in seen if verdict != "failed"}.isdisjoint({1})


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 130])
def test_exit_zero_turns_a_failure_and_nothing_else_into_0(code: int) -> None:
    assert exit_code(code, False) == code
    assert exit_code(code, True) == (0 if code == 1 else code)


def test_a_comparison_that_does_not_count_leaves_the_ground_of_the_verdict_told() -> None:
    report, _ = read_report(str(Path(__file__).parents[1] / "report" / "reports"))
    assert report.baseline is not None
    uncounted = report.baseline.model_copy(update={"differences": [], "refused": []})
    for baseline in (None, uncounted):
        audited = report.model_copy(update={"checks": [], "plausibility": None, "baseline": baseline})
        found = concluded(audited, {}, {"weights.decoder.l2": "it is not known which tensors are of the decoder"})
        assert (found.verdict, found.exit_code) == ("inconclusive", 5)
        assert [one.name for one in found.decided] == ["weights.decoder.l2"]
