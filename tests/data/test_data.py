import gzip
import hashlib
import os
import pickle
import shutil
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.testing import assert_array_equal
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from vaeaudit.checks.attack.pairs import by_label
from vaeaudit.data.items import RESIZE, Data, Factors, Stored, fit
from vaeaudit.data.sources import read
from vaeaudit.errors import DataError, TrustError, VaeauditError

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real data are not here")

GREY = np.array([[[0, 51], [102, 255]], [[1, 2], [3, 254]]], dtype=np.uint8)  # (2, 2, 2)


def fitted(
    values: ArrayLike,
    shape: tuple[int, ...],
    span: tuple[float, float] | None = (0, 1),
    resize: str | None = None,
) -> Data:
    stored = Stored(np.asarray(values), labels=None, factors=None, source="here", sha256="0")
    return fit(stored, input_shape=shape, data_range=span, resize=resize)


def whole(data: Data, dtype: torch.dtype = torch.float32) -> NDArray[np.floating]:
    x = data.batch(range(len(data)), dtype=dtype)
    assert x.dtype == dtype
    assert x.shape == (len(data), *data.input_shape)
    return x.numpy()


def refusal(kind: type[VaeauditError], action: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        action()
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message and ". " not in message and not message.endswith("."), "one sentence"
    return message


def idx_bytes(array: NDArray[np.generic], code: int = 0x08) -> bytes:
    big = array.astype(array.dtype.newbyteorder(">"))
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + big.tobytes()


def save_images(folder: Path, values: NDArray[np.uint8], suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(values):
        Image.fromarray(image).save(folder / f"{i:03}{suffix}")


# Round trips


@settings(max_examples=25, deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=6)))
def test_any_grey_images_give_the_same_batch_from_every_format(values: NDArray[np.uint8]) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "a.npz", images=values)
        np.savez_compressed(folder / "b.npz", values)
        np.save(folder / "c.npy", values)
        np.save(folder / "fortran.npy", np.asfortranarray(values))
        save_file({"images": values}, folder / "d.safetensors", metadata={"note": "ignored"})
        (folder / "e-idx3-ubyte").write_bytes(idx_bytes(values))
        (folder / "f-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(values)))
        save_images(folder / "g", values)
        sources = sorted(folder.iterdir())
        assert len(sources) == 8
        top = 1 if values.max() <= 1 else 255
        expected = (values.astype(np.float64) / top).astype(np.float32)[:, None]
        for source in sources:
            held = read(source)
            assert held.values.dtype == np.uint8
            assert_array_equal(held.values, values)
            assert_array_equal(
                whole(fit(held, input_shape=(1, *values.shape[1:]), data_range=(0, 1))), expected, strict=True
            )


@settings(max_examples=15, deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=5).map(lambda s: (*s, 3))))
def test_any_colour_images_give_the_same_batch_from_every_format(values: NDArray[np.uint8]) -> None:
    n, h, w, _ = values.shape
    first = np.ascontiguousarray(np.moveaxis(values, -1, 1))
    with TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "last.npz", x=values)
        np.save(folder / "first.npy", first)
        np.save(folder / "flat.npy", first.reshape(n, -1))
        save_images(folder / "images", values)
        expected = (first / 255 if values.max() > 1 else first).astype(np.float32)
        for source in folder.iterdir():
            if (h, w) == (3, 3) and source.name in {"last.npz", "images"}:
                continue  # 3x3x3 is taken as channels first
            data = fit(read(source), input_shape=(3, h, w), data_range=(0, 1))
            assert_array_equal(whole(data), expected, err_msg=source.name)


@settings(max_examples=25, deadline=None)
@given(arrays(np.float32, (3, 4), elements=st.floats(-1, 1, width=32)))
def test_floats_in_the_range_come_back_bit_for_bit(values: NDArray[np.float32]) -> None:
    assert_array_equal(whole(fitted(values, (4,), (-1, 1))), values, strict=True)
    assert_array_equal(whole(fitted(values.astype(">f4"), (4,), (-1, 1))), values)


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".tiff", ".PNG"])
def test_other_lossless_images_are_read_exactly(tmp_path: Path, suffix: str) -> None:
    save_images(tmp_path, GREY, suffix)
    assert_array_equal(read(tmp_path).values, GREY)


def test_jpeg_and_webp_are_read_as_pillow_decodes_them(tmp_path: Path) -> None:
    colour = np.zeros((1, 8, 8, 3), np.uint8) + np.uint8(90)
    save_images(tmp_path / "j", colour, ".jpg")
    save_images(tmp_path / "w", colour, ".webp")
    for folder in (tmp_path / "j", tmp_path / "w"):
        file = next(folder.iterdir())
        assert_array_equal(read(folder).values[0], np.asarray(Image.open(file)))


def test_one_bit_images_are_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "a.png")
    assert_array_equal(read(tmp_path).values, [[[0, 255]]])


def test_bfloat16_and_float8_are_read_exactly(tmp_path: Path) -> None:
    x = torch.tensor([[0.5, 1.0], [0.0, 0.25]])
    for i, dtype in enumerate((torch.bfloat16, torch.float8_e4m3fn, torch.float16, torch.float64)):
        file = tmp_path / f"{i}.safetensors"
        save_torch_file({"x": x.to(dtype)}, file)
        assert_array_equal(whole(fit(read(file), input_shape=(2,), data_range=(0, 1))), x.numpy())


# Values


def test_uint8_is_rounded_once_like_a_division_by_255() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 256)
    data = fitted(values, (256,))
    assert_array_equal(whole(data), values.astype(np.float32) / np.float32(255))
    assert_array_equal(whole(data, torch.float64), values / 255)
    assert data.stored == "uint8 256, values 0..255, mapped from [0, 255] to [0, 1]"
    assert (data.range, data.warnings) == ((0.0, 1.0), ())


@pytest.mark.parametrize(
    ("span", "expected"),
    [((0, 255), [0, 51, 255]), ((-1, 1), [-1, -0.6, 1]), ((-1, 0), [-1, -0.8, 0]), ((0.1, 0.3), [0.1, 0.14, 0.3])],
)
def test_the_stored_range_is_mapped_linearly_onto_the_models(span: tuple[float, float], expected: list[float]) -> None:
    data = fitted(np.array([[0, 51, 255]], np.uint8), (3,), span)
    np.testing.assert_allclose(whole(data, torch.float64)[0], expected, rtol=1e-15, atol=0)
    x = whole(data, torch.float64)
    assert x.min() >= span[0] and x.max() <= span[1]
    assert data.range == span


