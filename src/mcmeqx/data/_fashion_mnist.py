"""Fashion-MNIST (Xiao et al. 2017) in its idx files, padded from 28x28 to 32x32."""

import gzip
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from mcmeqx.data._images import Images

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Names of the classes, in the order of the labels."""

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_STARTS = {"train": "train", "test": "t10k"}
_SIDE = 28
_PAD = 2
_MOST_ROWS = 100_000


def fashion_mnist(
    folder: Path | None = None, *, split: Literal["train", "test"] = "train"
) -> Images:
    """Fashion-MNIST, 32x32 grey in ten classes: 60,000 to train on, 10,000 to test.

    `folder` holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same
    with t10k, bare or ending in .gz; by default it is the one that Debian's package
    dataset-fashion-mnist brings. Two rows and columns of 0 are added on each side.

    Raises `FileNotFoundError` for a missing file, and `ValueError` for one that is
    truncated or not of this kind.
    """
    if split not in _STARTS:
        raise ValueError(f"split is {split!r}, expected 'train' or 'test'")
    folder = _DEBIAN if folder is None else Path(folder)
    pixels = _read(folder, f"{_STARTS[split]}-images-idx3-ubyte", (_SIDE, _SIDE))
    labels = _read(folder, f"{_STARTS[split]}-labels-idx1-ubyte", ())
    if len(pixels) != len(labels):
        raise ValueError(f"{folder}: {len(pixels)} images, but {len(labels)} labels")
    if labels.max() >= len(CLASSES):
        raise ValueError(f"{folder}: a label is {labels.max()}, expected 0 to 9")
    padded = np.pad(pixels, ((0, 0), (_PAD, _PAD), (_PAD, _PAD)))[..., None]
    return Images(padded, labels.astype(np.int32), CLASSES, f"fashion-mnist-{split}")


def _read(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The bytes (n, *shape) of the idx file `name`, bare or .gz, in `folder`."""
    paths = [folder / name, folder / f"{name}.gz"]
    present = [path for path in paths if path.is_file()]
    if not present:
        raise FileNotFoundError(
            f"{folder} holds neither {name} nor {name}.gz: give the folder that does, "
            "or `apt-get install dataset-fashion-mnist` and give none"
        )
    path = present[0]
    start = struct.Struct(f">{2 + len(shape)}i")
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            head = file.read(start.size)
            rows = _rows(head.ljust(start.size, b"\0"), start, shape, path)
            size = int(np.prod((rows, *shape)))
            # One byte more than there should be; reading on also checks gzip's sum.
            data = file.read(size + 1)
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged ({error!r}): get it again") from error
    if len(data) != size:
        than = "longer" if len(data) > size else "shorter"
        raise ValueError(f"{path} is {than} than its header says: get it again")
    return np.frombuffer(data, np.uint8).reshape(rows, *shape)


def _rows(head: bytes, start: struct.Struct, shape: tuple[int, ...], path: Path) -> int:
    # Two zeros, 8 for unsigned bytes, and how many axes follow.
    magic, rows, *sides = start.unpack(head)
    if magic != 0x801 + len(shape) or tuple(sides) != shape:
        raise ValueError(
            f"{path} starts with {magic} and axes {(rows, *sides)}, expected "
            f"{0x801 + len(shape)} and (n, {', '.join(map(str, shape))})"
        )
    if not 0 < rows <= _MOST_ROWS:
        raise ValueError(f"{path} has {rows} rows, expected 1 to {_MOST_ROWS}")
    return rows
