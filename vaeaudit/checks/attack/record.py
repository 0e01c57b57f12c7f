"""Writing attacks down: entries of the report, what its reader must be warned of, values of every item, figures."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from vaeaudit.attacks.left import MOST
from vaeaudit.attacks.signs import Sign
from vaeaudit.checks.attack.capped import CappedResult
from vaeaudit.checks.attack.entry import AttackEntry, CapEntry, CappedEntry, CappedItemEntry, ClassTableEntry, PairEntry
from vaeaudit.checks.attack.figures import attack_panel, damage_curves, distortion_curves
from vaeaudit.checks.attack.measure import AttackResult
from vaeaudit.checks.attack.pairs import Pairs
from vaeaudit.checks.attack.success import ClassTable
from vaeaudit.checks.record import Drawing, Row, array, number
from vaeaudit.layout.figures import PANEL_ROWS, as_images
from vaeaudit.model.ranges import Range
from vaeaudit.optim.lbfgsb import Status
from vaeaudit.stats.estimates import Measurement
from vaeaudit.subject.opened import Subject

_CLAMP = "log-variance"  # the finding of doctor that tells of a clamp


@dataclass(frozen=True, eq=False)
class Outcome:
    """An attack with whether it succeeded: further metrics, what is wrong with them, and the classes it led to.

    ``classifier`` tells in words what named those classes.
    """

    result: AttackResult
    metrics: dict[str, Measurement] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    classes: ClassTable | None = None
    classifier: str = ""


def sign_warnings(result: AttackResult | CappedResult, pairs: Pairs, acknowledged: Mapping[str, str]) -> list[str]:
    """The failure signs of an attack, and what the first of each kind is.

    ``acknowledged`` are findings of doctor that are meant, with the reason: a clamp that is meant is no failure.
    """
    items, what = len(result.source), "pairs" if isinstance(result, AttackResult) else "items"
    warnings = []
    for sign, count in _signs(result).items():
        first = int(result.signs.fired[list(Sign).index(Sign(sign))].nonzero()[0])
        reason = acknowledged.get(_CLAMP) if sign == Sign.CLAMPED else None
        effect = f"which is acknowledged ({reason})" if reason else "so that they support no verdict"
        warnings.append(
            f"failure sign '{sign}' in {count} of {items} {result.mode} {what}, {effect}; of source "
            f"{pairs.sources[first]}: {result.signs.message(Sign(sign), first)}"
        )
    return warnings


def signs(result: AttackResult | CappedResult, acknowledged: Container[str]) -> dict[str, str]:
    """Why the metrics of an attack support no verdict, where a pair or item shows a failure sign.

    A clamp of log-variances is none where that finding of doctor is ``acknowledged``.
    """
    meant = {Sign.CLAMPED} if _CLAMP in acknowledged else set()
    counted = [f"'{s}' ({n} of {len(result.source)})" for s, n in _signs(result).items() if Sign(s) not in meant]
    return {f"attack.{result.mode}": f"failure signs of the attack: {', '.join(counted)}"} if counted else {}


def attack_warnings(outcome: Outcome, pairs: Pairs, acknowledged: Mapping[str, str]) -> list[str]:
    """What a reader of this attack must know."""
    warnings = [*sign_warnings(outcome.result, pairs, acknowledged), *outcome.warnings]
    status, mode = outcome.result.sweep.status, outcome.result.mode
    limited = int(((status == int(Status.LIMIT)) | (status == int(Status.STALLED))).sum())
    if limited:
        warnings.append(
            f"{limited} of {status.numel()} {mode} problems stopped at the evaluation limit or got stuck; "
            "their objectives are upper bounds that a higher --max-evaluations may lower"
        )
    return warnings


def attack_entry(subject: Subject, outcome: Outcome, pairs: Pairs) -> AttackEntry:
    """The report's form of an attack over all lambda."""
    result = outcome.result
    found, objective, signs = result.sweep, result.objective, result.signs
    chosen = found.chosen.tolist()
    return AttackEntry(
        mode=result.mode,
        similarity=objective.similarity if result.mode == "latent" else None,
        on=objective.on,
        layers=list(objective.layers) if objective.layers and result.mode == "latent" else None,
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
                signs=[f"{sign}: {signs.message(sign, p)}" for sign in signs.of(p)],
            )
            for p, (k, (source, target)) in enumerate(zip(chosen, pairs, strict=True))
        ],
        signs=_signs(result),
        classes=_classes(outcome),
        statuses={s.message: count for s in Status if (count := int((found.status == int(s)).sum()))},
        evaluations=int(found.evaluations.sum()),
        searched_on=int(found.further.sum()),
        budget=MOST * subject.settings.attack.max_evaluations,
        zero_optimal=int((found.norm == 0).sum()),
    )


