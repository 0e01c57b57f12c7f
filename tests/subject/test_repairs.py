"""Planted mistakes in opening a model, each to be named by the repair that mends it."""

import json
import math
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vaeaudit.model.registry import open_model
from vaeaudit.model.vae import BernoulliLogits, BernoulliProbabilities, DiagonalGaussian, GaussianLikelihood
from vaeaudit.subject.plausibility import Plausibility, Verdict, examine
from vaeaudit.subject.repair_catalogue import Output, units
from vaeaudit.subject.repairs import explained
from vaeaudit.subject.spread import scatter
from vaeaudit.subject.substitution import called, substitutions
from vaeaudit.subject.trial import Repair, Trial

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPE, LATENTS = (3, 4, 4), 4
FIXED = torch.tensor(-2.0)


def passed(found: Plausibility) -> bool:
    return all(finding.verdict is Verdict.PASS for finding in found.findings)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Exact:
    """Images that are a linear function of latents, after a sigmoid, and the encoder that inverts it exactly.

    A hook for each thing that an adapter can get wrong: the activation (of which ReLU is the right one), the order in
    which feature maps are flattened, how the encoder's numbers are cut, and what ends the decoder.
    """

    input_shape, range = SHAPE, (0.0, 1.0)

    def __init__(
        self,
        *,
        activation: Callable[[Tensor], Tensor] = F.relu,
        flat: tuple[int, ...] = (0, 1, 2, 3),
        cut: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda mean, log_stddev: (mean, log_stddev),
        end: Callable[[Tensor], Any] = lambda y: GaussianLikelihood(y.sigmoid(), FIXED),
        taken: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        self.activation, self.flat, self.cut, self.end, self.taken = activation, flat, cut, end, taken
        slope = torch.linspace(-1, 1, 4)
        self.weight = random(math.prod(SHAPE), LATENTS, seed=0)
        # Nothing is symmetric: lighter at the top and at the left, and redder.
        tilt = slope.view(1, 4, 1) * 1.2 + slope.view(1, 1, 4) * 0.5 - torch.tensor([1.5, 0, -0.7]).view(3, 1, 1)
        self.bias = -1.2 - tilt.flatten()
        self.inverse = torch.linalg.pinv(self.weight)
        self.prior = DiagonalGaussian.standard((LATENTS,), like=self.weight)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        logits = self.taken(x).clamp(1e-4, 1 - 1e-4).logit().permute(self.flat).flatten(1)
        features = (logits - self.bias) @ self.inverse.T
        # Exact for ReLU, and for nothing else.
        mean = self.activation(features + 6) - 6 + 5 * self.activation(torch.full_like(features, -0.5))
        return DiagonalGaussian(*self.cut(mean, 0.2 * mean.flip(1) - 2.5))

    def decode(self, z: Tensor) -> Any:
        return self.end((z @ self.weight.T + self.bias).unflatten(1, SHAPE))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return Exact().decode(random(60, LATENTS, seed=1)).mean


def interleaved(mean: Tensor, log_stddev: Tensor) -> tuple[Tensor, Tensor]:
    """A head of pairs, cut as one of two halves is."""
    mean, logvar = torch.stack([mean, 2 * log_stddev], 2).flatten(1).chunk(2, 1)
    return mean, logvar / 2


def halves(mean: Tensor, log_stddev: Tensor) -> tuple[Tensor, Tensor]:
    """A head of two halves, cut as one of pairs is."""
    mean, logvar = torch.cat([mean, 2 * log_stddev], 1).unflatten(1, (-1, 2)).unbind(2)
    return mean, logvar / 2


def gaussian(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], GaussianLikelihood]:
    return lambda y: GaussianLikelihood(function(y), FIXED)


def same(x: Tensor) -> Tensor:
    return x


