"""Checkpoints are read without running code, and whatever is wrong with one is told by name."""

import argparse
import json
import math
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from vaeaudit.errors import CheckpointError, MisfitError, NonFiniteError, TrustError, VaeauditError
from vaeaudit.model import checkpoints
from vaeaudit.model.checkpoints import load_state, read_checkpoint, sha256_of

Tensors = dict[str, Tensor]


def two() -> Tensors:
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.0, -1.0])}


def told(kind: type[VaeauditError], call: Callable[[], object]) -> str:
    """The message of the error: one line that names no library's internals."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_safetensors_come_back_as_they_were_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in two().items()}
    save_file(tensors, tmp_path / "vae.safetensors")
    read = read_checkpoint(tmp_path / "vae.safetensors")
    assert list(read.tensors) == ["bias", "weight"]
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in tensors.items())
    assert all(read.tensors[name].dtype == dtype for name in tensors)
    assert read.sha256 == sha256_of(tmp_path / "vae.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        two(),
        OrderedDict(two()),
        {"state_dict": two(), "epoch": 3, "global_step": 7, "hyper_parameters": {"lr": 0.1}, "optimizer_states": [{}]},
        {"model_state_dict": two(), "loss": 0.3},
        {"model": two()},
        {name: nn.Parameter(tensor) for name, tensor in two().items()},
        {"weight": two()["weight"].t().contiguous().t(), "bias": torch.tensor([1.0, 9.0, -1.0])[::2]},
    ],
    ids=["plain", "ordered", "lightning", "nested", "under model", "parameters", "not contiguous"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_of_every_usual_layout_are_read(tmp_path: Path, content: object, zipped: bool) -> None:
    torch.save(content, tmp_path / "vae.ckpt", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(tmp_path / "vae.ckpt")
    assert set(read.tensors) == {"weight", "bias"}
    assert torch.equal(read.tensors["weight"], two()["weight"])


def test_tensors_that_share_memory_and_empty_buffers_are_read(tmp_path: Path) -> None:
    whole = torch.arange(4.0)
    torch.save({"a": whole, "b": whole[:2], "empty": torch.zeros(0, 3), "count": torch.tensor(7)}, tmp_path / "v.pt")
    read = read_checkpoint(tmp_path / "v.pt").tensors
    assert torch.equal(read["b"], torch.tensor([0.0, 1.0]))
    assert read["empty"].shape == (0, 3)
    assert int(read["count"]) == 7


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def zipped(path: Path, content: object) -> None:
    torch.save(content, path)


def legacy(path: Path, content: object) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def bare(protocol: int) -> Callable[[Path, object], None]:
    def save(path: Path, content: object) -> None:
        path.write_bytes(pickle.dumps(content, protocol=protocol))

    return save


@pytest.mark.parametrize(
    "save", [zipped, legacy, *map(bare, range(6))], ids=["zip", "legacy", *(f"protocol {i}" for i in range(6))]
)
@pytest.mark.parametrize("nested", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    tmp_path: Path, save: Callable[[Path, object], None], nested: bool
) -> None:
    canary = tmp_path / "canary"
    evil = Evil(f"touch '{canary}'")
    save(tmp_path / "vae.pt", {"state_dict": two(), "extra": evil} if nested else evil)
    text = told(TrustError, lambda: read_checkpoint(tmp_path / "vae.pt"))
    assert "could run code, so it was not loaded" in text
    assert "weights_only=False); torch.save(held" in text
    assert not canary.exists()
    pickle.loads(pickle.dumps(evil))  # the proof that the canary sings
    assert canary.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["torch.nn.modules.linear.Linear", "argparse.Namespace"])
def test_whole_modules_and_other_objects_are_refused_on_trust_with_two_lines_that_convert_them(
    kind: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = nn.Linear(2, 2)
    nested = {"state_dict": module.state_dict(), "hyper_parameters": argparse.Namespace(lr=1)}
    torch.save(module if "Linear" in kind else nested, tmp_path / "vae.pt", _use_new_zipfile_serialization=zipped)
    text = told(TrustError, lambda: read_checkpoint(tmp_path / "vae.pt"))
    assert f"other than tensors ({kind}), and" in text
    monkeypatch.chdir(tmp_path)
    exec(text.partition("two lines of Python: ")[2], {"torch": torch})
    assert torch.equal(read_checkpoint(tmp_path / "vae-weights.pt").tensors["weight"], module.weight)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch deprecates TorchScript
def test_a_torchscript_program_is_refused_on_trust(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "vae.pt"))
    text = told(TrustError, lambda: read_checkpoint(tmp_path / "vae.pt"))
    assert "torch.jit.load(" in text
    assert "torch.save(held.state_dict(), 'vae-weights.pt')" in text
    told(TrustError, lambda: read_checkpoint(tmp_path / "vae.pt"))


def test_a_pickle_named_safetensors_is_not_loaded(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for save in (zipped, legacy, bare(0), bare(4)):
        save(tmp_path / "vae.safetensors", Evil(f"touch '{canary}'"))
        text = told(CheckpointError, lambda: read_checkpoint(tmp_path / "vae.safetensors"))
        assert "it may be truncated or only named so" in text
    assert not canary.exists()


def test_damaged_files_of_every_length_are_told_apart_from_refused_ones(tmp_path: Path) -> None:
    save_file(two(), tmp_path / "whole.safetensors")
    zipped(tmp_path / "whole.pt", two())
    legacy(tmp_path / "old.pt", two())
    for whole in ("whole.safetensors", "whole.pt", "old.pt"):
        content = (tmp_path / whole).read_bytes()
        damaged = tmp_path / f"damaged{Path(whole).suffix}"
        for length in {0, 1, 2, 7, 9, 20, 30, 60, 100, len(content) // 2, len(content) - 1} - {len(content)}:
            damaged.write_bytes(content[:length])
            text = told(CheckpointError, lambda at=damaged: read_checkpoint(at))
            assert "truncated" in text or "damaged" in text


@pytest.mark.parametrize(
    "content",
    [
        b"hello world",
        b"<!DOCTYPE html><html>404</html>",
        bytes(range(256)) * 8,
        pickle.dumps({"a": 1}, protocol=0),
    ],
    ids=["text", "html", "bytes", "pickled numbers"],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_are_only_named_like_checkpoints_are_told_so(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"vae{suffix}"
    file.write_bytes(content)
    assert "only named so" in told(CheckpointError, lambda: read_checkpoint(file))


def test_a_zip_of_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "vae.pt", "w") as archive:
        archive.writestr("a.txt", "x")
    told(CheckpointError, lambda: read_checkpoint(tmp_path / "vae.pt"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (torch.zeros(3), "holds one Tensor, where a dictionary of tensors was expected; save model.state_dict()"),
        ([two()], "holds one list, where a dictionary"),
        ({}, "holds no tensors"),
        ({"state_dict": {}}, "holds no tensors"),
        ({**two(), "epoch": 3}, "entries that are not tensors (epoch), where a state_dict was expected"),
    ],
    ids=["tensor", "list", "empty", "nested empty", "mixed"],
)
def test_what_is_no_dictionary_of_tensors_is_told(tmp_path: Path, content: object, expected: str) -> None:
    torch.save(content, tmp_path / "vae.pt")
    assert expected in told(CheckpointError, lambda: read_checkpoint(tmp_path / "vae.pt"))


@pytest.mark.parametrize(
    "strange",
    [
        torch.eye(3).to_sparse(),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3, device="meta"),
        torch.zeros(3).to(torch.float8_e4m3fn),
    ],
    ids=["sparse", "complex", "meta", "float8"],
)
def test_tensors_of_another_kind_are_named_and_not_cast(tmp_path: Path, strange: Tensor) -> None:
    torch.save({**two(), "odd": strange}, tmp_path / "vae.pt")
    text = told(CheckpointError, lambda: read_checkpoint(tmp_path / "vae.pt"))
    assert "odd is a tensor of another kind" in text
    assert "export the model in float32" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_named_and_counted(
    tmp_path: Path, value: float, suffix: str, dtype: torch.dtype
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in two().items()}
    tensors["weight"][0, 1] = value
    file = tmp_path / f"vae{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tensors, file)
    text = told(NonFiniteError, lambda: read_checkpoint(file))
    assert "weight holds 1 NaN or infinite value of 6" in text


@settings(max_examples=50, deadline=None)
@given(array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7), st.integers(1, 20))
def test_a_large_tensor_is_looked_at_in_parts_that_cover_it_once(shape: tuple[int, ...], most: int) -> None:
    tensor = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "_BLOCK", most)
        parts = list(checkpoints._parts(tensor))
    assert torch.equal(torch.cat([part.flatten() for part in parts]), tensor.flatten())
    assert all(part.numel() <= most for part in parts if tensor.numel())


def test_missing_files_other_names_and_folders_are_told(tmp_path: Path) -> None:
    assert "there is no checkpoint at" in told(CheckpointError, lambda: read_checkpoint(tmp_path / "no.safetensors"))
    (tmp_path / "vae.txt").write_text("x")
    assert "convert or rename it" in told(CheckpointError, lambda: read_checkpoint(tmp_path / "vae.txt"))
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "holds none" in told(CheckpointError, lambda: read_checkpoint(folder))
    save_file(two(), folder / "a.safetensors")
    assert read_checkpoint(folder).path == folder / "a.safetensors"
    save_file(two(), folder / "b.SAFETENSORS")
    text = told(CheckpointError, lambda: read_checkpoint(folder))
    assert "holds a.safetensors, b.SAFETENSORS, where one checkpoint" in text


def test_facts_come_from_metadata_and_config_and_are_strict_json(tmp_path: Path) -> None:
    metadata = {"vaeaudit.adapter": "mlp", "vaeaudit.range": "[0, 1]", "vaeaudit.odd": "NaN", "other": "x"}
    save_file(two(), tmp_path / "vae.safetensors", metadata)
    (tmp_path / "config.json").write_text(json.dumps({"vaeaudit": {"adapter": "burgess", "size": 3}, "else": 1}))
    facts = read_checkpoint(tmp_path / "vae.safetensors").facts
    assert facts == {"adapter": "mlp", "range": [0, 1], "odd": "NaN", "size": 3}
    for broken in ("{", '{"vaeaudit": {"x": NaN}}'):
        (tmp_path / "config.json").write_text(broken)
        text = told(CheckpointError, lambda: read_checkpoint(tmp_path / "vae.safetensors"))
        assert "correct or remove it" in text
    for harmless in ("[]", "3", '{"vaeaudit": 3}'):
        (tmp_path / "config.json").write_text(harmless)
        assert read_checkpoint(tmp_path / "vae.safetensors").facts["adapter"] == "mlp"


def test_what_a_file_beside_the_first_reads_of_json_counts_as_the_models(tmp_path: Path) -> None:
    for name in ("encoder", "decoder"):
        save_file(two(), tmp_path / f"{name}.safetensors")
    (tmp_path / "decoder.json").write_text('{"width": 3}')
    checkpoint = read_checkpoint(tmp_path / "encoder.safetensors")
    assert checkpoint.beside("decoder.safetensors").json("decoder.json") == {"width": 3}
    assert checkpoint.described == [tmp_path / "decoder.json"]


def test_tied_tensors_that_save_model_leaves_out_come_back_under_both_names(tmp_path: Path) -> None:
    net = nn.ModuleDict({"encoder": nn.Linear(3, 3), "decoder": nn.Linear(3, 3)})
    net["decoder"].weight = net["encoder"].weight
    save_model(net, str(tmp_path / "vae.safetensors"))
    tensors = read_checkpoint(tmp_path / "vae.safetensors").tensors
    assert tensors.keys() == net.state_dict().keys()
    assert torch.equal(tensors["decoder.weight"], tensors["encoder.weight"])


def test_load_state_names_what_does_not_fit() -> None:
    module = nn.Linear(3, 2)
    load_state(module, two())
    assert torch.equal(module.weight, two()["weight"])
    wrong = {"weight": torch.zeros(3, 2), "gain": torch.zeros(1)}
    assert told(MisfitError, lambda: load_state(module, wrong)) == (
        "the checkpoint does not fit this adapter (missing: bias; not expected: gain; of another shape: weight "
        "(expected 2x3, came 3x2)); is it another architecture?"
    )
    many = {**two(), **{f"extra{i}": torch.zeros(1) for i in range(9)}}
    assert "extra5 and 3 more" in told(MisfitError, lambda: load_state(module, many))
