import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import vaeaudit
from vaeaudit.errors import AdapterError, CheckpointError, ContractError, listed
from vaeaudit.model.adapters import adapter_names, code_beside
from vaeaudit.model.registry import open_model

SHARED = Path(__file__).parents[3] / "shared"
TRAINED = SHARED / "checkpoints" / "disentangling-vae"
MNIST = SHARED / "data" / "mnist" / "train_first1000_32x32.npy"
needs_trained = pytest.mark.skipif(
    not (TRAINED.is_dir() and MNIST.is_file()), reason="the trained checkpoints of ../shared are not here"
)

Tensors = dict[str, Tensor]


def tensors_of(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def convolution(name: str, outputs: int, inputs: int, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs, 4, 4), f"{name}.bias": (channels,)}


def mlp_tensors(second: int = 2) -> Tensors:
    """12 inputs, 3 latents, other widths everywhere; ``second`` is the index of the layer after 0."""
    return tensors_of(
        linear("encoder.shared.0", 7, 12)
        | linear("encoder.mean.0", 5, 7)
        | linear(f"encoder.mean.{second}", 3, 5)
        | linear("encoder.logvar.0", 6, 7)
        | linear(f"encoder.logvar.{second}", 3, 6)
        | linear("decoder.0", 8, 3)
        | linear(f"decoder.{second}", 9, 8)
        | linear(f"decoder.{2 * second}", 12, 9)
    )


def burgess_tensors(size: int = 32, channels: int = 1, latents: int = 4) -> Tensors:
    shapes = convolution("encoder.conv1", 32, channels, 32)
    shapes |= convolution("encoder.conv2", 32, 32, 32) | convolution("encoder.conv3", 32, 32, 32)
    if size == 64:
        shapes |= convolution("encoder.conv_64", 32, 32, 32) | convolution("decoder.convT_64", 32, 32, 32)
    shapes |= linear("encoder.lin1", 256, 512) | linear("encoder.lin2", 256, 256)
    shapes |= linear("encoder.mu_logvar_gen", 2 * latents, 256)
    shapes |= linear("decoder.lin1", 256, latents) | linear("decoder.lin2", 256, 256)
    shapes |= linear("decoder.lin3", 512, 256)
    shapes |= convolution("decoder.convT1", 32, 32, 32) | convolution("decoder.convT2", 32, 32, 32)
    shapes |= convolution("decoder.convT3", 32, channels, channels)
    return {name: 0.15 * tensor for name, tensor in tensors_of(shapes).items()}


def jointvae_tensors(size: int = 32) -> Tensors:
    """Two channels, three Gaussian latents, and two categorical ones of two and four classes."""
    more = [8] if size == 64 else []
    down, up = [2, *more, 5, 6, 7], [7, *more, 6, 5, 2]
    shapes: dict[str, tuple[int, ...]] = {}
    for k, (inputs, outputs) in enumerate(itertools.pairwise(down)):
        shapes |= convolution(f"img_to_features.{2 * k}", outputs, inputs, outputs)
    for k, (inputs, outputs) in enumerate(itertools.pairwise(up)):
        shapes |= convolution(f"features_to_img.{2 * k}", inputs, outputs, outputs)
    shapes |= linear("features_to_hidden.0", 11, 112) | linear("fc_mean", 3, 11) | linear("fc_log_var", 3, 11)
    shapes |= linear("fc_alphas.0", 2, 11) | linear("fc_alphas.1", 4, 11)
    return tensors_of(shapes | linear("latent_to_features.0", 12, 9) | linear("latent_to_features.2", 112, 12))


def pythae_tensors() -> Tensors:
    return tensors_of(
        linear("encoder.layers.0.0", 7, 12)
        | linear("encoder.embedding", 3, 7)
        | linear("encoder.log_var", 3, 7)
        | linear("decoder.layers.0.0", 8, 3)
        | linear("decoder.layers.1.0", 12, 8)
    )