def test_identity_ranges_are_said_to_be_taken_as_they_are() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 256)
    data = fitted(values, (256,), (0, 255))
    assert data.stored == "uint8 256, values 0..255, taken as they are in [0, 255]"
    assert_array_equal(whole(data, torch.float64), values)


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.int64, np.int8, np.uint32, ">i2"])
def test_integers_that_are_all_0_or_1_are_not_divided_by_255(dtype: str) -> None:
    data = fitted(np.array([[0, 1], [1, 1]], dtype=dtype), (2,), (-1, 1))
    assert_array_equal(whole(data), [[-1, 1], [1, 1]])
    assert data.stored == f"{np.dtype(dtype).name} 2, values 0..1, mapped from [0, 1] to [-1, 1]"


def test_low_uint8_values_raise_a_warning() -> None:
    assert fitted(np.array([[0, 128]], np.uint8), (2,)).warnings == ()
    assert fitted(np.array([[0, 127]], np.uint8), (2,)).warnings == (
        "the uint8 values reach only 127 of 255; if they are on a shorter scale, store them as floats in the "
        "model's range",
    )


def test_without_a_range_0_and_1_stand_for_themselves_with_a_warning() -> None:
    data = fitted(np.array([[0, 1]], np.uint8), (2,), None)
    assert_array_equal(whole(data), [[0, 1]])
    assert data.range == (0.0, 1.0)
    assert data.stored == "uint8 2, values 0..1, taken as they are in [0, 1]"
    assert len(data.warnings) == 1 and "give --range" in data.warnings[0]


def test_without_a_range_bytes_are_refused() -> None:
    message = refusal(DataError, lambda: fitted(np.array([[3, 200]], np.uint8), (2,), None))
    assert message == (
        "here holds uint8 values 3..200, but no range of the model is known to map them to; give --range LO HI"
    )


def test_without_a_range_floats_are_taken_as_they_are() -> None:
    data = fitted([[-3.5, 1000.0]], (2,), None)
    assert_array_equal(whole(data), [[-3.5, 1000]])
    assert data.range is None
    assert data.stored == "float64 2, values -3.5..1000, taken as they are"


def test_integers_other_than_uint8_are_refused() -> None:
    assert refusal(DataError, lambda: fitted([[0, 255]], (2,))) == (
        "here holds int64 values 0..255, and integers other than uint8 are taken only when all are 0 or 1; "
        "store them as uint8 or as floats in the model's range, or give --range 0 inf if they are counts"
    )
    refusal(DataError, lambda: fitted([[-1, 1]], (2,)))


def test_floats_outside_the_range_are_refused_with_their_span() -> None:
    assert refusal(DataError, lambda: fitted([[0.0, 255.0]], (2,))) == (
        "here: data lie in [0, 255] but the model takes [0, 1]; map them as training did (bytes stored as uint8 are "
        "mapped), or give --range if the model takes these"
    )
    assert "[-1, 0.5]" in refusal(DataError, lambda: fitted([[-1.0, 0.5]], (2,)))


