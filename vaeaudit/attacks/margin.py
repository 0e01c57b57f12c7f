"""The empirical margin: an upper bound on how far every item may move and stay r-robust.

Camuto et al. 2021, algorithm 2, corrected. As printed it steps down from a norm of 10, keeps the p of the last restart
and has no confidence. Here the cap on ||d|| is bisected, the attack under each cap minimises P itself, the worst
restart is kept on noise of its own, its ray is followed to where P crosses m, and the end is tested on fresh noise.

Only those tests make the bound: all that comes before decides where to test. P is P(||g(z_d) - g(mu(x))|| <= r), m the
level, R(x) = sup{rho: P > m for all ||d|| < rho}.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vaeaudit.attacks.attacked import Attacked
from vaeaudit.attacks.ball import furthest, settle
from vaeaudit.attacks.signs import DIRECTIONS, Signs, signs_of
from vaeaudit.attacks.term import Term
from vaeaudit.attacks.within import BLOCK, Within
from vaeaudit.errors import ConfigError, nearest
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.box import largest_norm
from vaeaudit.model.conditions import encoder, under
from vaeaudit.model.ranges import Range
from vaeaudit.model.vae import VAE
from vaeaudit.optim.lbfgsb import Status
from vaeaudit.progress import GoOn, Progress, always, within
from vaeaudit.stats.draws import noise_set
from vaeaudit.stats.estimates import clopper_pearson

SIGMAS = ("frozen", "full")

_POOL = 256  # draws of an item that the attack goes through
_SMALL = 16  # of those, how many a step sees
_SELECTION = 256  # draws that choose the restart and steer the bisection
_FEW = 32  # draws that the first rays are looked at with
_RAYS = 6  # pulled-back rays looked at first
_OCTAVES = 14  # how far below the largest norm they are looked at
_DOUBLINGS = 6  # how far below it the search begins where no ray breaks
_NEW = 4  # restarts of an attack beside the best and second best ray so far
_STEPS = 20
_TURNS = 5  # attacks on an item that breaks, at least
_STEP = (0.5, 0.05)  # length of a chain's first and last step, as shares of the cap
_MOMENTUM = 0.75
_SLOWEST = 0.02  # fall of P for each e-fold of the norm, below which no draws would do
_AT_ZERO = 4096  # draws of the test of d = 0
_APART = 0.05  # how far below p0 the search steers at least: what its draws can tell apart
_POWER = 1.0  # standard errors between where a test is expected to break and where it is made
_SHARE = 0.6  # of the tolerance that a test may lose to its sampling error, as far as its draws allow
_FURTHEST = 0.4  # in the norm's logarithm, that one look can move where P is thought to be m
_BISECTED = 0.55  # of the time, as measured, goes to bisection
_TESTS = 12  # of one item at most
_JUDGED = 128  # draws by which the finished search is judged
EFFORT = "search from other starts, with another --seed"
_NOISE = _POOL + _SELECTION + 2 * BLOCK  # draws of an item held at a time
_VECTORS = 80  # and vectors of the size of an input
_MEMORY = 2**33  # bytes that the items of a group may take


@dataclass(frozen=True, eq=False)
class Empirical:
    """What broke each item (I).

    ``margin`` (I,), float64, in input units: ||d|| of the shortest distortion that a test on fresh noise called broken,
    an upper bound of R(x) with confidence 1 - alpha for each item; 0 where the item is not r-robust unperturbed, inf
    where nothing broke. ``distortion`` (I, *shape) is that d, 0 where nothing broke; x + d lies in the box to the bit.
    ``p`` (I,) is the share of ``draws`` (I,) fresh draws within r there, of the last test where nothing broke, and
    ``interval`` (I, 2) its Clopper-Pearson bounds, each wrong with probability alpha_j, alpha spread over the tests as
    alpha / (j (j + 1)); NaN where no test was made. ``tests`` (I,) counts them. ``censored`` (I,) tells where nothing
    broke though the search went on to ``largest`` (I,), the largest norm tried: no bound, and no proof either.
    ``signs`` are the failure signs of the search, of which an item that is not r-robust unperturbed needs none.
    ``interrupted`` tells that the search was told to stop; what was best by then has been tested once.
    """

    margin: Tensor
    distortion: Tensor
    p: Tensor
    interval: Tensor
    draws: Tensor
    tests: Tensor
    censored: Tensor
    largest: Tensor
    signs: Signs
    interrupted: bool


def empirical_margin(
    vae: VAE,
    x: Tensor,
    r: Tensor | float,
    *,
    m: float = 0.5,
    sigma: str = "frozen",
    box: Range | None,
    alpha: float = 0.05,
    seed: int = 0,
    most: float | None = None,
    tolerance: float = 0.02,
    draws: int | None = None,
    items: Sequence[int] | None = None,
    rows: RowBatches,
    go_on: GoOn = always,
) -> Empirical:
    """Upper bound of R(x) for ``x`` (I, *input_shape), all items at once.

    Args:
        vae: the model; g is the mean of its decoder.
        x: the items, inside the box; their dtype and device are used throughout.
        r: radius in output units, positive, one or (I,). A distance that is NaN counts as outside of it.
        m: level that P must exceed, in (0, 1).
        sigma: "frozen", z_d = mu(x + d) + sigma(x) eta (theorem 1), or "full", sigma at x + d (algorithm 2).
        box: the range of x + d, None for all reals.
        alpha: probability, for each item, that its margin is below R(x).
        seed: of every random draw.
        most: largest norm tried; where None, the box's diameter, without a box that of the model's range, and where
            that is not finite 10, from which algorithm 2 steps down, or four times the longest item.
        tolerance: relative; where bisection ends, and how much a test may lose to its sampling error.
        draws: of one test at most; where None, 2^25 over the outputs, between 2^14 and 2^17. A test takes as many, from
            1,024, as the slope of P calls for; with fewer than that the margin is wider, never wrong.
        items: numbers that key the draws of each item; 0, 1, ... where None.
        rows: bounds how many rows the model is given at once.
        go_on: asked before each round; on False the best so far is tested once and handed out.

    Raises:
        ConfigError: a setting out of its range.
        UnsupportedError: sigma cannot be frozen, as the posterior's mean and spread cannot be set apart.
        NonFiniteError: g(mu(x)) is NaN or infinite.
    """
    radius = torch.as_tensor(r, dtype=x.dtype, device=x.device).expand(len(x))
    most = largest_norm(vae, x, box) if most is None else most
    _check(radius, m, sigma, alpha, most, tolerance)
    draws = min(max(2**25 // math.prod(vae.input_shape), 2**14), 2**17) if draws is None else draws
    keys = list(range(len(x))) if items is None else list(items)
    with torch.no_grad():
        noise = math.prod(under(vae, slice(1)).encode(x[:1]).noise_shape)
    size = max(1, _MEMORY // ((_NOISE * noise + _VECTORS * x[0].numel()) * x.element_size()))
    parts = []
    for first in range(0, len(x), size):
        group = slice(first, first + size)
        part = within(go_on, first / len(x), min(1.0, (first + size) / len(x)))
        given = under(vae, group), x[group], radius[group], m, sigma, box, alpha, seed, most, tolerance, draws
        parts.append(_Search(*given, keys[group], rows, part).run())
    names = [field.name for field in fields(Empirical) if field.name not in ("signs", "interrupted")]
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    measured = torch.cat([part.signs.measured for part in parts], 1)
    signs = Signs(measured, torch.cat([part.signs.cut_off for part in parts]), EFFORT)
    return Empirical(signs=signs, interrupted=any(part.interrupted for part in parts), **joined)


class _Search(Within):
    """The search of all items; rows are treated apart, whichever other items are still there."""

    def __init__(
        self,
        vae: VAE,
        x: Tensor,
        r: Tensor,
        m: float,
        sigma: str,
        box: Range | None,
        alpha: float,
        seed: int,
        most: float,
        tolerance: float,
        draws: int,
        keys: list[int],
        rows: RowBatches,
        go_on: GoOn,
    ) -> None:
        super().__init__(vae, x, r, m, sigma, box, seed, keys, rows)
        self.m, self.box, self.alpha, self.most = m, box, alpha, most
        self.tolerance, self.draws, self.go_on = tolerance, draws, go_on
        self.stopped = False
        self.every = torch.arange(len(x), device=x.device)
        self.pool = self.noise("search", _POOL, self.every)
        self.selection = self.noise("selection", _SELECTION, self.every)
        self.margin = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.largest = torch.zeros_like(self.margin)
        self.d, self.p = torch.zeros_like(self.x), torch.full_like(self.margin, torch.nan)
        self.interval = torch.full((len(x), 2), torch.nan, dtype=torch.float64, device=x.device)
        self.taken, self.tests = torch.zeros_like(self.every), torch.zeros_like(self.every)

    def run(self) -> Empirical:
        p0 = self.seen(self.x, self.every, torch.zeros_like(self.r), self.selection)
        unsure = (p0 <= self.m).nonzero().squeeze(1)
        if unsure.numel():
            nowhere = torch.zeros_like(self.r[unsure])
            self.test(self.x[unsure], unsure, nowhere, torch.full_like(unsure, _AT_ZERO), "zero")
        self.level = torch.minimum(self.level, p0 - _APART).clamp(min=self.m / 2)
        searched = self.margin.isfinite()
        ray, crossing = self.search((~searched).nonzero().squeeze(1), searched)
        self.confirm(ray, crossing)
        return Empirical(
            margin=self.margin,
            distortion=self.d.reshape(-1, *self.shape),
            p=self.p,
            interval=self.interval,
            draws=self.taken,
            tests=self.tests,
            censored=self.margin.isinf() & searched,
            largest=self.largest,
            signs=self.judged(ray, searched),
            interrupted=self.stopped,
        )

    def judged(self, ray: Tensor, searched: Tensor) -> Signs:
        """The failure signs of the search at what broke each item (I,), else at the largest norm along its ray (I, n).

        A point that costs no search, shorter by the tolerance, must not move the distances further.
        """
        broken = self.margin.isfinite()
        radius = torch.where(broken, self.margin, self.largest).to(self.x)
        points = torch.where(broken[:, None], self.x + self.d, self.point(ray, self.every, radius))
        noise = self.selection[:_JUDGED]
        nearness, rows = self.nearness(self.m, noise), RowBatches(max(1, self.rows.size // len(noise)))
        value, zero = (Term(nearness, self.shape, rows).value(at, self.every) for at in (points, self.x))
        ended = torch.where(searched, int(Status.CONVERGED), int(Status.STOPPED))
        found = Attacked(
            adversarial=points.reshape(-1, 1, *self.shape),
            data_term=value[:, None],
            norm=radius[:, None] * (1 - self.tolerance),
            status=ended[:, None],
            recent=torch.full_like(value[:, None], torch.inf),
            zero_data_term=zero,
        )
        ways = noise_set(
            self.shape, draws=DIRECTIONS, items=self.keys, seed=self.seed, check="margin.directions", like=self.x
        )
        # Where sigma is frozen, a clamp of log-variances stands in no search's way.
        encode = encoder(self.vae) if self.sigma == "full" else None
        x = self.x.reshape(-1, *self.shape)
        signs = signs_of(nearness, encode, x, None, found, ways, box=self.box, norm="l2", rows=rows)
        cut_off = torch.full_like(searched, self.stopped)  # those that were searched lack tests
        return Signs(torch.where(self.margin == 0, 0.0, signs.measured), cut_off, EFFORT)

    def search(self, item: Tensor, searched: Tensor) -> tuple[Tensor, Tensor]:
        """The ray of each item (I, n) that leaves r-robustness soonest and where it does, inf for nowhere, (I,).

        Bisection on the cap for the items ``item``; those that come to its end are marked in ``searched`` (I,).
        """
        if not len(item) or not self.asked("bisecting", len(item), 0.0):
            return torch.zeros_like(self.x), torch.full_like(self.r, torch.inf)
        ray, second, hi = self.first(item)
        lo = torch.zeros_like(hi)
        known = hi.isfinite()
        cap = torch.where(known, hi * 0.5**0.5, self.most / 2**_DOUBLINGS)
        turn = 0
        while bool((~searched).any()) and self.asked("bisecting", int((~searched).sum()), _bisected(turn)):
            turn += 1
            item = (~searched).nonzero().squeeze(1)
            starts = torch.cat([ray[None, item], second[None, item], self.rays(_NEW, item, f"rays.{turn}")])
            (best, other), broke = self.attack(starts, item, cap[item], turn)
            # Not broken under the cap, but perhaps further out along the same ray, before what is known.
            beyond = torch.where(hi[item].isfinite(), hi[item] * (1 - self.tolerance / 2), 2 * cap[item])
            end = torch.where(broke, cap[item], torch.maximum(beyond, cap[item]).clamp(max=self.most))
            crossing = self.cross(best, item, end, self.selection)
            better = crossing < hi[item]
            second[item] = torch.where(better[:, None], ray[item], other)
            ray[item] = torch.where((better | hi[item].isinf())[:, None], best, ray[item])
            hi[item] = torch.minimum(hi[item], crossing)
            lo[item] = torch.where(broke, lo[item], cap[item])
            self.largest[item] = torch.maximum(self.largest[item], end.double())
            settled = hi <= lo * (1 + self.tolerance)
            searched |= (settled & (turn >= _TURNS)) | (hi.isinf() & (lo >= self.most))
            lo = torch.where(settled, lo * 0.9, lo)  # once more, from other starts
            cap = torch.where(hi.isfinite(), (torch.maximum(lo, hi / 2) * hi).sqrt(), (2 * lo).clamp(max=self.most))
        return ray, hi

    def first(self, item: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best and second best of rays pulled back from random latents, (I, n), and where the best breaks, (I,)."""
        few = self.selection[:_FEW]
        rays = self.rays(_RAYS, item, "rays")
        v, of = rays.flatten(0, 1), item.repeat(_RAYS)
        end, radius = torch.full_like(v[:, 0], self.most), torch.full_like(v[:, 0], torch.inf)
        for octave in range(_OCTAVES if len(item) else 0):
            at = end / 2**octave
            radius = torch.where(self.gap(self.point(v, of, at), of, few) > 0, at, radius)
        radius = self.cross(v, of, radius.clamp(max=self.most), few).reshape(_RAYS, -1)
        order, column = radius.argsort(0), torch.arange(len(item), device=item.device)
        best, second = rays[order[0], column], rays[order[1], column]
        most = (1.5 * radius.min(0).values).clamp(max=self.most)
        ray, runner_up, hi = torch.zeros_like(self.x), torch.zeros_like(self.x), torch.full_like(self.r, torch.inf)
        ray[item], runner_up[item] = best, second
        hi[item] = self.cross(best, item, most, self.selection)
        return ray, runner_up, hi

    def attack(self, starts: Tensor, item: Tensor, cap: Tensor, turn: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The two chains from ``starts`` (R, a, n) that break most under ``cap`` (a,), and whether the first does.

        Projected steps with momentum on a smooth P, for noise that goes round the pool.
        """
        chains, count = len(starts), len(item)
        of, cap = item.repeat(chains), cap.repeat(chains)
        low, high = self.low[of], self.high[of]
        before = d = furthest(starts.flatten(0, 1), low, high, cap)
        for step in range(_STEPS):
            if not self.asked("bisecting", count, _bisected(turn - 1 + step / _STEPS)):
                break
            eta = self.pool.roll(-_SMALL * (turn * _STEPS + step), 0)[:_SMALL]
            slope = self.uphill(d, of, eta)
            length = _STEP[0] * (_STEP[1] / _STEP[0]) ** (step / _STEPS) * cap
            moved = d - length[:, None] * slope + _MOMENTUM * (d - before)
            before, d = d, furthest(moved, low, high, cap, most=1.0)
        d = furthest(d, low, high, cap)
        gap = self.gap(self.x[of] + d, of, self.selection).reshape(chains, count)
        order, column, d = gap.argsort(0, descending=True), self.every[:count], d.reshape(chains, count, -1)
        return (d[order[0], column], d[order[1], column]), gap[order[0], column] > 0

    def confirm(self, ray: Tensor, crossing: Tensor) -> None:
        """Test the points of the rays (I, n) just beyond where they are thought to break, on fresh noise."""
        item = (crossing.isfinite() & self.margin.isinf()).nonzero().squeeze(1)
        if not item.numel():
            return
        v, sd = ray[item], math.sqrt(self.m * (1 - self.m))
        few = self.selection if self.stopped else self.noise("ray", BLOCK, self.every)
        # A first look with few draws: where a test of as many would be made, and how fast P falls there.
        lost = self.slack(item) * sd / math.sqrt(BLOCK)
        self.level[item] = (self.m - lost).clamp(min=self.m / 2)
        end, far = crossing[item], torch.full_like(lost, torch.inf)
        while bool((far.isinf() & (end < self.most)).any()):
            end = torch.where(far.isinf(), (1.3 * end).clamp(max=self.most), end)
            far = self.cross(v, item, end, few)
        far = torch.where(far.isinf(), end, far)
        at_zero, near, there = (self.seen(v, item, share * far, few) for share in (0.0, 0.8, 1.0))
        # Of P, for each e-fold of the norm; as much as from d = 0 at least, or else the few draws could hide it.
        fall = torch.maximum((near - there) / -math.log(0.8), at_zero - self.level[item]).clamp(min=_SLOWEST)
        wanted = (self.slack(item) * sd / (fall * _SHARE * self.tolerance)).square().clamp(max=self.draws)
        n = BLOCK * ((wanted / BLOCK).ceil().long() if not self.stopped else torch.ones_like(item)).clamp(min=1)
        # A second look with as many draws as the test will have; log_t: where P is thought to be m.
        log_t = far.log() - (lost / fall).clamp(max=_FURTHEST)
        if not self.stopped:
            share = self.share(self.point(v, item, log_t.exp()), item, n, "ray")
            log_t = log_t + ((share - self.m).to(v) / fall).clamp(-_FURTHEST, _FURTHEST)
        radius = (log_t + self.slack(item) * sd / n.sqrt() / fall).exp().clamp(max=self.most)
        for turn in range(_TESTS):
            done = _BISECTED + (1 - _BISECTED) * (1 - 0.5 ** (turn + 1))  # most items need two tests or three
            if turn and (self.stopped or not self.asked("testing", len(item), done)):
                break
            share = self.test(v, item, radius, n, f"fresh.{turn}")
            # What the test saw counts as much as all that was seen before it.
            log_t = (log_t + radius.log() + ((share - self.m).to(v) / fall).clamp(-_FURTHEST, _FURTHEST)) / 2
            again = (log_t + self.slack(item) * sd / n.sqrt() / fall).exp()
            failed = self.margin[item].isinf()
            again = torch.where(failed, torch.maximum(again, radius * (1 + self.tolerance * 2**turn)), again)
            shorter = again < self.margin[item] * (1 - self.tolerance)
            left = (shorter & (radius < self.most)).nonzero().squeeze(1)
            v, item, n, fall, log_t = v[left], item[left], n[left], fall[left], log_t[left]
            radius = again[left].clamp(max=self.most)
            if not len(left):
                break

    def test(self, v: Tensor, item: Tensor, radius: Tensor, n: Tensor, check: str) -> Tensor:
        """The share of ``n`` (b,) fresh draws within r at ``radius`` along the rays ``v`` (b, n), and what breaks."""
        x = self.x[item]
        d = settle(x, furthest(v, self.low[item], self.high[item], radius), self.edges, radius)
        share = self.share(x + d, item, n, check)
        norm = torch.linalg.vector_norm((x + d).double() - x.double(), dim=1)  # of what the model saw, x + d rounded
        self.tests[item] += 1
        for row, i in enumerate(item.tolist()):
            trials, j = int(n[row]), int(self.tests[i])
            bounds = clopper_pearson(round(float(share[row]) * trials), trials, self.alpha / (j * (j + 1)))
            broken = bounds[1] <= self.m and bool(norm[row] < self.margin[i])
            if broken:
                self.margin[i], self.d[i] = norm[row], d[row]
            if broken or bool(self.margin[i].isinf()):
                self.p[i], self.taken[i] = share[row], trials
                self.interval[i] = torch.tensor(bounds, dtype=torch.float64)
        self.largest[item] = torch.maximum(self.largest[item], norm)
        return share

    def slack(self, item: Tensor) -> Tensor:
        """Standard errors below m at which the next test of each item is expected to find P, (b,)."""
        j = self.tests[item].double() + 1
        errors: Tensor = torch.special.ndtri(1 - self.alpha / (j * (j + 1))) + _POWER
        return errors.to(self.x)

    def asked(self, stage: str, running: int, share: float) -> bool:
        self.stopped = self.stopped or not self.go_on(Progress(f"margin, {stage}", running, len(self.x), share))
        return not self.stopped


def _bisected(turns: float) -> float:
    """The share of the work after so many turns of bisection, of which there are usually a few more than the least."""
    usual, first = _TURNS + 3, 0.7  # the first rays take as long as most of a turn
    return _BISECTED * (turns + first) / max(usual, turns + 1 + first)


def _check(r: Tensor, m: float, sigma: str, alpha: float, most: float, tolerance: float) -> None:
    if sigma not in SIGMAS:
        raise ConfigError(f"there is no sigma mode '{sigma}'{nearest(sigma, SIGMAS)}; there are {', '.join(SIGMAS)}")
    if not bool((r.isfinite() & (r > 0)).all()):
        raise ConfigError(f"the radius r must be positive and finite, but {float(r.min()):g} was given; choose another")
    for name, value in (("m", m), ("alpha", alpha), ("tolerance", tolerance)):
        if not 0 < value < 1:
            raise ConfigError(f"{name} must lie between 0 and 1, but {value:g} was given; choose another")
    if not 0 < most < math.inf:
        raise ConfigError(f"the largest norm tried must be positive and finite, but {most:g} was given; choose another")
