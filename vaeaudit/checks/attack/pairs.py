"""Which items are attacked, and towards which: at random, by label, by one factor, or as given.

All draws are keyed, and the first k pairs do not depend on how many are drawn.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice, product

import numpy as np
import torch
from numpy.typing import NDArray

from vaeaudit.data.items import Data, Factors
from vaeaudit.errors import ConfigError, DataError, clipped, listed, nearest
from vaeaudit.stats.draws import uniform

_ATTEMPTS = 1000  # draws, or sources, that are tried for one pair
_CELL_ATTEMPTS = 10_000  # pairs of items that are tried for one pair of labels
_TELLABLE = 0.5  # least distance of source and target, as a share of the median on the source's line


@dataclass(frozen=True)
class Pairs:
    """Item numbers of sources and targets, as many of one as of the other; ``how`` tells the choice in words.

    ``factor`` names the one factor in which source and target differ, where they were chosen so.
    """

    sources: tuple[int, ...]
    targets: tuple[int, ...]
    how: str
    factor: str | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.sources, self.targets, strict=True)


def at_random(data: Data, count: int, *, n: int | None = None, seed: int) -> Pairs:
    """``count`` different pairs of the first ``n`` items (all where None) whose images differ.

    Raises :class:`DataError` with fewer than two items, or where no such pairs are found.
    """
    items = _items(data, n)
    if count > items * (items - 1):
        raise DataError(f"{items} items make {items * (items - 1)} pairs, fewer than the {count} asked for")
    same, taken = _same(data), set[tuple[int, int]]()
    pairs: list[tuple[int, int]] = []
    for number in range(count):
        draws = (uniform(2 * _ATTEMPTS, seed=seed, check="attack.pairs", item=number) * items).astype(int)
        # Few items may have nearly all their pairs taken: go through them before giving up.
        rest = product(range(items), repeat=2) if items <= _ATTEMPTS else ()
        for source, target in chain(draws.reshape(-1, 2).tolist(), rest):
            if source != target and (source, target) not in taken and not same(source, target):
                taken.add((source, target))
                pairs.append((source, target))
                break
        else:
            raise DataError(
                f"only {len(pairs)} of {count} pairs of different images were found among {items} items; "
                "the data seem to repeat one image, so there is nothing to attack"
            )
    return _pairs(pairs, f"drawn at random from {items} items (seed {seed})")


def by_label(data: Data, count: int, *, n: int | None = None, seed: int) -> Pairs:
    """``count`` pairs of different label among the first ``n`` items, evenly over sources and targets.

    K classes stand in a drawn order, and in each block of K pairs every class is the source once and the target once,
    one step further round than in the block before. So K (K - 1) pairs hold every (source class, target class) once,
    which the rates of Kos et al. 2018 and Sootla need: means over the other classes, unweighted. Each pair takes
    another source while its class has one: with one source attacked towards all classes, as those papers do, the
    pairs are not independent and their intervals too narrow.

    Raises :class:`DataError` without labels, with only one, or where two classes have fewer pairs than are needed.
    """
    items = _items(data, n)
    if data.labels is None:
        found = next((f" ({left_out})" for left_out in data.skipped if "no labels but" in left_out), "")
        raise DataError(
            f"{data.source} holds no labels{found}, where pairs by label need one for each item: an array of whole "
            "numbers or texts named labels, label, targets, target or y (y_test beside x_test) in .npz and "
            ".safetensors files, the labels-idx1 file beside that of the images, or sub-folders; add them or choose "
            "pairs at random"
        )
    labels = data.labels[:items]
    classes = np.unique(labels)
    if len(classes) < 2:
        raise DataError(
            f"the {items} items of {data.source} all have label {classes[0]}, where pairs by label need two labels or "
            "more; give items of other labels or choose pairs at random"
        )
    check = "attack.pairs.label"

    def shuffled(values: NDArray[np.int64], key: str) -> list[int]:
        ordered: list[int] = values[_order(len(values), seed=seed, check=check, item=key)].tolist()
        return ordered

    ring = shuffled(classes, "classes")
    steps = shuffled(np.arange(1, len(ring)), "steps")
    members = {label: np.flatnonzero(labels == label) for label in ring}
    sources = {label: cycle(shuffled(members[label], f"source {label}")) for label in ring}
    targets = {label: cycle(shuffled(members[label], f"target {label}")) for label in ring}
    same, taken = _same(data), set[tuple[int, int]]()
    pairs: list[tuple[int, int]] = []
    for number in range(count):
        block, place = divmod(number, len(ring))
        a, b = ring[place], ring[(place + steps[block % len(steps)]) % len(ring)]
        tried = (
            (source, target)
            for source in islice(sources[a], len(members[a]))
            for target in islice(targets[b], len(members[b]))
        )
        for pair in islice(tried, _CELL_ATTEMPTS):
            if pair not in taken and not same(*pair):
                taken.add(pair)
                pairs.append(pair)
                break
        else:
            raise DataError(
                f"only {len(pairs)} of {count} pairs by label were found, since {len(members[a])} items of label {a} "
                f"and {len(members[b])} of label {b} make no more of different images; ask for fewer or give more items"
            )
    how = f"by label, {len(ring)} classes evenly as source and target, from {items} items (seed {seed})"
    return _pairs(pairs, how)


def by_factor(data: Data, factor: str, count: int, *, n: int | None = None, seed: int) -> Pairs:
    """``count`` pairs of the first ``n`` items that differ in ``factor`` and in no other (Willetts et al., H.1).

    The nearest-image criterion must be able to tell source and target apart, but values of a factor may look alike: the
    orientations 0 and 2 pi are one image, and a square turned by 90 degrees is nearly itself. So a target lies at
    least half as far (L2) from its source as the median image that differs from the source in this factor only and
    is not the very same image. Each pair takes another source while there is one.

    Raises :class:`ConfigError` for a factor that does not exist, and :class:`DataError` without factors, for a factor
    that does not vary, or where there are not as many such pairs.
    """
    items = _items(data, n)
    values, line = _lines(data, factor, items)  # value of the factor; number of the line: all other factors equal
    order = np.lexsort((np.arange(items), line))
    starts = np.searchsorted(line[order], np.arange(line.max() + 2))
    lowest, highest = (reduce.reduceat(values[order], starts[:-1]) for reduce in (np.minimum, np.maximum))
    sources = np.flatnonzero((lowest < highest)[line])
    if not len(sources):
        raise DataError(
            f"no two of the {items} items of {data.source} differ in {factor} only, as source and target must; give "
            "data with several values of it at equal values of the others"
        )

    def targets(source: int) -> list[int]:
        alike = order[starts[line[source]] : starts[line[source] + 1]]
        others = alike[values[alike] != values[source]]
        images = data.batch([source, *others.tolist()], dtype=torch.float64).flatten(1)
        distance = torch.linalg.vector_norm(images[1:] - images[0], dim=1).numpy()
        told = distance[distance > 0]
        if not len(told):
            return []
        least = _TELLABLE * np.sort(told)[(len(told) - 1) // 2]
        found: list[int] = others[(distance > 0) & (distance >= least)].tolist()
        return found

    check = f"attack.pairs.factor.{factor}"
    queue = cycle(sources[_order(len(sources), seed=seed, check=check, item="sources")].tolist())
    taken: set[tuple[int, int]] = set()
    pairs: list[tuple[int, int]] = []
    for number in range(count):
        for source in islice(queue, min(len(sources), _ATTEMPTS)):
            if free := [target for target in targets(source) if (source, target) not in taken]:
                draw = float(uniform(1, seed=seed, check=check, item=number)[0])
                pairs.append((source, free[int(draw * len(free))]))
                taken.add(pairs[-1])
                break
        else:
            raise DataError(
                f"only {len(pairs)} of {count} pairs were found that differ in {clipped(factor)} only and whose images "
                f"can be told apart, among {items} items of {data.source}; ask for fewer or give more items"
            )
    how = f"differing in {factor} only, by images that can be told apart, from {items} items (seed {seed})"
    return _pairs(pairs, how, factor)


def parse(text: str) -> tuple[int, int]:
    """(3, 7) for "3:7", the numbers of a source and a target. Raises :class:`ConfigError` for anything else."""
    found = re.fullmatch(r"\s*(\d{1,18})\s*:\s*(\d{1,18})\s*", text, re.ASCII)
    if found is None:
        unpaired = " names a source without a target" if re.fullmatch(r"\s*\d+\s*:?\s*", text, re.ASCII) else " came"
        raise ConfigError(
            f"a pair is SOURCE:TARGET, two item numbers counted from 0, but '{clipped(text)}'{unpaired}; write it as "
            "in 3:7"
        )
    return int(found[1]), int(found[2])


def given(data: Data, pairs: Sequence[tuple[int, int]], *, n: int | None = None) -> Pairs:
    """The pairs that the user names, among the first ``n`` items.

    Raises:
        ConfigError: none at all, one of an item with itself, or one named twice.
        DataError: a number that no item has, or a source and a target of the same image.
    """
    items, same = _items(data, n), _same(data)
    if not pairs:
        raise ConfigError("at least one pair SOURCE:TARGET was expected, but none came; name one as in 3:7")
    for number, (source, target) in enumerate(pairs):
        told = f"the pair {source}:{target}"
        if not (0 <= source < items and 0 <= target < items):
            raise DataError(f"{told} names an item that is not there; items are numbered 0 to {items - 1}")
        if source == target:
            raise ConfigError(f"{told} attacks an item towards itself; name two different items")
        if (source, target) in pairs[:number]:
            raise ConfigError(f"{told} is named twice, and would count twice; name it once")
        if same(source, target):
            raise DataError(f"{told} is twice the same image, so there is nothing to attack; name two different images")
    return _pairs(pairs, "as given")


def _pairs(pairs: Sequence[tuple[int, int]], how: str, factor: str | None = None) -> Pairs:
    return Pairs(tuple(source for source, _ in pairs), tuple(target for _, target in pairs), how, factor)


def _items(data: Data, n: int | None) -> int:
    items = len(data) if n is None else min(n, len(data))
    if items < 2:
        raise DataError(f"an attack needs at least two items, a source and a target, but the data hold {items}")
    return items


def _same(data: Data) -> Callable[[int, int], bool]:
    def same(source: int, target: int) -> bool:
        images = data.batch([source, target])
        return torch.equal(images[0], images[1])

    return same


def _order(count: int, *, seed: int, check: str, item: str) -> NDArray[np.intp]:
    """A keyed permutation of 0 to count - 1."""
    return uniform(count, seed=seed, check=check, item=item).argsort(kind="stable")


def _lines(data: Data, factor: str, items: int) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Value of ``factor`` of each item, and the number of its line: equal where all other factors are equal."""
    factors: Factors | None = data.factors
    if factors is None:
        raise DataError(
            f"{data.source} holds no factors, where pairs that differ in {clipped(factor)} only need latents_classes "
            "(n, factors), and latents_names, beside the images; give data of known factors or choose pairs at random"
        )
    if factor not in factors.names:
        raise ConfigError(
            f"there is no factor '{clipped(factor)}'{nearest(factor, factors.names)} in {data.source}; there are "
            f"{listed(factors.names)}"
        )
    column = factors.names.index(factor)
    classes = factors.classes[:items]
    varying = [name for name, values in zip(factors.names, classes.T, strict=True) if values.min() < values.max()]
    if factor not in varying:
        others = f"vary one of {listed(varying)}" if varying else "no factor varies in these data"
        raise DataError(
            f"the factor {clipped(factor)} is {classes[0, column]} for all {items} items of {data.source}; {others}"
        )
    _, line = np.unique(np.delete(classes, column, axis=1), axis=0, return_inverse=True)
    return classes[:, column], line
