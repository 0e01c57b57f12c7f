"""`vaeaudit adapters`: which families of models can be opened."""

from typing import Annotated, Literal

import typer

from vaeaudit.cli import options
from vaeaudit.cli.common import check_output, deliver


def command(
    output_format: Annotated[Literal["table", "json"], typer.Option("--format", help="Form of the result.")] = "table",
    output: options.Output = None,
    verbose: options.Verbose = False,
) -> int:
    """List the installed adapters: what each opens, and the package that it comes from."""
    from vaeaudit.cli.render import adapters_text, stdout_is_terminal
    from vaeaudit.model.registry import installed_adapters
    from vaeaudit.report.writer import dumps

    check_output(None, output)
    found = installed_adapters()
    if output_format == "json":
        deliver(dumps([vars(adapter) for adapter in found]), output)
    else:
        deliver(adapters_text(found, output is None and stdout_is_terminal()), output)
    return 0
