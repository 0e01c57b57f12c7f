"""What an audit has finished, kept until its report is written, so that an audit which was ended goes on from there.

A record is kept under a hash of what it depends on: weights, adapter and its options, what the model makes of the data,
data, settings of the check, the files that these name, seed, precision, batch size, device, threads, and versions of
vaeaudit and the libraries that it computes with. A record of anything else is never served.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from vaeaudit.checks.record import Drawing, Record, Row, to_json_line
from vaeaudit.progress import GoOn
from vaeaudit.report.model import FIELDS, KINDS
from vaeaudit.report.writer import write_file
from vaeaudit.stats.estimates import Measurement, Sample

FOLDER = "vaeaudit-journal"


class Journal:
    """Finished records in a folder. ``facts`` are what all of them depend on; with ``resume`` kept ones are served."""

    def __init__(self, folder: Path, facts: Mapping[str, object], resume: bool) -> None:
        self.folder = folder / FOLDER
        self.facts = facts
        self.resume = resume

    def record(self, unit: str, settings: Mapping[str, object], work: Callable[[GoOn], Record], go_on: GoOn) -> Record:
        """The kept record of ``unit`` with these settings, or what ``work`` gives, kept unless it was interrupted.

        Raises :class:`vaeaudit.errors.OutputError` where it cannot be kept, and what ``work`` raises.
        """
        key = hashlib.sha256(json.dumps([unit, self.facts, dict(settings)], sort_keys=True).encode()).hexdigest()
        file = self.folder / f"{unit}-{key[:16]}.safetensors"
        if self.resume and (kept := _read(file, key)) is not None:
            return kept
        record = work(go_on)
        if record.interrupted:
            return record
        record = replace(record, drawings={what: drawn(drawing) for what, drawing in record.drawings.items()})
        write_file(file, _packed(record, key))
        return record

    @staticmethod
    def remove(folder: Path) -> None:
        """Forget what the journal in ``folder`` keeps: the report is written."""
        with suppress(OSError):  # something else lies there, or cannot be removed: it is no longer needed, that is all
            for file in (folder / FOLDER).glob("*.safetensors"):
                file.unlink()
            (folder / FOLDER).rmdir()


def drawn(drawing: Drawing) -> Drawing:
    """The same figure, drawn now and once."""
    return Drawing(drawing.name, partial(bytes, drawing.draw()))


def _packed(record: Record, key: str) -> bytes:
    """A record as a safetensors file: tensors, samples and figures as such, the rest as JSON in its metadata."""
    tensors = {f"tensor/{name}": tensor.contiguous().cpu() for name, tensor in record.tensors.items()}
    for name, measurement in record.metrics.items():
        if measurement.sample is not None:
            tensors[f"sample/{name}"] = torch.from_numpy(measurement.sample.values.copy())
    for purpose, drawing in record.drawings.items():
        tensors[f"drawing/{purpose}"] = torch.frombuffer(bytearray(drawing.draw()), dtype=torch.uint8)
    for name, rows in record.rows.items():
        tensors[f"rows/{name}"] = torch.frombuffer(_pressed(rows), dtype=torch.uint8)
    plain = {
        "entries": [[FIELDS[type(entry)], entry.model_dump(mode="json")] for entry in record.entries],
        "metrics": {name: _plain(measurement) for name, measurement in record.metrics.items()},
        "warnings": record.warnings,
        "skipped": dict(record.skipped),
        "signs": dict(record.signs),
        "doubts": dict(record.doubts),
        "about": record.about,
        "drawings": {purpose: drawing.name for purpose, drawing in record.drawings.items()},
        "tensors": list(record.tensors),
        "rows": list(record.rows),
    }
    return save(tensors, {"record": json.dumps(plain, allow_nan=False), "key": key})


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
    values = {field.name: getattr(measurement, field.name) for field in fields(measurement)}
    sample = values.pop("sample")
    return values | ({} if sample is None else {"q": sample.q})


def _read(file: Path, key: str) -> Record | None:
    """The record that a file keeps; None where there is none, a damaged one, or one of another key."""
    if not file.is_file():  # a pipe would be waited for
        return None
    try:
        with safe_open(file, framework="pt") as handle:
            metadata = handle.metadata() or {}
            if metadata.get("key") != key:
                return None
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - it is no mapping
        plain = json.loads(metadata["record"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return Record(
        entries=[KINDS[name].model_validate(found) for name, found in plain["entries"]],
        metrics={
            name: _measurement(values, tensors.get(f"sample/{name}")) for name, values in plain["metrics"].items()
        },
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


def _measurement(values: Mapping[str, Any], sample: torch.Tensor | None) -> Measurement:
    plain = {name: value for name, value in values.items() if name not in ("q", "ci")}
    ci = None if values["ci"] is None else tuple(values["ci"])
    return Measurement(**plain, ci=ci, sample=None if sample is None else Sample(sample.numpy(), values["q"]))
