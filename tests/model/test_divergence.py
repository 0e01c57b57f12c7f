"""KL to priors without a closed form, as mixtures and priors of another family are."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributions

import vaeaudit
from vaeaudit.attacks.objectives import output
from vaeaudit.checks.latents.summarise import summarise_latents
from vaeaudit.errors import UnsupportedError
from vaeaudit.model.divergence import closed_form, to_prior
from vaeaudit.model.vae import DiagonalGaussian
from vaeaudit.stats.draws import noise_set
from vaeaudit.subject.plausibility import Verdict, examine


@dataclass(frozen=True, eq=False)
class Mixture:
    """Equal parts of diagonal Gaussians, (K, latents); its KL says that it has no closed form."""

    means: Tensor
    log_stddevs: Tensor

    @property
    def mean(self) -> Tensor:
        return self.means.mean(0, keepdim=True)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return tuple(self.means.shape[1:])

    def sample(self, noise: Tensor) -> Tensor:
        return self.means[:1] + self.log_stddevs[:1].exp() * noise

    def log_prob(self, z: Tensor) -> Tensor:
        parts = distributions.Normal(self.means, self.log_stddevs.exp()).log_prob(z[:, None]).sum(-1)
        return parts.logsumexp(1) - math.log(len(self.means))

    def kl(self, _other: object) -> Tensor:
        raise UnsupportedError("a mixture has no closed-form KL")

    def wasserstein2(self, _other: object) -> Tensor:
        raise UnsupportedError("a mixture has no closed-form distance")

    def rows(self, _index: Tensor) -> "Mixture":
        return self


class Silent(Mixture):
    """A prior that can be drawn from alone."""

    log_prob = None  # type: ignore[assignment]


@pytest.fixture
def model(small_vae: type[Any]) -> Callable[..., Any]:
    """SmallVAE with another prior."""

    def build(prior: Any) -> Any:
        class Other(small_vae):  # type: ignore[misc]
            pass

        Other.prior = property(lambda _: prior)  # type: ignore[attr-defined]
        return Other()

    return build


def mixture(kind: type[Mixture] = Mixture, seed: int = 0) -> Mixture:
    generator = torch.Generator().manual_seed(seed)
    return kind(*(torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(2)))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(40, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def drawn(q: DiagonalGaussian, draws: int) -> Callable[[], Tensor]:
    return lambda: q.sample(
        noise_set(q.noise_shape, draws=draws, items=range(len(q.mean)), seed=0, check="test", like=q.mean)
    )


def normal(mean: Tensor, log_stddev: Tensor, z: Tensor) -> Tensor:
    return distributions.Normal(mean, log_stddev.exp()).log_prob(z).sum((1, 2))


@given(st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_the_density_of_a_diagonal_gaussian_is_torchs(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean, log_stddev, z = (torch.randn(4, 2, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    torch.testing.assert_close(DiagonalGaussian(mean, log_stddev).log_prob(z), normal(mean, log_stddev, z))
    one = DiagonalGaussian(mean[:1], log_stddev[:1])
    torch.testing.assert_close(one.log_prob(z), normal(mean[:1], log_stddev[:1], z))


def test_a_mixture_of_one_part_has_the_closed_form_within_the_error_that_is_stated(model: Any, x: Tensor) -> None:
    part = mixture()
    prior = Mixture(part.means[:1], part.log_stddevs[:1])
    q = model(prior).encode(x)
    exact = q.kl(DiagonalGaussian(prior.means, prior.log_stddevs))
    found = to_prior(q, prior, drawn(q, 400))
    assert found.error is not None
    scores = (found.value - exact) / found.error
    assert float(scores.abs().max()) < 4.5
    assert 0.6 < float(scores.std()) < 1.5  # neither too small an error nor too large
    assert to_prior(q, DiagonalGaussian(prior.means, prior.log_stddevs), drawn(q, 2)).error is None


def test_a_posterior_says_in_a_sentence_that_it_has_no_closed_form() -> None:
    q, prior = DiagonalGaussian.standard((2,), like=torch.zeros(1)), mixture()
    for ask in (q.kl, q.wasserstein2):
        with pytest.raises(UnsupportedError, match="of a DiagonalGaussian and a Mixture has no closed form"):
            ask(prior)  # type: ignore[arg-type]
    chain = vaeaudit.GaussianChain(q, (lambda z: DiagonalGaussian(z, z),))
    with pytest.raises(UnsupportedError, match=r"docs/adapters.md#several-stochastic-layers"):
        chain.kl(q)  # type: ignore[arg-type]


def test_a_posterior_that_knows_the_prior_is_asked_first_and_one_that_stumbles_over_it_has_none() -> None:
    like = torch.zeros(1)

    class Knowing(DiagonalGaussian):
        def kl(self, other: Any) -> Tensor:
            return self.mean.sum(1) + 7 if isinstance(other, Mixture) else super().kl(other)

    class Stumbling(DiagonalGaussian):
        def kl(self, other: Any) -> Tensor:
            return self.mean.sum(1) + other.temperature

    assert closed_form(Knowing.standard((2,), like), mixture()).tolist() == [7]  # type: ignore[union-attr]
    assert closed_form(Stumbling.standard((2,), like), mixture()) is None
    with pytest.raises(AttributeError, match="temperature"):  # a fault of its own
        closed_form(Stumbling.standard((2,), like), Stumbling.standard((2,), like))


def test_latents_estimate_the_elbo_and_leave_out_by_unit_what_the_prior_has_not(model: Any, x: Tensor) -> None:
    prior = mixture()
    vae = model(prior)
    found = vaeaudit.latents(vae, x)
    q = vae.encode(x)
    many = to_prior(q, prior, drawn(q, 4000))
    assert found.kl_error is not None and many.error is not None
    gap = (found.kl - many.value) / (found.kl_error.square() + many.error.square()).sqrt()
    assert float(gap.abs().max()) < 4.5
    assert not found.factorised
    assert found.decomposition is None
    metrics = summarise_latents(found)
    assert {name for name in metrics if "kl" in name} == {"latents.kl.mean", "latents.kl.median"}
    assert "64 draws of each item" in metrics["latents.elbo.mean"].estimator
    assert metrics["latents.elbo.mean"].value == pytest.approx(
        float((found.log_likelihood - many.value).mean()),
        abs=0.05,  # type: ignore[operator]
    )
    assert "latents.active_units.variance" in metrics
    plain = vaeaudit.latents(model(DiagonalGaussian.standard((2,), like=x)), x)
    assert plain.kl_error is None and plain.kl_estimator is None
    torch.testing.assert_close(plain.log_likelihood, found.log_likelihood, rtol=0, atol=0)  # the same draws of z


def test_more_draws_for_the_elbo_are_more_for_the_kl(model: Any, x: Tensor) -> None:
    assert vaeaudit.latents(model(mixture()), x[:4], draws=100).kl_draws == 100
    assert vaeaudit.latents(model(mixture()), x[:4], draws=0).kl_draws == 64


def test_the_output_attack_uses_the_estimate_and_its_gradient(model: Any, x: Tensor) -> None:
    prior = mixture()
    vae = model(prior)
    noise = noise_set((2,), draws=3, items=range(4), seed=0, check="test", like=x)
    term = output(vae, x[:4], x[4:8], noise)
    points, item = x[:4].clone().requires_grad_(True), torch.arange(4)
    value = term(points, item)
    q = vae.encode(points)
    z = q.sample(noise)
    log_q = distributions.Normal(q.mean, q.stddev).log_prob(z).sum(2)
    log_p = torch.stack([prior.log_prob(one) for one in z])
    expected = (log_q - log_p - torch.stack([vae.decode(one).log_prob(x[4:8]) for one in z])).mean(0)
    torch.testing.assert_close(value, expected)
    (slope,) = torch.autograd.grad(value.sum(), points)
    step = 1e-6 * torch.randn(slope.shape, generator=torch.Generator().manual_seed(0), dtype=slope.dtype)
    rise = (term(points.detach() + step, item) - term(points.detach() - step, item)).sum()
    assert float(rise) == pytest.approx(2 * float((slope * step).sum()), rel=1e-5)
    assert bool((vaeaudit.attack(vae, x[:2], x[2:4], "output", lambdas=2).sweep.norm >= 0).all())


@pytest.mark.parametrize("kind", [Mixture, Silent])
def test_whatever_needs_no_kl_to_the_prior_runs_with_any_prior(model: Any, x: Tensor, kind: type[Mixture]) -> None:
    vae = model(mixture(kind))
    vaeaudit.attack(vae, x[:2], x[2:4], "latent", lambdas=1, max_evaluations=20)
    vaeaudit.noise(vae, x[:4], [0.1], draws=2)
    vaeaudit.capped_attack(vae, x[:2], "damage", caps=[0.1], max_evaluations=11)
    looked = examine(vae, x)
    of_kl = next(finding for finding in looked.findings if finding.name == "KL to the prior")
    assert of_kl.verdict is Verdict.PASS
    assert "no closed form, so " + ("none" if kind is Silent else "estimated from one draw") in of_kl.message


def test_without_a_density_what_needs_the_kl_says_which_is_missing_and_where_to_read(model: Any, x: Tensor) -> None:
    vae = model(mixture(Silent))
    missing = r"the prior has no log_prob\(z\).*adapters.md#a-prior-without"
    with pytest.raises(UnsupportedError, match=missing):
        vaeaudit.attack(vae, x[:2], x[2:4], "output", lambdas=2)
    found = vaeaudit.latents(vae, x)
    assert re.search(missing, found.without_kl)
    assert found.kl is None and found.elbo is None and found.kl_error is None
    assert not {name for name in summarise_latents(found) if "kl" in name or "elbo" in name}
    plain = vaeaudit.latents(model(DiagonalGaussian.standard((2,), like=x)), x)
    torch.testing.assert_close(found.log_likelihood, plain.log_likelihood, rtol=0, atol=0)
