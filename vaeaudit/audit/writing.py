"""Writing an audit down: from what was audited and found to the report that says so."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from torch import nn

import vaeaudit
from vaeaudit.checks.record import Record, metric_entry
from vaeaudit.checks.weights.stored import StoredModel
from vaeaudit.errors import VaeauditError, told
from vaeaudit.gate.ending import concluded, ending
from vaeaudit.layout.entry import Entry, FileHash
from vaeaudit.model.adapters import Adapter
from vaeaudit.model.box import range_of
from vaeaudit.model.conditions import model_of
from vaeaudit.report.model import (
    FIELDS,
    AdapterEntry,
    DataEntry,
    Environment,
    FindingEntry,
    ModelEntry,
    PlausibilityEntry,
    Report,
)
from vaeaudit.settings.config import Resolved
from vaeaudit.subject.device import bits_repeat
from vaeaudit.subject.opened import Subject
from vaeaudit.subject.plausibility import Plausibility


@dataclass(frozen=True, eq=False)
class Audited:
    """What an audit is of; ``data`` and ``plausibility`` are None where only a file was looked at."""

    model: ModelEntry
    data: DataEntry | None
    environment: Environment
    plausibility: PlausibilityEntry | None
    partial: Sequence[str] = ()
    warnings: Sequence[str] = ()


def whole(subject: Subject) -> Audited:
    """A model with its data."""
    plausibility = plausibility_entry(subject.plausibility, subject.settings.doctor.acknowledge)
    return Audited(
        model_entry(subject),
        data_entry(subject),
        environment(subject.settings.run.seed, subject.settings.run.dtype, subject.device),
        plausibility,
        [subject.part] if subject.part else [],
        [*subject.data.warnings, *plausibility.warnings],
    )


def file_alone(stored: StoredModel, seed: int) -> Audited:
    """A model's file, which was not opened as a model."""
    model = ModelEntry(
        file=FileHash(path=stored.source, sha256=stored.sha256),
        files=[FileHash(path=stored.source, sha256=stored.sha256)],
        prefix=stored.prefix,
        adapter=None if stored.adapter is None else adapter_entry(stored.adapter),
        options={},
        input_shape=None,
        range=None,
        likelihood=None,
        parameters=None,
    )
    return Audited(model, None, environment(seed, "float64", torch.device("cpu")), None)


def write_down(
    audited: Audited,
    resolved: Resolved,
    argv: Sequence[str],
    records: Sequence[Record],
    skipped: dict[str, str],
    fault: BaseException | None,
    seconds: dict[str, float],
) -> Report:
    """The report of an audit, with the ``seconds`` of each check; ``fault`` is what ended it early, if anything did."""
    interrupted = any(record.interrupted for record in records)
    end = ending(fault=fault, interrupted=interrupted)
    error = None
    if fault is not None:
        error = str(fault) if isinstance(fault, VaeauditError) else f"the model raised {told(fault)}"
    partial = [*audited.partial]
    if interrupted:
        partial.append("interrupted: figures are of what was done until then")
    entries: dict[str, list[Entry]] = {}
    for record in records:
        for entry in record.entries:
            entries.setdefault(FIELDS[type(entry)], []).append(entry)
    report = Report.model_validate(
        {
            "tool": f"vaeaudit {vaeaudit.__version__}",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "argv": list(argv),
            "configuration": resolved.settings.model_dump(mode="json"),
            "configuration_sources": dict(resolved.sources),
            "configuration_sha256": resolved.sha256,
            "model": audited.model,
            "data": audited.data,
            "environment": audited.environment,
            "plausibility": audited.plausibility,
            **entries,
            "metrics": {
                name: metric_entry(value, record.doubt(name))
                for record in records
                for name, value in record.metrics.items()
            },
            "checks": [],
            "baseline": None,
            "partial": partial,
            "skipped": skipped | {name: why for record in records for name, why in record.skipped.items()},
            "warnings": [*audited.warnings, *(warning for record in records for warning in record.warnings)],
            "status": end.status,
            "error": error,
            "verdict": end.verdict,
            "exit_code": end.exit_code,
            "timings": {check: round(taken, 3) for check, taken in seconds.items()},
            "files": {},
        }
    )
    return concluded(report, *in_doubt(records))


def in_doubt(records: Iterable[Record]) -> tuple[dict[str, str], dict[str, str]]:
    """The failure signs of all records, and the doubts of single figures."""
    signs, doubts = dict[str, str](), dict[str, str]()
    for record in records:
        signs |= record.signs
        doubts |= record.doubts
    return signs, doubts


def plausibility_entry(plausibility: Plausibility, acknowledged: Mapping[str, str]) -> PlausibilityEntry:
    """The report's form of the plausibility check; ``acknowledged`` are findings that are meant, each with a reason."""
    return PlausibilityEntry(
        passed=not plausibility.failed,
        items=plausibility.items,
        findings=[
            FindingEntry(name=f.name, verdict=f.verdict, message=f.message, acknowledged=acknowledged.get(f.name))
            for f in plausibility.findings
        ],
        losses={name: metric_entry(value) for name, value in plausibility.losses.items()},
    )


def model_entry(subject: Subject) -> ModelEntry:
    """The report's form of the model."""
    model = subject.model
    vae, whole = model.vae, model_of(model.vae)
    return ModelEntry(
        file=FileHash(path=model.checkpoint.source, sha256=model.sha256),
        files=[FileHash(path=path, sha256=sha256) for path, sha256 in model.files.items()],
        prefix=model.checkpoint.prefix,
        computed=list(model.checkpoint.computed),
        state_sha256=model.state_sha256,
        adapter=adapter_entry(model.adapter),
        options=dict(model.options),
        input_shape=list(vae.input_shape),
        range=range_of(vae),
        likelihood=subject.likelihood,
        parameters=sum(p.numel() for p in whole.parameters()) if isinstance(whole, nn.Module) else None,
        notes=list(model.notes),
    )


def adapter_entry(adapter: Adapter) -> AdapterEntry:
    """The report's form of an adapter."""
    return AdapterEntry(name=adapter.name, source=adapter.source, sha256=adapter.sha256)


def data_entry(subject: Subject) -> DataEntry:
    """The report's form of the data."""
    data = subject.data
    return DataEntry(
        source=data.source,
        sha256=data.sha256,
        n=subject.n,
        drawn_from=subject.drawn_from,
        range=data.range,
        stored=data.stored,
        skipped=list(data.skipped),
    )


def device_name(device: torch.device) -> str:
    """What computes, by name where it has one."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def environment(seed: int, dtype: str, device: torch.device) -> Environment:
    """Where this runs."""
    cuda = device.type == "cuda"
    return Environment(
        python=platform.python_version(),
        torch=str(torch.__version__),
        cuda=torch.version.cuda if cuda else None,
        platform=platform.platform(),
        device=device_name(device),
        threads=torch.get_num_threads(),
        dtype=dtype,
        seed=seed,
        deterministic=bits_repeat(device),
    )
