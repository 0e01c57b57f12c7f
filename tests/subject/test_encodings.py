from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from vaeaudit.errors import ConfigError, DataError, NonFiniteError, UnsupportedError
from vaeaudit.model.chain import GaussianChain
from vaeaudit.model.vae import DiagonalGaussian, Discrete, Joint
from vaeaudit.progress import Progress
from vaeaudit.stats.draws import noise_set
from vaeaudit.subject.encodings import encodings, units_of


class Classes:
    """One categorical latent, with what is asked of it here."""

    noise_shape = (3,)

    def __init__(self, log_probabilities: Tensor) -> None:
        self.log_probabilities = log_probabilities

    @property
    def mean(self) -> Tensor:
        return self.log_probabilities.exp()

    def sample(self, noise: Tensor) -> Tensor:
        return noise

    def kl(self, other: "Classes") -> Tensor:
        return (self.mean * (self.log_probabilities - other.log_probabilities)).sum(1)

    def wasserstein2(self, _other: "Classes") -> Tensor:
        raise UnsupportedError("there is none")

    def rows(self, index: Tensor) -> "Classes":
        return Classes(self.log_probabilities[index])


class Side(Classes):
    """Two Gaussian latents beside a categorical one."""

    noise_shape = (5,)

    def __init__(self, gaussian: DiagonalGaussian, classes: Classes) -> None:
        self.parts = (gaussian, classes)

    @property
    def mean(self) -> Tensor:
        return torch.cat([part.mean for part in self.parts], 1)


class Model:
    """Encodes 4 numbers as ``family`` says."""

    input_shape = (4,)
    range = None

    def __init__(self, family: str) -> None:
        self.family = family

    def encode(self, x: Tensor) -> Any:
        first = DiagonalGaussian(x[:, :2], 0.1 * x[:, 2:] - 1)
        if self.family == "chain":
            return GaussianChain(first, (lambda z: DiagonalGaussian(z[:, :1].sin(), z[:, 1:]),))
        classes = Classes((x[:, :3]).log_softmax(1))
        return {"gaussian": first, "classes": classes, "joint": Side(first, classes), "odd": x}[self.family]

    @property
    def prior(self) -> Any:
        return self.encode(torch.zeros(1, 4, dtype=torch.float64))

    def decode(self, _z: Tensor) -> Any:
        raise AssertionError("encodings decode nothing")


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_encodings_are_the_posteriors_of_all_items_whatever_the_batch_size() -> None:
    x, vae = rand(23, 4), Model("gaussian")
    for size in (1, 7, 100, None):
        found = encodings(vae, x, batch_size=size)
        torch.testing.assert_close(found.mean, x[:, :2], rtol=0, atol=0)
        torch.testing.assert_close(found.log_stddev, 0.1 * x[:, 2:] - 1, rtol=0, atol=0)
        assert (found.n, found.units, found.layer, found.layers, found.interrupted) == (23, 2, 1, 1, False)
    assert encodings(vae, x.float()).mean.dtype == torch.float32


def test_items_can_come_from_a_function_a_batch_at_a_time() -> None:
    x = rand(23, 4)
    asked: list[int] = []

    def images(numbers: Sequence[int]) -> Tensor:
        asked.append(len(numbers))
        return x[list(numbers)]

    found = encodings(Model("gaussian"), images, n=20, batch_size=8)
    torch.testing.assert_close(found.mean, x[:20, :2])
    assert max(asked) == 8


def test_each_categorical_latent_is_one_unit_behind_the_continuous_ones() -> None:
    x = rand(9, 4)
    alone, beside = encodings(Model("classes"), x), encodings(Model("joint"), x)
    assert isinstance(Model("classes").prior, Discrete)
    assert isinstance(Model("joint").prior, Joint)
    assert (alone.units, beside.units) == (1, 3)
    torch.testing.assert_close(beside.mean, x[:, :2])
    for found in (alone, beside):
        torch.testing.assert_close(found.log_probabilities[0], x[:, :3].log_softmax(1))


def test_latents_of_several_dimensions_are_flattened() -> None:
    mean = rand(3, 2, 4)
    found, _, categorical = units_of(DiagonalGaussian(mean, mean))
    torch.testing.assert_close(found, mean.reshape(3, 8))
    assert categorical == ()


def test_of_a_chain_the_top_layer_is_taken_at_a_keyed_draw_of_those_below() -> None:
    x, vae = rand(11, 4), Model("chain")
    noise = noise_set((3,), draws=1, items=range(11), seed=4, check="encodings", like=x)
    z = vae.encode(x).sample(noise)[0]
    for size in (1, 4, 11):
        top = encodings(vae, x, seed=4, batch_size=size)
        torch.testing.assert_close(top.mean, z[:, :1].sin(), rtol=0, atol=1e-15)
        torch.testing.assert_close(top.log_stddev, z[:, 1:2], rtol=0, atol=1e-15)
        assert (top.layer, top.layers) == (2, 2)
    first = encodings(vae, x, layer=1)
    torch.testing.assert_close(first.mean, x[:, :2])
    assert not torch.equal(encodings(vae, x, seed=5).mean, top.mean)


def test_stopping_leaves_the_first_items_and_says_so() -> None:
    asked: list[Progress] = []

    def go_on(progress: Progress) -> bool:
        asked.append(progress)
        return len(asked) < 2

    x = rand(23, 4)
    found = encodings(Model("gaussian"), x, batch_size=5, go_on=go_on)
    assert found.interrupted
    torch.testing.assert_close(found.mean, x[:10, :2])
    assert [(progress.running, progress.problems) for progress in asked] == [(18, 23), (13, 23)]
    # Once all is done nobody is asked.
    assert not encodings(Model("gaussian"), x, batch_size=23, go_on=lambda _: False).interrupted


def test_what_cannot_be_encoded_is_said_in_a_sentence() -> None:
    x = rand(5, 4)
    with pytest.raises(ConfigError, match="give n"):
        encodings(Model("gaussian"), lambda numbers: x[list(numbers)])
    for n in (0, 6):
        with pytest.raises(ConfigError, match=f"at least one item is needed, but {n} of the 5 that are there"):
            encodings(Model("gaussian"), x, n=n)
    for layer in (0, 3):
        with pytest.raises(ConfigError, match=f"layers 1 to 2, but layer {layer}"):
            encodings(Model("chain"), x, layer=layer)
    with pytest.raises(DataError, match="floating-point"):
        encodings(Model("gaussian"), x[:, :3])
    with pytest.raises(UnsupportedError, match="type Tensor are not known"):
        encodings(Model("odd"), x)
    x[3, 2] = torch.inf
    with pytest.raises(NonFiniteError, match="item 3 "):
        encodings(Model("gaussian"), lambda numbers: x[list(numbers)].nan_to_num(posinf=1e308) * 1e9, n=5)


def test_draws_are_keyed_by_the_items_own_numbers() -> None:
    x, some = rand(9, 4), [2, 3, 7]
    every = encodings(Model("chain"), x)
    for asked in (x[some], lambda numbers: x[list(numbers)]):
        torch.testing.assert_close(encodings(Model("chain"), asked, n=3, items=some).mean, every.mean[some])
    with pytest.raises(ConfigError, match="2 numbers were given for 3 items"):
        encodings(Model("chain"), x[some], items=[2, 3])
