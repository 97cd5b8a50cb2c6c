"""What samples are measured against: a data set's features, or a file of statistics."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _chunks import CHUNK, chunked_features, named_if_damaged
from _recipes import file_name, whole
from tqdm import tqdm

import mcmeqx as mc
from mcmeqx.metrics import AbstractFeatureNetwork, Gaussian, Moments, Reference

KEPT = 10_000
"""Images whose features are kept: for the floor and for what needs more than moments,
the number that precision and recall are published at."""
_ROWS = 8 * CHUNK


@dataclass(frozen=True)
class Data:
    """A reference, its network, and features of some images where there are any."""

    network: AbstractFeatureNetwork
    """What gives features."""
    reference: Reference
    """Of all images."""
    kept: np.ndarray | None = None
    """Features (n, d) of random images; half of all at most."""
    rest: Moments | None = None
    """Of all other images."""

    def without(self, n: int) -> Moments | Gaussian:
        """The law of all images but the first n of `kept`, for the floor.

        A file of statistics cannot leave any out, and of so many need not.
        """
        if self.rest is None or self.kept is None:
            return self.reference.law
        left = self.kept[n:]
        return self.rest.merge(Moments.of(left)) if len(left) else self.rest


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 of the shapes, dtypes and contents of arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.shape} {array.dtype}".encode())
        for i in range(0, max(len(array), 1) if array.ndim else 1, _ROWS):
            part = array[i : i + _ROWS] if array.ndim else array
            found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


def from_images(
    images: mc.data.Images,
    network: AbstractFeatureNetwork,
    folder: Path,
    *,
    batch_size: int = 64,
) -> Data:
    """The data set's features under the network, kept in a folder of `folder`.

    There lies `reference.npz`, which stands for the data on other machines. Raises
    ValueError for less than four images.
    """
    if len(images) < 4:
        raise ValueError(f"{images.name} has {len(images)} images, expected 4 or more")
    sha256 = digest(images.pixels)
    own = hashlib.sha256(f"{sha256} {network.name} {network.resize}".encode())
    folder = folder / file_name(f"{images.name}_{own.hexdigest()[:16]}")
    order = np.random.default_rng(0).permutation(len(images))
    count = min(len(images) // 2, KEPT)
    chosen = order[:count]
    kept = _kept(images.name, images.pixels, chosen, network, folder, batch_size)
    rest = _moments(images, order[count:], network, folder, batch_size)
    both = rest.merge(Moments.of(kept))
    about = mc.metrics.reference(
        both, network, name=images.name, sha256=sha256, shape=images.shape
    )
    path = folder / "reference.npz"
    if not path.exists():
        with whole(path) as part, part.open("wb") as file:
            mc.metrics.save_reference(file, about)
    return Data(network, about, kept, rest)


def _moments(images, rows, network, folder: Path, batch_size: int) -> Moments:
    """The moments of the images in `rows`, of which finished parts are on disk."""
    path, done, moments = folder / "rest.npz", 0, None
    size = min(batch_size, _ROWS)
    if path.exists():
        # Opened here, since np.load leaves a file that is no whole zip open.
        with named_if_damaged(path), path.open("rb") as file, np.load(file) as stored:
            done = int(stored["count"])
            moments = Moments(done, stored["mean"], stored["scatter"])
    starts = range(done, len(rows), _ROWS)
    for start in tqdm(starts, desc=f"moments of {images.name}", leave=False):
        x = scaled(images.pixels[rows[start : start + _ROWS]])
        own = Moments.of(mc.metrics.features(network, x, batch_size=size))
        moments = own if moments is None else moments.merge(own)
        with whole(path) as part, part.open("wb") as file:
            np.savez(
                file,
                count=moments.count,
                mean=moments.mean,
                scatter=moments.scatter,
            )
    assert moments is not None
    return moments


def from_statistics(
    path: Path,
    network: AbstractFeatureNetwork,
    folder: Path,
    *,
    shape: tuple[int, int, int] | None = None,
    batch_size: int = 64,
) -> Data:
    """The statistics in a file, and features of its images where it holds any.

    Raises what `metrics.read_reference` does, and ValueError for another network's, or
    of images that have not this `shape`.
    """
    reference = mc.metrics.read_reference(path)
    reference.check(network, shape)
    if reference.shape is None or not _has_images(path):
        return Data(network, reference)
    pixels = mc.data.npz_images(path)
    order = np.random.default_rng(0).permutation(len(pixels))[:KEPT]
    own = hashlib.sha256(f"{reference.sha256} {network.name}".encode()).hexdigest()
    folder = folder / file_name(f"{path.stem}_{own[:16]}")
    kept = _kept(path.name, pixels, order, network, folder, batch_size)
    return Data(network, reference, kept)


def _kept(name, pixels, rows, network, folder: Path, batch_size: int) -> np.ndarray:
    """Features of the images in `rows`, of which finished chunks are on disk."""
    (features,) = chunked_features(
        lambda start, n: scaled(pixels[rows[start : start + n]]),
        len(rows),
        [(network, folder)],
        batch_size=batch_size,
        describe=f"features of {name}",
    )
    return features


def _has_images(path: Path) -> bool:
    with np.load(path) as stored:
        return "arr_0" in stored.files


def scaled(pixels: np.ndarray) -> np.ndarray:
    """Bytes (n, height, width, channel) to [-1, 1], channel first."""
    return pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1.0
