"""How far the reconstructions of a moved input lie from g(mu(x)), and how far along a ray they leave radius r."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from vaeaudit.attacks.ball import furthest
from vaeaudit.attacks.directions import pull_back
from vaeaudit.attacks.term import DataTerm, Term, as_precise
from vaeaudit.errors import NonFiniteError, UnsupportedError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.box import flat_bounds
from vaeaudit.model.conditions import under
from vaeaudit.model.ranges import Range
from vaeaudit.model.vae import VAE, Posterior, Recombinable, reconstruct
from vaeaudit.stats.draws import noise_set

_SPREAD = 0.5  # width of the smooth step, as a share of the distances' standard deviation
_GAP = 0.25  # and of their quantile's distance from r, so that a far r still has a slope
_RANKS = 0.125  # how far from the level the ranks lie whose distances stand for its quantile
_SECANTS = 6
BLOCK = 1024  # draws of one block of noise


def kept_along(
    vae: VAE,
    x: Tensor,
    d: Tensor,
    r: float,
    lengths: Tensor,
    *,
    sigma: str,
    box: Range | None,
    seed: int,
    keys: Sequence[int],
    rows: RowBatches,
    draws: int = BLOCK,
) -> Tensor:
    """P(||g(z_d) - g(mu(x))|| <= r) at ``lengths`` (I, T) along the distortions ``d`` (I, *shape), (I, T).

    Shares of ``draws`` draws, the same at all lengths; where the box cuts a distortion off, it is bent.
    """
    radius = torch.full_like(lengths[:, 0], r)
    within = Within(vae, x, radius, 0.5, sigma, box, seed, keys, rows)
    item = torch.arange(len(x), device=x.device)
    noise = within.noise("along", draws, item)
    return torch.stack([within.seen(d.flatten(1), item, length, noise) for length in lengths.T], 1)


class Within:
    """||g(z_d) - g(mu(x))|| of items ``x`` (I, *shape) against radii ``r`` (I,), rows apart.

    ``level`` (I,), that of P = P(distance <= r) which is looked for, may be changed. Points and rays are flat, (b, n),
    and each belongs to the item named in ``item`` (b,).
    """

    def __init__(
        self,
        vae: VAE,
        x: Tensor,
        r: Tensor,
        m: float,
        sigma: str,
        box: Range | None,
        seed: int,
        keys: Sequence[int],
        rows: RowBatches,
    ) -> None:
        self.vae, self.r, self.sigma, self.seed, self.keys = vae, r, sigma, seed, keys
        self.shape, self.x, self.rows = tuple(x.shape[1:]), x.flatten(1), rows
        self.edges = flat_bounds(box, self.shape, x)  # (1, n) each
        self.low, self.high = self.edges[0] - self.x, self.edges[1] - self.x
        self.level = torch.full_like(r, m)
        with torch.no_grad():
            self.clean = vae.encode(x)
            number = torch.arange(len(x), device=x.device)
            centre = rows.map(lambda part, of: (reconstruct(under(vae, of), part).flatten(1),), x, number)[0]
            self.centre = as_precise(centre, x)
        if sigma == "frozen" and not isinstance(self.clean, Recombinable):
            raise UnsupportedError(
                "frozen sigma needs a posterior whose mean and standard deviation can be set apart, which "
                f"{type(self.clean).__name__} is not; take sigma = full"
            )
        if not bool(self.centre.isfinite().all()):
            item = int((~self.centre.isfinite().all(1)).nonzero()[0, 0])
            raise NonFiniteError(f"the reconstruction of item {keys[item]} is not finite; run doctor on the model")

    def gap(self, points: Tensor, item: Tensor, noise: Tensor) -> Tensor:
        """The level's quantile of the distances less r, (b,): positive where P is at most the level on this noise."""
        ordered = self.distances(points, item, noise).sort(1).values
        place = (self.level[item] * len(noise)).long()
        return ordered.gather(1, place[:, None]).squeeze(1) - self.r[item]

    def nearness(self, m: float, noise: Tensor) -> DataTerm:
        """-(the quantile m of the distances) on ``noise`` (S, items, *noise_shape): what an attack on P minimises.

        P itself is flat wherever no draw is near r. Averaged over the ranks next to m, since a single one has a kink
        wherever two draws change places.
        """
        first = min(int(max(0.0, m - _RANKS) * len(noise)), len(noise) - 1)
        last = max(first + 1, int(min(1.0, m + _RANKS) * len(noise)))

        def nearness(points: Tensor, item: Tensor) -> Tensor:
            ordered = self.far(points, item, noise[:, item]).sort(1).values
            return -ordered[:, first:last].mean(1)

        return nearness

    def seen(self, v: Tensor, item: Tensor, radius: Tensor, noise: Tensor) -> Tensor:
        """P on a noise set at ``radius`` (b,) along the rays ``v`` (b, n), (b,)."""
        return (self.distances(self.point(v, item, radius), item, noise) <= self.r[item, None]).to(v).mean(1)

    def distances(self, points: Tensor, item: Tensor, noise: Tensor, column: Tensor | None = None) -> Tensor:
        """||g(z_d) - g(mu(x))|| at ``points`` (b, n) for noise (S, items, *noise_shape) at ``column`` (b,), (b, S)."""

        @torch.no_grad()
        def some(part: Tensor, of: Tensor, at: Tensor) -> tuple[Tensor]:
            return (torch.cat([self.far(part, of, eta[:, at]) for eta in torch.split(noise, self.rows.size)], 1),)

        rows = RowBatches(max(1, self.rows.size // len(noise)))
        return rows.map(some, points, item, item if column is None else column)[0]

    def uphill(self, d: Tensor, item: Tensor, noise: Tensor) -> Tensor:
        """The direction of norm 1 in which a smooth P rises most at x + ``d`` (b, n) where the box lets it, (b, n)."""
        gradient = self.gradient((self.x[item] + d).clamp(*self.edges), item, noise)
        held = ((d <= self.low[item]) & (gradient > 0)) | ((d >= self.high[item]) & (gradient < 0))
        slope = torch.where(held | ~gradient.isfinite(), 0.0, gradient)
        slope = (slope / slope.abs().amax(1, keepdim=True)).nan_to_num(0.0)  # squares of small ones underflow
        direction: Tensor = (slope / torch.linalg.vector_norm(slope, dim=1, keepdim=True)).nan_to_num(0.0)
        return direction

    def gradient(self, points: Tensor, item: Tensor, noise: Tensor) -> Tensor:
        """The gradient of a smooth P, (b, n)."""

        def smooth(part: Tensor, of: Tensor) -> Tensor:
            far, r = self.far(part, of, noise[:, of]), self.r[of]
            with torch.no_grad():
                place = (self.level[of] * len(noise)).long()[:, None]
                gap = (far.sort(1).values.gather(1, place).squeeze(1) - r).abs()
                width = _SPREAD * far.std(1) + _GAP * gap
            return torch.sigmoid((r[:, None] - far) / width[:, None].clamp(min=torch.finfo(far.dtype).tiny)).mean(1)

        return Term(smooth, self.shape, RowBatches(max(1, self.rows.size // len(noise)))).gradient(points, item)[1]

    def far(self, points: Tensor, item: Tensor, eta: Tensor) -> Tensor:
        """||g(z_d) - g(mu(x))||, (b, S), for ``eta`` (S, b, *noise_shape)."""
        vae = under(self.vae, item)
        q: Posterior = vae.encode(points.reshape(-1, *self.shape))
        if self.sigma == "frozen":
            q = cast(Recombinable, self.clean).rows(item).with_mean_of(cast(Recombinable, q))
        y = vae.decode(q.sample(eta).flatten(0, 1)).mean.reshape(*eta.shape[:2], -1)
        distances: Tensor = torch.linalg.vector_norm(y - self.centre[item], dim=2).T
        return distances.nan_to_num(nan=torch.inf, posinf=torch.inf)

    def point(self, v: Tensor, item: Tensor, radius: Tensor) -> Tensor:
        """The point at distance ``radius`` (b,) along the rays ``v`` (b, n), bent where the box cuts them off."""
        d = furthest(v, self.low[item], self.high[item], radius)
        return (self.x[item] + d).clamp(*self.edges)

    def rays(self, count: int, item: Tensor, check: str) -> Tensor:
        """Rays pulled back from random latents, (count, b, n)."""
        x = self.x[item].reshape(-1, *self.shape)
        keys = [self.keys[i] for i in item.tolist()]
        shape = tuple(self.clean.mean.shape[1:])
        u = noise_set(shape, draws=count, items=keys, seed=self.seed, check=f"margin.{check}", like=x)
        return pull_back(lambda part, of: under(self.vae, item[of]).encode(part).mean, x, u, self.rows).flatten(2)

    def noise(self, check: str, draws: int, item: Tensor) -> Tensor:
        """Noise of the posterior, (draws, b, *noise_shape), keyed by ``check`` and the items."""
        keys = [self.keys[i] for i in item.tolist()]
        shape = self.clean.noise_shape
        return noise_set(shape, draws=draws, items=keys, seed=self.seed, check=f"margin.{check}", like=self.x)

    def share(self, points: Tensor, item: Tensor, n: Tensor, check: str) -> Tensor:
        """The share of ``n`` (b,) draws, a multiple of 1,024, that lie within r at ``points`` (b, n), float64."""
        within = torch.zeros_like(n)
        for block in range(int(n.max()) // BLOCK):
            rows = (n > block * BLOCK).nonzero().squeeze(1)
            of = item[rows]
            eta = self.noise(f"{check}.{block}", BLOCK, of)
            distances = self.distances(points[rows], of, eta, torch.arange(len(of), device=of.device))
            within[rows] += (distances <= self.r[of, None]).sum(1)
        return within.double() / n

    def cross(self, v: Tensor, item: Tensor, end: Tensor, noise: Tensor) -> Tensor:
        """How far along the rays ``v`` (b, n) P falls to the level, inf where it is above it at ``end``, (b,).

        The root of the gap between r and the distances' quantile, by the Illinois method: the quantile is smooth along
        the ray where P on a noise set moves in steps. What is handed out is the end that is broken.
        """
        of_end = self.gap(self.point(v, item, end), item, noise)
        rows = (of_end > 0).nonzero().squeeze(1)
        v, item, b, of_b = v[rows], item[rows], end[rows], of_end[rows]
        if not len(rows):
            return torch.full_like(end, torch.inf)
        a, of_a = torch.zeros_like(b), self.gap(self.x[item], item, noise).clamp(max=-1e-3 * self.r[item])
        side = torch.zeros_like(item)
        for _ in range(_SECANTS):
            secant = (a * of_b - b * of_a) / (of_b - of_a)
            middle = torch.where(secant.isfinite(), secant, (a + b) / 2)
            c = torch.minimum(torch.maximum(middle, a + 0.02 * (b - a)), b - 0.02 * (b - a))
            of_c = self.gap(self.point(v, item, c), item, noise)
            beyond = of_c > 0
            of_a = torch.where(beyond, torch.where(side > 0, of_a / 2, of_a), of_c)
            of_b = torch.where(beyond, of_c, torch.where(side < 0, of_b / 2, of_b))
            a, b, side = torch.where(beyond, a, c), torch.where(beyond, c, b), torch.where(beyond, 1, -1)
        return torch.full_like(end, torch.inf).index_put((rows,), b)
