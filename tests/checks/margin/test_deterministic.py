"""The margin of an encoder without spread: inf{||d||: ||g(mu(x + d)) - g(mu(x))|| > r}, whose bounds are sure."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vaeaudit.checks.margin.measure import margin, usual_radius
from vaeaudit.checks.margin.record import Margins, margin_entries, margin_warnings
from vaeaudit.checks.margin.summarise import summarise_margin
from vaeaudit.errors import ConfigError, DataError, UnsupportedError
from vaeaudit.model.vae import DiagonalGaussian, GaussianLikelihood


@dataclass(frozen=True, eq=False)
class Point:
    """A posterior without noise: nothing is known of it but its mean."""

    mean: Tensor
    noise_shape = (0,)

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean.expand(*noise.shape[:-1], -1)

    def kl(self, _: object) -> Tensor:
        raise UnsupportedError("a deterministic encoder has no KL")

    wasserstein2 = kl

    def rows(self, index: Tensor) -> "Point":
        return Point(self.mean[index])


@dataclass(frozen=True, eq=False)
class Deaf(Point):
    """The same, asked for noise that it does not listen to."""

    noise_shape = (2,)


class Autoencoder(nn.Module):
    """g(mu(x)) of 6 inputs, 2 latents and 6 outputs; ``posterior`` is made of the mean alone."""

    input_shape, range = (6,), (0.0, 1.0)

    def __init__(self, posterior: Any = Point, activation: nn.Module | None = None, seed: int = 4) -> None:
        super().__init__()
        self.posterior = posterior
        middle = [activation, nn.Linear(7, 7)] if activation is not None else []
        self.encoder = nn.Sequential(nn.Linear(6, 7), *middle, nn.Linear(7, 2))
        middle = [activation] if activation is not None else []
        self.decoder = nn.Sequential(nn.Linear(2, 7), *middle, nn.Linear(7, 6))
        generator = torch.Generator().manual_seed(seed)
        for weights in self.parameters():
            weights.data = 0.5 * torch.randn(weights.shape, generator=generator, dtype=torch.float64)
        self.eval().requires_grad_(False)

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((2,), like=next(self.parameters()))

    def encode(self, x: Tensor) -> Any:
        return self.posterior(self.encoder(x))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(self.decoder(z), torch.zeros((), dtype=z.dtype))


def without_spread(mean: Tensor) -> DiagonalGaussian:
    return DiagonalGaussian(mean, torch.full_like(mean, -math.inf))


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def jacobian(vae: Autoencoder) -> Tensor:
    origin, axes = torch.zeros(1, 6, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    columns: Tensor = vae.decoder(vae.encoder(axes)) - vae.decoder(vae.encoder(origin))
    return columns.T


@pytest.mark.parametrize("posterior", [Point, Deaf, without_spread], ids=["no noise", "deaf to noise", "sigma 0"])
def test_of_a_linear_map_every_bound_is_the_exact_margin(posterior: Any) -> None:
    vae, radii = Autoencoder(posterior), (0.05, 2.0)
    result = margin(vae, images(2), radii, boxed=False, m=0.9, sigma="full", family_wise=True)
    assert result.deterministic
    assert (result.alpha, result.draws) == (0, 0)
    for at in result.at:
        exact = at.r / float(torch.linalg.matrix_norm(jacobian(vae), 2))
        assert at.certified is not None
        assert at.empirical is not None
        assert at.certified.missing == ()
        for bound in (at.certified.everywhere, at.certified.around, at.certified.radius):
            assert bound.tolist() == pytest.approx([exact] * 2, rel=0.015)
            assert (bound <= exact).all()
        assert at.estimates.spectral.tolist() == pytest.approx([exact] * 2, rel=1e-9)
        assert at.estimates.frobenius.tolist() == pytest.approx(
            [at.r / float(torch.linalg.matrix_norm(jacobian(vae)))] * 2, rel=1e-9
        )
        assert (0.999 * exact <= at.empirical.margin).all()
        assert (at.empirical.margin <= 1.05 * exact).all()
        assert (at.kept.p_low == 1).all()
        assert at.fall is None


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh()])
def test_of_a_curved_map_nothing_within_the_certificate_moves_further_and_the_attack_does(
    activation: nn.Module,
) -> None:
    vae, x, r = Autoencoder(activation=activation), images(), 0.4
    (at,) = margin(vae, x, r, boxed=False).at
    assert at.certified is not None
    assert at.empirical is not None
    assert (at.certified.around > at.certified.everywhere).all()
    assert (at.certified.radius <= at.empirical.margin).all()
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(20_000, 1, 6, generator=generator, dtype=torch.float64)
    d = d / d.norm(dim=-1, keepdim=True) * at.certified.radius[:, None]

    def f(x: Tensor) -> Tensor:
        y: Tensor = vae.decoder(vae.encoder(x))
        return y

    assert ((f(x + d) - f(x)).norm(dim=-1) <= r).all()
    assert ((f(x + at.empirical.distortion) - f(x)).norm(dim=-1) > r).all()
    # A brute force from below: no random direction leaves r much sooner than the attack.
    shorter = d / d.norm(dim=-1, keepdim=True) * 0.97 * at.empirical.margin[:, None]
    assert ((f(x + shorter) - f(x)).norm(dim=-1) <= r).all()


def test_the_distortion_keeps_to_the_box_and_an_unbroken_item_is_censored() -> None:
    vae, x = Autoencoder(), images()
    near, far = margin(vae, x, (0.3, 1e3), parts=("empirical",)).at
    assert near.empirical is not None
    assert far.empirical is not None
    moved = x + near.empirical.distortion
    assert ((moved >= 0) & (moved <= 1)).all()
    assert near.empirical.margin.isfinite().all()
    assert far.empirical.censored.all()
    assert near.certified is None


def test_where_a_map_is_too_large_to_propagate_its_global_bound_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaeaudit.checks.margin.deterministic._MOST_NEURONS", 10)
    (at,) = margin(Autoencoder(activation=nn.ReLU()), images(1), 0.5, parts=("certified",)).at
    assert at.certified is not None
    assert at.certified.around.isnan().all()
    assert torch.equal(at.certified.radius, at.certified.everywhere)
    (told,) = at.certified.missing
    assert told.startswith("around each item: linear bounds of 20 neurons and outputs, more than 10")


def test_the_report_and_a_warning_say_so_in_one_sentence() -> None:
    result = margin(Autoencoder(), images(2), 0.5, parts=("certified",))
    margins = Margins(result, (4, 7), "2 of 9")
    (entry,) = margin_entries(margins)
    assert entry.deterministic
    assert (entry.alpha, entry.draws, entry.items[1].p_low, entry.items[1].min_r) == (0, 0, 1, 0)
    assert entry.items[0].pathwise is None
    (told,) = margin_warnings(margins)
    assert "r-robustness degenerates" in told
    assert "are sure" in told
    metrics = summarise_margin(result)
    assert metrics["margin.r0.5.certified.share"].value == 1
    assert "margin.r0.5.pathwise.median" not in metrics


def test_what_is_interrupted_says_so() -> None:
    result = margin(Autoencoder(), images(1), 0.5, go_on=lambda _: False)
    assert result.interrupted
    assert result.at[0].empirical is None


# Neither deterministic nor a diagonal Gaussian


def log_stddev(*values: float) -> Any:
    """A posterior with these log standard deviations, one a latent, or one an item and latent."""

    def posterior(mean: Tensor) -> DiagonalGaussian:
        given = torch.tensor(values, dtype=mean.dtype).view(-1, 2).expand(-1, 2)
        # Of as many items as come: the model is tried on one as well.
        return DiagonalGaussian(mean, given.repeat(len(mean), 1)[: len(mean)])

    return posterior


@dataclass(frozen=True, eq=False)
class Categorical(Point):
    """Hard draws of a category for each latent, by Gumbel's way."""

    noise_shape = (2,)

    def sample(self, noise: Tensor) -> Tensor:
        gumbel = -(-torch.special.log_ndtr(noise)).log()
        return nn.functional.one_hot((self.mean + gumbel).argmax(-1), 2).to(self.mean)


