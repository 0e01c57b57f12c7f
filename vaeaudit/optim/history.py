"""The L-BFGS product: an inverse Hessian from the last few differences of points and of gradients."""

import torch
from torch import Tensor


def inv_hessian_product(g: Tensor, history: Tensor, newest: Tensor, pairs: Tensor) -> Tensor:
    """H g, (a, n), by the compact form of L-BFGS (Byrd, Nocedal & Schnabel 1994, eq. 3.1).

    ``history`` (a, 2, m, n) holds s and y. For H of the free variables alone set the others to zero in ``g`` and
    ``history``: a held variable left in a pair spoils the curvature of the others. The long vectors are touched twice
    only; the rest is m x m.
    """
    m, w = history.shape[2], history.flatten(1, 2)
    gram = w[:, m:] @ w.transpose(1, 2)  # (a, m, 2m): y's and y'y, for s's is not needed
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
    usable = present & (curvature > torch.finfo(g.dtype).eps * y_square)
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
    return gamma * g + (coefficients[:, None] @ w).squeeze(1)
