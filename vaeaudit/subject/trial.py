"""A model as opened, tried with changes: what errors it would make were the adapter or the data another.

A :class:`Repair` is one change or several, from :mod:`vaeaudit.subject.repair_catalogue` and
:mod:`vaeaudit.subject.substitution`. A :class:`Trial` runs the model with it, without touching the model.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vaeaudit.model.batches import RowBatches
from vaeaudit.model.box import range_of
from vaeaudit.model.conditions import model_of, under
from vaeaudit.model.vae import VAE, DiagonalGaussian, Likelihood
from vaeaudit.stats.draws import noise_set
from vaeaudit.subject.baselines import Baseline
from vaeaudit.subject.finding import Verdict
from vaeaudit.subject.repair_catalogue import Heads, Output, Units, layouts, outputs, spreads, units
from vaeaudit.subject.spread import scatter
from vaeaudit.subject.substitution import Substitution, called, substitutions

SINGLE, PAIRED = 48, 16  # items that single changes and pairs of them are tried on, fewer of large ones
_FEWEST, _ELEMENTS = 8, 2**14
# Items that the changes together are tried on: as many as this work allows, and no fewer than these.
_OPERATIONS, _PASSES = 2e12, 16
_ALL = 2**12  # passes that all changes together take at most, about
# Of 27 healthy models the best scale and shift left at least 0.977 of the error; of wrong repairs, often under 0.8.
_CALIBRATED = 0.95
# Reconstructions under a Gaussian of wide variance are nearer to their mean than images are, as ridge regression's. The
# best scale of 24 healthy ones was at most 1.27; fixed ranges that are taken for one another lie further apart.
_SHRUNK, _SHIFT = (1.01, 1.4), 0.1


@dataclass(frozen=True)
class Repair:
    """Changes to a model as opened; ``undone`` are those of ``units`` that reconstructions are mapped back by."""

    units: tuple[Units, ...] = ()
    undone: tuple[Units, ...] = ()
    substitution: Substitution | None = None
    encoded: Heads | None = None
    decoded: Heads | None = None
    output: Output | None = None

    @property
    def changes(self) -> list[tuple[str, str]]:
        """Each change in words that follow "with", and where to look."""
        told = [(f"{'the data' if one in self.undone else 'inputs'} {one.done}", one.advice) for one in self.units]
        others = (self.substitution, self.encoded, self.decoded, self.output)
        return told + [(one.name, one.advice) for one in others if one is not None]

    @property
    def fixed(self) -> bool:
        """Whether only what goes in and comes out is in other units, which no data decide."""
        inner, ends = (self.substitution, self.encoded, self.decoded), (*self.units, self.output)
        return all(one is None for one in inner) and all(one is None or one.fixed for one in ends)

    @property
    def words(self) -> str:
        """All changes in words that follow "with"."""
        return " and ".join(what for what, _ in self.changes)

    @property
    def advice(self) -> str:
        """Where to look."""
        return "; ".join(dict.fromkeys(advice for _, advice in self.changes))


@dataclass(frozen=True, eq=False)
class Errors:
    """Mean squared errors of each item in the data's units, (n,): at the posterior mean, and of a draw."""

    mean: Tensor
    draw: Tensor


Group = tuple[Repair, list[Repair]]  # a run of the networks, and the repairs that differ from it after the decoder
Pair = tuple[Tensor, Tensor]  # of reconstructions in the data's units: at the posterior mean, and of a draw


def _operations(vae: VAE, x: Tensor) -> float:
    """Operations of a pass of ``x`` through encoder and decoder, or more than them where these are few."""
    model = model_of(vae)
    if isinstance(model, nn.Module):
        # A kernel works at each position of the input at most, and other weights once in models that are not large.
        positions = x[0, 0].numel()
        most = 2.0 * sum(one.numel() * (positions if one.ndim > 2 else 1) for one in model.parameters())
        if most <= _OPERATIONS / _ALL:
            return max(1.0, most)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:  # which loads a compiler, in seconds
        vae.decode(vae.encode(x).mean)
    return float(max(1, counter.get_total_flops()))


