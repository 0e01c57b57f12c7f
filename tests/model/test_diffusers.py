"""Models of the library diffusers, tiny and seeded: the contract for every class, and what their folders may hold."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import vaeaudit
from vaeaudit.model.contract import check_contract

diffusers = pytest.importorskip("diffusers", reason="the library diffusers is not installed")

PLAIN = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 32,
}
CAUSAL = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [True]}
CAUSAL |= {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
BLOCKS = {"block_out_channels": [8] * 4, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4}
# For each class a small configuration, the shape of one input and that of its latents.
TINY: dict[str, tuple[dict[str, object], tuple[int, ...], tuple[int, ...]]] = {
    "AutoencoderKL": (PLAIN, (3, 32, 32), (4, 16, 16)),
    "AutoencoderKLFlux2": (PLAIN | {"layers_per_block": 1}, (3, 32, 32), (4, 16, 16)),
    "AsymmetricAutoencoderKL": (
        {key: PLAIN[key] for key in ("down_block_types", "up_block_types", "latent_channels", "norm_num_groups")}
        | {"down_block_out_channels": [8, 16], "up_block_out_channels": [16, 16], "sample_size": 32},
        (3, 32, 32),
        (4, 16, 16),
    ),
    "AutoencoderTiny": (
        {f"{part}_block_out_channels": [8] * 3 for part in ("encoder", "decoder")}
        | {f"num_{part}_blocks": [1] * 3 for part in ("encoder", "decoder")},
        (3, 32, 32),
        (4, 8, 8),
    ),
    "AutoencoderDC": (
        {f"{part}_block_types": ["ResBlock", "EfficientViTBlock"] for part in ("encoder", "decoder")}
        | {f"{part}_block_out_channels": [8, 16] for part in ("encoder", "decoder")}
        | {f"{part}_layers_per_block": [1, 1] for part in ("encoder", "decoder")}
        | {f"{part}_qkv_multiscales": [[], [5]] for part in ("encoder", "decoder")}
        | {"latent_channels": 4, "attention_head_dim": 4},
        (3, 32, 32),
        (4, 16, 16),
    ),
    "VQModel": (PLAIN | {"num_vq_embeddings": 16}, (3, 32, 32), (4, 16, 16)),
    "AutoencoderOobleck": (
        {"encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "channel_multiples": [1, 2]}
        | {"decoder_channels": 8, "decoder_input_channels": 4},
        (2, 64),
        (4, 8),
    ),
    "AutoencoderKLWan": (CAUSAL, (3, 5, 16, 16), (4, 3, 8, 8)),
    "AutoencoderKLQwenImage": (CAUSAL, (3, 16, 16), (4, 1, 8, 8)),
    "AutoencoderKLLTXVideo": (
        {f"{part}block_out_channels": [8, 8] for part in ("", "decoder_")}
        | {f"{part}layers_per_block": [1, 1, 1] for part in ("", "decoder_")}
        | {f"{part}spatio_temporal_scaling": [True, False] for part in ("", "decoder_")}
        | {"down_block_types": ["LTXVideoDownBlock3D"] * 2, "decoder_inject_noise": [False] * 3, "patch_size": 2}
        | {"upsample_residual": [False] * 2, "upsample_factor": [1, 1], "latent_channels": 8},
        (3, 5, 16, 16),
        (8, 3, 4, 4),
    ),
    "AutoencoderKLHunyuanVideo": (BLOCKS, (3, 5, 16, 16), (4, 2, 2, 2)),
    "AutoencoderKLCogVideoX": (BLOCKS, (3, 9, 16, 16), (4, 3, 2, 2)),
    "AutoencoderKLCosmos": (
        {"encoder_block_out_channels": [8, 8], "decode_block_out_channels": [8, 8], "attention_resolutions": [8]}
        | {"latent_channels": 4, "resolution": 16, "num_layers": 1, "patch_size": 2}
        | {f"{axis}_compression_ratio": 4 for axis in ("spatial", "temporal")},
        (3, 5, 16, 16),
        (4, 3, 8, 8),
    ),
}


def saved(folder: Path, name: str = "AutoencoderKL", dtype: torch.dtype = torch.float32, **changed: object) -> Path:
    """A folder as the library writes it, with weights drawn by a seed."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        config = TINY[name][0] | changed
        model = getattr(diffusers, name)(**config)
    save_file(
        {key: t.to(dtype) for key, t in model.state_dict().items()}, folder / "diffusion_pytorch_model.safetensors"
    )
    said = {"_class_name": name, "_diffusers_version": "0.42.1", **config}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def inputs(name: str, n: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return 2 * torch.rand((n, *TINY[name][1]), generator=torch.Generator().manual_seed(1), dtype=dtype) - 1


def opened(folder: Path, name: str = "AutoencoderKL", **options: Any) -> Any:
    return vaeaudit.load(folder, **{"input_shape": list(TINY[name][1])} | options)


def refused(error: type[Exception], call: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert text and "\n" not in text and not text.endswith(".")
    return text


@pytest.mark.parametrize("name", TINY)
def test_every_class_is_recognised_and_keeps_the_contract(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, name)
    before = torch.random.get_rng_state()
    vae = opened(folder, name)
    assert torch.equal(torch.random.get_rng_state(), before)
    x, (_, shape, latent) = inputs(name), TINY[name]
    check_contract(vae, x)
    q = vae.encode(x)
    assert vae.input_shape == shape and vae.range == (-1, 1) and q.mean.shape == (3, *latent)
    z = q.sample(torch.ones((3, *q.noise_shape)))
    torch.testing.assert_close(vae.encode(x[1:2]).mean[0], q.mean[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(vae.decode(z[1:2]).mean[0], vae.decode(z).mean[1], rtol=0, atol=1e-4)
    assert torch.equal(vae.encode(x).mean, q.mean) and torch.equal(vae.decode(z).mean, vae.decode(z).mean)

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(vae.decode(vae.encode(x).mean).mean[0].sum(), x)
    assert gradient.isfinite().all() and (gradient[0] != 0).any() and (gradient[1:] == 0).all()


@pytest.mark.parametrize("name", [name for name in TINY if name != "VQModel"])  # whose codes are steps
def test_gradients_are_finite_differences(name: str, tmp_path: Path) -> None:
    vae, x = opened(saved(tmp_path, name), name, dtype=torch.float64), inputs(name, 1, torch.float64)
    direction = inputs(name, 2, torch.float64)[1:]

    def value(t: float) -> Tensor:
        q = vae.encode(0.5 * x + t * direction)
        spread = q.log_stddev.sum() if isinstance(q, vaeaudit.DiagonalGaussian) else 0
        return q.mean.square().sum() + spread + vae.decode(q.mean).mean.sum()

    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(t), t)  # type: ignore[arg-type]
    # Some classes round to float32 on the way, others are so curved that a long step does not tell the slope.
    steps = [(value(h) - value(-h)) / (2 * h) for h in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)]
    assert min(float((step / slope - 1).abs()) for step in steps) < 0.05, (steps, slope)
