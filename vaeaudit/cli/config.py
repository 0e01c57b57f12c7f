"""`vaeaudit config`: which values count and who said them, and what values there are."""

import typer

from vaeaudit.cli.command import Asked, Command, takes
from vaeaudit.cli.common import check_output, deliver
from vaeaudit.cli.options import Configured, Model, OnData, Out, Output, TableOrJson, Verbose
from vaeaudit.cli.policy import Policy

app = typer.Typer(help="Show what an audit is configured to do.", no_args_is_help=True, rich_markup_mode=None)


@app.command("show", cls=Command)
@takes(Model, OnData, Policy, Out, TableOrJson, Output, Verbose, Configured)
def show(asked: Asked) -> int:
    """Show every setting with its source.

    These are the values that `vaeaudit audit` takes; a source is a flag, a variable, a file, the model, or the default.
    """
    resolved = asked.settings()
    from vaeaudit.cli.render import settings_text, stdout_is_terminal
    from vaeaudit.report.writer import dumps
    from vaeaudit.settings.facts import sourced

    check_output(None, asked.output)
    values = sourced(resolved)
    if asked.form == "json":
        dumped = {value.key: {"value": value.value, "source": value.source} for value in values}
        deliver(dumps(dumped), asked.output)
    else:
        deliver(settings_text(values, asked.output is None and stdout_is_terminal()), asked.output)
    return 0


@app.command("schema", cls=Command)
@takes(Output, Verbose)
def schema(asked: Asked) -> int:
    """Print the JSON Schema of vaeaudit.toml.

    Editors complete and check the file by it.
    """
    from vaeaudit.report.writer import dumps
    from vaeaudit.settings.config import json_schema

    check_output(None, asked.output)
    deliver(dumps(json_schema()), asked.output)
    return 0
