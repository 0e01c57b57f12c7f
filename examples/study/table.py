"""A study as a table of configurations: a TOML file, of which each row is a model to train and to audit."""

import tomllib
from itertools import product
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

# What of a row is a setting of its system, by which figures are told apart, in the order of the results' columns. The
# audit is none of the model: rows that differ in it alone are one model, trained once.
SETTINGS = ("system", "data", "beta", "gamma", "depth", "latents", "tau", "weight_decay", "audit")


class Row(BaseModel):
    """One model, and one audit of it.

    system: the papers' name of it. objective: a function of ``objectives``; what it is not given it does not read.
    data: a key of ``data.SOURCES``. adapter: whose networks they are; widths are theirs, but for ``width`` of fully
    connected ones. tau: offset of the encoder's standard deviation (C fig. 7). capacity: what the KL is led to, in
    nats, linearly over the first half of training; ``categorical_capacity`` likewise. audit: the key of its audit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str
    objective: str
    data: str
    adapter: Literal["mlp", "burgess", "jointvae", "hierarchical"] = "mlp"
    beta: PositiveFloat = 1.0
    gamma: NonNegativeFloat = 0.0
    capacity: NonNegativeFloat = 0.0
    categorical_capacity: NonNegativeFloat = 0.0
    free_bits: NonNegativeFloat = 0.0
    sampling: Literal["weighted", "stratified"] = "weighted"
    depth: PositiveInt = 1
    latents: PositiveInt = 20
    tau: NonNegativeFloat = 0.0
    weight_decay: NonNegativeFloat = 0.0
    width: PositiveInt = 400
    epochs: PositiveInt = 10
    batch: PositiveInt = 512
    learning_rate: PositiveFloat = 1e-3
    items: PositiveInt = 60_000
    seed: int = 0
    audit: str = "full"

    @property
    def name(self) -> str:
        """Of the model's folder: the settings of its system, and the seed."""
        settings = [f"{name}{getattr(self, name):g}" for name in SETTINGS[2:-1]]
        return "-".join([self.system.replace(" ", "_"), self.data, *settings, f"seed{self.seed}"])


class Study(BaseModel):
    """A table: the rows, and by name the audits, each the settings that a ``vaeaudit.toml`` has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: tuple[Row, ...]
    audits: dict[str, dict[str, dict[str, object]]]


def read_table(file: Path) -> Study:
    """The study of a TOML file: [defaults], [audit.NAME.SECTION], and [[system]], whose lists are all combined.

    Raises ValueError, in one sentence, for what is no such table.
    """
    try:
        told = tomllib.loads(file.read_text())
        defaults, rows = told.get("defaults", {}), []
        for system in told["system"]:
            merged = {**defaults, **system}
            lists = {name: value if isinstance(value, list) else [value] for name, value in merged.items()}
            rows += [Row(**dict(zip(lists, values, strict=True))) for values in product(*lists.values())]
        study = Study(rows=tuple(rows), audits=told.get("audit", {}))
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise ValueError(f"{file} is no table of a study: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    names = [(row.name, row.audit) for row in study.rows]
    if twice := {name for name, audit in names if names.count((name, audit)) > 1}:
        raise ValueError(f"{file}: {min(twice)} stands there twice; give one of them another system")
    if unknown := {row.audit for row in study.rows} - {*study.audits}:
        raise ValueError(f"{file}: there is no audit '{min(unknown)}'; describe it in [audit.{min(unknown)}]")
    return study