MEANS, STDDEVS = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
# What is wrong in the model; what is done to the data; the words that name it.
PLANTED: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor], str]] = {
    "heads swapped": ({"cut": lambda m, s: (2 * s, m / 2)}, same, "mean and log-variance swapped"),
    "heads swapped, log sigma": ({"cut": lambda m, s: (s, m)}, same, "mean and log-variance swapped"),
    "pairs cut as halves": ({"cut": interleaved}, same, "mean and log-variance interleaved rather than in two halves"),
    "halves cut as pairs": ({"cut": halves}, same, "mean and log-variance in two halves rather than interleaved"),
    "sigmoid missing": ({"end": gaussian(same)}, same, "a sigmoid after the decoder"),
    "sigmoid missing, probabilities": ({"end": BernoulliProbabilities}, same, "a sigmoid after the decoder"),
    "sigmoid doubled": (
        {"end": gaussian(lambda y: y.sigmoid().sigmoid())},
        same,
        "one sigmoid fewer after the decoder",
    ),
    "sigmoid doubled, logits": (
        {"end": lambda y: BernoulliLogits(y.sigmoid())},
        same,
        "one sigmoid fewer after the decoder",
    ),
    "tanh for sigmoid": ({"end": gaussian(torch.tanh)}, same, "a sigmoid for the tanh after the decoder"),
    "data in [-1, 1]": ({}, lambda x: 2 * x - 1, "the data mapped from [-1, 1] to [0, 1]"),
    "data in [-1, 1], probabilities": (
        {"end": lambda y: BernoulliLogits(y)},
        lambda x: 2 * x - 1,
        "the data mapped from [-1, 1] to [0, 1]",
    ),
    "data in [0, 255]": ({}, lambda x: 255 * x, "the data mapped from [0, 255] to [0, 1]"),
    "divided by 255 twice": ({}, lambda x: x / 255, "the data multiplied by 255"),
    "a model of [-1, 1]": (
        {"taken": lambda x: (x + 1) / 2, "end": gaussian(lambda y: 2 * y.sigmoid() - 1)},
        same,
        "the data mapped from [0, 1] to [-1, 1]",
    ),
    "inputs not mapped to [0, 255]": ({"taken": lambda x: x / 255}, same, "inputs mapped from [0, 1] to [0, 255]"),
    "outputs not mapped back": (
        {"end": gaussian(lambda y: 2 * y.sigmoid() - 1)},
        same,
        "reconstructions mapped from [-1, 1] to [0, 1]",
    ),
    "inverted": ({}, lambda x: 1 - x, "the data inverted (light for dark)"),
    "data normalised": ({}, lambda x: (x - MEANS) / STDDEVS, "the data freed of the normalisation with means (0.485,"),
    "a model of normalised data": (
        {"taken": lambda x: x * STDDEVS + MEANS, "end": gaussian(lambda y: (y.sigmoid() - MEANS) / STDDEVS)},
        same,
        "the data after the normalisation with means (0.485,",
    ),
    "transposed": ({}, lambda x: x.transpose(2, 3), "the data transposed"),
    "transposed inputs": ({"taken": lambda x: x.transpose(2, 3)}, same, "inputs transposed"),
    "transposed outputs": (
        {"end": gaussian(lambda y: y.sigmoid().transpose(2, 3))},
        same,
        "reconstructions transposed",
    ),
    "upside down": ({}, lambda x: x.flip(2), "the data upside down"),
    "turned": ({}, lambda x: x.rot90(1, (2, 3)), "the data turned by 270 degrees"),
    "channels reversed": ({}, lambda x: x.flip(1), "the data in reversed order of channels"),
    "channels last": (
        {},
        lambda x: x.permute(0, 2, 3, 1).reshape(x.shape),
        "the data read as height x width x channels",
    ),
    "flattened in another order": ({"flat": (0, 2, 3, 1)}, same, "inputs read as height x width x channels"),
    "a ReLU at the end": (
        {"taken": lambda x: x + 0.5, "end": gaussian(lambda y: (y.sigmoid() - 0.5).relu())},
        lambda x: x - 0.5,
        "one ReLU fewer after the decoder",
    ),
    "another activation": ({"activation": torch.tanh}, same, "ReLU for tanh as activation"),
    "heads swapped and no sigmoid": (
        {"cut": lambda m, s: (2 * s, m / 2), "end": gaussian(same)},
        same,
        "mean and log-variance swapped and a sigmoid after the decoder",
    ),
    "scaled by 100": ({"end": gaussian(lambda y: 100 * y.sigmoid())}, same, "reconstructions divided by 100"),
    "data scaled by 1/100": ({}, lambda x: x / 100, "the data multiplied by 100"),
    "inputs normalised needlessly": (
        {"taken": lambda x: (x - MEANS) / STDDEVS},
        same,
        "inputs freed of the normalisation with means (0.485,",
    ),
    "channels rotated": ({}, lambda x: x.roll(1, 1), "the data with the first channel moved to the end"),
    "range and channels": ({}, lambda x: 255 * x.flip(1), "the data in reversed order of channels (BGR for RGB) and "),
}


