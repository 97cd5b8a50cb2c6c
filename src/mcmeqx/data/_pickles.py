"""Dictionaries of numbers, texts and arrays out of pickles, without trusting them.

A pickle is a program: it imports what it names and calls it. Here the few names that
NumPy's own pickles hold lead to stand-ins, and any other name is refused, so nothing
runs but this module. Not even NumPy's `__setstate__` does, for one given flags of its
choice on a dtype lets a pickle write where it likes in memory. An array is a view of
bytes that stand in the file, so that no shape makes it allocate more than that.
"""

import io
import pickle
import re
import struct
from typing import Any

import numpy as np

Readable = io.BufferedReader | io.BytesIO

_NUMERIC = re.compile(r"[<>|=]?[biuf][1248]")


def unpickle(file: Readable, where: str) -> dict[str, Any]:
    """The dict in a pickle by Python 2 or 3, its arrays as NumPy arrays of numbers.

    Texts of Python 2 are taken as latin1. `where` names the file in errors. Raises
    `ValueError` for a pickle that is damaged, holds no dict, or names anything else
    than arrays and scalars of integers and floats.
    """
    try:
        value = _plain(_Unpickler(file, encoding="latin1").load())
    # Bytes at random make an unpickler raise nearly anything.
    except Exception as error:
        raise ValueError(
            f"{where} is no pickle of arrays, or a damaged or hostile one "
            f"({error!r}): download it again"
        ) from error
    if type(value) is not dict:
        raise ValueError(f"{where} holds a {type(value).__name__}, expected a dict")
    return value


def _plain(item: Any, depth: int = 2) -> Any:
    """The item with arrays for their stand-ins, in dicts within a dict and no deeper.

    A pickle can name one dict twice within another, and that again, and so on.
    """
    if type(item) is dict and depth:
        return {str(key): _plain(value, depth - 1) for key, value in item.items()}
    return item.value if type(item) is _Array else item


def _bytearray(unpickler: Any) -> None:
    """Reads as much as there is, where Python's own makes as much as is said."""
    [size] = struct.unpack("<Q", unpickler.read(8))
    unpickler.append(bytearray(unpickler.read(size)))


# Python's own, not C's, which makes a list as long as the number that a pickle gives to
# something it names again.
class _Unpickler(pickle._Unpickler):
    dispatch = pickle._Unpickler.dispatch | {pickle.BYTEARRAY8[0]: _bytearray}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return _NDARRAY
        # NumPy 2 renamed its inner package.
        found = _STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        # A new function each time: a pickle can set the attributes of what it gets.
        return lambda *arguments: found(*arguments)


class _DType:
    """Stands in for `numpy.dtype`: a number's type, whose byte order comes later."""

    def __init__(self, name: str, *_: Any) -> None:
        if type(name) is not str or not _NUMERIC.fullmatch(name):
            raise pickle.UnpicklingError(f"dtype {name!r} is no number's")
        self.value = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, *structure = state[1:5]
        if order not in ("<", ">", "|", "=") or structure != [None] * 3:
            raise pickle.UnpicklingError("a dtype is not simple")
        self.value = self.value.newbyteorder(order)


class _Array:
    """Stands in for an array; `value` is empty until the state is known."""

    value = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        flat = np.frombuffer(_bytes(data), dtype.value)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _reconstruct(kind: Any, *_: Any) -> _Array:
    if kind is not _NDARRAY:
        raise pickle.UnpicklingError(f"array of kind {kind!r}")
    return _Array()


def _from_buffer(data: Any, dtype: _DType, shape: Any, order: str) -> _Array:
    array = _Array()
    array.__setstate__((None, shape, dtype, order == "F", data))
    return array


def _scalar(dtype: _DType, data: bytes | str) -> Any:
    [value] = np.frombuffer(_bytes(data), dtype.value)
    return value.item()


def _bytes(data: Any) -> Any:
    # Python 2 keeps bytes in texts.
    return data.encode("latin1") if type(data) is str else data


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"a text is encoded as {encoding!r}")
    return text.encode("latin1")


_NDARRAY = object()
_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
}
