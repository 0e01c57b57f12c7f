"""Reading folders of WAV clips: 8-, 16-, 24- and 32-bit integers and floats, as floats in [-1, 1]."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import wavfile

from vaeaudit.data.archives import decoding
from vaeaudit.data.image_folders import below, labels_of
from vaeaudit.data.items import Stored
from vaeaudit.errors import DataError
from vaeaudit.model.checkpoints import sha256_of
from vaeaudit.model.files import obstacle

SUFFIX = ".wav"


def clips_in(folder: Path) -> list[tuple[str, Path]]:
    """Clips below a folder by their relative names, in the order of these. Raises OSError."""
    found = ((file.relative_to(folder).as_posix(), file) for file in below(folder) if file.suffix.lower() == SUFFIX)
    return sorted(found)


def read_clips(folder: Path, clips: list[tuple[str, Path]]) -> Stored:
    """(n, samples) of one channel, or (n, channels, samples); sub-folders are labels as those of images are.

    Raises :class:`DataError` where a clip differs from the first in length, channels or rate.
    """
    lines = hashlib.sha256()
    skipped: list[str] = []
    values: list[NDArray[np.float32]] = []
    rates: list[int] = []
    for name, file in clips:
        if fault := obstacle(file):
            raise DataError(fault)
        lines.update(f"{sha256_of(file)}  {name}\n".encode(errors="surrogateescape"))
        with decoding(file, "WAV file"):
            rate, samples = wavfile.read(file)
        rates.append(rate)
        values.append(_unit(samples).T)  # (samples,) or (samples, channels)
        if (values[-1].shape, rate) != (values[0].shape, rates[0]):
            came, first = ("x".join(map(str, (*one.shape, ""))) for one in (values[-1], values[0]))
            raise DataError(
                f"{file} is {came[:-1]} at {rate} Hz where {clips[0][0]} is {first[:-1]} at {rates[0]} Hz, and all "
                "clips must have one length, rate and number of channels; cut or convert them first"
            )
    labels, called = labels_of([name for name, _ in clips], skipped)
    told = (f"clips of {rates[0]} Hz as floats in [-1, 1]",)
    digest = lines.hexdigest()
    return Stored(np.stack(values), labels, None, str(folder), digest, tuple(skipped), told=told, label_names=called)


def _unit(samples: NDArray[np.generic]) -> NDArray[np.float32]:
    """Floats as they are, integers over what their type counts up to; 24 bits come in the upper ones of 32."""
    kind = samples.dtype
    if kind == np.uint8:
        return ((samples.astype(np.float32) - 128) / 128).astype(np.float32)
    scale = 2.0 ** (8 * kind.itemsize - 1) if kind.kind == "i" else 1.0
    return (samples.astype(np.float64) / scale).astype(np.float32)
