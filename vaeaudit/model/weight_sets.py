"""Which of a file's tensors are the model's weights: the key under which they lie, and prefixes that wrappers add.

Training code keeps an averaged copy beside the weights, and wrappers put their names before all others: `module.` of
data parallel training, `_orig_mod.` of torch.compile, `model.` of Lightning. Which copy is meant nothing tells, so that
it is asked for: FILE#KEY.
"""

import re
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor

from vaeaudit.errors import CheckpointError, clipped, listed, nearest

# Where training frameworks put the weights when a checkpoint holds more than them.
_USUAL = ("state_dict", "model_state_dict", "model")
_OPTIMISER = re.compile(r"(^|\.)optim")  # whose averages of gradients have the names and shapes of the weights
_ROOT = "."  # the key of tensors whose names have no prefix, beside a copy whose names have one


class Shaped(Protocol):
    """Anything with the shape of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the tensor's dimensions."""


AnyShaped = TypeVar("AnyShaped", bound=Shaped)


def select(file: Path, content: object, key: str | None) -> tuple[str | None, dict[str, Tensor]]:
    """The one set of weights among what a PyTorch file holds, and its key; None where the file is that set.

    Raises :class:`CheckpointError` where several fit as well, the key names none, or there is none.
    """
    sets = dict(_sets(content))
    inner: dict[object, object] = content if isinstance(content, dict) else {}
    usual = next((name for name in _USUAL if isinstance(inner.get(name), dict)), None)
    top = [name for name in sets if name in inner]
    if usual is None and top and len({_form(sets[name]) for name in top}) == 1:
        usual = top[0]
    if key is not None:
        return key, _named(file, sets, sets.get(usual or "", {}), key)
    if usual in sets:
        others = (name for name in sets if name != usual and not _OPTIMISER.search(name))
        as_well = [usual, *(name for name in others if _as_well(sets[name], sets[usual]))]
        if len(as_well) > 1:
            raise _several(file, as_well)
    held = content if usual is None else inner[usual]
    if not isinstance(held, dict):
        raise CheckpointError(
            f"{file} holds one {type(held).__name__}, where a dictionary of tensors was expected; "
            "save model.state_dict()"
        )
    held = {name: value for name, value in held.items() if not _holds_nothing(value)}
    strange = [str(name) for name, value in held.items() if not isinstance(value, Tensor)]
    if strange:
        there = [name for name in sets if name]
        hint = f", or name one of its dictionaries of tensors, as in {file.name}#{clipped(there[0])}" if there else ""
        raise CheckpointError(
            f"{file} holds entries that are not tensors ({listed(strange)}), where a state_dict was expected; "
            f"save model.state_dict() alone{hint}"
        )
    return usual, {str(name): tensor for name, tensor in held.items()}


def _holds_nothing(value: object) -> bool:
    """Whether it is a dictionary of such alone, as of parameters that a library might have had."""
    return isinstance(value, dict) and all(map(_holds_nothing, value.values()))


