"""What an attack minimises: the data term J(x*) of each mode, without its penalty or cap.

A data term is bound to a model, to the items under attack and to a noise set that stays as it is while an optimiser
runs. Bound to another noise set, the same function gives the value on fresh draws.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import cast

import torch
from torch import Tensor

from vaeaudit.attacks.modes import MODES, Mode, names
from vaeaudit.attacks.similarity import DRAWING, LAYERWISE, RESIDUALS, SIMILARITIES, coupled_terms
from vaeaudit.attacks.term import DataTerm, Squares
from vaeaudit.errors import ConfigError, UnsupportedError, nearest
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.conditions import Encode, encoder, under
from vaeaudit.model.divergence import layers_to_prior, to_prior
from vaeaudit.model.vae import VAE, Chain, DiagonalGaussian, Hierarchical, Posterior, Recombinable, reconstruct

ON = ("both", "mean", "std")
REFERENCES = ("reconstruction", "input")

_Measure = Callable[[Posterior, Tensor], Tensor]  # the posterior of b rows, item (b,) -> (b,)


@dataclass(frozen=True)
class Objective:
    """Which data term an attack minimises; an option that a mode does not use has no effect on it.

    ``mode`` names a row of :data:`vaeaudit.attacks.modes.MODES`, which says which options it takes. Raises
    :class:`ConfigError` for an unknown name.
    """

    mode: str = "latent"
    similarity: str = "kl"
    on: str = "both"
    ref: str = "reconstruction"
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _require("mode", self.mode, names())
        _require("similarity", self.similarity, tuple(SIMILARITIES))
        _require("on", self.on, ON)
        _require("ref", self.ref, REFERENCES)

    @property
    def row(self) -> Mode:
        """What is known of the mode."""
        return MODES[self.mode]

    @property
    def unit(self) -> str:
        """Unit of the data term: "nats", "latent units" or "input units"."""
        return self.row.unit or ("nats" if self.similarity in LAYERWISE else "latent units")

    def data_term(self, vae: VAE, x: Tensor, x_t: Tensor | None = None, noise: Tensor | None = None) -> DataTerm:
        """The data term of items ``x`` (items, *input_shape), or (items, *latent) where latents are perturbed.

        Args:
            vae: the model under attack.
            x: what is perturbed.
            x_t: the target of each item, where the mode takes one.
            noise: (draws, items, *noise_shape), where it takes any; None for a mode at z = the mean.

        Raises:
            ConfigError: the target or the noise is missing, or a layer that the posterior does not have.
            UnsupportedError: the model's posterior does not give what the mode needs.
        """
        if noise is None and "noise" in self.row.takes and not self.row.mean_alone:
            raise ConfigError(
                f"attack mode '{self.mode}' needs a noise set, but none was given; give at least one draw"
            )
        if x_t is None and "x_t" in self.row.takes:
            raise ConfigError(f"attack mode '{self.mode}' needs a target for each item, but none was given; give x_t")
        given = {"x_t": x_t, "noise": noise, **{field.name: getattr(self, field.name) for field in fields(self)}}
        return self.row.function(vae, x, **{name: given[name] for name in self.row.takes})


def latent(
    vae: VAE,
    x: Tensor,
    x_t: Tensor,
    similarity: str,
    noise: Tensor,
    on: str = "both",
    layers: tuple[int, ...] | None = None,
) -> DataTerm:
    """similarity(q(z|x*), q(z|x_t)): Willetts et al. eq. 13, with the target's posterior second.

    On a :class:`vaeaudit.model.vae.Chain` the KL similarities are sums over ``layers``, counted from 1, each coupled by
    the noise set: None for all of them (eq. 15), (1,) for what a decoder of z^1 alone needs (eq. 14), (i,) for a
    layerwise attack (appendix G.4). The similarities that are no KL compare the latents of all layers as one posterior.

    Raises:
        ConfigError: a layer that the posterior does not have, or "mean" with ``on="std"``, which nothing could change.
        UnsupportedError: the posterior does not give what ``on``, ``layers`` or the similarity needs.
    """
    return _similarity_to(x_t, vae, x, similarity, noise, on, layers)


def untargeted(
    vae: VAE,
    x: Tensor,
    similarity: str,
    noise: Tensor,
    on: str = "both",
    layers: tuple[int, ...] | None = None,
) -> DataTerm:
    """-similarity(q(z|x*), q(z|x)): as far from the own posterior as can be (Kuzina et al. 2022, arXiv 2203.09940).

    "kl" has the adversarial posterior first, as in :func:`latent`; what Kuzina et al. call forward KL is "reverse-kl"
    here, and their symmetric KL is half of ours. At d = 0 the gradient is 0, since nothing is nearer: start off it.
    Raises as :func:`latent` does.
    """
    unlike = _similarity_to(x, vae, x, similarity, noise, on, layers)
    return lambda points, item: -unlike(points, item)


def output(vae: VAE, x: Tensor, x_t: Tensor, noise: Tensor, on: str = "both") -> DataTerm:
    """-E_q(z|x*) log p(x_t|z) + KL(q(z|x*) || p(z)), the negative ELBO of the target, in nats.

    Willetts et al. eq. 12 prints the other sign while saying that higher means less effective. The decoder is given
    draws * b rows at once. A KL without a closed form is estimated on the noise set, that of a chain over its layers.
    Raises :class:`UnsupportedError` where it can neither be computed nor estimated.
    """
    encode = _encoder(vae, x, on)
    with torch.no_grad():
        first, prior = under(vae, slice(1)).encode(x[:1]), vae.prior
    if isinstance(first, Chain) and not isinstance(vae, Hierarchical):
        raise UnsupportedError(
            "the output attack needs KL(q(z|x) || p(z)) of all latents, and for a chain of stochastic layers that is "
            "known where the model has conditional_priors; use mode 'latent' or 'damage'"
        )

    def kl(q: Posterior, z: Tensor, eta: Tensor) -> Tensor:
        if isinstance(q, Chain) and isinstance(vae, Hierarchical):
            return torch.stack([layers_to_prior(q, vae, one) for one in eta]).mean(0)
        return to_prior(q, prior, lambda: z).value

    with torch.no_grad():
        kl(first, first.sample(noise[:, :1]), noise[:, :1])  # raises where there is none

    def data_term(points: Tensor, item: Tensor) -> Tensor:
        q, eta = encode(points, item), noise[:, item]
        z = q.sample(eta)  # (draws, b, *latent)
        log_prob = under(vae, item).decode(z.flatten(0, 1)).log_prob(x_t[item.repeat(len(z))])
        return kl(q, z, eta) - log_prob.reshape(len(z), -1).mean(0)

    return data_term


def damage(vae: VAE, x: Tensor, noise: Tensor | None, ref: str = "reconstruction", on: str = "both") -> DataTerm:
    """-E_eta ||g(mu(x*) + eta sigma(x*)) - ref||_2: maximum damage, Camuto et al. eq. 5.

    Without noise it is -||g(mu(x*)) - ref||_2. ``ref`` is g(mu(x)) (the equation) or the input x (the text); ``on``
    says what the perturbation reaches, the mean, the standard deviation or both (fig. 4), while the rest stays that of
    x. The decoder is given draws * b rows at once. Where g(mu(x*)) = ref the gradient of the norm is taken as 0: start
    off d = 0.

    Raises :class:`ConfigError` for ``on="std"`` without noise, which nothing could change.
    """
    _require("ref", ref, REFERENCES)
    if noise is None and on == "std":
        raise ConfigError(
            "an attack on the standard deviation alone changes nothing at z = the mean; give at least one draw of noise"
        )
    encode = _encoder(vae, x, on)
    reference = x if ref == "input" else _rows_of(vae, x, reconstruct)

    def data_term(points: Tensor, item: Tensor) -> Tensor:
        q = encode(points, item)
        z = q.mean[None] if noise is None else q.sample(noise[:, item])  # (draws, b, *latent)
        return -_distance(under(vae, item), z, reference[item])

    return data_term


def latent_side(vae: VAE, z: Tensor) -> DataTerm:
    """-||g(z*) - g(z)||_2 for latents z* = z + delta: the decoder alone is attacked (Lu & Chen 2023, arXiv 2307.02202).

    The points of this data term are latents, (b, *latent).
    """
    reference = _rows_of(vae, z, lambda of_part, part: of_part.decode(part).mean)
    return lambda points, item: -_distance(under(vae, item), points[None], reference[item])


def _distance(vae: VAE, z: Tensor, reference: Tensor) -> Tensor:
    """Mean over draws of ||g(z) - reference||_2, z (draws, b, *latent) and reference (b, *shape) -> (b,)."""
    mean = vae.decode(z.flatten(0, 1)).mean
    gap = mean.reshape(len(z), *reference.shape) - reference
    # vector_norm has gradient 0 at 0, where the square root of a sum of squares would give NaN.
    distances: Tensor = torch.linalg.vector_norm(gap.flatten(2), dim=2)
    return distances.mean(0)


def _rows_of(vae: VAE, values: Tensor, function: Callable[[VAE, Tensor], Tensor]) -> Tensor:
    """``function`` of the model and all rows of ``values``, without a gradient and a bounded number at a time."""
    with torch.no_grad():
        rows = RowBatches.automatic(vae.input_shape, values.device)
        number = torch.arange(len(values), device=values.device)
        return rows.map(lambda part, of: (function(under(vae, of), part),), values, number)[0]


def _similarity_to(
    other: Tensor, vae: VAE, x: Tensor, similarity: str, noise: Tensor, on: str, layers: tuple[int, ...] | None
) -> DataTerm:
    """similarity(q(z|x*), q(z|other))."""
    if on == "std" and similarity == "mean":
        raise ConfigError(
            "an attack on the standard deviation alone does not change the distance of the means; "
            "choose another similarity or attack the mean as well"
        )
    encode = _encoder(vae, x, on)
    _require("similarity", similarity, tuple(SIMILARITIES))
    with torch.no_grad():
        target = vae.encode(other)
    unlike = _unlike(target, similarity, noise, layers)

    def data_term(points: Tensor, item: Tensor) -> Tensor:
        return unlike(encode(points, item), item)

    # Exactly this type: one derived from it may have a KL of its own.
    if type(target) is not DiagonalGaussian or similarity not in RESIDUALS:
        return data_term
    of_target, residuals = target, RESIDUALS[similarity]
    return Squares(
        data_term,
        lambda points, item: residuals(cast(DiagonalGaussian, encode(points, item)), of_target.rows(item)),
    )


def _encoder(vae: VAE, x: Tensor, on: str) -> Encode:
    """What the perturbation makes of the posterior: its mean, its standard deviation or both are those of x*."""
    _require("on", on, ON)
    if on == "both":
        return encoder(vae)
    with torch.no_grad():
        clean = vae.encode(x)
    if not isinstance(clean, Recombinable):
        raise UnsupportedError(
            f"an attack on the {on} alone needs a posterior whose mean and standard deviation can be set apart, which "
            f"{type(clean).__name__} is not; attack both"
        )
    of_x = clean  # its type is known inside the function below

    def encode(points: Tensor, item: Tensor) -> Posterior:
        q, unmoved = cast(Recombinable, under(vae, item).encode(points)), of_x.rows(item)
        return unmoved.with_mean_of(q) if on == "mean" else q.with_mean_of(unmoved)

    return encode


def _unlike(target: Posterior, similarity: str, noise: Tensor, layers: tuple[int, ...] | None) -> _Measure:
    """The similarity of a posterior to that of its item in ``target``."""
    chosen = _layers(target, similarity, layers)
    if isinstance(target, Chain) and chosen not in (None, (1,)):
        return _coupled(target, similarity, noise, chosen)
    measure = SIMILARITIES[similarity]
    if similarity in DRAWING:
        return lambda q, item: measure(q, target.rows(item), noise[:, item])
    return lambda q, item: measure(q, target.rows(item), noise)


def _layers(target: Posterior, similarity: str, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The layers to sum over; None where all latents are compared as one posterior."""
    count = target.layers if isinstance(target, Chain) else 1
    if layers is None:
        return tuple(range(1, count + 1)) if similarity in LAYERWISE else None
    if not layers or len(set(layers)) < len(layers) or not set(layers) <= set(range(1, count + 1)):
        raise ConfigError(
            f"layers must be different numbers from 1 to {count}, the stochastic layers of this model's posterior, "
            f"but {list(layers)} was given"
        )
    if count > 1 and similarity not in LAYERWISE:
        raise UnsupportedError(
            f"single layers of a chain are compared by {', '.join(sorted(LAYERWISE))}, not by '{similarity}'; "
            "choose one of these or leave out layers"
        )
    return layers


def _coupled(target: Chain, similarity: str, noise: Tensor, layers: tuple[int, ...]) -> _Measure:
    """The sum over ``layers`` of the coupled terms of a chain; the target's is run here, once."""
    draws, items = noise.shape[:2]
    with torch.no_grad():
        first, *upper = target.conditionals(noise)
    draw = torch.arange(draws, device=noise.device)[:, None]
    index = [layer - 1 for layer in layers]

    def unlike(q: Posterior, item: Tensor) -> Tensor:
        of, row = noise[:, item], (draw * items + item).flatten()
        of_target = (first.rows(item), *(layer.rows(row) for layer in upper))
        return coupled_terms(cast(Chain, q).conditionals(of), of_target, of, similarity)[index].sum(0)

    return unlike


def _require(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ConfigError(f"there is no attack {what} '{name}'{nearest(name, known)}; there are {', '.join(known)}")
