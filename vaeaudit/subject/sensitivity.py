"""Can an attack see the encoder? Its gradient with respect to the input, in everything that the posterior gives."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vaeaudit.model.vae import VAE, DiagonalGaussian, Discrete, Joint, Posterior
from vaeaudit.stats.draws import noise_set
from vaeaudit.subject.finding import Finding, Verdict
from vaeaudit.subject.inputs import numbered

_PROJECTIONS = 4
_UNSEEN = 0.1  # of the posterior's change, by elements without a gradient; the limit of the failure sign
_NAME = "gradients"
_DETACHED = "is cut off from its input (detached): no attack can see it"


def gradients(vae: VAE, x: Tensor, items: Sequence[int], seed: int) -> Finding:
    """The gradient of the encoder at ``x`` (n, *shape) with numbers ``items``: present, finite, nowhere zero.

    Of random projections of all that the posterior gives, as single functions of it may be constant where it is not:
    the length of a normalised code, a unit that has collapsed, the sum of the probabilities of classes. An item's is
    zero where all of them are; or those of the mean are, though the mean varies, on half of the items. An element of
    the input that has none at any of the items is detached where moving such elements alone moves the posterior.
    """
    leaf = x.clone().requires_grad_(True)
    with torch.enable_grad():
        parts = dict(_given(vae.encode(leaf), seed))
    # What is the same for all items needs no gradient, and draws may be hard.
    needed = [name for name, part in parts.items() if _varies(part) and name != "draws"]
    slopes = {name: _slopes(part, leaf, seed, name) for name, part in parts.items()}
    there = {name: slope for name, slope in slopes.items() if slope is not None}
    cut = [name for name in needed if name not in there]
    if cut or not there:
        what = f"the encoder's {cut[0]}" if cut else "the encoder"
        return Finding(_NAME, Verdict.FAIL, f"{what} {_DETACHED}")
    for name, slope in there.items():
        if bad := _where(~slope.isfinite().flatten(2).all(2).all(0)):
            told = f"gradients of the encoder's {name} are NaN or infinite for {_told(bad, items)}"
            return Finding(_NAME, _by_share(bad, x), told)
    nothing = {name: (slope == 0).flatten(2).all(2).all(0) for name, slope in there.items()}
    zero, of = _where(torch.stack(list(nothing.values())).all(0)), ""
    if "mean" in needed and 2 * int(nothing["mean"].sum()) >= len(x):
        zero, of = _where(nothing["mean"]), " of the mean"
    if zero:
        told = f"gradients{of} are zero for {_told(zero, items)}: a saturated or rounded layer?"
        return Finding(_NAME, _by_share(zero, x), told)
    seen = torch.stack([(slope != 0).any(0).any(0) for slope in there.values()]).any(0)
    return _dead_elements(vae, x, seen, seed)


def _varies(part: Tensor) -> bool:
    return bool((part.detach() != part.detach()[:1]).any())


def _where(flags: Tensor) -> list[int]:
    places: list[int] = flags.nonzero().squeeze(1).tolist()
    return places


def _told(places: list[int], items: Sequence[int]) -> str:
    return f"{len(places)} of {len(items)} items, {numbered([items[place] for place in places])}"


def _given(q: Posterior, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Parts of what the posterior gives of n items, by name, (n, size): mean, a draw of one noise, parameters."""
    noise = noise_set(q.noise_shape, draws=1, items=[0], seed=seed, check="plausibility.gradients", like=q.mean)
    yield "mean", q.mean.flatten(1)
    yield "draws", q.sample(noise.expand(1, len(q.mean), *q.noise_shape))[0].flatten(1)
    for place, part in enumerate(q.parts if isinstance(q, Joint) else (q,)):
        of = f" of part {place + 1}" if place else ""
        if isinstance(part, DiagonalGaussian) and bool(part.log_stddev.isfinite().all()):
            yield f"log standard deviation{of}", part.log_stddev.expand_as(part.mean).flatten(1)
        elif isinstance(part, Discrete):
            least = torch.finfo(q.mean.dtype).min
            yield f"log probabilities{of}", part.log_probabilities.clamp(min=least).flatten(1)


def _slopes(part: Tensor, leaf: Tensor, seed: int, name: str) -> Tensor | None:
    """Gradients of random projections of ``part``, (projections, n, *shape); None where it does not reach the input.

    As many as it takes until every element has one, and no more than a few.
    """
    if not part.requires_grad:
        return None
    check = f"plausibility.projections.{name}"
    ways = noise_set(tuple(part.shape), draws=_PROJECTIONS, items=[0], seed=seed, check=check, like=part)[:, 0]
    found: list[Tensor] = []
    for way in ways:
        (slope,) = torch.autograd.grad(part, leaf, way, retain_graph=True, allow_unused=True)
        if slope is None:
            return None
        found.append(slope)
        if bool((slope != 0).all()):  # another would show nothing more, and of a large model each takes long
            break
    return torch.stack(found)


def _by_share(where: list[int], x: Tensor) -> Verdict:
    """Some items may be so of a sound model, as where units are off: an attack on them shows a sign of its own."""
    return Verdict.FAIL if 2 * len(where) >= len(x) else Verdict.UNSURE


@torch.no_grad()
def _dead_elements(vae: VAE, x: Tensor, seen: Tensor, seed: int) -> Finding:
    """Whether elements without a gradient, not ``seen`` (*shape), move the posterior when another item's come."""
    fine = f"finite and not zero on {len(x)} items"
    other = x.roll(1, 0)
    dead = ~seen & (x != other).any(0)
    if not bool(dead.any()):
        return Finding(_NAME, Verdict.PASS, fine)
    here, alone, together = (
        torch.cat([part for _, part in _given(vae.encode(points), seed)], 1)
        for points in (x, torch.where(dead, other, x), other)
    )
    scale = (together - here).abs().amax(0)
    scale = torch.where(scale > 0, scale, torch.inf)
    share = float(((alone - here) / scale).norm() / ((together - here) / scale).norm())
    told = f"{int(dead.sum())} of {seen.numel()} elements of the input have none"
    if share > _UNSEEN:
        message = f"{told}, but moving them alone moves the posterior by {share:.2g} of what all do: detached?"
        return Finding(_NAME, Verdict.FAIL, message)
    return Finding(_NAME, Verdict.PASS, f"{fine}; {told}, and the posterior hardly depends on them")