def under(file: Path, tensors: Mapping[str, AnyShaped], key: str, others: Iterable[str] = ()) -> dict[str, AnyShaped]:
    """The tensors whose names begin with ``key`` and a dot, without these; for ".", those of no copy with a prefix.

    Raises :class:`CheckpointError` where there are none; ``others`` are keys that it might mean besides.
    """
    if key == _ROOT:
        copies = tuple(f"{name}." for name in twins(tensors) if name != _ROOT)
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(copies)}
    found = {name[len(key) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{key}.")}
    if not found:
        keys = [*others, *sorted({name.partition(".")[0] for name in tensors if "." in name})]
        raise CheckpointError(
            f"{file} holds no tensors under '{clipped(key)}'{nearest(key, keys)}; there are {listed(keys) or 'no keys'}"
        )
    return found


def unwrapped(tensors: Mapping[str, AnyShaped]) -> Iterator[tuple[str, dict[str, AnyShaped]]]:
    """The tensors without what all their names begin with up to a dot, part after part, and what was taken off.

    Numbers alone whose names have no dot, such as the counter of an averaged model, stay behind.
    """
    taken, left = "", dict(tensors)
    while True:
        dotted = [name for name in left if "." in name]
        heads = {name.partition(".")[0] for name in dotted}
        if len(heads) != 1 or any(left[name].shape for name in left.keys() - set(dotted)):
            return
        prefix = f"{heads.pop()}."
        taken, left = taken + prefix, {name[len(prefix) :]: left[name] for name in dotted}
        yield taken, left


def renamed(tensors: Mapping[str, AnyShaped]) -> Iterator[tuple[str, dict[str, AnyShaped]]]:
    """The tensors under other names that a model may know them by, and what was taken off: see :func:`unwrapped`.

    Last comes what wrapping a part of a model leaves, as `encoder._orig_mod.0.weight`.
    """
    yield from unwrapped(tensors)
    for wrapper in ("_orig_mod.", "module."):
        inner = {re.sub(rf"(^|\.)({re.escape(wrapper)})+", r"\1", name): tensor for name, tensor in tensors.items()}
        if len(inner) == len(tensors) and inner.keys() != tensors.keys():
            yield wrapper, inner


def twins(tensors: Mapping[str, AnyShaped]) -> list[str]:
    """Keys of sets of equal names and shapes that together are all the tensors; none where there is one set alone."""
    prefix, inner = _bare(tensors)
    groups: dict[str, dict[str, AnyShaped]] = {}
    for name, tensor in inner.items():
        head, dot, rest = name.partition(".")
        if dot:
            groups.setdefault(head, {})[rest] = tensor
    alike: dict[Hashable, list[str]] = {}
    for head, group in groups.items():
        form = _form(group)
        others = {name: tensor for name, tensor in inner.items() if not name.startswith(f"{head}.")}
        if form and form == _form(others) and not _bare(others)[0]:
            return [_ROOT, f"{prefix}{head}"]
        alike.setdefault(form, []).append(head)
    for form, heads in alike.items():
        if form and len(heads) > 1 and all(n.partition(".")[0] in heads for n, tensor in inner.items() if tensor.shape):
            return [f"{prefix}{head}" for head in heads]
    return []


def refuse_twins(file: Path, tensors: Mapping[str, AnyShaped], key: str | None = None) -> None:
    """Raise :class:`CheckpointError` where the tensors, found under ``key``, are sets of equal names and shapes."""
    if found := twins(tensors):
        raise _several(file, [name if key is None else f"{key}.{name}" for name in found])


def _several(file: Path, keys: list[str]) -> CheckpointError:
    told = listed([f"'{clipped(key)}'" for key in keys])
    return CheckpointError(
        f"{file} holds {len(keys)} sets of weights with the same names and shapes, under {told}, as of a model and "
        f"its averaged copy, and nothing says which is meant; name one, as in {file.name}#{clipped(keys[-1])}"
    )


def _named(
    file: Path, sets: Mapping[str, dict[str, Tensor]], default: dict[str, Tensor], key: str
) -> dict[str, Tensor]:
    """What ``key`` names: a set, what lies under a prefix in it (SET.PREFIX), or in the set that is taken unasked."""
    if key in sets:
        return sets[key]
    outer = next((name for name in sets if name and key.startswith(f"{name}.")), None)
    if outer is not None:
        return under(file, sets[outer], key[len(outer) + 1 :])
    return under(file, default, key, [name for name in sets if name])


def _sets(content: object) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary of tensors alone within ``content``, by the keys that lead to it, joined by dots."""
    waiting: deque[tuple[str, dict[object, object] | list[object] | tuple[object, ...]]] = deque()
    seen: set[int] = set()  # a pickle may hold the same list a billion times, or itself
    if isinstance(content, dict | list | tuple):
        waiting.append(("", content))
    while waiting:
        key, value = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict) and value and all(isinstance(one, Tensor) for one in value.values()):
            yield key, {str(name): one for name, one in value.items() if isinstance(one, Tensor)}
            continue
        for name, one in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(one, dict | list | tuple):
                waiting.append((f"{key}.{name}" if key else str(name), one))


def _as_well(found: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Whether a set would fit where ``weights`` do, and is not the same tensors once more."""
    same = [t.data_ptr() for t in found.values()] == [t.data_ptr() for t in weights.values()]
    return not same and _form(found) == _form(weights)


def _bare(tensors: Mapping[str, AnyShaped]) -> tuple[str, Mapping[str, AnyShaped]]:
    """All that the names begin with taken off, and the tensors under what is left of their names."""
    return [("", tensors), *unwrapped(tensors)][-1]


def _form(tensors: Mapping[str, AnyShaped]) -> Hashable:
    """Names and shapes but for what all names begin with, and dots, which some averaged copies leave out.

    Numbers alone, such as counters, do not count.
    """
    inner = _bare(tensors)[1]
    return frozenset((name.replace(".", ""), tuple(tensor.shape)) for name, tensor in inner.items() if tensor.shape)
