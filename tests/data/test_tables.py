"""Data as people have them: tensors, tables, HDF5, clips, deep images, videos, and normalisation."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy.io import wavfile

from vaeaudit.data.items import Stored, fit
from vaeaudit.data.sources import read
from vaeaudit.errors import DataError, InputError, TrustError, VaeauditError
from vaeaudit.model.ranges import normalised

BYTES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5) * 4
LABELS = np.array([2, 0, 1])


def refusal(kind: type[VaeauditError], action: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    assert not text.endswith(".")
    return text


def stored(values: Any) -> Stored:
    return Stored(np.asarray(values), None, None, "here", "")


# Tensors


@pytest.mark.parametrize("kind", ["tensor", "pair", "dictionary"])
def test_tensors_of_pytorch_files_are_data_with_their_labels(kind: str, tmp_path: Path) -> None:
    images, labels = torch.from_numpy(BYTES), torch.from_numpy(LABELS)
    held = {"tensor": images, "pair": (images, labels), "dictionary": {"x": images, "y": labels, "epoch": 3}}[kind]
    torch.save(held, tmp_path / "val.pt")
    found = read(tmp_path / "val.pt")
    assert_array_equal(found.values, BYTES)
    assert (found.labels is None) == (kind == "tensor")
    if found.labels is not None:
        assert_array_equal(found.labels, LABELS)
    assert found.skipped == (("epoch: not a tensor",) if kind == "dictionary" else ())


def test_of_several_tensors_one_is_named_and_half_precision_keeps_its_spacing(tmp_path: Path) -> None:
    torch.save({"a": torch.rand(3, 2).bfloat16(), "b": torch.rand(4, 2)}, tmp_path / "val.pt")
    assert "name the one to audit, as in val.pt#a" in refusal(DataError, lambda: read(tmp_path / "val.pt"))
    assert read(f"{tmp_path / 'val.pt'}#a").eps == 2**-7


def test_tensors_that_claim_far_more_than_their_file_are_not_read(tmp_path: Path) -> None:
    torch.save(torch.zeros(1).expand(10**9, 1, 4, 4), tmp_path / "val.pt")
    assert "were expanded (it claims 64 GB out of" in refusal(DataError, lambda: read(tmp_path / "val.pt"))


def test_pytorch_files_of_other_objects_are_refused_on_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(torch.utils.data.TensorDataset(torch.from_numpy(BYTES)), tmp_path / "val.pt")
    text = refusal(TrustError, lambda: read(tmp_path / "val.pt"))
    monkeypatch.chdir(tmp_path)
    exec(text.partition("convert it: ")[2], {"torch": torch})
    assert_array_equal(read("items.pt").values, BYTES)
    torch.save(3, tmp_path / "val.pt")
    assert "holds a int, where a tensor" in refusal(DataError, lambda: read(tmp_path / "val.pt"))


# Tables


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_of_numbers_is_vectors_with_the_labels_of_its_column(delimiter: str, tmp_path: Path) -> None:
    rows = ["a|label|b", "0.5|cat|-1", "0.25|dog|1e-3", "", "1|cat|7"]
    (tmp_path / "val.csv").write_text("\n".join(rows).replace("|", delimiter) + "\n")
    found = read(tmp_path / "val.csv")
    assert_array_equal(found.values, [[0.5, -1], [0.25, 1e-3], [1, 7]])
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 0]
    assert found.told == ("labels are texts, numbered in their order (0 = cat, 1 = dog)",)


@pytest.mark.parametrize(("header", "told"), [("0,1,2,3", ("0 to 3",)), ("1,2,3,label", ()), (",0,1,2", ())])
def test_a_first_row_that_counts_the_columns_is_no_item(header: str, told: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text(f"{header}\n0.5,1,2,3\n5,1,2,4\n")
    found = read(tmp_path / "val.csv")
    assert len(found.values) == 2
    assert all(words in remark for words, remark in zip(told, found.told, strict=False))
    assert len(found.told) >= len(told)


def test_an_item_of_floats_that_count_is_one(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text("0.0,1.0,2.0,3.0\n5,6,7,8\n")
    assert len(read(tmp_path / "val.csv").values) == 2


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("nan", "1 of 3 are missing, where each item needs one"),
        ("", "1 of 3 are missing, where each item needs one"),
        ("0.5", "float64, 1 of 3 of them not whole numbers"),
    ],
)
def test_labels_of_which_one_is_none_are_not_taken_and_that_is_told(label: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text(f"a,label\n0.5,1\n1,{label}\n2,3\n")
    found = read(tmp_path / "val.csv")
    assert found.labels is None
    assert found.skipped[0].startswith(f"label: no labels but {told}")


def test_a_second_column_of_labels_is_no_feature_either(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text("a,label,target\n0.5,1,7\n1,0,8\n")
    found = read(tmp_path / "val.csv")
    assert found.values.shape == (2, 1)
    assert found.labels is not None and found.labels.tolist() == [1, 0]
    assert found.skipped == ("target: the labels are those of label",)


def test_whole_numbers_of_a_table_are_bytes_where_they_can_be(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "val.csv", BYTES.reshape(3, -1), "%d", delimiter=",")
    found = read(tmp_path / "val.csv")
    assert found.values.dtype == np.uint8
    assert_array_equal(found.values, BYTES.reshape(3, -1))
    (tmp_path / "val.csv").write_text("1,300\n2,4\n")
    assert read(tmp_path / "val.csv").values.dtype == np.int64


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n3\n", "line 3: 1 values came, where 2 were expected"),
        ("0.5,x\n1,2\n", "line 1: 'x' came, where a number was expected"),
        ("NA,NA,1\n1,2,3\n", "line 1: 'NA' came, where a number was expected"),
        ("7,\n1,2\n", "line 1: nothing came, where a number was expected"),
        ("a,b\n1,x\n", "line 2: 'x' came, where a number was expected"),
        ("a,b\n1,\n", "line 2: nothing came, where a number was expected"),
        ("a,b\n", "holds no items"),
        ("a,b\n1,nan\n", "holds 1 NaN or infinite value of 2"),
    ],
)
def test_what_is_wrong_in_a_table_is_told_by_its_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text(text)
    file = tmp_path / "val.csv"
    assert words in refusal(DataError, lambda: fit(read(file), input_shape=(2,), data_range=None))


def test_bytes_that_are_no_text_are_no_table(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_bytes(b"\xff\xfe\x00")
    assert "is not a table as text" in refusal(DataError, lambda: read(tmp_path / "val.csv"))


# What takes packages of extras


def made(folder: Path, kind: str) -> Path:
    """A file of that kind with BYTES and LABELS, by the library that writes such."""
    if kind == "h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(folder / "val.h5", "w") as file:
            file["images"], file["labels"] = BYTES, LABELS
        return folder / "val.h5"
    if kind == "h5ad":
        anndata, sparse = pytest.importorskip("anndata"), pytest.importorskip("scipy.sparse")
        held = anndata.AnnData(sparse.csr_matrix(BYTES.reshape(3, -1).astype(np.float32)))
        held.obs["label"] = LABELS
        held.write_h5ad(folder / "val.h5ad")
        return folder / "val.h5ad"
    datasets = pytest.importorskip("datasets")
    images = [Image.fromarray(image) for image in BYTES]
    held = datasets.Dataset.from_dict(
        {"image": images, "label": LABELS.tolist()},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}),
    )
    if kind == "parquet":
        held.to_parquet(folder / "val.parquet")
        return folder / "val.parquet"
    datasets.DatasetDict({"val": held, "train": held.shuffle(seed=1)}).save_to_disk(folder / "data")
    return Path(f"{folder / 'data'}#val")


@pytest.mark.filterwarnings("ignore")  # of the libraries that write
@pytest.mark.parametrize("kind", ["h5", "h5ad", "parquet", "datasets"])
def test_files_of_other_libraries_hold_the_same_items(kind: str, tmp_path: Path) -> None:
    found = read(made(tmp_path, kind))
    assert_array_equal(found.values.reshape(BYTES.shape), BYTES)
    assert found.labels is not None
    assert_array_equal(found.labels, LABELS)


@pytest.mark.filterwarnings("ignore")
def test_a_split_of_a_data_set_on_disk_must_be_named(tmp_path: Path) -> None:
    made(tmp_path, "datasets")
    text = refusal(DataError, lambda: read(tmp_path / "data"))
    assert "holds the splits val, train, where one was expected; name it, as in data#val" in text


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("a.h5", "h5py", "h5"),
        ("a.h5ad", "anndata", "h5ad"),
        ("a.parquet", "pyarrow", "datasets"),
        ("d", "datasets", "datasets"),
    ],
)
def test_without_its_packages_a_file_names_the_extra(
    name: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    place = tmp_path / name
    if name == "d":
        place.mkdir()
        (place / "dataset_info.json").touch()
    else:
        place.touch()
    assert f"pip install 'vaeaudit[{extra}]'" in refusal(InputError, lambda: read(place))


# Audio


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 2])
def test_clips_are_floats_whatever_they_are_stored_as(kind: type[np.generic], channels: int, tmp_path: Path) -> None:
    samples = np.array([[-1, 0, 0.5, -0.25]] * channels)
    scale, zero = {np.int16: (2**15, 0), np.int32: (2**31, 0), np.uint8: (128, 128), np.float32: (1, 0)}[kind]
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        wavfile.write(tmp_path / label / "one.wav", 8000, (samples * scale + zero).astype(kind).T.squeeze())
    found = read(tmp_path)
    assert_array_equal(found.values, np.stack([samples.squeeze()] * 2))
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1]
    assert found.told == ("clips of 8000 Hz as floats in [-1, 1]",)


def test_the_first_clip_of_another_length_or_rate_is_named(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", 8000, np.zeros(4, np.int16))
    wavfile.write(tmp_path / "b.wav", 8000, np.zeros(5, np.int16))
    assert "b.wav is 5 at 8000 Hz where a.wav is 4 at 8000 Hz" in refusal(DataError, lambda: read(tmp_path))
    wavfile.write(tmp_path / "b.wav", 4000, np.zeros(4, np.int16))
    assert "b.wav is 4 at 4000 Hz" in refusal(DataError, lambda: read(tmp_path))
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    assert "b.wav is not a whole WAV file" in refusal(DataError, lambda: read(tmp_path))
    assert "is one clip, where a folder" in refusal(DataError, lambda: read(tmp_path / "a.wav"))


# Deep images, videos


def test_png_images_of_16_bits_are_mapped_from_65535(tmp_path: Path) -> None:
    deep = np.array([[0, 1, 257], [30000, 65534, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    found = fit(read(tmp_path), input_shape=(1, 2, 3), data_range=(-1.0, 1.0))
    assert_allclose(found.batch([0], dtype=torch.float64)[0, 0], deep / 65535 * 2 - 1, rtol=0, atol=1e-15)
    assert "mapped from [0, 65535] to [-1, 1]" in found.stored
    Image.fromarray(BYTES[0][:2, :3]).save(tmp_path / "b.png")
    assert "b.png is 2x3 where a.png is 2x3 of 16 bits" in refusal(DataError, lambda: read(tmp_path))


def test_a_dark_deep_image_is_not_taken_for_zeros_and_ones(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1]], np.uint16)).save(tmp_path / "a.png")
    found = fit(read(tmp_path), input_shape=(1, 1, 2), data_range=(0.0, 1.0))
    assert_allclose(found.batch([0], dtype=torch.float64).flatten(), [0, 1 / 65535])


@pytest.mark.parametrize(
    ("item", "order", "told"),
    [
        ((2, 4, 5, 3), (3, 0, 1, 2), "channels moved first"),
        ((2, 3, 4, 5), (1, 0, 2, 3), "channels moved before frames"),
        ((3, 2, 4, 5), (0, 1, 2, 3), ""),
    ],
)
def test_videos_are_turned_to_channels_frames_rows_columns(
    item: tuple[int, ...], order: tuple[int, ...], told: str
) -> None:
    values = np.random.default_rng(0).random((2, *item))
    found = fit(stored(values), input_shape=(3, 2, 4, 5), data_range=None)
    assert_array_equal(found.batch([0, 1], dtype=torch.float64), values.transpose(0, *(axis + 1 for axis in order)))
    assert found.stored.endswith(told)


# Normalisation


@pytest.mark.parametrize("kind", [np.uint8, np.float64])
@pytest.mark.parametrize("text", ["imagenet", "0.5/0.25", "0.1,0.2,0.3/0.5,0.25,1"])
def test_normalised_values_are_less_the_mean_over_the_standard_deviation(text: str, kind: type[np.generic]) -> None:
    values = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5)).astype(np.uint8)
    unit = values / 255
    found = fit(
        stored(values if kind == np.uint8 else unit), input_shape=(3, 4, 5), data_range=normalised(text), unit=True
    )
    numbers = "0.485,0.456,0.406/0.229,0.224,0.225" if text == "imagenet" else text
    mean, stddev = (np.array([float(one) for one in part.split(",")])[:, None, None] for part in numbers.split("/"))
    assert_allclose(found.batch([0, 1], dtype=torch.float64), (unit - mean) / stddev, rtol=0, atol=1e-14)


def test_what_is_normalised_already_is_refused() -> None:
    text = refusal(
        DataError,
        lambda: fit(stored([[[0.0, -2.0]]]), input_shape=(1, 1, 2), data_range=normalised("0.5/0.5"), unit=True),
    )
    assert "data lie in [-2, 0] where values in [0, 1], or bytes, were expected to be normalised" in text


@pytest.mark.parametrize("text", ["imagenat", "0.5", "0.5/0", "0.5,0.5/0.2", "nan/1", "0.5/-1"])
def test_bad_normalisations_are_told_with_what_was_expected(
    text: str, command: Any, projection: Any, tmp_path: Path
) -> None:
    projection.fill(tmp_path)
    done = command("doctor", "vae.safetensors", "--data", "val.npy", "--normalize", text)
    assert done.said(2, "--normalize takes imagenet, or MEAN/STD with one number for all or one for each channel")


def test_a_normalisation_gives_the_range_and_no_other_may_be_given(
    command: Any, projection: Any, tmp_path: Path
) -> None:
    projection.fill(tmp_path)
    done = command("doctor", "vae.safetensors", "--data", "val.npy", "--normalize", "0/0.5")
    assert "[0, 2]" in done.out
    colours = command("doctor", "vae.safetensors", "--data", "val.npy", "--normalize", "imagenet")
    assert colours.said(2, "--normalize imagenet has numbers for 3 channels, but the model's inputs have 1")
    both = command("doctor", "vae.safetensors", "--data", "val.npy", "--normalize", "0/1", "--range", "0", "1")
    assert both.said(2, "--normalize gives the range of the model's inputs, and so does --range; give one of them")
