"""Figures of many audits as one tidy table, a CSV file: a row a figure, and a row a value of an item behind it.

Its columns are ``metric``, ``item`` (empty for the figure itself), ``value``, ``low``, ``high`` (its interval), ``n``,
``q`` (the quantile that the figure is; empty for a mean and for what is no statistic of items), ``doubt`` (why it
supports no verdict; empty where it does), ``version`` (of the tool), ``seed`` (of the model's training), ``audit``
(which of its audits; no setting of the model), and the settings of the system that was trained, which may have any
other names. A row may name a ``report`` (its folder, from
that of the file) in place of all that an audit tells. A figure without a value is empty; no figure is infinite, but
values of items may be, as those of margins that nothing broke.
"""

import csv
import io
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from vaeaudit.errors import InputError, clipped, listed
from vaeaudit.report.reading import read_report
from vaeaudit.report.samples import read_samples
from vaeaudit.stats.levels import of_items

AUDIT = "audit"
_ROUNDING = 1e-4  # of a figure against its items, as a share of the largest: it may have been taken in float32
_LARGEST = 1e140  # of a number, as intervals take squares and their sums
_FORMULA = re.compile(r"\s*[=+\-@].")  # a dash alone is none
_MEASURED = ("metric", "item", "value", "low", "high", "n", "q", "doubt", "version")


class ResultsError(InputError):
    """A table of results cannot be used."""


@dataclass(frozen=True)
class Figure:
    """One row: a figure of the model of these ``settings`` trained with ``seed``, or the value of one ``item``."""

    settings: Mapping[str, str]
    seed: str
    metric: str
    item: int | None
    value: float
    low: float | None
    high: float | None
    n: int | None
    q: float | None
    version: str
    doubt: str = ""


def figures_of(report: str | Path, settings: Mapping[str, str], seed: str) -> list[Figure]:
    """All figures of an audit, and the values of items behind its means and medians.

    Raises:
        ReportError: no report, or a damaged one.
        SamplesError: the values are not beside it, or not its own.
    """
    found, folder = read_report(report)
    samples, version, figures = read_samples(found, folder), found.tool, []
    for name, metric in found.metrics.items():
        sample = samples.get(name)
        kept = sample is not None and sample.q in (None, 0.5)
        q = sample.q if sample is not None and kept else None
        value = math.nan if metric.value is None else metric.value
        low, high = metric.ci or (None, None)
        figures.append(Figure(settings, seed, name, None, value, low, high, metric.n, q, version, metric.doubt or ""))
        if sample is not None and kept:
            values = enumerate(map(float, sample.values))
            figures += [Figure(settings, seed, name, i, v, None, None, None, q, version) for i, v in values]
    return figures


def read_results(files: Iterable[str | Path]) -> list[Figure]:
    """The figures of several tables.

    Raises :class:`ResultsError` for one that cannot be read, where versions of the tool differ, and for a figure or an
    item that stands there twice, or a figure that is another than that of its items, or of another number of them.
    """
    figures = [figure for file in files for figure in _read(Path(file))]
    if not figures:
        raise ResultsError("the results hold no figure; is it the file that a study wrote?")
    versions = sorted({figure.version for figure in figures})
    if len(versions) > 1:
        raise ResultsError(
            f"the results are of {len(versions)} versions of the tool ({listed(versions)}), whose figures are not "
            "mixed; audit the models again with one, or give the files of one"
        )
    _refuse_unprintable(figures)
    _refuse_too_large(figures)
    _refuse_contradictions(figures)
    return figures


def _refuse_unprintable(figures: Iterable[Figure]) -> None:
    """What a terminal or a spreadsheet obeys has no place in a table that is handed on."""
    texts = {
        text
        for one in figures
        for text in (*one.settings, *one.settings.values(), one.seed, one.metric, one.doubt, one.version)
    }
    for text in sorted(texts):
        if any(unicodedata.category(character) == "Cc" for character in text):
            raise ResultsError(f"the results hold a control character, in {clipped(text)!r}; take it out")
        if _FORMULA.match(text) and not _number_of(text):
            raise ResultsError(
                f"the results hold {clipped(text)!r}, where a spreadsheet would see a formula and run it; let it begin "
                "with a letter or a digit"
            )


def _refuse_too_large(figures: Iterable[Figure]) -> None:
    for one in figures:
        for number in (one.value, one.low, one.high):
            if number is not None and _LARGEST < abs(number) < math.inf:
                raise ResultsError(
                    f"the results hold {clipped(one.metric)} with {number:g} for seed {clipped(one.seed)}, where at "
                    f"most {_LARGEST:g} was expected, as intervals take squares; leave out what diverged"
                )


def _refuse_contradictions(figures: Iterable[Figure]) -> None:
    models: dict[tuple[object, ...], dict[int | None, Figure]] = {}
    for one in figures:
        settings = sorted(part for part in one.settings.items() if part[1])
        of_metric = models.setdefault((*settings, one.seed, one.metric), {})
        if one.item in of_metric:
            item = "" if one.item is None else f"item {one.item} of "
            raise ResultsError(
                f"the results hold {item}{clipped(one.metric)} twice for seed {clipped(one.seed)} of the same "
                "settings; give what tells these models apart a column of its own"
            )
        of_metric[one.item] = one
    for of_metric in models.values():
        figure, values = of_metric.get(None), [one.value for item, one in of_metric.items() if item is not None]
        known = np.array([value for value in values if not math.isnan(value)])
        if figure is None or not len(known) or math.isnan(figure.value):
            continue
        # A mean is of the finite ones, a quantile of all but NaN.
        if figure.n is not None and figure.n not in (len(known), np.isfinite(known).sum()):
            raise ResultsError(
                f"the results hold {clipped(figure.metric)} of n = {figure.n} for seed {clipped(figure.seed)}, but "
                f"{len(known)} items with a value; take both from one audit"
            )
        wanted = float(of_items(known, figure.q))
        if math.isfinite(wanted) and abs(wanted - figure.value) > _ROUNDING * max(abs(known[np.isfinite(known)])):
            of = "mean" if figure.q is None else f"{figure.q:g} quantile"
            raise ResultsError(
                f"the results hold {clipped(figure.metric)} = {figure.value:.6g} for seed {clipped(figure.seed)}, but "
                f"the {of} of its {len(known)} items is {wanted:.6g}; take both from one audit"
            )


