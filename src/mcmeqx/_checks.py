"""Refusals of what would silently give something else."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mcmeqx._guidance import Guided
from mcmeqx._types import NULL_LABEL, Example
from mcmeqx.nets._network import Embedding


def check_noise(z: Any) -> None:
    """ValueError for a precision that cannot tell neighbouring times apart."""
    if not _is_single(z.dtype):
        raise ValueError(
            f"noise is float32 or float64, got {z.dtype}: a network computes in a "
            "precision of its own, but times and samples need this one"
        )


def _is_single(dtype: Any) -> bool:
    """Whether it is of floats of single precision at least."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32


def check_guidance(scale: float | None) -> None:
    """ValueError for a scale at which no student was taught."""
    if scale is not None and not 0.0 <= scale < math.inf:
        raise ValueError(f"guidance is a finite scale of 0 or more, got {scale}")


def check_times(ts: Any, *, rising: bool) -> None:
    """ValueError unless all times lie in [0, 1], two at least, and fall.

    With `rising` they may rise instead.
    """
    if np.ndim(ts) != 1 or len(ts) < 2:
        raise ValueError(f"ts holds two times or more, as uniform_grid(8), got {ts}")
    if not (np.min(ts) >= 0.0 and np.max(ts) <= 1.0):
        raise ValueError(
            f"times lie in [0, 1], from data to noise, as uniform_grid(8), got {ts}"
        )
    # As samplers see them.
    gaps = np.diff(np.asarray(ts, np.float32))
    if not (np.all(gaps < 0.0) or (rising and np.all(gaps > 0.0))):
        raise ValueError(
            "times fall from each to the next, as uniform_grid(8), and along "
            f"ProbabilityFlow may rise instead, got {ts}"
        )


def label_range(*models: Any) -> tuple[int, int] | None:
    """Lowest and highest label that all networks of the library here tell apart.

    Models of none, and None, are passed over.
    """
    ranges = [_range_of(embed) for model in models for embed in _embeddings(model)]
    if not ranges:
        return None
    lows, highs = zip(*ranges, strict=True)
    return max(lows), min(highs)


def _embeddings(model: Any) -> Iterator[Any]:
    """Those of a model's classes, and of the model that guides it."""
    if isinstance(model, Guided):
        yield from _embeddings(model.model)
        yield from _embeddings(model.guidance.negative)
        return
    embed = getattr(getattr(model, "network", None), "embed", None)
    # A network of one's own may call anything so.
    if isinstance(embed, Embedding) and embed.classes is not None:
        yield embed


def _range_of(embed: Any) -> tuple[int, int]:
    low = NULL_LABEL if embed.null_class else 0
    return low, len(embed.classes) - embed.null_class - 1


def check_labels(labels: Any, rows: int, known: Sequence[int] | None) -> None:
    """ValueError unless there is one label a row of noise, each in `known`."""
    if labels is None:
        return
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels are whole numbers (n,), got {labels.dtype} {labels.shape}"
        )
    if len(labels) != rows:
        raise ValueError(f"got {rows} rows of noise but {len(labels)} labels")
    check_classes(labels, known)


def check_example(batch: Any) -> None:
    """ValueError for what is no batch, or has an x that noise cannot be added to."""
    if not isinstance(batch, Example):
        raise ValueError(f"a batch is an Example(x, label), got {type(batch).__name__}")
    if not _is_single(batch.x.dtype):
        raise ValueError(
            f"x of a batch is float32, got {batch.x.dtype}: bytes of images become so "
            "by x / 127.5 - 1, and a network computes in a precision of its own"
        )


def check_classes(labels: Any, known: Sequence[int] | None) -> None:
    """ValueError unless each label lies in `known`."""
    if labels is None or known is None:
        return
    # Of a JAX array NumPy would ask the device, which may be at a step.
    labels = np.asarray(labels)
    low, high = int(labels.min()), int(labels.max())
    if not known[0] <= low <= high <= known[1]:
        raise ValueError(
            f"labels go from {low} to {high}, the model's classes from {known[0]} to "
            f"{known[1]}, those of what teaches or guides it counted too"
        )
