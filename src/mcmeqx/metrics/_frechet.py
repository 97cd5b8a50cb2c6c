"""The Frechet distance between two sets of features, from mergeable moments.

For Gaussians N(m1, S1), N(m2, S2) it is
`|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^1/2` (Dowson & Landau 1982; Heusel et al.
2017), where the last trace is the sum of the roots of the eigenvalues of `R S2 R`, R
the symmetric root of S1.
"""

from dataclasses import dataclass

import equinox as eqx
import numpy as np

from mcmeqx.metrics._efficientnet import EfficientNetLite0


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of a set of features, in float64."""

    count: int
    """Number of rows."""
    mean: np.ndarray
    """(d,)."""
    scatter: np.ndarray
    """(d, d): the sum of outer products of the deviations from the mean."""

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """The moments of features (n, d); ValueError if any is not finite."""
        rows = np.asarray(features, np.float64)
        if rows.ndim != 2 or not len(rows):
            raise ValueError(f"features have shape {rows.shape}, expected (n >= 1, d)")
        if not np.isfinite(rows).all():
            bad = int(np.argmin(np.isfinite(rows).all(1)))
            raise ValueError(f"features of row {bad} are not finite")
        mean = rows.mean(0)
        deviation = rows - mean
        return cls(len(rows), mean, deviation.T @ deviation)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets together (Chan et al. 1979)."""
        _same_width(self, other)
        count = self.count + other.count
        shift = other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter = scatter + np.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, self.mean + shift * (other.count / count), scatter)

    def covariance(self) -> np.ndarray:
        """The unbiased covariance (d, d); ValueError below two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two rows or more, got {self.count}")
        return self.scatter / (self.count - 1)


def _same_width(a: Moments, b: Moments) -> None:
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features of {len(a.mean)} and of {len(b.mean)} numbers do not compare"
        )


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared Frechet distance, at least 0, in squared units of the features."""
    _same_width(a, b)
    first, second = a.covariance(), b.covariance()
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ second @ root)
    trace = np.trace(first) + np.trace(second)
    trace -= 2.0 * np.sqrt(np.maximum(cross, 0.0)).sum()
    return max(float(np.sum((a.mean - b.mean) ** 2) + trace), 0.0)


@eqx.filter_jit
def _apply(network, images):
    return network(images)


def features(
    network: EfficientNetLite0, images: np.ndarray, *, batch_size: int = 64
) -> np.ndarray:
    """Features (n, d), float32, of images (n, channel, height, width) in [-1, 1].

    One executable serves all batches. Raises ValueError for another rank, for values
    outside [-1, 1] and for no images.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(
            f"images have shape {images.shape}, expected (n, channel, height, width)"
        )
    low, high = float(np.min(images)), float(np.max(images))
    if not (low >= -1.0 and high <= 1.0):
        raise ValueError(f"images lie in [{low}, {high}], expected [-1, 1]: clip them")
    out = []
    for start in range(0, len(images), batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
        out.append(np.asarray(_apply(network, np.asarray(images[rows], np.float32))))
    return np.concatenate(out)[: len(images)]