class Trial:
    """The model with repairs, on items ``x`` (n, *input_shape)."""

    def __init__(self, vae: VAE, x: Tensor, seed: int, batch_size: int | None) -> None:
        self.vae, self.x, self.seed = vae, x, seed
        self.number = torch.arange(len(x), device=x.device)
        self.rows = RowBatches.automatic(vae.input_shape, x.device) if batch_size is None else RowBatches(batch_size)
        with torch.no_grad():
            of_two = under(vae, slice(2))
            posterior, self.encode = called(of_two.encode, x[:2])
            _, self.decode = called(of_two.decode, posterior.mean)
        self.passes = max(_PASSES, int(_OPERATIONS / _operations(under(vae, slice(1)), x[:1])))
        self.left, self.cut_short = self.passes, False
        self.noise_shape = posterior.noise_shape
        self.baseline = (x - x.mean(0, keepdim=True)).square().flatten(1).mean(1)

    @cached_property
    def opened(self) -> Errors:
        """Errors on all items without a repair."""
        return self.on_all(Repair())

    @cached_property
    def noise(self) -> Tensor:
        """The noise of the examination: an error told there and one told here are of the same draws."""
        items = range(len(self.x))
        return noise_set(self.noise_shape, draws=1, items=items, seed=self.seed, check="plausibility", like=self.x)[0]

    def few(self, most: int) -> Tensor:
        """At most so many items, spread over all, fewer where they are large."""
        count = max(min(_FEWEST, self.passes // 4), min(most, _ELEMENTS // self.x[0].numel()))
        return torch.arange(0, len(self.x), max(1, len(self.x) // count), device=self.x.device)[:count]

    def tried(self, groups: Iterable[Group], most: int, *, draws: bool) -> Iterator[tuple[Repair, Errors]]:
        """Each repair with its errors on some of the items, those that raise left out.

        Without ``draws``, the errors of a draw are those at the mean. Of a large model, only the first are tried, and
        ``cut_short`` says so.
        """
        some = self.few(most)
        x, noise = self.x[some], self.noise[some] if draws else None
        for repair, ends in groups:
            if self.left < len(x):
                self.cut_short = True
                return
            self.left -= len(x)
            try:
                found = self._run(repair, some, x, noise, ends)
            except (Exception, SystemExit):
                continue
            yield from ((one, _errors(pair, x)) for one, pair in zip(ends, found, strict=True) if pair is not None)

    def on_all(self, repair: Repair) -> Errors:
        """Errors on all items; raises what the model or the repair raises."""

        def run(item: Tensor, x: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
            errors = _errors(self._alone(repair, item, x, noise), x)
            return errors.mean, errors.draw

        return Errors(*self.rows.map(run, self.number, self.x, self.noise))

    def confirmed(self, repairs: Iterable[Repair]) -> Iterator[tuple[Repair, Errors]]:
        """Each repair with its errors on all items, those that raise on one of them left out."""
        for repair in repairs:
            try:
                errors = self.on_all(repair)
            except (Exception, SystemExit):
                continue
            yield repair, errors

    def mended(self, repair: Repair) -> bool:
        """Whether reconstructions with it look like those of a healthy model, at the mean and of a draw.

        They pass, and no scale and shift of all of them would take away an error worth it, as happens where a change
        only brings them nearer; of other fixed units, none but that by which a decoder shrinks to its mean.
        """
        baseline = Baseline(self.x, range(len(self.x)), range_of(self.vae))
        mean, draw = self.rows.map(partial(self._alone, repair), self.number, self.x, self.noise)
        scale, shift, residual = _calibration(mean, self.x)
        shrunk = repair.fixed and _SHRUNK[0] <= scale <= _SHRUNK[1] and shift <= _SHIFT
        return (residual >= _CALIBRATED or shrunk) and all(
            baseline.finding("", *baseline.errors(one, self.x), one[baseline.compared]).verdict is Verdict.PASS
            for one in (mean, draw)
        )

    def scatter(self, heads: Heads | None) -> float:
        """Of the weights of the KL that the latents' spreads agree with: see :mod:`vaeaudit.subject.spread`."""
        items = self.few(SINGLE)
        check = "plausibility.spread"
        noise = noise_set(self.noise_shape, draws=2, items=items.tolist(), seed=self.seed, check=check, like=self.x)
        try:
            return scatter(
                under(self.vae, items), self.x[items], noise, heads.read if heads is not None else lambda *pair: pair
            )
        except (Exception, SystemExit):
            return math.inf

    @torch.no_grad()
    def _run(
        self, repair: Repair, item: Tensor, x: Tensor, noise: Tensor | None, ends: list[Repair]
    ) -> list[Pair | None]:
        """Reconstructions with each of ``ends``, None where one raises."""
        vae, taken = under(self.vae, item), x
        for one in repair.units:
            taken = one.forward(taken)
        posterior = _call(vae, "encode", taken, repair)
        if repair.encoded is not None:
            posterior = DiagonalGaussian(*repair.encoded.read(posterior.mean, posterior.log_stddev))
        at_mean = _call(vae, "decode", posterior.mean, repair)
        at_draw = at_mean if noise is None else _call(vae, "decode", posterior.sample(noise), repair)
        return [_reconstructions(one, x, at_mean, at_draw) for one in ends]

    def _alone(self, repair: Repair, item: Tensor, x: Tensor, noise: Tensor) -> Pair:
        (pair,) = self._run(repair, item, x, noise, [repair])
        if pair is None:
            raise ValueError(f"no reconstructions with {repair.words}")
        return pair


def _call(vae: VAE, part: str, value: Tensor, repair: Repair) -> Any:
    function = getattr(vae, part)
    other = repair.substitution.replace.get(part) if repair.substitution is not None else None
    return function(value) if other is None else called(function, value, replace=other)[0]


def _reconstructions(repair: Repair, x: Tensor, at_mean: Likelihood, at_draw: Likelihood) -> Pair | None:
    try:
        target = x
        for one in repair.undone:
            target = one.forward(target)
        support = at_mean.support if repair.undone and repair.output is None else None
        if support is not None and not bool(((target >= support[0]) & (target <= support[1])).all()):
            return None
        return _mean(repair, at_mean), _mean(repair, at_draw)
    except (Exception, SystemExit):
        return None


def _mean(repair: Repair, likelihood: Any) -> Tensor:
    """The reconstruction in the data's units."""
    mean: Tensor = likelihood.mean
    if repair.decoded is not None:
        mean, _ = repair.decoded.read(mean, likelihood.log_stddev)
    if repair.output is not None:
        mean = repair.output.apply(mean)
    for one in reversed(repair.undone):
        mean = one.inverse(mean)
    return mean


def _calibration(reconstruction: Tensor, x: Tensor) -> tuple[float, float, float]:
    """What the best scale and shift of all reconstructions would do.

    The scale, how far the means are apart as a share of the standard deviation of ``x``, and the squared error that
    would be left as a share of what there is.
    """
    given, wanted = reconstruction.flatten().double(), x.flatten().double()
    centred, target = given - given.mean(), wanted - wanted.mean()
    scale = (centred @ target) / centred.square().sum()
    left = target.square().sum() - scale * (centred @ target)
    gap = (given.mean() - wanted.mean()).abs() / target.square().mean().sqrt()
    return float(scale), float(gap), float(left / (given - wanted).square().sum())


def _errors(pair: Pair, x: Tensor) -> Errors:
    return Errors(*((one - x).square().flatten(1).mean(1) for one in pair))


def single(trial: Trial, *, of_spread: bool = False) -> Iterator[Group]:
    """Every repair of one change, those that share a run of the networks together."""
    known = list(units(trial.x))
    ways = [*known, *(given.reversed for given in known if given.directed)]
    yield (
        Repair(),
        [
            *(Repair(output=one) for one in [*outputs(), *(given.back for given in ways)]),
            *(Repair(decoded=heads) for heads in layouts("decode")),
        ],
    )
    for heads in [*(spreads() if of_spread else ()), *layouts("encode")]:
        yield (one := Repair(encoded=heads)), [one]
    for given in ways:
        one = Repair(units=(given,))
        yield one, [replace(one, undone=(given,)), one] if given in known else [one]
    for other in substitutions(trial.encode, trial.decode, throughout=True):
        yield (one := Repair(substitution=other)), [one]


def double(trial: Trial) -> Iterator[Group]:
    """Repairs of two changes, each of another kind; and activations in one part of the model alone."""
    known, ends = list(units(trial.x)), list(outputs())
    two = [Repair(decoded=heads, output=end) for heads in layouts("decode") for end in ends]
    yield Repair(), two
    runs = [Repair(encoded=heads) for heads in layouts("encode")]
    runs += [Repair(substitution=other) for other in substitutions(trial.encode, trial.decode, throughout=True)]
    for run in runs:
        yield run, [replace(run, output=one) for one in [*ends, *(given.back for given in known)]]
    for given in known:
        one = Repair(units=(given,))
        both = replace(one, undone=(given,))
        yield one, [replace(one, output=end, undone=undone) for end in ends for undone in ((given,), ())]
        for heads in layouts("encode"):
            yield replace(both, encoded=heads), [replace(both, encoded=heads)]
        if given.of == "order":
            for scale in known:
                if scale.of == "range":
                    pair = (given, scale)
                    yield Repair(units=pair), [Repair(units=pair, undone=pair)]
    for other in substitutions(trial.encode, trial.decode, throughout=False):
        yield (one := Repair(substitution=other)), [one]
