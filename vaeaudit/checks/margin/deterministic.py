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

from vaeaudit.attacks.margin import Empirical, empirical_margin
from vaeaudit.certify.graph import Graph, trace
from vaeaudit.checks.margin.certified import Certificates, Certified, Effort
from vaeaudit.checks.margin.estimates import Bars, FirstOrder, jacobian_norms
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.conditions import model_of, one_function, under
from vaeaudit.model.ranges import Range
from vaeaudit.model.vae import VAE, DiagonalGaussian, GaussianLikelihood
from vaeaudit.progress import GoOn

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
    """Estimates and bounds of R_det of items ``x`` (I, *input_shape), whose numbers are ``items``.

    ``norms`` are those of the Jacobian of f, in output units over input units; nothing is there to whiten.
    """

    def __init__(self, vae: VAE, x: Tensor, rows: RowBatches, *, items: Sequence[int], seed: int, level: float) -> None:
        self._vae, self._x, self._rows, self._items, self._seed = vae, x, rows, items, seed
        self._composed = _Composed(vae)
        self.norms = jacobian_norms(self._composed, x, rows, items=items, seed=seed, level=level)

    def estimates(self, r: float) -> FirstOrder:
        """r / ||J||_F and r / ||J||_2; the latter is the whitened one too. Bounded by neither bound."""
        norms, bars = self.norms, None
        if norms.bars is not None:
            frobenius, spectral = (r / ends.flip(0) for ends in (norms.bars.frobenius, norms.bars.spectral))
            bars = Bars(frobenius, spectral, spectral)
        spectral, ones = r / norms.spectral, torch.ones_like(norms.spectral)
        return FirstOrder(r / norms.frobenius, spectral, spectral, ones, r * ones, norms, bars, 0.5)

    def certified(self, r: float, effort: Effort, box: Range | None, go_on: GoOn) -> Certified:
        """Lower bounds: r / Lip(f), and the largest ball on which linear bounds keep f within r. Both are sure.

        There is no pathwise one, as a single path is left, and its bound is the first.
        """
        certificates = Certificates(lambda: self._graph(r), self._x, "frozen", effort, box=box, most=_MOST_NEURONS)
        kept = torch.full((len(self._x),), _ONE_UNIT, dtype=torch.float64, device=self._x.device)
        return certificates.of(kept, 0.5, go_on)

    def empirical(self, r: float, box: Range | None, go_on: GoOn) -> Empirical:
        """Upper bounds: ||d|| of the shortest distortion found that moves f by more than r.

        A smooth P rises where the distance does, so the search of R is one of the largest distance here. All draws
        are the same, and a test of them is sure.
        """
        return empirical_margin(
            self._composed,
            self._x,
            r,
            sigma="full",
            box=box,
            seed=self._seed,
            items=self._items,
            rows=self._rows,
            go_on=go_on,
        )

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
