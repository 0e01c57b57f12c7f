"""The attack check: how far an input must move before its posterior is another input's.

Runs the lambda sweep of one mode on given pairs, and measures what the papers report for every result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, product

import torch
from torch import Tensor, nn

from vaeaudit import stats
from vaeaudit.attacks.search import Effort
from vaeaudit.attacks.similarity import SIMILARITIES
from vaeaudit.attacks.sweep import PENALTIES, Sweep, geometric_lambdas, sweep
from vaeaudit.attacks.term import GoOn, always
from vaeaudit.batches import RowBatches
from vaeaudit.draws import noise_set, uniform
from vaeaudit.errors import ConfigError, DataError, nearest
from vaeaudit.optim.lbfgsb import Stopping
from vaeaudit.stats import Measurement
from vaeaudit.vae import VAE

MODES = ("latent",)
_DRAWS = 16  # reparameterisation draws of one item, where an expectation over z has no closed form
_PAIR_ATTEMPTS = 1000


@dataclass(frozen=True, eq=False)
class AttackResult:
    """A sweep with what it does to reconstructions: P pairs, L lambda, figures at z = the mean unless stated.

    (P, L): ``target_nll`` is -log p(x_t|z) in nats, the mean over draws z ~ q(z|x*) on noise that the search
    never saw; ``target_error`` ||x_t - rec(x*)||; ``own_error`` ||x* - rec(x*)||.
    (P,): ``source_nll`` is ``target_nll`` at d = 0; ``target_floor`` ||x_t - rec(x_t)||, what a perfect match
    reaches; ``source_error`` ||x_t - rec(x)||, where the attack starts; ``gap`` ||x_t - x||.
    (P, *shape): ``source``, ``source_reconstruction``, ``target``; (P, L, *shape): ``reconstruction`` rec(x*).
    """

    mode: str
    similarity: str
    seed: int
    sweep: Sweep
    source: Tensor
    source_reconstruction: Tensor
    target: Tensor
    reconstruction: Tensor
    target_nll: Tensor
    target_error: Tensor
    own_error: Tensor
    source_nll: Tensor
    target_floor: Tensor
    source_error: Tensor
    gap: Tensor

    @property
    def unit(self) -> str:
        """Unit of the data term and the objective."""
        return "nats" if self.similarity.endswith("kl") else "latent units"

    @property
    def interrupted(self) -> bool:
        """Whether the sweep was told to stop before it ended."""
        return self.sweep.interrupted

    @property
    def delta(self) -> Tensor:
        """Mean over lambda of the objective, (P,): what Willetts et al. plot as Delta."""
        return self.sweep.objective.mean(1)

    @property
    def curve_area(self) -> Tensor:
        """Area under the distortion curve of each pair, (P,), as a share of the box between its two free ends.

        The ends are d = 0 with error s = ||x_t - rec(x)|| and d = x_t - x with the floor f = ||x_t - rec(x_t)||. The
        curve is (||x_t - rec(x*)|| - f) / (s - f) over ||d|| / ||x_t - x||, through both ends and all lambda, by
        trapezoids: 0 for a model that any touch turns, near 1 for one that yields only to the target itself.
        Without the floor a blurred decoder would read as a robust one. Points beyond d = x_t - x are left out; NaN
        where s <= f, that is where the source is reconstructed as near the target as the target itself is.
        """
        pairs = len(self.gap)
        ends = torch.tensor([0.0, 1.0], dtype=self.gap.dtype, device=self.gap.device).expand(pairs, 2)
        x = torch.cat([self.sweep.norm / self.gap[:, None], ends], 1)
        floor, reach = self.target_floor[:, None], (self.source_error - self.target_floor)[:, None]
        start, end = torch.ones_like(reach), torch.zeros_like(reach)
        y = torch.cat([(self.target_error - floor) / reach, start, end], 1)
        x, y = x.clamp(max=1), torch.where(x > 1, end, y)  # a point beyond the end becomes the end
        order = x.argsort(dim=1, stable=True)
        area = torch.trapezoid(y.gather(1, order), x.gather(1, order), dim=1)
        return torch.where(reach.squeeze(1) > 0, area, torch.nan)

    def at_chosen(self, values: Tensor) -> Tensor:
        """``values`` (P, L, ...) at each pair's chosen lambda, (P, ...)."""
        return values[torch.arange(len(values), device=values.device), self.sweep.chosen]


