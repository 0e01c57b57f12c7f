"""The history of L-BFGS: an inverse Hessian from the last few differences of points and of gradients."""

import torch
from torch import Tensor


def remember(
    history: Tensor, newest: Tensor, pairs: Tensor, s: Tensor, y: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Write differences of points and of gradients, (a, n), over the oldest of the rows ``chosen`` (a,), in place.

    A pair whose curvature s.y is not positive beyond rounding, in whatever units, is left out. ``history`` is
    (a, 2, m, n); returned are the place of the newest pair in it and how many places hold one, (a,) each.
    """
    curved = torch.linalg.vecdot(s, y) > torch.finfo(s.dtype).eps * _length(s) * _length(y)
    useful = chosen & curved
    rows, memory = useful.nonzero().squeeze(1), history.shape[2]
    newest = torch.where(useful, (newest + 1) % memory, newest)
    places = history.flatten(0, 2)  # (a 2 m, n), the same storage
    place = 2 * memory * rows + newest[rows]
    places.index_copy_(0, place, s.index_select(0, rows))
    places.index_copy_(0, place + memory, y.index_select(0, rows))
    return newest, torch.where(useful, (pairs + 1).clamp(max=memory), pairs)


def inv_hessian_product(g: Tensor, free: Tensor, history: Tensor, newest: Tensor, pairs: Tensor) -> Tensor:
    """H g, (a, n), by the compact form of L-BFGS (Byrd, Nocedal & Schnabel 1994, eq. 3.1).

    ``history`` (a, 2, m, n) holds s and y. H is that of the variables where ``free`` (a, n) is 1, and 0 of those where
    it is 0, as ``g`` must be: a held variable left in a pair spoils the curvature of the others. The long vectors are
    touched twice only; the rest is m x m.
    """
    m, w = history.shape[2], history.flatten(1, 2)
    y = history[:, 1] * free[:, None]  # one factor of each product is enough
    gram = y @ w.transpose(1, 2)  # (a, m, 2m): y's and y'y, for s's is not needed
    wg = (g[:, None] @ w.transpose(1, 2)).squeeze(1)  # (a, 2m); six times faster than w @ g here

    # From storage to the order of time, oldest first.
    place = (newest[:, None] + 1 + torch.arange(m, device=g.device)) % m  # (a, m)
    both = torch.cat([place, place + m], dim=1)  # (a, 2m)
    gram = gram.gather(1, place[:, :, None].expand_as(gram)).gather(2, both[:, None, :].expand_as(gram))
    wg = wg.gather(1, both)
    sy, yy = gram[:, :, :m].transpose(1, 2), gram[:, :, m:]  # (a, m, m)
    curvature = sy.diagonal(dim1=1, dim2=2)  # (a, m): s.y
    y_square = yy.diagonal(dim1=1, dim2=2)
    present = torch.arange(m, device=g.device) >= m - pairs[:, None]
    usable = present & (curvature > torch.finfo(g.dtype).eps * _length(history[:, 0]) * y_square.sqrt())
    # gamma = s.y / y.y of the newest usable pair, Nocedal & Wright eq. 7.20
    last = torch.where(usable, torch.arange(m, device=g.device), -1).argmax(1, keepdim=True)
    gamma = torch.where(usable.any(1), (curvature / y_square).gather(1, last).squeeze(1), 1.0)[:, None]

    # Pairs that are not usable become empty: a unit diagonal in R and zeros elsewhere.
    together = usable[:, :, None] & usable[:, None, :]
    r = torch.where(together, sy.triu(), torch.diag_embed((~usable).to(g.dtype)))
    yy = torch.where(together, yy, 0.0)
    sg, yg = torch.where(usable, wg[:, :m], 0.0), torch.where(usable, wg[:, m:], 0.0)
    u = torch.linalg.solve_triangular(r, sg[:, :, None], upper=True)  # R^-1 S'g, (a, m, 1)
    right = torch.where(usable, curvature, 0.0)[:, :, None] * u + gamma[:, :, None] * (yy @ u - yg[:, :, None])
    on_s = torch.linalg.solve_triangular(r.transpose(1, 2), right, upper=False).squeeze(2)
    on_y = -gamma * u.squeeze(2)

    coefficients = torch.empty_like(wg).scatter_(1, both, torch.cat([on_s, on_y], dim=1))  # back to storage
    return (coefficients[:, None] @ w).squeeze(1).mul_(free).addcmul_(gamma, g)


def _length(vectors: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return length