@pytest.mark.parametrize("span", [(0, 1), (-1, 1), (0, 255), (-3, -1)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_that_leave_the_range_by_rounding_are_clipped_and_that_is_said(
    dtype: type[np.floating], span: tuple[float, float]
) -> None:
    lo, hi = span
    spacing = max(map(abs, span)) * float(np.finfo(np.float32 if dtype == np.float64 else dtype).eps)
    values = np.array([[lo - 2 * spacing, hi + 3 * spacing]], dtype)
    data = fitted(values, (2,), span)
    assert_array_equal(whole(data), [[lo, hi]])
    told = f"[{float(values[0, 0]):.9g}, {float(values[0, 1]):.9g}] to [{lo}, {hi}]"
    assert data.stored.endswith(f"taken as they are but for rounding: clipped from {told}")
    for far in ([lo - 6 * spacing, hi], [lo, hi + 6 * spacing]):
        assert "but the model takes" in refusal(DataError, lambda far=far: fitted(np.array([far], dtype), (2,), span))
    assert "rounding" not in fitted(np.array([[lo, hi]], dtype), (2,), span).stored


def test_rounding_is_that_of_the_type_that_the_file_stores(tmp_path: Path) -> None:
    for dtype, spacing in ((torch.bfloat16, 2**-7), (torch.float8_e4m3fn, 2**-3), (torch.float32, 2**-23)):
        values = torch.tensor([[0, 1 + spacing]]).to(dtype)
        save_torch_file({"images": values}, tmp_path / "d.safetensors")
        data = fit(read(tmp_path / "d.safetensors"), input_shape=(2,), data_range=(0, 1))
        assert_array_equal(whole(data), [[0, 1]])
        assert "but for rounding: clipped from [0, 1" in data.stored
    save_torch_file({"images": torch.tensor([[0, 1 + 2**-7]])}, tmp_path / "d.safetensors")
    assert "[0, 1.0078125]" in refusal(
        DataError, lambda: fit(read(tmp_path / "d.safetensors"), input_shape=(2,), data_range=(0, 1))
    )


def test_the_ends_of_the_range_count_in_the_precision_of_the_values() -> None:
    assert_array_equal(whole(fitted(np.float32([[0.1, 0.3]]), (2,), (0.1, 0.3))), np.float32([[0.1, 0.3]]))
    fitted(np.float16([[0, 1000]]), (2,), (0, 1e9))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_number(bad: float) -> None:
    assert refusal(DataError, lambda: fitted([[bad, 0.5], [bad, 1.0]], (2,), None)) == (
        "here holds 2 NaN or infinite values of 4, where finite numbers were expected; "
        "leave those items out or repair them"
    )
    assert "holds 1 NaN or infinite value of 2" in refusal(DataError, lambda: fitted([[bad, 0.5]], (2,)))


def test_values_that_are_not_real_numbers_are_refused() -> None:
    assert "complex128" in refusal(DataError, lambda: fitted([[1j]], (1,)))
    assert "<U1" in refusal(DataError, lambda: fitted([["a"]], (1,)))


@pytest.mark.parametrize("span", [(1, 0), (0, 0), (np.inf, np.inf), (np.nan, 1), (0, 1, 2), ((0, 1), (0, 1))])
def test_a_range_that_is_none_is_refused(span: tuple[float, float]) -> None:
    assert "LO < HI" in refusal(DataError, lambda: fitted([[0.5]], (1,), span))


# Batches


def test_a_batch_holds_the_items_named_in_their_order() -> None:
    data = fitted(np.arange(10).reshape(5, 2) / 10, (2,))
    assert_array_equal(data.batch([3, 0, 3]).numpy(), np.float32([[0.6, 0.7], [0, 0.1], [0.6, 0.7]]))
    assert_array_equal(data.batch(np.array([4], np.uint16)).numpy(), np.float32([[0.8, 0.9]]))
    assert data.batch([]).shape == (0, 2)
    assert len(data) == 5


@pytest.mark.parametrize("indices", [[5], [-1], [True, False], [0.5]])
def test_items_that_are_not_there_are_not_given(indices: list[int]) -> None:
    with pytest.raises(IndexError):
        fitted(np.zeros((5, 2)), (2,)).batch(indices)


def test_a_batch_comes_in_the_dtype_asked_for() -> None:
    data = fitted(np.array([[0, 1]], np.uint8), (2,))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert data.batch([0], dtype=dtype, device=torch.device("cpu")).dtype == dtype


def test_the_stored_numbers_are_neither_copied_nor_changed() -> None:
    values = GREY.copy()
    data = fitted(values, (1, 2, 2))
    data.batch([0, 1]).zero_()
    assert data.values is values
    assert_array_equal(values, GREY)
    floats = np.full((1, 2), 0.5)
    fitted(floats, (2,)).batch([0], dtype=torch.float64).zero_()
    assert_array_equal(floats, 0.5)


# Shapes


def numbered(*shape: int) -> NDArray[np.float64]:
    return np.arange(np.prod(shape), dtype=np.float64).reshape(shape) / 1000


@pytest.mark.parametrize(
    ("item", "want", "told"),
    [
        ((1, 2, 3), (1, 2, 3), ""),
        ((2, 3), (1, 2, 3), ", read as 1x2x3"),
        ((6,), (1, 2, 3), ", read as 1x2x3 (row-major)"),
        ((18,), (3, 2, 3), ", read as 3x2x3 (row-major)"),
        ((6,), (2, 3), ", read as 2x3 (row-major)"),
        ((2, 3), (6,), ", flattened as 6 (row-major)"),
        ((1, 2, 3), (6,), ", flattened as 6 (row-major)"),
        ((3, 4, 3), (3, 4, 3), ""),
    ],
)
def test_shapes_that_agree_row_by_row_are_taken(item: tuple[int, ...], want: tuple[int, ...], told: str) -> None:
    values = numbered(2, *item)
    data = fitted(values, want)
    assert_array_equal(whole(data, torch.float64), values.reshape(2, *want))
    assert data.stored.endswith(f"taken as they are{told}")


@pytest.mark.parametrize(("item", "want"), [((4, 5, 3), (3, 4, 5)), ((4, 5, 1), (1, 4, 5))])
def test_channels_that_come_last_are_moved_first(item: tuple[int, ...], want: tuple[int, ...]) -> None:
    values = numbered(2, *item)
    data = fitted(values, want)
    assert_array_equal(whole(data, torch.float64), values.transpose(0, 3, 1, 2))
    assert data.stored.endswith(", channels moved first")


@pytest.mark.parametrize(
    ("item", "want", "hint"),
    [
        ((28, 28), (1, 32, 32), "--resize bilinear resizes them"),
        ((28, 28), (32, 32), "--resize bilinear resizes them"),
        ((28, 28, 3), (3, 32, 32), "--resize bilinear resizes them"),
        ((3, 28, 28), (3, 32, 32), "--resize bilinear resizes them"),
        ((28, 28), (3, 28, 28), "give data of that shape"),
        ((3, 28, 28), (1, 28, 28), "give data of that shape"),
        ((784,), (1, 32, 32), "give data of that shape"),
        ((28, 28), (1024,), "give data of that shape"),
        ((4, 7, 28), (28, 28), "give data of that shape"),
        ((3, 2), (2, 3), "--resize bilinear resizes them"),
        ((2, 4, 4, 3), (3, 4, 4, 1), "give data of that shape"),
    ],
)
def test_other_shapes_are_refused_with_both_named(item: tuple[int, ...], want: tuple[int, ...], hint: str) -> None:
    message = refusal(DataError, lambda: fitted(np.zeros((1, *item)), want))
    come, take = ("x".join(map(str, shape)) for shape in (item, want))
    assert message == f"here: items are {come} but the model takes {take}; {hint}"


# Resizing


@pytest.mark.parametrize("name", RESIZE)
def test_bytes_are_resized_by_pillow_on_the_8_bit_image(name: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 9, 7), dtype=np.uint8)
    data = fitted(values, (1, 6, 11), resize=name)
    method = Image.Resampling[name.upper()]
    expected = np.stack([np.asarray(Image.fromarray(image).resize((11, 6), method)) for image in values])
    assert_array_equal(whole(data), (expected[:, None] / 255).astype(np.float32))
    assert data.stored.endswith(f"9x7, values {values.min()}..{values.max()}, "
                                f"mapped from [0, 255] to [0, 1], resized to 6x11 with {name}")  # fmt: skip


@pytest.mark.parametrize("name", RESIZE)
def test_colours_are_resized_as_pillow_resizes_rgb(name: str) -> None:
    values = np.random.default_rng(1).integers(0, 256, (2, 5, 6, 3), dtype=np.uint8)
    method = Image.Resampling[name.upper()]
    expected = np.stack([np.asarray(Image.fromarray(image).resize((4, 8), method)) for image in values])
    expected = expected.transpose(0, 3, 1, 2)
    last = fitted(values, (3, 8, 4), resize=name)
    first = fitted(values.transpose(0, 3, 1, 2), (3, 8, 4), resize=name)
    assert_array_equal(whole(last), (expected / 255).astype(np.float32))
    assert_array_equal(whole(first), whole(last))
    assert "channels moved first, resized to 8x4" in last.stored


@pytest.mark.parametrize("name", RESIZE)
def test_floats_are_resized_as_32_bit_floats_and_kept_in_the_range(name: str) -> None:
    values = np.zeros((1, 6, 6))
    values[0, 2:4, 2:4] = 1  # an edge on which bicubic and lanczos overshoot
    method = Image.Resampling[name.upper()]
    expected = np.asarray(Image.fromarray(values[0].astype(np.float32)).resize((9, 9), method))
    assert_array_equal(whole(fitted(values, (9, 9), resize=name))[0], expected.clip(0, 1))
    assert_array_equal(whole(fitted(values, (9, 9), None, resize=name))[0], expected)
    assert (expected.max() > 1) == (name in {"bicubic", "lanczos"})


def test_0_and_1_are_resized_as_floats_so_that_nothing_is_lost() -> None:
    data = fitted(np.array([[[0, 0, 1, 1]]], np.uint8), (1, 1, 2), (0, 1), "box")
    assert_array_equal(whole(data), [[[[0, 1]]]])
    for dtype in (np.uint8, np.bool_, np.int64):
        values = np.array([[[0, 1]]], dtype)
        assert_array_equal(whole(fitted(values, (1, 1, 1), (-1, 1), "box")), [[[[0]]]])


def test_a_resize_that_is_not_needed_does_nothing_and_says_so() -> None:
    for shape in ((1, 2, 2), (4,), (2, 2)):
        data = fitted(GREY, shape, resize="lanczos")
        assert_array_equal(whole(data), whole(fitted(GREY, shape)))
        assert data.stored.endswith(", not resized since the size agrees (lanczos was asked for)")


def test_what_is_no_image_is_not_resized() -> None:
    refusal(DataError, lambda: fitted(np.zeros((1, 784)), (1, 32, 32), resize="bilinear"))
    refusal(DataError, lambda: fitted(np.zeros((1, 28, 28)), (1024,), resize="bilinear"))
    refusal(DataError, lambda: fitted(np.zeros((1, 28, 28)), (3, 32, 32), resize="bilinear"))


def test_an_unknown_filter_is_refused_with_the_nearest_name() -> None:
    assert refusal(DataError, lambda: fitted(GREY, (1, 2, 2), resize="bilinar")) == (
        "resize must be one of nearest, box, bilinear, hamming, bicubic, lanczos, but 'bilinar' came "
        "(did you mean 'bilinear'?); name one of them or leave it out"
    )


# Names in archives


def dsprites(columns: int, **more: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
    classes = np.arange(2 * columns).reshape(2, columns)
    values: NDArray[np.generic] = classes / 2
    return {"imgs": GREY // 255, "latents_classes": classes, "latents_values": values, **more}


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        (5, ("shape", "scale", "orientation", "posX", "posY")),
        (6, ("color", "shape", "scale", "orientation", "posX", "posY")),
        (2, ("factor0", "factor1")),
    ],
)
def test_the_dsprites_layout_gives_factors(tmp_path: Path, columns: int, names: tuple[str, ...]) -> None:
    held = dsprites(columns, metadata=np.array({"a": 1}, dtype=object), indices=np.arange(2))
    np.savez(tmp_path / "d.npz", allow_pickle=True, **held)
    data = fit(read(tmp_path / "d.npz"), input_shape=(1, 2, 2), data_range=(0, 1))
    assert isinstance(data.factors, Factors)
    assert data.factors.names == names
    assert data.factors.classes.dtype == np.int64
    assert data.factors.values is not None and data.factors.values.dtype == np.float64
    assert_array_equal(data.factors.classes, held["latents_classes"])
    assert_array_equal(data.factors.values, held["latents_values"])
    assert data.skipped == (
        "metadata: pickled objects are not loaded",
        "indices: not taken as images, labels or factors",
    )
    assert_array_equal(whole(data), (GREY // 255)[:, None])


@pytest.mark.parametrize("dtype", ["U1", "S1"])
def test_names_of_factors_that_are_not_pickled_are_used(tmp_path: Path, dtype: str) -> None:
    np.savez(tmp_path / "d.npz", **dsprites(2, latents_names=np.array(["a", "b"], dtype)))
    held = read(tmp_path / "d.npz")
    assert held.factors is not None and held.factors.names == ("a", "b")
    assert held.skipped == ()


def test_factors_come_from_safetensors_too_and_may_lack_values(tmp_path: Path) -> None:
    held = dsprites(5)
    del held["latents_values"]
    save_file(held, tmp_path / "d.safetensors")
    factors = read(tmp_path / "d.safetensors").factors
    assert factors is not None and factors.values is None and factors.names[0] == "shape"


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"latents_classes": np.zeros((2, 2))}, "float64"),
        ({"latents_classes": np.zeros(2, int)}, "shape 2;"),
        ({"latents_classes": np.zeros((3, 2), int)}, "2 items but 3 factor classes"),
        ({"latents_values": np.zeros((3, 2))}, "2 items but 3 factor values"),
        ({"latents_values": np.zeros((2, 3))}, "latents_values of shape 2x3"),
        ({"latents_names": np.array(["a"])}, "1 names for 2 factors"),
    ],
)
def test_factors_that_do_not_fit_are_refused(tmp_path: Path, wrong: dict[str, NDArray[np.generic]], word: str) -> None:
    np.savez(tmp_path / "d.npz", **(dsprites(2) | wrong))
    assert word in refusal(DataError, lambda: read(tmp_path / "d.npz"))


