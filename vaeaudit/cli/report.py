"""`vaeaudit report`: a report in another form."""

from typing import Annotated, Literal

import typer

from vaeaudit.cli import options
from vaeaudit.cli.common import check_output, deliver


def command(
    report: Annotated[str, typer.Argument(metavar="REPORT", help="report.json of an audit, or its folder.")],
    output_format: Annotated[
        Literal["markdown", "junit", "github", "card", "html"],
        typer.Option("--format", help="Form: card is a block for a model card on the Hugging Face hub."),
    ] = "markdown",
    output: options.Output = None,
    verbose: options.Verbose = False,
) -> int:
    """Show the report of an audit in another form; nothing is computed again, and the verdict is no exit code."""
    check_output(None, output)
    from vaeaudit.cli.forms import text_of
    from vaeaudit.report.reading import read_report

    found, folder = read_report(report)
    deliver(text_of(found, folder, output_format, output), output)
    return 0
