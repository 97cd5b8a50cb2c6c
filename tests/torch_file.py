"""Weight files as PyTorch wrote them before version 1.6, written without it."""

import pickle
from collections import OrderedDict

import numpy as np


class Named:
    """Pickles as a global of another module, which need not be installed."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class _Storage:
    key = "7"


class _Writer(pickle._Pickler):
    def __init__(self, file, count):
        super().__init__(file, protocol=2)
        self.count = count

    def persistent_id(self, obj):
        if isinstance(obj, _Storage):
            named = Named("torch", "FloatStorage")
            return ("storage", named, obj.key, "cpu", self.count, None)
        return None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, tuple) and obj and isinstance(obj[0], Named):
            self.save(obj[0])
            self.save(obj[1])
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def write_torch_file(path, state, numbers):
    """A file whose tensors (`tensor`) look at one storage, of float32 `numbers`."""
    with path.open("wb") as file:
        pickle.dump(0x1950A86A20F9469CFC6C, file, protocol=2)
        pickle.dump(1001, file, protocol=2)
        pickle.dump({}, file, protocol=2)
        _Writer(file, len(numbers)).dump(state)
        pickle.dump([_Storage.key], file, protocol=2)
        file.write(np.int64(len(numbers)).tobytes())
        file.write(np.asarray(numbers, np.float32).tobytes())


def tensor(offset, shape, strides):
    """What stands for a tensor in such a file; strides count numbers."""
    rebuild = Named("torch._utils", "_rebuild_tensor_v2")
    return (rebuild, (_Storage(), offset, shape, strides, False, OrderedDict()))


def write_arrays(path, arrays):
    """The float32 arrays by name, each in the order of its rows."""
    state, parts, offset = {}, [], 0
    for name, array in arrays.items():
        strides = tuple(s // array.itemsize for s in array.strides)
        state[name] = tensor(offset, array.shape, strides)
        parts.append(array.ravel())
        offset += array.size
    write_torch_file(path, state, np.concatenate(parts))
