"""The checks there are, a row each: names, and import paths that are resolved where they are needed.

Entry points of the group ``vaeaudit.checks`` name rows of third parties, which have all that ours have: a command, a
section of the configuration, thresholds, a place in `vaeaudit audit` and in every form of a report. What is wrong with
one of them is told by every command that needs to know the checks, since an audit without it would be another one.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from vaeaudit.errors import CheckError, clipped, told

GROUP = "vaeaudit.checks"
_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)
# Commands and sections that belong to no check.
TAKEN = frozenset(
    {"audit", "merge", "compare", "report", "study", "doctor", "init", "adapters", "convert", "config"}
    | {"model", "data", "run", "checks", "baseline"}
)


@dataclass(frozen=True)
class Check:
    """One check; import paths are written "package.module:name".

    Args:
        name: of its command and its section, and what its metrics, works and rows begin with.
        help: what it asks, in one line of at most 60 letters.
        page: what explains it: a file beside this project's pages, or an address.
        settings: the class of its section, a :class:`vaeaudit.settings.sections.BaseSettings`.
        works: function that gives what it has to do, by name: a :data:`vaeaudit.checks.record.Work` each, whose record
            is kept for an audit that goes on. It takes a :class:`vaeaudit.subject.opened.Subject`, or, where the check
            is ``of_file``, a function that reads the :class:`vaeaudit.checks.weights.stored.StoredModel`.
        possible: function of its section that gives the names of the metrics there may be, as regular expressions.
        entries: the classes of its entries in a report, each a :class:`vaeaudit.layout.entry.Entry` with a
            ``section()``, by the field of the report that lists them.
        command: the function of its command.
        cost: function of the subject and a work's name that tells about how many rows the model is given in it, for the
            time left of a whole audit; "" where that is not known.
        of_file: it needs the model's file alone, no data and no model that runs.
        choices: keys of its section that choose what is measured and are told by a metric's name, so that another
            choice changes nothing of a metric that both have.
        pieces: the one of these of whose values each has a work of its own.
        files: keys of its section that are paths of checkpoints.
        gated: names of its metrics, as regular expressions, for which `vaeaudit init` proposes thresholds: of the many
            that it has, those that say most and have an interval from ten or twenty items.
        thresholds: function of its section that gives thresholds of its own, by metric; the configuration's win.
        aside: names of its metrics, likewise, that regress in a comparison only where they are named, as estimates
            that are no bounds, and what repeats another.
        parted: what takes its time is done by parts of the items that are kept each, see
            :meth:`vaeaudit.model.batches.RowBatches.map`, so that several processes can share it out.
        halves: it can be carried out on a model that runs in bfloat16: it needs no gradient and no small differences.
    """

    name: str
    help: str
    page: str
    settings: str
    works: str
    possible: str
    entries: Mapping[str, str]
    command: str
    cost: str = ""
    of_file: bool = False
    choices: tuple[str, ...] = ()
    pieces: str | None = None
    files: tuple[str, ...] = ()
    gated: tuple[str, ...] = ()
    thresholds: str = ""
    aside: tuple[str, ...] = ()
    parted: bool = False
    halves: bool = False

    def load(self, path: str) -> Any:
        """What an import path of this row names; raises :class:`CheckError`."""
        module, _, name = path.partition(":")
        try:
            return getattr(import_module(module), name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a third party's code
            raise CheckError(_unusable(self.name, f"{path} cannot be imported: {told(error)}")) from error


def _ours(name: str, about: str, entries: Mapping[str, str], **more: Any) -> Check:
    package = f"vaeaudit.checks.{name}"
    return Check(
        name=name,
        help=about,
        page=f"checks/{name}.md",
        settings=f"vaeaudit.settings.sections:{name.capitalize()}Settings",
        works=f"{package}.run:works",
        possible=f"{package}.metrics:possible",
        entries={field: f"{package}.entry:{kind}" for field, kind in entries.items()},
        command=f"vaeaudit.cli.{name}:command",
        cost=f"{package}.run:cost",
        **more,
    )


# In the order in which an audit carries them out.
OURS = (
    _ours(
        "attack",
        "How small a change of the input turns the model",
        {"attacks": "AttackEntry", "capped": "CappedEntry"},
        choices=("modes",),
        pieces="modes",
        gated=(r"attack\..*\.(delta|damage)\.median",),
    ),
    _ours(
        "margin",
        "How far each item may move and stay within r",
        {"margins": "MarginEntry"},
        choices=("r",),
        gated=(r"margin\.r[\d.e+-]+\.(certified|empirical)\.median",),
        parted=True,
        # The median of the pair [certified, empirical] has the empirical one's samples.
        aside=(r"margin\..*\.(frobenius|spectral|whitened)\..*", r"margin\.r[\d.e+-]+\.median"),
    ),
    _ours(
        "noise",
        "How log p falls where the encoder sees noise",
        {"noise": "NoiseEntry"},
        choices=("sigmas",),
        gated=(r"noise\.s[\d.e+-]+\.degradation\.median",),
        parted=True,
        halves=True,
    ),
    _ours(
        "reconstruction",
        "How like their inputs the reconstructions are",
        {"reconstructions": "ReconstructionEntry"},
        choices=("by", "shown", "perceptual", "features", "trust_networks"),
        files=("perceptual", "features"),
        gated=(r"reconstruction\.(psnr|ssim)\.(median|tail)", r"reconstruction\.scaled_error\.feature_worst"),
        parted=True,
        halves=True,
        # Errors of other norms, other scales and draws move with PSNR, SSIM and MSE.
        aside=(r"reconstruction\.draws\..*", r"reconstruction\.(ms_ssim|\w+_error|share_off|log_likelihood)\..*"),
    ),
    _ours(
        "equivalence",
        "Whether another form of the model gives the same",
        {"equivalences": "EquivalenceEntry"},
        choices=("variants", "shown", "tolerance"),
        files=("against",),
        thresholds="vaeaudit.checks.equivalence.metrics:thresholds",
        parted=True,
        aside=(r"equivalence\..*",),  # it has thresholds of its own
    ),
    _ours("latents", "ELBO, KL of each unit, active units", {"latents": "LatentsEntry"}, parted=True, halves=True),
    _ours("mig", "Whether one unit alone holds each known factor", {"migs": "MigEntry"}, parted=True),
    _ours(
        "weights",
        "L2 norms of encoder and decoder",
        {"weights": "WeightsEntry"},
        of_file=True,
        halves=True,
        files=("against",),
    ),
)


@cache
def checks() -> Mapping[str, Check]:
    """All checks by name, ours first; raises :class:`CheckError` where one cannot be used."""
    found, faults = installed()
    for fault in faults.values():
        raise CheckError(fault)
    return found


@cache
def installed() -> tuple[Mapping[str, Check], Mapping[str, str]]:
    """All checks by name, and what is wrong with those that cannot be used, a sentence each."""
    return among(entry_points(group=GROUP))


def among(points: Iterable[EntryPoint]) -> tuple[Mapping[str, Check], Mapping[str, str]]:
    """Our checks and those of these entry points; one that is found twice, as of a package installed twice, is one."""
    found = {check.name: check for check in OURS}
    faults: dict[str, str] = {}
    distinct = {(point.name, point.value): point for point in points}
    givers: dict[str, list[EntryPoint]] = {}
    for key in sorted(distinct):
        givers.setdefault(key[0], []).append(distinct[key])
    for name, of_name in givers.items():
        if name in found or name in TAKEN:
            faults[name] = _unusable(name, f"{_given(of_name)} gives it a name that vaeaudit has itself")
        elif len(of_name) > 1:
            faults[name] = _unusable(name, f"it is given by several packages, {_given(of_name)}")
        else:
            fault, check = _row(of_name[0])
            if check is None:
                faults[name] = _unusable(name, fault)
            else:
                found[name] = check
    return found, faults


def _row(point: EntryPoint) -> tuple[str, Check | None]:
    """What is wrong with the row of an entry point, or the row."""
    try:
        row = point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # importing runs a third party's code
        return f"{clipped(point.value)} cannot be imported: {told(error)}", None
    if not isinstance(row, Check):
        return f"{clipped(point.value)} is a {type(row).__name__}, where a vaeaudit.Check was expected", None
    if row.name != point.name or not _NAME.fullmatch(row.name):
        return (
            f"{clipped(point.value)} calls it '{clipped(row.name)}', where the name of its entry point was expected, "
            "of small letters, digits and _",
            None,
        )
    return "", row


def _given(points: Iterable[EntryPoint]) -> str:
    return " and ".join(
        f"{'unknown' if point.dist is None else point.dist.name} ({clipped(point.value)})" for point in points
    )


def _unusable(name: str, why: str) -> str:
    return f"the check '{clipped(name)}' cannot be used: {why}; mend or uninstall its package"
