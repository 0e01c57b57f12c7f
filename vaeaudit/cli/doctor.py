"""`vaeaudit doctor`: is this the model it claims to be?"""

from typing import Annotated, Literal

import typer

from vaeaudit.cli import options
from vaeaudit.cli.common import SHARED_KEYS, Reporter, check_output, deliver, settings_of


def command(
    context: typer.Context,
    model: options.Model = None,
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
    output_format: Annotated[Literal["table", "json"], typer.Option("--format", help="Form of the result.")] = "table",
    output: options.Output = None,
    config: options.Config = None,
    isolated: options.Isolated = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Try the model on real data before any check: reconstruction, gradients, determinism, range, clamping."""
    resolved = settings_of(context, SHARED_KEYS, config, isolated, option)
    from vaeaudit.audit.writing import data_entry, model_entry, plausibility_entry
    from vaeaudit.cli.render import doctor_line, doctor_text, stdout_is_terminal
    from vaeaudit.gate.ending import ending
    from vaeaudit.model.ranges import span_text
    from vaeaudit.report.writer import dumps
    from vaeaudit.subject.opened import prepare

    reporter = Reporter(quiet)
    check_output(None, output)
    with reporter.working("trying the model on the data"):
        subject = prepare(resolved.settings)
    plausibility = plausibility_entry(subject.plausibility, resolved.settings.doctor.acknowledge)
    about, on = model_entry(subject), data_entry(subject)
    if output_format == "json":
        entries = {"model": about, "data": on, "plausibility": plausibility}
        dumped = {name: entry.model_dump(mode="json") for name, entry in entries.items()}
        deliver(dumps(dumped), output)
    elif quiet and output is None:
        deliver(doctor_line(plausibility), None)
    else:
        facts = [
            ("model", about.file.path),
            *(("model file", file.path) for file in about.files if len(about.files) > 1),
            *(
                [("names", f"'{about.prefix}', which a wrapper had put before them, was taken off")]
                if about.prefix
                else []
            ),
            ("adapter", f"{subject.model.adapter.name} ({subject.model.adapter.source})"),
            ("input", "x".join(map(str, subject.model.vae.input_shape))),
            ("range", span_text(on.range)),
            ("likelihood", subject.likelihood),
            ("data", f"{on.source}, {on.n} items"),
            *([("part", subject.part)] if subject.part else []),
            ("stored as", on.stored),
            *(("left out", sentence) for sentence in on.skipped),
            *(("warning", sentence) for sentence in subject.data.warnings),
        ]
        deliver(doctor_text(plausibility, facts, output is None and stdout_is_terminal()), output)
    return ending(plausible=not plausibility.failed).exit_code
