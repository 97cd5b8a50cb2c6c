"""Fidelity and diversity apart, by balls around features to their k-th neighbour.

With a ball around each real feature that reaches to its k-th nearest other one:
precision is the share of fakes in any ball (Kynkaanniemi et al. 2019), density the
mean number of balls that a fake lies in, over k, and coverage the share of balls with
a fake in them (Naeem et al. 2020). Recall is precision with the sets changed round.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_BLOCK = 1024


class PrecisionRecall(NamedTuple):
    """Two shares, in [0, 1]."""

    precision: float
    """Of the fakes, those that look like data."""
    recall: float
    """Of the data, what looks like a fake."""


class DensityCoverage(NamedTuple):
    """Density is at least 0, about 1 where both laws agree; coverage in [0, 1]."""

    density: float
    """How deep in the data the fakes lie."""
    coverage: float
    """Share of the data with a fake nearby."""


def precision_recall(
    real: np.ndarray, fake: np.ndarray, *, k: int = 3
) -> PrecisionRecall:
    """Precision and recall of features (n, d) and (m, d), in float64.

    Takes n times 1024 numbers of memory. Both fall with fewer rows, so compare results
    of equal n and m alone. Raises ValueError for sets of unequal width, of k rows or
    fewer, or of what is not finite.
    """
    real, fake = _checked(real, fake, k)
    radii, other = _radii(real, k), _radii(fake, k)
    precise, recalled = [], np.zeros(len(real), bool)
    for rows, squares in _blocks(fake, real):
        precise.append((squares <= radii).any(1))
        recalled |= (squares <= other[rows, None]).any(0)
    return PrecisionRecall(
        float(np.concatenate(precise).mean()), float(recalled.mean())
    )


def density_coverage(
    real: np.ndarray, fake: np.ndarray, *, k: int = 5
) -> DensityCoverage:
    """Density and coverage of features (n, d) and (m, d), in float64; memory as above.

    Coverage of a law by itself is about `1 - 2^-k` for as many fakes as data. Raises
    ValueError as `precision_recall` does.
    """
    real, fake = _checked(real, fake, k)
    radii = _radii(real, k)
    balls, covered = 0, np.zeros(len(real), bool)
    for _, squares in _blocks(fake, real):
        within = squares <= radii
        balls += int(within.sum())
        covered |= within.any(0)
    return DensityCoverage(balls / (k * len(fake)), float(covered.mean()))


def _checked(
    real: np.ndarray, fake: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64, moved so that squares lose no digits."""
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"features of shapes {real.shape} and {fake.shape} do not compare"
        )
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(
            f"k is 1 or more and less than both {len(real)} and {len(fake)}, got {k}"
        )
    if not (np.isfinite(real).all() and np.isfinite(fake).all()):
        raise ValueError("features are not finite")
    centre = real.mean(0, dtype=np.float64)
    return real - centre, fake - centre


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance from each row to its k-th nearest other row."""
    found = []
    for rows, squares in _blocks(x, x):
        squares[np.arange(len(squares)), np.arange(len(x))[rows]] = np.inf
        found.append(np.partition(squares, k - 1, 1)[:, k - 1])
    return np.concatenate(found)


def _blocks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared distances of some rows of `x` to all of `y`, block by block."""
    own, other = (x**2).sum(1), (y**2).sum(1)
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        squares = own[rows, None] + other - 2.0 * (x[rows] @ y.T)
        yield rows, np.maximum(squares, 0.0)
