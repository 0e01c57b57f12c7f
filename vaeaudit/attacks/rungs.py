"""The lambda that a sweep searches beside those asked for: a search learns from its neighbours."""

import math
from collections.abc import Sequence
from itertools import pairwise

_LOOK = 30  # evaluations of a problem below which a search is but a look
_APART = 1.0  # most that neighbouring lambda lie apart, in powers of 2
_ALIKE = 1e-3  # of which rounding explains this much
_ABOVE = 24.0  # how far above the largest lambda rungs lie, likewise; for 2^-16 alone, 16 end 15% higher, 40 no lower


def rungs(lambdas: Sequence[float], max_evaluations: int) -> list[float]:
    """The lambda searched besides: between neighbours that lie more than a factor of 2 apart, and above the largest.

    None for a look with few evaluations, at a large model as a rule: they would take several times as many.
    """
    if max_evaluations < _LOOK:
        return []
    ends = [math.log2(value) for value in sorted(lambdas)]
    ends.append(ends[-1] + _ABOVE)
    steps = [math.ceil((high - low) / _APART - _ALIKE) for low, high in pairwise(ends)]
    every = zip(pairwise(ends), steps, strict=True)
    return [2.0 ** (low + (high - low) * i / count) for (low, high), count in every for i in range(1, count)]