def tried(vae: Any, x: Tensor) -> tuple[Plausibility, list[str]]:
    """What is found without and with repairs: the former, and what the latter add."""
    before = examine(vae, x)
    after = explained(before, vae, x)
    assert [(f.name, f.verdict) for f in after.findings] == [(f.name, f.verdict) for f in before.findings]
    pairs = zip(before.findings, after.findings, strict=True)
    return before, [
        new.message.removeprefix(old.message).removeprefix(".") for old, new in pairs if new.message != old.message
    ]


def test_the_exact_model_is_healthy_and_nothing_is_said_of_it(images: Tensor) -> None:
    found, added = tried(Exact(), images)
    assert {f.name for f in found.findings if f.verdict is not Verdict.PASS} <= {"gradients"}
    assert added == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_named_with_the_errors_that_speak_for_it(name: str, images: Tensor) -> None:
    wrong, change, words = PLANTED[name]
    x = change(images)
    found, added = tried(Exact(**wrong), x)
    assert not passed(found)
    assert added and added[0].startswith(f" With {words}"), added
    (row,) = (f for f in found.findings if f.name == "reconstruction")
    assert f"instead of {row.message.split('mean squared error ')[1].split(',')[0]}" in added[0]


UNTRAINED = {
    "another order of latents": {"cut": lambda m, s: (m.flip(1), s.flip(1))},
    "an encoder that sees noise": {"taken": lambda x: (x * 1e4) % 1},
}


@pytest.mark.parametrize("name", UNTRAINED)
def test_where_nothing_explains_the_failure_the_message_says_what_was_tried(name: str, images: Tensor) -> None:
    found, added = tried(Exact(**UNTRAINED[name]), images)
    assert not passed(found)
    assert len(added) == 1
    assert added[0].startswith(" None of the likely mistakes explains it; tried were other layouts of mean and")


def test_the_whole_message_of_swapped_heads(images: Tensor) -> None:
    vae = Exact(cut=lambda mean, log_stddev: (2 * log_stddev, mean / 2))
    found = explained(examine(vae, images), vae, images)
    messages = {f.name: f.message for f in found.findings}
    error = (Exact().decode(Exact().encode(images).mean).mean - images).square().mean()
    opened = (vae.decode(vae.encode(images).mean).mean - images).square().mean()
    assert messages["reconstruction"].split("? With ")[1] == (
        f"mean and log-variance swapped the model passes (error {error:.4g} instead of {opened:.4g}): "
        "see which of the two encode takes first"
    )
    assert "? With mean and log-variance swapped the model passes (error " in messages["reconstruction of a draw"]


class Changed:
    """A model with what its encoder takes and what its decoder gives changed."""

    def __init__(
        self, vae: Any, *, taken: Callable[[Tensor], Tensor] = same, given: Callable[[Tensor], Tensor] = same
    ) -> None:
        self.vae, self.taken, self.given = vae, taken, given
        self.input_shape, self.range, self.prior = vae.input_shape, vae.range, vae.prior

    def encode(self, x: Tensor) -> DiagonalGaussian:
        return self.vae.encode(self.taken(x))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(self.given(self.vae.decode(z).mean), FIXED)


# None of the catalogue: what brings the error down is not what is wrong.
UNNAMED: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
    "scaled by 37": {"given": lambda y: 37 * y},
    "scaled and shifted": {"given": lambda y: 3 * y + 1},
    "moved": {"given": lambda y: y.roll((4, 4), (2, 3))},
    "inputs scaled by 37": {"taken": lambda x: 37 * x},
}


@pytest.mark.parametrize("name", UNNAMED)
def test_what_only_lowers_the_error_is_not_told_as_what_mends_the_model(
    name: str, bundled_model: Any, bundled_images: Tensor
) -> None:
    found, added = tried(Changed(bundled_model, **UNNAMED[name]), bundled_images)
    assert not passed(found)
    told = added[0]
    assert "the model passes" not in told
    assert told.endswith("which does not mend the model: the cause may be another") or "None of the likely" in told


