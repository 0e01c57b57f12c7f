"""The margins of a posterior that varies, a group of items at a time."""

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from vaeaudit.attacks.margin import empirical_margin
from vaeaudit.certify.graph import trace_encoder
from vaeaudit.certify.theorem import pathwise_margin
from vaeaudit.checks.margin.certified import Certificates
from vaeaudit.checks.margin.estimates import jacobian_norms
from vaeaudit.checks.margin.groups import Asked, Bounds, Group
from vaeaudit.checks.margin.radius import draw_distances, kept, min_radius
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.conditions import under
from vaeaudit.model.vae import VAE
from vaeaudit.progress import Watch, within

# Shares of the time, as measured, when the slopes are known, when all is drawn, and of a radius its certificates.
_SLOPES, _DREW = 0.02, 0.08
_CERTIFIED = {"fast": 0.1, "thorough": 0.2, "boxed": 0.5}  # of what is left
_DRAWN = "margin"  # what the draws are keyed by


class Varying:
    """What all groups of items ``x`` (I, *input_shape), whose numbers are ``items``, share."""

    def __init__(self, vae: VAE, x: Tensor, rows: RowBatches, items: Sequence[int], asked: Asked, alpha: float) -> None:
        self._vae, self._x, self._rows, self._items, self._asked, self._alpha = vae, x, rows, items, asked, alpha

    @cached_property
    def _certificates(self) -> Certificates:
        asked = self._asked
        trace = lambda: trace_encoder(self._vae, self._x, asked.sigma)  # noqa: E731 - it is asked for later
        return Certificates(trace, self._x, asked.sigma, asked.effort, box=asked.box)

    def of_items(self, part: slice, watch: Watch) -> Group:
        """What is known of these items; where it is stopped, of the first of them, without what was not begun."""
        asked, rows, seed = self._asked, self._rows, self._asked.seed
        vae, x, items = under(self._vae, part), self._x[part], self._items[part]
        slopes = within(watch, 0.0, _SLOPES)
        norms = jacobian_norms(vae, x, rows, items=items, seed=seed, level=asked.level, go_on=slopes)
        n = len(norms.spectral)
        vae, x, items = under(vae, slice(n)), x[:n], items[:n]
        drawing = within(watch, _SLOPES, _DREW)
        distances = draw_distances(vae, x, rows, draws=asked.draws, items=items, seed=seed, check=_DRAWN, go_on=drawing)
        n = distances.shape[1]
        vae, x, items, norms = under(vae, slice(n)), x[:n], items[:n], norms.first(n)
        growth = lipschitz = None
        if "certified" in asked.parts:
            lipschitz = self._certificates.lipschitz(x)
            growth = self._certificates.growth(self._vae, draws=asked.draws, items=items, seed=seed, check=_DRAWN)
        at, radii = [], len(asked.radii)
        for number, radius in enumerate(asked.radii):
            here = within(watch, *(_DREW + (1 - _DREW) * done / radii for done in (number, number + 1)))
            split = _CERTIFIED[asked.effort] if "empirical" in asked.parts else 1.0
            held = kept(distances, radius, self._alpha)
            certified = empirical = None
            if "certified" in asked.parts:
                paths = None if growth is None else pathwise_margin(distances, growth, radius, asked.m, self._alpha)
                of_radius = within(here, 0.0, split)
                certified = self._certificates.of(x, lipschitz, held.p_low, asked.m, of_radius, paths)
            if "empirical" in asked.parts and not watch.stopped:
                empirical = empirical_margin(
                    vae,
                    x,
                    radius,
                    m=asked.m,
                    sigma=asked.sigma,
                    box=asked.box,
                    alpha=self._alpha,
                    seed=seed,
                    most=asked.most,
                    items=items,
                    rows=rows,
                    go_on=within(here, split if certified else 0.0, 1.0),
                )
            at.append(Bounds(held, certified, empirical))
        return Group(norms, min_radius(distances, asked.m, self._alpha), tuple(at))
