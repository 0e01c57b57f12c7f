"""What every command does with its options: those that several share come from groups, those with a key are settings.

A command, ours or that of a check which another package brings, states its own options and names the groups that it
shares. A group is a class of annotated options, and its docstring heads them in the help::

    from vaeaudit.cli.checking import carry_out
    from vaeaudit.cli.command import Asked, Setting, takes
    from vaeaudit.cli.options import CHECK

    @takes(*CHECK)
    def command(
        asked: Asked,
        bins: Annotated[int | None, Setting("calibration.bins", "N", "Bins. [default: 10]")] = None,
    ) -> int:
        \"\"\"Say whether the likelihood is calibrated.\"\"\"
        return carry_out(["calibration"], asked)

``Setting`` says which setting an option is, and how its text is read where typer's own way is not enough. Such an
option has None for its default, since another source may give the setting; its help names the variable of the
environment. Options that are no settings are typer's own. ``vaeaudit --help`` shows what the row of a check says of it,
of other commands the docstring's first sentence; it imports nothing but this, since settings are resolved only when the
command asks for them.
"""

import inspect
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import ArgumentInfo, OptionInfo

from vaeaudit.cli.common import complain
from vaeaudit.cli.environment import said, variable
from vaeaudit.errors import ConfigError

if TYPE_CHECKING:
    from vaeaudit.report.model import Report
    from vaeaudit.settings.config import Resolved

_FIRST_COLUMN = 22  # of a help; what is longer stands on a line of its own


@dataclass(frozen=True)
class Key:
    """The setting "section.key" that an option gives, and how it is made of the option's value."""

    name: str
    read: Callable[[Any], object] = lambda value: value


class Setting(OptionInfo):
    """The option of a setting: "section.key", what stands for its value in the help (None of a flag), and its help.

    ``spellings`` are its own where it is not called as its parameter.
    """

    def __init__(
        self,
        key: str,
        metavar: str | None,
        text: str,
        *spellings: str,
        read: Callable[[Any], object] = lambda value: value,
    ) -> None:
        super().__init__(default=..., param_decls=spellings, metavar=metavar, help=text, show_default=False)
        self.key = Key(key, read)


@dataclass(frozen=True)
class Asked:
    """What was asked of a command by the options that it shares, and by those of its own that are settings.

    ``given`` holds the settings that flags gave: "section.key" -> (value, the flag). ``typed`` names the parameters
    that stood on the command line. The others are those of :mod:`vaeaudit.cli.options`.
    """

    given: Mapping[str, tuple[object, str]]
    typed: frozenset[str] = frozenset()
    config: str | None = None
    isolated: bool = False
    resume: bool = False
    shard: str | None = None
    form: str = "table"
    output: str | None = None
    exit_zero: bool = False
    quiet: bool = False
    verbose: bool = False

    def settings(self) -> "Resolved":
        """The settings: flags, then variables of the environment, then the configuration file, then defaults."""
        from vaeaudit.settings.config import find_config, resolve

        if self.isolated and "config" in self.typed:
            raise ConfigError("--config names a file and --isolated reads none; give one of them")
        if self.isolated:
            return resolve(self._given(), None)
        return resolve(self._given(), Path(self.config) if self.config is not None else find_config(Path.cwd()))

    def settings_of(self, path: str) -> tuple["Resolved", "Report"]:
        """The settings of the report at ``path``, under flags and variables, and that report; no file is read.

        Raises :class:`ConfigError` where the new report would take the place of that one.
        """
        from vaeaudit.model.files import named_part
        from vaeaudit.report.reading import read_report
        from vaeaudit.settings.config import resolve

        if "config" in self.typed:
            raise ConfigError("--from takes the settings of a report and --config those of a file; give one of them")
        report, folder = read_report(path)
        given = configured(report.configuration, "--from")
        given.pop("run.out", None)
        resolved = resolve(given | self._given(), None)
        named = resolved.settings.model.path
        if named is not None and resolved.sources.get("model.path") == "--from" and not named_part(named)[0].exists():
            raise ConfigError(
                f"the model {named}, as {path} names it, is not there from this folder; give it as MODEL, and its data "
                "with --data"
            )
        if Path(resolved.settings.run.out).resolve() == folder.resolve():
            raise ConfigError(f"the new report would take the place of {path}; name another folder with --out")
        return resolved, report

    def _given(self) -> dict[str, tuple[object, str]]:
        """What flags and variables say; what is to be known of the variables is told."""
        variables, remarks = said()
        for remark in [] if self.quiet else remarks:
            complain(f"note: {remark}")
        return {**variables, **self.given}


