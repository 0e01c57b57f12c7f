"""Reading folders of images: their headers first, so that nothing is decoded that claims too much."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from vaeaudit.data.archives import decoding
from vaeaudit.data.items import Stored
from vaeaudit.data.labels import numbered
from vaeaudit.data.shapes import shape_text
from vaeaudit.errors import DataError, listed
from vaeaudit.model.files import FREE, PACKED, amount, excess, obstacle
from vaeaudit.model.stated import first_sentence

# Nothing else is tried, whatever a name says: some readers of Pillow start other programs, as that of PostScript does.
_FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_OTHER_IMAGES = (".avif", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jxl", ".pbm", ".pgm", ".ppm", ".svg")
_MOST_NUMBERS = 2**26  # of one image
_ORIENTATION = 0x0112  # tag of EXIF: 1 is upright
_MODES = {
    "I": "32-bit integers",
    "F": "32-bit floats",
    "P": "a palette",
    "RGBA": "an alpha channel",
    "LA": "an alpha channel",
    "CMYK": "inks",
}


def read_folder(folder: Path, readable: str) -> Stored:
    """Images below a folder in the order of their relative names, (n, H, W) or (n, H, W, 3) uint8, or uint16.

    Grayscale of 8 bits, or of 16 in a PNG, and RGB as stored, 1-bit as 0 and 255, turned upright as their EXIF data
    say; no colour management. Hidden files are passed over. The sub-folders directly below, in the order of their
    names, are the labels 0, 1, ... ``readable`` tells what else could be given.
    """
    images, others = _found(folder)
    skipped = [
        f"{listed(names)}: {what}{f' ({len(names)})' if len(names) > 1 else ''}" for what, names in others.items()
    ]
    if not images:
        held = f"it holds {skipped[0]}" if skipped else "it is empty"
        raise DataError(f"the folder {folder} holds no images ({', '.join(SUFFIXES)}), {held}; give {readable}")
    _check_claims(folder, images)
    lines = hashlib.sha256()  # over "HASH  NAME" lines, as sha256sum prints them
    values: NDArray[np.uint8 | np.uint16] = np.empty(0, np.uint8)
    turned: list[str] = []
    for index, (name, file) in enumerate(images):
        content = file.read_bytes()
        lines.update(f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode(errors="surrogateescape"))
        pixels, upright = pixels_of(file, content)
        if not upright:
            turned.append(name)
        if index == 0:
            values = np.empty((len(images), *pixels.shape), pixels.dtype)
        if (pixels.shape, pixels.dtype) != (values.shape[1:], values.dtype):
            raise DataError(
                f"{file} is {_described(pixels)} where {images[0][0]} is {_described(values[0])}, "
                "and all images must have one size and mode; convert them first"
            )
        values[index] = pixels
    labels, called = labels_of([name for name, _ in images], skipped)
    told: tuple[str, ...] = (
        f"{len(turned)} of {len(images)} images turned upright as their EXIF data say ({listed(turned)})",
    )
    top = 2**16 - 1 if values.dtype == np.uint16 else None
    return Stored(
        values,
        labels,
        None,
        str(folder),
        lines.hexdigest(),
        tuple(skipped),
        told=told * bool(turned),
        top=top,
        label_names=called,
    )


def labels_of(names: list[str], skipped: list[str]) -> tuple[NDArray[np.int64], tuple[str, ...]] | tuple[None, None]:
    """Labels by the sub-folders that files lie in, and what these are called; none where a file lies in none.

    ``skipped`` is told where others do.
    """
    nested = [name.split("/")[0] for name in names if "/" in name]
    if len(nested) == len(names):
        return numbered(nested)
    if nested:
        skipped.append("sub-folders: not taken as labels, since some images lie in none")
    return None, None


def _described(pixels: NDArray[np.generic]) -> str:
    return shape_text(pixels.shape) + " of 16 bits" * (pixels.dtype == np.uint16)


def _found(folder: Path) -> tuple[list[tuple[str, Path]], dict[str, list[str]]]:
    """Images in the order of their relative names, and the names of what else is there, by what it is."""
    images: list[tuple[str, Path]] = []
    others: dict[str, list[str]] = {}
    for name, file in sorted((file.relative_to(folder).as_posix(), file) for file in below(folder)):
        suffix = file.suffix.lower()
        if file.is_dir():
            others.setdefault("links to folders are not followed", []).append(name)
        elif not file.exists():
            others.setdefault("broken links", []).append(name)
        elif not file.is_file():
            others.setdefault("neither files nor folders", []).append(name)
        elif suffix in SUFFIXES:
            images.append((name, file))
        elif suffix in _OTHER_IMAGES:
            others.setdefault(f"{suffix} images are not read; convert them to PNG", []).append(name)
        else:
            others.setdefault("not images", []).append(name)
    return images, others


def below(folder: Path) -> Iterator[Path]:
    """Whatever is no folder below ``folder``, links to folders included, hidden things left out. Raises OSError."""

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        yield from (Path(place) / name for name in (*files, *links) if not name.startswith("."))


def _check_claims(folder: Path, images: list[tuple[str, Path]]) -> None:
    """Hold what the headers of all images claim against their sizes, before one of them is decoded."""
    numbers = size = 0
    for _, file in images:
        if fault := obstacle(file):
            raise DataError(fault)
        bytes_there = file.stat().st_size
        if bytes_there > FREE:
            raise DataError(f"{file} is {amount(bytes_there)}, where an image is at most {amount(FREE)}; leave it out")
        with _image(file, file) as image:
            claimed = image.width * image.height * len(image.getbands())
        if claimed > _MOST_NUMBERS:
            raise DataError(
                f"{file} claims {image.width}x{image.height} pixels in {amount(bytes_there)}, where an image of at "
                f"most {_MOST_NUMBERS:,} numbers was expected; leave it out"
            )
        numbers, size = numbers + claimed, size + bytes_there
    if fault := excess(numbers, size, PACKED):
        raise DataError(f"the images in {folder} were not decoded ({fault}); give fewer of them at a time")


def _image(file: Path, content: Path | BytesIO) -> ImageFile.ImageFile:
    """An image of which no more than the header has been read."""
    with decoding(file, "image"):
        try:
            return Image.open(content, formats=_FORMATS)
        except UnidentifiedImageError as error:
            empty = not file.stat().st_size
            raise ValueError("it is empty" if empty else f"its bytes are none of {', '.join(_FORMATS)}") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DataError(
                f"{file} claims more pixels than are decoded ({first_sentence(error)}); leave it out"
            ) from error


def pixels_of(file: Path, content: bytes) -> tuple[NDArray[np.uint8 | np.uint16], bool]:
    """(H, W) or (H, W, 3), upright, and whether it was stored so.

    Whatever would need a choice (palette, alpha, 16 bits, frames) is refused.
    """
    with _image(file, BytesIO(content)) as image, decoding(file, "image"):
        fault = ""
        deep = image.mode == "I;16" and image.format == "PNG"
        if image.mode not in {"1", "L", "RGB"} and not deep:
            fault = f"mode {image.mode}" + (f" ({_MODES[image.mode]})" if image.mode in _MODES else "")
        elif "transparency" in image.info:
            fault = f"mode {image.mode} with transparency"
        elif ";16" in str(image.tile) and not deep:  # Pillow would drop the lower bits of 16-bit RGB without a word
            fault = "16 bits a channel"
        elif getattr(image, "n_frames", 1) > 1:
            fault = "several frames"
        if fault:
            raise DataError(
                f"{file} is an image with {fault}, where grayscale, of 16 bits only in a PNG, or 8-bit RGB was "
                "expected; convert it as the model's training data were converted"
            )
        orientation = 1
        # Of another opening: this loads a PNG file, and a second load of a damaged one gives pixels without an error.
        # Damaged EXIF data raise nearly anything, and say nothing of orientation.
        with suppress(Exception), Image.open(BytesIO(content), formats=_FORMATS) as header:
            orientation = header.getexif().get(_ORIENTATION, 1)
        upright = orientation not in range(2, 9)
        turned = image if upright else ImageOps.exif_transpose(image)
        kind = np.uint16 if deep else np.uint8
        return np.asarray(turned.convert("L") if image.mode == "1" else turned, dtype=kind), upright
