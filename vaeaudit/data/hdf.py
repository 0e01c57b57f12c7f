"""Reading HDF5 files, by extras: data sets by name (.h5, .hdf5), and the matrix of annotated data (.h5ad)."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeaudit.data.archives import LABEL_NAMES, Array, decoding, select
from vaeaudit.data.items import Stored
from vaeaudit.data.labels import read_labels
from vaeaudit.errors import DataError, clipped, listed, nearest, without_extra
from vaeaudit.model.checkpoints import sha256_of
from vaeaudit.model.files import PACKED, excess


def read_h5(file: Path, wanted: str | None) -> Stored:
    """The data sets of an HDF5 file, told apart by their names as the arrays of a .npz archive."""
    try:
        import h5py
    except ImportError as error:
        raise without_extra(f"the HDF5 file {file}", "h5") from error
    arrays: dict[str, Array] = {}
    with decoding(file, "HDF5 file"), h5py.File(file, "r") as opened:

        def note(name: str, held: Any) -> None:
            if isinstance(held, h5py.Dataset) and held.dtype.kind in "biufcSU" and not held.is_virtual:
                arrays[name] = Array(file, held.shape, held.dtype.kind, None, partial(_values, file, held))

        opened.visititems(note)
        return select(file, arrays, [], wanted)


def _values(file: Path, held: Any) -> NDArray[np.generic]:
    if held.external:
        raise DataError(
            f"{file}: {clipped(held.name)} lies in other files, which are not opened; copy it into this one"
        )
    if fault := excess(held.nbytes, file.stat().st_size, PACKED):
        raise DataError(f"{file}: {clipped(held.name)} was not unpacked ({fault}); store it without compression")
    values: NDArray[np.generic] = held[()]
    return values


def read_h5ad(file: Path, wanted: str | None) -> Stored:
    """X of annotated data, or the layer that ``wanted`` names; a column of obs named as labels are gives these."""
    try:
        import anndata
    except ImportError as error:
        raise without_extra(f"the file of annotated data {file}", "h5ad") from error
    with decoding(file, ".h5ad file"):
        held = anndata.read_h5ad(file)
    if wanted is not None and wanted not in held.layers:
        raise DataError(
            f"{file} has no layer '{clipped(wanted)}'{nearest(wanted, held.layers)}; it has "
            f"{listed(held.layers) or 'X alone'}"
        )
    matrix = held.X if wanted is None else held.layers[wanted]
    if matrix is None:
        raise DataError(f"{file} holds no X, where cells by genes were expected; name a layer, as in FILE#counts")
    if fault := excess(int(np.prod(matrix.shape)) * matrix.dtype.itemsize, file.stat().st_size, PACKED):
        raise DataError(f"{file} was not unpacked ({fault}); keep fewer genes or cells")
    values = np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix)
    column = next((name for name in held.obs if str(name).lower() in LABEL_NAMES), None)
    labels, names, told = (None, None, None)
    if column is not None:
        given = np.asarray(held.obs[column])
        labels, names, told = read_labels(given if given.dtype.kind in "biuf" else given.astype(str))
    said = () if told is None else (told,)
    source = str(file) if wanted is None else f"{file}#{wanted}"
    return Stored(values, labels, None, source, sha256_of(file), told=said, label_names=names)
