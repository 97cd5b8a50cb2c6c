"""Tensors of a PyTorch file of the kind before version 1.6, read with NumPy alone.

Such a file is a row of pickles (magic number, protocol, system, state dict, storage
keys) and then each storage's element count and raw little-endian numbers. The pickles
may name an ordered dictionary, the tensor rebuilders and the storage types; any other
name is refused before it is looked up, so a hostile file runs nothing.
"""

import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_DAMAGE = (
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
    pickle.UnpicklingError,
)
_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _Tensor(NamedTuple):
    storage: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild(storage, offset, shape, strides, requires_grad, hooks) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


def _parameter(data, requires_grad, hooks) -> _Tensor:
    return data


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BytesIO):
        pickle.Unpickler.__init__(self, file)
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _parameter
        if module == "torch" and name in _DTYPES:
            return name
        raise ValueError(f"the file names {module}.{name}, which no weight file needs")

    def persistent_load(self, pid: Any) -> str:
        _, kind, key, *_ = pid
        self.dtypes[key] = _DTYPES[kind]
        return key


def read_torch_file(path: Path, sha256: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of `path` by name; float32 or int64 arrays of their own.

    With `sha256` (hexadecimal) the file's hash is compared first. Raises ValueError for
    another hash, another format, a truncated file, or a pickle that names anything but
    tensors.
    """
    content = Path(path).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise ValueError(
            f"{path} has sha256 {found}, expected {sha256}: it is another file, or a "
            "damaged one"
        )
    file = BytesIO(content)
    try:
        if _Unpickler(file).load() != _MAGIC:
            raise ValueError(f"{path} is not a PyTorch file of the kind before 1.6")
        _Unpickler(file).load()
        _Unpickler(file).load()
        state = _Unpickler(file)
        tensors = state.load()
        storages = {}
        for key in _Unpickler(file).load():
            dtype = state.dtypes[key]
            count = int(np.frombuffer(file.read(8), "<i8")[0])
            storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
            if len(storages[key]) != count:
                raise EOFError
        return {name: _array(t, storages[t.storage]) for name, t in tensors.items()}
    except _DAMAGE as error:
        raise ValueError(
            f"{path} is truncated or is not a PyTorch file of the kind before 1.6"
        ) from error


def _array(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    least = min((tensor.offset, *tensor.strides, *(n - 1 for n in tensor.shape)))
    # Memory before and behind the storage is not the file's, and strides of zero make
    # much of little.
    if least < 0 or max(tensor.offset + last + 1, prod(tensor.shape)) > len(storage):
        raise EOFError
    view = np.lib.stride_tricks.as_strided(
        storage[tensor.offset :],
        tensor.shape,
        [s * storage.itemsize for s in tensor.strides],
    )
    return view.copy()


def folded(
    tensors: Mapping[str, np.ndarray], convolution: str, norm: str
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (height, width, in, out) and bias of a convolution with its batch norm.

    TensorFlow's epsilon, 0.001. KeyError that names what `tensors` lack.
    """
    variance = tensors[f"{norm}.running_var"] + np.float32(1e-3)
    scale = tensors[f"{norm}.weight"] / np.sqrt(variance)
    weight = tensors[f"{convolution}.weight"] * scale[:, None, None, None]
    bias = tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale
    return weight.transpose(2, 3, 1, 0), bias
