"""How far a long computation is, and whether it goes on."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a search is: ``stage`` in words, problems still running and in all."""

    stage: str
    running: int
    problems: int


# Asked regularly; returning False ends the search with the best that it has.
GoOn = Callable[[Progress], bool]


def always(_: Progress) -> bool:
    """Go on, whatever the progress."""
    return True