def attack(
    vae: VAE,
    x: Tensor,
    x_t: Tensor,
    mode: str = "latent",
    *,
    lambdas: int | Sequence[float] = 50,
    similarity: str = "kl",
    penalty: str = "l2",
    data_range: tuple[float, float] | None = None,
    seed: int = 0,
    max_evaluations: int = 600,
    batch_size: int | None = None,
    items: Sequence[int] | None = None,
    go_on: GoOn = always,
) -> AttackResult:
    """Attack each source with its target, for all lambda together (Willetts et al., section 4).

    Args:
        vae: any object that keeps the contract :class:`vaeaudit.VAE`.
        x: sources, (P, *input_shape), in the model's range; their dtype and device are used throughout.
        x_t: targets, likewise.
        mode: "latent" minimises similarity(q(z|x + d), q(z|x_t)) + lambda pen(d).
        lambdas: how many, geometric from 2^-20 to 2^20; or the values themselves.
        similarity: a name of :data:`vaeaudit.attacks.similarity.SIMILARITIES`.
        penalty: "l2", ||d||_2, or "l2sq", ||d||_2^2.
        data_range: box for x + d; the model's own range where None, no box where it has none either.
        seed: of every random draw.
        max_evaluations: of the objective, for one problem and one search.
        batch_size: most rows that the model is given at once; chosen by size where None.
        items: numbers that key the draws of each source; 0, 1, ... where None.
        go_on: asked regularly; on False the sweep ends with the best it has.

    Raises:
        ConfigError: unknown mode, similarity or penalty; lambda not positive and finite.
        DataError: shapes or types that do not fit, values outside the range, no pair, or a pair of equal images.
    """
    for what, name, known in (
        ("mode", mode, MODES),
        ("similarity", similarity, tuple(SIMILARITIES)),
        ("penalty", penalty, PENALTIES),
    ):
        if name not in known:
            raise ConfigError(f"there is no attack {what} '{name}'{nearest(name, known)}; there are {', '.join(known)}")
    box = data_range or vae.range
    _check_pairs(vae, x, x_t, box)
    values = torch.tensor(_lambdas(lambdas), dtype=x.dtype, device=x.device)
    keys = list(range(len(x))) if items is None else list(items)
    if len(keys) != len(x):
        raise DataError(f"each of the {len(x)} sources needs an item number, but {len(keys)} came; give one each")
    rows = RowBatches.automatic(vae.input_shape, x.device) if batch_size is None else RowBatches(batch_size)

    with torch.no_grad():
        target = vae.encode(x_t)
    noise = noise_set(target.noise_shape, draws=_DRAWS, items=keys, seed=seed, check=f"attack.{mode}", like=x)
    measure = SIMILARITIES[similarity]

    def data_term(x_adv: Tensor, pair: Tensor) -> Tensor:
        return measure(vae.encode(x_adv), target.rows(pair), noise[:, pair])

    stopping = Stopping.for_dtype(x.dtype, max_evaluations)
    found = sweep(data_term, x, x_t, box, values, penalty=penalty, effort=Effort(stopping), rows=rows, go_on=go_on)
    fresh = noise_set(target.noise_shape, draws=_DRAWS, items=keys, seed=seed, check=f"attack.{mode}.fresh", like=x)
    return _measure(vae, x, x_t, mode, similarity, seed, found, fresh, rows)


