"""How much one unit of a latent code tells about known factors: mutual informations, with each item's share.

I(z; v) = E log q(z|v)/q(z) is the mean over items of E_{z ~ q(z|x_n)} log q(z|v_n)/q(z), the item's share. The shares
less their mean are I's influence function, its derivative in the weight of an item, from which its uncertainty follows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

_NODES = 12  # of Gauss and Legendre in a panel
_REACH = 7  # standard deviations at which a component is left out: 3e-12 of its mass
_PANELS = 8  # evaluated together, with all components that reach one of them
_COMPONENTS = 1024  # of those at once, so that a block stays in the cache
_KEPT = 2**20  # densities kept at one depth of the tree
_FINEST = 2.0**-40  # least standard deviation, as a share of the span of the means


@dataclass(frozen=True, eq=False)
class Membership:
    """The classes of n items in K factors as columns, one factor after another, behind a column for all items.

    ``own`` (n, 1 + K) int64: the columns an item belongs to; ``weights`` (n, 1 + K) float64: one over their items.
    """

    own: Tensor
    weights: Tensor
    columns: int

    @classmethod
    def of(cls, classes: Tensor) -> "Membership":
        """From ``classes`` (n, K) int64, each factor's counted from 0 without gaps."""
        with_all = torch.cat([torch.zeros_like(classes[:, :1]), classes], 1)
        ends = (with_all.amax(0) + 1).cumsum(0)
        own = with_all + torch.cat([ends.new_zeros(1), ends[:-1]])
        counts = torch.bincount(own.flatten())
        return cls(own, 1 / counts[own].double(), len(counts))

    @property
    def surprise(self) -> Tensor:
        """-log p(v) of each item's own classes, (n, K): its mean is the factor's entropy."""
        return self.weights[:, 1:].log() - self.weights[:, :1].log()


def code_shares(code: Tensor, members: Membership) -> Tensor:
    """Each item's -log q(c), then its log q(c|v)/q(c), for a unit without noise, ``code`` (n,) int64 >= 0: (n, 1 + K).

    The means over items are the code's entropy and the mutual informations, both of the counts as they are.
    """
    size = int(code.max()) + 1
    cells = (members.own * size + code[:, None]).flatten()
    q = torch.bincount(cells, weights=members.weights.flatten(), minlength=members.columns * size)
    return _log_ratios(q.reshape(members.columns, size).T)[code[:, None], members.own]


def categorical_shares(log_probabilities: Tensor, members: Membership) -> Tensor:
    """Each item's E -log q(c), then its E log q(c|v)/q(c), c ~ q(c|x_n), for a categorical unit: (n, 1 + K).

    ``log_probabilities`` (n, classes) float64. Exact sums over the mixtures q(c) and q(c|v).
    """
    probabilities = log_probabilities.exp()
    blocks = list(
        zip(*(torch.split(t, _COMPONENTS) for t in (probabilities, members.own, members.weights)), strict=True)
    )
    q = probabilities.new_zeros(probabilities.shape[1], members.columns)
    for p, own, weights in blocks:
        q.addmm_(p.T, _spread(own, weights, members.columns))
    log_ratios = _log_ratios(q)
    return torch.cat([(p @ log_ratios).gather(1, own) for p, own, _ in blocks])


def gaussian_shares(mean: Tensor, log_stddev: Tensor, members: Membership) -> Tensor:
    """Each item's E -log q(z), then its E log q(z|v)/q(z), z ~ q(z|x_n), for a Gaussian unit: (n, 1 + K).

    ``mean`` and ``log_stddev`` (n,) float64. q(z) and q(z|v) are the exact mixtures over all items and over those of a
    class. The line is cut into panels by halves, at each place down to the width of the narrowest component there,
    which makes Gauss-Legendre quadrature exact to 1e-8 for a share and 1e-10 for a mean (measured against a fine
    trapezoidal rule; nothing depends on how the widths differ). A component is evaluated in panels of about its own
    width alone. What wide ones give is interpolated into the narrow panels within, and the integrals there are carried
    back the same way; so the work grows with n, not with n times the panels.
    """
    return _Mixture(mean, log_stddev, members).shares()


def resolved(mean: Tensor, log_stddev: Tensor) -> Tensor:
    """Standard deviations (n,) as the quadrature takes them: by 2^40 narrower or wider than the means' span at most.

    float32 means that differ at all stay apart.
    """
    stddev = log_stddev.exp()
    span = mean.max() - mean.min() + stddev.min()
    return stddev.clamp(span * _FINEST, span / _FINEST)


@dataclass(frozen=True, eq=False)
class _Scale:
    """Components whose standard deviation is between half a panel's width and a whole one, lengths in widths.

    All (m, ...) and sorted by ``place``. ``rate`` is 1 / (sqrt(2) stddev), ``height`` the density's at its top times
    the weights in the columns ``own``. ``refined``: the panels of this width that narrower components reach.
    """

    width: float
    item: Tensor
    place: Tensor
    rate: Tensor
    own: Tensor
    height: Tensor
    shares: Tensor
    refined: Tensor


