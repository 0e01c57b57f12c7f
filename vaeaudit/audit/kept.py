"""Records and parts of them as the entries of a log, and out of these again."""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaeaudit import errors
from vaeaudit.audit import log
from vaeaudit.checks.record import Drawing, Record, Row, to_json_line
from vaeaudit.errors import VaeauditError
from vaeaudit.report.model import FIELDS, KINDS
from vaeaudit.report.samples import distinct
from vaeaudit.stats.estimates import Measurement, Sample

DAMAGED = (KeyError, ValueError, TypeError, AttributeError, RecursionError)  # what is read of a damaged or forged log


def packed(record: Record) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A record as tensors, samples and figures as such, and the rest as JSON."""
    tensors = {f"tensor/{name}": tensor.contiguous().cpu() for name, tensor in record.tensors.items()}
    columns, samples = distinct({name: of.sample for name, of in record.metrics.items() if of.sample is not None})
    tensors |= {f"sample/{place}": torch.from_numpy(values.copy()) for place, values in columns.items()}
    for purpose, drawing in record.drawings.items():
        tensors[f"drawing/{purpose}"] = torch.frombuffer(bytearray(drawing.draw()), dtype=torch.uint8)
    for name, rows in record.rows.items():
        tensors[f"rows/{name}"] = torch.frombuffer(_pressed(rows), dtype=torch.uint8)
    plain = {
        "entries": [[FIELDS[type(entry)], entry.model_dump(mode="json")] for entry in record.entries],
        "metrics": {name: _plain(measurement) for name, measurement in record.metrics.items()},
        "samples": samples,
        "warnings": record.warnings,
        "skipped": dict(record.skipped),
        "signs": dict(record.signs),
        "doubts": dict(record.doubts),
        "about": record.about,
        "drawings": {purpose: drawing.name for purpose, drawing in record.drawings.items()},
        "tensors": list(record.tensors),
        "rows": list(record.rows),
    }
    return tensors, {"record": json.dumps(plain, allow_nan=False)}


def _pressed(rows: Iterable[Row]) -> bytearray:
    """JSON of the rows, a line each, compressed as it comes: of many it would take the most memory of an audit."""
    press, pressed = zlib.compressobj(1), bytearray()
    for row in rows:
        pressed += press.compress(to_json_line(row).encode() + b"\n")
    return pressed + press.flush()


@dataclass(frozen=True, eq=False)
class _KeptRows:
    """Rows out of what :func:`_pressed` gave."""

    pressed: bytes

    def __iter__(self) -> Iterator[Row]:
        yield from map(json.loads, zlib.decompress(self.pressed).splitlines())


def _plain(measurement: Measurement) -> dict[str, object]:
    return {field.name: getattr(measurement, field.name) for field in fields(measurement) if field.name != "sample"}


def part_of(entry: log.Entry) -> tuple[Tensor, ...] | None:
    """The part that an entry keeps, on the device that gave it; None where it can no longer be read."""
    try:
        tensors, places = entry.tensors() or {}, json.loads(entry.metadata["on"])
        part = tuple(tensors[str(k)].to(device) for k, device in enumerate(places))
        return part if part and len(part[0]) else None
    except (*DAMAGED, RuntimeError):
        return None


def record_of(entry: log.Entry) -> Record | None:
    """The record that an entry keeps; None where it can no longer be read. Raises the error that it keeps instead."""
    tensors = entry.tensors()
    if tensors is None:
        return None
    try:
        if "error" not in entry.metadata:
            return _unpacked(tensors, json.loads(entry.metadata["record"]))
        name, message = json.loads(entry.metadata["error"])
        raised = getattr(errors, name)
        kept = raised(message) if issubclass(raised, VaeauditError) else None
    except DAMAGED:
        return None
    if kept is not None:
        raise kept
    return None


def _unpacked(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Record:
    """The record that :func:`packed` took apart."""
    samples = {name: Sample(tensors[f"sample/{at}"].numpy(), q) for name, (at, q) in plain["samples"].items()}
    return Record(
        entries=[KINDS[name].model_validate(found) for name, found in plain["entries"]],
        metrics={name: _measurement(values, samples.get(name)) for name, values in plain["metrics"].items()},
        warnings=tuple(plain["warnings"]),
        skipped=plain["skipped"],
        signs=plain["signs"],
        doubts=plain["doubts"],
        rows={name: _KeptRows(tensors[f"rows/{name}"].numpy().tobytes()) for name in plain["rows"]},
        tensors={name: tensors[f"tensor/{name}"] for name in plain["tensors"]},
        about=plain["about"],
        drawings={
            purpose: Drawing(Path(name).name, partial(bytes, tensors[f"drawing/{purpose}"].numpy().tobytes()))
            for purpose, name in plain["drawings"].items()
        },
    )


def _measurement(values: Mapping[str, Any], sample: Sample | None) -> Measurement:
    ci = None if values["ci"] is None else tuple(values["ci"])
    return Measurement(**{**values, "ci": ci}, sample=sample)
