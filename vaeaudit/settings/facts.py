"""Every setting with who said it, the facts that a checkpoint states about itself among them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vaeaudit.errors import VaeauditError
from vaeaudit.model.stated import find_checkpoint, read_facts
from vaeaudit.settings.config import Resolved


@dataclass(frozen=True)
class Sourced:
    """A setting's name ("section.key"), its value as JSON has it, and who said it."""

    key: str
    value: object
    source: str


def sourced(resolved: Resolved) -> list[Sourced]:
    """All settings in the order of their sections; facts of the model stand where nothing wins over them."""
    facts = dict(_facts(resolved))
    found: list[Sourced] = []
    for section, values in resolved.settings.model_dump(mode="json").items():
        for key, value in values.items():
            name = f"{section}.{key}"
            if name in facts and name not in resolved.sources:
                found.append(facts[name])
            else:
                found.append(Sourced(name, value, resolved.sources.get(name, "default")))
        found += [fact for name, fact in facts.items() if name.startswith(f"{section}.options.")]
    return found


def _facts(resolved: Resolved) -> Iterator[tuple[str, Sourced]]:
    """What the checkpoint says of itself: its adapter, and options of that which no one else gave."""
    path = resolved.settings.model.path
    if path is None:
        return
    try:
        file = find_checkpoint(Path(path))
        stated = read_facts(file)
    except VaeauditError:  # a model that cannot be read states nothing; whoever opens it is told why
        return
    for name, value in stated.items():
        key = "model.adapter" if name == "adapter" else f"model.options.{name}"
        if name not in resolved.settings.model.options:
            yield key, Sourced(key, value, f"facts in {file}")
