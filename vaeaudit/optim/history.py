"""The history of L-BFGS: an inverse Hessian from the last few differences of points and of gradients."""

from functools import cache

import torch
from torch import Tensor

from vaeaudit.optim.far import far


def remember(
    history: Tensor, newest: Tensor, pairs: Tensor, s: Tensor, y: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Write differences of points and of gradients, (a, n), over the oldest of the rows ``chosen`` (a,), in place.

    Both are divided by the root of ||s|| ||y||, on which the inverse Hessian does not depend. A pair whose curvature
    s.y is not positive beyond rounding, in whatever units, is left out. ``history`` is (a, 2, m, n); returned are the
    place of the newest pair in it and how many places hold one, (a,) each.
    """
    of_s, of_y = torch.linalg.vector_norm(s, dim=1), torch.linalg.vector_norm(y, dim=1)
    useful = chosen & (torch.linalg.vecdot(s, y) > torch.finfo(s.dtype).eps * of_s * of_y)
    memory, every = history.shape[2], torch.arange(len(s), device=s.device)
    rows = every if far(s) else useful.nonzero().squeeze(1)
    newest = torch.where(useful, (newest + 1) % memory, newest)
    places = history.flatten(0, 2)  # (a 2 m, n), the same storage
    place, unit = 2 * memory * rows + newest[rows], of_s.sqrt().mul_(of_y.sqrt())[rows, None]  # no square overflows
    for values, at in ((s, place), (y, place + memory)):
        pair = values.index_select(0, rows).div_(unit)
        if rows is every:  # what is left out keeps what it has
            pair = torch.where(useful[:, None], pair, places.index_select(0, at))
        places.index_copy_(0, at, pair)
    return newest, torch.where(useful, (pairs + 1).clamp_(max=memory), pairs)


def inv_hessian_product(g: Tensor, free: Tensor, history: Tensor, newest: Tensor, pairs: Tensor) -> Tensor:
    """H g, (a, n), by the compact form of L-BFGS (Byrd, Nocedal & Schnabel 1994, eq. 3.1).

    ``history`` (a, 2, m, n) holds s and y, ||s|| ||y|| = 1. H is that of the variables where ``free`` (a, n) is 1, and
    0 of those where it is 0, as ``g`` must be: a held variable left in a pair spoils the curvature of the others. The
    long vectors are touched twice only; the rest is m x m.
    """
    m, w = history.shape[2], history.flatten(1, 2)
    ordered, stored, present, step = _places(m, g.device)
    left = torch.cat([history[:, 1] * free[:, None], g[:, None]], dim=1)  # one factor of each product is enough
    # y's, y'y and, in the last row, g's and g'y; s's is not needed. From storage to the order of time, oldest first.
    gram = torch.bmm(left, w.mT).flatten(1).gather(1, ordered[newest]).view(-1, m + 1, 2 * m)
    curvature, y_square = gram.diagonal(dim1=1, dim2=2)[:, :m], gram.diagonal(m, dim1=1, dim2=2)  # (a, m) each
    usable = present[pairs] & (curvature > torch.finfo(g.dtype).eps)
    # gamma = s.y / y.y of the newest usable pair, Nocedal & Wright eq. 7.20
    last = torch.where(usable, step, -1).argmax(1, keepdim=True)
    gamma = torch.where(usable.any(1, keepdim=True), (curvature / y_square).gather(1, last), 1.0)  # (a, 1)

    # Pairs that are not usable become empty: a unit diagonal in R and zeros elsewhere.
    of_pairs, of_g = torch.where(usable.repeat(1, 2)[:, None], gram, 0.0).tensor_split([m], dim=1)
    (ys, yy), (gs, gy) = torch.where(usable[:, :, None], of_pairs, 0.0).chunk(2, dim=2), of_g.chunk(2, dim=2)
    r = ys.tril().mT
    r.diagonal(dim1=1, dim2=2).add_(~usable)
    u = torch.linalg.solve_triangular(r, gs.mT, upper=True)  # R^-1 S'g, (a, m, 1)
    right = torch.baddbmm(gy.mT, yy, u, beta=-1).mul_(gamma[:, :, None])
    right.addcmul_(ys.diagonal(dim1=1, dim2=2)[:, :, None], u)
    on_s = torch.linalg.solve_triangular(r.mT, right, upper=False)
    on_y = u * -gamma[:, :, None]
    coefficients = torch.cat([on_s, on_y], dim=1).squeeze(2).gather(1, stored[newest])  # back to storage
    return torch.bmm(coefficients[:, None], w).squeeze(1).mul_(free).addcmul_(gamma, g)


@cache
def _places(m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where things lie for each place of the newest pair, and which are there for each number of pairs.

    The places in storage of products (m + 1) x 2m in the order of time, (m, (m + 1) 2m); the places in time of s and y
    as they are stored, (m, 2m); which of them, in time, hold a pair, (m + 1, m); and 0 ... m - 1.
    """
    step = torch.arange(m, device=device)
    time = (step[:, None] + 1 + step) % m  # (newest, step) -> place
    both = torch.cat([time, time + m], dim=1)
    rows = torch.cat([time, torch.full_like(time[:, :1], m)], dim=1)
    ordered = (rows[:, :, None] * 2 * m + both[:, None, :]).flatten(1)
    back = (step - step[:, None] - 1) % m  # (newest, place) -> step
    present = step >= m - torch.arange(m + 1, device=device)[:, None]
    return ordered, torch.cat([back, back + m], dim=1), present, step
