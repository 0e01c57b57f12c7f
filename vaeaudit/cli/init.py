"""`vaeaudit init`: a first audit, and the configuration that it suggests."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaeaudit.cli.checking import written
from vaeaudit.cli.command import Asked, takes
from vaeaudit.cli.common import Reporter, complain, deliver, line
from vaeaudit.cli.options import Configured, Model, OnData, Out, Quiet, Resume, Verbose
from vaeaudit.errors import ConfigError

if TYPE_CHECKING:
    from vaeaudit.audit.run import Audit


@takes(Model, OnData, Out, Resume, Quiet, Verbose, Configured)
def command(
    asked: Asked,
    force: Annotated[bool, typer.Option("--force", help="Replace the vaeaudit.toml that is here.")] = False,
) -> int:
    """Audit once and write a vaeaudit.toml with thresholds.

    The file is commented and lies here; its thresholds are those that the figures of the audit suggest.
    """
    from vaeaudit.checks.registry import checks
    from vaeaudit.gate.proposal import FILE, find_data, find_model, propose
    from vaeaudit.report.writer import write_file
    from vaeaudit.settings.config import Resolved, measuring

    if Path(FILE).exists() and not force:
        raise ConfigError(f"there is a {FILE} here already; --force replaces it")
    here = Path.cwd()
    given = asked.settings()
    said = given.settings
    found = {
        "model": said.model.model_copy(update={} if said.model.path else {"path": find_model(here)}),
        "data": said.data.model_copy(update={} if said.data.source else {"source": find_data(here)}),
    }
    settings = said.model_copy(update=found)

    here_found = {f"{name}.{key}": "found here" for name, key in (("model", "path"), ("data", "source"))}
    every = tuple(checks())
    resolved = measuring(Resolved(settings, here_found | dict(given.sources)), every)

    def work(reporter: Reporter) -> "Audit":
        from vaeaudit.audit.run import audit, journal_of
        from vaeaudit.subject.opened import prepare

        subject = prepare(settings)
        reporter.keep()
        journal = journal_of(subject, asked.resume)
        return audit(subject, resolved, sys.argv, every, reporter.go_on, journal, every, reporter.held)

    report = written("opening the model and the data", work, Path(settings.run.out), asked)
    if report.status != "complete" or not report.metrics:
        complain(f"no {FILE} was written: {report.error or report.status}; see {Path(settings.run.out) / 'report.md'}")
        return report.exit_code
    text = propose(report, settings, here)
    write_file(Path(FILE), text.encode())
    thresholds = text.count("\n[checks.")
    told = line(f"{FILE}: {thresholds} thresholds, from the figures of {Path(settings.run.out) / 'report.md'}")
    then = "" if asked.quiet else "Read it, move the thresholds to what your release needs, then: vaeaudit audit\n"
    deliver(f"{told}\n{then}", None)
    return 0