@pytest.mark.parametrize(
    ("images", "labels"),
    [("images", "labels"), ("imgs", "targets"), ("x", "y"), ("X", "Y"), ("x_test", "y_test"), ("foo", "label")],
)
def test_labels_are_found_by_the_usual_names(tmp_path: Path, images: str, labels: str) -> None:
    for shape in ((2,), (2, 1)):
        np.savez(tmp_path / "d.npz", **{images: GREY, labels: np.array([7, 3], np.uint8).reshape(shape)})
        held = read(tmp_path / "d.npz")
        assert held.labels is not None and held.labels.dtype == np.int64
        assert_array_equal(held.labels, [7, 3])
        assert_array_equal(held.values, GREY)


def test_labels_of_another_split_are_not_taken(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x_test=GREY, y_train=np.arange(2))
    held = read(tmp_path / "d.npz")
    assert held.labels is None
    assert held.skipped == ("y_train: not taken as images, labels or factors",)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_whole_numbers_stored_as_floats_are_labels_and_that_is_said(tmp_path: Path, dtype: type[np.floating]) -> None:
    for labels in (np.array([7, -3], dtype), np.array([[7], [-3]], dtype)):
        np.savez(tmp_path / "d.npz", images=GREY, labels=labels)
        held = read(tmp_path / "d.npz")
        assert held.labels is not None
        assert_array_equal(held.labels, np.array([7, -3]), strict=True)
        assert held.told == (f"labels are whole numbers stored as {np.dtype(dtype).name}",)
        assert fit(held, input_shape=(1, 2, 2), data_range=(0, 1)).stored.endswith(held.told[0])


