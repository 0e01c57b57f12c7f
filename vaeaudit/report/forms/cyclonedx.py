"""A CycloneDX 1.6 bill of materials of a model, with an audit's figures and their intervals as its performance metrics.

The document is written as the specification has it: the project's Python library has no classes for model cards.
"""

import uuid
from pathlib import PurePath

from pydantic import JsonValue

from vaeaudit.layout.inert import visible
from vaeaudit.report.forms.card import stated
from vaeaudit.report.model import Report
from vaeaudit.report.writer import dumps

SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"


def render(report: Report) -> str:
    """The bill as JSON: the model as its subject, its files, the data, and the figures that thresholds read.

    Without thresholds the medians, and what has none.
    """
    tool, _, version = report.tool.partition(" ")
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"{report.model.file.sha256} {report.created}")
    return dumps(
        {
            "$schema": SCHEMA,
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "serialNumber": f"urn:uuid:{number}",
            "version": 1,
            "metadata": {
                "timestamp": report.created,
                "tools": {"components": [{"type": "application", "name": tool, "version": version}]},
                "component": _model(report),
            },
            "components": _data(report),
        }
    )


def _model(report: Report) -> dict[str, JsonValue]:
    model = report.model
    files: list[JsonValue] = [
        {"type": "file", "name": _name(file.path), "hashes": _hash(file.sha256)} for file in model.files
    ]
    properties = {
        "verdict": report.verdict,
        "seed": str(report.environment.seed),
        "dtype": report.environment.dtype,
        "configuration_sha256": report.configuration_sha256,
        "likelihood": model.likelihood or "",
        **{f"partial:{place}": why for place, why in enumerate(report.partial)},
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": _name(model.file.path),
        "hashes": _hash(model.file.sha256),
        "modelCard": {
            "modelParameters": {
                "task": "representation learning by a variational autoencoder",
                "architectureFamily": "variational autoencoder",
                "modelArchitecture": visible(model.adapter.name) if model.adapter else "not opened",
                **({"datasets": [{"ref": "data"}]} if report.data is not None else {}),
            },
            "quantitativeAnalysis": {"performanceMetrics": _metrics(report)},
            "properties": [
                {"name": f"vaeaudit:{name}", "value": visible(value)} for name, value in properties.items() if value
            ],
        },
        "components": files,
    }


def _metrics(report: Report) -> list[JsonValue]:
    metrics: list[JsonValue] = []
    for name, metric in stated(report).items():
        ends = {} if metric.ci is None else dict(zip(("lowerBound", "upperBound"), map(repr, metric.ci), strict=True))
        slice_ = f"{metric.n} items; {metric.estimator}" + (f"; in doubt: {metric.doubt}" if metric.doubt else "")
        metrics.append(
            {
                "type": visible(f"{name} in {metric.unit}"),
                "value": repr(metric.value),
                "slice": visible(slice_),
                **({"confidenceInterval": dict[str, JsonValue](ends)} if ends else {}),
            }
        )
    return metrics


def _data(report: Report) -> list[JsonValue]:
    if report.data is None:
        return []
    return [
        {
            "type": "data",
            "bom-ref": "data",
            "name": _name(report.data.source),
            "hashes": _hash(report.data.sha256),
            "data": [{"type": "dataset", "name": _name(report.data.source)}],
        }
    ]


def _hash(sha256: str) -> list[JsonValue]:
    return [{"alg": "SHA-256", "content": sha256}]


def _name(path: str) -> str:
    return visible(PurePath(path).name or path)
