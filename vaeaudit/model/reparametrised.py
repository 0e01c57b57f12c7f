"""Weights that a model stores in other tensors than it works with: torch's weight and spectral normalisation.

Weight normalisation (Salimans and Kingma 2016) works with w = g v / ||v||, the norm over all dimensions but one, which
the shape of g tells. Spectral normalisation (Miyato et al. 2018) works in evaluation mode with W / sigma, of which
sigma = u' W v comes from the stored vectors of its power iteration. Both have an older and a newer form of names:

    weight_g, weight_v                        parametrizations.weight.original0, .original1
    weight_orig, weight_u, weight_v           parametrizations.weight.original, .0._u, .0._v
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from vaeaudit.model.blocks import Weight, matrix_shape, row_blocks

_NEW = re.compile(r"((?:.*\.)?)parametrizations\.([^.]+)\.(.+)")
_OLD = re.compile(r"(?:.*[._])?weight(?:_\w+)?_(?:g|v|orig)")  # what is left of the older form, of a weight
_MOST_OFF = 0.1  # 1 - cosine of u and W v, or of v and W'u, where power iteration found one from the other
_CLEARLY = 10  # times nearer than with any other dimension first


@dataclass(frozen=True, eq=False)
class AtWork:
    """The weights that a model works with, by the names that they have there, in the order in which parts are stored.

    ``computed`` names those that are computed from several tensors. ``unknown`` tells of stored tensors, by name, why
    what the model makes of them is not known; these are among the weights as they are stored.
    """

    weights: dict[str, Weight]
    computed: tuple[str, ...]
    unknown: Mapping[str, str]


def at_work(stored: Mapping[str, Weight]) -> AtWork:
    """What the model makes of its stored tensors. Only where shapes leave open what was meant are they read here."""
    parts: dict[str, str] = {}  # a stored tensor -> the weight that it is a part of
    made: dict[str, Weight] = {}
    unknown: dict[str, str] = {}
    for name, members in _groups(stored).items():
        found = _made({role: stored[member] for role, member in members.items()})
        if isinstance(found, Weight):
            made[name] = found
            parts |= dict.fromkeys(members.values(), name)
        else:
            unknown |= dict.fromkeys(members.values(), found)
    left = [name for name in stored if name not in parts and name not in unknown]
    unknown |= {name: "a part of it is missing" for name in left if _OLD.fullmatch(name)}
    weights: dict[str, Weight] = {}
    for name, weight in stored.items():
        whole = parts.get(name)
        weights[whole or name] = weight if whole is None else made[whole]
    return AtWork(weights, tuple(made), unknown)


def plain(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors with what is stored in several as the one weight that the model works with, and the names of these.

    Each is computed in float64 and rounded once to the type in which its largest part is stored.
    """
    found = at_work({name: Weight.of(tensor) for name, tensor in tensors.items()})
    if not found.computed:
        return dict(tensors), ()
    made = {
        name: _whole(weight).reshape(weight.shape).to(weight.dtype) if name in found.computed else tensors[name]
        for name, weight in found.weights.items()
    }
    return made, found.computed


def _groups(stored: Mapping[str, Weight]) -> dict[str, dict[str, str]]:
    """Names of stored tensors that make one weight, by its name: what each is ("g", "v", "orig", "u") -> its name.

    A parametrisation that is neither of the two keeps the names that it has.
    """
    groups: dict[str, dict[str, str]] = {}
    roles = {"original0": "g", "original1": "v", "original": "orig", "0._u": "u", "0._v": "v"}
    for name in stored:
        if new := _NEW.fullmatch(name):
            groups.setdefault(new[1] + new[2], {})[roles.get(new[3], new[3])] = name
            continue
        base = name[:-2]
        if not name.endswith("_v") or base in stored:
            continue
        orig, u, g = f"{base}_orig", f"{base}_u", f"{base}_g"
        if orig in stored and u in stored:
            groups[base] = {"orig": orig, "u": u, "v": name}
        elif g in stored and (_OLD.fullmatch(name) or not isinstance(_kept(stored[g].shape, stored[name].shape), str)):
            groups[base] = {"g": g, "v": name}  # and not two tensors that only happen to be called so
    return groups


def _made(parts: Mapping[str, Weight]) -> Weight | str:
    """The weight that these parts make, or why it is not known."""
    if set(parts) == {"g", "v"}:
        return _weight_normalised(parts["g"], parts["v"])
    if set(parts) == {"orig", "u", "v"}:
        return _spectrally_normalised(parts["orig"], parts["u"], parts["v"])
    return "it has another parametrisation than weight or spectral normalisation"