@pytest.mark.parametrize("kind", ["U", "S"])
def test_texts_are_labels_numbered_in_their_order_and_that_is_said(tmp_path: Path, kind: str) -> None:
    np.savez(tmp_path / "d.npz", images=GREY, y=np.array(["dog", "cat"]).astype(kind))
    held = read(tmp_path / "d.npz")
    assert held.labels is not None
    assert held.labels.tolist() == [1, 0]
    assert held.told == ("labels are texts, numbered in their order (0 = cat, 1 = dog)",)


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (np.eye(2), "an array of shape 2x2"),
        (np.array([0.5, 1]), "float64, 1 of 2 of them not whole numbers"),
        (np.array([np.nan, np.inf], np.float32), "float32, 2 of 2 of them not whole numbers"),
        (np.array([1e300, 1]), "float64, 1 of 2 of them not whole numbers"),
        (np.array([1j, 2]), "of type complex128"),
        (np.array(3), "an array of shape scalar"),
    ],
)
def test_what_is_no_label_is_left_out_with_what_it_is_instead(
    tmp_path: Path, labels: NDArray[np.generic], why: str
) -> None:
    np.savez(tmp_path / "d.npz", images=GREY, labels=labels)
    held = read(tmp_path / "d.npz")
    assert held.skipped == (f"labels: no labels but {why}, where one whole number or text for each item was expected",)
    data = fit(held, input_shape=(1, 2, 2), data_range=(0, 1))
    assert f"holds no labels (labels: no labels but {why}" in refusal(DataError, lambda: by_label(data, 1, seed=0))


def test_labels_of_another_number_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=GREY, labels=np.arange(3))
    assert "2 items but 3 labels" in refusal(DataError, lambda: read(tmp_path / "d.npz"))


def test_an_array_named_as_images_goes_before_others(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", other=np.zeros((5, 5)), images=GREY)
    held = read(tmp_path / "d.npz")
    assert_array_equal(held.values, GREY)
    assert held.skipped == ("other: not taken as images, labels or factors",)


@pytest.mark.parametrize("names", [("x_train", "x_test"), ("one", "two"), ("imgs", "images")])
def test_several_arrays_that_could_be_the_images_are_refused_by_name(tmp_path: Path, names: tuple[str, str]) -> None:
    np.savez(tmp_path / "d.npz", **dict.fromkeys(names, GREY))
    save_file(dict.fromkeys(names, GREY), tmp_path / "d.safetensors")
    for file in tmp_path.iterdir():
        message = refusal(DataError, partial(read, file))
        assert all(name in message for name in names)


def test_an_archive_without_images_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", labels=np.arange(3))
    assert "only labels of shape 3;" in refusal(DataError, lambda: read(tmp_path / "d.npz"))
    np.savez(tmp_path / "d.npz")
    assert "only nothing;" in refusal(DataError, lambda: read(tmp_path / "d.npz"))


def test_what_is_no_array_in_an_archive_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=GREY)
    with zipfile.ZipFile(tmp_path / "d.npz", "a") as archive:
        archive.writestr("README.txt", "hello")
    assert read(tmp_path / "d.npz").skipped == ("README.txt: not an array",)


def test_headers_written_by_python_2_are_read(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (2L, 2L, 2L), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + GREY.tobytes()
    (tmp_path / "d.npy").write_bytes(content)
    assert_array_equal(read(tmp_path / "d.npy").values, GREY)


# Trust


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def malicious_array(target: Path) -> NDArray[np.object_]:
    array = np.empty(2, object)
    array[:] = [Malicious(target), Malicious(target)]
    return array


def test_the_malicious_pickle_of_these_tests_does_run_where_it_is_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", malicious_array(tmp_path / "ran"), allow_pickle=True)
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert (tmp_path / "ran").exists()


def test_a_malicious_pickle_beside_the_images_is_left_out_and_does_not_run(tmp_path: Path) -> None:
    evil = malicious_array(tmp_path / "ran")
    names = ("metadata", "labels", "latents_classes", "latents_names", "latents_values")
    np.savez(tmp_path / "d.npz", allow_pickle=True, images=GREY, **dict.fromkeys(names, evil))
    held = read(tmp_path / "d.npz")
    assert_array_equal(held.values, GREY)
    assert held.labels is None and held.factors is None
    assert set(held.skipped) == {f"{name}: pickled objects are not loaded" for name in names}
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["images", "x_test", "arr_0", "metadata"])
def test_images_that_are_a_malicious_pickle_are_refused_and_do_not_run(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "d.npz", allow_pickle=True, **{name: malicious_array(tmp_path / "ran")})
    message = refusal(TrustError, lambda: read(tmp_path / "d.npz"))
    assert name in message and "convert" in message
    assert not (tmp_path / "ran").exists()


def test_pickled_images_are_refused_though_another_array_could_be_images(tmp_path: Path) -> None:
    evil = malicious_array(tmp_path / "ran")
    np.savez(tmp_path / "d.npz", allow_pickle=True, images=evil, mean=np.zeros((2, 2)))
    refusal(TrustError, lambda: read(tmp_path / "d.npz"))
    assert not (tmp_path / "ran").exists()


def test_a_pickled_field_of_a_record_is_refused_and_does_not_run(tmp_path: Path) -> None:
    records = np.zeros((2, 2), dtype=[("a", "u1"), ("b", object)])
    records["b"] = Malicious(tmp_path / "ran")
    np.savez(tmp_path / "d.npz", allow_pickle=True, images=records)
    np.save(tmp_path / "d.npy", records, allow_pickle=True)
    for name in ("d.npz", "d.npy"):
        refusal(TrustError, partial(read, tmp_path / name))
    assert not (tmp_path / "ran").exists()


