"""Models of pythae open from their folder; the losses are those that pythae's own code gives for the same weights."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vaeaudit
from vaeaudit.errors import AdapterError, CheckpointError, TrustError
from vaeaudit.model.divergence import to_prior
from vaeaudit.model.registry import open_model

SHAPE, LATENTS, HIDDEN, PARTS = (1, 2, 3), 2, 512, 4


def drawn(*shape: int) -> Tensor:
    """Numbers that no library's generator decides, of about [-0.1, 0.1]."""
    return 0.1 * torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 1.7 + len(shape)).reshape(
        shape
    )


def filled(folder: Path, model: str, **said: object) -> Path:
    pixels = 6
    shapes = {"encoder.layers.0.0": (HIDDEN, pixels), "encoder.embedding": (LATENTS, HIDDEN)}
    shapes |= {"encoder.log_var": (LATENTS, HIDDEN)} if model not in ("AE", "RAE_L2") else {}
    shapes |= {"decoder.layers.0.0": (HIDDEN, LATENTS), "decoder.layers.1.0": (pixels, HIDDEN)}
    shapes |= {"pseudo_inputs.0": (pixels, PARTS)} if model == "VAMP" else {}
    shapes |= {"discriminator.layers.0.0": (3, LATENTS)} if model == "FactorVAE" else {}
    state = {f"{name}.weight": drawn(*shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": drawn(shape[0]) for name, shape in shapes.items()}
    torch.save({"model_state_dict": state}, folder / "model.pt")
    config = {
        "name": f"{model}{'_' * (model in ('INFOVAE_MMD', 'RAE_L2'))}Config",
        "input_dim": SHAPE,
        "latent_dim": LATENTS,
    }
    config |= {"uses_default_encoder": True, "uses_default_decoder": True, **said}
    (folder / "model_config.json").write_text(json.dumps(config))
    return folder


def images() -> Tensor:
    return torch.linspace(0, 1, 18, dtype=torch.float64).reshape(3, *SHAPE)


GAUSSIAN = ["VAE", "BetaVAE", "DisentangledBetaVAE", "BetaTCVAE", "FactorVAE", "INFOVAE_MMD"]


@pytest.mark.parametrize("loss", ["mse", "bce"])
@pytest.mark.parametrize("model", GAUSSIAN)
def test_the_losses_are_those_of_pythae(model: str, loss: str, tmp_path: Path) -> None:
    vae: Any = vaeaudit.load(filled(tmp_path, model, reconstruction_loss=loss), dtype=torch.float64)
    q = vae.encode(images())
    # As VAE.loss_function of pythae 0.1.2 gives them at z = the mean, in float64; constants are left out there.
    expected = 0.4358545452 + 3 * math.log(2 * math.pi) if loss == "mse" else 4.9002778470
    assert -vae.decode(q.mean).log_prob(images()).mean() == pytest.approx(expected, abs=1e-9)
    assert q.kl(vae.prior).mean() == pytest.approx(0.6252135135, abs=1e-9)


def test_the_prior_of_vamp_is_that_of_pythae_and_its_kl_is_estimated(tmp_path: Path) -> None:
    vae: Any = vaeaudit.load(filled(tmp_path, "VAMP", reconstruction_loss="bce"), dtype=torch.float64)
    q = vae.encode(images())
    assert vae.prior.log_prob(q.mean).mean() == pytest.approx(-2.0054040118, abs=1e-8)  # its log C is a float32
    noise = torch.randn(4000, 3, LATENTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimated = to_prior(q, vae.prior, lambda: q.sample(noise))
    assert estimated.error is not None
    assert (estimated.value > -3 * estimated.error).all()  # no KL is below 0


@pytest.mark.parametrize("model", ["AE", "RAE_L2"])
def test_an_autoencoder_of_pythae_is_a_point(model: str, tmp_path: Path) -> None:
    assert isinstance(vaeaudit.load(filled(tmp_path, model)).encode(images().float()), vaeaudit.Point)


@pytest.mark.parametrize(("model", "row"), [("VAE", "Gaussian"), ("VAMP", "VampPrior"), ("AE", "a point")])
def test_every_check_goes_as_the_table_says(
    model: str, row: str, goes_as_the_table_says: Callable[..., None], tmp_path: Path
) -> None:
    goes_as_the_table_says(f"`pythae`, {row}", open_model(filled(tmp_path, model)))


def test_networks_that_are_pickles_are_refused_on_trust_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "decoder.pkl").write_bytes(b"never read")
    with pytest.raises(TrustError, match=r"decoder\.pkl.*vaeaudit adapters --for MODEL prints a first one$"):
        vaeaudit.load(filled(tmp_path, "VAE", uses_default_decoder=False))


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ({"name": "RHVAEConfig"}, AdapterError, "is a RHVAE of pythae, where VAE, BetaVAE, .* can be opened"),
        ({"latent_dim": 3}, CheckpointError, r"encoder\.embedding\.weight \(expected 3x512, came 2x512\)"),
        ({"input_dim": [1, 4, 4]}, AdapterError, r"told input_shape \[1, 4, 4\], but the tensors take 6 values"),
        ({"input_dim": None}, AdapterError, "cannot take input_shape = None"),
        ({"reconstruction_loss": "l1"}, AdapterError, "cannot take reconstruction_loss = 'l1'"),
        ({"name": "VAMPConfig"}, CheckpointError, r"missing: pseudo_inputs\.0\.weight"),
    ],
)
def test_a_config_that_lies_is_told(
    said: dict[str, object], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        vaeaudit.load(filled(tmp_path, "VAE", **said))


def test_a_converted_model_needs_no_config_beside_it(tmp_path: Path, command: Any) -> None:
    place = filled(tmp_path, "VAMP", reconstruction_loss="bce")
    (tmp_path / "elsewhere").mkdir()
    assert command("convert", place, "elsewhere/vae.safetensors").code == 0
    ours, theirs = vaeaudit.load(place), vaeaudit.load("elsewhere/vae.safetensors")
    assert torch.equal(ours.decode(torch.ones(1, 2)).mean, theirs.decode(torch.ones(1, 2)).mean)
    assert ours.decode(torch.ones(1, 2)).route == theirs.decode(torch.ones(1, 2)).route
