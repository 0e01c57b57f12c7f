"""What lies beside report.json: values of every item, adversarial inputs, figures."""

import json

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from vaeaudit.audit import Audit
from vaeaudit.checks.attack import AttackResult
from vaeaudit.checks.capped import CappedResult
from vaeaudit.checks.margin import MarginAt
from vaeaudit.optim.lbfgsb import Status
from vaeaudit.report.figures import (
    PANEL_ROWS,
    attack_panel,
    damage_curves,
    distortion_curves,
    fall_curves,
    is_image,
    margin_panel,
)
from vaeaudit.report.model import CappedEntry

Files = dict[str, tuple[str, bytes]]  # purpose -> file name, content


def artifacts(audit: Audit) -> Files:
    """The files of an audit that go beside its report; empty where no check ran."""
    files: Files = {}
    if audit.attacks or audit.capped or audit.margins:
        files["items"] = ("items.json", _items(audit))
        files["adversarial inputs"] = ("adversarial.safetensors", _adversarial(audit))
    for entry, result in zip(audit.report.attacks, audit.attacks, strict=True):
        labels = [f"{pair.source} → {pair.target}\nλ = {pair.lam:.3g}\n‖d‖ = {pair.norm:.3g}" for pair in entry.pairs]
        if is_image(tuple(result.source.shape[1:])):
            columns = {
                "input": result.source,
                "reconstruction": result.source_reconstruction,
                "adversarial": result.at_chosen(result.sweep.adversarial),
                "distortion": result.at_chosen(result.sweep.distortion),
                "its reconstruction": result.at_chosen(result.reconstruction),
                "target": result.target,
            }
            arrays = {name: _array(column[:PANEL_ROWS]) for name, column in columns.items()}
            panel = attack_panel(arrays, labels[:PANEL_ROWS], entry.box)
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
    for capped_entry, capped in zip(audit.report.capped, audit.capped, strict=True):
        if is_image(tuple(capped.source.shape[1:])):
            files[f"{capped.mode} panel"] = (f"attack-{capped.mode}-panel.png", _capped_panel(capped_entry, capped))
        curve = damage_curves(
            capped.found.caps.tolist(),
            _array(capped.damage),
            _array(capped.zero_damage),
            [str(item.item) for item in capped_entry.items],
        )
        files[f"{capped.mode} curve"] = (f"attack-{capped.mode}-curve.png", curve)
    for margins in audit.margins:
        for at in margins.result.at:
            files[f"margins at r = {at.r:.6g}"] = (f"margin-r{at.r:.6g}.png", _margin_panel(at))
            if at.fall is not None and len(at.fall.place) and at.empirical is not None:
                figure = fall_curves(
                    _array(at.fall.lengths),
                    _array(at.fall.p),
                    _array(at.empirical.margin[at.fall.place]),
                    [str(margins.items[place]) for place in at.fall.place.tolist()],
                    margins.result.m,
                )
                files[f"falls at r = {at.r:.6g}"] = (f"margin-r{at.r:.6g}-falls.png", figure)
    return files


def _margin_panel(at: MarginAt) -> bytes:
    margins = {"whitened estimate": _array(at.estimates.whitened), "spectral estimate": _array(at.estimates.spectral)}
    if at.certified is not None:
        margins = {"certified": _array(at.certified.radius), **margins}
    nothing = np.full(len(at.estimates.whitened), np.nan)
    if at.empirical is None:
        return margin_panel(margins, _array(at.estimates.whitened), nothing, np.isfinite(nothing), nothing)
    margins["empirical"] = _array(at.empirical.margin)
    censored, largest = at.empirical.censored.cpu().numpy(), _array(at.empirical.largest)
    return margin_panel(margins, _array(at.estimates.whitened), margins["empirical"], censored, largest)


def _capped_panel(entry: CappedEntry, result: CappedResult) -> bytes:
    """Items under their largest cap; what is perturbed is drawn where it is an image."""
    largest = int(result.found.caps.argmax())
    columns = {"input": result.source, "reconstruction": result.source_reconstruction}
    if result.mode != "latent-side":
        columns["adversarial"] = result.found.adversarial[:, largest]
        columns["distortion"] = result.found.distortion[:, largest]
    columns["its reconstruction"] = result.reconstruction[:, largest]
    labels = [f"{item.item}\n‖d‖ = {item.caps[largest].norm:.3g}\n{item.caps[largest].by}" for item in entry.items]
    arrays = {name: _array(column[:PANEL_ROWS]) for name, column in columns.items()}
    return attack_panel(arrays, labels[:PANEL_ROWS], entry.box)


def _capped_rows(audit: Audit, result: CappedResult) -> list[dict[str, object]]:
    found = result.found
    return [
        {
            "item": item,
            "cap": cap,
            "norm": _finite(float(found.norm_of[p, k])),
            "data_term": _finite(float(found.value[p, k])),
            "damage": _finite(float(result.damage[p, k])),
            "target_nll": _finite(float(result.nll[p, k])),
            "by": result.members[int(result.member[p, k])],
            "members": {name: _finite(float(result.member_damage[m, p, k])) for m, name in enumerate(result.members)},
            "evaluations": int(found.evaluations[p, k]),
            "status": Status(int(found.status[p, k])).message,
        }
        for p, item in enumerate(audit.pairs.sources)
        for k, cap in enumerate(found.caps.tolist())
    ]


def _items(audit: Audit) -> bytes:
    """One list of rows for each mode: every pair and lambda."""
    rows = {f"attack.{result.mode}": _rows(audit, result) for result in audit.attacks}
    rows |= {f"attack.{capped.mode}": _capped_rows(audit, capped) for capped in audit.capped}
    rows |= {
        f"margin.r{entry.r:.6g}": [item.model_dump(mode="json") for item in entry.items]
        for entry in audit.report.margins
    }
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
    """Tensors "<mode>.adversarial" and "<mode>.distortion", (pairs, lambdas or caps, *shape); metadata "audit"."""
    tensors: dict[str, Tensor] = {}
    for result in audit.attacks:
        tensors[f"{result.mode}.adversarial"] = result.sweep.adversarial.contiguous().cpu()
        tensors[f"{result.mode}.distortion"] = result.sweep.distortion.contiguous().cpu()
    for capped in audit.capped:
        tensors[f"{capped.mode}.adversarial"] = capped.found.adversarial.contiguous().cpu()
        tensors[f"{capped.mode}.distortion"] = capped.found.distortion.contiguous().cpu()
    for margins in audit.margins:
        for at in margins.result.at:
            if at.empirical is not None:
                tensors[f"margin.r{at.r:.6g}.distortion"] = at.empirical.distortion.contiguous().cpu()
    about = {
        "pairs": list(audit.pairs),
        "lambdas": audit.attacks[0].sweep.lambdas.tolist() if audit.attacks else [],
        "caps": audit.capped[0].found.caps.tolist() if audit.capped else [],
        "items": list(audit.margins[0].items) if audit.margins else [],
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
