"""Directions in which the encoder is most sensitive, and random search: starts and yardsticks of attacks.

J is the Jacobian of the encoder's mean, (latent, n). Only products are taken, so that it never needs to fit into
memory: J'u by a backward pass, and J v as the derivative of <J'u, v> by u. Items are kept apart.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vaeaudit.attacks.ball import furthest, settle
from vaeaudit.attacks.term import DataTerm, Term
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.box import flat_bounds
from vaeaudit.model.ranges import Range

# encode_mean(x, item) -> z: (b, *shape) and (b,) integers -> (b, *latent), differentiable, rows apart
EncodeMean = Callable[[Tensor, Tensor], Tensor]

_ROUNDS = 10


def pull_back(encode_mean: EncodeMean, x: Tensor, noise: Tensor, rows: RowBatches) -> Tensor:
    """J'u, (R, I, *shape), at each item of ``x`` (I, *shape) for ``noise`` u (R, I, *latent).

    One row of the encoder each. A random input moves the mean mostly along the direction in which the encoder is most
    sensitive; random latents pulled back reach every direction that it can tell apart, and so are better starts.
    """

    def back(points: Tensor, u: Tensor, item: Tensor) -> tuple[Tensor]:
        return (_back(encode_mean, points, u, item, differentiable=False).detach(),)

    points = x.expand(len(noise), *x.shape).flatten(0, 1)
    item = torch.arange(len(x), device=x.device).repeat(len(noise))
    return rows.map(back, points, noise.flatten(0, 1), item)[0].reshape(-1, *x.shape)


def pullback_directions(encode_mean: EncodeMean, x: Tensor, noise: Tensor, rows: RowBatches) -> tuple[Tensor, Tensor]:
    """Top right-singular vectors of J (R, I, *shape), of unit norm, and their singular values (R, I), falling.

    The eigenvectors of the pull-back metric J'J, Khan & Storkey 2022, "Adversarial robustness of VAEs through the lens
    of local geometry", section 3. By subspace iteration from ``noise`` (R, I, *latent), with ten products of J and as
    many of J' for each direction: exact where R is the number of latents, and from below for fewer. The encoder must
    be twice differentiable, as networks of ordinary layers are.
    """
    count, items = noise.shape[:2]
    basis = _orthonormal(pull_back(encode_mean, x, noise, rows).flatten(2))  # (I, R, n)
    points = x.expand(count, *x.shape).flatten(0, 1)
    item = torch.arange(items, device=x.device).repeat(count)

    def push(part: Tensor, v: Tensor, u: Tensor, of: Tensor) -> tuple[Tensor]:
        with torch.enable_grad():
            leaf = u.detach().requires_grad_(True)  # J'u is linear in u, so any u will do
            pulled = _back(encode_mean, part, leaf, of, differentiable=True)
            if not pulled.requires_grad:
                return (torch.zeros_like(u),)
            (along,) = torch.autograd.grad(pulled, leaf, v.reshape(pulled.shape), materialize_grads=True)
            return (along,)

    def pushed() -> Tensor:
        """J v of the basis, (R, I, *latent)."""
        return rows.map(push, points, basis.transpose(0, 1).flatten(0, 1), noise.flatten(0, 1), item)[0].reshape(
            noise.shape
        )

    for _ in range(_ROUNDS - 1):
        basis = _orthonormal(pull_back(encode_mean, x, pushed(), rows).flatten(2))
    # Rayleigh-Ritz: the singular vectors of J within the subspace.
    _, values, mix = torch.linalg.svd(pushed().flatten(2).permute(1, 2, 0), full_matrices=False)  # J V, (I, L, R)
    vectors = (mix @ basis).transpose(0, 1)
    return vectors.reshape(-1, items, *x.shape[1:]), values.T


def random_search(
    data_term: DataTerm,
    x: Tensor,
    box: Range | None,
    norm: str,
    radius: Tensor,
    noise: Tensor,
    rows: RowBatches,
) -> tuple[Tensor, Tensor]:
    """Least data term of random points at the given distances, (I, K), and their d, (I, K, *shape).

    ``radius`` (I, K) holds the distances of each item of ``x`` (I, *shape), ``noise`` (R, I, *shape) the directions, of
    which both signs are tried. A direction is lengthened until d has the wanted norm; what the box cuts off is left to
    the other elements, until all are at its edge. In L-infinity these are corners of the cap, cut at the box. Box and
    distance are kept as :func:`vaeaudit.attacks.ball.settle` keeps them.
    """
    items, problems = radius.shape
    low, high = flat_bounds(box, tuple(x.shape[1:]), x)
    item = torch.arange(items, device=x.device).repeat_interleave(problems)
    flat = x.flatten(1)[item]
    term = Term(data_term, tuple(x.shape[1:]), rows)
    best, best_d = torch.full_like(flat[:, 0], torch.inf), torch.zeros_like(flat)
    for direction in torch.cat([noise, -noise]).flatten(2):
        d = furthest(direction[item], low - flat, high - flat, radius.flatten().to(x), norm)
        d = settle(flat, d, (low, high), radius.flatten(), norm)
        value = term.value(flat + d, item)
        better = value < best
        best, best_d = torch.where(better, value, best), torch.where(better[:, None], d, best_d)
    return best.reshape(items, problems), best_d.reshape(items, problems, *x.shape[1:])


@torch.enable_grad()  # a notebook may stand under no_grad
def _back(encode_mean: EncodeMean, x: Tensor, u: Tensor, item: Tensor, *, differentiable: bool) -> Tensor:
    """J'u of each row; zero where the encoder is cut off from its input."""
    leaf = x.detach().requires_grad_(True)
    with sdpa_kernel(SDPBackend.MATH) if differentiable else nullcontext():  # which has second derivatives
        mean = encode_mean(leaf, item)
    if not mean.requires_grad:
        return torch.zeros_like(x)
    slope: Tensor = torch.autograd.grad(
        mean, leaf, u.reshape(mean.shape), create_graph=differentiable, materialize_grads=True
    )[0]
    return slope


def _orthonormal(vectors: Tensor) -> Tensor:
    """An orthonormal basis of each item's vectors, (R, I, n) -> (I, R, n)."""
    basis: Tensor = torch.linalg.qr(vectors.permute(1, 2, 0)).Q.transpose(1, 2)
    return basis
