"""Is there another reading of a model that passes which makes its reconstructions far better?

What remains of a model opened wrongly may still beat the mean image: a digit in the wrong colours is more like itself
than the mean digit is. So the likely single mistakes are tried on models that pass, too, and compared with the model as
opened item by item.
"""

from dataclasses import dataclass

import torch
from scipy import stats as distributions

from vaeaudit.subject.finding import Verdict
from vaeaudit.subject.trial import SINGLE, Errors, Repair, Trial, single

_LEVEL = 0.001  # of the sign test, over all readings together
# Most median error as a share of that as opened, and least share of items that come out better. Of 29 healthy models no
# reading left less than 0.87 on more than 0.6 of the items.
_UNSURE, _FAIL = (0.8, 2 / 3), (0.25, 0.95)
_LIKELY = 0.9  # most median error on some of the items
_CONFIRMED = 4  # readings that are tried on all items


@dataclass(frozen=True, eq=False)
class Reading:
    """A change with which a model that passes is far better, and how sure it is that something is wrong."""

    repair: Repair
    errors: Errors
    items: int  # that come out better
    mended: bool
    verdict: Verdict


def better(trial: Trial) -> Reading | None:
    """The reading that leaves the smallest error, if it is far better than the model as opened on most items.

    FAIL needs a gain that no healthy model comes near: a quarter of the error on nearly all items.
    """
    as_opened = (Repair(), [Repair()])
    (_, before), *tried = trial.tried([as_opened, *single(trial)], SINGLE, draws=False)
    likely = [(repair, errors) for repair, errors in tried if _share(errors, before) <= _LIKELY]
    likely.sort(key=lambda one: float(one[1].mean.mean()))
    confirmed = trial.confirmed(repair for repair, _ in likely[:_CONFIRMED])
    found = (_judged(trial, repair, errors, len(tried)) for repair, errors in confirmed)
    return min((one for one in found if one), key=lambda one: float(one.errors.mean.mean()), default=None)


def _judged(trial: Trial, repair: Repair, errors: Errors, tried: int) -> Reading | None:
    opened = trial.opened
    n, gained = len(trial.x), int((errors.mean < opened.mean).sum())
    by_chance = tried * float(distributions.binom.sf(gained - 1, n, 0.5))
    share = _share(errors, opened)
    if by_chance > _LEVEL or not _within(share, gained / n, _UNSURE):
        return None
    verdict = Verdict.FAIL if _within(share, gained / n, _FAIL) else Verdict.UNSURE
    return Reading(repair, errors, gained, trial.mended(repair), verdict)


def _within(error: float, items: float, limits: tuple[float, float]) -> bool:
    return error <= limits[0] and items >= limits[1]


def _share(errors: Errors, opened: Errors) -> float:
    """The median or mean error as a share of that as opened, at the mean or of a draw: the largest of the four."""
    pairs = ((errors.mean, opened.mean), (errors.draw, opened.draw))
    return max(float(how(now) / how(before)) for now, before in pairs for how in (torch.median, torch.mean))
