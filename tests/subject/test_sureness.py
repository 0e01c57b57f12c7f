"""Likelihoods against those of the mean image: a decoder that is far too sure is told, and no other."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vaeaudit import BernoulliLogits, BernoulliProbabilities, GaussianLikelihood, LaplaceLikelihood
from vaeaudit.subject.finding import Finding, Verdict
from vaeaudit.subject.plausibility import examine
from vaeaudit.subject.sureness import finding, steepness, without_items

X = torch.tensor([[0.0, 1.0, 0.25]])
IMAGE = torch.tensor([[0.5, 0.75, 0.25]])
ENTROPY = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)  # of the last element, whatever it is told by


def test_the_mean_image_and_the_item_itself_have_the_known_likelihoods() -> None:
    found = without_items(BernoulliLogits(torch.zeros(1, 3)), X, IMAGE)
    assert found.tolist() == [pytest.approx([math.log(2) - math.log(0.75) + ENTROPY, ENTROPY])]
    spread = torch.tensor([[0.5, 2.0, 1.0]])
    found = without_items(GaussianLikelihood(torch.zeros(1, 3), spread.log()), X, IMAGE)
    least = 3 * 0.5 * math.log(2 * math.pi)  # the logarithms of the standard deviations add up to 0
    assert found.tolist() == [pytest.approx([least + 0.5 * (1 + 0.125**2), least])]
    assert without_items(LaplaceLikelihood(X, X), X, IMAGE).isnan().all()


def of_bundled(vae: Any, x: Tensor, change: Callable[[Tensor], Any]) -> Finding:
    class Changed:
        input_shape, range, prior, encode = vae.input_shape, vae.range, vae.prior, vae.encode

        def decode(self, z: Tensor) -> Any:
            return change(vae.decode(z).logits)

    changed: Any = Changed()
    (told,) = (one for one in examine(changed, x).findings if one.name == "likelihood")
    return told


SURE: dict[str, tuple[Callable[[Tensor], Any], Verdict]] = {
    "as it is": (BernoulliLogits, Verdict.PASS),
    "logits halved": (lambda logits: BernoulliLogits(logits / 2), Verdict.PASS),
    "logits doubled": (lambda logits: BernoulliLogits(2 * logits), Verdict.UNSURE),
    "logits doubled behind a sigmoid": (lambda logits: BernoulliProbabilities((2 * logits).sigmoid()), Verdict.UNSURE),
    "logits multiplied by 10": (lambda logits: BernoulliLogits(10 * logits), Verdict.UNSURE),
    "logits multiplied by 255": (lambda logits: BernoulliLogits(255 * logits), Verdict.UNSURE),
    "probabilities of 0 and 1, as logits": (
        lambda logits: BernoulliLogits((logits > 0).to(logits).logit()),
        Verdict.UNSURE,
    ),
    "a Gaussian of tiny variance": (
        lambda logits: GaussianLikelihood(logits.sigmoid(), torch.tensor(-6.0)),
        Verdict.PASS,
    ),
    "a Gaussian whose variance is NaN": (
        lambda logits: GaussianLikelihood(logits.sigmoid(), logits * math.nan),
        Verdict.UNSURE,
    ),
    "another kind": (lambda logits: LaplaceLikelihood(logits.sigmoid(), torch.tensor(0.0)), Verdict.PASS),
}


@pytest.mark.parametrize("name", SURE)
def test_a_decoder_is_told_where_it_is_far_worse_than_an_image_that_knows_no_item(
    name: str, bundled_model: Any, bundled_images: Tensor
) -> None:
    change, verdict = SURE[name]
    found = of_bundled(bundled_model, bundled_images[:60], change)
    assert found.verdict is verdict, found.message
    assert ("; are logits multiplied, a standard deviation too small, or are" in found.message) == (
        verdict != Verdict.PASS and "as of infinite logits" not in found.message
    )


def test_a_few_items_that_cost_much_are_no_sign() -> None:
    least, image, error = torch.zeros(100), torch.full((100,), 5.0), torch.full((100,), 0.1)
    nll = torch.ones(100)
    nll[:3] = math.inf
    found = finding(nll, torch.stack([image, least], 1), error, 2 * error, -image)
    assert (found.verdict, found.message) == (
        Verdict.PASS,
        "mean -log p(x|z) inf nats, with the mean image in its place 5",
    )
    assert finding(nll + 20, torch.stack([image, least], 1), error, 2 * error, -image).verdict is Verdict.UNSURE
    assert finding(nll + 20, torch.stack([image, least], 1), 3 * error, 2 * error, -image).verdict is Verdict.PASS


def test_few_items_are_said_to_be_few_and_infinite_likelihoods_to_be_that() -> None:
    image, least, error = torch.full((8,), 5.0), torch.zeros(8), torch.full((8,), 0.1)
    without = torch.stack([image, least], 1)
    few = finding(torch.full((8,), 20.0), without, error, 2 * error, -image)
    assert few.verdict is Verdict.PASS
    assert few.message.endswith("in its place 5; worse on 8 of 8 items, too few to tell from chance: give more")
    none = finding(torch.full((8,), math.inf), without + math.inf, error, 2 * error, -image, scaled=True)
    assert (none.verdict, none.message) == (Verdict.UNSURE, "-log p(x|z) is infinite for 8 of 8 items")
    of_nan = finding(torch.full((8,), math.nan), without, error, 2 * error, -image)
    told = "-log p(x|z) is NaN, as of infinite logits or deviations that are NaN, for 8 of 8 items"
    assert (of_nan.verdict, of_nan.message) == (Verdict.UNSURE, told)
    one = torch.tensor([math.nan] + [1.0] * 7)
    assert finding(one, without, error, 2 * error, -image).verdict is Verdict.PASS


def test_logits_too_large_are_told_where_smaller_ones_suit_most_items_and_the_reconstructions_are_nearer() -> None:
    x, image, error = torch.ones(40, 3), torch.full((40,), 5.0), torch.full((40,), 0.1)
    x[:, 0] = 0.25
    for factor, sign in ((1.6, -1), (1.7, 1)):  # sigmoid(0.6 * 5/3 * logit) is the right one
        logits = factor * torch.tensor([math.log(1 / 3), 40, 40]).expand(40, 3)
        rising = steepness(BernoulliLogits(logits), x)
        assert (rising.sign() == sign).all()
    told = [
        finding(error, torch.stack([image, 0 * image], 1), error, than * error, rising * signs)
        for than, signs in ((2, 1), (0.5, 1), (2, torch.arange(40) % 2 * 2 - 1))
    ]
    assert [one.verdict for one in told] == [Verdict.UNSURE, Verdict.PASS, Verdict.PASS]
    assert "but 40 of 40 items are likelier with logits 0.6 times as large, or less: too sure" in told[0].message
    assert steepness(LaplaceLikelihood(x, x), x).isnan().all()
