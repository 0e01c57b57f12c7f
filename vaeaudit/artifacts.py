"""What lies beside report.json: values of every item, adversarial inputs, figures."""

import json

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from vaeaudit.audit import Audit
from vaeaudit.checks.attack import AttackResult
from vaeaudit.optim.lbfgsb import Status
from vaeaudit.report.figures import PANEL_ROWS, attack_panel, distortion_curves, is_image

Files = dict[str, tuple[str, bytes]]  # purpose -> file name, content


def artifacts(audit: Audit) -> Files:
    """The files of an audit that go beside its report; empty where no check ran."""
    files: Files = {}
    if audit.attacks:
        files["items"] = ("items.json", _items(audit))
        files["adversarial inputs"] = ("adversarial.safetensors", _adversarial(audit))
    for entry, result in zip(audit.report.attacks, audit.attacks, strict=True):
        labels = [f"{pair.source} → {pair.target}\nλ = {pair.lam:.3g}\n‖d‖ = {pair.norm:.3g}" for pair in entry.pairs]
        if is_image(tuple(result.source.shape[1:])):
            columns = [
                result.source,
                result.source_reconstruction,
                result.at_chosen(result.sweep.adversarial),
                result.at_chosen(result.sweep.distortion),
                result.at_chosen(result.reconstruction),
                result.target,
            ]
            panel = attack_panel([_array(column[:PANEL_ROWS]) for column in columns], labels[:PANEL_ROWS], entry.box)
            files[f"{result.mode} panel"] = (f"attack-{result.mode}-panel.png", panel)
        curve = distortion_curves(
            _array(result.sweep.norm),
            _array(result.target_error),
            result.sweep.chosen.tolist(),
            [f"{pair.source} → {pair.target}" for pair in entry.pairs],
            _array(result.source_error),
            _array(result.target_floor),
            _array(result.gap),
        )
        files[f"{result.mode} curve"] = (f"attack-{result.mode}-curve.png", curve)
    return files


def _items(audit: Audit) -> bytes:
    """One list of rows for each mode: every pair and lambda."""
    rows = {f"attack.{result.mode}": _rows(audit, result) for result in audit.attacks}
    return (json.dumps(rows, indent=1, allow_nan=False) + "\n").encode()


def _rows(audit: Audit, result: AttackResult) -> list[dict[str, object]]:
    found, chosen = result.sweep, result.sweep.chosen.tolist()
    columns: dict[str, list[list[float]]] = {
        "norm": found.norm.tolist(),
        "data_term": found.data_term.tolist(),
        "penalty": found.penalty_term.tolist(),
        "objective": found.objective.tolist(),
        **({} if result.fresh_data_term is None else {"fresh_data_term": result.fresh_data_term.tolist()}),
        "target_nll": result.target_nll.tolist(),
        "target_error": result.target_error.tolist(),
        "own_error": result.own_error.tolist(),
        "evaluations": found.evaluations.tolist(),
    }
    return [
        {
            "pair": p,
            "source": source,
            "target": target,
            "lam": lam,
            "chosen": k == chosen[p],
            **{name: _finite(values[p][k]) for name, values in columns.items()},
            "status": Status(int(found.status[p, k])).message,
        }
        for p, (source, target) in enumerate(audit.pairs)
        for k, lam in enumerate(found.lambdas.tolist())
    ]


def _adversarial(audit: Audit) -> bytes:
    """Tensors "<mode>.adversarial" and "<mode>.distortion", (pairs, lambdas, *shape); "audit" in the metadata."""
    tensors: dict[str, Tensor] = {}
    for result in audit.attacks:
        tensors[f"{result.mode}.adversarial"] = result.sweep.adversarial.contiguous().cpu()
        tensors[f"{result.mode}.distortion"] = result.sweep.distortion.contiguous().cpu()
    about = {
        "pairs": list(audit.pairs),
        "lambdas": audit.attacks[0].sweep.lambdas.tolist(),
        "seed": audit.report.environment.seed,
        "model_sha256": audit.report.model.file.sha256,
    }
    # One entry, since safetensors writes several in random order, and the same audit gives the same bytes.
    return save(tensors, {"audit": json.dumps(about)})


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _array(values: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.detach().double().cpu().numpy()
    return array
