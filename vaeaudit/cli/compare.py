"""`vaeaudit compare`: is the later of two audits worse, beyond chance and beyond what is allowed?"""

from typing import Annotated, Literal

import typer

from vaeaudit.cli.command import Asked, Setting, takes
from vaeaudit.cli.common import check_output, complain, deliver
from vaeaudit.cli.options import Configured, ExitZero, Output, Quiet, Verbose, form_of
from vaeaudit.errors import ConfigError, clipped

Form = Literal["table", "json", "markdown"]


def _effects(texts: list[str]) -> dict[str, float | str]:
    """METRIC=DIFFERENCE each, a number or so many per cent."""
    found: dict[str, float | str] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            found[name] = value if value.endswith("%") and float(value[:-1]) >= 0 else float(value)
        except ValueError:
            raise ConfigError(
                f"--min-effect takes METRIC=DIFFERENCE, as in margin.r4.median=0.02 or =2%, but '{clipped(text)}' came"
            ) from None
    return found


@takes(Output, ExitZero, Quiet, Verbose, Configured)
def command(
    asked: Asked,
    old: Annotated[str, typer.Argument(metavar="OLD", help="Report of the earlier audit, or its folder.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Report of the later audit, or its folder.")],
    metric: Annotated[
        list[str] | None,
        Setting(
            "baseline.metrics",
            "NAME",
            "Metric that may regress; repeatable. [default: those of baseline.metrics, else the medians]",
        ),
    ] = None,
    min_effect: Annotated[
        list[str] | None,
        Setting(
            "baseline.min_effect",
            "METRIC=DIFFERENCE",
            "Metric that may regress, with the difference that it takes, or 2% of the earlier figure; repeatable. "
            "[default: those of baseline.min_effect, else the medians, by any difference]",
            read=_effects,
        ),
    ] = None,
    level: Annotated[
        float | None,
        Setting("baseline.level", "P", "Confidence; one minus it is the chance of any false alarm. [default: 0.95]"),
    ] = None,
    form: Annotated[Form, form_of(Form)] = "table",
) -> int:
    """Tell whether a later audit is worse than an earlier one.

    The two reports, of audits of the same items, are compared metric by metric, paired by item.
    """
    baseline = asked.settings().settings.baseline
    check_output(None, asked.output)
    from vaeaudit.cli.forms import comparison_text
    from vaeaudit.gate.compare import check_known, compare, side_of
    from vaeaudit.gate.ending import ending, exit_code

    sides = side_of(old), side_of(new)
    for name in (*baseline.metrics, *baseline.min_effect):
        check_known(name, sides)
    compared = compare(*sides, metrics=baseline.metrics, min_effect=baseline.min_effect, level=baseline.level)
    deliver(comparison_text(compared, form, asked.output, asked.quiet), asked.output)
    for reason in [] if asked.quiet else compared.refused:
        complain(f"not compared: {reason}")
    return exit_code(ending([compared.verdict]).exit_code, asked.exit_zero)
