"""A model that breaks the contract is told which attribute is wrong, what was expected there, and the page."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributions, nn

import vaeaudit
from vaeaudit.errors import ContractError
from vaeaudit.model.contract import PAGE, check_contract, fault_of
from vaeaudit.model.vae import DiagonalGaussian

ROOT = Path(__file__).parents[2]
STANDARD = DiagonalGaussian.standard((2,), like=torch.zeros(1, dtype=torch.float64))


class Bad:
    """SmallVAE with some attributes replaced."""

    def __init__(self, vae: Any, changes: dict[str, Any]) -> None:
        names = ("input_shape", "range", "prior", "encode", "decode")
        for name, value in ({name: getattr(vae, name) for name in names} | changes).items():
            setattr(self, name, value)


def odd(**methods: Any) -> type[DiagonalGaussian]:
    return type("Odd", (DiagonalGaussian,), methods)


def of_posterior(kind: type[DiagonalGaussian]) -> Callable[[Tensor], DiagonalGaussian]:
    return lambda x: kind(x.flatten(1)[:, :2], x.flatten(1)[:, 2:4])


def summed_wrongly(how: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Any]:
    kind = type("Wrong", (vaeaudit.GaussianLikelihood,), {"log_prob": lambda _, x: how(x)})
    return lambda z: kind(z.new_zeros(len(z), 2, 3), z.new_tensor(0.0))


def gaussian(x: Tensor) -> DiagonalGaussian:
    return DiagonalGaussian(x.flatten(1)[:, :2], x.flatten(1)[:, 2:4])


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "encode gives mean and log-variance": (
        {"encode": lambda x: (x.flatten(1), x.flatten(1))},
        r"encode\(x\) is a tuple of 2 tensors, where a posterior .* vaeaudit.DiagonalGaussian\(mean, logvar / 2\)",
    ),
    "encode gives a tensor": (
        {"encode": lambda x: x.flatten(1)},
        r"encode\(x\) is a Tensor, where a posterior .*#a-deterministic-encoder",
    ),
    "encode gives a distribution of torch": (
        {"encode": lambda x: distributions.Normal(x.flatten(1), 1.0)},
        r"encode\(x\) is a torch.distributions.Normal, where a posterior .* its mean and stddev.log\(\)",
    ),
    "encode gives a dictionary": (
        {"encode": lambda x: {"mean": x}},
        r"encode\(x\) is an object of type dict without mean, noise_shape, sample, kl, wasserstein2, rows",
    ),
    "encode gives one row": ({"encode": lambda x: gaussian(x[:1])}, r"mean of encode\(x\) is of shape \(1, 2\)"),
    "encode gives a scalar spread": (
        {"encode": lambda x: DiagonalGaussian(x.flatten(1)[:, :2], x.new_tensor(0.0))},
        r"log_stddev of encode\(x\) is of shape \(\), where shape \(2, 2\) was expected, that of its mean",
    ),
    "the prior is a tuple": (
        {"prior": (torch.zeros(1, 2), torch.ones(1, 2))},
        r"prior is a tuple of 2 tensors, where a posterior such as vaeaudit.DiagonalGaussian",
    ),
    "the prior is a method": ({"prior": lambda: STANDARD}, "prior is a method, .* put @property above it"),
    "the prior has many rows": (
        {"prior": STANDARD.rows(torch.zeros(5, dtype=torch.long))},
        r"mean of prior is of shape \(5, 2\), where \(1, \*latent\)",
    ),
    "the prior has one latent for all": (
        {"prior": DiagonalGaussian.standard((1,), like=STANDARD.mean)},
        r"prior has latents of shape \(1,\), where \(2,\) was expected",
    ),
    "the prior alone is a chain": (
        {"prior": vaeaudit.GaussianChain(STANDARD, ())},
        r"encode\(x\) is a DiagonalGaussian, where a chain .*#several-stochastic-layers",
    ),
    "kl is a scalar": (
        {"encode": of_posterior(odd(kl=lambda self, _: self.mean.sum()))},
        r"kl\(prior\) of encode\(x\) is of shape \(\), where shape \(2,\) was expected, one number for each row",
    ),
    "kl is of each latent": (
        {"encode": of_posterior(odd(kl=lambda self, _: self.mean))},
        r"kl\(prior\) of encode\(x\) is of shape \(2, 2\), where shape \(2,\)",
    ),
    "sample takes one draw alone": (
        {"encode": of_posterior(odd(sample=lambda self, noise: self.mean + noise[0]))},
        r"sample\(noise\) of encode\(x\) is of shape \(2, 2\), where shape \(3, 2, 2\) was expected, for noise of",
    ),
    "rows gives all rows": (
        {"encode": of_posterior(odd(rows=lambda self, _: self))},
        r"rows\(index\) of encode\(x\), for as many numbers, is of shape \(2, 2\), where \(3, \*latent\)",
    ),
    "parts means something else": (
        {"encode": of_posterior(odd(parts=3))},
        r"parts of encode\(x\) is an object of type int, where a tuple of posteriors .*#categorical-latents",
    ),
    "log_probabilities are of no class": (
        {"encode": of_posterior(odd(log_probabilities=torch.zeros(2)))},
        r"log_probabilities of encode\(x\) is of shape \(2,\), where \(batch, classes\) was expected",
    ),
    "decode gives a tensor": (
        {"decode": lambda z: z.new_zeros(len(z), 2, 3)},
        r"decode\(z\) is a Tensor, where a likelihood .* vaeaudit.BernoulliLogits\(it\) if these are logits",
    ),
    "decode gives a tuple": (
        {"decode": lambda z: (z, z)},
        r"decode\(z\) is a tuple of 2 tensors, where a likelihood .* vaeaudit.GaussianLikelihood\(mean, logvar / 2\)",
    ),
    "decode gives a dictionary": (
        {"decode": lambda z: {"mean": z}},
        r"decode\(z\) is an object of type dict without mean, route, support, log_prob",
    ),
    "decode gives a distribution of torch": (
        {"decode": lambda z: torch.distributions.Normal(z.new_zeros(len(z), 2, 3), 1.0)},
        r"decode\(z\) is a torch.distributions.Normal, where .*GaussianLikelihood\(its mean, its stddev.log\(\)\)",
    ),
    "the spread of x is a number": (
        {"decode": lambda z: vaeaudit.GaussianLikelihood(z.new_zeros(len(z), 2, 3), -0.5)},  # type: ignore[arg-type]
        r"log_stddev of decode\(z\) is an object of type float, where a tensor was expected: mean.new_tensor\(it\)",
    ),
    "decode gives flat images": (
        {"decode": lambda z: vaeaudit.BernoulliLogits(z.new_zeros(len(z), 6))},
        r"mean of decode\(z\) is of shape \(2, 6\), where shape \(2, 2, 3\) was expected, that of the inputs",
    ),
    "the spread of x does not fit": (
        {"decode": lambda z: vaeaudit.GaussianLikelihood(z.new_zeros(len(z), 2, 3), z.new_zeros(4))},
        r"log_stddev of decode\(z\) is of shape \(4,\), where one that broadcasts against its mean \(2, 2, 3\)",
    ),
    "log_prob is a scalar": (
        {"decode": summed_wrongly(lambda x: x.sum())},
        r"log_prob\(x\) of decode\(z\) is of shape \(\), where shape \(2,\) was expected, one number for each row",
    ),
    "log_prob is of each element": (
        {"decode": summed_wrongly(lambda x: x)},
        r"log_prob\(x\) of decode\(z\) is of shape \(2, 2, 3\), where shape \(2,\)",
    ),
    "log_prob is a number": (
        {"decode": summed_wrongly(lambda x: 3.0)},  # type: ignore[arg-type,return-value]  # noqa: ARG005
        r"log_prob\(x\) of decode\(z\) is an object of type float, where shape \(2,\)",
    ),
}


@pytest.mark.parametrize(("changes", "words"), CASES.values(), ids=CASES)
def test_the_attribute_that_is_wrong_is_named_with_what_was_expected(
    small_vae: type[Any], changes: dict[str, Any], words: str
) -> None:
    x = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check_contract(small_vae(), x)
    with pytest.raises(ContractError, match=r"^the model's .*; correct its adapter$") as raised:
        check_contract(Bad(small_vae(), changes), x)
    assert re.search(words, str(raised.value)), raised.value
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_shape": 784}, r"whose input_shape is 784, where a tuple was expected: \(784,\)"),
        ({"input_shape": None}, "whose input_shape is None"),
        ({"input_shape": (1, -4)}, r"whose input_shape is \(1, -4\)"),
        ({"encode": 3}, "whose encode is of type int, where a method was expected"),
        ({"decode": torch.zeros(2)}, "whose decode is of type Tensor"),
    ],
)
def test_what_can_be_seen_before_a_run_is_told_before_it(
    small_vae: type[Any], changes: dict[str, Any], words: str
) -> None:
    assert re.search(words, fault_of(Bad(small_vae(), changes)))
    assert not fault_of(small_vae())


def test_a_method_that_takes_no_batch_is_told_by_its_own_place(small_vae: type[Any]) -> None:
    class Selfless(small_vae):  # type: ignore[misc, valid-type]
        def encode(x):  # type: ignore[no-untyped-def]  # noqa: N805
            return x

    class Empty(small_vae):  # type: ignore[misc, valid-type]
        def decode():  # type: ignore[no-untyped-def]
            return None

    for kind, name, of in ((Selfless, "encode", "x"), (Empty, "decode", "z")):
        line = getattr(kind, name).__code__.co_firstlineno
        said = fault_of(kind())
        assert said.startswith(f"whose {name} (test_contract.py, line {line}) cannot be called with one batch"), said
        assert said.endswith(f"where {name}(self, {of}) was expected")


def test_sizes_may_be_integers_of_any_kind(small_vae: type[Any]) -> None:
    sizes = tuple(np.int64(size) for size in small_vae().input_shape)
    assert not fault_of(Bad(small_vae(), {"input_shape": sizes}))


def test_what_is_no_model_is_told_as_what_it_is(small_vae: type[Any]) -> None:
    assert "is a return missing at the end of open?" in fault_of(None)
    assert "that is the class SmallVAE itself, where an object of it was expected" in fault_of(small_vae)
    assert "it wraps a model, so return its .module" in fault_of(nn.DataParallel(small_vae()))


@pytest.mark.parametrize("name", ["input_shape", "range", "prior", "encode", "decode"])
def test_an_attribute_that_is_missing_is_named(small_vae: type[Any], name: str) -> None:
    vae = Bad(small_vae(), {})
    delattr(vae, name)
    assert re.match(rf"without {name}(; range is None where inputs have none)?; see {PAGE}#", fault_of(vae))


def test_every_page_that_a_message_of_ours_names_has_that_heading() -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    named: set[str] = set()
    for file in (ROOT / "vaeaudit").rglob("*.py"):
        named |= set(re.findall(r"(?:docs/adapters\.md|\{PAGE\})#([\w-]+)", file.read_text(encoding="utf-8")))
    assert named and named <= anchors
