"""The kernel distance (KID): unlike Frechet's it has no bias at small numbers.

With the kernel `k(x, y) = (x.y / d + 1)^3` of d features, the unbiased estimate of the
squared maximum mean discrepancy of m rows of each set is

    sum_{i != j} [k(x_i, x_j) + k(y_i, y_j)] / (m (m - 1)) - 2 mean_{i, j} k(x_i, y_j)

(Gretton et al. 2012, eq. 3; Binkowski et al. 2018), averaged over random subsets. It
may be negative.
"""

from typing import NamedTuple

import numpy as np


class KernelDistance(NamedTuple):
    """A kernel distance and how far off it may be."""

    value: float
    """Mean over the subsets, as published; some papers print 1000 times that."""
    error: float
    """Its standard error."""


def kernel_distance(
    a: np.ndarray, b: np.ndarray, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """The kernel distance of features (n, d) and (m, d), in float64.

    Each of the `subsets` takes `size` rows of either set, or as many as the smaller
    has, none of them twice. Subsets of s of n rows differ by what `1/s - 1/n` tells,
    and their mean from the truth by `1/n` and by a share of the former. So the standard
    error is their deviation times the root of `1 / subsets + s / (n - s)`, n being the
    smaller set's. It is NaN for one subset, and for subsets of a whole set. Raises
    ValueError for sets of unequal width or of less than two rows.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features of shapes {a.shape} and {b.shape} do not compare")
    least = min(len(a), len(b))
    size = min(size, least)
    if size < 2 or subsets < 1:
        raise ValueError(
            "kernel_distance needs two rows of each set and one subset or more, got "
            f"{a.shape}, {b.shape}, size={size} and subsets={subsets}"
        )
    rng = np.random.default_rng(seed)
    values = np.empty(subsets)
    for i in range(subsets):
        rows = (rng.choice(len(x), size, replace=False, shuffle=False) for x in (a, b))
        x, y = (np.asarray(s[r], np.float64) for s, r in zip((a, b), rows, strict=True))
        values[i] = _discrepancy(x, y)
    error = np.nan
    if subsets > 1 and size < least:
        error = values.std(ddof=1) * np.sqrt(1 / subsets + size / (least - size))
    return KernelDistance(float(values.mean()), float(error))


def _discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    count = len(x)

    def kernel(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return (p @ q.T / p.shape[1] + 1.0) ** 3

    own = 0.0
    for p in (x, y):
        within = kernel(p, p)
        own += (within.sum() - np.trace(within)) / (count * (count - 1))
    return own - 2.0 * kernel(x, y).mean()
