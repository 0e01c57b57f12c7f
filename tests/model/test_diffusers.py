"""Models of the library diffusers, tiny and seeded: the contract for every class, and what their folders may hold."""

import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import vaeaudit
from vaeaudit import LatentScale
from vaeaudit.attacks.directions import pullback_directions
from vaeaudit.checks.margin.estimates import jacobian_norms
from vaeaudit.errors import AdapterError, CheckpointError, NonFiniteError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.contract import check_contract
from vaeaudit.model.convert import converted
from vaeaudit.model.registry import open_model
from vaeaudit.subject import latent_scale
from vaeaudit.subject.finding import Verdict

if find_spec("diffusers") is None:
    pytest.skip("the library diffusers is not installed", allow_module_level=True)

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
    "AutoencoderKLWan": (CAUSAL, (3, 5, 8, 8), (4, 3, 4, 4)),
    "AutoencoderKLQwenImage": (CAUSAL, (3, 8, 8), (4, 1, 4, 4)),
    "AutoencoderKLLTXVideo": (
        {f"{part}block_out_channels": [8, 8] for part in ("", "decoder_")}
        | {f"{part}layers_per_block": [1, 1, 1] for part in ("", "decoder_")}
        | {f"{part}spatio_temporal_scaling": [True, False] for part in ("", "decoder_")}
        | {"down_block_types": ["LTXVideoDownBlock3D"] * 2, "decoder_inject_noise": [False] * 3, "patch_size": 2}
        | {"upsample_residual": [False] * 2, "upsample_factor": [1, 1], "latent_channels": 8},
        (3, 5, 8, 8),
        (8, 3, 2, 2),
    ),
    "AutoencoderKLHunyuanVideo": (BLOCKS, (3, 5, 8, 8), (4, 2, 1, 1)),
    "AutoencoderKLCogVideoX": (BLOCKS, (3, 9, 8, 8), (4, 3, 1, 1)),
    "AutoencoderKLCosmos": (
        {"encoder_block_out_channels": [8, 8], "decode_block_out_channels": [8, 8], "attention_resolutions": [8]}
        | {"latent_channels": 4, "resolution": 16, "num_layers": 1, "patch_size": 2}
        | {f"{axis}_compression_ratio": 4 for axis in ("spatial", "temporal")},
        (3, 5, 8, 8),
        (4, 3, 4, 4),
    ),
}

# Fewer layers, of every kind that the class has.
FEWER: dict[str, dict[str, object]] = {
    "AutoencoderKL": {
        "block_out_channels": [8],
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
        "layers_per_block": 1,
    },
    "AutoencoderTiny": {f"{part}_block_out_channels": [8] * 2 for part in ("encoder", "decoder")}
    | {f"num_{part}_blocks": [1] * 2 for part in ("encoder", "decoder")},
    "VQModel": {"layers_per_block": 1},
}

ALL = ("attack", "margin", "noise", "reconstruction", "equivalence", "latents", "mig", "weights")


