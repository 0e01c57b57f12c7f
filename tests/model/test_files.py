"""What is no file, what only stands for one, and what claims far more than it holds is refused before it is read."""

import gzip
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vaeaudit.checks.weights.stored import read_weights
from vaeaudit.data.sources import read
from vaeaudit.errors import CheckpointError, DataError, TrustError, VaeauditError
from vaeaudit.model import files
from vaeaudit.model.files import amount, excess, named_part
from vaeaudit.model.registry import open_model
from vaeaudit.report.model import Report
from vaeaudit.report.samples import SamplesError, read_samples

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL, DATA = EXAMPLES / "shapes-beta1.safetensors", EXAMPLES / "shapes.npz"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234567\n"


def refusal(kind: type[VaeauditError], action: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert not message.endswith(".")
    return message


# What is no regular file


def fifo(path: Path) -> str:
    os.mkfifo(path)
    return "a named pipe"


def listening(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))
    return "a socket"


def device(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "a device"


OPENED = {
    "model": lambda odd: ("doctor", odd, "--data", DATA),
    "model of weights": lambda odd: ("weights", odd),
    "other model": lambda odd: ("weights", MODEL, "--against", odd),
    "data": lambda odd: ("doctor", MODEL, "--data", odd),
    "configuration": lambda odd: ("doctor", MODEL, "--data", DATA, "--config", odd),
    "adapter": lambda odd: ("doctor", MODEL, "--data", DATA, "--adapter", f"{odd}:open"),
    "baseline": lambda odd: ("audit", MODEL, "--data", DATA, "--baseline", odd),
    "report": lambda odd: ("report", odd),
    "compared": lambda odd: ("compare", odd, odd),
    "again": lambda odd: ("audit", "--from", odd),
}
ENDINGS = {"model": ".pt", "model of weights": ".safetensors", "other model": ".ckpt", "data": ".npz", "adapter": ".py"}


@pytest.mark.parametrize(
    ("where", "make"), [*((where, fifo) for where in OPENED), ("data", listening), ("data", device)]
)
def test_what_is_no_regular_file_is_refused_at_once_wherever_a_path_is_opened(
    where: str, make: Callable[[Path], str], command: Callable[..., Any]
) -> None:
    odd = Path(f"odd{ENDINGS.get(where, '.toml' if where == 'configuration' else '.json')}")
    kind = make(odd)
    done = command(*OPENED[where](odd))
    assert done.said(2, str(odd))
    assert kind in done.err or "is no regular file" in done.err


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors", ".idx", "-idx3-ubyte.gz", ".txt", ""])
def test_a_pipe_is_no_data_whatever_its_name(tmp_path: Path, suffix: str) -> None:
    fifo(tmp_path / f"odd{suffix}")
    assert "is a named pipe, where a regular file was expected" in refusal(
        DataError, lambda: read(tmp_path / f"odd{suffix}")
    )


def test_a_pipe_in_a_folder_of_one_checkpoint_is_not_waited_for(tmp_path: Path) -> None:
    fifo(tmp_path / "vae.safetensors")
    assert "is a named pipe" in refusal(CheckpointError, lambda: open_model(tmp_path))


def test_a_pipe_beside_a_report_is_not_waited_for(tmp_path: Path) -> None:
    fifo(tmp_path / "samples.safetensors")
    report = Report.model_construct(files={"samples": "samples.safetensors"}, files_sha256={})
    assert "is a named pipe" in refusal(SamplesError, lambda: read_samples(report, tmp_path))


# Git LFS pointers


@pytest.mark.parametrize("name", ["vae.pt", "vae.safetensors", "vae.ckpt"])
def test_a_pointer_of_git_lfs_is_no_model_and_the_command_that_fetches_it_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    for call in (open_model, read_weights):
        told = refusal(CheckpointError, lambda call=call: call(tmp_path / name))
        assert "is a Git LFS pointer" in told
        assert told.endswith("run `git lfs pull`")


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.safetensors", "a.idx", "a-idx3-ubyte.gz", "folder/a.png"])
def test_a_pointer_of_git_lfs_is_no_data(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / name).write_bytes(POINTER)
    source = tmp_path / "folder" if "/" in name else tmp_path / name
    assert refusal(DataError, lambda: read(source)).endswith("run `git lfs pull`")


# Claims


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.npz", ("a.npz", None)),
        ("a.npz#x", ("a.npz", "x")),
        ("d/a.pt#b#c", ("d/a.pt", "b#c")),
        ("a.pt#", ("a.pt", "")),
        ("d/a.pt#nets/b", ("d/a.pt", "nets/b")),
        ("a.npz#group/x", ("a.npz", "group/x")),
        ("run#3/a.pt", ("run#3/a.pt", None)),
        ("run#3/a.pt#b/c", ("run#3/a.pt", "b/c")),
        ("folder#b", ("folder", "b")),
    ],
)
def test_a_part_of_a_file_is_named_after_it(path: str, expected: tuple[str, str | None]) -> None:
    assert named_part(path) == (Path(expected[0]), expected[1])


