"""Which mistake in opening it would explain a model: likely repairs, tried on the model as opened.

Of a model that fails, a repair is named where the model with it beats the mean image clearly and the model without it
does not. It is a guess from a catalogue, told with the errors that speak for it and with whether the model would pass;
the verdict stays. A model that passes loses its verdict where another reading makes it far better: see
:mod:`vaeaudit.subject.readings`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vaeaudit.model.vae import VAE
from vaeaudit.subject.plausibility import Plausibility, Verdict
from vaeaudit.subject.readings import better
from vaeaudit.subject.repair_catalogue import spreads
from vaeaudit.subject.trial import PAIRED, SINGLE, Errors, Group, Repair, Trial, double, single

_MEAN, _DRAW = "reconstruction", "reconstruction of a draw"
_EXPLAINED = (_MEAN, _DRAW, "range")  # findings that a repair may explain
_UNMENDED = ", which does not mend the model: the cause may be another"
_NOISY = ("evaluation mode", "determinism", "rows apart")  # where these fail, errors do not repeat
# Most error that beats the mean image clearly, as a share of its error: below it, many changes help a little.
_CLEAR = {_MEAN: 0.5, _DRAW: 0.8}
_ITEMS = 2 / 3  # least share of items on which it must
_GAIN = 0.6  # most error of a repair as a share of that without it
_GOOD = 0.25  # of the mean image's error: a single change that leaves more may be one of two
_PAIR = 0.5  # most error of two changes as a share of the best single one's
_CLOSE = 1.1  # a second guess is named up to this multiple of the first's error
# Scatter (see spread) of 18 models as they should be opened, and of models in training: at most 0.63.
_SCATTERED, _AGREEING = 0.8, 1 / 3
_SAME = 1e-3  # from this relative difference on; below it, two changes are one in other words


@dataclass(frozen=True, eq=False)
class Guess:
    """A repair with its errors on all items, and whether the model would be as a healthy one with it."""

    repair: Repair
    errors: Errors
    mended: bool

    def error(self, about: str) -> float:
        """The mean squared error that the finding ``about`` tells of."""
        return float(_of(self.errors, about).mean())


def _of(errors: Errors, about: str) -> Tensor:
    return errors.draw if about == _DRAW else errors.mean


def explained(
    found: Plausibility, vae: VAE, x: Tensor, *, seed: int = 0, batch_size: int | None = None
) -> Plausibility:
    """``found`` of :func:`examine` with the same arguments; where it failed, with the repairs that would mend it.

    Where it did not, with the reading that makes reconstructions far better, which they then do not pass without, and
    with a remark if another reading of the log-variances is far likelier. Raises nothing that the model raises when
    it is tried: such a repair is none.
    """
    wrong = [f.name for f in found.findings if f.verdict is not Verdict.PASS]
    about = [name for name in _EXPLAINED if name in wrong]
    if _MEAN in about and not found.failed and _far_better(found):
        about = []  # only too few items are wrong
    if set(wrong) & set(_NOISY):
        return found
    try:
        trial = Trial(vae, x, seed, batch_size)
        verdict, told = (None, _told(trial, about)) if about else _reading(trial)
    except (Exception, SystemExit):  # the adapter is the user's code, and what it raises here says nothing
        return found
    if not told:
        return found
    findings = (
        replace(
            f,
            message=f"{f.message}{'' if f.message.endswith('?') else '.'} {told[f.name]}",
            verdict=verdict if verdict is not None and f.name == _MEAN else f.verdict,
        )
        if f.name in told
        else f
        for f in found.findings
    )
    return replace(found, findings=tuple(findings))


def _far_better(found: Plausibility) -> bool:
    """Whether reconstructions are so much better than the mean image that nothing is left to be explained."""
    error, baseline = (found.losses[name].value for name in ("error", "mean_image_error"))
    return error is not None and baseline is not None and error < _GOOD * baseline


def _reading(trial: Trial) -> tuple[Verdict | None, dict[str, str]]:
    """What to add to the findings of a model that passes, and the verdict of its reconstructions where that changes."""
    reading = better(trial)
    if reading is None:
        return None, _remark(trial)
    now, before = (float(errors.mean.mean()) for errors in (reading.errors, trial.opened))
    return reading.verdict, {
        _MEAN: f"Yet with {reading.repair.words} the error would be {now:.4g} instead of {before:.4g}, smaller on "
        f"{reading.items} of {len(trial.x)} items{f': {reading.repair.advice}' if reading.mended else _UNMENDED}"
    }


def _remark(trial: Trial) -> dict[str, str]:
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


def _told(trial: Trial, about: list[str]) -> dict[str, str]:
    """Sentences to add to the findings that failed."""
    errors_of = [name for name in about if name != "range"] or about
    guesses = _guesses(trial, errors_of[0])
    if not guesses:
        tried = "other layouts of mean and log-variance, ranges, orders of axes, activations and ends of the decoder"
        if trial.cut_short:
            tried = f"the first of {tried}, as many as a model of this size allows"
        return {errors_of[0]: f"None of the likely mistakes explains it; tried were {tried}"}
    first, *more = guesses
    told = {}
    for name in errors_of:
        before = f"{float(_of(trial.opened, name).mean()):.4g}"
        if first.mended:
            told[name] = (
                f"With {first.repair.words} the model passes (error {first.error(name):.4g} instead of {before})"
            )
            told[name] += "".join(f"; so it does with {one.repair.words} ({one.error(name):.4g})" for one in more)
        else:
            told[name] = f"With {first.repair.words} the error is {first.error(name):.4g} instead of {before}"
            told[name] += "".join(f", with {one.repair.words} {one.error(name):.4g}" for one in more)
            told[name] += _UNMENDED
    if first.mended:
        told[errors_of[0]] += f": {first.repair.advice}"
    return told


def _guesses(trial: Trial, about: str) -> list[Guess]:
    """The best repair, and another that does almost as well where there is one, confirmed on all items.

    Those with which the model passes come first.
    """

    def best(groups: Iterable[Group], most: int, *, draws: bool = True) -> list[tuple[Repair, Errors]]:
        some = trial.few(most)
        before, baseline = Errors(trial.opened.mean[some], trial.opened.draw[some]), trial.baseline[some]
        tried = trial.tried(groups, most, draws=draws)
        passing = [(r, e) for r, e in tried if _mends(e, before, baseline, about, draws=draws)]
        return sorted(passing, key=lambda one: float(_of(one[1], about).mean()))  # stable: at a tie, the likelier

    ranked = best(single(trial, of_spread=about == _DRAW), SINGLE)
    if about == _DRAW:  # the smallest spread makes the smallest error: ask which one training left
        ranked.sort(key=lambda one: trial.scatter(one[0].encoded) if one[0].encoded is not None else math.inf)
    elif not ranked or float(ranked[0][1].mean.mean()) > _GOOD * float(trial.baseline[trial.few(SINGLE)].mean()):
        likely = best(double(trial), PAIRED, draws=False)[:8]
        pairs = best([(one, [one]) for one, _ in likely], SINGLE)
        if not ranked or (pairs and pairs[0][1].mean.mean() < _PAIR * ranked[0][1].mean.mean()):
            ranked = pairs
    kept = [
        Guess(repair, errors, _likely(trial, repair, errors) and trial.mended(repair))
        for repair, errors in trial.confirmed(repair for repair, _ in ranked[:4])
        if _mends(errors, trial.opened, trial.baseline, about)
    ]
    kept.sort(key=lambda one: (not one.mended, one.error(about) if about != _DRAW else 0))
    return kept[:1] + [one for one in kept[1:] if _another(one, kept[0], about)][:1]


def _likely(trial: Trial, repair: Repair, errors: Errors) -> bool:
    """Whether a repair leaves so little error that it is no accident of the many pairs that were tried."""
    return len(repair.changes) == 1 or float(errors.mean.mean()) <= _GOOD * float(trial.baseline.mean())


def _another(guess: Guess, best: Guess, about: str) -> bool:
    """Whether a second guess is almost as good, and not the same change, in whatever words."""
    close = guess.error(about) <= _CLOSE * best.error(about) and guess.mended == best.mended
    errors, least = guess.errors, best.errors
    same = torch.allclose(errors.mean + errors.draw, least.mean + least.draw, rtol=_SAME, atol=0)
    return close and not same and guess.repair.changes != best.repair.changes


def _mends(errors: Errors, opened: Errors, baseline: Tensor, about: str, *, draws: bool = True) -> bool:
    """Whether a model with such errors beats the mean image clearly, and the model as opened."""
    values, before = _of(errors, about), _of(opened, about)
    return (
        bool(errors.mean.isfinite().all() and errors.draw.isfinite().all())
        and float(values.mean()) <= _CLEAR.get(about, _CLEAR[_MEAN]) * float(baseline.mean())
        and float((values < baseline).float().mean()) >= _ITEMS
        and (not draws or float(errors.draw.mean()) < float(baseline.mean()))
        and not float(values.mean()) > _GAIN * float(before.mean())
        and float((~(values >= before)).float().mean()) >= _ITEMS
    )
