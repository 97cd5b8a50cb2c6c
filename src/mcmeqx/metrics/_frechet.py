"""The Frechet distance between two sets of features, from mergeable moments.

For Gaussians N(m1, S1), N(m2, S2) it is
`|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^1/2` (Dowson & Landau 1982; Heusel et al.
2017), where the last trace is the sum of the roots of the eigenvalues of `R S2 R`, R
the symmetric root of S1.
"""

from dataclasses import dataclass

import numpy as np


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


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance alone, as files of statistics keep them."""

    mean: np.ndarray
    """(d,)."""
    sigma: np.ndarray
    """(d, d)."""

    def covariance(self) -> np.ndarray:
        """`sigma`, as `Moments` have theirs."""
        return self.sigma


def _same_width(a: Moments | Gaussian, b: Moments | Gaussian) -> None:
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features of {len(a.mean)} and of {len(b.mean)} numbers do not compare"
        )


def frechet_distance(a: Moments | Gaussian, b: Moments | Gaussian) -> float:
    """The squared Frechet distance, at least 0, in squared units of the features."""
    _same_width(a, b)
    first, second = a.covariance(), b.covariance()
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ second @ root)
    trace = np.trace(first) + np.trace(second)
    trace -= 2.0 * np.sqrt(np.maximum(cross, 0.0)).sum()
    return max(float(np.sum((a.mean - b.mean) ** 2) + trace), 0.0)