def capped_entry(subject: Subject, result: CappedResult, pairs: Pairs) -> CappedEntry:
    """The report's form of an attack under caps."""
    found, objective, signs = result.found, result.objective, result.signs
    return CappedEntry(
        mode=result.mode,
        members=list(result.members),
        similarity=objective.similarity if result.mode == "untargeted" else None,
        on=objective.on,
        ref=objective.ref,
        norm=found.norm,
        box=None if result.mode == "latent-side" else subject.data.range,
        items=[
            CappedItemEntry(
                item=source,
                target=target if result.mode == "worst" else None,
                damage_unattacked=number(result.zero_damage[p]),
                nll_unattacked=number(result.zero_nll[p]),
                caps=[
                    CapEntry(
                        cap=cap,
                        norm=float(found.norm_of[p, k]),
                        damage=number(result.damage[p, k]),
                        nll=number(result.nll[p, k]),
                        by=result.members[int(result.member[p, k])],
                        status=Status(int(found.status[p, k])).message,
                    )
                    for k, cap in enumerate(found.caps.tolist())
                ],
                signs=[f"{sign}: {signs.message(sign, p)}" for sign in signs.of(p)],
            )
            for p, (source, target) in enumerate(pairs)
        ],
        signs=_signs(result),
        evaluations=int(found.evaluations.sum()),
        searched_on=int(found.further.sum()),
        budget=MOST * subject.settings.attack.max_evaluations,
    )


def _classes(outcome: Outcome) -> ClassTableEntry | None:
    table = outcome.classes
    if table is None:
        return None
    return ClassTableEntry(
        classifier=outcome.classifier,
        classes=list(table.classes),
        attacked=table.attacked.tolist(),
        valid=table.valid.tolist(),
        left=table.left.tolist(),
        reached=table.reached.tolist(),
    )


def capped_rows(result: CappedResult, pairs: Pairs) -> list[Row]:
    """Every item under every cap."""
    found = result.found
    return [
        {
            "item": item,
            "cap": cap,
            "norm": number(found.norm_of[p, k]),
            "data_term": number(found.value[p, k]),
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

    drawings = {f"{result.mode} curve": Drawing(f"attack-{result.mode}-curve.png", curve)}
    if picture is not None:
        drawings[f"{result.mode} panel"] = Drawing(f"attack-{result.mode}-panel.png", partial(panel, picture))
    return drawings


def capped_drawings(entry: CappedEntry, result: CappedResult, picture: tuple[int, ...] | None) -> dict[str, Drawing]:
    """The panel of the first items under the largest cap, where they are images, and damage over the cap."""

    def curve() -> bytes:
        labels = [str(item.item) for item in entry.items]
        return damage_curves(result.found.caps.tolist(), array(result.damage), array(result.zero_damage), labels)

    drawings = {f"{result.mode} curve": Drawing(f"attack-{result.mode}-curve.png", curve)}
    if picture is not None:
        panel = partial(_capped_panel, entry, result, picture)
        drawings[f"{result.mode} panel"] = Drawing(f"attack-{result.mode}-panel.png", panel)
    return drawings


def _capped_panel(entry: CappedEntry, result: CappedResult, picture: tuple[int, ...]) -> bytes:
    """Items under their largest cap; what is perturbed is drawn where it is an image."""
    largest = int(result.found.caps.argmax())
    columns = {"input": result.source, "reconstruction": result.source_reconstruction}
    if result.mode != "latent-side":
        columns["adversarial"] = result.found.adversarial[:, largest]
        columns["distortion"] = result.found.distortion[:, largest]
    columns["its reconstruction"] = result.reconstruction[:, largest]
    labels = [f"{item.item}\n‖d‖ = {item.caps[largest].norm:.3g}\n{item.caps[largest].by}" for item in entry.items]
    return _panel(columns, labels, entry.box, picture)


def _panel(columns: dict[str, Tensor], labels: list[str], box: Range | None, picture: tuple[int, ...]) -> bytes:
    """The first rows of ``columns`` (items, *input_shape), drawn in the shape ``picture``."""
    arrays = {name: as_images(array(column[:PANEL_ROWS]), picture) for name, column in columns.items()}
    return attack_panel(arrays, labels[:PANEL_ROWS], box)


def _signs(result: AttackResult | CappedResult) -> dict[str, int]:
    """The failure signs of an attack: sign -> pairs or items that show it."""
    counts = result.signs.fired.sum(1).tolist()
    return {str(sign): count for sign, count in zip(Sign, counts, strict=True) if count}
