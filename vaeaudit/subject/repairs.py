"""Which mistake in opening it would explain a model that fails: likely repairs, tried on the model as opened.

A repair is named where the model with it beats the mean image clearly and the model without it does not. It is a
guess from a catalogue, told with the errors that speak for it, and changes no verdict.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vaeaudit.model.batches import RowBatches
from vaeaudit.model.vae import VAE, DiagonalGaussian, Likelihood
from vaeaudit.stats.draws import noise_set
from vaeaudit.subject.plausibility import Plausibility, Verdict
from vaeaudit.subject.repair_catalogue import Heads, Output, Units, layouts, outputs, spreads, units
from vaeaudit.subject.spread import scatter
from vaeaudit.subject.substitution import Substitution, called, substitutions

_MEAN, _DRAW = "reconstruction", "reconstruction of a draw"
_EXPLAINED = (_MEAN, _DRAW, "range")  # findings that a repair may explain
_NOISY = ("evaluation mode", "determinism", "rows apart")  # where these fail, errors do not repeat
# Items that single changes and pairs of them are tried on, fewer of large ones; the best are tried on all.
_SINGLE, _PAIRED, _FEWEST, _ELEMENTS = 48, 16, 8, 2**14
# Most error that beats the mean image clearly, as a share of its error: below it, many changes help a little.
_CLEAR = {_MEAN: 0.5, _DRAW: 0.8}
_ITEMS = 2 / 3  # least share of items on which it must
_GAIN = 0.6  # most error of a repair as a share of that without it
_GOOD = 0.25  # of the mean image's error: a single change that leaves more may be one of two
_PAIR = 0.5  # most error of two changes as a share of the best single one's
_CLOSE = 1.1  # a second guess is named up to this multiple of the first's error
# Scatter (see spread) of 18 models as they should be opened, and of models in training: at most 0.63.
_SCATTERED, _AGREEING = 0.8, 1 / 3
_SAME = 1e-3  # and from this relative difference on: below it, two changes are one in other words


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


@dataclass(frozen=True, eq=False)
class Errors:
    """Mean squared errors of each item in the data's units, (n,): at the posterior mean, and of a draw."""

    mean: Tensor
    draw: Tensor

    def of(self, finding: str) -> Tensor:
        """Those that the finding is about."""
        return self.draw if finding == _DRAW else self.mean


Group = tuple[Repair, list[Repair]]  # a run of the networks, and the repairs that differ from it after the decoder


def explained(
    found: Plausibility, vae: VAE, x: Tensor, *, seed: int = 0, batch_size: int | None = None
) -> Plausibility:
    """``found`` of :func:`examine` with the same arguments; where it failed, with the repairs that would mend it.

    Where it did not, with a remark if another reading of the log-variances is far likelier. Verdicts stay as they
    are. Raises nothing that the model raises when it is tried: such a repair is none.
    """
    wrong = [f.name for f in found.findings if f.verdict is not Verdict.PASS]
    about = [name for name in _EXPLAINED if name in wrong]
    if set(wrong) & set(_NOISY):
        return found
    try:
        trial = _Trial(vae, x, seed, batch_size)
        told = _told(trial, about) if about else _remark(trial)
    except (Exception, SystemExit):  # the adapter is the user's code, and what it raises here says nothing
        return found
    if not told:
        return found
    findings = (
        replace(f, message=f"{f.message}{'' if f.message.endswith('?') else '.'} {told[f.name]}")
        if f.name in told
        else f
        for f in found.findings
    )
    return replace(found, findings=tuple(findings))