def configured(configuration: Mapping[str, object], source: str) -> dict[str, tuple[object, str]]:
    """The settings of a configuration that was written down, as ``source`` gives them."""
    given: dict[str, tuple[object, str]] = {}
    for section, values in configuration.items():
        if isinstance(values, dict):
            given |= {f"{section}.{key}": (value, source) for key, value in values.items() if value is not None}
    return given


def takes(*groups: type) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Make a command of a function of :class:`Asked` and its own options, with the options of ``groups`` besides."""

    def merged(body: Callable[..., int]) -> Callable[..., int]:
        _, *own = inspect.signature(body, eval_str=True).parameters.values()
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=getattr(group, name), annotation=hint)
            for group in groups
            for name, hint in get_type_hints(group, include_extras=True).items()
        ]
        headings = {name: (group.__doc__ or "").partition(".")[0] for group in groups for name in group.__annotations__}
        parameters = [_in_help(one, headings.get(one.name)) for one in (*own, *shared)]
        keys = {one.name: key for one in parameters if (key := _key(one))}
        plain = {field.name for field in fields(Asked)}

        @wraps(body)
        def command(context: typer.Context, **values: Any) -> int:
            typed = {name for name in values if _is_typed(context, name)}
            flags = {one.name: spelled(one) for one in context.command.params}
            given = {keys[name].name: (keys[name].read(values[name]), flags[name]) for name in keys if name in typed}
            asked = Asked(given, frozenset(typed), **{name: values[name] for name in plain & values.keys()})
            return body(asked, **{one.name: values[one.name] for one in own})

        context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
        vars(command).update(__signature__=inspect.Signature([context, *parameters]), keys=keys)
        return command

    return merged


def _key(parameter: inspect.Parameter) -> Key | None:
    """The setting that a parameter gives, if it is one."""
    notes = (note.key if isinstance(note, Setting) else note for note in get_args(parameter.annotation))
    return next((note for note in notes if isinstance(note, Key)), None)


def _in_help(parameter: inspect.Parameter, heading: str | None) -> inspect.Parameter:
    """The parameter under its heading, and with the variable that its help names."""
    kind, *notes = get_args(parameter.annotation)
    key = _key(parameter)
    for place, note in enumerate(notes):
        if isinstance(note, OptionInfo | ArgumentInfo):
            notes[place] = note = copy(note)
            note.rich_help_panel = None if isinstance(note, ArgumentInfo) else heading
            if name := variable(key.name) if key else note.envvar:
                note.help = f"{note.help} [env:{name}]"
            note.show_envvar = False
    return parameter.replace(annotation=Annotated[(kind, *notes)])


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def spelled(parameter: Any) -> str:
    """How a parameter is called on the command line: --seed, or MODEL."""
    longest = max(parameter.opts, key=len)
    return str(longest if longest.startswith("-") else parameter.metavar or longest.upper())


class Command(TyperCommand):
    """A command whose help stands under headings: its own options first, then those of each group."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write every parameter under its heading; the texts of all begin in one column."""
        parts: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            own = "Arguments" if parameter.param_type_name == "argument" else "Options"
            if parameter.name == "help" and parts:
                own = [*parts][-1]
            if (record := parameter.get_help_record(ctx)) is not None:
                parts.setdefault(getattr(parameter, "rich_help_panel", None) or own, []).append(record)
        width = max((len(first) for rows in parts.values() for first, _ in rows if len(first) <= _FIRST_COLUMN))
        for heading in sorted(parts, key=lambda heading: (heading != "Arguments", heading != "Options")):
            with formatter.section(heading):
                formatter.write_dl([(first.ljust(width), text) for first, text in parts[heading]], col_max=width)
