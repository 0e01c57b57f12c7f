"""Conditional models: every check is that of each item's own model, q(z|x, c) and p(x|z, c) at the item's condition."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import vaeaudit
from vaeaudit import Conditioned, DiagonalGaussian, GaussianLikelihood
from vaeaudit.attacks.margin import empirical_margin
from vaeaudit.data.items import fit
from vaeaudit.data.sources import read
from vaeaudit.errors import ContractError, DataError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.contract import fault_of
from vaeaudit.model.registry import open_model
from vaeaudit.subject.encodings import encodings
from vaeaudit.subject.opened import bound

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


def test_a_certificate_is_of_items_of_one_condition() -> None:
    of_one, of_several = (
        vaeaudit.margin(Conditioned(MODEL, c), X, 1.0, draws=200, parts=("certified",), effort="fast").at[0].certified
        for c in (torch.ones_like(C), C)
    )
    assert of_one is not None and (of_one.radius > 0).any() and not of_one.missing
    assert of_several is not None and not (of_several.radius > 0).any()
    assert "a certificate is of one function" in of_several.missing[0]


def test_rows_that_nothing_says_whose_they_are_are_refused() -> None:
    vae = Conditioned(MODEL, C)
    with pytest.raises(ContractError, match="conditions of 4 items was given 3 rows, and nothing says whose they are"):
        vae.encode(X[:3])


def test_a_conditional_model_without_its_shape_or_its_second_argument_is_told(small_vae: type[Any]) -> None:
    class Unsaid(Conditional):
        condition_shape = property()

    assert "; a conditional model says condition_shape: see docs/adapters.md#labels-and-covariates" in fault_of(
        Unsaid()
    )
    plain = small_vae()
    plain.condition_shape = ()
    assert "cannot be called with x and conditions, as condition_shape promises" in fault_of(plain)
    assert not fault_of(MODEL)


def test_every_check_does_with_the_one_of_the_page_what_the_page_says(
    goes_as_the_table_says: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_adapter", raising=False)
    page = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_adapter.py").write_text(blocks[0], encoding="utf-8")
    (own,) = [block for block in blocks if "condition_shape = ()" in block]
    (tmp_path / "own.py").write_text(own, encoding="utf-8")
    sizes = {"encoder.0": (64, 200), "encoder.2": (6, 64), "decoder.0": (64, 7), "decoder.2": (196, 64)}
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{name}.weight": 0.3 * torch.randn(size, generator=generator) for name, size in sizes.items()}
    tensors |= {f"{name}.bias": torch.zeros(size[0]) for name, size in sizes.items()}
    save_file(tensors, tmp_path / "own.safetensors")
    model = open_model(tmp_path / "own.safetensors", f"{tmp_path / 'own.py'}:open")
    goes_as_the_table_says("a conditional model", model, ("certified",))


def bound_labels(source: Path) -> Tensor:
    data = fit(read(source), input_shape=MODEL.input_shape, data_range=MODEL.range)
    return bound(MODEL, data, DOUBLE, torch.device("cpu")).conditions


def folder_of(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.zeros((2, 3), np.uint8)).save(folder / name / "0.png")
    return folder


def test_texts_that_are_whole_numbers_are_conditions_as_those_numbers(tmp_path: Path) -> None:
    assert bound_labels(folder_of(tmp_path / "images", "5", "9")).tolist() == [5, 9], "not by their places, 0 and 1"
    for kind in ("U", "S"):
        np.savez(tmp_path / "texts.npz", x=X.numpy(), labels=np.array(["0", "10", "2", "-3"], kind))
        assert bound_labels(tmp_path / "texts.npz").tolist() == [0, 10, 2, -3]
    assert sorted(read(tmp_path / "texts.npz").labels) == [0, 1, 2, 3], "for slices, texts stay numbered in their order"


@pytest.mark.parametrize("names", [("cat", "5"), ("5.0", "9"), ("9" * 19, "5")])
def test_other_texts_are_no_conditions_unless_an_array_gives_these(names: tuple[str, str], tmp_path: Path) -> None:
    told = "labels as numbers, but those of .* are texts .*; give the numbers .* or an array named 'conditions'"
    with pytest.raises(DataError, match=told):
        bound_labels(folder_of(tmp_path / "images", *names))
    np.savez(tmp_path / "texts.npz", x=X[:2].numpy(), labels=np.array(names), conditions=np.array([2, 1]))
    assert bound_labels(tmp_path / "texts.npz").tolist() == [2, 1]


def test_a_condition_that_is_no_number_is_named_by_its_item(tmp_path: Path) -> None:
    conditions = np.array([0.0, 1.0, np.nan, np.inf])
    np.savez(tmp_path / "odd.npz", x=X.numpy(), conditions=conditions)
    with pytest.raises(DataError, match=r"the condition of items 2, 3 in .*odd\.npz is NaN or infinite"):
        bound_labels(tmp_path / "odd.npz")
