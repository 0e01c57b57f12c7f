"""Points, relaxed categoricals and products, each against another way to its figures."""

import math

import pytest
import torch
from torch import Tensor, distributions

import vaeaudit
from vaeaudit import Concrete, DiagonalGaussian, FullGaussian, Point, Product
from vaeaudit.errors import ContractError, UnsupportedError
from vaeaudit.model.families import gaussian_part
from vaeaudit.model.vae import Discrete, Joint, Recombinable


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(n: int, seed: int = 0) -> Product:
    gaussian = DiagonalGaussian(randn(n, 2, seed=seed), 0.3 * randn(n, 2, seed=seed + 1))
    return Product((gaussian, Concrete(randn(n, 3, seed=seed + 2), 0.67)))


def test_the_classes_of_concrete_draws_are_the_categorical() -> None:
    q = Concrete(torch.tensor([[0.5, -1.0, 1.0]], dtype=torch.float64), 0.67)
    drawn = q.sample(randn(40_000, 1, 3))
    torch.testing.assert_close(drawn.sum(-1), torch.ones(40_000, 1, dtype=torch.float64))
    shares = torch.bincount(drawn.argmax(-1).flatten(), minlength=3) / 40_000
    torch.testing.assert_close(shares.double(), q.mean[0], rtol=0, atol=4 * 0.5 / 200)


def test_concrete_draws_have_the_density_of_maddison_et_al() -> None:
    q = Concrete(torch.tensor([[0.5, -1.0, 1.0]], dtype=torch.float64), 0.67)
    other = torch.distributions.RelaxedOneHotCategorical(torch.tensor(0.67).double(), logits=q.logits[0])
    torch.manual_seed(0)
    for power in (1, 2):
        expected = other.sample((40_000,)).pow(power).mean(0)
        torch.testing.assert_close(q.sample(randn(40_000, 1, 3)).pow(power).mean((0, 1)), expected, rtol=0, atol=0.01)


def test_the_kl_of_a_product_is_that_of_torchs_distributions_and_of_draws() -> None:
    q, p = both(4), both(4, seed=9)
    gaussian, other = (torch.distributions.Normal(d.parts[0].mean, d.parts[0].stddev) for d in (q, p))  # type: ignore[attr-defined]
    classes, of_other = (torch.distributions.Categorical(logits=d.parts[1].logits) for d in (q, p))  # type: ignore[attr-defined]
    normal, categorical = torch.distributions.kl_divergence(gaussian, other), torch.distributions.kl_divergence
    torch.testing.assert_close(q.kl(p), normal.sum(1) + categorical(classes, of_other), rtol=1e-12, atol=0)
    torch.manual_seed(0)
    z, c = gaussian.sample((50_000,)), classes.sample((50_000,))
    log_ratio = (gaussian.log_prob(z) - other.log_prob(z)).sum(2) + classes.log_prob(c) - of_other.log_prob(c)
    assert bool(((log_ratio.mean(0) - q.kl(p)).abs() < 5 * log_ratio.std(0) / math.sqrt(50_000)).all())


def test_a_products_latents_are_its_parts_side_by_side() -> None:
    q, noise = both(4), randn(2, 4, 5)
    gaussian, classes = q.parts
    assert isinstance(q, Joint) and isinstance(classes, Discrete)
    z = q.sample(noise)
    assert torch.equal(z[..., :2], gaussian.sample(noise[..., :2]))
    assert torch.equal(z[..., 2:], classes.sample(noise[..., 2:]))
    assert torch.equal(q.rows(torch.tensor([2, 0])).sample(noise[:, [2, 0]]), z[:, [2, 0]])
    part = gaussian_part(q)
    assert part is not None and torch.equal(part.log_stddev, gaussian.log_stddev)  # type: ignore[attr-defined]
    assert gaussian_part(classes) is None


def test_the_mean_of_another_is_that_of_its_gaussian_latents_and_its_classes_stay() -> None:
    q, p, noise = both(4), both(4, seed=9), randn(3, 4, 5)
    assert isinstance(q, Recombinable)
    moved = q.with_mean_of(p).sample(noise)
    assert torch.equal(moved[..., 2:], q.sample(noise)[..., 2:])
    torch.testing.assert_close(moved[..., :2] - q.sample(noise)[..., :2], (p.mean - q.mean)[:, :2].expand(3, 4, 2))


def test_the_2_wasserstein_distance_of_a_product_is_that_of_its_parts_together() -> None:
    whole = [DiagonalGaussian(randn(4, 3, seed=s), randn(4, 3, seed=s + 1)) for s in (0, 5)]
    a, b = (
        Product(
            (DiagonalGaussian(q.mean[:, :1], q.log_stddev[:, :1]), DiagonalGaussian(q.mean[:, 1:], q.log_stddev[:, 1:]))
        )
        for q in whole
    )
    torch.testing.assert_close(a.wasserstein2(b), whole[0].wasserstein2(whole[1]), rtol=1e-12, atol=0)
    with pytest.raises(UnsupportedError, match="classes have none"):
        both(2).wasserstein2(both(2))


def test_a_point_varies_with_nothing_and_keeps_the_shape_of_its_latents() -> None:
    q = Point(randn(4, 2, 3, 3))
    assert torch.equal(q.sample(randn(5, 4, 0)), q.mean.expand(5, 4, 2, 3, 3))
    assert torch.equal(q.rows(torch.tensor([1, 1])).mean, q.mean[[1, 1]])
    torch.testing.assert_close(q.wasserstein2(Point(q.mean + 1)), torch.full((4,), math.sqrt(18), dtype=torch.float64))
    with pytest.raises(UnsupportedError, match="has no KL"):
        q.kl(q)