def test_a_file_whose_name_has_a_hash_is_itself(tmp_path: Path) -> None:
    (tmp_path / "vae#1.pt").touch()
    assert named_part(tmp_path / "vae#1.pt") == (tmp_path / "vae#1.pt", None)


def test_a_claim_is_excessive_above_both_limits_only() -> None:
    assert excess(2**28, 1, 500) is None
    assert excess(500 * 10**6, 10**6, 500) is None
    assert excess(2**28 + 1, 10, 500) == "it claims 268 MB out of 10 bytes, more than 500 times as much and 268 MB"
    assert [amount(n) for n in (1, 1500, 2_000_000, 3 * 10**9, 4 * 10**12)] == [
        "1 bytes", "1.5 kB", "2 MB", "3 GB", "4 TB",
    ]  # fmt: skip


def deflated(file: Path) -> None:
    """The same archive with its members compressed."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:  # which is quickest
        for name, content in members.items():
            archive.writestr(name, content)


def filling(file: Path, numbers: bytes) -> None:
    """A checkpoint whose pickle calls bytearray with a number."""
    body = b"\x80\x02}X\x01\x00\x00\x00acbuiltins\nbytearray\n" + numbers + b"\x85Rs."
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("vae/data.pkl", body)
        archive.writestr("vae/version", b"3\n")
        archive.writestr("vae/byteorder", b"little")


def test_a_compressed_checkpoint_of_usual_size_is_read(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(6.0)}, tmp_path / "vae.pt")
    deflated(tmp_path / "vae.pt")
    assert torch.equal(read_weights(tmp_path / "vae.pt")["w"].block(slice(0, 1), slice(0, 6))[0], torch.arange(6.0))


@pytest.mark.parametrize("save", ["zip", "legacy"])
def test_expanded_tensors_are_refused_unread(tmp_path: Path, save: str) -> None:
    tensors = {"w": torch.zeros(1).expand(2**20, 2**14), "b": torch.zeros(3)}
    torch.save(tensors, tmp_path / "vae.pt", _use_new_zipfile_serialization=save == "zip")
    told = refusal(CheckpointError, lambda: open_model(tmp_path / "vae.pt"))
    assert "were expanded (it claims 68.7 GB out of" in told
    assert "w is 1048576x16384" in told


def test_tensors_that_share_memory_or_are_expanded_a_little_are_read(tmp_path: Path) -> None:
    whole = torch.rand(50, 50)
    torch.save({str(i): whole.expand(3, 50, 50) for i in range(50)}, tmp_path / "vae.pt")
    assert len(read_weights(tmp_path / "vae.pt")) == 50


def test_a_pickle_that_fills_memory_is_refused_and_does_not_run(tmp_path: Path) -> None:
    filling(tmp_path / "vae.pt", b"J\xff\xff\xff\x7f")
    assert "pickled objects other than tensors" in refusal(TrustError, lambda: open_model(tmp_path / "vae.pt"))
    old = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})) + pickle.dumps(bytearray(9), 2)
    (tmp_path / "vae.pt").write_bytes(old)
    assert "pickled objects other than tensors" in refusal(TrustError, lambda: open_model(tmp_path / "vae.pt"))


def idx_header(*shape: int) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)


def images_of(folder: Path, size: tuple[int, int], count: int = 1) -> Path:
    folder.mkdir()
    Image.new("L", size).save(folder / "0.png")
    for number in range(1, count):
        (folder / f"{number}.png").hardlink_to(folder / "0.png")
    return folder


def packed(file: Path) -> Path:
    np.savez_compressed(file, images=np.zeros((100, 100, 100), np.uint8))
    return file


def packed_idx(file: Path) -> Path:
    file.write_bytes(gzip.compress(idx_header(100, 100, 100) + bytes(10**6)))
    return file


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: packed(folder / "a.npz"),
        lambda folder: packed_idx(folder / "a-idx3-ubyte.gz"),
        lambda folder: images_of(folder / "images", (1000, 1000), 3),
    ],
    ids=["npz", "idx.gz", "images"],
)
def test_what_unpacks_to_more_than_the_limits_is_refused_by_every_reader(
    tmp_path: Path, make: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path)
    assert read(source).values.any() is np.False_  # within 256 MiB whatever its size
    monkeypatch.setattr(files, "FREE", 10)
    told = refusal(DataError, lambda: read(source))
    assert "it claims" in told
    assert "more than 500 times as much" in told


def test_an_idx_file_that_goes_on_after_what_it_promises_is_not_unpacked_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "a-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(idx_header(2, 2, 2) + bytes(10**6)))
    assert "the header promises 24 bytes and more came" in refusal(DataError, lambda: read(file))


def test_an_image_of_more_than_2_to_the_26_numbers_is_refused_by_its_header(tmp_path: Path) -> None:
    images_of(tmp_path / "images", (8193, 8192))
    assert "0.png claims 8193x8192 pixels in" in refusal(DataError, lambda: read(tmp_path / "images"))


def test_a_header_of_an_array_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    start = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1)
    (tmp_path / "a.npy").write_bytes(start + bytes(100))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", start + bytes(10**6))
    for name in ("a.npy", "a.npz"):
        assert "its header claims 4294967295 bytes" in refusal(DataError, lambda name=name: read(tmp_path / name))


def test_a_config_beside_the_model_that_is_no_config_by_its_size_is_not_read(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2, 2)}, tmp_path / "vae.safetensors")
    with (tmp_path / "config.json").open("wb") as stream:
        stream.truncate(2**33)
    assert "larger than 16.8 MB" in refusal(CheckpointError, lambda: open_model(tmp_path / "vae.safetensors"))


def sparse(file: Path, numbers: int) -> None:
    """A safetensors file of one tensor of zeros that takes no room on the disk."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + 4 * numbers)