def _kept(g: tuple[int, ...], v: tuple[int, ...]) -> int | str | None:
    """The dimension of v that the norms keep; None where one norm is over all of it; or why neither is known."""
    if not g or (len(g) == len(v) and set(g) == {1} and 1 in v):
        return None
    kept = [d for d, (one, other) in enumerate(zip(g, v, strict=False)) if one == other > 1]
    if len(g) == len(v) and len(kept) == 1 and all(size == 1 for d, size in enumerate(g) if d != kept[0]):
        return kept[0]
    return f"its g is {_text(g)} beside v of {_text(v)}, which does not tell what the norm is over"


def _weight_normalised(g: Weight, v: Weight) -> Weight | str:
    """g v / ||v||."""
    kept = _kept(g.shape, v.shape)
    if isinstance(kept, str):
        return kept
    rows, columns = matrix_shape(v.shape)
    by_row = kept == 0 and len(v.shape) > 1
    inner = v.shape[1:] if len(v.shape) > 1 else v.shape  # what a row of the matrix holds
    along = [-1 if d == (kept or 0) - (len(v.shape) > 1) else 1 for d in range(len(inner))]

    @cache
    def scale() -> Tensor:
        """g / ||v||, (rows or 1, columns or 1) of the matrix that v is read as."""
        squares = torch.zeros(rows if by_row else columns, dtype=torch.float64)
        for part in row_blocks((rows, columns)):
            squares[part[0] if by_row else part[1]] += v.block(*part).double().square().sum(1 if by_row else 0)
        if by_row:
            return (_whole(g).flatten() / squares.sqrt())[:, None]
        if kept is None:
            return (_whole(g) / squares.sum().sqrt()).reshape(1, 1)
        others = [d for d, size in enumerate(along) if size == 1]
        of_kept = squares.reshape(inner).sum(others) if others else squares
        return (_whole(g).flatten() / of_kept.sqrt()).reshape(along).expand(inner).reshape(1, columns)

    def block(of_rows: slice, of_columns: slice) -> Tensor:
        factor = scale()
        across = factor[of_rows] if factor.shape[0] > 1 else factor
        return v.block(of_rows, of_columns).double() * (across[:, of_columns] if factor.shape[1] > 1 else across)

    return Weight(v.shape, v.dtype, ("g v / ||v||", g.place, v.place), block)


def _spectrally_normalised(original: Weight, u: Weight, v: Weight) -> Weight | str:
    """W / sigma, sigma = u' W v with the dimension first that has the size of u."""
    shape, numbers = original.shape, matrix_shape(original.shape)
    total = numbers[0] * numbers[1]
    fitting = [d for d, size in enumerate(shape) if u.shape == (size,) and v.shape == (total // max(1, size),)]
    if not fitting or len(shape) < 2:
        return f"its u is {_text(u.shape)} and v {_text(v.shape)} beside a weight of {_text(shape)}"
    if len(fitting) == 1:
        first = fitting[0]
    else:
        off = sorted((_off(original, u, v, d), d) for d in fitting)
        if off[0][0] > _MOST_OFF or off[1][0] < _CLEARLY * off[0][0]:
            return "its sizes leave open which dimension spectral normalisation puts first"
        first = off[0][1]
    sigma = cache(lambda: _sigma(original, u, v, first))

    def block(of_rows: slice, of_columns: slice) -> Tensor:
        return original.block(of_rows, of_columns).double() / sigma()

    return Weight(shape, original.dtype, ("W / sigma", original.place, u.place, v.place), block)


def _sigma(original: Weight, u: Weight, v: Weight, first: int) -> float:
    """u' W v, W being (size of dimension ``first``, all others)."""
    left, right = _whole(u).flatten(), _whole(v).flatten()
    if first:
        return float(left @ _matrix(original, first) @ right)
    parts = row_blocks(matrix_shape(original.shape))
    return sum(float(left[part[0]] @ original.block(*part).double() @ right[part[1]]) for part in parts)


def _off(original: Weight, u: Weight, v: Weight, first: int) -> float:
    """How far u and v are from what power iteration makes of W, as 1 - cosine: it ends with u from v, or v from u."""
    matrix, left, right = _matrix(original, first), _whole(u).flatten(), _whole(v).flatten()
    pairs = ((left, matrix @ right), (right, left @ matrix))
    return 1 - max(float(torch.nn.functional.cosine_similarity(one, other, dim=0)) for one, other in pairs)


def _matrix(weight: Weight, first: int) -> Tensor:
    return _whole(weight).reshape(weight.shape).movedim(first, 0).flatten(1)


def _whole(weight: Weight) -> Tensor:
    rows, columns = matrix_shape(weight.shape)
    return weight.block(slice(0, rows), slice(0, columns)).double()


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"
