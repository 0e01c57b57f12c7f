"""The weights check: L2 norms of encoder and decoder (Willetts et al. 2019, table 1), without running the model.

sqrt(sum of squares) over tensors of two or more dimensions, for encoder and decoder apart; from model 1 to model 2 it
changes by 100 (n2 - n1) / n1 percent. Sums are in float64 whatever the tensors are stored in, and a bounded part of one
tensor lies in memory at a time.
"""

import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vaeaudit.checks.weights.spectral import Measured, measured_norms
from vaeaudit.checks.weights.ties import shared, tied
from vaeaudit.errors import ConfigError, NonFiniteError, clipped, listed
from vaeaudit.model.blocks import Weight, matrix_shape
from vaeaudit.model.reparametrised import at_work
from vaeaudit.progress import GoOn, Progress, always

# Name prefixes of each part's tensors, where an adapter says nothing else; the longest that fits a name decides.
PARTS: Mapping[str, Sequence[str]] = {"encoder": ("encoder.",), "decoder": ("decoder.",)}
NEITHER = "neither"  # the part of tensors that belong to neither on purpose, such as a discriminator's
# The last is what spectral normalisation keeps of its power iteration.
_STATISTICS = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked|parametrizations\..+\._[uv])$")
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class TensorNorm:
    """One tensor that was counted.

    ``l2`` is its Frobenius norm and ``share`` that of its sum of squares in its part's, 0 where it is ``tied_to`` a
    tensor named earlier in the part, which counts for both; None where the part's norm is 0. ``spectral`` is the
    matrix 2-norm of the tensor reshaped (shape[0], -1), found by ``method``: of a convolution's kernel this is NOT the
    norm of the convolution as an operator. None for a vector, where it was not asked for, or the tensor is too large.
    ``against`` is the L2 norm in the other model, ``change`` 100 (l2 - against) / against, None where that is 0.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    l2: float
    share: float | None
    spectral: float | None
    method: str
    tied_to: str | None
    against: float | None
    change: float | None


@dataclass(frozen=True)
class PartNorm:
    """Encoder or decoder: ``l2`` over ``tensors`` tensors of ``numbers`` numbers in all, tied ones counted once.

    ``against`` and ``change`` as in :class:`TensorNorm`, ``why`` says why there is no change. All are NaN where the
    check was interrupted before the part was done.
    """

    name: str
    l2: float
    tensors: int
    numbers: int
    against: float | None
    change: float | None
    why: str


@dataclass(frozen=True, eq=False)
class WeightsResult:
    """The norms of the weights by part and by tensor, in the order of the file.

    ``vectors``: whether tensors of fewer than two dimensions (biases, normalisation) are counted. ``left_out`` are the
    tensors that are not, by name. ``warnings`` are sentences on what makes a norm mean less than it seems to.
    ``computed`` are weights that are stored in several tensors, see :mod:`vaeaudit.model.reparametrised`.
    ``doubts`` tell, by part, of stored tensors of which it is not known what the model works with.
    """

    parts: tuple[PartNorm, ...]
    tensors: tuple[TensorNorm, ...]
    vectors: bool
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    interrupted: bool
    computed: tuple[str, ...]
    doubts: Mapping[str, str]


def weights(
    tensors: Mapping[str, Tensor | Weight],
    *,
    parts: Mapping[str, Sequence[str]] | None = None,
    against: Mapping[str, Tensor | Weight] | None = None,
    vectors: bool = False,
    spectral: bool = True,
    go_on: GoOn = always,
) -> WeightsResult:
    """L2 norms of encoder and decoder.

    Args:
        tensors: by name: a ``state_dict()``, or :class:`Weight` that are read from a file piece by piece.
        parts: name prefixes of the "encoder", the "decoder" and, where there are such, of "neither"; the longest one
            that fits a name decides. :data:`PARTS` where None.
        against: model 1, from which the change is counted, of the same architecture; it may be stored more coarsely.
        vectors: whether tensors of fewer than two dimensions count as well.
        spectral: whether the 2-norm of each tensor is computed too, which takes most of the time.
        go_on: asked between tensors; on False the parts that are not done have NaN.

    Raises:
        ConfigError: tensors that fit no part, a part without weights, ``against`` of another architecture.
        NonFiniteError: a tensor is NaN or infinite, one that does not count included.
    """
    found = at_work(_taken(tensors))
    ours = found.weights
    weights_of = {name for name in ours if _counts(name, ours, vectors)}
    # A learned variance, or a prior's mean, is no weight that counts: it need not be placed.
    part_of = assign(ours, PARTS if parts is None else parts, placed=weights_of)
    theirs = None if against is None else at_work(_taken(against)).weights
    if theirs is not None:
        _check_alike(ours, theirs)
    counted = {name: w for name, w in ours.items() if part_of[name] != NEITHER and name in weights_of}
    for part in PARTS:
        if not any(part_of[name] == part for name in counted):
            raise ConfigError(
                f"no tensor of the {part} holds weights that count; name the adapter of this model, which says which "
                "tensors are encoder and decoder, or give the prefixes of their names (--part encoder=PREFIX)"
            )
    same = tied(counted, part_of)
    same_there = {} if theirs is None else tied({name: theirs[name] for name in counted}, part_of)
    done: list[TensorNorm] = []
    for name, weight in ours.items():  # what no norm tells of, as biases, the model works with all the same
        if name not in counted and weight.dtype.is_floating_point:
            _finite(name, measured_norms(matrix_shape(weight.shape), weight.block, False))
    for left, (name, weight) in zip(range(len(counted), 0, -1), counted.items(), strict=True):
        if done and not go_on(Progress("weights", left, len(counted))):
            break
        here = _finite(
            name, measured_norms(matrix_shape(weight.shape), weight.block, spectral and len(weight.shape) > 1)
        )
        there = None
        if theirs is not None:
            other = theirs[name]
            there = _finite(name, measured_norms(matrix_shape(other.shape), other.block, False)).l2
        done.append(
            TensorNorm(
                name=name,
                part=part_of[name],
                shape=weight.shape,
                dtype=weight.dtype,
                l2=here.l2,
                share=None,
                spectral=here.spectral,
                method=here.method,
                tied_to=same.get(name),
                against=there,
                change=None if not there else 100 * (here.l2 - there) / there,
            )
        )
        norms = []
    for part in PARTS:
        of_part = [t for t in done if t.part == part]
        whole = len(of_part) == sum(part_of[name] == part for name in counted)
        norms.append(_part_norm(part, of_part, same_there, compared=theirs is not None, whole=whole))
    whole_norms = {part.name: part.l2 for part in norms}
    with_share = [
        replace(t, share=None if not (l2 := whole_norms[t.part]) else 0.0 if t.tied_to else (t.l2 / l2) ** 2)
        for t in done
    ]
    left_out = tuple(name for name in ours if name not in counted)
    warned = _warnings(ours, part_of, counted, same, theirs)
    return WeightsResult(
        tuple(norms),
        tuple(with_share),
        vectors,
        left_out,
        warned,
        len(done) < len(counted),
        tuple(name for name in found.computed if name in counted),
        _doubts({name: why for name, why in found.unknown.items() if name in counted}, part_of),
    )


def assign(
    names: Iterable[str], parts: Mapping[str, Sequence[str]], placed: Container[str] | None = None
) -> dict[str, str]:
    """The part of each name, by its longest prefix; of a name that fits none, "neither" unless it must be ``placed``.

    Raises :class:`ConfigError` that tells the names that must be placed (all where None) and fit none, and for parts
    that are none.
    """
    if set(parts) - {NEITHER} != set(PARTS):
        raise ConfigError(
            f"the parts of a model must be encoder and decoder, and perhaps neither, but are {list(parts)}"
        )
    prefixes = sorted(((p, part) for part, of in parts.items() for p in of), key=lambda pair: -len(pair[0]))
    found = {name: next((part for p, part in prefixes if name.startswith(p)), None) for name in names}
    strange = [name for name, part in found.items() if part is None and (placed is None or name in placed)]
    if strange:
        known = "begin with " + listed(f"'{p}' ({part})" for p, part in prefixes) if prefixes else "tell it are none"
        raise ConfigError(
            f"nothing says whether these tensors belong to the encoder or the decoder: {listed(strange)}; known are "
            f"names that {known}; name an adapter that says it "
            "(WEIGHT_PARTS, see docs/adapters.md#weights), or give the prefixes (--part encoder=PREFIX)"
        )
    return {name: part or NEITHER for name, part in found.items()}


def _taken(tensors: Mapping[str, Tensor | Weight]) -> dict[str, Weight]:
    return {name: t if isinstance(t, Weight) else Weight.of(t) for name, t in tensors.items()}


def _counts(name: str, among: Mapping[str, Weight], vectors: bool) -> bool:
    """Whether it is a weight, and not a counter, a running statistic or (unless wanted) a vector."""
    # weight_v is a weight beside weight_g, of weight normalisation, but power iteration's beside weight_orig.
    statistic = _STATISTICS.search(name) or (name.endswith(("_u", "_v")) and f"{name[:-2]}_orig" in among)
    return among[name].dtype.is_floating_point and not statistic and (vectors or len(among[name].shape) > 1)


def _check_alike(ours: Mapping[str, Weight], theirs: Mapping[str, Weight]) -> None:
    faults = {
        "missing there": [name for name in ours if name not in theirs],
        "only there": [name for name in theirs if name not in ours],
        "of another shape": [
            f"{name} ({_sizes(ours[name])} here, {_sizes(theirs[name])} there)"
            for name in ours
            if name in theirs and ours[name].shape != theirs[name].shape
        ],
    }
    told = "; ".join(f"{what}: {listed(names)}" for what, names in faults.items() if names)
    if told:
        raise ConfigError(
            f"norms are compared between models of one architecture, and the other model's tensors differ ({told}); "
            "give another checkpoint of this architecture"
        )


def _finite(name: str, measured: Measured) -> Measured:
    if measured.bad:
        raise NonFiniteError(
            f"{clipped(name)} holds {measured.bad} NaN or infinite value{'s' * (measured.bad > 1)} of "
            f"{measured.numbers}, so that no norm of this model would mean anything; export it again from a sound state"
        )
    if not math.isfinite(measured.l2):
        raise NonFiniteError(
            f"the norm of {clipped(name)} is larger than any number of float64; export the model again from a sound "
            "state"
        )
    return measured


def _part_norm(
    name: str, tensors: Sequence[TensorNorm], same_there: Mapping[str, str], *, compared: bool, whole: bool
) -> PartNorm:
    """The norm of ``tensors``, which are all of a part where it is ``whole``."""
    own = [t for t in tensors if not t.tied_to]
    l2 = math.hypot(*(t.l2 for t in own)) if whole else math.nan
    against, change, why = None, None, ""
    if compared:
        others = [t.against for t in tensors if t.against is not None and t.name not in same_there]
        against = math.hypot(*others) if whole else math.nan
        change = 100 * (l2 - against) / against if against else None
        why = "" if against else "the other model's norm is 0, and a change relative to it is undefined"
    return PartNorm(name, l2, len(own), sum(math.prod(t.shape) for t in own), against, change, why)


def _warnings(
    ours: Mapping[str, Weight],
    part_of: Mapping[str, str],
    counted: Mapping[str, Weight],
    same: Mapping[str, str],
    theirs: Mapping[str, Weight] | None,
) -> tuple[str, ...]:
    """Sentences on what makes these norms mean less than they seem to."""
    told: list[str] = []
    for part in PARTS:
        names = [name for name in ours if part_of[name] == part]
        batch = [name.removesuffix(".running_var") for name in names if name.endswith(".running_var")]
        if batch:
            told.append(
                f"the {part} has batch normalisation ({listed(batch)}), which undoes any factor of the weights "
                "before it: their norm is arbitrary, and so is the part's"
            )
        scales = [
            name.removesuffix(".weight") for name in names if name.endswith(".weight") and len(ours[name].shape) == 1
        ]
        others = [name for name in scales if name not in batch]
        if others:
            told.append(
                f"the {part} has vectors called weight ({listed(others)}), as normalisation has: where it follows a "
                "layer, that layer's norm is arbitrary"
            )
    if same:
        pairs = [f"{name} = {first}" for name, first in same.items()]
        told.append(f"equal tensors were counted once in a part, as tied weights: {listed(pairs)}")
    own = [{name: w for name, w in counted.items() if part_of[name] == part and name not in same} for part in PARTS]
    across = shared(own[0], own[1])
    if across:
        pairs = [f"{name} = {first}{' transposed' * transposed}" for first, name, transposed in across]
        told.append(
            f"encoder and decoder share weights, which count in the norm of each: {listed(pairs)}; these norms do not "
            "change independently of each other"
        )
    for whose, tensors in (("this", ours), ("the other", theirs or {})):
        half = [name for name in counted if name in tensors and tensors[name].dtype in _HALF]
        if half:
            told.append(
                f"{whose} model stores {len(half)} of {len(counted)} tensors in half precision ({listed(half)}): their "
                "squares are summed in float64, but the weights themselves are rounded"
            )
    return tuple(told)


def _doubts(unknown: Mapping[str, str], part_of: Mapping[str, str]) -> dict[str, str]:
    """By part, that some of its weights are not known, and why."""
    told: dict[str, str] = {}
    for part in PARTS:
        names = [name for name in unknown if part_of[name] == part]
        if names:
            told[part] = (
                f"what the model works with is not known of {listed(names)} ({unknown[names[0]]}), so that the norm is "
                "of what is stored; export the model with its parametrisations removed"
            )
    return told


def _sizes(weight: Weight) -> str:
    return "x".join(map(str, weight.shape)) or "scalar"
