"""`vaeaudit report`: a report in another form."""

from typing import Annotated, Literal

import typer

from vaeaudit.cli.command import Asked, takes
from vaeaudit.cli.common import check_output, deliver
from vaeaudit.cli.options import Output, Verbose


@takes(Output, Verbose)
def command(
    asked: Asked,
    report: Annotated[str, typer.Argument(metavar="REPORT", help="report.json of an audit, or its folder.")],
    form: Annotated[
        Literal["markdown", "junit", "github", "card", "html"],
        typer.Option(
            "--format",
            metavar="NAME",
            help="Form of the report: markdown, junit, github, html (one file) or card, a block for a model card on "
            "the Hugging Face hub.",
        ),
    ] = "markdown",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Show no report, but whether its figures, thresholds, verdict and files agree with the values beside "
            "it; ends with 1 where something does not.",
        ),
    ] = False,
) -> int:
    """Show a report in another form, or verify it.

    The verdict is no exit code.
    """
    check_output(None, asked.output)
    from vaeaudit.report.reading import read_report

    found, folder = read_report(report)
    if verify:
        from vaeaudit.cli.verified import verified
        from vaeaudit.gate.verification import verify as held

        verification = held(found, folder)
        deliver(verified(verification, asked.verbose), asked.output)
        return verification.exit_code
    from vaeaudit.cli.forms import text_of

    deliver(text_of(found, folder, form, asked.output), asked.output)
    return 0