def test_a_decoder_that_shrinks_to_its_mean_is_as_healthy_in_other_units(images: Tensor) -> None:
    """As one of wide variance does, whose squared error some scale would always lessen."""
    mean = images.mean(0)
    shrunk = Changed(Exact(), given=lambda y: mean + 0.8 * (y - mean))
    assert passed(explained(examine(shrunk, images), shrunk, images))
    _, added = tried(Changed(shrunk, given=lambda y: 255 * y), images)
    assert added[0].startswith(" With reconstructions mapped from [0, 255] to [0, 1] the model passes (error ")
    _, added = tried(Changed(shrunk, given=lambda y: 255 * y + 30), images)
    assert "the model passes" not in added[0]


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 4), (6,)])
def test_no_fixed_range_taken_for_another_looks_like_shrinking(shape: tuple[int, ...]) -> None:
    """So that only a decoder can be the cause; ranges that the data decide can lie anywhere, and are not fixed."""
    for x in (torch.rand(40, *shape), 2 * torch.rand(40, *shape) - 1, 255 * torch.rand(40, *shape)):
        maps = [one for one in units(x) if one.of == "range"]
        fixed = [one for one in maps if one.fixed]
        assert not any(word in one.done for one in fixed for word in ("standardis", "normalisation", " ends"))
        assert len(fixed) >= 8
        for one, other in permutations([*fixed, *(one.reversed for one in fixed)], 2):
            there = other.inverse(one.forward(x))  # scale x + shift
            scale, apart = float(there.std() / x.std()), float((there - x).mean().abs() / x.std())
            assert scale < 1.005 or scale > 1.45 or apart > 0.15


def test_a_repair_that_raises_on_some_items_alone_hides_no_other(images: Tensor) -> None:
    def fails(_: Tensor) -> Tensor:
        raise ValueError

    trial = Trial(Exact(end=gaussian(same)), images, 0, None)
    good = Repair(output=Output("a sigmoid", "", torch.sigmoid))
    ((repair, errors),) = trial.confirmed([Repair(output=Output("a fault", "", fails)), good])
    assert repair is good
    torch.testing.assert_close(errors.mean, Trial(Exact(), images, 0, None).opened.mean)


# What passes and is wrong all the same


class Tinted(Exact):
    """Images whose channels differ little: a model that takes red for blue still beats the mean image."""

    def __init__(self, **wrong: Any) -> None:
        super().__init__(**wrong)
        grey = random(1, math.prod(SHAPE[1:]), LATENTS, seed=2)
        self.weight = (grey + 0.25 * random(*grey.expand(3, -1, -1).shape, seed=3)).flatten(0, 1)
        self.bias = torch.tensor([0.4, 0.0, -0.4]).repeat_interleave(math.prod(SHAPE[1:]))
        self.inverse = torch.linalg.pinv(self.weight)


@pytest.fixture(scope="module")
def tinted() -> Tensor:
    return Tinted().decode(random(60, LATENTS, seed=1)).mean


STILL_BETTER: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor], str]] = {
    "BGR data": ({}, lambda x: x.flip(1), "the data in reversed order of channels (BGR for RGB)"),
    "BGR inputs": ({"taken": lambda x: x.flip(1)}, same, "inputs in reversed order of channels (BGR for RGB)"),
    "BGR reconstructions": (
        {"end": gaussian(lambda y: y.sigmoid().flip(1))},
        same,
        "reconstructions in reversed order of channels",
    ),
    "rotated channels": ({}, lambda x: x.roll(1, 1), "the data with the first channel moved to the end"),
    "a tanh besides the sigmoid": ({"end": gaussian(lambda y: y.sigmoid().tanh())}, same, "one tanh fewer"),
}


@pytest.mark.parametrize("name", STILL_BETTER)
def test_a_model_that_beats_the_mean_image_does_not_pass_where_another_reading_is_far_better(
    name: str, tinted: Tensor
) -> None:
    wrong, change, words = STILL_BETTER[name]
    vae, x = Tinted(**wrong), change(tinted)
    found = examine(vae, x)
    (row,) = (f for f in found.findings if f.name == "reconstruction")
    assert row.verdict is Verdict.PASS
    (after,) = (f for f in explained(found, vae, x).findings if f.name == "reconstruction")
    assert after.verdict is not Verdict.PASS
    assert after.message.startswith(f"{row.message}. Yet with {words}")
    assert "of 60 items: " in after.message


NORMALISED: dict[str, tuple[dict[str, Callable[[Tensor], Tensor]], str]] = {
    "inputs normalised": (
        {"taken": lambda x: (x - 0.1307) / 0.3081},
        "inputs freed of the normalisation with means (0.13",
    ),
    "a tanh too many": ({"given": torch.tanh}, "one tanh fewer after the decoder"),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_so_with_a_trained_model(name: str, bundled_model: Any, bundled_images: Tensor) -> None:
    change, words = NORMALISED[name]
    vae = Changed(bundled_model, **change)
    found = examine(vae, bundled_images)
    assert passed(found)
    after = explained(found, vae, bundled_images)
    (row,) = (f for f in after.findings if f.verdict is not Verdict.PASS)
    assert row.name == "reconstruction"
    assert f". Yet with {words}" in row.message


HARMLESS: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
    "low contrast": {"given": lambda y: 0.8 * y + 0.1},
    "blurred": {"given": lambda y: F.avg_pool2d(y, 3, 1, 1)},
    "inputs a little darker": {"taken": lambda x: 0.9 * x},
}