class _Mixture:
    """Panel k of scale s is [k, k + 1] * width_s from the origin, with width_s = width_0 / 2^s."""

    def __init__(self, mean: Tensor, log_stddev: Tensor, members: Membership) -> None:
        self._columns = members.columns
        self._node, self._weight, self._halves = _rule(mean.device)
        stddev = resolved(mean, log_stddev)
        widest = float(stddev.max())
        from_origin = mean - mean.min() + (_REACH + 1) * widest
        scale = torch.log2(widest / stddev).floor().long().clamp(min=0)
        self._scales: list[_Scale] = []
        reached = scale.new_empty(0)
        for number in range(int(scale.max()), -1, -1):
            width = widest / 2**number
            item = (scale == number).nonzero().squeeze(1)
            item = item[from_origin[item].argsort(stable=True)]
            place, relative = from_origin[item] / width, stddev[item] / width
            refined = torch.unique(reached // 2)
            reached = torch.unique(torch.cat([refined, _reached(place, relative)]))
            height = members.weights[item] / (stddev[item] * (2 * torch.pi) ** 0.5)[:, None]
            own, shares = members.own[item], torch.zeros_like(height)
            self._scales.append(_Scale(width, item, place, 0.5**0.5 / relative, own, height, shares, refined))
        self._scales.reverse()
        self._roots, self._weights = reached, members.weights

    def shares(self) -> Tensor:
        """(n, 1 + K)."""
        for panels in torch.split(self._roots, self._together):
            self._visit(0, panels, self._weights.new_zeros(len(panels), _NODES, self._columns))
        found = torch.empty_like(self._weights)
        for scale in self._scales:
            found[scale.item] = scale.shares * scale.height
        return found / self._weights  # of the height, the weights go again

    @property
    def _together(self) -> int:
        return max(2, _KEPT // (_NODES * self._columns))

    def _visit(self, number: int, panels: Tensor, density: Tensor) -> Tensor:
        """Integrals of the log ratios times each of the panels' polynomials, (p, nodes, columns).

        A node's polynomial is 1 there and 0 at the others. ``density`` (p, nodes, columns) is that of wider components;
        those of this scale are added to it on the way down, and get their shares on the way back.
        """
        scale = self._scales[number]
        for block, items, values in _blocks(scale, panels, self._node):
            weighted = _spread(scale.own[items], scale.height[items], self._columns)
            density[block].flatten(0, 1).addmm_(values.T, weighted)
        refined = torch.isin(panels, scale.refined, assume_unique=True)
        inner, last = refined.nonzero().squeeze(1), (~refined).nonzero().squeeze(1)
        integrals = torch.empty_like(density)
        integrals[last] = _log_ratios(density[last].clamp_(min=0)).mul_(self._weight[:, None] * scale.width)
        for part in torch.split(inner, self._together // 2) if len(inner) else ():
            halves = torch.stack([2 * panels[part], 2 * panels[part] + 1], 1).flatten()
            found = self._visit(number + 1, halves, (self._halves @ density[part, None]).flatten(0, 1))
            integrals[part] = (self._halves.mT @ found.reshape(len(part), 2, _NODES, -1)).sum(1)
        for block, items, values in _blocks(scale, panels, self._node):
            scale.shares[items] += (values @ integrals[block].flatten(0, 1)).gather(1, scale.own[items])
        return integrals


def _blocks(scale: _Scale, panels: Tensor, node: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Slices of panels and of the components that reach them, and exp(-((z - mean) / stddev)^2 / 2) at the nodes."""
    if not len(scale.place):
        return
    begins = panels[::_PANELS]
    ends = torch.cat([panels[_PANELS - 1 :: _PANELS], panels[-1:]])[: len(begins)] + 1
    first = torch.searchsorted(scale.place, (begins - _REACH).double()).tolist()
    last = torch.searchsorted(scale.place, (ends + _REACH).double()).tolist()
    for number, (low, high) in enumerate(zip(first, last, strict=True)):
        block = slice(number * _PANELS, (number + 1) * _PANELS)
        nodes = (panels[block, None] + node).flatten()
        for start in range(low, high, _COMPONENTS):
            items = slice(start, min(start + _COMPONENTS, high))
            values = torch.sub(nodes, scale.place[items, None]).mul_(scale.rate[items, None])
            yield block, items, values.mul_(values).neg_().exp_()


def _reached(place: Tensor, relative: Tensor) -> Tensor:
    """The panels within reach of each component, one after another."""
    low = (place - _REACH * relative).floor().long()
    high = (place + _REACH * relative).floor().long()
    panels = low[:, None] + torch.arange(2 * _REACH + 1, device=place.device)
    return panels[panels <= high[:, None]]


def _spread(own: Tensor, values: Tensor, columns: int) -> Tensor:
    """``values`` (m, 1 + K) in their own columns, zero elsewhere, (m, columns)."""
    return values.new_zeros(len(own), columns).scatter_(1, own, values)


def _log_ratios(q: Tensor) -> Tensor:
    """-log q(z) in the first column and log q(z|v)/q(z) in the others, (..., columns); 0 where no item is."""
    there = q > 0
    log = torch.where(there, q, 1.0).log_()
    ratios = torch.where(there, log - log[..., :1], 0.0)
    ratios[..., 0] = -log[..., 0]
    return ratios


@cache
def _rule(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Gauss-Legendre on [0, 1]: nodes, weights, and (2, nodes, nodes) from values there to those in either half."""
    node, weight = np.polynomial.legendre.leggauss(_NODES)
    node, weight = (node + 1) / 2, weight / 2
    targets = np.stack([node / 2, (node + 1) / 2])
    same = np.eye(_NODES, dtype=bool)
    factors = (targets[:, :, None, None] - node) / np.where(same, 1.0, node[:, None] - node)
    halves = np.where(same, 1.0, factors).prod(3)
    node_, weight_, halves_ = (torch.from_numpy(array).to(device) for array in (node, weight, halves))
    return node_, weight_, halves_
