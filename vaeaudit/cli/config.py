"""`vaeaudit config`: which values count and who said them, and what values there are."""

import typer

from vaeaudit.cli.command import Asked, Command, takes
from vaeaudit.cli.common import check_output, deliver
from vaeaudit.cli.options import Configured, Model, OnData, Out, Output, Policy, TableOrJson, Verbose

app = typer.Typer(help="Show what an audit is configured to do.", no_args_is_help=True, rich_markup_mode=None)


@app.command("show", cls=Command)
@takes(Model, OnData, Policy, Out, TableOrJson, Output, Verbose, Configured)
def show(asked: Asked) -> int:
    """Show every value that `vaeaudit audit` takes, with its source: flag, variable, file, the model, or default."""
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
    """Print the JSON Schema of vaeaudit.toml, which editors use to complete and check it."""
    from vaeaudit.report.writer import dumps
    from vaeaudit.settings.config import json_schema

    check_output(None, asked.output)
    deliver(dumps(json_schema()), asked.output)
    return 0
