"""The command `vaeaudit`, and ``python -m vaeaudit``."""

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line, and stop without a word where that is asked while it is still being loaded."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    # OpenMP's threads, which torch computes on, wait for each other by spinning unless told before torch is loaded. Of
    # many small operations that takes several times as long wherever another process has one of the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from vaeaudit.cli.app import main as command

    command()


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(130)  # nothing is open yet


if __name__ == "__main__":
    main()
