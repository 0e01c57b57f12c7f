"""Variants of models whose differences are known in closed form, or were planted."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vaeaudit import DiagonalGaussian, FullGaussian, GaussianChain, GaussianLikelihood
from vaeaudit.checks.equivalence.measure import EquivalenceResult, equivalence
from vaeaudit.errors import ConfigError, NonFiniteError, UnsupportedError
from vaeaudit.model.batches import Elsewhere, keeping
from vaeaudit.model.variant import Variant
from vaeaudit.model.variants import Running, check_alike, varied
from vaeaudit.stats.draws import noise_set

CPU = torch.device("cpu")
NUMBERS = {
    "A": [[1.0, 0.5, -0.25], [0.0, 1.0, 2.0]],
    "b": [0.1, -0.2],
    "B": [[1.0, 0.0], [0.5, -1.0], [2.0, 1.0]],
    "c": [0.0, 0.5, 1.0],
    "sigma": [0.5, 2.0],
    "tau": 1.0,
}


def run_as(vae: Any, dtype: torch.dtype = torch.float64) -> Running:
    return Running(vae, dtype, Variant(), CPU)


def of(reference: Any, other: Any, x: Tensor, **more: Any) -> EquivalenceResult:
    return equivalence(run_as(reference, x.dtype), {"other": run_as(other, x.dtype)}, x, **more)


def test_a_linear_model_differs_by_what_its_matrices_say(linear_gaussian: Any) -> None:
    changed = NUMBERS | {"b": [0.4, -0.2], "sigma": [1.0, 2.0], "B": [[1.0, 0.1], [0.5, -1.0], [2.0, 1.0]]}
    one, other = linear_gaussian(NUMBERS), linear_gaussian(changed)
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = of(one, other, x, draws=2, seed=3, items=range(10, 17), batch_size=3)
    values = found.variants["other"].values
    # N(m, 0.5^2) to N(m + 0.3, 1): log 2 + (0.25 + 0.09)/2 - 1/2; back: -log 2 + (1 + 0.09)/(2 0.25) - 1/2.
    assert values["encoder.kl"].tolist() == pytest.approx([math.log(2) + 0.17 - 0.5] * 7)
    assert values["encoder.kl_back"].tolist() == pytest.approx([-math.log(2) + 1.09 / 0.5 - 0.5] * 7)
    assert values["encoder.mean_shift"].tolist() == pytest.approx([0.3 / 0.5] * 7)
    assert values["encoder.log_stddev"].tolist() == pytest.approx([math.log(2)] * 7)
    q = one.encode(x)
    eta = noise_set((2,), draws=2, items=range(10, 17), seed=3, check="equivalence", like=x)
    latents = torch.stack([q.mean, *q.sample(eta)])
    second = latents[..., 1].abs().amax(0)
    assert values["decoder.largest_difference"].tolist() == pytest.approx(
        (0.1 * latents[..., 1]).abs().amax(0).tolist()
    )
    assert values["decoder.mean_difference"].tolist() == pytest.approx((second / 30).tolist())
    both = q.mean @ one.B.T, other.encode(x).mean @ other.B.T
    assert values["end.largest_difference"].tolist() == pytest.approx((both[1] - both[0]).abs().amax(1).tolist())
    drawn = latents[1:] @ one.B.T
    assert found.scale["largest_difference"].tolist() == pytest.approx((drawn[0] - drawn[1]).abs().amax(1).tolist())
    assert found.scale["encoder.mean_shift"].tolist() == pytest.approx((eta[0] - eta[1]).abs().amax(1).tolist())
    assert set(found.left_out) == {"psnr", "share_off", "ssim"}
    assert not found.ranged


def test_the_same_model_twice_differs_by_nothing(bundled_model: Any, bundled_images: Tensor) -> None:
    found = of(bundled_model, bundled_model, bundled_images[:40], batch_size=16)
    for name, values in found.variants["other"].values.items():
        expected = math.inf if name.endswith("psnr") else 1.0 if name.endswith("ssim") else 0.0
        assert (values == expected).all(), name
    assert (found.control, found.again, found.interrupted) == (0.0, 16, False)


def test_one_bit_of_one_weight_is_found_in_its_half_of_the_model(bundled_model: Any, bundled_images: Tensor) -> None:
    other = varied(bundled_model, Variant(), torch.float32, CPU)
    assert isinstance(other.vae, nn.Module)
    last = [weight for name, weight in other.vae.named_parameters() if "decoder" in name][-1]
    last.view(-1)[:] = torch.nextafter(last.view(-1), torch.full_like(last.view(-1), math.inf))
    found = equivalence(run_as(bundled_model, torch.float32), {"other": other}, bundled_images[:20])
    values = found.variants["other"].values
    assert (values["encoder.mean_shift"] == 0).all() and (values["encoder.kl"] == 0).all()
    assert 0 < float(values["decoder.largest_difference"].max()) < 1e-5
    assert 0 < float((1 - values["decoder.ssim"]).max()) < 1e-6 or float(values["decoder.psnr"].min()) < 200


def test_double_precision_differs_by_rounding(bundled_model: Any, bundled_images: Tensor) -> None:
    other = varied(bundled_model, Variant(dtype="float64"), torch.float32, CPU)
    found = equivalence(run_as(bundled_model, torch.float32), {"float64": other}, bundled_images[:20])
    values = found.variants["float64"].values
    assert 0 < float(values["end.largest_difference"].max()) < 1e-5
    assert 0 < float(values["encoder.mean_shift"].max()) < 1e-4
    half = varied(bundled_model, Variant(dtype="bfloat16"), torch.float32, CPU)
    cast = varied(bundled_model, Variant(autocast="bfloat16"), torch.float32, CPU)
    rough = equivalence(run_as(bundled_model, torch.float32), {"half": half, "cast": cast}, bundled_images[:20])
    for variant in rough.variants.values():
        worst = float(variant.values["end.largest_difference"].max())
        assert 1e-4 < worst < float(rough.scale["largest_difference"].median())


class Colours(nn.Module):
    """A model of colour images whose last layers can overflow half precision; ``last`` is done to its output."""

    input_shape, range = (3, 12, 12), (0.0, 1.0)

    def __init__(self, hot: float = 1.0, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise
        self.encoder = nn.Conv2d(3, 3, 1)
        self.decoder = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
        with torch.no_grad():
            for layer, scale in ((self.encoder, 1.0), (self.decoder[0], hot), (self.decoder[1], 1 / hot)):
                layer.weight[:] = scale * torch.eye(3).reshape(3, 3, 1, 1)
                layer.bias[:] = 0
        self.requires_grad_(False)

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((3, 12, 12), like=self.encoder.bias)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        mean = self.encoder(x)
        return DiagonalGaussian(mean, torch.full_like(mean, -3.0))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        mean = self.decoder(z)
        return GaussianLikelihood(mean + self.noise * torch.randn_like(mean), mean.new_zeros(()))


def images(count: int = 6) -> Tensor:
    return 0.1 + 0.8 * torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("hot", "layer"), [(1e6, "decoder.0"), (1e-6, "decoder.1")])  # NaN comes out, or infinity
def test_infinity_in_half_precision_is_counted_and_found_in_its_layer(hot: float, layer: str) -> None:
    vae, x = Colours(hot), images()
    other = varied(vae, Variant(dtype="float16"), torch.float32, CPU)
    found = equivalence(run_as(vae, torch.float32), {"float16": other}, x, items=range(3, 9))
    variant = found.variants["float16"]
    assert variant.nonfinite.all()
    (located,) = variant.located
    assert (located.side, located.item, located.module) == ("decoder", 3, layer)
    assert (variant.values["decoder.largest_difference"] == math.inf).all()
    assert (variant.values["end.ssim"] == -math.inf).all()
    assert (variant.values["end.psnr"] == -math.inf).all()
    assert variant.values["encoder.kl"].isfinite().all()
    fine = varied(vae, Variant(dtype="bfloat16"), torch.float32, CPU)
    assert not equivalence(run_as(vae, torch.float32), {"it": fine}, x).variants["it"].nonfinite.any()
    with pytest.raises(NonFiniteError, match="reconstruction of the reference is NaN or infinite"):
        equivalence(other, {"float32": run_as(vae, torch.float32)}, x.half())


def test_a_reference_that_is_not_deterministic_says_so() -> None:
    found = of(Colours(noise=0.01), Colours(), images())
    assert found.control > 0.001


def test_what_a_variant_cannot_be_is_said() -> None:
    for text, why in (
        ("dtype=int8", r"^dtype=float64\|float32\|bfloat16\|float16$"),
        ("dtyp=bfloat16", r"^dtype=float64\|.*, or several of them joined by \+$"),
        ("compile=false", "^compile=true$"),
        ("dtype=float16,dtype=float16", r"several of them joined by \+"),
    ):
        with pytest.raises(ValueError, match=why):
            Variant.parse(text)
    assert Variant.parse("channels_last=true, autocast=float16") == Variant.parse("autocast=float16+channels-last=true")
    assert Variant.parse("channels_last=true, autocast=float16").name == "autocast-float16+channels-last"
    with pytest.raises(UnsupportedError, match=r"no tiling: the model has no enable_.*neither tiling nor slicing"):
        varied(Colours(), Variant.parse("tiling=true"), torch.float32, CPU)
    with pytest.raises(UnsupportedError, match=r"no bfloat16 of a model that is no torch.nn.Module"):
        varied(object(), Variant.parse("dtype=bfloat16"), torch.float32, CPU)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="one variant or more"):
        equivalence(run_as(Colours(), torch.float32), {}, images())


def test_processes_of_which_each_saw_another_variant_fail_give_no_result(linear_gaussian: Any) -> None:
    """One process takes the first batch, where B fails; the other, which began without it, the second, where A does."""

    class Fails(type(linear_gaussian(NUMBERS))):  # type: ignore[misc]
        def __init__(self, at: float) -> None:
            super().__init__(NUMBERS)
            self.at = at

        def encode(self, x: Tensor) -> Any:
            if bool((x[:, 0] == self.at).any()):
                raise UnsupportedError(f"no batch with a {self.at:g}")
            return super().encode(x)

    x = torch.stack([torch.full((3,), float(n), dtype=torch.float64) for n in range(4)])
    given = {"A": run_as(Fails(3)), "B": run_as(Fails(0))}
    kept: dict[int, tuple[Tensor, ...]] = {}

    def keeping_one(first: int) -> Any:
        def keep(start: int, _: int | None, give: Any) -> tuple[Tensor, ...] | None:
            if start == first and start not in kept:
                kept[start] = give()
            return kept.get(start)

        return lambda _: keep

    for first in (0, 2):
        with keeping(keeping_one(first)), pytest.raises((Elsewhere, UnsupportedError)) as raised:
            equivalence(run_as(linear_gaussian(NUMBERS)), given, x, batch_size=2)
    assert str(raised.value) == "no batch with a 0; no batch with a 3"


def test_a_form_that_the_model_offers_is_taken_and_one_that_cannot_run_is_named() -> None:
    class Tiled(Colours):
        tiles = False

        def enable_tiling(self) -> None:
            self.tiles = True

        def decode(self, z: Tensor) -> GaussianLikelihood:
            found = super().decode(z)
            return GaussianLikelihood(found.mean + 0.25 * self.tiles, found.log_stddev)

    class Stubborn(Colours):
        def decode(self, z: Tensor) -> GaussianLikelihood:
            return super().decode(z.float())

    vae, x = Tiled(), images()
    tiled = varied(vae, Variant.parse("tiling=true,channels-last=true"), torch.float32, CPU)
    values = equivalence(run_as(vae, torch.float32), {"tiling": tiled}, x).variants["tiling"].values
    assert values["decoder.largest_difference"].tolist() == pytest.approx([0.25] * 6)
    assert not vae.tiles
    with pytest.raises(UnsupportedError, match=r"no slicing.*; it offers tiling"):
        varied(vae, Variant.parse("slicing=true"), torch.float32, CPU)
    stubborn = Stubborn()
    both: Mapping[str, Running] = {
        "float16": varied(stubborn, Variant(dtype="float16"), torch.float32, CPU),
        "same": run_as(stubborn, torch.float32),
    }
    found = equivalence(run_as(stubborn, torch.float32), both, x)
    assert set(found.variants) == {"same"}
    assert "float16 cannot run on cpu: the model raised RuntimeError" in found.failed["float16"]
    with pytest.raises(UnsupportedError, match="float16 cannot run on cpu"):
        equivalence(run_as(stubborn, torch.float32), {"float16": both["float16"]}, x)


def test_models_of_other_inputs_or_latents_are_refused_with_both(small_vae: Any, linear_gaussian: Any) -> None:
    x = torch.rand(2, 2, 3, dtype=torch.float64)
    with pytest.raises(ConfigError, match="takes inputs of 2x3 and the other of 3x12x12"):
        check_alike(small_vae(), Colours(), x, x)  # type: ignore[arg-type]
    one, wide = NUMBERS, NUMBERS | {"A": [[1.0, 0, 0]] * 3, "b": [0.0] * 3, "B": [[1.0, 0, 0]] * 3, "sigma": [1.0] * 3}
    given = torch.rand(2, 3, dtype=torch.float64)
    with pytest.raises(ConfigError, match="has latents of 2 and the other of 3"):
        check_alike(linear_gaussian(one), linear_gaussian(wide), given, given)


class Layered(nn.Module):
    """A chain of two layers, z^1 = x + noise / 10 and z^2 = gain z^1 + spread noise; the decoder gives z^1."""

    input_shape, range = (2,), None

    def __init__(self, gain: float = 2.0, spread: float = 0.5) -> None:
        super().__init__()
        self.link = nn.Linear(2, 2, bias=False).requires_grad_(False)
        self.link.weight[:] = gain * torch.eye(2)
        self.log_stddev = math.log(spread)

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((4,), like=self.link.weight)

    def above(self, z: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(self.link(z), torch.full_like(z, self.log_stddev))

    def encode(self, x: Tensor) -> GaussianChain:
        return GaussianChain(DiagonalGaussian(x, torch.full_like(x, math.log(0.1))), (self.above,))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(z[:, :2], z.new_zeros(()))


def test_the_upper_layers_of_a_chain_are_compared_too() -> None:
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = Layered().double()
    values = of(one, Layered(spread=1.5).double(), x).variants["other"].values
    assert values["encoder.log_stddev"].tolist() == pytest.approx([math.log(3)] * 5)
    assert values["encoder.kl"].tolist() == pytest.approx([2 * (math.log(3) + 1 / 18 - 0.5)] * 5)
    assert values["encoder.kl_back"].tolist() == pytest.approx([2 * (-math.log(3) + 9 / 2 - 0.5)] * 5)
    assert (values["encoder.mean_shift"] == 0).all()
    values = of(one, Layered(gain=2.25).double(), x, draws=0).variants["other"].values
    assert values["encoder.mean_shift"].tolist() == pytest.approx((0.25 * x / 0.5).abs().amax(1).tolist())
    assert values["encoder.kl"].tolist() == pytest.approx((0.5 * (0.25 * x / 0.5).square().sum(1)).tolist())


def test_the_upper_layers_of_a_chain_run_as_their_variant_does() -> None:
    vae, x = Layered(gain=1 / 3), torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    rough = vae.link.weight.diagonal().bfloat16() * x.bfloat16()  # where z^1 is exact
    expected = ((rough.double() - vae.link(x).double()) / 0.5).abs().amax(1)
    for variant in (Variant(dtype="bfloat16"), Variant(autocast="bfloat16")):
        other = varied(vae, variant, torch.float32, CPU)
        values = equivalence(run_as(vae, torch.float32), {"it": other}, x, draws=0).variants["it"].values
        assert values["encoder.mean_shift"].tolist() == pytest.approx(expected.tolist(), rel=1e-6)
        assert float(expected.min()) > 1e-4


def test_the_shift_of_a_full_covariance_is_in_units_of_its_marginal_deviations() -> None:
    class Full(Layered):
        def __init__(self, by: float = 0.0) -> None:
            super().__init__()
            self.by = by

        def encode(self, x: Tensor) -> Any:
            return FullGaussian(x + self.by, x.new_tensor([[1.0, 0.0], [3.0, 4.0]]).expand(len(x), -1, -1))

    values = of(Full(), Full(by=2.0), torch.zeros(3, 2)).variants["other"].values
    assert values["encoder.mean_shift"].tolist() == pytest.approx([2.0] * 3)  # deviations are 1 and 5
    assert (values["encoder.log_stddev"] == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_means_that_are_no_numbers_are_infinitely_far(linear_gaussian: Any, bad: float) -> None:
    x = torch.ones(3, 3, dtype=torch.float64)
    broken = of(linear_gaussian(NUMBERS), linear_gaussian(NUMBERS | {"b": [bad, -0.2]}), x).variants["other"]
    assert (broken.values["encoder.mean_shift"] == math.inf).all()
    assert broken.nonfinite.all()
