"""`vaeaudit doctor`: is this the model it claims to be?"""

from vaeaudit.cli.command import Asked, takes
from vaeaudit.cli.common import Reporter, check_output, deliver
from vaeaudit.cli.options import Configured, Model, OnData, Output, Quiet, TableOrJson, Verbose
from vaeaudit.errors import listed


@takes(Model, OnData, TableOrJson, Output, Quiet, Verbose, Configured)
def command(asked: Asked) -> int:
    """Try on real data whether the model is what it claims.

    Reconstruction, gradients, determinism, range and clamping, as they are tried before any check.
    """
    from vaeaudit.settings.config import model_and_data

    resolved = asked.settings()
    model_and_data(resolved.settings)  # told at once, where opening them would load torch before
    from vaeaudit.audit.writing import data_entry, model_entry, plausibility_entry
    from vaeaudit.cli.render import doctor_line, doctor_text, stdout_is_terminal
    from vaeaudit.gate.ending import ending
    from vaeaudit.model.ranges import span_text
    from vaeaudit.report.writer import dumps
    from vaeaudit.subject.opened import prepare

    reporter = Reporter(asked.quiet)
    check_output(None, asked.output)
    with reporter.working("trying the model on the data"):
        subject = prepare(resolved.settings)
    plausibility = plausibility_entry(subject.plausibility, resolved.settings.doctor.acknowledge)
    about, on = model_entry(subject), data_entry(subject)
    if asked.form == "json":
        entries = {"model": about, "data": on, "plausibility": plausibility}
        dumped = {name: entry.model_dump(mode="json") for name, entry in entries.items()}
        deliver(dumps(dumped), asked.output)
    elif asked.quiet and asked.output is None:
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
            *(
                [("computed", f"{listed(about.computed)}, of what weight or spectral normalisation stores")]
                if about.computed
                else []
            ),
            ("adapter", f"{subject.model.adapter.name} ({subject.model.adapter.source})"),
            ("input", "x".join(map(str, subject.model.vae.input_shape))),
            ("range", span_text(on.range)),
            ("likelihood", subject.likelihood),
            *(("note", sentence) for sentence in about.notes),
            ("data", f"{on.source}, {on.n} items"),
            *([("part", subject.part)] if subject.part else []),
            ("stored as", on.stored),
            *(("left out", sentence) for sentence in on.skipped),
            *(("warning", sentence) for sentence in subject.data.warnings),
        ]
        deliver(doctor_text(plausibility, facts, asked.output is None and stdout_is_terminal()), asked.output)
    return ending(plausible=not plausibility.failed).exit_code
