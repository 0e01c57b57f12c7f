"""`vaeaudit mig`: whether each known factor of the data is held by one unit of the code alone."""

from typing import Annotated

from vaeaudit.cli.checking import carry_out
from vaeaudit.cli.command import Asked, Setting, takes
from vaeaudit.cli.options import CHECK


@takes(*CHECK)
def command(
    asked: Asked,
    items: Annotated[int | None, Setting("mig.items", "N", "Items, drawn at random. [default: all of them]")] = None,
) -> int:
    """Measure whether single units hold the data's factors.

    The mutual information gap of the factors that the data name, by both estimators.
    """
    return carry_out(["mig"], asked)
