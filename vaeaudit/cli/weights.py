"""`vaeaudit weights`: how large the weights of encoder and decoder are."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vaeaudit.cli import options
from vaeaudit.cli.checking import Delivery, show
from vaeaudit.cli.common import Reporter, settings_of
from vaeaudit.errors import ConfigError, clipped

if TYPE_CHECKING:
    from vaeaudit.audit.run import Audit

_KEYS = {
    "model": "model.path",
    "adapter": "model.adapter",
    "out": "run.out",
    "against": "weights.against",
    "part": "weights.parts",
    "vectors": "weights.vectors",
    "spectral": "weights.spectral",
}


def command(
    context: typer.Context,
    model: options.Model = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="OTHER",
            help="Checkpoint of the same architecture, from which the change of each norm is counted.",
            envvar="VAEAUDIT_AGAINST",
        ),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PREFIX",
            help="How names of a part's tensors begin, as in encoder=enc.; parts: encoder, decoder, neither; "
            "repeatable. [default: as the adapter says, else encoder. and decoder.]",
        ),
    ] = None,
    vectors: Annotated[
        bool | None,
        typer.Option("--vectors", help="Count biases and normalisation as well. [default: matrices and kernels alone]"),
    ] = None,
    spectral: Annotated[
        bool | None,
        typer.Option(
            "--spectral/--no-spectral",
            help="Whether each tensor's 2-norm is computed, which takes most of the time. [default: spectral]",
            show_default=False,
        ),
    ] = None,
    adapter: options.Adapter = None,
    out: options.Out = None,
    output_format: options.Format = "table",
    output: options.Output = None,
    config: options.Config = None,
    isolated: options.Isolated = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Measure the L2 norms of encoder and decoder, from the file alone: no data, and the model is not run."""
    context.params["part"] = _parts(part) if part else None
    from vaeaudit.settings.config import measuring

    resolved = measuring(settings_of(context, _KEYS, config, isolated, None), ["weights"])

    def work(reporter: Reporter) -> "Audit":
        from vaeaudit.audit.run import weigh
        from vaeaudit.checks.weights.stored import open_weights

        stored = open_weights(resolved.settings)
        reporter.keep()
        return weigh(stored, resolved, sys.argv, reporter.go_on)

    delivery = Delivery(output_format, output, quiet, verbose)
    return show("reading the weights", work, resolved, delivery)


def _parts(texts: list[str]) -> dict[str, list[str]]:
    """Prefixes by part."""
    parts: dict[str, list[str]] = {}
    for text in texts:
        name, equals, prefix = text.partition("=")
        if not (equals and prefix and name in ("encoder", "decoder", "neither")):
            raise ConfigError(
                f"--part takes encoder=PREFIX, decoder=PREFIX or neither=PREFIX, as in encoder=enc., but "
                f"'{clipped(text)}' came"
            )
        parts.setdefault(name, []).append(prefix)
    return parts
