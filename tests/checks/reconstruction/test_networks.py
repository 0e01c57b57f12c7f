"""LPIPS, FID and KID by networks that the user names, against closed forms and plainly written sums."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from vaeaudit.checks.reconstruction.distances import Embedded, frechet, kid
from vaeaudit.checks.reconstruction.networks import Network
from vaeaudit.errors import UnsupportedError

EXAMPLES = Path(__file__).parents[3] / "examples"
MODEL, DATA = EXAMPLES / "shapes-beta1.safetensors", EXAMPLES / "shapes.npz"
Command = Callable[..., Any]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Distance(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean((1, 2, 3))


class Averages(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x.mean(1, keepdim=True), 4).flatten(1)


def export(network: nn.Module, path: Path, *shape: int, fixed: bool = False, twice: bool = False) -> None:
    images = [torch.rand(2, *shape) for _ in range(1 + isinstance(network, Distance))]
    images = images[:1] * len(images) if twice else images
    batch = None if fixed else tuple({0: torch.export.Dim("batch")} for _ in images)
    torch.export.save(torch.export.export(network, tuple(images), dynamic_shapes=batch), path)


def test_frechet_distance_is_that_of_the_closed_form_and_of_scipy() -> None:
    a, b = normal(5, 5), normal(5, 5, seed=1)
    s, t, m = a @ a.T, b @ b.T, normal(5, seed=2)
    root = scipy.linalg.sqrtm((s @ t).numpy()).real
    whole = float(m.square().sum() + s.trace() + t.trace()) - 2 * np.trace(root)
    assert frechet(m, s, torch.zeros(5).double(), t) == pytest.approx(whole, rel=1e-9)
    # Where both are diagonal it is |m - n|^2 and the squared distance of the standard deviations, singular or not.
    d, e = torch.tensor([4.0, 1.0, 0.0]).double(), torch.tensor([1.0, 1.0, 9.0]).double()
    m = torch.tensor([1.0, 2.0, 2.0]).double()
    assert frechet(m, d.diag(), 0 * m, e.diag()) == pytest.approx(9 + 1 + 0 + 9)
    assert frechet(m, s[:3, :3], m, s[:3, :3]) == pytest.approx(0, abs=1e-12)


def test_small_distances_of_more_features_than_items_keep_their_digits() -> None:
    x = 3 * normal(20, 100)
    made = x + 1e-3 * normal(20, 100, seed=1)
    embedded = Embedded()
    embedded.add(x, made)
    one, other = ((of - of.mean(0)).numpy() for of in (x, made))  # whose nuclear norm together is the trace of the root
    across = np.linalg.svd(one @ other.T, compute_uv=False).sum()
    whole = (np.square(one).sum() + np.square(other).sum() - 2 * across) / 19
    assert embedded.frechet() == pytest.approx(float((x - made).mean(0).square().sum()) + whole, rel=1e-6)


def test_one_item_has_neither_distance_and_two_no_error() -> None:
    embedded = Embedded()
    embedded.add(normal(1, 3), normal(1, 3, seed=1))
    assert np.isnan([embedded.frechet(), *embedded.kid()[:2]]).all()
    embedded.add(normal(1, 3, seed=2), normal(1, 3, seed=3))
    assert np.isnan([embedded.frechet(), *embedded.kid()[:2]]).tolist() == [False, False, True]


def test_kid_is_the_mean_over_pairs_of_items_and_unbiased_though_they_are_paired() -> None:
    x, made = normal(7, 3), normal(7, 3, seed=1)

    def k(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    terms = [k(x[i], x[j]) + k(made[i], made[j]) - k(x[i], made[j]) - k(x[j], made[i]) for i, j in pairs]
    assert kid(x, made)[0] == pytest.approx(np.mean(terms))
    assert kid(x, x) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    # Of one feature, standard normal and shifted by m: the kernel's moments differ by m, m^2 and m^3 + 3 m.
    m, count = 0.5, 400
    true = 3 * m**2 + 3 * m**4 + (m**3 + 3 * m) ** 2
    draws = normal(count, 60, 1, seed=3)
    found = np.array([kid(one, one + m) for one in draws])
    spread = found[:, 0].std(ddof=1)
    assert abs(found[:, 0].mean() - true) < 4 * spread / count**0.5
    assert np.sqrt(np.mean(found[:, 1] ** 2)) == pytest.approx(spread, rel=0.15)


def test_features_come_in_batches_and_far_from_zero() -> None:
    x, made = 1e4 + normal(50, 4), 1e4 + 1.5 * normal(50, 4, seed=1)
    embedded = Embedded()
    for part in range(0, 50, 20):
        embedded.add(x[part : part + 20], made[part : part + 20])
    expected = frechet(x.mean(0), torch.cov(x.T), made.mean(0), torch.cov(made.T))
    assert embedded.frechet() == pytest.approx(expected, rel=1e-6)
    assert embedded.kid()[2] == 50
    assert embedded.kid()[0] == pytest.approx(kid(x, made)[0])


def test_images_are_given_to_a_network_as_it_takes_them() -> None:
    network = Network(lambda x: x.flatten(1), 3, (2, 2), "net.pt2", "0" * 64)
    images = torch.tensor([[0.0, 2.0], [-1.0, 0.5]]).reshape(1, 1, 2, 2)
    assert network(images).tolist() == [[0.0, 1.0, 0.0, 0.5] * 3]
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 12)
    for program, channels, said in (
        (lambda x: x[:, :0].flatten(1), 3, "gives no tensor with a row for each image"),
        (torch.flatten, 4, "takes images of 4 channels, but these have 1"),  # colours and what else?
    ):
        with pytest.raises(UnsupportedError, match=said):
            Network(program, channels, (2, 2), "net.pt2", "0" * 64)(images)


def test_networks_that_the_user_names_give_lpips_fid_and_kid(command: Command, tmp_path: Path) -> None:
    size = np.load(DATA)["imgs"].shape[1]
    export(Distance(), tmp_path / "distance.pt2", 3, size, size)
    export(Averages(), tmp_path / "features.pt2", 3, size, size)
    named = ["--perceptual", "distance.pt2", "--features", "features.pt2"]
    asked = ["reconstruction", MODEL, "--data", DATA, "--items", 40]
    refused = command(*asked, *named)
    assert (refused.code, refused.err.count("may run code from it")) == (4, 1)
    assert command(*asked, *named, "--trust-networks").code == 0
    report = json.loads(Path("vaeaudit-report/report.json").read_text())
    metrics, (entry,) = report["metrics"], report["reconstructions"]
    lpips = metrics["reconstruction.lpips.mean"]
    assert lpips["value"] == pytest.approx(metrics["reconstruction.mean_error.mean"]["value"], rel=1e-5)
    sha256 = entry["networks"][0]["file"]["sha256"]
    assert lpips["estimator"].endswith(f"network {sha256[:12]} at {size}x{size}")
    fid, kid_of = metrics["reconstruction.fid.n40"], metrics["reconstruction.kid"]
    assert (fid["ci"], fid["n"]) == (None, 40)
    assert kid_of["ci"][0] < kid_of["value"] < kid_of["ci"][1]
    assert entry["networks"][1]["fid"]["value"] == fid["value"] > 0
    # What has another n, or another network, is another figure.
    assert command("report", "vaeaudit-report", "--verify").code == 0
    Path("vaeaudit-report").rename("first")
    export(Distance(), tmp_path / "distance.pt2", 1, 8, 8)
    assert command(*asked, *named, "--trust-networks", "--isolated").code == 0
    compared = command(
        "compare", "first", "vaeaudit-report", "--metric", "reconstruction.lpips.median", "--format", "json"
    )
    (one,) = [one for one in json.loads(compared.out)["differences"] if one["metric"] == "reconstruction.lpips.median"]
    assert (one["outcome"], "estimated differently" in one["why"]) == ("cannot tell", True)


def test_a_file_that_is_no_such_network_is_named_with_what_was_expected(command: Command, tmp_path: Path) -> None:
    export(Distance(), tmp_path / "two.pt2", 1, 16, 16)
    export(Averages(), tmp_path / "fixed.pt2", 1, 16, 16, fixed=True)
    export(Distance(), tmp_path / "twice.pt2", 1, 16, 16, twice=True)
    asked = ["reconstruction", MODEL, "--data", DATA, "--items", 10, "--trust-networks"]
    for option, path, said in (
        ("--perceptual", "twice.pt2", "does not look at all 2 images"),
        ("--features", "there.pt2", "there.pt2 is not there"),
        ("--features", ".", "but . is none"),
        ("--features", MODEL, "shapes-beta1.safetensors is none"),
        ("--perceptual", DATA, "shapes.npz cannot be read as one"),
        ("--features", "two.pt2", "where 1 batch of images"),
        ("--perceptual", "fixed.pt2", "takes 2x1x16x16, where 2 batches"),
    ):
        done = command(*asked, option, path)
        assert done.code == 2, done.err
        assert said in done.err
        assert done.err.count("\n") <= 2
