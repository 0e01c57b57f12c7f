"""What every command does before and after its question: settings in, interruption, results out."""

import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.status import Status

from vaeaudit.config import Resolved, find_config, resolve
from vaeaudit.errors import ConfigError

if TYPE_CHECKING:
    from vaeaudit.attacks.sweep import Progress

_LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal


def settings_of(
    context: typer.Context, keys: Mapping[str, str], config: str | None, isolated: bool, options: list[str] | None
) -> Resolved:
    """Settings from the command's parameters; ``keys`` tells which parameter is which "section.key"."""
    flags: dict[str, object] = {}
    environment: dict[str, object] = {}
    for name, key in keys.items():
        value = context.params[name]
        if value is None or value == ():  # an option that may be repeated and was not given
            continue
        source = context.get_parameter_source(name)
        told = environment if source is not None and source.name == "ENVIRONMENT" else flags
        told[key] = int(value) if name == "batch_size" and value.isdigit() else value
    if options:
        flags["model.options"] = dict(_option(text) for text in options)
    if config is not None and isolated:
        raise ConfigError("--config names a file and --isolated reads none; give one of them")
    file = Path(config) if config is not None else None if isolated else find_config(Path.cwd())
    return resolve(flags, environment, file)


def _option(text: str) -> tuple[str, object]:
    """NAME=VALUE, the value as JSON where it is JSON."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ConfigError(f"--option takes NAME=VALUE, as in activation=tanh, but {text!r} came")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


class Reporter:
    """Progress on stderr: a live line on a terminal, a plain line now and then elsewhere; and interruption.

    The first Ctrl-C (or SIGTERM) asks the work to stop and keep what it has; a second one ends it at once.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.interrupted = False
        self.console = Console(stderr=True)
        self._live: Status | None = None
        self._told = time.monotonic()

    def say(self, text: str) -> None:
        """A remark, unless quiet."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def go_on(self, progress: "Progress") -> bool:
        """Show how far the sweep is; False once interrupted."""
        text = f"{progress.stage}: {progress.running} of {progress.problems} problems running"
        if self._live is not None:
            self._live.update(text)
        elif time.monotonic() - self._told >= _LINE_EVERY:
            self._told = time.monotonic()
            self.say(text)
        return not self.interrupted

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """Show ``text`` and hold interruptions back until the work has kept its results."""
        before = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            if self.console.is_terminal and not self.quiet:
                with self.console.status(text) as self._live:
                    yield
            else:
                yield
        finally:
            self._live = None
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.say("stopping: keeping what has been found (once more to end at once)")


def deliver(text: str, output: str | None) -> None:
    """Put the result where it was asked for: a file, or stdout."""
    if output is None:
        sys.stdout.write(text)
        return
    from vaeaudit.report.writer import write_file

    write_file(Path(output), text.encode())
