"""`vaeaudit merge`: the one report of an audit that several processes shared out."""

import sys
from contextlib import chdir
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaeaudit.cli.checking import show
from vaeaudit.cli.command import Asked, configured, takes
from vaeaudit.cli.common import Reporter
from vaeaudit.cli.options import ExitZero, Formed, Output, Quiet, Verbose

if TYPE_CHECKING:
    from vaeaudit.audit.run import Audit


@takes(Formed, Output, ExitZero, Quiet, Verbose)
def command(
    asked: Asked,
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Where the shards of `vaeaudit audit --shard` wrote: their --out.")
    ],
) -> int:
    """Write the report of an audit that was done in shards.

    Nothing is measured; what is missing is named, with exit code 5. The last shard to end does the same by itself.
    """
    import torch

    from vaeaudit.audit.journal import shared
    from vaeaudit.audit.release import release_audit
    from vaeaudit.settings.config import resolve

    about, shard = shared(Path(folder))
    if about.place != Path.cwd():  # the settings name files from there, and the figures belong to these names
        folder = str(Path(folder).absolute())
        if asked.output is not None and asked.output != "-":
            asked = replace(asked, output=str(Path(asked.output).absolute()))
    resolved = resolve(configured(about.configuration, "merge") | {"run.out": (folder, "merge")}, None)
    torch.set_num_threads(about.threads)  # figures of attacks depend on it, so the journal serves no others

    def work(reporter: Reporter) -> "Audit":
        return release_audit(
            resolved,
            sys.argv,
            datetime.now(UTC).date(),
            True,
            reporter.go_on,
            reporter.keep,
            shard=shard,
            held=reporter.held,
        )

    with chdir(about.place):
        return show("opening the model and the data", work, resolved, asked, shard)
