"""`vaeaudit convert`: a model as one safetensors file."""

from pathlib import Path
from typing import Annotated

import typer

from vaeaudit.cli.command import Asked, Key, takes
from vaeaudit.cli.common import Reporter, deliver
from vaeaudit.cli.options import AdapterOption, Configured, ModelAdapter, Quiet, TrustCode
from vaeaudit.errors import OutputError, clipped


@takes(Quiet, Configured)
def command(
    asked: Asked,
    model: Annotated[
        str,
        Key("model.path"),
        typer.Argument(metavar="MODEL", help="Checkpoint or its folder, FILE#KEY for one set of weights of several."),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The .safetensors file to write; it must not be there.")],
    adapter: ModelAdapter = None,
    trust_code: TrustCode = None,
    option: AdapterOption = None,
) -> int:
    """Write a model as a safetensors file that says what it is.

    Tensors have the names that the adapter takes, without what wrappers put before them and with weights that
    normalisation computes made plain; the adapter's name and options become facts of the file.
    """
    resolved = asked.settings()
    from vaeaudit.model.adapters import adapter_of
    from vaeaudit.model.checkpoints import open_checkpoint
    from vaeaudit.model.convert import converted
    from vaeaudit.model.files import amount
    from vaeaudit.model.registry import open_model
    from vaeaudit.report.writer import check_writable, write_file

    file, chosen = Path(out), resolved.settings.model
    if file.suffix.lower() != ".safetensors":
        raise OutputError(f"OUT must be a name that ends in .safetensors, but '{clipped(out)}' came")
    if file.exists():
        raise OutputError(f"{file} is there already, and no model is ever replaced; name another file")
    check_writable(file.parent, "OUT")
    with Reporter(asked.quiet).working("converting the model"):
        trusted = chosen.trust_code
        checkpoint = open_checkpoint(model, trusted)
        named = chosen.adapter is not None or adapter_of(checkpoint) is not None
        source = open_model(model, chosen.adapter, chosen.options, trust_code=trusted) if named else checkpoint
        content, facts = converted(source, file)
        write_file(file, content)
    told = ", ".join(f"{name} = {value}" for name, value in facts.items())
    deliver("" if asked.quiet else f"{file}: {amount(len(content))}, {told or 'no facts'}\n", None)
    return 0
