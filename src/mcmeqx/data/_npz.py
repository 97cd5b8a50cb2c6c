"""Arrays of an npz file, each looked at before it is read.

A few kB of zip can unpack to any size. So the shape and dtype in an array's header are
handed out first, for the caller to refuse, and no more than they say is ever read.
"""

import math
import zipfile
from typing import NamedTuple

import numpy as np

from mcmeqx._zips import ZIP_DAMAGE
from mcmeqx.data._pickles import Readable


class ArrayHeader(NamedTuple):
    """Shape and dtype that an array in an npz says it has."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Npz:
    """An open npz file; `where` names it in errors, which are `ValueError`s."""

    def __init__(self, file: Readable, where: str) -> None:
        self._where = where
        try:
            self._archive = zipfile.ZipFile(file)
        except ZIP_DAMAGE as error:
            raise self._damaged(error) from error

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(name.removesuffix(".npy") for name in self._archive.namelist())

    def header(self, name: str) -> ArrayHeader:
        """Shape and dtype of the array `name`; refuses objects and Fortran's order."""
        try:
            with self._archive.open(f"{name}.npy") as entry:
                shape, fortran, dtype = _read_header(entry)
        except KeyError as error:
            names = ", ".join(self._archive.namelist()[:9]) or "nothing"
            raise ValueError(
                f"{self._where} holds {names}, expected {name}.npy"
            ) from error
        except (*ZIP_DAMAGE, ValueError) as error:
            raise self._damaged(error) from error
        if fortran or dtype.hasobject:
            raise ValueError(
                f"{self._where}: {name} is of objects or in Fortran's order, "
                "expected numbers in C's order"
            )
        if min(shape, default=0) < 0:
            raise self._damaged(f"{name} has shape {shape}")
        return ArrayHeader(shape, dtype)

    def array(self, name: str) -> np.ndarray:
        """The array `name`, read-only; check its `header` first."""
        header = self.header(name)
        size = math.prod(header.shape) * header.dtype.itemsize
        try:
            with self._archive.open(f"{name}.npy") as entry:
                _read_header(entry)
                data = entry.read(size)
                # Reading past the end is also what compares the checksum.
                rest = entry.read(1)
        except ZIP_DAMAGE as error:
            raise self._damaged(error) from error
        if len(data) != size or rest:
            raise self._damaged(f"{name} is not as long as its header says")
        return np.frombuffer(data, header.dtype).reshape(header.shape)

    def _damaged(self, error: Exception | str) -> ValueError:
        return ValueError(
            f"{self._where} is no npz file, or a damaged one ({error!r}): "
            "download it again"
        )


def _read_header(entry) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(entry)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(entry)
    return np.lib.format.read_array_header_2_0(entry)
