"""What the figures of docs/findings.md are taken from beside metrics: pairs of attacks, and correlations over items."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vaeaudit.report.results import Figure

STUDY = Path(__file__).parents[2] / "examples" / "study"


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(STUDY)
    import findings

    return findings


def row(pair: int, lam: float, norm: float, data: float, nll: float, chosen: bool = False) -> dict[str, float]:
    errors = {"target_nll": nll, "target_error": nll / 10}
    return {"pair": pair, "lam": lam, "norm": norm, "data_term": data, "objective": data + lam * norm, **errors} | {
        "chosen": chosen
    }


def test_an_attack_is_held_against_a_perfect_one_on_the_same_pair(findings: Any, tmp_path: Path) -> None:
    rows = [row(1, 8, 0, 40, 90), row(1, 1, 2, 10, 60, True), row(1, 0.5, 4, 0, 50)]
    rows += [row(0, 8, 1, 40, 90), row(0, 0.5, 4, 2, 50, True)]
    (tmp_path / "items.json").write_text(json.dumps({"attack.latent": rows}), encoding="utf-8")
    whole = Figure({"beta": "1"}, "0", "attack.latent.delta.mean", None, 1.0, None, None, 2, None, "v", "doubted")
    found = {(one.metric.split(".", 2)[2], one.item): one.value for one in findings.pairs(tmp_path, whole)}
    assert found["kl_at_0.mean", 1] == 40
    assert np.isnan(found["kl_at_0.mean", 0])  # d = 0 was not reached
    assert found["share.mean", 1] == pytest.approx((40 + 12 + 2) / 3 / 40)
    assert (found["perfect_nll.median", 1], found["above_nll.median", 1]) == (50, 10)
    assert (found["perfect_error.median", None], found["above_error.median", None]) == (5, 0)


def test_a_correlation_has_an_interval_over_trainings_and_items_within_its_bounds(findings: Any) -> None:
    x = np.arange(24.0).reshape(2, 12)
    assert findings.correlated(x, x**3) == "1 [1, 1] over 2 x 12"
    noisy = np.array([[0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11.0], [1, 0, 2, 4, 3, 5, 7, 6, 8, 9, 11, 10.0]])
    told = findings.correlated(x, noisy)
    from scipy.stats import spearmanr

    mean = np.mean([spearmanr(a, b).statistic for a, b in zip(x, noisy, strict=True)])
    assert told.startswith(f"{mean:.3g} [0.")
    assert told.endswith(", 1] over 2 x 12")
