"""What every labelled set of images is, in memory or not: bytes by index, and names.

Pixels stay bytes, four times smaller than float32, and are scaled where they are read:
x = pixels / 127.5 - 1, so that 0 becomes -1 and 255 becomes 1 exactly. They are stored
channel last, as image files are, and handed out channel first, as networks want them.

Headroom h puts 0 at -1 - h and 255 at 1 + h, and leaves all between as they are. Where
a model is to draw what is quite black or white, up to h of noise is then cut off when
its samples become bytes again; at -1 and 1, half of it stays.
"""

import abc
from typing import Any, cast

import numpy as np

from mcmeqx._types import Example


class AbstractSource(abc.ABC):
    """Labelled images of one size, by index; what `save_packed` turns into one file."""

    name: str
    """What to call the set in logs and file names."""
    classes: tuple[str, ...]
    """Name of each class."""
    headroom: float = 0.0
    """How far beyond -1 and 1 the bytes 0 and 255 are handed out, 0 or more."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(channel, height, width) of one example, the shape of the samples."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def raw(self, i: int) -> tuple[np.ndarray, int]:
        """Pixels uint8 (height, width, channel) and label of example `i` >= 0.

        Raises `ValueError` that names the file where its data cannot be read.
        """

    def __getitem__(self, i: int) -> Example:
        """Example `i`: x float32 (channel, height, width), label int32 ().

        x is in [-1, 1], or as far beyond as `headroom` says.

        Negative `i` count from the end; raises `IndexError` past either end.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"example {i} of {len(self)} in {self.name}")
        pixels, label = self.raw(i % len(self))
        return example(pixels, np.asarray(label, np.int32), self.headroom)


def example(pixels: np.ndarray, label: np.ndarray, headroom: float = 0.0) -> Example:
    """Bytes (..., height, width, channel), scaled and channel first."""
    first = np.moveaxis(pixels, -1, -3)
    if not headroom:
        return Example(cast(Any, _scaled(first)), cast(Any, label))
    # By a table: half the time of looking for -1 and 1 afterwards.
    table = _scaled(np.arange(256))
    table[[0, 255]] = -1.0 - headroom, 1.0 + headroom
    x = np.empty(first.shape, np.float32)
    np.take(table, first, out=x, mode="clip")
    return Example(cast(Any, x), cast(Any, label))


def _scaled(pixels: np.ndarray) -> np.ndarray:
    """0..255 as float32 in [-1, 1], contiguous."""
    x = pixels.astype(np.float32, order="C")
    x /= 127.5
    x -= 1.0
    return x
