"""CIFAR-10 in its version for Python (Krizhevsky 2009)."""

import gzip
import io
import tarfile
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from mcmeqx.data._batchfile import batch_labels, batch_pixels
from mcmeqx.data._images import Images
from mcmeqx.data._pickles import unpickle

_FOLDER = "cifar-10-batches-py"
_META = "batches.meta"
_FILES = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}
_SIDE = 32
# A batch file is 31 MB.
_MOST_BYTES = 2**26
_BLOCK = 2**20
_DAMAGE = (tarfile.TarError, zlib.error, EOFError, OSError)


def cifar10(path: Path, *, split: Literal["train", "test"] = "train") -> Images:
    """CIFAR-10, 32x32 RGB in ten named classes: 50,000 to train on, 10,000 to test.

    `path` is the folder `cifar-10-batches-py`, the folder it lies in, or the file
    `cifar-10-python.tar.gz`, of which nothing is unpacked to disk.

    Raises `FileNotFoundError` that names the missing files, and `ValueError` for a file
    that is damaged or holds something else.
    """
    if split not in _FILES:
        raise ValueError(f"split is {split!r}, expected 'train' or 'test'")
    path = Path(path)
    wanted = (_META, *_FILES[split])
    files = _in_folder(path, wanted) if path.is_dir() else _in_tar(path, wanted)
    missing = [name for name in wanted if name not in files]
    if missing:
        raise FileNotFoundError(
            f"{path} lacks {', '.join(missing)} of CIFAR-10's version for Python: give "
            f"the folder {_FOLDER} or the file cifar-10-python.tar.gz"
        )
    classes = _classes(files[_META], f"{_META} in {path}")
    pixels, labels = [], []
    for name in _FILES[split]:
        where = f"{name} in {path}"
        file, numbers = io.BytesIO(files[name]), range(len(classes))
        labels.append(batch_labels(file, where, side=_SIDE, numbers=numbers))
        file.seek(0)
        pixels.append(batch_pixels(file, where, side=_SIDE))
    return Images(
        np.concatenate(pixels), np.concatenate(labels), classes, f"cifar10-{split}"
    )


def _in_folder(folder: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    inner = folder / _FOLDER
    folder = inner if inner.is_dir() else folder
    paths = [folder / name for name in wanted if (folder / name).is_file()]
    for path in paths:
        _check_size(path.stat().st_size, str(path))
    return {path.name: path.read_bytes() for path in paths}


def _in_tar(path: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no folder and no file")
    files = {}
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                name = member.name.removeprefix(f"{_FOLDER}/")
                entry = tar.extractfile(member) if member.isreg() else None
                if name in wanted and entry is not None:
                    _check_size(member.size, f"{member.name} in {path}")
                    files[name] = entry.read()
            # gzip compares its checksum at the end only, which tar need not reach.
            while stream.read(_BLOCK):
                pass
    except _DAMAGE as error:
        raise ValueError(
            f"{path} is no tar.gz file, or a damaged one ({error!r}): download it again"
        ) from error
    return files


def _check_size(size: int, where: str) -> None:
    if size > _MOST_BYTES:
        raise ValueError(
            f"{where} has {size} bytes, a file of CIFAR-10 at most {_MOST_BYTES}"
        )


def _classes(data: bytes, where: str) -> tuple[str, ...]:
    names = unpickle(io.BytesIO(data), where).get("label_names")
    if type(names) is not list or len(names) != 10 or len(set(map(str, names))) != 10:
        raise ValueError(f"{where}: label_names is {names!r:.99}, expected ten names")
    return tuple(str(name) for name in names)
