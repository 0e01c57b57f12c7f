"""Reconstructions against the mean image, on tensors whose answer is known."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vaeaudit.subject.baselines import Baseline, unlike_scales
from vaeaudit.subject.finding import Finding, Verdict

REAL = None  # no common range


def answer(
    x: Tensor, reconstruction: Tensor, *, unseen: Verdict = Verdict.FAIL, box: tuple[float, float] | None = (0.0, 1.0)
) -> Finding:
    baseline = Baseline(x, range(len(x)), box)
    raw, error = baseline.errors(reconstruction, x)
    return baseline.finding("reconstruction", raw, error, reconstruction[baseline.compared], unseen=unseen)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def heavy(n: int, width: int) -> Tensor:
    """Student's t with 1.5 degrees of freedom: no variance."""
    chi2 = normal(3, n, width, seed=2).square().mean(0)
    return normal(n, width, seed=1) / chi2**0.75


def skewed(n: int, width: int) -> Tensor:
    return (2 * normal(n, width)).exp()


def sparse(n: int, width: int) -> Tensor:
    """95% zeros."""
    kept = torch.rand((n, width), generator=generator(3)) < 0.05
    return torch.where(kept, normal(n, width).abs() + 1, 0.0)


KINDS: dict[str, Callable[[int, int], Tensor]] = {
    "normal": normal,
    "heavy-tailed": heavy,
    "skewed": skewed,
    "sparse": sparse,
}
CONSTANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(0),
    "median": lambda x: x.median(0).values,
    "nothing": lambda x: torch.zeros_like(x[0]),
    "middle of the median and the mean": lambda x: (x.mean(0) + x.median(0).values) / 2,
    "one of the items": lambda x: x[3],
}


@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_collapsed_model_fails_whatever_it_collapsed_to(kind: str, constant: str, n: int) -> None:
    x = KINDS[kind](n, 12)
    collapsed = CONSTANTS[constant](x).expand_as(x)
    assert answer(x, collapsed).verdict is Verdict.FAIL
    # Rounding, which differs between the rows of a batch, is no dependence on the item.
    rounded = collapsed * (1 + 1e-6 * normal(n, 1, seed=9))
    assert answer(x, rounded).verdict is Verdict.FAIL


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30, 99])
@pytest.mark.parametrize("kind", KINDS)
def test_a_collapsed_model_passes_on_no_number_of_items(kind: str, n: int) -> None:
    x = KINDS[kind](n, 12)
    for constant in CONSTANTS.values():
        if n > 3:
            assert answer(x, constant(x).expand_as(x)).verdict is not Verdict.PASS


@pytest.mark.parametrize("n", [20, 50, 99])
@pytest.mark.parametrize("kind", KINDS)
def test_items_that_all_come_out_alike_fail_on_few_of_them_too(kind: str, n: int) -> None:
    """Else a gate on a sample of 50 would be green for a model that ignores its input, and is robust by that."""
    x = KINDS[kind](n, 12)
    alike = x.mean(0).expand_as(x)
    assert answer(x, alike).verdict is Verdict.FAIL
    assert answer(x, alike * (1 + 1e-6 * normal(n, 1, seed=9))).verdict is Verdict.FAIL
    assert answer(x, alike, unseen=Verdict.UNSURE).verdict is Verdict.UNSURE  # draws, of which less is asked
    assert answer(x, alike + 0.05 * (x - x.mean(0))).verdict is not Verdict.FAIL


@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_reconstructions_of_other_items_fail(kind: str, n: int) -> None:
    x = KINDS[kind](n, 12)
    assert answer(x, 0.9 * x.roll(1, 0)).verdict is Verdict.FAIL
    # Shrunk so far that they are as good as the mean image, they still tell nothing of their own item.
    assert answer(x - x.mean(0), 1e-2 * (x - x.mean(0)).roll(1, 0)).verdict is Verdict.FAIL


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_works_passes_on_data_of_every_kind(kind: str) -> None:
    x = KINDS[kind](400, 12)
    assert answer(x, x + 0.3 * (x - x.roll(1, 0))).verdict is Verdict.PASS


def test_one_far_item_does_not_decide_and_is_named() -> None:
    x = normal(300, 12)
    good = 0.8 * x
    good[137] += 1e4
    found = answer(x, good)
    assert found.verdict is Verdict.PASS
    assert "nearer than it on 299 of 300 items (item 137: error" in found.message
    assert "times the median" in found.message


def test_counts_of_which_a_few_are_missed_by_far_pass() -> None:
    x = torch.poisson((1.5 * normal(400, 2) @ normal(2, 20, seed=1)).clamp(max=6).exp(), generator(4))
    rec = x + 0.3 * (x - x.mean(0)) * normal(400, 20, seed=5)
    rec[::25] = 3 * x[::25] + 100
    found = answer(x, rec, box=REAL)
    assert found.verdict is not Verdict.FAIL
    assert "of 400 items" in found.message
    one = x + 0.3 * (x - x.mean(0)) * normal(400, 20, seed=5)
    one[7] *= 1000
    assert answer(x, one, box=REAL).verdict is Verdict.PASS