@pytest.mark.parametrize("count", [6, 20, 192])
@pytest.mark.parametrize("name", HARMLESS)
def test_a_model_that_is_not_quite_calibrated_is_left_alone(
    name: str, count: int, bundled_model: Any, bundled_images: Tensor
) -> None:
    vae, x = Changed(bundled_model, **HARMLESS[name]), bundled_images[:count]
    found = examine(vae, x)
    assert passed(found)
    assert explained(found, vae, x) is found


@pytest.mark.parametrize("change", [lambda x: x.flip(1), lambda x: x.roll(1, 1)])
def test_the_order_of_channels_is_nothing_to_grey_images(change: Callable[[Tensor], Tensor]) -> None:
    class Grey(Exact):
        def __init__(self, **wrong: Any) -> None:
            super().__init__(**wrong)
            self.weight = random(math.prod(SHAPE[1:]), LATENTS, seed=2).repeat(3, 1)
            self.bias, self.inverse = torch.zeros(len(self.weight)), torch.linalg.pinv(self.weight)

    vae = Grey(taken=change)
    x = vae.decode(random(60, LATENTS, seed=1)).mean
    found = examine(vae, x)
    after = explained(found, vae, x)
    assert [f.verdict for f in after.findings] == [f.verdict for f in found.findings]


# What the spread is read as


SPREADS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "variance as log": (lambda s: (2 * s).exp(), "what is taken as log standard deviation read as a variance"),
    "sign": (lambda s: -s, "the sign of the log-variance changed"),
}


@pytest.mark.parametrize("name", SPREADS)
def test_a_spread_misread_is_named_by_the_reading_that_training_left(name: str, bundled_images: Tensor) -> None:
    misread, words = SPREADS[name]
    bundled_model: Any = open_model(EXAMPLES / "shapes-beta8.safetensors").vae

    found, added = tried(Misread(bundled_model, misread), bundled_images)
    assert {f.name for f in found.findings if f.verdict is not Verdict.PASS} == {"reconstruction of a draw"}
    assert added[0].startswith(f" With {words} the model passes (error ")


def test_the_latents_of_a_trained_model_agree_on_the_weight_of_the_kl(
    bundled_model: Any, bundled_images: Tensor
) -> None:
    x = bundled_images[::2]
    noise = torch.randn(4, len(x), 10, generator=torch.Generator().manual_seed(0))
    as_opened = scatter(bundled_model, x, noise, lambda mean, log_stddev: (mean, log_stddev))
    doubled = scatter(bundled_model, x, noise, lambda mean, log_stddev: (mean, 2 * log_stddev))
    assert as_opened < 0.2
    assert doubled > 4 * as_opened


class Misread:
    """The bundled model with its log standard deviations changed."""

    def __init__(self, vae: Any, change: Callable[[Tensor], Tensor]) -> None:
        self.vae, self.change = vae, change
        self.input_shape, self.range, self.prior, self.decode = vae.input_shape, vae.range, vae.prior, vae.decode

    def encode(self, x: Tensor) -> DiagonalGaussian:
        q = self.vae.encode(x)
        return DiagonalGaussian(q.mean, self.change(q.log_stddev))


def test_a_log_variance_read_as_log_standard_deviation_passes_with_a_remark(
    bundled_model: Any, bundled_images: Tensor
) -> None:
    found, added = tried(Misread(bundled_model, lambda s: 2 * s), bundled_images)
    assert passed(found)
    assert len(added) == 1
    assert added[0].startswith(
        " With what is taken as log standard deviation read as a log-variance the latents' spreads would agree far "
        "better on one weight of the KL (scatter of its logarithm 0."
    )


# What must do no harm


@pytest.mark.parametrize("name", ["shapes-beta1", "shapes-beta8"])
@pytest.mark.parametrize("count", [2, 10, 192])
def test_a_healthy_model_is_left_alone(name: str, count: int, bundled_images: Tensor) -> None:
    vae, x = open_model(EXAMPLES / f"{name}.safetensors").vae, bundled_images[:count]
    found = examine(vae, x)
    after = explained(found, vae, x)
    assert after is found or {f.name for f in found.findings if f.verdict is not Verdict.PASS}


