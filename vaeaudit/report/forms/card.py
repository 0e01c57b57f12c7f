"""The front matter of a model card on the Hugging Face hub: the figures of an audit as a ``model-index``."""

import re
from collections.abc import Mapping
from pathlib import PurePath

import yaml

from vaeaudit.layout.entry import MetricEntry
from vaeaudit.layout.inert import one_line
from vaeaudit.layout.section import interval
from vaeaudit.report.model import DataEntry, Report

# The hub knows no task of auditing; of those that it knows, this one is about the latent code.
_TASK = {"type": "feature-extraction", "name": "Robustness audit of a variational autoencoder"}
_QUARTILES = (".lower_quartile", ".upper_quartile")


def render(report: Report) -> str:
    """The block between two lines of dashes; without any figure to state it holds a tag alone."""
    metrics = [_metric(name, metric) for name, metric in stated(report).items()]
    result = {"task": dict(_TASK), "dataset": _dataset(report.data), "metrics": metrics}
    index = [{"name": _stem(report.model.file.path, "model"), "results": [result]}]
    front: dict[str, object] = {"model-index": index} if metrics else {"tags": ["vaeaudit"]}
    block = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=float("inf"))
    return f"---\n{_comments(report)}{block}---\n"


def stated(report: Report) -> Mapping[str, MetricEntry]:
    """The figures that thresholds read; without thresholds, medians and what has no quartiles."""
    known = {name: metric for name, metric in report.metrics.items() if metric.value is not None}
    if report.checks:
        read = dict.fromkeys(check.id for check in report.checks)
        return {name: known[name] for name in read if name in known}
    spread = {name.removesuffix(ending) for name in report.metrics for ending in _QUARTILES if name.endswith(ending)}
    return {
        name: metric
        for name, metric in known.items()
        if name.endswith(".median") or name.rpartition(".")[0] not in spread
    }


def _metric(name: str, metric: MetricEntry) -> dict[str, object]:
    words = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", name).replace("_", " ")
    shown = f"{words[:1].upper()}{words[1:]} in {metric.unit}, "
    if metric.ci:
        shown += f"{100 * metric.level:.4g}% interval {interval(metric)}"
    elif metric.exact or metric.value is None:
        shown += interval(metric)
    else:
        shown += "an end of its interval is infinite" if metric.endless else "n too small for an interval"
    args: dict[str, object] = {"ci": list(metric.ci)} if metric.ci else {}
    args |= {"level": metric.level, "n": metric.n, "estimator": one_line(metric.estimator)}
    if metric.doubt:
        args["doubt"] = one_line(metric.doubt)
        shown += "; in doubt"
    return {"type": one_line(name), "name": one_line(shown), "value": metric.value, "args": args}


def _dataset(data: DataEntry | None) -> dict[str, object]:
    if data is None:
        return {"type": "none", "name": "none: the weights alone"}
    name = _stem(data.source, "data")
    kind = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.") or "data"
    return {"type": kind, "name": name, "args": {"n": data.n, "sha256": one_line(data.sha256)}}


def _stem(path: str, otherwise: str) -> str:
    return one_line(PurePath(path).stem.strip()) or otherwise


def _comments(report: Report) -> str:
    """What a reader of the block must know that the hub has no field for."""
    day, file = report.created[:10], report.model.file
    lines = [
        f"Audited by {report.tool} on {day}; verdict: {report.verdict}.",
        f"Model: {PurePath(file.path).name}, SHA-256 {file.sha256}.",
        *(f"Partial: {reason}." for reason in report.partial),
    ]
    return "".join(f"# {one_line(line)}\n" for line in lines)
