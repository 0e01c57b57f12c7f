"""L2 norms of encoders and decoders: exact, of files of any size, and honest about what makes them mean little."""

import json
import math
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from vaeaudit.checks.weights import spectral
from vaeaudit.checks.weights.measure import PARTS, WeightsResult, assign, weights
from vaeaudit.checks.weights.spectral import GRAM, LANCZOS, measured_norms
from vaeaudit.checks.weights.stored import read_weights, weight_parts
from vaeaudit.checks.weights.summarise import summarise_weights
from vaeaudit.errors import AdapterError, CheckpointError, ConfigError, NonFiniteError, TrustError
from vaeaudit.model import blocks
from vaeaudit.model.adapters import Adapter, find_adapter
from vaeaudit.model.blocks import Weight, row_blocks
from vaeaudit.model.registry import open_model
from vaeaudit.progress import Progress

ROOT = Path(__file__).parents[3]
SHARED = Path(__file__).parents[4] / "shared"
Tensors = dict[str, Tensor]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def model() -> Tensors:
    return {
        "encoder.conv.weight": drawn(4, 3, 2, 2, seed=1),
        "encoder.conv.bias": drawn(4, seed=2),
        "encoder.out.weight": drawn(6, 4, seed=3),
        "decoder.in.weight": drawn(4, 3, seed=4),
        "decoder.in.bias": drawn(4, seed=5),
    }


def part(result: WeightsResult, name: str) -> Any:
    return next(p for p in result.parts if p.name == name)


def of(result: WeightsResult, name: str) -> Any:
    return next(t for t in result.tensors if t.name == name)


# Against exact answers


def test_norms_are_the_oracles(oracle: dict[str, Any]) -> None:
    case = oracle["l2"]
    stored = {f"encoder.{i}.weight": torch.tensor(w, dtype=torch.float64) for i, w in enumerate(case["weights"]["enc"])}
    biases = case["weights"]["enc_bias"]
    stored |= {f"encoder.{i}.bias": torch.tensor(b, dtype=torch.float64) for i, b in enumerate(biases)}
    stored["decoder.0.weight"] = torch.ones(1, 1)
    assert part(weights(stored), "encoder").l2 == pytest.approx(case["l2_weights_only"], rel=1e-12)
    assert part(weights(stored, vectors=True), "encoder").l2 == pytest.approx(case["l2_with_bias"], rel=1e-12)


def test_the_change_is_the_oracles_percentage_of_the_other_models_norm(oracle: dict[str, Any]) -> None:
    for case in oracle["l2"]["rel_change_pct"]:
        first, second = (
            {"encoder.w": torch.full((1, 1), n, dtype=torch.float64), "decoder.w": torch.ones(1, 1)}
            for n in (case["n1"], case["n2"])
        )
        result = weights(second, against=first)
        assert part(result, "encoder").change == pytest.approx(case["pct"], rel=1e-12)
        assert part(result, "decoder").change == 0
        measured = summarise_weights(result)["weights.encoder.l2.change"]
        assert (measured.value, measured.unit) == (pytest.approx(case["pct"], rel=1e-12), "%")


def test_norms_and_shares_are_those_of_the_tensors(model: Tensors) -> None:
    result = weights(model)
    for name in ("encoder.conv.weight", "encoder.out.weight", "decoder.in.weight"):
        found = of(result, name)
        assert found.l2 == pytest.approx(float(np.linalg.norm(model[name].numpy().ravel())), rel=1e-14)
        assert found.spectral == pytest.approx(float(torch.linalg.matrix_norm(model[name].flatten(1), 2)), rel=1e-12)
    whole = torch.cat([model["encoder.conv.weight"].flatten(), model["encoder.out.weight"].flatten()])
    encoder = part(result, "encoder")
    assert encoder.l2 == pytest.approx(float(whole.norm()), rel=1e-14)
    assert (encoder.tensors, encoder.numbers) == (2, 72)
    assert sum(t.share for t in result.tensors if t.part == "encoder") == pytest.approx(1, rel=1e-14)
    assert of(result, "encoder.out.weight").share == pytest.approx(
        float(model["encoder.out.weight"].norm()) ** 2 / encoder.l2**2
    )
    assert result.left_out == ("encoder.conv.bias", "decoder.in.bias")
    assert [t.name for t in result.tensors] == [name for name in model if "bias" not in name]


