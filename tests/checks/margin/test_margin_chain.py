"""Margins of a posterior of several layers: the input moves z^1, and whatever stands above follows from it."""

import math
from typing import Any

import pytest
import torch
from scipy import optimize, stats
from torch import Tensor, nn

import vaeaudit
from vaeaudit import DiagonalGaussian, GaussianChain, GaussianLikelihood
from vaeaudit.errors import UnsupportedError

R = 1.0


class Linear(nn.Module):
    """z1 = A x + s1 eta1, z2 = B z1 + s2 eta2, and one output w'(z1, z2), of which w2 = 0 makes it read z1 alone."""

    input_shape, range = (4,), None

    def __init__(self, above: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        A, B, w = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (2, 3), (1, 5)))
        self.s1, self.s2 = torch.tensor([0.4, 0.2, 0.3]).double(), torch.tensor([0.3, 0.2]).double()
        self.up, self.over, self.out = (nn.Linear(m.shape[1], len(m), bias=False, dtype=m.dtype) for m in (A, B, w))
        w[:, 3:] *= above
        for layer, weight in ((self.up, A), (self.over, B), (self.out, w)):
            layer.weight = nn.Parameter(weight)
        self.eval().requires_grad_(False)

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((5,), self.s1)

    def encode(self, x: Tensor) -> GaussianChain:
        mean = self.up(x)
        return GaussianChain(DiagonalGaussian(mean, self.s1.log().expand_as(mean)), (self.upper,))

    def upper(self, z: Tensor) -> DiagonalGaussian:
        mean = self.over(z)
        return DiagonalGaussian(mean, self.s2.log().expand_as(mean))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(self.out(z), z.new_zeros(()))

    def exact(self) -> float:
        """R = a / |A'c|, where P(|a + tau eta| <= r) = 1/2, c = w1 + B'w2 and tau^2 = |c s1|^2 + |w2 s2|^2."""
        w1, w2 = self.out.weight[0, :3], self.out.weight[0, 3:]
        c = w1 + self.over.weight.T @ w2
        tau = math.hypot(float((c * self.s1).norm()), float((w2 * self.s2).norm()))
        shift = optimize.brentq(
            lambda a: stats.norm.cdf((R - a) / tau) - stats.norm.cdf((-R - a) / tau) - 0.5, 0, 5 * R + 5 * tau
        )
        return float(shift / (self.up.weight.T @ c).norm())


@pytest.mark.parametrize("above", [0.0, 1.0])
@pytest.mark.parametrize("sigma", ["frozen", "full"])
def test_the_margin_of_a_chain_lies_between_its_bounds(above: float, sigma: Any) -> None:
    vae, x = Linear(above), torch.tensor([[0.3, -0.2, 0.5, 0.1]]).double()
    result = vaeaudit.margin(vae, x, R, sigma=sigma, effort="fast")
    (at,), exact = result.at, vae.exact()
    assert result.chain and at.certified is not None and at.empirical is not None
    assert 0.1 * exact < float(at.certified.radius) <= exact <= float(at.empirical.margin) < 1.1 * exact
    assert bool(at.certified.pathwise.isnan().all())
    assert any("above the first move with it" in why for why in at.certified.missing)
    expected = torch.linalg.matrix_norm(vae.up.weight / vae.s1[:, None], 2)
    torch.testing.assert_close(result.norms.whitened, expected[None])


def test_a_posterior_of_full_covariance_has_no_margin_here() -> None:
    class Full(Linear):
        def encode(self, x: Tensor) -> Any:
            mean = self.up(x)
            return vaeaudit.FullGaussian(mean, torch.eye(3).double().expand(len(x), 3, 3))

    with pytest.raises(UnsupportedError, match="but this model's is FullGaussian"):
        vaeaudit.margin(Full(0.0), torch.zeros(1, 4).double(), R)
