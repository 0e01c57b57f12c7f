"""The range of a model's inputs: one interval for all of an input, or one for each channel or feature.

``(lo, hi)``, or a tuple of such pairs along the first axis of an input: channels of an image, features of a vector. An
end that is infinite is no bound: counts lie in (0, inf), and a feature in (-inf, inf) has none.
"""

import math
from numbers import Real

from vaeaudit.errors import clipped, listed

Interval = tuple[float, float]
Range = Interval | tuple[Interval, ...]

EXPECTED = "two numbers LO < HI, of which either may be infinite, or one such pair for each channel or feature"
_NORMALISED = {"imagenet": "0.485,0.456,0.406/0.229,0.224,0.225"}  # of torchvision's models
_INFINITE = ("inf", "+inf", "-inf")  # as JSON, which has no infinite number, can say it


def as_range(value: object) -> Range:
    """``value``, (lo, hi) or a list of such pairs, as a range: ends are numbers, or texts such as "inf".

    Raises ValueError, which tells what was expected, for anything else.
    """
    if isinstance(value, list | tuple) and value:
        if len(value) == 2 and all(_end(end) is not None for end in value):
            return _interval(value)
        return tuple(_interval(one) for one in value)
    raise ValueError(EXPECTED)


def normalised(text: str) -> Range:
    """The range of [0, 1] less a mean, over a standard deviation: "imagenet", or "MEAN/STD" with one for each channel.

    As "0.5/0.5" or "0.485,0.456,0.406/0.229,0.224,0.225". Raises ValueError, which tells what was expected.
    """
    try:
        means, stddevs = ([float(one) for one in part.split(",")] for part in _NORMALISED.get(text, text).split("/"))
        spans = [((0 - mean) / stddev, (1 - mean) / stddev) for mean, stddev in zip(means, stddevs, strict=True)]
        if min(stddevs) > 0 and all(math.isfinite(end) for span in spans for end in span):
            return spans[0] if len(spans) == 1 else tuple(spans)
    except (ValueError, ZeroDivisionError):
        pass
    raise ValueError(
        f"{' or '.join(_NORMALISED)}, or MEAN/STD with one number for all or one for each channel, as 0.5,0.5/0.2,0.2"
    )


def intervals(span: Range | None) -> tuple[Interval, ...]:
    """The intervals of a range: one, or one for each channel or feature; that of all numbers where there is none."""
    if span is None:
        return ((-math.inf, math.inf),)
    first, second = span[0], span[-1]
    if isinstance(first, tuple) or isinstance(second, tuple):
        return tuple(one for one in span if isinstance(one, tuple))
    return ((first, second),)


def widths(span: Range | None) -> tuple[float, ...]:
    """hi - lo of each interval of a range, infinite where an end is."""
    return tuple(high - low for low, high in intervals(span))


def diameter(span: Range | None, shape: tuple[int, ...], otherwise: float) -> float:
    """The largest distance of two inputs of ``shape``; ``otherwise`` where an end is infinite."""
    found = widths(span)
    longest = math.hypot(*found) * math.sqrt(math.prod(shape) / len(found))
    return longest if longest < math.inf else otherwise


def bounded(span: Range) -> bool:
    """Whether all ends are finite."""
    return all(map(math.isfinite, widths(span)))


def range_for(value: object, shape: tuple[int, ...]) -> Range:
    """``value`` as the range of inputs of ``shape``: one interval, or as many as there are channels or features.

    Raises ValueError, which tells what came and what was expected.
    """
    try:
        span = as_range(value)
        if not isinstance(span[0], tuple) or len(span) == shape[0]:
            return span
    except ValueError:
        pass
    sizes = "x".join(map(str, shape))
    raise ValueError(f"{clipped(repr(value))}, where {EXPECTED} was expected, for inputs of {sizes}")


def simplest(span: Range) -> Range:
    """The same range, as one interval where all are equal."""
    found = intervals(span)
    return found[0] if len(set(found)) == 1 else found


def span_text(span: Range | None, digits: int = 6) -> str:
    """A range as people write it: "[0, 1]", "[0, inf)", its first intervals, or "none"."""
    if span is None:
        return "none"
    texts = []
    for low, high in intervals(span):
        opening, closing = "(" if math.isinf(low) else "[", ")" if math.isinf(high) else "]"
        texts.append(f"{opening}{low:.{digits}g}, {high:.{digits}g}{closing}")
    return texts[0] if not isinstance(span[0], tuple) else f"{listed(texts)}, by channel or feature"


def _interval(value: object) -> Interval:
    ends = [_end(end) for end in value] if isinstance(value, list | tuple) else []
    if len(ends) == 2 and ends[0] is not None and ends[1] is not None and ends[0] < ends[1]:
        return ends[0], ends[1]
    raise ValueError(EXPECTED)


def _end(value: object) -> float | None:
    """One end as a number; None for what is none."""
    if isinstance(value, bool) or not (isinstance(value, Real) or (isinstance(value, str) and value in _INFINITE)):
        return None
    try:
        end = float(value)  # an integer may be too large
    except OverflowError:
        return None
    return None if math.isnan(end) else end
