"""Variables of the environment: ``VAEAUDIT_SECTION_KEY`` gives ``key`` of ``[section]``, whatever the command.

The variables are those of the settings, of other packages' sections as well; so they are known when settings are
resolved, and not before.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from vaeaudit.errors import ConfigError, clipped, nearest

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

CONFIG = "VAEAUDIT_CONFIG"
_PREFIX = "VAEAUDIT_"
_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
# Names of one release ago, which knew no sections.
_RENAMED = {
    _PREFIX + key.rpartition(".")[2].upper(): key
    for key in (
        *("model.adapter", "data.range", "data.resize", "run.seed", "run.device", "run.dtype", "run.batch_size"),
        *("run.limit", "run.sample", "run.out", "attack.pairs", "attack.pairing", "attack.vary", "attack.lambdas"),
        *("attack.similarity", "attack.on", "attack.penalty", "attack.norm", "attack.ref", "attack.restarts"),
        *("attack.max_evaluations", "margin.m", "margin.sigma", "latents.estimator", "latents.traverse"),
        "weights.against",
    )
} | {
    "VAEAUDIT_MODEL": "model.path",
    "VAEAUDIT_DATA": "data.source",
    "VAEAUDIT_BASELINE": "baseline.path",
    "VAEAUDIT_MODE": "attack.modes",
}
_AMBIGUOUS = {  # which meant another setting for each command
    "VAEAUDIT_ITEMS": ("margin.items", "noise.items", "latents.items", "mig.items"),
    "VAEAUDIT_DRAWS": ("margin.draws", "noise.draws", "latents.draws"),
    "VAEAUDIT_LEVEL": ("margin.level", "baseline.level"),
}


def variable(key: str) -> str:
    """The variable of a setting: VAEAUDIT_NOISE_SIGMAS of noise.sigmas."""
    return _PREFIX + re.sub(r"\W", "_", key).upper()


def said() -> tuple[dict[str, tuple[object, str]], list[str]]:
    """The settings that variables give, "section.key" -> (value, variable), and what is to be said of the variables.

    Raises :class:`ConfigError` for a variable of one release ago that does not tell which setting it means.
    """
    from vaeaudit.settings.config import WHOLE

    ours = {name: text for name, text in os.environ.items() if name.startswith(_PREFIX) and text and name != CONFIG}
    if not ours:
        return {}, []
    for name in _AMBIGUOUS.keys() & ours.keys():
        raise ConfigError(
            f"{name} meant another setting for each command; set {' or '.join(map(variable, _AMBIGUOUS[name]))} in its "
            "place"
        )
    fields = dict(_fields(WHOLE))
    known = {variable(key): key for key in fields}
    given: dict[str, tuple[object, str]] = {}
    for name in sorted(ours, key=lambda name: name in known):  # of two names the new one counts
        if key := known.get(name) or _RENAMED.get(name):
            given |= _given(key, fields[key], name, ours[name])
    renamed = sorted(ours.keys() & _RENAMED.keys() - known.keys())
    remarks = [
        f"{clipped(name)} is no variable that vaeaudit knows{_meant(name, known)}; nothing was made of it"
        for name in sorted(ours.keys() - known.keys() - _RENAMED.keys())
    ]
    if renamed:
        told = ", ".join(f"{name} is {variable(_RENAMED[name])} now" for name in renamed)
        remarks.append(f"{told}; the next release does not read the old name{'s' * (len(renamed) > 1)}")
    return given, remarks


def _meant(name: str, known: Iterable[str]) -> str:
    """The variable nearest to ``name`` by what follows the prefix, which all of them share."""
    rest = nearest(name.removeprefix(_PREFIX), (one.removeprefix(_PREFIX) for one in known), cutoff=0.7)
    return rest.replace("'", f"'{_PREFIX}", 1)


def _fields(settings: Any) -> Iterator[tuple[str, "FieldInfo"]]:
    """Every setting, "section.key"; a section whose keys are names of its user's is one setting, "section"."""
    for section, field in settings.model_fields.items():
        keys = getattr(field.annotation, "model_fields", None)
        if keys is None:
            yield section, field
        for key, inner in (keys or {}).items():
            yield f"{section}.{key}", inner


def _given(key: str, field: "FieldInfo", name: str, text: str) -> Mapping[str, tuple[object, str]]:
    value = _value(field, text)
    if "." in key:
        return {key: (value, name)}
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be a table as JSON, but '{clipped(text)}' came")
    return {f"{key}.{inner}": (one, name) for inner, one in value.items()}


def _value(field: "FieldInfo", text: str) -> object:
    """What a text stands for, by the type of its setting: itself, JSON, a list between commas, or a truth value.

    Of one that is none of these, the reading that comes nearest, so that resolving it tells what is wrong.
    """
    from pydantic import TypeAdapter, ValidationError

    kind: Any = Annotated[field.annotation, field]
    adapter: TypeAdapter[object] = TypeAdapter(kind)
    wrong: list[tuple[int, bool, int, object]] = []
    for place, reading in enumerate(_readings(text)):
        truth = isinstance(reading, bool)
        try:
            value = adapter.validate_python(reading)
        except ValidationError as error:
            depth = max(len(fault["loc"]) for fault in error.errors())  # how far into the value it was right
            if not truth:
                wrong.append((depth, isinstance(reading, int | float), place if depth else -place, reading))
        else:
            if isinstance(value, bool) or not truth:  # a truth value is no number
                return reading
    return max(wrong, key=lambda one: one[:3])[-1]


def _readings(text: str) -> Iterator[object]:
    yield text
    yield (whole := _plain(text))
    if not isinstance(whole, list | dict):  # of which no list between commas is made
        words = [word for word in re.split(r"\s*,\s*" if "," in text else r"\s+", text.strip()) if word]
        yield words
        yield [_plain(word) for word in words]
    if text.strip().lower() in _TRUTH:
        yield _TRUTH[text.strip().lower()]


def _plain(text: str) -> object:
    """A text as JSON, where it is."""
    from vaeaudit.model.files import strict_json

    try:
        return strict_json(text)
    except ValueError:
        return text
