"""Which tensors hold the same weights."""

from collections.abc import Hashable, Mapping

import torch

from vaeaudit.model.blocks import Weight, matrix_shape, row_blocks

_START = 64  # numbers by which tensors of one shape are told apart at first


def tied(weights: Mapping[str, Weight], part_of: Mapping[str, str]) -> dict[str, str]:
    """Tensors that are the same as one named earlier in their part, by name.

    Where tensors share memory they are. A file need not keep that, and there equal numbers tell; not for vectors and
    for constant matrices, which are equal wherever they were initialised alike.
    """
    alike: dict[Hashable, list[str]] = {}
    for name, weight in weights.items():
        alike.setdefault((part_of[name], weight.shape, weight.dtype, _start(weight)), []).append(name)
    found: dict[str, str] = {}
    for names in alike.values():
        firsts: list[str] = []
        for name in names:
            same = next((first for first in firsts if _same(weights[first], weights[name])), None)
            if same is None:
                firsts.append(name)
            else:
                found[name] = same
    return found


def shared(one: Mapping[str, Weight], other: Mapping[str, Weight]) -> tuple[tuple[str, str, bool], ...]:
    """Tensors of ``other`` that are one of ``one``, or a matrix of it transposed: both names, and whether transposed.

    Told as in :func:`tied`; an autoencoder's tied weights are transposed where its layers are linear.
    """
    alike: dict[Hashable, list[str]] = {}
    for name, weight in one.items():
        alike.setdefault((weight.shape, weight.dtype, _start(weight)), []).append(name)
    found: list[tuple[str, str, bool]] = []
    for name, weight in other.items():
        ways = [(name_there, False) for name_there in alike.get((weight.shape, weight.dtype, _start(weight)), ())]
        if len(weight.shape) == 2:
            turned = (weight.shape[::-1], weight.dtype, _start(weight, transposed=True))
            ways += [(name_there, True) for name_there in alike.get(turned, ())]
        found += [(there, name, t) for there, t in ways if _same(one[there], weight, transposed=t)][:1]
    return tuple(found)


def _start(weight: Weight, *, transposed: bool = False) -> tuple[float, ...]:
    """The first numbers of the first row, or column."""
    rows, columns = matrix_shape(weight.shape)
    wanted = (min(rows, _START), min(columns, 1)) if transposed else (min(rows, 1), min(columns, _START))
    return tuple(weight.block(slice(0, wanted[0]), slice(0, wanted[1])).flatten().tolist())


def _same(one: Weight, other: Weight, *, transposed: bool = False) -> bool:
    if one.place == other.place and not transposed:
        return True
    if len(one.shape) < 2 or 0 in one.shape:
        return False
    start, varies = one.block(slice(0, 1), slice(0, 1)), False
    for rows, columns in row_blocks(matrix_shape(one.shape)):
        values = one.block(rows, columns)
        if not torch.equal(values, other.block(columns, rows).T if transposed else other.block(rows, columns)):
            return False
        varies = varies or bool((values != start).any())
    return varies
