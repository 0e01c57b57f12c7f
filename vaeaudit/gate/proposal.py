"""A first configuration, with thresholds that a first audit suggests."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

from vaeaudit.attacks import modes
from vaeaudit.checks.margin.entry import MarginEntry
from vaeaudit.checks.registry import checks
from vaeaudit.errors import ConfigError, listed
from vaeaudit.layout.entry import MetricEntry
from vaeaudit.layout.inert import one_line
from vaeaudit.layout.section import number, with_interval
from vaeaudit.report.model import Report
from vaeaudit.settings.sections import Settings

FILE = "vaeaudit.toml"
_MODELS = (".safetensors", ".pt", ".pth", ".ckpt")
_DATA = re.compile(r"\.np[yz]$|[.-]idx\d?(-\w+)?(\.gz)?$")
_MANY = 10_000  # items above which a draw of so many is proposed


def find_model(folder: Path) -> str:
    """The name of the one checkpoint in ``folder``; raises :class:`ConfigError` where there is none, or a choice."""
    found = sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix.lower() in _MODELS)
    return _only(found, "checkpoint", f"{', '.join(_MODELS)}", "name one, as in `vaeaudit init vae.safetensors`")


def find_data(folder: Path) -> str:
    """The name of the one data file in ``folder``; raises :class:`ConfigError` where there is none, or a choice."""
    found = sorted(path.name for path in folder.iterdir() if path.is_file() and _DATA.search(path.name))
    return _only(found, "data file", ".npz, .npy or MNIST idx", "name one, as in `--data val.npz`")


def _only(found: list[str], what: str, kinds: str, cure: str) -> str:
    if not found:
        raise ConfigError(f"there is no {what} here ({kinds}); {cure}")
    if len(found) > 1:
        raise ConfigError(f"there are {len(found)} {what}s here ({listed(found)}); {cure}")
    return found[0]


def propose(report: Report, settings: Settings, folder: Path) -> str:
    """The text of a configuration in ``folder`` for the model and data of a first audit.

    Each threshold lies beyond the interval of its figure by half of the interval's width, so that an audit of the same
    model passes with other seeds as well, and one that is clearly worse does not. A figure without an interval, or in
    doubt, gets none.
    """
    parts = (
        _head(report, settings, folder),
        _doctor(report, settings),
        _checks(report, settings),
        _policy(report, settings),
    )
    return "\n".join(line for part in parts for line in part) + "\n"


def threshold(metric: MetricEntry) -> float | None:
    """What a figure like this should keep to: a least value where higher is more robust, else a most one.

    None where it supports none: no interval, a doubt, or one that reaches 0, below which no such figure falls.
    """
    if metric.ci is None or metric.value is None or metric.doubt is not None:
        return None
    low, high = metric.ci
    slack = (high - low) / 2
    if metric.direction != "higher":
        return _rounded(high + slack, up=True)
    if low - slack > 0 or metric.value < 0:
        return _rounded(low - slack, up=False)
    return _rounded(low / 2, up=False) if low > 0 else None


def _rounded(value: float, *, up: bool) -> float:
    """Two significant digits."""
    if value == 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    steps = math.ceil(value / step) if up else math.floor(value / step)
    return float(f"{steps * step:.2g}")


def _head(report: Report, settings: Settings, folder: Path) -> Iterator[str]:
    model, data = settings.model, settings.data
    yield f"# What `vaeaudit audit` does here. Written by `vaeaudit init` after a first audit ({report.created[:10]})."
    yield "# Every key is explained by `vaeaudit config schema`; `vaeaudit config show` tells what counts."
    yield ""
    yield "[model]"
    yield f"path = {_toml(_near(str(model.path), folder))}"
    if report.model.adapter is not None:
        said = "" if model.adapter else "  # as the checkpoint itself says"
        yield f"adapter = {_toml(model.adapter or report.model.adapter.name)}{said}"
    if model.options:
        yield f"options = {_toml(model.options)}"
    yield ""
    yield "[data]"
    yield f"source = {_toml(_near(str(data.source), folder))}"
    if report.data is not None and report.data.range is not None:
        yield f"range = {_toml(report.data.range)}  # of the model's inputs"
    if data.resize is not None:
        yield f"resize = {_toml(data.resize)}"
    if data.normalize is not None:
        yield f"normalize = {_toml(data.normalize)}"
    yield ""
    yield "[run]"
    yield f"seed = {settings.run.seed}  # two audits are comparable only with the same"
    kept = settings.run.model_dump(exclude_defaults=True, include={"device", "dtype", "batch_size", "limit", "sample"})
    yield from (f"{key} = {_toml(value)}" for key, value in kept.items())
    if report.data is not None and report.data.n > _MANY and not kept.keys() & {"limit", "sample"}:
        yield f"# sample = {_MANY}  # so many of the {report.data.n} items, drawn at random, where all take too long"
    yield ""


def _doctor(report: Report, settings: Settings) -> Iterator[str]:
    """What is acknowledged of the model, and what could be."""
    known = settings.doctor.acknowledge
    findings = report.plausibility.findings if report.plausibility is not None else []
    unsure = [one for one in findings if one.verdict == "unsure" and one.name not in known]
    if not (known or unsure):
        return
    yield "[doctor.acknowledge]" if known else "# [doctor.acknowledge]"
    yield from (f"{json.dumps(name)} = {_toml(reason)}" for name, reason in known.items())
    for one in unsure:
        yield f'# {json.dumps(one.name)} = "why it is meant"  # unsure: {one_line(one.message, 200)}'
    yield ""


def _checks(report: Report, settings: Settings) -> Iterator[str]:
    """The sections of the checks that could be done; a section, even an empty one, enables its check."""
    shown = {"attack": ("modes", "pairs"), "margin": ("r", "items"), "noise": ("sigmas", "items")}
    shown["equivalence"] = ("variants", "tolerance")
    comments = {
        "modes": ", ".join(modes.names()),
        "pairs": "more give narrower intervals",
        "r": "in output units; twice the median least radius that holds an unperturbed item's own draws",
        "sigmas": "on the scale of the inputs",
        "variants": "other forms of the model that should give the same",
        "tolerance": "of the range: what the worst item may differ by, and the median one by half of it",
    }
    for check in checks():
        section: BaseModel = getattr(settings, check)
        keys = dict.fromkeys(
            [*shown.get(check, ()), *section.model_dump(exclude_defaults=True)]
        )  # what is asked otherwise
        values = {key: value for key, value in section.model_dump(mode="json").items() if key in keys}
        if check == "margin":
            values["r"] = _radii(report, settings)
        if check in report.skipped:
            yield f"# [{check}]  # left out: {report.skipped[check]}"
        elif check in report.timings:
            yield f"[{check}]  # took {report.timings[check]:.0f} s"
            for key, value in values.items():
                yield f"{key} = {_toml(value)}" + (f"  # {comments[key]}" if key in comments else "")
        elif check == "equivalence":
            yield "# [equivalence]  # where it names another form of the model, or another checkpoint as against"
            yield '# variants = ["dtype=bfloat16"]'
        yield ""


def _radii(report: Report, settings: Settings) -> list[float | str]:
    """The radii that were measured, so that later audits measure the same ones whatever their model."""
    return [entry.r for entry in report.entries(MarginEntry)] or list(settings.margin.r)


def _policy(report: Report, settings: Settings) -> Iterator[str]:
    yield "# Thresholds. Each reads the whole interval of its figure: it passes where all of it is on the right side,"
    yield "# fails where all of it is on the wrong side, and is inconclusive (exit code 5) in between. They lie half an"
    yield "# interval beyond what was measured; move them to what your release needs."
    yield ""
    patterns = [pattern for check in checks().values() for pattern in check.gated]
    gated = [item for item in report.metrics.items() if any(re.fullmatch(pattern, item[0]) for pattern in patterns)]
    for name, metric in gated:
        measured = f"{with_interval(metric.value, metric.ci, 4)} {metric.unit}, n = {metric.n}"
        value = threshold(metric)
        if value is None:
            why = metric.doubt or _no_threshold(metric)
            yield f"# No threshold for {name} ({measured}): {why}"
        else:
            yield f'[checks."{name}"]'
            yield f"{'min' if metric.direction == 'higher' else 'max'} = {value:g}  # measured {measured}"
        yield ""
    yield from _own(report, settings)
    yield '# A threshold may warn only (severity = "warn"), and a known fault may be waived until a day:'
    yield '# waive = { until = 2030-12-31, reason = "where it is tracked" }'
    yield ""
    yield "# Compare every audit with that of the last release: keep its whole report folder. A regression must be more"
    yield "# than chance, and more than min_effect: here, half an interval."
    yield "# [baseline]"
    yield '# path = "audit/last-release"'
    allowed = {name: _rounded((metric.ci[1] - metric.ci[0]) / 2, up=True) for name, metric in gated if metric.ci}
    yield f"# metrics = {_toml(list(allowed))}"
    yield f"# min_effect = {_toml(allowed)}"


def _own(report: Report, settings: Settings) -> Iterator[str]:
    """The thresholds that checks bring themselves, and what was measured of them."""
    outcomes = {one.id: one.verdict for one in report.checks}
    for check in checks().values():
        own = check.load(check.thresholds)(getattr(settings, check.name)) if check.thresholds else {}
        if there := {name: gate for name, gate in own.items() if name in report.metrics}:
            yield f"# [{check.name}] brings thresholds of its own, which one of the same name here replaces:"
            for name, gate in there.items():
                bounds = gate.model_dump(include={"min", "max"}, exclude_none=True).items()
                told = ", ".join(f"{key} = {number(value, 3)}" for key, value in bounds)
                measured = (
                    f"measured {number(report.metrics[name].value, 3)}, {outcomes.get(name, 'not held against it')}"
                )
                yield f'# [checks."{name}"]  # {told}; {measured}'
            yield ""


def _no_threshold(metric: MetricEntry) -> str:
    if metric.value is None:
        return "it is not a finite number"
    if metric.ci is not None:
        return "its interval reaches 0"
    return "an end of its interval is infinite" if metric.endless else "too few items for an interval"


def _near(path: str, folder: Path) -> str:
    """A path as it is said from ``folder``, where it lies below it."""
    whole = Path(path).resolve()
    return whole.relative_to(folder.resolve()).as_posix() if whole.is_relative_to(folder.resolve()) else str(whole)


def _toml(value: object) -> str:
    """A value in TOML: like JSON, but for tables."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return number(value, 12)
    return json.dumps(value, ensure_ascii=False)
