"""Whether the time left that a command shows is honest: what it says at a third of the way, against what it took.

    python -m benchmarks.progress audit MODEL --data PATH -q --out DIR [options of the command ...]

Any command that carries out checks. The table shows, of each check and of the whole, the time that it took and the
time foretold for all of it when a tenth, a third and two thirds had gone, as a multiple; between 1 / 1.5 and 1.5 is
what it should be at a third. "none" is where nothing was foretold by then, as of a check of a second. Time is that of
the processor, which other programs do not lengthen: run it with OMP_NUM_THREADS=1, or it counts every thread.
"""

import sys
import time
from contextlib import suppress

from tabulate import tabulate

from vaeaudit.cli import app
from vaeaudit.cli.progress import Clock, Course
from vaeaudit.progress import Progress

SHARES = (0.1, 1 / 3, 2 / 3)


def main() -> None:
    """Run the command and print the table."""
    courses: dict[str, Course] = {}
    seen: dict[str, list[tuple[float, float]]] = {}  # of each check: when, and how long it would take in all
    told = Clock.told

    def watched(clock: Clock, progress: Progress) -> None:
        told(clock, progress)
        now = clock.now()
        for name, course in ((clock.check or sys.argv[1], clock.part), ("all", clock.whole)):
            courses[name] = course
            left = course.left(now)
            if left is not None:
                seen.setdefault(name, []).append((now, now - course.begun + left))

    begin = Clock.__init__
    Clock.__init__ = lambda clock: begin(clock, time.process_time)  # type: ignore[method-assign,assignment,misc]
    Clock.told = watched  # type: ignore[method-assign]
    with suppress(SystemExit):
        app.main()
    ended = time.process_time()
    checks = {name: course for name, course in courses.items() if name != "all"}
    ends = [*[course.begun for course in checks.values()][1:], ended, ended]
    rows = []
    for (name, course), end in zip([*checks.items(), ("all", courses["all"])], ends, strict=True):
        took = end - course.begun
        foretold = []
        for share in SHARES:
            before = [total for at, total in seen.get(name, []) if at - course.begun <= share * took]
            foretold.append(f"{before[-1] / took:.2f}" if before else "none")
        rows.append([name, f"{took:.1f}", *foretold])
    print(tabulate(rows, ["check", "took, s", *(f"at {share:.0%}" for share in SHARES)]))


if __name__ == "__main__":
    main()
