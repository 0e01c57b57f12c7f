"""Options of an audit as a whole.

They name every check that is installed, so they stand apart from the options that the module of a check may import.
"""

from typing import Annotated

from vaeaudit.checks.registry import installed
from vaeaudit.cli.command import Setting
from vaeaudit.cli.options import one_of


class Policy:
    """Policy."""

    check: Annotated[
        list[str] | None,
        Setting(
            "run.checks",
            "NAME",
            f"Check to carry out: {one_of(installed()[0])}; repeatable. [default: those that the configuration "
            "names, else all]",
        ),
    ] = None
    baseline: Annotated[
        str | None,
        Setting("baseline.path", "PATH", "Report of an earlier audit, or its folder, with which this one is compared."),
    ] = None
