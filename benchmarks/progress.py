"""Whether the time left that a command shows is honest: what it says at a third of the way, against what it took.

    python -m benchmarks.progress audit MODEL --data PATH [options of the command ...]

Any command that carries out checks. The estimate is read when a third of the time has gone, of each check and of the
whole; 1.5 and its inverse are what it should stay between. A tenth and two thirds are shown as well.
"""

import sys
import time
from collections import defaultdict
from contextlib import suppress

from tabulate import tabulate
from vaeaudit.cli.progress import Clock

from vaeaudit.cli import app

SHARES = (0.1, 1 / 3, 2 / 3)


def main() -> None:
    """Run the command and print the table."""
    seen: dict[str, list[tuple[float, float]]] = defaultdict(list)  # of each check: when, and the whole time foretold
    begun: dict[str, float] = {}
    told = Clock.told

    def watched(self: Clock, progress: object) -> object:
        answer = told(self, progress)
        for name, one in (("audit", self.whole), (self.check, self.part)):
            begun.setdefault(name, one.begun)
            seen[name].append((time.monotonic(), one.elapsed + one.left))
        return answer

    Clock.told = watched
    sys.argv = ["vaeaudit", *sys.argv[1:]]
    with suppress(SystemExit):
        app.main()
    ended = {name: (times[-1][0]) for name, times in seen.items()} | {"audit": time.monotonic()}
    rows = []
    for name, times in seen.items():
        took = ended[name] - begun[name]
        foretold = []
        for share in SHARES:
            before = [total for at, total in times if at - begun[name] <= share * took]
            foretold.append(f"{before[-1] / took:.2f}" if before else "none yet")
        rows.append([name, f"{took:.1f}", *foretold])
    print(tabulate(rows, ["check", "took, s", *(f"at {share:.0%}" for share in SHARES)]))


if __name__ == "__main__":
    main()
