"""The command `vaeaudit`: the one place where errors become messages and exit codes."""

import os
import sys
import traceback

import typer
from typer.exceptions import TyperException

from vaeaudit import __version__
from vaeaudit.cli import attack, doctor
from vaeaudit.errors import VaeauditError

app = typer.Typer(
    name="vaeaudit",
    help="Audit trained variational autoencoders.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("attack")(attack.command)
app.command("doctor")(doctor.command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vaeaudit {__version__}")
        raise typer.Exit


@app.callback()
def common(
    _: bool = typer.Option(False, "--version", help="Show the version and exit.", callback=_version, is_eager=True),
) -> None:
    """Audit trained variational autoencoders."""


def main() -> None:
    """Run the command line; exit codes are those of the documentation, and an accident is never 1."""
    verbose = any(argument in ("-v", "--verbose") for argument in sys.argv[1:])
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except VaeauditError as error:
        code = _tell(str(error), error.exit_code, verbose)
    except TyperException as error:
        code = _tell(error.format_message().rstrip("."), 2, verbose=False)
    except (KeyboardInterrupt, typer.Abort):
        code = _tell("interrupted", 130, verbose=False)
    except BrokenPipeError:
        # The reader of our output has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 3
    except OSError as error:
        code = _tell(f"{error.filename or 'output'}: {error.strerror}", 3, verbose)
    except Exception as error:  # whatever it is, it must read as an accident and not as a finding
        text = " ".join(str(error).split()) or "no message"
        code = _tell(f"unexpected {type(error).__name__}: {text}; -v shows where, and a report helps", 3, verbose)
    sys.exit(code or 0)


def _tell(message: str, code: int, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    typer.echo(f"error: {message}", err=True)
    return code
