"""`vaeaudit weights`: how large the weights of encoder and decoder are."""

import sys
from typing import TYPE_CHECKING, Annotated

from vaeaudit.cli.checking import show
from vaeaudit.cli.command import Asked, Setting, takes
from vaeaudit.cli.common import Reporter
from vaeaudit.cli.options import Configured, Formed, Model, Out, Output, Quiet, Verbose
from vaeaudit.errors import ConfigError, clipped

if TYPE_CHECKING:
    from vaeaudit.audit.run import Audit


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


@takes(Model, Out, Formed, Output, Quiet, Verbose, Configured)
def command(
    asked: Asked,
    against: Annotated[
        str | None,
        Setting(
            "weights.against",
            "OTHER",
            "Checkpoint of the same architecture, from which the change of each norm is counted.",
        ),
    ] = None,
    part: Annotated[
        list[str] | None,
        Setting(
            "weights.parts",
            "NAME=PREFIX",
            "How names of a part's tensors begin, as in encoder=enc.; parts: encoder, decoder, neither; "
            "repeatable. [default: as the adapter says, else encoder. and decoder.]",
            read=_parts,
        ),
    ] = None,
    vectors: Annotated[
        bool | None,
        Setting(
            "weights.vectors",
            None,
            "Count biases and normalisation as well. [default: matrices and kernels alone]",
            "--vectors",
        ),
    ] = None,
    spectral: Annotated[
        bool | None,
        Setting(
            "weights.spectral",
            None,
            "Whether each tensor's 2-norm is computed, which takes most of the time. [default: spectral]",
            "--spectral/--no-spectral",
        ),
    ] = None,
) -> int:
    """Measure the norms of the weights, from the file alone.

    L2 norms of encoder and decoder: no data are needed, and the model is not run.
    """
    from vaeaudit.settings.config import measuring

    resolved = measuring(asked.settings(), ["weights"])

    def work(reporter: Reporter) -> "Audit":
        from vaeaudit.audit.run import weigh
        from vaeaudit.checks.weights.stored import open_weights

        stored = open_weights(resolved.settings)
        reporter.keep()
        return weigh(stored, resolved, sys.argv, ["weights"], reporter.go_on)

    return show("reading the weights", work, resolved, asked)
