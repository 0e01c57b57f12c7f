"""Whether an attack succeeded: by the nearest image of a factor grid, and by the class of the reconstruction."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeaudit.checks.attack import classifier, success
from vaeaudit.checks.attack.classifier import Classifier, Judge, LogisticRegression, classes_of, judge
from vaeaudit.checks.attack.success import (
    ClassSuccess,
    FactorSuccess,
    class_success,
    factor_success,
    summarise_classes,
    summarise_factor,
)
from vaeaudit.data.items import fit
from vaeaudit.data.sources import read
from vaeaudit.errors import ConfigError, ContractError, DataError, NonFiniteError
from vaeaudit.model.registry import open_model
from vaeaudit.stats import estimates

SHARED = Path(__file__).parents[4] / "shared"
Pick = Callable[[Sequence[int]], Tensor]


def images_of(images: Tensor) -> Pick:
    return lambda items: images[torch.as_tensor(list(items))]


# A single factor


@dataclass(frozen=True)
class Grid:
    """Arrows at 3 places, turned by 0 to 2 pi in 8 steps: the last angle is the first image once more."""

    classes: NDArray[np.int64]
    images: Tensor

    def number(self, angle: int, place: int) -> int:
        return angle * 3 + place


@pytest.fixture
def grid() -> Grid:
    classes = np.array(list(product(range(9), range(3))))
    angle = torch.from_numpy(classes[:, 0] % 8) * (torch.pi / 4)
    place = torch.from_numpy(classes[:, 1]) * 5.0
    return Grid(classes, torch.stack([place, angle.cos(), angle.sin(), place / 3], 1).reshape(-1, 2, 2))


def judged(grid: Grid, reconstruction: Tensor, source: int, target: int) -> FactorSuccess:
    """``reconstruction`` (..., 2, 2) of one pair; clean reconstructions are perfect."""
    x, x_t = grid.images[source][None], grid.images[target][None]
    classes, pick = grid.classes, images_of(grid.images)
    return factor_success(reconstruction[None], x, x_t, x_t, [target], pick, classes)


def test_the_nearest_image_decides_and_all_its_factors_count(grid: Grid) -> None:
    source, target = grid.number(2, 1), grid.number(5, 1)
    near = torch.stack([grid.images[k] for k in (target, source, grid.number(5, 2), grid.number(4, 1))])
    found = judged(grid, near + 0.05, source, target)
    assert found.success.tolist() == [[True, False, False, False]]
    assert found.nearest.tolist() == [[target, source, grid.number(5, 2), grid.number(4, 1)]]
    assert (found.at_source.tolist(), found.at_target.tolist()) == ([False], [True])


def test_any_of_several_identical_images_counts(grid: Grid) -> None:
    # Orientations 0 and 8 are one image: to reach it is to reach either.
    source = grid.number(3, 1)
    for target in (grid.number(0, 1), grid.number(8, 1)):
        found = judged(grid, grid.images[target] + 1e-3, source, target)
        assert found.success.tolist() == [True]
        assert found.nearest.tolist() == [target]


def test_progress_is_the_share_of_the_way_to_the_target(grid: Grid) -> None:
    source, target = grid.number(2, 1), grid.number(5, 1)
    x, x_t = grid.images[source], grid.images[target]
    way = torch.tensor([0.0, 0.25, 1.0, -1.0, 2.0])[:, None, None]
    found = judged(grid, x + way * (x_t - x), source, target)
    torch.testing.assert_close(found.progress, torch.tensor([[0.0, 0.25, 1.0, -1.0, 0.0]]).to(found.progress))


def test_progress_has_no_value_where_the_source_is_reconstructed_as_the_target(grid: Grid) -> None:
    x_t = grid.images[[4]]
    found = factor_success(x_t + 1, x_t, x_t, x_t, [4], images_of(grid.images), grid.classes)
    assert found.progress.isnan().all()
    summary = summarise_factor(found, prefix="attack.latent")["attack.latent.progress.median"]
    assert (summary.value, summary.n, summary.nonfinite) == (None, 0, 1)


@pytest.mark.parametrize("numbers", [2**22, 40, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_search_in_blocks_finds_what_a_search_one_by_one_finds(
    numbers: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(success, "_MOST_NUMBERS", numbers)
    monkeypatch.setattr(success, "_MOST_ROWS", 7 if numbers < 2**22 else 1024)
    generator = torch.Generator().manual_seed(1)
    classes = np.array(list(product(range(4), range(3), range(2))))
    images = torch.rand(24, 1, 3, 3, generator=generator, dtype=dtype).round()  # some are near each other
    images[5], images[17] = images[2], images[3]
    source, target = [0, 7, 3], [6, 1, 15]  # differ in the first factor only
    rec = torch.rand(3, 4, 5, 1, 3, 3, generator=generator, dtype=dtype)
    clean = torch.rand(2, 3, 1, 3, 3, generator=generator, dtype=dtype)
    found = factor_success(rec, clean[0], clean[1], images[target], target, images_of(images), classes)
    assert found.success.shape == found.progress.shape == found.nearest.shape == (3, 4, 5)
    assert found.progress.dtype == dtype
    for p, i, j in product(range(3), range(4), range(5)):
        distance = np.linalg.norm((images.double() - rec[p, i, j].double()).numpy().reshape(24, -1), axis=1)
        best = np.flatnonzero(distance <= distance.min() + 1e-12)
        right = [
            classes[k, 0] == classes[target[p], 0] and (classes[k, 1:] == classes[source[p], 1:]).all() for k in best
        ]
        assert bool(found.success[p, i, j]) == any(right)
        assert int(found.nearest[p, i, j]) in best


def test_a_rate_that_even_a_perfect_attack_would_miss_is_inconclusive(grid: Grid) -> None:
    # The model reconstructs everything as one image: no attack moves it, and it must not read as robust.
    source, target = grid.number(2, 1), grid.number(5, 1)
    blank = grid.images[[source]]
    found = factor_success(blank, blank, blank, grid.images[[target]], [target], images_of(grid.images), grid.classes)
    rate = summarise_factor(found, prefix="attack.output")["attack.output.success.factor"]
    assert (rate.value, rate.ci, rate.n) == (None, None, 1)
    assert "inconclusive: the reconstruction of none of the 1 targets" in rate.estimator


def test_single_factor_metrics_have_exact_intervals_and_what_stands_without_attack() -> None:
    hits = torch.tensor([True] * 7 + [False] * 3)
    none, every = torch.zeros(10, dtype=torch.bool), torch.ones(10, dtype=torch.bool)
    progress = torch.arange(10) / 10
    found = FactorSuccess(hits, progress, torch.arange(10), at_source=none, at_target=every)
    metrics = summarise_factor(found, prefix="attack.latent")
    assert metrics["attack.latent.success.factor"] == estimates.proportion(7, 10, unit="share", direction="lower")
    assert metrics["attack.latent.success.factor_at_source"].value == 0
    assert metrics["attack.latent.success.factor_at_target"].value == 1
    median = metrics["attack.latent.progress.median"]
    assert (median.value, median.ci) == (pytest.approx(0.4), pytest.approx((0.1, 0.8)))
    with pytest.raises(DataError, match=r"one distortion of each pair.*\(5, 2\)"):
        summarise_factor(
            FactorSuccess(hits.reshape(5, 2), progress, progress, at_source=none, at_target=every), prefix="x"
        )


def test_reconstructions_of_other_shapes_or_not_finite_are_errors(grid: Grid) -> None:
    x, pick, classes = grid.images[:2], images_of(grid.images), grid.classes
    with pytest.raises(DataError, match=r"\(P, ..., \*shape\)"):
        factor_success(x[:1], x, x, x, [0, 1], pick, classes)
    with pytest.raises(DataError, match="with 1 numbers"):
        factor_success(x, x, x, x, [0], pick, classes)
    with pytest.raises(NonFiniteError, match="no image is nearest"):
        factor_success(x * torch.nan, x, x, x, [0, 1], pick, classes)


# Classes


def class_success_of(numbers: dict[str, list[int]]) -> ClassSuccess:
    return ClassSuccess(*(torch.tensor(numbers[k]) for k in ("src", "tgt", "clean_recon_class", "adv_recon_class")))


def knowing() -> Judge:
    accuracy = estimates.proportion(980, 1000, unit="share", direction="none")
    return Judge(AsLabelled(), accuracy, commonest=0.2, how="a perfect one")


class AsLabelled:
    """Images are constant, of the value of their class."""

    def classify(self, x: Tensor) -> Tensor:
        return x.flatten(1).mean(1).round().long()


class AsScores:
    def classify(self, x: Tensor) -> Tensor:
        return -(x.flatten(1).mean(1)[:, None] - torch.arange(10).to(x)).abs()


def constant(classes: Sequence[int]) -> Tensor:
    return torch.tensor(classes, dtype=torch.float32)[:, None, None].expand(-1, 2, 3)


@pytest.mark.parametrize("named", [AsLabelled(), AsScores()])
def test_attack_success_rates_agree_with_the_oracle(named: Classifier, oracle: dict[str, Any]) -> None:
    toy = oracle["as_metrics"]["toy"]
    found = class_success(
        named,
        constant(toy["adv_recon_class"]),
        constant(toy["clean_recon_class"]),
        toy["src"],
        toy["tgt"],
        batch_size=3,
    )
    metrics = summarise_classes(found, knowing(), prefix="attack.latent")
    ignore, target = (metrics[f"attack.latent.success.{name}"] for name in ("ignore_target", "target"))
    assert ignore.value == toy["AS_ignore_target"]
    assert target.value == toy["AS_target"]
    assert ignore.n == target.n == toy["n_valid"]
    assert ignore.ci == estimates.proportion(5, 9, unit="share", direction="lower").ci
    assert metrics["attack.latent.success.classifier_accuracy"].n == 1000


def test_the_table_counts_every_attack_once(oracle: dict[str, Any]) -> None:
    toy = oracle["as_metrics"]["toy"]
    table = class_success_of(toy).table
    assert table.classes == (0, 1, 2)
    for counts, total in ((table.attacked, 10), (table.valid, 9), (table.left, 5), (table.reached, 3)):
        assert counts.sum() == total
        assert np.diag(counts).sum() == 0
    assert table.attacked[0].tolist() == [0, 3, 1]
    assert table.valid[0].tolist() == [0, 2, 1]
    assert table.rates(table.reached)[0, 1] == 0.5
    assert np.isnan(table.rates(table.left)[1, 1])


def test_the_rate_of_a_source_is_the_unweighted_mean_over_the_other_classes() -> None:
    # Towards 1: 3 of 3 reached, towards 2: 0 of 1. Weighted by attacks it would be 3/4.
    found = class_success_of(
        {"src": [0] * 4, "tgt": [1, 1, 1, 2], "clean_recon_class": [0] * 4, "adv_recon_class": [1, 1, 1, 1]}
    )
    source_0, *others = found.table.target
    assert (source_0.value, source_0.n) == (0.5, 4)
    assert found.table.ignore_target[0].value == 1.0
    assert all(rate.value is None for rate in others)  # no attack starts there
    assert found.target_rate.value == 0.75  # over pairs


def test_a_source_with_no_valid_attack_on_one_of_the_other_classes_has_no_rate() -> None:
    found = class_success_of({"src": [0, 0], "tgt": [1, 2], "clean_recon_class": [0, 5], "adv_recon_class": [1, 2]})
    assert found.table.target[0].value is None
    assert found.target_rate.value == 1.0


def test_reaching_the_target_is_never_more_frequent_than_leaving_the_source() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        found = ClassSuccess(*torch.randint(3, (4, 12), generator=generator))
        assert int(found.reached.sum()) <= int(found.left.sum()) <= int(found.valid.sum())
        assert (found.table.reached <= found.table.left).all()


def test_a_target_of_the_sources_class_counts_neither_as_success_nor_as_failure() -> None:
    found = class_success_of({"src": [1, 1], "tgt": [1, 2], "clean_recon_class": [1, 1], "adv_recon_class": [1, 2]})
    assert (found.target_rate.value, found.target_rate.n) == (1.0, 1)


def test_without_a_valid_pair_the_rates_are_neither_0_nor_1() -> None:
    found = class_success_of({"src": [0, 1], "tgt": [1, 0], "clean_recon_class": [1, 0], "adv_recon_class": [1, 0]})
    metrics = summarise_classes(found, knowing(), prefix="attack.latent")
    for name in ("target", "ignore_target"):
        rate = metrics[f"attack.latent.success.{name}"]
        assert (rate.value, rate.ci, rate.n) == (None, None, 0)


@pytest.mark.parametrize(("right", "n"), [(310, 1000), (595, 1000), (3, 3), (0, 0)])
def test_a_classifier_that_cannot_tell_makes_the_rates_inconclusive_and_says_why(right: int, n: int) -> None:
    # 0.6 is halfway from a commonest class of 0.2 to 1; three right answers of three are no proof of it.
    unsure = Judge(AsLabelled(), estimates.proportion(right, n, unit="share", direction="none"), 0.2, "one")
    found = class_success_of({"src": [0, 1], "tgt": [1, 0], "clean_recon_class": [0, 1], "adv_recon_class": [1, 0]})
    rate = summarise_classes(found, unsure, prefix="attack.latent")["attack.latent.success.target"]
    assert (rate.value, rate.ci, rate.n) == (None, None, 2)
    assert unsure.fault is not None
    assert unsure.fault in rate.estimator
    assert ("could not be tried" if n == 0 else "lower end must exceed 0.600") in unsure.fault


@pytest.mark.parametrize(
    ("answer", "error", "told"),
    [
        (lambda x: x.flatten(1).mean(1), ContractError, r"float32 \(4,\)"),
        (lambda x: torch.zeros(len(x), 1), ContractError, r"float32 \(4, 1\)"),
        (lambda _: torch.zeros(3, dtype=torch.int64), ContractError, r"int64 \(3,\)"),
        (lambda x: torch.zeros(len(x), 3, dtype=torch.int64), ContractError, r"int64 \(4, 3\)"),
        (lambda x: [0] * len(x), ContractError, "list"),
        (lambda x: torch.full((len(x), 3), torch.nan), NonFiniteError, "scores that are NaN"),
    ],
)
def test_a_classifier_that_breaks_its_contract_is_an_error_that_says_what_came(
    answer: Any, error: type[Exception], told: str
) -> None:
    class Odd:
        def classify(self, x: Tensor) -> Any:
            return answer(x)

    with pytest.raises(error, match=told):
        classes_of(Odd(), constant([0, 1, 2, 3]))


def test_an_image_that_is_not_finite_has_no_class() -> None:
    with pytest.raises(NonFiniteError, match="has no class"):
        classes_of(AsLabelled(), constant([0, 1]) / 0)


def test_each_pair_needs_its_labels() -> None:
    with pytest.raises(DataError, match="with 1 and 2 labels"):
        class_success(AsLabelled(), constant([0, 1]), constant([0, 1]), [0], [1, 0])


# The classifier that is fitted


@pytest.fixture(scope="module")
def sprites() -> tuple[Any, Pick, NDArray[np.int64], NDArray[np.int64]]:
    """The bundled model, its images, and two labels of theirs: whether they lie left or right, and nothing at all."""
    examples = Path(__file__).parents[3] / "examples"
    vae = open_model(examples / "shapes-beta1.safetensors").vae
    data = fit(read(examples / "shapes.npz"), input_shape=tuple(vae.input_shape), data_range=vae.range)
    assert data.factors is not None
    column = data.factors.classes[:, data.factors.names.index("posX")]
    side = (column > np.median(column)).astype(np.int64) * 4 + 3  # labels 3 and 7
    return vae, data.batch, side, np.arange(len(data)) // 7 % 3


def test_a_regression_on_reconstructions_learns_labels_and_is_tried_on_other_items(sprites: Any) -> None:
    pytest.importorskip("sklearn")
    vae, images, side, _ = sprites
    found = judge(vae, images, side, attacked=range(40), seed=0)
    held_out = round(0.25 * (len(side) - 40))
    assert found.accuracy.n == held_out
    assert found.accuracy.value is not None
    assert found.accuracy.value > 0.95
    assert found.fault is None
    assert found.warnings == ()
    assert f"{len(side) - 40 - held_out} items (seed 0)" in found.how


def test_labels_that_the_images_do_not_show_are_found_out(sprites: Any) -> None:
    pytest.importorskip("sklearn")
    vae, images, _, nothing = sprites
    found = judge(vae, images, nothing, seed=0)
    assert found.fault is not None
    assert "halfway from always naming the commonest class" in found.fault


def test_the_regression_is_that_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    for labels in ([3, 7] * 20, [0, 5, 9, 9] * 10):  # two classes have one score in scikit-learn, three have three
        x = 1e-3 * torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5
        ours, converged = classifier._fit(x, np.array(labels))
        features = x.flatten(1).numpy()
        scaled = (features - features.mean(0)) / features.std()
        reference = linear_model.LogisticRegression(max_iter=1000).fit(scaled, labels)
        assert converged
        assert ours.classify(x).tolist() == reference.predict(scaled).tolist()


def test_the_same_seed_fits_the_same_classifier_and_attacked_items_are_left_out(sprites: Any) -> None:
    pytest.importorskip("sklearn")
    vae, images, side, _ = sprites
    seen: list[int] = []

    def watched(items: Sequence[int]) -> Tensor:
        seen.extend(items)
        batch: Tensor = images(items)
        return batch

    attacked = {1, 50, 99}
    first, again = (judge(vae, watched, side, attacked=attacked, seed=3, batch_size=size) for size in (32, 32))
    assert isinstance(first.classifier, LogisticRegression)
    assert isinstance(again.classifier, LogisticRegression)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert first.accuracy == again.accuracy
    assert not attacked & set(seen)
    assert judge(vae, images, side, seed=4).accuracy.n > 0


def test_a_fit_that_has_not_converged_is_told(sprites: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(classifier, "_MAX_ITERATIONS", 2)
    vae, images, side, _ = sprites
    assert "had not converged after 2 iterations" in judge(vae, images, side, seed=0).warnings[0]


def test_one_label_alone_cannot_be_fitted(sprites: Any) -> None:
    vae, images, side, _ = sprites
    with pytest.raises(DataError, match="two labels or more"):
        judge(vae, images, np.zeros_like(side), seed=0)


def test_without_scikit_learn_the_error_says_what_to_install(sprites: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    vae, images, side, _ = sprites
    with pytest.raises(ConfigError, match=r"scikit-learn.*vaeaudit\[classifier\].*method classify"):
        judge(vae, images, side, seed=0)


class Knowing:
    """A model that brings its own classifier."""

    def __init__(self, vae: Any) -> None:
        self.vae, self.input_shape, self.range, self.prior = vae, vae.input_shape, vae.range, vae.prior
        self.encode, self.decode = vae.encode, vae.decode

    def classify(self, x: Tensor) -> Tensor:
        return torch.where(x.flatten(1).sum(1) >= 0, 7, 3)  # always 7


def test_a_models_own_classifier_is_taken_and_tried_like_any_other(sprites: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)  # and nothing is fitted
    vae, images, side, _ = sprites
    own = Knowing(vae)
    found = judge(own, images, side, attacked=[0], seed=0)
    assert found.classifier is own
    assert found.how == "the model's own classifier"
    assert found.accuracy.n == len(side) - 1
    assert found.accuracy.value == np.mean(side[1:] == 7)
    assert found.fault is not None  # a classifier that always says 7 is no judge


def test_a_classifier_that_could_not_be_tried_is_at_fault(sprites: Any) -> None:
    vae, images, side, _ = sprites
    found = judge(Knowing(vae), images, side, attacked=range(len(side)), seed=0)
    assert found.accuracy.n == 0
    assert found.fault is not None


@pytest.mark.skipif(not SHARED.exists(), reason="needs the models and data of ../shared")
def test_classes_of_mnist_digits_are_told_from_their_reconstructions() -> None:
    pytest.importorskip("sklearn")
    checkpoint = SHARED / "checkpoints" / "disentangling-vae" / "VAE_mnist" / "model.pt"
    vae = open_model(checkpoint, "burgess").vae
    stored = read(SHARED / "data" / "mnist" / "mnist_test.npz")
    data = fit(stored, input_shape=tuple(vae.input_shape), data_range=vae.range, resize="bilinear")
    assert data.labels is not None
    found = judge(vae, data.batch, data.labels[:1200], seed=0)
    assert found.fault is None
    assert found.accuracy.value is not None
    assert found.accuracy.value > 0.85
