"""Writing attacks down: entries of the report, what its reader must be warned of, values of every item, figures."""

from collections.abc import Container, Mapping
from functools import partial

from torch import Tensor

from vaeaudit.attacks.left import FALLS, MOST, still_falling
from vaeaudit.checks import sign_record
from vaeaudit.checks.attack.capped import CappedResult
from vaeaudit.checks.attack.entry import (
    CURVE,
    PANEL,
    AttackEntry,
    CapEntry,
    CappedEntry,
    CappedItemEntry,
    ClassTableEntry,
    PairEntry,
)
from vaeaudit.checks.attack.figures import damage_curves, distortion_curves
from vaeaudit.checks.attack.measure import AttackResult
from vaeaudit.checks.attack.pairs import Pairs
from vaeaudit.checks.attack.success import ClassTable
from vaeaudit.checks.record import Drawing, Row, array, number
from vaeaudit.layout.figures import PANEL_ROWS, as_images, item_panel
from vaeaudit.model.ranges import Range
from vaeaudit.optim.lbfgsb import Status
from vaeaudit.subject.opened import Subject


def sign_warnings(result: AttackResult | CappedResult, pairs: Pairs, acknowledged: Mapping[str, str]) -> list[str]:
    """The failure signs of an attack, and what the first of each kind is."""
    what = "pairs" if isinstance(result, AttackResult) else "items"
    sources = [f"source {source}" for source in pairs.sources]
    return sign_record.warnings(result.signs, f"{result.mode} {what}", sources, acknowledged)


def signs(result: AttackResult | CappedResult, acknowledged: Container[str]) -> dict[str, str]:
    """Why the metrics of an attack support no verdict, where a pair or item shows a failure sign."""
    counted = sign_record.counted(result.signs, acknowledged)
    return {f"attack.{result.mode}": f"failure signs of the attack: {counted}"} if counted else {}


def limit_warnings(result: AttackResult) -> list[str]:
    """That problems of a sweep ended early, and where a longer search would end much lower."""
    status = result.sweep.status
    limited = int(((status == int(Status.LIMIT)) | (status == int(Status.STALLED))).sum())
    if not limited:
        return []
    told = [
        f"{limited} of {status.numel()} {result.mode} problems stopped at the evaluation limit or got stuck; "
        "their objectives are upper bounds that a higher --max-evaluations may lower"
    ]
    falls = still_falling(result.sweep) > FALLS
    if falls.any():
        some = result.sweep.lambdas[falls.any(0)]
        told.append(
            f"a longer search (--max-evaluations) would lower {int(falls.sum())} of {falls.numel()} {result.mode} "
            f"objectives by more than a tenth, at lambda {float(some.min()):.2g} to {float(some.max()):.2g}: they, or "
            "those of a larger lambda from which they go on, still fell when their search was cut off"
        )
    return told


def attack_entry(subject: Subject, result: AttackResult, pairs: Pairs, classes: ClassTableEntry | None) -> AttackEntry:
    """The report's form of an attack over all lambda; ``classes`` are those it led to, where they are known."""
    found, objective, signs = result.sweep, result.objective, result.signs
    chosen = found.chosen.tolist()
    return AttackEntry(
        mode=result.mode,
        similarity=objective.similarity if "similarity" in objective.row.takes else None,
        on=objective.on,
        layers=list(objective.layers) if objective.layers and "layers" in objective.row.takes else None,
        unit=result.unit,
        penalty=found.penalty,
        box=subject.data.range,
        lambdas=found.lambdas.tolist(),
        restarts=subject.settings.attack.restarts,
        chosen=pairs.how,
        pairs=[
            PairEntry(
                source=source,
                target=target,
                lam=float(found.lambdas[k]),
                norm=float(found.norm[p, k]),
                data_term=float(found.data_term[p, k]),
                penalty=float(found.penalty_term[p, k]),
                objective=float(found.objective[p, k]),
                target_nll=number(result.target_nll[p, k]),
                target_nll_unattacked=number(result.source_nll[p]),
                target_error=number(result.target_error[p, k]),
                target_error_unattacked=number(result.source_error[p]),
                target_error_floor=number(result.target_floor[p]),
                own_error=number(result.own_error[p, k]),
                fresh_data_term=None if result.fresh_data_term is None else number(result.fresh_data_term[p, k]),
                status=Status(int(found.status[p, k])).message,
                signs=sign_record.of_item(signs, p),
            )
            for p, (k, (source, target)) in enumerate(zip(chosen, pairs, strict=True))
        ],
        signs=sign_record.seen(result.signs),
        classes=classes,
        statuses={s.message: count for s in Status if (count := int((found.status == int(s)).sum()))},
        evaluations=int(found.evaluations.sum()),
        searched_on=int(found.further.sum()),
        budget=MOST * subject.settings.attack.max_evaluations,
        zero_optimal=int((found.norm == 0).sum()),
    )


def capped_entry(subject: Subject, result: CappedResult, pairs: Pairs) -> CappedEntry:
    """The report's form of an attack under caps."""
    found, objective, signs = result.capped, result.objective, result.signs
    return CappedEntry(
        mode=result.mode,
        members=list(result.members),
        similarity=objective.similarity if "similarity" in objective.row.takes else None,
        on=objective.on,
        ref=objective.ref,
        norm=found.norm_name,
        box=None if objective.row.latents else subject.data.range,
        items=[
            CappedItemEntry(
                item=source,
                target=target if objective.row.targeted else None,
                damage_unattacked=number(result.zero_damage[p]),
                nll_unattacked=number(result.zero_nll[p]),
                caps=[
                    CapEntry(
                        cap=cap,
                        norm=float(found.norm[p, k]),
                        damage=number(result.damage[p, k]),
                        nll=number(result.nll[p, k]),
                        by=result.members[int(result.member[p, k])],
                        status=Status(int(found.status[p, k])).message,
                    )
                    for k, cap in enumerate(found.caps.tolist())
                ],
                signs=sign_record.of_item(signs, p),
            )
            for p, (source, target) in enumerate(pairs)
        ],
        signs=sign_record.seen(result.signs),
        evaluations=int(found.evaluations.sum()),
        searched_on=int(found.further.sum()),
        budget=MOST * subject.settings.attack.max_evaluations,
    )


