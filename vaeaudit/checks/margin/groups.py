"""What is measured of a group of items, as columns that a journal keeps and that the groups' are joined by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from vaeaudit.attacks.margin import EFFORT, Empirical
from vaeaudit.attacks.signs import Signs
from vaeaudit.certify.theorem import Sigma
from vaeaudit.checks.margin.certified import Certified, Effort
from vaeaudit.checks.margin.estimates import Bars, JacobianNorms
from vaeaudit.checks.margin.radius import Kept, MinRadius
from vaeaudit.model.batches import line_of, lines_of
from vaeaudit.model.ranges import Range
from vaeaudit.progress import GoOn, Progress

_FEW = 4  # items in a group are a multiple of this, as certificates are had of so many together
_ROWS = 96  # that the search for the empirical margin gives the model of an item in a step


@dataclass(frozen=True)
class Asked:
    """What is asked of every item, as in :func:`.measure.margin`; ``most`` is the largest norm that is tried."""

    radii: tuple[float, ...]
    m: float
    sigma: Sigma
    box: Range | None
    level: float
    draws: int
    parts: Sequence[str]
    effort: Effort
    seed: int
    most: float


@dataclass(frozen=True, eq=False)
class Bounds:
    """What is known of items at one radius; None is what was not asked for, or not begun."""

    kept: Kept
    certified: Certified | None
    empirical: Empirical | None


@dataclass(frozen=True, eq=False)
class Group:
    """What is measured of some items, ``at`` each radius."""

    norms: JacobianNorms
    least: MinRadius
    at: tuple[Bounds, ...]


def size_of(rows: int) -> int:
    """How many items make a group, where the model is given ``rows`` at once: as many as a step of the search fills."""
    items = max(1, rows // _ROWS)
    return items - items % _FEW if items > _FEW else items


def within_all(go_on: GoOn, first: int, count: int, of: int) -> GoOn:
    """Progress of the items from ``first`` on, ``count`` in number, told as that of all ``of`` items."""

    def asked(progress: Progress) -> bool:
        running = progress.running + of - first - count
        return go_on(replace(progress, running=running, problems=of, share=(first + count * progress.done) / of))

    return asked


def packed(group: Group) -> tuple[Tensor, ...]:
    """The columns of a finished group, (items, ...) each, and in the last what they are, (bytes,)."""
    norms, least = group.norms, group.least
    columns = _columns("norms", norms) | _columns("least", least)
    if norms.bars is not None:
        columns |= {f"bars {name}": ends.T for name, ends in _fields(norms.bars).items()}
    plain: dict[str, Any] = {"norms": _plain(norms, "bars"), "least": _plain(least), "at": []}
    for place, at in enumerate(group.at):
        columns |= _columns(f"{place} kept", at.kept)
        told = {"kept": _plain(at.kept)}
        if at.certified is not None:
            columns |= _columns(f"{place} certified", at.certified)
            told["certified"] = _plain(at.certified)
        if at.empirical is not None:
            columns |= _columns(f"{place} empirical", at.empirical)
            columns[f"{place} signs"] = at.empirical.signs.measured.T
            columns[f"{place} cut off"] = at.empirical.signs.cut_off
            told["empirical"] = _plain(at.empirical, "signs")
        plain["at"].append(told)
    return *columns.values(), line_of({"columns": list(columns), **plain})


def unpacked(columns: Sequence[Tensor]) -> Group:
    """All items from the columns of their groups, one group after another."""
    *values, told = columns
    plain = lines_of(told)
    named = dict(zip(plain[0]["columns"], values, strict=True))

    def of(kind: Callable[..., Any], name: str, about: Mapping[str, Any], **more: Any) -> Any:
        own = {key.removeprefix(f"{name} "): column for key, column in named.items() if key.startswith(f"{name} ")}
        return kind(**{**about, **own, **more})

    ends = {key.removeprefix("bars "): column.T for key, column in named.items() if key.startswith("bars ")}
    bars = Bars(**ends) if ends else None
    every = []
    for place, at in enumerate(plain[0]["at"]):
        certified = empirical = None
        if "certified" in at:
            parts = [one["at"][place]["certified"] for one in plain]
            by = tuple(won for part in parts for won in part["by"])
            missing = tuple(dict.fromkeys(why for part in parts for why in part["missing"]))
            certified = of(Certified, f"{place} certified", {}, by=by, missing=missing)
        if "empirical" in at:
            signs = Signs(named[f"{place} signs"].T, named[f"{place} cut off"], EFFORT)
            empirical = of(Empirical, f"{place} empirical", at["empirical"], signs=signs)
        every.append(Bounds(of(Kept, f"{place} kept", at["kept"]), certified, empirical))
    norms = of(JacobianNorms, "norms", plain[0]["norms"], bars=bars)
    return Group(norms, of(MinRadius, "least", plain[0]["least"]), tuple(every))


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _columns(name: str, value: Any) -> dict[str, Tensor]:
    return {f"{name} {key}": of for key, of in _fields(value).items() if isinstance(of, Tensor)}


def _plain(value: Any, *without: str) -> dict[str, Any]:
    """What of it is no tensor."""
    return {key: of for key, of in _fields(value).items() if not isinstance(of, Tensor) and key not in without}
