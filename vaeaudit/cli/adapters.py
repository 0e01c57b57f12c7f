"""`vaeaudit adapters`: which families of models can be opened."""

from vaeaudit.cli.command import Asked, takes
from vaeaudit.cli.common import check_output, deliver
from vaeaudit.cli.options import Output, TableOrJson, Verbose


@takes(TableOrJson, Output, Verbose)
def command(asked: Asked) -> int:
    """List the installed adapters.

    Each with what it opens, and the package that it comes from.
    """
    from vaeaudit.cli.render import adapters_text, stdout_is_terminal
    from vaeaudit.model.registry import installed_adapters
    from vaeaudit.report.writer import dumps

    check_output(None, asked.output)
    found = installed_adapters()
    if asked.form == "json":
        deliver(dumps([vars(adapter) for adapter in found]), asked.output)
    else:
        deliver(adapters_text(found, asked.output is None and stdout_is_terminal()), asked.output)
    return 0
