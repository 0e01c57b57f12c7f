"""Writes configuration.md from the JSON Schema of the settings, and commands.md from what each command's help says.

python docs/generate.py
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from vaeaudit.checks.registry import checks
from vaeaudit.cli.app import app
from vaeaudit.settings.config import json_schema

HERE = Path(__file__).parent
Schema = Mapping[str, Any]
Row = tuple[str, str, str, str]

HEAD = """\
# Configuration

<!-- Written by docs/generate.py from the schema that `vaeaudit config schema` prints: change that, not this page. -->

Everything that an audit does can stand in one file, so that it is done the same way again. `vaeaudit init` writes a
first one; `vaeaudit config show` prints every value that counts and who said it.

## Where the file is looked for

`vaeaudit.toml`, or `pyproject.toml` with tables `[tool.vaeaudit.model]`, `[tool.vaeaudit.data]` and so on, in the
working directory, then in the folders above it up to the root of its repository (the first folder with `.git`). The
nearest one counts, files are not merged, and in one folder `vaeaudit.toml` comes first. Outside a repository only the
working directory is looked at. `--config FILE` names a file, `--isolated` reads none.

Sections and keys that are not known are errors (exit code 2), which name the nearest one there is. Paths in a file,
that of an adapter `file.py:open` included, are meant from the folder of that file; those of flags and variables from
the working directory.

## Which value counts

1. a flag, such as `--seed 1`
2. a variable of the environment, such as `VAEAUDIT_RUN_SEED=1`
3. the file
4. facts that the checkpoint states about itself: the name of an installed adapter, and options of that adapter such as
   activation and range. Never data, paths, thresholds or code
5. the default

A list or table is taken whole from the first that says it: `--mode damage` replaces the modes of the file. `r`, `caps`
and `sigmas` also take one number alone, which an editor marks as wrong, since the schema asks for a list.

## Variables of the environment

Every key has one, by its section: `VAEAUDIT_NOISE_SIGMAS` is `sigmas` of `[noise]`, and `VAEAUDIT_RUN_BATCH_SIZE` is
`batch_size` of `[run]`. So have the sections of checks that other packages bring. All commands that read the file take
them alike: `VAEAUDIT_ATTACK_PAIRS` counts for `vaeaudit attack`, `vaeaudit audit` and `vaeaudit init`. A variable gives
a value and enables no check, as a section of the file would. One that is empty says nothing.

| value | written as |
|---|---|
| text, number | as it is: `VAEAUDIT_RUN_SEED=1` |
| true or false | `true`, `yes`, `on`, `1`, or `false`, `no`, `off`, `0` |
| list | between commas, or as JSON: `VAEAUDIT_NOISE_SIGMAS=0.1,0.5`, `VAEAUDIT_NOISE_SIGMAS=[0.1,0.5]` |
| table | JSON: `VAEAUDIT_MODEL_OPTIONS={"activation": "tanh"}` |
| thresholds | JSON of all of them in one: `VAEAUDIT_CHECKS={"margin.r4.certified.median": {"min": 0.05}}` |

`VAEAUDIT_CONFIG` names the file, as `--config` does. Any other variable `VAEAUDIT_...` counts for nothing, and that is
said on stderr. Names without a section, such as `VAEAUDIT_SEED`, count for this release and say their new name;
`VAEAUDIT_ITEMS`, `VAEAUDIT_DRAWS` and `VAEAUDIT_LEVEL`, which meant another key for each command, are refused.

## In an editor

Editors that know Taplo, such as VS Code with Even Better TOML, complete and check the file by its schema:

```sh
vaeaudit config schema -o vaeaudit.schema.json
```

The first line of `vaeaudit.toml` names it, from the folder of that file:

```toml
#:schema ./vaeaudit.schema.json
[attack]
modes = ["latent", "damage"]
```

