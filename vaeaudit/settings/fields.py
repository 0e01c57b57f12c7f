"""The types of settings: numbers, names and ranges, each with what it may be."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    PlainValidator,
)
from pydantic_core import CoreSchema, core_schema

from vaeaudit.attacks import modes
from vaeaudit.checks.registry import checks
from vaeaudit.model import ranges, variant

End = float | Literal["-inf", "inf"]  # JSON has no infinite number
_Plain = tuple[End, End] | tuple[tuple[End, End], ...]


def _plain_end(end: float) -> End:
    if math.isfinite(end):
        return end
    return "inf" if end > 0 else "-inf"


def _plain(span: ranges.Range) -> _Plain:
    """A range as JSON can hold it."""
    plain = tuple((_plain_end(low), _plain_end(high)) for low, high in ranges.intervals(span))
    return plain if isinstance(span[0], tuple) else plain[0]


def _day(value: object) -> object:
    """A day alone: no time of day, and no number of seconds since 1970."""
    if (isinstance(value, date) and not isinstance(value, datetime)) or (isinstance(value, str) and len(value) == 10):
        return value
    raise ValueError("a day such as 2026-12-31")


def _per_cent(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?%", value, re.ASCII):
        return value
    raise ValueError('a share such as "2%"')


def listed_alone(value: object) -> object:
    """A value alone as a list of it; true and false are no numbers."""
    values = value if isinstance(value, list | tuple) else (value,)
    if any(isinstance(one, bool) for one in values):
        raise ValueError("numbers")
    return tuple(values)


@dataclass(frozen=True)
class _OneOf:
    """A text that is one of some names, as they are when it is checked: a Literal of what stands in rows elsewhere."""

    names: Callable[[], tuple[str, ...]]

    def __get_pydantic_core_schema__(self, _source: object, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, object]:
        return {"enum": list(self.names()), "type": "string"}

    def _checked(self, value: object) -> str:
        names = self.names()
        if not isinstance(value, str) or value not in names:
            raise ValueError(" or ".join(filter(None, (", ".join(map(repr, names[:-1])), repr(names[-1])))))
        return value


ONCE = AfterValidator(lambda values: tuple(dict.fromkeys(values)))


def some(what: str) -> AfterValidator:
    """Values of which at least one is needed, each once; None is left."""

    def kept(values: tuple[object, ...] | None) -> tuple[object, ...] | None:
        if values is not None and not values:
            raise ValueError(what)
        return values and tuple(dict.fromkeys(values))

    return AfterValidator(kept)


Whole = Annotated[int, Field(strict=True)]
Truth = Annotated[bool, Field(strict=True)]
Positive = Annotated[int, Field(strict=True, ge=1)]
Several = Annotated[int, Field(strict=True, ge=2)]
Draws = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Length = Annotated[float, Field(gt=0)]
Radius = Length | Literal["auto"]
NotNegative = Annotated[float, Field(strict=True, ge=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Check = Annotated[str, _OneOf(lambda: tuple(checks()))]
Mode = Annotated[str, _OneOf(modes.names)]
SweptMode = Annotated[str, _OneOf(partial(modes.names, swept=True))]
CappedMode = Annotated[str, _OneOf(partial(modes.names, swept=False))]
Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
Reason = Annotated[Name, Field(pattern=r"\S")]
PerCent = Annotated[str, PlainValidator(_per_cent, json_schema_input_type=str)]
Key = Annotated[str, Field(min_length=1)]
Number = Annotated[float, Field(strict=True)]  # true and false are none
Day = Annotated[date, BeforeValidator(_day)]
Range = Annotated[
    ranges.Range,
    PlainValidator(ranges.as_range, json_schema_input_type=_Plain),
    PlainSerializer(_plain, return_type=_Plain, when_used="json"),
]


def _variant(text: str) -> str:
    variant.Variant.parse(text)
    return text


VariantName = Annotated[str, AfterValidator(_variant)]
