"""What every entry of a report is made of."""

from pydantic import BaseModel, ConfigDict, Field

Number = float | None  # None stands for "not a finite number"


class Entry(BaseModel):
    """A part of a report: frozen, of known fields only, without NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MetricEntry(Entry):
    """One figure with its confidence."""

    value: Number
    ci: tuple[float, float] | None
    level: float
    n: int
    nonfinite: int
    unit: str
    direction: str = Field(description="Which way is more robust: higher, lower or none.")
    estimator: str
    doubt: str | None = Field(None, description="Why this figure supports no verdict; null where it does.")

    @property
    def exact(self) -> bool:
        """Whether nothing is estimated, so that the figure needs no interval."""
        return "exact, so that it has no interval" in self.estimator

    @property
    def keeps_infinite(self) -> bool:
        """Whether infinite values keep their place in the order, so that the figure counts them."""
        return "order-statistic interval" in self.estimator
