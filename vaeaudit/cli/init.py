"""`vaeaudit init`: a first audit, and the configuration that it suggests."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaeaudit.cli import options
from vaeaudit.cli.checking import Delivery, written
from vaeaudit.cli.common import SHARED_KEYS, Reporter, complain, deliver, line, settings_of
from vaeaudit.errors import ConfigError

if TYPE_CHECKING:
    from vaeaudit.audit.run import Audit

_KEYS = SHARED_KEYS | {"out": "run.out"}


def command(
    context: typer.Context,
    model: options.Model = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the vaeaudit.toml that is here.")] = False,
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
    resume: options.Resume = False,
    config: options.Config = None,
    isolated: options.Isolated = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Audit the model once and write a commented vaeaudit.toml here, with thresholds that its figures suggest."""
    from vaeaudit.gate.proposal import FILE, find_data, find_model, propose
    from vaeaudit.report.writer import write_file

    if Path(FILE).exists() and not force:
        raise ConfigError(f"there is a {FILE} here already; --force replaces it")
    here = Path.cwd()
    given = settings_of(context, _KEYS, config, isolated, option)
    asked = given.settings
    found = {
        "model": asked.model.model_copy(update={} if asked.model.path else {"path": find_model(here)}),
        "data": asked.data.model_copy(update={} if asked.data.source else {"source": find_data(here)}),
    }
    settings = asked.model_copy(update=found)

    def work(reporter: Reporter) -> "Audit":
        from vaeaudit.audit.run import audit, journal_of
        from vaeaudit.gate.policy import CHECK_NAMES
        from vaeaudit.settings.config import Resolved, measuring
        from vaeaudit.subject.opened import prepare

        here_found = {f"{name}.{key}": "found here" for name, key in (("model", "path"), ("data", "source"))}
        resolved = measuring(Resolved(settings, here_found | dict(given.sources)), CHECK_NAMES)
        subject = prepare(settings)
        reporter.keep()
        return audit(subject, resolved, sys.argv, CHECK_NAMES, reporter.go_on, journal_of(subject, resume), CHECK_NAMES)

    report = written(
        "opening the model and the data", work, Path(settings.run.out), Delivery("table", None, quiet, verbose)
    )
    if report.status != "complete" or not report.metrics:
        complain(f"no {FILE} was written: {report.error or report.status}; see {Path(settings.run.out) / 'report.md'}")
        return report.exit_code
    text = propose(report, settings, here)
    write_file(Path(FILE), text.encode())
    thresholds = text.count("\n[checks.")
    told = line(f"{FILE}: {thresholds} thresholds, from the figures of {Path(settings.run.out) / 'report.md'}")
    then = "" if quiet else "Read it, move the thresholds to what your release needs, then: vaeaudit audit\n"
    deliver(f"{told}\n{then}", None)
    return 0
