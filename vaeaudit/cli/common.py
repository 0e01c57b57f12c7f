"""What every command does around its question: remarks, interruption, results out."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from vaeaudit.errors import OutputError, clipped
from vaeaudit.layout.inert import visible

if TYPE_CHECKING:
    from vaeaudit.cli.progress import Live
    from vaeaudit.progress import Progress

_KEPT = (".safetensors", ".pt", ".pth", ".ckpt", ".npz", ".npy")  # what no result should ever replace
_MOST_CHARACTERS = 2_000  # of one line
_MOST_LINES = 100  # of one traceback
_LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal


class Reporter:
    """Progress on stderr: bars on a terminal, a plain line now and then elsewhere; and interruption.

    Ctrl-C (or SIGTERM) ends the work at once, until ``keeping`` is set: then the first one asks the work to stop
    and keep what it has, and the second one ends it.
    """

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console

        from vaeaudit.cli.progress import Clock

        self.quiet = quiet
        self.keeping = False
        self.interrupted = False
        self.held = ExitStack()  # what is let go once the report is written
        self.console = Console(stderr=True)
        self.clock = Clock()
        self._live: Live | None = None
        self._told = time.monotonic()

    def keep(self) -> None:
        """The work begins: from now on an interruption keeps what was found, and time is told."""
        from vaeaudit.cli.progress import Clock

        self.keeping, self.clock = True, Clock()

    def say(self, text: str) -> None:
        """A remark, unless quiet."""
        if not self.quiet:
            complain(text)

    def go_on(self, progress: "Progress") -> bool:
        """Show how far the work is, and how long the rest may take; False once interrupted."""
        self.clock.told(progress)
        text = f"{progress.stage}: {progress.running} of {progress.problems} left"
        if self._live is not None:
            self._live.show(self.clock, line(progress.stage), several=progress.whole is not None)
        elif time.monotonic() - self._told >= _LINE_EVERY:
            self._told = time.monotonic()
            left = self.clock.text()
            self.say(f"{text}; {left}" if left else text)
        return not self.interrupted

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """Show ``text``, watch for interruptions, and keep what a model prints off stdout."""
        before = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with _aside(), redirect_stdout(sys.stderr):
                if sys.stderr.isatty() and self.console.is_interactive and not self.quiet:
                    from vaeaudit.cli.progress import Live

                    self._live = Live(self.console, text)
                    with self._live.bars:
                        yield
                else:
                    yield
            if self.interrupted and not self.keeping:  # what a library caught, and made nothing of
                raise KeyboardInterrupt
        except BaseException as error:  # a library that is interrupted may say so in an error of its own
            if isinstance(error, KeyboardInterrupt) or (self.interrupted and not self.keeping):
                complain("interrupted; no report was written")
                raise KeyboardInterrupt from error
            raise
        finally:
            self._live = None
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        again, self.interrupted = self.interrupted, True
        if again or not self.keeping:
            raise KeyboardInterrupt
        self.say("stopping: keeping what has been found (once more to end at once)")


@contextmanager
def _aside() -> Iterator[None]:
    """Let what is written to stdout below Python, or by programs that a model starts, go to stderr as well."""
    try:
        kept = os.dup(1)
    except OSError:  # closed by whoever started us
        yield
        return
    try:
        with suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def complain(text: str) -> None:
    """One line on stderr, whatever the text holds; where nobody can read it, the exit code must still be right."""
    _tell([line(text)])


def trace(error: BaseException) -> None:
    """The traceback of an error on stderr; all but its first line are indented, so that none reads as one of ours."""
    first, *rest = "".join(traceback.format_exception(error)).rstrip().split("\n")
    if len(rest) > _MOST_LINES:
        rest[_MOST_LINES // 2 : -_MOST_LINES // 2] = [f"... {len(rest) - _MOST_LINES} lines ..."]
    _tell([line(first), *(f"  {line(one)}" for one in rest)])


def line(text: str) -> str:
    """A text as one line of a terminal or a log, of which it can be no more than that; cut where it is very long."""
    return clipped(visible(text), _MOST_CHARACTERS)


def _tell(lines: Iterable[str]) -> None:
    try:
        sys.stderr.writelines(f"{one}\n" for one in lines)
        sys.stderr.flush()
    except (OSError, ValueError):
        mute(sys.stderr)


def check_output(out: str | None, output: str | None) -> None:
    """Make sure that results can be kept, before hours are spent on them. Raises :class:`OutputError`."""
    from vaeaudit.report.writer import check_writable

    if out is not None:
        check_writable(Path(out), "--out")
    if output is not None:
        file = Path(output)
        if not file.name or "\0" in output or file.is_dir():
            what = "is a folder" if "\0" not in output else "holds a NUL"
            came = f"'{clipped(output)}' {what}" if output else "nothing came"
            raise OutputError(f"--output must name a file, but {came}; leave it out to print the result")
        if file.suffix.lower() in _KEPT or (out is not None and _is_of_report(file, Path(out))):
            what = "a file of the report" if out is not None and _is_of_report(file, Path(out)) else "a model or data"
            raise OutputError(
                f"--output must not take the place of {what}, but '{clipped(output)}' came; name another file"
            )
        if not file.exists():
            check_writable(file.parent, "--output")


def _is_of_report(file: Path, folder: Path) -> bool:
    """Whether a report in ``folder`` has, or may have, a file of this name."""
    named = file.name in ("report.json", "report.md", "items.json") or file.suffix.lower() == ".png"
    return named and file.resolve().parent == folder.resolve()


def deliver(text: str, output: str | None) -> None:
    """Put the result where it was asked for: a file, or stdout."""
    if output is not None:
        from vaeaudit.report.writer import write_file

        write_file(Path(output), text.encode(errors="backslashreplace"))
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        mute(sys.stdout)
    except OSError as error:
        mute(sys.stdout)
        raise OutputError(f"stdout cannot be written: {error.strerror}; give --output FILE") from error


def append(file: Path, text: str) -> None:
    """Add to a file that others write as well. Raises :class:`OutputError`."""
    try:
        with file.open("a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror}; name another place") from error


def mute(stream: TextIO) -> None:
    """Let what is left for a stream go nowhere: Python flushes at exit, and a failure there would be exit code 120."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
