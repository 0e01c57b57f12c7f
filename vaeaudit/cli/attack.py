"""`vaeaudit attack`: how far an input must move to be encoded as another."""

import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

from vaeaudit.cli import options
from vaeaudit.cli.common import SHARED_KEYS, Reporter, check_output, complain, deliver, settings_of

_KEYS = SHARED_KEYS | {
    "out": "run.out",
    "mode": "attack.modes",
    "pairs": "attack.pairs",
    "lambdas": "attack.lambdas",
    "similarity": "attack.similarity",
    "penalty": "attack.penalty",
    "max_evaluations": "attack.max_evaluations",
}


def command(
    context: typer.Context,
    model: options.Model = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="What is attacked: latent; repeatable. [default: latent]", envvar="VAEAUDIT_MODE"
        ),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Source and target pairs. [default: 10]", envvar="VAEAUDIT_PAIRS"),
    ] = None,
    lambdas: Annotated[
        int | None,
        typer.Option(metavar="N", help="Values of lambda from 2^-20 to 2^20. [default: 50]", envvar="VAEAUDIT_LAMBDAS"),
    ] = None,
    similarity: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="kl, reverse-kl, symmetric-kl, mean, sample or wasserstein. [default: kl]",
            envvar="VAEAUDIT_SIMILARITY",
        ),
    ] = None,
    penalty: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="l2 (the norm) or l2sq (its square). [default: l2]", envvar="VAEAUDIT_PENALTY"
        ),
    ] = None,
    max_evaluations: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Model evaluations for one problem and one search. [default: 300]",
            envvar="VAEAUDIT_MAX_EVALUATIONS",
        ),
    ] = None,
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
    out: options.Out = None,
    output_format: Annotated[
        Literal["table", "json", "markdown"], typer.Option("--format", help="Form of the result.")
    ] = "table",
    output: options.Output = None,
    config: options.Config = None,
    isolated: options.Isolated = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Minimise similarity(q(z|x + d), q(z|x_t)) + lambda ||d|| for every pair and lambda, and report."""
    resolved = settings_of(context, _KEYS, config, isolated, option)
    from vaeaudit.artifacts import artifacts
    from vaeaudit.audit import run_attack
    from vaeaudit.cli.render import attack_text, stdout_is_terminal
    from vaeaudit.report.markdown import render
    from vaeaudit.report.writer import to_json, write
    from vaeaudit.subject import prepare

    folder = Path(resolved.settings.run.out)
    reporter = Reporter(quiet)
    check_output(resolved.settings.run.out, output)
    with reporter.working("opening the model and the data"):
        subject = prepare(resolved.settings)
        reporter.keeping = True
        audit = run_attack(subject, resolved, sys.argv, reporter.go_on)
        report = write(audit.report, artifacts(audit), folder)
    texts = {
        "table": lambda: attack_text(report, folder, output is None and stdout_is_terminal()),
        "json": lambda: to_json(report),
        "markdown": lambda: render(report),
    }
    deliver(texts[output_format](), output)
    if audit.fault is not None:
        if verbose:
            complain("".join(traceback.format_exception(audit.fault)).rstrip())
        complain(f"error: {report.error}")
    return report.exit_code