@cache
def made(name: str, changed: str) -> tuple[dict[str, object], dict[str, Tensor]]:
    """The configuration of a model with what is ``changed``, as JSON, and weights drawn by a seed."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        config = TINY[name][0] | json.loads(changed)
        # Imported by what needs it alone: every process of the tests reads this file, and only one runs it.
        return config, getattr(import_module("diffusers"), name)(**config).state_dict()


def saved(folder: Path, name: str = "AutoencoderKL", dtype: torch.dtype = torch.float32, **changed: object) -> Path:
    """A folder as the library writes it."""
    config, weights = made(name, json.dumps(changed))
    save_file({key: t.to(dtype) for key, t in weights.items()}, folder / "diffusion_pytorch_model.safetensors")
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
def test_every_class_is_recognised_and_keeps_the_contract(
    name: str, keeps_the_contract: Callable[..., None], tmp_path: Path
) -> None:
    folder = saved(tmp_path, name)
    before = torch.random.get_rng_state()
    vae = opened(folder, name, dtype=torch.float64)
    assert torch.equal(torch.random.get_rng_state(), before)
    _, shape, latent = TINY[name]
    assert vae.input_shape == shape and vae.range == (-1, 1) and vae.prior.mean.shape == (1, *latent)
    keeps_the_contract(vae, inputs(name, 2, torch.float64), steps=name == "VQModel")  # whose codes are steps


@pytest.mark.parametrize(
    ("name", "row", "checks"),
    [
        ("AutoencoderKL", "Gaussian", ALL),
        ("AutoencoderTiny", "a point", ALL),
        ("VQModel", "codes", ("margin", "noise", "weights")),  # otherwise a point
    ],
)
def test_every_check_goes_as_the_table_says(
    name: str, row: str, checks: tuple[str, ...], goes_as_the_table_says: Callable[..., None], tmp_path: Path
) -> None:
    model = open_model(saved(tmp_path, name, **FEWER[name]), options={"input_shape": [3, 4, 4]})
    goes_as_the_table_says(f"`diffusers`, {row}", model, ("certified",), checks)


def test_models_of_the_same_types_go_as_others(table: Mapping[str, dict[str, object]]) -> None:
    assert table["`ldm`"] == table["`diffusers`, Gaussian"]
    point = table["`diffusers`, a point"]
    assert {**table["`diffusers`, codes"], "margin": point["margin"]} == point
    apart = {"margin": point["margin"]}  # it has a bottleneck with group normalisation
    assert {**table["`taesd`"], **apart} == point


# --- posteriors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "theirs"), [("AutoencoderOobleck", "audio"), ("AutoencoderKLLTXVideo", "video")])
def test_the_kl_is_that_of_draws_where_the_librarys_is_not(name: str, theirs: str, tmp_path: Path) -> None:
    vae = opened(saved(tmp_path, name), name, dtype=torch.float64)
    x = inputs(name, 2, torch.float64)
    with torch.no_grad():
        q, other = vae.encode(x[:1]), vae.encode(0.3 * x[1:])
        (a,), (b,) = (vae.model.encode(part, return_dict=False) for part in (x[:1], 0.3 * x[1:]))
    torch.testing.assert_close(q.stddev, a.std, rtol=1e-9, atol=0)
    z = q.sample(
        torch.randn((2000, 1, *q.noise_shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    log_ratio = torch.stack([q.log_prob(one) - other.log_prob(one) for one in z]).squeeze(1)
    error = 5 * float(log_ratio.std()) / math.sqrt(len(z))
    exact = float(q.kl(other))
    assert abs(float(log_ratio.mean()) - exact) < error
    their_kl = a.kl(b)
    assert float((their_kl.sum() - exact).abs()) > error if theirs == "audio" else their_kl.shape != (1,)


def test_log_variances_are_clamped_as_the_library_clamps_them_and_doctor_counts_how_many(tmp_path: Path) -> None:
    file = saved(tmp_path) / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["quant_conv.bias"][4] = -500.0
    save_file(tensors, file)
    q = opened(tmp_path).encode(inputs("AutoencoderKL"))
    assert bool((q.log_stddev[:, 0] == -15).all()) and bool((q.log_stddev[:, 1:] > -15).all())


def test_estimates_and_starts_of_attacks_take_the_second_derivatives_of_attention(tmp_path: Path) -> None:
    vae = opened(saved(tmp_path), dtype=torch.float64, input_shape=[3, 8, 8])
    x, rows = 0.9 * inputs("AutoencoderKL", 1, torch.float64)[..., :8, :8], RowBatches(1)
    exact, free = (jacobian_norms(vae, x, rows, items=[0], seed=0, exact=exact) for exact in (True, False))
    torch.testing.assert_close(free.spectral, exact.spectral, rtol=1e-3, atol=0)
    noise = torch.ones(1, 1, 4, 4, 4, dtype=x.dtype)
    _, values = pullback_directions(lambda x, _item: vae.encode(x).mean, x, noise, rows)
    torch.testing.assert_close(values[:, 0], exact.spectral, rtol=0.1, atol=0)


# --- what a folder may hold --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_and_said(dtype: torch.dtype, tmp_path: Path) -> None:
    model = open_model(saved(tmp_path, dtype=dtype))
    assert next(model.vae.parameters()).dtype == torch.float32  # type: ignore[attr-defined]
    assert f"weights are stored in {str(dtype)[6:]}, and raised to what is computed in" in model.notes
    assert "--option stddev=S gives another" in model.notes[0]


def test_eight_bits_are_refused(tmp_path: Path) -> None:
    text = refused(CheckpointError, lambda: opened(saved(tmp_path, dtype=torch.float8_e4m3fn)))
    assert "is a tensor of another kind (strided, float8_e4m3fn on cpu)" in text


def test_names_of_2022_are_read(tmp_path: Path) -> None:
    file = saved(tmp_path) / "diffusion_pytorch_model.safetensors"
    x = inputs("AutoencoderKL")
    expected = opened(tmp_path).encode(x).mean
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    now = "|".join(map(re.escape, old))
    save_file({re.sub(f"({now})(?=[.])", lambda m: old[m[1]], k): t for k, t in load_file(file).items()}, file)
    assert "encoder.mid_block.attentions.0.query.weight" in load_file(file)
    assert torch.equal(opened(tmp_path).encode(x).mean, expected)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"_class_name": "AutoencoderTiny"}, CheckpointError, "does not fit this adapter (missing: encoder.layers.0."),
        ({"latent_channels": 8}, CheckpointError, "of another shape: encoder.conv_out.weight (expected 16x16x3x3"),
        ({"block_out_channels": [8, 10]}, AdapterError, "describes no whole AutoencoderKL"),
        (
            {"_class_name": "AutoencoderKLL"},
            AdapterError,
            "'AutoencoderKLL' (did you mean 'AutoencoderKL'?), where one",
        ),
        ({"latent_channels": 10**8}, CheckpointError, "of another shape: encoder.conv_out.weight"),  # 115 GB
        ({"layers_per_block": 10**6}, AdapterError, "tells of 1,000,000 layers (layers_per_block), but there are"),
        ({"sample_size": -4}, AdapterError, "AutoencoderKL takes no inputs of 3x-4x-4"),
        (
            {"scaling_factor": "x"},
            AdapterError,
            "states no numbers by which latents are scaled: {'scaling_factor': 'x'}",
        ),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}, AdapterError, "states no numbers by which"),
        ({"latents_mean": [0.0] * 4, "latents_std": [0.0] * 4}, AdapterError, "states no numbers by which"),
        ({"_class_name": ["x"]}, AdapterError, "does not say what it is; name one with --adapter"),
    ],
)
def test_a_config_that_lies_is_told_in_one_sentence(
    changed: dict[str, object], error: type[Exception], words: str, tmp_path: Path
) -> None:
    config = saved(tmp_path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    known = changed.get("_class_name") in (None, "AutoencoderTiny")
    adapter = None if known or not isinstance(changed.get("_class_name"), str) else "diffusers"
    assert words in refused(error, lambda: vaeaudit.load(tmp_path, adapter))


def sharded(folder: Path) -> dict[str, str]:
    """A folder with its weights in two files and their index; returns which tensor is where."""
    file = saved(folder) / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    file.unlink()
    names = [f"{file.stem}-0000{k}-of-00002.safetensors" for k in (1, 2)]
    where = {name: names[name.startswith("decoder")] for name in tensors}
    for name in names:
        save_file({key: tensors[key] for key in tensors if where[key] == name}, folder / name)
    (folder / f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


def test_weights_in_several_files_are_read_by_their_index(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole, x = opened(saved(tmp_path / "whole")), inputs("AutoencoderKL")
    where = sharded(tmp_path)
    model = open_model(tmp_path)
    assert torch.equal(model.vae.decode(model.vae.encode(x).mean).mean, whole.decode(whole.encode(x).mean).mean)
    before = model.sha256
    (tmp_path / where["decoder.conv_in.bias"]).touch()
    assert open_model(tmp_path).sha256 == before
    tensors = load_file(tmp_path / where["decoder.conv_in.bias"])
    save_file({name: 2 * t for name, t in tensors.items()}, tmp_path / where["decoder.conv_in.bias"])
    assert open_model(tmp_path).sha256 != before


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("../vae.safetensors", "names '../vae.safetensors', where a safetensors file of its own folder was expected"),
        ("gone.safetensors", "names 3 files, of which gone.safetensors is missing; fetch the rest"),
        ("encoder.pt", "names 'encoder.pt', where a safetensors file of its own folder was expected"),
        ("diffusion_pytorch_model-00001-of-00002.safetensors", "holds decoder.conv_in.bias, which it does not"),
        (None, "is no index of weights"),
    ],
)
def test_an_index_that_is_wrong_is_told_in_one_sentence(file: str | None, words: str, tmp_path: Path) -> None:
    where: dict[str, object] = dict(sharded(tmp_path))
    where["decoder.conv_in.bias"] = file
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert words in refused(CheckpointError, lambda: vaeaudit.load(tmp_path))


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    text = refused(AdapterError, lambda: opened(saved_config(tmp_path)))
    assert text.endswith("pip install 'vaeaudit[diffusers]'")


def test_the_library_is_imported_where_tensors_have_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, kinds = import_module("diffusers"), list[str]()

    class Library:
        def __getattr__(self, name: str) -> object:  # which is where its own lazy modules are imported
            kinds.append(torch.get_default_device().type)
            return getattr(library, name)

    monkeypatch.setitem(sys.modules, "diffusers", Library())  # type: ignore[arg-type]
    opened(saved(tmp_path))
    assert kinds[0] == "cpu"


def saved_config(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **PLAIN}))
    save_file({"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3)}, folder / "vae.safetensors")
    return folder


def test_the_same_weights_serve_inputs_of_another_size(tmp_path: Path) -> None:
    vae = vaeaudit.load(saved(tmp_path))
    assert vae.input_shape == (3, 32, 32)  # sample_size
    other = vae.resized((3, 16, 24))  # type: ignore[attr-defined]
    x = inputs("AutoencoderKL")[..., :16, :24]
    assert other.input_shape == (3, 16, 24) and other.prior.mean.shape == (1, 4, 8, 12)
    assert torch.equal(other.encode(x).mean, vae.encode(x).mean)
    assert vae.input_shape == (3, 32, 32)
    assert vae.resized((1, 16, 16)) is None and vae.resized((3, 2, 16, 16)) is None  # type: ignore[attr-defined]
    text = refused(AdapterError, lambda: vae.resized((3, 17, 16)))  # type: ignore[attr-defined]
    assert text.startswith("AutoencoderKL gives 3x16x16 back for inputs of 3x17x16")
    text = refused(AdapterError, lambda: vaeaudit.load(tmp_path, input_shape=[1, 28, 28]))
    assert "the model takes 3 channels" in text


# --- the scale of latents ----------------------------------------------------------------------------------------


def latents(mean: float, stddev: float, spread: float) -> vaeaudit.DiagonalGaussian:
    z = mean + stddev * torch.randn(40, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return vaeaudit.DiagonalGaussian(z, torch.full_like(z, math.log(spread)))


@pytest.mark.parametrize(
    ("mean", "stddev", "spread", "verdict", "why"),
    [
        (0.5, 5.0, 0.1, Verdict.PASS, ""),
        (0.0, 1.0, 0.01, Verdict.UNSURE, "on the other side of the normalisation?"),
        (0.0, 0.1, 1.0, Verdict.UNSURE, "most of it is noise, as of weights that were drawn at random"),
        (0.0, 90.0, 0.1, Verdict.UNSURE, "random or damaged weights"),
        (9.0, 5.0, 0.1, Verdict.UNSURE, "random or damaged weights"),
    ],
)
def test_latents_are_held_against_the_scale_that_is_stated(
    mean: float, stddev: float, spread: float, verdict: Verdict, why: str
) -> None:
    stated = LatentScale((0.5,), (0.2,), "scaling_factor 0.2")
    found = latent_scale.finding(latent_scale.moments(latents(mean, stddev, spread)), stated)
    assert found.verdict is verdict and why in found.message and "by scaling_factor 0.2" in found.message


def test_moments_of_latents_are_those_of_draws() -> None:
    q = latents(1.0, 2.0, 0.5)
    z = q.sample(torch.randn((50, 40, 4, 8, 8), generator=torch.Generator().manual_seed(1)))
    message = latent_scale.finding(latent_scale.moments(q), None).message
    at, deviation = (float(text) for text in re.findall(r"(?:mean|deviation) ([\d.]+)", message))
    assert at == pytest.approx(float(z.mean()), abs=0.02) and deviation == pytest.approx(float(z.std()), abs=0.02)
    (share,) = re.findall(r"of whose square ([\d.]+)%", message)
    assert float(share) == pytest.approx(100 * 0.25 / 4.25, abs=0.1)


@pytest.mark.parametrize(
    ("name", "changed", "shift", "scale"),
    [
        ("AutoencoderKL", {"scaling_factor": 0.36, "shift_factor": 0.1}, (0.1,), (0.36,)),
        ("AutoencoderKLWan", {"latents_mean": [1] * 4, "latents_std": [2.0] * 4}, (1.0,) * 4, (0.5,) * 4),
        ("AutoencoderKLFlux2", {}, (0.0,) * 4, pytest.approx((1.0,) * 4, abs=1e-3)),
        ("AutoencoderKLCosmos", {"latents_mean": [1.0, 3] * 4, "latents_std": [2.0] * 8}, (2.0,) * 4, (0.5,) * 4),
    ],
)
def test_the_scale_is_that_of_the_config_or_of_the_tensors(
    name: str, changed: dict[str, object], shift: object, scale: object, tmp_path: Path
) -> None:
    stated = opened(saved(tmp_path, name, **changed), name).latent_scale
    assert stated.shift == shift and stated.scale == scale


# --- one file ------------------------------------------------------------------------------------------------------


def as_ldm(tensors: dict[str, Tensor], levels: int = 2) -> dict[str, Tensor]:
    """The library's names turned into those of latent diffusion."""
    found = {}
    for name, tensor in tensors.items():
        new = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
        new = new.replace("down_blocks.", "down.").replace(".resnets.", ".block.").replace("samplers.0.", "sample.")
        new = new.replace("mid_block.block.0", "mid.block_1").replace("mid_block.block.1", "mid.block_2")
        new = new.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm", "norm")
        new = new.replace("to_out.0", "proj_out").replace("attn_1.to_", "attn_1.").replace("conv_norm_out", "norm_out")
        new = new.replace("conv_shortcut", "nin_shortcut")
        linear = ".attn_1." in new and tensor.ndim == 2
        found[new] = tensor[..., None, None].clone() if linear else tensor
    return found


