"""The room that a box leaves around an input: x0 + d in [lo, hi], which is to say -down <= d <= up, both >= 0.

Two things follow for all d of the ball ||d|| <= rho that stay in the box, each sound by itself.

Farthest. Of a d the most is, by weak duality for any t > 0, with c_i = up_i where a_i > 0 and down_i elsewhere,

    max a d <= t rho^2 + sum over i of max over 0 <= e <= c_i of (|a_i| e - t e^2),

whose terms are a_i^2 / 4t where |a_i| <= 2 t c_i, and |a_i| c_i - t c_i^2 elsewhere. The least over t is the maximum
itself (water is filled in); a few fixed-point steps come near it, and whatever t they end at proves the bound. At a
background of 0, in [0, 1], only the part of a that points inwards counts: ||a_+|| rho in place of ||a|| rho.

Pairs. Where x0 lies at a bound d has one sign, s_i d_i >= 0, and so s_i s_j d_i d_j >= 0 for any two of these. For any
N with N_ij s_i s_j >= 0, symmetric, 0 where i or j lies at no bound, d' N d >= 0, and the ball's |d|^2 <= rho^2 becomes

    |d|^2 - d' N d <= rho^2,

in which ellipsoids (:mod:`.ellipsoids`) start from I - N in place of I, whenever what they require stays positive
definite. That reaches the orthant's maximum for a single function: with a = p - q, p, q >= 0 and N = t (p q' + q p'),
a (I - N)^-1 a is the larger of |p|^2 and |q|^2 at the best t. N is chosen once, as if the network were linear, by
projected gradient, and less of it is used (:mod:`.item`); it affects how tight the bound is alone.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from vaeaudit.certify.activations import ROUNDING
from vaeaudit.certify.matrices import squares

Box = tuple[Tensor, Tensor]  # least and greatest values of an input, (1, inputs) each, infinite where there is none

_STEPS = 3  # towards the best t
_ROUNDS, _BEGIN = 6, 0.3  # of projected gradient; about the norm of the first N
_NEAR = 40.0  # how sharply the largest eigenvalue stands out among those that a gradient is of


class Functions:
    """Functions a d of an input, the rows a of a ``matrix`` (functions, inputs), and their norms."""

    def __init__(self, matrix: sparse.csr_matrix) -> None:
        self.matrix, self.sizes = matrix, squares(matrix).sqrt()


@dataclass(frozen=True, eq=False)
class Room:
    """How far each input may move ``down`` and ``up``, (n,) float64, both >= 0.

    ``inward`` (n,) is 1 at the lower bound, -1 at the upper one, and 0 between.
    """

    down: Tensor
    up: Tensor
    inward: Tensor

    @staticmethod
    def of(x: Tensor, box: "Box") -> "Room":
        """That of ``x`` (1, *input_shape); none where it already lies beyond the box."""
        value, low, high = (part.double().flatten().cpu() for part in (x, *box))
        down, up = (value - low).clamp(min=0), (high - value).clamp(min=0)
        return Room(down, up, torch.where(down == 0, 1.0, torch.where(up == 0, -1.0, 0.0)).double())

    def of_inputs(self, chosen: Tensor) -> "Room":
        """That of some inputs alone."""
        return Room(self.down[chosen], self.up[chosen], self.inward[chosen])

    @np.errstate(over="ignore", invalid="ignore")
    def farthest(self, matrix: sparse.csr_matrix, rho: float) -> tuple[Tensor, Tensor]:
        """How far each of the functions ``matrix`` d can move below 0 and above it within ``rho``, rounded up."""
        down, up = self.down.numpy(), self.up.numpy()
        # What has as much room as the ball is never filled in: of that the squares alone are asked for.
        near = (((down > 0) & (down < rho)) | ((up > 0) & (up < rho)))[matrix.indices].nonzero()[0]
        of = np.searchsorted(matrix.indptr, near, side="right") - 1
        at, a = matrix.indices[near], matrix.data[near]
        rising = np.square(np.maximum(matrix.data, 0))
        squared = [
            sparse.csr_matrix((part, matrix.indices, matrix.indptr), matrix.shape)
            for part in (rising, np.square(matrix.data) - rising)
        ]
        sides = []
        for caps in ((down, up), (up, down)):  # of elements above 0, and below
            far = sum(part @ (cap >= rho).astype(float) for part, cap in zip(squared, caps, strict=True))
            cap = np.where(a > 0, caps[0][at], caps[1][at])
            held = (cap > 0) & (cap < rho)
            most = _most(of[held], np.abs(a[held]), cap[held], far, rho)
            sides.append(torch.from_numpy(most) * (1 + ROUNDING))
        return sides[0], sides[1]

    def pairs(self, jacobian: Tensor, rest: Tensor) -> Tensor | None:
        """N (n, n) by which ||``jacobian`` d|| is bounded best, about; None where too few inputs lie at a bound.

        ``rest`` (k, others) has the columns of all inputs that have no pairs, as they lie at no bound.
        """
        if int((self.inward != 0).sum()) < 2:
            return None
        # In float32, as no bound rests on more than the signs of N, which do not depend on how large the Jacobian is.
        size = torch.linalg.matrix_norm(torch.cat([jacobian, rest], dim=1))
        size = size.clamp(min=torch.finfo(jacobian.dtype).tiny)
        # In units in which every input moves upwards, so that weights are what is >= 0.
        upward, others = (jacobian * self.inward / size).float(), (rest / size).float()
        apart = others @ others.T
        N, step = upward.new_zeros((len(self.inward), len(self.inward))), 0.0
        bound, gradient = _bound(upward, N, apart)
        for _ in range(_ROUNDS):
            if not step:
                toward = (-gradient).clamp_(min=0).fill_diagonal_(0)
                ones = toward.sum(0)
                step = _BEGIN * float(ones.norm() / (toward @ ones).norm().clamp(min=torch.finfo(ones.dtype).tiny))
            tried = torch.sub(N, gradient, alpha=step).clamp_(min=0).fill_diagonal_(0)
            lower, there = _bound(upward, tried, apart)
            if lower < bound:
                N, bound, gradient, step = tried, lower, there, 1.5 * step
            else:
                step /= 2
        signed: Tensor = N.double() * self.inward[:, None] * self.inward
        return (signed + signed.T) / 2  # as products of single precision are not


def _bound(jacobian: Tensor, N: Tensor, apart: Tensor) -> tuple[float, Tensor]:
    """The largest eigenvalue of J (I - N)^-1 J' + ``apart``, infinite where there is none, and a gradient in N.

    The gradient is of all eigenvalues near the largest, since what lowers one alone raises the next.
    """
    B = -N
    B.diagonal().add_(1)
    L, failed = torch.linalg.cholesky_ex(B)
    if bool(failed):
        return math.inf, N
    X = torch.linalg.solve_triangular(L, jacobian.T, upper=False)
    values, vectors = torch.linalg.eigh(X.T @ X + apart)
    weights = torch.softmax(_NEAR * values / values[-1].clamp(min=torch.finfo(values.dtype).tiny), 0)
    F = torch.linalg.solve_triangular(L.T, X, upper=True) @ vectors
    return float(values[-1]), (F * weights) @ F.T


def _most(of: np.ndarray, a: np.ndarray, cap: np.ndarray, far: np.ndarray, rho: float) -> np.ndarray:
    """The maximum of sum a_i e_i over ||e|| <= ``rho``, 0 <= e_i <= cap_i, ``of`` each function; a >= 0, cap > 0.

    ``far`` (functions,) are the sums of those a_i^2 whose cap is rho at least.
    """

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(of, values, len(far))

    a2, cap2, rho2 = np.square(a), np.square(cap), np.square(rho)  # infinite where Python's own power raises
    best = np.where(far == 0, total(a * cap), np.inf)  # t -> 0; where squares overflow far is NaN, and nothing known
    t = np.sqrt(far + total(a2)) / (2 * rho)
    for _ in range(_STEPS):
        here = t[of]
        filled = a > 2 * here * cap
        with np.errstate(divide="ignore", invalid="ignore"):
            bound = t * rho2 + far / (4 * t) + total(np.where(filled, a * cap - here * cap2, a2 / (4 * here)))
            best = np.where(t > 0, np.fmin(best, bound), best)
            left = rho2 - total(np.where(filled, cap2, 0.0))
            t = np.where(left > 0, np.sqrt((far + total(np.where(filled, 0.0, a2))) / left) / 2, t)
    return best
