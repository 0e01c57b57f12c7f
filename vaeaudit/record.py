"""Writing an audit down: from what was audited and measured to the report that says so."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import torch
from torch import Tensor, nn

import vaeaudit
from vaeaudit.attacks.signs import Sign
from vaeaudit.checks.attack import AttackResult
from vaeaudit.checks.capped import CappedResult
from vaeaudit.checks.plausibility import Plausibility
from vaeaudit.checks.success import ClassTable
from vaeaudit.checks.summary import summarise, summarise_capped, summarise_likeness, summarise_margin
from vaeaudit.config import Resolved
from vaeaudit.errors import VaeauditError
from vaeaudit.optim.lbfgsb import Status
from vaeaudit.pairs import Pairs
from vaeaudit.record_margin import Margins, margin_entries, margin_warnings
from vaeaudit.registry import told
from vaeaudit.report.model import (
    AdapterEntry,
    AttackEntry,
    CapEntry,
    CappedEntry,
    CappedItemEntry,
    ClassTableEntry,
    DataEntry,
    Environment,
    FileHash,
    FindingEntry,
    MetricEntry,
    ModelEntry,
    PairEntry,
    PlausibilityEntry,
    Report,
)
from vaeaudit.stats import Measurement
from vaeaudit.subject import Subject


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


def write_down(
    subject: Subject,
    resolved: Resolved,
    argv: Sequence[str],
    pairs: Pairs,
    outcomes: list[Outcome],
    capped: list[CappedResult],
    margins: list[Margins],
    skipped: dict[str, str],
    fault: BaseException | None,
    seconds: dict[str, float],
) -> Report:
    """The report of an audit, with the ``seconds`` of each check; ``fault`` is what ended it early, if anything did."""
    metrics: dict[str, MetricEntry] = {}
    for outcome in outcomes:
        measured = {**summarise(outcome.result), **outcome.metrics}
        metrics |= {name: metric(value) for name, value in measured.items()}
    for of_cap in capped:
        metrics |= {name: metric(value) for name, value in summarise_capped(of_cap).items()}
    for of_margin in margins:
        metrics |= {name: metric(value) for name, value in summarise_margin(of_margin.result).items()}
    for of_cap in capped:
        likeness, left_out = _likeness(subject, of_cap)
        metrics |= {name: metric(value) for name, value in likeness.items()}
        skipped = skipped | left_out
    results: list[AttackResult | CappedResult] = [*(outcome.result for outcome in outcomes), *capped]
    interrupted = any(result.interrupted for result in [*results, *(of_margin.result for of_margin in margins)])
    signs = any(bool(result.signs.any.any()) for result in results)
    error: str | None = None
    exit_code = 0
    if isinstance(fault, VaeauditError):
        status, verdict, exit_code, error = "error", "error", fault.exit_code, str(fault)
    elif fault is not None:
        status, verdict, exit_code, error = "error", "error", 3, f"the model raised {told(fault)}"
    elif interrupted:
        status, verdict, exit_code = "interrupted", "inconclusive", 130
    elif subject.plausibility.passed and not signs and not any(of_margin.contradictory for of_margin in margins):
        status, verdict = "complete", "ungated"
    else:
        status, verdict, exit_code = "complete", "inconclusive", 5
    partial = [f"only the first {subject.n} of {len(subject.data)} items"] if subject.n < len(subject.data) else []
    if interrupted:
        partial.append("interrupted: what was still running shows the best found until then")
    return Report(
        tool=f"vaeaudit {vaeaudit.__version__}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        argv=list(argv),
        configuration=resolved.settings.model_dump(mode="json"),
        configuration_sources=dict(resolved.sources),
        configuration_sha256=resolved.sha256,
        model=model_entry(subject),
        data=data_entry(subject),
        environment=_environment(subject),
        plausibility=plausibility_entry(subject.plausibility),
        attacks=[_attack_entry(subject, outcome, pairs) for outcome in outcomes],
        capped=[_capped_entry(subject, result, pairs) for result in capped],
        margins=[entry for of_margin in margins for entry in margin_entries(of_margin)],
        metrics=metrics,
        checks=[],
        baseline=None,
        partial=partial,
        skipped=skipped,
        warnings=[*_warnings(subject, outcomes, capped, pairs), *(w for of in margins for w in margin_warnings(of))],
        status=status,
        error=error,
        verdict=verdict,
        exit_code=exit_code,
        timings={check: round(taken, 3) for check, taken in seconds.items()},
        files={},
    )


def _warnings(subject: Subject, outcomes: list[Outcome], capped: list[CappedResult], pairs: Pairs) -> list[str]:
    told = list(subject.data.warnings)
    results: list[AttackResult | CappedResult] = [*(outcome.result for outcome in outcomes), *capped]
    for result in results:
        items, what = len(result.source), "pairs" if isinstance(result, AttackResult) else "items"
        for sign, count in _signs(result).items():
            first = int(result.signs.fired[list(Sign).index(Sign(sign))].nonzero()[0])
            told.append(
                f"failure sign '{sign}' in {count} of {items} {result.mode} {what}, so that they support no verdict; "
                f"of source {pairs.sources[first]}: {result.signs.message(Sign(sign), first)}"
            )
    for outcome in outcomes:
        told += outcome.warnings
        status, mode = outcome.result.sweep.status, outcome.result.mode
        limited = int(((status == int(Status.LIMIT)) | (status == int(Status.STALLED))).sum())
        if limited:
            told.append(
                f"{limited} of {status.numel()} {mode} problems stopped at the evaluation limit or got stuck; "
                "their objectives are upper bounds that a higher --max-evaluations may lower"
            )
    return told


def _likeness(subject: Subject, result: CappedResult) -> tuple[dict[str, Measurement], dict[str, str]]:
    """MS-SSIM of an untargeted attack on images, or why there is none."""
    if result.mode != "untargeted" or len(subject.model.vae.input_shape) != 3 or subject.data.range is None:
        return {}, {}
    try:
        return summarise_likeness(result, subject.data.range), {}
    except VaeauditError as error:
        return {}, {"attack.untargeted.ms_ssim": str(error)}


def _signs(result: AttackResult | CappedResult) -> dict[str, int]:
    """The failure signs of an attack: sign -> pairs or items that show it."""
    counts = result.signs.fired.sum(1).tolist()
    return {str(sign): count for sign, count in zip(Sign, counts, strict=True) if count}


def metric(measurement: Measurement) -> MetricEntry:
    """The report's form of a measurement."""
    return MetricEntry(**asdict(measurement))