@pytest.mark.parametrize("name", ["VAE_dsprites", "btcvae_dsprites", "VAE_mnist", "btcvae_mnist"])
def test_published_models_are_left_alone(name: str, published: Any) -> None:
    vae, x = published(name, 60)
    found = examine(vae, x)
    assert passed(found)
    assert explained(found, vae, x) is found


def test_a_model_whose_errors_do_not_repeat_is_not_tried(images: Tensor) -> None:
    vae = Exact(cut=lambda mean, log_stddev: (torch.rand_like(mean), log_stddev))
    found = examine(vae, images)
    assert any(f.name == "determinism" and f.verdict is Verdict.FAIL for f in found.findings)
    assert explained(found, vae, images) is found


@pytest.mark.parametrize("error", [ValueError, ZeroDivisionError, SystemExit])
def test_a_model_that_raises_on_what_it_was_not_made_for_harms_nothing(
    error: type[BaseException], images: Tensor
) -> None:
    def strict(x: Tensor) -> Tensor:
        if not torch.equal(x, images[: len(x)]) and len(x) < len(images):
            raise error("other inputs than those of the examination")
        return x

    vae = Exact(cut=lambda mean, log_stddev: (log_stddev, mean))
    found = examine(vae, images)
    vae.taken = strict
    after = explained(found, vae, images)
    assert [f.verdict for f in after.findings] == [f.verdict for f in found.findings]

    def broken(_: Tensor) -> Tensor:
        raise error("at all")

    vae.taken = broken
    assert explained(found, vae, images) is found


def test_trying_repairs_repeats_itself_and_leaves_random_state_and_weights_alone(
    bundled_model: Any, bundled_images: Tensor
) -> None:
    x = 1 - bundled_images
    before = {name: value.clone() for name, value in bundled_model.state_dict().items()}
    found = examine(bundled_model, x)
    state = torch.get_rng_state()
    assert explained(found, bundled_model, x) == explained(found, bundled_model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in bundled_model.state_dict().items())


@pytest.mark.parametrize("shape", [(12,), (64,), (192,), (1, 6, 6), (3, 4, 4), (5, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("span", [(0, 1), (-1, 1), (0, 255), (-3, 4), (0, 1 / 255)])
def test_what_maps_inputs_is_undone_by_its_inverse(shape: tuple[int, ...], span: tuple[float, float]) -> None:
    x = torch.rand(20, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = span[0] + (span[1] - span[0]) * x
    known = list(units(x))
    assert {one.of for one in known} <= {"range", "order"}
    assert len({one.done for one in known}) == len(known)
    for one in known:
        there = one.forward(x)
        assert there.shape == x.shape and not torch.equal(there, x), one.done
        torch.testing.assert_close(one.inverse(there), x)


@pytest.mark.parametrize("inplace", [False, True])
def test_an_activation_is_replaced_whether_it_is_a_layer_or_a_function(inplace: bool) -> None:
    def network(x: Tensor) -> Tensor:
        return torch.sigmoid(F.relu(2 * x, inplace=inplace) + torch.nn.ReLU(inplace)(x - 1))

    x = random(5, 3, seed=0)
    result, seen = called(network, x)
    assert seen.activations == ("ReLU", "ReLU", "sigmoid")
    assert seen.at_end
    torch.testing.assert_close(result, network(x))
    (tanh,) = (s for s in substitutions(seen, seen, throughout=True) if s.name == "tanh for ReLU as activation")
    changed, _ = called(network, x, replace=tanh.replace["decode"])
    torch.testing.assert_close(changed, torch.sigmoid(torch.tanh(2 * x) + torch.tanh(x - 1)))


def test_doctor_names_the_activation_that_mends_the_model_and_still_ends_without_a_verdict(
    command: Callable[..., Any],
) -> None:
    model = EXAMPLES / "shapes-beta1.safetensors"
    done = command(
        *("doctor", model, "--data", EXAMPLES / "shapes.npz", "--option", "activation=tanh", "--format", "json")
    )
    assert done.code == 5
    (row,) = (f for f in json.loads(done.out)["plausibility"]["findings"] if f["name"] == "reconstruction")
    assert row["verdict"] == "fail"
    assert "With ReLU for tanh as activation the model passes (error 0.0028" in row["message"]
    assert "--option activation=NAME" in row["message"]