def test_a_mixture_has_the_density_and_the_moments_of_torchs_and_one_row() -> None:
    generator = torch.Generator().manual_seed(2)
    mean, log_stddev = randn(2, 3, 2)
    mixture = vaeaudit.Mixture(vaeaudit.DiagonalGaussian(mean, log_stddev))
    parts = distributions.Independent(distributions.Normal(mean, log_stddev.exp()), 1)
    theirs = distributions.MixtureSameFamily(distributions.Categorical(torch.ones(3, dtype=torch.float64)), parts)
    z = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(mixture.log_prob(z), theirs.log_prob(z))
    draws = mixture.sample(torch.randn(200_000, 1, 3, generator=generator, dtype=torch.float64))
    assert draws.shape == (200_000, 1, 2)
    torch.testing.assert_close(draws.mean(0), mixture.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(draws.var(0)[0], theirs.variance, rtol=0.02, atol=0)
    assert mixture.rows(torch.tensor([0, 0])).mean.shape == (1, 2)
    for ask in (mixture.kl, mixture.wasserstein2):
        with pytest.raises(UnsupportedError, match="a mixture has no closed-form"):
            ask(mixture)


def test_parts_that_are_not_flat_are_refused() -> None:
    with pytest.raises(ContractError, match=r"part 2 of a product must be \(rows, width\).* \(4, 2, 3\); flatten it"):
        Product((Point(randn(4, 1)), Point(randn(4, 2, 3))))
    assert {"Concrete", "Point", "Product"} <= set(vaeaudit.__all__)


# --- full covariance ---


def full(n: int, seed: int = 0) -> FullGaussian:
    lower = 0.4 * randn(n, 3, 3, seed=seed + 1).tril(-1)
    return FullGaussian(randn(n, 3, seed=seed), lower + torch.diag_embed((0.5 * randn(n, 3, seed=seed + 2)).exp()))


def theirs(q: FullGaussian) -> distributions.MultivariateNormal:
    return distributions.MultivariateNormal(q.mean, scale_tril=q.cholesky)


def test_a_full_gaussian_is_torchs_multivariate_normal() -> None:
    q, p = full(4), full(4, seed=9)
    torch.testing.assert_close(q.kl(p), distributions.kl_divergence(theirs(q), theirs(p)), rtol=1e-12, atol=0)
    z = randn(4, 3, seed=5)
    torch.testing.assert_close(q.log_prob(z), theirs(q).log_prob(z), rtol=1e-12, atol=0)
    drawn = q.sample(randn(40_000, 4, 3))
    assert drawn.shape == (40_000, 4, 3)
    for row in range(4):
        covariance = theirs(q).covariance_matrix[row]
        torch.testing.assert_close(torch.cov(drawn[:, row].T), covariance, rtol=0, atol=0.06 * float(covariance.max()))
    terms = torch.stack([q.log_prob(one) - p.log_prob(one) for one in drawn[:4000]])
    assert bool(((terms.mean(0) - q.kl(p)).abs() < 5 * terms.std(0) / math.sqrt(4000)).all())
    index = torch.tensor([2, 0, 2])
    torch.testing.assert_close(q.rows(index).kl(p.rows(index)), q.kl(p)[index])
    assert torch.equal(q.with_mean_of(p).mean, p.mean) and isinstance(q, Recombinable)


def test_a_full_gaussian_that_is_diagonal_is_the_diagonal_one() -> None:
    d, e = (DiagonalGaussian(randn(4, 3, seed=k), 0.5 * randn(4, 3, seed=k + 1)) for k in (0, 7))
    f, g = (FullGaussian(one.mean, torch.diag_embed(one.stddev)) for one in (d, e))
    for other in (g, e):
        torch.testing.assert_close(f.kl(other), d.kl(e), rtol=1e-12, atol=0)
        torch.testing.assert_close(f.wasserstein2(other), d.wasserstein2(e), rtol=1e-12, atol=0)
    prior = DiagonalGaussian.standard((3,), d.mean)  # of one row
    torch.testing.assert_close(f.kl(prior), d.kl(prior), rtol=1e-12, atol=0)


def test_the_wasserstein_distance_of_full_gaussians_is_that_of_bures() -> None:
    q, p = full(4), full(4, seed=9)
    a, b = theirs(q).covariance_matrix, theirs(p).covariance_matrix

    def root(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ torch.diag_embed(values.clamp(min=0).sqrt()) @ vectors.mT

    across = root(root(b) @ a @ root(b))
    trace = (a + b - 2 * across).diagonal(dim1=1, dim2=2).sum(1)
    expected = ((q.mean - p.mean).square().sum(1) + trace).sqrt()
    torch.testing.assert_close(q.wasserstein2(p), expected, rtol=1e-9, atol=0)


def test_at_a_match_full_gaussians_are_0_apart_with_a_finite_slope() -> None:
    q = full(4)
    mean = q.mean.clone().requires_grad_()
    near = FullGaussian(mean, q.cholesky)
    apart = near.kl(q)
    assert bool((apart < 1e-25).all()) and bool((near.wasserstein2(q) < 1e-7).all())
    (slope,) = torch.autograd.grad((apart + near.wasserstein2(q)).sum(), mean)
    assert bool(slope.isfinite().all())
    moved = FullGaussian(q.mean + 1e-6, q.cholesky)  # whose KL is far below the rounding of its parts
    expected = 0.5 * torch.linalg.solve(theirs(q).covariance_matrix, torch.full((4, 3), 1e-6).double()).sum(1) * 1e-6
    torch.testing.assert_close(moved.kl(q), expected, rtol=1e-4, atol=0)


def test_a_full_gaussian_and_another_family_have_no_closed_form() -> None:
    with pytest.raises(UnsupportedError, match="the KL of a FullGaussian and a Point has no closed form"):
        full(4).kl(Point(randn(4, 3)))