def plausibility_entry(plausibility: Plausibility) -> PlausibilityEntry:
    """The report's form of the plausibility check."""
    return PlausibilityEntry(
        passed=plausibility.passed,
        items=plausibility.items,
        findings=[FindingEntry(name=f.name, verdict=f.verdict, message=f.message) for f in plausibility.findings],
        losses={name: metric(value) for name, value in plausibility.losses.items()},
    )


def model_entry(subject: Subject) -> ModelEntry:
    """The report's form of the model."""
    model = subject.model
    vae = model.vae
    return ModelEntry(
        file=FileHash(path=str(model.checkpoint.path), sha256=model.checkpoint.sha256),
        adapter=AdapterEntry(name=model.adapter.name, source=model.adapter.source, sha256=model.adapter.sha256),
        options=dict(model.options),
        input_shape=list(vae.input_shape),
        range=vae.range,
        likelihood=subject.likelihood,
        parameters=sum(p.numel() for p in vae.parameters()) if isinstance(vae, nn.Module) else None,
    )


def data_entry(subject: Subject) -> DataEntry:
    """The report's form of the data."""
    data = subject.data
    return DataEntry(
        source=data.source,
        sha256=data.sha256,
        n=subject.n,
        range=data.range,
        stored=data.stored,
        skipped=list(data.skipped),
    )


def _environment(subject: Subject) -> Environment:
    cuda = subject.device.type == "cuda"
    return Environment(
        python=platform.python_version(),
        torch=str(torch.__version__),
        cuda=torch.version.cuda if cuda else None,
        platform=platform.platform(),
        device=torch.cuda.get_device_name(subject.device) if cuda else subject.device.type,
        threads=torch.get_num_threads(),
        dtype=subject.settings.run.dtype,
        seed=subject.settings.run.seed,
        deterministic=subject.device.type == "cpu",
    )


def _attack_entry(subject: Subject, outcome: Outcome, pairs: Pairs) -> AttackEntry:
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
                target_nll=_number(result.target_nll[p, k]),
                target_nll_unattacked=_number(result.source_nll[p]),
                target_error=_number(result.target_error[p, k]),
                target_error_unattacked=_number(result.source_error[p]),
                target_error_floor=_number(result.target_floor[p]),
                own_error=_number(result.own_error[p, k]),
                fresh_data_term=None if result.fresh_data_term is None else _number(result.fresh_data_term[p, k]),
                status=Status(int(found.status[p, k])).message,
                signs=[f"{sign}: {signs.message(sign, p)}" for sign in signs.of(p)],
            )
            for p, (k, (source, target)) in enumerate(zip(chosen, pairs, strict=True))
        ],
        signs=_signs(result),
        classes=_classes(outcome),
        statuses={s.message: count for s in Status if (count := int((found.status == int(s)).sum()))},
        evaluations=int(found.evaluations.sum()),
        zero_optimal=int((found.norm == 0).sum()),
    )


def _capped_entry(subject: Subject, result: CappedResult, pairs: Pairs) -> CappedEntry:
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
                damage_unattacked=_number(result.zero_damage[p]),
                nll_unattacked=_number(result.zero_nll[p]),
                caps=[
                    CapEntry(
                        cap=cap,
                        norm=float(found.norm_of[p, k]),
                        damage=_number(result.damage[p, k]),
                        nll=_number(result.nll[p, k]),
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


def _number(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None