# A small checkpoint for each adapter of this project, with the shape of one input and one latent.
SMALL: dict[str, tuple[Callable[[], Tensors], tuple[int, ...], tuple[int, ...]]] = {
    "mlp": (mlp_tensors, (12,), (3,)),
    "burgess": (burgess_tensors, (1, 32, 32), (4,)),
    "jointvae": (jointvae_tensors, (2, 32, 32), (9,)),
    "pythae": (pythae_tensors, (3, 2, 2), (3,)),
}
# What those say of themselves that need more than tensors.
FACTS: dict[str, dict[str, object]] = {"pythae": {"model": "BetaVAE", "input_shape": [3, 2, 2], "latents": 3}}
# Those that need more than tensors, such as a config.json, have a contract test in a module of their own.
APART = {"diffusers", "export", "hierarchical", "ldm", "scvi", "taesd"}
INSTALLED = {name for name, point in adapter_names().items() if point.value.startswith("vaeaudit_adapters")}
OURS = sorted(INSTALLED - APART)


def saved(folder: Path, tensors: Tensors, **facts: object) -> Path:
    file = folder / "vae.safetensors"
    save_file(tensors, file, metadata={f"vaeaudit.{key}": json.dumps(value) for key, value in facts.items()})
    return file


def message(error: type[Exception], call: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert text
    assert "\n" not in text
    assert ". " not in text  # one sentence
    assert not text.endswith(".")
    return text


# --- the contract, for every adapter ---------------------------------------------------------------------------


def test_every_installed_adapter_of_ours_has_a_small_checkpoint_here() -> None:
    assert set(OURS) == set(SMALL) and APART <= INSTALLED


@pytest.mark.parametrize("name", OURS)
def test_adapter_keeps_the_contract(name: str, keeps_the_contract: Callable[..., None], tmp_path: Path) -> None:
    tensors, shape, latent = SMALL[name]
    vae: Any = vaeaudit.load(saved(tmp_path, tensors(), **FACTS.get(name, {})), name, dtype=torch.float64)
    x = torch.rand((5, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert vae.input_shape == shape and vae.prior.mean.shape == (1, *latent)
    assert torch.equal(vae.prior.kl(vae.prior), torch.zeros(1, dtype=torch.float64))
    keeps_the_contract(vae, x)


@pytest.mark.parametrize("name", ["mlp", "jointvae"])
def test_every_check_goes_as_the_table_says(
    name: str, goes_as_the_table_says: Callable[..., None], tmp_path: Path
) -> None:
    goes_as_the_table_says(f"`{name}`", open_model(saved(tmp_path, SMALL[name][0]()), name))


def test_a_model_of_the_same_types_goes_as_another(
    table: Mapping[str, object], goes_as_the_table_says: Callable[..., None], tmp_path: Path
) -> None:
    assert table["`burgess`"] == table["`mlp`"]
    model = open_model(saved(tmp_path, burgess_tensors()), "burgess")
    goes_as_the_table_says("`burgess`", model, checks=("noise", "reconstruction", "latents", "mig", "weights"))


def test_the_table_has_rows_for_every_adapter_of_ours(table: Mapping[str, object]) -> None:
    assert {name for row in table for name in re.findall(r"^`(\w+)`", row)} == INSTALLED


@pytest.mark.parametrize(("name", "part"), [("burgess", "encoder"), ("jointvae", "img_to_features")])
def test_what_convolutions_give_lies_channels_last_from_the_first_on(name: str, part: str, tmp_path: Path) -> None:
    tensors, shape, _ = SMALL[name]
    vae = vaeaudit.load(saved(tmp_path, tensors()), name)
    first = next(one for one in getattr(vae, part).modules() if isinstance(one, nn.Conv2d))
    assert first(torch.rand(2, *shape)).stride(1) == 1


@pytest.mark.parametrize("name", OURS)
def test_adapter_keeps_float64_weights(name: str, tmp_path: Path) -> None:
    tensors, _, _ = SMALL[name]
    exact = {key: tensor.double() + 1e-12 for key, tensor in tensors().items()}
    vae = vaeaudit.load(saved(tmp_path, exact, **FACTS.get(name, {})), name, dtype=torch.float64)
    assert isinstance(vae, nn.Module)
    assert all(torch.equal(tensor, exact[key]) for key, tensor in vae.state_dict().items())


@pytest.mark.parametrize("name", OURS)
def test_opening_draws_no_random_numbers(name: str, tmp_path: Path) -> None:
    file = saved(tmp_path, SMALL[name][0](), **FACTS.get(name, {}))
    before = torch.random.get_rng_state()
    vaeaudit.load(file, name)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", OURS)
def test_jacobian_by_vmap_is_the_jacobian_row_by_row(name: str, tmp_path: Path) -> None:
    tensors, _, latent = SMALL[name]
    vae = vaeaudit.load(saved(tmp_path, tensors(), **FACTS.get(name, {})), name, dtype=torch.float64)
    z = torch.linspace(-1, 1, math.prod(latent), dtype=torch.float64).reshape(1, *latent)

    def decoded(z: Tensor) -> Tensor:
        return vae.decode(z).mean.flatten()[::97]

    row_by_row = torch.autograd.functional.jacobian(decoded, z)
    torch.testing.assert_close(torch.func.jacrev(decoded)(z), row_by_row)


@pytest.mark.parametrize("name", OURS)
def test_unknown_option_is_refused_with_the_nearest_name(name: str, tmp_path: Path) -> None:
    file = saved(tmp_path, SMALL[name][0](), **FACTS.get(name, {}))
    text = message(AdapterError, lambda: vaeaudit.load(file, name, input_shpe=[12]))
    assert f"adapter '{name}' has no option 'input_shpe' (did you mean 'input_shape'?)" in text


@pytest.mark.parametrize("name", OURS)
def test_missing_and_extra_tensors_are_named(name: str, tmp_path: Path) -> None:
    tensors, _, _ = SMALL[name]
    changed = tensors()
    gone = [key for key in changed if key.endswith("bias")][-1]
    del changed[gone]
    changed["discriminator.0.weight"] = torch.zeros(2, 2)
    file = saved(tmp_path, changed, **FACTS.get(name, {}))
    text = message(CheckpointError, lambda: vaeaudit.load(file, name))
    assert f"missing: {gone}" in text
    assert "not expected: discriminator.0.weight" in text


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1, 0], "expected two numbers LO < HI"),
        ([0, 255], "inside [0, 1]"),
        ([0, "inf"], "inside [0, 1]"),
        ([0, math.nan], "expected two numbers LO < HI"),
        ([0], "expected two numbers LO < HI"),
        ("wide", "expected two numbers LO < HI"),
    ],
)
def test_bad_range_is_refused(name: str, value: object, reason: str, tmp_path: Path) -> None:
    file = saved(tmp_path, SMALL[name][0](), **FACTS.get(name, {}))
    text = message(AdapterError, lambda: vaeaudit.load(file, name, range=value))
    assert f"adapter '{name}' cannot take" in text
    assert "range" in text
    assert reason in text