def test_a_file_of_latent_diffusion_is_the_librarys_model(
    goes_as_the_table_says: Callable[..., None], tmp_path: Path
) -> None:
    tensors, x = load_file(saved(tmp_path) / "diffusion_pytorch_model.safetensors"), inputs("AutoencoderKL")
    library = opened(tmp_path)
    other = tmp_path / "apart"
    other.mkdir()
    bare = as_ldm(tensors)
    more = {"conditioner.embedders.0.weight": torch.full((2,), math.nan), "model.diffusion_model.out": torch.ones(2)}
    whole = {f"first_stage_model.{name}": t for name, t in bare.items()} | more
    save_file(bare, other / "vae.safetensors")
    save_file(whole, other / "sdxl.safetensors")
    save_file(whole | {f"vae.{name}": t.clone() for name, t in bare.items()}, other / "two.safetensors")
    model = open_model(other / "vae.safetensors", options={"norm_num_groups": 4, "input_shape": [3, 8, 8]})
    goes_as_the_table_says("`ldm`", model, checks=("noise", "latents", "weights"))
    for file, scale in (("vae", None), ("sdxl", 0.13025)):
        model = open_model(other / f"{file}.safetensors", options={"norm_num_groups": 4, "input_shape": [3, 32, 32]})
        q, stated = model.vae.encode(x), model.vae.latent_scale  # type: ignore[attr-defined]
        assert model.adapter.name == "ldm" and model.checkpoint.key == ("first_stage_model" if scale else None)
        assert torch.equal(q.kl(model.vae.prior), library.encode(x).kl(library.prior))
        assert torch.equal(model.vae.decode(q.mean).mean, library.decode(q.mean).mean)
        assert (stated.scale == (scale,)) if scale else ("sd and sdxl" in model.notes[-1] and stated is None)
    text = refused(CheckpointError, lambda: vaeaudit.load(other / "two.safetensors", norm_num_groups=4))
    assert text.endswith("(under 'first_stage_model' and under 'vae'); name one, as in two.safetensors#vae")
    assert vaeaudit.load(f"{other / 'two.safetensors'}#vae", norm_num_groups=4).range == (-1, 1)
    far = bare | {"encoder.down.999999999999.block.0.conv1.weight": torch.zeros(8, 8, 3, 3)}
    save_file(far, other / "far.safetensors")  # is told without counting there
    assert "not expected" in refused(
        CheckpointError, lambda: vaeaudit.load(other / "far.safetensors", norm_num_groups=4)
    )
    text = refused(AdapterError, lambda: vaeaudit.load(other / "vae.safetensors"))
    assert text.startswith("8 channels cannot be normalised in 32 groups; say in how many with --option norm_num")
    save_file({**bare, "encoder.conv_in.bias": torch.full((8,), math.nan)}, other / "vae.safetensors")
    assert "NaN" in refused(NonFiniteError, lambda: vaeaudit.load(other / "vae.safetensors", norm_num_groups=4))


