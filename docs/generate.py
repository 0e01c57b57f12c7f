"""Writes configuration.md, from the JSON Schema of the settings and the variables that the command line reads.

python docs/generate.py
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from vaeaudit.checks.registry import checks
from vaeaudit.cli.app import app
from vaeaudit.settings.config import json_schema

HERE = Path(__file__).parent
PAGE = HERE / "configuration.md"
Schema = Mapping[str, Any]

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
2. a variable of the environment, such as `VAEAUDIT_SEED=1`
3. the file
4. facts that the checkpoint states about itself: the name of an installed adapter, and options of that adapter such as
   activation and range. Never data, paths, thresholds or code
5. the default

A list or table is taken whole from the first that says it: `--mode damage` replaces the modes of the file. `r`, `caps`
and `sigmas` also take one number alone, which an editor marks as wrong, since the schema asks for a list.

Each command reads the variables of its own options and no others: `VAEAUDIT_PAIRS` counts for `vaeaudit attack`, while
`vaeaudit audit` has no `--pairs` and takes the number from the file. The same variable can be another key for another
command: `VAEAUDIT_LEVEL` is `margin.level` for `margin` and `baseline.level` for `compare`.

{variables}

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
"noise.s0.1.degradation.median" = 0.5
```

[The release gate](gate.md#compared-with-a-baseline) tells what is paired, and when a figure counts as regressed.
`vaeaudit compare` takes `metrics`, `min_effect` and `level` from here as well.
"""


def page() -> str:
    """The page as a whole."""
    return "\n".join([HEAD.replace("{variables}", _variables()), *_sections(json_schema())])


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


def _variables() -> str:
    """A row for every variable, with the flag that it stands for and the commands that read it."""
    readers: dict[str, list[str]] = {}
    flags: dict[str, str] = {}
    for name, command in _commands(typer.main.get_command(app), ""):
        for parameter in command.params:
            if parameter.envvar:
                flags[parameter.envvar] = max(parameter.opts, key=len)
                readers.setdefault(parameter.envvar, []).append(name)
    everywhere = readers["VAEAUDIT_DATA"]
    rows = ["| variable | stands for | read by |", "|---|---|---|"]
    for variable in sorted(readers, key=lambda variable: -len(readers[variable])):
        who = ", ".join(f"`{name}`" for name in readers[variable])
        if readers[variable] == everywhere:
            who = "every command that opens a model"
        flag = flags[variable] if flags[variable].startswith("-") else flags[variable].upper()
        rows.append(f"| `{variable}` | `{flag}` | {who} |")
    return "\n".join(rows)


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The command, or those in it, by what is typed after `vaeaudit`."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
    for sub in inner or ():
        yield from _commands(inner[sub], f"{name} {sub}".strip())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
