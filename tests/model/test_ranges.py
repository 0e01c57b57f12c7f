"""Ranges that are not one interval: half-lines, and one interval for each channel or feature."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import vaeaudit
from vaeaudit.attacks.directions import random_search
from vaeaudit.attacks.margin import empirical_margin
from vaeaudit.data.items import Stored, fit
from vaeaudit.errors import ConfigError, ContractError, DataError
from vaeaudit.layout.figures import item_panel
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.ranges import EXPECTED, Range, as_range, bounded, intervals, range_for, simplest, span_text, widths
from vaeaudit.settings.sections import DataSettings
from vaeaudit.subject.plausibility import examine

HALF = (0.0, math.inf)
APART = ((0.0, 1.0), (-2.0, 0.5))  # of the two rows of SmallVAE
ENDS = st.floats(-1e6, 1e6) | st.sampled_from([-math.inf, math.inf])
PAIRS = st.tuples(ENDS, ENDS).filter(lambda pair: pair[0] < pair[1])

each_range = pytest.mark.parametrize("span", [HALF, APART, ((0.0, math.inf), (-2.0, 0.5))], ids=span_text)


def inside(x: Tensor, span: Range) -> bool:
    """Whether items (..., *shape of SmallVAE) lie in the range, by the plainest means."""
    rows = intervals(span) * (2 if len(intervals(span)) == 1 else 1)
    return all(bool(((x[..., k, :] >= low) & (x[..., k, :] <= high)).all()) for k, (low, high) in enumerate(rows))


def items(span: Range, count: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    """Items of SmallVAE in the range, some of their values at its ends."""
    generator = torch.Generator().manual_seed(3)
    share = (1.4 * torch.rand(count, 2, 3, generator=generator, dtype=dtype) - 0.2).clamp(0, 1)
    rows = intervals(span) * (2 if len(intervals(span)) == 1 else 1)
    low = torch.tensor([low for low, _ in rows], dtype=dtype).reshape(2, 1)
    high = torch.tensor([min(high, 2.0) for _, high in rows], dtype=dtype).reshape(2, 1)
    return low + share * (high - low)


class Gaussian:
    """SmallVAE with a likelihood that any input can have."""

    def __init__(self, inner: Any, span: object) -> None:
        self.inner, self.range, self.input_shape, self.prior = inner, span, inner.input_shape, inner.prior

    def encode(self, x: Tensor) -> vaeaudit.DiagonalGaussian:
        return self.inner.encode(x)  # type: ignore[no-any-return]

    def decode(self, z: Tensor) -> vaeaudit.GaussianLikelihood:
        return vaeaudit.GaussianLikelihood(3 * self.inner.decode(z).logits, torch.tensor(-1.0))


@pytest.fixture
def model(small_vae: type[Any]) -> Callable[..., Gaussian]:
    return lambda span, dtype=torch.float64: Gaussian(small_vae(dtype=dtype), span)


# What is a range


@given(PAIRS | st.lists(PAIRS, min_size=1, max_size=5))
def test_a_range_written_in_any_way_is_the_same_range(span: Any) -> None:
    found = as_range(span)
    assert as_range(found) == found
    assert as_range(json.loads(DataSettings(range=span).model_dump_json())["range"]) == found  # with "inf" in texts
    assert as_range(np.array(span).tolist()) == found
    assert bounded(found) == all(map(math.isfinite, widths(found)))
    assert simplest(as_range([[0, 1], [0, 1]])) == (0, 1) != simplest(found) or found == (0, 1)


@pytest.mark.parametrize(
    "nonsense",
    [(1, 0), (0, 0), (0,), (0, 1, 2), (), "ab", 5, [0, True], [0, math.nan], ["0", "1"], [[0, 1], [2]], [[0, 1], 2],
     [[1, 0], [0, 1]], (math.inf, math.inf), {0: 1}, [0, 10**400], [None, 1], object()],
)  # fmt: skip
def test_what_is_no_range_is_refused_in_words(nonsense: object) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(EXPECTED) + "$"):
        as_range(nonsense)


def test_a_range_has_as_many_intervals_as_there_are_channels_or_features() -> None:
    assert range_for([[0, 1], [0, 2], [0, 3]], (3, 8, 8)) == ((0, 1), (0, 2), (0, 3))
    with pytest.raises(ValueError, match="for inputs of 3x8x8"):
        range_for([[0, 1], [0, 2]], (3, 8, 8))


def test_ranges_are_told_as_people_write_them() -> None:
    assert span_text((0.0, 1.0)) == "[0, 1]"
    assert span_text(HALF) == "[0, inf)"
    assert span_text((-math.inf, 1.5)) == "(-inf, 1.5]"
    assert span_text(None) == "none"
    assert span_text(((0.0, 1.0), (0.0, 2.0))) == "[0, 1], [0, 2], by channel or feature"
    assert len(span_text(tuple((0.0, float(k)) for k in range(1, 1000)))) < 200


# Every attack keeps to it


@each_range
def test_the_sweep_stays_in_the_range_and_uses_all_of_it(model: Callable[..., Gaussian], span: Range) -> None:
    x = items(span)
    found = vaeaudit.attack(model(span), x[:3], x[3:], lambdas=[1e-3, 1e-1], max_evaluations=60)
    assert inside(found.sweep.adversarial, span)
    assert bool((found.sweep.norm > 0).any())


@each_range
@pytest.mark.parametrize(
    ("mode", "norm"), [("damage", "l2"), ("untargeted", "linf"), ("worst", "l2"), ("worst", "linf")]
)
def test_attacks_under_a_cap_stay_in_the_range(
    model: Callable[..., Gaussian], span: Range, mode: str, norm: str
) -> None:
    x = items(span)
    x_t = x[3:] if mode == "worst" else None
    found = vaeaudit.capped_attack(model(span), x[:3], mode, x_t, caps=[0.3, 40.0], norm=norm, max_evaluations=12)
    adversarial = found.capped.adversarial
    assert inside(adversarial, span)
    # A cap far wider than the box leaves the box alone to stop the attack, each row at its own ends.
    for row, (low, high) in enumerate(intervals(span) * (2 if len(intervals(span)) == 1 else 1)):
        if math.isfinite(high):
            reached = adversarial[:, 1, row]
            assert bool(((reached == low) | (reached == high)).any())


def test_equal_intervals_for_each_channel_are_one_interval_to_the_bit(model: Callable[..., Gaussian]) -> None:
    x = items((0.0, 1.0))
    one, several = (
        vaeaudit.capped_attack(model(span), x[:3], "damage", caps=[0.5], max_evaluations=60)
        for span in ((0, 1), [[0, 1], [0, 1]])
    )
    assert torch.equal(one.capped.adversarial, several.capped.adversarial)


@each_range
def test_random_search_margin_and_clipped_noise_stay_in_the_range(model: Callable[..., Gaussian], span: Range) -> None:
    vae, x = model(span), items(span)
    seen: list[Tensor] = []

    def watched(points: Tensor) -> vaeaudit.DiagonalGaussian:
        seen.append(points.detach().clone())
        return vae.inner.encode(points)  # type: ignore[no-any-return]

    ways = torch.randn(4, 6, 2, 3, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    radius = torch.full((6, 1), 1.5, dtype=x.dtype)
    _, d = random_search(lambda points, _: points.flatten(1).sum(1), x, span, "l2", radius, ways, RowBatches(64))
    assert inside(x[:, None] + d, span)

    broken = empirical_margin(vae, x, 0.5, box=span, rows=RowBatches(4096), draws=2**12)
    assert inside(x + broken.distortion, span)
    assert bool(broken.margin.isfinite().any())

    vae.encode = watched  # type: ignore[method-assign]
    vaeaudit.noise(vae, x, [2.0], clip=True, draws=2)
    assert all(inside(points, span) for points in seen)


def test_the_largest_norm_of_a_margin_is_the_diameter_of_the_box_or_told_by_the_items(
    model: Callable[..., Gaussian],
) -> None:
    """Nothing breaks at a radius that large: the search ends at the largest norm that it tries."""
    of_box = empirical_margin(model(APART), items(APART), 1e6, box=None, rows=RowBatches(4096), draws=2**10)
    assert float(of_box.largest.max()) == pytest.approx(math.sqrt(3 * 1.0**2 + 3 * 2.5**2))
    x = items(HALF)
    half = empirical_margin(model(HALF), x, 1e6, box=HALF, rows=RowBatches(4096), draws=2**10)
    assert float(half.largest.max()) == pytest.approx(max(10.0, 4 * float(x.flatten(1).norm(dim=1).max())), rel=1e-3)


def test_items_outside_their_channels_interval_are_refused_with_its_number(model: Callable[..., Gaussian]) -> None:
    x = items(APART)
    x[2, 1, 0] = 0.75  # inside the hull of both
    with pytest.raises(DataError, match=r"\[-2, 0.5\] but span \[.*, 0.75\] of channel or feature 1; rescale"):
        vaeaudit.noise(model(APART), x)


@pytest.mark.parametrize("span", [[[0, 1]] * 3, "wide", (1, 0)])
def test_a_wrong_range_is_refused_whoever_gave_it(model: Callable[..., Gaussian], span: object) -> None:
    x = items((0.0, 1.0))
    with pytest.raises(ConfigError, match=r"the range is .*LO < HI.*for inputs of 2x3"):
        vaeaudit.noise(model(None), x, data_range=span)  # type: ignore[arg-type]
    with pytest.raises(ContractError, match=r"the model's range is .*LO < HI.*for inputs of 2x3"):
        vaeaudit.noise(model(span), x)


# What is stored


def fitted(values: object, shape: tuple[int, ...], span: object, **options: Any) -> Any:
    return fit(Stored(np.asarray(values), None, None, "here", ""), input_shape=shape, data_range=span, **options)  # type: ignore[arg-type]


MEAN, STDDEV = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
COLOURS = tuple((float(-m / s), float((1 - m) / s)) for m, s in zip(MEAN, STDDEV, strict=True))


@pytest.mark.parametrize("written", [[[0.0, 1.0], [-2.0, 0.5]], [["-inf", "inf"], [0, "inf"]], [0, 1], ["-inf", "inf"]])
def test_a_range_in_lists_as_an_option_or_a_fact_gives_it_is_the_same_to_every_check(
    small_vae: type[Any], written: Any
) -> None:
    x = torch.rand(24, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2
    told = [examine(small_vae(box), x) for box in (written, as_range(written))]
    assert told[0].findings == told[1].findings
    noisy = [vaeaudit.noise(small_vae(box), x, [0.1], draws=1, clip=True) for box in (written, as_range(written))]
    assert torch.equal(noisy[0].log_likelihood, noisy[1].log_likelihood)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_are_mapped_onto_the_interval_of_their_channel(last: bool, dtype: torch.dtype) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
    stored[0, :, 0, 0], stored[0, :, 0, 1] = 0, 255
    expected = (stored / 255 - MEAN.reshape(3, 1, 1)) / STDDEV.reshape(3, 1, 1)
    data = fitted(np.moveaxis(stored, 1, -1) if last else stored, (3, 4, 6), COLOURS)
    x = data.batch(range(5), dtype=dtype)
    assert x.dtype == dtype
    torch.testing.assert_close(x, torch.from_numpy(expected).to(dtype), rtol=1e-6, atol=1e-6)
    for channel, (low, high) in enumerate(torch.tensor(COLOURS, dtype=torch.float64).to(dtype)):
        assert x[0, channel, 0, 0] == low  # the ends exactly, so that 0 and 255 are no values outside
        assert x[0, channel, 0, 1] == high
    assert "mapped from [0, 255] to [-2.1179" in data.stored


def test_resized_bytes_stay_in_the_interval_of_their_channel() -> None:
    stored = np.random.default_rng(0).integers(0, 2, (3, 3, 9, 9), dtype=np.uint8) * 255
    x = fitted(stored, (3, 5, 5), COLOURS, resize="lanczos").batch(range(3))
    for channel, (low, high) in enumerate(torch.tensor(COLOURS)):
        assert x[:, channel].min() == low
        assert x[:, channel].max() == high


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint64, np.float32])
def test_counts_are_taken_as_they_are_in_any_type(dtype: type[Any]) -> None:
    counts = np.array([[0, 3], [7, 200]]).astype(dtype)
    data = fitted(counts, (2,), HALF)
    assert data.batch([0, 1]).tolist() == counts.tolist()
    assert data.stored.endswith("taken as they are")


def test_values_below_a_half_line_are_refused() -> None:
    with pytest.raises(DataError, match=r"data lie in \[-1, 4\] but the model takes \[0, inf\)"):
        fitted([[-1, 4]], (2,), HALF)


def test_features_keep_to_their_own_intervals() -> None:
    spans = [[0, 1], [0, math.inf], [-math.inf, math.inf]]
    values = np.array([[0.5, 1e6, -1e6], [1.0, 0.0, 3.0]])
    assert fitted(values, (3,), spans).batch([0, 1], dtype=torch.float64).tolist() == values.tolist()
    with pytest.raises(DataError, match=r"of channel or feature 1 lie in \[-1, 2\] but the model takes \[0, inf\)"):
        fitted([[0.5, -1.0, 0.0], [0.5, 2.0, 0.0]], (3,), spans)
    with pytest.raises(DataError, match="for inputs of 3"):
        fitted(values, (3,), spans[:2])


# What is shown and reported


def test_images_with_a_range_for_each_channel_are_drawn_in_their_colours() -> None:
    colours = np.random.default_rng(0).random((2, 3, 8, 8))
    mean, stddev = MEAN.reshape(3, 1, 1), STDDEV.reshape(3, 1, 1)
    plain = item_panel({"input": colours.round(3)}, ["a", "b"], (0.0, 1.0))
    assert item_panel({"input": (colours.round(3) - mean) / stddev + 1e-9}, ["a", "b"], COLOURS) == plain
    assert item_panel({"input": colours.round(3)}, ["a", "b"], None) != plain
    item_panel({"input": colours}, ["a", "b"], HALF)


def save_identity(facts: dict[str, str]) -> None:
    """A model of four features that are not negative, and reconstructs them; 40 items of it."""
    eye, zeros = torch.eye(4), torch.zeros(4)
    sides = torch.cat([eye, -eye])
    tensors = {
        "encoder.shared.0.weight": eye,
        "encoder.shared.0.bias": zeros,
        "encoder.mean.0.weight": eye.clone(),
        "encoder.mean.0.bias": zeros - 0.5,
        "encoder.logvar.0.weight": torch.zeros(4, 4),
        "encoder.logvar.0.bias": zeros - 6,
        "decoder.0.weight": sides,
        "decoder.0.bias": torch.zeros(8),
        "decoder.2.weight": sides.T.contiguous(),
        "decoder.2.bias": zeros + 0.5,
    }
    save_file(tensors, "vae.safetensors", {f"vaeaudit.{name}": fact for name, fact in facts.items()})
    np.save("val.npy", np.random.default_rng(0).random((40, 4), dtype=np.float32) * [1, 2, 50, 3])


def test_a_report_tells_its_range_is_done_again_and_compared_with_the_same_range_only(
    command: Callable[..., Any],
) -> None:
    save_identity({"adapter": "mlp", "likelihood": "gaussian", "range": '[[0, 1], [0, 2], [0, "inf"], [0, 3]]'})
    asked = ("vae.safetensors", "--data", "val.npy", "--pairs", 2, "--lambdas", 3)
    assert command("attack", *asked, "--out", "a").code == 0
    text = Path("a/report.json").read_text()
    report = json.loads(text)
    spans = [[0, 1], [0, 2], [0, "inf"], [0, 3]]
    assert report["data"]["range"] == report["model"]["range"] == report["attacks"][0]["box"] == spans
    assert "Infinity" not in text
    assert "[0, 2], [0, inf), [0, 3], by channel or feature" in Path("a/report.md").read_text()

    again = command("audit", "--from", "a/report.json", "--out", "b")
    assert (again.code, json.loads(Path("b/report.json").read_text())["reproduced"]["agree"]) == (0, True)
    assert command("attack", *asked, "--range", 0, "inf", "--out", "c").code == 0
    assert json.loads(Path("c/report.json").read_text())["data"]["range"] == [0, "inf"]
    assert command("audit", "--from", "c/report.json", "--out", "d").code == 0
    other = command("compare", "a/report.json", "c/report.json")
    assert other.code == 5
    assert (
        "the range of their inputs differs ([0, 1], [0, 2], [0, inf), [0, 3], by channel or feature and [0, inf))"
        in (other.err)
    )


def test_facts_that_are_no_range_of_the_model_are_named(command: Callable[..., Any]) -> None:
    save_identity({"adapter": "mlp", "likelihood": "gaussian", "range": "[[0, 1], [0, 2]]"})
    done = command("attack", "vae.safetensors", "--data", "val.npy")
    assert done.said(2, "the option range of adapter 'mlp' is ((0.0, 1.0), (0.0, 2.0)), where two numbers LO < HI")
