"""The margin of a deterministic encoder, where r-robustness degenerates: P(||Delta|| <= r) is 0 or 1.

What is left of R(x) is R_det(x) = inf{||d||: ||f(x + d) - f(x)|| > r} of the one map f = g o mu. It is bounded by what
bounds R elsewhere, with f in the place of the encoder and the unit of its values in the place of sigma: whatever stays
within one of r units stays within r. No probability is left, so every bound is sure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeaudit.attacks.margin import empirical_margin
from vaeaudit.certify.graph import Graph, trace
from vaeaudit.checks.margin.certified import Certificates, Certified
from vaeaudit.checks.margin.estimates import Bars, FirstOrder, JacobianNorms, jacobian_norms
from vaeaudit.checks.margin.groups import Asked, Bounds, Group
from vaeaudit.checks.margin.radius import Kept, MinRadius
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.conditions import model_of, one_function, under
from vaeaudit.model.vae import VAE, DiagonalGaussian, GaussianLikelihood
from vaeaudit.progress import GoOn, Watch

_MOST_NEURONS = 4096  # of both networks, and outputs, each of which linear bounds follow back for every item
_ONE_UNIT = 0.5 * math.erfc(-1 / math.sqrt(2))  # Phi(1): theorem (i) with m = 1/2 then allows a move of one unit


@dataclass(frozen=True, eq=False)
class _Point(DiagonalGaussian):
    """f(x), flat, which does not vary; its standard deviation is but the unit in which moves are measured."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (0,)

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean.expand(*noise.shape[:-1], -1)


class _Composed:
    """A model whose encoder is f = g o mu and whose decoder is the identity, so that draws cost no decoding."""

    def __init__(self, vae: VAE) -> None:
        self._vae = vae
        self.input_shape, self.range, self.prior = tuple(vae.input_shape), vae.range, vae.prior

    def encode(self, x: Tensor) -> _Point:
        y = self._vae.decode(self._vae.encode(x).mean).mean.flatten(1)
        return _Point(y, torch.zeros_like(y))

    def of_items(self, items: Tensor | slice) -> "_Composed":
        return _Composed(under(self._vae, items))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(z, z.new_zeros(()))


class Deterministic:
    """What all groups of items ``x`` (I, *input_shape), whose numbers are ``items``, share.

    The norms are those of the Jacobian of f, in output units over input units; nothing is there to whiten.
    """

    def __init__(self, vae: VAE, x: Tensor, rows: RowBatches, items: Sequence[int], asked: Asked) -> None:
        self._vae, self._x, self._rows, self._items, self._asked = vae, x, rows, items, asked
        self._composed = _Composed(vae)
        self._certificates: dict[float, Certificates] = {}

    def of_items(self, part: slice, watch: Watch) -> Group:
        """What is known of these items; where it is stopped, without what was not begun."""
        asked, composed, x, items = self._asked, self._composed.of_items(part), self._x[part], self._items[part]
        norms = jacobian_norms(composed, x, self._rows, items=items, seed=asked.seed, level=asked.level)
        one, none = torch.ones_like(norms.spectral), torch.zeros_like(norms.spectral)
        at = []
        for radius in asked.radii:
            certified = self._certified(x, radius, watch) if "certified" in asked.parts else None
            empirical = None
            if "empirical" in asked.parts and not watch.stopped:
                # A smooth P rises where the distance does, so the search of R is one of the largest distance here. All
                # draws are the same, and a test of them is sure.
                empirical = empirical_margin(
                    composed,
                    x,
                    radius,
                    sigma="full",
                    box=asked.box,
                    seed=asked.seed,
                    most=asked.most,
                    items=items,
                    rows=self._rows,
                    go_on=watch,
                )
            at.append(Bounds(Kept(none.long(), one, one, 0, 0.0), certified, empirical))
        return Group(norms, MinRadius(none, none, None, 0, asked.m, 0.0), tuple(at))

    def _certified(self, x: Tensor, r: float, go_on: GoOn) -> Certified:
        """Lower bounds: r / Lip(f), and the largest ball on which linear bounds keep f within r. Both are sure.

        There is no pathwise one, as a single path is left, and its bound is the first.
        """
        if r not in self._certificates:
            self._certificates[r] = Certificates(
                lambda: self._graph(r),
                self._x,
                "frozen",
                self._asked.effort,
                box=self._asked.box,
                most=_MOST_NEURONS,
            )
        of_radius = self._certificates[r]
        kept = torch.full((len(x),), _ONE_UNIT, dtype=torch.float64, device=x.device)
        return of_radius.of(x, of_radius.lipschitz(x), kept, 0.5, go_on)

    def _graph(self, r: float) -> Graph:
        """x -> (f(x), log r): the encoder whose standard deviation, the unit, is r."""
        composed = _Composed(one_function(self._vae))

        def heads(x: Tensor) -> tuple[Tensor, Tensor]:
            y = composed.encode(x).mean
            return y, torch.full_like(y, math.log(r))

        shape = self._composed.input_shape
        return trace(
            heads, shape, self._x, "the map from an input to its reconstruction", of=model_of(self._vae), bounded=1
        )


def estimates(norms: JacobianNorms, r: float) -> FirstOrder:
    """r / ||J||_F and r / ||J||_2; the latter is the whitened one too. Bounded by neither bound."""
    bars = None
    if norms.bars is not None:
        frobenius, spectral = (r / ends.flip(0) for ends in (norms.bars.frobenius, norms.bars.spectral))
        bars = Bars(frobenius, spectral, spectral)
    spectral, ones = r / norms.spectral, torch.ones_like(norms.spectral)
    return FirstOrder(r / norms.frobenius, spectral, spectral, ones, r * ones, norms, bars, 0.5)
