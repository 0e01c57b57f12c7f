"""`vaeaudit adapters`: which families of models can be opened."""

from typing import Annotated

import typer

from vaeaudit.cli.command import Asked, takes
from vaeaudit.cli.common import check_output, deliver
from vaeaudit.cli.options import TRUSTS, Output, TableOrJson, Verbose


@takes(TableOrJson, Output, Verbose)
def command(
    asked: Asked,
    wanted: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="MODEL",
            help="Try them on a checkpoint; where none opens it, print a first adapter for it.",
        ),
    ] = None,
    trust_code: Annotated[bool, typer.Option("--trust-code", help=TRUSTS)] = False,
) -> int:
    """List the installed adapters.

    Each with what it opens, and the package that it comes from. --for ranks them by how many names of a checkpoint's
    tensors fit, and prints Python code to begin with, made of names and shapes, where that is none's.
    """
    from vaeaudit.cli.render import adapters_text, fits_text, stdout_is_terminal
    from vaeaudit.report.writer import dumps

    check_output(None, asked.output)
    to_terminal = asked.output is None and stdout_is_terminal()
    if wanted is None:
        from vaeaudit.model.adapters import installed_adapters

        found = installed_adapters()
        as_json = asked.form == "json"
        deliver(dumps([vars(one) for one in found]) if as_json else adapters_text(found, to_terminal), asked.output)
        return 0
    from vaeaudit.model.checkpoints import open_checkpoint
    from vaeaudit.model.ranking import ranked
    from vaeaudit.model.reparametrised import plain
    from vaeaudit.model.starting import starting_adapter

    checkpoint = open_checkpoint(wanted, trust_code)
    fits = ranked(checkpoint)
    code = None if fits[0].opens else starting_adapter(plain(checkpoint.tensors)[0])
    if asked.form == "json":
        deliver(dumps({"adapters": [vars(fit) for fit in fits], "starting_adapter": code}), asked.output)
    else:
        deliver(fits_text(wanted, fits, code, to_terminal), asked.output)
    return 0