@pytest.mark.parametrize("name", OURS)
def test_input_shape_that_contradicts_the_tensors_is_refused(name: str, tmp_path: Path) -> None:
    file = saved(tmp_path, SMALL[name][0](), **FACTS.get(name, {}))
    text = message(AdapterError, lambda: vaeaudit.load(file, name, input_shape=[1, 28, 28]))
    assert f"adapter '{name}' was told input_shape [1, 28, 28], but the tensors take" in text


# --- mlp -------------------------------------------------------------------------------------------------------

NUMPY_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda a: np.maximum(a, 0),
    "tanh": np.tanh,
    "elu": lambda a: np.where(a > 0, a, np.exp(np.minimum(a, 0)) - 1),
    "gelu": lambda a: a * 0.5 * (1 + np.vectorize(math.erf)(a / np.sqrt(2))),
    "softplus": lambda a: np.log1p(np.exp(a)),
    "leaky_relu": lambda a: np.where(a > 0, a, 0.01 * a),
    "silu": lambda a: a / (1 + np.exp(-a)),
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
}


def numpy_chain(
    tensors: Tensors, names: list[str], a: np.ndarray, act: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    for k, name in enumerate(names):
        a = (act(a) if k else a) @ tensors[f"{name}.weight"].double().numpy().T
        a = a + tensors[f"{name}.bias"].double().numpy()
    return a


@pytest.mark.parametrize("activation", NUMPY_ACTIVATIONS)
def test_mlp_is_the_formula(activation: str, tmp_path: Path) -> None:
    tensors, act = mlp_tensors(), NUMPY_ACTIVATIONS[activation]
    vae = vaeaudit.load(saved(tmp_path, tensors), "mlp", activation=activation, dtype=torch.float64)
    x = np.linspace(0, 1, 24).reshape(2, 12)

    hidden = act(numpy_chain(tensors, ["encoder.shared.0"], x, act))
    mean = numpy_chain(tensors, ["encoder.mean.0", "encoder.mean.2"], hidden, act)
    logvar = numpy_chain(tensors, ["encoder.logvar.0", "encoder.logvar.2"], hidden, act)
    logits = numpy_chain(tensors, ["decoder.0", "decoder.2", "decoder.4"], mean, act)

    posterior = vae.encode(torch.from_numpy(x))
    assert isinstance(posterior, vaeaudit.DiagonalGaussian)
    np.testing.assert_allclose(posterior.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(posterior.stddev, np.exp(logvar / 2), rtol=1e-12)
    likelihood = vae.decode(posterior.mean)
    np.testing.assert_allclose(likelihood.mean, 1 / (1 + np.exp(-logits)), rtol=1e-12)
    assert isinstance(likelihood, vaeaudit.BernoulliLogits)
    assert vae.range == (0, 1)


def test_mlp_knows_every_activation_that_is_tested_here(tmp_path: Path) -> None:
    file = saved(tmp_path, mlp_tensors())
    text = message(AdapterError, lambda: vaeaudit.load(file, "mlp", activation="rlu"))
    assert "adapter 'mlp' cannot take activation = 'rlu': input should be 'relu', 'tanh'" in text
    assert all(f"'{name}'" in text for name in NUMPY_ACTIVATIONS)


@pytest.mark.parametrize("second", [1, 3])
def test_mlp_reads_layers_at_any_indices(second: int, tmp_path: Path) -> None:
    x = torch.rand(2, 12)
    expected = vaeaudit.load(saved(tmp_path, mlp_tensors()), "mlp").encode(x).mean
    file = saved(tmp_path, mlp_tensors(second))
    assert torch.equal(vaeaudit.load(file, "mlp").encode(x).mean, expected)


@pytest.mark.parametrize(("first", "second"), [(9, 10), (0, 1), (0, 2), (0, 3)])
def test_mlp_reads_more_shared_layers_in_the_order_of_their_numbers(first: int, second: int, tmp_path: Path) -> None:
    tensors = tensors_of(
        linear(f"encoder.shared.{second}", 5, 6)
        | linear(f"encoder.shared.{first}", 6, 4)
        | linear("encoder.mean.0", 2, 5)
        | linear("encoder.logvar.0", 2, 5)
        | linear("decoder.0", 3, 2)
        | linear("decoder.1", 4, 3)
    )
    vae = vaeaudit.load(saved(tmp_path, tensors), "mlp", activation="tanh", dtype=torch.float64)
    x = np.linspace(-1, 1, 4)[None]
    hidden = np.tanh(numpy_chain(tensors, [f"encoder.shared.{first}", f"encoder.shared.{second}"], x, np.tanh))
    expected = numpy_chain(tensors, ["encoder.mean.0"], hidden, np.tanh)
    np.testing.assert_allclose(vae.encode(torch.from_numpy(x)).mean, expected, rtol=1e-12)


def test_mlp_sigma_offset_adds_to_the_standard_deviation(tmp_path: Path) -> None:
    tensors = mlp_tensors()
    x = torch.rand(4, 12, dtype=torch.float64)
    plain = vaeaudit.load(saved(tmp_path, tensors), "mlp", dtype=torch.float64).encode(x)
    offset = vaeaudit.load(tmp_path / "vae.safetensors", "mlp", dtype=torch.float64, sigma_offset=0.5).encode(x)
    assert isinstance(plain, vaeaudit.DiagonalGaussian)
    assert isinstance(offset, vaeaudit.DiagonalGaussian)
    torch.testing.assert_close(offset.stddev, plain.stddev + 0.5, rtol=1e-12, atol=0)
    torch.testing.assert_close(offset.mean, plain.mean, rtol=0, atol=0)


def test_mlp_sigma_offset_overflows_nowhere(tmp_path: Path) -> None:
    tensors = mlp_tensors()
    tensors["encoder.logvar.2.bias"] = torch.tensor([-2000.0, 0.0, 2000.0])
    vae = vaeaudit.load(saved(tmp_path, tensors), "mlp", sigma_offset=0.25)
    x = torch.rand(2, 12, requires_grad=True)
    posterior = vae.encode(x)
    assert isinstance(posterior, vaeaudit.DiagonalGaussian)
    torch.testing.assert_close(posterior.stddev[:, 0], torch.full((2,), 0.25))
    torch.testing.assert_close(posterior.log_stddev[:, 2], torch.full((2,), 1000.0), rtol=1e-2, atol=0)
    (gradient,) = torch.autograd.grad(posterior.log_stddev.sum(), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("sigmoid", [False, True])
def test_mlp_gaussian_likelihood(sigmoid: bool, tmp_path: Path) -> None:
    file = saved(tmp_path, mlp_tensors())
    z, x = torch.randn(2, 3, dtype=torch.float64), torch.rand(2, 3, 4, dtype=torch.float64)
    shape = {"input_shape": [3, 4], "dtype": torch.float64}
    logits = vaeaudit.load(file, "mlp", **shape).decode(z)
    vae = vaeaudit.load(file, "mlp", likelihood="gaussian", stddev=0.5, sigmoid=sigmoid, **shape)
    assert isinstance(logits, vaeaudit.BernoulliLogits)
    mean = torch.sigmoid(logits.logits) if sigmoid else logits.logits
    likelihood = vae.decode(z)
    assert vae.range is None
    assert likelihood.route == "Gaussian, fixed variance"
    torch.testing.assert_close(likelihood.mean, mean)
    exact = torch.distributions.Normal(mean, 0.5).log_prob(x).sum((1, 2))
    torch.testing.assert_close(likelihood.log_prob(x), exact)


def test_mlp_range_and_standard_deviation_of_a_gaussian_likelihood(tmp_path: Path) -> None:
    file = saved(tmp_path, mlp_tensors())
    vae = vaeaudit.load(file, "mlp", likelihood="gaussian", range=[-1, 1])
    assert vae.range == (-1, 1)
    x = vae.decode(torch.zeros(1, 3)).mean
    torch.testing.assert_close(vae.decode(torch.zeros(1, 3)).log_prob(x), torch.full((1,), -6 * math.log(2 * math.pi)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigma_offset": -0.1}, "sigma_offset = -0.1: input should be greater than or equal to 0"),
        ({"sigma_offset": math.inf}, "sigma_offset = inf: input should be a finite number"),
        ({"likelihood": "poisson"}, "likelihood = 'poisson': input should be 'bernoulli' or 'gaussian'"),
        ({"likelihood": "gaussian", "stddev": 0}, "stddev = 0: input should be greater than 0"),
        ({"stddev": 0.5}, "stddev belongs to likelihood 'gaussian', and the likelihood is 'bernoulli'"),
        ({"sigmoid": True}, "sigmoid belongs to likelihood 'gaussian', and the likelihood is 'bernoulli'"),
        ({"input_shape": [3, 0]}, "input_shape = [3, 0]: input should be greater than 0"),
        ({"input_shape": []}, "input_shape = []: tuple should have at least 1 item"),
    ],
)
def test_mlp_refuses_bad_values(options: dict[str, object], words: str, tmp_path: Path) -> None:
    file = saved(tmp_path, mlp_tensors())
    assert words in message(AdapterError, lambda: open_model(file, "mlp", options))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("encoder.mean.0.weight", (5, 8), "encoder.mean.0.weight does not fit .*expected 5x7, came 5x8"),
        ("encoder.mean.2.weight", (4, 5), "encoder.logvar.2.weight does not fit .*expected 4x6, came 3x6"),
        ("decoder.0.weight", (8, 2), "decoder.0.weight does not fit .*expected 8x3, came 8x2"),
        ("decoder.4.weight", (10, 9), "decoder.4.weight does not fit .*expected 12x9, came 10x9"),
        ("decoder.2.bias", (3,), "decoder.2.bias .expected 9, came 3"),
        ("encoder.shared.0.weight", (7,), r"encoder.shared.0.weight is not the matrix .*came \(7,\)"),
    ],
)
def test_mlp_names_the_tensor_that_breaks_the_chain(
    name: str, shape: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    file = saved(tmp_path, mlp_tensors() | {name: torch.zeros(shape)})
    text = message(CheckpointError, lambda: vaeaudit.load(file, "mlp"))
    with pytest.raises(CheckpointError, match=words):
        raise CheckpointError(text)


def test_mlp_names_a_part_that_is_missing(tmp_path: Path) -> None:
    file = saved(tmp_path, {k: t for k, t in mlp_tensors().items() if "logvar" not in k})
    assert "missing: encoder.logvar.0.weight" in message(CheckpointError, lambda: vaeaudit.load(file, "mlp"))


def test_mlp_needs_a_hidden_layer_in_the_decoder(tmp_path: Path) -> None:
    kept = {k: t for k, t in mlp_tensors().items() if not k.startswith(("decoder.2", "decoder.4"))}
    text = message(CheckpointError, lambda: vaeaudit.load(saved(tmp_path, kept), "mlp"))
    assert "decoder.0 is the decoder's only layer, expected a hidden layer before it" in text


# --- burgess ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "channels", "latents"), [(32, 3, 2), (64, 1, 5)])
def test_burgess_reads_sizes_from_the_tensors(size: int, channels: int, latents: int, tmp_path: Path) -> None:
    file = saved(tmp_path, burgess_tensors(size, channels, latents))
    vae = vaeaudit.load(file, "burgess", input_shape=[channels, size, size], range=[0, 1])
    posterior = vae.encode(torch.rand(2, channels, size, size))
    assert vae.input_shape == (channels, size, size)
    assert vae.range == (0, 1)
    assert posterior.mean.shape == (2, latents)
    assert vae.decode(posterior.mean).mean.shape == (2, channels, size, size)


def test_burgess_reads_means_and_log_variances_interleaved(tmp_path: Path) -> None:
    tensors = burgess_tensors(latents=2)
    tensors["encoder.mu_logvar_gen.weight"].zero_()
    tensors["encoder.mu_logvar_gen.bias"] = torch.tensor([1.0, -2.0, 3.0, -4.0])
    posterior = vaeaudit.load(saved(tmp_path, tensors), "burgess").encode(torch.rand(1, 1, 32, 32))
    assert isinstance(posterior, vaeaudit.DiagonalGaussian)
    assert posterior.mean.tolist() == [[1.0, 3.0]]
    assert posterior.log_stddev.tolist() == [[-1.0, -2.0]]


def test_burgess_names_a_tensor_of_another_shape(tmp_path: Path) -> None:
    tensors = burgess_tensors() | {"encoder.lin1.weight": torch.zeros(256, 128)}
    text = message(CheckpointError, lambda: vaeaudit.load(saved(tmp_path, tensors), "burgess"))
    assert "encoder.lin1.weight (expected 256x512, came 256x128)" in text


def test_burgess_refuses_the_tensors_of_another_architecture(tmp_path: Path) -> None:
    text = message(CheckpointError, lambda: vaeaudit.load(saved(tmp_path, mlp_tensors()), "burgess"))
    assert "missing: encoder.conv1.weight" in text


@needs_trained
@pytest.mark.parametrize(
    ("model", "reconstruction", "kl"), [("VAE_mnist", 111.90942, 19.115902), ("btcvae_mnist", 128.75801, 9.20915)]
)
def test_burgess_reproduces_the_published_figures(model: str, reconstruction: float, kl: float) -> None:
    x = torch.from_numpy(np.load(MNIST)).reshape(1000, 1, 32, 32).float() / 255
    vae = vaeaudit.load(TRAINED / model / "model.pt", "burgess")
    posterior = vae.encode(x)
    assert isinstance(posterior, vaeaudit.DiagonalGaussian)
    assert -vae.decode(posterior.mean).log_prob(x).mean().item() == pytest.approx(reconstruction, rel=1e-5)
    assert posterior.kl(vae.prior).mean().item() == pytest.approx(kl, rel=1e-5)

    # The log's values are sums over the first batch of 1000, divided by the number of batches, 60.
    log = json.loads((TRAINED / model / "test_losses.log").read_text())
    units = [vaeaudit.DiagonalGaussian(posterior.mean[:, [j]], posterior.log_stddev[:, [j]]) for j in range(10)]
    standard = vaeaudit.DiagonalGaussian.standard((1,), like=x)
    for j, unit in enumerate(units):
        assert unit.kl(standard).mean().item() == pytest.approx(60 * log[f"kl_loss_{j}"], rel=1e-5)


# --- jointvae --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64])
def test_jointvae_reads_sizes_from_the_tensors_and_gives_parts_in_the_decoders_order(size: int, tmp_path: Path) -> None:
    tensors = jointvae_tensors(size)
    tensors |= {f"fc_{head}.weight": torch.zeros_like(tensors[f"fc_{head}.weight"]) for head in ("mean", "log_var")}
    tensors["fc_mean.bias"], tensors["fc_log_var.bias"] = torch.tensor([1.0, 2, 3]), torch.tensor([-2.0, 0, 2])
    vae = vaeaudit.load(saved(tmp_path, tensors), "jointvae", temperature=0.5)
    q = vae.encode(torch.rand(2, 2, size, size))
    assert vae.input_shape == (2, size, size)
    assert isinstance(q, vaeaudit.Product)
    gaussian, *categorical = q.parts
    assert isinstance(gaussian, vaeaudit.DiagonalGaussian)
    assert gaussian.mean.tolist() == [[1, 2, 3]] * 2
    assert gaussian.log_stddev.tolist() == [[-1, 0, 1]] * 2
    assert [part.mean.shape[1] for part in categorical] == [2, 4]
    assert all(isinstance(part, vaeaudit.Concrete) and part.temperature == 0.5 for part in categorical)
    assert vae.decode(q.mean).mean.shape == (2, 2, size, size)


def test_jointvae_names_what_is_no_weight_of_its_layers(tmp_path: Path) -> None:
    tensors = jointvae_tensors() | {"fc_alphas.0.weight": torch.zeros(3)}
    text = message(CheckpointError, lambda: vaeaudit.load(saved(tmp_path, tensors), "jointvae"))
    assert "of shape (3,): fc_alphas.0.weight, where 2 dimensions were expected" in text


@needs_trained
def test_jointvae_reconstructs_as_well_as_its_publishers_say() -> None:
    x = torch.from_numpy(np.load(MNIST)).reshape(1000, 1, 32, 32).float() / 255
    vae = vaeaudit.load(SHARED / "checkpoints" / "joint-vae" / "mnist" / "model.pt", "jointvae")
    q = vae.encode(x)
    assert isinstance(q, vaeaudit.Product)
    gaussian, classes = q.parts
    likeliest = nn.functional.one_hot(classes.mean.argmax(1), 10)
    reconstruction = vae.decode(torch.cat([gaussian.mean, likeliest], 1)).mean
    assert (reconstruction - x).square().mean().item() == pytest.approx(0.0143, abs=5e-5)


# --- naming adapters -------------------------------------------------------------------------------------------

OWN = """
import torch
from vaeaudit import BernoulliLogits, DiagonalGaussian

class Own:
    input_shape, range = (2,), None
    prior = DiagonalGaussian.standard((2,), like=torch.zeros(()))

    def __init__(self, scale):
        self.scale = scale

    def encode(self, x):
        return DiagonalGaussian(self.scale * x, torch.zeros_like(x))

    def decode(self, z):
        return BernoulliLogits(z)

def open(checkpoint, config):
    return Own(checkpoint.tensors["scale"] * config.get("times", 1))

def broken(checkpoint, config):
    raise ValueError("no\\nscale")

def other(checkpoint, config):
    return object()
"""


def test_facts_in_the_file_name_its_adapter_and_options(tmp_path: Path) -> None:
    facts = {"adapter": "mlp", "input_shape": [3, 4], "range": [0, 0.5], "activation": "tanh", "sigma_offset": 1}
    file = saved(tmp_path, mlp_tensors(), **facts)
    loaded = open_model(file)
    assert loaded.adapter.name == "mlp"
    assert loaded.vae.input_shape == (3, 4)
    assert loaded.vae.range == (0, 0.5)
    assert loaded.options == {key: value for key, value in facts.items() if key != "adapter"}
    named = vaeaudit.load(saved(tmp_path, mlp_tensors()), "mlp", activation="tanh", sigma_offset=1)
    x = torch.rand(2, 12)
    assert torch.equal(loaded.vae.encode(x.reshape(2, 3, 4)).kl(loaded.vae.prior), named.encode(x).kl(named.prior))


def test_options_override_facts(tmp_path: Path) -> None:
    file = saved(tmp_path, mlp_tensors(), adapter="mlp", input_shape=[3, 4])
    assert vaeaudit.load(file, input_shape=[12]).input_shape == (12,)


def test_an_unknown_fact_is_refused_like_an_option(tmp_path: Path) -> None:
    file = saved(tmp_path, mlp_tensors(), adapter="mlp", activations="tanh")
    text = message(AdapterError, lambda: vaeaudit.load(file))
    assert "no option 'activations' (did you mean 'activation'?)" in text


def test_a_file_that_does_not_say_what_it_is_needs_an_adapter_named(tmp_path: Path) -> None:
    text = message(AdapterError, lambda: vaeaudit.load(saved(tmp_path, mlp_tensors())))
    assert "does not say what it is; name one with --adapter: " in text
    assert f"--adapter: {listed(sorted(INSTALLED))}, package.module:open or file.py:open" in text


def test_an_adapter_by_file_and_by_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_vae_adapter.py").write_text(OWN, encoding="utf-8")
    file = saved(tmp_path, {"scale": torch.tensor(3.0)})
    x = torch.tensor([[1.0, 2.0]])
    by_file = open_model(file, f"{tmp_path / 'own_vae_adapter.py'}:open", {"times": 2})
    assert by_file.vae.encode(x).mean.tolist() == [[6.0, 12.0]]
    assert by_file.adapter.source.startswith("file ")
    monkeypatch.syspath_prepend(tmp_path)
    by_path = open_model(file, "own_vae_adapter:open")
    assert by_path.vae.encode(x).mean.tolist() == [[3.0, 6.0]]
    assert by_path.adapter.source == "import path own_vae_adapter:open"
    assert by_path.adapter.sha256 == by_file.adapter.sha256


def test_an_adapter_that_raises_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    file = saved(tmp_path, {"scale": torch.tensor(3.0)})
    text = message(AdapterError, lambda: vaeaudit.load(file, f"{tmp_path / 'own.py'}:broken"))
    line = 1 + OWN.splitlines().index('    raise ValueError("no\\nscale")')
    assert text.endswith(f"could not open {file}: ValueError: no scale (own.py, line {line}); see docs/adapters.md")


def test_an_adapter_that_returns_no_vae_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    file = saved(tmp_path, {"scale": torch.tensor(3.0)})
    text = message(ContractError, lambda: vaeaudit.load(file, f"{tmp_path / 'own.py'}:other"))
    assert "returned a object without input_shape, range, prior, encode, decode" in text


def test_adapters_that_cannot_be_found(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "faulty.py").write_text("1 / 0", encoding="utf-8")
    file = saved(tmp_path, {"scale": torch.tensor(3.0)})
    for name, words in [
        ("mpl", "there is no adapter 'mpl' (did you mean 'mlp'?)"),
        (f"{tmp_path / 'absent.py'}:open", "there is no adapter file"),
        (f"{tmp_path / 'own.py'}:opn", "defines no function 'opn'"),
        (f"{tmp_path / 'faulty.py'}:open", "cannot be imported: ZeroDivisionError: division by zero"),
        ("no_such_module:open", "cannot be imported: ModuleNotFoundError"),
    ]:
        assert words in message(AdapterError, lambda name=name: vaeaudit.load(file, name))


@pytest.mark.parametrize(
    "code",
    [
        "open = functools.partial(mlp.open)",
        "class Opener:\n    def __call__(self, *given): return mlp.open(*given)\nopen = Opener()",
    ],
)
def test_whatever_can_be_called_opens_a_model_and_its_code_beside_is_found(tmp_path: Path, code: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"import functools\nfrom vaeaudit_adapters import mlp\n{code}\n")
    adapter = open_model(saved(tmp_path, mlp_tensors()), f"{file}:open").adapter
    assert adapter.sha256 is not None
    assert len(code_beside(adapter)) > 0


def test_what_is_built_in_is_no_adapter_and_its_failure_is_told(tmp_path: Path) -> None:
    file = saved(tmp_path, mlp_tensors())
    assert "adapter 'builtins:eval' could not open" in message(AdapterError, lambda: open_model(file, "builtins:eval"))


def test_the_class_of_a_model_is_told_from_a_model(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from vaeaudit_adapters import mlp\ndef open(checkpoint, config): return mlp.MLP\n"
    )
    file = saved(tmp_path, mlp_tensors())
    told = message(ContractError, lambda: open_model(file, f"{tmp_path / 'mine.py'}:open"))
    assert told.endswith("returned a type that is the class MLP itself, where an object of it was expected: MLP(...)")


def test_an_error_that_cannot_be_shown_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Odd(Exception):\n    def __str__(self): return 1 / 0\ndef open(checkpoint, config): raise Odd\n"
    )
    file = saved(tmp_path, mlp_tensors())
    assert "could not open" in message(AdapterError, lambda: open_model(file, f"{tmp_path / 'mine.py'}:open"))


def test_a_range_that_an_option_gives_for_other_channels_is_the_options_fault(tmp_path: Path) -> None:
    file = saved(tmp_path, mlp_tensors())
    told = message(AdapterError, lambda: open_model(file, "mlp", {"range": [[0, 1], [0, 1], [0, 1]]}))
    assert told.startswith("the option range of adapter 'mlp' is ((0.0, 1.0), (0.0, 1.0), (0.0, 1.0)), where two")
    assert told.endswith("leave it out or correct it")
