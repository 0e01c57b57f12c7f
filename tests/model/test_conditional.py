"""Conditional models: every check is that of each item's own model, q(z|x, c) and p(x|z, c) at the item's condition."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vaeaudit
from vaeaudit import Conditioned, DiagonalGaussian, GaussianLikelihood
from vaeaudit.attacks.margin import empirical_margin
from vaeaudit.model.batches import RowBatches
from vaeaudit.subject.encodings import encodings

N = 4
DOUBLE = torch.float64


class Conditional(nn.Module):
    """Linear in x, and bent by a label, in encoder and decoder alike."""

    input_shape, range, condition_shape = (2, 3), (0.0, 1.0), ()

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        sizes = {"encoder": (4, 6), "decoder": (6, 2), "of_encoder": (4, 3), "of_decoder": (6, 3)}
        for name, size in sizes.items():
            setattr(self, name, nn.Parameter(torch.randn(size, generator=generator, dtype=DOUBLE), False))

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((2,), like=self.encoder)

    def encode(self, x: Tensor, c: Tensor) -> DiagonalGaussian:
        mean, log_stddev = torch.tanh(x.flatten(1) @ self.encoder.T + self.of_encoder.T[c]).chunk(2, dim=1)
        return DiagonalGaussian(mean, log_stddev)

    def decode(self, z: Tensor, c: Tensor) -> GaussianLikelihood:
        mean = torch.sigmoid(z @ self.decoder.T + 2 * self.of_decoder.T[c]).unflatten(1, self.input_shape)
        return GaussianLikelihood(mean, mean.new_tensor(-1.0))


MODEL = Conditional().eval()
X = torch.rand(N, 2, 3, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
X_T = torch.rand(N, 2, 3, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
C = torch.tensor([0, 2, 1, 1])


def attacked(vae: Any, of: slice) -> Tensor:
    given = {"lambdas": [0.1, 1.0], "restarts": 0, "max_evaluations": 20, "items": range(N)[of], "batch_size": 5}
    found = vaeaudit.attack(vae, X[of], X_T[of], **given)
    return torch.cat([found.sweep.norm, found.target_nll, found.target_floor[:, None]], 1)


def capped(mode: str) -> Callable[[Any, slice], Tensor]:
    def run(vae: Any, of: slice) -> Tensor:
        given = {"x_t": X_T[of], "max_evaluations": 12, "items": range(N)[of], "draws": 1}
        found = vaeaudit.capped_attack(vae, X[of], mode, caps=(0.3,), **given)
        return torch.cat([found.damage, found.nll, found.zero_damage[:, None]], 1)

    return run


def estimated(vae: Any, of: slice) -> Tensor:
    found = vaeaudit.margin(vae, X[of], 0.2, draws=20, items=range(N)[of], parts=(), batch_size=7)
    return torch.stack([found.norms.spectral, found.min_radius.estimate, found.at[0].kept.p0], 1)


def broken(vae: Any, of: slice) -> Tensor:
    """The empirical margin, of which one step is enough to see under which condition it is."""
    given = {"seed": 0, "items": range(N)[of], "rows": RowBatches(4000), "draws": 1024, "tolerance": 0.9}
    found = empirical_margin(vae, X[of], 0.2, box=(0.0, 1.0), most=2.0, **given)
    return torch.stack([found.margin, found.p], 1)


def noisy(vae: Any, of: slice) -> Tensor:
    found = vaeaudit.noise(vae, X[of], (0.1,), draws=3, items=range(N)[of], batch_size=4)
    return torch.cat([found.clean, found.log_likelihood[0], found.error], 0).T


def reconstructed(vae: Any, of: slice) -> Tensor:
    found = vaeaudit.reconstruction(vae, X[of], draws=2, items=range(N)[of], batch_size=4)
    return torch.stack([*found.at_mean.values(), *found.at_draws.values()], 1)


def encoded(vae: Any, of: slice) -> Tensor:
    found = encodings(vae, X[of], items=range(N)[of], batch_size=4)
    return torch.cat([found.mean, found.log_stddev], 1)


CHECKS = {
    "attack": attacked,
    "damage": capped("damage"),
    "latent side": capped("latent-side"),
    "worst": capped("worst"),
    "margin": estimated,
    "empirical margin": broken,
    "noise": noisy,
    "reconstruction": reconstructed,
    "latents and mig": encoded,
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_check_of_all_items_is_that_of_each_alone_under_its_own_condition(
    check: Callable[[Any, slice], Tensor],
) -> None:
    together = check(Conditioned(MODEL, C), slice(None))
    for k in (1, N - 1):
        alone = check(Conditioned(MODEL, C[k : k + 1]), slice(k, k + 1))
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-6, atol=1e-9, equal_nan=True)
    permuted = check(Conditioned(MODEL, C.roll(1)), slice(None))
    assert ((together - permuted).nan_to_num().abs() > 1e-6).any(1).sum() > N // 2
