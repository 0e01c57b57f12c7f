"""What lies beside report.json: values of every item, adversarial inputs, figures."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from safetensors.torch import save

from vaeaudit.audit.run import Audit
from vaeaudit.checks.record import Row, to_json_line
from vaeaudit.report.samples import FILE, PURPOSE, pack

Files = dict[str, tuple[str, Iterable[bytes]]]  # purpose -> file name, content in pieces


@dataclass(frozen=True, eq=False)
class ItemsJson:
    """The content of items.json, a row a line: many rows are never held as text at once."""

    rows: Mapping[str, Iterable[Row]]

    def __iter__(self) -> Iterator[bytes]:
        for place, (name, values) in enumerate(self.rows.items()):
            yield (b",\n" if place else b"{\n") + to_json_line(name).encode() + b": ["
            for row, value in enumerate(values):
                yield (b",\n" if row else b"\n") + to_json_line(value).encode()
            yield b"\n]"
        yield b"\n}\n"


def artifacts(audit: Audit) -> Files:
    """The files of an audit that go beside its report; empty where no check ran."""
    files: Files = {}
    rows = {name: values for record in audit.records for name, values in record.rows.items()}
    if rows:
        files["items"] = ("items.json", ItemsJson(rows))
    if audit.samples:
        files[PURPOSE] = (FILE, [pack(audit.samples)])
    if any(record.tensors for record in audit.records):
        files["adversarial inputs"] = ("adversarial.safetensors", [_adversarial(audit)])
    for record in audit.records:
        files |= {purpose: (drawing.name, [drawing.draw()]) for purpose, drawing in record.drawings.items()}
    return files


def _adversarial(audit: Audit) -> bytes:
    """Distortions and what they lead to, (pairs, lambdas or caps, *shape); metadata "audit" says of what."""
    tensors = {name: tensor.contiguous().cpu() for record in audit.records for name, tensor in record.tensors.items()}
    about: dict[str, object] = {}
    for record in audit.records:
        about |= record.about
    about |= {"seed": audit.report.environment.seed, "model_sha256": audit.report.model.file.sha256}
    # One entry, since safetensors writes several in random order, and the same audit gives the same bytes.
    return save(tensors, {"audit": json.dumps(about)})
