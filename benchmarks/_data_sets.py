"""Data sets by the name that the command line gives them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

import mcmeqx as mc

DATA: dict[str, Callable[[Path | None], mc.data.Images]] = {
    "openmoji": lambda path: _openmoji(path),
    "emoji64": lambda path: mc.data.emoji64(_given(path), split="train"),
    "fashion_mnist": lambda path: mc.data.fashion_mnist(path),
    "cifar10": lambda path: mc.data.cifar10(_given(path)),
    "imagenet64": lambda path: mc.data.imagenet64(_given(path)),
}


def _openmoji(path: Path | None) -> mc.data.Images:
    if path is not None:
        raise ValueError(
            f"openmoji lies in no folder: name the --data that is in {path}"
        )
    return mc.data.openmoji()


def _given(path: Path | None) -> Path:
    if path is None:
        raise ValueError("these data have no place of their own: give --data-path")
    return path


def read_pixels(path: Path) -> np.ndarray:
    """Images of another program, uint8 (n, height, width, channel).

    `path` is an npz with an array `arr_0`, or a folder or zip of square PNG or JPEG
    pictures of one size. Raises what `data.npz_images` and `data.Pictures` do.
    """
    if path.suffix == ".npz":
        return mc.data.npz_images(path)
    pictures = mc.data.Pictures(path)
    rows = tqdm(range(len(pictures)), desc=f"pictures of {path.name}", leave=False)
    return np.stack([pictures.raw(i)[0] for i in rows])