def test_a_malicious_npy_is_refused_and_does_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", malicious_array(tmp_path / "ran"), allow_pickle=True)
    assert "np.savez" in refusal(TrustError, lambda: read(tmp_path / "a.npy"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_under_another_name_is_refused_and_does_not_run(
    tmp_path: Path, suffix: str, protocol: int
) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(pickle.dumps(Malicious(tmp_path / "ran"), protocol))
    refusal(TrustError if protocol >= 2 else DataError, lambda: read(file))
    assert not (tmp_path / "ran").exists()


# Damaged and missing files


def test_a_missing_file_is_refused_with_the_nearest_name_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mnist_test.npz").touch()
    message = refusal(DataError, lambda: read(tmp_path / "mnist_tset.npz"))
    assert "(did you mean 'mnist_test.npz'?)" in message
    assert "did you mean" not in refusal(DataError, lambda: read(tmp_path / "nowhere" / "a.npz"))


@pytest.mark.parametrize("source", ["torchvision:MNIST", "hf:ylecun/mnist@main#test", "https://example.org/a.npz"])
def test_sources_that_are_not_supported_yet_are_refused_with_what_is(source: str) -> None:
    assert refusal(DataError, lambda: read(source)) == (
        f"{source} names a source of a kind that is not supported yet; give a .npz, .npy, .safetensors, .pt, .csv, "
        ".parquet, .h5, .h5ad or MNIST idx(.gz) file, a data set of Hugging Face on disk, or a folder of images or "
        "WAV clips"
    )


def test_an_unknown_ending_is_refused_with_the_nearest(tmp_path: Path) -> None:
    for name, word in (("a.npzz", "did you mean '.npz'?"), ("a", "has no ending"), ("a.mat", "ends in .mat,")):
        (tmp_path / name).touch()
        assert word in refusal(DataError, partial(read, tmp_path / name))


def small_files(folder: Path) -> list[Path]:
    noise = np.random.default_rng(2).integers(0, 256, (4, 16, 16), dtype=np.uint8)
    np.savez(folder / "a.npz", images=noise)
    np.savez_compressed(folder / "b.npz", images=noise)
    np.save(folder / "c.npy", noise)
    save_file({"images": noise}, folder / "d.safetensors")
    (folder / "e.idx").write_bytes(idx_bytes(noise))
    (folder / "f-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(noise)))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused_by_name(tmp_path: Path, share: float) -> None:
    for file in small_files(tmp_path):
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
        message = refusal(DataError, partial(read, file))
        assert str(file) in message and "is not a whole" in message


def test_files_with_more_than_their_header_promises_are_refused(tmp_path: Path) -> None:
    for name in ("c.npy", "e.idx"):
        file = next(f for f in small_files(tmp_path) if f.name == name)
        file.write_bytes(file.read_bytes() + b"\0")
        assert "promises" in refusal(DataError, partial(read, file))


def test_what_was_read_stays_when_the_file_is_written_over(tmp_path: Path) -> None:
    for file in small_files(tmp_path):
        held = read(file)
        before = held.values.copy()
        with file.open("r+b") as stream:  # in place, as a memory map would see it
            stream.write(bytes(file.stat().st_size))
        assert_array_equal(held.values, before)


def test_a_flipped_bit_in_an_archive_is_noticed(tmp_path: Path) -> None:
    file = small_files(tmp_path)[0]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "CRC" in refusal(DataError, lambda: read(file))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([".npz", ".npy", ".safetensors", ".idx", ".idx.gz"]))
def test_any_bytes_are_read_or_refused_but_never_crash(content: bytes, suffix: str) -> None:
    with TemporaryDirectory() as name:
        file = Path(name) / f"a{suffix}"
        file.write_bytes(content)
        with pytest.raises((DataError, TrustError)):
            read(file)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_changed_bytes_give_an_array_or_a_refusal_but_never_a_crash(data: st.DataObject) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        kind = data.draw(st.sampled_from(["npz", "npy", "safetensors", "idx", "gz", "png", "tif", "bmp", "jpg"]))
        source = folder / f"a.idx.{kind}" if kind == "gz" else folder / f"a.{kind}"
        if kind == "npz":
            np.savez_compressed(source, **dsprites(2))
        elif kind == "npy":
            np.save(source, GREY)
        elif kind == "safetensors":
            save_file(dsprites(2), source)
        elif kind in {"idx", "gz"}:
            source.write_bytes(idx_bytes(GREY) if kind == "idx" else gzip.compress(idx_bytes(GREY)))
        else:
            save_images(source, GREY[:1], f".{kind}")
        file = next(source.iterdir()) if source.is_dir() else source
        content = bytearray(file.read_bytes())
        for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
            content[position] = data.draw(st.integers(0, 255))
        file.write_bytes(content)
        try:
            assert read(source).values.size
        except (DataError, TrustError) as error:
            assert "\n" not in str(error)


def test_a_header_that_promises_terabytes_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (2**20, 2**22)}
        np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.write(tmp_path / "a.npy", "images.npy")
    for name in ("a.npy", "a.npz"):
        assert "promises 4398046511232 bytes" in refusal(DataError, partial(read, tmp_path / name))
    (tmp_path / "b.idx").write_bytes(struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3))
    assert "promises" in refusal(DataError, lambda: read(tmp_path / "b.idx"))


def test_a_file_that_may_not_be_read_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.idx").touch()
    monkeypatch.setattr(Path, "open", denied)
    assert "cannot be read (Permission denied)" in refusal(DataError, lambda: read(tmp_path / "a.idx"))


def test_no_items_are_refused(tmp_path: Path) -> None:
    for shape in ((0, 28, 28), (3, 0)):
        np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
        assert "holds no items" in refusal(DataError, lambda: read(tmp_path / "a.npy"))
    np.save(tmp_path / "a.npy", np.zeros(5))
    assert "one row per item" in refusal(DataError, lambda: read(tmp_path / "a.npy"))


# MNIST idx