# --- pairs of files ------------------------------------------------------------------------------------------------


def pair(folder: Path) -> Path:
    """An encoder that halves sides once and its decoder, four channels wide, with a bottleneck in the last block."""
    generator = torch.Generator().manual_seed(0)

    def layer(name: str, *shape: int, bias: bool = True) -> dict[str, Tensor]:
        weight = {f"{name}.weight": 0.3 * torch.randn(shape, generator=generator)}
        return weight | ({f"{name}.bias": 0.1 * torch.randn(shape[0], generator=generator)} if bias else {})

    def block(at: int) -> dict[str, Tensor]:
        return {key: t for k in (0, 2, 4) for key, t in layer(f"{at}.conv.{k}", 4, 4, 3, 3).items()}

    pool = layer("3.pool.0", 16, 4, 1, 1, bias=False) | layer("3.pool.3", 4, 16, 1, 1, bias=False)
    pool |= {"3.pool.1.weight": torch.ones(16), "3.pool.1.bias": torch.zeros(16)}
    encoder = layer("0", 4, 3, 3, 3) | block(1) | layer("2", 4, 4, 3, 3, bias=False) | block(3) | pool
    torch.save(encoder | layer("4", 2, 4, 3, 3), folder / "tiny_encoder.pth")
    decoder = layer("1", 4, 2, 3, 3) | block(3) | pool | layer("5", 4, 4, 3, 3, bias=False) | block(6)
    torch.save(decoder | layer("7", 3, 4, 3, 3), folder / "tiny_decoder.pth")
    return folder


