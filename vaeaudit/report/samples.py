"""The values, one an item, behind the figures of a report: a file beside it, by which two audits are paired."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from vaeaudit.errors import InputError
from vaeaudit.model.files import obstacle
from vaeaudit.report.model import Report
from vaeaudit.stats.estimates import Sample

PURPOSE, FILE = "samples", "samples.safetensors"


class SamplesError(InputError):
    """The values behind a report's figures are missing or are not those of the report."""


Columns = dict[str, NDArray[np.float64]]
Places = dict[str, tuple[str, float | None]]  # by metric: its column, and its quantile


def distinct(samples: Mapping[str, Sample]) -> tuple[Columns, Places]:
    """Equal columns once, (n,) float64, and which of them each sample is, with its quantile."""
    columns: Columns = {}
    places: dict[bytes, str] = {}
    of: Places = {}
    for name, sample in samples.items():
        values = np.ascontiguousarray(sample.values, dtype=np.float64)
        place = places.setdefault(hashlib.sha256(values.data).digest(), f"column{len(places)}")
        columns.setdefault(place, values)
        of[name] = place, sample.q
    return columns, of


def pack(samples: Mapping[str, Sample]) -> bytes:
    """The samples as a safetensors file of columns; metadata "samples" says whose they are."""
    columns, of = distinct(samples)
    return save(columns, {"samples": json.dumps(of)})


def read_samples(report: Report, folder: Path) -> dict[str, Sample]:
    """The samples of a report that lies in ``folder``, by metric. Raises :class:`SamplesError`."""
    name = report.files.get(PURPOSE)
    if name is None:
        return {}
    file = folder / Path(name).name  # a name in a report leads nowhere else
    if fault := obstacle(file):
        raise SamplesError(fault)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SamplesError(
            f"{file}, which holds the values behind the report's figures, cannot be read ({error.strerror}); keep it "
            "beside the report"
        ) from error
    if hashlib.sha256(content).hexdigest() != report.files_sha256.get(PURPOSE):
        raise SamplesError(f"{file} is not the file that was written with the report beside it; keep them together")
    try:
        columns, of = load(content), json.loads(_metadata(content)["samples"])
        return {metric: Sample(columns[place], q) for metric, (place, q) in of.items()}
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise SamplesError(f"{file} does not hold the values behind a report's figures") from error


def _metadata(content: bytes) -> Mapping[str, str]:
    length = int.from_bytes(content[:8], "little")
    metadata: Mapping[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return metadata