def to_csv(figures: Iterable[Figure]) -> str:
    """The table, settings first."""
    rows = list(figures)
    settings = list(dict.fromkeys(name for figure in rows for name in figure.settings))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*settings, "seed", *_MEASURED])
    for one in rows:
        value = "" if math.isnan(one.value) else repr(one.value)
        measured = (one.metric, one.item, value, one.low, one.high, one.n, one.q, one.doubt, one.version)
        writer.writerow([*(one.settings.get(name, "") for name in settings), one.seed, *measured])
    return buffer.getvalue()


def _read(file: Path) -> Iterator[Figure]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            rows = csv.DictReader(stream, strict=True, delimiter=max(",;\t", key=first.count))
            named = set(rows.fieldnames or ())
            if len(named) < len(rows.fieldnames or ()):
                raise ResultsError(f"{file} has two columns of one name; give each its own")
            if not ("report" in named or {"metric", "value"} <= named):
                raise ResultsError(
                    f"{file} has no column metric and value, and none named report, where a table of results was "
                    f"expected (its columns are {listed(sorted(map(str, named))) or 'none'})"
                )
            if "report" not in named and "version" not in named:
                raise ResultsError(
                    f"{file} has no column version, which tells the tool that figures are of, since those of two "
                    "versions are not mixed; add it"
                )
            for row in rows:
                yield from _figures(row, file, rows.line_num)
    except OSError as error:
        raise ResultsError(f"{file} cannot be read ({error.strerror or error}); check its name") from error
    except UnicodeDecodeError as error:
        raise ResultsError(f"{file} is no table in CSV, as UTF-8: {clipped(str(error))}; save it so") from error
    except csv.Error as error:
        if "field limit" in str(error):
            most = f"{csv.field_size_limit():,} characters"
            raise ResultsError(f"{file} has a cell of more than {most}; shorten it, or mend its quotes") from error
        raise ResultsError(f"{file} is no table in CSV: {clipped(str(error))}; mend it there") from error


def _figures(row: dict[str, str], file: Path, line: int) -> list[Figure]:
    if None in row or None in row.values():
        raise ResultsError(f"{file}, line {line} has another number of cells than the header")
    measured = {name: row.pop(name, "").strip() for name in _MEASURED}
    report = row.pop("report", "").strip()
    row = {name: _plain(cell) for name, cell in row.items()}
    for name, cell in row.items():
        if _unending(cell):
            raise ResultsError(
                f"{file}, line {line} holds {clipped(name)} = {clipped(cell)}, where a finite number or a text was "
                "expected; leave it empty where there is none"
            )
    seed = row.pop("seed", "") or "0"
    if report:
        return figures_of(file.parent / report, row, seed)
    try:
        value, low, high, q = (_number(measured[name]) for name in ("value", "low", "high", "q"))
    except ValueError:
        raise ResultsError(f"{file}, line {line} holds a text where a number was expected") from None
    for name in ("item", "n"):
        if not re.fullmatch(r"[0-9]{0,15}", measured[name]):
            raise ResultsError(
                f"{file}, line {line} holds {name} = {clipped(measured[name])}, where a whole number from 0 on was "
                "expected; correct it, or leave it empty"
            )
    item, n = (int(measured[name]) if measured[name] else None for name in ("item", "n"))
    if any(number is not None and math.isnan(number) for number in (value, low, high, q)):
        raise ResultsError(
            f"{file}, line {line} holds nan where a number was expected; leave it empty where there is none"
        )
    known = math.nan if value is None else value
    if not measured["version"]:
        raise ResultsError(f"{file}, line {line} names no version of the tool; say by which it was measured")
    if item is None and math.isinf(known):
        raise ResultsError(f"{file}, line {line} holds a figure of {known}; leave the value empty where there is none")
    if (low is not None and high is not None and not low <= high) or not 0 <= (0.5 if q is None else q) <= 1:
        raise ResultsError(f"{file}, line {line} holds an interval, or a quantile q, that is none")
    return [Figure(row, seed, measured["metric"], item, known, low, high, n, q, measured["version"], measured["doubt"])]


@lru_cache(4096)  # of some hundred thousand rows, whose settings are few
def _plain(cell: str) -> str:
    """A cell without blanks around it, and a whole number in digits alone: 1 and 1.0 are one setting."""
    cell = cell.strip()
    with suppress(ValueError):
        if (number := float(cell)).is_integer() and abs(number) < 2**53:
            return str(int(number))
    return cell


@lru_cache(4096)
def _unending(cell: str) -> bool:
    """Whether it is a number, but infinite or none: such have no place among the values of a setting."""
    try:
        return not math.isfinite(float(cell))
    except ValueError:
        return False


def _number_of(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _number(text: str) -> float | None:
    return float(text) if text else None