def test_vectors_count_where_that_is_asked_and_have_no_spectral_norm(model: Tensors) -> None:
    model["encoder.bn.running_mean"], model["encoder.bn.num_batches_tracked"] = torch.ones(4), torch.tensor(7)
    result = weights(model, vectors=True)
    assert of(result, "encoder.conv.bias").spectral is None
    assert result.left_out == ("encoder.bn.running_mean", "encoder.bn.num_batches_tracked")
    squares = sum(float(model[name].square().sum()) for name in ("decoder.in.weight", "decoder.in.bias"))
    assert part(result, "decoder").l2 == pytest.approx(math.sqrt(squares), rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float64_and_told(dtype: torch.dtype) -> None:
    stored = {"encoder.w": torch.full((300, 300), 300.0, dtype=dtype), "decoder.w": torch.ones(2, 2)}
    result = weights(stored)
    assert part(result, "encoder").l2 == pytest.approx(300 * float(stored["encoder.w"][0, 0]), rel=1e-14)  # no overflow
    assert "this model stores 1 of 2 tensors in half precision (encoder.w)" in result.warnings[0]
    full = {name: tensor.float() for name, tensor in stored.items()}
    compared = weights(full, against=stored)
    assert part(compared, "encoder").change == pytest.approx(0, abs=1e-12)
    assert "the other model stores 1 of 2" in compared.warnings[0]


# Spectral norms by each method


@pytest.mark.parametrize(
    ("method", "shape"),
    [
        *((GRAM, shape) for shape in ((7, 7), (60, 5), (5, 60), (1, 9), (9, 1), (40, 33))),
        *((LANCZOS, shape) for shape in ((7, 7), (60, 5), (5, 60), (40, 33))),
    ],
)
def test_the_two_norm_is_that_of_the_svd(shape: tuple[int, int], method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    A = drawn(*shape)
    monkeypatch.setattr(blocks, "MOST_NUMBERS", 64)
    if method == LANCZOS:
        monkeypatch.setattr(spectral, "_GRAM", 4)
        monkeypatch.setattr(spectral, "_HELD", 300)  # some are held and some are not
    found = measured_norms(shape, lambda rows, columns: A[rows, columns], True)
    assert found.method == method
    assert found.spectral == pytest.approx(float(torch.linalg.matrix_norm(A, 2)), rel=1e-9)
    assert found.l2 == pytest.approx(float(A.norm()), rel=1e-14)


def test_lanczos_finds_the_norm_of_equal_singular_values_and_is_the_same_every_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spectral, "_GRAM", 100)
    Q = torch.linalg.qr(drawn(300, 300)).Q.float()
    found = [measured_norms((300, 300), lambda rows, columns: Q[rows, columns], True) for _ in range(2)]
    assert found[0].method == LANCZOS
    assert found[0].spectral == pytest.approx(1, rel=1e-5)
    assert found[0] == found[1]


@pytest.mark.parametrize("shape", [(3, 4), (100, 3), (3, 100), (1, 55), (0, 4), (4, 0)])
def test_parts_cover_a_matrix_once_and_in_order(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MOST_NUMBERS", 10)
    A = torch.arange(math.prod(shape)).reshape(shape)
    parts = [A[part].flatten() for part in row_blocks(shape)]
    assert torch.equal(torch.cat([torch.zeros(0, dtype=A.dtype), *parts]), A.flatten())
    assert all(0 < len(part) <= 10 for part in parts)


@pytest.mark.parametrize("largest", [1e200, 1e-200, 1e-307, 5e-324])
@pytest.mark.parametrize("method", [GRAM, LANCZOS])
def test_squares_that_float64_cannot_hold_change_nothing(
    largest: float, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == LANCZOS:
        monkeypatch.setattr(spectral, "_GRAM", 4)
    A = torch.full((7, 9), largest, dtype=torch.float64)  # of rank one: both norms are sqrt(63) times the entry
    found = measured_norms((7, 9), lambda rows, columns: A[rows, columns], True)
    assert found.method == method
    assert found.spectral is not None
    assert found.l2 / largest == pytest.approx(math.sqrt(63), rel=1e-9 if largest > 1e-300 else 0.02)
    assert found.spectral / largest == pytest.approx(math.sqrt(63), rel=1e-9 if largest > 1e-300 else 0.02)


def test_norms_of_parts_hold_huge_weights_and_say_when_float64_cannot() -> None:
    huge = {"encoder.a": 1e200 * drawn(4, 3), "encoder.b": 1e200 * drawn(3, 3, seed=1), "decoder.w": torch.ones(2, 2)}
    result = weights(huge, against={name: 0.5 * tensor for name, tensor in huge.items()})
    squares = float(drawn(4, 3).square().sum()), float(drawn(3, 3, seed=1).square().sum())
    assert part(result, "encoder").l2 == pytest.approx(1e200 * math.sqrt(sum(squares)), rel=1e-12)
    assert part(result, "encoder").change == pytest.approx(100, rel=1e-12)
    assert of(result, "encoder.a").share == pytest.approx(squares[0] / sum(squares), rel=1e-12)
    with pytest.raises(NonFiniteError, match=r"the norm of encoder\.a is larger than any number of float64"):
        weights({**huge, "encoder.a": torch.full((9, 9), 1e308, dtype=torch.float64)})


# From files


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_file_has_the_norms_of_its_tensors(model: Tensors, tmp_path: Path, dtype: torch.dtype) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in model.items()}
    stored["encoder.steps"], stored["decoder.none"] = torch.arange(6).reshape(2, 3), torch.zeros(0, 3, dtype=dtype)
    stored["encoder.scale"] = torch.tensor(2.0, dtype=dtype)
    save_file(stored, tmp_path / "vae.safetensors")
    torch.save({"state_dict": stored}, tmp_path / "vae.pt")
    expected = weights(stored, vectors=True)
    for name in ("vae.safetensors", "vae.pt"):
        found = weights(read_weights(tmp_path / name), vectors=True)
        assert {t.name: (t.l2, t.spectral, t.shape, t.dtype) for t in found.tensors} == {
            t.name: (t.l2, t.spectral, t.shape, t.dtype) for t in expected.tensors
        }
        assert [p.l2 for p in found.parts] == pytest.approx([p.l2 for p in expected.parts], rel=1e-15)
    read = read_weights(tmp_path / "vae.safetensors")
    for name, tensor in stored.items():
        rows, columns = blocks.matrix_shape(tuple(tensor.shape))
        whole = read[name].block(slice(0, rows), slice(0, columns))
        assert torch.equal(whole.flatten(), tensor.flatten())


BIG = """
import sys
from pathlib import Path
from vaeaudit.checks.weights.measure import weights
from vaeaudit.checks.weights.stored import read_weights

def peak():  # of this program alone: getrusage counts the one that started it as well
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

before = peak()
result = weights(read_weights(sys.argv[1]))
print(peak() - before, result.parts[0].l2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak of memory")
def test_a_large_file_streams(tmp_path: Path) -> None:
    header = {
        "encoder.tall": {"dtype": "F32", "shape": [50_000, 100], "data_offsets": [0, 20_000_000]},
        "decoder.wide": {"dtype": "F32", "shape": [100, 250_000], "data_offsets": [20_000_000, 120_000_000]},
    }
    text = json.dumps(header).encode()
    with (tmp_path / "vae.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.write(np.full(100, 3, "<f4").tobytes())
        stream.truncate(8 + len(text) + 120_000_000)
    done = subprocess.run(
        [sys.executable, "-c", BIG, str(tmp_path / "vae.safetensors")],
        capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    grown, l2 = done.stdout.split()
    assert float(l2) == pytest.approx(30)
    assert int(grown) < 80e6  # and the file has 120e6


def test_reading_runs_no_code_of_the_model_and_tells_what_is_wrong(tmp_path: Path, model: Tensors) -> None:
    save_file(model, tmp_path / "vae.safetensors")
    whole = (tmp_path / "vae.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-8])
    (tmp_path / "none.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    torch.save(nn.Linear(2, 2), tmp_path / "pickled.pt")
    save_file({"encoder.w": torch.ones(2, 2).to(torch.float8_e4m3fn)}, tmp_path / "eight.safetensors")
    for name, kind, message in (
        ("cut.safetensors", CheckpointError, "not a whole safetensors file"),
        ("none.safetensors", CheckpointError, "holds no tensors"),
        ("eight.safetensors", CheckpointError, r"encoder.w is a tensor of another kind \(F8_E4M3\)"),
        ("absent.safetensors", CheckpointError, "there is no checkpoint at"),
        ("pickled.pt", TrustError, "could run code"),
    ):
        with pytest.raises(kind, match=message):
            read_weights(tmp_path / name)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "vae.safetensors").write_bytes(whole)
    assert list(read_weights(alone)) == list(read_weights(tmp_path / "vae.safetensors"))


def test_weights_that_are_not_finite_have_no_norm(tmp_path: Path, model: Tensors) -> None:
    model["encoder.out.weight"][1, 2], model["encoder.out.weight"][0, 0] = torch.nan, torch.inf
    save_file(model, tmp_path / "vae.safetensors")
    for tensors in (model, read_weights(tmp_path / "vae.safetensors")):
        with pytest.raises(NonFiniteError, match=r"encoder.out.weight holds 2 NaN or infinite values of 24"):
            weights(tensors)


@pytest.mark.parametrize("file", ["vae.safetensors", "vae.pt"])
def test_a_model_with_a_bias_that_is_not_finite_has_no_norms_in_any_form(
    file: str, tmp_path: Path, model: Tensors
) -> None:
    bias = next(name for name in model if name.endswith("bias"))
    model[bias][0] = torch.nan
    (save_file if file.endswith("safetensors") else torch.save)(model, tmp_path / file)
    with pytest.raises(NonFiniteError, match=rf"{bias} holds 1 NaN or infinite value of "):
        weights(read_weights(tmp_path / file))


# Which tensors are encoder and decoder


def test_adapters_say_which_tensors_are_which() -> None:
    for name in ("mlp", "burgess"):
        assert weight_parts(find_adapter(name)) == PARTS


def test_an_adapter_of_ones_own_says_it_with_prefixes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        'WEIGHT_PARTS = {"encoder": ("features", "fc_mean"), "decoder": ("features_to_img",), "neither": ("judge.",)}\n'
        "def open(checkpoint, config): ...\n"
    )
    parts = weight_parts(find_adapter(f"{tmp_path / 'mine.py'}:open"))
    names = ["features.0.weight", "features_to_img.weight", "fc_mean.weight", "judge.0.weight"]
    assert [*assign(names, parts).values()] == ["encoder", "decoder", "encoder", "neither"]
    result = weights({name: torch.ones(2, 2) for name in names}, parts=parts)
    assert (part(result, "encoder").l2, part(result, "decoder").l2) == (pytest.approx(8**0.5), pytest.approx(2))
    assert result.left_out == ("judge.0.weight",)


@pytest.mark.parametrize(
    "said", [{"encoder": ("a",)}, {"encoder": "a", "decoder": ("b",)}, ["encoder"], {"encoder": (1,), "decoder": ()}]
)
def test_an_adapter_that_says_something_else_is_told(said: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_nothing(*_: object) -> Any: ...

    monkeypatch.setattr(sys.modules[__name__], "WEIGHT_PARTS", said, raising=False)
    with pytest.raises(AdapterError, match=r"WEIGHT_PARTS of adapter 'mine' is .* where prefixes of tensor names"):
        weight_parts(Adapter("mine", "", None, open_nothing))


def test_names_that_fit_no_part_and_parts_without_weights_are_told(model: Tensors) -> None:
    with pytest.raises(ConfigError, match=re.escape("encoder or the decoder: head.weight; known")):
        weights({**model, "head.weight": torch.ones(1, 1), "head.bias": torch.ones(1)})
    with pytest.raises(ConfigError, match="no tensor of the decoder holds weights"):
        weights({"encoder.w": torch.ones(2, 2), "decoder.b": torch.ones(2)})
    with pytest.raises(ConfigError, match="parts of a model must be encoder and decoder"):
        weights(model, parts={"encoder": ("encoder.",)})


# Against another model


def test_models_of_another_architecture_are_told_by_their_tensors(model: Tensors) -> None:
    other = {name: tensor for name, tensor in model.items() if name != "encoder.out.weight"}
    other |= {"encoder.last.weight": torch.ones(6, 4), "decoder.in.weight": torch.ones(4, 5)}
    with pytest.raises(ConfigError) as caught:
        weights(model, against=other)
    assert (
        "missing there: encoder.out.weight; only there: encoder.last.weight; "
        "of another shape: decoder.in.weight (4x3 here, 4x5 there)"
    ) in str(caught.value)


def test_a_change_from_nothing_is_undefined_and_says_so(model: Tensors) -> None:
    nothing = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    result = weights(model, against=nothing)
    encoder = part(result, "encoder")
    assert (encoder.against, encoder.change) == (0, None)
    measured = summarise_weights(result)["weights.encoder.l2.change"]
    assert measured.value is None
    assert "the other model's norm is 0" in measured.estimator
    of_nothing = weights(nothing, against=model)
    assert part(of_nothing, "encoder").change == -100
    assert {t.share for t in of_nothing.tensors} == {None}
    assert {t.spectral for t in of_nothing.tensors} == {0}


def test_twice_the_weights_are_a_change_of_a_hundred_percent(model: Tensors) -> None:
    result = weights({name: 2 * tensor for name, tensor in model.items()}, against=model)
    assert [p.change for p in result.parts] == pytest.approx([100, 100], rel=1e-12)
    assert [t.change for t in result.tensors] == pytest.approx([100] * 3, rel=1e-12)


# What makes a norm mean little


def test_normalisation_makes_a_norm_arbitrary_and_that_is_told() -> None:
    net = nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
            "decoder": nn.Sequential(nn.Conv2d(2, 1, 3), nn.GroupNorm(1, 1)),
        }
    )
    encoder, decoder = weights(net.state_dict()).warnings
    assert "the encoder has batch normalisation (encoder.1)" in encoder
    assert "arbitrary" in encoder
    assert "the decoder has vectors called weight (decoder.1)" in decoder


def test_tied_weights_count_once_in_a_part(tmp_path: Path) -> None:
    W = drawn(5, 5)
    shared = {"encoder.a": W, "encoder.b": W, "decoder.c": W, "decoder.d": W.clone()}
    torch.save(shared, tmp_path / "vae.pt")
    save_file({name: tensor.clone() for name, tensor in shared.items()}, tmp_path / "vae.safetensors")
    for tensors in (shared, read_weights(tmp_path / "vae.pt"), read_weights(tmp_path / "vae.safetensors")):
        result = weights(tensors)
        assert [p.l2 for p in result.parts] == pytest.approx([float(W.norm())] * 2, rel=1e-14)
        found = {t.name: (t.tied_to, t.share) for t in result.tensors}
        assert found == {
            "encoder.a": (None, 1),
            "encoder.b": ("encoder.a", 0),
            "decoder.c": (None, 1),
            "decoder.d": ("decoder.c", 0),
        }
        assert "counted once in a part, as tied weights: " in result.warnings[0]
        assert "encoder.b = encoder.a" in result.warnings[0]
        compared = weights({**tensors, "encoder.b": 2 * W}, against=tensors)
        assert part(compared, "encoder").against == pytest.approx(float(W.norm()), rel=1e-14)
        assert part(compared, "encoder").l2 == pytest.approx(5**0.5 * float(W.norm()), rel=1e-14)


def test_ties_that_a_safetensors_file_notes_are_kept(tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False), nn.Linear(3, 3, bias=False))
    layers[1].weight = layers[0].weight
    net = nn.ModuleDict({"encoder": layers, "decoder": nn.Linear(4, 3, bias=False)})
    net["decoder"].weight = layers[0].weight
    save_model(net, str(tmp_path / "vae.safetensors"), metadata={"adapter": "own"})
    save_file(net["encoder"].state_dict() | {"0.weight": torch.ones(2, 2)}, tmp_path / "x.safetensors", {"0": "1"})
    read, whole = weights(read_weights(tmp_path / "vae.safetensors")), weights(net.state_dict())
    assert {t.name for t in read.tensors} == {t.name for t in whole.tensors} == set(net.state_dict())
    assert [(p.l2, p.tensors, p.numbers) for p in read.parts] == [(p.l2, p.tensors, p.numbers) for p in whole.parts]
    assert part(read, "encoder").tensors == 2
    assert "encoder and decoder share weights" in " ".join(read.warnings)
    assert "0" not in read_weights(tmp_path / "x.safetensors")


def test_weights_that_encoder_and_decoder_share_are_told_and_count_in_both(tmp_path: Path) -> None:
    W, K = drawn(5, 80), drawn(4, 2, 3, 3, seed=1)
    stored = {"encoder.w": W, "encoder.s": drawn(70, 70, seed=2), "encoder.k": K, "decoder.k": K.clone()}
    stored |= {"decoder.w": W.T.contiguous(), "decoder.s": stored["encoder.s"].T.contiguous()}
    save_file(stored, tmp_path / "vae.safetensors")
    for tensors in (stored, read_weights(tmp_path / "vae.safetensors"), {**stored, "decoder.w": W.T}):
        result = weights(tensors)
        (told,) = result.warnings
        assert told.startswith("encoder and decoder share weights, which count in the norm of each: ")
        for pair in ("decoder.k = encoder.k", "decoder.w = encoder.w transposed", "decoder.s = encoder.s transposed"):
            assert pair in told
        assert [p.l2 for p in result.parts] == pytest.approx([part(result, "encoder").l2] * 2, rel=1e-14)
        assert {t.tied_to for t in result.tensors} == {None}
    almost = W.T.clone()
    almost[-1, -1] += 1
    ones = {"encoder.o": torch.ones(3, 3), "decoder.o": torch.ones(3, 3)}
    assert weights({"encoder.w": W, "decoder.w": almost, **ones}).warnings == ()
    assert weights({"encoder.w": W, "decoder.w": W.reshape(80, 5), **ones}).warnings == ()


def reparametrised(name: str) -> nn.Module:
    """A layer under the parametrisation of that name, with weights that its maker would not leave it with."""
    torch.manual_seed(3)
    layers: dict[str, nn.Module] = {
        "linear": nn.Linear(4, 6),
        "square": nn.Linear(5, 5),
        "one row": nn.Linear(4, 1),
        "conv1d": nn.Conv1d(1, 8, 9),
        "conv2d": nn.Conv2d(3, 4, 3),
        "transposed": nn.ConvTranspose2d(6, 3, 3),
        "square transposed": nn.ConvTranspose2d(6, 6, 3),
    }
    kind, _, rest = name.partition(" ")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older forms are what many checkpoints hold
        layer, _, options = rest.partition(", ")
        dim = {"dim": None if options == "dim none" else int(options[-1])} if options else {}
        made = {
            "old-weight": nn.utils.weight_norm,
            "new-weight": nn.utils.parametrizations.weight_norm,
            "old-spectral": nn.utils.spectral_norm,
            "new-spectral": nn.utils.parametrizations.spectral_norm,
        }[kind](layers[layer], **dim)
    x = {"linear": (2, 4), "square": (2, 5), "one row": (2, 4), "conv1d": (2, 1, 9), "conv2d": (2, 3, 3, 3)}
    with torch.no_grad():
        for _ in range(5):  # as training does, an iteration a step
            for parameter in made.parameters():
                parameter += 0.01 * torch.randn(parameter.shape)
            made.train()(torch.ones(x.get(layer, (2, 6, 3, 3))))
        made.eval()(torch.ones(x.get(layer, (2, 6, 3, 3))))  # the older forms set .weight now
    return made


LAYERS = ("linear", "square", "one row", "conv1d", "conv2d", "transposed", "square transposed")


@pytest.mark.parametrize("layer", [*LAYERS, "linear, dim 1", "linear, dim none", "conv2d, dim 1", "conv2d, dim 2"])
@pytest.mark.parametrize("kind", ["old-weight", "new-weight", "old-spectral", "new-spectral"])
def test_a_weight_under_weight_or_spectral_norm_is_counted_as_the_model_works_with_it(
    kind: str, layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "spectral" in kind and "none" in layer:
        pytest.skip("spectral normalisation always has a first dimension")
    made = reparametrised(f"{kind} {layer}")
    with torch.no_grad():
        worked = made.weight.detach().double()
    net = nn.ModuleDict({"encoder": made, "decoder": nn.Linear(2, 2)})
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, tmp_path / "vae.safetensors")
    monkeypatch.setattr(blocks, "MOST_NUMBERS", 16)
    for tensors in (net.state_dict(), read_weights(tmp_path / "vae.safetensors")):
        result = weights(tensors, vectors=True)
        found = of(result, "encoder.weight")
        assert found.shape == tuple(worked.shape)
        assert found.l2 == pytest.approx(float(worked.norm()), rel=1e-5)
        assert found.spectral == pytest.approx(float(torch.linalg.matrix_norm(worked.flatten(1), 2)), rel=1e-5)
        assert {t.name for t in result.tensors} == {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}
        assert (result.computed, result.left_out, dict(result.doubts)) == (("encoder.weight",), (), {})


def test_a_model_is_compared_with_itself_without_its_weight_norm() -> None:
    made = reparametrised("new-weight conv2d")
    plain = {"encoder.weight": made.weight.detach(), "encoder.bias": made.bias.detach()}
    rest = {"decoder.w": torch.ones(2, 2)}
    result = weights({f"encoder.{name}": t for name, t in made.state_dict().items()} | rest, against=plain | rest)
    assert part(result, "encoder").change == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        ({"weight_g": torch.ones(4), "weight_v": torch.ones(4, 4)}, "its g is 4 beside v of 4x4"),
        ({"weight_g": torch.ones(1, 1), "weight_v": torch.ones(4, 3)}, "its g is 1x1 beside v of 4x3"),
        ({"weight_v": torch.ones(4, 3)}, "a part of it is missing"),
        ({"weight_orig": torch.ones(4, 3), "weight_u": torch.ones(4)}, "a part of it is missing"),
        ({"parametrizations.weight.original": torch.ones(3, 3)}, "another parametrisation"),
        (
            {"parametrizations.weight.original0": torch.ones(3, 1),
             "parametrizations.weight.original1": torch.ones(3, 3),
             "parametrizations.weight.1._u": torch.ones(3), "parametrizations.weight.1._v": torch.ones(3)},
            "another parametrisation",
        ),
        (
            {"weight_orig": drawn(4, 4, 3, seed=1), "weight_u": drawn(4, seed=2), "weight_v": drawn(12, seed=3)},
            "leave open which dimension",
        ),
    ],
)  # fmt: skip
def test_where_the_weight_at_work_is_not_known_the_norm_is_in_doubt(stored: Tensors, why: str) -> None:
    whole = {f"encoder.{name}": tensor for name, tensor in stored.items()} | {"decoder.w": torch.ones(2, 2)}
    result = weights(whole)
    assert list(result.doubts) == ["encoder"]
    assert why in result.doubts["encoder"]
    assert "not known of encoder." in result.doubts["encoder"]
    assert result.computed == ()


def test_tensors_that_only_happen_to_end_in_g_and_v_are_themselves() -> None:
    result = weights(
        {"encoder.rank_g": torch.ones(3, 3), "encoder.rank_v": torch.ones(5, 3), "decoder.w": torch.ones(2, 2)}
    )
    assert [t.name for t in result.tensors] == ["encoder.rank_g", "encoder.rank_v", "decoder.w"]
    assert dict(result.doubts) == {}


def test_weights_that_only_begin_alike_or_were_initialised_alike_are_not_tied() -> None:
    W, almost = drawn(20, 20), drawn(20, 20)
    almost[-1, -1] += 1
    alike = {"encoder.a": W, "encoder.b": almost, "encoder.ones": torch.ones(3, 3), "encoder.more": torch.ones(3, 3)}
    alike |= {"encoder.s": torch.arange(3.0), "encoder.t": torch.arange(3.0), "decoder.w": torch.ones(3, 3)}
    result = weights(alike, vectors=True)
    assert {t.tied_to for t in result.tensors} == {None}
    assert result.warnings == ()


# The metrics, and a stop


def test_figures_are_exact_and_say_so(model: Tensors) -> None:
    metrics = summarise_weights(weights(model))
    assert set(metrics) == {"weights.encoder.l2", "weights.decoder.l2"}
    for measured in metrics.values():
        assert measured.ci is None
        assert "exact, so that it has no interval" in measured.estimator
        assert measured.direction == "none"
    assert metrics["weights.encoder.l2"].n == 72
    assert "over all tensors" in summarise_weights(weights(model, vectors=True))["weights.decoder.l2"].estimator


def test_a_stop_leaves_parts_that_are_not_done_without_a_norm(model: Tensors) -> None:
    seen: list[Progress] = []

    def until(progress: Progress) -> bool:
        seen.append(progress)
        return progress.running > 1

    result = weights(model, go_on=until)
    assert result.interrupted
    assert [(p.running, p.problems) for p in seen] == [(2, 3), (1, 3)]
    assert part(result, "encoder").l2 == part(weights(model), "encoder").l2
    assert math.isnan(part(result, "decoder").l2)
    assert summarise_weights(result)["weights.decoder.l2"].value is None


def test_spectral_norms_are_left_out_where_nobody_asks(model: Tensors) -> None:
    result = weights({name: Weight.of(tensor) for name, tensor in model.items()}, spectral=False)
    assert {t.spectral for t in result.tensors} == {None}
    assert [p.l2 for p in result.parts] == pytest.approx([p.l2 for p in weights(model).parts], rel=1e-15)


# Real models


def test_bundled_models_differ_as_their_state_dicts_do() -> None:
    files = [ROOT / "examples" / f"shapes-beta{beta}.safetensors" for beta in (1, 8)]
    result = weights(read_weights(files[1]), against=read_weights(files[0]), parts=weight_parts(find_adapter("mlp")))
    for name in PARTS:
        norms = []
        for file in files:
            opened = getattr(open_model(file).vae, name)
            norms.append(math.sqrt(sum(float(p.double().square().sum()) for p in opened.parameters() if p.ndim > 1)))
        assert part(result, name).l2 == pytest.approx(norms[1], rel=1e-12)
        assert part(result, name).change == pytest.approx(100 * (norms[1] - norms[0]) / norms[0], rel=1e-9)
    assert result.warnings == ()


def test_real_checkpoints_are_read() -> None:
    folder = SHARED / "checkpoints" / "disentangling-vae"
    if not folder.exists():
        pytest.skip("the real checkpoints are not here")
    first, second = (read_weights(folder / name) for name in ("VAE_mnist", "btcvae_mnist"))
    result = weights(second, against=first, parts=weight_parts(find_adapter("burgess")))
    assert [p.tensors for p in result.parts] == [6, 6]
    assert all(p.change is not None and math.isfinite(p.change) for p in result.parts)
    other = read_weights(folder / "VAE_dsprites")
    with pytest.raises(ConfigError, match=r"missing there: encoder.conv_64.weight"):
        weights(other, against=first)


def test_what_does_not_count_need_not_be_placed() -> None:
    weight = torch.ones(2, 2)
    tensors = {"encoder.weight": weight, "decoder.weight": weight + 1, "log_sigma": torch.zeros(2)}
    found = weights(tensors)
    assert [part.l2 for part in found.parts] == [2.0, 4.0]
    assert "log_sigma" in found.left_out
    for needed in ({"pseudo": weight}, {}):
        with pytest.raises(ConfigError, match="pseudo" if needed else "log_sigma"):
            weights(tensors | needed, vectors=not needed)
