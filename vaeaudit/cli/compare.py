"""`vaeaudit compare`: is the later of two audits worse, beyond chance and beyond what is allowed?"""

from typing import Annotated

import typer

from vaeaudit.cli import options
from vaeaudit.cli.common import check_output, complain, deliver, settings_of
from vaeaudit.errors import ConfigError, clipped


def command(
    context: typer.Context,
    old: Annotated[str, typer.Argument(metavar="OLD", help="Report of the earlier audit, or its folder.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Report of the later audit, or its folder.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Metric that may regress; repeatable. [default: those of baseline.metrics, else the medians]",
        ),
    ] = None,
    min_effect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=DIFFERENCE",
            help="Metric that may regress, with the difference that it takes; repeatable. [default: those of "
            "baseline.min_effect, else the medians, by any difference]",
        ),
    ] = None,
    level: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Confidence; one minus it is the chance of any false alarm. [default: 0.95]",
            envvar="VAEAUDIT_LEVEL",
        ),
    ] = None,
    output_format: options.CompareFormat = "table",
    output: options.Output = None,
    exit_zero: options.ExitZero = False,
    config: options.Config = None,
    isolated: options.Isolated = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Compare the reports of two audits of the same items, metric by metric, paired by item."""
    context.params["min_effect"] = dict(map(_effect, min_effect)) if min_effect else None
    keys = {"metric": "baseline.metrics", "min_effect": "baseline.min_effect", "level": "baseline.level"}
    asked = settings_of(context, keys, config, isolated, None).settings.baseline
    check_output(None, output)
    from vaeaudit.cli.forms import comparison_text
    from vaeaudit.gate.compare import check_known, compare, side_of
    from vaeaudit.gate.ending import ending, exit_code

    sides = side_of(old), side_of(new)
    for name in (*asked.metrics, *asked.min_effect):
        check_known(name, sides)
    compared = compare(*sides, metrics=asked.metrics, min_effect=asked.min_effect, level=asked.level)
    deliver(comparison_text(compared, output_format, output, quiet), output)
    for reason in [] if quiet else compared.refused:
        complain(f"not compared: {reason}")
    return exit_code(ending([compared.verdict]).exit_code, exit_zero)


def _effect(text: str) -> tuple[str, float]:
    """METRIC=DIFFERENCE."""
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ConfigError(
            f"--min-effect takes METRIC=DIFFERENCE, as in margin.r4.median=0.02, but '{clipped(text)}' came"
        ) from None
