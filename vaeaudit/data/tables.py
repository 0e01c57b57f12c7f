"""Reading tables: CSV of numbers, and, by the extra "datasets", parquet files and data sets of Hugging Face on disk."""

import csv
import hashlib
from array import array
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeaudit.data.archives import LABEL_NAMES, Array, decoding, select
from vaeaudit.data.image_folders import pixels_of
from vaeaudit.data.items import Stored
from vaeaudit.data.labels import read_labels
from vaeaudit.errors import DataError, clipped, listed, nearest, without_extra
from vaeaudit.model.checkpoints import sha256_of

_LACKING = ("", "na", "n/a", "null", "none", "-", "?")  # what stands for a missing value, and names no column
_MATRIX = "columns"  # what the columns of numbers are called together
Values = NDArray[np.generic]


def read_csv(file: Path) -> Stored:
    """Rows of numbers, (n, columns); a column whose name is that of labels gives these, texts too.

    Whole numbers up to 255 in all columns become bytes, others int64, and all else floats.
    """
    numbers, labels, said = array("d"), [], []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            reader = csv.reader(stream, delimiter=max(",;\t", key=first.count))
            header = next(reader, [])
            names = [one.strip() for one in header] if _is_header(header) else None
            if names and all(_number(name) is not None for name in names):
                said.append(f"the first row counts the columns ({names[0]} to {names[-1]}) and is no item")
            places = [place for place, name in enumerate(names or ()) if name.lower() in LABEL_NAMES]
            for row in chain([] if names else [header], reader):
                if row and len(row) != len(header):
                    raise DataError(
                        f"{file}, line {reader.line_num}: {len(row)} values came, where {len(header)} were expected; "
                        "give every row as many"
                    )
                labels += [row[place] for place in places[:1] if row]
                kept = [text for place, text in enumerate(row) if place not in places]
                numbers.extend(_numbers(file, reader.line_num, kept))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is not a table as text ({error}); it may be only named so") from error
    width = len(header) - len(places)
    floats = np.frombuffer(numbers, np.float64).reshape(-1, max(1, width))
    values: Values = floats
    if floats.size and (floats == np.round(floats)).all() and np.abs(floats).max() < 2**53:
        values = floats.astype(np.uint8 if floats.min() >= 0 and floats.max() <= 255 else np.int64)
    found, texts, told, skipped = None, None, None, list[str]()
    if labels and names:
        called = names[places[0]]
        lacking = sum(text.strip().lower() in (*_LACKING, "nan") for text in labels)
        found, texts, told = (None, None, None) if lacking else read_labels(_labels(labels))
        if lacking:
            told = f"{lacking} of {len(labels)} are missing, where each item needs one"
        if found is None:
            skipped.append(f"{clipped(called)}: no labels but {told}")
        else:
            said += [] if told is None else [told]
        skipped += [f"{clipped(names[place])}: the labels are those of {clipped(called)}" for place in places[1:]]
    return Stored(values, found, None, str(file), sha256_of(file), tuple(skipped), told=tuple(said), label_names=texts)


def _labels(texts: list[str]) -> NDArray[np.generic]:
    """Labels as an archive would hold them: whole numbers, other numbers, or texts."""
    numbers = [number for text in texts if (number := _number(text)) is not None]
    if len(numbers) < len(texts):
        return np.asarray(texts)
    return np.asarray([int(number) for number in numbers] if all(map(float.is_integer, numbers)) else numbers)


def _is_header(row: list[str]) -> bool:
    """Whether the first row names the columns.

    It does where most of it are names, and where its numbers count from 0 or 1, as columns without a name are called,
    beside labels or an index, or four at least, which no item is likely to be. Else it is an item with a damaged value,
    which is told as in any other row, not left out in silence.
    """
    numbers = [text.strip() for text in row if _number(text) is not None]
    names = [text.strip().lower() for text in row if _number(text) is None]
    counted = any(numbers == [str(n + first) for n in range(len(numbers))] for first in (0, 1))
    unnamed = all(name in LABEL_NAMES or name == "" for name in names)
    named = sum(name not in _LACKING for name in names)
    return named > len(numbers) or (counted and unnamed and (bool(names) or len(numbers) > 3))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _numbers(file: Path, line: int, row: list[str]) -> list[float]:
    try:
        return [float(text) for text in row]
    except ValueError:
        wrong = next(text for text in row if _number(text) is None)
        came = f"'{clipped(wrong)}'" if wrong else "nothing"
        raise DataError(
            f"{file}, line {line}: {came} came, where a number was expected; leave that column or row out, or call a "
            f"column of labels {' or '.join(LABEL_NAMES[:2])}"
        ) from None