def test_refusing_what_claims_gigabytes_takes_little_memory(tmp_path: Path) -> None:
    sparse(tmp_path / "wrong.safetensors", 2**31)
    torch.save({"w": torch.zeros(1).expand(2**33)}, tmp_path / "expanded.pt")
    torch.save({"w": torch.zeros(65 * 2**20)}, tmp_path / "packed.pt")
    deflated(tmp_path / "packed.pt")
    filling(tmp_path / "filling.pt", b"J\x00\x00\x00\x70")
    (tmp_path / "a-idx3-ubyte.gz").write_bytes(gzip.compress(idx_header(2**15, 2**9, 2**9) + bytes(10**6)))
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((257, 2**10, 2**10), np.uint8))
    images_of(tmp_path / "images", (2**13, 2**13), 5)
    script = f"""
        import resource, sys
        from pathlib import Path
        from vaeaudit.errors import VaeauditError
        from vaeaudit.data.sources import read
        from vaeaudit.model.registry import open_model
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for file in sorted(Path({str(tmp_path)!r}).iterdir()):
            try:
                open_model(file, "mlp") if file.suffix in (".safetensors", ".pt") else read(file)
            except VaeauditError as error:
                grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
                print(grown, file.name, error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=120
    )
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines] == [
        "a-idx3-ubyte.gz", "a.npz", "expanded.pt", "filling.pt", "images", "packed.pt", "wrong.safetensors",
    ]  # fmt: skip
    assert all(int(line.split()[0]) < 100 for line in lines), done.stdout  # MiB


# Links, folders that may not be looked into, and names


@pytest.mark.parametrize("where", OPENED)
def test_a_link_to_nothing_is_said_to_be_one_wherever_a_path_is_opened(where: str, command: Callable[..., Any]) -> None:
    odd = Path(f"odd{ENDINGS.get(where, '.toml' if where == 'configuration' else '.json')}")
    odd.symlink_to("gone")
    done = command(*OPENED[where](odd))
    if where != "baseline":  # one that is not there yet only warns
        assert done.said(2, f"{odd} is a link to gone, where there is nothing")


def test_a_folder_that_may_not_be_looked_into_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    told = refusal(CheckpointError, lambda: open_model(tmp_path))
    assert told == f"{tmp_path} cannot be read (Permission denied); check its name and permissions"


@pytest.mark.parametrize("length", [300, 5000])
def test_a_name_too_long_for_a_file_is_cut_in_the_message(length: int) -> None:
    for call, kind in ((read, DataError), (open_model, CheckpointError)):
        told = refusal(kind, lambda call=call: call("x" * length + ".npz"))
        assert "cannot be read (File name too long); check its name and permissions" in told
        assert len(told) < 250
