"""Time left, foretold from the share of the work that is done, and the bars that show it on a terminal."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from vaeaudit.progress import Progress

_LEAST = 0.02  # of the work and
_SECONDS = 1.0  # of the time that must have gone before any of the rest is foretold


@dataclass
class Course:
    """Some work under way: when it began, and at what time which share of it was done."""

    begun: float
    at: float
    share: float = 0.0

    def reach(self, share: float, now: float) -> None:
        """Some share is done; what is told of the work never goes back."""
        if share > self.share:
            self.share, self.at = min(share, 1.0), now

    def left(self, now: float) -> float | None:
        """Seconds, if the rest goes as fast as what is done; None as long as that is too little to tell."""
        took = self.at - self.begun
        if self.share < _LEAST or took < _SECONDS:
            return None
        return max(0.0, took * (1 - self.share) / self.share - (now - self.at))


class Clock:
    """The course of the whole and of the check that is under way."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock
        self.check = ""
        self.whole, self.part = Course(clock(), clock()), Course(clock(), clock())

    def told(self, progress: Progress) -> None:
        """Take note of how far the work is."""
        now = self.now()
        if progress.check != self.check:
            self.check, self.part = progress.check, Course(now, now)
        self.part.reach(progress.done, now)
        if progress.whole is not None:
            self.whole.reach(progress.whole, now)

    def text(self) -> str:
        """The time left of both, as far as it can be told: "about 40 s left, about 3 min left in all"."""
        now = self.now()
        part, whole = self.part.left(now), self.whole.left(now)
        told = [] if part is None else [f"about {spoken(part)} left"]
        if whole is not None and self.check:
            told.append(f"about {spoken(whole)} left in all")
        return ", ".join(told)


def spoken(seconds: float) -> str:
    """A time as precise as a forecast is: 5 s, 40 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds, -1 if seconds >= 20 else 0)):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Live:
    """Bars on a terminal: of the whole where there are several checks, and of the check under way."""

    def __init__(self, console: Console, text: str) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(24), TextColumn("{task.fields[left]}"))
        self.bars = Bars(*columns, console=console, transient=True)
        self._whole = self.bars.add_task("all checks", total=1.0, visible=False, left="")
        self._part = self.bars.add_task(text, total=None, left="")

    def show(self, clock: Clock, text: str, several: bool) -> None:
        """Show how far the clock knows the work to be, and ``text`` about the check."""
        now = clock.now()
        for task, course in ((self._whole, clock.whole), (self._part, clock.part)):
            left = course.left(now)
            told = "" if left is None else f"about {spoken(left)} left"
            self.bars.update(task, completed=course.share, total=1.0, left=told)
        self.bars.update(self._whole, visible=several)
        self.bars.update(self._part, description=text)