@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_explains_a_twentieth_of_the_variance_passes_on_many_items_and_never_fails(seed: int) -> None:
    width = 60
    way = torch.nn.functional.normalize(normal(1, width, seed=seed), dim=1)
    code = math.sqrt(0.05 * width / 0.95) * normal(1000, 1, seed=seed + 10)
    x = code @ way + normal(1000, width, seed=seed + 20)
    rec = 0.7 * (x @ way.T) @ way
    assert answer(x, rec).verdict is Verdict.PASS
    for n in (2, 3, 5, 20, 50, 100, 200):
        assert answer(x[:n], rec[:n]).verdict is not Verdict.FAIL, n


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_items_never_condemn_a_model_unless_all_of_them_are_far_worse(n: int) -> None:
    x = normal(n, 12)
    for rec in (0.9 * x, 0.5 * x, x.mean(0).expand_as(x), x.roll(1, 0)):
        assert answer(x, rec).verdict is not Verdict.FAIL
    assert answer(x, x + 100 + 1e-3 * normal(n, 12, seed=3)).verdict is Verdict.FAIL


def test_items_that_repeat_and_items_of_one_value_pass() -> None:
    x = normal(20, 12)
    assert answer(x.repeat(20, 1), 0.8 * x.repeat(20, 1)).verdict is Verdict.PASS
    flat = torch.rand((300, 1), generator=generator()).expand(300, 12).contiguous()
    assert answer(flat, flat + 0.1 * normal(300, 12)).verdict is Verdict.PASS


def test_silent_items_that_come_out_nearly_silent_do_not_condemn_a_model_of_the_others() -> None:
    x = normal(1000, 12)
    x[torch.arange(1000) % 10 > 0] = 0
    rec = 0.8 * x + 1e-3 * normal(1000, 12, seed=1)
    assert answer(x - x.mean(0), rec).verdict is Verdict.PASS
    # Were they much worse than silence, the gain on the others would not outweigh it.
    loud = rec + 0.4 * normal(1000, 12, seed=1) * (x == 0)
    assert answer(x - x.mean(0), loud).verdict is not Verdict.PASS


def test_scales_far_apart_do_not_let_the_largest_element_decide() -> None:
    scale = 10.0 ** torch.linspace(-3, 6, 10)
    x = normal(400, 10)
    rec = 0.9 * x
    rec[:, -1] = x[:, -1].mean()  # the largest is noise that no code holds
    found = answer((x + 2) * scale, (rec + 2) * scale, box=REAL)
    assert found.verdict is Verdict.PASS
    assert "standard deviation" in found.message
    assert answer((x + 2) * scale, (x.mean(0) + 2).expand_as(x) * scale, box=REAL).verdict is Verdict.FAIL
    low, high = unlike_scales(x * scale, None) or (0.0, 0.0)
    assert high / low == pytest.approx(1e9, rel=0.5)
    assert unlike_scales(x, None) is None


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", KINDS)
def test_a_map_that_was_never_trained_passes_only_where_it_happens_to_be_better_than_the_mean(
    kind: str, seed: int
) -> None:
    x = KINDS[kind](400, 12)
    weights = 0.1 * normal(12, 12, seed=100 + seed)
    hidden = torch.tanh(x @ normal(12, 3, seed=200 + seed) / 3)
    for rec in (x @ weights, hidden @ weights[:3], x.mean(0) + hidden @ weights[:3]):
        better = (rec - x).square().mean() < (x - x.mean(0)).square().mean()
        assert bool(better) or answer(x, rec).verdict is not Verdict.PASS


def test_a_little_on_most_items_that_heavy_tails_hide_in_the_mean_is_unsure() -> None:
    """What a map that was never trained may gain along one direction by luck is no ground to pass."""
    x = heavy(1000, 12) + 3 * normal(1000, 1, seed=5)
    for share, verdict in ((0.005, Verdict.UNSURE), (0.2, Verdict.PASS)):
        rec = x.mean(0) + share * (x - x.mean(0))
        rec[7] += 1e3  # so that the mean tells nothing
        assert answer(x, rec, box=REAL).verdict is verdict


def test_draws_that_come_out_as_the_mean_image_are_unsure_and_worse_ones_fail() -> None:
    x = normal(400, 12)
    blind = x.mean(0) + 1e-3 * normal(400, 12, seed=1)
    assert answer(x, blind, unseen=Verdict.UNSURE).verdict is not Verdict.PASS
    assert answer(x, x.mean(0).expand_as(x), unseen=Verdict.UNSURE).verdict is Verdict.UNSURE
    assert answer(x, 5 * normal(400, 12, seed=1), unseen=Verdict.UNSURE).verdict is Verdict.FAIL


def test_a_reconstruction_that_is_not_finite_is_named() -> None:
    x = normal(400, 12)
    rec = 0.8 * x
    rec[33] = math.nan
    found = answer(x, rec)
    assert found.verdict is Verdict.UNSURE
    assert "not finite for item 33" in found.message
    assert answer(x, rec * math.nan).verdict is Verdict.FAIL
