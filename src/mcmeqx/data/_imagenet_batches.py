"""ImageNet in its official downsampled archives: 64x64, 32x32, 16x16 or 8x8.

Labels are the archives' 1 to 1000 less one. That is the order of ILSVRC's own list,
not of the sorted WordNet names that folders and EDM's zip give: models that were
trained on one do not know the labels of the other.
"""

from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from mcmeqx.data._batchfile import batch_labels, batch_pixels
from mcmeqx.data._source import AbstractSource

STEMS = {
    "train": tuple(f"train_data_batch_{i}" for i in range(1, 11)),
    "val": ("val_data",),
}
"""Names of the files of a split, each bare or ending in .npz."""
WANTED = "train_data_batch_1 to train_data_batch_10, or val_data, bare or .npz"


class ImageNetBatches(AbstractSource):
    """The split "train" (`train_data_batch_1` to `_10`) or "val" (`val_data`).

    Takes a folder with the files, bare (pickles) or ending in .npz. All labels are read
    when it is made: quickly from npz files, from pickles by reading each once. Pixels
    are held of one file at a time, so read in order. A class is named by its number in
    the archive.

    Raises `FileNotFoundError` that names the missing files, and `ValueError` for a file
    that is damaged, of another side, or has a label outside 1 to 1000.
    """

    def __init__(
        self,
        folder: Path,
        *,
        side: int = 64,
        split: Literal["train", "val"] = "train",
    ) -> None:
        self.name = f"imagenet{side}-{split}"
        self.classes = tuple(str(number) for number in range(1, 1001))
        self._side = side
        self._paths = find_batches(Path(folder), split)
        bar = tqdm(self._paths, desc=f"labels of {self.name}", unit="file")
        self._labels = [self._labels_of(path) for path in bar]
        self._ends = list(accumulate(len(labels) for labels in self._labels))
        self._held = -1
        self._pixels = np.empty((0, side, side, 3), np.uint8)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, side, side)."""
        return 3, self._side, self._side

    def __len__(self) -> int:
        return self._ends[-1]

    def raw(self, i: int) -> tuple[np.ndarray, int]:
        """Pixels uint8 (side, side, 3) and label of example `i`."""
        at = int(np.searchsorted(self._ends, i, side="right"))
        row = i - self._ends[at] + len(self._labels[at])
        if at != self._held:
            # Let go of first: two files need not fit into memory.
            self._held, self._pixels = -1, self._pixels[:0].copy()
            self._pixels = self._pixels_of(self._paths[at], len(self._labels[at]))
            self._held = at
        return self._pixels[row], int(self._labels[at][row])

    def _labels_of(self, path: Path) -> np.ndarray:
        with path.open("rb") as file:
            return batch_labels(
                file, str(path), side=self._side, numbers=range(1, 1001)
            )

    def _pixels_of(self, path: Path, rows: int) -> np.ndarray:
        with path.open("rb") as file:
            pixels = batch_pixels(file, str(path), side=self._side)
        if len(pixels) != rows:
            raise ValueError(f"{path} was changed while it was read: start again")
        return pixels


def find_batches(folder: Path, split: Literal["train", "val"]) -> list[Path]:
    """The files of a split in order; `FileNotFoundError` that names the missing."""
    if split not in STEMS:
        raise ValueError(f"split is {split!r}, expected 'train' or 'val'")
    found, missing = [], []
    for stem in STEMS[split]:
        # First the npz file: its labels are read without its pixels.
        both = [folder / f"{stem}.npz", folder / stem]
        present = [path for path in both if path.is_file()]
        found += present[:1]
        missing += [] if present else [stem]
    if missing:
        names = ", ".join(missing)
        raise FileNotFoundError(
            f"{folder} lacks {names} of ImageNet's downsampled archives "
            f"({WANTED}): unpack all of them there"
        )
    return found
