import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeaudit.checks.mig.information import Membership, categorical_shares, code_shares, gaussian_shares
from vaeaudit.checks.mig.measure import ESTIMATORS, MigResult, mig
from vaeaudit.checks.mig.summarise import summarise_mig
from vaeaudit.data.items import Data, fit
from vaeaudit.data.sources import read
from vaeaudit.errors import ConfigError, DataError, UnsupportedError
from vaeaudit.model.chain import GaussianChain
from vaeaudit.model.registry import open_model
from vaeaudit.model.vae import DiagonalGaussian
from vaeaudit.progress import Progress
from vaeaudit.subject.encodings import Encodings, encodings

SHARED = Path(__file__).parents[4] / "shared"


class Direct:
    """The items are their encodings: means, then log standard deviations."""

    range = None

    def __init__(self, units: int) -> None:
        self.units, self.input_shape = units, (2 * units,)

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((self.units,), like=torch.zeros(1, dtype=torch.float64))

    def encode(self, x: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(x[:, : self.units], x[:, self.units :])

    def decode(self, _z: Tensor) -> Any:
        raise AssertionError("the gap decodes nothing")


def of(mean: Tensor, stddev: Tensor, factors: Any, **options: Any) -> MigResult:
    return mig(Direct(mean.shape[1]), torch.cat([mean, stddev.log()], 1), factors, **options)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_code(n: int, units: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Means and standard deviations (n, units) with something to know about the classes (n, 2)."""
    g = generator(seed)
    classes = torch.stack([torch.randint(0, 3, (n,), generator=g), torch.randint(0, 5, (n,), generator=g)], 1)
    mean = torch.randn(n, units, generator=g, dtype=torch.float64)
    mean[:, :2] += classes
    return mean, 10 ** (-1.5 * torch.rand(n, units, generator=g, dtype=torch.float64)), classes


def by_trapezoid(mean: Tensor, stddev: Tensor, classes: Tensor, step: float = 0.2) -> Tensor:
    """The shares (n, 1 + K) by the trapezoidal rule on one grid, every component everywhere."""
    h = step * float(stddev.min())
    z = torch.arange(float((mean - 9 * stddev).min()), float((mean + 9 * stddev).max()), h, dtype=torch.float64)
    each = torch.exp(-0.5 * ((z - mean[:, None]) / stddev[:, None]) ** 2) / stddev[:, None] / (2 * torch.pi) ** 0.5

    def log(density: Tensor) -> Tensor:
        return torch.where(density > 0, density, 1.0).log()

    shares = [-(each * log(each.mean(0))).sum(1)]
    for column in classes.T:
        of_class = torch.stack([each[column == value].mean(0) for value in range(int(column.max()) + 1)])
        shares.append((each * torch.where(of_class > 0, log(of_class) - log(each.mean(0)), 0.0)[column]).sum(1))
    return torch.stack(shares, 1) * h


# The oracle's answers


def test_discrete_codes_have_the_oracles_gaps(oracle: dict[str, Any]) -> None:
    factors = torch.tensor(oracle["mig_discrete"]["factors"])
    for case in oracle["mig_discrete"]["cases"]:
        codes = torch.tensor(case["codes"])
        members = Membership.of(factors[:, :2])
        shares = torch.stack([code_shares(column - column.min(), members) for column in codes.T], 1)
        expected = torch.tensor(case["mi"], dtype=torch.float64)
        torch.testing.assert_close(shares[..., 1:].mean(0).T, expected, rtol=0, atol=1e-12)
        # Codes of at most 20 values on a line are the same thing to a histogram, narrow Gaussians to a mixture.
        found = of(codes.double(), torch.full(codes.shape, 1e-3, dtype=torch.float64), factors, names=("a", "b", "c"))
        assert found.constant == ("c",)
        for gaps in found.by:
            torch.testing.assert_close(gaps.information.T, expected, rtol=0, atol=1e-9)
            torch.testing.assert_close(gaps.gaps.tolist(), case["gaps"], rtol=0, atol=1e-9)
            assert gaps.value == pytest.approx(case["mig"], abs=1e-9)
            assert gaps.value >= 0


def test_histograms_of_the_mean_have_the_oracles_gap(oracle: dict[str, Any]) -> None:
    case = oracle["mig_hist20"]
    mean = torch.tensor(case["mu"], dtype=torch.float64)
    (gaps,) = of(mean, torch.ones_like(mean), np.array(case["factors"]), estimators=["hist20"]).by
    torch.testing.assert_close(gaps.information.T.tolist(), case["mi"], rtol=0, atol=case["tol"])
    torch.testing.assert_close(gaps.gaps.tolist(), case["gaps"], rtol=0, atol=case["tol"])
    assert gaps.value == pytest.approx(case["mig"], abs=case["tol"])


def test_mixtures_have_the_oracles_gap(oracle: dict[str, Any]) -> None:
    (case,) = oracle["mig_gaussian"]["cases"]
    mean, stddev = (torch.tensor(case[name], dtype=torch.float64) for name in ("mu", "s"))
    found = of(mean, stddev, torch.tensor(oracle["mig_gaussian"]["factors"]), estimators=["chen"])
    torch.testing.assert_close(found.by[0].information.T.tolist(), case["mi"], rtol=0, atol=1e-9)
    torch.testing.assert_close(found.entropy.tolist(), case["Hv"], rtol=0, atol=1e-12)
    torch.testing.assert_close(found.by[0].gaps.tolist(), case["gaps"], rtol=0, atol=1e-9)
    assert found.by[0].value == pytest.approx(case["mig"], abs=1e-9)


# The quadrature of mixtures


@pytest.mark.parametrize("least", [1, 0.1, 1e-2])
def test_the_quadrature_is_that_of_a_fine_grid_whatever_the_widths(least: float) -> None:
    n, g = 120, generator(1)
    mean = torch.randn(n, generator=g, dtype=torch.float64)
    classes = torch.stack([torch.arange(n) % 3, torch.arange(n) % 7], 1)
    spread = torch.rand(n, generator=g, dtype=torch.float64)
    for stddev in (
        least**spread,
        torch.full((n,), least, dtype=torch.float64),
        torch.where(spread < 0.5, least, 1.0 + 0 * spread),
    ):
        found = gaussian_shares(mean, stddev.log(), Membership.of(classes))
        expected = by_trapezoid(mean, stddev, classes)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
        torch.testing.assert_close(found.mean(0), expected.mean(0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("least", [1e-4, 1e-6])
def test_components_a_million_times_narrower_than_others_agree_with_draws(least: float) -> None:
    n, draws, g = 400, 4000, generator(2)
    mean = torch.randn(n, generator=g, dtype=torch.float64)
    mean[::2] = mean[0] + 3 * least * mean[::2]  # half of them in one place
    stddev = least ** torch.rand(n, generator=g, dtype=torch.float64)
    classes = torch.randint(0, 4, (n, 1), generator=g)
    found = gaussian_shares(mean, stddev.log(), Membership.of(classes))
    for item in range(0, n, 37):
        z = mean[item] + stddev[item] * torch.randn(draws, generator=g, dtype=torch.float64)
        each = torch.exp(-0.5 * ((z[:, None] - mean) / stddev) ** 2) / stddev
        same = classes[:, 0] == classes[item, 0]
        drawn = (each[:, same].mean(1) / each.mean(1)).log()
        assert float(found[item, 1]) == pytest.approx(float(drawn.mean()), abs=5 * float(drawn.std()) / draws**0.5)


def test_a_single_gaussian_has_its_entropy_and_no_information() -> None:
    for log_stddev in (-60.0, -14.0, 0.0, 8.0):
        mean = torch.full((50,), 0.3, dtype=torch.float64)
        found = gaussian_shares(mean, torch.full_like(mean, log_stddev), Membership.of(torch.arange(50)[:, None] % 2))
        entropy = torch.full_like(mean, log_stddev + 0.5 * math.log(2 * math.pi * math.e))
        torch.testing.assert_close(found, torch.stack([entropy, 0 * mean], 1), rtol=0, atol=1e-10)


def test_two_classes_far_apart_are_known_and_halfway_agree_with_a_closed_form_grid() -> None:
    classes = torch.arange(40)[:, None] % 2
    mean = classes[:, 0].double()
    members = Membership.of(classes)
    far = gaussian_shares(mean, torch.full_like(mean, math.log(0.01)), members)
    torch.testing.assert_close(far[:, 1], torch.full_like(mean, math.log(2)), rtol=0, atol=1e-10)
    for stddev in (0.3, 1.0, 5.0):  # log 2 - E log(1 + exp(-(1 + 2 stddev e) / (2 stddev^2))), e standard normal
        e, weight = np.polynomial.hermite_e.hermegauss(150)
        exact = math.log(2) - weight @ np.log1p(np.exp(-(1 + 2 * stddev * e) / (2 * stddev**2))) / weight.sum()
        found = gaussian_shares(mean, torch.full_like(mean, math.log(stddev)), members)
        assert float(found[:, 1].mean()) == pytest.approx(exact, abs=1e-8)


# Categorical latents and chains


def test_a_categorical_latent_is_one_unit_and_its_information_an_exact_sum() -> None:
    g = generator(3)
    classes = torch.randint(0, 3, (3000, 2), generator=g)
    log_p = torch.randn(3000, 4, generator=g, dtype=torch.float64).mul_(2).log_softmax(1)
    log_p[:, 0] += classes[:, 0]
    log_p = log_p.log_softmax(1)
    shares = categorical_shares(log_p, Membership.of(classes))
    joint = torch.stack([log_p.exp()[classes[:, 0] == v].sum(0) for v in range(3)]) / 3000
    exact = (joint * (joint / joint.sum(0) / joint.sum(1, keepdim=True)).log()).sum()
    torch.testing.assert_close(shares[:, 1].mean(), exact, rtol=0, atol=1e-12)
    hard = torch.nn.functional.one_hot(log_p.argmax(1), 4).double().log()
    members = Membership.of(classes)
    torch.testing.assert_close(categorical_shares(hard, members), code_shares(log_p.argmax(1), members))

    noise = torch.randn(3000, 1, generator=g, dtype=torch.float64)
    found = mig(Direct(1), lambda _: noise, classes, encoded=Encodings(noise, 0 * noise, (log_p,)))
    assert (found.units, found.categorical) == (2, 1)
    assert [int(gaps.information[:, 0].argmax()) for gaps in found.by] == [1, 1]
    torch.testing.assert_close(found.by[0].information[1, 0], exact, rtol=0, atol=1e-12)


def test_of_a_chain_the_top_layer_is_measured_unless_another_is_named() -> None:
    mean, stddev, classes = random_code(60)

    class Chained(Direct):
        def encode(self, x: Tensor) -> Any:
            return GaussianChain(super().encode(x), (lambda z: DiagonalGaussian(z.sin(), z - 1),))

    x = torch.cat([mean, stddev.log()], 1)
    top, first = mig(Chained(3), x, classes), mig(Chained(3), x, classes, layer=1)
    assert (top.layer, top.layers, first.layer) == (2, 2, 1)
    assert "layer 2 of 2, one draw an item below" in summarise_mig(top)["mig.chen"].estimator
    assert first.by[0].value == pytest.approx(of(mean, stddev, classes).by[0].value, abs=1e-12)
    encoded = encodings(Chained(3), x)
    assert top.by[0].value == pytest.approx(of(encoded.mean, encoded.log_stddev.exp(), classes).by[0].value, abs=1e-12)


# What must always hold


def test_neither_order_nor_batch_size_nor_names_of_classes_change_anything() -> None:
    mean, stddev, classes = random_code(200)
    found = of(mean, stddev, classes)
    order = torch.randperm(200, generator=generator())
    for other in (
        of(mean[order], stddev[order], classes[order]),
        of(mean, stddev, classes, batch_size=7),
        of(mean, stddev, 5 - 3 * classes),
        of(-mean, stddev, classes, estimators=["chen"]),
        of(1e4 * mean, 1e4 * stddev, classes),
    ):
        for a, b in zip(found.by, other.by, strict=False):
            torch.testing.assert_close(a.information, b.information, rtol=0, atol=1e-9)
            torch.testing.assert_close(a.gap_ci, b.gap_ci, rtol=0, atol=1e-6)
    again = of(mean, stddev, classes)
    assert [(gaps.value, gaps.ci) for gaps in again.by] == [(gaps.value, gaps.ci) for gaps in found.by]


@pytest.mark.parametrize("seed", range(6))
def test_a_gap_is_never_negative_and_information_never_above_what_there_is(seed: int) -> None:
    mean, stddev, classes = random_code(40, units=4, seed=seed)
    found = of(mean, stddev * 10.0 ** (seed - 4), classes)
    for gaps in found.by:
        assert (gaps.gaps >= 0).all()
        assert (gaps.information >= 0).all()
        assert (gaps.information <= found.entropy + 1e-9).all()
        assert gaps.ci[0] <= gaps.value <= gaps.ci[1]
        assert ((gaps.gap_ci[:, 0] <= gaps.gaps) & (gaps.gaps <= gaps.gap_ci[:, 1])).all()
    assert (found.identified <= math.log(40) + 1e-9).all()
    shut = of(mean, torch.full_like(stddev, 1e-20), classes)  # narrower than the quadrature resolves
    assert (shut.identified <= math.log(40) + 1e-9).all()
    # What is known about a factor is known about the items.
    assert (found.by[0].information <= found.identified[:, None] + 1e-9).all()


def test_units_so_narrow_that_items_stand_alone_are_named() -> None:
    mean, stddev, classes = random_code(100)
    assert not [told for told in of(mean, stddev, classes).warnings if told.startswith("unit")]
    stddev[:, 1] = 1e-9
    found = of(mean, stddev, classes)
    (told,) = (told for told in found.warnings if told.startswith("unit"))
    assert told.startswith("unit 1 by itself tells nearly all of the 100 items apart (4.61 of at most 4.61")
    torch.testing.assert_close(found.by[0].information[1], found.entropy, rtol=0, atol=1e-9)


# Intervals


def resampled(mean: Tensor, classes: Tensor, draws: int, gap: Callable[[Tensor, Tensor], float]) -> NDArray[np.float64]:
    g, n = generator(9), len(mean)
    picks = [torch.randint(0, n, (n,), generator=g) for _ in range(draws)]
    return np.array([gap(mean[pick], classes[pick]) for pick in picks])


def test_the_intervals_are_as_wide_as_those_of_a_bootstrap_that_computes_everything_anew() -> None:
    mean, _, classes = random_code(1500)
    stddev = torch.full_like(mean, 0.5)
    for name in ESTIMATORS:
        (gaps,) = of(mean, stddev, classes, estimators=[name]).by

        def again(picked: Tensor, of_picked: Tensor, name: str = name) -> float:
            return of(picked, stddev, of_picked, estimators=[name]).by[0].value

        drawn = resampled(mean, classes, 60 if name == "hist20" else 25, again)
        width = (gaps.ci[1] - gaps.ci[0]) / (2 * 1.96)
        assert width == pytest.approx(drawn.std(ddof=1), rel=0.35)


def test_the_intervals_cover_the_gap_of_the_population() -> None:
    mean, stddev, classes = random_code(20_000, seed=5)
    stddev = 0.3 + stddev
    (whole,) = of(mean, stddev, classes, estimators=["chen"], level=0.9).by
    hits = 0
    for part in range(40):
        rows = slice(part * 500, part * 500 + 500)
        (gaps,) = of(mean[rows], stddev[rows], classes[rows], estimators=["chen"], level=0.9).by
        hits += gaps.ci[0] <= whole.value <= gaps.ci[1]
    assert hits >= 31  # of 40 at 90%: fewer have probability 1%, were there no bias


def many_classes(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """A unit that half holds a factor of two classes, one that holds one of 32, and two of noise."""
    g = generator(7)
    classes = torch.stack([torch.randint(0, 2, (n,), generator=g), torch.randint(0, 32, (n,), generator=g)], 1)
    mean = torch.randn(n, 4, generator=g, dtype=torch.float64)
    mean[:, 0] += classes[:, 0]
    mean[:, 1] = 0.2 * mean[:, 1] + classes[:, 1]
    return mean, torch.full_like(mean, 0.3), classes


def test_the_excess_is_about_what_a_gap_lies_too_low_and_named_where_the_interval_is_narrow_beside_it() -> None:
    mean, stddev, classes = many_classes(20_000)
    n = 1000
    whole = of(mean, stddev, classes, estimators=["hist20"])
    assert not any("factor 1 (" in told for told in whole.warnings)
    parts = [
        of(mean[k : k + n], stddev[k : k + n], classes[k : k + n], estimators=["hist20"], names=("half", "many"))
        for k in range(0, 10 * n, n)
    ]
    low = whole.by[0].gaps - torch.stack([part.by[0].gaps for part in parts]).mean(0)
    excess = torch.stack([part.by[0].excess for part in parts]).mean(0)
    assert 0.5 < float(low[1] / excess[1]) < 2
    assert excess[1] > 0.05
    for part in parts:
        (told,) = part.warnings
        assert told.startswith("1000 items are few for the intervals by 'hist20' of many (")
        assert "half (" not in told
        assert "too LOW" in told


def test_all_combinations_of_the_factors_are_no_sample_and_not_warned_of() -> None:
    classes = torch.cartesian_prod(torch.arange(3), torch.arange(32))
    mean = torch.randn(96, 3, generator=generator(), dtype=torch.float64)
    found, other = (
        of(mean, torch.ones_like(mean), c) for c in (classes, classes.clone().index_fill_(0, torch.tensor(0), 1))
    )
    assert found.complete
    assert found.warnings == ()
    assert not other.complete
    assert any("items are few" in told for told in other.warnings)


def test_two_units_alike_have_no_gap_and_the_interval_says_so() -> None:
    mean, stddev, classes = random_code(500)
    mean[:, 1], stddev[:, 1] = mean[:, 0], stddev[:, 0]
    mean[:, 2] *= 0.1
    (gaps,) = of(mean, stddev, classes[:, :1], estimators=["chen"]).by
    assert gaps.gaps.item() < 1e-12
    assert gaps.ci[0] == 0


# Stopping, bad input


def test_stopping_leaves_no_gap_and_says_so() -> None:
    mean, stddev, classes = random_code(50)
    stages: list[str] = []
    for stop_at in ("encoding", "mutual informations"):

        def go_on(progress: Progress, stop_at: str = stop_at) -> bool:
            stages.append(progress.stage)
            return progress.stage != stop_at

        found = of(mean, stddev, classes, batch_size=20, go_on=go_on)
        assert found.interrupted
        assert all(math.isnan(gaps.value) for gaps in found.by)
        assert all(m.value is None and m.ci is None for m in summarise_mig(found).values())
    assert stages == ["encoding", "encoding", "encoding", "mutual informations"]


def test_what_has_no_gap_is_refused_in_a_sentence() -> None:
    mean, stddev, classes = random_code(50)
    with pytest.raises(UnsupportedError, match="at least two, but the latent code has only one"):
        of(mean[:, :1], stddev[:, :1], classes)
    with pytest.raises(DataError, match="none of the factors a, b varies"):
        of(mean, stddev, 0 * classes, names=("a", "b"))
    with pytest.raises(DataError, match="50 items came with the factors of 49"):
        of(mean, stddev, classes[:49])
    with pytest.raises(DataError, match="50 encodings came with the factors of 49"):
        mig(Direct(3), lambda _: mean, classes[:49], encoded=Encodings(mean, stddev.log(), ()))
    with pytest.raises(DataError, match="2 factors came with 1 names"):
        of(mean, stddev, classes, names=("a",))
    with pytest.raises(DataError, match="2 factors are named 'a'"):
        of(mean, stddev, classes, names=("a", "a"))
    for odd in (classes[:, 0], classes.double(), classes[:, :0]):
        with pytest.raises(DataError, match="factors must be integers"):
            of(mean, stddev, odd)
    with pytest.raises(DataError, match="factor id has 50 classes for 50 items"):
        of(mean, stddev, torch.arange(50)[:, None], names=("id",))
    with pytest.raises(ConfigError, match=r"no estimator 'hist' \(did you mean 'hist20'"):
        of(mean, stddev, classes, estimators=["hist"])
    with pytest.raises(ConfigError, match="no estimator"):
        of(mean, stddev, classes, estimators=[])
    with pytest.raises(ConfigError, match=r"from 0.5 up to 1, but 1 was given"):
        of(mean, stddev, classes, level=1)


def test_the_summary_names_each_factor_and_estimator() -> None:
    mean, stddev, classes = random_code(50)
    metrics = summarise_mig(of(mean, stddev, classes, names=("shape", "size")))
    assert list(metrics) == [f"mig.{name}{factor}" for name in ("chen", "hist20") for factor in ("", ".shape", ".size")]
    assert {m.n for m in metrics.values()} == {50}
    assert all(m.ci is not None and "plug-in" in m.estimator for m in metrics.values())
    assert json.dumps([m.value for m in metrics.values()])


# Real models


def published_hist20(mean: NDArray[np.float64], factors: NDArray[np.int64]) -> tuple[float, list[float]]:
    """disentanglement_lib's definition: np.histogram and np.digitize, a table of counts for each pair, sorted gaps."""
    information = np.zeros((mean.shape[1], factors.shape[1]))
    for j, column in enumerate(mean.T):
        codes = np.digitize(column, np.histogram(column, 20)[1][:-1])
        for k, classes in enumerate(factors.T):
            table = np.zeros((21, classes.max() + 1))
            np.add.at(table, (codes, classes), 1 / len(codes))
            rows, columns = table.nonzero()
            p = table[rows, columns]
            information[j, k] = (p * np.log(p / table.sum(1)[rows] / table.sum(0)[columns])).sum()
    shares = [np.bincount(classes) / len(classes) for classes in factors.T]
    entropy = np.array([-(p * np.log(p)).sum() for p in shares])
    first, second = np.sort(information, 0)[::-1][:2]
    gaps = (first - second) / entropy
    return float(gaps.mean()), gaps.tolist()


@pytest.fixture(scope="module")
def sprites() -> Data:
    images = SHARED / "data" / "dsprites" / "dsprites_downsampled.npz"
    if not images.exists():
        pytest.skip("needs the dSprites images of ../shared")
    return fit(read(images), input_shape=(1, 64, 64), data_range=(0.0, 1.0))


@pytest.mark.parametrize("name", ["VAE", "betaH", "btcvae", "betaB"])
def test_the_gaps_of_real_models_are_those_of_the_published_definition_and_of_a_grid(name: str, sprites: Data) -> None:
    checkpoint = SHARED / "checkpoints" / "disentangling-vae" / f"{name}_dsprites" / "model.pt"
    if not checkpoint.exists():
        pytest.skip("needs the trained dSprites models of ../shared")
    vae, data = open_model(checkpoint, "burgess").vae, sprites
    assert data.factors is not None
    every = range(7, len(data), 61)  # a stride that meets all classes
    factors = data.factors.classes[list(every)]
    encoded = encodings(vae, data.batch(every))
    found = mig(vae, data.batch(every), factors, names=data.factors.names, encoded=encoded)
    assert found.names == ("shape", "scale", "orientation", "posX", "posY")
    chen, hist20 = found.by
    value, gaps = published_hist20(encoded.mean.double().numpy(), factors)
    assert hist20.value == pytest.approx(value, abs=1e-12)
    torch.testing.assert_close(hist20.gaps.tolist(), gaps, rtol=0, atol=1e-12)
    for unit in (0, 4):
        mean, stddev = encoded.mean[:, unit].double(), encoded.log_stddev[:, unit].double().exp()
        expected = by_trapezoid(mean, stddev, torch.from_numpy(factors), step=0.5)[:, 1:].mean(0)
        torch.testing.assert_close(chen.information[unit], expected, rtol=0, atol=1e-7)
