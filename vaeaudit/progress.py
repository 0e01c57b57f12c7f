"""How far a long computation is, and whether it goes on."""

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Progress:
    """How far a check is: ``stage`` in words, with problems still running and in all.

    ``share`` of its work is done, from 0 to 1; where None, that of its problems. ``check`` and ``whole``, the share of
    all checks, are known where there are several.
    """

    stage: str
    running: int
    problems: int
    share: float | None = None
    check: str = ""
    whole: float | None = None

    @property
    def done(self) -> float:
        """The share that is done, from 0 to 1."""
        return 1 - self.running / max(1, self.problems) if self.share is None else self.share


# Asked regularly; returning False ends the search with the best that it has.
GoOn = Callable[[Progress], bool]


def always(_: Progress) -> bool:
    """Go on, whatever the progress."""
    return True


def within(go_on: GoOn, begin: float, end: float) -> GoOn:
    """The progress of a part of some work, from the share ``begin`` of that to the share ``end``."""
    return lambda progress: go_on(replace(progress, share=begin + (end - begin) * progress.done))


class Watch:
    """Asks whether to go on, and remembers the first no."""

    def __init__(self, go_on: GoOn) -> None:
        self._go_on, self.stopped = go_on, False

    def __call__(self, progress: Progress) -> bool:
        """As a :data:`GoOn`; False from the first no on."""
        self.stopped = self.stopped or not self._go_on(progress)
        return not self.stopped
