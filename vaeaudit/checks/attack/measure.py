"""The attack check: how far an input must move before its posterior is another input's.

Runs the lambda sweep of one mode on given pairs, and measures what the papers report for every result.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeaudit.attacks.attacked import PENALTIES, Sweep
from vaeaudit.attacks.modes import names
from vaeaudit.attacks.objectives import Objective
from vaeaudit.attacks.probes import DrawTerm
from vaeaudit.attacks.search import Effort
from vaeaudit.attacks.signs import DIRECTIONS, Signs, signs_of
from vaeaudit.attacks.similarity import DRAWING
from vaeaudit.attacks.sweep import geometric_lambdas, sweep
from vaeaudit.attacks.term import DataTerm, Term
from vaeaudit.errors import ConfigError, DataError, nearest
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.conditions import encoder, under
from vaeaudit.model.ranges import Range
from vaeaudit.model.vae import VAE, Chain
from vaeaudit.optim.lbfgsb import Stopping
from vaeaudit.progress import GoOn, always, within
from vaeaudit.stats.draws import noise_set
from vaeaudit.subject.inputs import box_of, check_pairs, check_size, require_finite_outputs

_MOST_LAMBDAS = 10_000  # more would not tell anything about the curve
_SEARCHED = 0.85  # of the time, as measured, goes to the search, the rest to what is made of it
_DRAWS = 16  # reparameterisation draws of one item, where an expectation over z has no closed form


@dataclass(frozen=True, eq=False)
class AttackResult:
    """A sweep with what it does to reconstructions: P pairs, L lambda, figures at z = the mean unless stated.

    ``objective`` is what was minimised, ``signs`` are its failure signs, one column a pair.
    (P, L): ``fresh_data_term`` is the data term on noise that the search never saw, None where it takes no noise;
    ``target_nll`` is -log p(x_t|z) in nats, the mean over draws z ~ q(z|x*) on that noise; ``target_error``
    ||x_t - rec(x*)||; ``own_error`` ||x* - rec(x*)||.
    (P,): ``source_nll`` is ``target_nll`` at d = 0; ``target_floor`` ||x_t - rec(x_t)||, what a perfect match
    reaches; ``source_error`` ||x_t - rec(x)||, where the attack starts; ``gap`` ||x_t - x||.
    ``first_kl`` (P, L) is KL(q(z^1|x*) || q(z^1|x_t)) of a chain's first layer, whatever was minimised; None where the
    posterior is no chain.
    (P, *shape): ``source`` and ``target`` with ``source_reconstruction`` and ``target_reconstruction``;
    (P, L, *shape): ``reconstruction`` rec(x*).
    """

    objective: Objective
    seed: int
    sweep: Sweep
    signs: Signs
    source: Tensor
    source_reconstruction: Tensor
    target: Tensor
    target_reconstruction: Tensor
    reconstruction: Tensor
    fresh_data_term: Tensor | None
    target_nll: Tensor
    target_error: Tensor
    own_error: Tensor
    source_nll: Tensor
    target_floor: Tensor
    source_error: Tensor
    gap: Tensor
    first_kl: Tensor | None = None

    @property
    def mode(self) -> str:
        """Name of the attack mode."""
        return self.objective.mode

    @property
    def unit(self) -> str:
        """Unit of the data term and the objective."""
        return self.objective.unit

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
    on: str = "both",
    layers: Sequence[int] | None = None,
    penalty: str = "l2",
    restarts: int = 7,
    data_range: Range | None = None,
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
        mode: "latent" minimises similarity(q(z|x + d), q(z|x_t)) + lambda pen(d), "output"
            -E_q(z|x + d) log p(x_t|z) + KL(q(z|x + d) || p(z)) + lambda pen(d).
        lambdas: how many, geometric from 2^-20 to 2^20; or the values themselves.
        similarity: of the latent attack, a name of :data:`vaeaudit.attacks.similarity.SIMILARITIES`.
        on: what of the posterior the perturbation reaches: "mean", "std" or "both"; the rest stays that of x.
        layers: of a chain of stochastic layers, counted from 1, that the latent attack compares; all where None.
        penalty: "l2", ||d||_2, or "l2sq", ||d||_2^2.
        restarts: points between source and target from which is searched besides the source, at least 0.
        data_range: box for x + d; the model's own range where None, no box where it has none either.
        seed: of every random draw.
        max_evaluations: of the objective, for refining one problem; exploring takes up to a twelfth of them a start,
            for every third, and where a pair's figures could still fall, its problems are searched on to four times as
            many.
        batch_size: most rows that the model is given at once; chosen by size where None.
        items: numbers that key the draws of each source; 0, 1, ... where None.
        go_on: asked regularly; on False the sweep ends with the best it has.

    Raises:
        ConfigError: unknown mode, similarity, penalty, on or layer; lambda not positive and finite; restarts below 0;
            no evaluation.
        UnsupportedError: the model's posterior does not give what is asked.
        DataError: shapes or types that do not fit, values outside the range, no pair, or a pair of equal images.
        NonFiniteError: means or reconstructions of sources or targets are NaN or infinite.
    """
    for what, name, known in (("mode", mode, names(swept=True)), ("penalty", penalty, PENALTIES)):
        if name not in known:
            raise ConfigError(f"there is no attack {what} '{name}'{nearest(name, known)}; there are {', '.join(known)}")
    if restarts < 0:
        raise ConfigError(f"an attack cannot have {restarts} restarts; give 0 or more")
    if max_evaluations < 1:
        raise ConfigError(f"an attack needs at least one evaluation of a problem, but {max_evaluations} were given")
    objective = Objective(mode, similarity, on, layers=None if layers is None else tuple(layers))
    box = box_of(vae, data_range)
    check_pairs(vae, x, x_t, box)
    values = _lambdas(lambdas, x)
    check_size(x, len(values), "values of lambda")
    keys = list(range(len(x))) if items is None else list(items)
    if len(keys) != len(x):
        raise DataError(f"each of the {len(x)} sources needs an item number, but {len(keys)} came; give one each")
    with torch.no_grad():
        posterior = under(vae, slice(1)).encode(x_t[:1])
    shape = posterior.noise_shape
    rows = RowBatches.automatic(vae.input_shape, x.device) if batch_size is None else RowBatches(batch_size)
    require_finite_outputs(vae, x, rows, keys)
    require_finite_outputs(vae, x_t, rows, keys, " of the target")

    def noise(name: str, of: tuple[int, ...] = shape, draws: int = _DRAWS) -> Tensor:
        return noise_set(of, draws=draws, items=keys, seed=seed, check=f"attack.{mode}{name}", like=x)

    searched = RowBatches(max(1, rows.size // _DRAWS)) if objective.row.decodes else rows
    found = sweep(
        objective.data_term(vae, x, x_t, noise("")),
        x,
        x_t,
        box,
        values,
        penalty=penalty,
        floor=objective.row.floor,
        effort=Effort(Stopping.for_dtype(x.dtype, max_evaluations), starts=1 + restarts),
        rows=searched,
        go_on=within(go_on, 0.0, _SEARCHED),
    )
    fresh = noise(".fresh")
    drawing = objective.row.decodes or similarity in DRAWING or isinstance(posterior, Chain)
    terms = [objective.data_term(vae, x, x_t, fresh[draw : draw + 1]) for draw in range(_DRAWS if drawing else 0)]
    signs = signs_of(
        objective.data_term(vae, x, x_t, noise("")),
        encoder(vae),
        x,
        x_t,
        found,
        noise(".directions", tuple(x.shape[1:]), DIRECTIONS),
        box=box,
        norm="l2",
        rows=searched,
        fresh=_each(terms) if drawing else None,
    )
    again = objective.data_term(vae, x, x_t, fresh) if drawing else None
    return _measure(vae, x, x_t, objective, seed, found, signs, again, fresh, searched)


def _each(terms: Sequence[DataTerm]) -> DrawTerm:
    """The data terms of single draws as one function, (b, draws)."""
    return lambda points, item: torch.stack([term(points, item) for term in terms], 1)


def _measure(
    vae: VAE,
    x: Tensor,
    x_t: Tensor,
    objective: Objective,
    seed: int,
    found: Sweep,
    signs: Signs,
    fresh_term: DataTerm | None,
    noise: Tensor,
    rows: RowBatches,
) -> AttackResult:
    pairs, count = found.norm.shape
    pair = torch.arange(pairs, device=x.device)

    @torch.no_grad()
    def look(points: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        """rec(x*) (b, *shape) and -log p(x_t|z) (b,) averaged over the draws."""
        of_part = under(vae, of)
        posterior = of_part.encode(points)
        nll = torch.stack([-of_part.decode(z).log_prob(x_t[of]) for z in posterior.sample(noise[:, of])])
        return of_part.decode(posterior.mean).mean, nll.mean(0)

    @torch.no_grad()
    def first_layer(points: Tensor, of: Tensor) -> tuple[Tensor]:
        return (under(vae, of).encode(points).kl(target.rows(of)),)

    every, points = pair.repeat_interleave(count), found.adversarial.flatten(0, 1)
    with torch.no_grad():
        target, first_kl = vae.encode(x_t), None
    if isinstance(target, Chain):
        first_kl = rows.map(first_layer, points, every)[0].reshape(pairs, count)
    reconstruction, target_nll = rows.map(look, points, every)
    source_reconstruction, source_nll = rows.map(look, x, pair)
    target_reconstruction, _ = rows.map(look, x_t, pair)
    reconstruction = reconstruction.reshape(found.adversarial.shape)
    shape = tuple(x.shape[1:])
    return AttackResult(
        objective=objective,
        seed=seed,
        sweep=found,
        signs=signs,
        source=x,
        source_reconstruction=source_reconstruction,
        target=x_t,
        target_reconstruction=target_reconstruction,
        reconstruction=reconstruction,
        fresh_data_term=Term(fresh_term, shape, rows).value(points.flatten(1), every).reshape(pairs, count)
        if fresh_term
        else None,
        target_nll=target_nll.reshape(pairs, count),
        target_error=_distance(x_t[:, None], reconstruction, 2),
        own_error=_distance(found.adversarial, reconstruction, 2),
        source_nll=source_nll,
        target_floor=_distance(x_t, target_reconstruction, 1),
        source_error=_distance(x_t, source_reconstruction, 1),
        gap=_distance(x_t, x, 1),
        first_kl=first_kl,
    )


def _lambdas(lambdas: int | Sequence[float], like: Tensor) -> Tensor:
    if isinstance(lambdas, int):
        if not 1 <= lambdas <= _MOST_LAMBDAS:
            raise ConfigError(f"an attack takes 1 to {_MOST_LAMBDAS:,} values of lambda, but {lambdas} were asked for")
        lambdas = geometric_lambdas(lambdas)
    values = torch.tensor([float(value) for value in lambdas], dtype=like.dtype, device=like.device)
    if not len(values) or not bool(((values > 0) & values.isfinite()).all()):
        precision = str(like.dtype).removeprefix("torch.")
        raise ConfigError(f"lambda must be positive and finite in {precision}, at least one, but {list(lambdas)} came")
    return values


def _distance(a: Tensor, b: Tensor, start: int) -> Tensor:
    distance: Tensor = torch.linalg.vector_norm((a - b).flatten(start), dim=start)
    return distance
