"""Where a search for the largest radius at which a level is kept looks next, and when it ends.

A ball of some radius is bounded, which says by how much what may be lost is exceeded, and each ball moves the
multipliers of the bound for the better. The next radius is where the level is just kept once they have moved, as far as
can be foretold. No claim rests on any of this.
"""

import math

_HOPE, _MOST_HOPED = 1.5, 0.25  # first-order gains that a move of multipliers is expected to bring; the most expected
_SPARE = 0.001  # of the radius, by which the next one falls short of where the level would be lost
_LEAST, _SMALL = 0.002, 0.02  # of the radius: growth with which a search ends, of small and of wide networks
_SURE = 0.7  # of a last step that is not looked at before it is verified
_TOLERANCE, _PATIENCE = 0.01, 4  # of the radius; how often less than that is gained or missed before the search ends
_STEEPEST = 12.0
_BETTER = 0.85  # of the excess of the miss before: below it a miss counts as none
_AGAIN = 0.05  # of the radius: misses farther out say nothing of whether there is more to gain
_FARTHEST = 0.7  # that the logarithm of the radius changes at once: multipliers that are led too far do not come back


class Climb:
    """One search, of a network that is ``wide`` or small: ``tried`` is the radius to look at, ``best`` the one found.

    ``best`` is 0 until a radius holds, ``first`` the one to begin with, and ``estimate`` where the level would be lost
    were the network linear. After each ball one of :meth:`not_shown` and :meth:`shown` is told; then ``over`` says
    whether that was the last, ``settled`` whether that is because no more is to be gained, so that ``tried`` is a
    little short of what would have been next, ``missed`` whether the ball counts as a miss, and ``astray`` whether its
    multipliers bound less than those before.
    """

    def __init__(self, best: float, first: float, estimate: float, wide: bool) -> None:
        self.best, self.tried, self._estimate, self._wide = best, first, estimate, wide
        self.over = self.settled = self.missed = self.astray = False
        self._last, self._excess = 0.0, 0.0  # the ball before, and what it exceeded
        self._expected = 0.0  # there, once multipliers had moved
        self._beyond = math.inf  # a radius too far
        self._steepness = 1.0  # d excess / d log radius, as measured
        self._left, self._hope = _PATIENCE, _HOPE

    def not_shown(self, too_far: bool) -> None:
        """The ball tried bounded nothing, and no larger one is worth trying where it was ``too_far``."""
        self.missed = self.astray = False
        if self.best and too_far:
            self._beyond = min(self._beyond, self.tried)
        else:
            self._left, self._hope = self._left - int(self.best > 0), self._hope / 2
        known = self.best or self._last
        self.over = self._closed_in()
        self.tried = math.sqrt(self.tried * known) if known else self.tried / 2

    def shown(self, excess: float, holds: bool, gain: float) -> None:
        """The ball tried has this ``excess``, and ``holds`` where that is shown to be below 0.

        ``gain`` is by how much the excess falls to first order as multipliers move.
        """
        tried = self.tried
        self._measure(excess)
        self._judge(excess, holds)
        slope = self._slope(excess, holds)
        self.astray = self.best > 0 and not holds and tried <= self._last and excess > self._excess
        self._last, self._excess = tried, excess
        self._expected = excess - min(self._hope * gain, _MOST_HOPED)
        self.over = self._closed_in()
        if not self.over:
            self._go(-self._expected / slope - _SPARE, holds)

    def _measure(self, excess: float) -> None:
        """How steeply the excess rises, from the last two balls where these are apart."""
        if self._last and abs(math.log(self.tried / self._last)) > _TOLERANCE:
            secant = (excess - self._expected) / math.log(self.tried / self._last)
            self._steepness = (self._steepness + min(max(secant, 1.0), _STEEPEST)) / 2

    def _judge(self, excess: float, holds: bool) -> None:
        """What the ball says of how much more is to be gained."""
        self.missed = False
        if holds:
            self._left, self._hope = _PATIENCE, _HOPE
            self.best = max(self.best, self.tried)
            return
        near = self.best < self.tried < self.best * (1 + _AGAIN)
        if near and not 0 < excess < _BETTER * self._excess:
            self.missed, self._left = True, self._left - 1
        self._hope /= 2 if self._wide else 8

    def _slope(self, excess: float, holds: bool) -> float:
        """How steeply the excess is expected to rise from here.

        As if what exceeds first order grew like the radius, or on the way up, before it is much, like its square.
        """
        beyond_first = excess - math.log(self.tried / self._estimate)
        slope = 1 + beyond_first + (min(beyond_first, 1.0) if holds else 0.0)
        if holds and not self._wide:  # whose balls cost little, so that a miss does
            slope = min(slope, self._steepness)
        return max(self._steepness, slope)

    def _closed_in(self) -> bool:
        """Whether patience is at an end, or what is too far lies next to what holds."""
        return self.best > 0 and (self._left <= 0 or self._beyond < self.best * (1 + _TOLERANCE / 2))

    def _go(self, step: float, holds: bool) -> None:
        """To the next radius, that far away in logarithms."""
        self.settled = self.over = holds and step < (_SMALL if self._wide else _LEAST)
        step = _SURE * step if self.settled else step
        self.tried *= math.exp(min(max(step, -_FARTHEST), _FARTHEST))
        if self.best and (self.astray or self.tried < self.best * (1 + _LEAST)):
            self.tried = self.best * (1 + _LEAST) if holds else math.sqrt(self.best * self._last)
        if self.best:
            self.tried = min(self.tried, math.sqrt(self.best * self._beyond))