def test_a_pair_of_files_is_opened_by_either(
    keeps_the_contract: Callable[..., None], goes_as_the_table_says: Callable[..., None], tmp_path: Path
) -> None:
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    models = [open_model(pair(tmp_path) / f"tiny_{part}.pth") for part in ("encoder", "decoder")]
    keeps_the_contract(
        vaeaudit.load(tmp_path / "tiny_encoder.pth", dtype=torch.float64, input_shape=[3, 8, 8]),
        x[..., :8, :8].double(),
    )
    small = open_model(tmp_path / "tiny_encoder.pth", options={"input_shape": [3, 8, 8]})
    goes_as_the_table_says("`taesd`", small, ("certified",), ("margin", "noise", "latents", "weights"))
    first, second = (model.vae.resized((3, 16, 16)) for model in models)  # type: ignore[attr-defined]
    assert [model.adapter.name for model in models] == ["taesd"] * 2
    check_contract(first, x)
    assert first.range == (0, 1) and first.prior.mean.shape == (1, 2, 8, 8)
    z = first.encode(x).mean
    assert torch.equal(second.decode(z).mean, first.decode(z).mean)
    assert len(models[0].files) == 2
    assert open_model(tmp_path).sha256 == models[0].sha256, "a folder of one pair is its encoder"
    content, _ = converted(models[1], tmp_path / "one" / "tiny.safetensors")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "tiny.safetensors").write_bytes(content)
    assert open_model(tmp_path / "one").state_sha256 == models[0].state_sha256
    decoder = torch.load(tmp_path / "tiny_decoder.pth")
    torch.save(decoder | {"1.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "tiny_decoder.pth")
    text = refused(CheckpointError, lambda: vaeaudit.load(tmp_path))
    assert "gives 2 channels of latents and the decoder takes 3, so that they are no pair" in text
    (tmp_path / "tiny_decoder.pth").unlink()
    text = refused(CheckpointError, lambda: vaeaudit.load(tmp_path / "tiny_encoder.pth", "taesd"))
    assert "there is no checkpoint at" in text and "tiny_decoder.pth" in text


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [("1.conv.2.weight", None, "1.conv.2.weight"), ("3.pool.0.weight", (3, 4, 1, 1), "groups")],
)
def test_a_pair_with_a_block_that_is_none_is_told(
    name: str, shape: tuple[int, ...] | None, said: str, tmp_path: Path
) -> None:
    tensors = torch.load(pair(tmp_path) / "tiny_encoder.pth")
    without = {key: t for key, t in tensors.items() if key != name}
    torch.save(without if shape is None else without | {name: torch.zeros(shape)}, tmp_path / "tiny_encoder.pth")
    text = refused(CheckpointError, lambda: vaeaudit.load(tmp_path / "tiny_encoder.pth"))
    assert "the pair's tensors are not those of a tiny autoencoder" in text and said in text


TRAINED = Path(__file__).parents[3] / "shared" / "checkpoints" / "taesd" / "taef2_encoder.pth"


@pytest.mark.skipif(not TRAINED.is_file(), reason="the trained checkpoints of ../shared are not here")
def test_a_trained_pair_reconstructs_photographs() -> None:
    images = pytest.importorskip("sklearn.datasets").load_sample_images().images
    x = torch.stack([torch.from_numpy(image[100:228, 300:428].copy()).permute(2, 0, 1) / 255 for image in images])
    vae = vaeaudit.load(TRAINED, input_shape=[3, 128, 128])
    with torch.no_grad():
        error = (vae.decode(vae.encode(x).mean).mean - x).square().mean((1, 2, 3))
    assert bool((error < 0.1 * x.var((1, 2, 3))).all())
