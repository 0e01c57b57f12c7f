"""Attacks under a cap: how much a perturbation of given length can change what the model makes of its input.

One attack alone, or the worst of a small fixed set for each item, as AutoAttack does for classifiers (Croce & Hein
2020): a model is as weak as the strongest attack on it, and no single one is strongest everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vaeaudit.attacks.attacked import Capped
from vaeaudit.attacks.ball import NORMS, length
from vaeaudit.attacks.capped import capped
from vaeaudit.attacks.directions import pull_back, pullback_directions, random_search
from vaeaudit.attacks.modes import names
from vaeaudit.attacks.objectives import Objective
from vaeaudit.attacks.signs import DIRECTIONS, Signs, signs_of
from vaeaudit.attacks.term import DataTerm, Term
from vaeaudit.errors import ConfigError, nearest
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.conditions import encoder, under
from vaeaudit.model.ranges import Range
from vaeaudit.model.vae import VAE
from vaeaudit.progress import GoOn, Progress, always, within
from vaeaudit.stats.draws import noise_set
from vaeaudit.subject.inputs import box_of, check_items, check_pairs, check_size, require_finite_outputs

_DRAWS = 4  # reparameterisation draws of one item in the search
_FRESH = 16  # and in the figures
_STARTS = 24  # directions from which an attack may start
_EIGENVECTORS = 3  # directions of the encoder's pull-back that are tried, both ways


@dataclass(frozen=True, eq=False)
class CappedResult:
    """The strongest distortion of each item (I) under each cap (C), among the ``members`` of the attack.

    (I, C): ``damage``, E ||g(z*) - ref|| over draws that no search has seen; ``nll``, -log p(x|z*) in nats over the
    same draws; ``member``, the index of the attack that found it; ``member_damage`` (M, I, C) what each found, on
    the same draws too. (I,): ``zero_damage`` and ``zero_nll``, both at d = 0. The worst of several is taken on the
    draws that are reported, so that it is never less than a member alone; of M figures it is a little above its own
    expectation.
    ``capped`` is the search that ``signs`` judge, that of the first of several members, with what is handed out in its
    place: ``adversarial`` are inputs (I, C, *shape), or latents (I, C, *latent) where those are moved. ``source`` and
    ``source_reconstruction`` are (I, *shape), ``reconstruction`` (I, C, *shape) at z = the mean.
    """

    objective: Objective
    members: tuple[str, ...]
    seed: int
    capped: Capped
    signs: Signs
    source: Tensor
    source_reconstruction: Tensor
    reconstruction: Tensor
    damage: Tensor
    nll: Tensor
    member: Tensor
    member_damage: Tensor
    zero_damage: Tensor
    zero_nll: Tensor

    @property
    def mode(self) -> str:
        """Name of the attack mode."""
        return self.objective.mode

    @property
    def interrupted(self) -> bool:
        """Whether a search was told to stop before it ended."""
        return self.capped.interrupted


def capped_attack(
    vae: VAE,
    x: Tensor,
    mode: str = "damage",
    x_t: Tensor | None = None,
    *,
    caps: Sequence[float],
    norm: str = "l2",
    similarity: str = "kl",
    on: str = "both",
    ref: str = "reconstruction",
    draws: int = _DRAWS,
    data_range: Range | None = None,
    seed: int = 0,
    max_evaluations: int = 505,
    batch_size: int | None = None,
    items: Sequence[int] | None = None,
    go_on: GoOn = always,
) -> CappedResult:
    """Attack each item with distortions no longer than each cap.

    Args:
        vae: any object that keeps the contract :class:`vaeaudit.VAE`.
        x: items, (I, *input_shape), in the model's range; their dtype and device are used throughout.
        mode: "damage" maximises E ||g(mu(x*) + eta sigma(x*)) - ref|| (Camuto et al. eq. 5); "untargeted" the
            similarity's distance between q(z|x*) and q(z|x) (Kuzina et al. 2022); "latent-side" ||g(z*) - g(mu(x))||
            with the cap on z* - mu(x); "worst" takes for each item the largest damage that any of damage, latent (both
            KL), output, pull-back eigenvectors and random search does, each searched as it would be alone.
        x_t: targets, likewise (I, *input_shape), for "worst".
        caps: largest norms of the distortion.
        norm: "l2" or "linf".
        similarity: of "untargeted".
        on: what of the posterior the perturbation reaches in "damage" and "untargeted": "mean", "std" or "both".
        ref: what damage is measured from: "reconstruction", g(mu(x)), or "input", x.
        draws: of eta for each item in the search; 0 for z = the mean throughout.
        data_range: box for x*; the model's own range where None, no box where it has none either.
        seed: of every random draw.
        max_evaluations: rows of the model for one item and cap, in each attack; four times as many where it still
            gains at that limit.
        batch_size: most rows that the model is given at once; chosen by size where None.
        items: numbers that key the draws of each item; 0, 1, ... where None.
        go_on: asked regularly; on False the search ends with the best it has.

    Raises:
        ConfigError: unknown names; caps that are not positive and finite; "worst" without targets.
        UnsupportedError: the model's posterior does not give what is asked.
        DataError: shapes that do not fit, or values outside the range.
        NonFiniteError: means or reconstructions of the items or of targets are NaN or infinite.
    """
    for what, name, known in (("mode", mode, names(swept=False)), ("norm", norm, NORMS)):
        if name not in known:
            raise ConfigError(
                f"there is no capped attack {what} '{name}'{nearest(name, known)}; try {', '.join(known)}"
            )
    objective = Objective(mode, similarity, on, ref)
    if objective.row.targeted and x_t is None:
        raise ConfigError(f"attack mode '{mode}' needs a target for each item, but none was given; give x_t")
    box = box_of(vae, data_range)
    check_items(vae, x, box, "items")
    if x_t is not None:
        check_pairs(vae, x, x_t, box)
    check_size(x, len(caps), "caps")
    if len({f"{cap:.4g}" for cap in caps}) < len(caps):
        raise ConfigError(f"caps must differ in their first four digits, which name them, but {list(caps)} were given")
    keys = list(range(len(x))) if items is None else list(items)
    attack = _Attack(vae, x, x_t, box, caps, norm, draws, seed, max_evaluations, batch_size, keys, objective, go_on)
    return attack.run()


_SEARCHED = 0.85  # of the time, as measured, goes to searches


class _Attack:
    """What the members of one attack share."""

    def __init__(
        self,
        vae: VAE,
        x: Tensor,
        x_t: Tensor | None,
        box: Range | None,
        caps: Sequence[float],
        norm: str,
        draws: int,
        seed: int,
        max_evaluations: int,
        batch_size: int | None,
        keys: list[int],
        objective: Objective,
        go_on: GoOn,
    ) -> None:
        self.vae, self.x, self.x_t, self.norm, self.draws = vae, x, x_t, norm, draws
        self.seed, self.most, self.keys, self.go_on = seed, max_evaluations, keys, go_on
        self.objective, self.row = objective, objective.row
        self.searches = 0
        self.caps = torch.tensor(list(caps), dtype=torch.float64, device=x.device)
        # The worst of several contains the first to the bit, so it is keyed as that.
        self.key = self.row.members[0] if self.row.members else self.row.name
        size = RowBatches.automatic(vae.input_shape, x.device).size if batch_size is None else batch_size
        self.encoder_rows = RowBatches(size)
        self.rows = RowBatches(max(1, size // (_FRESH if draws else 1)))  # the decoder is given a row for each draw
        self.item = torch.arange(len(x), device=x.device)
        require_finite_outputs(vae, x, self.encoder_rows, keys)
        if x_t is not None:
            require_finite_outputs(vae, x_t, self.encoder_rows, keys, " of the target")
        with torch.no_grad():
            means = self.encoder_rows.map(lambda part, of: (self.mean(part, of),), x, self.item)[0]
            self.noise_shape = under(vae, slice(1)).encode(x[:1]).noise_shape
        # What is moved, and the box it keeps to: the input, or the latents.
        self.point, self.box = (means, None) if self.row.latents else (x, box)
        self.starts = self.directions()

    def noise(self, name: str, shape: tuple[int, ...], draws: int) -> Tensor:
        check = f"attack.{self.key}.{name}"
        return noise_set(shape, draws=draws, items=self.keys, seed=self.seed, check=check, like=self.x)

    def eta(self, name: str) -> Tensor | None:
        draws = _FRESH if name == "fresh" else self.draws
        return self.noise(name, self.noise_shape, draws) if self.draws else None

    def run(self) -> CappedResult:
        """All members, the worst of them for each item and cap, and its figures on fresh draws."""
        search = self.term(self.objective, "eta")
        damaging = self.objective if self.row.search == "raises" else Objective("damage")
        judged = self.term(damaging, "fresh")
        found = self.search(search, self.starts, self.key)
        members, interrupted = {self.key: found.distortion}, found.interrupted
        if self.row.members:
            for name in self.row.members[1:]:
                mode, _, similarity = name.partition(" ")
                term = self.term(Objective(mode, similarity or "kl"), "eta")
                result = self.search(term, self.towards_target(), name)
                members[name] = result.distortion
                interrupted |= result.interrupted
            members |= self.without_gradient(self.term(damaging, "eta"))
        d = torch.stack(list(members.values()))  # (M, I, C, *shape)
        # One member at a time, as it would be judged alone: another batch would round otherwise.
        damages = torch.stack([-self.values(judged, self.point[:, None] + each) for each in d])
        zero_damage = -self.values(judged, self.point[:, None])[:, 0]
        member, place = self.worst(damages)
        item = self.item[:, None]
        damage, distortion = damages[member, item, place], d[member, item, place]
        adversarial = self.point[:, None] + distortion
        # The worst contains the first of its members, does no less than that, and is judged as it: on the draws of its
        # search. On others a search of few draws can lose to chance where draws matter more than a small cap.
        signs = self.signs(search, found)
        if self.row.members:
            found = replace(found, data_term=-damage, zero_data_term=-zero_damage)
        size = length(self.point[:, None].flatten(2), distortion.flatten(2), self.norm)
        found = replace(found, distortion=distortion, adversarial=adversarial, norm=size, interrupted=interrupted)
        reconstruction, nll = self.look(adversarial)
        source_reconstruction, zero_nll = self.look(self.point[:, None])
        return CappedResult(
            objective=self.objective,
            members=tuple(members),
            seed=self.seed,
            capped=found,
            signs=signs,
            source=self.x,
            source_reconstruction=source_reconstruction[:, 0],
            reconstruction=reconstruction,
            damage=damage,
            nll=nll,
            member=member,
            member_damage=damages,
            zero_damage=zero_damage,
            zero_nll=zero_nll[:, 0],
        )

    def term(self, objective: Objective, name: str) -> DataTerm:
        """The data term on the named draws; similarities take at least one."""
        eta = self.eta(name)
        if eta is None and "noise" in objective.row.takes and not objective.row.mean_alone:
            eta = self.noise(name, self.noise_shape, 1)
        return objective.data_term(self.vae, self.point, self.x_t, eta)

    def search(self, term: DataTerm, directions: Tensor, name: str) -> Capped:
        members = max(1, len(self.row.members))
        of_all = within(self.go_on, _SEARCHED * self.searches / members, _SEARCHED * (self.searches + 1) / members)
        self.searches += 1

        def go_on(progress: Progress) -> bool:
            return of_all(replace(progress, stage=f"{name}, {progress.stage}"))

        return capped(
            term,
            self.point,
            self.box,
            self.caps,
            norm=self.norm,
            directions=directions,
            max_evaluations=self.most,
            rows=self.rows,
            go_on=go_on,
        )

    def directions(self) -> Tensor:
        """Where searches start, (R, I, *shape): latents pulled back by the encoder."""
        if self.row.latents:
            return self.noise("starts", tuple(self.point.shape[1:]), _STARTS)
        latent = tuple(self.mean(self.x[:1], self.item[:1]).shape[1:])
        back = pull_back(self.mean, self.x, self.noise("starts", latent, _STARTS), self.encoder_rows)
        # Where the encoder's slope at x is zero, as in a saturated model, nothing comes back.
        blind = (back == 0).flatten(2).all(2)
        if blind.any():
            plain = self.noise("plain", tuple(self.x.shape[1:]), _STARTS)
            back = torch.where(blind.reshape(*blind.shape, *[1] * (back.ndim - 2)), plain, back)
        return back

    def towards_target(self) -> Tensor:
        """Where searches for a target start besides, first."""
        return self.starts if self.x_t is None else torch.cat([(self.x_t - self.x)[None], self.starts])

    def mean(self, points: Tensor, item: Tensor) -> Tensor:
        return under(self.vae, item).encode(points).mean

    def without_gradient(self, yardstick: DataTerm) -> dict[str, Tensor]:
        """The most sensitive directions of the encoder, both ways, and random search, (I, C, *shape) each."""
        latent = tuple(self.mean(self.x[:1], self.item[:1]).shape[1:])
        count = min(_EIGENVECTORS, torch.Size(latent).numel())
        noise = self.noise("eigenvectors", latent, count)
        eigen, _ = pullback_directions(self.mean, self.x, noise, self.encoder_rows)
        radius = self.caps.expand(len(self.x), -1)
        both = {"pull-back": eigen, "random": self.noise("random", tuple(self.x.shape[1:]), DIRECTIONS)}
        return {
            name: random_search(yardstick, self.x, self.box, self.norm, radius, ways, self.rows)[1]
            for name, ways in both.items()
        }

    def worst(self, damage: Tensor) -> tuple[Tensor, Tensor]:
        """Member and cap (I, C) of the largest damage (M, I, C) for each cap, which admits what smaller ones do."""
        items, count = damage.shape[1:]
        if len(damage) == 1:  # the search has seen to that by its own objective
            return torch.zeros_like(damage[0], dtype=torch.long), torch.arange(count, device=damage.device).expand(
                items, -1
            )
        allowed = self.caps[None, :] <= self.caps[:, None]  # (C, C'): what was found under C' is admitted under C
        table = torch.where(allowed[None, None], damage[:, :, None, :], -torch.inf)  # (M, I, C, C')
        which = table.permute(1, 2, 0, 3).reshape(items, count, -1).argmax(2)  # (I, C) over M C'
        return which // count, which % count

    def values(self, term: DataTerm, points: Tensor) -> Tensor:
        """The data term of (I, C, *shape), (I, C)."""
        items, count = points.shape[:2]
        item = self.item.repeat_interleave(count)
        values = Term(term, tuple(points.shape[2:]), self.rows).value(points.flatten(0, 1).flatten(1), item)
        return values.reshape(items, count)

    def look(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions (I, C, *shape) at z = the mean, and -log p(x|z*) (I, C) over fresh draws."""
        count = points.shape[1]
        eta = self.eta("fresh")

        @torch.no_grad()
        def look(part: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
            vae = under(self.vae, of)
            if self.row.latents:
                mean, z = part, part[None]
            else:
                q = vae.encode(part)
                mean = q.mean
                z = mean[None] if eta is None else q.sample(eta[:, of])
            nll = torch.stack([-vae.decode(draw).log_prob(self.x[of]) for draw in z])
            return vae.decode(mean).mean, nll.mean(0)

        rec, nll = self.rows.map(look, points.flatten(0, 1), self.item.repeat_interleave(count))
        return rec.reshape(len(self.x), count, *rec.shape[1:]), nll.reshape(-1, count)

    def signs(self, term: DataTerm, found: Capped) -> Signs:
        return signs_of(
            term,
            None if self.row.latents else encoder(self.vae),
            self.point,
            self.x_t if "x_t" in self.row.takes else None,
            found,
            self.noise("directions", tuple(self.point.shape[1:]), DIRECTIONS),
            box=self.box,
            norm=self.norm,
            rows=self.rows,
        )