@pytest.mark.parametrize("images", ["t-images-idx3-ubyte", "t-images-idx3-ubyte.gz", "t-images.idx3-ubyte"])
@pytest.mark.parametrize("packed", [False, True])
def test_labels_come_from_the_file_beside_the_images(tmp_path: Path, images: str, packed: bool) -> None:
    content = idx_bytes(GREY)
    (tmp_path / images).write_bytes(gzip.compress(content) if images.endswith("gz") else content)
    assert read(tmp_path / images).labels is None
    labels = images.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    content = idx_bytes(np.array([4, 9], np.uint8))
    (tmp_path / (labels + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    held = read(tmp_path / images)
    assert held.labels is not None and held.labels.dtype == np.int64
    assert_array_equal(held.labels, [4, 9])


def test_labels_of_an_idx_file_must_be_as_many_and_whole(tmp_path: Path) -> None:
    (tmp_path / "images-idx3-ubyte").write_bytes(idx_bytes(GREY))
    (tmp_path / "labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(3, np.uint8)))
    assert "2 items but 3 labels" in refusal(DataError, lambda: read(tmp_path / "images-idx3-ubyte"))
    (tmp_path / "labels-idx1-ubyte").write_bytes(idx_bytes(GREY))
    assert "labels-idx1-ubyte, as the labels of images-idx3-ubyte, is an array of shape 2x2x2, where" in refusal(
        DataError, lambda: read(tmp_path / "images-idx3-ubyte")
    )
    (tmp_path / "labels-idx1-ubyte").write_bytes(b"")
    assert "labels-idx1-ubyte is not a whole" in refusal(DataError, lambda: read(tmp_path / "images-idx3-ubyte"))


def test_an_idx_file_with_a_wrong_magic_number_is_refused(tmp_path: Path) -> None:
    for magic in ("00000703", "00010803", "00000800"):
        (tmp_path / "a-idx3-ubyte").write_bytes(bytes.fromhex(magic) + idx_bytes(GREY)[4:])
        message = refusal(DataError, lambda: read(tmp_path / "a-idx3-ubyte"))
        assert f"the magic number is {magic} and not 00000803" in message


def test_labels_given_as_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(3, np.uint8)))
    assert "as labels do" in refusal(DataError, lambda: read(tmp_path / "labels-idx1-ubyte"))


def test_idx_files_of_floats_are_read_in_their_byte_order(tmp_path: Path) -> None:
    values = np.array([[0.25, 1.0]], np.float32)
    (tmp_path / "a.idx").write_bytes(idx_bytes(values, 0x0D))
    assert_array_equal(whole(fit(read(tmp_path / "a.idx"), input_shape=(2,), data_range=(0, 1))), values)


# Folders


def test_images_come_in_the_order_of_their_relative_names(tmp_path: Path) -> None:
    for value, name in ((30, "b/1.png"), (10, "a/2.png"), (20, "a/deep/1.png"), (99, ".hidden/0.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((1, 1), value, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "more.csv").touch()
    held = read(tmp_path)
    assert held.values.ravel().tolist() == [10, 20, 30]
    assert held.labels is not None and held.labels.tolist() == [0, 0, 1]
    assert held.skipped == ("more.csv, notes.txt: not images (2)",)


def test_sub_folders_are_no_labels_where_some_images_lie_in_none(tmp_path: Path) -> None:
    save_images(tmp_path, GREY)
    assert read(tmp_path).labels is None
    save_images(tmp_path / "a", GREY)
    held = read(tmp_path)
    assert held.labels is None
    assert held.skipped == ("sub-folders: not taken as labels, since some images lie in none",)


def test_the_first_image_of_another_size_or_mode_is_named(tmp_path: Path) -> None:
    save_images(tmp_path, GREY)
    Image.fromarray(np.zeros((3, 2), np.uint8)).save(tmp_path / "odd.png")
    message = refusal(DataError, lambda: read(tmp_path))
    assert f"{tmp_path / 'odd.png'} is 3x2 where 000.png is 2x2" in message
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "odd.png")
    assert "is 2x2x3 where 000.png is 2x2" in refusal(DataError, lambda: read(tmp_path))


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    save_images(tmp_path, np.random.default_rng(3).integers(0, 256, (3, 20, 20), dtype=np.uint8))
    file = tmp_path / "001.png"
    content = file.read_bytes()
    for damaged in (b"", content[:20], content[:-100], content[:60] + b"\0" + content[61:]):
        file.write_bytes(damaged)
        assert f"{file} is not a whole image" in refusal(DataError, lambda: read(tmp_path))


def png_16_bit_rgb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + bytes(range(12))) * 2))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def test_images_that_would_need_a_choice_are_refused(tmp_path: Path) -> None:
    grey, file = Image.fromarray(GREY[0]), tmp_path / "a.png"
    cases: list[tuple[str, Callable[[], object]]] = [
        ("mode RGBA", lambda: grey.convert("RGBA").save(file)),
        ("mode LA", lambda: grey.convert("LA").save(file)),
        ("mode P", lambda: grey.convert("P").save(file)),
        ("mode I;16", lambda: Image.fromarray(GREY[0].astype(np.uint16)).save(file, format="TIFF")),
        ("transparency", lambda: grey.save(file, transparency=0)),
        ("16 bits a channel", lambda: file.write_bytes(png_16_bit_rgb())),
        ("several frames", lambda: grey.save(file, save_all=True, append_images=[Image.fromarray(GREY[1])])),
    ]
    for fault, write in cases:
        write()
        message = refusal(DataError, lambda: read(tmp_path))
        assert fault in message and str(file) in message and "convert" in message


def test_images_are_turned_upright_as_their_exif_data_say_and_that_is_said(tmp_path: Path) -> None:
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3)
    # How EXIF's orientations store an upright image.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T, 6: upright.T[::-1],
        7: upright.T[::-1, ::-1], 8: upright.T[:, ::-1],
    }  # fmt: skip
    for suffix in (".png", ".tif", ".webp"):
        for orientation, pixels in stored.items():
            image = Image.fromarray(np.ascontiguousarray(pixels))
            exif = image.getexif()
            exif[0x0112] = orientation
            folder = tmp_path / suffix
            folder.mkdir(exist_ok=True)
            file = folder / f"{orientation}{suffix}"
            if suffix == ".webp":
                image.convert("RGB").save(file, exif=exif, lossless=True)
            else:
                image.save(file, exif=exif)
        held = read(tmp_path / suffix)
        for pixels in held.values:
            assert_array_equal(pixels[..., 0] if suffix == ".webp" else pixels, upright)
        assert held.told == (
            f"7 of 8 images turned upright as their EXIF data say (2{suffix}, 3{suffix}, 4{suffix}, 5{suffix}, "
            f"6{suffix}, 7{suffix} and 1 more)",
        )
        assert "turned upright" in fit(held, input_shape=held.values.shape[1:], data_range=(0, 1)).stored


def test_damaged_exif_data_are_no_orientation(tmp_path: Path) -> None:
    for number, exif in enumerate((b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense")):
        Image.fromarray(GREY[0]).save(tmp_path / f"{number}.jpg", exif=exif)
    held = read(tmp_path)
    assert (held.values.shape, held.told) == ((3, 2, 2), ())


def test_whatever_is_left_out_of_a_folder_is_named_by_kind_with_its_number(tmp_path: Path) -> None:
    save_images(tmp_path / "a", GREY)
    for name in ("1.gif", "2.GIF", "x.heic", "a/y.avif", "notes.txt", ".hidden.gif"):
        (tmp_path / name).write_bytes(b"GIF89a")
    (tmp_path / "lost.png").symlink_to("nowhere.png")
    (tmp_path / "linked").symlink_to(tmp_path / "a", target_is_directory=True)
    os.mkfifo(tmp_path / "pipe.png")
    held = read(tmp_path)
    assert len(held.values) == 2
    assert held.skipped == (
        "1.gif, 2.GIF: .gif images are not read; convert them to PNG (2)",
        "a/y.avif: .avif images are not read; convert them to PNG",
        "linked: links to folders are not followed",
        "lost.png: broken links",
        "notes.txt: not images",
        "pipe.png: neither files nor folders",
        "x.heic: .heic images are not read; convert them to PNG",
    )
    shutil.rmtree(tmp_path / "a")
    assert "it holds 1.gif, 2.GIF: .gif images are not read; convert them to PNG (2); give" in refusal(
        DataError, lambda: read(tmp_path)
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "it is empty"), (b"hello", "its bytes are none of BMP, JPEG, PNG, TIFF, WEBP"), (bytes(99), "none of BMP")],
)
def test_what_is_no_image_is_named_without_an_objects_address(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    message = refusal(DataError, lambda: read(tmp_path))
    assert why in message
    assert "0x" not in message


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a.pkl", "np.savez('images.npz', images=np.asarray(np.load('a.pkl', allow_pickle=True)))"),
        ("a.zip", "is an archive; unpack it and give the folder of images"),
        ("a.png", "is one image, where a folder of them was expected"),
    ],
)
def test_other_kinds_of_files_are_told_how_they_are_converted(
    tmp_path: Path, name: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).touch()
    message = refusal(DataError, lambda: read(tmp_path / name))
    assert told in message
    assert "did you mean" not in message
    line = told.split("; ")[-1]
    if line.startswith("np."):  # it is true
        monkeypatch.chdir(tmp_path)
        Path("a.pkl").write_bytes(pickle.dumps(list(GREY)))
        exec(line, {"np": np})
        assert_array_equal(read("images.npz").values, GREY)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_images(tmp_path, GREY)
    for pixels in (3, 1):  # Pillow warns above its limit and raises above twice it
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
        assert "decompression bomb" in refusal(DataError, lambda: read(tmp_path))


