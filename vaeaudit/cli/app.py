"""The command `vaeaudit`: the one place where errors become messages and exit codes."""

import errno
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from types import FrameType

import typer
from typer.exceptions import TyperException

from vaeaudit import __version__
from vaeaudit.checks.registry import OURS, TAKEN, installed
from vaeaudit.cli import (
    adapters,
    audit,
    compare,
    config,
    convert,
    doctor,
    init,
    merge,
    report,
    study,
)
from vaeaudit.cli.command import Command, spelled
from vaeaudit.cli.common import complain, mute, trace
from vaeaudit.errors import CheckError, VaeauditError, clipped
from vaeaudit.layout.inert import one_line

app = typer.Typer(
    name="vaeaudit",
    help="Audit trained variational autoencoders.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("audit", cls=Command)(audit.command)
app.command("merge", cls=Command)(merge.command)
app.command("compare", cls=Command)(compare.command)
app.command("report", cls=Command)(report.command)
app.command("study", cls=Command)(study.command)


def _unusable(fault: str) -> Callable[[], None]:
    """In place of the command of a check that cannot be used: what is wrong with it."""

    def command() -> None:
        raise CheckError(fault)

    return command


def _add_checks() -> None:
    """A command for each check, and for each that cannot be used but takes no other's name."""
    found, faults = installed()
    for check in found.values():
        try:
            function = check.load(check.command)
        except CheckError as error:
            faults = {check.name: str(error), **faults}
            continue
        app.command(check.name, cls=Command, short_help=f"{check.help}.")(function)
    for name, fault in faults.items():
        if name not in TAKEN | {check.name for check in OURS}:
            anything = {"ignore_unknown_options": True, "allow_extra_args": True}
            app.command(name, short_help="cannot be used", context_settings=anything)(_unusable(fault))


_add_checks()
app.command("doctor", cls=Command)(doctor.command)
app.command("init", cls=Command)(init.command)
app.command("adapters", cls=Command)(adapters.command)
app.command("convert", cls=Command)(convert.command)
app.add_typer(config.app, name="config")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vaeaudit {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    _: bool = typer.Option(False, "--version", help="Show the version and exit.", callback=_version, is_eager=True),
) -> None:
    """Audit trained variational autoencoders."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def main() -> None:
    """Run the command line; exit codes are those of the documentation, and an accident is never 1."""
    stopped: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        """SIGTERM, before a command watches for it, is the same as Ctrl-C."""
        stopped.append(number)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    hooks = sys.unraisablehook, warnings.formatwarning
    try:
        for number in before:
            signal.signal(number, stop)
        sys.unraisablehook, warnings.formatwarning = _unraisable, _warned
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where it keeps its fonts concerns nobody
        _prepare_streams()
        _prepare_torch()
        code = app(standalone_mode=False, prog_name="vaeaudit")
        if code == 1 and {"--show-completion", "--install-completion"} & set(sys.argv):
            code = 2  # typer's own code for a shell that it does not know
        sys.stdout.flush()
    except (
        BaseException
    ) as error:  # whatever it is, a panic of an extension included, it must read as an accident and not as a finding
        # A library that is stopped while it loads may say so in an error of its own.
        code = 130 if stopped or isinstance(error, KeyboardInterrupt | typer.Abort) else _told(error)
    finally:
        sys.unraisablehook, warnings.formatwarning = hooks
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:  # while no command watched for it, which says so itself
        complain("interrupted")
        code = 130  # also where a library made nothing of it
    sys.exit(code or 0)


def _told(error: BaseException) -> int:
    """Say what went wrong, in one sentence; the exit code."""
    verbose = any(argument in ("-v", "--verbose") for argument in sys.argv[1:])
    match error:
        case BrokenPipeError():
            mute(sys.stdout)
            return 3
        case SystemExit():  # typer and rich end with 1 where a pipe is closed, and 1 means "a check failed"
            return 3 if error.code else 0
        case TyperException():
            message, code, verbose = _usage(error), 2, False
        case VaeauditError():
            message, code = str(error), error.exit_code
        case OSError(errno=errno.ENAMETOOLONG):
            message, code = f"{clipped(str(error.filename))}: the name is too long for a file; give another", 2
        case OSError(errno=errno.ENOSPC, filename=None):  # help or a version, which no command delivers
            mute(sys.stdout)
            message, code = f"stdout cannot be written: {error.strerror}; let it go elsewhere", 2
        case OSError():
            place = f"{clipped(str(error.filename))}: " if error.filename else ""
            message, code = f"{place}{error.strerror or error}; -v shows where", 3
        case _:
            text = " ".join(str(error).split()) or "no message"
            message, code = f"unexpected {type(error).__name__}: {text}; -v shows where, and a report helps", 3
    if verbose:
        trace(error)
    complain(f"error: {message}")
    return code


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """Where Python drops what is raised, as in a finaliser, an interruption must still end the command."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        complain("interrupted")
        os._exit(130)
    sys.__unraisablehook__(lost)


def _warned(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of a library, which may quote names from files, as one line."""
    return one_line(f"{filename}:{lineno}: {category.__name__}: {message}") + "\n"


def _prepare_torch() -> None:
    """Say what must be known before torch is loaded, unless the environment says otherwise."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or its sums are not the same each time
    # OpenMP's threads, which torch computes on, wait for each other by spinning else. Of many small operations that
    # takes several times as long wherever another process has one of the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _prepare_streams() -> None:
    """Make sure that both streams are there, and that no character of a result or a path stops them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, io.StringIO())
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _usage(error: TyperException) -> str:
    """What typer has to say, as one sentence."""
    from pydantic import ValidationError

    from vaeaudit.settings.config import told

    context = getattr(error, "ctx", None)
    if isinstance(error, typer.BadParameter) and isinstance(error.__cause__, ValidationError) and error.param:
        return told(spelled(error.param), error.__cause__.errors()[:1])
    where = f"; see {context.command_path} --help" if context is not None else ""
    return " ".join(error.format_message().split()).rstrip(".") + where