def read_parquet(file: Path, wanted: str | None) -> Stored:
    """A parquet file: a column of images or of lists, or the columns of numbers together; ``wanted`` names a column."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise without_extra(f"the parquet file {file}", "datasets") from error
    with decoding(file, "parquet file"):
        table = parquet.read_table(file)
    return _from_table(file, table, sha256_of(file), wanted)


def is_dataset(folder: Path) -> bool:
    """Whether a folder is what ``save_to_disk`` of Hugging Face's datasets leaves."""
    return any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def read_dataset(folder: Path, wanted: str | None) -> Stored:
    """A data set on disk; ``wanted`` is SPLIT, or COLUMN, or SPLIT.COLUMN of one that has splits."""
    try:
        import datasets
    except ImportError as error:
        raise without_extra(f"the data set {folder}", "datasets") from error
    with decoding(folder, "data set"):
        held = datasets.load_from_disk(str(folder))
    column = wanted
    if isinstance(held, datasets.DatasetDict):
        split, _, rest = (wanted or "").partition(".")
        if not wanted and len(held) == 1:
            split = next(iter(held))
        if split not in held:
            raise DataError(
                f"{folder} holds the splits {listed(held)}, where one was expected{nearest(split, held)}; name it, as "
                f"in {folder.name}#{next(iter(held))}"
            )
        held, column = held[split], rest or None
    with decoding(folder, "data set"):
        table = held.with_format("arrow")[:]
    files = [Path(one["filename"]) for one in held.cache_files]
    lines = "".join(f"{sha256_of(file)}  {file.name}\n" for file in files)
    return _from_table(
        folder, table, hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest(), column, wanted
    )


def _from_table(place: Path, table: Any, sha256: str, wanted: str | None, part: str | None = None) -> Stored:
    """What :func:`select` makes of the columns of an Arrow table."""
    arrays: dict[str, Array] = {}
    scalars: dict[str, Any] = {}
    skipped: list[str] = []
    for name in table.column_names:
        column = table.column(name)
        kind = column.type.storage_type if hasattr(column.type, "storage_type") else column.type
        if str(kind).startswith("struct<") and {"bytes"} <= {field.name for field in kind}:
            values = _pictures(place, column)
            arrays[name] = Array(place, values.shape, values.dtype.kind, None, partial(_given, values))
        elif str(kind).startswith(("list<", "fixed_size_list", "large_list<")):
            values = _lists(place, name, column)
            arrays[name] = Array(place, values.shape, values.dtype.kind, None, partial(_given, values))
        elif name.lower() in LABEL_NAMES:
            values = np.asarray(column.to_pylist())
            arrays[name] = Array(place, values.shape, values.dtype.kind, None, partial(_given, values))
        elif str(kind).startswith(("int", "uint", "float", "double", "halffloat", "bool")):
            scalars[name] = column
        else:
            skipped.append(f"{clipped(name)}: {clipped(str(kind))}, which is neither numbers nor images")
    if scalars and not any(len(one.shape) > 1 for one in arrays.values()):
        values = np.stack([column.to_numpy() for column in scalars.values()], 1)
        arrays[_MATRIX] = Array(place, values.shape, values.dtype.kind, None, partial(_given, values))
    else:
        skipped += [f"{clipped(name)}: not taken as images, labels or factors" for name in scalars]
    return select(place, arrays, skipped, wanted, sha256, part)


def _given(values: Values) -> Values:
    return values


def _pictures(place: Path, column: Any) -> Values:
    pixels: list[Values] = []
    for number, one in enumerate(column.to_pylist()):
        if one is None or not one.get("bytes"):
            raise DataError(
                f"{place}: image {number} lies outside of it ({clipped(str((one or {}).get('path')))}), and files that "
                "a data set names are not opened; save it with its images in it"
            )
        pixels.append(pixels_of(place, one["bytes"])[0])
        if (pixels[-1].shape, pixels[-1].dtype) != (pixels[0].shape, pixels[0].dtype):
            raise DataError(
                f"{place}: image {number} is {pixels[-1].shape} where the first is {pixels[0].shape}, and all must "
                "have one size and mode; convert them first"
            )
    return np.stack(pixels)


def _lists(place: Path, name: str, column: Any) -> Values:
    try:
        values = np.asarray(column.to_pylist())
    except ValueError as error:
        raise DataError(f"{place}: lists of column '{clipped(name)}' differ in length; give all as many") from error
    return values.astype(np.float32) if str(column.type).endswith("float>") and values.dtype == np.float64 else values