The schema is that of `vaeaudit.toml`; it does not fit a `pyproject.toml`. Whether a threshold names a figure that there
is, it does not know: `vaeaudit audit` says that at once.
"""

CHECKS = """\
One section for each figure that must keep to something, under the figure's name. Names with dots stand in quotes. A
section needs `min`, `max` or both. The names are those of the table Metrics on the page of each check, and of
`metrics` in a report; one that these settings cannot give is an error before anything is measured.
[The release gate](gate.md#how-a-threshold-reads-a-figure) tells how a threshold reads an interval.

{gate}

`waive` is a table of two:

{waive}

```toml
[attack]
modes = ["latent"]
[margin]
r = [4]
[noise]
sigmas = [0.1]

[checks."margin.r4.certified.median"]
min = 0.05                   # passes only where the whole interval lies at or above 0.05
[checks."margin.r4.empirical.median"]
min = 0.25
bound = "ci_lower"           # the lower end alone decides: a wide interval fails where the first would be inconclusive
[checks."noise.s0.1.degradation.median"]
max = 5
severity = "warn"            # told among the warnings, and changes no verdict
[checks."attack.latent.delta.median"]
min = 40
waive = { until = 2026-12-31, reason = "tracked in #12" }
[checks."weights.encoder.l2"]
min = 20                     # an exact figure, without an interval
max = 40
```

A threshold enables the check that gives its figure: here `weights` is carried out although it has no section of its
own.
"""

DOCTOR = """\
{table}

```toml
[doctor.acknowledge]
"log-variance" = "the floor is meant: a ReLU head"
```

[The release gate](gate.md#what-doctor-is-unsure-of) tells what such a finding does to an audit.
"""

BASELINE = """\
{table}

```toml
[margin]
r = [4]                      # named: "auto" chooses another radius for another model, and names its figures by it

[baseline]
path = "audit/last-release"  # a folder with report.json and samples.safetensors
metrics = ["margin.r4.empirical.median", "noise.s0.1.degradation.median"]

[baseline.min_effect]        # how much worse they may get, each in its own unit; any difference where left out
"margin.r4.empirical.median" = 0.02
"noise.s0.1.degradation.median" = "5%"    # of the earlier figure
```

[The release gate](gate.md#compared-with-a-baseline) tells what is paired, and when a figure counts as regressed.
`vaeaudit compare` takes `metrics`, `min_effect` and `level` from here as well.
"""


COMMANDS = """\
# Commands and options

<!-- Written by docs/generate.py from the help of each command: change that, not this page. -->

`vaeaudit COMMAND --help` says the same. An option that is a setting may stand in the file or the environment as well:
`noise.sigmas` is `sigmas` of `[noise]`, and `VAEAUDIT_NOISE_SIGMAS`. [Configuration](configuration.md) tells which of
them counts. The default holds where none of them says anything.
"""
SHARED = """\
## Options of several commands

`MODEL` is a checkpoint (.safetensors, .pt, .pth, .ckpt) or its folder, or FILE#KEY for one set of weights of several;
the setting `model.path` where it is left out.
"""


def configuration() -> str:
    """The page configuration.md as a whole."""
    return "\n".join([HEAD, *_sections(json_schema())])


def commands() -> str:
    """The page commands.md as a whole: each command with its own options, then those that several share."""
    parts, shared = [COMMANDS], {}
    for name, command in _commands(typer.main.get_command(app), ""):
        context = typer.Context(command, info_name=f"vaeaudit {name}")
        usage = " ".join(command.collect_usage_pieces(context))
        parts.append(f"## {name}\n\n{command.help}\n\n```text\nvaeaudit {name} {usage}\n```\n")
        rows = {True: [], False: []}
        for parameter in command.params:
            heading = getattr(parameter, "rich_help_panel", None)
            if heading is not None:
                shared.setdefault(heading, {}).setdefault(_option(parameter, command, context), []).append(name)
            elif parameter.name != "model":
                rows[parameter.param_type_name == "argument"].append(_option(parameter, command, context))
        if rows[True] or rows[False]:
            parts.append(_options([*rows[True], *rows[False]]))
    parts.append(SHARED)
    for heading, options in shared.items():
        parts.append(f"### {heading}\n")
        takers: dict[str, list[Row]] = {}
        for row, names in options.items():
            takers.setdefault(", ".join(f"`{name}`" for name in names), []).append(row)
        parts += [f"Of {names}:\n\n{_options(rows)}" for names, rows in takers.items()]
    return "\n".join(parts)


def _option(parameter: Any, command: Any, context: Any) -> Row:
    """Spelling, meaning, default and setting of an option, out of its help."""
    spelling, told = parameter.get_help_record(context)
    meaning = re.sub(r"\s*\[(default: .*?|env:.*?|required)\]", "", told)
    if parameter.param_type_name == "argument":
        spelling = parameter.metavar
    key = command.callback.keys.get(parameter.name)
    default = re.search(r"\[default: (.*?)\]", told)
    return spelling, meaning, default.group(1) if default else "", key.name if key else ""


def _options(rows: Iterable[Row]) -> str:
    lines = ["| option | what it is | default | setting |", "|---|---|---|---|"]
    for spelling, meaning, default, key in rows:
        cells = (f"`{spelling}`", meaning, default, f"`{key}`" if key else "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _sections(schema: Schema) -> Iterator[str]:
    for name, values in schema["properties"].items():
        yield f"## {name}\n"
        if name == "checks":
            gate, waive = (_table(schema, schema["$defs"][kind]) for kind in ("GateSettings", "WaiveSettings"))
            yield CHECKS.replace("{gate}", gate).replace("{waive}", waive)
            continue
        section = _target(schema, values)
        about = section["description"]
        if name in checks():
            about = about.removesuffix(".") + f": [what it measures]({checks()[name].page})."
        yield f"{about}\n"
        table = _table(schema, section)
        yield {"baseline": BASELINE, "doctor": DOCTOR}.get(name, "{table}\n").replace("{table}", table)
        if name == "run":
            yield "The checks, in the order in which they are carried out:\n"
            yield "| check | what it asks |\n|---|---|"
            yield from (f"| [`{check.name}`]({check.page}) | {check.help} |" for check in checks().values())
            yield ""


def _table(schema: Schema, section: Schema) -> str:
    """A row for every key of a section."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, value in section["properties"].items():
        if key in section.get("required", ()):
            default = "must be given"
        else:
            default = "none" if value.get("default") is None else f"`{json.dumps(value['default'])}`"
        cells = (f"`{key}`", _kind(schema, value), default, value.get("description", ""))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _kind(schema: Schema, value: Schema) -> str:
    """The values that a key takes, in words."""
    value = _target(schema, value)
    if "anyOf" in value:
        return " or ".join(_kind(schema, one) for one in value["anyOf"] if one.get("type") != "null")
    if "enum" in value or "const" in value:
        return ", ".join(f"`{json.dumps(one)}`" for one in value.get("enum", [value.get("const")]))
    match value.get("type"):
        case "boolean":
            return "`true`, `false`"
        case "string":
            return "day" if value.get("format") == "date" else "text"
        case "integer" | "number" as kind:
            return "whole number" * (kind == "integer") + "number" * (kind == "number") + _limits(value)
        case "array" if "prefixItems" in value:
            return f"list of {len(value['prefixItems'])} numbers"
        case "array":
            return f"list of {_kind(schema, value['items'])}"
        case "object" if value.get("properties"):
            return "table"
        case "object":
            names = value.get("propertyNames", {}).get("enum", ["names"])
            inner = value["additionalProperties"]
            return f"table of {', '.join(names)}" + (
                f": {_kind(schema, inner)}" if _target(schema, inner) else " and values"
            )
    return "anything"


def _limits(value: Schema) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    told = [f"{word} {value[limit]:.10g}" for limit, word in words.items() if limit in value]
    return ", " * bool(told) + " and ".join(told)


def _target(schema: Schema, value: Schema) -> Schema:
    """What a value that is a reference refers to."""
    while "$ref" in value:
        value = schema["$defs"][value["$ref"].rpartition("/")[2]]
    return value


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The command, or those in it, by what is typed after `vaeaudit`."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
    for sub in inner or ():
        yield from _commands(inner[sub], f"{name} {sub}".strip())


PAGES = {"configuration.md": configuration, "commands.md": commands}

if __name__ == "__main__":
    for name, written in PAGES.items():
        (HERE / name).write_text(written(), encoding="utf-8")
