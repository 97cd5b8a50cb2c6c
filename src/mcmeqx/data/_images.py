"""A labelled set of images in one array, which may be a mapped file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mcmeqx._types import Example
from mcmeqx.data._source import AbstractSource, example

Indices = Sequence[int] | np.ndarray


@dataclass(frozen=True, eq=False)
class Images(AbstractSource):
    """Labelled images of one size, indexable, never changed after they are made.

    Raises `TypeError` for arrays of another dtype, and `ValueError` for a wrong shape,
    a label outside [0, len(classes)), a class named twice or headroom below 0. A set
    may be empty. `dataclasses.replace(images, headroom=0.1)` is the same set with room.
    """

    pixels: np.ndarray
    """uint8, (n, height, width, channel), in 0..255. A read-only view is kept."""
    labels: np.ndarray
    """int32, (n,): positions in `classes`. A read-only view is kept."""
    classes: tuple[str, ...]
    """Name of each class."""
    name: str
    """What to call the set in logs and file names."""
    headroom: float = 0.0
    """How far beyond -1 and 1 the bytes 0 and 255 are handed out, 0 or more: room for
    the noise that a model leaves on what should be quite black or white."""

    def __post_init__(self) -> None:
        _check_array("pixels", self.pixels, np.uint8, 4)
        _check_array("labels", self.labels, np.int32, 1)
        if len(self.pixels) != len(self.labels):
            raise ValueError(
                f"{len(self.pixels)} pixels, but {len(self.labels)} labels"
            )
        if 0 in self.pixels.shape[1:]:
            raise ValueError(f"pixels has an empty axis: its shape is {self.shape}")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes names a class twice: {self.classes}")
        if not 0.0 <= self.headroom < np.inf:
            raise ValueError(
                f"headroom is {self.headroom}, expected 0 or a small number like 0.1"
            )
        wrong = (self.labels < 0) | (self.labels >= len(self.classes))
        if wrong.any():
            at = int(wrong.argmax())
            value, count = self.labels[at], len(self.classes)
            raise ValueError(f"labels[{at}] is {value}, outside [0, {count})")
        for field in ("pixels", "labels"):
            view = getattr(self, field).view()
            view.flags.writeable = False
            object.__setattr__(self, field, view)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channel, height, width) of one example, the shape of the samples."""
        height, width, channel = self.pixels.shape[1:]
        return channel, height, width

    def __len__(self) -> int:
        return len(self.labels)

    def raw(self, i: int) -> tuple[np.ndarray, int]:
        """Pixels uint8 (height, width, channel), a read-only view, and label of `i`."""
        return self.pixels[i], int(self.labels[i])

    def take(self, indices: Indices) -> Example:
        """The batch at `indices`, in their order; an index may come twice.

        x is float32 (batch, channel, height, width) in [-1, 1], or as far beyond as
        `headroom` says, label int32 (batch,). Raises `TypeError` unless `indices` is a
        list of integers, and `IndexError` for one past either end.
        """
        at = np.asarray(indices, dtype=None if len(indices) else np.int64)
        if at.ndim != 1 or not np.issubdtype(at.dtype, np.integer):
            raise TypeError(f"indices: {at.ndim}-D {at.dtype}, expected 1-D integers")
        return example(self.pixels[at], self.labels[at], self.headroom)


def _check_array(field: str, value: Any, dtype: type[np.generic], ndim: int) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != dtype:
        found = getattr(value, "dtype", type(value).__name__)
        raise TypeError(f"{field}: {found}, expected a NumPy array of {dtype.__name__}")
    if value.ndim != ndim:
        raise ValueError(f"{field}: shape {value.shape}, expected {ndim} axes")