def test_a_folder_without_images_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    assert "it is empty" in refusal(DataError, lambda: read(tmp_path))
    (tmp_path / "a.npz").touch()
    assert "it holds a.npz" in refusal(DataError, lambda: read(tmp_path))


# Hashes


def test_the_hash_is_that_of_the_files_bytes(tmp_path: Path) -> None:
    for file in small_files(tmp_path):
        assert read(file).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_hash_of_a_folder_is_that_of_its_sorted_names_and_hashes(tmp_path: Path) -> None:
    save_images(tmp_path / "f" / "b", GREY[:1])
    save_images(tmp_path / "f" / "a", GREY[1:])
    lines = "".join(
        f"{hashlib.sha256((tmp_path / 'f' / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("a/000.png", "b/000.png")
    )
    first = read(tmp_path / "f").sha256
    assert first == hashlib.sha256(lines.encode()).hexdigest()
    (tmp_path / "f" / "a" / "000.png").rename(tmp_path / "f" / "a" / "001.png")
    assert read(tmp_path / "f").sha256 != first
    (tmp_path / "f").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "a" / "001.png").rename(tmp_path / "elsewhere" / "a" / "000.png")
    assert read(tmp_path / "elsewhere").sha256 == first


# Real data


@needs_shared
def test_mnist_resized_equals_the_images_that_pillow_resized() -> None:
    train = read(SHARED / "mnist" / "mnist_train.npz")
    expected = np.load(SHARED / "mnist" / "train_first1000_32x32.npy")
    data = fit(train, input_shape=(1, 32, 32), data_range=(0, 1), resize="bilinear")
    assert data.stored == ("uint8 28x28, values 0..255, mapped from [0, 255] to [0, 1], resized to 32x32 with bilinear")
    x = data.batch(range(1000)).numpy()
    assert_array_equal(x[:, 0], expected.astype(np.float32) / np.float32(255))
    assert train.labels is not None and train.labels[:4].tolist() == [5, 0, 4, 1]
    assert data.warnings == data.skipped == ()


@needs_shared
def test_mnist_is_the_same_from_npz_and_idx() -> None:
    npz = read(SHARED / "mnist" / "mnist_test.npz")
    idx = read(SHARED / "mnist" / "t10k-images-idx3-ubyte.gz")
    assert_array_equal(npz.values, idx.values, strict=True)
    assert npz.labels is not None and idx.labels is not None
    assert_array_equal(npz.labels, idx.labels, strict=True)


@needs_shared
def test_dsprites_are_read_without_their_pickled_metadata() -> None:
    held = read(SHARED / "dsprites" / "dsprites_subset.npz")
    data = fit(held, input_shape=(1, 64, 64), data_range=(0, 1))
    assert data.skipped == (
        "metadata: pickled objects are not loaded",
        "original_dataset_indices: not taken as images, labels or factors",
    )
    assert held.factors is not None
    assert held.factors.names == ("shape", "scale", "orientation", "posX", "posY")
    assert held.factors.classes.shape == (20000, 5)
    assert data.stored == "uint8 64x64, values 0..1, taken as they are in [0, 1], read as 1x64x64"
    assert set(np.unique(data.batch([0, 19999]).numpy())) == {0, 1}


def test_an_array_of_an_npz_that_holds_several_is_named_after_the_file(tmp_path: Path) -> None:
    train, test = np.zeros((3, 4, 4), np.uint8), np.full((2, 4, 4), 9, np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=train, y_train=np.arange(3), x_test=test, y_test=np.arange(2) + 5)
    with pytest.raises(DataError, match=r"name the one to audit, as in mnist\.npz#x_train"):
        read(tmp_path / "mnist.npz")
    stored = read(f"{tmp_path}/mnist.npz#x_test")
    assert np.array_equal(stored.values, test)
    assert stored.labels is not None and stored.labels.tolist() == [5, 6]
    assert stored.source.endswith("mnist.npz#x_test")
    with pytest.raises(DataError, match="no array 'x_tset' \\(did you mean 'x_test'\\?\\)"):
        read(f"{tmp_path}/mnist.npz#x_tset")


def test_an_archive_that_holds_one_name_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the very thing that is tried
        for images in (GREY, GREY[::-1]):
            content = BytesIO()
            np.save(content, images)
            archive.writestr("images.npy", content.getvalue())
    assert "holds two arrays named 'images', where one was expected" in refusal(DataError, lambda: read(file))


@pytest.mark.parametrize("columns", [(), (2,)])
def test_of_the_arrays_of_an_archive_the_first_are_named(tmp_path: Path, columns: tuple[int, ...]) -> None:
    arrays = {f"{'x' * 100}{index}": np.zeros((3, *columns)) for index in range(300)}
    np.savez(tmp_path / "a.npz", **arrays)
    for source in (tmp_path / "a.npz", f"{tmp_path / 'a.npz'}#nope"):
        message = refusal(DataError, lambda source=source: read(source))
        assert "and 294 more" in message
        assert len(message) < 1500


@pytest.mark.parametrize("suffix", [".eps", ".ppm", ".gif"])
def test_only_the_kinds_of_images_that_are_read_are_tried_whatever_the_name_says(tmp_path: Path, suffix: str) -> None:
    content = BytesIO()
    Image.fromarray(GREY[0]).save(content, suffix[1:].upper())
    (tmp_path / "a.png").write_bytes(content.getvalue())
    assert "its bytes are none of BMP, JPEG, PNG, TIFF, WEBP" in refusal(DataError, lambda: read(tmp_path))


def test_of_a_folder_the_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_images(tmp_path, GREY)

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    expected = f"{tmp_path / '000.png'} cannot be read (Permission denied); check its name and permissions"
    assert refusal(DataError, lambda: read(tmp_path)) == expected
