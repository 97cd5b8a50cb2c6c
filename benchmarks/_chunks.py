"""Features chunk by chunk on disk, so that a killed evaluation goes on."""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from _recipes import whole
from tqdm import tqdm

from mcmeqx.metrics import AbstractFeatureNetwork, features

CHUNK = 128
"""Images of a chunk; what is sampled depends on it, so it is no option."""


def chunked_features(
    make: Callable[[int, int], np.ndarray],
    count: int,
    against: Sequence[tuple[AbstractFeatureNetwork, Path]],
    *,
    batch_size: int,
    describe: str,
) -> list[np.ndarray]:
    """Features (count, d), by each network, of the images that `make(start, n)` gives.

    Those of finished chunks are read from the network's folder, which it and the images
    must determine. Images lie in [-1, 1] and are made once for all networks.
    """
    out: list[list[np.ndarray]] = [[] for _ in against]
    # Batches are filled up: larger ones would be mostly filling.
    size = min(batch_size, CHUNK)
    starts = range(0, count, CHUNK)
    for start in tqdm(starts, desc=describe, unit="chunk", leave=False):
        end = min(start + CHUNK, count)
        images = None
        for (network, folder), parts in zip(against, out, strict=True):
            path = folder / f"features_{start:08d}_{end:08d}.npy"
            if not path.exists():
                images = make(start, end - start) if images is None else images
                rows = features(network, images, batch_size=size)
                with whole(path) as part, part.open("wb") as file:
                    np.save(file, rows)
            with named_if_damaged(path):
                parts.append(np.load(path))
    return [np.concatenate(parts) for parts in out]


@contextmanager
def named_if_damaged(path: Path) -> Iterator[None]:
    """Within it, a file that cannot be read is a ValueError that names it."""
    try:
        yield
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it, and it is made anew"
        ) from error


def as_bytes(x: np.ndarray) -> np.ndarray:
    """Samples as image files hold them: clipped and rounded to 256 levels, in [-1, 1].

    Raises ValueError for samples that are not finite.
    """
    bad = int((~np.isfinite(x)).any(tuple(range(1, x.ndim))).sum())
    if bad:
        raise ValueError(f"{bad} of {len(x)} samples are not finite")
    return np.round((np.clip(x, -1.0, 1.0) + 1.0) * 127.5) / 127.5 - 1.0