@pytest.mark.parametrize(
    ("posterior", "error", "words"),
    [
        (Categorical, UnsupportedError, "diagonal Gaussian posterior.*this model's is Categorical, which does vary"),
        (log_stddev(-1, -math.inf), UnsupportedError, "a standard deviation of 0 for 2 of 2 items.*not for all"),
        (log_stddev(-1, -1, -math.inf, -math.inf), UnsupportedError, "of 0 for 1 of 2 items"),
        (log_stddev(-1, -1, -1, math.nan), DataError, "NaN or infinite for 1 of 2 items, the first of them item 9"),
        (log_stddev(-1, math.inf), DataError, "NaN or infinite for 2 of 2 items, the first of them item 5"),
    ],
    ids=["categorical", "zero latents", "zero items", "nan", "inf"],
)
def test_a_posterior_that_has_no_margin_is_refused_in_one_sentence(
    posterior: Any, error: type[Exception], words: str
) -> None:
    vae = Autoencoder(posterior)
    for refused in (
        lambda: margin(vae, images(2), 0.5, items=[5, 9]),
        lambda: usual_radius(vae, images(2), 2.0, items=[5, 9], batch_size=None),
    ):
        with pytest.raises(error, match=words) as caught:
            refused()
        assert "\n" not in str(caught.value)


def test_no_radius_can_be_chosen_from_what_does_not_vary() -> None:
    with pytest.raises(ConfigError, match=r"do not vary over draws of the posterior.*give one"):
        usual_radius(Autoencoder(), images(2), 2.0, items=[0, 1], batch_size=None)
