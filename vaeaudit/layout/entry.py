"""What every entry of a report is made of."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Number = float | None  # None stands for "not a finite number"


def storable(value: object) -> object:
    r"""A value whose texts no bytes of a file's name are left in that are no UTF-8: they become escapes, as \\udcff."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="backslashreplace").decode()
    if isinstance(value, (list, tuple)):
        return [storable(one) for one in value]
    if isinstance(value, dict):
        return {storable(name): storable(one) for name, one in value.items()}
    return value


class Entry(BaseModel):
    """A part of a report: frozen, of known fields only, without NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _storable(cls, value: object) -> object:
        return storable(value)


class FileHash(Entry):
    """A file that went into the audit."""

    path: str
    sha256: str


class MetricEntry(Entry):
    """One figure with its confidence."""

    value: Number
    ci: tuple[float, float] | None
    level: float
    n: int
    nonfinite: int
    unit: str
    direction: Literal["higher", "lower", "none"] = Field(
        description="Which way is more robust: higher, lower or none."
    )
    estimator: str
    doubt: str | None = Field(None, description="Why this figure supports no verdict; null where it does.")
    exact: bool = Field(False, description="Nothing is estimated: the figure needs no interval.")
    keeps_infinite: bool = Field(False, description="Infinite values keep their place in order, and are not left out.")
    search: Literal["lowers", "raises", "keeps", "none"] = Field(
        "none",
        description="What a better search does to the figure; keeps: nothing, as it rests on none though others of its "
        "check do; none: nothing that is known, or there is no search.",
    )

    @property
    def left_out(self) -> str | None:
        """That values were left out, so that the figure is not of all items; None where it is."""
        if not self.nonfinite or self.keeps_infinite:
            return None
        return f"{self.nonfinite} of its values are NaN or infinite and were left out"

    @property
    def endless(self) -> bool:
        """That it has no interval because an end of that is infinite, and not because its sample is too small."""
        return self.ci is None and not self.exact and self.keeps_infinite and self.nonfinite > 0


def belongs(name: str, beginning: str) -> bool:
    """Whether the metric ``name`` is of what ``beginning`` names, as margin.r4.median and not margin.r4.5.median."""
    rest = name.removeprefix(beginning)
    return rest != name and (not rest or (rest[0] == "." and not rest[1:2].isdigit()))