def class_entry(table: ClassTable, classifier: str) -> ClassTableEntry:
    """The report's form of the classes that an attack led to, by a classifier as told in words."""
    return ClassTableEntry(
        classifier=classifier,
        classes=list(table.classes),
        attacked=table.attacked.tolist(),
        valid=table.valid.tolist(),
        left=table.left.tolist(),
        reached=table.reached.tolist(),
    )


def capped_rows(result: CappedResult, pairs: Pairs) -> list[Row]:
    """Every item under every cap."""
    found = result.capped
    return [
        {
            "item": item,
            "cap": cap,
            "norm": number(found.norm[p, k]),
            "data_term": number(found.data_term[p, k]),
            "damage": number(result.damage[p, k]),
            "target_nll": number(result.nll[p, k]),
            "by": result.members[int(result.member[p, k])],
            "members": {name: number(result.member_damage[m, p, k]) for m, name in enumerate(result.members)},
            "evaluations": int(found.evaluations[p, k]),
            "status": Status(int(found.status[p, k])).message,
        }
        for p, item in enumerate(pairs.sources)
        for k, cap in enumerate(found.caps.tolist())
    ]


def attack_rows(result: AttackResult, pairs: Pairs) -> list[Row]:
    """Every pair at every lambda."""
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
        "still_falling": still_falling(found).tolist(),
        "evaluations": found.evaluations.tolist(),
    }
    return [
        {
            "pair": p,
            "source": source,
            "target": target,
            "lam": lam,
            "chosen": k == chosen[p],
            **{name: number(values[p][k]) for name, values in columns.items()},
            "status": Status(int(found.status[p, k])).message,
        }
        for p, (source, target) in enumerate(pairs)
        for k, lam in enumerate(found.lambdas.tolist())
    ]


def attack_drawings(entry: AttackEntry, result: AttackResult, picture: tuple[int, ...] | None) -> dict[str, Drawing]:
    """The panel of the first pairs, where they are images of the shape ``picture``, and the distortion curves."""

    def panel(picture: tuple[int, ...]) -> bytes:
        columns = {
            "input": result.source,
            "reconstruction": result.source_reconstruction,
            "adversarial": result.at_chosen(result.sweep.adversarial),
            "distortion": result.at_chosen(result.sweep.distortion),
            "its reconstruction": result.at_chosen(result.reconstruction),
            "target": result.target,
        }
        labels = [f"{pair.source} → {pair.target}\nλ = {pair.lam:.3g}\n‖d‖ = {pair.norm:.3g}" for pair in entry.pairs]
        return _panel(columns, labels, entry.box, picture)

    def curve() -> bytes:
        return distortion_curves(
            array(result.sweep.norm),
            array(result.target_error),
            result.sweep.chosen.tolist(),
            [f"{pair.source} → {pair.target}" for pair in entry.pairs],
            array(result.source_error),
            array(result.target_floor),
            array(result.gap),
        )

    drawings = {CURVE.format(result.mode): Drawing(f"attack-{result.mode}-curve.png", curve)}
    if picture is not None:
        drawings[PANEL.format(result.mode)] = Drawing(f"attack-{result.mode}-panel.png", partial(panel, picture))
    return drawings


def capped_drawings(entry: CappedEntry, result: CappedResult, picture: tuple[int, ...] | None) -> dict[str, Drawing]:
    """The panel of the first items under the largest cap, where they are images, and damage over the cap."""

    def curve() -> bytes:
        labels = [str(item.item) for item in entry.items]
        return damage_curves(result.capped.caps.tolist(), array(result.damage), array(result.zero_damage), labels)

    drawings = {CURVE.format(result.mode): Drawing(f"attack-{result.mode}-curve.png", curve)}
    if picture is not None:
        panel = partial(_capped_panel, entry, result, picture)
        drawings[PANEL.format(result.mode)] = Drawing(f"attack-{result.mode}-panel.png", panel)
    return drawings


def _capped_panel(entry: CappedEntry, result: CappedResult, picture: tuple[int, ...]) -> bytes:
    """Items under their largest cap; what is perturbed is drawn where it is an image."""
    largest = int(result.capped.caps.argmax())
    columns = {"input": result.source, "reconstruction": result.source_reconstruction}
    if not result.objective.row.latents:
        columns["adversarial"] = result.capped.adversarial[:, largest]
        columns["distortion"] = result.capped.distortion[:, largest]
    columns["its reconstruction"] = result.reconstruction[:, largest]
    labels = [f"{item.item}\n‖d‖ = {item.caps[largest].norm:.3g}\n{item.caps[largest].by}" for item in entry.items]
    return _panel(columns, labels, entry.box, picture)


def _panel(columns: dict[str, Tensor], labels: list[str], box: Range | None, picture: tuple[int, ...]) -> bytes:
    """The first rows of ``columns`` (items, *input_shape), drawn in the shape ``picture``."""
    arrays = {name: as_images(array(column[:PANEL_ROWS]), picture) for name, column in columns.items()}
    return item_panel(arrays, labels[:PANEL_ROWS], box)
