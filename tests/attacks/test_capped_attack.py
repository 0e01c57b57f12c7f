"""Attacks under a cap, from tensors to report: each mode keeps the contract, and what it reports is what it did."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from vaeaudit.attacks.modes import names
from vaeaudit.checks.attack.capped import CappedResult, capped_attack
from vaeaudit.checks.attack.summarise import summarise_capped, summarise_likeness
from vaeaudit.errors import ConfigError, DataError, VaeauditError

CAPS = [0.3, 0.1]  # in any order
BOTH_NORMS = pytest.mark.parametrize("norm", ["l2", "linf"])
EVERY = pytest.mark.parametrize("mode", names(swept=False))


def items_of(count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, x_t = (torch.rand(2, 5, 2, 3, generator=generator, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1).to(dtype)
    return x[:count], x_t[:count]


def attacked(vae: Any, mode: str, count: int = 3, **options: Any) -> CappedResult:
    x, x_t = items_of(count)
    given = {"caps": CAPS, "max_evaluations": 30, **options}
    return capped_attack(vae, x, mode, x_t if mode == "worst" else None, **given)


@pytest.fixture(scope="module")
def result_of(small_vae: Any) -> Callable[..., CappedResult]:
    """An attack on three items, done once."""
    return cache(lambda mode, norm: attacked(small_vae(), mode, norm=norm))


@EVERY
@BOTH_NORMS
def test_a_distortion_keeps_to_its_cap_and_its_box_and_is_what_was_added(
    mode: str, norm: str, result_of: Callable[..., CappedResult], small_vae: Any
) -> None:
    result = result_of(mode, norm)
    found = result.capped
    order = 2 if norm == "l2" else torch.inf
    size = torch.linalg.vector_norm(found.distortion.flatten(2), ord=order, dim=2)
    assert torch.equal(size, found.norm)
    assert (size <= torch.tensor(CAPS)).all()
    if mode == "latent-side":
        start = small_vae().encode(result.source).mean
    else:
        start = result.source
        assert ((found.adversarial >= 0) & (found.adversarial <= 1)).all()
    assert torch.equal(found.adversarial, start[:, None] + found.distortion)
    assert (found.data_term <= found.zero_data_term[:, None] + 1e-12).all()


@EVERY
def test_a_larger_cap_is_never_worse_and_the_same_seed_gives_the_same_bits(
    mode: str, result_of: Callable[..., CappedResult], small_vae: Any
) -> None:
    first, second = result_of(mode, "l2"), attacked(small_vae(), mode, norm="l2")
    assert torch.equal(first.capped.adversarial, second.capped.adversarial)
    assert torch.equal(first.damage, second.damage)
    wide, narrow = first.capped.data_term[:, 0], first.capped.data_term[:, 1]
    assert (wide <= narrow + 1e-12).all()


@EVERY
def test_items_are_attacked_apart(mode: str, result_of: Callable[..., CappedResult], small_vae: Any) -> None:
    together = result_of(mode, "l2")
    alone = attacked(small_vae(), mode, count=1)
    torch.testing.assert_close(alone.damage, together.damage[:1], rtol=1e-6, atol=1e-9)


@EVERY
def test_what_is_reported_is_what_the_distortion_does(mode: str, small_vae: Any) -> None:
    vae, result = small_vae(), attacked(small_vae(), mode, draws=0)
    points = result.capped.adversarial
    z = points if mode == "latent-side" else torch.stack([vae.encode(points[:, k]).mean for k in range(2)], 1)
    ref = vae.decode(vae.encode(result.source).mean).mean
    for k in range(2):
        likelihood = vae.decode(z[:, k])
        gap = torch.linalg.vector_norm((likelihood.mean - ref).flatten(1), dim=1)
        torch.testing.assert_close(result.damage[:, k], gap)
        torch.testing.assert_close(result.nll[:, k], -likelihood.log_prob(result.source))
        torch.testing.assert_close(result.reconstruction[:, k], likelihood.mean)
    assert (result.zero_damage == 0).all()


def test_worst_is_the_largest_damage_of_all_its_members(result_of: Callable[..., CappedResult]) -> None:
    result = result_of("worst", "l2")
    best = result.member_damage.amax(0)  # (I, C); the caps fall, so the first admits both
    best[:, 0] = best.amax(1)
    assert torch.equal(result.damage, best)
    assert torch.equal(-result.capped.data_term, best)
    assert result.members == ("damage", "latent kl", "latent reverse-kl", "output", "pull-back", "random")
    assert (result.damage >= 0).all()


@pytest.mark.parametrize(
    ("norm", "seed", "options"),
    [
        *(("l2", 5, {}), ("linf", 6, {})),
        *(("linf", 5, {"ref": "input", "draws": 0}), ("l2", 6, {"on": "mean", "seed": 3})),
    ],
    ids=str,
)
def test_worst_is_never_less_than_a_member_alone_with_the_same_keys_and_effort(
    norm: str, seed: int, options: dict[str, Any], small_vae: Any
) -> None:
    vae, given = small_vae(seed=seed), {"norm": norm, "caps": [0.02, 0.5, 0.1], "max_evaluations": 30, **options}
    worst, alone = attacked(vae, "worst", **given), attacked(vae, "damage", **given)
    assert torch.equal(worst.member_damage[0], alone.damage)  # to the bit, with the same search
    assert (worst.damage >= alone.damage).all()
    assert (worst.damage >= worst.member_damage).all()
    assert torch.equal(worst.zero_damage, alone.zero_damage)
    rising = worst.damage[:, torch.tensor(given["caps"]).argsort()]
    assert (rising.diff(dim=1) >= 0).all()
    if norm == "l2" and not options:
        assert (worst.damage > alone.damage).any()


@pytest.mark.parametrize(("norm", "seed"), [("l2", 5), ("linf", 7)])
def test_worst_shows_the_signs_of_the_damage_attack_that_it_contains(norm: str, seed: int, small_vae: Any) -> None:
    x, x_t = torch.rand(2, 4, 2, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    for lying in (False, True):
        vae = small_vae(seed=seed)
        if lying:
            of = vae.encode
            vae.encode = lambda points, of=of: of(2 * points.detach() - points)
        worst, damage = (
            capped_attack(vae, x, mode, x_t, caps=(0.1, 0.5), norm=norm, max_evaluations=30)
            for mode in ("worst", "damage")
        )
        assert torch.equal(worst.signs.measured, damage.signs.measured)
        assert worst.signs.any.all() if lying else not worst.signs.any.any()


def test_damage_meets_the_oracle(oracle: dict[str, Any], linear_gaussian: Any) -> None:
    for case in oracle["max_damage"]["cases"]:
        numbers = oracle["models"][case["model"]]
        x = torch.tensor([numbers["x"]], dtype=torch.float64)
        for ref, name in (("reconstruction", "ref_recon_value"), ("input", "ref_x_value")):
            result = capped_attack(linear_gaussian(numbers), x, "damage", caps=[case["cap"]], ref=ref, draws=0)
            value = float(result.damage)
            assert value == pytest.approx(case[name], rel=1e-3)
            assert value <= case[name] * (1 + 1e-9)


def test_the_summary_names_mode_norm_cap_and_figure(result_of: Callable[..., CappedResult]) -> None:
    result = result_of("damage", "l2")
    metrics = summarise_capped(result)
    assert set(metrics) == {
        f"attack.damage.l2-{cap}.{figure}"
        for cap in ("0.3", "0.1")
        for figure in ("damage.median", "damage.mean", "degradation.median", "relative_degradation.median")
    }
    assert metrics["attack.damage.l2-0.1.damage.mean"].value == pytest.approx(float(result.damage[:, 1].mean()))
    lost = (result.nll - result.zero_nll[:, None])[:, 0]
    assert metrics["attack.damage.l2-0.3.degradation.median"].value == pytest.approx(float(lost.median()))


def test_an_attack_on_images_tells_how_alike_they_look(bundled_model: Any, bundled_images: Tensor) -> None:
    result = capped_attack(bundled_model, bundled_images[:2], "untargeted", caps=[2.0], max_evaluations=60)
    metrics = summarise_likeness(result, (0.0, 1.0))
    seen, changed = (metrics[f"attack.untargeted.l2-2.ms_ssim_{side}.median"] for side in ("input", "reconstruction"))
    assert seen.value is not None
    assert changed.value is not None
    assert 0 <= changed.value < seen.value < 1
    assert seen.estimator.startswith("MS-SSIM, 2 of 5 scales")


def test_a_healthy_model_shows_no_sign(bundled_model: Any, bundled_images: Tensor) -> None:
    x, x_t = bundled_images[:2], bundled_images[2:4]
    for mode in names(swept=False):
        result = capped_attack(bundled_model, x, mode, x_t if mode == "worst" else None, caps=[1.0], max_evaluations=60)
        assert not result.signs.any.any(), (mode, result.signs.of(0), result.signs.of(1))


@EVERY
def test_an_interrupted_attack_hands_out_what_it_has(mode: str, small_vae: Any) -> None:
    result = attacked(small_vae(), mode, go_on=lambda _: False)
    assert result.interrupted
    assert result.damage.isfinite().all()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"caps": [0.5, 0.50001]}, ConfigError, "caps must differ in their first four digits"),
        ({"mode": "damge"}, ConfigError, "'damge' .did you mean 'damage'"),
        ({"norm": "l1"}, ConfigError, "norm 'l1'"),
        ({"caps": []}, ConfigError, "cap"),
        ({"caps": [0.0]}, ConfigError, "cap"),
        ({"caps": [-1.0]}, ConfigError, "cap"),
        ({"caps": [float("inf")]}, ConfigError, "cap"),
        ({"caps": [1.0, 1e-400]}, ConfigError, "positive and finite in float64, at least one, but .1.0, 0.0. came"),
        ({"caps": [float("nan")]}, ConfigError, "cap"),
        ({"mode": "worst"}, ConfigError, "needs a target"),
        ({"ref": "itself"}, ConfigError, "ref 'itself'"),
        ({"on": "std", "draws": 0}, ConfigError, "standard deviation alone"),
        ({"x": torch.zeros(0, 2, 3)}, DataError, "at least one"),
        ({"x": torch.zeros(1, 3, 2, dtype=torch.float64)}, DataError, "floating-point numbers"),
        ({"x": torch.full((1, 2, 3), 2.0, dtype=torch.float64)}, DataError, "range"),
        ({"max_evaluations": 3}, VaeauditError, "evaluations"),
        ({"caps": range(1, 10**9)}, ConfigError, "999,999,999 caps for each of 1 inputs would make 45 GiB"),
    ],
)
def test_bad_input_is_one_clear_sentence(options: dict[str, Any], error: type, words: str, small_vae: Any) -> None:
    given = {"x": items_of(1)[0], "mode": "damage", "caps": [1.0], **options}
    with pytest.raises(error, match=words) as caught:
        capped_attack(small_vae(), given.pop("x"), given.pop("mode"), **given)
    assert "\n" not in str(caught.value)
