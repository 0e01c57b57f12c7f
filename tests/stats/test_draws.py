import numpy as np
import pytest
import torch
from scipy import stats

from vaeaudit.stats import draws
from vaeaudit.stats.draws import noise_set, uniform

LIKE = torch.zeros((), dtype=torch.float64)


def normals(
    items: list[int], *, draw_count: int = 3, seed: int = 0, check: str = "test", like: torch.Tensor = LIKE
) -> torch.Tensor:
    return noise_set((2, 2), draws=draw_count, items=items, seed=seed, check=check, like=like)


def test_a_longer_request_starts_with_the_shorter_one() -> None:
    short, long = (uniform(count, seed=3, check="a", item=7) for count in (5, 50))
    np.testing.assert_array_equal(long[:5], short)


def test_more_draws_start_with_the_fewer_ones() -> None:
    assert torch.equal(normals([4, 9], draw_count=10)[:3], normals([4, 9], draw_count=3))


def test_a_draw_is_the_same_whichever_items_stand_beside_it_and_in_whatever_order() -> None:
    together = normals([4, 9, 1])
    assert torch.equal(normals([1, 4, 9]), together[:, [2, 0, 1]])
    for place, item in enumerate([4, 9, 1]):
        assert torch.equal(normals([item])[:, 0], together[:, place])


def test_an_item_named_twice_draws_the_same_twice() -> None:
    twice = normals([6, 6])
    assert torch.equal(twice[:, 0], twice[:, 1])


@pytest.mark.parametrize("other", [{"seed": 1}, {"check": "tesu"}, {"seed": -1}])
def test_seed_and_check_change_every_draw(other: dict[str, object]) -> None:
    assert not (normals([4]) == normals([4], **other)).any()  # type: ignore[arg-type]


def test_items_differ_in_every_draw() -> None:
    a, b = normals([1, 11]).unbind(1)
    assert not (a == b).any()


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (
            {"seed": 0, "check": "attack.latent", "item": 0},
            [0.5433458660635059, 0.7235642341191767, 0.01799378043697042, 0.8674688006985426],
        ),
        (
            {"seed": 123, "check": "attack.pairs", "item": 41},
            [0.5535925695717246, 0.7294831372064593, 0.9974049882473978, 0.2609136062109475],
        ),
    ],
)
def test_the_stream_is_frozen(key: dict[str, object], expected: list[float]) -> None:
    # These values never change: reports of older versions must be reproducible by newer ones.
    assert uniform(4, **key).tolist() == expected  # type: ignore[arg-type]


def test_the_normals_are_frozen() -> None:
    noise = noise_set((2,), draws=2, items=[0, 5], seed=0, check="attack.latent", like=LIKE)
    expected = [
        [[0.10886663859548425, 0.5934627099556631], [0.08253676625807878, -0.9833286594660818]],
        [[-2.097067947479128, 1.1145054712059999], [1.9548658418645162, 0.2836014399860473]],
    ]
    torch.testing.assert_close(noise, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)


def test_normals_have_the_shape_dtype_and_rounding_of_the_model() -> None:
    single = normals([3, 8], like=torch.zeros((), dtype=torch.float32))
    assert single.shape == (3, 2, 2, 2)
    assert single.dtype == torch.float32
    assert torch.equal(single, normals([3, 8]).float())


def test_uniforms_are_uniform() -> None:
    assert stats.kstest(uniform(100_000, seed=1, check="ks", item=0), "uniform").pvalue > 0.01


def test_uniforms_across_items_are_uniform_and_unrelated() -> None:
    table = np.stack([uniform(2, seed=1, check="ks", item=i) for i in range(20_000)])  # as pairs of items use them
    assert stats.kstest(table[:, 0], "uniform").pvalue > 0.01
    assert stats.pearsonr(table[:, 0], table[:, 1]).pvalue > 0.01
    assert stats.pearsonr(table[:-1, 0], table[1:, 0]).pvalue > 0.01


def test_normals_are_standard_normal_and_unrelated_between_draws_and_latents() -> None:
    noise = noise_set((3,), draws=4, items=range(5_000), seed=2, check="ks", like=LIKE)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    table = noise.permute(0, 2, 1).flatten(0, 1).numpy()  # 12 rows of 5000 items
    correlations = np.corrcoef(table)[np.triu_indices(12, 1)]
    assert np.abs(correlations).max() < 4.5 / 5_000**0.5


def test_no_bits_give_a_uniform_of_zero_or_one_so_no_normal_is_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    class Extreme:
        def __init__(self, key: object) -> None:
            del key

        def random_raw(self, count: int) -> np.ndarray:
            return np.resize(np.array([0, 2**64 - 1], dtype=np.uint64), count)

    monkeypatch.setattr(draws.np.random, "Philox", Extreme)
    values = uniform(2, seed=0, check="a", item=0)
    assert values[0] > 0
    assert values[1] < 1
    assert normals([0]).isfinite().all()
