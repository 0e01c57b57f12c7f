"""Ellipsoids that hold all that a network's values can do on a ball, carried from layer to layer.

Every activation is a line and an error, epsilon = share u at most (:mod:`.sector`). So on ||d|| <= rho all errors obey
Q = |d|^2 + sum lambda (epsilon^2 - share^2 u^2) <= rho^2 for any multipliers lambda >= 0, and where Q is positive
definite, whatever is linear in d and the errors lies in an ellipsoid: f' x <= rho sqrt(f' Q^-1 f). The block S of Q^-1
that belongs to a state follows from the one before. With G = T S T' of what activations are given, U those that bend,
a = sqrt(lambda) share and B = I - a G_UU a, which Q is positive definite with,

    G' = G + G_:U a B^-1 a G_U:    and    S = slope G' slope + 1 / lambda on U.

A neuron is moved by rho sqrt(G_ii) at most, which says what its sector is before it is used. (The S-procedure, layer by
layer; the multipliers are free, and affect how tight it is alone. To eliminate the layers from the last to the first
instead gives the same bound.) Where more rows of the first stage matter (:mod:`.screen`) than inputs, its errors are
kept apart from the inputs, whose block is (I - T_U' a^2 T_U)^-1. Of a first stage with fewer rows than there are inputs
T T', or T (I - N)^-1 T' with the weights of pairs (:mod:`.room`), is computed once.

The largest eigenvalue of an output's block, or its diagonal, is differentiated by hand back to the multipliers: each
has the value at which the bound would not change if its own alone did, given all others.

Rounding. All that shows anything is in float64. Let S~ >= S in the order of positive semidefinite matrices. T S~ T',
and G' and S as functions of G, keep that order, so that it is enough that every matrix computed here is at least what
it would be without rounding. A product of matrices is off by gamma_n |A| |B| in each element, gamma_n = n 2^-53 / (1 -
n 2^-53), and a matrix whose elements are at most r_i r_j is at most N diag(r_i^2) in that order: that much is added to
the diagonal. What a product rounds apart on both sides of the diagonal is averaged, which is off by no more: a layer
reads a block from one side here and from the other there. B is lowered by more than it and its factorisation L L' are
off by, and that B - 0.001 I has a factorisation, too, shows ||L^-1|| <= 32: so a row x of (G_:U a) L'^-1 is off by 32
gamma_U sqrt(U) |x| at most. A factorisation that ends says that the matrix is positive definite. Reaches and norms of
outputs are widened by 1e-9 besides, and so are the shares. What is not covered is that the maps themselves and the
values at x0 are those which torch computes in float64, and squares that underflow, as of weights below 1e-150.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from vaeaudit.certify.activations import ROUNDING
from vaeaudit.certify.item import Item
from vaeaudit.certify.matrices import (
    INVERSE,
    NotShownError,
    dense,
    factor,
    from_right,
    gamma,
    gram_of,
    product,
    raised,
    squares,
)
from vaeaudit.certify.screen import Screen, linear, screened, sector_of
from vaeaudit.certify.stages import WIDEST, Map

_FAINT = 1e-3  # of the largest influence: below it neurons are treated alike
# Norms of 1 - B, layer by layer, at which multipliers begin, and to which they are kept.
_LARGEST = 0.9
_MOST = 0.97  # with the pairs of a box
_BEGIN = (0.7, 0.7, 0.5, 0.4, 0.3)
# Where so many times as many neurons bend as on the ball before, or inputs matter, as where a whole background wakes,
# all is lost, and takes long to tell.
_MORE, _WIDER, _MANY = 4, 2.5, 800
_STEP, _FARTHEST = 0.25, 1.8  # towards the multiplier asked for, in logarithms; the most that it is changed by


class TooFarError(NotShownError):
    """So much more bends than on the ball before that none of that size is worth trying."""


class Ellipsoid:
    """What the outputs of an ``item`` can do within ``rho``: ``block`` (k, k) is theirs of Q^-1.

    Any f of the outputs moves by rho sqrt(f' block f) at most. Raises :class:`NotShownError`.
    """

    def __init__(self, item: Item, rho: float) -> None:
        self.item, self.rho, self.layers = item, rho, list[_Layer]()
        state: _State = _Inputs(item)
        screen: Screen | None = None
        bent = 0
        for place, stage in enumerate(item.stages.chain):
            image = state.image(stage, None if screen is None else screen.rows)
            layer = _Layer(item, place, image, rho, screen, bent)
            self.layers.append(layer)
            bent = layer.bent_in_all
            state, screen = layer.state, layer.screen
        self._last = state.image(item.last, None)
        self.block = self._last.gram(torch.arange(len(item.outputs))).double()
        if not bool(self.block.isfinite().all()):
            raise NotShownError

    def improve(self, gradient: Tensor) -> float:
        """Moves the item's multipliers towards where f(``block``) is least, given its ``gradient`` (k, k).

        Returns by how much f falls to first order.
        """
        self.item.keep()
        if self.layers:
            self.item.bent, self.item.inputs = self.layers[-1].bent_in_all, self.layers[0].inputs
        back = self._last.pull(gradient.to(self.item.dtype))
        for layer in reversed(self.layers):
            back = layer.image.pull(cast(Tensor, layer.pull(back)))  # none but of the first
        return sum(layer.gain for layer in self.layers)


class _Inputs:
    """The input itself, on which Q is the identity."""

    def __init__(self, item: Item) -> None:
        self.item = item

    def image(self, by: Map, rows: Tensor | None) -> "_OfInputs":
        return _OfInputs(by.rows(rows), self.item)


class _OfInputs:
    """T d."""

    def __init__(self, matrix: sparse.csr_matrix, item: Item) -> None:
        self.matrix, self.item = matrix, item

    def gram(self, rows: Tensor) -> Tensor:
        known = self.item.gram
        if known is not None:
            return known[rows[:, None], rows].to(self.item.dtype)
        return gram_of(self.matrix[rows.numpy()]).to(self.item.dtype)

    def pull(self, gradient: Tensor) -> None:
        """The input is given."""


class _Block:
    """A state of which S is known, on those of its values that move at all: ``alive`` of ``size``."""

    def __init__(self, S: Tensor, alive: Tensor) -> None:
        self.S, self.alive = S, alive

    def image(self, by: Map, rows: Tensor | None) -> "_OfBlock":
        return _OfBlock(by.part(rows, self.alive).to(self.S.dtype), self.S)


class _OfBlock:
    """T s where S of s is known."""

    def __init__(self, T: Tensor, S: Tensor) -> None:
        self.T, self.H = T, T @ S
        self.off = 4 * gamma(T.shape[1]) * torch.linalg.matrix_norm(S) * T.square().sum(1)
        self.variance = (self.H * T).sum(1).clamp(min=0) + self.off

    def gram(self, rows: Tensor) -> Tensor:
        G = self.H[rows] @ self.T[rows].T
        self.rows = rows
        return raised((G + G.T) / 2, len(rows) * self.off[rows])

    def pull(self, gradient: Tensor) -> Tensor:
        """The gradient in S, from that in the Gram matrix of the rows asked for."""
        T = self.T[self.rows]
        return T.T @ gradient @ T


class _Apart:
    """slope T d + errors, of a first layer wider than the input, or of inputs whose pairs have weights.

    ``matrix`` is T in those inputs that matter; ``L`` L' = I - N - T_U' a^2 T_U, whose inverse is the block of these;
    ``lam`` are the multipliers of the errors.
    """

    def __init__(self, matrix: sparse.csr_matrix, slope: Tensor, bent: Tensor, lam: Tensor, L: Tensor) -> None:
        self.matrix, self.slope, self.bent, self.lam, self.L = matrix, slope, bent, lam, L
        self.bending = matrix[bent.numpy()]
        self.first = float(squares(matrix).sum().sqrt() * slope.abs().max())

    def image(self, by: Map, rows: Tensor | None) -> "_OfApart":
        return _OfApart(by.rows(rows), self)


class _OfApart:
    def __init__(self, matrix: sparse.csr_matrix, of: _Apart) -> None:
        self.of = of
        self.J = product(matrix @ sparse.diags(of.slope.numpy()), of.matrix).to(of.L.dtype)
        self.X = from_right(of.L, self.J)
        self.errors = matrix[:, of.bent.numpy()]
        self.noise = self.errors @ sparse.diags((1 / of.lam.sqrt()).numpy())
        # |x_i + e_i| |x_j + e_j| <= (1 + t) |x_i| |x_j| and so on, where e is what J and the solution are off by.
        off = INVERSE * gamma(max(matrix.shape[1], len(of.L))) * of.first * squares(matrix).sqrt()
        inner = self.X.square().sum(1)
        solved = INVERSE * math.sqrt(len(of.L)) * gamma(len(of.L))
        self.off = (2 * solved + ROUNDING / len(inner)) * inner + 2 * off.square() * len(inner) / ROUNDING
        self.off += 2 * gamma(len(of.L) + len(of.bent)) * (inner + squares(self.noise))
        self.variance = inner + squares(self.noise) + self.off

    def gram(self, rows: Tensor) -> Tensor:
        self.rows = rows
        X, noise = self.X[rows], self.noise[rows.numpy()]
        G = X @ X.T + dense(noise @ noise.T).to(X.dtype)
        return raised((G + G.T) / 2, len(rows) * self.off[rows])

    def pull(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients in 1 / lambda and in a^2 of those that bend; in float32, as no bound rests on them."""
        L, X = self.of.L.float(), self.X[self.rows].float()
        F = torch.linalg.solve_triangular(L, X, upper=False, left=False).T  # (inputs, rows)
        errors, bending = self.errors[self.rows.numpy()].T.astype(np.float32), self.of.bending.astype(np.float32)
        moved = torch.from_numpy(bending @ F.numpy())  # (bent, rows)
        in_noise = torch.from_numpy(np.asarray(errors.multiply(errors @ gradient.float().numpy()).sum(1)).ravel())
        return in_noise.double(), (moved @ gradient.float() * moved).sum(1).double()


_State = _Inputs | _Block | _Apart
_Image = _OfInputs | _OfBlock | _OfApart


class _Layer:
    """One stage of an item on the ball of radius ``rho``.

    ``image`` is what its rows are given, and ``state`` what they give.
    """

    def __init__(self, item: Item, place: int, image: _Image, rho: float, screen: Screen | None, before: int) -> None:
        stage = item.stages.chain[place]
        self.item, self.place, self.image, self.passed = item, place, image, stage.passed
        self.rows = torch.arange(stage.matrix.shape[0]) if screen is None else screen.rows
        self.told: Tensor | None = None
        self.gain = 0.0  # first-order fall of the bound where its multipliers were last moved
        with torch.enable_grad():
            sides = self._sides(rho, screen)
            self.sector = sector_of(item, place, sides)
        self.reach = torch.maximum(*sides).detach()
        slope, share = self.sector
        slope, share = slope.detach(), share.detach()
        if not bool((slope.isfinite() & share.isfinite()).all()):
            raise NotShownError
        first = isinstance(image, _OfInputs)
        self.screen = screened(item, rho, slope, share, self.reach) if first else None
        kept = torch.ones(stage.passed, dtype=slope.dtype)
        slope, share = torch.cat([kept, slope]), torch.cat([0 * kept, share])
        if self.screen is not None:
            slope, share = (torch.where(self.screen.matters, part, 0.0) for part in (slope, share))
        bent = (share > 0).nonzero()[:, 0]
        self.bent_in_all = before + len(bent)
        if item.bent and self.bent_in_all > max(_MANY, _MORE * item.bent):
            raise TooFarError
        # What lambda is for a single neuron that matters as much as to first order, at the end of its reach.
        influence = item.influence[place][bent - stage.passed]
        largest = float(influence.amax()) if len(bent) else 0.0
        influence = influence.clamp(min=_FAINT * largest) if largest > 0 else torch.ones_like(influence)
        # Not at the end of what a screen shows to be far less than the image does: B would leave all others little.
        far, at = self.reach, bent - stage.passed
        if self.told is not None:
            far, at = self.told.detach(), torch.searchsorted(self.rows, bent) - stage.passed
        self.usual = influence / (share[bent] * far[at])
        self.bent, self.share = bent, share[bent]
        self.alive = ((slope != 0) | (share > 0)).nonzero()[:, 0]
        if isinstance(image, _OfInputs):
            inputs = stage.used((slope != 0) | (share > 0)).nonzero()[:, 0]
            self.inputs = len(inputs)
            if item.gram is None and (item.pairs is not None or len(self.alive) > len(inputs)):
                self.state: _State = self._apart(image.matrix[:, inputs.numpy()], inputs, slope)
                return
        if len(self.alive) > WIDEST:
            raise NotShownError
        self.slope, self.U = slope[self.alive].to(item.dtype), torch.searchsorted(self.alive, bent)
        G = image.gram(torch.searchsorted(self.rows, self.alive))
        self.variance = G.diagonal().clone()
        if len(bent):
            G_UU = G[self.U][:, self.U]
            self.lam, norm = self._multipliers(lambda a: a[:, None].to(G) * G_UU * a.to(G))
            a, L = (self.lam.sqrt() * self.share).to(G.dtype), factor(norm, len(bent))
            X = from_right(L, G[:, self.U] * a)
            solved = INVERSE * math.sqrt(len(bent)) * gamma(len(bent) + 2) + gamma(len(bent))
            G = raised(G + X @ X.T, 2 * len(G) * (solved * X.square().sum(1) + gamma(2) * G.diagonal()))
        self.G = G
        S = self.slope[:, None] * G * self.slope
        if len(bent):
            S[self.U, self.U] += (1 / self.lam).to(S.dtype)
        self.state = _Block(raised(S, len(S) * gamma(4) * S.diagonal()), self.alive)

    def _sides(self, rho: float, screen: Screen | None) -> tuple[Tensor, Tensor]:
        """How far activations' inputs can move below and above.

        ``told`` is what the image says of those that it has; they are differentiated by that.
        """
        if isinstance(self.image, _OfInputs):
            first = self.item.stages.first
            return linear(self.item, self.place, first, rho, torch.zeros_like(first.sizes))
        self.told = (rho * (1 + ROUNDING) * self.image.variance[self.passed :].double().sqrt()).requires_grad_()
        if screen is None:
            return self.told, self.told
        at = self.rows[self.passed :] - self.passed
        below, above = (side.index_put((at,), torch.minimum(side[at], self.told)) for side in screen.sides)
        return below, above

    def _apart(self, matrix: sparse.csr_matrix, inputs: Tensor, slope: Tensor) -> _Apart:
        if len(inputs) > WIDEST or (self.item.inputs and len(inputs) > max(_MANY, _WIDER * self.item.inputs)):
            raise TooFarError
        bending = matrix[self.bent.numpy()]
        dtype = self.item.dtype
        self.lam, norm = self._multipliers(lambda a: _gram(sparse.diags(a.numpy()) @ bending).to(dtype))
        if self.item.pairs is not None:
            norm = self._paired(norm, self.item.pairs_of(inputs).to(dtype))
        return _Apart(matrix, slope, self.bent, self.lam, factor(norm, len(self.bent) + 1))

    def _multipliers(self, norm: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """lambda of the neurons that bend, and I - B = ``norm``(a), kept from growing to what shows nothing."""
        known = self.item.multipliers[self.place]
        if known is None:
            known = torch.full((len(self.item.influence[self.place]),), torch.nan, dtype=torch.float64)
            self.item.multipliers[self.place] = known
        here = known[self.bent - self.passed]
        new, begin = here.isnan(), 1.0
        if bool(new.all()):
            here, begin = torch.ones_like(here), 0.0
        here = torch.where(new, here[~here.isnan()].log().mean().exp(), here)
        found = norm((self.usual * here).sqrt() * self.share)
        largest = _norm(found)
        if begin == 0.0 or largest > _LARGEST:
            scale = (_LARGEST if begin else _BEGIN[min(self.place, len(_BEGIN) - 1)]) / largest
            here, found = here * scale, found * scale
        known[self.bent - self.passed] = here
        return self.usual * here, found

    @staticmethod
    def _paired(norm: Tensor, pairs: Tensor) -> Tensor:
        """I - B with the pairs of a box, as far as the errors leave them room."""
        share = 1.0
        while share > _FAINT and _norm(norm + share * pairs) > _MOST:
            share *= 0.8
        return norm + share * pairs if share > _FAINT else norm

    def pull(self, gradient: Any) -> Tensor | None:
        """Moves this stage's multipliers, given the gradient in its state; returns that in what its image's Gram is."""
        if isinstance(self.state, _Apart):
            self._move(*gradient)
            return None
        through: Tensor = self.slope[:, None] * gradient * self.slope
        in_slope, in_share = torch.zeros((2, self.passed + len(self.reach)), dtype=torch.float64)
        in_slope[self.alive] = (2 * (gradient * self.G) @ self.slope).double()
        if len(self.bent):
            toward = self.G[self.U]
            Z = toward @ through
            in_a = (Z * toward).sum(1).double()
            self._move(gradient[self.U, self.U].double(), in_a)
            in_share[self.bent] = 2 * self.share * self.lam * in_a
            m = (self.lam * self.share.square())[:, None].to(Z.dtype)
            corner = m * (Z @ toward.T) * m.T
            through[self.U] += m * Z
            through[:, self.U] += (m * Z).T
            through[self.U[:, None], self.U] += corner
        if self.told is None:
            return through
        told = self.told.detach()
        slope, share = self.sector  # of a smooth activation the slope is fixed
        with torch.enable_grad():
            whole = (slope * in_slope[self.passed :]).sum() + (share * in_share[self.passed :]).sum()
        (in_told,) = torch.autograd.grad(whole, self.told)
        acting = self.alive >= self.passed
        at = torch.searchsorted(self.rows, self.alive[acting]) - self.passed
        in_variance = in_told[at] * told[at] / (2 * self.variance[acting].double().clamp(min=1e-300))
        through.diagonal()[acting] += in_variance.to(through.dtype)
        return through

    def _move(self, in_noise: Tensor, in_a: Tensor) -> None:
        """Moves multipliers to where a change of lambda would cost by a^2 what it saves by 1 / lambda.

        The derivatives of the bound in these are as good as always positive; where one is not, it counts on the other
        side.
        """
        known = self.item.multipliers[self.place]
        assert known is not None
        saved, cost = in_noise / self.lam, in_a * self.share.square() * self.lam
        up, down = (a.clamp(min=0) + (-b).clamp(min=0) for a, b in ((saved, cost), (cost, saved)))
        change = (up / down).pow(self.item.pace * _STEP / 2).clamp(1 / _FARTHEST, _FARTHEST)
        here = known[self.bent - self.passed]
        known[self.bent - self.passed] = torch.where(change > 0, here * change, here)  # NaN: nothing depends on it
        self.gain = float(((saved - cost) * change.log()).nansum())


def _gram(matrix: sparse.csr_matrix) -> Tensor:
    return product(matrix.T.tocsr(), matrix)


def _norm(matrix: Tensor) -> float:
    """About the norm of a symmetric matrix: a start needs no more."""
    sizes = torch.linalg.vector_norm(matrix, dim=1)
    # Not of the longest row alone, which says nothing of parts that it is apart from.
    v = matrix[sizes.argmax()] + sizes * torch.arange(len(sizes), dtype=matrix.dtype).cos()
    least = torch.finfo(matrix.dtype).tiny
    for _ in range(15):
        v = matrix @ (v / torch.linalg.vector_norm(v).clamp(min=least))
    return max(float(torch.linalg.vector_norm(v)), least)
