"""All that is said of a set of features beside those of the data."""

import hashlib
import inspect
from typing import Any

import jax.numpy as jnp
import numpy as np
from _measured_data import Data

from mcmeqx.metrics import (
    Moments,
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)

METRICS: tuple[str, ...] = (
    "frechet",
    "floor",
    "floor_samples",
    "kernel",
    "kernel_error",
    "inception_score",
    "inception_deviation",
    "precision",
    "recall",
    "density",
    "coverage",
    "neighbours",
)
# From so many samples on, the floor is small and published figures leave it out.
_ENOUGH = 10_000
_ROWS = 4096
# More than a few times what fits side by side costs and tells little.
_SUBSETS = 20
_SUBSET_ROWS = 1000


def scores(rows: np.ndarray, data: Data) -> dict[str, Any]:
    """Every metric that the data allow, by the names in METRICS.

    `floor` is the Frechet distance of `floor_samples` held-out images to the others;
    `neighbours` the number of samples, and of images, that precision, recall, density
    and coverage look at. Rows must stand in no order.
    """
    network = data.network
    found: dict[str, Any] = {
        "frechet": frechet_distance(Moments.of(rows), data.reference.law)
    }
    if network.classes:
        starts = range(0, len(rows), _ROWS)
        parts = (rows[i : i + _ROWS] for i in starts)
        logits = [np.asarray(network.logits(jnp.asarray(part))) for part in parts]
        score = inception_score(np.concatenate(logits), parts=min(10, len(rows)))
        found |= {
            "inception_score": score.value,
            "inception_deviation": score.deviation,
        }
    return found if data.kept is None else found | _beside(rows, data.kept, data)


def code_digest() -> str:
    """SHA-256 of the code that gives the metrics."""
    of = Moments, inception_score, kernel_distance, precision_recall, scores
    found = hashlib.sha256()
    for module in map(inspect.getmodule, of):
        assert module is not None
        found.update(inspect.getsource(module).encode())
    return found.hexdigest()


def _beside(rows: np.ndarray, kept: np.ndarray, data: Data) -> dict[str, Any]:
    count = min(len(rows), len(kept))
    # Subsets of all rows would be one and the same, and tell nothing of the error.
    size = min(_SUBSET_ROWS, count // 2)
    found: dict[str, Any] = {}
    if size > 1:
        kernel = kernel_distance(rows, kept, subsets=_SUBSETS, size=size)
        found |= {"kernel": kernel.value, "kernel_error": kernel.error}
    if count > 5:
        real, fake = kept[:count], rows[:count]
        found |= precision_recall(real, fake)._asdict()
        found |= density_coverage(real, fake)._asdict()
        found["neighbours"] = count
    if len(rows) < _ENOUGH:
        held_out = Moments.of(kept[:count])
        found["floor"] = frechet_distance(held_out, data.without(count))
        found["floor_samples"] = count
    return found
