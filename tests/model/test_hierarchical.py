"""Hierarchical VAEs of Willetts et al.: layers are the networks that tensors tell, and the decoder reads z^1 or all."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import vaeaudit
from vaeaudit import DiagonalGaussian
from vaeaudit.attacks.objectives import output
from vaeaudit.attacks.similarity import layer_terms
from vaeaudit.errors import AdapterError, CheckpointError
from vaeaudit.model.divergence import layers_to_prior
from vaeaudit.model.registry import open_model
from vaeaudit.model.vae import Chain, Hierarchical

WIDTHS, INPUTS = (4, 3, 2), 12  # of z^1, z^2 and z^3


def drawn(seed: int, *shape: int) -> Tensor:
    return 0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / math.prod(shape[1:]) ** 0.5


def linear(name: str, outputs: int, inputs: int, scale: float = 2.0) -> dict[str, Tensor]:
    """``scale``: small where a network gives the logarithms of standard deviations."""
    return {f"{name}.weight": scale * drawn(len(name), outputs, inputs), f"{name}.bias": 0.3 * drawn(7, outputs)}


def norm(name: str, size: int) -> dict[str, Tensor]:
    given = {"weight": 1 + drawn(1, size), "bias": 1 + drawn(2, size), "running_mean": drawn(3, size)}
    given |= {"running_var": 1 + drawn(4, size).square(), "num_batches_tracked": torch.tensor(9)}
    return {f"{name}.{key}": tensor for key, tensor in given.items()}


def links(widths: tuple[int, ...] = WIDTHS) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for i, (below, above) in enumerate(pairwise(widths)):
        for name, inputs, outputs in ((f"up.{i}", below, above), (f"down.{i}", above, below)):
            found |= linear(f"{name}.0", 6, inputs) | norm(f"{name}.1", 6)
            found |= linear(f"{name}.3", 5, 6) | norm(f"{name}.4", 5) | linear(f"{name}.6", 2 * outputs, 5, 0.7)
    return found


def connected(taken: int, widths: tuple[int, ...] = WIDTHS) -> dict[str, Tensor]:
    found = (
        linear("encoder.fc1", 8, INPUTS) | linear("encoder.fc2", 7, 8) | linear("encoder.fc3", 2 * widths[0], 7, 0.7)
    )
    sizes = (taken, 7, 8, 9, INPUTS)
    for place, (inputs, outputs) in enumerate(pairwise(sizes)):
        found |= linear(f"decoder.net.{2 * place}", outputs, inputs)
    return found | links(widths)


def convolutional(taken: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    down, up = (1, 2, 3, 2, 3, 5), (taken, 5, 3, 2, 3, 2)
    for place in range(1, 6):
        found[f"encoder.conv{place}.weight"] = 2 * drawn(place, down[place], down[place - 1], 4, 4)
        size = 1 if place == 1 else 4
        found[f"decoder.conv{place}.weight"] = 2 * drawn(place, up[place - 1], up[place], size, size)
        found |= {f"encoder.conv{place}.bias": drawn(5, down[place]), f"decoder.conv{place}.bias": drawn(6, up[place])}
        found |= norm(f"encoder.bn{place}", down[place]) | norm(f"decoder.bn{place}", up[place])
    found |= {"encoder.conv_z.weight": 0.7 * drawn(1, 2 * WIDTHS[0], 5, 1, 1), "encoder.conv_z.bias": drawn(2, 8)}
    found |= {"decoder.conv_final.weight": 2 * drawn(1, 2, 1, 4, 4), "decoder.conv_final.bias": drawn(3, 1)}
    return found | links()


def saved(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, folder / "vae.safetensors")
    return folder / "vae.safetensors"


def opened(folder: Path, tensors: dict[str, Tensor], **options: Any) -> Any:
    return vaeaudit.load(saved(folder, tensors), "hierarchical", dtype=torch.float64, **options)


def inputs(vae: Any, n: int = 3) -> Tensor:
    return torch.rand((n, *vae.input_shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("taken", [WIDTHS[0], sum(WIDTHS)], ids=["DLGM", "Seatbelt-VAE"])
@pytest.mark.parametrize("kind", [connected, convolutional])
def test_it_keeps_the_contract(
    kind: Callable[[int], dict[str, Tensor]], taken: int, keeps_the_contract: Callable[..., None], tmp_path: Path
) -> None:
    vae = opened(tmp_path, kind(taken))
    x = inputs(vae, 2)
    q = vae.encode(x)
    assert isinstance(q, Chain) and isinstance(vae, Hierarchical) and q.layers == 3
    assert vae.input_shape == ((INPUTS,) if kind is connected else (1, 64, 64)) and vae.range == (0, 1)
    z = q.sample(torch.ones(2, 9).double())
    lower = vae.decode(torch.cat([z[:, :4], 0 * z[:, 4:]], 1)).mean
    assert torch.equal(lower, vae.decode(z).mean) == (taken == WIDTHS[0])
    keeps_the_contract(vae, x)


def test_every_check_goes_as_the_table_says(goes_as_the_table_says: Callable[..., None], tmp_path: Path) -> None:
    model = open_model(saved(tmp_path, connected(sum(WIDTHS))), "hierarchical")
    goes_as_the_table_says("`hierarchical`, a chain", model)


def perceptron(tensors: dict[str, Tensor], name: str, values: Tensor, slope: float) -> Tensor:
    """By the formulas of its layers, with the statistics that training left."""
    for place in (0, 3, 6):
        weight, bias = (tensors[f"{name}.{place}.{part}"].double() for part in ("weight", "bias"))
        values = values @ weight.T + bias
        if place < 6:
            of = {key: tensors[f"{name}.{place + 1}.{key}"].double() for key in ("weight", "bias")}
            of |= {key: tensors[f"{name}.{place + 1}.running_{key}"].double() for key in ("mean", "var")}
            values = (values - of["mean"]) / (of["var"] + 1e-5).sqrt() * of["weight"] + of["bias"]
            values = torch.where(values > 0, values, slope * values)
    return values


@pytest.mark.parametrize("slope", [0.01, 0.2])
@pytest.mark.parametrize(("layout", "spread"), [("interleaved", "log_stddev"), ("halves", "logvar")])
def test_the_layers_are_the_formulas(layout: str, spread: str, slope: float, tmp_path: Path) -> None:
    tensors = connected(sum(WIDTHS))
    vae = opened(tmp_path, tensors, layout=layout, spread=spread, slope=slope)
    x = inputs(vae)
    q, eta = vae.encode(x), torch.full((1, 3, 9), 0.5).double()
    z = q.sample(eta)[0]
    first, second, third = q.conditionals(eta)
    down = vae.conditional_priors(z)
    assert torch.equal(down[2].mean, torch.zeros(1, 2).double())
    hidden = x
    for name in ("encoder.fc1", "encoder.fc2", "encoder.fc3"):
        hidden = hidden @ tensors[f"{name}.weight"].double().T + tensors[f"{name}.bias"].double()
        hidden = hidden if name.endswith("3") else hidden.relu()
    given = {"up.0": z[:, :4], "up.1": z[:, 4:7], "down.0": z[:, 4:7], "down.1": z[:, 7:]}
    layers = {"up.0": second, "up.1": third, "down.0": down[0], "down.1": down[1]}
    raw = {name: perceptron(tensors, name, values, slope) for name, values in given.items()}
    for found, values in [(first, hidden), *((layers[name], raw[name]) for name in raw)]:
        mean, other = values.chunk(2, 1) if layout == "halves" else (values[:, ::2], values[:, 1::2])
        torch.testing.assert_close(found.mean, mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.log_stddev, other / (1 + (spread == "logvar")), rtol=1e-10, atol=1e-12)


def test_its_elbo_is_the_sum_over_layers_and_that_of_its_densities(tmp_path: Path) -> None:
    vae = opened(tmp_path, connected(sum(WIDTHS)))
    x = inputs(vae, 4)
    found = vaeaudit.latents(vae, x, draws=20, points=8)
    assert found.elbo is not None and found.log_likelihood is not None and found.kl is not None
    assert [len(layer.kl) for layer in found.layers] == list(WIDTHS)
    torch.testing.assert_close(torch.stack([layer.item_kl for layer in found.layers]).sum(0), found.kl)
    q = vae.encode(x)
    eta = torch.randn((300, 4, 9), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    terms = torch.stack([layers_to_prior(q, vae, one) for one in eta])
    error = terms.std(0) * (1 / 300 + 1 / 20) ** 0.5
    assert bool(((terms.mean(0) - found.kl).abs() < 5 * error).all())


def test_attacks_compare_all_layers_or_one(tmp_path: Path) -> None:
    vae = opened(tmp_path, connected(sum(WIDTHS)))
    x = inputs(vae, 2)
    eta = torch.randn((5, 1, 9), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    terms = layer_terms(vae.encode(x[:1]), vae.encode(x[1:]), eta)
    assert terms.shape == (3, 1) and bool((terms > 0).all())
    torch.testing.assert_close(terms[0], vae.encode(x[:1]).kl(vae.encode(x[1:])))
    for layers in ((1,), (2, 3)):
        result = vaeaudit.attack(vae, x[:1], x[1:], lambdas=1, layers=layers, restarts=0, max_evaluations=3)
        assert bool(result.sweep.distortion.isfinite().all())
        first = vae.encode(result.sweep.adversarial[0]).kl(vae.encode(x[1:]))
        torch.testing.assert_close(result.first_kl, first[None])
        if layers == (1,):
            torch.testing.assert_close(result.first_kl, result.sweep.data_term)


def test_the_output_attack_is_the_negative_elbo_of_all_layers(tmp_path: Path) -> None:
    vae = opened(tmp_path, connected(sum(WIDTHS)))
    x, x_t = inputs(vae, 4).split(2)
    eta = torch.randn((3, 2, 9), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, expected = vae.encode(x), []
    for one in eta:
        z = q.sample(one)
        parts = zip(q.conditionals(one[None]), vae.conditional_priors(z), z.split(WIDTHS, dim=1), strict=True)
        logs = [
            sign * torch.distributions.Normal(layer.mean, layer.stddev).log_prob(part).sum(1)
            for up, down, part in parts
            for sign, layer in ((1, up), (-1, down))
        ]
        log_p = torch.distributions.Bernoulli(logits=vae.decode(z).logits).log_prob(x_t.round()).sum(1)
        expected.append(torch.stack(logs).sum(0) - log_p)
    found = output(vae, x, x_t.round(), eta)(x, torch.arange(2))
    torch.testing.assert_close(found, torch.stack(expected).mean(0))


def test_of_one_layer_it_is_the_vae_of_chen_et_al(tmp_path: Path) -> None:
    tensors = connected(4, (4,)) | {"prior_params": torch.zeros(4, 2), "encoder.conv_z.bias": torch.zeros(8)}
    vae = opened(tmp_path, tensors, likelihood="gaussian", stddev=0.5, input_shape=[3, 4], range=[-1, 1])
    x = inputs(vae)
    assert isinstance(vae.encode(x), DiagonalGaussian) and vae.input_shape == (3, 4) and vae.range == (-1, 1)
    mean = vae.decode(vae.encode(x).mean).mean
    expected = torch.distributions.Normal(mean, 0.5).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(vae.decode(vae.encode(x).mean).log_prob(x), expected)


def test_what_does_not_fit_is_told_in_one_sentence(tmp_path: Path) -> None:
    whole = connected(sum(WIDTHS))
    without = {name: tensor for name, tensor in whole.items() if not name.startswith("down.1.")}
    for tensors, words in (
        (without, "missing: down.1.0.weight); is it another architecture?"),
        (connected(5), "the decoder takes 5 latents, where 4 of the first layer or 9 of all were expected"),
        ({"a": torch.zeros(2)}, "missing: encoder.fc1.weight"),
    ):
        with pytest.raises(CheckpointError) as caught:
            opened(tmp_path, tensors)
        assert words in str(caught.value)
    for options, words in (
        ({"input_shape": [1, 64, 64]}, "was told input_shape [1, 64, 64], but the tensors take [12]"),
        ({"stddev": 0.1}, "stddev belongs to likelihood 'gaussian'"),
        ({"slop": 0.1}, "has no option 'slop' (did you mean 'slope'?)"),
    ):
        with pytest.raises(AdapterError) as refused:
            opened(tmp_path, whole, **options)
        assert words in str(refused.value)
