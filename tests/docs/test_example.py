"""The bundled data and models are what examples/README.md says they are."""

import importlib.util
import json
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors import safe_open

import vaeaudit
from vaeaudit.model.registry import open_model
from vaeaudit.model.vae import reconstruct

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = EXAMPLES / "shapes.npz"
# How many times smaller the mean squared error is than the mean image's, at least.
MODELS = {"shapes-beta1.safetensors": 10.0, "shapes-beta8.safetensors": 3.0}


@pytest.fixture(scope="module")
def shapes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shapes", EXAMPLES / "shapes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bundled() -> dict[str, np.ndarray]:
    with np.load(DATA, allow_pickle=False) as data:
        return dict(data)


def test_bundled_images_are_what_the_generator_draws(shapes: ModuleType, bundled: dict[str, np.ndarray]) -> None:
    drawn = shapes.grid()
    assert set(bundled) == set(drawn)
    for name, array in drawn.items():
        assert bundled[name].dtype == array.dtype
        if array.dtype == np.float64:
            np.testing.assert_allclose(bundled[name], array, rtol=1e-15)
        else:
            np.testing.assert_array_equal(bundled[name], array)


def test_bundled_images_have_the_layout_of_dsprites_and_no_pickles(bundled: dict[str, np.ndarray]) -> None:
    assert bundled["imgs"].shape == (576, 28, 28)
    assert bundled["imgs"].dtype == np.uint8
    assert bundled["latents_names"].tolist() == ["shape", "scale", "orientation", "posX", "posY"]
    assert bundled["latents_names"].dtype.kind == "U"
    classes, values = bundled["latents_classes"], bundled["latents_values"]
    assert classes.shape == values.shape == (576, 5)
    assert [len(set(column)) for column in classes.T] == [3, 3, 4, 4, 4]
    for class_, value in zip(classes.T, values.T, strict=True):  # values rise with their class
        assert all(len(set(value[class_ == k])) == 1 for k in set(class_))
        assert (np.argsort(np.unique(value)) == np.unique(class_)).all()
    assert DATA.stat().st_size <= 300_000
    with zipfile.ZipFile(DATA) as archive:
        assert sorted(archive.namelist()) == sorted(f"{name}.npy" for name in bundled)


def test_every_image_differs_from_every_other(bundled: dict[str, np.ndarray]) -> None:
    assert len(np.unique(bundled["imgs"].reshape(576, -1), axis=0)) == 576


def test_an_image_is_a_function_of_its_own_factors(shapes: ModuleType) -> None:
    factors = shapes.random_factors(20, seed=3)
    np.testing.assert_array_equal(factors, shapes.random_factors(20, seed=3))
    assert not np.array_equal(factors, shapes.random_factors(20, seed=4))
    imgs = shapes.draw(factors)
    np.testing.assert_array_equal(imgs[7:9], shapes.draw(factors[7:9]))


def test_shapes_have_their_area_place_and_symmetry(shapes: ModuleType) -> None:
    angle, scale = 0.4, 0.9
    factors = np.array([[shape, scale, angle, 0.25, 0.75] for shape in range(3)])
    imgs = shapes.draw(factors) / 255
    radius = scale * shapes.RADIUS
    areas = radius**2 * np.array([2.0, 0.55 * np.pi, 3 * np.sqrt(3) / 4])
    np.testing.assert_allclose(imgs.sum((1, 2)), areas, rtol=0.02)
    pixel = np.arange(28)
    across, down = (imgs.sum(1) @ pixel) / imgs.sum((1, 2)), (imgs.sum(2) @ pixel) / imgs.sum((1, 2))
    np.testing.assert_allclose(across, 13.5 - 0.25 * shapes.TRAVEL, atol=0.05)
    np.testing.assert_allclose(down, 13.5 + 0.25 * shapes.TRAVEL, atol=0.05)
    turned = factors + np.array([0, 0, 1, 0, 0]) * np.array([[np.pi / 2], [np.pi], [2 * np.pi / 3]])
    np.testing.assert_allclose(shapes.draw(turned) / 255, imgs, atol=1 / 255)


@pytest.mark.parametrize(("name", "factor"), MODELS.items())
def test_bundled_model_opens_by_itself_and_beats_the_mean_image(
    name: str, factor: float, bundled: dict[str, np.ndarray]
) -> None:
    loaded = open_model(EXAMPLES / name)
    vae = loaded.vae
    assert loaded.adapter.name == "mlp"
    assert vae.input_shape == (1, 28, 28)
    assert vae.range == (0, 1)
    x = torch.from_numpy(bundled["imgs"]).float().div(255).unsqueeze(1)
    error, baseline = (reconstruct(vae, x) - x).square().mean(), (x.mean(0) - x).square().mean()
    assert error * factor < baseline
    assert vae.encode(x).kl(vae.prior).min() > 0


def test_the_larger_beta_encodes_less(bundled: dict[str, np.ndarray]) -> None:
    x = torch.from_numpy(bundled["imgs"]).float().div(255).unsqueeze(1)
    beta1, beta8 = (vaeaudit.load(EXAMPLES / name) for name in MODELS)
    assert beta8.encode(x).kl(beta8.prior).mean() < beta1.encode(x).kl(beta1.prior).mean()


@pytest.mark.parametrize("name", MODELS)
def test_bundled_model_states_its_facts_and_its_training(name: str) -> None:
    assert (EXAMPLES / name).stat().st_size <= 2_000_000
    with safe_open(EXAMPLES / name, framework="pt") as handle:
        metadata = handle.metadata()
    facts = {key.removeprefix("vaeaudit."): json.loads(v) for key, v in metadata.items() if key.startswith("vaeaudit.")}
    assert facts == {
        "adapter": "mlp",
        "activation": "relu",
        "likelihood": "bernoulli",
        "input_shape": [1, 28, 28],
        "range": [0, 1],
    }
    assert metadata["beta"] == name.removeprefix("shapes-beta").removesuffix(".safetensors")
    assert metadata["training"].startswith("examples/train.py on 40000 random shapes")