class _Trial:
    """The model with repairs, on items ``x`` (n, *input_shape)."""

    def __init__(self, vae: VAE, x: Tensor, seed: int, batch_size: int | None) -> None:
        self.vae, self.x, self.seed = vae, x, seed
        self.rows = RowBatches.automatic(vae.input_shape, x.device) if batch_size is None else RowBatches(batch_size)
        with torch.no_grad():
            posterior, self.encode = called(vae.encode, x[:2])
            _, self.decode = called(vae.decode, posterior.mean)
        self.noise_shape = posterior.noise_shape
        self.baseline = (x - x.mean(0, keepdim=True)).square().flatten(1).mean(1)

    @cached_property
    def noise(self) -> Tensor:
        """The noise of the examination: an error told there and one told here are of the same draws."""
        items = range(len(self.x))
        return noise_set(self.noise_shape, draws=1, items=items, seed=self.seed, check="plausibility", like=self.x)[0]

    def few(self, most: int) -> Tensor:
        """At most so many items, spread over all, fewer where they are large."""
        count = max(_FEWEST, min(most, _ELEMENTS // self.x[0].numel()))
        return torch.arange(0, len(self.x), max(1, len(self.x) // count), device=self.x.device)[:count]

    @torch.no_grad()
    def run(self, repair: Repair, x: Tensor, noise: Tensor | None, ends: list[Repair]) -> list[Errors | None]:
        """Errors with each of ``ends``, None where one raises; without noise, those of a draw are not known."""
        taken = x
        for one in repair.units:
            taken = one.forward(taken)
        posterior = self._call("encode", taken, repair)
        if repair.encoded is not None:
            posterior = DiagonalGaussian(*repair.encoded.read(posterior.mean, posterior.log_stddev))
        at_mean = self._call("decode", posterior.mean, repair)
        at_draw = at_mean if noise is None else self._call("decode", posterior.sample(noise), repair)
        return [_errors(one, x, at_mean, at_draw) for one in ends]

    def _call(self, part: str, value: Tensor, repair: Repair) -> Any:
        function = getattr(self.vae, part)
        other = repair.substitution.replace.get(part) if repair.substitution is not None else None
        return function(value) if other is None else called(function, value, replace=other)[0]

    def tried(self, groups: Iterable[Group], most: int, *, draws: bool) -> Iterator[tuple[Repair, Errors]]:
        """Each repair with its errors on some of the items, those that raise left out."""
        some = self.few(most)
        noise = self.noise[some] if draws else None
        for repair, ends in groups:
            try:
                found = self.run(repair, self.x[some], noise, ends)
            except (Exception, SystemExit):
                continue
            yield from ((one, errors) for one, errors in zip(ends, found, strict=True) if errors is not None)

    def on_all(self, repair: Repair) -> Errors:
        """Errors on all items; raises what the model raises."""

        def run(x: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
            (errors,) = self.run(repair, x, noise, [repair])
            assert errors is not None  # it did not raise on some of these items
            return errors.mean, errors.draw

        return Errors(*self.rows.map(run, self.x, self.noise))

    def scatter(self, heads: Heads | None) -> float:
        """Of the weights of the KL that the latents' spreads agree with: see :mod:`vaeaudit.subject.spread`."""
        items = self.few(_SINGLE)
        check = "plausibility.spread"
        noise = noise_set(self.noise_shape, draws=2, items=items.tolist(), seed=self.seed, check=check, like=self.x)
        try:
            return scatter(self.vae, self.x[items], noise, heads.read if heads is not None else lambda *pair: pair)
        except (Exception, SystemExit):
            return math.inf


def _errors(repair: Repair, x: Tensor, at_mean: Likelihood, at_draw: Likelihood) -> Errors | None:
    try:
        target = x
        for one in repair.undone:
            target = one.forward(target)
        support = at_mean.support if repair.undone and repair.output is None else None
        if support is not None and not bool(((target >= support[0]) & (target <= support[1])).all()):
            return None
        return Errors(*((_mean(repair, one) - x).square().flatten(1).mean(1) for one in (at_mean, at_draw)))
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


def _remark(trial: _Trial) -> dict[str, str]:
    """What to look at where reconstructions pass either way, as they do for a smaller or a somewhat larger spread."""
    opened = trial.scatter(None)
    if not _SCATTERED < opened < math.inf:
        return {}
    for heads in spreads():
        other = trial.scatter(heads)
        if other < _AGREEING * opened:
            return {
                "log-variance": f"With {heads.name} the latents' spreads would agree far better on one weight of the "
                f"KL (scatter of its logarithm {other:.2g} instead of {opened:.2g}): {heads.advice}"
            }
    return {}


def _told(trial: _Trial, about: list[str]) -> dict[str, str]:
    """Sentences to add to the findings that failed."""
    errors_of = [name for name in about if name != "range"] or about
    opened = trial.on_all(Repair())
    guesses = _guesses(trial, opened, errors_of[0])
    if not guesses:
        tried = "other layouts of mean and log-variance, ranges, orders of axes, activations and ends of the decoder"
        return {errors_of[0]: f"None of the likely mistakes explains it; tried were {tried}"}
    told = {}
    for name in errors_of:
        first, *more = (
            f"{' and '.join(what for what, _ in repair.changes)} the error would be {float(errors.of(name).mean()):.4g}"
            for repair, errors in guesses
        )
        told[name] = f"With {first} instead of {float(opened.of(name).mean()):.4g}"
        told[name] += "".join(f", with {one}" for one in more)
    told[errors_of[0]] += ": " + "; ".join(dict.fromkeys(advice for _, advice in guesses[0][0].changes))
    return told


def _guesses(trial: _Trial, opened: Errors, about: str) -> list[tuple[Repair, Errors]]:
    """The best repair, and another that does almost as well where there is one, confirmed on all items."""

    def best(groups: Iterable[Group], most: int, *, draws: bool = True) -> list[tuple[Repair, Errors]]:
        some = trial.few(most)
        before, baseline = Errors(opened.mean[some], opened.draw[some]), trial.baseline[some]
        tried = trial.tried(groups, most, draws=draws)
        passing = [(r, e) for r, e in tried if _mends(e, before, baseline, about, draws=draws)]
        return sorted(passing, key=lambda one: float(one[1].of(about).mean()))  # stable: at a tie, the likelier

    ranked = best(_single(trial, about), _SINGLE)
    if about == _DRAW:  # the smallest spread makes the smallest error: ask which one training left
        ranked.sort(key=lambda one: trial.scatter(one[0].encoded) if one[0].encoded is not None else math.inf)
    elif not ranked or float(ranked[0][1].mean.mean()) > _GOOD * float(trial.baseline[trial.few(_SINGLE)].mean()):
        likely = best(_double(trial), _PAIRED, draws=False)[:8]
        pairs = best([(one, [one]) for one, _ in likely], _SINGLE)
        if not ranked or (pairs and pairs[0][1].mean.mean() < _PAIR * ranked[0][1].mean.mean()):
            ranked = pairs
    full = [(repair, trial.on_all(repair)) for repair, _ in ranked[:4]]
    kept = [(repair, errors) for repair, errors in full if _mends(errors, opened, trial.baseline, about)]
    if about != _DRAW:
        kept.sort(key=lambda one: float(one[1].mean.mean()))
    return kept[:1] + [one for one in kept[1:] if _another(one, kept[0], about)][:1]


def _another(guess: tuple[Repair, Errors], best: tuple[Repair, Errors], about: str) -> bool:
    """Whether a second guess is almost as good, and not the same change, in whatever words."""
    (repair, errors), (first, least) = guess, best
    close = float(errors.of(about).mean()) <= _CLOSE * float(least.of(about).mean())
    same = torch.allclose(errors.mean + errors.draw, least.mean + least.draw, rtol=_SAME, atol=0)
    return close and not same and repair.changes != first.changes


def _mends(errors: Errors, opened: Errors, baseline: Tensor, about: str, *, draws: bool = True) -> bool:
    """Whether a model with such errors beats the mean image clearly, and the model as opened."""
    values, before = errors.of(about), opened.of(about)
    return (
        bool(errors.mean.isfinite().all() and errors.draw.isfinite().all())
        and float(values.mean()) <= _CLEAR.get(about, _CLEAR[_MEAN]) * float(baseline.mean())
        and float((values < baseline).float().mean()) >= _ITEMS
        and (not draws or float(errors.draw.mean()) < float(baseline.mean()))
        and not float(values.mean()) > _GAIN * float(before.mean())
        and float((~(values >= before)).float().mean()) >= _ITEMS
    )


def _single(trial: _Trial, about: str) -> Iterator[Group]:
    """Every repair of one change, those that share a run of the networks together."""
    known = list(units(trial.x))
    yield (
        Repair(),
        [
            *(Repair(output=one) for one in [*outputs(), *(given.back for given in known)]),
            *(Repair(decoded=heads) for heads in layouts("decode")),
        ],
    )
    for heads in [*(spreads() if about == _DRAW else ()), *layouts("encode")]:
        yield (one := Repair(encoded=heads)), [one]
    for given in known:
        one = Repair(units=(given,))
        yield one, [replace(one, undone=(given,)), one]
    for other in substitutions(trial.encode, trial.decode, throughout=True):
        yield (one := Repair(substitution=other)), [one]


def _double(trial: _Trial) -> Iterator[Group]:
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
