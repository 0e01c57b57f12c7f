"""The likely mistakes in opening a model, each as the change that would mend it.

A model is tried through its contract alone: what it takes (``Units``), the numbers its encoder or decoder gives
(``Heads``) and what its reconstructions pass through (``Output``). Each change names itself in words that follow
"with", and says where to look.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]

# (mean, standard deviation) of each channel, by the number of channels: what tutorials normalise with.
_NORMALISATIONS: dict[int, list[tuple[tuple[float, ...], tuple[float, ...]]]] = {
    1: [((0.1307,), (0.3081,)), ((0.286,), (0.353,))],
    3: [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    ],
}
_FACTORS = (10.0, 100.0, 1000.0)
_RANGE = "compare the range of the data with that of training (--range maps bytes; map floats before they are stored)"
_ORDER = "compare the order of axes and channels with that of training"


@dataclass(frozen=True)
class Units:
    """A one-to-one map of inputs, and the words for it and for its inverse.

    ``fixed`` where it maps between ranges or units that no data decide: none of these, taken for another, looks like a
    decoder that shrinks to its mean, as what the data decide may.
    """

    done: str
    undone: str
    advice: str
    forward: Map
    inverse: Map
    of: str  # "range" or "order": one of each can be wrong at once
    fixed: bool = False

    @property
    def back(self) -> "Output":
        """Reconstructions alone mapped back."""
        return Output(f"reconstructions {self.undone}", self.advice, self.inverse, self.fixed)

    @property
    def directed(self) -> bool:
        """Whether the way back is no other one of the catalogue."""
        return self.of == "range" and self.done != self.undone

    @property
    def reversed(self) -> "Units":
        """The way back: what mends a map that was made needlessly."""
        return Units(self.undone, self.done, self.advice, self.inverse, self.forward, self.of, self.fixed)


@dataclass(frozen=True)
class Heads:
    """Another reading of a mean and a log standard deviation: both as opened -> both as they should be."""

    name: str
    advice: str
    read: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Output:
    """A map of reconstructions alone; ``fixed`` where it is the way back of :class:`Units` that are."""

    name: str
    advice: str
    apply: Map
    fixed: bool = False


def units(x: Tensor) -> Iterator[Units]:
    """Ranges and orders that inputs like ``x`` (n, *shape) may have had in training."""
    yield from _ranges(x)
    yield from _orders(tuple(x.shape[1:]))


def _linear(done: str, undone: str, scale: Tensor | float, shift: Tensor | float, *, fixed: bool = False) -> Units:
    """x -> scale x + shift."""
    return Units(done, undone, _RANGE, lambda x: x * scale + shift, lambda y: (y - shift) / scale, "range", fixed)


def _onto(low: float, high: float, to: tuple[float, float], *, fixed: bool) -> Units:
    scale = (to[1] - to[0]) / (high - low)
    here, there = f"[{low:.4g}, {high:.4g}]", f"[{to[0]:g}, {to[1]:g}]"
    return _linear(
        f"mapped from {here} to {there}", f"mapped from {there} to {here}", scale, to[0] - scale * low, fixed=fixed
    )


def _ranges(x: Tensor) -> Iterator[Units]:
    low, high = float(x.min()), float(x.max())
    unit, signed, byte = (0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)
    source = next((span for span in (unit, signed, byte) if span[0] <= low and high <= span[1]), None)
    if source == unit and high <= 1 / 128:  # bytes divided by 255 twice: likelier than a model of bytes
        yield _linear("multiplied by 255", "divided by 255", 255.0, 0.0, fixed=True)
    for span in [(low, high)] if source is None else [source] if source != byte else [byte, (low, high)]:
        fixed = span == source  # and not the data's own ends
        yield from (_onto(*span, to, fixed=fixed) for to in (unit, signed, (-0.5, 0.5), byte) if to != span)
    for factor in _FACTORS:
        yield _linear(f"multiplied by {factor:g}", f"divided by {factor:g}", factor, 0.0, fixed=True)
        yield _linear(f"divided by {factor:g}", f"multiplied by {factor:g}", 1 / factor, 0.0, fixed=True)
    low, high = source or (low, high)
    yield _linear("inverted (light for dark)", "inverted (light for dark)", -1.0, low + high)
    yield _standardised(x, None)
    if x.ndim == 2 or x.shape[1] > 1:
        axes = [0, *range(2, x.ndim)]
        yield _standardised(x, axes)
        least, most = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
        if source != unit and bool((most > least).all()):
            scale = 1 / (most - least)
            words = f"[0, 1], each {_each(x)} by its own ends"
            yield _linear(f"mapped to {words}", f"mapped back from {words}", scale, -least * scale)
    for means, stddevs in _NORMALISATIONS.get(x.shape[1], []) if x.ndim == 4 else []:
        mean, stddev = (x.new_tensor(numbers).view(1, -1, 1, 1) for numbers in (means, stddevs))
        words = f"normalisation with means {means} and standard deviations {stddevs}".replace(",)", ")")
        if source == unit:
            yield _linear(f"after the {words}", f"freed of the {words}", 1 / stddev, -mean / stddev)
        else:
            yield _linear(f"freed of the {words}", f"after the {words}", stddev, mean)
    if float(x.min()) >= 0 and high > 1:
        yield Units("as log(1 + x)", "as exp(x) - 1", _RANGE, torch.log1p, torch.expm1, "range")


def _each(x: Tensor) -> str:
    return "channel" if x.ndim > 2 else "feature"


def _standardised(x: Tensor, axes: list[int] | None) -> Units:
    """Mean 0 and standard deviation 1 over all of ``x``, or over ``axes``."""
    over = list(range(x.ndim)) if axes is None else axes
    mean = x.mean(over, keepdim=True)
    stddev = (x - mean).square().mean(over, keepdim=True).sqrt()
    stddev = torch.where(stddev > 0, stddev, 1.0)
    whose = "" if axes is None else f", each {_each(x)} by its own mean and deviation"
    return _linear(f"standardised{whose}", f"freed of the standardisation{whose}", 1 / stddev, -mean / stddev)


def _orders(shape: tuple[int, ...]) -> Iterator[Units]:
    """Orders of the axes of images, or of vectors as long as square images in grey or colour are."""
    image, told = shape, ""
    if len(shape) == 1:
        channels = next((c for c in (1, 3) if math.isqrt(shape[0] // c) ** 2 * c == shape[0]), 0)
        side = math.isqrt(shape[0] // channels) if channels else 0
        if side < 2:
            return
        image, told = (channels, side, side), f" as images of {channels}x{side}x{side}"
    elif len(shape) == 2:
        image = (1, *shape)
    if len(image) != 3:
        return
    height, width = image[1:]

    def order(done: str, undone: str, forward: Map, inverse: Map) -> Units:  # maps of (n, C, H, W)
        return Units(
            done + told,
            undone + told,
            _ORDER,
            lambda x: forward(x.reshape(-1, *image)).reshape(-1, *shape),
            lambda x: inverse(x.reshape(-1, *image)).reshape(-1, *shape),
            "order",
        )

    def own(words: str, back: str, function: Map) -> Units:
        return order(words, back, function, function)

    def turned(x: Tensor, times: int) -> Tensor:
        return x.rot90(times, (2, 3))

    if min(height, width) > 1:
        if height == width:
            yield own("transposed (rows for columns)", "transposed (rows for columns)", lambda x: x.transpose(2, 3))
            for times, angle in ((1, 90), (3, 270)):
                forward, inverse = partial(turned, times=times), partial(turned, times=-times)
                yield order(f"turned by {angle} degrees", f"turned by {360 - angle} degrees", forward, inverse)
        yield own("upside down", "upside down", lambda x: x.flip(2))
        yield own("mirrored left to right", "mirrored left to right", lambda x: x.flip(3))
        yield own("turned by 180 degrees", "turned by 180 degrees", lambda x: x.flip(2, 3))
    if image[0] > 1:
        yield own("in reversed order of channels (BGR for RGB)", "in reversed order of channels", lambda x: x.flip(1))
        if image[0] == 3:
            first_last, last_first = (
                "with the first channel moved to the end",
                "with the last channel moved to the front",
            )
            yield order(first_last, last_first, lambda x: x.roll(-1, 1), lambda x: x.roll(1, 1))
            yield order(last_first, first_last, lambda x: x.roll(1, 1), lambda x: x.roll(-1, 1))

        def to_last(x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1).reshape(-1, *image)

        def to_first(x: Tensor) -> Tensor:
            return x.reshape(-1, height, width, image[0]).permute(0, 3, 1, 2)

        yield order("flattened as height x width x channels", "read as height x width x channels", to_last, to_first)
        yield order("read as height x width x channels", "flattened as height x width x channels", to_first, to_last)


def _swapped(mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    return spread, mean


def _paired(mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    numbers = torch.cat([mean, spread], 1)
    return numbers[:, 0::2], numbers[:, 1::2]


def _in_halves(mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    numbers = torch.stack([mean, spread], 2).flatten(1, 2)
    return numbers[:, : mean.shape[1]], numbers[:, mean.shape[1] :]


def _of_raw(
    read: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], scale: float
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """``read`` on what the network gave: ``scale`` times the log standard deviation, 2 for a log-variance."""

    def scaled(mean: Tensor, log_stddev: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = read(mean, scale * log_stddev)
        return mean, spread / scale

    return scaled


def layouts(part: str) -> Iterator[Heads]:
    """Other places of mean and log-variance among the numbers that ``part`` ("encode" or "decode") gives."""
    whose = "" if part == "encode" else "the decoder's "
    pairs, halves = "unflatten(1, (-1, 2)).unbind(2)", "chunk(2, 1)"
    cut = f"see how {part} cuts the two apart: "
    for scale in (2.0, 1.0):
        yield Heads(
            f"{whose}mean and log-variance swapped",
            f"see which of the two {part} takes first",
            _of_raw(_swapped, scale),
        )
        yield Heads(
            f"{whose}mean and log-variance interleaved rather than in two halves",
            f"{cut}{pairs} rather than {halves}",
            _of_raw(_paired, scale),
        )
        yield Heads(
            f"{whose}log-variance and mean (in this order) interleaved rather than in two halves",
            f"{cut}{pairs} rather than {halves}, the log-variance first",
            _of_raw(lambda mean, spread: _swapped(*_paired(mean, spread)), scale),
        )
        yield Heads(
            f"{whose}mean and log-variance in two halves rather than interleaved",
            f"{cut}{halves} rather than {pairs}",
            _of_raw(_in_halves, scale),
        )


def spreads() -> Iterator[Heads]:
    """Other readings of the encoder's spread."""

    def heads(name: str, function: Map) -> Heads:
        advice = "DiagonalGaussian takes the log of the standard deviation: see what encode gives it"
        return Heads(name, advice, lambda mean, log_stddev: (mean, function(log_stddev)))

    yield heads("what is taken as log standard deviation read as a log-variance", lambda s: s / 2)
    yield heads("what is taken as log-variance read as a log standard deviation", lambda s: 2 * s)
    yield heads("what is taken as log standard deviation read as a standard deviation", lambda s: s.log())
    yield heads("what is taken as log standard deviation read as a variance", lambda s: s.log() / 2)
    yield heads("what is taken as log-variance read as a standard deviation", lambda s: (2 * s).log())
    yield heads("what is taken as log-variance read as a variance", lambda s: (2 * s).log() / 2)
    yield heads("the sign of the log-variance changed", lambda s: -s)


def outputs() -> Iterator[Output]:
    """What stands between the decoder's last layer and its mean, or should not."""

    def logit(y: Tensor) -> Tensor:
        if bool(((y < 0) | (y > 1)).any()):
            raise ValueError("not what a sigmoid gives")
        return y.logit()

    missing = "see what ends decode: BernoulliLogits takes logits, other likelihoods what comes after"
    extra = "see what ends decode: BernoulliLogits applies the sigmoid itself"
    yield Output("a sigmoid after the decoder", missing, torch.sigmoid)
    yield Output("one sigmoid fewer after the decoder", extra, logit)
    yield Output("two sigmoids fewer after the decoder", extra, lambda y: logit(logit(y)))
    yield Output("a tanh after the decoder", missing, torch.tanh)
    yield Output("one tanh fewer after the decoder", extra, torch.atanh)
    yield Output("a tanh for the sigmoid after the decoder", missing, lambda y: logit(y).tanh())
    yield Output("a sigmoid for the tanh after the decoder", missing, lambda y: y.atanh().sigmoid())
    yield Output("an exponential after the decoder", missing, torch.exp)
    yield Output("one exponential fewer after the decoder", missing, torch.log)
    yield Output("a softplus after the decoder", missing, torch.nn.functional.softplus)
