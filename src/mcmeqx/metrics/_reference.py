"""Statistics of a data set that results are measured against, with where they are from.

Files by others say less than one would like. ADM's npz (Dhariwal & Nichol 2021) and
EDM2's pickle (Karras et al. 2024) are known to be of TensorFlow's Inception; a bare npz
of `mu` and `sigma`, as EDM and pytorch-fid write it, does not say what made it.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mcmeqx.data._npz import Npz
from mcmeqx.data._pickles import unpickle
from mcmeqx.metrics._frechet import Gaussian, Moments
from mcmeqx.metrics._inception import INCEPTION, TENSORFLOW
from mcmeqx.metrics._network import AbstractFeatureNetwork

_MOST_DIMS = 2**14


@dataclass(frozen=True)
class Reference:
    """Mean and covariance of a data set's features, and what is known of them."""

    name: str
    """Which data, or which file."""
    sha256: str
    """Hash of the file, or of the images."""
    network: str | None
    """Name of the feature network; None where the file does not say."""
    resize: str | None
    """How images were brought to its size; None where the file does not say."""
    count: int | None
    """Number of images; None where the file does not say."""
    law: Gaussian
    """Mean and unbiased covariance of the features."""
    shape: tuple[int, int, int] | None = None
    """Of an image, (channel, height, width); None where the file does not say."""

    def check(
        self,
        network: AbstractFeatureNetwork,
        shape: tuple[int, int, int] | None = None,
    ) -> None:
        """ValueError if these are known to be of another network, or image shape."""
        if None not in (self.shape, shape) and self.shape != shape:
            raise ValueError(
                f"{self.name} is of images {self.shape}, the samples are {shape}: "
                "features of other sizes do not compare"
            )
        both = {
            "network": (self.network, network.name),
            "resize": (self.resize, network.resize),
            "dims": (len(self.law.mean), network.dims),
        }
        for field, (own, other) in both.items():
            if own not in (None, other):
                raise ValueError(
                    f"{self.name} has {field}={own}, the samples' network has "
                    f"{other}: choose the same network"
                )


def reference(
    moments: Moments,
    network: AbstractFeatureNetwork,
    *,
    name: str,
    sha256: str,
    shape: tuple[int, int, int] | None = None,
) -> Reference:
    """The reference of a data set's moments under `network`."""
    return Reference(
        name,
        sha256,
        network.name,
        network.resize,
        moments.count,
        Gaussian(moments.mean, moments.covariance()),
        shape,
    )


def save_reference(file: BinaryIO, own: Reference) -> None:
    """Writes a reference to an open file, as an npz that says what it is of."""
    fields = ("name", "sha256", "network", "resize", "count", "shape")
    about = json.dumps({field: getattr(own, field) for field in fields})
    np.savez(file, about=np.array(about), mu=own.law.mean, sigma=own.law.sigma)


def read_reference(path: Path | str) -> Reference:
    """The statistics in a file of ours, of ADM, EDM, pytorch-fid or EDM2.

    Its images, if it holds any as ADM's do, are not read; nothing in it is run. The
    hash is that of the file, but of the images where the file says it. Raises
    FileNotFoundError, and ValueError for a file that is damaged or holds no statistics.
    """
    path = Path(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        if path.suffix == ".pkl":
            every = unpickle(file, str(path))
            found, count = every.get("fid"), every.get("num_images")
            if type(found) is not dict or not {"mu", "sigma"} <= found.keys():
                raise ValueError(f"{path} holds no mu and sigma of `fid`")
            made_by = ("EDM2", INCEPTION, TENSORFLOW)
            read = _foreign(path, sha256, found["mu"], found["sigma"], *made_by)
            return replace(read, count=count if type(count) is int else None)
        npz = Npz(file, str(path))
        mean, sigma = (_numbers(npz, name, path) for name in ("mu", "sigma"))
        if "about" in npz.names:
            return _ours(path, npz, mean, sigma)
        made_by = ("EDM's or pytorch-fid's form", None, None)
        if "mu_s" in npz.names:
            made_by = ("ADM", INCEPTION, TENSORFLOW)
        found = _foreign(path, sha256, mean, sigma, *made_by)
        return replace(found, shape=_image_shape(npz))


def _image_shape(npz: Npz) -> tuple[int, int, int] | None:
    """Of the images (n, height, width, channel) in a file, if it holds any."""
    if "arr_0" not in npz.names:
        return None
    shape, _ = npz.header("arr_0")
    return (shape[3], *shape[1:3]) if len(shape) == 4 else None


def _numbers(npz: Npz, name: str, path: Path) -> np.ndarray:
    shape, dtype = npz.header(name)
    sized = all(0 < side <= _MOST_DIMS for side in shape)
    if dtype.kind != "f" or len(shape) not in (1, 2) or not sized:
        raise ValueError(f"{path}: {name} is {dtype} of shape {shape}")
    return npz.array(name)


def _ours(path: Path, npz: Npz, mean: np.ndarray, sigma: np.ndarray) -> Reference:
    shape, dtype = npz.header("about")
    if dtype.kind != "U" or shape or dtype.itemsize > 2**16:
        raise ValueError(f"{path}: about is {dtype} of shape {shape}, expected a text")
    try:
        about = json.loads(str(npz.array("about")))
        # JSON knows lists alone.
        shape = about.pop("shape", None)
        shape = None if shape is None else tuple(shape)
        return Reference(**about, law=_checked(path, mean, sigma), shape=shape)
    except (TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: about does not describe statistics") from error


def _foreign(path, sha256, mean, sigma, made_by, network, resize) -> Reference:
    law = _checked(path, mean, sigma)
    return Reference(f"{path.name} ({made_by})", sha256, network, resize, None, law)


def _checked(path: Path, mean, sigma) -> Gaussian:
    mean, sigma = np.asarray(mean, np.float64), np.asarray(sigma, np.float64)
    if mean.ndim != 1 or sigma.shape != (*mean.shape, *mean.shape):
        raise ValueError(f"{path}: mu {mean.shape} and sigma {sigma.shape} do not fit")
    if not (np.isfinite(mean).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{path}: mu or sigma is not finite")
    if not np.allclose(sigma, sigma.T, rtol=1e-5, atol=1e-8 * np.abs(sigma).max()):
        raise ValueError(f"{path}: sigma is not symmetric")
    if (np.diagonal(sigma) < 0).any():
        raise ValueError(f"{path}: sigma has variances below 0")
    return Gaussian(mean, sigma)
