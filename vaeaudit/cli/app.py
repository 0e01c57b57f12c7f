"""The command `vaeaudit`: the one place where errors become messages and exit codes."""

import io
import signal
import sys
import traceback
from types import FrameType

import typer
from typer.exceptions import TyperException

from vaeaudit import __version__
from vaeaudit.cli import (
    adapters,
    attack,
    audit,
    compare,
    config,
    doctor,
    init,
    latents,
    margin,
    mig,
    noise,
    report,
    weights,
)
from vaeaudit.cli.common import complain, mute, speaker
from vaeaudit.errors import VaeauditError

app = typer.Typer(
    name="vaeaudit",
    help="Audit trained variational autoencoders.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("audit")(audit.command)
app.command("compare")(compare.command)
app.command("report")(report.command)
app.command("attack")(attack.command)
app.command("margin")(margin.command)
app.command("noise")(noise.command)
app.command("mig")(mig.command)
app.command("latents")(latents.command)
app.command("weights")(weights.command)
app.command("doctor")(doctor.command)
app.command("init")(init.command)
app.command("adapters")(adapters.command)
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
    verbose = any(argument in ("-v", "--verbose") for argument in sys.argv[1:])
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        _prepare_streams()
        code = app(standalone_mode=False, prog_name="vaeaudit")
        if code == 1 and {"--show-completion", "--install-completion"} & set(sys.argv):
            code = 2  # typer's own code for a shell that it does not know
        sys.stdout.flush()
    except VaeauditError as error:
        code = _tell(str(error), error.exit_code, verbose)
    except TyperException as error:
        code = _tell(_usage(error), 2, verbose=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        mute(sys.stdout)
        code = 3
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        code = _tell(f"{place}{error.strerror or error}; -v shows where", 3, verbose)
    except SystemExit as stop:  # typer and rich end with 1 where a pipe is closed, and 1 means "a check failed"
        code = 3 if stop.code else 0
    except (
        BaseException
    ) as error:  # whatever it is, a panic of an extension included, it must read as an accident and not as a finding
        text = " ".join(str(error).split()) or "no message"
        code = _tell(f"unexpected {type(error).__name__}: {text}; -v shows where, and a report helps", 3, verbose)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code or 0)


def _terminated(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM before a command watches for it, while libraries are loaded: the same as Ctrl-C."""
    raise KeyboardInterrupt


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

    from vaeaudit.config import told

    context = getattr(error, "ctx", None)
    if isinstance(error, typer.BadParameter) and isinstance(error.__cause__, ValidationError) and error.param:
        source = context.get_parameter_source(error.param.name or "") if context is not None else None
        return told(speaker(error.param.opts, error.param.envvar, source), error.__cause__.errors()[:1])
    where = f"; see {context.command_path} --help" if context is not None else ""
    return error.format_message().rstrip(".") + where


def _tell(message: str, code: int, verbose: bool) -> int:
    if verbose:
        complain(traceback.format_exc().rstrip())
    complain(f"error: {message}")
    return code
