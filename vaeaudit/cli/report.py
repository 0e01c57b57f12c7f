"""`vaeaudit report`: a report in another form."""

import re
from typing import Annotated, Literal

import typer

from vaeaudit.cli.command import Asked, takes
from vaeaudit.cli.common import check_output, deliver
from vaeaudit.cli.options import Output, Verbose
from vaeaudit.errors import ConfigError, clipped


@takes(Output, Verbose)
def command(
    asked: Asked,
    report: Annotated[str, typer.Argument(metavar="REPORT", help="report.json of an audit, or its folder.")],
    form: Annotated[
        Literal["markdown", "junit", "github", "comment", "card", "cyclonedx", "html"],
        typer.Option(
            "--format",
            metavar="NAME",
            help="Form of the report: markdown, junit, github, comment (of a pull request), html (one file), card, a "
            "block for a model card on the Hugging Face hub, or cyclonedx, a bill of materials.",
        ),
    ] = "markdown",
    link: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Address under which the report's folder can be seen: a comment shows its pictures."
        ),
    ] = None,
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
    if link is not None and not re.match(r"https?://[^\s()<>]+$", link):
        raise ConfigError(f"--link takes an address such as https://example.org/audit, but '{clipped(link)}' came")
    from vaeaudit.report.reading import read_report

    found, folder = read_report(report)
    if verify:
        from vaeaudit.cli.verified import verified
        from vaeaudit.gate.verification import verify as held

        verification = held(found, folder)
        deliver(verified(verification, asked.verbose), asked.output)
        return verification.exit_code
    from vaeaudit.cli.forms import text_of

    deliver(text_of(found, folder, form, asked.output, link=link), asked.output)
    return 0
