"""The command `vaeaudit`, and ``python -m vaeaudit``."""

import os
import signal
from contextlib import suppress
from types import FrameType


def main() -> None:
    """Run the command line, and stop at once where that is asked while it is still being loaded."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    from vaeaudit.cli.app import main as command

    command()


def _leave(_number: int, _frame: FrameType | None) -> None:
    with suppress(OSError):  # closed by whoever started us
        os.write(2, b"interrupted\n")
    os._exit(130)  # nothing is open yet


if __name__ == "__main__":
    main()
