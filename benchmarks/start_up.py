"""How long help and version take, and which imports take most of it.

    python -m benchmarks.start_up [--runs 10]

Each run is the installed command in a process of its own; the first, which may find cold caches, is not counted. Times
of imports are those of `python -X importtime`, the median of three runs, without what a module itself imports. Nothing
else should run meanwhile.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tabulate import tabulate

COMMAND = Path(sys.executable).with_name("vaeaudit")
ASKED = ("--help", "--version")
MOST = 0.4  # seconds that the median may take


def seconds(argument: str) -> float:
    """The wall time of one run."""
    started = time.perf_counter()
    subprocess.run([COMMAND, argument], capture_output=True, check=True)
    return time.perf_counter() - started


def imports(argument: str) -> dict[str, float]:
    """Milliseconds that each module takes by itself."""
    runs: dict[str, list[int]] = {}
    for _ in range(3):
        command = [sys.executable, "-X", "importtime", str(COMMAND), argument]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        for line in done.stderr.splitlines():
            itself, _, module = line.removeprefix("import time:").split("|")
            if itself.strip().isdecimal():  # the first line holds headers
                runs.setdefault(module.strip(), []).append(int(itself))
    return {module: statistics.median(found) / 1000 for module, found in runs.items()}


def by_package(modules: dict[str, float]) -> dict[str, float]:
    """The same, summed over all modules of a package."""
    summed: dict[str, float] = {}
    for module, taken in modules.items():
        package = module.partition(".")[0]
        summed[package] = summed.get(package, 0.0) + taken
    return summed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    cpus, load = os.cpu_count(), os.getloadavg()[0]
    print(f"Python {platform.python_version()}, {platform.machine()}, {cpus} CPUs, load {load:.2f}")
    rows = []
    for argument in ASKED:
        seconds(argument)
        times = sorted(seconds(argument) for _ in range(runs))
        median = statistics.median(times)
        rows.append([f"vaeaudit {argument}", median, times[0], times[-1], "yes" if median < MOST else "NO"])
    headers = ["command", "median s", "least", "most", f"< {MOST:g} s"]
    print(tabulate(rows, headers, floatfmt=".3f"))
    found = imports(ASKED[0])
    for name, taken in (("module", found), ("package", by_package(found))):
        largest = sorted(taken.items(), key=lambda one: -one[1])[:5]
        print(f"\n{tabulate(largest, [f'{name}, of {ASKED[0]}', 'ms by itself'], floatfmt='.1f')}")


if __name__ == "__main__":
    main()
