"""What a question about a model is answered with."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """Of one finding. FAIL leaves the audit without a verdict, UNSURE warns."""

    PASS = "pass"
    UNSURE = "unsure"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One question, its answer in words, and what to look at where the answer is bad."""

    name: str
    verdict: Verdict
    message: str
