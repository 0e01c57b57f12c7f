"""`vaeaudit config`: which values count and who said them, and what values there are."""

from typing import Annotated, Literal

import typer

from vaeaudit.cli import options
from vaeaudit.cli.common import AUDIT_KEYS, check_output, deliver, settings_of

app = typer.Typer(help="Show what an audit is configured to do.", no_args_is_help=True, rich_markup_mode=None)


@app.command("show")
def show(
    context: typer.Context,
    model: options.Model = None,
    adapter: options.Adapter = None,
    option: options.AdapterOption = None,
    data: options.Data = None,
    data_range: options.Range = None,
    resize: options.Resize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    seed: options.Seed = None,
    batch_size: options.BatchSize = None,
    limit: options.Limit = None,
    sample: options.Sample = None,
    out: options.Out = None,
    check: options.Check = None,
    baseline: options.Baseline = None,
    output_format: Annotated[Literal["table", "json"], typer.Option("--format", help="Form of the result.")] = "table",
    output: options.Output = None,
    config: options.Config = None,
    isolated: options.Isolated = False,
    verbose: options.Verbose = False,
) -> int:
    """Show every value that `vaeaudit audit` takes, with its source: flag, variable, file, the model, or default."""
    resolved = settings_of(context, AUDIT_KEYS, config, isolated, option)
    from vaeaudit.cli.render import settings_text, stdout_is_terminal
    from vaeaudit.report.writer import dumps
    from vaeaudit.settings.facts import sourced

    check_output(None, output)
    values = sourced(resolved)
    if output_format == "json":
        dumped = {value.key: {"value": value.value, "source": value.source} for value in values}
        deliver(dumps(dumped), output)
    else:
        deliver(settings_text(values, output is None and stdout_is_terminal()), output)
    return 0


@app.command("schema")
def schema(output: options.Output = None, verbose: options.Verbose = False) -> int:
    """Print the JSON Schema of vaeaudit.toml, which editors use to complete and check it."""
    from vaeaudit.report.writer import dumps
    from vaeaudit.settings.config import json_schema

    check_output(None, output)
    deliver(dumps(json_schema()), output)
    return 0
