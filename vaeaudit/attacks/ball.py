"""The intersection of a ball of distortions and the box of inputs, and what the model sees of a distortion.

A model is given x + d rounded to its precision, so what it sees is moved by fl(x + d) - x, which can be longer than d:
in float32 by a part in 10^5 under a cap of 2/255. Caps and boxes are those of what it sees.
"""

import math

import torch
from torch import Tensor

from vaeaudit.errors import VaeauditError

NORMS = ("l2", "linf")
Bounds = tuple[Tensor, Tensor]  # of x + d: lowest and highest, each (1, n) or (b, n), infinite where there is none

_ROUNDING = 1e-12  # share of a cap that is left to the rounding of float64, in which distances are measured
_SETTLING = 100  # rounds, of which a few are needed


def furthest(v: Tensor, low: Tensor, high: Tensor, radius: Tensor, norm: str = "l2", most: float = torch.inf) -> Tensor:
    """clip(t v, low, high) with the greatest t <= ``most`` whose norm is at most ``radius``, (b, n).

    ``v``, ``low`` <= 0 and ``high`` >= 0 are (b, n), infinite where there is no bound; ``radius`` (b,). With ``most``
    = 1 it is the projection of v on ball and box, in L2; without, the point of both that goes furthest along v, which
    maximises <v, d>. Both by the Karush-Kuhn-Tucker conditions.
    """
    if norm == "linf":  # the ball is a box
        low, high = torch.maximum(low, -radius[:, None]), torch.minimum(high, radius[:, None])
        radius = torch.full_like(radius, torch.inf)
    # In units in which v and the radius are near 1, so that no square over- or underflows: powers of two round nothing.
    of_v, of_radius = _power_of_two(v.abs().amax(1)), _power_of_two(radius)
    v, most_t = v / of_v[:, None], torch.full_like(radius, most) * of_v / of_radius
    reach, radius = torch.where(v < 0, -low, high) / of_radius[:, None], radius / of_radius
    size, t = v.abs(), torch.zeros_like(radius)
    # From below, as ever more elements are cut off: those cut off at a smaller t are among those cut off at the
    # solution. So it ends, at the solution itself, after at most as many rounds as there are elements; a few, in fact.
    while True:
        cut = t[:, None] * size >= reach  # inf * 0 is NaN: not cut, and adds nothing below
        free = torch.where(cut, 0.0, size.square()).sum(1)
        left = radius.square() - torch.where(cut, reach.square(), 0.0).sum(1)
        longer = torch.where(free > 0, (left.clamp(min=0) / free).sqrt(), t)
        if not bool((longer > t).any()):
            break
        t = torch.maximum(t, longer)
    d = torch.where(size > 0, torch.minimum(t, most_t)[:, None] * v, 0.0) * of_radius[:, None]
    return torch.maximum(torch.minimum(d, high), low)


def _power_of_two(value: Tensor) -> Tensor:
    """That next above each value, 1 where it is 0 or infinite, within what its reciprocal allows."""
    most = -int(math.log2(torch.finfo(value.dtype).tiny))
    exponent = torch.where(value.isfinite(), value, 0.0).frexp().exponent
    return torch.ones_like(value).ldexp(exponent.clamp(-most, most))


def length(x: Tensor, d: Tensor, norm: str = "l2") -> Tensor:
    """The norm of fl(x + d) - x over the last dimension, in float64: how far from ``x`` the model is taken."""
    return norm_of((x + d).double() - x.double(), norm)


def norm_of(d: Tensor, norm: str) -> Tensor:
    """||d|| over the last dimension, in its own precision."""
    size: Tensor = torch.linalg.vector_norm(d, torch.inf if norm == "linf" else 2, dim=-1)
    return size


def settle(x: Tensor, d: Tensor, bounds: Bounds, caps: Tensor | None = None, norm: str = "l2") -> Tensor:
    """``d`` (b, n), shortened where fl(x + d) leaves ``bounds`` or lies beyond its cap (b,) from ``x``, in float64.

    ||d|| keeps to the cap as well, in its own precision and in float64; where rounding allows it, d is what is seen.
    """
    d = torch.where(_outside(x, d, bounds), (x + d).clamp(*bounds) - x, d)
    if caps is not None and norm == "linf":
        most = (caps * (1 - _ROUNDING)).to(d)[:, None]
        d = torch.maximum(torch.minimum(d, most), -most)
    for turn in range(_SETTLING):
        d = _as_seen(x, d)
        outside = _outside(x, d, bounds)
        over = torch.zeros_like(outside)
        if caps is not None:
            excess = _excess(x, d, caps, norm)
            over = excess > 1
            if norm != "linf" and bool(over.any()):
                # What rounding adds to the length changes with d: a little more is taken off each time.
                shorter = max(0.0, 1 - 2.0**turn * torch.finfo(d.dtype).eps) / excess
                d = torch.where(over, d * shorter.to(d), d)
                continue
        outside |= over
        if not bool(outside.any()):
            return d
        d = torch.where(outside, _nearer(x, d), d)
    raise VaeauditError("a distortion does not settle inside its cap and box: this is a fault of vaeaudit; report it")


def exceeds(x: Tensor, d: Tensor, bounds: Bounds, caps: Tensor, norm: str) -> bool:
    """Whether any of d (b, n) leaves the box or its cap (b,) as :func:`settle` measures them."""
    return bool(_outside(x, d, bounds).any() | (_excess(x, d, caps, norm) > 1).any())


def _outside(x: Tensor, d: Tensor, bounds: Bounds) -> Tensor:
    """Where x + d leaves the box, (b, n); an element that is not moved is where it was given."""
    low, high = bounds
    seen = x + d
    return ((seen < low) | (seen > high)) & (d != 0)


def _excess(x: Tensor, d: Tensor, caps: Tensor, norm: str) -> Tensor:
    """The longer of d and what is seen of it as a share of the cap: rows, (b, 1), or in L-infinity elements, (b, n)."""
    most = caps.double()[:, None] * (1 - _ROUNDING)
    seen = (x + d).double() - x.double()
    if norm == "linf":
        return torch.maximum(seen.abs(), d.double().abs()) / most
    sizes = [norm_of(each, norm) for each in (seen, d.double(), d)]
    return torch.stack([size.double() for size in sizes]).amax(0)[:, None] / most


def _as_seen(x: Tensor, d: Tensor) -> Tensor:
    """fl(x + d) - x, except where that is rounded as well and leads elsewhere."""
    point = x + d
    seen = point - x
    return torch.where(x + seen == point, seen, d)


def _nearer(x: Tensor, d: Tensor) -> Tensor:
    """The next d (b, n) towards 0 of which the model sees something else."""
    seen = torch.nextafter(x + d, x) - x  # one step of x + d can be many of d
    own = torch.nextafter(d, torch.zeros_like(d))
    return torch.where(seen.abs() < own.abs(), seen, own)