def _measure(
    vae: VAE,
    x: Tensor,
    x_t: Tensor,
    mode: str,
    similarity: str,
    seed: int,
    found: Sweep,
    noise: Tensor,
    rows: RowBatches,
) -> AttackResult:
    pairs, count = found.norm.shape
    pair = torch.arange(pairs, device=x.device)

    @torch.no_grad()
    def look(points: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        """rec(x*) (b, *shape) and -log p(x_t|z) (b,) averaged over the draws."""
        posterior = vae.encode(points)
        nll = torch.stack([-vae.decode(z).log_prob(x_t[of]) for z in posterior.sample(noise[:, of])])
        return vae.decode(posterior.mean).mean, nll.mean(0)

    every = pair.repeat_interleave(count)
    reconstruction, target_nll = rows.map(look, found.adversarial.flatten(0, 1), every)
    source_reconstruction, source_nll = rows.map(look, x, pair)
    target_reconstruction, _ = rows.map(look, x_t, pair)
    reconstruction = reconstruction.reshape(found.adversarial.shape)
    return AttackResult(
        mode=mode,
        similarity=similarity,
        seed=seed,
        sweep=found,
        source=x,
        source_reconstruction=source_reconstruction,
        target=x_t,
        reconstruction=reconstruction,
        target_nll=target_nll.reshape(pairs, count),
        target_error=_distance(x_t[:, None], reconstruction, 2),
        own_error=_distance(found.adversarial, reconstruction, 2),
        source_nll=source_nll,
        target_floor=_distance(x_t, target_reconstruction, 1),
        source_error=_distance(x_t, source_reconstruction, 1),
        gap=_distance(x_t, x, 1),
    )


def summarise(result: AttackResult) -> dict[str, Measurement]:
    """The metrics of an attack, over its pairs, by name.

    Higher is more robust for ``delta`` and ``curve_area``. The others are read at the chosen lambda, where a longer
    d and a smaller data term stand for each other, so that neither way is more robust.
    """
    unit = result.unit
    chosen = result.at_chosen
    summaries = {
        "delta": (result.delta, unit, "higher"),
        "curve_area": (result.curve_area, "share", "higher"),
        "data_term": (chosen(result.sweep.data_term), unit, "none"),
        "distortion": (chosen(result.sweep.norm), "input units", "none"),
        "target_nll": (chosen(result.target_nll), "nats", "none"),
        "target_error": (chosen(result.target_error), "input units", "none"),
    }
    prefix = f"attack.{result.mode}"
    metrics = {
        f"{prefix}.{name}.median": stats.median(values.tolist(), unit=of, direction=direction)
        for name, (values, of, direction) in summaries.items()
    }
    metrics[f"{prefix}.delta.mean"] = stats.mean(result.delta.tolist(), unit=unit, direction="higher")
    return metrics


def draw_pairs(count: int, items: int, same: Callable[[int, int], bool], *, seed: int) -> list[tuple[int, int]]:
    """``count`` different (source, target) pairs of items whose images differ; the first k do not depend on count.

    Raises :class:`DataError` with fewer than two items, or where no such pairs are found.
    """
    if items < 2:
        raise DataError(f"an attack needs at least two items, a source and a target, but the data hold {items}")
    if count > items * (items - 1):
        raise DataError(f"{items} items make {items * (items - 1)} pairs, fewer than the {count} asked for")
    pairs: list[tuple[int, int]] = []
    taken: set[tuple[int, int]] = set()
    for number in range(count):
        draws = (uniform(2 * _PAIR_ATTEMPTS, seed=seed, check="attack.pairs", item=number) * items).astype(int)
        # Few items may have nearly all their pairs taken: go through them before giving up.
        rest = product(range(items), repeat=2) if items <= _PAIR_ATTEMPTS else ()
        for source, target in chain(draws.reshape(-1, 2).tolist(), rest):
            if source != target and (source, target) not in taken and not same(source, target):
                taken.add((source, target))
                pairs.append((source, target))
                break
        else:
            raise DataError(
                f"only {len(pairs)} of {count} pairs of different images were found among {items} items; "
                "the data seem to repeat one image, so there is nothing to attack"
            )
    return pairs


def _lambdas(lambdas: int | Sequence[float]) -> tuple[float, ...]:
    if isinstance(lambdas, int):
        if lambdas < 1:
            raise ConfigError(f"an attack needs at least one lambda, but {lambdas} were asked for")
        return geometric_lambdas(lambdas)
    values = tuple(float(value) for value in lambdas)
    if not values or not all(0 < value < float("inf") for value in values):
        raise ConfigError(f"lambda must be positive and finite, but {list(values)} was given")
    return values


def _check_pairs(vae: VAE, x: Tensor, x_t: Tensor, box: tuple[float, float] | None) -> None:
    shape = tuple(vae.input_shape)
    if tuple(x.shape[1:]) != shape or x.shape != x_t.shape:
        raise DataError(
            f"sources and targets must both be (pairs, {', '.join(map(str, shape))}), "
            f"but are {tuple(x.shape)} and {tuple(x_t.shape)}"
        )
    if not x.is_floating_point() or x.dtype != x_t.dtype or x.device != x_t.device:
        raise DataError(
            f"sources and targets must be of one floating-point type on one device, but are {x.dtype} on {x.device} "
            f"and {x_t.dtype} on {x_t.device}"
        )
    if len(x) == 0:
        raise DataError("an attack needs at least one pair of a source and a target, but none was given")
    weight = next(vae.parameters(), None) if isinstance(vae, nn.Module) else None
    if weight is not None and (weight.dtype, weight.device) != (x.dtype, x.device):
        raise DataError(
            f"sources are {x.dtype} on {x.device}, but the model is {weight.dtype} on {weight.device}; convert one"
        )
    low, high = box or (-torch.inf, torch.inf)
    for name, values in (("sources", x), ("targets", x_t)):
        if not bool(((values >= low) & (values <= high)).all()):
            span = f"[{float(values.min()):.4g}, {float(values.max()):.4g}]"
            raise DataError(f"the {name} must lie in the range [{low}, {high}] but span {span}; rescale them")
    equal = (x == x_t).flatten(1).all(1)
    if equal.any():
        which = equal.nonzero().squeeze(1).tolist()
        raise DataError(f"source and target are the same image in pair {which[0]}; there is nothing to attack")


def _distance(a: Tensor, b: Tensor, start: int) -> Tensor:
    distance: Tensor = torch.linalg.vector_norm((a - b).flatten(start), dim=start)
    return distance
